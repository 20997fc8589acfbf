"""One sweep at a time."""

import fcntl
import os
import time


class Busy(Exception):
    """Another sweep is under way, or may be; the words say whose, or why there is no lock."""


class Lock:
    """One sweep at a time: `with Lock(path): …`. Raise Busy where another holds it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Busy(f"no lock to be had on {self._path}: {error.strerror}; mend run_dir, or choose another") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                os.close(self._fd)
                raise Busy(f"no lock to be had on {self._path}: {error.strerror}; put run_dir on a local filesystem") from None
            holder = os.read(self._fd, 200).decode("utf-8", "replace").strip()
            os.close(self._fd)
            raise Busy(f"another sweep is under way: {holder or 'it does not say whose'}") from None
        os.ftruncate(self._fd, 0)
        try:
            os.write(self._fd, f"pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n".encode())
        except OSError:
            pass  # a full disk: the lock holds, and does not say whose it is

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
