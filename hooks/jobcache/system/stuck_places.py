"""A limit on the processes of this host that hang in the kernel on one filesystem.

Each filesystem has a few places: files with a lock. A stuck child inherits the descriptor, so it holds the lock until it
ends, and the kernel releases the place.
"""

import fcntl
import os

_PLACES = 4  # stuck processes for each filesystem


class Stuck(Exception):
    """All places of a filesystem are occupied."""


def open_places(run_dir: str, filesystem: str) -> "list[int]":
    """Return descriptors for `as_user.start`, by which a child that hangs on `filesystem` is counted.

    Return [], which means no limit, if run_dir cannot be used. Raise Stuck if all places are occupied.
    """
    places: list[int] = []
    try:
        os.makedirs(run_dir, 0o700, exist_ok=True)
        for number in range(_PLACES):
            path = f"{run_dir}/stuck-{filesystem}.{number}"
            places.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError:
        return places
    for place in places:
        if _try_lock(place, fcntl.LOCK_SH):  # shared, so that concurrent checks do not take each other for stuck
            _try_lock(place, fcntl.LOCK_UN)
            return places
    for place in places:
        os.close(place)
    raise Stuck(f"{_PLACES} processes hang on filesystem {filesystem} of this node already; see `ps -eo pid,stat,wchan,args`")


def occupy(places: "list[int]") -> None:
    """Lock one free place, for the child that inherited the descriptors."""
    any(_try_lock(place, fcntl.LOCK_EX) for place in places)


def _try_lock(fd: int, operation: int) -> bool:
    """Return whether no other process prevents the lock. On a filesystem without locks, nobody is counted."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
