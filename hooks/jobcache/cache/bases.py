"""The bases in a cache: builds that are linked from the user's own cache or a store, each with its state at that time.

Results of `map` belong to one content of a build. `datasets` deletes them when it builds again; a store that keeps them
elsewhere compares states. The file is in the directory that `datasets` uses, so that it always describes that directory.
"""

import binascii
import os

from jobcache.cache import build_info, cache_names, dirfd, store_names
from jobcache.cache.fields import natural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FILE = f"{cache_names.META}/bases"


class Base:
    """A linked build. path: of the directory to whose files it is linked. state: as of `state`."""

    __slots__ = ("path", "state")

    def __init__(self, path: str, state: int) -> None:
        self.path = path
        self.state = state


def state(info: bytes, parts: "Iterable[tuple[str, int, int]]") -> int:
    """Return a number that changes when a build is built again: of its dataset_info.json, and of the dates of its files.

    parts: (name, bytes, mtime in ns) of each file of the build, without results of `map`.
    """
    return stored_state(binascii.crc32(info), parts)


def stored_state(checksum: int, parts: "Iterable[tuple[str, int, int]]") -> int:
    """Return what `state` does, given the checksum of dataset_info.json in a store."""
    text = "".join(f"{size} {mtime} {name}\n" for name, size, mtime in sorted(parts))
    return binascii.crc32(os.fsencode(text), checksum)


def add(into_fd: int, source: str, found: "dict[str, int]") -> None:
    """Add the states of builds that are linked from the cache `source`, by key, to the file in a cache. Raise OSError."""
    _append(into_fd, [source, *(f"{number} {key}" for key, number in found.items())] if found else [])


def add_stored(into_fd: int, found: "dict[str, Base]") -> None:
    """Add builds that are linked from a store, by key. Raise OSError."""
    _append(into_fd, [line for key, base in found.items() for line in (f"={base.path}", f"{base.state} {key}")])


def _append(into_fd: int, lines: "list[str]") -> None:
    """Append to the file in a cache. A line `/PATH` is the cache, and a line `=/PATH` the directory, of the builds after it."""
    if not lines or any("\n" in line for line in lines):
        return
    try:
        os.mkdir(cache_names.META, 0o700, dir_fd=into_fd)
    except FileExistsError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_FILE, flags, 0o600, dir_fd=into_fd)
    try:
        os.write(fd, os.fsencode("\n".join([*lines, ""])))
    finally:
        os.close(fd)


def read(cache_fd: int, below: str) -> "dict[str, Base]":
    """Return the bases in the directory `below` of a cache, "" for the cache itself, by key. Raise nothing.

    The file is the user's, who may have written anything into it.
    """
    found: "dict[str, Base]" = {}
    try:
        with dirfd.Opened(cache_fd, f"{below}/{_FILE}" if below else _FILE, dirfd.FILE) as fd:
            lines = os.fsdecode(os.read(fd, build_info.READ_LIMIT)).split("\n")
    except OSError:
        return found
    source = ""
    for line in lines[:-1]:
        word, _, key = line.partition(" ")
        number = natural(word)
        if line.startswith(("/", "=/")):
            source = line
        elif source and number is not None and store_names.is_key(key):
            found.setdefault(key, Base(source[1:] if source[0] == "=" else f"{source}/{key}", number))
    return found
