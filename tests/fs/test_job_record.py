"""Ids and records, and other entries that users can put in their place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobcache.cache import job_record
from support.claims import CACHE, claim, enter, make_odd, opened, refusal


@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "dangling"])
def test_id_that_is_no_regular_file_is_foreign(scratch: Path, kind: str) -> None:
    """No task joins or discards the cache, and no reader hangs on the id."""
    enter(claim(scratch))
    path = scratch / CACHE / ".jobcache/id"
    path.unlink()
    make_odd(path, kind)
    for first_task in (False, True):
        assert refusal(claim(scratch, first_task=first_task)) == "foreign"
    with opened(scratch / CACHE) as fd:
        assert job_record.identity(fd) != claim(scratch).identity


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "dangling"])
@pytest.mark.parametrize("first_task", [True, False])
def test_meta_that_is_no_directory_is_foreign(scratch: Path, kind: str, first_task: bool) -> None:
    """The cache is left as it is, and its identity, record and keep mark read as unknown."""
    (scratch / CACHE).mkdir()
    make_odd(scratch / CACHE / ".jobcache", kind)
    before = sorted(os.listdir(scratch / CACHE))
    assert refusal(claim(scratch, first_task=first_task)) == "foreign"
    assert sorted(os.listdir(scratch / CACHE)) == before
    with opened(scratch / CACHE) as fd:
        assert job_record.identity(fd) == job_record.UNREADABLE
        assert job_record.read_record(fd) == {}
        assert not job_record.is_kept(fd)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '"x"', "null", '{"schema": 1', "\x00", "é", "x" * 70000, "[" * 60000, '{"a": ' * 10000, "NaN",
        '{"schema": 1}trailing',
        '{"schema": 1}' + " " * 65536,
    ],
)  # fmt: skip
def test_record_that_is_no_json_object_reads_as_empty(scratch: Path, text: str) -> None:
    """A user can write any content into it."""
    enter(claim(scratch))
    (scratch / CACHE / ".jobcache/job.json").write_text(text)
    with opened(scratch / CACHE) as fd:
        assert job_record.read_record(fd) == {}


@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "dangling"])
def test_record_that_is_no_regular_file_reads_as_empty(scratch: Path, kind: str) -> None:
    """No symlink is followed, and the reader does not wait for a fifo."""
    enter(claim(scratch))
    path = scratch / CACHE / ".jobcache/job.json"
    path.unlink()
    make_odd(path, kind)
    with opened(scratch / CACHE) as fd:
        assert job_record.read_record(fd) == {}


def test_record_is_replaced_atomically(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write_record puts a whole new record in place, or leaves the old one."""
    enter(claim(scratch))
    with opened(scratch / CACHE) as fd:
        job_record.write_record(fd, {"keep_until": "x"})
        assert job_record.read_record(fd) == {"keep_until": "x"}
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: 1)
            with pytest.raises(OSError, match="No space"):
                job_record.write_record(fd, {"keep_until": "y"})
        assert job_record.read_record(fd) == {"keep_until": "x"}
    assert sorted(os.listdir(scratch / CACHE / ".jobcache")) == ["id", "job.json", "nodes"]
