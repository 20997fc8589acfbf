"""Reading a store: opening it safely, and whether a build is as it was published."""

import binascii
import errno
import os
import stat
import time

from jobcache.cache import dirfd, reasons, store_names, write_access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

INFO = "dataset_info.json"
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream

_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)
_LONGEST = 1 << 24  # bytes of a build's contents


def by_last_use(section_fd: int, until: float) -> "list[str]":
    """Return the builds of a section, the most recently used first; those that were seen by `until`. Raise OSError.

    Of several generations only the newest: those before it hold what was replaced, whether retired yet or not.
    """
    found: "dict[str, tuple[int, int, str]]" = {}
    with os.scandir(section_fd) as entries:
        for entry in entries:
            parsed = store_names.parse_build(entry.name)
            if parsed:
                of, generation = parsed
                try:
                    used = entry.stat(follow_symlinks=False).st_mtime_ns
                except FileNotFoundError:
                    continue
                if of not in found or found[of][1] < generation:
                    found[of] = used, generation, entry.name
                if time.monotonic() >= until:
                    break
    return [name for _, _, name in sorted(found.values(), reverse=True)]


# ------------------------------------------------------------------------------------------------- looking at a store


def open_store(path: str, owner: "int | None") -> "tuple[int, int]":
    """Return a store's directory, opened, and the uid it belongs to. Raise cachedir.Refused, OSError."""
    try:
        fd = dirfd.open_directory(path)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            raise reasons.Refused("not_directory", "a symlink that is not root's, or a file, is in the path") from None
        raise
    try:
        if owner is None:
            _check_ways(path)
            owner = os.fstat(fd).st_uid
        _check_owner(fd, owner)
    except (OSError, reasons.Refused):
        os.close(fd)
        raise
    return fd, owner


def open_below(dir_fd: int, path: str, owner: int) -> int:
    """Open a directory of a store below another, each step without following a symlink. Raise cachedir.Refused, OSError."""
    fd = os.dup(dir_fd)
    try:
        for part in path.split("/"):
            try:
                below = os.open(part, dirfd.DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno in _NO_DIRECTORY:
                    raise reasons.Refused("not_directory", f"{part} is a symlink or a file") from None
                raise
            os.close(fd)
            fd = below
            _check_owner(fd, owner)
    except (OSError, reasons.Refused):
        os.close(fd)
        raise
    return fd


def _check_owner(fd: int, owner: int) -> None:
    found = os.fstat(fd)
    weak = write_access.weakness(found, (owner,))
    if weak == write_access.FOREIGN:
        raise reasons.Refused("foreign", f"it belongs to uid {found.st_uid}, not to {owner}")
    if weak:
        raise reasons.Refused("writable", "others may write it; `chmod go-w` it")


def _check_ways(path: str) -> None:
    """Raise cachedir.Refused if a user may have put a directory in the place of the site's store.

    Any account may own the store and the directories above it. Only below an open directory, such as /scratch with a
    sticky bit, where every user can create entries, root must own the next one.
    """
    above = "/"
    for at in _prefixes(path):
        if write_access.is_open(os.stat(above).st_mode) and os.lstat(at).st_uid != 0:
            raise reasons.Refused("writable", f"others may write {above}, where root would have to own {at}")
        above = at


def _prefixes(path: str) -> "Iterator[str]":
    at = ""
    for part in path.strip("/").split("/"):
        at += "/" + part
        yield at


def read_contents(build_fd: int) -> store_names.Contents:
    """Return what is in a build. Raise cachedir.Refused where its contents are not whole, OSError."""
    parsed = store_names.parse_contents(os.fsdecode(_read(build_fd, store_names.CONTENTS)))
    if parsed is None:
        raise reasons.Refused("damaged", "its contents are not whole")
    return parsed


def checksum(files_fd: int) -> int:
    """Return that of a build's dataset_info.json, which says what is in all of it. Raise cachedir.Refused, OSError."""
    return binascii.crc32(_read(files_fd, INFO))


def _read(dir_fd: int, name: str) -> bytes:
    fd = os.open(name, dirfd.FILE, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise reasons.Refused("damaged", f"{name} is no file")
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)


def check_files(files_fd: int, contents: store_names.Contents, until: float = float("inf")) -> None:
    """Raise cachedir.Refused where a build's files are not the very ones that were published, OSError.

    Each has the size and the mtime that it had, and each Arrow stream has its end. What is in it was checked then.
    Raise TimeoutError after `until`.
    """
    files = contents.files
    seen = 0
    with os.scandir(files_fd) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or files.get(entry.name) != (found.st_size, found.st_mtime_ns):
                raise reasons.Refused("damaged", f"{entry.name} is not as it was published")
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if entry.name.endswith(".arrow"):
                _check_end(files_fd, entry.name, found.st_size)
            seen += 1
    if seen != len(files) or INFO not in files:
        raise reasons.Refused("damaged", "a file of it is gone")
    if checksum(files_fd) != contents.checksum:
        raise reasons.Refused("damaged", f"{INFO} is not as it was published")


def _check_end(files_fd: int, name: str, size: int) -> None:
    fd = os.open(name, dirfd.FILE, dir_fd=files_fd)
    try:
        if os.pread(fd, len(END), max(0, size - len(END))) != END:
            raise reasons.Refused("damaged", f"{name} has no end")
    finally:
        os.close(fd)


def exists(dir_fd: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
