"""A process of a user that exchanges directories while others work in them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobcache.system import as_user
from support.home import uid_of
from support.site_dir import ALICE

_EXCHANGE = 2  # RENAME_EXCHANGE
_HERE = -100  # AT_FDCWD


@contextmanager
def racing(*swaps: tuple[Path, Path], user: str = ALICE) -> Iterator[None]:
    """Run a process of `user` that exchanges the two names of each pair, as fast as it can."""
    pid = os.fork()
    if pid == 0:
        try:
            as_user.become(uid_of(user), None, user)
            libc = ctypes.CDLL(None)
            pairs = [(os.fsencode(one), os.fsencode(other)) for one, other in swaps]
            while True:
                for one, other in pairs:
                    libc.renameat2(_HERE, one, _HERE, other, _EXCHANGE)
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the racing process has ended"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
