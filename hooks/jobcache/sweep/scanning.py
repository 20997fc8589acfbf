"""Looking at all caches on scratch, in children, as their owners."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

from jobcache.cache import dirfd
from jobcache.cache.path_template import Template
from jobcache.config.settings import Settings
from jobcache.sweep import directories, processes
from jobcache.sweep.plan import REAP, Decision, Found
from jobcache.system.gathering import Hung, survey, with_rights_of

_MOST_EACH = 10_000  # directories of one user that one sweep looks at
_MOST_BESIDE = 8  # users' directories in one place that may be one user's: an account can have had other names


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


Say = Callable[[str, int, int], None]  # what is being done, how many are, of how many (0: not known)


def silent(_what: str, _done: int, _of: int) -> None:
    """Say nothing."""


def hung_of(site: Settings) -> Hung:
    """Return where this host's sweeps remember which directories hang."""
    return Hung(site.run_dir)


# ------------------------------------------------------------------------------------------------------------ looking


def scan(site: Settings, options: Options, trouble: list[str], say: Say) -> list[Found]:
    """Return what there is, each once, since templates may share a place, sorted by path."""
    steps = processes.steps()
    found = {one.path: one for one in look_for(site, options, trouble, say)}
    return [replace(found[path], running=found[path].job_id in steps) for path in sorted(found)]


def look_for(site: Settings, options: Options, trouble: list[str], say: Say = silent) -> Iterator[Found]:
    """Yield what there is on scratch, each at a glance, as its owner. Directories that hang or are closed: `trouble`."""
    templates = [template for template in site.templates if site.is_node_local(template) == options.local]
    users = [home for home in homes(site, templates, trouble) if _wanted(home.uid, options)]
    random.shuffle(users)

    def look(home: directories.Home) -> Iterator[dict[str, Any]]:
        for one in directories.caches(home, site.cluster, options.local):
            if one is None:
                yield {}
                continue
            seen[home.uid] = seen.get(home.uid, 0) + 1
            yield vars(one)
            if seen[home.uid] > _MOST_EACH:  # the one too many tells that there are more
                return

    def facts(home: directories.Home) -> Iterator[dict[str, Any]]:
        try:
            yield from with_rights_of(home.uid, home.gid, home.path, lambda: look(home))
        except OSError as error:
            yield {"trouble": f"{home.path}: {error.strerror or error}"}

    def lost(homes: Sequence[directories.Home], why: str) -> None:
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


def _wanted(uid: int, options: Options) -> bool:
    return (options.user is None or uid == options.user) and uid % options.shard[1] == options.shard[0] - 1


def homes(site: Settings, templates: Sequence[Template], trouble: list[str]) -> list[directories.Home]:
    """Return the users' directories by these templates. Each step down to them is taken in children: any of them can hang."""
    aboves = [directories.Above(template.text) for template in templates]
    named: list[directories.Named] = []

    def below(above: directories.Above) -> Iterator[dict[str, Any]]:
        try:
            yield from map(vars, directories.below(above, site.cluster))
        except OSError as error:
            yield {"trouble": f"{above.path or above.template}: {error.strerror or error}"}

    def lost(aboves: Sequence[directories.Above], why: str) -> None:
        trouble.extend(f"{above.path or above.template}: {why}" for above in aboves)

    while aboves:
        facts = survey(aboves, below, lost, hung_of(site), lambda above: above.path or above.template)
        aboves = []
        for fact in facts:
            if "trouble" in fact:
                trouble.append(fact["trouble"])
            elif "known" in fact:
                named.append(directories.Named(**fact))
            else:
                aboves.append(directories.Above(**fact))
    random.shuffle(named)  # those that hang may be neighbours, and are not to look like a filesystem that does
    return list(_owned(site, named, trouble))


def _owned(site: Settings, named: list[directories.Named], trouble: list[str]) -> Iterator[directories.Home]:
    """Yield those that are a user's directory; of one user, so many side by side, as anybody may make some in a sticky one."""
    beside: dict[tuple[int, str], int] = {}

    def facts(one: directories.Named) -> Iterator[dict[str, Any]]:
        try:
            home = directories.owned(one, site.cluster)
        except OSError as error:
            yield {"trouble": f"{one.path}: {error.strerror or error}"}
            return
        if home:
            yield vars(home)

    def lost(ones: Sequence[directories.Named], why: str) -> None:
        trouble.append(f"{_and_more([one.path for one in ones])}: {why}")

    for fact in survey(named, facts, lost, hung_of(site), lambda one: one.path):
        if "trouble" in fact:
            trouble.append(fact["trouble"])
            continue
        home = directories.Home(**{**fact, "rest": tuple(fact["rest"])})
        where = home.uid, f"{os.path.dirname(home.path)} {home.template}"
        beside[where] = beside.get(where, 0) + 1
        if beside[where] <= _MOST_BESIDE:
            yield home
        elif beside[where] == _MOST_BESIDE + 1:
            trouble.append(f"{home.path}: uid {home.uid} has more than {_MOST_BESIDE} such directories here; the rest is left")


def look_again(
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
        parent_fd = dirfd.open_directory(os.path.dirname(found[0].path))
        try:
            clock = directories.clock(parent_fd)
            for one in found:
                try:
                    yield from self._one(parent_fd, replace(one, now=clock))
                except OSError as error:
                    yield vars(replace(one, error=str(error)))
        finally:
            os.close(parent_fd)

    def _one(self, parent_fd: int, one: Found) -> Iterator[dict[str, Any]]:
        name = os.path.basename(one.path)
        again = directories.look(parent_fd, name, one)
        if not again.error and (again.device, again.inode) != (one.device, one.inode):
            yield vars(replace(one, now=None))  # another has taken its place since Slurm was asked: younger than the listings
            return
        seen = vars(again)
        if self.measure:
            for so_far in directories.size(parent_fd, name):
                seen["size"] = so_far
                yield {}
        yield seen


def with_pids(decisions: list[Decision], hung: Hung) -> list[Found]:
    """Return the directories of `decisions`, those that would be reaped with the processes of this host that use them."""
    suspects = [decision.found for decision in decisions if decision.action == REAP]
    using = processes.users_of(suspects, hung) if suspects else {}
    return [replace(decision.found, pids=using.get(decision.found.path, ())) for decision in decisions]


# ------------------------------------------------------------------------------------------------------------ helpers


def _and_more(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _found(fact: dict[str, Any]) -> Found:
    identity = tuple(fact["identity"]) if fact["identity"] else None
    return Found(**{**fact, "identity": identity, "nodes": tuple(fact["nodes"]), "pids": tuple(fact["pids"])})
