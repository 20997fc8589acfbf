"""What a cache says of itself: its id, its record, its signs of life."""

import errno
import os

from jobcache.cache import cache_names, dirfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

_MOST_NAMED = 64  # nodes; a user can forge any number of leases
_NOBODYS = ("", 0, 0, -1)


# ------------------------------------------------------------------------------------------------------ id and record


def identity(cache_fd: int) -> "tuple[str, int, int, int] | None":
    """Return (cluster, job_id, run, uid) as `.jobcache/id` says, None where there is no id at all.

    An id that is there and cannot be read as one comes out as one that equals no job's; so does one that somebody else
    has put there, who may write in this directory.
    """
    owner = os.fstat(cache_fd).st_uid
    try:
        meta_fd = open_meta(cache_fd)
        if meta_fd is None:
            return None
        try:
            text = dirfd.read_small(meta_fd, cache_names.ID, owner) if os.fstat(meta_fd).st_uid == owner else ""
        finally:
            os.close(meta_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return _NOBODYS
        raise
    return None if text is None else cache_names.parse_id(text) or _NOBODYS


def sign(cache_fd: int, cluster: str, job_id: int, run: int, uid: int) -> None:
    """Give what has no record an id, so that what is left of it can be told. Raise OSError, also where there is a record."""
    os.mkdir(cache_names.META, 0o700, dir_fd=cache_fd)
    meta_fd = os.open(cache_names.META, dirfd.DIRECTORY, dir_fd=cache_fd)
    try:
        dirfd.write_new(meta_fd, cache_names.ID, cache_names.format_id(cluster, job_id, run, uid).encode("ascii") + b"\n")
    finally:
        os.close(meta_fd)


def read_record(cache_fd: int) -> "dict[str, object]":
    """Return what job.json holds, {} where it cannot be read as a JSON object. Believe of it what harms nobody."""
    import json

    try:
        meta_fd = open_meta(cache_fd)
        if meta_fd is None:
            return {}
        try:
            found = json.loads(dirfd.read_small(meta_fd, cache_names.RECORD) or "")
        finally:
            os.close(meta_fd)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(cache_fd: int, record: "dict[str, object]") -> None:
    """Put `record` in job.json's place, whole. Raise OSError."""
    import json

    meta_fd = os.open(cache_names.META, dirfd.DIRECTORY, dir_fd=cache_fd)
    try:
        new = f"{cache_names.RECORD}.{dirfd.nonce()}"
        try:
            text = json.dumps(record)
        except RecursionError:  # a forged one, nested deeper than we can write
            text = json.dumps({key: value for key, value in record.items() if isinstance(value, (str, int))})
        try:
            dirfd.write_new(meta_fd, new, text.encode("ascii") + b"\n")
            os.rename(new, cache_names.RECORD, src_dir_fd=meta_fd, dst_dir_fd=meta_fd)
        except OSError:
            dirfd.unlink_if_there(meta_fd, new)
            raise
    finally:
        os.close(meta_fd)


def signs_of_life(cache_fd: int) -> "tuple[float, list[str]]":
    """Return when its id, its record or a lease last changed, and nodes that hold leases, 64 at most. Raise OSError.

    Seconds since the epoch by the filesystem's clock: the change time, which its user cannot set. 0.0 where there is none.
    That a lease came or went, the directory of leases tells.
    """
    meta_fd = open_meta(cache_fd)
    if meta_fd is None:
        return 0.0, []
    newest, nodes = os.fstat(meta_fd).st_ctime, []
    try:
        for name in (cache_names.ID, cache_names.RECORD, cache_names.NODES):
            try:
                newest = max(newest, os.stat(name, dir_fd=meta_fd, follow_symlinks=False).st_ctime)
            except FileNotFoundError:
                continue
        nodes_fd = os.open(cache_names.NODES, dirfd.DIRECTORY, dir_fd=meta_fd)
        try:
            with os.scandir(nodes_fd) as leases:
                for lease, _ in zip(leases, range(_MOST_NAMED)):
                    nodes.append(lease.name)
                    newest = max(newest, lease.stat(follow_symlinks=False).st_ctime)
        finally:
            os.close(nodes_fd)
    except FileNotFoundError:
        pass  # being reaped, or a lease that has just gone
    finally:
        os.close(meta_fd)
    return newest, sorted(nodes)


def is_kept(cache_fd: int) -> bool:
    """Whether the user said JOBCACHE=keep in any task of the job."""
    try:
        os.lstat(f"/proc/self/fd/{cache_fd}/{cache_names.META}/{cache_names.KEEP}")
    except OSError:
        return False
    return True


def open_meta(cache_fd: int) -> "int | None":
    try:
        return os.open(cache_names.META, dirfd.DIRECTORY, dir_fd=cache_fd)
    except FileNotFoundError:
        return None
