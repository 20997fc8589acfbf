"""The metrics: pure functions of a sweep, of events, and of the previous metrics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import timestamps
from jobcache.diagnostics import metrics, metrics_textfile
from jobcache.diagnostics.metric_families import Samples, SweepFacts, key, of_host, of_sweep
from jobcache.sweep.scanning import Options
from jobcache.system import event_log

LABELS = {"scratch": "shared", "shard": "1/1"}
SWEEP = SweepFacts(
    1000.0, "finished", 0, 1.5, states={"live": 3, "orphan": 1}, reaped={"orphan": (2, 8192, 5)},
    filesystems={"/scratch": (100, 50, 10, 5)},
)  # fmt: skip


def written(path: Path, families: Any) -> Samples:
    """Write a textfile; return the metrics that a reader gets from it."""
    metrics_textfile.write(str(path), families)
    return metrics_textfile.read(str(path))


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, key(labels)]


def test_first_sweep_writes_all_gauges_and_counters(tmp_path: Path) -> None:
    """Counters exist from the start with 0, so that Prometheus sees their first increase."""
    got = written(tmp_path / "a.prom", of_sweep(SWEEP, {}, LABELS))
    assert value(got, "jobcache_caches", state="live", **LABELS) == 3
    assert value(got, "jobcache_caches", state="trash", **LABELS) == 0
    assert value(got, "jobcache_orphans_reaped_total", reason="orphan", **LABELS) == 2
    assert value(got, "jobcache_orphans_reaped_total", reason="trash", **LABELS) == 0
    assert value(got, "jobcache_sweeps_total", outcome="unknown", **LABELS) == 0
    assert value(got, "jobcache_sweep_last_success_timestamp_seconds", **LABELS) == 1000
    assert value(got, "jobcache_filesystem_free_bytes", path="/scratch", **LABELS) == 50
    assert not any(name.startswith(("jobcache_user", "jobcache_bytes")) for name, _ in got)
    assert (tmp_path / "a.prom").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["a.prom"]


def test_counters_continue_from_the_textfile(tmp_path: Path) -> None:
    """The time of the last success stays if a sweep has none."""
    path = tmp_path / "a.prom"
    got = written(path, of_sweep(SWEEP, {}, LABELS))
    later = SweepFacts(2000.0, "unknown", 1, 0.1, reaped={"orphan": (1, 1, 1), "whim": (1, 0, 0)})
    got = written(path, of_sweep(later, got, LABELS))
    assert value(got, "jobcache_orphans_reaped_total", reason="orphan", **LABELS) == 3
    assert value(got, "jobcache_orphans_reaped_bytes_total", reason="orphan", **LABELS) == 8193
    assert value(got, "jobcache_orphans_reaped_total", reason="whim", **LABELS) == 1
    assert value(got, "jobcache_sweeps_total", outcome="finished", **LABELS) == 1
    assert value(got, "jobcache_sweeps_total", outcome="unknown", **LABELS) == 1
    assert value(got, "jobcache_sweep_last_success_timestamp_seconds", **LABELS) == 1000
    assert value(got, "jobcache_sweep_last_timestamp_seconds", **LABELS) == 2000


def test_user_names_appear_if_the_site_asks(tmp_path: Path) -> None:
    facts = SweepFacts(1.0, "finished", 0, 1.0, states={"live": 1}, sizes={"live": (7, 2)}, users={"alice": (1, 7)})
    got = written(tmp_path / "a.prom", of_sweep(facts, {}, LABELS))
    assert value(got, "jobcache_bytes", state="live", **LABELS) == 7
    assert value(got, "jobcache_user_bytes", user="alice", **LABELS) == 7


@pytest.mark.parametrize("text", ["", "rubbish {", "\x00\xff", 'jobcache_orphans_reaped_total{reason="orphan"} NaN\n', "a" * 100])
def test_damaged_textfile_resets_the_counters(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.prom").write_text(text)
    got = written(tmp_path / "a.prom", of_sweep(SWEEP, metrics_textfile.read(str(tmp_path / "a.prom")), LABELS))
    assert value(got, "jobcache_orphans_reaped_total", reason="orphan", **LABELS) == 2


def failed(at: float, reason: str) -> event_log.Event:
    return {"ts": timestamps.millisecond(at), "event": "hook.failed", "reason": reason}


def test_event_is_counted_once(tmp_path: Path) -> None:
    """The log is read repeatedly. An event from the future does not hide those before it."""
    path, now = tmp_path / "h.prom", time.time()
    reaped = {"ts": timestamps.millisecond(now - 50), "event": "cache.reaped", "outcome": "reaped", "bytes": 5, "files": 2}
    events = [failed(now - 100, "deadline"), reaped, failed(now + 9999, "stuck")]
    got = written(path, of_host(events, {}))
    got = written(path, of_host(events, got))
    assert value(got, "jobcache_hook_failures_total", reason="deadline") == 1
    assert value(got, "jobcache_hook_failures_total", reason="stuck") == 0
    assert value(got, "jobcache_epilog_reaped_bytes_total") == 5
    got = written(path, of_host([*events, failed(now - 10, "deadline"), failed(now - 9, "new_one")], got))
    assert value(got, "jobcache_hook_failures_total", reason="deadline") == 2
    assert value(got, "jobcache_hook_failures_total", reason="new_one") == 1
    assert value(written(path, of_host([], got)), "jobcache_hook_failures_total", reason="new_one") == 1


KINDS = [
    (Options(), "jobcache.prom"),
    (Options(local=True), "jobcache-local.prom"),
    (Options(shard=(2, 4)), "jobcache-2-of-4.prom"),
]


@pytest.mark.parametrize("options, name", KINDS)
def test_each_kind_of_sweep_has_its_own_textfile(options: Options, name: str) -> None:
    assert metrics.name_for("/t/jobcache.prom", options) == f"/t/{name}"


def test_counters_continue_in_a_very_long_textfile(tmp_path: Path) -> None:
    """It has more users than a reader reads. The counters are at its beginning."""
    users = {f"u{at:063}": (1, 7) for at in range(40_000)}
    facts = SweepFacts(1.0, "finished", 0, 1.0, sizes={}, reaped={"orphan": (2, 1, 1)}, users=users)
    path = tmp_path / "a.prom"
    got = written(path, of_sweep(facts, {}, LABELS))
    assert path.stat().st_size > metrics_textfile._LONGEST
    assert value(got, "jobcache_orphans_reaped_total", reason="orphan", **LABELS) == 2
    assert value(got, "jobcache_sweep_last_success_timestamp_seconds", **LABELS) == 1
