"""Which entries of a store to retire, to delete and to keep: pure functions."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

from jobcache.cache import store_names, timestamps
from jobcache.store.inventory import Entry
from jobcache.store.removal import DEBRIS_AGE


@dataclass(frozen=True)
class Decision:
    """The decision about one entry. action: "retire", "delete" or "keep". reason: of a closed set."""

    entry: Entry
    action: str
    reason: str


def to_retire(
    entries: Iterable[Entry], now: float, max_size: int, max_age: float, oldest_job: Optional[float], other_bytes: int = 0
) -> list[Decision]:
    """Given the entries of a store, return a decision for each build that is not retired.

    Retire damaged builds, builds with a newer generation, builds unused for `max_age` seconds, and then the builds unused
    for longest until the others have at most `max_size` bytes. Keep a build that was used since `oldest_job` started,
    unless it is damaged or superseded: jobs that have links to it keep these. Keep a build that could not be read.
    now, oldest_job: seconds since the epoch; oldest_job None: no job is alive. other_bytes: count towards the size as well.
    """
    entries = list(entries)
    unread = [entry for entry in entries if entry.kind == "build" and entry.unread]
    live = sorted(
        (entry for entry in entries if entry.kind == "build" and entry.retired is None and not entry.unread),
        key=lambda entry: entry.used,
    )
    needed = [oldest_job is not None and entry.used >= oldest_job - timestamps.CLOCK_SKEW for entry in live]
    reasons = _reasons(live, needed, now - max_age)
    total = other_bytes + sum(entry.bytes for entry, reason in zip(live, reasons) if not reason)
    decisions = [Decision(entry, "keep", "unread") for entry in unread]
    for entry, reason, is_needed in zip(live, reasons, needed):
        if not reason and not is_needed and total > max_size:
            reason = "size"
            total -= entry.bytes
        decisions.append(Decision(entry, "retire" if reason else "keep", reason or ("used" if is_needed else "")))
    return decisions


def _reasons(live: list[Entry], needed: list[bool], too_old: float) -> list[str]:
    """Return why each build is to be retired whatever the size of the store, "" for a build that is not."""
    newest: dict[tuple[str, str], int] = {}
    for entry in live:
        digest, generation = store_names.parse_build(entry.name) or ("", 0)
        newest[entry.label, digest] = max(generation, newest.get((entry.label, digest), 0))
    reasons = []
    for entry, is_needed in zip(live, needed):
        digest, generation = store_names.parse_build(entry.name) or ("", 0)
        aged = entry.used < too_old and not is_needed
        superseded = generation < newest[entry.label, digest]
        reasons.append("damaged" if entry.problem else "superseded" if superseded else "age" if aged else "")
    return reasons


def to_delete(entries: Iterable[Entry], now: float, oldest_job: Optional[float]) -> list[Decision]:
    """Given the entries of a store, return a decision for each retired build and each unfinished entry.

    now, oldest_job: as of `to_retire`.
    """
    decisions = []
    for entry in entries:
        if entry.kind == "trash":
            decisions.append(Decision(entry, "delete", "trash"))
        elif entry.kind in ("new", "staging"):
            old = now - entry.used > DEBRIS_AGE and not entry.unread
            decisions.append(Decision(entry, "delete" if old else "keep", "half_made" if old else "young"))
        elif entry.retired is not None and not entry.unread:
            free = oldest_job is None or entry.retired < oldest_job - timestamps.CLOCK_SKEW
            decisions.append(Decision(entry, "delete" if free else "keep", "retired" if free else "linked"))
    return decisions
