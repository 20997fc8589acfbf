"""Whether the command for which `jobcache run` made a cache outside of any job is still there. Doubt means it may be.

Slurm knows nothing of such a command. Its lease does: the command and all that it starts hold a flock on it that they
inherited, which the kernel gives up with the last of them and shows to every process of this boot, in whatever
container. Those of other boots of this host are told by their boot id, and believed to be gone once the lease, which
is touched every minute, has been silent for long. Of other hosts nothing is known.
"""

import fcntl
import os

from jobcache.cache import cache_names, job_record, node_leases

BEAT = 60.0  # seconds between two touches of a lease
SILENCE = 3600.0  # seconds without one, after which an earlier boot's command is taken to be gone

# What `state` returns. Released: by its command's end. Silent: of an earlier boot, gone if silent for SILENCE.
ALIVE, GONE, RELEASED, SILENT, ELSEWHERE, UNKNOWN = "alive", "gone", "released", "silent", "elsewhere", "unknown"

_LEASE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def host() -> str:
    """Return this host's name as it stands in leases and ids."""
    name = "".join(ch if ch.isascii() and (ch.isalnum() or ch in "-._") else "_" for ch in os.uname().nodename)
    return name.strip(".")[:64] or "localhost"


def hold(cache_fd: int, lease: str) -> int:
    """Return a descriptor of our lease that whoever inherits it holds the cache by. Raise OSError.

    Where the filesystem knows no flock, nothing is held, and a sweep will find that out for itself.
    """
    fd = os.open(f"{cache_names.META}/{cache_names.NODES}/{lease}", _LEASE, dir_fd=cache_fd)
    os.set_inheritable(fd, True)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass
    return fd


def beat(fd: int) -> None:
    """Show that the lease is not forgotten."""
    try:
        os.utime(fd)
    except OSError:
        pass  # its cache is gone, or its server is: no matter for the command


def started(pid: int) -> "int | None":
    """Return when a process began, in ticks since boot, None where there is none that we can see."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def state(cache_fd: int) -> str:
    """Return what is known of the command that a cache is for: one of the words above. Raise OSError."""
    try:
        leases = os.listdir(f"/proc/self/fd/{cache_fd}/{cache_names.META}/{cache_names.NODES}")
    except (FileNotFoundError, NotADirectoryError):
        return RELEASED
    states = {_of_lease(cache_fd, lease) for lease in leases}
    return next((one for one in (ALIVE, UNKNOWN, ELSEWHERE, SILENT, GONE) if one in states), UNKNOWN)


def _of_lease(cache_fd: int, lease: str) -> str:
    if cache_names.lease_node(lease) != host():
        return ELSEWHERE
    try:
        fd = os.open(f"{cache_names.META}/{cache_names.NODES}/{lease}", _LEASE, dir_fd=cache_fd)
    except FileNotFoundError:
        return GONE
    try:
        dated = node_leases.parse_lease(os.read(fd, 4096).decode("ascii", "replace"))
        if dated is None:
            return UNKNOWN
        if dated[0] != node_leases.now()[0]:
            return SILENT
        if _runs(job_record.read_record(cache_fd)):
            return ALIVE
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ALIVE
    except OSError:
        return UNKNOWN
    finally:
        os.close(fd)
    return GONE


def _runs(record: "dict[str, object]") -> bool:
    """Whether the process that made the cache is there, as far as can be told from outside of its container."""
    pid, began = record.get("pid"), record.get("started")
    return isinstance(pid, int) and isinstance(began, int) and began == started(pid)
