"""One sweep: find what is on scratch, ask Slurm twice, decide, and reap orphans as their owners.

Directories first, Slurm second: the other order would call a job that starts in between an orphan. Nothing is deleted
by this module; each owner's child looks again and hands what is still the same to the reaper.
"""

import fcntl
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional

import psutil

from jobcache import asuser, cachedir, find, processes, reaper
from jobcache.layout import Template
from jobcache.plan import CACHE, REAP, RUN, TRASH, Decision, Found, Rules, has_no_job, is_candidate, plan
from jobcache.settings import Settings
from jobcache.slurm import Listing, Slurm, Unknown
from jobcache.survey import AT_ONCE, PATIENCE, Hung, starter, survey, with_rights_of

_LONGEST = 600.0  # seconds for one owner's orphans in one sweep, so that nobody keeps it from the others
_STRIDE = 5.0  # seconds of deletion between two words
_MOST_LATE = 4  # owners in a row at whose directories nothing goes on, before the others are left for another time
_MOST_EACH = 10_000  # directories of one user that one sweep looks at
_MOST_BESIDE = 8  # users' directories in one place that may be one user's: an account can have had other names


class Busy(Exception):
    """Another sweep is under way, or may be; the words say whose, or why there is no lock."""


@dataclass(frozen=True)
class Options:
    """What this run is to do.

    user: only this uid. shard: (I, N), only users with uid % N == I - 1. local: node-local scratch, of `node`, in place
    of the shared one. dry: decide, and do nothing.
    """

    user: Optional[int] = None
    shard: tuple[int, int] = (1, 1)
    local: bool = False
    node: str = ""
    dry: bool = False


@dataclass(frozen=True)
class Reaped:
    """One directory that is reaped: bytes and files that went, whether all of it did, the filesystem's figures now."""

    decision: Decision
    bytes: int
    files: int
    done: bool
    usage: dict[str, float]


@dataclass
class Result:
    """What came of a sweep.

    unknown: why the live jobs are not known, so that nothing was reaped. trouble: what could not be looked at or reaped,
    in words. terminated: the processes that a dead job had left behind in its cache, pids by path; of a dry run, those that
    would be ended.
    """

    decisions: list[Decision] = field(default_factory=list)
    reaped: list[Reaped] = field(default_factory=list)
    unknown: Optional[Unknown] = None
    trouble: list[str] = field(default_factory=list)
    terminated: dict[str, tuple[int, ...]] = field(default_factory=dict)


Say = Callable[[str, int, int], None]  # what is being done, how many are, of how many (0: not known)


def silent(_what: str, _done: int, _of: int) -> None:
    """Say nothing."""


def run(site: Settings, options: Options, say: Say = silent, on_reaped: Callable[[Reaped], None] = lambda _: None) -> Result:
    """Sweep once. `on_reaped` is called for each directory as it is reaped."""
    result = Result()
    rules = rules_of(site, options.node)
    found = _all(site, options, result.trouble, say)
    candidates = [one for one in found if is_candidate(one, rules)]
    listings: list[Listing] = []
    try:
        dead = _dead(site, options, candidates, listings)
        if dead:
            _wait(rules.confirm, say)
            dead = _dead(site, options, dead, listings)
            dead = list(_look_again(dead, hung_of(site), result.trouble, say))
            dead = with_pids(plan(dead, listings, rules), hung_of(site))
    except Unknown as unknown:
        result.unknown = unknown
        listings, dead = [], []
    runs = list(_look_again([one for one in found if has_no_job(one)], hung_of(site), result.trouble, say))
    fresh = {one.path: one for one in [*dead, *with_pids(plan(runs, [], rules), hung_of(site))]}
    result.decisions = plan((fresh.get(one.path, one) for one in found), listings, rules)
    if not options.dry:
        todo = [decision for decision in result.decisions if decision.action == REAP]
        for done in act(site, todo, result.trouble, say):
            result.reaped.append(done)
            on_reaped(done)
    if site.tree["sweep"]["stray_processes"] == "terminate":
        for decision in result.decisions:
            if decision.reason == "in_use":
                result.terminated[decision.found.path] = processes.terminate(decision.found, options.dry)
    return result


def hung_of(site: Settings) -> Hung:
    """Return where this host's sweeps remember which directories hang."""
    return Hung(site.run_dir)


def rules_of(site: Settings, node: str) -> Rules:
    """Return what the site says of sweeping."""
    sweep = site.tree["sweep"]
    return Rules(
        cluster=site.cluster,
        grace=sweep["grace"],
        confirm=sweep["confirm"],
        keep_max=site.keep_max,
        min_uid=site.min_uid,
        reap_unrecorded=sweep["unrecorded"] == "reap",
        node=node,
    )


def _dead(site: Settings, options: Options, found: list[Found], listings: list[Listing]) -> list[Found]:
    """Ask Slurm, once for all; return those whose job is not alive, and trash. No candidates, no question. Raise Unknown."""
    if not found:
        return []
    ask = site.tree["slurm"]
    slurm = Slurm(ask["conf"], ask["squeue"], ask["scontrol"], ask["timeout"])
    listing = slurm.listing(site.cluster, only_own=options.user == os.geteuid())
    listings.append(listing)
    return [one for one in found if one.kind == TRASH or not listing.alive(one.job_id, one.uid)]


def _wait(seconds: float, say: Say) -> None:
    until = time.monotonic() + seconds + 0.001
    while time.monotonic() < until:
        say("waiting to ask Slurm again", int(seconds - (until - time.monotonic())), int(seconds))
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))


# ------------------------------------------------------------------------------------------------------------ looking


def _all(site: Settings, options: Options, trouble: list[str], say: Say) -> list[Found]:
    """Return what there is, each once, since templates may share a place, sorted by path."""
    steps = processes.steps()
    found = {one.path: one for one in look_for(site, options, trouble, say)}
    return [replace(found[path], running=found[path].job_id in steps) for path in sorted(found)]


def look_for(site: Settings, options: Options, trouble: list[str], say: Say = silent) -> Iterator[Found]:
    """Yield what there is on scratch, each at a glance, as its owner. Directories that hang or are closed: `trouble`."""
    templates = [template for template in site.templates if is_local(site, template) == options.local]
    users = [home for home in homes(site, templates, trouble) if _wanted(home.uid, options)]
    random.shuffle(users)

    def look(home: find.Home) -> Iterator[dict[str, Any]]:
        for one in find.caches(home, site.cluster, options.local):
            if one is None:
                yield {}
                continue
            seen[home.uid] = seen.get(home.uid, 0) + 1
            yield vars(one)
            if seen[home.uid] > _MOST_EACH:  # the one too many tells that there are more
                return

    def facts(home: find.Home) -> Iterator[dict[str, Any]]:
        try:
            yield from with_rights_of(home.uid, home.gid, home.path, lambda: look(home))
        except OSError as error:
            yield {"trouble": f"{home.path}: {error.strerror or error}"}

    def lost(homes: Sequence[find.Home], why: str) -> None:
        trouble.append(f"{_and_more([home.path for home in homes])}: {why}")

    def begun(count: int) -> None:
        say("looking", count, len(users))

    seen: dict[int, int] = {}  # by uid; each child has its own, begun anew
    all_seen: dict[int, int] = {}
    for fact in survey(users, facts, lost, hung_of(site), lambda home: home.path, begun):
        if "trouble" in fact:
            trouble.append(fact["trouble"])
            continue
        one = _found(fact)
        all_seen[one.uid] = all_seen.get(one.uid, 0) + 1
        if all_seen[one.uid] <= _MOST_EACH:
            yield one
        elif all_seen[one.uid] == _MOST_EACH + 1:
            trouble.append(f"{one.path}: uid {one.uid} has more than {_MOST_EACH} directories of such a name; the rest is left")


def is_local(site: Settings, template: Template) -> bool:
    """Whether a template's filesystem is each node's own."""
    return any(template.text.startswith(below.rstrip("/") + "/") for below in site.tree["node_local"])


def _wanted(uid: int, options: Options) -> bool:
    return (options.user is None or uid == options.user) and uid % options.shard[1] == options.shard[0] - 1


def homes(site: Settings, templates: Sequence[Template], trouble: list[str]) -> list[find.Home]:
    """Return the users' directories by these templates. Each step down to them is taken in children: any of them can hang."""
    aboves = [find.Above(template.text) for template in templates]
    named: list[find.Named] = []

    def below(above: find.Above) -> Iterator[dict[str, Any]]:
        try:
            yield from map(vars, find.below(above, site.cluster))
        except OSError as error:
            yield {"trouble": f"{above.path or above.template}: {error.strerror or error}"}

    def lost(aboves: Sequence[find.Above], why: str) -> None:
        trouble.extend(f"{above.path or above.template}: {why}" for above in aboves)

    while aboves:
        facts = survey(aboves, below, lost, hung_of(site), lambda above: above.path or above.template)
        aboves = []
        for fact in facts:
            if "trouble" in fact:
                trouble.append(fact["trouble"])
            elif "known" in fact:
                named.append(find.Named(**fact))
            else:
                aboves.append(find.Above(**fact))
    random.shuffle(named)  # those that hang may be neighbours, and are not to look like a filesystem that does
    return list(_owned(site, named, trouble))


def _owned(site: Settings, named: list[find.Named], trouble: list[str]) -> Iterator[find.Home]:
    """Yield those that are a user's directory; of one user, so many side by side, as anybody may make some in a sticky one."""
    beside: dict[tuple[int, str], int] = {}

    def facts(one: find.Named) -> Iterator[dict[str, Any]]:
        try:
            home = find.owned(one, site.cluster)
        except OSError as error:
            yield {"trouble": f"{one.path}: {error.strerror or error}"}
            return
        if home:
            yield vars(home)

    def lost(ones: Sequence[find.Named], why: str) -> None:
        trouble.append(f"{_and_more([one.path for one in ones])}: {why}")

    for fact in survey(named, facts, lost, hung_of(site), lambda one: one.path):
        if "trouble" in fact:
            trouble.append(fact["trouble"])
            continue
        home = find.Home(**{**fact, "rest": tuple(fact["rest"])})
        where = home.uid, f"{os.path.dirname(home.path)} {home.template}"
        beside[where] = beside.get(where, 0) + 1
        if beside[where] <= _MOST_BESIDE:
            yield home
        elif beside[where] == _MOST_BESIDE + 1:
            trouble.append(f"{home.path}: uid {home.uid} has more than {_MOST_BESIDE} such directories here; the rest is left")


def _look_again(
    found: list[Found], hung: Hung, trouble: list[str], say: Say, sizes: Optional[dict[str, tuple[int, int]]] = None
) -> Iterator[Found]:
    """Yield the directories as they are now, with the clock of their filesystem. What does not answer is left out.

    sizes: where given, is filled with (bytes, files) by path.
    """

    def place(ones: list[Found]) -> str:
        return os.path.dirname(ones[0].path)

    def lost(owners: Sequence[list[Found]], why: str) -> None:
        trouble.append(f"{_and_more([place(ones) for ones in owners])}: {why}")

    together: dict[tuple[int, str], list[Found]] = {}
    for one in found:
        together.setdefault((one.uid, os.path.dirname(one.path)), []).append(one)
    facts = survey(list(together.values()), _Again(measure=sizes is not None), lost, hung, place)
    for seen, fact in enumerate(facts, 1):
        say("looking again", seen, len(found))
        size = fact.pop("size", None)
        if size is not None and sizes is not None:
            sizes[fact["path"]] = (size[0], size[1])
        yield _found(fact)


class _Again:
    """What there is to see of one owner's directories in one place, with that owner's rights; and their filesystem's clock."""

    def __init__(self, measure: bool) -> None:
        self.measure = measure

    def __call__(self, found: list[Found]) -> Iterator[dict[str, Any]]:
        try:
            yield from with_rights_of(found[0].uid, found[0].gid, os.path.dirname(found[0].path), lambda: self._each(found))
        except OSError as error:
            yield from (vars(replace(one, error=str(error))) for one in found)

    def _each(self, found: list[Found]) -> Iterator[dict[str, Any]]:
        parent_fd = cachedir.open_directory(os.path.dirname(found[0].path))
        try:
            clock = find.clock(parent_fd)
            for one in found:
                try:
                    yield from self._one(parent_fd, replace(one, now=clock))
                except OSError as error:
                    yield vars(replace(one, error=str(error)))
        finally:
            os.close(parent_fd)

    def _one(self, parent_fd: int, one: Found) -> Iterator[dict[str, Any]]:
        name = os.path.basename(one.path)
        again = find.look(parent_fd, name, one)
        if not again.error and (again.device, again.inode) != (one.device, one.inode):
            yield vars(replace(one, now=None))  # another has taken its place since Slurm was asked: younger than the listings
            return
        seen = vars(again)
        if self.measure:
            for so_far in find.size(parent_fd, name):
                seen["size"] = so_far
                yield {}
        yield seen


def with_pids(decisions: list[Decision], hung: Hung) -> list[Found]:
    """Return the directories of `decisions`, those that would be reaped with the processes of this host that use them."""
    suspects = [decision.found for decision in decisions if decision.action == REAP]
    using = processes.users_of(suspects, hung) if suspects else {}
    return [replace(decision.found, pids=using.get(decision.found.path, ())) for decision in decisions]


# ------------------------------------------------------------------------------------------------------------- acting


def act(site: Settings, todo: list[Decision], trouble: list[str], say: Say = silent) -> Iterator[Reaped]:
    """Reap what was decided, each owner's in a child that is that owner; yield what is reaped as it is."""
    rate = site.tree["sweep"]["max_deletes_per_second"]
    by_path = {decision.found.path: decision for decision in todo}
    done = late = 0

    def starts() -> Iterator[tuple[int, Callable[[], asuser.Child]]]:
        for uid, ones in _by_owner(decision.found for decision in todo).items():
            if late < _MOST_LATE:
                work = _Reaping(ones, rate / AT_ONCE if rate else None)
                yield uid, starter(work, uid, ones[0].gid, "")
            else:
                trouble.append(f"uid {uid}: left for another time, since others do not answer")

    for uid, child, fact in asuser.each(starts(), AT_ONCE, PATIENCE):
        if fact is None:
            late = late + 1 if child.status == "late" else 0
            if child.status != "done":
                trouble.append(f"uid {uid}: {child.status}: {child.error or 'it does not answer'}")
        elif "error" in fact:
            trouble.append(f"{fact['path']}: {fact['error']}")
        elif "bytes" in fact:
            done += 1
            say("reaping", done, len(todo))
            if not fact["done"]:
                trouble.append(f"{fact['path']}: not all of it could be deleted: {fact['why'] or 'it grows as it is deleted'}")
            yield Reaped(by_path[fact["path"]], fact["bytes"], fact["files"], fact["done"], fact["usage"])


class _Reaping:
    """The work of a child that is an owner: what still is as it was decided upon is retired and deleted."""

    def __init__(self, found: list[Found], rate: Optional[float]) -> None:
        self.found = found
        self.rate = rate

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self.until = time.monotonic() + _LONGEST
        for at, one in enumerate(self.found):
            if time.monotonic() >= self.until and at:
                report({"path": one.path, "error": f"{len(self.found) - at} of uid {one.uid}'s are left for the next sweep"})
                return
            try:
                report({"path": one.path, **self._reap(one, report)})
            except FileNotFoundError:
                continue  # its owner, or an Epilog, was faster
            except (OSError, reaper.Kept) as error:
                report({"path": one.path, "error": str(error)})

    def _reap(self, one: Found, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        parent, _, name = one.path.rpartition("/")
        parent_fd = cachedir.open_directory(parent)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
            try:
                if replace(find.look(parent_fd, name, one), now=one.now, pids=one.pids) != one:
                    raise reaper.Kept("changed", "it has changed since it was decided upon")
                reaper.refuse_mount(parent_fd, fd)
                if one.kind in (CACHE, RUN):
                    if one.joinable and not cachedir.seize(fd):
                        raise reaper.Kept("changed", "somebody else is reaping it")
                    name = reaper.retire(parent_fd, name, fd, one.uid, one.job_id)
                return self._delete(parent_fd, name, fd, report)
            finally:
                os.close(fd)
        finally:
            os.close(parent_fd)

    def _delete(self, parent_fd: int, name: str, fd: int, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Delete to the end, with a word now and then, as long as it gets on."""
        freed = files = 0
        while True:
            tally = reaper.delete(parent_fd, name, fd, time.monotonic() + _STRIDE, rate=self.rate)
            freed, files = freed + tally.bytes, files + tally.files
            if tally.done or not (tally.files or tally.directories) or time.monotonic() >= self.until:
                return {"bytes": freed, "files": files, "done": tally.done, "why": tally.error, "usage": _usage(parent_fd)}
            report({"going": files})


def _usage(parent_fd: int) -> dict[str, float]:
    usage = psutil.disk_usage(f"/proc/self/fd/{parent_fd}")
    return {"fs_total_bytes": usage.total, "fs_free_bytes": usage.free, "fs_used_percent": usage.percent}


# ------------------------------------------------------------------------------------------------------------ helpers


def _and_more(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _found(fact: dict[str, Any]) -> Found:
    identity = tuple(fact["identity"]) if fact["identity"] else None
    return Found(**{**fact, "identity": identity, "nodes": tuple(fact["nodes"]), "pids": tuple(fact["pids"])})


def _by_owner(found: Iterable[Found]) -> dict[int, list[Found]]:
    owners: dict[int, list[Found]] = {}
    for one in found:
        owners.setdefault(one.uid, []).append(one)
    return owners


class Lock:
    """One sweep at a time: `with Lock(path): …`. Raise Busy where another holds it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Busy(f"no lock to be had on {self._path}: {error.strerror}; mend run_dir, or choose another") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                os.close(self._fd)
                raise Busy(f"no lock to be had on {self._path}: {error.strerror}; put run_dir on a local filesystem") from None
            holder = os.read(self._fd, 200).decode("utf-8", "replace").strip()
            os.close(self._fd)
            raise Busy(f"another sweep is under way: {holder or 'it does not say whose'}") from None
        os.ftruncate(self._fd, 0)
        try:
            os.write(self._fd, f"pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n".encode())
        except OSError:
            pass  # a full disk: the lock holds, and does not say whose it is

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


@dataclass
class Listed:
    """What `jobcache list` shows: each directory with what a sweep would think of it, and its (bytes, files)."""

    rows: list[tuple[Decision, Optional[tuple[int, int]]]]
    trouble: list[str]


def listed(site: Settings, options: Options, say: Say = silent) -> Listed:
    """Look at all there is, once; nothing is asked twice, waited for or changed."""
    trouble: list[str] = []
    rules = replace(rules_of(site, options.node), confirm=0.0)
    sizes: dict[str, tuple[int, int]] = {}
    found = list(_look_again(_all(site, options, trouble, say), hung_of(site), trouble, say, sizes))
    listings: list[Listing] = []
    try:
        _dead(site, options, [one for one in found if is_candidate(one, rules)], listings)
    except Unknown as unknown:
        trouble.append(f"which jobs are alive is not known: {unknown}")
    decisions = plan(found, listings * 2, rules)
    return Listed([(decision, sizes.get(decision.found.path)) for decision in decisions], trouble)
