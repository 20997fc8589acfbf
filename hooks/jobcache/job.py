"""A job, as Slurm tells an Epilog of it: SLURM_* to `Job`.

On the hot path, for how numbers and names are read: nothing is imported here.
"""

_NAME_MAX = 255
_UINT32_MAX = 2**32 - 1  # Slurm's job ids are uint32_t
_UID_MAX = 2**32 - 2  # (uid_t) -1 is nobody's


def number(text: str, most: int = _UINT32_MAX) -> "int | None":
    """Return the positive decimal number that `text` spells canonically (no sign, no leading zero), else None."""
    if not text or len(text) > 19 or not text.isascii() or not text.isdigit() or text[0] == "0":
        return None
    value = int(text)
    return value if value <= most else None


def natural(text: str, most: int = _UINT32_MAX) -> "int | None":
    """Return the number 0, 1, 2 … that `text` spells canonically, else None."""
    return 0 if text == "0" else number(text, most)


def component(text: str) -> bool:
    """Whether `text` can stand in one path component: not empty, no slash, no control character, not `.` or `..`."""
    if not text or text in (".", "..") or len(text) > _NAME_MAX or "/" in text:
        return False
    return not any(ch < " " or ch == "\x7f" for ch in text)


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
    job_id = number(leader if het else env.get("SLURM_JOB_ID", ""))
    uid = natural(env.get("SLURM_JOB_UID", ""), _UID_MAX)
    node = env.get("SLURMD_NODENAME", "")
    if job_id is None:
        raise JobError("no_job", "SLURM_JOB_ID is not a job's id")
    if uid is None:
        raise JobError("no_job", "SLURM_JOB_UID is not a user's id")
    if not component(node) or node.startswith("."):
        raise JobError("no_job", "SLURMD_NODENAME is not a node's name")
    job = Job(job_id, uid, node)
    job.gid = natural(env.get("SLURM_JOB_GID", ""), _UID_MAX)
    job.user = env["SLURM_JOB_USER"] if component(env.get("SLURM_JOB_USER", "")) else None
    job.nodes = natural(env.get("SLURM_JOB_NUM_NODES", ""))
    job.exit_status = natural(env.get("SLURM_JOB_EXIT_CODE", ""))
    job.start = natural(env.get("SLURM_JOB_START_TIME", ""), 2**63)
    job.het = het
    return job
