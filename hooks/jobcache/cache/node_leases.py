"""Leases: one file in `nodes/` for each node that uses a cache."""

import errno
import os
import stat

from jobcache.cache import cache_names, dirfd, job_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

# ------------------------------------------------------------------------------------------------------------ leases


def now() -> "tuple[str, float]":
    """Return this boot's id and the seconds since it: what leases are dated by, since file times are another host's."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    with open("/proc/uptime", encoding="ascii") as file:
        return boot, float(file.read().split()[0])


def lease_text(boot: str, uptime: float) -> bytes:
    return f"{boot} {uptime:.2f}\n".encode("ascii")


def release(cache_fd: int, node: str, boot: str, uptime: float) -> str:
    """Give up `node`'s lease in the cache held open at `cache_fd`, for an Epilog that began `uptime` seconds into `boot`.

    Return "last" where it was the last lease: the caller reaps. "others": other nodes hold leases. "none": this node
    held none. "live": the lease is younger than the Epilog, which is a late one of an earlier run. "unreadable": the
    lease cannot be dated (a full disk, a torn write). Only who returns "last" may touch the cache. Raise OSError.
    """
    meta_fd = job_record.open_meta(cache_fd)
    if meta_fd is None:
        return "none"
    try:
        _let_write(meta_fd)
        outcome = _drop_lease(meta_fd, node, boot, uptime)
        if outcome != "dropped":
            return outcome
        os.rmdir(cache_names.NODES, dir_fd=meta_fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return "others"
        raise
    finally:
        os.close(meta_fd)
    return "last"


def seize(cache_fd: int) -> bool:
    """Take the cache, leases and all, from whoever might hold it; return whether it is ours to move away now.

    As with `release`, the one who takes nodes/ from its place is the one who may, and nobody can join after that. Two
    who both judge a cache to be dead would else move it one after the other, and the second a new one. Raise OSError.
    """
    meta_fd = job_record.open_meta(cache_fd)
    if meta_fd is None:
        return False
    try:
        _let_write(meta_fd)
        os.rename(cache_names.NODES, f"{cache_names.NODES}-{dirfd.nonce()}", src_dir_fd=meta_fd, dst_dir_fd=meta_fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _drop_leases(meta_fd)
    finally:
        os.close(meta_fd)
    return True


def _drop_leases(meta_fd: int) -> bool:
    """The same where a quota is used up, and a filesystem lets go but takes no new name: who removes nodes/ has the cache."""
    try:
        nodes_fd = open_nodes(meta_fd)
        try:
            for lease in os.listdir(nodes_fd):
                dirfd.unlink_if_there(nodes_fd, lease)
        finally:
            os.close(nodes_fd)
        os.rmdir(cache_names.NODES, dir_fd=meta_fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return False  # somebody has joined, or was faster
        raise
    return True


def _drop_lease(meta_fd: int, node: str, boot: str, uptime: float) -> str:
    """Unlink the lease where it is older than the Epilog; return "dropped", or what `release` returns instead."""
    try:
        nodes_fd = open_nodes(meta_fd)
    except FileNotFoundError:
        return "none"
    try:
        lease = dirfd.read_small(nodes_fd, node)
        if lease is None:
            return "none"
        dated = parse_lease(lease)
        if dated is None:
            return "unreadable"
        if dated[0] == boot and not dated[1] < uptime:
            return "live"
        if len(os.listdir(nodes_fd)) > 1:
            _mark_shared(meta_fd)
        os.unlink(node, dir_fd=nodes_fd)
    except FileNotFoundError:
        return "none"  # a second Epilog of this job was faster
    finally:
        os.close(nodes_fd)
    return "dropped"


def open_nodes(meta_fd: int) -> int:
    """Return the directory of leases, open, and such that its owner can write in it. Raise OSError."""
    nodes_fd = os.open(cache_names.NODES, dirfd.DIRECTORY, dir_fd=meta_fd)
    try:
        _let_write(nodes_fd)
    except OSError:
        os.close(nodes_fd)
        raise
    return nodes_fd


def _let_write(fd: int) -> None:
    """Who makes all of a cache read-only, to guard what is in it, does not mean our leases. Raise OSError."""
    if os.fstat(fd).st_mode & stat.S_IWUSR == 0:
        os.fchmod(fd, 0o700)


def _mark_shared(meta_fd: int) -> None:
    try:
        dirfd.write_new(meta_fd, cache_names.SHARED, b"")
    except OSError:
        pass  # a full disk: Slurm tells the number of nodes as well


def parse_lease(text: str) -> "tuple[str, float] | None":
    """Return (boot_id, seconds since that boot) of a whole lease, else None."""
    words = text.split()
    if not text.endswith("\n") or len(words) != 2:
        return None
    try:
        return words[0], float(words[1])
    except ValueError:
        return None


def is_shared(cache_fd: int, node: str, record: "dict[str, object]") -> bool:
    """Whether another node than `node`, which has released the last lease, has used the cache. Doubt means that it has.

    Where `node` made the cache, its lease was there all the time, and every other node has seen it when it went.
    """
    if record.get("node") != node:
        return True
    try:
        os.lstat(f"/proc/self/fd/{cache_fd}/{cache_names.META}/{cache_names.SHARED}")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True
