"""The directories on scratch that have a name of jobcache, with the facts that their owner can read.

The users' directories are listed as root. Below them everything is read with the rights of the user: root squash and
closed directories hide nothing, and a user gains no rights of root. All of this runs in children, because scratch can hang.
"""

import calendar
import errno
import itertools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Callable, Optional

from jobcache.cache import cache_names, dirfd, job_record, lease_lock, path_template
from jobcache.sweep.plan import ASIDE, CACHE, NEW, RUN, TRASH, Directory, Identity
from jobcache.sweep.user_directories import UserDirectory, list_names, template_of
from jobcache.system import mounts

_STRIDE = 4096  # entries between two heartbeats
_MOST_PARENTS = 10_000  # directories in one place of a user that can hold caches, by a wildcard in the template
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KINDS = {cache_names.NEW: NEW, cache_names.TRASH: TRASH, cache_names.ASIDE: ASIDE}


# ------------------------------------------------------------------------------------------------------------- listing


def list_directories(place: UserDirectory, cluster: str, local: bool) -> Iterator[Optional[Directory]]:
    """Yield the directories in `place` with their identity, as the current user reads it.

    Yield None periodically as a heartbeat. Raise OSError at the end if a part could not be listed.
    local: the scratch is node-local.
    """
    failures: list[OSError] = []
    for parent in parents(place.path, place.rest, failures):
        yield None
        try:
            yield from _in_parent(parent, place, cluster, local)
        except OSError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _in_parent(parent: str, place: UserDirectory, cluster: str, local: bool) -> Iterator[Optional[Directory]]:
    values = {"cluster": cluster, "uid": str(place.uid), **({"user": place.user} if place.user else {})}
    template = template_of(place.template)
    matches = path_template.matcher(template.name, values)
    try:
        parent_fd = dirfd.open_directory(parent)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            return
        raise
    try:
        for entry in _entries(parent_fd, matches):
            if entry is None:
                yield None
                continue
            kind, name, job_id, run = entry
            if not template.has_job(parent, job_id):
                continue
            plain = Directory(kind, f"{parent}/{name}", job_id, run, place.uid, place.gid, local=local)
            yield _with_facts(parent_fd, name, plain, lambda fd: {"identity": _identity(fd)})
    finally:
        os.close(parent_fd)


def parents(path: str, rest: tuple[str, ...], failures: list[OSError]) -> Iterator[str]:
    """Yield the parents of caches below `path`: a component with a wildcard is listed. failures: takes each OSError."""
    if not rest:
        yield path
    elif path_template.ANY not in rest[0]:
        yield from parents(f"{path}/{rest[0]}", rest[1:], failures)
    else:
        try:
            names = list(itertools.islice(_names_like(path, rest[0].split(path_template.ANY)), _MOST_PARENTS + 1))
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                failures.append(error)
            return
        if len(names) > _MOST_PARENTS:
            failures.append(OSError(errno.E2BIG, f"more than {_MOST_PARENTS} directories that can hold caches", path))
        for name in names[:_MOST_PARENTS]:
            yield from parents(f"{path}/{name}", rest[1:], failures)


def _names_like(path: str, texts: list[str]) -> Iterator[str]:
    """Yield the names in a directory that consist of these texts and any other text between each two. Raise OSError."""
    matches = re.compile(".+".join(map(re.escape, texts)), re.DOTALL).fullmatch
    fd = dirfd.open_unmarked(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(fd) as entries:
            yield from (entry.name for entry in entries if matches(entry.name) is not None)
    finally:
        os.close(fd)


def _entries(parent_fd: int, matches: "path_template.Matcher") -> Iterator[Optional[tuple[str, str, int, Optional[int]]]]:
    """Yield (kind, name, job_id, run) of each directory with a name of jobcache, None periodically as a heartbeat."""
    list_fd = dirfd.open_unmarked(".", dirfd.DIRECTORY, parent_fd)
    try:
        with os.scandir(list_fd) as entries:
            for at, entry in enumerate(entries, 1):
                if at % _STRIDE == 0:
                    yield None
                debris = cache_names.parse_debris(entry.name)
                values = None if debris or cache_names.is_history(entry.name) else matches(entry.name)
                if not (debris or values) or not entry.is_dir(follow_symlinks=False):
                    continue
                if debris:
                    yield _KINDS[debris[0]], entry.name, debris[1], None
                elif values:
                    job = cache_names.parse_job(values["job_id"])
                    pid = cache_names.parse_run(values["job_id"])
                    if job:
                        yield CACHE, entry.name, *job
                    elif pid:
                        yield RUN, entry.name, pid, 0
    finally:
        os.close(list_fd)


# ---------------------------------------------------------------------------------------------------------- inspection


def inspect(parent_fd: int, name: str, plain: Directory) -> Directory:
    """Return `plain` with all facts that the current user can read, with `error` if the directory cannot be read."""
    return _with_facts(parent_fd, name, plain, lambda fd: _facts(fd, plain.kind == RUN))


def _with_facts(parent_fd: int, name: str, plain: Directory, read: Callable[[int], dict[str, Any]]) -> Directory:
    try:
        fd = mounts.open_beside(parent_fd, name)
        try:
            status = os.fstat(fd)
            if status.st_uid != plain.uid:
                return replace(plain, error=f"it is owned by uid {status.st_uid}")
            return replace(plain, device=status.st_dev, inode=status.st_ino, error="", **read(fd))
        finally:
            os.close(fd)
    except mounts.MountPoint:
        return replace(plain, error="it is a mount point, and left alone", mounted=True)
    except OSError as error:
        return replace(plain, error=str(error) or type(error).__name__)


def _facts(fd: int, without_job: bool) -> dict[str, Any]:
    sign, nodes = job_record.signs_of_life(fd)
    record = job_record.read_record(fd)
    until = record.get("keep_until")
    return {
        "identity": _identity(fd),
        "sign": max(sign, os.fstat(fd).st_ctime),
        "keep_until": _seconds(until) if isinstance(until, str) else None,
        "kept": job_record.is_kept(fd),
        "joinable": os.path.lexists(f"/proc/self/fd/{fd}/{cache_names.META}/{cache_names.NODES}"),
        "nodes": tuple(sorted({cache_names.lease_node(lease) for lease in nodes if cache_names.is_lease(lease)})),
        "holder": lease_lock.state(fd, record) if without_job else "",
        "bare": all(name == cache_names.META for name in itertools.islice(list_names(fd), 2)),
    }


def _identity(fd: int) -> Optional[Identity]:
    """Return the identity as job_record does, and None for an empty id.

    A crash leaves an empty id: the writer was killed, or the node lost power before the content was on the disk.
    """
    identity = job_record.identity(fd)
    empty = identity is not None and not identity[0]
    if empty and os.lstat(f"/proc/self/fd/{fd}/{cache_names.META}/{cache_names.ID}").st_size == 0:
        return None
    return identity


def _seconds(stamp: str) -> Optional[float]:
    try:
        return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))
    except (ValueError, OverflowError):
        return None


def filesystem_time(parent_fd: int) -> float:
    """Return the time by the clock of the filesystem: the change time of a directory that is touched. Raise OSError.

    Only a sweep that may reap does this: it changes the directory's other times as well.
    A new file would stay behind if this process were killed, and a user whose quota is full could not create one.
    """
    here = f"/proc/self/fd/{parent_fd}"
    os.utime(here)
    return os.stat(here).st_ctime
