"""The answers of `jobcache explain`, for each reason why a cache does not exist any more, or never existed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import jobcache
from jobcache.cache import timestamps
from jobcache.cli import explain as cli_explain
from jobcache.cli import main as cli_main
from jobcache.cli.explain_question import Target
from jobcache.cli.main import main
from jobcache.diagnostics import reason_texts, units
from jobcache.diagnostics.explain import explain
from jobcache.diagnostics.explain_facts import Explanation, JobDirectory, SiteFacts, SlurmJob, TimelineEntry
from jobcache.sweep.plan import Directory
from jobcache.system.live_jobs import ALIVE, DEAD

SITE = SiteFacts("abc", first_event="2026-11-01T00:00:00Z", sources=("/var/log/jobcache/events.jsonl",))
PATH = "/s/alice/hf-datasets-42"
OVER = SlurmJob("COMPLETED", "alice", "n1", end="2026-11-22T08:00:00Z")


def event(name: str, minute: int, **fields: Any) -> dict[str, Any]:
    known = {"ts": f"2026-11-22T07:{minute:02d}:00.000Z", "event": name, "level": "info", "node": "n1", "job_id": 42, "run": 0}
    return {**known, "user": "alice", "path": PATH, "outcome": "", "source": "log", **fields}


def directory(**fields: Any) -> JobDirectory:
    return JobDirectory(
        Directory(kind="cache", path=PATH, job_id=42, run=0, uid=5, identity=("c", 42, 0, 5), nodes=("n1",), **fields)
    )


CREATED = event("cache.created", 1, outcome="made", source="syslog")
REAPED = event("cache.reaped", 5, outcome="reaped", bytes=5000, files=3, created_at="2026-11-22T07:01:00Z", policy="abc")
CASES: dict[str, tuple[list[dict[str, Any]], list[JobDirectory], SlurmJob, str]] = {
    "reaped at its end": ([CREATED, REAPED], [], OVER, "deleted when its job ends (this one existed for 4 min 0 s)"),
    "by the sweep": ([event("cache.orphan_reaped", 9, outcome="reaped", reason="orphan")], [], OVER, "dead in two listings"),
    "requeued": ([CREATED, REAPED], [], SlurmJob("PENDING", start=""), "its next run begins with a new cache"),
    "reaped while it ran": ([CREATED, REAPED], [], SlurmJob("RUNNING", start="2026-11-22T07:00:30Z"), "so this is a bug"),
    "offline": ([event("cache.skipped", 1, outcome="skipped", reason="offline")], [], OVER, "HF_HUB_OFFLINE"),
    "user's value": ([event("cache.skipped", 1, outcome="skipped", reason="user_value")], [], OVER, "does not change these"),
    "a rule": ([event("cache.skipped", 1, outcome="skipped", reason="rule")], [], OVER, "a rule of the site"),
    "disk full": ([event("cache.skipped", 1, outcome="failed", reason="no_space")], [], OVER, "quota was full"),
    "a reason of another version": ([event("cache.skipped", 1, reason="phase_of_moon")], [], OVER, "phase_of_moon"),
    "alive": ([CREATED], [directory()], SlurmJob("RUNNING"), "used by n1. Its job is RUNNING"),
    "kept": ([event("cache.kept", 5, outcome="kept", reason="user_keep")], [directory()], OVER, "JOBCACHE=keep"),
    "kept until": (
        [event("cache.kept", 5, reason="job_failed", keep_until="2026-11-23T13:22:07Z")], [directory()], OVER,
        "kept until 2026-11-23T13:22:07Z: the job ended non-zero"),
    "kept until a forged time": (
        [event("cache.kept", 5, reason="job_failed", keep_until="x")], [directory()], OVER, "is kept: the job ended non-zero"),
    "an orphan": ([CREATED], [directory()], OVER, "with leases of n1. Its job is over, so it is an orphan"),
    "kept, and no event": ([], [directory(keep_until=1795440127.0, now=1795353809.0)], OVER, "kept until 2026-11-23T13:22:07Z"),
    "kept for long enough": ([], [directory(keep_until=1795353808.0, now=1795353809.0)], OVER, "an orphan"),
    "slurm forgot": ([CREATED], [directory()], SlurmJob(unknown="Invalid job id"), "Invalid job id"),
    "trash": ([], [JobDirectory(Directory(kind="trash", path=PATH, job_id=42, run=None, uid=5))], OVER, "not a cache any more"),
    "by hand": ([], [JobDirectory(Directory(kind="cache", path=PATH, job_id=42, run=0, uid=5))], OVER, "has no record"),
    "vanished": ([CREATED], [], OVER, "No event shows the end of the cache"),
    "before the log": ([], [], SlurmJob("COMPLETED", end="2026-10-01T00:00:00Z"), "begin at 2026-11-01"),
    "not begun": ([], [], SlurmJob("PENDING"), "has not begun"),
    "runs without": ([], [], SlurmJob("RUNNING"), "has no cache"),
    "over without": ([], [], OVER, "no event that was read mentions"),
    "unknown": ([], [], SlurmJob(unknown="Invalid job id"), "Nothing is known"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_answer_fits_the_case(case: str) -> None:
    """The answer names the place of the cache, or the reason why it is missing."""
    events, directories, slurm, text = CASES[case]
    explanation = explain(42, events, directories, slurm, SITE)
    assert text in explanation.answer
    assert explanation.known == (case != "unknown")
    assert [line.ts for line in explanation.lines] == sorted(event["ts"] for event in events)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("for_root", [False, True])
def test_answer_fits_the_case_from_the_history_alone(case: str, for_root: bool) -> None:
    """A user gets the answer of the log. For root, an answer that rests on a user's history has a note."""
    events, directories, slurm, text = CASES[case]
    own = [{**one, "source": "history"} for one in events]
    site = replace(SITE, sources=(), for_root=for_root)
    explanation = explain(42, own, directories, slurm, site)
    assert text in explanation.answer
    if not for_root:
        logged = explain(42, [{**one, "source": "log"} for one in events], directories, slurm, site)
        assert (explanation.answer, explanation.lines) == (logged.answer, logged.lines)
    assert for_root == all("from the own history of alice" in line.what for line in explanation.lines) or not events
    rests_on_event = any(one["event"] not in ("cache.created",) for one in own)
    assert ("according to the own history" in explanation.answer) == (for_root and rests_on_event)


def test_log_of_root_counts_before_a_history() -> None:
    """A forged history changes no answer of the log. It adds what the log lacks, with a note."""
    forged = event("cache.reaped", 9, source="history", bytes=10**12, user="mallory", node="n9", outcome="reaped", run=1)
    skip = event("cache.skipped", 1, source="history", reason="rule")
    site = replace(SITE, for_root=True)
    explanation = explain(42, [forged, skip, REAPED], [], OVER, site)
    assert explanation.answer == explain(42, [REAPED], [], OVER, site).answer and explanation.user == "alice"
    assert sum("own history of mallory" in line.what for line in explanation.lines) == 1
    logged = event("cache.skipped", 1, reason="rule")
    assert explain(42, [forged, logged], [], OVER, site).answer == explain(42, [logged], [], OVER, site).answer
    kept = [event("cache.kept", 5, reason="user_keep"), event("cache.kept", 9, source="history", reason="mount")]
    assert "JOBCACHE=keep" in explain(42, kept, [directory()], OVER, site).answer


def test_forged_creation_hides_no_bug_from_root() -> None:
    """A cache that was reaped while its job ran is a bug, unless the job went on with another one: by whom, is in the answer."""
    forged = event("cache.created", 6, source="history", outcome="made")
    running = SlurmJob("RUNNING", start="2026-11-22T07:00:30Z")
    answer = explain(42, [REAPED, forged], [], running, replace(SITE, for_root=True)).answer
    assert "requeued, according to the own history of alice" in answer
    assert "requeued:" in explain(42, [REAPED, forged], [], running, SITE).answer


def test_line_of_a_history_about_an_event_of_the_log_is_left_out() -> None:
    """The history has a time of its own, and no figures of the filesystem."""
    own = {**REAPED, "source": "history", "ts": "2026-11-22T07:05:00.999Z"}
    for events in ([own, REAPED], [REAPED, own]):
        assert len(explain(42, events, [], OVER, SITE).lines) == 1


def test_history_answers_without_the_log() -> None:
    """The unreadable log is named only where the history has nothing."""
    site = replace(SITE, unreadable_log="/l")
    assert "/l" not in explain(42, [{**REAPED, "source": "history"}], [], OVER, site).answer
    assert "/l" in explain(42, [], [], OVER, site).answer


def test_host_without_a_configuration_names_the_next_step() -> None:
    explanation = explain(42, [], [], OVER, replace(SITE, configured=False))
    assert "no configuration of the site" in explanation.answer and "--path" in explanation.advice


def test_end_of_jobcache_run_is_no_bug() -> None:
    """`jobcache run` deletes its cache during the job."""
    answer = explain(42, [CREATED, {**REAPED, "by": "run"}], [], SlurmJob("RUNNING", start="2026-11-22T07:00:30Z"), SITE).answer
    assert "`jobcache run` on n1 reaped it" in answer and "bug" not in answer


@pytest.mark.parametrize("state", [*sorted(ALIVE), "A_STATE_OF_A_NEWER_SLURM"])
def test_job_is_alive_in_each_state_in_which_the_sweep_keeps_its_cache(state: str) -> None:
    """explain and the sweep agree: a cache that the sweep keeps is not called an orphan."""
    answer = explain(42, [CREATED], [directory()], SlurmJob(state), SITE).answer
    assert f"Its job is {state}" in answer and "orphan" not in answer


@pytest.mark.parametrize("state", [*sorted(DEAD), "CANCELLED by 5001"])
def test_job_is_over_in_each_dead_state(state: str) -> None:
    """sacct appends the uid of the user who cancelled the job."""
    assert "an orphan" in explain(42, [CREATED], [directory()], SlurmJob(state), SITE).answer


def test_mode_off_is_the_answer() -> None:
    assert "mode is off" in explain(42, [], [], OVER, SiteFacts(mode="off")).answer


def test_off_file_is_the_answer() -> None:
    """The file that stops the hooks explains a job without a cache."""
    explanation = explain(42, [], [], OVER, SiteFacts(off_file="/var/lib/jobcache/off"))
    assert "/var/lib/jobcache/off exists" in explanation.answer and "rm /var/lib/jobcache/off" in explanation.advice


def test_unreadable_log_is_named_with_the_admins_to_ask() -> None:
    """Without the log, a missing event is no evidence."""
    explanation = explain(42, [], [], OVER, SiteFacts(unreadable_log="/var/log/jobcache/events.jsonl"))
    assert "cannot read the event log, /var/log/jobcache/events.jsonl" in explanation.answer
    assert "admins" in explanation.advice and "jobcache explain 42" in explanation.advice
    explanation = explain(42, [], [directory()], SlurmJob("RUNNING"), SiteFacts(unreadable_log="/l"))
    assert "Its job is RUNNING" in explanation.answer and "cannot read the event log, /l" in explanation.answer


def test_advice_names_the_job_and_its_nodes() -> None:
    """Each node has its own log."""
    advice = explain(42, [], [], OVER, SITE).advice
    assert "jobcache explain 42" in advice and "on n1" in advice
    assert "sacct -j 42 " in explain(42, [], [], SlurmJob(unknown="Invalid job id"), SITE).advice


@pytest.mark.parametrize("text", ["abc", "0", "9" * 5000, "12_", "_4", "12_x", "12+", "1_2_3", "12_[1-3]", "", "-5"])
def test_other_texts_than_job_ids_are_refused(text: str) -> None:
    result = CliRunner().invoke(main, ["explain", "--", text, "/dev/null"])
    assert result.exit_code == 2 and "is not a job id, such as 4242, 4242_7 or 4242+1" in result.output


@pytest.mark.parametrize(
    "text, target", [("4242", Target(4242)), ("4242_0", Target(array=(4242, 0))), ("4242+1", Target(4242)), (None, None)]
)
def test_job_ids_are_read_as_slurm_prints_them(text: str | None, target: Target | None) -> None:
    """int("123_4") is another job than task 4 of array 123."""
    assert cli_main._target(None, None, text) == target  # type: ignore[arg-type]


def test_timeline_is_sorted_and_has_each_event_once() -> None:
    """An event that is in the log and in a system log has one line; lines from a system log are marked."""
    copy = {**REAPED, "source": "syslog"}
    explanation = explain(42, [REAPED, copy, CREATED, event("cache.released", 3, node="n2", level="debug")], [], OVER, SITE)
    assert [line.what for line in explanation.lines] == [
        f"created: {PATH} [from a system log, which users can write]",
        "this node released its lease; other nodes still use the cache",
        "reaped by the Epilog: 5,000 bytes in 3 files, created by policy abc (in force)",
    ]
    assert explanation.user == "alice"


def test_record_shows_creation_without_an_event() -> None:
    """The timeline has its time, policy and linked builds."""
    seeded = {"builds": 2, "files": 1500, "bytes": 7, "unlinked": 3}
    record = {"created_at": "2026-11-22T07:01:00Z", "node": "n3", "policy": "old", "seeded": seeded}
    (line,) = explain(42, [], [JobDirectory(directory().found, record)], OVER, SITE).lines
    assert line.node == "n3" and "policy old (no longer in force)" in line.what
    assert "; 2 builds linked from stores: 1,500 files, 7 bytes; no time for 3 more" in line.what


def test_timeline_shows_inherited_builds_and_what_was_left_out() -> None:
    """From an event, from the record, and for a job that got no cache."""
    left_out = [{"dataset": "a___b", "reason": "damaged", "error": "x is cut short"}]
    inherited = {
        "builds": 3,
        "found": 5,
        "files": 9,
        "bytes": 5000,
        "duration_ms": 4,
        "results": 6,
        "source": "/home/alice/x",
        "left_out": left_out,
    }
    created = {**CREATED, "inherited": inherited}
    skipped = event("cache.skipped", 2, outcome="refused", reason="inherit_budget", inherited={**inherited, "builds": 0})
    record = {"created_at": "2026-11-22T07:01:00Z", "inherited": inherited}
    found = explain(42, [created, skipped], [JobDirectory(directory().found, record)], OVER, SITE)
    words = "of 5 builds linked from /home/alice/x: 9 files, 5,000 bytes, in 4 ms, with 6 results of map from the user's store; "
    words += "left out: a___b (damaged: x is cut short)"
    assert sum(f"3 {words}" in entry.what for entry in found.lines) == 2
    assert sum(f"0 {words}" in entry.what for entry in found.lines) == 1
    for forged in (
        "x",
        {"source": 1},
        {**inherited, "files": "x"},
        {**inherited, "results": "x"},
        {**inherited, "left_out": [1]},
    ):
        assert explain(42, [{**CREATED, "inherited": forged}], [], OVER, SITE).lines


def test_scratch_that_hangs_is_in_the_answer() -> None:
    assert "/s: it hangs" in explain(42, [REAPED], [], OVER, SITE, scratch_error="/s: it hangs").answer


def test_every_reason_has_a_text() -> None:
    """Except reasons about Slurm, which are about a sweep and not about one job."""
    schema = json.loads((Path(jobcache.__file__).parent / "config/schema/event.json").read_text())["properties"]
    assert {reason for reason in schema["reason"]["enum"] if not reason.startswith("slurm_")} - set(reason_texts.REASONS) == set()


@pytest.mark.parametrize(
    "seconds, text", [(0, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (90061, "1 d 1 h"), (-5, "0 s")]
)  # fmt: skip
def test_duration_has_two_units(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize("created", ["2\x1b[2J\x1b[31mEVIL\n#", "2026-13-45T00:00:00Z", "2026-11-22T07:01:00.1e999Z", "2026"])
def test_forged_time_in_a_record_is_ignored(created: str) -> None:
    """It is not printed, and no line is sorted by it."""
    assert explain(42, [], [JobDirectory(directory().found, {"created_at": created})], OVER, SITE).lines == []
    assert "existed for" not in explain(42, [{**REAPED, "created_at": created}], [], OVER, SITE).answer


def test_lease_name_begins_no_line_of_the_answer() -> None:
    """A user can give a lease any name."""
    forged = replace(directory().found, nodes=("n1", "x\nPaste this as root: \x1b[2J"))
    answer = explain(42, [], [JobDirectory(forged)], OVER, SITE, scratch_error="/s: it hangs").answer
    assert answer.count("\n") == 1 and "x\\nPaste" in answer


def test_output_has_printable_characters_only(capsys: pytest.CaptureFixture[str]) -> None:
    """No escape sequence of an event reaches the terminal."""
    line = TimelineEntry("2\x1b[2J\n", "n\x1b[1m", "\x9b31m")
    cli_explain._print(Explanation(42, "a\x07", [line], "b\x1b[0m", "", True, OVER))
    output = capsys.readouterr().out
    assert not [ch for ch in output.replace("\n", "") if not ch.isprintable()] and len(output.splitlines()) == 4


def test_log_of_root_counts_before_a_system_log() -> None:
    """An answer that rests on a system log only has a note that users can write to it."""
    forged = event("cache.reaped", 9, source="syslog", bytes=10**12, user="mallory", node="n9")
    explanation = explain(42, [forged, REAPED], [], OVER, SITE)
    assert "5,000 bytes" in explanation.answer and "system log" not in explanation.answer and explanation.user == "alice"
    explanation = explain(42, [forged], [], OVER, SITE)
    assert "according to a system log, which users can write" in explanation.answer and explanation.user == "alice"
    kept = event("cache.kept", 9, source="syslog", reason="user_keep")
    assert "according to a system log" in explain(42, [kept], [directory()], OVER, SITE).answer
    assert explain(42, [forged], [], SlurmJob(), SITE).user == "mallory"  # no other source names the user


def test_lines_of_a_system_log_are_limited(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A user can write a million lines about a job to a system log. All lines of root's log are read."""
    monkeypatch.setattr(cli_explain, "_MOST_SYSLOG_LINES", 2)
    events = [{**CREATED, "ts": timestamps.millisecond(at)} for at in range(5)] + [REAPED]
    kept = list(cli_explain._limit_syslog(events))
    assert len(kept) == 3 and kept[-1] == REAPED and "3 more lines" in capsys.readouterr().err


def test_events_of_another_cluster_are_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Several clusters can log to one place, and each has a job with this id."""
    events = [{**REAPED, "cluster": name} for name in ("tiger", "lion")] + [REAPED]
    assert list(cli_explain._of_cluster(events, "tiger")) == [events[0], REAPED]
    assert "skipped 1 events of the job with this id in cluster lion" in capsys.readouterr().err
    assert list(cli_explain._of_cluster(events, "")) == events  # the name of this cluster is unknown
