"""Locks on leases: whether a `jobcache run` outside of jobs is still alive. In doubt, it is.

Slurm knows nothing of such a command. The command and all its descendants inherit a flock on its lease. The kernel
releases the flock with the last of them, and shows it to all processes of this boot, in any container. On this host, a
lease of an earlier boot has another boot ID; its command is considered dead once the lease, which is touched every minute,
has not changed for an hour. Of leases of other hosts, nothing is known.
"""

import fcntl
import os
import stat

from jobcache.cache import cache_names, dirfd, job_record, node_leases

BEAT = 60.0  # seconds between two touches of a lease
SILENCE = 3600.0  # seconds without a touch, after which the command of an earlier boot is considered dead

LEFT = "left"  # key of the record: [pid, start in clock ticks] of each process that a command left behind
MOST_LEFT = 64  # of these that are recorded and read; a user can forge any number

# The results of `state`. RELEASED: the command released its lease at its end. EMPTY: it released its lease, and a crash left
# the empty nodes/. SILENT: the lease is of an earlier boot. TOO_MANY: more leases than jobcache makes.
ALIVE, GONE, RELEASED, EMPTY, SILENT = "alive", "gone", "released", "empty", "silent"
ELSEWHERE, UNKNOWN, TOO_MANY = "elsewhere", "unknown", "too_many"

_LEASE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_READ_LIMIT = 4096  # bytes
_HOST_LENGTH = 64


def host() -> str:
    """Return the name of this host in leases and ids."""
    name = "".join(ch if ch.isascii() and (ch.isalnum() or ch in "-._") else "_" for ch in os.uname().nodename)
    return name.strip(".")[:_HOST_LENGTH] or "localhost"


# ---- for the command


def hold(cache_fd: int, lease: str) -> int:
    """Lock a lease; return an inheritable descriptor, which holds the lock. Raise OSError.

    Where the filesystem supports no flock, nothing is locked; `state` has the same result there.
    """
    fd = os.open(_path(lease), _LEASE, dir_fd=cache_fd)
    os.set_inheritable(fd, True)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass
    return fd


def beat(fd: int) -> None:
    """Touch the lease, as a sign of life."""
    try:
        os.utime(fd)
    except OSError:
        pass  # the cache was deleted, or the file server is down; the command goes on


def reopened(fd: int) -> int:
    """Open the lease of `hold` anew, even if it was deleted, for `is_held`; return the descriptor. Raise OSError."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def is_held(fd: int) -> bool:
    """Return whether a process holds the lock on the lease by another open file than `fd`. Without flock, return False.

    A descriptor that a child inherits shares the open file and the lock of its parent.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def started(pid: int) -> "int | None":
    """Return when a process started, in clock ticks since boot, or None if this process cannot see it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


# ---- for the sweep


def state(cache_fd: int, record: "dict[str, object] | None" = None) -> str:
    """Return the state of the command of a cache, one of the results above. Raise OSError.

    record: of the cache, if the caller has read it. The user can forge it, and any number of leases.
    """
    if record is None:
        record = job_record.read_record(cache_fd)
    is_here = record.get("cluster") == cache_names.host_cluster(host())
    is_used = _is_used(record)
    try:
        with dirfd.Unmarked(cache_fd, f"{cache_names.META}/{cache_names.NODES}") as nodes_fd:
            leases = node_leases.names(nodes_fd, node_leases.MOST + 1)
            if len(leases) > node_leases.MOST:
                return TOO_MANY
            if not leases:
                return ALIVE if is_used else EMPTY if is_here else ELSEWHERE
            return _state_of_leases(nodes_fd, leases, is_used)
    except (FileNotFoundError, NotADirectoryError):
        return ALIVE if is_used else RELEASED


def _state_of_leases(nodes_fd: int, leases: "list[str]", is_used: bool) -> str:
    """Return the state by the leases: that of the one that is most alive."""
    boot = node_leases.now()[0]
    states = set()
    for lease in leases:
        states.add(_state_of_lease(nodes_fd, lease, boot, is_used))
        if ALIVE in states:
            return ALIVE
    return next(one for one in (UNKNOWN, ELSEWHERE, SILENT, GONE) if one in states)


def _state_of_lease(nodes_fd: int, lease: str, boot: str, is_used: bool) -> str:
    node = cache_names.lease_node(lease)
    if not cache_names.is_lease(lease):
        return UNKNOWN
    if node != host():
        return ELSEWHERE
    try:
        fd = os.open(lease, _LEASE, dir_fd=nodes_fd)
    except FileNotFoundError:
        return GONE
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return UNKNOWN
        taken = node_leases.parse_lease(os.read(fd, _READ_LIMIT).decode("ascii", "replace"))
        if taken is not None and taken[0] != boot:
            return SILENT
        if is_used:
            return ALIVE
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ALIVE
    except OSError:
        return UNKNOWN
    finally:
        os.close(fd)
    return SILENT if taken is None else GONE  # without a date, it can be of an earlier boot


def _is_used(record: "dict[str, object]") -> bool:
    """Return whether the process that made the cache runs, or one that its command left behind.

    This process may not see them out of a container.
    """
    left = record.get(LEFT)
    processes = [[record.get("pid"), record.get("started")], *(left[:MOST_LEFT] if isinstance(left, list) else [])]
    return any(_runs(*one) for one in processes if isinstance(one, list) and len(one) == 2)


def _runs(pid: object, began: object) -> bool:
    return isinstance(pid, int) and isinstance(began, int) and began == started(pid)


def _path(lease: str) -> str:
    return f"{cache_names.META}/{cache_names.NODES}/{lease}"
