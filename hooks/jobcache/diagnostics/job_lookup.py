"""Look up a job in Slurm, and its directories on scratch as their owner."""

import os
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

from jobcache.cache import dirfd, fields, job_record, timestamps
from jobcache.config.settings import Settings, slurm_client
from jobcache.diagnostics.explain_facts import JobDirectory, SlurmJob
from jobcache.sweep import directories, scanning
from jobcache.sweep.plan import Directory
from jobcache.system import as_user, mounts
from jobcache.system.live_jobs import Unknown
from jobcache.system.stuck_processes import Register, Stuck

_RECORD_KEYS = ("created_at", "node", "policy", "seeded", "inherited")
_PATIENCE = 10.0  # seconds for one directory; an owner whose directory takes longer has no other one examined
_MOST = 64  # directories of one owner that are examined; a user can make any number for any job id


def slurm_job(site: Settings, job_id: int) -> SlurmJob:
    """Return the job as squeue reports it, else as sacct does."""
    slurm = slurm_client(site.tree)
    by = "squeue"
    try:
        row = slurm.job(job_id)
    except Unknown as error:
        by = "sacct"
        try:
            row = slurm.accounted(job_id)
        except Unknown:
            return SlurmJob(unknown=str(error))
    return SlurmJob(
        row["State"], row["User"], row["NodeList"], row["Partition"], row["Account"],
        _timestamp(row["Start"]), _timestamp(row["End"]), by=by, leader=_leader(job_id, row["JobID"]),
    )  # fmt: skip


def _leader(job_id: int, shown: str) -> Optional[int]:
    """Given the id that Slurm prints for a job, such as 4242+1, return the leader's id; None if this is no other job."""
    head, sign, _ = shown.partition("+")
    leader = fields.number(head) if sign else None
    return None if leader == job_id else leader


def _timestamp(seconds: str) -> str:
    """Return seconds since the epoch as RFC 3339, "" for any other text."""
    return timestamps.second(int(seconds)) if seconds.isdigit() else ""


def job_directories(site: Settings, job_id: int, uid: Optional[int], node: str, errors: list[str]) -> list[JobDirectory]:
    """Return the job's directories that exist. uid: their owner; None: any user. Append what could not be read to `errors`."""
    found = []
    for local in (False, True):
        options = scanning.Options(user=uid, local=local, node=node, dry=True)
        found += [one for one in scanning.list_all(site, options, errors) if one.job_id == job_id and not one.error]
    register = Register(site.run_dir)
    return [directory for one in _bounded(found, errors) for directory in _inspect(one, register, errors)]


def _bounded(found: list[Directory], errors: list[str]) -> Iterator[Directory]:
    """Yield the directories of each owner, up to a limit, and none after one that did not answer."""
    counts: dict[int, int] = {}  # by uid
    for one in found:
        if any(error.startswith(f"uid {one.uid}: ") for error in errors):
            continue
        counts[one.uid] = counts.get(one.uid, 0) + 1
        if counts[one.uid] > _MOST:
            errors.append(f"uid {one.uid}: more than {_MOST} directories have this job's id; the rest is skipped")
        else:
            yield one


def _inspect(one: Directory, register: Register, errors: list[str]) -> Iterator[JobDirectory]:
    """Yield the directory with all its facts, read as its owner; nothing if it does not answer in time."""

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        parent, _, name = one.path.rpartition("/")
        fd = dirfd.open_directory(parent)
        report(vars(directories.inspect(fd, name, one)))
        cache_fd = mounts.open_beside(fd, name)
        report({"record": {key: job_record.read_record(cache_fd).get(key) for key in _RECORD_KEYS}})

    place = register.place(one.uid, os.path.dirname(one.path))
    try:
        place.check()
    except Stuck as stuck:
        errors.append(f"uid {one.uid}: {one.path}: {stuck}")
        return
    child = as_user.start(work, uid=one.uid, gid=one.gid, user=None, place=place)
    facts: dict[str, Any] = {}
    for fact in child.facts(time.monotonic() + _PATIENCE):
        facts.update(fact)
    if child.status == "late":
        errors.append(f"uid {one.uid}: {one.path} does not answer")
        place.skip()
    record = facts.pop("record", {})
    if facts:
        identity = tuple(facts["identity"]) if facts["identity"] else None
        lists = {"identity": identity, "nodes": tuple(facts["nodes"]), "pids": tuple(facts["pids"])}
        found = Directory(**{**facts, **lists, "now": facts["now"] or time.time()})  # nothing is deleted by this clock
        yield JobDirectory(found, {key: value for key, value in record.items() if value})
