"""Events: one whole line of JSON each, with known words alone, whatever the names in it hold; and nothing ever raised."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import jobcache
from jobcache.cache import devlog
from jobcache.system import events
from support.site_dir import SystemLog, validated

SCHEMA = json.loads((Path(jobcache.__file__).parent / "config/schema/event.json").read_text())
LEVELS = ("debug", "info", "warning", "error")
FIELDS = {name: field for name, field in SCHEMA["properties"].items() if name not in ("ts", "event", "level")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def read(file: Path) -> list[dict[str, Any]]:
    return [validated(line) for line in file.read_text().splitlines()]


def samples(field: dict[str, Any]) -> list[Any]:
    """Values of a field that the schema allows, its extremes included."""
    if "enum" in field:
        return list(field["enum"])
    if field["type"] == "array":
        return [[], *([value] for value in samples(field["items"]))]
    if field["type"] == "object":
        return [{}, *({"orphan": value} for value in samples(field["additionalProperties"]))]
    if field["type"] == "string":
        return ["", "x", "a\nb", '"}\n{"', "ü", "\udcff", "\ud800", "x" * 10_000]
    return [field["minimum"], field.get("maximum", 2**63)]


@pytest.mark.parametrize("level", LEVELS)
def test_only_what_is_asked_for_is_said(file: Path, level: str) -> None:
    """A log says its level and what is graver."""
    log = events.Log(str(file), None, level)
    for at, each in enumerate(LEVELS):
        log.emit("cache.kept", each, outcome="kept", job_id=at + 1)
    assert [event["level"] for event in read(file)] == list(LEVELS[LEVELS.index(level) :])


def test_nothing_is_written_for_what_is_not_said(file: Path) -> None:
    """Nor is the file made."""
    events.Log(str(file), None).emit("cache.released", "debug", outcome="released")
    assert not file.exists()


def test_fields_that_are_none_are_left_out(file: Path) -> None:
    """None says that there is nothing to say; 0, empty and False are said."""
    events.Log(str(file), None, cluster="test", node=None).emit(
        "cache.reaped", outcome="reaped", reason=None, run=0, bytes=0, user=""
    )
    (event,) = read(file)
    assert set(event) == {"ts", "event", "level", "cluster", "outcome", "run", "bytes", "user"}


def test_what_comes_first(file: Path) -> None:
    """Moment, event and level come first, so that a person can read down the log."""
    before = time.time()
    events.Log(str(file), None, cluster="test").emit("cache.reaped", outcome="reaped")
    event = json.loads(file.read_text())
    assert list(event) == ["ts", "event", "level", "cluster", "outcome"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["ts"])
    assert event["ts"][:19] in {time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) for at in (before, time.time())}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("event", SCHEMA["properties"]["event"]["enum"])
def test_every_event_with_every_field(file: Path, event: str, name: str) -> None:
    """Whatever a field may hold by the schema goes through the log and comes out as the schema has it."""
    log = events.Log(str(file), None, "debug")
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
def test_the_schema_refuses_other_words(file: Path, wrong: dict[str, object]) -> None:
    """Events, outcomes, reasons and fields are closed sets: the tests' check of every line can fail."""
    events.Log(str(file), None).emit("cache.reaped", outcome="reaped")
    with pytest.raises(jsonschema.ValidationError):
        validated(json.dumps({**json.loads(file.read_text()), **wrong}))


@pytest.mark.parametrize("missing", SCHEMA["required"])
def test_the_schema_asks_for_the_least(file: Path, missing: str) -> None:
    """An event without its moment, name, level or outcome is none."""
    events.Log(str(file), None).emit("cache.reaped", outcome="reaped")
    event = json.loads(file.read_text())
    del event[missing]
    with pytest.raises(jsonschema.ValidationError):
        validated(json.dumps(event))


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_any_text_is_one_line_of_ascii(file: Path, text: str, said: str) -> None:
    """Whatever a name holds, the line is plain ASCII, whole, and any JSON reader gets the name back."""
    events.Log(str(file), None, user=text).emit("cache.kept", outcome="kept", path=text)
    data = file.read_bytes()
    assert data.isascii() and data.count(b"\n") == 1 and data.endswith(b"\n")
    assert all(" " <= ch <= "\x7f" for ch in data[:-1].decode())
    assert (json.loads(data)["path"], json.loads(data)["user"]) == (said, said)


@pytest.mark.parametrize(("before", "between"), [("", ""), ("{}\n", ""), ("{}", "\n"), ('{"ts": "20', "\n"), ("\n", "")])
def test_a_line_begins_a_line(file: Path, before: str, between: str) -> None:
    """Where somebody's line was cut short, the next begins on its own."""
    file.write_text(before)
    assert events.append(str(file), "{}")
    assert file.read_text() == f"{before}{between}{{}}\n"


def test_a_line_that_is_being_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that others see half, because it is being written at this moment, is waited for."""
    file.write_text("half")
    with open(file, "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def finish(_: float) -> None:
            other.write(" whole\n")
            other.close()

        monkeypatch.setattr(events.time, "sleep", finish)
        assert events.append(str(file), "{}")
    assert file.read_text() == "half whole\n{}\n"


def test_a_log_that_somebody_holds(file: Path) -> None:
    """Whoever keeps the log locked keeps nobody waiting for long, and no line out of it."""
    file.write_text("{}\n")
    began = time.monotonic()
    with open(file) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert events.append(str(file), "{}")
    assert file.read_text() == "{}\n{}\n" and time.monotonic() - began < 1.5


@pytest.mark.parametrize("where", ["nowhere/events.jsonl", ".", "link", "fifo", "x" * 300])
def test_a_file_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    """Then the event goes to the system log alone, and nothing is raised or waited for."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    syslog = SystemLog(tmp_path / "devlog")
    try:
        events.Log(f"{tmp_path}/{where}", str(syslog.path)).emit("cache.kept", outcome="kept")
        assert len(syslog.events("cache.kept")) == 1
    finally:
        syslog.close()
    assert not (tmp_path / "target").exists()


def test_a_disk_that_is_full() -> None:
    """A write that fails is no event of the file's, and raises nothing."""
    assert not events.append("/dev/full", "{}")


def test_a_system_log_that_is_not_there(file: Path, tmp_path: Path) -> None:
    """The file has the event all the same."""
    for address in (str(tmp_path / "nobody"), str(tmp_path), "x" * 300):
        events.Log(str(file), address).emit("cache.kept", outcome="kept")
        assert not devlog.send(address, "info", "x")
    assert len(read(file)) == 3


@pytest.mark.parametrize(("level", "severity"), [("error", 3), ("warning", 4), ("info", 6), ("debug", 7)])
def test_what_the_system_log_gets(tmp_path: Path, level: str, severity: int) -> None:
    """A daemon's message of the event's severity, with our name and pid before the event."""
    syslog = SystemLog(tmp_path / "devlog")
    try:
        events.Log(None, str(syslog.path), "debug").emit("cache.kept", level, outcome="kept")
        (event,) = syslog.events()
    finally:
        syslog.close()
    (message,) = syslog.messages
    assert re.match(rf"<{3 * 8 + severity}>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d jobcache\[{os.getpid()}\]: \{{", message)
    assert event["level"] == level


def test_a_log_to_nowhere() -> None:
    """A site may switch off both."""
    events.Log(None, None, "debug").emit("cache.kept", outcome="kept")


def test_a_level_that_there_is_not() -> None:
    """A level is one of four; the configuration is checked against these."""
    with pytest.raises(ValueError):
        events.Log(None, None, "loud")
