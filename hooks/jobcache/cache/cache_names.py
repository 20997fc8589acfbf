"""Names of caches on disk: of a cache, of the files in it, and of its remains.

This module formats and parses them; nothing else in Python does. Nothing may delete a name that it cannot parse. The
TaskProlog has the same names in shell, which `config.policy` compiles from the path template.
"""

from jobcache.cache.fields import component, natural, number

# ---- in a cache

META = ".jobcache"  # the directory of jobcache's own files, in the cache. In it:
ID = "id"  # one line for the shell: cluster, job id, run, uid
RECORD = "job.json"  # the record
NODES = "nodes"  # the directory of leases
KEEP = "keep"  # empty file: a task had JOBCACHE=keep
SHARED = "shared"  # empty file: more than one node has held a lease
SOURCES = "sources"  # the homes from whose builds the cache began: by default_cache.home_name, a symlink to each
SEEDS = "seeds"  # the directory in which builds of a store are linked, before they get their names


def format_id(cluster: str, job_id: int, run: int, uid: int) -> str:
    """Return the line in `.jobcache/id`, without its newline."""
    return f"{cluster} {job_id} {run} {uid}"


def parse_id(line: str) -> "tuple[str, int, int, int] | None":
    """Return (cluster, job_id, run, uid) of a complete `.jobcache/id`, newline included, else None."""
    words = line[:-1].split(" ")
    if not line.endswith("\n") or len(words) != 4 or not component(words[0]):
        return None
    job_id, run, uid = number(words[1]), natural(words[2]), natural(words[3])
    if job_id is None or run is None or uid is None:
        return None
    return words[0], job_id, run, uid


def host_cluster(host: str) -> str:
    """Return the cluster in the id of a `jobcache run` outside of jobs: `@<host>`, which is no valid ClusterName."""
    return f"@{host}"


def format_lease(node: str, nonce: str) -> str:
    """Return the name of one process's lease. A hook's lease has the node's name alone."""
    return f"{node}+{nonce}"


def lease_node(name: str) -> str:
    """Return the node that a hook's or a process's lease belongs to."""
    return name.partition("+")[0]


def is_lease(name: str) -> bool:
    """Return whether a file of this name in nodes/ can be a lease: it begins with a name that the hooks accept for a node."""
    node = lease_node(name)
    return component(node) and node[0] != "."


HOME = "home"  # begins the name of a directory in a cache, for tasks with another home than that of the cache


def is_scope(name: str) -> bool:
    """Return whether `name` is a directory in a cache that `scope: node`, `scope: task` or a task with another home creates."""
    if name.startswith((f"{HOME}+", f"{HOME}~", "node-")):
        return True
    return name.partition("+")[0] == "batch" or (name.startswith("step-") and "-task-" in name)


# ---- of a cache: the text that replaces `{job_id}` in the path template

RUN_NONCE = 8  # lower-case letters; a digit at the end could be read as a job id by some template


def format_job(job_id: int, run: int) -> str:
    """Return the text for a job's cache: `4242`, or `4242-r<n>` after n requeues."""
    return f"{job_id}-r{run}" if run else str(job_id)


def parse_job(text: str) -> "tuple[int, int] | None":
    """Return (job_id, run) of a text that `format_job` wrote, else None."""
    head, dash, tail = text.partition("-r")
    job_id = number(head)
    run = number(tail) if dash else 0
    return None if job_id is None or run is None else (job_id, run)


def format_run(pid: int, nonce: str) -> str:
    """Return the text for the cache of a `jobcache run` outside of jobs: `run-<pid>-<letters>`."""
    return f"run-{pid}-{nonce}"


def parse_run(text: str) -> "int | None":
    """Return the pid of a text that `format_run` wrote, else None. `parse_job` accepts no such text."""
    word, _, rest = text.partition("-")
    head, _, nonce = rest.partition("-")
    pid = number(head)
    is_nonce = len(nonce) == RUN_NONCE and nonce.isascii() and nonce.isalpha() and nonce.islower()
    return pid if word == "run" and is_nonce else None


def contains_name(name: str, identity: "tuple[str, int, int, int]") -> bool:
    """Return whether `name`, the last component of a path, can be that of the cache with this identity, for some template."""
    import re  # too slow for the hot path, which never comes here

    cluster, job_id, run, _ = identity
    text = (
        f"run-{job_id}-[a-z]{{{RUN_NONCE}}}(?![a-z])"
        if cluster.startswith("@")
        else f"{format_job(job_id, run)}(?![0-9]|-r[0-9])"
    )
    return re.search(f"(?<![0-9]){text}", name) is not None


# ---- beside a cache

TRASH = ".jobcache-trash-"  # a cache that waits for its deletion
NEW = ".jobcache-new-"  # a cache that is being built
ASIDE = ".jobcache-aside-"  # a directory that was renamed by mistake and could not be renamed back; nothing deletes it
HISTORY = ".jobcache-history"  # file: the user's own history of all caches here
HISTORY_OLDER = ".jobcache-history.1"  # its older generation


def trash_name(job_id: int, nonce: str) -> str:
    """Return the name to which a cache of `job_id` is renamed before its deletion."""
    return f"{TRASH}{job_id}-{nonce}"


def new_name(job_id: int, nonce: str) -> str:
    """Return the name under which a cache of `job_id` is built."""
    return f"{NEW}{job_id}-{nonce}"


def aside_name(trash: str) -> str:
    """Given a name by `trash_name`, return the name for a directory that must not be deleted."""
    return ASIDE + trash[len(TRASH) :]


def is_history(name: str) -> bool:
    """Return whether `name` is that of a history, which is no cache whatever stands at it."""
    return name in (HISTORY, HISTORY_OLDER)


def parse_debris(name: str) -> "tuple[str, int] | None":
    """Return (`TRASH`, `NEW` or `ASIDE`, job_id) of a name that one of the three functions above wrote, else None."""
    for prefix in (TRASH, NEW, ASIDE):
        if name.startswith(prefix):
            head, dash, nonce = name[len(prefix) :].partition("-")
            job_id = number(head)
            if job_id is not None and nonce and nonce.isalnum() and nonce.isascii():
                return prefix, job_id
    return None
