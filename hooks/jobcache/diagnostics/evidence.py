"""What there still is of a job, beside its events: its directories on scratch, as their owner sees them, and Slurm's words."""

import os
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

from jobcache.cache import dirfd, job_record, timestamps
from jobcache.config.settings import Settings, slurm_client
from jobcache.diagnostics.explain import Remains, Slurms
from jobcache.sweep import directories, scanning
from jobcache.sweep.plan import Directory
from jobcache.system import as_user
from jobcache.system.live_jobs import Unknown

_TOLD = ("created_at", "node", "policy", "seeded")  # of the record
_PATIENCE = 10.0  # seconds that one owner's directories have to be looked at


def ask_slurm(site: Settings, job_id: int) -> Slurms:
    """Return what slurmctld says of the job, else what the accounting does."""
    slurm = slurm_client(site.tree)
    by = "squeue"
    try:
        said = slurm.job(job_id)
    except Unknown as error:
        by = "sacct"
        try:
            said = slurm.accounted(job_id)
        except Unknown:
            return Slurms(unknown=str(error))
    return Slurms(
        said["State"], said["User"], said["NodeList"], said["Partition"], said["Account"],
        moment(said["Start"]), moment(said["End"]), by=by,
    )  # fmt: skip


def moment(seconds: str) -> str:
    """Return seconds since the epoch as RFC 3339, "" for what is none."""
    return timestamps.second(int(seconds)) if seconds.isdigit() else ""


def still_there(site: Settings, job_id: int, uid: Optional[int], node: str, trouble: list[str]) -> list[Remains]:
    """Return the job's directories that exist, uid None: of whatever user. What could not be looked at is `trouble`."""
    found = []
    for local in (False, True):
        options = scanning.Options(user=uid, local=local, node=node, dry=True)
        found += [one for one in scanning.list_all(site, options, trouble) if one.job_id == job_id and not one.error]
    return [seen for one in found for seen in _again(one)]


def _again(one: Directory) -> Iterator[Remains]:
    """Yield the directory with all that can be seen of it, as its owner."""

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        parent, _, name = one.path.rpartition("/")
        fd = dirfd.open_directory(parent)
        report(vars(directories.inspect(fd, name, one)))
        cache_fd = os.open(name, dirfd.DIRECTORY, dir_fd=fd)
        report({"record": {key: job_record.read_record(cache_fd).get(key) for key in _TOLD}})

    child = as_user.start(work, uid=one.uid, gid=one.gid, user=None, places=[])
    facts: dict[str, Any] = {}
    for fact in child.facts(time.monotonic() + _PATIENCE):
        facts.update(fact)
    record = facts.pop("record", {})
    if facts:
        identity = tuple(facts["identity"]) if facts["identity"] else None
        seen = {"identity": identity, "nodes": tuple(facts["nodes"]), "pids": tuple(facts["pids"])}
        found = Directory(**{**facts, **seen, "now": facts["now"] or time.time()})  # no decision hangs on it
        yield Remains(found, {key: value for key, value in record.items() if value})
