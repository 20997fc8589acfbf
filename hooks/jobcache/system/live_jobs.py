"""Which jobs are alive, parsed from the output of squeue: a complete list, or Unknown.

A list that is incomplete would make live jobs look dead, and their caches would be deleted. So one line that cannot be
parsed makes the whole output Unknown.
"""

import calendar
import time

from jobcache.cache.fields import natural, number

# States as squeue's %T prints them, up to Slurm 26.05. Requeued, suspended and held jobs are alive.
ALIVE = frozenset(
    "PENDING RUNNING SUSPENDED COMPLETING CONFIGURING RESIZING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT "
    "RESV_DEL_HOLD SIGNALING STAGE_OUT STOPPED EXPEDITING".split()
)
DEAD = frozenset("COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY REVOKED".split())
FORMAT = "%A|%i|%T|%U"  # job id, array or het id, state, uid: what `parse` reads
START_FORMAT = FORMAT + "|%S"  # what `oldest_starts` reads


class Unknown(Exception):
    """Slurm did not return the information. reason: of config/schema/event.json."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Listing:
    """The jobs that were alive at one moment.

    at: the moment, in seconds of time.monotonic, before Slurm was queried.
    jobs: uids by job id. The leader of a het job counts as alive as long as any part is alive.
    """

    __slots__ = ("at", "jobs")

    def __init__(self, at: float, jobs: "dict[int, set[int]]") -> None:
        self.at = at
        self.jobs = jobs

    def alive(self, job_id: int, uid: int) -> bool:
        """Return whether the user has an alive job with this id. After the ids have wrapped around, it may be another user's."""
        return uid in self.jobs.get(job_id, ())


def listing(rows: "list[tuple[int, int, str, int]]", at: float) -> Listing:
    """Given rows from `parse`, return the jobs that are alive. at: see Listing."""
    jobs: dict[int, set[int]] = {}
    for job_id, leader, state, uid in rows:
        if state in ALIVE:
            jobs.setdefault(job_id, set()).add(uid)
            jobs.setdefault(leader, set()).add(uid)
    return Listing(at, jobs)


def parse(text: str) -> "list[tuple[int, int, str, int]]":
    """Given squeue's output in FORMAT, return (job id, id of the het leader or again the job id, state, uid) of each line.

    Raise Unknown.
    """
    if text and not text.endswith("\n"):
        raise Unknown("slurm_malformed", "squeue's output ends within a line")
    return [_parse_line(line) for line in text.splitlines()]


def oldest_starts(text: str) -> "dict[int, float]":
    """Given squeue's output in START_FORMAT, return when the oldest running job of each uid began. Raise Unknown.

    The times are seconds since the epoch, 0.0 for a time that cannot be parsed. Pending jobs do not count.
    """
    oldest: dict[int, float] = {}
    for line in text.splitlines():
        row, _, start = line.rpartition("|")
        _, _, state, uid = _parse_line(row)
        if state in ALIVE and state != "PENDING":
            oldest[uid] = min(_seconds(start), oldest.get(uid, float("inf")))
    return oldest


def _parse_line(line: str) -> "tuple[int, int, str, int]":
    words = line.strip().split("|")
    if len(words) != 4:
        raise _malformed(line)
    job_id, uid = number(words[0]), natural(words[3])
    head, plus, _ = words[1].partition("+")
    leader = number(head) if plus else job_id
    if job_id is None or uid is None or leader is None:
        raise _malformed(line)
    if words[2] not in ALIVE and words[2] not in DEAD:
        raise Unknown("slurm_state", f"squeue printed an unknown job state: {words[2][:40]!r}")
    return job_id, leader, words[2], uid


def _malformed(line: str) -> Unknown:
    return Unknown("slurm_malformed", f"cannot parse a line of squeue's output: {line[:80]!r}")


def _seconds(text: str) -> float:
    try:
        return float(calendar.timegm(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0
