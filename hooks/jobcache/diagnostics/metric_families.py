"""The metrics of a sweep and of a host, as pure functions of facts and of the previous metrics.

Counters continue from the previous metrics. No metric has a user's name, unless the site asks for it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Optional

from jobcache.system import event_log

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]  # by name and labels
Values = list[tuple[dict[str, str], float]]  # labels and value of each sample
Family = tuple[str, str, str, Values]  # kind, name without _total, help, samples

READ = "jobcache_log_read_timestamp_seconds"

_SUCCESS = "jobcache_sweep_last_success_timestamp_seconds"
_STATES = ("live", "orphan", "kept", "trash", "half-made", "unrecorded", "unknown")
_REAPED = ("orphan", "half_made", "trash", "unrecorded")
_FAILURES = ("stuck", "deadline", "child_died", "internal", "no_job", "no_python", "python", "settings")
_CLOCK_SKEW = 60.0  # seconds by which an event may be in the future


@dataclass
class SweepFacts:
    """The facts of one sweep. now: seconds since the epoch. seconds: duration. states: number of caches by state.

    sizes: (bytes, files) by state; None: not measured. reaped: (directories, bytes, files) by reason.
    filesystems: (size, free, inodes, free inodes) by path. users: (caches, bytes) by name; None: not wanted.
    """

    now: float
    outcome: str
    troubles: int
    seconds: float
    states: dict[str, int] = field(default_factory=dict)
    sizes: Optional[dict[str, tuple[int, int]]] = None
    reaped: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    filesystems: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    users: Optional[dict[str, tuple[int, int]]] = None


def key(labels: Mapping[str, str]) -> Labels:
    """Return labels as `Samples` has them."""
    return tuple(sorted(labels.items()))


def of_sweep(facts: SweepFacts, before: Samples, labels: Mapping[str, str]) -> Iterator[Family]:
    """Yield the metrics of a sweep. before: the previous metrics. labels: of every sample.

    Metrics with users' names come last: a textfile that is too long is read from its beginning, and has all counters there.
    """
    yield from _caches(facts, labels)
    yield from _reaped_by_sweep(facts, before, labels)
    yield from _last_sweep(facts, before, labels)
    yield from _filesystems(facts, labels)
    yield from _users(facts, labels)


def _sample(value: float, labels: Mapping[str, str], **more: str) -> tuple[dict[str, str], float]:
    return {**labels, **more}, value


def _counted(name: str, value: float, before: Samples, labels: Mapping[str, str], **more: str) -> tuple[dict[str, str], float]:
    """Return a sample of a counter: its previous value and `value`."""
    whole = {**labels, **more}
    return whole, before.get((f"{name}_total", key(whole)), 0.0) + value


def _caches(facts: SweepFacts, labels: Mapping[str, str]) -> Iterator[Family]:
    states = [*_STATES, *sorted(set(facts.states) - set(_STATES))]
    caches = [_sample(facts.states.get(state, 0), labels, state=state) for state in states]
    yield "gauge", "jobcache_caches", "Caches that the last sweep found, by state.", caches
    if facts.sizes is not None:
        sizes = [(state, facts.sizes.get(state, (0, 0))) for state in states]
        allocated = [_sample(size, labels, state=state) for state, (size, _) in sizes]
        yield "gauge", "jobcache_bytes", "Bytes allocated to these caches, by state.", allocated
        files = [_sample(count, labels, state=state) for state, (_, count) in sizes]
        yield "gauge", "jobcache_files", "Files in these caches, by state.", files


def _reaped_by_sweep(facts: SweepFacts, before: Samples, labels: Mapping[str, str]) -> Iterator[Family]:
    reasons = [*_REAPED, *sorted(set(facts.reaped) - set(_REAPED))]
    for at, (name, about) in enumerate(
        (
            ("jobcache_orphans_reaped", "Directories that sweeps have reaped, by reason."),
            ("jobcache_orphans_reaped_bytes", "Bytes that sweeps have freed, by reason."),
            ("jobcache_orphans_reaped_files", "Files that sweeps have deleted, by reason."),
        )
    ):
        samples = [_counted(name, facts.reaped.get(one, (0, 0, 0))[at], before, labels, reason=one) for one in reasons]
        yield "counter", name, about, samples


def _last_sweep(facts: SweepFacts, before: Samples, labels: Mapping[str, str]) -> Iterator[Family]:
    outcomes = [
        _counted("jobcache_sweeps", outcome == facts.outcome, before, labels, outcome=outcome)
        for outcome in ("finished", "unknown")
    ]
    success = facts.now if facts.outcome == "finished" else before.get((_SUCCESS, key(labels)), 0.0)
    yield "counter", "jobcache_sweeps", "Sweeps, by outcome. unknown: Slurm did not report which jobs are alive.", outcomes
    for name, about, value in (
        ("jobcache_sweep_duration_seconds", "Duration of the last sweep.", round(facts.seconds, 3)),
        ("jobcache_sweep_troubles", "Directories that the last sweep could not read or reap.", facts.troubles),
        ("jobcache_sweep_last_timestamp_seconds", "Time at which the last sweep ended.", facts.now),
        (_SUCCESS, "Time at which the last sweep ended that knew which jobs are alive. 0: none yet.", success),
    ):
        yield "gauge", name, about, [_sample(value, labels)]


def _filesystems(facts: SweepFacts, labels: Mapping[str, str]) -> Iterator[Family]:
    for at, (name, about) in enumerate(
        (
            ("jobcache_filesystem_size_bytes", "Size of the filesystem of the caches."),
            ("jobcache_filesystem_free_bytes", "Free bytes of the filesystem, for users."),
            ("jobcache_filesystem_inodes", "Inodes of the filesystem. 0: it creates inodes on demand."),
            ("jobcache_filesystem_free_inodes", "Free inodes of the filesystem."),
        )
    ):
        yield "gauge", name, about, [_sample(values[at], labels, path=path) for path, values in sorted(facts.filesystems.items())]


def _users(facts: SweepFacts, labels: Mapping[str, str]) -> Iterator[Family]:
    if facts.users is None:
        return
    users = sorted(facts.users.items())
    caches = [_sample(count, labels, user=user) for user, (count, _) in users]
    yield "gauge", "jobcache_user_caches", "Caches of each user.", caches
    if facts.sizes is not None:
        sizes = [_sample(size, labels, user=user) for user, (_, size) in users]
        yield "gauge", "jobcache_user_bytes", "Bytes allocated to the caches of each user.", sizes


def of_host(events: Iterable[event_log.Event], before: Samples) -> Iterator[Family]:
    """Yield the metrics of this host's events. before: the previous metrics, which count the events up to READ."""
    read = before.get((READ, ()), 0.0)
    latest = read
    counts: dict[str, dict[str, float]] = {"failed": {}, "reaped": {}, "bytes": {}, "files": {}}
    for event in events:
        at = event_log.epoch_or_none(event["ts"])
        if at is None or at <= read or at > time.time() + _CLOCK_SKEW:  # an event from the future would hide all before it
            continue
        latest = max(latest, at)
        if event["event"] == "hook.failed":
            _count(counts["failed"], event.get("reason", "internal"), 1)
        elif event["event"] == "cache.reaped":
            _count(counts["reaped"], event.get("outcome", "reaped"), 1)
            _count(counts["bytes"], "", event.get("bytes", 0))
            _count(counts["files"], "", event.get("files", 0))

    def counted(name: str, label: str, known: Iterable[str], added: Mapping[str, float]) -> Values:
        earlier = {value for metric, labels in before if metric == name for key_, value in labels if key_ == label}
        return [
            ({label: value}, before.get((name, ((label, value),)), 0.0) + added.get(value, 0))
            for value in sorted({*known, *earlier, *added})
        ]

    yield (
        "counter",
        "jobcache_hook_failures",
        "Failures of hooks on this host, by reason.",
        counted("jobcache_hook_failures_total", "reason", _FAILURES, counts["failed"]),
    )
    yield (
        "counter",
        "jobcache_epilog_reaped",
        "Caches that Epilogs of this host have reaped, by outcome. trashed: deleted in part.",
        counted("jobcache_epilog_reaped_total", "outcome", ("reaped", "trashed"), counts["reaped"]),
    )
    for unit in ("bytes", "files"):
        name = f"jobcache_epilog_reaped_{unit}"
        total = before.get((f"{name}_total", ()), 0.0) + counts[unit].get("", 0)
        yield "counter", name, f"{unit.capitalize()} that Epilogs of this host have deleted.", [({}, total)]
    yield "gauge", READ, "Time of the last event in the log that is counted here.", [({}, latest)]


def _count(counts: dict[str, float], name: str, add: float) -> None:
    counts[name] = counts.get(name, 0) + add
