"""`jobcache report`: each cache counts once, and events show every number."""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import jobcache
from jobcache.cache import timestamps
from jobcache.cli import report as cli_report
from jobcache.cli.main import main
from jobcache.diagnostics import report, report_table
from jobcache.diagnostics.rebuilding import rebuilt
from jobcache.diagnostics.report_advice import advice
from jobcache.diagnostics.report_model import Advice, Cache, Report
from jobcache.diagnostics.report_sums import UNKNOWN
from jobcache.system import event_log

T = 1795305600.0  # 2026-11-22
GIB = 1 << 30


def ended(job: int, at: float, life: float | None = 100.0, **fields: Any) -> dict[str, Any]:
    """Return the event of a cache that was reaped `at` seconds after T and had existed for `life` seconds."""
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


def collected(*events: dict[str, Any], span: float = 86400.0) -> Report:
    """Return the report of the events from T on."""
    collector = report.Collector(T, T + span, lambda uid: f"#{uid}")
    for event in events:
        collector.take(event)
    found = collector.finish()
    collector.close()
    return found


def test_period_without_events_has_a_report() -> None:
    empty = collected()
    assert (empty.total.caches, empty.total.life, empty.groups["user"], empty.advice) == (0, None, [], [])
    assert len(empty.bins) > 0


def test_groups_by_user_account_and_partition() -> None:
    """Each group sums up to the total. Caches without an account are under "(unknown)"."""
    got = collected(
        ended(1, 1000, bytes=5, account="astro", partition="gpu"),
        ended(2, 2000, bytes=7, user="bob", uid=6, account="astro"),
        ended(3, 3000, bytes=1),
    )
    by = {group: {row.name: (row.caches, row.bytes) for row in rows} for group, rows in got.groups.items()}
    assert by["user"] == {"bob": (1, 7), "alice": (2, 6)}
    assert by["account"] == {"astro": (2, 12), UNKNOWN: (1, 1)}
    assert by["partition"] == {"gpu": (1, 5), UNKNOWN: (2, 8)}
    assert [row.name for row in got.groups["user"]] == ["bob", "alice"]  # the largest first
    assert (got.total.caches, got.total.bytes, got.total.files, got.total.largest) == (3, 13, 3, 7)


def test_cache_reaped_by_epilog_and_sweep_counts_once() -> None:
    """The Epilog deleted a part and the sweep the rest. Only the event of the Epilog names the user."""
    rest = ended(1, 5000, None, event="cache.orphan_reaped", reason="trash", bytes=30, user="", run=None)
    rest = {key: value for key, value in rest.items() if value not in ("", None)}
    (row,) = collected(ended(1, 1000, outcome="trashed", reason="budget"), rest).groups["user"]
    assert (row.name, row.caches, row.bytes, row.orphans) == ("alice", 1, 40, 0)


def test_orphan_gets_its_user_name_from_another_event() -> None:
    """A sweep's event has a uid only. Without such an event, the name is the system's."""
    orphan = {key: value for key, value in ended(2, 2000, event="cache.orphan_reaped", reason="orphan").items() if key != "user"}
    got = collected(ended(1, 1000), orphan, {**orphan, "job_id": 3, "uid": 77})
    assert {row.name: row.orphans for row in got.groups["user"]} == {"alice": 1, "#77": 1}
    assert got.orphans == {"orphan": 2}


def test_copy_of_an_event_does_not_count() -> None:
    """The log and an export of the system log have the same events."""
    assert collected(ended(1, 1000), ended(1, 1000, source="syslog"), ended(1, 1000)).total.bytes == 10


def test_forged_events_do_not_count_beside_the_log() -> None:
    """Users can write to a system log. The runs of a requeued job are separate caches."""
    got = collected(ended(1, 1000), ended(9, 1500, bytes=10**15, source="syslog"), ended(1, 2000, run=1))
    assert (got.total.caches, got.total.bytes) == (2, 20)
    assert collected(ended(9, 1500, source="syslog")).total.caches == 1  # the only source
    forged = [ended(1, 1000, bytes=10**15, source="syslog"), ended(9, 1500, source="syslog", event="hook.failed")]
    late = collected(*forged, ended(1, 1000))  # in any order of the files
    assert (late.total.caches, late.total.bytes, late.events, late.failures) == (1, 10, 1, {})


@pytest.mark.parametrize(
    "lives, peak",
    [
        ([(1000, 100), (2000, 100)], 10),
        ([(1000, 100), (1050, 100)], 20),
        ([(1000, 100), (1100, 100)], 20),  # one begins when the other ends: an upper bound
        ([(1000, None), (1000, None)], 20),
        ([(3000, 2900), (2000, 100), (1000, 100)], 20),
    ],
)
def test_peak_is_the_most_at_once(lives: list[tuple[float, float | None]], peak: int) -> None:
    got = collected(*(ended(job + 1, at, life) for job, (at, life) in enumerate(lives)))
    assert got.total.peak == peak == max(one.bytes for one in got.bins)


def test_bins_cover_the_period() -> None:
    """Each bin has the most that existed at once, and the ends of caches."""
    got = collected(ended(1, 7000, 6000), ended(2, 7100, 500, event="cache.orphan_reaped", reason="orphan"), span=36000)
    assert got.step == 900 and len(got.bins) == 40
    assert [(one.caches, one.bytes) for one in got.bins[:9]] == [(0, 0), (1, 10), *[(1, 10)] * 5, (2, 20), (0, 0)]
    assert (got.bins[7].reaped, got.bins[7].orphans, got.bins[7].freed) == (2, 1, 20)
    assert sum(one.reaped for one in got.bins) == 2


@pytest.mark.parametrize("span", [1.0, 60.0, 3600.0, 7 * 86400.0, 400 * 86400.0, 9000 * 86400.0])
def test_any_period_has_a_readable_number_of_bins(span: float) -> None:
    assert 1 <= len(collected(span=span).bins) <= 97


def test_lives_are_counted_by_length() -> None:
    got = collected(ended(1, 1000, 30), ended(2, 2000, 700), ended(3, 3000, None))
    assert [count for _, count in got.lives] == [1, 0, 1, 0, 0, 0, 0]
    assert got.total.life == 365


def test_linked_bytes_count_as_saved() -> None:
    got = collected(ended(1, 1000), {**ended(1, 900), "event": "store.seeded", "bytes": 500, "source": "syslog"})
    assert (got.total.seeded, got.total.saved, got.total.bytes) == (1, 500, 10)


def test_inherited_builds_are_summed_and_users_named() -> None:
    """Datasets that were left out, and jobs without a cache, become advice for their user. Forged numbers do not count."""
    numbers = {"builds": 3, "files": 9, "bytes": 500, "duration_ms": 4, "found": 4, "source": "/home/alice/x"}
    known = {"ts": timestamps.millisecond(T + 5), "source": "syslog", "user": "alice"}
    made = {**ended(1, 900), "event": "cache.created", "source": "syslog", "user": "alice"}
    got = collected(
        ended(1, 1000), {**made, "inherited": {**numbers, "left_out_datasets": 1}},
        {**known, "event": "cache.created", "job_id": 7, "inherited": {**numbers, "bytes": "x", "files": []}},
        {**known, "event": "cache.created", "job_id": 8, "inherited": "x"},
        {**known, "event": "cache.skipped", "job_id": 9, "reason": "inherit_budget", "user": "bob"},
        {**known, "event": "cache.skipped", "job_id": 10, "reason": "inherit_script", "user": "carol"},
    )  # fmt: skip
    assert got.inherited == {"caches": 2, "builds": 6, "files": 9, "bytes": 500, "left out datasets": 1}
    assert (got.total.seeded, got.total.saved) == (1, 500)
    assert [(one.user, one.what, one.why) for one in got.advice] == [
        ("bob", "inherit", "1 jobs"), ("carol", "inherit", "1 jobs"), ("alice", "inherit", "1 jobs"),
    ]  # fmt: skip


def test_events_are_counted_by_reason() -> None:
    known = {"ts": timestamps.millisecond(T + 5), "source": "log"}
    got = collected(
        {**known, "event": "cache.skipped", "reason": "offline"}, {**known, "event": "cache.kept", "reason": "user_keep"},
        {**known, "event": "hook.failed", "reason": "stuck"}, {**known, "event": "sweep.finished", "outcome": "unknown"},
        {**known, "event": "of.another.version"},
    )  # fmt: skip
    assert (got.skipped, got.kept, got.failures) == ({"offline": 1}, {"user_keep": 1}, {"stuck": 1})
    assert got.sweeps == {"unknown": 1}


def caches(count: int, **fields: Any) -> list[Cache]:
    return [Cache(T + 9000 * at, T + 9000 * at - fields.pop("life", 7200), **fields) for at in range(count)]


def advised(given: list[Cache]) -> list[Advice]:
    return list(advice("alice", given, rebuilt("alice", [cache.bytes for cache in given])))


ADVICE: dict[str, tuple[list[Cache], list[str]]] = {
    "nothing": ([], []),
    "few": (caches(4, bytes=2 * GIB), []),
    "small": (caches(50, bytes=GIB // 2), []),
    "the same again": (caches(5, bytes=2 * GIB), ["store"]),
    "the same on top of links": (caches(5, bytes=2 * GIB, seeded=5), ["store"]),
    "little on top of links": (caches(5, bytes=GIB // 2, seeded=2 * GIB), []),
    "short jobs on top of links": (
        [one for at in range(9) for one in caches(1, bytes=(at + 1) * 2 * GIB, life=60, seeded=5)],
        [],
    ),
    "all different": ([one for at in range(9) for one in caches(1, bytes=(at + 1) * 2 * GIB)], []),
    "short jobs": ([one for at in range(9) for one in caches(1, bytes=(at + 1) * 2 * GIB, life=60)], ["parquet"]),
    "many files": (caches(5, bytes=5, files=20_000), ["files"]),
    "orphans": (caches(5, bytes=5, orphan=True), ["orphans"]),
    "a few orphans": (caches(5, bytes=5, orphan=True) + caches(50, bytes=5), []),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_fits_the_caches(case: str) -> None:
    """Each piece of advice has the numbers behind it."""
    given, expected = ADVICE[case]
    found = advised(given)
    assert [one.what for one in found] == expected
    assert all(any(ch.isdigit() for ch in one.why) for one in found)


def test_advice_has_sizes_and_counts() -> None:
    (one,) = advised(caches(5, bytes=2_000_000_000))
    assert one.why == "5 of 5 caches have 2.0 GB within 5%; jobs wrote 8.0 GB again"


@pytest.mark.parametrize(
    "text, expected",
    [("7d", T - 7 * 86400), ("2026-11-20", T - 2 * 86400), ("2026-11-21T12:00", T - 43200), ("2026-11-21T23:59:59Z", T - 1)],
)
def test_times_are_durations_or_days(text: str, expected: float) -> None:
    assert cli_report.parse_time(text, T, "--since") == expected


def test_command_prints_tables_or_json(tmp_path: Path) -> None:
    """The events come from any files. Wrong usage exits 2."""
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(ended(job + 1, job * 100, bytes=2 * GIB)) + "\n" for job in range(6)))
    span = ["--since", "2026-11-21", "--until", "2026-11-23"]
    result = CliRunner().invoke(main, ["report", str(log), "--json", *span], catch_exceptions=False)
    assert json.loads(result.stdout)["total"]["caches"] == 6
    with log.open("a") as file:
        file.write('{"ts": "torn", "event"')
    result = CliRunner().invoke(main, ["report", str(log), *span], catch_exceptions=False)
    assert result.exit_code == 0
    for text in ("alice", "12.9 GB", "Build a store", "skipped damaged or forged lines: 1"):
        assert text in result.output
    for wrong in (["--since", "yesterday"], ["--since", "1d", "--until", "2d"], ["--by", "moon"]):
        assert CliRunner().invoke(main, ["report", str(log), *wrong]).exit_code == 2


@pytest.mark.parametrize("made", ["2026-13-45T00:00:00Z", "²026-11-22T07:01:00Z", ""])
def test_cache_with_a_forged_creation_time_counts(made: str) -> None:
    """A user can forge the time in the record, and hides no usage by that."""
    total = collected(ended(1, 60, bytes=7), {**ended(2, 60, bytes=5), "created_at": made}).total
    assert (total.caches, total.bytes, total.life) == (2, 12, 100.0)


def test_empty_log_counts_before_a_system_log() -> None:
    """If the site's log has no event, events of a system log do not count."""
    collector = report.Collector(T, T + 86400.0, own_log=True)
    collector.take(ended(9, 1500, source="syslog"))
    assert collector.finish().total.caches == 0


def test_clusters_in_one_file_are_kept_apart() -> None:
    """Each has a job with this id. Caches outside of jobs differ by their path."""
    got = collected(ended(1, 100, cluster="a"), ended(1, 100, cluster="b", bytes=20))
    assert (got.total.caches, got.total.bytes) == (2, 30)
    runs = [{**ended(1, 100), "path": f"/s/alice/hf-datasets-run-{at}"} for at in range(3)]
    for event in runs:
        del event["job_id"], event["run"]
    assert collected(*runs).total.caches == 3


def test_narrow_terminal_cuts_no_name_and_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are broken instead."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    cli_report._print(collected(ended(1, 100, bytes=123_456_789_000)), "user", 20)
    output = capsys.readouterr().out
    assert "…" not in output and "alice" in output and "123.5 GB" in output


def test_pipe_in_a_directory_is_not_read(tmp_path: Path) -> None:
    """No process writes to it, so reading it would never end."""
    (tmp_path / "events.jsonl").write_text(json.dumps(ended(1, 100)) + "\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "old").mkdir()
    argv = [sys.executable, "-c", "from jobcache.cli.main import main; main()", "report", str(tmp_path), "--since", "2026-11-21"]
    env = {**os.environ, "PYTHONPATH": str(Path(jobcache.__file__).parents[1])}
    done = subprocess.run([*argv, "--json"], env=env, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["events"] == 1 and done.stderr == b""


def generated(job: int, at: int, life: int | None, **fields: Any) -> dict[str, Any]:
    """Return an event of one of two users, without the fields that are None."""
    known = {key: value for key, value in fields.items() if value is not None}
    return {**ended(job, at, life), "user": f"user{job % 2}", **known}


EVENTS = st.builds(
    generated, st.integers(1, 6), st.integers(0, 86_000), st.one_of(st.none(), st.integers(0, 40_000)),
    bytes=st.integers(0, 3), files=st.integers(0, 9), partition=st.sampled_from(["gpu", None]), run=st.integers(0, 1),
    event=st.sampled_from(["cache.reaped", "cache.orphan_reaped", "cache.created", "cache.skipped"]),
    reason=st.sampled_from(["orphan", "rule", None]),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=12), st.randoms(use_true_random=False))
def test_report_depends_on_no_order_and_no_copies(events: list[dict[str, Any]], dice: random.Random) -> None:
    """The sums are those of a plain computation over all caches in memory."""
    events = list({(one["ts"], one["event"], one["job_id"], one["run"], one.get("reason")): one for one in events}.values())
    copies = [*events, *dice.sample(events, len(events) // 2), *({**one, "source": "syslog"} for one in events)]
    dice.shuffle(copies)
    got = collected(*events)
    assert asdict(collected(*copies)) == asdict(got)
    caches: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for one in events:
        if one["event"] in ("cache.reaped", "cache.orphan_reaped"):
            caches.setdefault((one["job_id"], one["run"]), []).append(one)
    spans = []
    for ends in caches.values():
        end = max(event_log.epoch(one["ts"]) for one in ends)
        made = [event_log.epoch(one["created_at"]) for one in ends if "created_at" in one]
        spans.append((max(made, default=None), end, sum(one["bytes"] for one in ends)))
    assert (got.total.caches, got.total.bytes) == (len(spans), sum(size for _, _, size in spans))
    assert got.total.life == (statistics.median(lives) if (lives := [end - made for made, end, _ in spans if made]) else None)
    begins = [made or end for made, end, _ in spans]
    at_once = [sum(size for made, end, size in spans if (made or end) <= at <= end) for at in begins]
    assert got.total.peak == max(at_once, default=0) == max(one.bytes for one in got.bins)
    assert sum(row.bytes for row in got.groups["user"]) == got.total.bytes
    assert sum(one.jobs for one in got.without) == sum(one["event"] == "cache.skipped" for one in events)


def test_jobs_without_a_cache_are_counted_by_user_and_reason() -> None:
    known = {"ts": timestamps.millisecond(T + 5), "source": "syslog", "event": "cache.skipped"}
    known = {**known, "reason": "rule", "outcome": "skipped"}
    got = collected(
        *({**known, "job_id": job, "uid": 5, "user": "alice"} for job in (1, 2)),
        {**known, "job_id": 3, "uid": 6, "reason": "foreign", "outcome": "refused"},
    )
    assert [(one.user, one.reason, one.outcome, one.jobs) for one in got.without] == [
        ("alice", "rule", "skipped", 2), ("6", "foreign", "refused", 1),
    ]  # fmt: skip


def test_new_caches_with_links_are_counted() -> None:
    """To a store, to the user's own cache, to both."""
    links = {"inherited": {"builds": 3, "files": 9, "bytes": 500, "source": "/home/alice/x"}}
    made = [{**ended(job, job), "event": "cache.created", "source": "syslog"} for job in range(1, 5)]
    seeded = [{**ended(job, job + 1), "event": "store.seeded", "bytes": 7, "source": "syslog"} for job in (2, 3)]
    got = collected(made[0], {**made[1], **links}, {**made[2], **links, "source": "log"}, made[3], *seeded, *seeded)
    assert got.hits == {"created": 4, "store": 2, "own cache": 2, "any": 2}


def test_forged_numbers_and_names_of_a_system_log_break_no_report() -> None:
    """More bytes than any disk has count as none; beyond a number of names, new ones count together."""
    collector = report.Collector(T, T + 86400.0, lambda uid: f"#{uid}")
    limit = 100_000
    for at in range(2000):
        collector.take({**ended(7, at, source="syslog"), "bytes": (1 << 53) - 1, "files": (1 << 63) - 1, "run": at % 2})
    for at in range(limit + 50):
        collector.take({**ended(8, 5, source="syslog"), "event": "cache.skipped", "user": f"user{at}", "path": str(at)})
    got = collector.finish()
    assert got.total.caches == 2 and got.total.bytes > 0 and got.total.files == 0
    assert len(got.without) <= limit + 1 and got.without[0].user == "(others)"


def test_memory_of_a_report_is_bounded(tmp_path: Path) -> None:
    """More events need no more memory, but for numbers of names. A small limit stands for a large log."""
    program = (
        "import resource, sys; sys.path[:0] = sys.argv[2:]\n"
        "from unit_report_events import fill\nfill(int(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    (tmp_path / "unit_report_events.py").write_text(
        "from jobcache.diagnostics import report\nfrom jobcache.cache import timestamps\n"
        "def fill(count):\n"
        "    collector = report.Collector(0.0, 1e9)\n"
        "    for job in range(1, count + 1):\n"
        "        collector.take({'ts': timestamps.millisecond(job), 'event': 'cache.reaped', 'source': 'log', 'job_id': job,\n"
        "            'uid': job % 9, 'user': f'u{job % 9}', 'bytes': job, 'files': 1, 'node': f'n{job}', 'path': f'/s/{job}'})\n"
        "    assert collector.finish().total.caches == count\n"
    )

    def peak(count: int) -> int:
        argv = [sys.executable, "-c", program, str(count), str(tmp_path), str(Path(jobcache.__file__).parents[1])]
        return int(subprocess.run(argv, capture_output=True, check=True, text=True, timeout=300).stdout)

    few, many = peak(1000), peak(150_000)
    assert many - few < 60_000  # KiB; with all caches in memory, 150,000 took 140,000


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    """On stderr; the report on stdout stays as it is."""
    (tmp_path / "events.jsonl").write_text(json.dumps(ended(1, 100)) + "\n")
    program = "from jobcache.cli.main import main; main()"
    argv = [sys.executable, "-c", program, "report", "--json", "--since", "2026-11-21", f"{tmp_path}/*.jsonl"]
    env = {**os.environ, "PYTHONPATH": str(Path(jobcache.__file__).parents[1]), "TERM": "xterm"}
    main_end, terminal = os.openpty()
    try:
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=terminal, timeout=60, check=True)
        shown = os.read(main_end, 65536)
    finally:
        os.close(terminal)
        os.close(main_end)
    assert json.loads(done.stdout)["events"] == 1 and b"events" in shown
    assert subprocess.run(argv, env=env, capture_output=True, timeout=60, check=True).stderr == b""


def test_forged_name_of_a_user_or_account_changes_no_sums_of_the_log() -> None:
    """A user can write any line to a system log, also about another user's job."""
    known = {"account": "physics", "partition": "gpu"}
    forged = {**ended(1, 5, user="zoe", account="zoo", partition="zoo", source="syslog"), "event": "cache.created"}
    for events in ([forged, ended(1, 10, **known)], [ended(1, 10, **known), forged]):
        got = collected(*events)
        names = {group: [row.name for row in rows] for group, rows in got.groups.items()}
        assert names == {"user": ["alice"], "account": ["physics"], "partition": ["gpu"]}


def test_temporary_database_is_readable_by_nobody_else_and_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing is left of it, however the process ends."""
    monkeypatch.setattr(report_table, "_MEMORY", 64)
    collector = report.Collector(T, T + 86400.0, str)
    for job in range(1, 20_000):
        collector.take(ended(job, job % 1000))
    found = [os.stat(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if "etilqs" in _target(fd)]
    assert found and all((one.st_nlink, one.st_mode & 0o777) == (0, 0o600) for one in found)
    collector.close()


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_full_disk_of_the_temporary_database_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for a full disk."""
    monkeypatch.setattr(report_table, "_MEMORY", 64)
    log = tmp_path / "log"
    log.write_text("".join(json.dumps(ended(job, job % 1000)) + "\n" for job in range(1, 20_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        done = CliRunner().invoke(main, ["report", "--since", "2026-11-01", "--until", "2026-12-01", str(log)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "cannot sum up the events" in done.stderr and "SQLITE_TMPDIR" in done.stderr
