"""The text of the batch script, which slurmd keeps in its spool directory until the job ends.

No variable names that directory, and configless nodes have no slurm.conf in a known place. But slurmstepd listens at
`<SlurmdSpoolDir>/<node>_<job>.4294967291`, and the kernel lists the paths of all sockets. Slurm itself starts the script from
there, as the user, so the user can read it.
"""

import os
import stat
import time

_SOCKETS = "/proc/net/unix"
_BATCH_STEP = 4294967291
_LARGEST = 1 << 20  # bytes of a script
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def read(node: str, job_id: int, uid: int, until: float) -> "str | None":
    """Return the text of the script that this node runs for the job; None if it has none, or if it cannot be found.

    uid: of the job's user. until: seconds of time.monotonic at which the search ends.
    """
    found = []
    for spool in _spool_directories(node, job_id, until):
        try:
            found.append(_read(spool, job_id, uid))
        except OSError:
            pass  # any user can name a socket like that of slurmstepd
    return found[0] if len(found) == 1 else None  # two clusters on one host can have the same names


def _spool_directories(node: str, job_id: int, until: float) -> "list[str]":
    """Return the directories of sockets that have the name of this batch step."""
    ending = os.fsencode(f"/{node}_{job_id}.{_BATCH_STEP}")
    found: "dict[str, None]" = {}
    try:
        with open(_SOCKETS, "rb") as file:
            for line in file:
                words = line.rstrip(b"\n").split(None, 7)
                if len(words) == 8 and words[7].startswith(b"/") and words[7].endswith(ending):
                    found[os.fsdecode(words[7][: -len(ending)])] = None
                if time.monotonic() >= until:
                    return []
    except OSError:
        return []
    return list(found)


def _read(spool: str, job_id: int, uid: int) -> str:
    """Return the text of the script below `spool`. Raise OSError if it, or its directory, is no other than slurmd's and whole."""
    above_fd = os.open(spool, _DIRECTORY)
    try:
        job_fd = os.open(f"job{job_id:05d}", _DIRECTORY | os.O_NOFOLLOW, dir_fd=above_fd)
    finally:
        os.close(above_fd)
    try:
        # In a directory that all can write, such as /tmp, this one could be another user's.
        _require(os.fstat(job_fd), uid)
        fd = os.open("slurm_script", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=job_fd)
    finally:
        os.close(job_fd)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        _require(status, uid)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise OSError
        return os.fsdecode(file.read(_LARGEST))


def _require(found: "os.stat_result", uid: int) -> None:
    """Raise OSError for a file that another user than root and the job's owns, or can write."""
    if found.st_uid not in (0, uid) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError
