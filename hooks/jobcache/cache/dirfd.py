"""Files and directories, opened relative to descriptors, without following symlinks."""

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

_LONGEST = 65536  # bytes read of a file that the user may have forged
_MOST_LINKS = 40  # as the kernel has it
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SEARCH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # a directory need not be readable to be passed through
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def rmdir_if_there(dir_fd: int, path: str) -> None:
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def unlink_if_there(dir_fd: int, path: str) -> None:
    try:
        os.unlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def nonce() -> str:
    """Return a name part that nobody else has."""
    return os.urandom(8).hex()


def open_directory(path: str) -> int:
    """Open an absolute directory path without following a symlink that is not root's own; return the descriptor.

    Sites put root's symlinks into paths (/scratch, a user's directory on another filesystem); those a user makes could
    lead the deletion elsewhere. Raise OSError, ELOOP for such a one.
    """
    fd = os.open("/", SEARCH)
    todo = path.split("/")[::-1]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            try:
                below = os.open(part, SEARCH, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR) or links >= _MOST_LINKS:
                    raise
                target = _roots_link(fd, part, error)  # walked like the rest: a link of root's may lead to one that is not
                todo += target.split("/")[::-1]
                links += 1
                below = os.open("/" if target.startswith("/") else ".", SEARCH, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


def _roots_link(dir_fd: int, name: str, error: OSError) -> str:
    """Return where root's symlink `name` leads. Raise `error` for what is none."""
    found = os.lstat(name, dir_fd=dir_fd)
    if found.st_uid != 0 or not stat.S_ISLNK(found.st_mode):
        raise error
    return os.readlink(name, dir_fd=dir_fd)


def create(dir_fd: int, name: str) -> "int | None":
    """Create a file and return it open for writing, None where there is one already. Raise OSError."""
    try:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except FileExistsError:
        return None


def write_new(dir_fd: int, name: str, data: bytes) -> None:
    """Create the file with `data` in it, or leave the one that is there as it is. Raise OSError."""
    fd = create(dir_fd, name)
    if fd is None:
        return
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    finally:
        os.close(fd)


def read_small(dir_fd: int, name: str, owner: "int | None" = None) -> "str | None":
    """Return the text of a plain file of at most 64 KiB, None where there is none. Raise OSError.

    The file is the user's to forge: no symlink is followed, a fifo does not hold us; what is not ASCII, or not `owner`'s
    where one is given, reads as "".
    """
    try:
        fd = os.open(name, FILE, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or (owner is not None and found.st_uid != owner):
            return ""
        data = os.read(fd, _LONGEST + 1)
    finally:
        os.close(fd)
    if len(data) > _LONGEST or not data.isascii():
        return ""
    return data.decode("ascii")
