"""Which jobs are alive: a whole listing, or Unknown.

Asked with an environment of our own (SQUEUE_* and SLURM_* filter even under --all --states=all), a time limit, and
checks that the answer is whole, ours, and not blinded. An answer that is anything less deletes nothing.
"""

import calendar
import os
import re
import shutil
import subprocess
import time

from jobcache.cache.fields import natural, number

PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin:/usr/local/sbin:/opt/slurm/bin:/opt/slurm/sbin:/usr/local/slurm/bin"

# squeue's %T. A job in any of the first is alive; one that is requeued, suspended or held is. Up to Slurm 26.05.
ALIVE = frozenset(
    "PENDING RUNNING SUSPENDED COMPLETING CONFIGURING RESIZING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT "
    "RESV_DEL_HOLD SIGNALING STAGE_OUT STOPPED EXPEDITING".split()
)
DEAD = frozenset("COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY REVOKED".split())
# --array: without it a requeued task of an array is listed under its array's id alone. %i tells a het job's leader.
_SQUEUE = ("--noheader", "--all", "--local", "--array", "--states=all", "--format=%A|%i|%T|%U")


class Unknown(Exception):
    """Which jobs are alive is not known: a closed-set `reason`, and the words for a person."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Listing:
    """The jobs alive at one moment. at: seconds of time.monotonic, before Slurm was asked.

    jobs: by job id, the users (uids) that have an alive job of that id; a het job's leader is alive while any part is.
    """

    __slots__ = ("at", "jobs")

    def __init__(self, at: float, jobs: "dict[int, set[int]]") -> None:
        self.at = at
        self.jobs = jobs

    def alive(self, job_id: int, uid: int) -> bool:
        """Whether this user has an alive job of this id. An id that is another user's now is not this one's job."""
        return uid in self.jobs.get(job_id, ())


class Slurm:
    """How this site asks Slurm. conf: path of slurm.conf, None for Slurm's default; never what our environment says.

    squeue, scontrol: names, looked up on a fixed PATH, or paths. timeout: seconds for one command.
    """

    def __init__(self, conf: "str | None", squeue: str, scontrol: str, timeout: float) -> None:
        self._conf = conf
        self._squeue = squeue
        self._scontrol = scontrol
        self._timeout = timeout

    def config(self) -> "dict[str, str]":
        """Return what `scontrol show config` says, value by key. Raise Unknown."""
        lines = self._ask(self._scontrol, "show", "config").splitlines()
        return {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in lines) if equals}

    def cluster_name(self) -> str:
        """Return the ClusterName of the cluster this host belongs to. Raise Unknown."""
        name = self.config().get("ClusterName", "(null)")
        if name == "(null)":
            raise Unknown("slurm_malformed", f"{self._scontrol} show config names no ClusterName")
        return name

    def job(self, job_id: int) -> "dict[str, str]":
        """Return what squeue says of this job, by sacct's names; times are seconds since the epoch. Raise Unknown.

        `scontrol show job` mixes its words with the job's name and comment, which are its user's to choose. So can the
        account be: it comes last, and what begins a second line is not looked at.
        """
        columns = ("JobIDRaw", "State", "User", "NodeList", "Partition", "Start", "End", "Account")
        options = (*_SQUEUE[:-1], f"--jobs={job_id}", "--format=%A|%T|%u|%N|%P|%S|%e|%a")
        for line in self._ask(self._squeue, *options, SLURM_TIME_FORMAT="%s").splitlines():  # a line for each part of a het job
            words = line.split("|", len(columns) - 1)
            if len(words) == len(columns) and words[0] == str(job_id):
                return dict(zip(columns, ("" if word in ("(null)", "N/A") else word for word in words)))
        raise Unknown("slurm_malformed", f"squeue does not show job {job_id}")

    def _beside(self, name: str) -> str:
        """The command `name` of the same Slurm."""
        return f"{os.path.dirname(self._scontrol)}/{name}" if "/" in self._scontrol else name

    def uncommented(self, job_ids: "list[int]") -> "list[int]":
        """Return those of the jobs that have ended and have no AdminComment. Raise Unknown."""
        options = ("--noheader", "--parsable2", "--allocations", f"--jobs={','.join(map(str, job_ids))}")
        rows = self._ask(self._beside("sacct"), *options, "--format=JobIDRaw,End,AdminComment").splitlines()
        whole = (row.split("|", 2) for row in rows if row.count("|") >= 2)  # others are of a comment that has several lines
        ended = {job_id for job_id, end, comment in whole if end != "Unknown" and not comment}
        return [job_id for job_id in job_ids if str(job_id) in ended]

    def comment(self, cluster: str, job_id: int, text: str) -> None:
        """Write a job's AdminComment into the accounting, which takes it in lower case. Raise Unknown."""
        where = ("where", f"jobid={job_id}", f"cluster={cluster}")
        self._ask(self._beside("sacctmgr"), "--immediate", "modify", "job", *where, "set", f"AdminComment={text}")

    def accounted(self, job_id: int) -> "dict[str, str]":
        """Return what sacct says of this job, by the names of its columns; times as above. Raise Unknown."""
        columns = ("JobIDRaw", "State", "User", "NodeList", "Partition", "Account", "Start", "End")
        sacct = self._beside("sacct")
        options = ("--noheader", "--parsable2", "--allocations", f"--jobs={job_id}", f"--format={','.join(columns)}")
        for line in self._ask(sacct, *options, SLURM_TIME_FORMAT="%s").splitlines():
            words = line.split("|")
            if len(words) == len(columns) and words[0] == str(job_id):
                return dict(zip(columns, words))
        raise Unknown("slurm_malformed", f"sacct does not know job {job_id}")

    def listing(self, cluster: str, *, only_own: bool = False) -> Listing:
        """Return the jobs alive in `cluster`. Raise Unknown where the answer is not known to be whole.

        Of all nodes, even where one node's own scratch is looked at: what squeue answers for a node whose name is not
        quite right looks like a node without jobs, and costs the controller no less.
        only_own: the caller looks at its own jobs alone, which PrivateData never hides from it.
        """
        at = time.monotonic()
        config = self.config()
        if config.get("ClusterName") != cluster:
            raise Unknown("slurm_other_cluster", f"Slurm answers for {config.get('ClusterName')}, not for {cluster}")
        if "jobs" in re.split(r"[,\s]+", config.get("PrivateData", "").lower()) and os.geteuid() != 0 and not only_own:
            raise Unknown("slurm_private", "PrivateData=jobs hides the jobs of others from this user")
        rows = parse(self._ask(self._squeue, *_SQUEUE))
        if not rows and "No jobs in the system" not in self._ask(self._scontrol, "show", "jobs"):
            raise Unknown("slurm_empty", "squeue lists no job, and the controller does not confirm that there is none")
        jobs: dict[int, set[int]] = {}
        for job_id, leader, state, uid in rows:
            if state in ALIVE:
                jobs.setdefault(job_id, set()).add(uid)
                jobs.setdefault(leader, set()).add(uid)
        return Listing(at, jobs)

    def starts(self, cluster: str, *, only_own: bool = False) -> "dict[int, float]":
        """Return when each user's (uid's) oldest live job began, in seconds since the epoch by the controller's clock.

        Who has none is not in it. 0.0 where that is not told. A pending job has not begun. Raise Unknown as `listing` does.
        """
        alive = self.listing(cluster, only_own=only_own).jobs
        lines = self._ask(self._squeue, *_SQUEUE[:-1], _SQUEUE[-1] + "|%S").splitlines()
        if alive and not lines:
            raise Unknown("slurm_empty", "squeue listed jobs, and a moment later none")
        oldest: dict[int, float] = {}
        for line in lines:
            row, _, start = line.rpartition("|")
            _, _, state, uid = _parse_line(row)
            if state in ALIVE and state != "PENDING":
                oldest[uid] = min(_moment(start), oldest.get(uid, float("inf")))
        return oldest

    def _ask(self, name: str, *options: str, **variables: str) -> str:
        """Return what a command prints, with these variables in its environment. Raise Unknown."""
        program = name if "/" in name else shutil.which(name, path=PATH)
        if program is None:
            raise Unknown("slurm_missing", f"there is no {name} in {PATH}")
        env = {"PATH": PATH, "LC_ALL": "C", "TZ": "UTC0", **variables}
        if self._conf:
            env["SLURM_CONF"] = self._conf
        try:
            done = subprocess.run(
                [program, *options], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise Unknown("slurm_timeout", f"{name} did not answer within {self._timeout:g} s") from None
        except OSError as error:
            raise Unknown("slurm_missing", f"{program}: {error.strerror}") from None
        if done.returncode != 0:
            words = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no word of why"]
            down = any("nable to contact slurm controller" in line for line in words)
            raise Unknown("slurm_down" if down else "slurm_failed", f"{name} failed: {words[-1]}")
        return done.stdout.decode("utf-8", "replace")


def parse(text: str) -> "list[tuple[int, int, str, int]]":
    """Return (job_id, its het job's leader or itself, state, uid) of each line of squeue's answer. Raise Unknown."""
    if text and not text.endswith("\n"):
        raise Unknown("slurm_malformed", "squeue's answer ends in the middle of a line")
    return [_parse_line(line) for line in text.splitlines()]


def _moment(text: str) -> float:
    try:
        return float(calendar.timegm(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0


def _parse_line(line: str) -> "tuple[int, int, str, int]":
    words = line.strip().split("|")
    if len(words) != 4:
        raise Unknown("slurm_malformed", f"squeue's answer has a line that is none: {line[:80]!r}")
    job_id, uid = number(words[0]), natural(words[3])
    head, plus, _ = words[1].partition("+")
    leader = number(head) if plus else job_id
    if job_id is None or uid is None or leader is None:
        raise Unknown("slurm_malformed", f"squeue's answer has a line that is none: {line[:80]!r}")
    if words[2] not in ALIVE and words[2] not in DEAD:
        raise Unknown("slurm_state", f"squeue tells a state that is not known here: {words[2][:40]!r}")
    return job_id, leader, words[2], uid
