"""The processes of this host: which jobs have a step here, and which processes use a cache. The only source is /proc."""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

import psutil

from jobcache.sweep.plan import Directory
from jobcache.system import children
from jobcache.system.gathering import AT_ONCE, starter, survey
from jobcache.system.stuck_processes import Register, Stuck

MOST_NAMED = 64  # processes named for one cache; a user can open all caches in all processes
OWNER_TIME = 10.0  # seconds to examine, or to end, the processes of one user in one sweep
MOST_PATHS = 200_000  # paths of one process that are examined: its open files and its mapped ones
_MAPS_BYTES = 1 << 24  # of one process's mapped files; each path can have 4 KiB
_CHUNK = 1 << 18  # bytes of them at a time
_STRIDE = 1024  # open files at a time
_ENVIRON_BYTES = 1 << 20  # of a process's environment, at the beginning

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

    At most MOST_NAMED for each path; one process is enough to keep a directory. A process that cannot be read, has too many
    paths, or for which the time of its owner does not suffice, counts as a user of all directories of its owner. A directory
    is recognized by its name, which contains the job id: its path differs in a container and behind a symlink of root.
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
    """Yield {pid, path} for each use of a directory. unknown: takes the processes that are not examined, by uid.

    An item of the survey is one owner, so that many processes of one user, or some that hang, cost the others nothing.
    """
    names: dict[int, dict[str, list[str]]] = {}  # paths by owner and name
    for one in suspects:
        names.setdefault(one.uid, {}).setdefault(os.path.basename(one.path), []).append(one.path)
    owned: dict[int, list[int]] = {}
    for pid, uid in _owned_by(set(names), pids):
        owned.setdefault(uid, []).append(pid)

    def lost(owners: Sequence[int], _why: str) -> None:
        for uid in owners:
            unknown.setdefault(uid, []).extend(owned[uid])

    def facts(uid: int) -> Iterator[dict[str, Any]]:
        return _Examination(uid, names[uid]).facts(owned[uid])

    for fact in survey(list(owned), facts, lost, register.processes):
        if "path" in fact:
            yield fact
        else:
            unknown.setdefault(fact["uid"], []).append(fact["pid"])


class _Examination:
    """The examination of the processes of one owner, in a child. names: the paths of their directories, by name."""

    def __init__(self, uid: int, names: dict[str, list[str]]) -> None:
        self.uid = uid
        self.names = names
        self.counts: dict[str, int] = {}  # uses that were reported, by path
        self.until = time.monotonic() + OWNER_TIME

    def facts(self, pids: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield {pid, path} for each use, {pid, uid} for each process that is not examined, {} as a heartbeat."""
        for pid in pids:
            found: set[str] = set()
            try:
                for paths in _open_paths(pid):
                    yield {}
                    if time.monotonic() >= self.until:
                        raise _TooMuchError
                    found.update(*(self.names.keys() & path.split("/") for path in paths))
            except PermissionError:
                if os.geteuid() != 0:  # an ordinary user cannot read some of their own processes, such as sshd
                    continue
                yield {"pid": pid, "uid": self.uid}
            except _TooMuchError:
                yield {"pid": pid, "uid": self.uid}
            for path in (path for name in found for path in self.names[name]):
                self.counts[path] = self.counts.get(path, 0) + 1
                if self.counts[path] <= MOST_NAMED:
                    yield {"pid": pid, "path": path}


class _TooMuchError(Exception):
    """The process has too many paths, or the time of its owner is used up."""


def terminate(directories: Sequence[Directory], register: Register, dry: bool) -> dict[str, tuple[int, ...]]:
    """End the processes that dead jobs left behind in these directories, as their owners; return the ids by path.

    dry: return them only.
    A process of another job, or outside of jobs, can use the cache as well and is left alone. The environment with which
    a process was started decides: it names the job id, and no other cluster, since a login node can serve several. A cache
    without an identity has no job whose processes could be ended. The time for each owner is limited.
    """
    owners: dict[int, list[Directory]] = {}
    for one in directories:
        if one.identity is not None:
            owners.setdefault(one.uid, []).append(one)

    def starts() -> Iterator[tuple[int, Callable[[], children.Child]]]:
        for uid, group in owners.items():
            place = register.processes(uid)
            try:
                place.check()
            except Stuck:
                continue
            yield uid, starter(_Termination(group, dry), uid, group[0].gid, place)

    ended: dict[str, tuple[int, ...]] = {}
    for _, _, fact in children.each(starts(), AT_ONCE, OWNER_TIME + 2 * _GRACE):
        if fact is not None:
            ended[fact["path"]] = tuple(fact["pids"])
    return ended


class _Termination:
    """The work of a child that is an owner: end the processes that their dead jobs left in their directories."""

    def __init__(self, directories: Sequence[Directory], dry: bool) -> None:
        self.directories = directories
        self.dry = dry

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        until = time.monotonic() + OWNER_TIME
        strays: dict[int, psutil.Process] = {}
        for one in self.directories:
            if time.monotonic() >= until:
                break
            found = list(_strays(one))
            strays.update((process.pid, process) for process in found)
            report({"path": one.path, "pids": [process.pid for process in found]})
        if self.dry:
            return
        for process in strays.values():
            process.terminate()
        _, alive = psutil.wait_procs(list(strays.values()), timeout=_GRACE)
        for process in alive:
            process.kill()


def _strays(directory: Directory) -> Iterator[psutil.Process]:
    cluster = directory.identity[0] if directory.identity else ""
    for pid in directory.pids:
        try:
            process = psutil.Process(pid)
            environ = _environ(pid)
            same_cluster = environ.get("SLURM_CLUSTER_NAME", cluster) == cluster
            if same_cluster and environ.get("SLURM_JOB_ID") == str(directory.job_id) and process.uids().real == directory.uid:
                yield process
        except (psutil.Error, OSError):
            continue  # the process has ended, or cannot be read


def _environ(pid: int) -> dict[str, str]:
    """Return the variables with which a process was started, from the first MiB of them. Raise OSError."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        data = file.read(_ENVIRON_BYTES)
    pairs = (variable.partition(b"=") for variable in data.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, equals, value in pairs if equals}


def _owned_by(uids: set[int], pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (pid, uid) of those of `pids` whose real user is one of `uids`.

    The first line has the name of the process, in which the kernel escapes \\n and no other control character.
    """
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status", "rb") as status:
                uid = next(int(line.split()[1]) for line in status if line.startswith(b"Uid:"))
        except (OSError, StopIteration):
            continue  # the process has ended
        if uid in uids:
            yield pid, uid


def _open_paths(pid: int) -> Iterator[list[str]]:
    """Yield the paths that a process has open, mapped, or as its working directory, some at a time.

    No filesystem but /proc is read. Raise PermissionError if the process cannot be read, _TooMuchError if it has too many
    paths. The maps of a process that hangs can hang the reader.
    """
    here = f"/proc/{pid}"
    try:
        yield [os.readlink(f"{here}/cwd")]
        count = 0
        with os.scandir(f"{here}/fd") as entries:
            while True:
                links = [entry.path for _, entry in zip(range(_STRIDE), entries)]
                if not links:
                    break
                yield list(_targets(links))
                count += len(links)
                if count > MOST_PATHS:
                    raise _TooMuchError
        with open(f"{here}/maps", encoding="utf-8", errors="surrogateescape") as maps:
            size = 0
            while True:
                lines = maps.readlines(_CHUNK)
                if not lines:
                    return
                yield list(dict.fromkeys(line.rstrip("\n").partition("/")[2] for line in lines if "/" in line))
                count, size = count + len(lines), size + sum(map(len, lines))
                if count > MOST_PATHS or size > _MAPS_BYTES:
                    raise _TooMuchError
    except (FileNotFoundError, ProcessLookupError):
        return  # the process has ended


def _targets(links: Iterable[str]) -> Iterator[str]:
    for link in links:
        try:
            yield os.readlink(link)
        except FileNotFoundError:
            continue  # closed meanwhile
