"""Retire and delete what a retention decision names, as the store's owner."""

import errno
import os
import stat
import time

from jobcache.cache import dirfd, store_names, store_reading
from jobcache.store import sections
from jobcache.system import reaper
from jobcache.system.unlinked import Unlinked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobcache.store.retention import Decision

DEBRIS_AGE = 86400.0  # seconds without a change, after which the process that created an unfinished entry has ended
_STRIDE = 5.0  # seconds of deletion at a time


def carry_out(
    path: str, owner: "int | None", decisions: "Iterable[Decision]", until: float
) -> "Iterator[tuple[Decision, int, int]]":
    """Carry out decisions about the store at `path`, up to the deadline.

    Yield (decision, bytes, files) of each deletion, and (decision, 0, 0) of each retirement. Raise reasons.Refused, OSError.
    """
    pending = [decision for decision in decisions if decision.action != "keep"]
    if not pending:
        return
    store_fd, owner = store_reading.open_store(path, owner)
    try:
        for decision in pending:
            entry = decision.entry
            if time.monotonic() >= until:
                return
            section_fd = store_reading.open_below(store_fd, f"{store_names.VERSION}/{store_names.section(entry.label)}", owner)
            try:
                if decision.action == "retire":
                    sections.retire(section_fd, entry.name)
                    yield decision, 0, 0
                else:
                    yield (decision, *drop(section_fd, entry.name, until, entry.retired if entry.kind == "build" else None))
            except FileNotFoundError:
                continue  # another pruning was faster; a build that has the name now is not the one that was judged
            finally:
                os.close(section_fd)
    finally:
        os.close(store_fd)


def drop(section_fd: int, name: str, until: float, retired: "float | None" = None) -> "tuple[int, int]":
    """Delete an entry of a section to which no job links; return (bytes, files).

    retired: when the build was retired, as judged. Raise FileNotFoundError if the build of that name was not retired then.
    Raise OSError, reaper.Kept.
    """
    fd = os.open(name, dirfd.DIRECTORY, dir_fd=section_fd)
    try:
        if retired is not None and sections.retired_at(fd) != retired:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        trash = reaper.retire_stored(section_fd, name, fd)
        freed = files = 0
        unlinked = Unlinked()
        while True:
            tally = reaper.delete(section_fd, trash, fd, min(until, time.monotonic() + _STRIDE), unlinked=unlinked)
            freed, files = freed + tally.bytes, files + tally.files
            if tally.done or not tally.files or time.monotonic() >= until:
                return freed, files
    finally:
        os.close(fd)


def remove_empty_sections(path: str, owner: "int | None", now: float) -> None:
    """Remove the sections of the store at `path` that have been empty for a day. Raise reasons.Refused, OSError."""
    store_fd, owner = store_reading.open_store(path, owner)
    try:
        version_fd = store_reading.open_below(store_fd, store_names.VERSION, owner)
    finally:
        os.close(store_fd)
    try:
        for name in os.listdir(version_fd):
            if store_names.parse_section(name) is not None:
                found = os.stat(name, dir_fd=version_fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode) and now - found.st_mtime > DEBRIS_AGE:
                    reaper.drop_section(version_fd, name)
    finally:
        os.close(version_fd)
