"""Who used how much: events of a span of time, summed up by user, account and partition. Pure functions.

A cache is known from when it was reaped: its size is what was deleted, its life is from its record to its end. How much
there was at a moment is summed up from that as if each cache had had its last size all along, so it is an upper bound.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Callable, Optional

from jobcache.cache import timestamps
from jobcache.system.event_log import LOG, SYSLOG, Event, epoch_or_none

_Key = tuple[str, int, int, Optional[int], str]  # cluster, job, run, uid, path

GROUPS = ("user", "account", "partition")
UNKNOWN = "(unknown)"

_BINS = 96  # of the plots over time, at the most
_STEPS = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 7 * 86400, 30 * 86400)  # seconds that a bin may have
_LIVES = ((60, "< 1 min"), (600, "1–10 min"), (3600, "10–60 min"), (6 * 3600, "1–6 h"), (86400, "6–24 h"), (7 * 86400, "1–7 d"))
_LONGER = "> 7 d"
# When advice is given: so many caches, so large, so alike, so short a life, so many files, so many of them orphans.
_MANY, _LARGE, _ALIKE, _SHORT, _FILES, _SHARE = 5, 1 << 30, 0.05, 1800.0, 10_000, 0.2


@dataclass
class Cache:
    """One cache that came to its end: seconds since the epoch, bytes. made: None where it is not known."""

    ended: float
    user: str = ""
    uid: Optional[int] = None
    account: str = ""
    partition: str = ""
    made: Optional[float] = None
    bytes: int = 0
    files: int = 0
    orphan: bool = False
    seeded: int = 0  # bytes that were linked in from a store


@dataclass
class Row:
    """A group. bytes: of all its caches. peak: the most at one moment, at the most. life: seconds, the median."""

    name: str
    caches: int = 0
    bytes: int = 0
    largest: int = 0
    files: int = 0
    peak: int = 0
    life: Optional[float] = None
    orphans: int = 0
    seeded: int = 0
    saved: int = 0


@dataclass
class Bin:
    """A stretch of time, from `ts` on. caches, bytes: the most at once. reaped: caches that ended, orphans among them."""

    ts: str
    caches: int = 0
    bytes: int = 0
    reaped: int = 0
    freed: int = 0
    orphans: int = 0


@dataclass
class Advice:
    """What a user is to be told. what: store, parquet, files, orphans. why: the numbers it rests on."""

    user: str
    what: str
    text: str
    why: str


@dataclass
class Report:
    """All of it. since, until: RFC 3339. step: seconds of a bin. Counts by reason: orphans, skipped, failures, kept."""

    since: str
    until: str
    events: int = 0
    total: Row = field(default_factory=lambda: Row("all"))
    groups: dict[str, list[Row]] = field(default_factory=dict)
    made: int = 0
    orphans: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    sweeps: dict[str, int] = field(default_factory=dict)
    step: int = 3600
    bins: list[Bin] = field(default_factory=list)
    lives: list[tuple[str, int]] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)


class Collector:
    """Takes events one by one. name_of: the name of a uid that no event names. own_log: the log itself is among the sources."""

    def __init__(self, since: float, until: float, name_of: Callable[[int], str] = str, own_log: bool = False) -> None:
        self.report = Report(timestamps.millisecond(since), timestamps.millisecond(until))
        self._since, self._until, self._name_of = since, until, name_of
        self._seen: set[int] = set()
        self._caches: dict[_Key, Cache] = {}
        self._seeded: dict[_Key, int] = {}
        self._made: set[_Key] = set()
        self._names: dict[int, str] = {}
        self._own_log = own_log
        self._doubtful: set[int] = set()  # of _seen: what a user can have written, while no event of the log itself is known

    def take(self, event: Event) -> None:
        """Count one event, once. What a user can have written into a system log does not count where the log itself is read."""
        kind = event["event"]
        doubtful = event["source"] != LOG and kind not in ("cache.created", "cache.skipped", "store.seeded", "store.published")
        if event["source"] == LOG and not self._own_log:
            self._own_log = True
            self._forget()
        elif doubtful and self._own_log:
            return
        get = event.get
        where = get("cluster"), get("node"), get("path")
        identity = hash((event["ts"], kind, where, get("job_id"), get("run"), get("reason")))
        if identity in self._seen:
            return
        self._seen.add(identity)
        if doubtful:
            self._doubtful.add(identity)
        report = self.report
        report.events += 1
        reason = event.get("reason", "")
        if kind in ("cache.reaped", "cache.orphan_reaped"):
            self._ended(event)
        elif kind == "cache.created":
            self._made.add(_key(event))
        elif kind == "cache.skipped":
            _count(report.skipped, reason)
        elif kind == "cache.kept":
            _count(report.kept, reason)
        elif kind == "hook.failed":
            _count(report.failures, reason)
        elif kind == "sweep.finished":
            _count(report.sweeps, event.get("outcome", ""))
        elif kind == "store.seeded":
            key = _key(event)
            self._seeded[key] = self._seeded.get(key, 0) + event.get("bytes", 0)
        if event["source"] != SYSLOG and event.get("user") and "uid" in event:
            self._names[event["uid"]] = event["user"]

    def _forget(self) -> None:
        """Take back what of a system log was counted while there was nothing else to go by."""
        report = self.report
        report.events -= len(self._doubtful)
        self._seen -= self._doubtful
        self._doubtful.clear()
        self._caches.clear()
        for counts in (report.orphans, report.kept, report.failures, report.sweeps):
            counts.clear()

    def _ended(self, event: Event) -> None:
        """One cache may end in several steps: an Epilog that has too little time, then a sweep."""
        key = _key(event)
        ended, made = epoch_or_none(event["ts"]), epoch_or_none(event.get("created_at", ""))
        if ended is None:
            return
        cache = self._caches.setdefault(key, Cache(ended))
        cache.ended = max(cache.ended, ended)
        cache.made = made if made is not None and made <= ended else cache.made
        cache.user = event.get("user", cache.user)
        cache.uid = event.get("uid", cache.uid)
        cache.account = event.get("account", cache.account)
        cache.partition = event.get("partition", cache.partition)
        cache.bytes += event.get("bytes", 0)
        cache.files += event.get("files", 0)
        reason = event.get("reason", "")
        if event["event"] == "cache.orphan_reaped":
            _count(self.report.orphans, reason)
            cache.orphan = cache.orphan or reason == "orphan"

    def finish(self) -> Report:
        """Return the report of all that was taken."""
        report = self.report
        for key, cache in self._caches.items():
            cache.seeded = self._seeded.get(key, 0)
            cache.user = cache.user or self._name(cache.uid)
        caches = list(self._caches.values())
        report.made = len(self._made)
        report.total = _row("all", caches)
        for group in GROUPS:
            report.groups[group] = _rows(group, caches)
        report.step = _step(self._until - self._since)
        report.bins = _bins(caches, self._since, self._until, report.step)
        report.lives = _lives(caches)
        by_user = _by("user", caches)
        report.advice = [one for user in sorted(by_user) for one in advice(user, by_user[user])]
        return report

    def _name(self, uid: Optional[int]) -> str:
        if uid is None:
            return UNKNOWN
        return self._names.get(uid) or self._name_of(uid)


def _key(event: Event) -> _Key:
    """Whose cache it is of. What `jobcache run` makes outside of jobs has a path alone."""
    path = "" if "job_id" in event else event.get("path", "")
    return event.get("cluster", ""), event.get("job_id", 0), event.get("run", 0), event.get("uid"), path


def _count(counts: dict[str, int], name: str) -> None:
    counts[name or UNKNOWN] = counts.get(name or UNKNOWN, 0) + 1


def _by(group: str, caches: Iterable[Cache]) -> dict[str, list[Cache]]:
    found: dict[str, list[Cache]] = {}
    for cache in caches:
        found.setdefault(getattr(cache, group) or UNKNOWN, []).append(cache)
    return found


def _rows(group: str, caches: Iterable[Cache]) -> list[Row]:
    rows = [_row(name, ones) for name, ones in _by(group, caches).items()]
    return sorted(rows, key=lambda row: (-row.bytes, row.name))


def _row(name: str, caches: Sequence[Cache]) -> Row:
    lives = [cache.ended - cache.made for cache in caches if cache.made is not None]
    return Row(
        name,
        len(caches),
        sum(cache.bytes for cache in caches),
        max((cache.bytes for cache in caches), default=0),
        sum(cache.files for cache in caches),
        max((held for _, _, held in _held(caches)), default=0),
        median(lives) if lives else None,
        sum(cache.orphan for cache in caches),
        sum(cache.seeded > 0 for cache in caches),
        sum(cache.seeded for cache in caches),
    )


def _held(caches: Iterable[Cache]) -> Iterator[tuple[float, int, int]]:
    """Yield (moment, caches, bytes) whenever there are more or fewer; of which it is not known when it was made, at its end."""
    steps = []
    for cache in caches:
        steps.append((cache.ended if cache.made is None else cache.made, 0, 1, cache.bytes))
        steps.append((cache.ended, 1, -1, -cache.bytes))  # ends after what begins in the same moment: an upper bound
    count = held = 0
    for moment, _, more, size in sorted(steps):
        count, held = count + more, held + size
        yield moment, count, held


def _step(span: float) -> int:
    return next((step for step in _STEPS if span / step <= _BINS), int(span / _BINS) + 1)


def _bins(caches: Sequence[Cache], since: float, until: float, step: int) -> list[Bin]:
    count = max(1, int((until - since) / step + 0.999))
    bins = [Bin(timestamps.millisecond(since + at * step)) for at in range(count)]

    def at(moment: float) -> int:
        return min(count - 1, max(0, int((moment - since) / step)))

    for cache in caches:
        one = bins[at(cache.ended)]
        one.reaped, one.freed, one.orphans = one.reaped + 1, one.freed + cache.bytes, one.orphans + cache.orphan
    last, now = 0, (0, 0)
    for moment, number, held in _held(caches):
        for between in range(last, at(moment) + 1):  # what there was at a bin's beginning, it had as well
            bins[between].caches, bins[between].bytes = max(bins[between].caches, now[0]), max(bins[between].bytes, now[1])
        last, now = at(moment), (number, held)
        bins[last].caches, bins[last].bytes = max(bins[last].caches, number), max(bins[last].bytes, held)
    return bins


def _lives(caches: Iterable[Cache]) -> list[tuple[str, int]]:
    counts = dict.fromkeys([label for _, label in _LIVES] + [_LONGER], 0)
    for cache in caches:
        if cache.made is not None:
            life = cache.ended - cache.made
            counts[next((label for most, label in _LIVES if life < most), _LONGER)] += 1
    return list(counts.items())


def advice(user: str, caches: Sequence[Cache]) -> Iterator[Advice]:
    """Yield what would serve this user better, with the numbers it rests on."""
    built = [cache for cache in caches if cache.bytes > 0 and not cache.seeded]
    lives = [cache.ended - cache.made for cache in built if cache.made is not None]
    middle = median([cache.bytes for cache in built]) if built else 0
    alike = [cache for cache in built if abs(cache.bytes - middle) <= _ALIKE * middle]
    if len(alike) >= _MANY and len(alike) * 2 >= len(built) and middle >= _LARGE:
        again = sum(cache.bytes for cache in alike) - round(middle)
        yield Advice(
            user, "store", "Build a store: the same data seems to be built in each job (jobcache store build).",
            f"{len(alike)} of {len(built)} caches hold {size(middle)} within {_ALIKE:.0%}; {size(again)} were written again",
        )  # fmt: skip
    if len(built) >= _MANY and middle >= _LARGE and lives and median(lives) < _SHORT:
        yield Advice(
            user, "parquet", "Convert to Parquet: large caches are built for short jobs (jobcache to-parquet).",
            f"{len(built)} caches of {size(middle)} each (median), which lived {median(lives) / 60:.0f} min (median)",
        )  # fmt: skip
    files = median([cache.files for cache in built]) if built else 0
    if len(built) >= _MANY and files >= _FILES:
        yield Advice(
            user, "files", "Pack small files: a cache of so many files is slow on scratch, and slow to reap.",
            f"{files:,.0f} files in each of {len(built)} caches (median)",
        )  # fmt: skip
    orphans = sum(cache.orphan for cache in caches)
    if orphans >= _MANY and orphans >= _SHARE * len(caches):
        yield Advice(
            user, "orphans", "Look at how the jobs end: many caches were left over.",
            f"{orphans} of {len(caches)} caches were orphans",
        )  # fmt: skip


def size(count: float) -> str:
    """Return bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
