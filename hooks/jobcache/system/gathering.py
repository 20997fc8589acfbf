"""Collect facts about many items in child processes, so that one hung item does not block the others."""

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional, TypeVar

from jobcache.system import as_user, children
from jobcache.system.stuck_processes import Place, Stuck

AT_ONCE = 4  # children; the load on a metadata server stays low
PATIENCE = 30.0  # seconds without a report after which a child counts as hung
REPORT = 1 << 28  # bytes that a child may report
_BATCH = 256  # items for one child
_HUNG_IN_A_ROW = 4  # users in a row at whose item a child hangs at its start, after which the filesystem counts as hung

Item = TypeVar("Item")
Fact = dict[str, Any]


def survey(
    items: Sequence[Item],
    facts: Callable[[Item], Iterable[Fact]],
    lost: Callable[[Sequence[Item], str], None],
    place: Callable[[Item], Place],
    begun: Callable[[int], None] = lambda _: None,
) -> Iterator[Fact]:
    """Yield the facts of all items. Children collect them, many items each.

    facts: returns the facts of one item, in a child. An empty fact only shows that the child is alive.
    lost: called with items without facts and the reason. A child that hangs or dies loses its current item, and another
        child continues with the next one. An item is lost as well if a process is stuck at its place, or if the place or
        others of the same user did not answer before. If children in a row hang at items of several users, all remaining
        items are lost.
    place: returns what an item accesses.
    begun: called with the number of items that children have begun.
    """
    todo = [items[at : at + _BATCH] for at in range(0, len(items), _BATCH)]
    count = 0
    hung_in_a_row: set[tuple[int, str]] = set()  # users; for root, places

    def examined(batch: Sequence[Item]) -> list[Item]:
        found = []
        stuck: dict[tuple[int, str, str], list[Item]] = {}  # one message about many items of a user
        for item in batch:
            where = place(item)
            try:
                where.check()
            except Stuck as why:
                stuck.setdefault((where.uid, where.part, str(why)), []).append(item)
            else:
                found.append(item)
        for (_, _, reason), items in stuck.items():
            lost(items, reason)
        return found

    def starts(batches: list[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Callable[[], children.Child]]]:
        for batch in batches:
            if len(hung_in_a_row) >= _HUNG_IN_A_ROW:
                lost(batch, "left for the next sweep, because others do not answer")
                continue
            batch = examined(batch)
            if batch:
                yield batch, starter(_Collection(batch, facts), None, None, place(batch[0]))

    while todo:
        batches, todo = todo, []
        reached: dict[int, int] = {}
        for batch, child, fact in children.each(starts(batches), AT_ONCE, PATIENCE):
            if fact is not None and "at" in fact:
                reached[child.pid] = fact["at"]
                child.place = place(batch[fact["at"]])
                count += 1
                begun(count)
            elif fact:
                yield fact
            elif fact is not None:
                continue
            elif child.status == "done":
                hung_in_a_row.clear()
            else:
                at = reached.pop(child.pid, 0)
                where = place(batch[at])
                if child.status == "late":
                    where.skip()
                if at or child.status != "late":
                    hung_in_a_row.clear()
                else:
                    hung_in_a_row.add((where.uid, "" if where.uid else f"{where.device} {where.part}"))
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
    work: "as_user.Work", uid: Optional[int], gid: Optional[int], place: Place, user: Optional[str] = None
) -> Callable[[], children.Child]:
    """Return a function that starts a child, for `children.each`. Arguments as for `as_user.start`."""
    return lambda: as_user.start(work, uid=uid, gid=gid, user=user, place=place, most=REPORT)


def with_rights_of(uid: int, gid: int, path: str, place: Place, facts: Callable[[], Iterable[Fact]]) -> Iterator[Fact]:
    """Yield the facts that `facts` collects below the directory `path` with the rights of a user. Raise OSError.

    First try the user's own group, then all groups: a directory above `path` can be open to a project's group alone. A FUSE
    filesystem can admit only processes that are the user entirely: for it, start a child that becomes the user. Root never
    enters a filesystem that a user mounted.
    """
    for all_groups in () if place.is_users else (False, True):  # all groups may take a query to a directory service
        with as_user.Acting(uid, gid, as_user.groups_of(uid, gid) if all_groups else ()):
            if _may_enter(path):
                yield from facts()
                return
    place.check()
    child = starter(lambda report: _report_all(facts(), report), uid, gid, place, "")()
    yield from child.facts(time.monotonic() + PATIENCE / 2)
    if child.status == "late":
        place.skip()
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
