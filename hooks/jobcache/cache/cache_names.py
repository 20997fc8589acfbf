"""The names of caches on disk: a job's cache, what lies in it, what is left of it.

Names are formatted and parsed here and nowhere else in Python; what this module cannot parse, nothing may delete.
The TaskProlog does the same in shell, generated from the same `Template` by `config.policy`.
"""

from jobcache.cache.fields import component, natural, number

TYPE_CHECKING = False

META = ".jobcache"  # <cache>/.jobcache/, and in it:
ID = "id"  # one line for the shell: cluster job_id run uid
RECORD = "job.json"  # the record
NODES = "nodes"  # nodes/<node>: one lease a node
KEEP = "keep"  # exists: the user said JOBCACHE=keep
SHARED = "shared"  # exists: more than one node has held a lease
SEEDS = "seeds"  # while the cache is made: what is linked into it, before it has its place

TRASH = ".jobcache-trash-"  # beside the cache: renamed away, deletion pending
ASIDE = ".jobcache-aside-"  # beside the cache: moved by mistake and without a way back; nothing deletes it
NEW = ".jobcache-new-"  # beside the cache: being made, not yet renamed into place
RUN_NONCE = 8  # letters, and no digits: no template can take the end of it for a job's id


def format_job(job_id: int, run: int) -> str:
    """Return what stands for `{job_id}`: `4242`, for restart n of a requeued job `4242-r<n>`."""
    return f"{job_id}-r{run}" if run else str(job_id)


def parse_job(text: str) -> "tuple[int, int] | None":
    """Return (job_id, run) of what `format_job` wrote, else None."""
    head, dash, tail = text.partition("-r")
    job_id = number(head)
    run = number(tail) if dash else 0
    return None if job_id is None or run is None else (job_id, run)


def format_run(pid: int, nonce: str) -> str:
    """Return what stands for `{job_id}` where there is no job: `run-<pid>-<letters>`, of `jobcache run`."""
    return f"run-{pid}-{nonce}"


def parse_run(text: str) -> "int | None":
    """Return the pid of what `format_run` wrote, else None. It is never what `parse_job` reads."""
    word, _, rest = text.partition("-")
    head, _, nonce = rest.partition("-")
    pid = number(head)
    is_nonce = len(nonce) == RUN_NONCE and nonce.isascii() and nonce.isalpha() and nonce.islower()
    return pid if word == "run" and is_nonce else None


def host_cluster(host: str) -> str:
    """Return what stands for the cluster in the id of a cache that no job has: `@<host>`, which no ClusterName is."""
    return f"@{host}"


def format_lease(node: str, nonce: str) -> str:
    """Return the name of one process's lease, where each process holds its own; a hook's is the node's name alone."""
    return f"{node}+{nonce}"


def lease_node(name: str) -> str:
    """Return the node of a lease's name, of either kind."""
    return name.partition("+")[0]


def format_id(cluster: str, job_id: int, run: int, uid: int) -> str:
    """Return the line of `.jobcache/id`, without its newline."""
    return f"{cluster} {job_id} {run} {uid}"


def parse_id(line: str) -> "tuple[str, int, int, int] | None":
    """Return (cluster, job_id, run, uid) of a whole, newline-ended `.jobcache/id`, else None."""
    words = line[:-1].split(" ")
    if not line.endswith("\n") or len(words) != 4 or not component(words[0]):
        return None
    job_id, run, uid = number(words[1]), natural(words[2]), natural(words[3])
    if job_id is None or run is None or uid is None:
        return None
    return words[0], job_id, run, uid


def trash_name(job_id: int, nonce: str) -> str:
    """Return the name to which a cache of `job_id` is renamed before its deletion."""
    return f"{TRASH}{job_id}-{nonce}"


def new_name(job_id: int, nonce: str) -> str:
    """Return the name under which a cache of `job_id` is built."""
    return f"{NEW}{job_id}-{nonce}"


def aside_name(trash: str) -> str:
    """Return the name for what was renamed to `trash`, a name by `trash_name`, and must not be deleted."""
    return ASIDE + trash[len(TRASH) :]


def parse_debris(name: str) -> "tuple[str, int] | None":
    """Return (`TRASH`, `NEW` or `ASIDE`, job_id) of a name that one of the functions above wrote, else None."""
    for prefix in (TRASH, NEW, ASIDE):
        if name.startswith(prefix):
            head, dash, nonce = name[len(prefix) :].partition("-")
            job_id = number(head)
            if job_id is not None and nonce and nonce.isalnum() and nonce.isascii():
                return prefix, job_id
    return None


def is_scope(name: str) -> bool:
    """Whether `name` is that of a directory in a cache that `scope: node` or `task` gives to a node or a task."""
    return name == "batch" or name.startswith("node-") or (name.startswith("step-") and "-task-" in name)
