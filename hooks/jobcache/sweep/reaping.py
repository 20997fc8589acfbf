"""The reaping of the directories that were decided upon, in a child per owner that has become that owner."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

from jobcache.cache import dirfd, node_leases
from jobcache.cache.lease_lock import EMPTY
from jobcache.config.settings import Settings
from jobcache.sweep.history_lines import HistoryLines
from jobcache.sweep.host import THIS_HOST, Host
from jobcache.sweep.plan import CACHE, RUN, Decision, Directory
from jobcache.sweep.scanning import Progress, no_progress
from jobcache.sweep.user_directories import and_more
from jobcache.system import children, event_fields, mounts, reaper
from jobcache.system.gathering import AT_ONCE, PATIENCE, starter
from jobcache.system.stuck_processes import Place, Register, Stuck
from jobcache.system.unlinked import Unlinked

OWNER_BUDGET = 600.0  # seconds for the directories of one owner in one sweep, so that one owner does not delay the others

_STRIDE = 5.0  # seconds of deletion between two heartbeats
_MOST_ERRORS = 16  # messages about the directories of one owner
_MOST_LATE = 4  # owners in a row whose children hang, before the other owners are skipped


@dataclass(frozen=True)
class Reaped:
    """A directory that was reaped.

    bytes, files: that were freed.
    done: nothing is left of it.
    usage: figures of its filesystem afterwards.
    """

    decision: Decision
    bytes: int
    files: int
    done: bool
    usage: dict[str, float]


def reap_all(
    site: Settings, decisions: list[Decision], trouble: list[str], progress: Progress = no_progress, host: Host = THIS_HOST
) -> Iterator[Reaped]:
    """Reap the directories of `decisions`; yield each when it is reaped.

    trouble: takes a message for each directory that is left, or left in part.
    """
    rate = site.tree["sweep"]["max_deletes_per_second"]
    register = Register(site.run_dir)
    by_path = {decision.directory.path: decision for decision in decisions}
    count = late = 0
    errors: dict[int, int] = {}  # by uid

    def starts() -> Iterator[tuple[int, Callable[[], children.Child]]]:
        for uid, group in _by_owner(decision.directory for decision in decisions).items():
            if late >= _MOST_LATE:
                trouble.append(f"uid {uid}: skipped in this sweep, because the directories of other users do not answer")
                continue
            group = list(_examined(group, register, trouble))
            if group:
                work = OwnerReaping(group, rate / AT_ONCE if rate else None, host)
                work.history = HistoryLines(by_path, site.cluster, site.templates) if site.history else None
                yield uid, starter(work, uid, group[0].gid, _place(group[0].path, uid, register), "")

    for uid, child, fact in children.each(starts(), AT_ONCE, PATIENCE):
        if fact is None:
            late = late + 1 if child.status == "late" else 0
            if child.status != "done":
                trouble.append(f"uid {uid}: {child.status}: {child.error or f'no answer for {PATIENCE:.0f} s'}")
        elif "at" in fact:
            child.place = _place(fact["at"], uid, register)
        elif "error" in fact:
            errors[uid] = errors.get(uid, 0) + 1
            if errors[uid] <= _MOST_ERRORS:
                trouble.append(f"{fact['path']}: {fact['error']}")
            elif errors[uid] == _MOST_ERRORS + 1:
                trouble.append(f"uid {uid}: more directories with errors; run `jobcache sweep --user {uid}` to see the next ones")
        elif "bytes" in fact:
            count += 1
            progress("reaping", count, len(decisions))
            if not fact["done"]:
                why = fact["why"] or "files are still being added"
                trouble.append(f"{fact['path']}: deleted in part: {why}; the next sweep continues")
            yield Reaped(by_path[fact["path"]], fact["bytes"], fact["files"], fact["done"], fact["usage"])


class OwnerReaping:
    """The work of a child that is an owner: retire and delete those of `directories` that are as they were decided upon.

    rate: deletions per second, None without a limit.
    history: takes the lines for the owner's history; None for no history.
    """

    def __init__(self, directories: list[Directory], rate: Optional[float], host: Host = THIS_HOST) -> None:
        self.directories = directories
        self.rate = rate
        self.host = host
        self.history: Optional[HistoryLines] = None

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Reap the directories, report a fact for each, and write the user's history at the end, since that can hang."""
        self._reap_all(report)
        if self.history:
            report(children.END)
            self.history.write()

    def _reap_all(self, report: Callable[[dict[str, Any]], None]) -> None:
        self.until = time.monotonic() + OWNER_BUDGET
        for at, one in enumerate(self.directories):
            if time.monotonic() >= self.until and at:
                left = len(self.directories) - at
                error = f"the time for uid {one.uid} is used up; {left} directories are left for the next sweep"
                report({"path": one.path, "error": error})
                return
            report({"at": one.path})
            try:
                reaped = {"path": one.path, **self._reap(one, report)}
                report(reaped)
                if self.history is not None:
                    self.history.add(reaped)
            except FileNotFoundError:
                continue  # the owner or an Epilog was faster
            except (OSError, reaper.Kept) as error:
                report({"path": one.path, "error": str(error)})

    def _reap(self, one: Directory, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        parent, _, name = one.path.rpartition("/")
        parent_fd = dirfd.open_directory(parent)
        try:
            fd = mounts.open_beside(parent_fd, name)
            try:
                if replace(self.host.inspect(parent_fd, name, one), now=one.now, pids=one.pids) != one:
                    raise reaper.Kept("changed", "it has changed since the decision; the next sweep decides again")
                if one.kind in (CACHE, RUN):
                    if one.joinable and not (node_leases.seize_empty(fd) if one.holder == EMPTY else node_leases.seize(fd)):
                        raise reaper.Kept("changed", "another process is reaping it")
                    name = reaper.retire(parent_fd, name, fd, one.uid, one.job_id)
                return self._delete(parent_fd, name, fd, report)
            finally:
                os.close(fd)
        finally:
            os.close(parent_fd)

    def _delete(self, parent_fd: int, name: str, fd: int, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Delete the directory until it is gone, until nothing more can be deleted, or until the time is used up."""
        freed = files = 0
        unlinked = Unlinked()
        while True:
            tally = reaper.delete(parent_fd, name, fd, time.monotonic() + _STRIDE, self.rate, unlinked)
            freed, files = freed + tally.bytes, files + tally.files
            if tally.done or not (tally.files or tally.directories) or time.monotonic() >= self.until:
                usage = event_fields.of_filesystem(parent_fd)
                return {"bytes": freed, "files": files, "done": tally.done, "why": tally.error, "usage": usage}
            report({"going": files})


def _place(path: str, uid: int, register: Register) -> Place:
    """Return the place of the directory that holds a cache."""
    return register.place(uid, os.path.dirname(path))


def _examined(directories: list[Directory], register: Register, trouble: list[str]) -> Iterator[Directory]:
    """Yield the directories of one owner at whose place no process hangs. trouble: takes a message for each such place."""
    stuck: dict[str, list[str]] = {}  # paths by reason
    for one in directories:
        try:
            _place(one.path, one.uid, register).check()
        except Stuck as why:
            stuck.setdefault(str(why), []).append(one.path)
        else:
            yield one
    trouble += [f"{and_more(paths)}: {why}" for why, paths in stuck.items()]


def _by_owner(directories: Iterable[Directory]) -> dict[int, list[Directory]]:
    owners: dict[int, list[Directory]] = {}
    for one in directories:
        owners.setdefault(one.uid, []).append(one)
    return owners
