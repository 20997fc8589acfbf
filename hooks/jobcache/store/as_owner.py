"""Work on a store as its owner, in a child process: root becomes the owner, everybody else has only their own store."""

import os
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

from jobcache.cache import reasons
from jobcache.store import inventory, removal
from jobcache.store.places import Place
from jobcache.system import as_user, children
from jobcache.system.stuck_processes import Register, Stuck

_PATIENCE = 120.0  # seconds without a report, after which a child is given up
_MAX_PER_OWNER = 600.0  # seconds for one owner's stores in one pruning, so that every other owner gets a turn
_MAX_LATE = 4  # owners in a row whose stores do not answer, after which the others are left for the next pruning
_MAX_REPORT = 1 << 26  # bytes that a child may report

Report = Callable[[dict[str, Any]], None]


class Turns:
    """The time that each owner has used of a pruning. Skip owners whose time is up, and stores that do not answer."""

    def __init__(self) -> None:
        self._spent: dict[int, float] = {}  # seconds by owner
        self._skipped: set[str] = set()
        self._late = 0
        self._hung_owners: set[int] = set()

    def remaining(self, place: Place) -> float:
        """Return the seconds that remain for this store, 0 if it is skipped."""
        if place.path in self._skipped:
            return 0.0
        if self._late >= _MAX_LATE or place.owner in self._hung_owners:
            self._skipped.add(place.path)
        return 0.0 if place.path in self._skipped else max(0.0, _MAX_PER_OWNER - self._spent.get(place.owner, 0.0))

    def record(self, place: Place, seconds: float, child: children.Child) -> None:
        """Record how long a child has worked on this store, and whether it finished."""
        self._spent[place.owner] = self._spent.get(place.owner, 0.0) + seconds
        if child.status == "late":  # a user can have several stores: all of them count as one
            self._late += place.owner not in self._hung_owners
            self._hung_owners.add(place.owner)
        else:
            self._late = 0
        if child.status != "done":
            self._skipped.add(place.path)


def facts(
    place: Place, work: "as_user.Work", problems: list[str], register: Register, turns: Optional[Turns] = None
) -> Iterator[dict[str, Any]]:
    """Run `work` as the owner of a store and yield the facts that it reports.

    A fact with the key "error" goes to `problems`, and a fact with the key "alive" is a heartbeat; neither is yielded.
    """
    uid = place.owner if os.geteuid() == 0 else os.geteuid()
    began = time.monotonic()
    remaining = turns.remaining(place) if turns else float("inf")
    if not remaining:
        problems.append(f"{place.path}: left for the next pruning, because this store or others do not answer")
        return
    where = register.place(uid, place.path, "store")
    try:
        where.check()
    except Stuck as stuck:
        problems.append(f"{place.path}: {stuck}")
        return
    child = as_user.start(work, uid=uid, gid=place.gid, user=None, place=where, most=_MAX_REPORT)
    for _, _, fact in children.each([("", lambda: child)], 1, min(remaining, _PATIENCE)):
        if fact is not None and "error" in fact:
            problems.append(fact["error"])
        elif fact is not None and "alive" not in fact:
            yield fact
        if fact is not None and time.monotonic() - began >= remaining:
            child.kill()
    if turns:
        turns.record(place, time.monotonic() - began, child)
    if child.status != "done":
        problems.append(f"{place.path}: {child.error or 'the store does not answer'}")


def entries(
    place: Place,
    problems: list[str],
    register: Register,
    *,
    deep: bool = False,
    with_manifests: bool = True,
    remove_empty_sections: bool = False,
    turns: Optional[Turns] = None,
) -> list[inventory.Entry]:
    """Return the entries of a store, and report errors in `problems`.

    deep, with_manifests: as of inventory.entries. remove_empty_sections: remove these after the listing.
    """

    def work(report: Report) -> None:
        owner = None if place.is_site else place.owner
        try:
            found = inventory.entries(
                place.path, owner, deep=deep, with_manifests=with_manifests, heartbeat=lambda: report({"alive": 1})
            )
            for entry in found:
                report(vars(entry))
            if remove_empty_sections:
                removal.remove_empty_sections(place.path, owner, time.time())
        except FileNotFoundError:
            pass  # the store does not exist yet
        except (OSError, reasons.Refused) as error:
            report({"error": f"{place.path}: {error}"})

    return [inventory.Entry(**fact) for fact in facts(place, work, problems, register, turns)]
