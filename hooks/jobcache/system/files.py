"""Files that are written completely or not at all."""

import os

from jobcache.cache import dirfd


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
