"""A build on its way into a section: a new directory, filled with the build's files, sealed and ready for its name.

The files move by rename and become read-only. `contents` and `manifest.json` are written last.
"""

import errno
import json
import os
import stat
import time

from jobcache.cache import dirfd, reasons, store_names, store_reading, timestamps
from jobcache.store import arrow, builds, removal, sections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jobcache.store.publication import Destination, Publication

_SCHEMA = 1  # of manifest.json
_CLEARING = 0.2  # seconds for the deletion of a directory that was not published


def stage(section_fd: int, fill: "Callable[[int], None]") -> str:
    """Create a directory in a section, call `fill` with its descriptor, and return its name. Delete it if `fill` fails.

    Raise reasons.Refused if the section is on another filesystem than the cache, and whatever `fill` raises.
    """
    staged = store_names.BUILD_NEW + dirfd.nonce()
    os.mkdir(staged, 0o700, dir_fd=section_fd)
    staged_fd = os.open(staged, dirfd.DIRECTORY, dir_fd=section_fd)
    try:
        fill(staged_fd)
    except (OSError, builds.DamagedBuild, reasons.Refused, arrow.OutOfTime) as error:
        discard(section_fd, staged)
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            raise reasons.Refused("other_filesystem", "the store is on another filesystem than the cache") from None
        if isinstance(error, PermissionError):
            raise builds.DamagedBuild(str(error)) from None
        raise
    finally:
        os.close(staged_fd)
    return staged


def discard(section_fd: int, staged: str) -> None:
    """Delete a staged directory as far as a short time allows; a pruning deletes the rest. Raise OSError."""
    removal.drop(section_fd, staged, time.monotonic() + _CLEARING)


def fill(run: "Publication", staged_fd: int, build_fd: int, key: str, build: builds.Build) -> None:
    """Move all files of a build into a staged directory and seal it. Raise builds.DamagedBuild, OSError."""
    files_fd = make_files(staged_fd)
    try:
        move(files_fd, build_fd, build.files, run.sync)
        seal(run, staged_fd, files_fd, key, build)
    finally:
        os.close(files_fd)


def make_files(staged_fd: int) -> int:
    """Create the directory for a build's files in a staged directory and return its descriptor. Raise OSError."""
    os.mkdir(store_names.FILES, 0o700, dir_fd=staged_fd)
    return os.open(store_names.FILES, dirfd.DIRECTORY, dir_fd=staged_fd)


def move(files_fd: int, build_fd: int, files: "dict[str, tuple[int, int]]", sync: bool) -> None:
    """Move files of a build, make them read-only, and check that nobody has changed them since they were checked.

    files: (bytes, mtime in nanoseconds) by name, as checked. Raise builds.DamagedBuild, OSError.
    """
    for name, checked in files.items():
        fd = os.open(name, dirfd.FILE, dir_fd=build_fd)
        try:
            os.fchmod(fd, 0o444)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(name, name, src_dir_fd=build_fd, dst_dir_fd=files_fd)
        check_unchanged(files_fd, name, checked)


def check_unchanged(files_fd: int, name: str, checked: "tuple[int, int]") -> None:
    """Raise builds.DamagedBuild if a file differs from `checked`, its bytes and its mtime in nanoseconds. Raise OSError."""
    found = os.stat(name, dir_fd=files_fd, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or (found.st_size, found.st_mtime_ns) != checked:
        raise builds.DamagedBuild(f"{name} changed during publication")


def seal(run: "Publication", staged_fd: int, files_fd: int, key: str, build: builds.Build) -> None:
    """Write the manifest and the contents of a staged build and set its permissions. Raise builds.DamagedBuild, OSError."""
    os.utime(files_fd, ns=(build.mtime, build.mtime))
    os.fchmod(files_fd, 0o555 if run.to.shared else 0o500)
    manifest = json.dumps(_manifest(key, build, run.to), indent=1) + "\n"
    sections.write_read_only(staged_fd, store_names.MANIFEST, manifest, run.sync)
    checksum = store_reading.checksum(files_fd) if build.base is None else 0
    contents = store_names.format_contents(store_names.Contents(key, build.files, checksum, build.base))
    if store_names.parse_contents(contents) is None:
        raise builds.DamagedBuild("the build has too many files, or a file dated before 1970")
    sections.write_read_only(staged_fd, store_names.CONTENTS, contents, run.sync)
    if run.sync:
        os.fsync(files_fd)
    os.fchmod(staged_fd, 0o755 if run.to.shared else 0o700)


def _manifest(key: str, build: builds.Build, to: "Destination") -> "dict[str, Any]":
    return {
        "schema": _SCHEMA,
        "key": key,
        "label": to.label or None,
        "published_at": timestamps.second(time.time()),
        "rows": build.rows,
        "files": len(build.files),
        "maps": build.maps,
        "bytes": build.bytes,
        **to.facts,
    }
