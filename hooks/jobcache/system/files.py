"""Regular files: opened without a wait and without an effect on anything else, written completely or not at all.

A fifo, a device or a symlink at a configured path can hang the process that opens it, or lead it elsewhere.
"""

import errno
import os
import stat

from jobcache.cache import dirfd


def open_regular(path: str, flags: int = os.O_RDONLY, mode: int = 0o600, follow: bool = False) -> int:
    """Open a regular file; return its descriptor. Raise OSError, with EINVAL or EISDIR for anything else.

    flags: os.O_RDONLY or os.O_RDWR, with os.O_CREAT. mode: permissions of a new file. follow: accept a symlink.
    """
    quiet = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    if follow or flags & os.O_CREAT == 0:
        _check_regular(os.stat(path, follow_symlinks=follow), path)  # to open some devices has an effect
    fd = os.open(path, flags | quiet, mode)
    try:
        _check_regular(os.fstat(fd), path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_regular(found: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def read_text(path: str, most: int, follow: bool = True) -> str:
    """Return the first `most` bytes of a regular file as text; bytes that are not UTF-8 become U+FFFD. Raise OSError."""
    with open(open_regular(path, follow=follow), "rb") as file:
        return file.read(most).decode("utf-8", "replace")


def replace_file(path: str, data: bytes, mode: int) -> None:
    """Write `data` to a new file beside `path` with permissions `mode`, and rename it to `path`. Raise OSError.

    The data is on disk before the rename: after a crash, `path` has the old or the new content. An error leaves no file.
    """
    new = f"{path}.{dirfd.nonce()}"
    try:
        write_new(new, data, mode)
        os.rename(new, path)
    except OSError:
        if os.path.lexists(new):
            os.unlink(new)
        raise


def write_new(path: str, data: bytes, mode: int) -> None:
    """Create a file with `data` and permissions `mode`, and flush it to disk. Raise FileExistsError, OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(fd, mode)
        os.fsync(fd)
