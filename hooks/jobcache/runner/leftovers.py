"""The processes of this user that work in a cache without a lease of their own. The only source is /proc.

A process works in a cache if it has the environment of a command of that cache, an inherited lock on a lease in it, or its
working directory there. Programs that close all descriptors, as Python does for its children, hold no lock.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional, TypeVar

from jobcache.cache import cache_names, lease_lock

_T = TypeVar("_T")
_PATIENCE = 1.0  # seconds to search; a user can have any number of processes


@dataclass(frozen=True)
class Process:
    """A process. started: in clock ticks since boot."""

    pid: int
    started: int
    name: str


@dataclass(frozen=True)
class _Use:
    """The use that one process makes of a cache. leases: that it holds open, by name."""

    parent: int
    works: bool
    leases: "frozenset[str]"


class UnfinishedError(Exception):
    """The time did not suffice to examine all processes, and those examined do not work in the cache."""


def find(path: str, cache_fd: int, lease: Optional[str]) -> "list[Process]":
    """Return the processes that work in a cache, but for this process, and for those that another lease covers.

    path: of the cache, as its commands know it. lease: the name of the lease that this process is about to release. Another
    lease covers the `jobcache run` that holds it and all descendants of that process; with None, no lease covers any process.
    The newest processes are examined first: few others come from the command. Raise UnfinishedError.
    """
    real = _link(f"/proc/self/fd/{cache_fd}").removesuffix(" (deleted)")
    until = time.monotonic() + _PATIENCE
    uses: dict[int, _Use] = {}
    own = _own_processes()
    for pid in sorted(own, reverse=True):
        uses[pid] = _use(pid, path.encode("utf-8", "surrogateescape"), real)
        if time.monotonic() >= until:
            break
    found = (pid for pid, use in uses.items() if use.works and pid != os.getpid() and not _is_covered(pid, uses, lease))
    described = (_describe(pid) for pid, _ in zip(found, range(lease_lock.MOST_LEFT)))
    working = sorted((process for process in described if process), key=lambda process: process.pid)
    if not working and len(uses) < len(own):
        raise UnfinishedError
    return working


def close_inherited_locks(cache_fd: int, lease: str) -> None:
    """Close the descriptors of other leases than `lease`: this process has one of its own, and needs no inherited lock."""
    leases = f"{_link(f'/proc/self/fd/{cache_fd}')}/{cache_names.META}/{cache_names.NODES}/"
    for fd in os.listdir("/proc/self/fd"):
        link = _link(f"/proc/self/fd/{fd}")
        if link.startswith(leases) and link != leases + lease:
            os.close(int(fd))


def _own_processes() -> "list[int]":
    own = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                own.append(int(name))
        except OSError:
            continue  # the process has ended
    return own


def _use(pid: int, path: bytes, real: str) -> _Use:
    here = f"/proc/{pid}"
    leases = f"{real}/{cache_names.META}/{cache_names.NODES}/"
    environ = _or_none(lambda: _read(f"{here}/environ").split(b"\0")) or []
    cwd = _or_none(lambda: os.readlink(f"{here}/cwd")) or ""
    descriptors = _or_none(lambda: os.listdir(f"{here}/fd")) or []
    links = (_link(f"{here}/fd/{fd}").removesuffix(" (deleted)") for fd in descriptors)
    held = frozenset(link[len(leases) :] for link in links if link.startswith(leases))
    works = b"JOBCACHE_DIR=" + path in environ or f"{cwd}/".startswith(f"{real}/") or bool(held)
    return _Use(_parent(pid), works, held)


def _is_covered(pid: int, uses: "dict[int, _Use]", lease: Optional[str]) -> bool:
    """Return whether a process or one of its ancestors holds another lease than `lease`. None: False."""
    seen: set[int] = set()
    while lease is not None and pid in uses and pid not in seen:
        if uses[pid].leases - {lease}:
            return True
        seen.add(pid)
        pid = uses[pid].parent
    return False


def _describe(pid: int) -> Optional[Process]:
    """Return a process, None if it has ended."""
    started = lease_lock.started(pid)
    name = _or_none(lambda: _read(f"/proc/{pid}/comm").decode("utf-8", "replace").strip())
    if started is None or name is None:
        return None
    return Process(pid, started, "".join(ch if ch.isprintable() else "?" for ch in name))


def _parent(pid: int) -> int:
    text = _or_none(lambda: _read(f"/proc/{pid}/stat")) or b""
    fields = text.rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _link(path: str) -> str:
    return _or_none(lambda: os.readlink(path)) or ""


def _or_none(read: "Callable[[], _T]") -> "Optional[_T]":
    """Return the result of `read`, None if the process has ended or cannot be read."""
    try:
        return read()
    except OSError:
        return None
