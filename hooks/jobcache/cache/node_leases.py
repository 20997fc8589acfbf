"""Leases: one file in `.jobcache/nodes/` for each node, or each `jobcache run`, that uses a cache.

A lease holds the boot ID and the uptime at which it was taken. Nobody creates nodes/ a second time, so the process
that removes or renames nodes/ owns the cache: no other process uses it, and none can join it.
"""

import errno
import os
import stat

from jobcache.cache import cache_names, dirfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 10_000  # leases of one cache that are read; a job has some thousand nodes, and a user can forge any number
_NOT_LAST = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)  # of rmdir(nodes/)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def now() -> "tuple[str, float]":
    """Return the boot ID and the uptime in seconds.

    Leases use these, because file timestamps come from the file server's clock.
    """
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    with open("/proc/uptime", encoding="ascii") as file:
        return boot, float(file.read().split()[0])


def lease_text(boot: str, uptime: float) -> bytes:
    """Return the content of a lease."""
    return f"{boot} {uptime:.2f}\n".encode("ascii")


def parse_lease(text: str) -> "tuple[str, float] | None":
    """Return (boot ID, uptime in seconds) of a complete lease, else None."""
    words = text.split()
    if not text.endswith("\n") or len(words) != 2:
        return None
    try:
        return words[0], float(words[1])
    except ValueError:
        return None


def release(cache_fd: int, lease: str, boot: str, uptime: float) -> str:
    """Release `lease` for an Epilog that began `uptime` seconds into `boot`. Raise OSError.

    Only the caller that gets "last" may touch the cache afterwards. Return

    "last": it was the last lease; the caller owns the cache and reaps it.
    "others": other leases exist.
    "none": the lease does not exist.
    "live": the lease is younger than the Epilog, which is a late one of an earlier run.
    "unreadable": the lease has no valid date, as after a full disk or a torn write.
    """
    try:
        with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
            _ensure_writable(meta_fd)
            outcome = drop_lease(meta_fd, lease, boot, uptime)
            if outcome == "dropped":
                outcome = "last" if _remove_nodes(meta_fd) else "others"
            return outcome
    except FileNotFoundError:
        return "none"


def drop_lease(meta_fd: int, lease: str, boot: str, uptime: float) -> str:
    """Unlink `lease` if it is older than the Epilog; return "dropped", else "none", "live" or "unreadable". Raise OSError."""
    try:
        nodes_fd = open_nodes(meta_fd)
    except FileNotFoundError:
        return "none"
    try:
        text = dirfd.read_small(nodes_fd, lease)
        if text is None:
            return "none"
        taken = parse_lease(text)
        if taken is None:
            return "unreadable"
        if taken[0] == boot and not taken[1] < uptime:  # also for a forged NaN
            return "live"
        if _has_other_nodes(nodes_fd, lease):
            _mark_shared(meta_fd)
        os.unlink(lease, dir_fd=nodes_fd)
    except FileNotFoundError:
        return "none"  # a second Epilog of this job was faster
    finally:
        os.close(nodes_fd)
    return "dropped"


def seize(cache_fd: int, is_unused: "Callable[[str], bool] | None" = None) -> bool:
    """Take over a dead cache with all its leases; return whether the caller owns it now. Raise OSError.

    Of two processes that judge the cache to be dead, only one succeeds; else the second one would move a new cache away.

    is_unused: judges the leases again in the directory of this name, when nobody can take a further one. If a process has
    joined since the caller judged them, nodes/ gets its name back.
    """
    taken = f"{cache_names.NODES}-{dirfd.nonce()}"
    try:
        with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
            _ensure_writable(meta_fd)
            try:
                os.rename(cache_names.NODES, taken, src_dir_fd=meta_fd, dst_dir_fd=meta_fd)
            except OSError as error:
                if is_unused or error.errno not in _NO_ROOM:
                    raise
                return _remove_leases_and_nodes(meta_fd)
            if is_unused is None or is_unused(taken):
                return True
            os.rename(taken, cache_names.NODES, src_dir_fd=meta_fd, dst_dir_fd=meta_fd)
            return False
    except FileNotFoundError:
        return False


def seize_empty(cache_fd: int) -> bool:
    """Take over a cache whose nodes/ holds no lease; return whether the caller owns it now. Raise OSError.

    Return False if a process has joined it, or owns it already.
    """
    try:
        with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
            _ensure_writable(meta_fd)
            return _remove_nodes(meta_fd)
    except FileNotFoundError:
        return False


def names(nodes_fd: int, most: int) -> "list[str]":
    """Return the names of at most `most` leases: a user can forge any number. Raise OSError."""
    with os.scandir(nodes_fd) as entries:
        return [entry.name for _, entry in zip(range(most), entries)]


def _remove_leases_and_nodes(meta_fd: int) -> bool:
    """Fallback for a full quota, where unlink works but creating a name fails. Return and raise as `seize` does.

    Of more than MOST leases, the next call removes the others.
    """
    nodes_fd = open_nodes(meta_fd)
    try:
        for lease in names(nodes_fd, MOST):
            dirfd.unlink_if_exists(nodes_fd, lease)
    finally:
        os.close(nodes_fd)
    return _remove_nodes(meta_fd)


def _remove_nodes(meta_fd: int) -> bool:
    """Remove nodes/; return False if a lease is in it, or if it does not exist. Raise OSError."""
    try:
        os.rmdir(cache_names.NODES, dir_fd=meta_fd)
    except OSError as error:
        if error.errno in _NOT_LAST:
            return False
        raise
    return True


def open_nodes(meta_fd: int) -> int:
    """Open nodes/ and make it writable for its owner; return the descriptor. Raise OSError."""
    nodes_fd = os.open(cache_names.NODES, dirfd.DIRECTORY, dir_fd=meta_fd)
    try:
        _ensure_writable(nodes_fd)
    except OSError:
        os.close(nodes_fd)
        raise
    return nodes_fd


def _ensure_writable(fd: int) -> None:
    """Make a directory writable for its owner: users make a whole cache read-only to protect their data. Raise OSError."""
    if os.fstat(fd).st_mode & stat.S_IWUSR == 0:
        os.fchmod(fd, 0o700)


def _has_other_nodes(nodes_fd: int, lease: str) -> bool:
    """Return whether another node than that of `lease` has a lease. Each `jobcache run` of a node has its own. Raise OSError."""
    node = cache_names.lease_node(lease)
    with os.scandir(nodes_fd) as entries:
        return any(cache_names.lease_node(entry.name) != node for _, entry in zip(range(MOST), entries))


def _mark_shared(meta_fd: int) -> None:
    try:
        dirfd.write_new(meta_fd, cache_names.SHARED, b"")
    except OSError:
        pass  # a full disk; Slurm reports the number of nodes as well


def is_shared(cache_fd: int, node: str, record: "dict[str, object]") -> bool:
    """Return whether another node than `node`, which has released the last lease, has used the cache. In doubt, True.

    If `node` made the cache, it has held a lease all the time, so each other node's release has marked the cache as shared.
    """
    if record.get("node") != node:
        return True
    try:
        return dirfd.exists(cache_fd, f"{cache_names.META}/{cache_names.SHARED}")
    except OSError:
        return True
