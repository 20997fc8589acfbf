"""What a report makes of events: each cache once, and no number that the events do not bear out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import jobcache
from jobcache.cache import timestamps
from jobcache.cli import report as cli_report
from jobcache.cli.main import main
from jobcache.diagnostics import report

T = 1795305600.0  # 2026-11-22
GIB = 1 << 30


def ended(job: int, at: float, life: float | None = 100.0, **fields: Any) -> dict[str, Any]:
    """A cache that ended `at` seconds after T, having lived `life` seconds."""
    made = {} if life is None else {"created_at": timestamps.millisecond(T + at - life)[:19] + "Z"}
    known = {
        "ts": timestamps.millisecond(T + at),
        "event": "cache.reaped",
        "outcome": "reaped",
        "job_id": job,
        "run": 0,
        "uid": 5,
        "user": "alice",
    }
    return {**known, "bytes": 10, "files": 1, "source": "log", **made, **fields}


def told(*events: dict[str, Any], span: float = 86400.0) -> report.Report:
    collector = report.Collector(T, T + span, lambda uid: f"#{uid}")
    for event in events:
        collector.take(event)
    return collector.finish()


def test_nothing() -> None:
    """A span without events is a report all the same."""
    empty = told()
    assert (empty.total.caches, empty.total.life, empty.groups["user"], empty.advice) == (0, None, [], [])
    assert len(empty.bins) > 0


def test_by_user_account_and_partition() -> None:
    """Each group sums up to all; who is not known is named so."""
    got = told(
        ended(1, 1000, bytes=5, account="astro", partition="gpu"),
        ended(2, 2000, bytes=7, user="bob", uid=6, account="astro"),
        ended(3, 3000, bytes=1),
    )
    by = {group: {row.name: (row.caches, row.bytes) for row in rows} for group, rows in got.groups.items()}
    assert by["user"] == {"bob": (1, 7), "alice": (2, 6)}
    assert by["account"] == {"astro": (2, 12), report.UNKNOWN: (1, 1)}
    assert by["partition"] == {"gpu": (1, 5), report.UNKNOWN: (2, 8)}
    assert [row.name for row in got.groups["user"]] == ["bob", "alice"]  # the largest first
    assert (got.total.caches, got.total.bytes, got.total.files, got.total.largest) == (3, 13, 3, 7)


def test_a_cache_that_ends_in_two_steps_is_one() -> None:
    """What an Epilog had no time for, and a sweep deleted; its user is known from the one, though not from the other."""
    rest = ended(1, 5000, None, event="cache.orphan_reaped", reason="trash", bytes=30, user="", run=None)
    rest = {key: value for key, value in rest.items() if value not in ("", None)}
    (row,) = told(ended(1, 1000, outcome="trashed", reason="budget"), rest).groups["user"]
    assert (row.name, row.caches, row.bytes, row.orphans) == ("alice", 1, 40, 0)


def test_orphans_and_their_owners() -> None:
    """A sweep's event has a uid alone: the name is another event's, else the system's."""
    orphan = {key: value for key, value in ended(2, 2000, event="cache.orphan_reaped", reason="orphan").items() if key != "user"}
    got = told(ended(1, 1000), orphan, {**orphan, "job_id": 3, "uid": 77})
    assert {row.name: row.orphans for row in got.groups["user"]} == {"alice": 1, "#77": 1}
    assert got.orphans == {"orphan": 2}


def test_the_same_event_twice_counts_once() -> None:
    """The log and an export of the system log have the same events."""
    assert told(ended(1, 1000), ended(1, 1000, source="syslog"), ended(1, 1000)).total.bytes == 10


def test_what_users_can_have_written_does_not_count() -> None:
    """Where root's own log is read. A requeued job's runs are caches of their own."""
    got = told(ended(1, 1000), ended(9, 1500, bytes=10**15, source="syslog"), ended(1, 2000, run=1))
    assert (got.total.caches, got.total.bytes) == (2, 20)
    assert told(ended(9, 1500, source="syslog")).total.caches == 1  # there is nothing else to go by
    forged = [ended(1, 1000, bytes=10**15, source="syslog"), ended(9, 1500, source="syslog", event="hook.failed")]
    late = told(*forged, ended(1, 1000))  # whichever file is read first
    assert (late.total.caches, late.total.bytes, late.events, late.failures) == (1, 10, 1, {})


@pytest.mark.parametrize(
    "lives, peak",
    [
        ([(1000, 100), (2000, 100)], 10),
        ([(1000, 100), (1050, 100)], 20),
        ([(1000, 100), (1100, 100)], 20),  # one begins in the second in which the other ends: an upper bound
        ([(1000, None), (1000, None)], 20),
        ([(3000, 2900), (2000, 100), (1000, 100)], 20),
    ],
)
def test_the_peak(lives: list[tuple[float, float | None]], peak: int) -> None:
    got = told(*(ended(job + 1, at, life) for job, (at, life) in enumerate(lives)))
    assert got.total.peak == peak == max(one.bytes for one in got.bins)


def test_bins() -> None:
    """What there was at once, and what ended, in each stretch of time; they cover the span."""
    got = told(ended(1, 7000, 6000), ended(2, 7100, 500, event="cache.orphan_reaped", reason="orphan"), span=36000)
    assert got.step == 900 and len(got.bins) == 40
    assert [(one.caches, one.bytes) for one in got.bins[:9]] == [(0, 0), (1, 10), *[(1, 10)] * 5, (2, 20), (0, 0)]
    assert (got.bins[7].reaped, got.bins[7].orphans, got.bins[7].freed) == (2, 1, 20)
    assert sum(one.reaped for one in got.bins) == 2


@pytest.mark.parametrize("span", [1.0, 60.0, 3600.0, 7 * 86400.0, 400 * 86400.0, 9000 * 86400.0])
def test_any_span_has_bins_enough_and_not_too_many(span: float) -> None:
    assert 1 <= len(told(span=span).bins) <= 97


def test_lives() -> None:
    got = told(ended(1, 1000, 30), ended(2, 2000, 700), ended(3, 3000, None))
    assert [count for _, count in got.lives] == [1, 0, 1, 0, 0, 0, 0]
    assert got.total.life == 365


def test_seeds_are_what_a_store_saved() -> None:
    got = told(ended(1, 1000), {**ended(1, 900), "event": "store.seeded", "bytes": 500, "source": "syslog"})
    assert (got.total.seeded, got.total.saved, got.total.bytes) == (1, 500, 10)


def test_counts_by_reason() -> None:
    known = {"ts": timestamps.millisecond(T + 5), "source": "log"}
    got = told(
        {**known, "event": "cache.skipped", "reason": "offline"}, {**known, "event": "cache.kept", "reason": "user_keep"},
        {**known, "event": "hook.failed", "reason": "stuck"}, {**known, "event": "sweep.finished", "outcome": "unknown"},
        {**known, "event": "of.another.version"},
    )  # fmt: skip
    assert (got.skipped, got.kept, got.failures) == ({"offline": 1}, {"user_keep": 1}, {"stuck": 1})
    assert got.sweeps == {"unknown": 1}


def caches(count: int, **fields: Any) -> list[report.Cache]:
    return [report.Cache(T + 9000 * at, "alice", made=T + 9000 * at - fields.pop("life", 7200), **fields) for at in range(count)]


ADVICE: dict[str, tuple[list[report.Cache], list[str]]] = {
    "nothing": ([], []),
    "few": (caches(4, bytes=2 * GIB), []),
    "small": (caches(50, bytes=GIB // 2), []),
    "the same again": (caches(5, bytes=2 * GIB), ["store"]),
    "seeded already": (caches(5, bytes=2 * GIB, seeded=5), []),
    "all different": ([one for at in range(9) for one in caches(1, bytes=(at + 1) * 2 * GIB)], []),
    "short jobs": ([one for at in range(9) for one in caches(1, bytes=(at + 1) * 2 * GIB, life=60)], ["parquet"]),
    "many files": (caches(5, bytes=5, files=20_000), ["files"]),
    "orphans": (caches(5, bytes=5, orphan=True), ["orphans"]),
    "a few orphans": (caches(5, bytes=5, orphan=True) + caches(50, bytes=5), []),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice(case: str) -> None:
    """For those whom it fits, with the numbers it rests on."""
    given, expected = ADVICE[case]
    found = list(report.advice("alice", given))
    assert [one.what for one in found] == expected
    assert all(any(ch.isdigit() for ch in one.why) for one in found)


def test_the_numbers_of_advice() -> None:
    (one,) = report.advice("alice", caches(5, bytes=2_000_000_000))
    assert one.why == "5 of 5 caches hold 2.0 GB within 5%; 8.0 GB were written again"


@pytest.mark.parametrize(
    "text, expected",
    [("7d", T - 7 * 86400), ("2026-11-20", T - 2 * 86400), ("2026-11-21T12:00", T - 43200), ("2026-11-21T23:59:59Z", T - 1)],
)
def test_moments(text: str, expected: float) -> None:
    assert cli_report.moment(text, T, "--since") == expected


def test_the_command(tmp_path: Path) -> None:
    """Tables for people, JSON for programs, from any files; wrong use is said."""
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(ended(job + 1, job * 100, bytes=2 * GIB)) + "\n" for job in range(6)))
    span = ["--since", "2026-11-21", "--until", "2026-11-23"]
    result = CliRunner().invoke(main, ["report", str(log), "--json", *span], catch_exceptions=False)
    assert json.loads(result.stdout)["total"]["caches"] == 6
    with log.open("a") as file:
        file.write('{"ts": "torn", "event"')
    result = CliRunner().invoke(main, ["report", str(log), *span], catch_exceptions=False)
    assert result.exit_code == 0
    for words in ("alice", "12.9 GB", "Build a store", "1 lines were cut short"):
        assert words in result.output
    for wrong in (["--since", "yesterday"], ["--since", "1d", "--until", "2d"], ["--by", "moon"]):
        assert CliRunner().invoke(main, ["report", str(log), *wrong]).exit_code == 2


@pytest.mark.parametrize("made", ["2026-13-45T00:00:00Z", "²026-11-22T07:01:00Z", ""])
def test_a_cache_that_was_made_at_no_moment_counts(made: str) -> None:
    """When it was made is the user's to forge, and hides nothing of what was used."""
    total = told(ended(1, 60, bytes=7), {**ended(2, 60, bytes=5), "created_at": made}).total
    assert (total.caches, total.bytes, total.life) == (2, 12, 100.0)


def test_a_log_that_was_quiet() -> None:
    """The site's own log is there, and tells of nothing: then nothing happened, whatever a system log says."""
    collector = report.Collector(T, T + 86400.0, own_log=True)
    collector.take(ended(9, 1500, source="syslog"))
    assert collector.finish().total.caches == 0


def test_two_clusters_in_one_file() -> None:
    """Each has a job of that id, which is another one; and a cache of no job is its own."""
    got = told(ended(1, 100, cluster="a"), ended(1, 100, cluster="b", bytes=20))
    assert (got.total.caches, got.total.bytes) == (2, 30)
    runs = [{**ended(1, 100), "path": f"/s/alice/hf-datasets-run-{at}"} for at in range(3)]
    for event in runs:
        del event["job_id"], event["run"]
    assert told(*runs).total.caches == 3


def test_a_narrow_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines may be broken; no number and no name is cut short."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    cli_report._print(told(ended(1, 100, bytes=123_456_789_000)), "user", 20)
    said = capsys.readouterr().out
    assert "…" not in said and "alice" in said and "123.5 GB" in said


def test_a_directory_with_a_pipe(tmp_path: Path) -> None:
    """Nobody writes to it, and nobody waits."""
    (tmp_path / "events.jsonl").write_text(json.dumps(ended(1, 100)) + "\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "old").mkdir()
    argv = [sys.executable, "-c", "from jobcache.cli.main import main; main()", "report", str(tmp_path), "--since", "2026-11-21"]
    env = {**os.environ, "PYTHONPATH": str(Path(jobcache.__file__).parents[1])}
    done = subprocess.run([*argv, "--json"], env=env, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["events"] == 1 and done.stderr == b""
