"""The facts from which `jobcache explain` answers, and the answer."""

from dataclasses import dataclass, field
from typing import Any, Optional

from jobcache.sweep.plan import Directory


@dataclass(frozen=True)
class SlurmJob:
    """The job in Slurm now. state "": Slurm does not know the job, for the reason in `unknown`.

    start, end: RFC 3339, or "". by: the command that answered, squeue or sacct.
    leader: job id of the leader if the job is another part of a het job, else None.
    """

    state: str = ""
    user: str = ""
    nodes: str = ""
    partition: str = ""
    account: str = ""
    start: str = ""
    end: str = ""
    unknown: str = ""
    by: str = "squeue"
    leader: Optional[int] = None


@dataclass(frozen=True)
class SiteFacts:
    """The policy in force, and the logs that were read.

    hash: of the policy. first_event: time of the oldest event that was read, or "". sources: paths of the logs.
    off_file: path of the file that stops all hooks, or "". unreadable_log: the log that this user cannot read, or "".
    for_root: root asks: what comes from a user's history is marked. configured: the site's configuration could be read.
    """

    hash: str = ""
    mode: str = "on"
    first_event: str = ""
    sources: tuple[str, ...] = ()
    off_file: str = ""
    unreadable_log: str = ""
    for_root: bool = False
    configured: bool = True


@dataclass(frozen=True)
class JobDirectory:
    """A directory of the job that exists. record: the content of its job.json, which its user can forge."""

    found: Directory
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TimelineEntry:
    """One line of the timeline. ts: RFC 3339."""

    ts: str
    node: str
    what: str
    level: str = "info"


@dataclass(frozen=True)
class Explanation:
    """The timeline of a job's cache and the answer: where the cache is, or why it is missing. advice: the next step, or "".

    known: an event, a directory or Slurm mentions the job. lead: which path was asked about, and what it is, or "".
    """

    job_id: int
    user: str
    lines: list[TimelineEntry]
    answer: str
    advice: str = ""
    known: bool = True
    slurm: SlurmJob = field(default_factory=SlurmJob)
    lead: str = ""
