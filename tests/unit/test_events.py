"""Events as the hooks and the commands write them: each on one line of JSON, in the words of the schema, without an error."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import jobcache
from jobcache.cache import devlog, event_line
from jobcache.system import command_log, events
from support.site_dir import SystemLog, validated

SCHEMA = json.loads((Path(jobcache.__file__).parent / "config/schema/event.json").read_text())
FIELDS = {name: field for name, field in SCHEMA["properties"].items() if name not in ("ts", "event", "level")}
Opened = Callable[..., Any]


@pytest.fixture(params=[events.Writer, command_log.bound], ids=["hooks", "commands"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Return what opens a log: for the hooks, or for the commands."""
    function: Opened = request.param
    return function


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def read(file: Path) -> list[dict[str, Any]]:
    return [validated(line) for line in file.read_text().splitlines()]


def samples(field: dict[str, Any]) -> list[Any]:
    """Return values that the schema allows for a field, its extremes included."""
    if "enum" in field:
        return list(field["enum"])
    if field["type"] == "array":
        return [[], *([value] for value in samples(field["items"]))]
    if field["type"] == "object" and "properties" in field:
        required = {name: 1 for name in field["required"] if field["properties"][name]["type"] == "integer"}
        needed = {name: "x" for name in field["required"] if name not in required}
        inner = field["properties"].items()
        return [{**required, **needed, name: value} for name, about in inner for value in samples(about)]
    if field["type"] == "object":
        return [{}, *({"orphan": value} for value in samples(field["additionalProperties"]))]
    if field["type"] == "string":
        return ["", "x", "a\nb", '"}\n{"', "ü", "\udcff", "\ud800", "x" * 10_000]
    return [field["minimum"], field.get("maximum", 2**63)]


@pytest.mark.parametrize("level", events.LEVELS)
def test_events_below_the_level_are_not_written(file: Path, opened: Opened, level: str) -> None:
    """A log of a level has the events of this level and above."""
    log = opened(str(file), None, level)
    for at, each in enumerate(events.LEVELS):
        log.emit("cache.kept", each, outcome="kept", job_id=at + 1)
    assert [event["level"] for event in read(file)] == list(events.LEVELS[events.LEVELS.index(level) :])


def test_no_event_creates_no_file(file: Path, opened: Opened) -> None:
    """An event below the level does not create the log file."""
    opened(str(file), None).emit("cache.released", "debug", outcome="released")
    assert not file.exists()


def test_fields_without_a_value_are_omitted(file: Path, opened: Opened) -> None:
    """None is omitted. 0, the empty text and False are written."""
    opened(str(file), None).emit(
        "cache.reaped", cluster="test", node=None, outcome="reaped", reason=None, run=0, bytes=0, user=""
    )
    (event,) = read(file)
    assert set(event) == {"ts", "event", "level", "cluster", "outcome", "run", "bytes", "user"}


def test_timestamp_event_and_level_come_first(file: Path, opened: Opened) -> None:
    """A person can read down the first columns of the log."""
    before = time.time()
    opened(str(file), None).emit("cache.reaped", cluster="test", outcome="reaped")
    event = json.loads(file.read_text())
    assert list(event) == ["ts", "event", "level", "cluster", "outcome"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["ts"])
    assert event["ts"][:19] in {time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) for at in (before, time.time())}


def test_hooks_and_commands_write_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Epilog, the commands and the TaskProlog, which has no json, write the same fields in the same order."""
    monkeypatch.setattr(event_line.time, "time", lambda: 1795305600.25)
    monkeypatch.setattr(event_line.time, "monotonic", lambda: 0.0)
    path = os.fsdecode(b'/s/\xff\xc3\xbc "\\\n\x7f')
    syslog = SystemLog(tmp_path / "devlog")
    try:
        known = {"cluster": "test", "path": path}
        ending = {"outcome": "kept", "reason": "foreign", "duration_ms": 0}
        events.Writer(None, str(syslog.path)).emit("cache.kept", "warning", **known, **ending)
        command_log.bound(None, str(syslog.path), **known).emit("cache.kept", "warning", **ending)
        facts = {key: event_line.quote(value) for key, value in known.items()}
        event_line.Log(str(syslog.path), facts, 0.0).emit("cache.kept", "warning", "kept", "foreign")
        assert len(syslog.events("cache.kept")) == 3
    finally:
        syslog.close()
    assert len({tuple(json.loads(message[message.index("{") :]).items()) for message in syslog.messages}) == 1


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("event", SCHEMA["properties"]["event"]["enum"])
def test_every_event_with_every_field(file: Path, event: str, name: str) -> None:
    """Every value that the schema allows is written, and read back as a valid event."""
    log = events.Writer(str(file), None, "debug")
    values = samples(FIELDS[name])
    for value in values:
        log.emit(event, **{"outcome": "kept", name: value})
    found = read(file)
    assert len(found) == len(values) and {one["event"] for one in found} == {event}
    assert [one[name] for one in found if "\\x" not in str(one[name])] == [value for value in values if is_text(value)]


def is_text(value: object) -> bool:
    return not isinstance(value, str) or value.isprintable() or "\n" in value


@pytest.mark.parametrize(
    "wrong",
    [{"event": "cache.deleted"}, {"outcome": "gone"}, {"reason": "because"}, {"surprise": 1}, {"job_id": 0}, {"level": "fatal"},
     {"ts": "2026-01-01 00:00:00"}, {"hook": "prolog"}, {"left": 0}],
)  # fmt: skip
def test_schema_rejects_unknown_words(file: Path, wrong: dict[str, object]) -> None:
    """Events, outcomes, reasons and fields are closed sets: the tests' validation of every line can fail."""
    events.Writer(str(file), None).emit("cache.reaped", outcome="reaped")
    with pytest.raises(jsonschema.ValidationError):
        validated(json.dumps({**json.loads(file.read_text()), **wrong}))


@pytest.mark.parametrize("missing", SCHEMA["required"])
def test_schema_requires_timestamp_event_level_and_outcome(file: Path, missing: str) -> None:
    """An event without one of them is invalid."""
    events.Writer(str(file), None).emit("cache.reaped", outcome="reaped")
    event = json.loads(file.read_text())
    del event[missing]
    with pytest.raises(jsonschema.ValidationError):
        validated(json.dumps(event))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\nb", "a\nb"),
        ('"\\', '"\\'),
        ("ü 漢 🦀", "ü 漢 🦀"),
        (os.fsdecode(b"a\xffb"), "a\\xffb"),
        (os.fsdecode("ü".encode() + b"\xc3"), "ü\\xc3"),
        ("\ud800x", "\\xed\\xa0\\x80x"),
        ("\0\x1b[31m\x7f\u2028", "\0\x1b[31m\x7f\u2028"),
    ],
)
def test_any_text_is_one_line_of_ascii(file: Path, opened: Opened, text: str, written: str) -> None:
    """For any name, the line is complete ASCII, and a JSON reader gets the name back."""
    opened(str(file), None).emit("cache.kept", user=text, outcome="kept", path=text)
    data = file.read_bytes()
    assert data.isascii() and data.count(b"\n") == 1 and data.endswith(b"\n")
    assert all(" " <= ch <= "\x7f" for ch in data[:-1].decode())
    assert (json.loads(data)["path"], json.loads(data)["user"]) == (written, written)


# --------------------------------------------------------------------------------------------------------- the log file


@pytest.mark.parametrize(("before", "between"), [("", ""), ("{}\n", ""), ("{}", "\n"), ('{"ts": "20', "\n"), ("\n", "")])
def test_event_after_a_torn_line_begins_a_new_line(file: Path, before: str, between: str) -> None:
    """A line that a full disk cut short does not damage the next event."""
    file.write_text(before)
    assert events.append(str(file), "{}")
    assert file.read_text() == f"{before}{between}{{}}\n"


def test_writer_waits_for_a_line_that_is_being_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that another writer has written by half is not taken for a torn one."""
    file.write_text("half")
    with open(file, "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def finish(_: float) -> None:
            other.write(" whole\n")
            other.close()

        monkeypatch.setattr(events.time, "sleep", finish)
        assert events.append(str(file), "{}")
    assert file.read_text() == "half whole\n{}\n"


def test_locked_log_delays_a_writer_but_loses_no_line(file: Path) -> None:
    """A process that keeps the log locked delays each writer for a short time."""
    file.write_text("{}\n")
    began = time.monotonic()
    with open(file) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert events.append(str(file), "{}")
    assert file.read_text() == "{}\n{}\n" and time.monotonic() - began < 1.5


@pytest.mark.parametrize("where", ["nowhere/events.jsonl", ".", "link", "fifo", "x" * 300])
def test_unwritable_file_leaves_the_event_to_the_system_log(tmp_path: Path, opened: Opened, where: str) -> None:
    """The system log gets the event. Nothing is raised, and nothing waits."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    syslog = SystemLog(tmp_path / "devlog")
    try:
        opened(f"{tmp_path}/{where}", str(syslog.path)).emit("cache.kept", outcome="kept")
        assert len(syslog.events("cache.kept")) == 1
    finally:
        syslog.close()
    assert not (tmp_path / "target").exists()


def test_full_disk_raises_nothing() -> None:
    """A write that fails is reported by the return value."""
    assert not events.append("/dev/full", "{}")


# ------------------------------------------------------------------------------------------------------- the system log


def test_missing_system_log_leaves_the_event_to_the_file(file: Path, tmp_path: Path, opened: Opened) -> None:
    """The file gets the event, and nothing is raised."""
    for address in (str(tmp_path / "nobody"), str(tmp_path), "x" * 300):
        opened(str(file), address).emit("cache.kept", outcome="kept")
        assert not devlog.send(address, "info", "x")
    assert len(read(file)) == 3


@pytest.mark.parametrize(("level", "severity"), [("error", 3), ("warning", 4), ("info", 6), ("debug", 7)])
def test_system_log_gets_severity_name_and_pid(tmp_path: Path, opened: Opened, level: str, severity: int) -> None:
    """The message has the daemon facility and the severity of the event, and begins with jobcache and the pid."""
    syslog = SystemLog(tmp_path / "devlog")
    try:
        opened(None, str(syslog.path), "debug").emit("cache.kept", level, outcome="kept")
        (event,) = syslog.events()
    finally:
        syslog.close()
    (message,) = syslog.messages
    assert re.match(rf"<{3 * 8 + severity}>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d jobcache\[{os.getpid()}\]: \{{", message)
    assert event["level"] == level


def test_log_without_file_and_system_log(opened: Opened) -> None:
    """A site may disable both."""
    opened(None, None, "debug").emit("cache.kept", outcome="kept")


def test_unknown_level_is_refused(opened: Opened) -> None:
    """The configuration is validated against the four levels."""
    with pytest.raises(ValueError):
        opened(None, None, "loud")


# ---------------------------------------------------------------------------------------------------- the commands' log


def test_context_is_part_of_every_event(file: Path) -> None:
    """Bound fields come before the fields of the event. More can be bound."""
    log = command_log.bound(str(file), None, cluster="test", node=None)
    log.emit("cache.reaped", outcome="reaped")
    log.bind(uid=5).emit("cache.kept", outcome="kept")
    assert [list(event)[3:] for event in read(file)] == [["cluster", "outcome"], ["cluster", "uid", "outcome"]]


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_shows_warnings(file: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """A person at a terminal sees that a warning was logged, in words of closed sets. Other output stays as it is."""
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    log = command_log.bound(str(file), None, cluster="test")
    log.emit("cache.orphan_reaped", outcome="reaped", reason="orphan")
    log.emit("sweep.finished", "warning", outcome="unknown", reason="slurm_down", error="\x1b[2J")
    log.emit("sweep.finished", "warning", outcome="finished", reason=None)
    shown = "warning logged: sweep.finished: unknown (slurm_down)\nwarning logged: sweep.finished: finished\n"
    assert stderr.getvalue() == (shown if terminal else "")
    assert len(read(file)) == 3
