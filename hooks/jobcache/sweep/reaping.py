"""Reaping what was decided, each owner's in a child that is that owner."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

from jobcache.cache import dirfd, node_leases
from jobcache.config.settings import Settings
from jobcache.sweep import directories, scanning
from jobcache.sweep.plan import CACHE, RUN, Decision, Found
from jobcache.system import children, event_fields, reaper
from jobcache.system.gathering import AT_ONCE, PATIENCE, starter

_LONGEST = 600.0  # seconds for one owner's orphans in one sweep, so that nobody keeps it from the others
_STRIDE = 5.0  # seconds of deletion between two words
_MOST_LATE = 4  # owners in a row at whose directories nothing goes on, before the others are left for another time


@dataclass(frozen=True)
class Reaped:
    """One directory that is reaped: bytes and files that went, whether all of it did, the filesystem's figures now."""

    decision: Decision
    bytes: int
    files: int
    done: bool
    usage: dict[str, float]


# ------------------------------------------------------------------------------------------------------------- acting


def act(site: Settings, todo: list[Decision], trouble: list[str], say: scanning.Say = scanning.silent) -> Iterator[Reaped]:
    """Reap what was decided, each owner's in a child that is that owner; yield what is reaped as it is."""
    rate = site.tree["sweep"]["max_deletes_per_second"]
    by_path = {decision.found.path: decision for decision in todo}
    done = late = 0

    def starts() -> Iterator[tuple[int, Callable[[], children.Child]]]:
        for uid, ones in _by_owner(decision.found for decision in todo).items():
            if late < _MOST_LATE:
                work = _Reaping(ones, rate / AT_ONCE if rate else None)
                yield uid, starter(work, uid, ones[0].gid, "")
            else:
                trouble.append(f"uid {uid}: left for another time, since others do not answer")

    for uid, child, fact in children.each(starts(), AT_ONCE, PATIENCE):
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
        parent_fd = dirfd.open_directory(parent)
        try:
            fd = os.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)
            try:
                if replace(directories.look(parent_fd, name, one), now=one.now, pids=one.pids) != one:
                    raise reaper.Kept("changed", "it has changed since it was decided upon")
                reaper.refuse_mount(parent_fd, fd)
                if one.kind in (CACHE, RUN):
                    if one.joinable and not node_leases.seize(fd):
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
                usage = event_fields.of_filesystem(parent_fd)
                return {"bytes": freed, "files": files, "done": tally.done, "why": tally.error, "usage": usage}
            report({"going": files})


def _by_owner(found: Iterable[Found]) -> dict[int, list[Found]]:
    owners: dict[int, list[Found]] = {}
    for one in found:
        owners.setdefault(one.uid, []).append(one)
    return owners
