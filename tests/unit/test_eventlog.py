"""Events are read back from every form of a log, with any content that users have written into it."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.cache import timestamps
from jobcache.system import event_log, log_files

REAPED = {
    "ts": "2026-11-22T07:44:48.142Z", "event": "cache.reaped", "level": "info", "cluster": "tiger", "node": "n2", "job_id": 4242,
    "uid": 65534, "user": "nobody", "path": "/s/nobody/hf-datasets-4242", "run": 0, "outcome": "reaped", "bytes": 7, "files": 2,
}  # fmt: skip


def line(**changes: Any) -> bytes:
    return json.dumps({**REAPED, **changes}).encode() + b"\n"


def read(text: bytes, **options: Any) -> tuple[list[dict[str, Any]], event_log.Tally]:
    tally = event_log.Tally()
    return list(event_log.read([io.BytesIO(text)], tally, **options)), tally


def jobs(text: bytes, **options: Any) -> list[int]:
    return [event.get("job_id", 0) for event in read(text, **options)[0]]


def test_events_are_read_in_order() -> None:
    """Every event is returned, in order, with all its fields."""
    events, tally = read(line() + line(job_id=7))
    assert [event["job_id"] for event in events] == [4242, 7]
    assert events[0] == {**REAPED, "source": "log"}
    assert (tally.events, tally.torn) == (2, 0)


def test_numbers_that_jobcache_logs_are_kept() -> None:
    """The reader keeps each whole number of the schema: explain and report sum them up or print them."""
    schema = json.loads((Path(event_log.__file__).parents[1] / "config/schema/event.json").read_text())
    numbers = {name: 7 for name, rules in schema["properties"].items() if rules.get("type") == "integer"}
    (event,), _ = read(line(**numbers))
    assert {name: event.get(name) for name in numbers} == numbers


def test_events_of_one_job() -> None:
    """A job id that begins with the same digits, or that is part of a path, does not match."""
    text = line() + line(job_id=42) + line(job_id=42421) + line(job_id=5, path='/s/"job_id": 42/x') + line(job_id=42, run=1)
    assert [event["run"] for event in read(text, job_id=42)[0]] == [0, 1]
    assert jobs(json.dumps(REAPED, separators=(",", ":")).encode(), job_id=4242) == [4242]


def test_events_of_a_time_span() -> None:
    """From `since` to before `until`, in whole seconds and in fractions."""
    text = b"".join(
        line(ts=ts, job_id=at + 1)
        for at, ts in enumerate(("2026-11-21T23:59:59Z", "2026-11-22T00:00:00.001Z", "2026-11-23T00:00:00Z"))
    )
    assert jobs(text, since=timestamps.millisecond(1795305600)) == [2, 3]
    assert jobs(text, until=timestamps.millisecond(1795305600)) == [1]
    assert event_log.epoch("2026-11-22T00:00:00.001Z") == pytest.approx(1795305600.001)


def test_torn_lines_are_skipped() -> None:
    """After a line that a full disk cut short, the next event is read, on its own line or on the same one."""
    torn = line()[:100]
    events, tally = read(torn + b"\n" + line(job_id=5) + torn + line(job_id=6) + torn)
    assert [event["job_id"] for event in events] == [5, 6]
    assert tally.torn == 2


FORGED = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"event": "cache.reaped"}',
    b'{"event": 7, "ts": "2026-11-22T07:44:48Z"}',
    b'{"event": "cache.reaped", "ts": "yesterday"}',
    b'{"event": "cache.reaped", "ts": 7}',
    b'{"event": "x", ' + b'"a": [' * 5000,
    b"\xff\xfe\x00" * 100,
    b"{" + b"x" * (3 << 20),
    b'{"a":' * 20000,
]


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
def test_forged_lines_are_skipped(forged: bytes) -> None:
    """A line without an event is skipped, and the next one is read."""
    assert jobs(forged + b"\n" + line()) == [4242]


def test_fields_of_the_wrong_type_are_dropped() -> None:
    """A job id that is a list, a number that is a text, and a boolean number are dropped."""
    (event,) = read(line(job_id=[1], bytes="9", files=True, user={"a": 1}, invented=5))[0]
    assert set(event) == set(REAPED) - {"job_id", "bytes", "files", "user"} | {"source"}


@given(st.binary(max_size=300))
def test_any_bytes_raise_nothing(text: bytes) -> None:
    """No content of a file raises an error."""
    read(text + b"\n" + line())


@given(st.integers(1, len(line()) - 1), st.integers(0, 255))
def test_damaged_byte_costs_one_event(at: int, value: int) -> None:
    """One damaged byte costs at most one event."""
    broken = bytearray(line())
    broken[at - 1] = value
    assert jobs(bytes(broken) + line(job_id=9))[-1] == 9


HEADS = (
    b"Nov 22 07:44:48 n2 jobcache[812]: ",
    b"<30>Nov 22 07:44:48 jobcache[812]: ",
    b"2026-11-22T07:44:48+00:00 n2 jobcache: ",
    b"<30>1 2026-11-22T07:44:48Z n2 jobcache 812 - - ",
)


@pytest.mark.parametrize("head", HEADS)
def test_system_log_has_a_prefix(head: bytes) -> None:
    """Any prefix of a system log is accepted. Lines of other programs are ignored."""
    (event,) = read(head + line() + b"Nov 22 07:44:48 n2 sshd[1]: " + line())[0]
    assert (event["job_id"], event["source"]) == (4242, "syslog")


def entry(sender: int, **changes: Any) -> bytes:
    return (
        json.dumps({"_UID": str(sender), "SYSLOG_IDENTIFIER": "jobcache", "MESSAGE": line(**changes).decode().strip()}).encode()
        + b"\n"
    )


def test_journal_identifies_the_sender() -> None:
    """Users send the events of their own TaskProlog, and root all others. An event about another user is rejected."""
    made = {"event": "cache.created", "outcome": "made"}
    assert jobs(entry(0) + entry(65534, job_id=5, **made)) == [4242, 5]
    assert jobs(entry(7, **made) + entry(65534) + entry(7, uid=0)) == []
    assert jobs(json.dumps({"_UID": "0", "MESSAGE": list(line())}).encode(), job_id=None) == [4242]
    assert jobs(entry(0), job_id=4242) == [4242]


@pytest.mark.parametrize("opener, suffix", [(gzip.open, ".gz"), (bz2.open, ".bz2"), (lzma.open, ".xz")])
def test_rotated_and_compressed_logs_are_found(tmp_path: Path, opener: Any, suffix: str) -> None:
    """All rotated files of a log are returned, oldest first, and no other file."""
    log = tmp_path / "events.jsonl"
    log.write_bytes(line(job_id=4))
    (tmp_path / "events.jsonl.1").write_bytes(line(job_id=3))
    with opener(tmp_path / f"events.jsonl.2{suffix}", "wb") as file:
        file.write(line(job_id=2))
    with opener(tmp_path / f"events.jsonl-20261101{suffix}", "wb") as file:
        file.write(line(job_id=1))
    for other in ("events.jsonl.bak", "events.jsonl.1~", "events.jsonl.swp"):
        (tmp_path / other).write_bytes(line(job_id=9))
    for age, name in enumerate(("events.jsonl.1", f"events.jsonl.2{suffix}", f"events.jsonl-20261101{suffix}")):
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    found = [event["job_id"] for event in event_log.read(log_files.rotations(str(log)), event_log.Tally())]
    assert found == [1, 2, 3, 4]


def test_broken_files_are_reported(tmp_path: Path) -> None:
    """The readable events of a truncated or invalid file are returned, and the file is reported, as is a missing one."""
    text = gzip.compress(b"".join(line(job_id=at + 1) for at in range(2000)))
    (tmp_path / "a.gz").write_bytes(text[: len(text) // 2])
    (tmp_path / "b.gz").write_bytes(b"this is no gzip\n")
    tally = event_log.Tally()
    names = [str(tmp_path / name) for name in ("a.gz", "b.gz", "c")]
    found = [event["job_id"] for event in event_log.read(names, tally)]
    assert found == list(range(1, len(found) + 1)) and found
    assert [broken.partition(":")[0] for broken in tally.broken] == names


@pytest.mark.parametrize(
    "field, value",
    [("bytes", 10**4000), ("bytes", -1), ("files", 1 << 63), ("reason", "x.\nPaste this as root"), ("outcome", "R" * 99)],
    ids=["endless", "negative", "large", "prose", "shouted"],
)
def test_system_log_cannot_inject_text(field: str, value: object) -> None:
    """Any user can write to it: a value that jobcache does not write is dropped, and the rest of the event is kept."""
    (event,) = read(HEADS[0] + line(**{field: value}))[0]
    assert field not in event and event["job_id"] == 4242


def test_links_of_a_new_cache_are_read() -> None:
    """Fields of the wrong type are dropped."""
    links = {"builds": 3, "files": 9, "bytes": 500, "duration_ms": 4, "found": 4, "source": "/home/alice/x"}
    left_out = [{"dataset": "a", "reason": "damaged", "error": "x", "more": 1}, "x", {"dataset": 7}]
    (event,) = read(line(event="cache.created", inherited={**links, "left_out": left_out, "results": "x", "invented": 1}))[0]
    assert event["inherited"] == {**links, "left_out": [{"dataset": "a", "reason": "damaged", "error": "x"}, {}]}
    (event,) = read(HEADS[0] + line(inherited={"builds": -1, "bytes": 10**30, "left_out": [[]]}))[0]
    assert event["inherited"] == {}


class Pieces(io.BytesIO):
    """A file of which each read returns a few bytes."""

    def __init__(self, text: bytes, sizes: list[int]) -> None:
        super().__init__(text)
        self._sizes = itertools.cycle(sizes)

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(next(self._sizes))


TIMES = ("2026-11-21T23:59:59Z", "2026-11-22T00:00:00.001Z")
LINES = st.lists(
    st.one_of(
        st.builds(line, job_id=st.sampled_from([1, 11, 12]), ts=st.sampled_from(TIMES)),
        st.builds(lambda job: HEADS[1] + line(job_id=job, node="12"), st.integers(1, 12)),
        st.builds(lambda job: entry(0, job_id=job), st.integers(1, 12)),
        st.builds(lambda job, at: line(job_id=job)[:at], st.integers(1, 12), st.integers(1, 200)),  # torn
        st.binary(max_size=9).map(lambda text: text.replace(b"\n", b"") + b"\n"),
        st.sampled_from([b"\n", b"12\n", b'"job_id": 12\n', b"\r\n", line(job_id=12)[:-1] + b"\r\n"]),
    ),
    max_size=12,
)  # fmt: skip


@given(LINES, st.lists(st.integers(1, 400), min_size=1, max_size=4), st.booleans())
def test_quick_search_finds_what_reading_all_lines_finds(lines: list[bytes], sizes: list[int], ends: bool) -> None:
    """For one job, and for a time; with the file in blocks of any size, and with or without an end of the last line."""
    text = b"".join(lines) + (b"" if ends else line(job_id=12)[:-1])
    every = list(event_log.read([io.BytesIO(text)], event_log.Tally()))
    since = "2026-11-22T00:00:00.000Z"

    def found(**options: Any) -> list[dict[str, Any]]:
        return list(event_log.read([Pieces(text, sizes)], event_log.Tally(), **options))

    assert found() == every
    for job in (1, 12):
        assert found(job_id=job) == [event for event in every if event.get("job_id") == job]
    assert found(since=since) == [event for event in every if event["ts"] >= since]
    assert found(until=since) == [event for event in every if event["ts"] < since]


def test_lines_over_the_limit_are_no_events() -> None:
    """The lines before and after them are read, wherever a block ends."""
    long = line(job_id=5, error="x" * log_files.LINE_LIMIT)
    for size in (1000, 1 << 18, 1 << 21):
        text = line(job_id=1) + long + line(job_id=2) + long + long + line(job_id=3) + long
        found = event_log.read([Pieces(text, [size])], event_log.Tally())
        assert [event["job_id"] for event in found] == [1, 2, 3]


@pytest.mark.skipif(shutil.which("zstd") is None, reason="apt-get install zstd")
def test_zstd_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several frames in one file, too. A truncated file yields its begin, and is reported, as where nothing unpacks it."""
    text = b"".join(line(job_id=at + 1) for at in range(20_000))
    packed = b"".join(subprocess.run(["zstd", "-c"], input=one, capture_output=True, check=True).stdout for one in (line(), text))
    (tmp_path / "a.log.zst").write_bytes(packed)
    (tmp_path / "b.log.zst").write_bytes(packed[: len(packed) // 2])
    tally = event_log.Tally()
    assert [event["job_id"] for event in event_log.read([str(tmp_path / "a.log.zst")], tally)] == [4242, *range(1, 20_001)]
    assert tally.broken == ()
    found = list(event_log.read([str(tmp_path / "b.log.zst")], tally))
    assert found[0]["job_id"] == 4242 and len(found) < 20_000 and "b.log.zst" in tally.broken[0]
    monkeypatch.setattr(log_files, "_ZSTD", ())
    monkeypatch.setattr(log_files.shutil, "which", lambda *_, **__: None)
    tally = event_log.Tally()
    assert list(event_log.read([str(tmp_path / "a.log.zst")], tally)) == [] and "install the program zstd" in tally.broken[0]


def test_files_that_were_last_changed_before_are_skipped(tmp_path: Path) -> None:
    """With a day for clocks that differ. A missing file is not skipped, so that it is reported."""
    for name, age in (("old", 3), ("clocks", 1.5), ("new", 0)):
        (tmp_path / name).write_bytes(line())
        os.utime(tmp_path / name, (1e9 - age * 86400, 1e9 - age * 86400))
    names = [str(tmp_path / name) for name in ("old", "clocks", "new", "missing")]
    assert log_files.changed_since([*names, "-"], 1e9 - 86400) == [*names[1:], "-"]
    assert log_files.total_size(names[:2]) == 2 * len(line()) and log_files.total_size([*names, "-"]) == 0
