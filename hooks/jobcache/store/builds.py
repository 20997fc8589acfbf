"""What `datasets` leaves in a cache: where a finished build is, and whether it is whole.

A build is <dataset>/<config>/<version>/<hash>/ with a dataset_info.json. That is all that `datasets` itself looks at, so a
build that a crash has damaged loads, with fewer rows and no error. Here it counts only if every file that the info names
is there and holds the rows that the info says. What is read is the user's: it may be anything.
"""

import json
import os
import stat
import time

from jobcache.cache import cache_names, dirfd, store_names, store_reading
from jobcache.store import arrow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_INFO_MAX = 1 << 24  # bytes of a dataset_info.json
_MOST_SHARDS = 100_000


class NotWhole(Exception):
    """The build is not one to hand on; the words say why."""


class Build:
    """A whole build. files: (bytes, mtime in nanoseconds) by name. rows: by split. maps: how many of the files are results of
    `map`. bytes: allocated to the files. mtime: of its directory, in nanoseconds."""

    __slots__ = ("files", "rows", "maps", "bytes", "mtime")

    def __init__(self) -> None:
        self.files: "dict[str, tuple[int, int]]" = {}
        self.rows: "dict[str, int]" = {}
        self.maps = 0
        self.bytes = 0
        self.mtime = 0


def find(cache_fd: int, until: float) -> "Iterator[tuple[str, str]]":
    """Yield (below, key) of what looks like a finished build in the cache held open, until `until`. Raise OSError.

    below: the HF_DATASETS_CACHE it lies in, "" or one of `scope`'s directories in the cache.
    """
    roots = [""]
    while roots:
        root = roots.pop()
        for path in _below(cache_fd, root, until):
            if time.monotonic() >= until:
                return
            if not root and cache_names.is_scope(path):
                roots.append(path)
                continue
            paths = [path]
            for _ in range(3):
                paths = [below for one in paths for below in _below(cache_fd, one, until)]
            for one in paths:
                key = one[len(root) + 1 :] if root else one
                if store_names.is_key(key) and os.path.lexists(f"/proc/self/fd/{cache_fd}/{one}/{store_reading.INFO}"):
                    yield root, key


def _below(cache_fd: int, path: str, until: float) -> "list[str]":
    """Return the directories in a directory of the cache that a build can lie in."""
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
    """Open a directory below another, each step without following a symlink; None where there is none."""
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
    """Open a build's directory, None where it is gone."""
    return _open(cache_fd, f"{below}/{key}" if below else key)


def link_of(build_fd: int) -> "str | None":
    """Return where a build that was linked from a store has its info from, None for one that was built here."""
    try:
        return os.readlink(store_reading.INFO, dir_fd=build_fd)
    except OSError:
        return None


def check(build_fd: int, until: float, with_maps: bool) -> Build:
    """Return what is to be handed on of the build held open. Raise NotWhole, arrow.Late after `until`, OSError."""
    build = Build()
    for split, shards in _shards(build_fd).items():
        build.rows[split] = _split(build, build_fd, shards, until)
    _add(build, build_fd, store_reading.INFO)
    if with_maps:
        for name in _maps(build_fd):
            if name in build.files:
                continue  # a shard of a dataset that is called `cache`
            try:
                arrow.rows_of(name, build_fd, until)
                _add(build, build_fd, name)
            except (arrow.Broken, NotWhole, OSError):
                continue  # the build is whole without it
            build.maps += 1
    build.mtime = os.fstat(build_fd).st_mtime_ns
    return build


def _info(build_fd: int) -> "dict[str, Any]":
    try:
        fd = os.open(store_reading.INFO, dirfd.FILE, dir_fd=build_fd)
    except FileNotFoundError:
        raise NotWhole(f"no {store_reading.INFO}") from None
    try:
        data = os.read(fd, _INFO_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    try:
        info = json.loads(data)
    except (ValueError, RecursionError):
        raise NotWhole(f"{store_reading.INFO} is not JSON") from None
    if not isinstance(info, dict):
        raise NotWhole(f"{store_reading.INFO} is no object")
    return info


def _splits(info: "dict[str, Any]") -> "dict[str, dict[str, Any]]":
    splits = info.get("splits")
    if not isinstance(splits, dict) or not splits or not all(isinstance(about, dict) for about in splits.values()):
        raise NotWhole(f"{store_reading.INFO} names no splits")
    return splits


def parts(build_fd: int) -> "tuple[list[str], dict[str, int]]":
    """Return (files, rows by split) of the build held open, as its info says: all but results of `map`.

    Raise NotWhole, OSError.
    """
    splits = _shards(build_fd)
    files = [file for shards in splits.values() for file, _ in shards]
    return [store_reading.INFO, *files], {split: sum(rows for _, rows in shards) for split, shards in splits.items()}


def _shards(build_fd: int) -> "dict[str, list[tuple[str, int]]]":
    """Return (file, rows) of each shard that the info names, by split. Raise NotWhole, OSError."""
    info = _info(build_fd)
    return {split: _shards_of(info, split, about) for split, about in _splits(info).items()}


def _shards_of(info: "dict[str, Any]", split: str, about: "dict[str, Any]") -> "list[tuple[str, int]]":
    rows, lengths = about.get("num_examples"), about.get("shard_lengths") or [about.get("num_examples")]
    name = about.get("dataset_name") or info.get("dataset_name") or info.get("builder_name")
    if not isinstance(name, str) or not isinstance(lengths, list) or len(lengths) > _MOST_SHARDS:
        raise NotWhole(f"{store_reading.INFO} does not describe {split!r}")
    if type(rows) is not int or any(type(length) is not int for length in lengths) or sum(lengths) != rows:
        raise NotWhole(f"{store_reading.INFO} does not say how many rows {split!r} has")
    shards = []
    for at, length in enumerate(lengths):
        shard = f"-{at:05d}-of-{len(lengths):05d}" if len(lengths) > 1 else ""
        file = f"{name}-{split}{shard}.arrow"
        if not store_names.is_build_file(file):
            raise NotWhole(f"{store_reading.INFO} names a file {file!r}")
        shards.append((file, length))
    return shards


def _split(build: Build, build_fd: int, shards: "list[tuple[str, int]]", until: float) -> int:
    """Check the files of one split, and return its rows. Raise NotWhole, arrow.Late."""
    for file, length in shards:
        try:
            found = arrow.rows_of(file, build_fd, until)
        except arrow.Broken as broken:
            raise NotWhole(f"{file}: {broken}") from None
        except OSError as error:
            raise NotWhole(f"{file}: {error.strerror}") from None
        if found != length:
            raise NotWhole(f"{file} has {found} rows, and {store_reading.INFO} says {length}")
        _add(build, build_fd, file)
    return sum(length for _, length in shards)


def _maps(build_fd: int) -> "list[str]":
    """The results of `map`, `filter` and the like: each is a stream of its own that no info names."""
    with os.scandir(build_fd) as entries:
        return sorted(entry.name for entry in entries if is_map(entry.name))


def is_map(name: str) -> bool:
    """Whether a file of this name in a build can be a result of `map`, unless it is one of its parts."""
    return name.startswith("cache-") and name.endswith(".arrow") and store_names.is_build_file(name)


def _add(build: Build, build_fd: int, name: str) -> None:
    found = os.stat(name, dir_fd=build_fd, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.fstat(build_fd).st_uid:
        raise NotWhole(f"{name} is no plain file of its owner's")
    build.files[name] = (found.st_size, found.st_mtime_ns)
    build.bytes += found.st_blocks * 512
