"""Collect facts about many items in child processes, so that one hung item does not block the others."""

import errno
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional, TypeVar

import psutil

from jobcache.system import as_user, children

AT_ONCE = 4  # children; the load on a metadata server stays low
PATIENCE = 30.0  # seconds without a report after which a child counts as hung
REPORT = 1 << 28  # bytes that a child may report
_BATCH = 256  # items for one child
_HUNG_IN_A_ROW = 4  # children that hang at their first item, after which the filesystem counts as hung
_STUCK_LIMIT = 16  # processes that one survey may leave behind in the kernel

Item = TypeVar("Item")
Fact = dict[str, Any]


class Hung:
    """Remembers from one sweep to the next where processes are stuck in the kernel, so that no other process joins them.

    directory: holds a file for each stuck process. The file is valid as long as the process lives. If it cannot be
    written, nothing is remembered.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def holds(self, place: str) -> bool:
        """Return whether a process is still stuck at `place`."""
        try:
            with open(self._file(place), encoding="ascii") as file:
                pid, began = file.read().split()
            return psutil.Process(int(pid)).create_time() == float(began)
        except (OSError, ValueError, psutil.Error):
            return False

    def note(self, place: str, pid: int) -> None:
        """Remember that process `pid` is stuck at `place`."""
        try:
            began = psutil.Process(pid).create_time()
            os.makedirs(self._directory, 0o700, exist_ok=True)
            fd = os.open(self._file(place), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                file.write(f"{pid} {began!r}\n")
        except (OSError, psutil.Error):
            return

    def _file(self, place: str) -> str:
        return f"{self._directory}/hung-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}"


def survey(
    items: Sequence[Item],
    facts: Callable[[Item], Iterable[Fact]],
    lost: Callable[[Sequence[Item], str], None],
    hung: Hung,
    place: Callable[[Item], str],
    begun: Callable[[int], None] = lambda _: None,
) -> Iterator[Fact]:
    """Yield the facts of all items. Children collect them, many items each.

    facts: returns the facts of one item, in a child. An empty fact only shows that the child is alive.
    lost: called with items without facts and the reason. A child that hangs or dies loses its current item, and another
        child continues with the next one. If several children in a row hang at their first item, or too many are stuck,
        all remaining items are lost.
    place: returns what an item accesses, as the key for `hung`.
    begun: called with the number of items that children have begun.
    """
    known = [item for item in items if hung.holds(place(item))]
    if known:
        lost(known, "a process of an earlier sweep still hangs there")
        items = [item for item in items if item not in known]
    todo = [items[at : at + _BATCH] for at in range(0, len(items), _BATCH)]
    count = hung_in_a_row = stuck = 0

    def starts(batches: list[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Callable[[], children.Child]]]:
        for batch in batches:
            if hung_in_a_row >= _HUNG_IN_A_ROW or stuck >= _STUCK_LIMIT:
                lost(batch, "left for the next sweep, because others do not answer")
            else:
                yield batch, starter(_Collection(batch, facts), None, None)

    while todo:
        batches, todo = todo, []
        reached: dict[int, int] = {}
        for batch, child, fact in children.each(starts(batches), AT_ONCE, PATIENCE):
            if fact is not None and "at" in fact:
                reached[child.pid] = fact["at"]
                count += 1
                begun(count)
            elif fact:
                yield fact
            elif fact is not None:
                continue
            elif child.status == "done":
                hung_in_a_row = 0
            else:
                at = reached.pop(child.pid, 0)
                hung_in_a_row = hung_in_a_row + 1 if at == 0 and child.status == "late" else 0
                if child.stuck:
                    stuck += 1
                    hung.note(place(batch[at]), child.pid)
                lost(batch[at : at + 1], f"{child.status}: {child.error or 'it does not answer'}")
                if batch[at + 1 :]:
                    todo.append(batch[at + 1 :])


class _Collection:
    """The work of a child: report the position of each item, then its facts."""

    def __init__(self, items: Sequence[Item], facts: Callable[[Item], Iterable[Fact]]) -> None:
        self.items = items
        self.facts = facts

    def __call__(self, report: Callable[[Fact], None]) -> None:
        for at, item in enumerate(self.items):
            report({"at": at})
            _report_all(self.facts(item), report)


def starter(
    work: "as_user.Work", uid: Optional[int], gid: Optional[int], user: Optional[str] = None
) -> Callable[[], children.Child]:
    """Return a function that starts a child, for `children.each`. Arguments as for `as_user.start`."""
    return lambda: as_user.start(work, uid=uid, gid=gid, user=user, places=[], most=REPORT)


def with_rights_of(uid: int, gid: int, path: str, facts: Callable[[], Iterable[Fact]]) -> Iterator[Fact]:
    """Yield the facts that `facts` collects below the directory `path` with the rights of a user. Raise OSError.

    First try the user's own group, then all groups: a directory above `path` can be open to a project's group alone. A FUSE
    filesystem admits only processes that are the user entirely: for it, start a child that becomes the user.
    """
    for all_groups in (False, True):  # all groups may take a query to a directory service
        with as_user.Acting(uid, gid, as_user.groups_of(uid, gid) if all_groups else ()):
            if _may_enter(path):
                yield from facts()
                return
    child = starter(lambda report: _report_all(facts(), report), uid, gid, "")()
    yield from child.facts(time.monotonic() + PATIENCE / 2)
    if child.status != "done":
        raise OSError(child.error or "it does not answer")


def _may_enter(path: str) -> bool:
    """Return False only if access is denied. `facts` meets any other error itself."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.EACCES
    return True


def _report_all(facts: Iterable[Fact], report: Callable[[Fact], None]) -> None:
    for fact in facts:
        report(fact)
