"""Sums over caches in one pass: by group, over time, by lifetime.

The size of a cache is known only when it is reaped. Sums over time assume that it had this size from its creation, so they
are upper bounds.
"""

import heapq
import itertools
import math
from typing import Optional

from jobcache.cache import timestamps
from jobcache.diagnostics.report_model import Bin, Row
from jobcache.diagnostics.report_table import EventTable, Names, Span, Totals

GROUPS = ("user", "account", "partition")
UNKNOWN = "(unknown)"

_MOST_BINS = 96
_STEPS = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 7 * 86400, 30 * 86400)  # seconds that a bin can have
_LIVES = ((60, "< 1 min"), (600, "1–10 min"), (3600, "10–60 min"), (6 * 3600, "1–6 h"), (86400, "6–24 h"), (7 * 86400, "1–7 d"))
_LONGER = "> 7 d"
_LAST: Span = (math.inf, math.inf, 0, None, None, None)  # ends all caches


class _Group:
    """A user, an account, a partition, or all caches. held: bytes that exist now. life: the median lifetime.

    known: lifetimes. rank: of these, so far. middle, next: ranks of the one or two in the middle; next 0: there is one.
    """

    __slots__ = ("held", "known", "life", "middle", "next", "peak", "rank")

    def __init__(self) -> None:
        self.held = self.peak = self.known = self.rank = self.middle = self.next = 0
        self.life: Optional[float] = None


class Sums:
    """The sums of a period, from a table. since, until: seconds since the epoch."""

    def __init__(self, table: EventTable, since: float, until: float) -> None:
        self.step = bin_length(until - since)
        self._table, self._since = table, since
        count = max(1, int((until - since) / self.step + 0.999))
        self.bins = [Bin(timestamps.millisecond(since + at * self.step)) for at in range(count)]
        self._totals = list(table.totals())
        self._all = _Group()
        self._groups: dict[tuple[str, Optional[int]], _Group] = {}
        self._of_names: dict[Names, tuple[_Group, ...]] = {}  # the groups of a cache
        for one in self._totals:
            own = [self._groups.setdefault(key, _Group()) for key in zip(GROUPS, one.names)]
            self._of_names[one.names] = (self._all, *own)
            for group in self._of_names[one.names]:
                group.known += one.known
        self.lives: list[tuple[str, int]] = []
        self._add_ends()
        self._add_spans()
        self._add_lives()

    def _at(self, moment: float) -> int:
        return min(len(self.bins) - 1, max(0, int((moment - self._since) / self.step)))

    def _add_ends(self) -> None:
        for at, count, size, orphans in self._table.ends(self._since, self.step):
            one = self.bins[min(len(self.bins) - 1, max(0, at))]
            one.reaped, one.freed, one.orphans = one.reaped + count, one.freed + size, one.orphans + orphans

    def _add_spans(self) -> None:
        """Set the most that existed at once. A cache that ends when another begins counts with it: an upper bound."""
        alive: list[tuple[float, int, int, tuple[_Group, ...]]] = []  # a heap: end, number, bytes, groups
        last = number = 0  # the bin of the last step; the caches so far
        edge = self._since + self.step  # the end of that bin
        pop, push, of_names, total = heapq.heappop, heapq.heappush, self._of_names, self._all
        for begin, ended, size, user, account, partition in itertools.chain(self._table.spans(), [_LAST]):
            while alive and alive[0][0] < begin:
                moment, _, less, groups = pop(alive)
                if moment >= edge:
                    last, edge = self._fill(last, moment, len(alive) + 1)
                for group in groups:
                    group.held -= less
            if begin == math.inf:
                return
            if begin >= edge:
                last, edge = self._fill(last, begin, len(alive))
            groups = of_names[user, account, partition]
            for group in groups:
                group.held = held = group.held + size
                if held > group.peak:
                    group.peak = held
            number += 1  # noqa: SIM113 - the loop has tuples of names
            push(alive, (ended, number, size, groups))
            one = self.bins[last]
            if total.held > one.bytes:
                one.bytes = total.held
            if len(alive) > one.caches:
                one.caches = len(alive)

    def _fill(self, last: int, moment: float, count: int) -> tuple[int, float]:
        """Note the present state in the bins after `last`, down to that of `moment`; return its number and its end.

        count: of caches that exist.
        """
        at = max(last, self._at(moment))
        for between in self.bins[last + 1 : at + 1]:
            between.caches, between.bytes = max(between.caches, count), max(between.bytes, self._all.held)
        return at, self._since + (at + 1) * self.step if at + 1 < len(self.bins) else math.inf

    def _add_lives(self) -> None:
        """Count the caches by lifetime, and set the median lifetimes."""
        counts = [0] * (len(_LIVES) + 1)
        limits = [most for most, _ in _LIVES] + [math.inf]
        at = 0
        for group in (self._all, *self._groups.values()):
            group.middle, group.next = (group.known + 1) // 2, 0 if group.known % 2 else group.known // 2 + 1
        of_names = self._of_names
        for life, user, account, partition in self._table.lives():
            while life >= limits[at]:
                at += 1
            counts[at] += 1
            for group in of_names[user, account, partition]:
                group.rank = rank = group.rank + 1
                if rank == group.middle:
                    group.life = life
                elif rank == group.next and group.life is not None:
                    group.life = (group.life + life) / 2
        self.lives = list(zip([label for _, label in _LIVES] + [_LONGER], counts))

    def total(self) -> Row:
        """Return the sums of all caches."""
        row = Row("all", peak=self._all.peak, life=self._all.life)
        for one in self._totals:
            _add(row, one)
        return row

    def groups(self) -> dict[str, list[Row]]:
        """Return the sums of each user, account and partition, the largest first."""
        return {group: self._rows(at, group) for at, group in enumerate(GROUPS)}

    def _rows(self, at: int, name: str) -> list[Row]:
        rows: dict[str, Row] = {}
        for one in self._totals:
            number = one.names[at]
            group = self._groups[name, number]
            text = (self._table.name(number) if number is not None else "") or UNKNOWN
            _add(rows.setdefault(text, Row(text, peak=group.peak, life=group.life)), one)
        return sorted(rows.values(), key=lambda row: (-row.bytes, row.name))


def _add(row: Row, more: Totals) -> None:
    row.caches, row.bytes, row.files = row.caches + more.caches, row.bytes + more.bytes, row.files + more.files
    row.orphans, row.seeded, row.saved = row.orphans + more.orphans, row.seeded + more.seeded, row.saved + more.saved
    row.largest = max(row.largest, more.largest)


def bin_length(span: float) -> int:
    """Return the length of a bin in seconds, such that a report over `span` seconds has a readable number of bins."""
    return next((step for step in _STEPS if span / step <= _MOST_BINS), int(span / _MOST_BINS) + 1)
