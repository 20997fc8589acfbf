"""The facts about all directories on scratch, gathered in children with the rights of their owners."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

from jobcache.cache import dirfd
from jobcache.config.settings import Settings
from jobcache.sweep import directories, processes
from jobcache.sweep.host import THIS_HOST, Host
from jobcache.sweep.plan import REAP, Decision, Directory
from jobcache.sweep.user_directories import UserDirectory, and_more, list_user_directories, place_of
from jobcache.system.gathering import survey, with_rights_of
from jobcache.system.stuck_processes import Place, Register

MOST_DIRECTORIES = 10_000  # directories of one user that one sweep takes


@dataclass(frozen=True)
class Options:
    """The scope of one run.

    user: uid, None for all users.
    shard: (I, N), the users with uid % N == I - 1.
    local: the scratch of `node` alone, in place of the shared scratch.
    dry: decide, and change nothing.
    """

    user: Optional[int] = None
    shard: tuple[int, int] = (1, 1)
    local: bool = False
    node: str = ""
    dry: bool = False


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
    places = [place for place in list_user_directories(site, templates, trouble) if _in_scope(place.uid, options)]
    random.shuffle(places)
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


def _in_scope(uid: int, options: Options) -> bool:
    return (options.user is None or uid == options.user) and uid % options.shard[1] == options.shard[0] - 1


class _Lister:
    """Lists the directories in a user's directory with that user's rights; runs in a child."""

    def __init__(self, cluster: str, local: bool, register: Register) -> None:
        self.cluster = cluster
        self.local = local
        self.register = register
        self.counts: dict[int, int] = {}  # by uid; each child counts for itself

    def __call__(self, place: UserDirectory) -> Iterator[dict[str, Any]]:
        try:
            where = place_of(self.register, place)
            yield from with_rights_of(place.uid, place.gid, place.path, where, lambda: self._facts(place))
        except OSError as error:
            yield {"trouble": f"{place.path}: {error.strerror or error}"}

    def _facts(self, place: UserDirectory) -> Iterator[dict[str, Any]]:
        for one in directories.list_directories(place, self.cluster, self.local):
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
) -> Iterator[Directory]:
    """Yield these directories with their current facts and the time of their filesystem. Those that hang are left out.

    sizes: if given, takes (bytes, files) by path.
    """

    def place(group: list[Directory]) -> Place:
        return register.place(group[0].uid, os.path.dirname(group[0].path))

    def lost(groups: Sequence[list[Directory]], why: str) -> None:
        trouble.append(f"{and_more([os.path.dirname(group[0].path) for group in groups])}: {why}")

    groups: dict[tuple[int, str], list[Directory]] = {}  # by owner and parent
    for one in found:
        groups.setdefault((one.uid, os.path.dirname(one.path)), []).append(one)
    facts = survey(list(groups.values()), _Inspector(host, sizes is not None, place), lost, place)
    for count, fact in enumerate(facts, 1):
        progress("inspecting directories", count, len(found))
        size = fact.pop("size", None)
        if size is not None and sizes is not None:
            sizes[fact["path"]] = (size[0], size[1])
        yield _directory(fact)


class _Inspector:
    """Inspects the directories of one owner in one place with that owner's rights; runs in a child."""

    def __init__(self, host: Host, measure: bool, place: Callable[[list[Directory]], Place]) -> None:
        self.host = host
        self.measure = measure
        self.place = place

    def __call__(self, group: list[Directory]) -> Iterator[dict[str, Any]]:
        parent = os.path.dirname(group[0].path)
        try:
            where = self.place(group)
            yield from with_rights_of(group[0].uid, group[0].gid, parent, where, lambda: self._facts(parent, group))
        except OSError as error:
            yield from (vars(replace(one, error=str(error))) for one in group)

    def _facts(self, parent: str, group: list[Directory]) -> Iterator[dict[str, Any]]:
        parent_fd = dirfd.open_directory(parent)
        try:
            now = self.host.filesystem_time(parent_fd)
            for one in group:
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
        if self.measure:
            for so_far in directories.measure(parent_fd, name):
                fact["size"] = so_far
                yield {}
        yield fact


def add_processes(decisions: list[Decision], register: Register, host: Host = THIS_HOST) -> list[Directory]:
    """Return the directories of `decisions`; those to reap with the processes of this host that use them."""
    suspects = [decision.directory for decision in decisions if decision.action == REAP]
    using = processes.users_of(suspects, register, host.pids()) if suspects else {}
    return [replace(decision.directory, pids=using.get(decision.directory.path, ())) for decision in decisions]


def _directory(fact: dict[str, Any]) -> Directory:
    """Return the directory that a child reported as JSON."""
    identity = tuple(fact["identity"]) if fact["identity"] else None
    return Directory(**{**fact, "identity": identity, "nodes": tuple(fact["nodes"]), "pids": tuple(fact["pids"])})
