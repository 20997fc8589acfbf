"""The protocol by which the nodes of a job share one cache: make, join, release.

No lock, no count, no Slurm command. A cache comes into being complete, by one rename; each node that runs tasks of the
job holds a lease in it, `.jobcache/nodes/<node>`; the node that releases the last lease finds `nodes/` empty, removes
it, and by that alone knows that it is the last one out. `nodes/` is never made again, so nobody can join after that.

Everything here runs as the job's user. On the hot path: standard library only, and nothing heavy of it.
"""

import errno
import os
import time

from jobcache.cache import cache_names, dirfd, event_line, job_record, node_leases, reasons, timestamps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SEEDED_LEVELS = 6  # of directories in a seeded cache
_PAUSE = 0.02  # seconds between two looks at a cache that is being reaped


class Claim:
    """What a task asks for: the cache at `path` for one run of one job on one node.

    first: this task is the first of its run. again: the job has had this path from us already. keep: until the user
    says otherwise. record: what job.json says beside the identity, JSON text by key. below: the directory in the cache
    that will be HF_DATASETS_CACHE, "" for the cache itself. seed: is called with the cache held open while nobody else
    knows of it, and links symlinks into directories of its own there, and nothing else; may add to the record.
    """

    __slots__ = ("path", "cluster", "job_id", "run", "uid", "node", "first", "again", "keep", "record", "below", "seed")

    def __init__(self, path: str, cluster: str, job_id: int, run: int, uid: int, node: str) -> None:
        self.path = path
        self.cluster = cluster
        self.job_id = job_id
        self.run = run
        self.uid = uid
        self.node = node
        self.first = False
        self.again = False
        self.keep = False
        self.record: "dict[str, str]" = {}
        self.below = ""
        self.seed: "Callable[[int], None] | None" = None

    @property
    def identity(self) -> "tuple[str, int, int, int]":
        return self.cluster, self.job_id, self.run, self.uid


# ---------------------------------------------------------------------------------------------------- making, joining


def enter(claim: Claim, until: float) -> str:
    """Make the cache of `claim`, or join it; return "made", "joined" or "mended".

    Wait for a cache that is being reaped until `until` (seconds of time.monotonic). Raise Refused where the path is
    somebody else's or stays taken, OSError where the filesystem says no.
    """
    parent, _, name = claim.path.rpartition("/")
    os.makedirs(parent, 0o700, exist_ok=True)
    parent_fd = dirfd.open_directory(parent)
    try:
        if os.fstat(parent_fd).st_uid not in (0, claim.uid):
            raise reasons.Refused("foreign", "the directory that caches are to be made in belongs to another user")
        while True:
            outcome = _enter_once(parent_fd, name, claim)
            if outcome:
                return outcome
            if time.monotonic() >= until:
                raise reasons.Refused("busy", "an earlier cache at this path is still being reaped")
            time.sleep(_PAUSE)
    finally:
        os.close(parent_fd)


def _enter_once(parent_fd: int, name: str, claim: Claim) -> "str | None":
    """Return what `enter` returns, or None where it is worth another look."""
    try:
        fd = os.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)
    except FileNotFoundError:
        return _make(parent_fd, name, claim)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise reasons.Refused("foreign", "what stands at the path is not a directory") from None
        raise
    try:
        if os.fstat(fd).st_uid != claim.uid:
            raise reasons.Refused("foreign", "the directory at the path belongs to another user")
        found = job_record.identity(fd)
        if found == claim.identity and not claim.first:
            return _join(fd, claim)
        if found is None:
            return _unrecorded(parent_fd, name, fd, claim)
        if claim.first and found[:2] == claim.identity[:2] and found[3] == claim.uid:
            return _make(parent_fd, name, claim) if _discard_earlier_life(parent_fd, name, fd, claim) else None
        raise reasons.Refused("foreign", "the cache at the path is another job's or another cluster's")
    finally:
        os.close(fd)


def _unrecorded(parent_fd: int, name: str, fd: int, claim: Claim) -> "str | None":
    if _has_entries(f"/proc/self/fd/{fd}/{cache_names.META}") or not _is_at(parent_fd, name, fd):
        return None  # half reaped since we opened it: its name will be free soon, or is
    if claim.again and not claim.first:
        return _mend(parent_fd, name, fd, claim)
    if _has_entries(f"/proc/self/fd/{fd}"):
        raise reasons.Refused("unrecorded", "a directory without our record is at the path, and not empty")
    return _make(parent_fd, name, claim)


def _has_entries(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except FileNotFoundError:
        return False


def _make(parent_fd: int, name: str, claim: Claim) -> "str | None":
    """Build a cache beside `name` and rename it there. rename(2) takes the place of an empty directory, and only of that."""
    new = _build(parent_fd, claim, claim.seed)
    try:
        os.rename(new, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except OSError as error:
        _unbuild(parent_fd, new, claim)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return None  # another node was first
        raise
    return "made"


def _is_at(parent_fd: int, name: str, fd: int) -> bool:
    try:
        there = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _mend(parent_fd: int, name: str, fd: int, claim: Claim) -> "str | None":
    """Put a record into a directory that the job's own script has made in place of its cache."""
    new = _build(parent_fd, claim)
    try:
        os.rename(f"{new}/{cache_names.META}", cache_names.META, src_dir_fd=parent_fd, dst_dir_fd=fd)
    except OSError as error:
        _unbuild(parent_fd, new, claim)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
            return None  # another task was first, or the directory is gone
        raise
    os.rmdir(new, dir_fd=parent_fd)
    return "mended" if _is_at(parent_fd, name, fd) else None  # else another node has mended, ended and reaped it meanwhile


def _join(fd: int, claim: Claim) -> "str | None":
    """Take this node's lease. Where nodes/ is gone, the cache is being reaped: nobody can join it any more."""
    boot, uptime = node_leases.now()
    try:
        meta_fd = os.open(cache_names.META, dirfd.DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        return None
    try:
        lease_fd = _create_lease(meta_fd, claim.node)
        if lease_fd is not None:
            try:
                os.write(lease_fd, node_leases.lease_text(boot, uptime))
            except OSError:
                pass  # a full disk: a lease that cannot be dated holds the cache all the same
            finally:
                os.close(lease_fd)
        if claim.keep:
            dirfd.write_new(meta_fd, cache_names.KEEP, b"")
    except FileNotFoundError:
        return None
    finally:
        os.close(meta_fd)
    return "joined"


def _create_lease(meta_fd: int, node: str) -> "int | None":
    try:
        return dirfd.create(meta_fd, f"{cache_names.NODES}/{node}")
    except PermissionError:
        os.close(node_leases.open_nodes(meta_fd))
        return dirfd.create(meta_fd, f"{cache_names.NODES}/{node}")


def _discard_earlier_life(parent_fd: int, name: str, fd: int, claim: Claim) -> bool:
    """Move an earlier life's cache, open at `fd`, out of the way: the first task of a run never joins what it finds.

    A job id comes again after a wrap or a lost controller state, and a lost node's run leaves its cache behind. Return
    False where somebody else is about to reap it: its name will be free soon.
    """
    if not node_leases.seize(fd):
        return False
    try:
        os.rename(name, cache_names.trash_name(claim.job_id, dirfd.nonce()), src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except FileNotFoundError:
        pass  # its user removed it meanwhile
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise reasons.Refused("busy", "an earlier cache at this path cannot be renamed away") from None
        raise
    return True


def _build(parent_fd: int, claim: Claim, seed: "Callable[[int], None] | None" = None) -> str:
    """Build a complete cache under a temporary name; return the name. On failure, leave nothing."""
    new = cache_names.new_name(claim.job_id, dirfd.nonce())
    os.mkdir(new, 0o700, dir_fd=parent_fd)
    try:
        new_fd = os.open(new, dirfd.DIRECTORY, dir_fd=parent_fd)
        try:
            os.mkdir(cache_names.META, 0o700, dir_fd=new_fd)
            meta_fd = os.open(cache_names.META, dirfd.DIRECTORY, dir_fd=new_fd)
            try:
                dirfd.write_new(meta_fd, cache_names.ID, cache_names.format_id(*claim.identity).encode("ascii") + b"\n")
                if seed:
                    if claim.below:
                        os.mkdir(claim.below, 0o700, dir_fd=new_fd)
                    seed(new_fd)
                dirfd.write_new(meta_fd, cache_names.RECORD, record_text(claim).encode("ascii"))
                if claim.keep:
                    dirfd.write_new(meta_fd, cache_names.KEEP, b"")
                os.mkdir(cache_names.NODES, 0o700, dir_fd=meta_fd)
                dirfd.write_new(meta_fd, f"{cache_names.NODES}/{claim.node}", node_leases.lease_text(*node_leases.now()))
            finally:
                os.close(meta_fd)
        finally:
            os.close(new_fd)
    except OSError:
        _unbuild(parent_fd, new, claim)
        raise
    return new


def _unbuild(parent_fd: int, new: str, claim: Claim) -> None:
    """Remove what `_build` made, file by file: by name, and nothing that it did not make."""
    meta = f"{new}/{cache_names.META}"
    try:
        if claim.seed:
            _unseed(parent_fd, new, 0)
        for file in (f"{cache_names.NODES}/{claim.node}", cache_names.ID, cache_names.RECORD, cache_names.KEEP):
            dirfd.unlink_if_there(parent_fd, f"{meta}/{file}")
        for directory in (f"{meta}/{cache_names.NODES}", meta, new):
            dirfd.rmdir_if_there(parent_fd, directory)
    except OSError:
        pass  # what stays is debris, with a name that the sweep knows


def _unseed(dir_fd: int, path: str, level: int) -> None:
    """Remove the links and directories that seeding made below `path`: symlinks and what is empty then, and nothing else."""
    with os.scandir(f"/proc/self/fd/{dir_fd}/{path}") as entries:
        found = [(entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_link, is_directory in found:
        if is_link:
            dirfd.unlink_if_there(dir_fd, f"{path}/{name}")
        elif is_directory and level < _SEEDED_LEVELS and (level or name != cache_names.META):
            _unseed(dir_fd, f"{path}/{name}", level + 1)
            os.rmdir(f"{path}/{name}", dir_fd=dir_fd)
    if level == 0:
        seeds = f"{path}/{cache_names.META}/{cache_names.SEEDS}"
        if os.path.lexists(f"/proc/self/fd/{dir_fd}/{seeds}"):
            _unseed(dir_fd, seeds, 1)
            os.rmdir(seeds, dir_fd=dir_fd)


def record_text(claim: Claim) -> str:
    """Return job.json's text: schema 1, the identity, the moment (RFC 3339, UTC), and what `claim.record` adds."""
    fields = {
        "schema": "1",
        "cluster": event_line.quote(claim.cluster),
        "job_id": str(claim.job_id),
        "run": str(claim.run),
        "uid": str(claim.uid),
        "node": event_line.quote(claim.node),
        "created_at": event_line.quote(timestamps.second(time.time())),
        **claim.record,
    }
    return "{" + ", ".join(f"{event_line.quote(key)}: {value}" for key, value in fields.items()) + "}\n"
