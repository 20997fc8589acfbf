"""A job as an Epilog's environment describes it: SLURM_* to `Job`."""

from jobcache.cache import fields

_UID_MAX = 2**32 - 2  # (uid_t) -1 is nobody's


class JobError(ValueError):
    """The environment does not name a job that we may act for: a closed-set `reason`, and the words for a person."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Job:
    """One job on one node, at its Epilog.

    job_id: the raw id; of a het job, the leader's. uid, gid: the owner's, gid None where Slurm did not say.
    user: None where Slurm did not say. nodes: how many the job began with, None unknown. exit_status: the wait status
    of the job, None unknown. start: seconds since the epoch, None unknown. het: part of a het job.
    """

    __slots__ = ("job_id", "uid", "gid", "user", "node", "nodes", "exit_status", "start", "het")

    def __init__(self, job_id: int, uid: int, node: str) -> None:
        self.job_id = job_id
        self.uid = uid
        self.node = node
        self.gid: "int | None" = None
        self.user: "str | None" = None
        self.nodes: "int | None" = None
        self.exit_status: "int | None" = None
        self.start: "int | None" = None
        self.het = False


def from_epilog(env: "dict[str, str]") -> Job:
    """Return the job of an Epilog's environment. Raise JobError where id, owner or node are missing or absurd.

    Only SLURM_JOB_ID, SLURM_JOB_UID and SLURMD_NODENAME are needed: the rest Slurm may leave out.
    """
    leader = env.get("SLURM_HET_JOB_ID", "")
    het = leader not in ("", "0")
    job_id = fields.number(leader if het else env.get("SLURM_JOB_ID", ""))
    uid = fields.natural(env.get("SLURM_JOB_UID", ""), _UID_MAX)
    node = env.get("SLURMD_NODENAME", "")
    if job_id is None:
        raise JobError("no_job", "SLURM_JOB_ID is not a job's id")
    if uid is None:
        raise JobError("no_job", "SLURM_JOB_UID is not a user's id")
    if not fields.component(node) or node.startswith("."):
        raise JobError("no_job", "SLURMD_NODENAME is not a node's name")
    job = Job(job_id, uid, node)
    job.gid = fields.natural(env.get("SLURM_JOB_GID", ""), _UID_MAX)
    job.user = env["SLURM_JOB_USER"] if fields.component(env.get("SLURM_JOB_USER", "")) else None
    job.nodes = fields.natural(env.get("SLURM_JOB_NUM_NODES", ""))
    job.exit_status = fields.natural(env.get("SLURM_JOB_EXIT_CODE", ""))
    job.start = fields.natural(env.get("SLURM_JOB_START_TIME", ""), 2**63)
    job.het = het
    return job
