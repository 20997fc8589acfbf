"""Advice for a user, from the caches that the user's jobs had. A pure function."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Optional

from jobcache.diagnostics.rebuilding import ALIKE, LARGE, MANY, Rebuilt
from jobcache.diagnostics.report_model import Advice, Cache
from jobcache.diagnostics.units import size

# Advice needs at least MANY caches, of LARGE bytes each, or:
_MANY_FILES = 10_000  # in each
_ORPHANS = 0.2  # of all caches
# and at most:
_SHORT = 1800.0  # seconds, the lifetime of a short job's cache

# For SQLite: the caches of a user for whom advice is possible. A median is large only if half of the values are.
_HALF = (MANY + 1) // 2
CONDITION = f"sum(bytes >= {LARGE}) >= {_HALF} or sum(files >= {_MANY_FILES}) >= {_HALF} or sum(orphan) >= {MANY}"


def advice(user: str, caches: Sequence[Cache], same: Optional[Rebuilt]) -> Iterator[Advice]:
    """Yield the advice that fits, each with the numbers behind it. same: as of rebuilding.rebuilt."""
    if same:
        yield Advice(
            user, "store", "Build a store: jobs seem to make the same data again (jobcache store build, or publish: all).",
            f"{same.caches} of {same.of} caches have {size(same.size)} within {ALIKE:.0%}; jobs wrote {size(same.again)} again",
        )  # fmt: skip
    built = [cache for cache in caches if cache.bytes > 0 and not cache.seeded]
    lives = [cache.ended - cache.made for cache in built if cache.made is not None]
    middle = median([cache.bytes for cache in built]) if built else 0
    if len(built) >= MANY and middle >= LARGE and lives and median(lives) < _SHORT:
        yield Advice(
            user, "parquet", "Convert the data to Parquet: short jobs build large caches (jobcache to-parquet).",
            f"{len(built)} caches, with a median size of {size(middle)} and a median life of {median(lives) / 60:.0f} min",
        )  # fmt: skip
    files = median([cache.files for cache in built]) if built else 0
    if len(built) >= MANY and files >= _MANY_FILES:
        yield Advice(
            user, "files", "Pack small files: a cache with many files is slow to use and slow to reap.",
            f"{len(built)} caches, with a median of {files:,.0f} files",
        )  # fmt: skip
    orphans = sum(cache.orphan for cache in caches)
    if orphans >= MANY and orphans >= _ORPHANS * len(caches):
        yield Advice(
            user, "orphans", "Look at how the jobs end: many caches were not reaped by an Epilog.",
            f"{orphans} of {len(caches)} caches were orphans",
        )  # fmt: skip


def inheritance_advice(refused: Mapping[str, int], unclear: Mapping[str, int], incomplete: Mapping[str, int]) -> Iterator[Advice]:
    """Yield advice for users whose own builds were not linked.

    Numbers of jobs by user: refused, for lack of time and similar; unclear, for what their scripts set; incomplete.
    """
    for user in sorted(refused):
        text = "Make the user's own datasets cache smaller or faster: jobs ran without a private cache (jobcache explain)."
        yield Advice(user, "inherit", text, f"{refused[user]} jobs")
    for user in sorted(unclear):
        text = "Set HF_HOME to a plain path at the begin of the script: jobs ran without a private cache (jobcache explain)."
        yield Advice(user, "inherit", text, f"{unclear[user]} jobs")
    for user in sorted(incomplete):
        text = "Delete the damaged builds in the user's own datasets cache: jobs do not begin with these (jobcache explain)."
        yield Advice(user, "inherit", text, f"{incomplete[user]} jobs")
