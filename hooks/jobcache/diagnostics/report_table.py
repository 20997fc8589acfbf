"""The events of a report in a temporary database, which counts each event once in bounded memory.

The database is a file without a name that SQLite deletes. It stays in memory as long as it is small. Names are kept in memory
and numbered, so the database has numbers only.
"""

import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

REAPED, ORPHAN_REAPED, CREATED, SEEDED, SKIPPED, KEPT, FAILED, SWEPT, OTHER = range(9)  # kinds of events

_MEMORY = 24 << 10  # KiB of the database that stay in memory; sorting takes as much again
_AT_ONCE = 2000  # rows in one statement
_MOST_NAMES = 100_000  # users, accounts, partitions and reasons: users can write invented names to a system log
_REST = "(others)"

# In the order of the jobs, which is nearly the order in which the events come.
_EVENTS = """create table event (job integer, cache integer, identity integer, doubtful integer, kind integer, word integer,
outcome integer, at real, made real, bytes integer, files integer, builds integer, left_out integer, uid integer, user integer,
account integer, partition integer, primary key (job, cache, identity)) without rowid"""


def _of_end(column: str) -> str:
    """Return the value that the deletion has, else that of another event: users can write all others to a system log."""
    return f"coalesce(max(case when kind <= {ORPHAN_REAPED} then {column} end), max({column}))"


_CACHES = f"""create table cache as select
    max(case when kind <= {ORPHAN_REAPED} then at end) as ended,
    max(case when kind <= {ORPHAN_REAPED} and made <= at then made end) as made,
    cast(total(case when kind <= {ORPHAN_REAPED} then bytes end) as integer) as bytes,
    cast(total(case when kind <= {ORPHAN_REAPED} then files end) as integer) as files,
    max(kind = {ORPHAN_REAPED} and word = :orphan) as orphan,
    cast(total(case when kind = {SEEDED} then bytes end) as integer) as stored,
    cast(total(case when kind = {CREATED} then bytes end) as integer) as own,
    max(kind = {CREATED}) as created,
    max(uid) as uid, {_of_end("user")} as user, {_of_end("account")} as account, {_of_end("partition")} as partition
from event where kind <= {SEEDED} group by job, cache"""
_BITS = 20  # sums have two parts, which cannot overflow


def _sum(column: str) -> str:
    return f"sum({column} >> {_BITS}), sum({column} & {(1 << _BITS) - 1})"


# An event, in the order of the columns. job: its number or 0. cache, identity: 64-bit numbers, equal in all events of one cache,
# in all copies of one event. doubtful: a user can have forged it. word: the reason, of a sweep its outcome. at, made: seconds
# since the epoch. bytes, files, builds: of a deletion, or of links; builds None: of neither. left_out: datasets that were not
# linked. word, outcome, user, account, partition: numbers of names.
Row = tuple[
    int, int, int, bool, int, int, int, float, Optional[float], int, int, Optional[int], int, Optional[int], Optional[int],
    Optional[int], Optional[int],
]  # fmt: skip
_COLUMNS = 17
Names = tuple[Optional[int], Optional[int], Optional[int]]  # numbers of the user, the account and the partition
Life = tuple[float, Optional[int], Optional[int], Optional[int]]  # a lifetime in seconds, and the names
Span = tuple[float, float, int, Optional[int], Optional[int], Optional[int]]  # begin, end, bytes, and the names


class Totals(NamedTuple):
    """Sums over the caches that have equal names. known: caches with a known lifetime. saved: bytes of links."""

    names: Names
    caches: int
    bytes: int
    largest: int
    files: int
    orphans: int
    seeded: int
    saved: int
    known: int


class EventTable:
    """Take events by `add`, then `close_events`, then the sums. Raise sqlite3.Error, such as for a full disk."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for pragma in ("journal_mode = off", "synchronous = off", "temp_store = file", f"cache_size = -{_MEMORY}"):
            self._database.execute(f"pragma {pragma}").fetchall()
        self._database.execute(_EVENTS)
        self._numbers: dict[str, int] = {}
        self._names = [_REST]
        self._combinations: dict[tuple[Optional[str], Optional[str], Optional[str]], Names] = {}
        self._pending: list[Row] = []

    def number(self, name: str) -> int:
        """Return the number of a name, equal for equal names. Beyond a limit, all new names have one number."""
        found = self._numbers.get(name)
        if found is not None:
            return found
        if len(self._names) > _MOST_NAMES:
            return 0
        self._names.append(name)
        self._numbers[name] = len(self._names) - 1
        return len(self._names) - 1

    def names(self, user: Optional[str], account: Optional[str], partition: Optional[str]) -> Names:
        """Return the numbers of a user, an account and a partition, each None if it is None or empty."""
        found = self._combinations.get((user, account, partition))
        if found is None:
            if len(self._combinations) >= _MOST_NAMES:
                self._combinations.clear()
            one, two, three = (self.number(name) if name else None for name in (user, account, partition))
            found = self._combinations[user, account, partition] = one, two, three
        return found

    def name(self, number: int) -> str:
        """Return the name that has this number."""
        return self._names[number]

    def add(self, row: Row) -> None:
        """Add an event."""
        self._pending.append(row)
        if len(self._pending) >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        marks = ", ".join("?" * _COLUMNS)
        self._database.execute("begin")
        self._database.executemany(f"insert or replace into event values ({marks})", self._pending)
        self._database.execute("commit")
        self._pending.clear()

    def close_events(self, doubtful: bool) -> int:
        """Sum up the caches; return the number of events. doubtful: with the events that a user can have forged."""
        self._flush()
        if not doubtful:
            self._database.execute("delete from event where doubtful")
        self._database.execute(_CACHES, {"orphan": self.number("orphan")})
        return int(self._database.execute("select count(*) from event").fetchone()[0])

    def name_users(self, names: "dict[int, str]") -> None:
        """Set the users of the caches of which only the uid is known."""
        rows = [(self.number(name), uid) for uid, name in names.items()]
        self._database.executemany("update cache set user = ? where user is null and uid = ?", rows)

    def unnamed(self) -> list[int]:
        """Return the uids of the caches whose user is unknown."""
        return [uid for (uid,) in self._database.execute("select distinct uid from cache where user is null and uid >= 0")]

    def counts(self, kind: int) -> dict[str, int]:
        """Return the number of events of a kind by reason or outcome."""
        rows = self._database.execute("select word, count(*) from event where kind = ? group by word", (kind,))
        return {self.name(word): count for word, count in rows}

    def without(self) -> dict[tuple[str, str, str], int]:
        """Return the number of jobs without a cache, by user, reason and outcome."""
        return self._by_user(f"kind = {SKIPPED}")

    def incomplete(self) -> dict[str, int]:
        """Return the number of caches that begin without some of their user's datasets, by user."""
        found: dict[str, int] = {}
        for (user, _, _), count in self._by_user(f"kind = {CREATED} and left_out > 0").items():
            found[user] = found.get(user, 0) + count
        return found

    def _by_user(self, condition: str) -> dict[tuple[str, str, str], int]:
        query = f"select user, uid, word, outcome, count(*) from event where {condition} group by user, uid, word, outcome"
        found: dict[tuple[str, str, str], int] = {}
        for user, uid, word, outcome, count in self._database.execute(query):
            key = self.name(user) if user is not None else str(uid or ""), self.name(word), self.name(outcome)
            found[key] = found.get(key, 0) + count
        return found

    def inherited(self) -> tuple[int, int, int, int, int, int]:
        """Return (events, with links, builds, files, bytes, datasets left out) of caches whose user has an own cache."""
        columns = "count(*), total(builds > 0), total(builds), total(files), total(bytes), total(left_out)"
        row = self._database.execute(f"select {columns} from event where kind = {CREATED} and builds is not null").fetchone()
        events, links, builds, files, size, left_out = map(int, row)
        return events, links, builds, files, size, left_out

    def created(self) -> tuple[int, int, int, int]:
        """Return the numbers of caches that were created: all, with links to a store, to an own cache, to any of them."""
        columns = "count(*), total(stored > 0), total(own > 0), total(stored + own > 0)"
        made, stored, own, both = map(int, self._database.execute(f"select {columns} from cache where created").fetchone())
        return made, stored, own, both

    def totals(self) -> Iterator[Totals]:
        """Yield the sums of the caches that were reaped."""
        names = "user, account, partition"
        sums = f"{_sum('bytes')}, {_sum('files')}, {_sum('stored + own')}"
        counts = "count(*), max(bytes), sum(orphan), sum(stored + own > 0), count(made)"
        query = f"select {names}, {sums}, {counts} from cache where ended is not null group by {names}"
        for row in self._database.execute(query):
            size, files, saved = ((row[at] << _BITS) + row[at + 1] for at in (3, 5, 7))
            caches, largest, orphans, seeded, known = row[9:]
            yield Totals(row[:3], caches, size, largest, files, orphans, seeded, saved, known)

    def ends(self, since: float, step: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (interval of `step` seconds after `since`, caches that were reaped in it, bytes, orphans)."""
        columns = f"cast((ended - ?) / ? as integer), count(*), {_sum('bytes')}, sum(orphan)"
        query = f"select {columns} from cache where ended is not null group by 1"
        for at, count, high, low, orphans in self._database.execute(query, (since, step)):
            yield at, count, (high << _BITS) + low, orphans

    def spans(self) -> Iterator[Span]:
        """Yield the caches that were reaped, the earliest begin first; of an unknown age, from their end."""
        columns = "coalesce(made, ended), ended, bytes, user, account, partition"
        return self._database.execute(f"select {columns} from cache where ended is not null order by 1")

    def lives(self) -> Iterator[Life]:
        """Yield the known lifetimes of the caches that were reaped, the shortest first."""
        columns = "ended - made as life, user, account, partition"
        return self._database.execute(f"select {columns} from cache where ended is not null and made is not null order by life")

    def latest(self, most: int, condition: str) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
        """Yield each user whose caches meet a condition, with the caches that were reaped last, at most `most`.

        A cache is (end, begin or None, bytes, files, orphan, bytes of links).
        """
        self._database.execute("create index by_user on cache (user, ended)")
        query = f"select user from cache where ended is not null group by user having {condition}"
        columns = "ended, made, bytes, files, orphan, stored + own"
        for (user,) in self._database.execute(query).fetchall():
            query = f"select {columns} from cache where user is ? and ended is not null order by ended desc limit ?"
            yield self.name(user) if user is not None else "", self._database.execute(query, (user, most)).fetchall()

    def close(self) -> None:
        """Delete the database."""
        self._database.close()
