"""Sums over caches: by group, over time, by lifetime. Pure functions.

The size of a cache is known only when it is reaped. Sums over time assume that it had this size from its creation, so they
are upper bounds.
"""

from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from jobcache.cache import timestamps
from jobcache.diagnostics.report_model import Bin, Cache, Row

GROUPS = ("user", "account", "partition")
UNKNOWN = "(unknown)"

_MOST_BINS = 96
_STEPS = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 7 * 86400, 30 * 86400)  # seconds that a bin can have
_LIVES = ((60, "< 1 min"), (600, "1–10 min"), (3600, "10–60 min"), (6 * 3600, "1–6 h"), (86400, "6–24 h"), (7 * 86400, "1–7 d"))
_LONGER = "> 7 d"


def by_group(group: str, caches: Iterable[Cache]) -> dict[str, list[Cache]]:
    """Return the caches by user, account or partition."""
    found: dict[str, list[Cache]] = {}
    for cache in caches:
        found.setdefault(getattr(cache, group) or UNKNOWN, []).append(cache)
    return found


def rows(group: str, caches: Iterable[Cache]) -> list[Row]:
    """Return a row for each user, account or partition, the largest first."""
    found = [row(name, members) for name, members in by_group(group, caches).items()]
    return sorted(found, key=lambda one: (-one.bytes, one.name))


def row(name: str, caches: Sequence[Cache]) -> Row:
    """Return the sums of some caches."""
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
    """Yield (time, caches, bytes) after each creation and each end. A cache of unknown age counts at its end only."""
    steps = []
    for cache in caches:
        steps.append((cache.ended if cache.made is None else cache.made, 0, 1, cache.bytes))
        steps.append((cache.ended, 1, -1, -cache.bytes))  # at equal times, creations first: an upper bound
    count = held = 0
    for moment, _, more, size in sorted(steps):
        count, held = count + more, held + size
        yield moment, count, held


def bin_length(span: float) -> int:
    """Return the length of a bin in seconds, such that a report over `span` seconds has a readable number of bins."""
    return next((step for step in _STEPS if span / step <= _MOST_BINS), int(span / _MOST_BINS) + 1)


def bins(caches: Sequence[Cache], since: float, until: float, step: int) -> list[Bin]:
    """Return the bins from `since` to `until`."""
    count = max(1, int((until - since) / step + 0.999))
    found = [Bin(timestamps.millisecond(since + at * step)) for at in range(count)]

    def at(moment: float) -> int:
        return min(count - 1, max(0, int((moment - since) / step)))

    for cache in caches:
        one = found[at(cache.ended)]
        one.reaped, one.freed, one.orphans = one.reaped + 1, one.freed + cache.bytes, one.orphans + cache.orphan
    last, now = 0, (0, 0)
    for moment, number, held in _held(caches):
        for between in range(last, at(moment) + 1):  # the state at the beginning of a bin is in it as well
            found[between].caches, found[between].bytes = max(found[between].caches, now[0]), max(found[between].bytes, now[1])
        last, now = at(moment), (number, held)
        found[last].caches, found[last].bytes = max(found[last].caches, number), max(found[last].bytes, held)
    return found


def lives(caches: Iterable[Cache]) -> list[tuple[str, int]]:
    """Return the number of caches by lifetime, the shortest first."""
    counts = dict.fromkeys([label for _, label in _LIVES] + [_LONGER], 0)
    for cache in caches:
        if cache.made is not None:
            life = cache.ended - cache.made
            counts[next((label for most, label in _LIVES if life < most), _LONGER)] += 1
    return list(counts.items())
