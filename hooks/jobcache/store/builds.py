"""The builds that `datasets` leaves in a cache: where finished ones are, and whether they are whole.

A build is the directory <dataset>/<config>/<version>/<hash>/ with a dataset_info.json in it. `datasets` checks nothing else,
so a build that a crash has damaged loads with fewer rows and without an error. This module accepts a build only if every
file that dataset_info.json names exists and has the stated number of rows. All content is untrusted: the user may have
written anything.
"""

import os
import stat
import time

from jobcache.cache import build_info, cache_names, dirfd, reasons, store_names
from jobcache.store import arrow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LEVELS_BELOW_DATASET = 3  # config, version, hash


class DamagedBuild(Exception):
    """The build is not whole, or cannot be published; the message is the reason."""


class Build:
    """A whole build.

    files: (bytes, mtime in nanoseconds) by name. rows: by split. maps: number of files that are results of `map`.
    bytes: allocated to the files. mtime: of the directory, in nanoseconds. base: of a result set, the state of the build to
    which it belongs; a result set has no rows.
    """

    __slots__ = ("files", "rows", "maps", "bytes", "mtime", "base")

    def __init__(self) -> None:
        self.files: "dict[str, tuple[int, int]]" = {}
        self.rows: "dict[str, int]" = {}
        self.maps = 0
        self.bytes = 0
        self.mtime = 0
        self.base: "int | None" = None


# --------------------------------------------------------------------------------------------------- finding builds


def find(cache_fd: int, until: float) -> "Iterator[tuple[str, str]]":
    """Yield (below, key) of each finished build in a cache, up to the deadline. Raise OSError.

    below: the value of HF_DATASETS_CACHE relative to the cache: "", or a directory that `scope: node` or `task` made.
    """
    roots = [""]
    while roots:
        root = roots.pop()
        for path in _directories(cache_fd, root, until):
            if time.monotonic() >= until:
                return
            if not root and cache_names.is_scope(path):
                roots.append(path)
                continue
            paths = [path]
            for _ in range(_LEVELS_BELOW_DATASET):
                versions, paths = paths, [below for above in paths for below in _directories(cache_fd, above, until)]
            for path in [*versions, *paths]:
                key = path[len(root) + 1 :] if root else path
                if store_names.is_key(key) and os.path.lexists(f"/proc/self/fd/{cache_fd}/{path}/{build_info.INFO}"):
                    yield root, key


def _directories(cache_fd: int, path: str, until: float) -> "list[str]":
    """Return the paths of the directories in a directory of the cache that can contain a build."""
    fd = _open(cache_fd, path) if time.monotonic() < until else None
    if fd is None:
        return []
    found = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if time.monotonic() >= until:
                    break
                if entry.name[0] != "." and entry.is_dir(follow_symlinks=False):
                    found.append(f"{path}/{entry.name}" if path else entry.name)
    finally:
        os.close(fd)
    return found


def _open(cache_fd: int, path: str) -> "int | None":
    """Open a directory below another without following any symlink. Return None if it cannot be opened."""
    fd = os.dup(cache_fd)
    for part in filter(None, path.split("/")):
        try:
            below = os.open(part, dirfd.DIRECTORY, dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        fd = below
    return fd


def open_build(cache_fd: int, below: str, key: str) -> "int | None":
    """Open the directory of a build that `find` yielded. Return None if it is gone."""
    return _open(cache_fd, f"{below}/{key}" if below else key)


def link_of(build_fd: int) -> "str | None":
    """Return the target of the link to a stored dataset_info.json, None for a build that was made in this cache."""
    try:
        return os.readlink(build_info.INFO, dir_fd=build_fd)
    except OSError:
        return None


# ------------------------------------------------------------------------------------------------- checking a build


def check(build_fd: int, until: float, with_maps: bool) -> Build:
    """Check the build in `build_fd` and return its files. with_maps: include whole results of `map`.

    Raise DamagedBuild, arrow.OutOfTime after `until`, OSError.
    """
    build = Build()
    for split, shards in _shards(build_fd).items():
        build.rows[split] = _check_split(build, build_fd, shards, until)
    _add(build, build_fd, build_info.INFO)
    if with_maps:
        _add_maps(build, build_fd, until)
    build.mtime = os.fstat(build_fd).st_mtime_ns
    return build


def check_result_set(files_fd: int, until: float) -> Build:
    """Check each result of `map` in a directory, and return the whole ones. Raise arrow.OutOfTime after `until`, OSError."""
    build = Build()
    _add_maps(build, files_fd, until)
    return build


def _check_split(build: Build, build_fd: int, shards: "list[tuple[str, int]]", until: float) -> int:
    """Check the files of one split and return its rows. Raise DamagedBuild, arrow.OutOfTime."""
    for file, length in shards:
        try:
            rows = arrow.rows_of(file, build_fd, until)
        except arrow.BrokenStream as broken:
            raise DamagedBuild(f"{file}: {broken}") from None
        except OSError as error:
            raise DamagedBuild(f"{file}: {error.strerror}") from None
        if rows != length:
            raise DamagedBuild(f"{file} has {rows} rows, but {build_info.INFO} states {length}")
        _add(build, build_fd, file)
    return sum(length for _, length in shards)


def _add_maps(build: Build, build_fd: int, until: float) -> None:
    """Add the whole results of `map` in a build. dataset_info.json does not name them. Raise arrow.OutOfTime, OSError."""
    with os.scandir(build_fd) as entries:
        names = sorted(entry.name for entry in entries if build_info.is_map(entry.name))
    for name in names:
        if name in build.files:
            continue  # a shard of a dataset with the name `cache`
        try:
            arrow.rows_of(name, build_fd, until)
            _add(build, build_fd, name)
        except (arrow.BrokenStream, DamagedBuild, OSError):
            continue  # the build is whole without it
        build.maps += 1


def _add(build: Build, build_fd: int, name: str) -> None:
    """Add one file to a build. Raise DamagedBuild, OSError."""
    found = os.stat(name, dir_fd=build_fd, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.fstat(build_fd).st_uid:
        raise DamagedBuild(f"{name} is not a regular file, or does not belong to the owner of the build")
    build.files[name] = (found.st_size, found.st_mtime_ns)
    build.bytes += found.st_blocks * 512


# ------------------------------------------------------------------------------------------- reading dataset_info.json


def parts(build_fd: int) -> "tuple[list[str], dict[str, int]]":
    """Return (files, rows by split) that a build's dataset_info.json states, without results of `map`.

    Raise DamagedBuild, OSError.
    """
    splits = _shards(build_fd)
    files = [file for shards in splits.values() for file, _ in shards]
    return [build_info.INFO, *files], {split: sum(rows for _, rows in shards) for split, shards in splits.items()}


def _shards(build_fd: int) -> "dict[str, list[tuple[str, int]]]":
    """Return (file, rows) of each shard that dataset_info.json names, by split. Raise DamagedBuild, OSError."""
    try:
        fd = dirfd.open_unmarked(build_info.INFO, dirfd.FILE, build_fd)
    except FileNotFoundError:
        raise DamagedBuild(f"{build_info.INFO} is missing") from None
    try:
        data = os.read(fd, build_info.READ_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    try:
        return build_info.shards(build_info.parse(data))
    except reasons.Refused as refusal:
        raise DamagedBuild(str(refusal)) from None
