"""Arrow streams, compared with pyarrow: a broken stream is never accepted."""

from __future__ import annotations

import io
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.store import arrow

FOREVER = time.monotonic() + 1e9
SCHEMAS = [
    pa.schema([("id", pa.int64())]),
    pa.schema([("text", pa.string()), ("tags", pa.list_(pa.string())), ("x", pa.struct([("a", pa.float32())]))]),
    pa.schema([("word", pa.dictionary(pa.int8(), pa.string()))], metadata={"huggingface": "x" * 5000}),
]
VALUES = [[1, 2, 3, 4], [["a", "ää", None], [["x"], [], None], [{"a": 1.0}, None, {"a": 2.0}]], ["a", "b", "a"]]


def stream(which: int, batches: list[int]) -> bytes:
    """Return an Arrow stream with batches of so many rows."""
    schema = SCHEMAS[which]
    columns = [VALUES[which]] if len(schema) == 1 else VALUES[which]
    out = io.BytesIO()
    with pa.ipc.new_stream(out, schema) as writer:
        for rows in batches:
            arrays = [
                pa.array([column[at % len(column)] for at in range(rows)], type=field.type)  # type: ignore[index, arg-type]
                for column, field in zip(columns, schema)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return out.getvalue()


def rows_of(data: bytes, until: float = FOREVER) -> int:
    with tempfile.TemporaryDirectory() as place:
        Path(place, "x.arrow").write_bytes(data)
        fd = os.open(place, os.O_RDONLY)
        try:
            return arrow.rows_of("x.arrow", fd, until)
        finally:
            os.close(fd)


streams = st.builds(stream, st.integers(0, 2), st.lists(st.integers(0, 40), max_size=5))


@given(streams)
def test_counts_rows_like_pyarrow(data: bytes) -> None:
    """Of every kind of column, with dictionaries, and without a single batch."""
    assert rows_of(data) == pa.ipc.open_stream(data).read_all().num_rows


@given(streams, st.data())
def test_cut_extended_or_zeroed_stream_is_broken(data: bytes, choose: st.DataObject) -> None:
    """Cut at any byte, followed by anything, or zeroed from any byte to the end."""
    at = choose.draw(st.integers(0, len(data) - 1))
    for broken in (data[:at], data + data[: at + 1], data[:at] + bytes(len(data) - at) if any(data[at:]) else b""):
        with pytest.raises(arrow.BrokenStream):
            rows_of(broken)


@given(streams, st.data())
def test_changed_bytes_never_raise_another_error(data: bytes, choose: st.DataObject) -> None:
    """Return some rows or raise BrokenStream, and end."""
    changed = bytearray(data)
    for _ in range(choose.draw(st.integers(1, 4))):
        at = choose.draw(st.integers(0, len(changed) - 1))
        changed[at] = choose.draw(st.integers(0, 255))
    try:
        assert rows_of(bytes(changed)) >= 0
    except arrow.BrokenStream as broken:
        assert str(broken)


@given(st.binary(max_size=300))
def test_noise_is_broken(data: bytes) -> None:
    """Noise, also after a marker that announces a message."""
    for noise in (data, b"\xff\xff\xff\xff" + len(data).to_bytes(4, "little") + data + b"\xff\xff\xff\xff\0\0\0\0"):
        with pytest.raises(arrow.BrokenStream):
            rows_of(noise)


def test_stops_at_deadline() -> None:
    """In a file of many batches."""
    with pytest.raises(arrow.OutOfTime):
        rows_of(stream(0, [1] * 50), until=time.monotonic() - 1)


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """Nothing else is opened for reading, and a fifo does not block."""
    path = tmp_path / "x.arrow"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        (tmp_path / "y").write_bytes(stream(0, [1]))
        path.symlink_to("y")
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises((arrow.BrokenStream, OSError)):
        arrow.rows_of("x.arrow", fd, FOREVER)
    os.close(fd)
