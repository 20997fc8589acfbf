"""What Prometheus is told, through node_exporter's textfile collector: of each sweep, and of this host's events.

A textfile is all the state there is: a counter goes on from what the last one said. Without a user's name, unless the
site asks for it.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from jobcache.cache import timestamps
from jobcache.cache.path_template import Template
from jobcache.config.settings import Settings
from jobcache.sweep import listing, one_sweep, scanning
from jobcache.sweep.host import Host
from jobcache.system import as_user, event_log, files

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]  # by name and labels
Family = tuple[str, str, str, "list[tuple[dict[str, str], float]]"]  # kind, name without _total, help, (labels, value) …

_PATIENCE = 10.0  # seconds that a filesystem has to say its size
_LONGEST = 4 << 20  # bytes of an old textfile
_STATES = ("live", "orphan", "kept", "trash", "half-made", "unrecorded", "unknown")
_REAPED = ("orphan", "half_made", "trash", "unrecorded")
_FAILURES = ("stuck", "deadline", "child_died", "internal", "no_job", "no_python", "python", "settings")
_READ = "jobcache_log_read_timestamp_seconds"
_SUCCESS = "jobcache_sweep_last_success_timestamp_seconds"


@dataclass
class Facts:
    """Of one sweep. now: seconds since the epoch. states: caches by state. sizes: (bytes, files) by state, where measured.

    reaped: (directories, bytes, files) by reason. filesystems: (size, free, inodes, free inodes) by path. users: (caches,
    bytes) by name, where the site asks.
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


def record(site: Settings, options: scanning.Options, result: one_sweep.Result, seconds: float, host: Host) -> None:
    """Write the metrics of a sweep that took `seconds`, where the site wants them. What is in the way is said on stderr."""
    textfile = site.tree["metrics"]["textfile"]
    if textfile is None or options.user is not None:
        return
    try:
        labels = {"scratch": "local" if options.local else "shared", "shard": f"{options.shard[0]}/{options.shard[1]}"}
        path = name_for(textfile, options)
        write(path, of_sweep(_facts(site, options, result, seconds, host), previous(path), labels))
        if site.log_file is not None:
            path = _beside(textfile, "host")
            before = previous(path)
            since = timestamps.millisecond(before.get((_READ, ()), 0.0))
            logs = event_log.rotations(site.log_file)
            write(path, of_host(event_log.read(logs, event_log.Tally(), since=since), before))
    except OSError as error:
        print(f"{textfile}: no metrics: {error.strerror or error}; `install -d` its directory", file=sys.stderr)


def name_for(textfile: str, options: scanning.Options) -> str:
    """Return the file of such a sweep: those of different kinds do not overwrite each other."""
    words = ["local"] if options.local else []
    words += ["{}-of-{}".format(*options.shard)] if options.shard != (1, 1) else []
    return _beside(textfile, *words)


def _beside(textfile: str, *words: str) -> str:
    stem = textfile[: -len(".prom")] if textfile.endswith(".prom") else textfile
    return "-".join([stem, *words]) + ".prom"


# ------------------------------------------------------------------------------------------------------ pure functions


def of_sweep(facts: Facts, before: Samples, labels: Mapping[str, str]) -> Iterator[Family]:
    """Yield the metrics of a sweep; counters and the moment of the last success go on from `before`."""

    def on(name: str, more: Mapping[str, str], add: float) -> tuple[dict[str, str], float]:
        whole = {**labels, **more}
        return whole, before.get((name, key(whole)), 0.0) + add

    def one(value: float, **more: str) -> tuple[dict[str, str], float]:
        return {**labels, **more}, value

    states = [*_STATES, *sorted(set(facts.states) - set(_STATES))]
    yield (
        "gauge",
        "jobcache_caches",
        "Caches that the last sweep found, by state.",
        [one(facts.states.get(state, 0), state=state) for state in states],
    )
    if facts.sizes is not None:
        sizes = facts.sizes
        yield (
            "gauge",
            "jobcache_bytes",
            "Bytes allocated to these caches, by state.",
            [one(sizes.get(state, (0, 0))[0], state=state) for state in states],
        )
        yield (
            "gauge",
            "jobcache_files",
            "Files in these caches, by state.",
            [one(sizes.get(state, (0, 0))[1], state=state) for state in states],
        )
    reasons = [*_REAPED, *sorted(set(facts.reaped) - set(_REAPED))]
    for at, (name, about) in enumerate(
        (
            ("jobcache_orphans_reaped", "Directories that sweeps have reaped, by reason."),
            ("jobcache_orphans_reaped_bytes", "Bytes that sweeps have freed, by reason."),
            ("jobcache_orphans_reaped_files", "Files that sweeps have deleted, by reason."),
        )
    ):
        yield (
            "counter",
            name,
            about,
            [on(f"{name}_total", {"reason": reason}, facts.reaped.get(reason, (0, 0, 0))[at]) for reason in reasons],
        )
    yield (
        "counter",
        "jobcache_sweeps",
        "Sweeps, by outcome; unknown: which jobs are alive was not known.",
        [on("jobcache_sweeps_total", {"outcome": outcome}, outcome == facts.outcome) for outcome in ("finished", "unknown")],
    )
    yield "gauge", "jobcache_sweep_duration_seconds", "How long the last sweep took.", [one(round(facts.seconds, 3))]
    yield "gauge", "jobcache_sweep_troubles", "What the last sweep could not look at or reap.", [one(facts.troubles)]
    yield "gauge", "jobcache_sweep_last_timestamp_seconds", "When the last sweep ended.", [one(facts.now)]
    success = facts.now if facts.outcome == "finished" else before.get((_SUCCESS, key(labels)), 0.0)
    yield "gauge", _SUCCESS, "When a sweep last ended that knew which jobs are alive; 0: none yet.", [one(success)]
    for at, (name, about) in enumerate(
        (
            ("jobcache_filesystem_size_bytes", "Size of the filesystem on which caches are."),
            ("jobcache_filesystem_free_bytes", "Free on it for users."),
            ("jobcache_filesystem_inodes", "Inodes of it; 0: it makes them as it goes."),
            ("jobcache_filesystem_free_inodes", "Free inodes of it."),
        )
    ):
        yield "gauge", name, about, [one(values[at], path=path) for path, values in sorted(facts.filesystems.items())]
    if facts.users is not None:
        users = sorted(facts.users.items())
        yield "gauge", "jobcache_user_caches", "Caches of each user.", [one(count, user=user) for user, (count, _) in users]
        if facts.sizes is not None:
            yield (
                "gauge",
                "jobcache_user_bytes",
                "Bytes allocated to the caches of each user.",
                [one(size, user=user) for user, (_, size) in users],
            )


def of_host(events: Iterable[event_log.Event], before: Samples) -> Iterator[Family]:
    """Yield what this host's events come to, those counted `before` included; of the others each is counted once."""
    read = before.get((_READ, ()), 0.0)
    latest = read
    counts: dict[str, dict[str, float]] = {"failed": {}, "reaped": {}, "bytes": {}, "files": {}}
    for event in events:
        at = event_log.epoch_or_none(event["ts"])
        if at is None or at <= read or at > time.time() + 60:  # one from the future would hide all that come before it
            continue
        latest = max(latest, at)
        if event["event"] == "hook.failed":
            _count(counts["failed"], event.get("reason", "internal"), 1)
        elif event["event"] == "cache.reaped":
            outcome = event.get("outcome", "reaped")
            _count(counts["reaped"], outcome, 1)
            _count(counts["bytes"], "", event.get("bytes", 0))
            _count(counts["files"], "", event.get("files", 0))

    def on(name: str, label: str, known: Iterable[str], added: Mapping[str, float]) -> "list[tuple[dict[str, str], float]]":
        values = {value for metric, labels in before if metric == name for key_, value in labels if key_ == label}
        every = sorted({*known, *values, *added})
        return [({label: one}, before.get((name, ((label, one),)), 0.0) + added.get(one, 0)) for one in every]

    yield (
        "counter",
        "jobcache_hook_failures",
        "Hooks that could not do their work on this host, by reason.",
        on("jobcache_hook_failures_total", "reason", _FAILURES, counts["failed"]),
    )
    yield (
        "counter",
        "jobcache_epilog_reaped",
        "Caches that Epilogs of this host have reaped; trashed: not all of it.",
        on("jobcache_epilog_reaped_total", "outcome", ("reaped", "trashed"), counts["reaped"]),
    )
    for what in ("bytes", "files"):
        name = f"jobcache_epilog_reaped_{what}"
        total = before.get((f"{name}_total", ()), 0.0) + counts[what].get("", 0)
        yield "counter", name, f"{what.capitalize()} that Epilogs of this host have deleted.", [({}, total)]
    yield "gauge", _READ, "The last event of this host's log that is counted here.", [({}, latest)]


def _count(counts: dict[str, float], name: str, add: float) -> None:
    counts[name] = counts.get(name, 0) + add


def key(labels: Mapping[str, str]) -> Labels:
    """Return labels as `Samples` have them."""
    return tuple(sorted(labels.items()))


# --------------------------------------------------------------------------------------------------------------- files


def previous(path: str) -> Samples:
    """Return what a textfile says; nothing where there is none, or it is none: then counters begin anew."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LONGEST)
            # With a name for each user it can be longer: what goes on stands before these.
            families = list(text_string_to_metric_families(text[: text.rfind("\n") + 1]))
    except (OSError, ValueError):
        return {}
    return {(one.name, key(one.labels)): one.value for family in families for one in family.samples if one.value >= 0}


def write(path: str, families: Iterable[Family]) -> None:
    """Put the metrics into a textfile, whole, and such that node_exporter, which is not root, can read it. Raise OSError."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kinds: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

    class Collector:
        def collect(self) -> Iterator[Any]:
            for kind, name, about, samples in families:
                if samples:
                    family = kinds[kind](name, about, labels=list(samples[0][0]))
                    for labels, value in samples:
                        family.add_metric(list(labels.values()), value)
                    yield family

    registry = CollectorRegistry(auto_describe=False)
    families = list(families)
    registry.register(Collector())  # type: ignore[arg-type, unused-ignore]
    text = generate_latest(registry)
    files.replace_file(path, text, 0o644)


# --------------------------------------------------------------------------------------------------------------- facts


def _facts(site: Settings, options: scanning.Options, result: one_sweep.Result, seconds: float, host: Host) -> Facts:
    facts = Facts(time.time(), "unknown" if result.unknown else "finished", len(result.trouble), seconds)
    gone = {one.decision.directory.path for one in result.reaped if one.done}
    left = [decision for decision in result.decisions if decision.directory.path not in gone]
    sizes: dict[str, tuple[int, int]] = {}
    if site.tree["metrics"].get("sizes"):
        rows = listing.list_caches(site, options, host=host).rows
        left = [decision for decision, _ in rows]
        sizes = {decision.directory.path: size for decision, size in rows if size}
        facts.sizes = {}
        for decision, held in rows:
            before = facts.sizes.get(listing.state_of(decision), (0, 0))
            facts.sizes[listing.state_of(decision)] = before if held is None else (before[0] + held[0], before[1] + held[1])
    for decision in left:
        state = listing.state_of(decision)
        facts.states[state] = facts.states.get(state, 0) + 1
    for reaped in result.reaped:
        count, size, files = facts.reaped.get(reaped.decision.reason, (0, 0, 0))
        facts.reaped[reaped.decision.reason] = count + reaped.done, size + reaped.bytes, files + reaped.files
    if site.tree["metrics"].get("by_user"):
        facts.users = {}
        for decision in left:
            name = as_user.user_name(decision.directory.uid)
            caches, total = facts.users.get(name, (0, 0))
            facts.users[name] = caches + 1, total + sizes.get(decision.directory.path, (0, 0))[0]
    for template in site.templates:
        if site.is_node_local(template) == options.local:
            facts.filesystems.update(_filesystem(template))
    return facts


def _filesystem(template: Template) -> dict[str, tuple[int, int, int, int]]:
    """Ask in a child how large the filesystem is on which a template begins: it may hang."""
    path = template.text.partition("{")[0].rpartition("/")[0] or "/"

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        said = os.statvfs(path)
        size, free = said.f_blocks * said.f_frsize, said.f_bavail * said.f_frsize
        report({"room": (size, free, said.f_files, said.f_favail)})

    child = as_user.start(work, uid=None, gid=None, user=None, places=[])
    rooms = [fact["room"] for fact in child.facts(time.monotonic() + _PATIENCE)]
    return {path: rooms[0]} if rooms else {}
