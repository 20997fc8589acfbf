"""The facts about all directories on scratch, gathered in children with the rights of their owners."""

import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, TypeVar

from jobcache.cache import dirfd
from jobcache.config.settings import Settings
from jobcache.sweep import directories, processes, tree_size
from jobcache.sweep.accounts import Scope
from jobcache.sweep.host import THIS_HOST, Host
from jobcache.sweep.plan import REAP, Decision, Directory
from jobcache.sweep.user_directories import UserDirectory, and_more, list_user_directories, place_of
from jobcache.system.gathering import survey, with_rights_of
from jobcache.system.stuck_processes import Place, Register

MOST_DIRECTORIES = 10_000  # directories of one user that one sweep takes
LISTING, INSPECTION, MEASUREMENT = 30.0, 30.0, 120.0  # seconds for the directories of one user in one sweep


@dataclass(frozen=True)
class Options:
    """The scope of one run.

    user: uid, None for all users.
    shard: (I, N), the users with uid % N == I - 1.
    local: the scratch of this node alone, in place of the shared scratch.
    node: the name of this node in Slurm, "" to find it out.
    dry: decide, and change nothing.
    """

    user: Optional[int] = None
    shard: tuple[int, int] = (1, 1)
    local: bool = False
    node: str = ""
    dry: bool = False


Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]  # takes the activity, how many items are done, and of how many (0: unknown)


def no_progress(_activity: str, _done: int, _of: int) -> None:
    """Show nothing."""


# ---------------------------------------------------------------------------------------------------------------- scan


def scan(site: Settings, options: Options, trouble: list[str], progress: Progress, host: Host = THIS_HOST) -> list[Directory]:
    """Return the directories on scratch, sorted by path, each once: templates can share a place."""
    running = processes.jobs_with_steps(host.pids())
    by_path = {one.path: one for one in list_all(site, options, trouble, progress)}
    trouble += [f"{one.path}: {one.error}" for one in by_path.values() if one.mounted]
    return [replace(by_path[path], running=by_path[path].job_id in running) for path in sorted(by_path)]


def list_all(site: Settings, options: Options, trouble: list[str], progress: Progress = no_progress) -> Iterator[Directory]:
    """Yield the directories on scratch with their identity, as their owners read it.

    trouble: takes a message for each place that hangs or cannot be read.
    """
    templates = [template for template in site.templates if site.is_node_local(template) == options.local]
    places = list_user_directories(site, templates, trouble, Scope(options.user, options.shard))
    places = by_owner(places, lambda place: place.uid)
    counts: dict[int, int] = {}  # by uid

    def lost(places: Sequence[UserDirectory], why: str) -> None:
        trouble.append(f"{and_more([place.path for place in places])}: {why}")

    def begun(count: int) -> None:
        progress("listing directories", count, len(places))

    register = Register(site.run_dir)
    lister = _Lister(site.cluster, options.local, register)
    for fact in survey(places, lister, lost, lambda one: place_of(register, one), begun):
        if "trouble" in fact:
            trouble.append(fact["trouble"])
            continue
        one = _directory(fact)
        counts[one.uid] = counts.get(one.uid, 0) + 1
        if counts[one.uid] <= MOST_DIRECTORIES:
            yield one
        elif counts[one.uid] == MOST_DIRECTORIES + 1:
            trouble.append(f"{one.path}: uid {one.uid} has more than {MOST_DIRECTORIES} directories; the rest is skipped")


def by_owner(items: Iterable[Item], owner: Callable[[Item], int]) -> list[Item]:
    """Return the items with those of one owner next to each other, in random order: no owner is always the last one."""
    owners: dict[int, list[Item]] = {}
    for item in items:
        owners.setdefault(owner(item), []).append(item)
    groups = list(owners.values())
    random.shuffle(groups)
    for group in groups:
        random.shuffle(group)
    return [item for group in groups for item in group]


class _Turn:
    """The time for each owner in one child, in which the items of one owner follow each other. seconds: the limit."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[int, float] = {}  # by uid

    def begin(self, uid: int) -> None:
        """Begin the time of an owner, unless it has begun."""
        self._until.setdefault(uid, time.monotonic() + self._seconds)

    def is_over(self, uid: int) -> bool:
        """Return whether the time of an owner is used up."""
        return time.monotonic() >= self._until[uid]


class _Lister:
    """Lists the directories in a user's directory with that user's rights; runs in a child."""

    def __init__(self, cluster: str, local: bool, register: Register) -> None:
        self.cluster = cluster
        self.local = local
        self.register = register
        self.turn = _Turn(LISTING)
        self.counts: dict[int, int] = {}  # by uid; each child counts for itself

    def __call__(self, place: UserDirectory) -> Iterator[dict[str, Any]]:
        self.turn.begin(place.uid)  # here, since a further child can list the directories
        try:
            where = place_of(self.register, place)
            yield from with_rights_of(place.uid, place.gid, place.path, where, lambda: self._facts(place))
        except OSError as error:
            yield {"trouble": f"{place.path}: {error.strerror or error}"}

    def _facts(self, place: UserDirectory) -> Iterator[dict[str, Any]]:
        for one in directories.list_directories(place, self.cluster, self.local):
            if self.turn.is_over(place.uid):
                text = f"the time for one user, {LISTING:.0f} s, is used up; the rest of uid {place.uid} is left"
                yield {"trouble": f"{place.path}: {text}"}
                return
            if one is None:
                yield {}
                continue
            self.counts[place.uid] = self.counts.get(place.uid, 0) + 1
            yield vars(one)
            if self.counts[place.uid] > MOST_DIRECTORIES:  # the last one shows the parent that there are more
                return


# ---------------------------------------------------------------------------------------------------------- inspection


def inspect_all(
    found: list[Directory],
    register: Register,
    trouble: list[str],
    progress: Progress,
    host: Host = THIS_HOST,
    sizes: Optional[dict[str, tuple[int, int]]] = None,
    touch: bool = False,
) -> Iterator[Directory]:
    """Yield these directories with their current facts and the time. Those that hang are left out.

    sizes: if given, takes (bytes, files) by path.
    touch: take the time from the clock of their filesystem, which changes the times of their parent; else from this host's.
    """

    def place(group: list[Directory]) -> Place:
        return register.place(group[0].uid, os.path.dirname(group[0].path))

    def lost(groups: Sequence[list[Directory]], why: str) -> None:
        trouble.append(f"{and_more([os.path.dirname(group[0].path) for group in groups])}: {why}")

    groups: dict[tuple[int, str], list[Directory]] = {}  # by owner and parent
    for one in found:
        groups.setdefault((one.uid, os.path.dirname(one.path)), []).append(one)
    in_order = by_owner(groups.values(), lambda group: group[0].uid)
    inspector = _Inspector(host, sizes is not None, touch, place)
    late: dict[int, int] = {}  # directories by uid
    facts = survey(in_order, inspector, lost, place)
    for count, fact in enumerate(facts, 1):
        progress("inspecting directories", count, len(found))
        size = fact.pop("size", None)
        if size is not None and sizes is not None:
            sizes[fact["path"]] = (size[0], size[1])
        one = _directory(fact)
        late[one.uid] = late.get(one.uid, 0) + one.late
        yield one
    for uid, left in late.items():
        if left:
            trouble.append(f"uid {uid}: {left} directories are left for the next sweep, because the time for one user is used up")


class _Inspector:
    """Inspects the directories of one owner in one place with that owner's rights; runs in a child."""

    def __init__(self, host: Host, measure: bool, touch: bool, place: Callable[[list[Directory]], Place]) -> None:
        self.host = host
        self.measure = measure
        self.touch = touch
        self.place = place
        self.inspecting, self.measuring = _Turn(INSPECTION), _Turn(MEASUREMENT)

    def __call__(self, group: list[Directory]) -> Iterator[dict[str, Any]]:
        parent = os.path.dirname(group[0].path)
        self.inspecting.begin(group[0].uid)  # here, since a further child can inspect them
        try:
            where = self.place(group)
            yield from with_rights_of(group[0].uid, group[0].gid, parent, where, lambda: self._facts(parent, group))
        except OSError as error:
            yield from (vars(replace(one, error=str(error))) for one in group)

    def _facts(self, parent: str, group: list[Directory]) -> Iterator[dict[str, Any]]:
        parent_fd = dirfd.open_directory(parent)
        try:
            now = self.host.filesystem_time(parent_fd) if self.touch else self.host.clock()
            for one in random.sample(group, len(group)):  # if the time is too short, another part has its turn in each sweep
                if self.inspecting.is_over(one.uid):
                    yield vars(replace(one, late=True))
                    continue
                try:
                    yield from self._facts_of(parent_fd, replace(one, now=now))
                except OSError as error:
                    yield vars(replace(one, error=str(error)))
        finally:
            os.close(parent_fd)

    def _facts_of(self, parent_fd: int, one: Directory) -> Iterator[dict[str, Any]]:
        name = os.path.basename(one.path)
        current = self.host.inspect(parent_fd, name, one)
        if not current.error and (current.device, current.inode) != (one.device, one.inode):
            yield vars(replace(one, now=None))  # a directory that replaced this one is younger than the job lists
            return
        fact = vars(current)
        yield from self._measured(parent_fd, name, fact) if self.measure else ()
        yield fact

    def _measured(self, parent_fd: int, name: str, fact: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Add the size of a directory to its facts, unless the time of its owner is used up. Yield heartbeats."""
        uid = fact["uid"]
        self.measuring.begin(uid)
        for so_far in tree_size.measure(parent_fd, name):
            if self.measuring.is_over(uid):
                fact.pop("size", None)
                return
            fact["size"] = so_far
            yield {}


def add_processes(decisions: list[Decision], register: Register, host: Host = THIS_HOST) -> list[Directory]:
    """Return the directories of `decisions`; those to reap with the processes of this host that use them."""
    suspects = [decision.directory for decision in decisions if decision.action == REAP]
    using = processes.users_of(suspects, register, host.pids()) if suspects else {}
    return [replace(decision.directory, pids=using.get(decision.directory.path, ())) for decision in decisions]


def _directory(fact: dict[str, Any]) -> Directory:
    """Return the directory that a child reported as JSON."""
    identity = tuple(fact["identity"]) if fact["identity"] else None
    return Directory(**{**fact, "identity": identity, "nodes": tuple(fact["nodes"]), "pids": tuple(fact["pids"])})
