"""The client of Slurm's commands: squeue, scontrol, sacct, sacctmgr.

Each command runs with an environment of its own, because SQUEUE_* and SLURM_* variables filter even under
`--all --states=all`, and with a timeout. A listing is returned only if it is known to be complete.
"""

import os
import re
import shutil
import subprocess
import time

from jobcache.cache.fields import number
from jobcache.system import live_jobs
from jobcache.system.live_jobs import Listing, Unknown

PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin:/usr/local/sbin:/opt/slurm/bin:/opt/slurm/sbin:/usr/local/slurm/bin"
# Without --array, squeue lists a requeued task of an array only under the array's id.
_ALL_JOBS = ("--noheader", "--all", "--local", "--array", "--states=all")


class Slurm:
    """Access to the Slurm of this site.

    conf: path of slurm.conf, None for Slurm's default. SLURM_CONF of the environment is ignored.
    squeue, scontrol: paths, or names to search for in PATH of this module.
    timeout: seconds for one command.
    """

    def __init__(self, conf: "str | None", squeue: str, scontrol: str, timeout: float) -> None:
        self._conf = conf
        self._squeue = squeue
        self._scontrol = scontrol
        self._timeout = timeout

    def config(self) -> "dict[str, str]":
        """Return the output of `scontrol show config`, value by key. Raise Unknown."""
        lines = self._run(self._scontrol, "show", "config").splitlines()
        return {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in lines) if equals}

    def cluster_name(self) -> str:
        """Return the ClusterName of this host's cluster. Raise Unknown."""
        name = self.config().get("ClusterName", "(null)")
        if name == "(null)":
            raise Unknown("slurm_malformed", f"`{self._scontrol} show config` prints no ClusterName")
        return name

    def nodes_of_host(self, host: str) -> "list[str]":
        """Return the nodes whose NodeHostname is `host`, as slurm.conf spells it. slurmctld is not asked. Raise Unknown."""
        return self._run(self._scontrol, "show", "aliases", host).split()

    def host_of_node(self, node: str) -> str:
        """Return the NodeHostname of a node, "" if Slurm has no such node. Raise Unknown."""
        try:
            words = self._run(self._scontrol, "--oneliner", "show", "node", node).split()
        except Unknown as error:
            if str(error).endswith(f"Node {node} not found"):
                return ""
            raise
        return next((word.partition("=")[2] for word in words if word.startswith("NodeHostName=")), "")

    def listing(self, cluster: str, *, only_own: bool = False) -> Listing:
        """Return the alive jobs of `cluster`. Raise Unknown unless the list is known to be complete.

        The list has the jobs of all nodes, even if the caller needs one node: for a node name with a typing error, squeue
        prints the same as for a node without jobs, and it costs the controller no less.
        only_own: the caller needs only its own jobs, which PrivateData does not hide.
        """
        at = time.monotonic()
        config = self.config()
        if config.get("ClusterName") != cluster:
            raise Unknown("slurm_other_cluster", f"Slurm answers for cluster {config.get('ClusterName')}, not for {cluster}")
        if "jobs" in re.split(r"[,\s]+", config.get("PrivateData", "").lower()) and os.geteuid() != 0 and not only_own:
            raise Unknown("slurm_private", "PrivateData=jobs hides the jobs of other users from this user")
        rows = live_jobs.parse(self._run(self._squeue, *_ALL_JOBS, f"--format={live_jobs.FORMAT}"))
        if not rows and "No jobs in the system" not in self._run(self._scontrol, "show", "jobs"):
            raise Unknown("slurm_empty", "squeue lists no job, but scontrol does not confirm that no job exists")
        return live_jobs.listing(rows, at)

    def starts(self, cluster: str, *, only_own: bool = False) -> "dict[int, float]":
        """Return when the oldest running job of each uid began, in seconds since the epoch by the controller's clock.

        0.0 stands for an unknown start. Raise Unknown as `listing` does.
        """
        alive = self.listing(cluster, only_own=only_own).jobs
        text = self._run(self._squeue, *_ALL_JOBS, f"--format={live_jobs.START_FORMAT}")
        if alive and not text:
            raise Unknown("slurm_empty", "squeue listed jobs, and a moment later no job")
        return live_jobs.oldest_starts(text)

    def job(self, job_id: int) -> "dict[str, str]":
        """Return one job as squeue shows it, keyed by sacct's column names. Raise Unknown.

        Times are seconds since the epoch. squeue is used because `scontrol show job` mixes its output with the job's name
        and comment, which users choose. Users choose the account as well: it is the last column, and a second line of it is
        ignored.
        """
        columns = ("JobIDRaw", "JobID", "State", "User", "NodeList", "Partition", "Start", "End", "Account")
        options = (*_ALL_JOBS, f"--jobs={job_id}", "--format=%A|%i|%T|%u|%N|%P|%S|%e|%a")
        for line in self._run(self._squeue, *options, SLURM_TIME_FORMAT="%s").splitlines():  # one line a part of a het job
            words = line.split("|", len(columns) - 1)
            if len(words) == len(columns) and words[0] == str(job_id):
                return dict(zip(columns, ("" if word in ("(null)", "N/A") else word for word in words)))
        raise Unknown("slurm_malformed", f"squeue does not show job {job_id}")

    def accounted(self, job_id: int) -> "dict[str, str]":
        """Return one job as sacct shows it, keyed by column name. Times are seconds since the epoch. Raise Unknown."""
        columns = ("JobIDRaw", "JobID", "State", "User", "NodeList", "Partition", "Account", "Start", "End")
        sacct = self._sibling("sacct")
        options = ("--noheader", "--parsable2", "--allocations", f"--jobs={job_id}", f"--format={','.join(columns)}")
        for line in self._run(sacct, *options, SLURM_TIME_FORMAT="%s").splitlines():
            words = line.split("|")
            if len(words) == len(columns) and words[0] == str(job_id):
                return dict(zip(columns, words))
        raise Unknown("slurm_malformed", f"sacct does not show job {job_id}")

    def raw_id(self, array_job_id: int, task_id: int) -> int:
        """Return the raw id of a task of a job array, as squeue shows it, else as sacct does. Raise Unknown."""
        name = f"{array_job_id}_{task_id}"
        squeue = (self._squeue, (*_ALL_JOBS, f"--jobs={name}", "--format=%A|%F_%K"))
        options = ("--noheader", "--parsable2", "--allocations", f"--jobs={name}", "--format=JobIDRaw,JobID")
        for command, arguments in (squeue, (self._sibling("sacct"), options)):
            try:
                lines = self._run(command, *arguments).splitlines()
            except Unknown as error:
                unknown = error
                continue
            for line in lines:
                raw, _, shown = line.strip().partition("|")
                job_id = number(raw)
                if shown == name and job_id is not None:
                    return job_id
            unknown = Unknown("slurm_malformed", f"{command} does not show job {name}")
        raise unknown

    def uncommented(self, job_ids: "list[int]") -> "list[int]":
        """Return the jobs that have ended and have no AdminComment. Raise Unknown."""
        options = ("--noheader", "--parsable2", "--allocations", f"--jobs={','.join(map(str, job_ids))}")
        rows = self._run(self._sibling("sacct"), *options, "--format=JobIDRaw,End,AdminComment").splitlines()
        complete = (row.split("|", 2) for row in rows if row.count("|") >= 2)  # other lines continue a comment
        ended = {job_id for job_id, end, comment in complete if end != "Unknown" and not comment}
        return [job_id for job_id in job_ids if str(job_id) in ended]

    def comment(self, cluster: str, job_id: int, text: str) -> None:
        """Set the AdminComment of a job in the accounting, which stores it in lower case. Raise Unknown."""
        where = ("where", f"jobid={job_id}", f"cluster={cluster}")
        self._run(self._sibling("sacctmgr"), "--immediate", "modify", "job", *where, "set", f"AdminComment={text}")

    def _sibling(self, name: str) -> str:
        """Return the command `name` of the same installation."""
        return f"{os.path.dirname(self._scontrol)}/{name}" if "/" in self._scontrol else name

    def _run(self, name: str, *options: str, **variables: str) -> str:
        """Run a command with the given environment variables; return its output. Raise Unknown."""
        program = name if "/" in name else shutil.which(name, path=PATH)
        if program is None:
            raise Unknown("slurm_missing", f"no {name} exists in {PATH}; set its path in `slurm:` of the configuration")
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
            text = (done.stderr.strip() or done.stdout.strip()).decode("utf-8", "replace")
            lines = text.splitlines() or [f"exit status {done.returncode}, no message"]
            down = any("nable to contact slurm controller" in line for line in lines)
            raise Unknown("slurm_down" if down else "slurm_failed", f"{name} failed: {lines[-1]}")
        return done.stdout.decode("utf-8", "replace")
