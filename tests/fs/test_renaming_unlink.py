"""Filesystems on which unlink renames a file that is open (`.nfs…`, `.fuse_hidden…`): deletion counts progress, not calls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobcache.system import reaper
from support.home import ALICE, Home, acting_as, make_cache


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home()
    try:
        yield made
        made.check()
    finally:
        made.close()


def rename_when_open(monkeypatch: pytest.MonkeyPatch, *inodes: int) -> list[str]:
    """Make unlink rename the files with these inodes, as NFS does for a file that a process has open; return the names so far."""
    names: list[str] = []
    unlink = os.unlink

    def renaming(path: str, *, dir_fd: int | None = None) -> None:
        if os.lstat(path, dir_fd=dir_fd).st_ino in inodes:
            names.append(f".nfs{len(names):08d}")
            os.rename(path, names[-1], src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        else:
            unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", renaming)
    return names


@pytest.mark.parametrize("where", ["json/open", "open"])
def test_an_open_file_is_neither_counted_nor_progress(home: Home, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """All other files go, each is counted once, the open one is left, and the deletion ends long before its deadline."""
    with acting_as(ALICE):
        make_cache(home.cache, where, *(f"json/{number}" for number in range(50)), *(f"csv/{number}" for number in range(50)))
        parent_fd, fd = os.open(home.cache_dir, os.O_PATH), os.open(home.cache, os.O_RDONLY)
        names = rename_when_open(monkeypatch, os.stat(home.cache / where).st_ino)
        began = time.monotonic()
        tally = reaper.delete(parent_fd, home.cache.name, fd, time.monotonic() + 20)
        assert time.monotonic() - began < 10
        assert (tally.done, tally.files, tally.bytes) == (False, 100, 100 * 4096)
        assert tally.left >= 1 and len(names) <= 4
        monkeypatch.undo()
        tally = reaper.delete(parent_fd, home.cache.name, fd, time.monotonic() + 20)
        assert tally.done and tally.files == 1
        os.close(fd), os.close(parent_fd)
    assert home.rest() == []
