"""The data of a report. Its fields are the keys of `jobcache report --json` and of the page."""

from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from jobcache.diagnostics.rebuilding import Rebuilt


class Cache(NamedTuple):
    """One cache that was reaped. ended, made: seconds since the epoch; made None: unknown. seeded: bytes that were linked."""

    ended: float
    made: Optional[float] = None
    bytes: int = 0
    files: int = 0
    orphan: bool = False
    seeded: int = 0


@dataclass
class Row:
    """The sums of one group of caches.

    bytes: of all of them. largest: bytes of one cache. peak: upper bound of the bytes that existed at once.
    life: median, in seconds. seeded: caches that began with links. saved: bytes of these links.
    """

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
    """An interval that begins at `ts`. caches, bytes: the most that existed at once. reaped: caches; of these, orphans."""

    ts: str
    caches: int = 0
    bytes: int = 0
    reaped: int = 0
    freed: int = 0
    orphans: int = 0


@dataclass
class Advice:
    """Advice for a user. what: store, parquet, files, orphans or inherit. why: the numbers behind it."""

    user: str
    what: str
    text: str
    why: str


@dataclass
class Without:
    """Jobs of a user that got no private cache. outcome: skipped, refused or failed."""

    user: str
    reason: str
    outcome: str
    jobs: int


@dataclass
class Report:
    """The report. since, until: RFC 3339. step: length of a bin in seconds.

    made: caches created. orphans, skipped, kept, failures: number of events by reason. sweeps: by outcome.
    inherited: numbers of caches that began with links to their user's own builds, of builds, files and bytes, and of datasets
    that were left out. lives: number of caches by lifetime.
    hits: numbers of caches that were created, and of these, with links to a store, to their user's own builds, to any of them.
    without: jobs without a private cache, by user and reason, the most first. rebuilt: by user, the most bytes first.
    """

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
    inherited: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    without: list[Without] = field(default_factory=list)
    rebuilt: list[Rebuilt] = field(default_factory=list)
    step: int = 3600
    bins: list[Bin] = field(default_factory=list)
    lives: list[tuple[str, int]] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
