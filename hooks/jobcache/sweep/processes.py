"""The processes of this host: which jobs have a step here, and which processes use a cache. The only source is /proc."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

import psutil

from jobcache.sweep.plan import Directory
from jobcache.system import children
from jobcache.system.gathering import starter, survey
from jobcache.system.stuck_processes import Register, Stuck

MOST_NAMED = 64  # processes named for one cache; a user can open all caches in all processes

_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_STEP = re.compile(rb"(?:slurmstepd: )?\[([1-9][0-9]{0,9})\.[^\]]*\]")  # the title that slurmstepd sets


def jobs_with_steps(pids: Iterable[int]) -> set[int]:
    """Return the ids of the jobs of which a slurmstepd is among `pids`: its title names the job, and its owner is root.

    A job in this set lives. A job that is missing from it can live as well.
    """
    jobs = set()
    for pid, _ in _owned_by({0}, pids):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = _STEP.match(file.read(64))
        except OSError:
            continue  # the process has ended
        if title:
            jobs.add(int(title[1]))
    return jobs


def users_of(suspects: Sequence[Directory], register: Register, pids: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Return the processes that use these directories, out of `pids` and of the owner: process ids by path.

    At most MOST_NAMED for each path; one process is enough to keep a directory. A process that cannot be read counts as a
    user of all directories of its owner. A directory is recognized by its name, which contains the job id: its path
    differs in a container and behind a symlink of root.
    """
    using: dict[str, list[int]] = {}
    unknown: dict[int, list[int]] = {}  # by uid
    for fact in _uses(suspects, register, pids, unknown):
        named = using.setdefault(fact["path"], [])
        if len(named) < MOST_NAMED:
            named.append(fact["pid"])
    for one in suspects:
        if one.uid in unknown:
            using[one.path] = (using.get(one.path, []) + unknown[one.uid][:MOST_NAMED])[:MOST_NAMED]
    return {path: tuple(named) for path, named in using.items()}


def _uses(
    suspects: Sequence[Directory], register: Register, pids: Iterable[int], unknown: dict[int, list[int]]
) -> Iterator[dict[str, Any]]:
    """Yield {pid, path} for each use of a directory. unknown: takes the processes that cannot be read, by uid."""
    by_name: dict[tuple[int, str], list[str]] = {}
    for one in suspects:
        by_name.setdefault((one.uid, os.path.basename(one.path)), []).append(one.path)
    counts: dict[str, int] = {}  # by path; each child counts for itself

    def facts(process: tuple[int, int]) -> Iterator[dict[str, Any]]:
        pid, uid = process
        try:
            parts = {part for file in _open_paths(pid) for part in file.split("/")}
            for path in (path for part in parts for path in by_name.get((uid, part), ())):
                counts[path] = counts.get(path, 0) + 1
                if counts[path] <= MOST_NAMED:
                    yield {"pid": pid, "path": path}
        except PermissionError:
            if os.geteuid() == 0:  # an ordinary user cannot read some of their own processes, such as sshd
                yield {"pid": pid, "uid": uid}

    def lost(processes: Sequence[tuple[int, int]], _why: str) -> None:
        for pid, uid in processes:
            unknown.setdefault(uid, []).append(pid)

    owned = list(_owned_by({one.uid for one in suspects}, pids))
    for fact in survey(owned, facts, lost, lambda process: register.process(process[1], process[0])):
        if "path" in fact:
            yield fact
        else:
            unknown.setdefault(fact["uid"], []).append(fact["pid"])


def terminate(directory: Directory, dry: bool, run_dir: str) -> tuple[int, ...]:
    """End the processes that this job left behind in its cache, as their owner; return their ids.

    dry: return them only. run_dir: holds the register of stuck processes.
    A process of another job, or outside of jobs, can use the cache as well and is left alone. The environment with which
    a process was started decides: it names the job id, and no other cluster, since a login node can serve several. A cache
    without an identity has no job whose processes could be ended.
    """
    if directory.identity is None:
        return ()

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        strays = list(_strays(directory))
        for process in [] if dry else strays:
            process.terminate()
        _, alive = psutil.wait_procs([] if dry else strays, timeout=_GRACE)
        for process in alive:
            process.kill()
        report({"pids": [process.pid for process in strays]})

    ended: tuple[int, ...] = ()
    place = Register(run_dir).process(directory.uid, directory.pids[0] if directory.pids else 0)
    try:
        place.check()
    except Stuck:
        return ended
    for _, _, fact in children.each([(directory.path, starter(work, directory.uid, directory.gid, place))], 1, 2 * _GRACE):
        if fact is not None:
            ended = tuple(fact["pids"])
    return ended


def _strays(directory: Directory) -> Iterator[psutil.Process]:
    cluster = directory.identity[0] if directory.identity else ""
    for pid in directory.pids:
        try:
            process = psutil.Process(pid)
            environ = process.environ()
            same_cluster = environ.get("SLURM_CLUSTER_NAME", cluster) == cluster
            if same_cluster and environ.get("SLURM_JOB_ID") == str(directory.job_id) and process.uids().real == directory.uid:
                yield process
        except psutil.Error:
            continue  # the process has ended, or cannot be read


def _owned_by(uids: set[int], pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (pid, uid) of those of `pids` whose real user is one of `uids`."""
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
                uid = next(int(line.split()[1]) for line in status if line.startswith("Uid:"))
        except (OSError, StopIteration):
            continue  # the process has ended
        if uid in uids:
            yield pid, uid


def _open_paths(pid: int) -> Iterator[str]:
    """Yield the paths that a process has open, mapped, or as its working directory. No filesystem but /proc is read.

    Raise PermissionError if the process cannot be read. The maps of a process that hangs can hang the reader.
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
        return  # the process has ended
