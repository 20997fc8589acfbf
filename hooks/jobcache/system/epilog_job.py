"""The job of an Epilog, parsed from its environment (SLURM_*)."""

from jobcache.cache import fields

_UID_MAX = 2**32 - 2  # (uid_t) -1 stands for no user


class JobError(ValueError):
    """The environment does not name a job that the Epilog may act for. reason: of config/schema/event.json."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Job:
    """One job on one node, at its end.

    job_id: the raw id; of a het job, the id of its leader. uid: of the owner. het: it is part of a het job.
    home: of the owner, None if it is unknown or not needed; not from Slurm.
    The rest is None if Slurm did not set it. gid, user: of the owner. account: of the job. nodes: how many the job began with.
    start: seconds since the epoch.
    further_ids: fields of its events, as fields.further_ids returns.
    failed: it ended non-zero. An unknown status counts as a failure, except on Slurm 20.11 and 21.08, which report none.
    """

    __slots__ = ("job_id", "uid", "gid", "user", "node", "nodes", "failed", "start", "het", "account", "further_ids", "home")

    def __init__(self, job_id: int, uid: int, node: str) -> None:
        self.job_id = job_id
        self.uid = uid
        self.node = node
        self.gid: "int | None" = None
        self.user: "str | None" = None
        self.nodes: "int | None" = None
        self.failed = False
        self.start: "int | None" = None
        self.het = False
        self.further_ids: "dict[str, object]" = {}
        self.account: "str | None" = None
        self.home: "str | None" = None


def from_epilog(env: "dict[str, str]") -> Job:
    """Given an Epilog's environment, return the job. Raise JobError if id, owner or node are missing or invalid.

    Only SLURM_JOB_ID, SLURM_JOB_UID and SLURMD_NODENAME are required. Other variables that are missing or invalid are None.
    """
    leader = env.get("SLURM_HET_JOB_ID", "")
    het = leader not in ("", "0")
    job_id = fields.number(leader if het else env.get("SLURM_JOB_ID", ""))
    uid = fields.natural(env.get("SLURM_JOB_UID", ""), _UID_MAX)
    node = env.get("SLURMD_NODENAME", "")
    if job_id is None:
        raise JobError("no_job", f"{'SLURM_HET_JOB_ID' if het else 'SLURM_JOB_ID'} is not a job id")
    if uid is None:
        raise JobError("no_job", "SLURM_JOB_UID is not a uid")
    if not fields.component(node) or node.startswith("."):
        raise JobError("no_job", "SLURMD_NODENAME is not a node name")
    job = Job(job_id, uid, node)
    job.gid = fields.natural(env.get("SLURM_JOB_GID", ""), _UID_MAX)
    job.user = env["SLURM_JOB_USER"] if fields.component(env.get("SLURM_JOB_USER", "")) else None
    job.account = env["SLURM_JOB_ACCOUNT"] if fields.component(env.get("SLURM_JOB_ACCOUNT", "")) else None
    job.nodes = fields.natural(env.get("SLURM_JOB_NUM_NODES", ""))
    # From 22.05 both variables exist; an aborted job has no status.
    reports_status = "SLURM_JOB_EXIT_CODE" in env or "SLURM_JOB_NUM_NODES" in env
    job.failed = reports_status and fields.natural(env.get("SLURM_JOB_EXIT_CODE", "")) != 0
    job.start = fields.natural(env.get("SLURM_JOB_START_TIME", ""), 2**63)
    job.het = het
    job.further_ids = fields.further_ids(env)
    return job
