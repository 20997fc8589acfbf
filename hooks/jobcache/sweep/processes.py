"""Which processes of this host use a cache, and which jobs have a step here; told by /proc alone."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

import psutil

from jobcache.sweep.plan import Found
from jobcache.system import children
from jobcache.system.gathering import Hung, starter, survey

_MOST_USING = 64  # processes that are named of one cache; a user can open all of their caches in all of their processes
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_STEP = re.compile(rb"(?:slurmstepd: )?\[([1-9][0-9]{0,9})\.[^\]]*\]")  # as slurmstepd calls itself


def steps() -> "set[int]":
    """Return the ids of the jobs that have a step on this host: root's slurmstepd says so in its title.

    That one is there says that its job lives. That none is says nothing.
    """
    found = set()
    for pid, _ in _of({0}):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = _STEP.match(file.read(64))
        except OSError:
            continue  # it has ended
        if title:
            found.add(int(title[1]))
    return found


def users_of(suspects: Sequence[Found], hung: Hung) -> "dict[str, tuple[int, ...]]":
    """Return which of their owners' processes use these directories, pids by path. One that cannot be looked at may use all.

    Not all pids where there are many: one is enough to keep a directory.

    A directory is known by its name, which has a job id in it: the path to it is another one in a container, or behind
    a symlink of root's.
    """
    using: dict[str, list[int]] = {}
    unknown: list[tuple[int, int]] = []
    named: dict[tuple[int, str], list[str]] = {}
    for one in suspects:
        named.setdefault((one.uid, os.path.basename(one.path)), []).append(one.path)

    def facts(process: tuple[int, int]) -> Iterator[dict[str, Any]]:
        pid, uid = process
        try:
            parts = {part for file in _opened(pid) for part in file.split("/")}
            for path in (path for part in parts for path in named.get((uid, part), ())):
                told[path] = told.get(path, 0) + 1
                if told[path] <= _MOST_USING:
                    yield {"pid": pid, "path": path}
        except PermissionError:
            if os.geteuid() == 0:  # others cannot look at some processes of their own, as sshd's
                yield {"pid": pid, "uid": uid}

    def lost(processes: Sequence[tuple[int, int]], _why: str) -> None:
        unknown.extend(processes)

    told: dict[str, int] = {}  # by path; each child has its own, begun anew
    owned = list(_of({one.uid for one in suspects}))
    for fact in survey(owned, facts, lost, hung, lambda process: f"pid {process[0]}"):
        if "path" in fact:
            pids = using.setdefault(fact["path"], [])
            if len(pids) < _MOST_USING:
                pids.append(fact["pid"])
        else:
            unknown.append((fact["pid"], fact["uid"]))
    of_owner: dict[int, list[int]] = {}
    for pid, uid in unknown:
        of_owner.setdefault(uid, []).append(pid)
    for one in suspects:
        if one.uid in of_owner:
            using[one.path] = (using.get(one.path, []) + of_owner[one.uid][:_MOST_USING])[:_MOST_USING]
    return {path: tuple(pids) for path, pids in using.items()}


def terminate(found: Found, dry: bool) -> "tuple[int, ...]":
    """End the processes that use a dead job's cache and that this very job left behind; return their pids. dry: only that.

    As their owner, in a child. A process of another job, or of none, may use the cache as well: it is left alone. What
    tells is the job id in the environment with which it was started, and that no other cluster's name is there: a login
    node may serve several. A cache that does not say whose it is has no job to be left behind by.
    """
    if found.identity is None:
        return ()

    def work(report: "Callable[[dict[str, Any]], None]") -> None:
        strays = list(_strays(found))
        for process in [] if dry else strays:
            process.terminate()
        _, alive = psutil.wait_procs([] if dry else strays, timeout=_GRACE)
        for process in alive:
            process.kill()
        report({"pids": [process.pid for process in strays]})

    ended: tuple[int, ...] = ()
    for _, _, fact in children.each([(found.path, starter(work, found.uid, found.gid))], 1, 2 * _GRACE):
        if fact is not None:
            ended = tuple(fact["pids"])
    return ended


def _strays(found: Found) -> "Iterator[psutil.Process]":
    cluster = found.identity[0] if found.identity else ""
    for pid in found.pids:
        try:
            process = psutil.Process(pid)
            environ = process.environ()
            ours = environ.get("SLURM_JOB_ID") == str(found.job_id) and environ.get("SLURM_CLUSTER_NAME", cluster) == cluster
            if ours and process.uids().real == found.uid:
                yield process
        except psutil.Error:
            continue  # it has ended, or does not let itself be looked at


def _of(uids: "set[int]") -> "Iterator[tuple[int, int]]":
    """Yield (pid, uid) of the processes of this host whose real user is one of `uids`."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/status", encoding="ascii", errors="replace") as status:
                uid = next(int(line.split()[1]) for line in status if line.startswith("Uid:"))
        except (OSError, StopIteration):
            continue  # it has ended
        if uid in uids:
            yield int(name), uid


def _opened(pid: int) -> "Iterable[str]":
    """Yield the paths that a process has open, mapped, or as its directory, as /proc tells: no filesystem is asked.

    A process that hangs can hang us at its maps. Raise PermissionError where it may not be looked at.
    """
    here = f"/proc/{pid}"
    try:
        for link in ("cwd", *(f"fd/{fd}" for fd in os.listdir(f"{here}/fd"))):
            try:
                yield os.readlink(f"{here}/{link}")
            except FileNotFoundError:
                continue  # closed meanwhile
        with open(f"{here}/maps", encoding="utf-8", errors="surrogateescape") as maps:
            yield from (line.rstrip("\n").partition("/")[2] for line in maps if "/" in line)
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended
