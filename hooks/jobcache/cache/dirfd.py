"""Files and directories that are opened relative to a directory's descriptor, without following symlinks.

All user-supplied data is untrusted: a user can put a symlink, a fifo or a huge file at any name.
"""

import errno
import os
import stat

from jobcache.cache import file_owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Visit = Callable[[int, int, int], None]
    Make = Callable[[int, str], int]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SEARCH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # needs search permission only
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SYMLINK_LIMIT = 40  # in one path, as in the kernel
_READ_LIMIT = 65536  # bytes
_SHOWN = 200  # characters of a symlink's target in a message


def nonce() -> str:
    """Return 16 random hexadecimal digits, for a name that nobody else uses."""
    return os.urandom(8).hex()


class Opened:
    """A context manager that opens `path` below `dir_fd`, yields the descriptor and closes it. Raise OSError."""

    __slots__ = ("fd",)

    def __init__(self, dir_fd: int, path: str, flags: int = DIRECTORY) -> None:
        self.fd = os.open(path, flags, dir_fd=dir_fd)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class Unmarked(Opened):
    """An `Opened` whose reading changes no access time, where this process may avoid that."""

    __slots__ = ()

    def __init__(self, dir_fd: int, path: str, flags: int = DIRECTORY) -> None:
        self.fd = open_unmarked(path, flags, dir_fd)


def open_unmarked(path: str, flags: int, dir_fd: "int | None" = None) -> int:
    """Open a path for reading without a change of its access time, where this process may do so; return the descriptor.

    Only the owner and root may. Raise OSError.
    """
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return os.open(path, flags, dir_fd=dir_fd)


def open_directory(path: str, visit: "Visit | None" = None, make: "Make | None" = None, uid: "int | None" = None) -> int:
    """Open an absolute directory path; return its descriptor.

    Follow root's symlinks: sites put them into paths (/scratch, a user's directory on another filesystem). A user's symlink
    could lead a deletion elsewhere. Raise OSError, with ELOOP for a user's symlink, and whatever `visit` and `make` raise.

    visit: called for each directory on the way, from the top, with the descriptor of the one above and its own, and with
        the index of the component of `path` that leads to it, -1 for a directory within the target of a symlink.
    make: creates a missing component of `path`, given the descriptor of the directory above and the name; returns its own.
    uid: as of file_owners.is_roots.
    """
    fd = os.open("/", SEARCH)
    pending = [(part, level) for level, part in enumerate(_parts(path))][::-1]
    followed = 0
    try:
        while pending:
            part, level = pending.pop()
            try:
                below = _open_part(fd, part, level, visit, make)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR) or followed >= _SYMLINK_LIMIT:
                    raise
                target = _target_of_root_symlink(fd, part, uid, error)
                *above, last = _parts(target) or ["."]
                pending += [(last, level), *((one, -1) for one in above[::-1])]  # it may lead through a user's symlink
                followed += 1
                below = os.open("/" if target.startswith("/") else ".", SEARCH, dir_fd=fd)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _parts(path: str) -> "list[str]":
    return [part for part in path.split("/") if part not in ("", ".")]


def _open_part(dir_fd: int, part: str, level: int, visit: "Visit | None", make: "Make | None") -> int:
    """Return the descriptor of one directory on the way of `open_directory`. Raise as it does."""
    try:
        fd = os.open(part, SEARCH, dir_fd=dir_fd)
    except FileNotFoundError:
        if make is None or level < 0:
            raise
        fd = make(dir_fd, part)
    if visit is not None:
        try:
            visit(dir_fd, fd, level)
        except BaseException:
            os.close(fd)
            raise
    return fd


def _target_of_root_symlink(dir_fd: int, name: str, uid: "int | None", error: OSError) -> str:
    """Return the target of the symlink `name`. Raise `error` unless it is a symlink that root owns; then name it."""
    found = os.lstat(name, dir_fd=dir_fd)
    if not stat.S_ISLNK(found.st_mode):
        raise error
    target = os.readlink(name, dir_fd=dir_fd)
    if not file_owners.is_roots(found, os.fstat(dir_fd), uid):
        text = f"a symlink of uid {found.st_uid} to {target[:_SHOWN]}; jobcache follows only symlinks of root: use the real path"
        raise OSError(error.errno, text, f"{os.readlink(f'/proc/self/fd/{dir_fd}').rstrip('/')}/{name}")
    return target


def exists(dir_fd: int, path: str) -> bool:
    """Return whether anything exists at `path` below `dir_fd`, a dangling symlink included. Raise OSError."""
    try:
        os.lstat(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True


def is_at(dir_fd: int, name: str, fd: int) -> bool:
    """Return whether `name` in `dir_fd` is still the file or directory that is open at `fd`. Raise OSError."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def create(dir_fd: int, path: str) -> "int | None":
    """Create a file; return its descriptor for writing, or None if the name exists. Raise OSError."""
    try:
        return os.open(path, _NEW_FILE, 0o600, dir_fd=dir_fd)
    except FileExistsError:
        return None


def write_new(dir_fd: int, path: str, data: bytes) -> None:
    """Create a file that holds `data`, or leave an existing one as it is. Raise OSError, with ENOSPC for a short write."""
    fd = create(dir_fd, path)
    if fd is None:
        return
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(fd)


def read_small(dir_fd: int, path: str, owner: "int | None" = None) -> "str | None":
    """Return the text of a small file, None if the name does not exist. Raise OSError, with ELOOP for a symlink.

    Return "" unless it is a regular file, holds 64 KiB of ASCII at most, and belongs to uid `owner`, if given.
    """
    try:
        with Unmarked(dir_fd, path, FILE) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or (owner is not None and found.st_uid != owner):
                return ""
            data = os.read(fd, _READ_LIMIT + 1)
    except FileNotFoundError:
        return None
    if len(data) > _READ_LIMIT or not data.isascii():
        return ""
    return data.decode("ascii")


def make_directories(dir_fd: int, path: str, made: "set[str] | None" = None) -> None:
    """Create each directory in `path` that does not exist yet, for its owner alone. Raise OSError.

    made: paths that exist for certain; this adds to them.
    """
    above = ""
    for part in path.split("/"):
        above += part
        if made is None or above not in made:
            try:
                os.mkdir(above, 0o700, dir_fd=dir_fd)
            except FileExistsError:
                pass
            if made is not None:
                made.add(above)
        above += "/"


def unlink_if_exists(dir_fd: int, path: str) -> None:
    """Remove a file, if the name exists. Raise OSError."""
    try:
        os.unlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def rmdir_if_exists(dir_fd: int, path: str) -> None:
    """Remove an empty directory, if the name exists. Raise OSError."""
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
