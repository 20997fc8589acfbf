"""The lock that lets one sweep run at a time."""

import fcntl
import os
import time

from jobcache.system import files


class Busy(Exception):
    """The lock cannot be taken: another sweep holds it, or the file system has no locks. The message names the reason."""


class Lock:
    """The lock file at `path`, held for the length of a `with` block. Entering raises Busy if it cannot be taken."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            self._fd = files.open_regular(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise Busy(f"cannot open the lock {self._path}: {error.strerror}; fix run_dir, or set another one") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = "" if not isinstance(error, BlockingIOError) else os.read(self._fd, 200).decode("utf-8", "replace").strip()
            os.close(self._fd)
            if not isinstance(error, BlockingIOError):
                raise Busy(f"cannot lock {self._path}: {error.strerror}; set run_dir to a local filesystem") from None
            raise Busy(f"another sweep is running: {holder or f'it holds {self._path}'}; wait until it has ended") from None
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n".encode())
        except OSError:
            pass  # the disk is full: the lock holds without a description of its holder

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
