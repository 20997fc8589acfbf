"""The id and the record of a cache: its job and owner, and the known facts about it.

Its user can forge both. Readers follow no symlink, wait for no fifo, and read 64 KiB at most.
"""

import errno
import os

from jobcache.cache import cache_names, dirfd, node_leases

UNREADABLE = ("", 0, 0, -1)  # the identity of a cache whose id cannot be trusted; it equals no job's
_NODES_LIMIT = 64  # leases to read; a user can forge any number


def identity(cache_fd: int) -> "tuple[str, int, int, int] | None":
    """Return (cluster, job_id, run, uid) from `.jobcache/id`, None if no id exists. Raise OSError.

    Return UNREADABLE for an id that cannot be parsed, or that belongs to another user than the cache.
    """
    owner = os.fstat(cache_fd).st_uid
    try:
        with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
            text = dirfd.read_small(meta_fd, cache_names.ID, owner) if os.fstat(meta_fd).st_uid == owner else ""
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return UNREADABLE
        raise
    return None if text is None else cache_names.parse_id(text) or UNREADABLE


def sign(cache_fd: int, cluster: str, job_id: int, run: int, uid: int) -> None:
    """Write an id into a directory without a record, so that the sweep can identify its remains.

    Raise OSError, with EEXIST if a record exists.
    """
    os.mkdir(cache_names.META, 0o700, dir_fd=cache_fd)
    with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
        write_id(meta_fd, cluster, job_id, run, uid)


def write_id(meta_fd: int, cluster: str, job_id: int, run: int, uid: int) -> None:
    """Create the id in a new `.jobcache`. Raise OSError."""
    dirfd.write_new(meta_fd, cache_names.ID, cache_names.format_id(cluster, job_id, run, uid).encode("ascii") + b"\n")


def read_record(cache_fd: int) -> "dict[str, object]":
    """Return the content of job.json, {} if it is no JSON object. Its user can forge all of it."""
    import json  # too slow for the TaskProlog, which reads no record

    try:
        with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
            found = json.loads(dirfd.read_small(meta_fd, cache_names.RECORD) or "")
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(cache_fd: int, record: "dict[str, object]") -> None:
    """Replace job.json atomically. Raise OSError."""
    import json

    try:
        text = json.dumps(record)
    except RecursionError:  # a forged record, nested deeper than json can write
        text = json.dumps({key: value for key, value in record.items() if isinstance(value, (str, int))})
    new = f"{cache_names.RECORD}.{dirfd.nonce()}"
    with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
        try:
            dirfd.write_new(meta_fd, new, text.encode("ascii") + b"\n")
            os.rename(new, cache_names.RECORD, src_dir_fd=meta_fd, dst_dir_fd=meta_fd)
        except OSError:
            dirfd.unlink_if_exists(meta_fd, new)
            raise


def signs_of_life(cache_fd: int) -> "tuple[float, list[str]]":
    """Return when the id, the record or a lease last changed, and the names of 64 leases at most. Raise OSError.

    The time is in seconds since the epoch, by the file server's clock; 0.0 without a record. It is a change time (ctime),
    which a user cannot set. The ctime of nodes/ shows that a lease was added or removed.
    """
    newest, leases = 0.0, []
    try:
        with dirfd.Opened(cache_fd, cache_names.META) as meta_fd:
            newest = os.fstat(meta_fd).st_ctime
            for name in (cache_names.ID, cache_names.RECORD, cache_names.NODES):
                try:
                    newest = max(newest, os.stat(name, dir_fd=meta_fd, follow_symlinks=False).st_ctime)
                except FileNotFoundError:
                    continue
            with dirfd.Unmarked(meta_fd, cache_names.NODES) as nodes_fd:
                leases = node_leases.names(nodes_fd, _NODES_LIMIT)
                for name in leases:
                    newest = max(newest, os.stat(name, dir_fd=nodes_fd, follow_symlinks=False).st_ctime)
    except FileNotFoundError:
        pass  # no record; or the cache is being reaped, or a lease was just released
    return newest, sorted(leases)


def is_kept(cache_fd: int) -> bool:
    """Return whether any task of the job had JOBCACHE=keep."""
    try:
        return dirfd.exists(cache_fd, f"{cache_names.META}/{cache_names.KEEP}")
    except OSError:
        return False
