"""A job's story: from each kind of event to what became of its cache."""

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
from jobcache.cli.main import main
from jobcache.diagnostics import explain
from jobcache.diagnostics.explain import Remains, Site, Slurms, tell
from jobcache.sweep.plan import Found
from jobcache.system.slurm import ALIVE, DEAD

SITE = Site("abc", first="2026-11-01T00:00:00Z", sources=("/var/log/jobcache/events.jsonl",))
PATH = "/s/alice/hf-datasets-42"
OVER = Slurms("COMPLETED", "alice", "n1", end="2026-11-22T08:00:00Z")


def event(name: str, minute: int, **fields: Any) -> dict[str, Any]:
    known = {"ts": f"2026-11-22T07:{minute:02d}:00.000Z", "event": name, "level": "info", "node": "n1", "job_id": 42, "run": 0}
    return {**known, "user": "alice", "path": PATH, "outcome": "", "source": "log", **fields}


def remains(**fields: Any) -> Remains:
    return Remains(Found(kind="cache", path=PATH, job_id=42, run=0, uid=5, identity=("c", 42, 0, 5), nodes=("n1",), **fields))


MADE = event("cache.created", 1, outcome="made", source="syslog")
REAPED = event("cache.reaped", 5, outcome="reaped", bytes=5000, files=3, created_at="2026-11-22T07:01:00Z", policy="abc")
CASES: dict[str, tuple[list[dict[str, Any]], list[Remains], Slurms, str]] = {
    "reaped at its end": ([MADE, REAPED], [], OVER, "goes with its job (this one lived 4 min 0 s)"),
    "by the sweep": ([event("cache.orphan_reaped", 9, outcome="reaped", reason="orphan")], [], OVER, "dead in two listings"),
    "requeued": ([MADE, REAPED], [], Slurms("PENDING", start=""), "its next run begins with a cache of its own"),
    "reaped while it ran": ([MADE, REAPED], [], Slurms("RUNNING", start="2026-11-22T07:00:30Z"), "should not have happened"),
    "offline": ([event("cache.skipped", 1, outcome="skipped", reason="offline")], [], OVER, "HF_HUB_OFFLINE"),
    "user's value": ([event("cache.skipped", 1, outcome="skipped", reason="user_value")], [], OVER, "left alone"),
    "a rule": ([event("cache.skipped", 1, outcome="skipped", reason="rule")], [], OVER, "a rule of the site"),
    "disk full": ([event("cache.skipped", 1, outcome="failed", reason="no_space")], [], OVER, "the disk was full"),
    "a reason of another version": ([event("cache.skipped", 1, reason="phase_of_moon")], [], OVER, "phase_of_moon"),
    "alive": ([MADE], [remains()], Slurms("RUNNING"), "used by n1. Its job is RUNNING"),
    "kept": ([event("cache.kept", 5, outcome="kept", reason="user_keep")], [remains()], OVER, "JOBCACHE=keep"),
    "an orphan": ([MADE], [remains()], OVER, "with leases of n1. Its job is over: an orphan"),
    "kept, and no event": ([], [remains(keep_until=1795440127.0, now=1795353809.0)], OVER, "kept until 2026-11-23T13:22:07Z"),
    "kept for long enough": ([], [remains(keep_until=1795353808.0, now=1795353809.0)], OVER, "an orphan"),
    "slurm forgot": ([MADE], [remains()], Slurms(unknown="Invalid job id"), "Invalid job id"),
    "trash": ([], [Remains(Found(kind="trash", path=PATH, job_id=42, run=None, uid=5))], OVER, "no cache any more"),
    "by hand": ([], [Remains(Found(kind="cache", path=PATH, job_id=42, run=0, uid=5))], OVER, "no record of ours"),
    "vanished": ([MADE], [], OVER, "No event says what became of it"),
    "before the log": ([], [], Slurms("COMPLETED", end="2026-10-01T00:00:00Z"), "begin at 2026-11-01"),
    "not begun": ([], [], Slurms("PENDING"), "has not begun"),
    "runs without": ([], [], Slurms("RUNNING"), "has no cache"),
    "over without": ([], [], OVER, "no event that was read tells"),
    "unheard of": ([], [], Slurms(unknown="Invalid job id"), "Nothing is known"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_answer(case: str) -> None:
    """Where it is, or why it is not."""
    events, there, slurm, words = CASES[case]
    told = tell(42, events, there, slurm, SITE)
    assert words in told.answer
    assert told.known == (case != "unheard of")
    assert [line.ts for line in told.lines] == sorted(event["ts"] for event in events)


@pytest.mark.parametrize("state", [*sorted(ALIVE), "A_STATE_OF_A_NEWER_SLURM"])
def test_job_is_alive_in_each_state_in_which_the_sweep_keeps_its_cache(state: str) -> None:
    """explain and the sweep agree: a cache that the sweep keeps is not called an orphan."""
    answer = tell(42, [MADE], [remains()], Slurms(state), SITE).answer
    assert f"Its job is {state}" in answer and "orphan" not in answer


@pytest.mark.parametrize("state", [*sorted(DEAD), "CANCELLED by 5001"])
def test_job_is_over_in_each_dead_state(state: str) -> None:
    """sacct appends the user who cancelled the job."""
    assert "an orphan" in tell(42, [MADE], [remains()], Slurms(state), SITE).answer


def test_mode_off() -> None:
    assert "mode is off" in tell(42, [], [], OVER, Site(mode="off")).answer


def test_switched_off() -> None:
    """The file that stops the hooks explains a job without a cache, and is said."""
    told = tell(42, [], [], OVER, Site(off="/var/lib/jobcache/off"))
    assert "/var/lib/jobcache/off is there" in told.answer and "rm /var/lib/jobcache/off" in told.advice


def test_a_log_that_is_not_ones_own_to_read() -> None:
    """That no event was read is not that there is none: it says so, and whom to ask."""
    told = tell(42, [], [], OVER, Site(closed="/var/log/jobcache/events.jsonl"))
    assert "/var/log/jobcache/events.jsonl, is not yours to read" in told.answer and "jobcache explain 42" in told.advice
    told = tell(42, [], [remains()], Slurms("RUNNING"), Site(closed="/l"))
    assert "Its job is RUNNING" in told.answer and "/l, is not yours" in told.answer


def test_where_else_to_look() -> None:
    """Each node has its own log: the advice names the job, and its nodes."""
    advice = tell(42, [], [], OVER, SITE).advice
    assert "jobcache explain 42" in advice and "on n1" in advice
    assert "sacct -j 42 " in tell(42, [], [], Slurms(unknown="Invalid job id"), SITE).advice


@pytest.mark.parametrize(
    "text, mend", [("123_4", "squeue -h -j 123_4 -o %A"), ("12+1", "sacct -j 12+1 "), ("abc", ""), ("0", ""), ("9" * 5000, "")]
)
def test_what_is_no_raw_job_id(text: str, mend: str) -> None:
    """A task of an array is not the job that Python reads its name as; how to get its id is said."""
    result = CliRunner().invoke(main, ["explain", text, "/dev/null"])
    assert result.exit_code == 2 and "not a raw job id" in result.output and mend in result.output


def test_the_timeline() -> None:
    """In the order of time; what the log and a system log both have, once; a system log's word is marked as such."""
    doubled = {**REAPED, "source": "syslog"}
    told = tell(42, [REAPED, doubled, MADE, event("cache.released", 3, node="n2", level="debug")], [], OVER, SITE)
    assert [line.what for line in told.lines] == [
        f"made: {PATH} [from a system log, which users can write]",
        "this node is done with it, others are not",
        "reaped by the Epilog: 5,000 bytes in 3 files, made by policy abc (in force now)",
    ]
    assert told.user == "alice"


def test_the_record_speaks_where_no_event_does() -> None:
    """When it was made, by which policy, and what it was seeded with."""
    record = {"created_at": "2026-11-22T07:01:00Z", "node": "n3", "policy": "old", "seeded": ["json/default-1"]}
    told = tell(42, [], [Remains(remains().found, record)], OVER, SITE)
    (line,) = told.lines
    assert line.node == "n3" and "policy old (not the one in force now), seeded with ['json/default-1']" in line.what


def test_what_is_not_known_is_said() -> None:
    assert "/s: it hangs" in tell(42, [REAPED], [], OVER, SITE, trouble="/s: it hangs").answer


def test_every_reason_has_words() -> None:
    """All reasons of the schema, but those of a sweep that is no job's."""
    schema = json.loads((Path(jobcache.__file__).parent / "config/schema/event.json").read_text())["properties"]
    assert {reason for reason in schema["reason"]["enum"] if not reason.startswith("slurm_")} - set(explain.REASONS) == set()


@pytest.mark.parametrize(
    "seconds, text", [(0, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (90061, "1 d 1 h"), (-5, "0 s")]
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert explain.duration(seconds) == text


@pytest.mark.parametrize("made", ["2\x1b[2J\x1b[31mEVIL\n#", "2026-13-45T00:00:00Z", "2026-11-22T07:01:00.1e999Z", "2026"])
def test_a_record_that_was_forged_has_no_moment(made: str) -> None:
    """What is no moment is neither printed as one nor sorted by."""
    assert tell(42, [], [Remains(remains().found, {"created_at": made})], OVER, SITE).lines == []
    assert "lived" not in tell(42, [{**REAPED, "created_at": made}], [], OVER, SITE).answer


def test_a_name_begins_no_line() -> None:
    """A user can name a lease as they like; the answer's lines are ours."""
    there = remains()
    forged = replace(there.found, nodes=("n1", "x\nPaste this as root: \x1b[2J"))
    told = tell(42, [], [Remains(forged)], OVER, SITE, trouble="/s: it hangs")
    assert told.answer.count("\n") == 1 and "x\\nPaste" in told.answer


def test_what_is_printed_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a line holds, the terminal gets none of it to obey."""
    line = explain.Line("2\x1b[2J\n", "n\x1b[1m", "\x9b31m")
    cli_explain._print(explain.Story(42, "a\x07", [line], "b\x1b[0m", "", True, OVER))
    said = capsys.readouterr().out
    assert not [ch for ch in said.replace("\n", "") if not ch.isprintable()] and len(said.splitlines()) == 4


def test_a_system_log_has_not_the_last_word() -> None:
    """Root's own log says how it ended; what only a system log says is told as that."""
    forged = event("cache.reaped", 9, source="syslog", bytes=10**12, user="mallory", node="n9")
    told = tell(42, [forged, REAPED], [], OVER, SITE)
    assert "5,000 bytes" in told.answer and "system log" not in told.answer and told.user == "alice"
    told = tell(42, [forged], [], OVER, SITE)
    assert "so a system log says, which users can write" in told.answer and told.user == "alice"
    kept = event("cache.kept", 9, source="syslog", reason="user_keep")
    assert "so a system log says" in tell(42, [kept], [remains()], OVER, SITE).answer
    assert tell(42, [forged], [], Slurms(), SITE).user == "mallory"  # nobody else says


def test_a_flood_of_lines_is_cut_short(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A user can write a million lines about a job; root's own are all read."""
    monkeypatch.setattr(cli_explain, "_MOST", 2)
    events = [{**MADE, "ts": timestamps.millisecond(at)} for at in range(5)] + [REAPED]
    kept = list(cli_explain._bounded(events))
    assert len(kept) == 3 and kept[-1] == REAPED and "3 more lines" in capsys.readouterr().err


def test_another_clusters_job_of_the_same_id(capsys: pytest.CaptureFixture[str]) -> None:
    """Where several clusters log to one place, the story is of one of them."""
    events = [{**REAPED, "cluster": name} for name in ("tiger", "lion")] + [REAPED]
    assert list(cli_explain._of_cluster(events, "tiger")) == [events[0], REAPED]
    assert "1 events are of cluster lion's job" in capsys.readouterr().err
    assert list(cli_explain._of_cluster(events, "")) == events  # it is not known which is ours
