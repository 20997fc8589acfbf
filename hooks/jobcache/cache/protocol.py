"""The protocol by which the nodes of a job share one cache: how a task makes a cache or joins it.

It needs no lock, no count and no Slurm command:

1. A cache is built under another name and renamed into place, so it is complete from the first moment.
2. Each node of the job takes a lease in it, `.jobcache/nodes/<node>`. Nobody creates nodes/ a second time.
3. The node that releases the last lease removes nodes/ (`node_leases.release`). It owns the cache from then on, because
   nobody can join it; it reaps the cache.

Everything here runs as the job's user.
"""

import errno
import os
import time

from jobcache.cache import (
    cache_names,
    dirfd,
    event_line,
    file_owners,
    job_record,
    node_leases,
    reasons,
    safe_path,
    timestamps,
    visible_scratch,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Clock(Protocol):
        """The part of the `time` module that `enter` uses."""

        def monotonic(self) -> float: ...
        def sleep(self, seconds: float, /) -> None: ...


_PAUSE = 0.02  # seconds between two attempts, while an earlier cache is being reaped
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # errors of rename(2) onto a name that somebody else uses
_SEED_DEPTH = 12  # levels of directories that seeding creates
_REMOVAL = 0.1  # seconds for the removal of a cache that is not used


class Claim:
    """A task's request: the cache at `path` for one run of one job on one node.

    node: the lease to take: the node's name, or a process's lease by `cache_names.format_lease`.
    first_task: the task is the batch script's. It discards a cache that is proven to be from an earlier life of the job id.
    job_start: when the job began, in seconds since the epoch by the controller's clock; 0 if unknown.
    stepd: the pid of the task's slurmstepd; 0 if unknown, or if the titles on this node do not name all steps of the job.
    given_before: the job was given this path before, so a directory without a record there is the work of its own script.
    keep: the task has JOBCACHE=keep.
    record: further fields of job.json, as JSON text by key.
    above: the part of `path` above the first component that names the user, None if unknown (see safe_path.open_safe).
    scratch: as of visible_scratch.require, None to create the cache on any filesystem.
    job_directory: the part of `path` that only the site makes, "" for none.
    below: the directory in the cache that becomes HF_DATASETS_CACHE, "" for the cache itself.
    on_made: called with the descriptor of the directory above the cache, unless the outcome is "joined".
    seed: a function that fills a new cache, given its descriptor, before anybody else can find it. It may create symlinks,
        and directories of its own, may add to `record`, and may raise Refused: then no cache is made.
    """

    __slots__ = (
        "path", "cluster", "job_id", "run", "uid", "node", "first_task", "job_start", "stepd", "given_before", "keep", "record",
        "below", "seed", "above", "scratch", "job_directory", "on_made",
    )  # fmt: skip

    def __init__(self, path: str, cluster: str, job_id: int, run: int, uid: int, node: str) -> None:
        self.path = path
        self.cluster = cluster
        self.job_id = job_id
        self.run = run
        self.uid = uid
        self.node = node
        self.first_task = False
        self.job_start = 0.0
        self.stepd = 0
        self.given_before = False
        self.keep = False
        self.record: "dict[str, str]" = {}
        self.above: "str | None" = None
        self.scratch: "str | None" = None
        self.job_directory = ""
        self.below = ""
        self.seed: "Callable[[int], None] | None" = None
        self.on_made: "Callable[[int], None] | None" = None

    @property
    def identity(self) -> "tuple[str, int, int, int]":
        return self.cluster, self.job_id, self.run, self.uid


def enter(claim: Claim, until: float, clock: "Clock" = time) -> str:
    """Make the cache of `claim` or join it; return "made", "joined" or "mended" (a record restored, see `restore_record`).

    Wait until `until` (seconds of clock.monotonic) while an earlier cache at the path is being reaped. Raise Refused if the
    path belongs to somebody else, stays taken, or could be exchanged by another user; OSError if the filesystem fails.
    """
    parent, _, name = claim.path.rpartition("/")
    if claim.scratch is not None:
        visible_scratch.require(claim.path, claim.scratch, claim.uid)
    given = claim.job_directory or claim.scratch or ""
    parent_fd = safe_path.open_safe(parent, claim.uid, claim.above, make=True, given=given)
    try:
        while True:
            outcome = _enter_once(parent_fd, name, claim)
            if outcome:
                if claim.on_made and outcome != "joined":
                    claim.on_made(parent_fd)
                return outcome
            if clock.monotonic() >= until:
                raise reasons.Refused("busy", "an earlier cache at this path is still being reaped")
            clock.sleep(_PAUSE)
    finally:
        os.close(parent_fd)


def _enter_once(parent_fd: int, name: str, claim: Claim) -> "str | None":
    """Return the outcome as `enter` does, or None if another attempt can succeed. Raise as `enter` does."""
    try:
        fd = os.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)
    except FileNotFoundError:
        return make(parent_fd, name, claim)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise reasons.Refused("foreign", "a file or a symlink is at the path") from None
        raise
    try:
        if os.fstat(fd).st_uid != file_owners.own(claim.uid):
            raise reasons.Refused("foreign", "the directory at the path belongs to another user")
        found = job_record.identity(fd)
        if found == claim.identity:
            return _enter_recorded(parent_fd, name, fd, claim)
        if found is None:
            return _enter_unrecorded(parent_fd, name, fd, claim)
        if claim.first_task and found[:2] == claim.identity[:2] and found[3] == claim.uid:  # another run of this job id
            return make(parent_fd, name, claim) if discard_earlier_life(parent_fd, name, fd, claim) else None
        raise reasons.Refused("foreign", "the cache at the path belongs to another job or another cluster")
    finally:
        os.close(fd)


def _enter_recorded(parent_fd: int, name: str, fd: int, claim: Claim) -> "str | None":
    """Return and raise as `_enter_once` does, for a cache with the identity of the claim."""
    if claim.first_task:
        from jobcache.cache import earlier_lives  # few batch tasks find a cache

        def is_unused(nodes: str) -> bool:
            return earlier_lives.is_unused(fd, claim, nodes)

        if is_unused(cache_names.NODES):
            return make(parent_fd, name, claim) if discard_earlier_life(parent_fd, name, fd, claim, is_unused) else None
    return join(fd, claim)


def _enter_unrecorded(parent_fd: int, name: str, fd: int, claim: Claim) -> "str | None":
    """Return and raise as `_enter_once` does, for a directory without an id."""
    if _has_entries(f"/proc/self/fd/{fd}/{cache_names.META}") or not dirfd.is_at(parent_fd, name, fd):
        return None  # partly reaped since it was opened: its name is free, or soon will be
    if claim.given_before and not claim.first_task:
        return restore_record(parent_fd, name, fd, claim)
    if _has_entries(f"/proc/self/fd/{fd}"):
        raise reasons.Refused("unrecorded", "a directory that is not empty and has no record is at the path")
    return make(parent_fd, name, claim)


def _has_entries(path: str) -> bool:
    """Return whether a directory holds anything, False if it does not exist. Raise OSError."""
    try:
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except FileNotFoundError:
        return False


# ---- the steps of the protocol, which the tests replace one by one to show that each is needed


def make(parent_fd: int, name: str, claim: Claim) -> "str | None":
    """Build a cache and rename it to `name`; return "made", or None if another task was faster. Raise OSError.

    rename(2) replaces an empty directory, and nothing else.
    """
    new = _build(parent_fd, claim, claim.seed)
    try:
        os.rename(new, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except OSError as error:
        _remove_unused(parent_fd, new, claim)
        if error.errno in _TAKEN:
            return None
        raise
    return "made"


def join(fd: int, claim: Claim) -> "str | None":
    """Take a lease in the cache that is open at `fd`; return "joined", or None if it is being reaped. Raise OSError."""
    boot, uptime = node_leases.now()
    try:
        with dirfd.Opened(fd, cache_names.META) as meta_fd:
            lease_fd = _create_lease(meta_fd, claim.node)
            if lease_fd is not None:
                try:
                    os.write(lease_fd, node_leases.lease_text(boot, uptime))
                except OSError:
                    pass  # a full disk; a lease without a date holds the cache as well
                finally:
                    os.close(lease_fd)
            if claim.keep:
                dirfd.write_new(meta_fd, cache_names.KEEP, b"")
    except FileNotFoundError:
        return None
    if lease_fd is None and os.fstatvfs(fd).f_flag & os.ST_RDONLY:  # `datasets` cannot use it, though the lease exists
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return "joined"


def _create_lease(meta_fd: int, node: str) -> "int | None":
    """Create a lease; return its descriptor for writing, or None if it exists. Raise OSError, with ENOENT without nodes/."""
    try:
        return dirfd.create(meta_fd, f"{cache_names.NODES}/{node}")
    except PermissionError:
        os.close(node_leases.open_nodes(meta_fd))  # which makes it writable
        return dirfd.create(meta_fd, f"{cache_names.NODES}/{node}")


def restore_record(parent_fd: int, name: str, fd: int, claim: Claim) -> "str | None":
    """Put a record into a directory that the job's own script created in place of its cache.

    Return "mended", or None if another task was faster or the directory no longer exists. Raise OSError.
    """
    new = _build(parent_fd, claim)
    try:
        os.rename(f"{new}/{cache_names.META}", cache_names.META, src_dir_fd=parent_fd, dst_dir_fd=fd)
    except OSError as error:
        _remove_unused(parent_fd, new, claim)
        if error.errno in (*_TAKEN, errno.ENOENT):
            return None
        raise
    os.rmdir(new, dir_fd=parent_fd)
    return "mended" if dirfd.is_at(parent_fd, name, fd) else None  # None: another node restored, released and reaped it


def discard_earlier_life(
    parent_fd: int, name: str, fd: int, claim: Claim, is_unused: "Callable[[str], bool] | None" = None
) -> bool:
    """Rename the cache that is open at `fd` to trash; return False if somebody else uses or reaps it. Raise Refused, OSError.

    is_unused: judges a directory of leases; None if the id proves that the cache is of another run.
    """
    if not node_leases.seize(fd, is_unused):
        return False
    try:
        os.rename(name, cache_names.trash_name(claim.job_id, dirfd.nonce()), src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except FileNotFoundError:
        pass  # its user has removed it
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise reasons.Refused("busy", "an earlier cache at this path cannot be renamed") from None
        raise
    return True


# ---- building a cache


def _build(parent_fd: int, claim: Claim, seed: "Callable[[int], None] | None" = None) -> str:
    """Build a complete cache under a new name; return the name. Raise Refused, OSError, after removing it."""
    new = cache_names.new_name(claim.job_id, dirfd.nonce())
    os.close(safe_path.make_directory(parent_fd, new))
    try:
        with dirfd.Opened(parent_fd, new) as new_fd:
            os.mkdir(cache_names.META, 0o700, dir_fd=new_fd)
            with dirfd.Opened(new_fd, cache_names.META) as meta_fd:
                job_record.write_id(meta_fd, *claim.identity)
                if seed:
                    if claim.below:
                        dirfd.make_directories(new_fd, claim.below)
                    seed(new_fd)
                dirfd.write_new(meta_fd, cache_names.RECORD, record_text(claim).encode("ascii"))
                if claim.keep:
                    dirfd.write_new(meta_fd, cache_names.KEEP, b"")
                os.mkdir(cache_names.NODES, 0o700, dir_fd=meta_fd)
                dirfd.write_new(meta_fd, f"{cache_names.NODES}/{claim.node}", node_leases.lease_text(*node_leases.now()))
    except (OSError, reasons.Refused):
        _remove_unused(parent_fd, new, claim)
        raise
    return new


def record_text(claim: Claim) -> str:
    """Return the text of job.json: schema 1, the identity, the time of creation, and `claim.record`."""
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
    return event_line.to_json(fields) + "\n"


def _remove_unused(parent_fd: int, new: str, claim: Claim) -> None:
    """Remove a cache that `_build` made: each file by its name, and nothing else. The sweep finds the rest by `new`.

    Many links would take too long: then rename it to trash, which the sweep deletes.
    """
    meta = f"{new}/{cache_names.META}"
    try:
        if claim.seed and not _remove_seeds(parent_fd, new):
            trash = cache_names.trash_name(claim.job_id, dirfd.nonce())
            os.rename(new, trash, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
            return
        for file in (f"{cache_names.NODES}/{claim.node}", cache_names.ID, cache_names.RECORD, cache_names.KEEP):
            dirfd.unlink_if_exists(parent_fd, f"{meta}/{file}")
        for directory in (f"{meta}/{cache_names.NODES}", meta, new):
            dirfd.rmdir_if_exists(parent_fd, directory)
    except OSError:
        pass


def _remove_seeds(parent_fd: int, new: str) -> bool:
    """Remove the symlinks and directories that `claim.seed` made, and nothing else. Raise OSError.

    Return False if that takes longer than _REMOVAL, after removing some of them.
    """
    until = time.monotonic() + _REMOVAL
    if not _remove_symlinks(parent_fd, new, 0, until):
        return False
    for name in (cache_names.SEEDS, cache_names.SOURCES):
        path = f"{new}/{cache_names.META}/{name}"
        if dirfd.exists(parent_fd, path):
            if not _remove_symlinks(parent_fd, path, 1, until):
                return False
            os.rmdir(path, dir_fd=parent_fd)
    return True


def _remove_symlinks(dir_fd: int, path: str, level: int, until: float) -> bool:
    """Remove the symlinks below `path` and the directories that are empty then. Return False after `until`. Raise OSError."""
    with os.scandir(f"/proc/self/fd/{dir_fd}/{path}") as entries:
        found = [(entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_symlink, is_directory in found:
        if time.monotonic() >= until:
            return False
        if is_symlink:
            dirfd.unlink_if_exists(dir_fd, f"{path}/{name}")
        elif is_directory and level < _SEED_DEPTH and (level or name != cache_names.META):
            if not _remove_symlinks(dir_fd, f"{path}/{name}", level + 1, until):
                return False
            os.rmdir(f"{path}/{name}", dir_fd=dir_fd)
    return True
