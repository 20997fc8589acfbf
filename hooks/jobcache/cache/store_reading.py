"""Reading a store: opening it safely, and checking that a build is as it was published.

It writes nothing into the store. A store is untrusted until `open_store` has checked who can write to it.
"""

import binascii
import errno
import os
import stat
import time

from jobcache.cache import build_info, dirfd, file_owners, reasons, safe_path, store_names, write_access

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_NOT_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)


# ---- directories


def open_store(path: str, owner: "int | None", is_users: bool = True) -> "tuple[int, int]":
    """Open a store; return its descriptor and the uid of its owner. Raise Refused, OSError.

    owner: the uid that must own the store; None for the site's store, which only root can have put at its path.
    is_users: it is the user's own store, so that no other user may be able to exchange a directory above it.
    """
    fd = open_user_path(path, owner) if is_users and owner is not None else _open_path(path)
    try:
        if owner is None:
            _check_site_path(path)
            owner = os.fstat(fd).st_uid
        else:
            owner = file_owners.own(owner)
        _check_owner(fd, owner)
    except (OSError, reasons.Refused):
        os.close(fd)
        raise
    return fd, owner


def open_user_path(path: str, uid: int, make: bool = False) -> int:
    """Open the directory of a store of the user `uid`, or with `make` create it; return its descriptor. Raise Refused, OSError.

    The template of the store is not known here: the directory above the store counts as the user's.
    """
    above = path.rpartition("/")[0].rpartition("/")[0]
    return _open_path(path, lambda: safe_path.open_safe(path, uid, above, make))


def _open_path(path: str, opening: "Callable[[], int] | None" = None) -> int:
    """Return what `opening` returns, by default the descriptor of the directory `path`. Raise Refused, OSError."""
    try:
        return opening() if opening else dirfd.open_directory(path)
    except OSError as error:
        if error.errno in _NOT_DIRECTORY:
            raise reasons.Refused("not_directory", "a file, or a symlink that root does not own, is in the path") from None
        raise


def open_below(dir_fd: int, path: str, owner: int) -> int:
    """Open a directory in a store, and check each directory on the way; return its descriptor. Raise Refused, OSError."""
    is_own = owner == os.geteuid()
    fd = dir_fd
    try:
        for part in path.split("/"):
            try:
                below = dirfd.open_unmarked(part, dirfd.DIRECTORY, fd) if is_own else os.open(part, dirfd.DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno in _NOT_DIRECTORY:
                    raise reasons.Refused("not_directory", f"{part} is a symlink or a file") from None
                raise
            if fd != dir_fd:
                os.close(fd)
            fd = below
            _check_owner(fd, owner)
    except (OSError, reasons.Refused):
        if fd != dir_fd:
            os.close(fd)
        raise
    return fd


def _check_owner(fd: int, owner: int) -> None:
    """Raise Refused unless `owner` owns the directory, and nobody else can write to it."""
    found = os.fstat(fd)
    weak = write_access.weakness(found, (owner,))
    if weak == write_access.FOREIGN:
        raise reasons.Refused("foreign", f"it belongs to uid {found.st_uid}, not to {owner}")
    if weak:
        raise reasons.Refused("writable", "others can write to it; run `chmod go-w` on it")


def _check_site_path(path: str) -> None:
    """Raise Refused if a user can have put the site's store at its path. Raise OSError.

    Any account may own the store and the directories above it. Only below an open directory, such as /scratch with a
    sticky bit, where every user can create entries, root must own the next one.
    """
    above = "/"
    for at in _prefixes(path):
        found = os.stat(above)
        if write_access.is_open(found.st_mode) and not file_owners.is_roots(os.lstat(at), found):
            raise reasons.Refused("writable", f"others can write to {above}, so root has to own {at}")
        above = at


def _prefixes(path: str) -> "Iterator[str]":
    """Yield `/a`, `/a/b` … of an absolute path."""
    at = ""
    for part in path.strip("/").split("/"):
        at += "/" + part
        yield at


# ---- builds


def by_last_use(section_fd: int, until: float, result_sets: bool = False) -> "list[str]":
    """Return the builds of a section, or its result sets, the most recently used first. Raise OSError.

    Of several generations, return only the newest: each replaces the one before, whether that is retired yet or not.
    until: seconds of time.monotonic at which to stop reading the section.
    """
    newest: "dict[str, tuple[int, int, str]]" = {}
    with os.scandir(section_fd) as entries:
        for entry in entries:
            parsed = store_names.parse_build(entry.name) if store_names.is_result_set(entry.name) == result_sets else None
            if parsed:
                digest, generation = parsed
                try:
                    used = entry.stat(follow_symlinks=False).st_mtime_ns
                except FileNotFoundError:
                    continue
                if digest not in newest or newest[digest][1] < generation:
                    newest[digest] = used, generation, entry.name
                if time.monotonic() >= until:
                    break
    return [name for _, _, name in sorted(newest.values(), reverse=True)]


def read_whole(section_fd: int, name: str, owner: int, until: float = float("inf")) -> "tuple[store_names.Contents, int] | None":
    """Do what `reading` does, at once. Raise TimeoutError after `until` as well."""
    steps = reading(section_fd, name, owner, lambda contents: True)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: "tuple[store_names.Contents, int] | None" = end.value
            return found
        _check_time(until)


def reading(
    section_fd: int, name: str, owner: int, is_wanted: "Callable[[store_names.Contents], bool]"
) -> "Generator[None, None, tuple[store_names.Contents, int] | None]":
    """Return the contents of a build or a result set, and the mtime of its files' directory in ns; yield after each file.

    Return None if it is retired or not wanted. Raise Refused for a damaged one, OSError.
    """
    build_fd = open_below(section_fd, name, owner)
    try:
        if dirfd.exists(build_fd, store_names.RETIRED):
            return None
        contents = read_contents(build_fd)
        if (contents.base is not None) != store_names.is_result_set(name):
            raise reasons.Refused("damaged", "its name does not match its contents")
        if not is_wanted(contents):
            return None
        with dirfd.Opened(build_fd, store_names.FILES) as files_fd:
            _check_owner(files_fd, owner)
            yield from _checking(files_fd, contents)
            return contents, os.fstat(files_fd).st_mtime_ns
    finally:
        os.close(build_fd)


def read_contents(build_fd: int) -> store_names.Contents:
    """Return the list of a build's files. Raise Refused if it is incomplete, OSError."""
    parsed = store_names.parse_contents(os.fsdecode(_read(build_fd, store_names.CONTENTS)))
    if parsed is None:
        raise reasons.Refused("damaged", f"its {store_names.CONTENTS} file is incomplete")
    return parsed


def checksum(files_fd: int) -> int:
    """Return the checksum of a build's dataset_info.json, which describes all of the build. Raise Refused, OSError."""
    return binascii.crc32(_read(files_fd, build_info.INFO))


def check_files(files_fd: int, contents: store_names.Contents, until: float = float("inf")) -> None:
    """Raise Refused unless the files of a build, or of a result set, are those that were published.

    Raise OSError, TimeoutError after `until`.
    """
    for _ in _checking(files_fd, contents):
        _check_time(until)


def _check_time(until: float) -> None:
    if time.monotonic() >= until:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _checking(files_fd: int, contents: store_names.Contents) -> "Iterator[None]":
    """Do what `check_files` does; yield after each file. Raise Refused, OSError.

    Compare the size and the mtime of each file, and the end of each Arrow stream; publishing has checked the content.
    """
    files = contents.files
    count = 0
    with os.scandir(files_fd) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or files.get(entry.name) != (found.st_size, found.st_mtime_ns):
                raise reasons.Refused("damaged", f"{entry.name} is not as it was published")
            if entry.name.endswith(".arrow"):
                _check_end(files_fd, entry.name, found)
            count += 1
            yield
    if count != len(files) or (build_info.INFO in files) != (contents.base is None):
        raise reasons.Refused("damaged", "one of its files is missing")
    if contents.base is not None:
        if not all(map(build_info.is_map, files)):
            raise reasons.Refused("damaged", "one of its files is not a result of map")
    elif checksum(files_fd) != contents.checksum:
        raise reasons.Refused("damaged", f"{build_info.INFO} is not as it was published")


def _check_end(files_fd: int, name: str, found: os.stat_result) -> None:
    opened = dirfd.Unmarked if found.st_uid == os.geteuid() else dirfd.Opened
    with opened(files_fd, name, dirfd.FILE) as fd:
        if os.pread(fd, len(build_info.END), max(0, found.st_size - len(build_info.END))) != build_info.END:
            raise reasons.Refused("damaged", f"{name} is cut short")


def _read(dir_fd: int, name: str) -> bytes:
    with dirfd.Unmarked(dir_fd, name, dirfd.FILE) as fd:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise reasons.Refused("damaged", f"{name} is not a regular file")
        return os.read(fd, min(found.st_size, build_info.READ_LIMIT))
