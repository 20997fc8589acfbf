"""Whether a cache with the id of this run is from an earlier life of the job id, and unused.

Job ids come again: the controller has lost its state, or ids wrap. So the batch task of a run can find a cache that an earlier
job with the same id left. It can also find the cache of its own run: `srun --jobid --overlap` attaches a step to a job whose
batch script has not begun yet. The batch task discards the cache only with proof that no step of its run uses it; in doubt, it
joins. docs/decisions/earlier-lives.md has the reasons.
"""

import os
import time

from jobcache.cache import cache_names, dirfd, file_owners, node_leases, timestamps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcache.cache.protocol import Claim

LAUNCH = 3600  # seconds after its job's start within which a batch script begins, where Slurm does not report the start
_TITLE_LENGTH = 64  # bytes; the title of a slurmstepd is shorter


def is_unused(cache_fd: int, claim: "Claim", nodes: str = cache_names.NODES) -> bool:
    """Return whether it is proven that no step of the run of `claim` holds a lease of the cache. Raise OSError.

    claim: of a batch task, which holds no lease yet. nodes: the name of the directory of leases; without it, return False.
    """
    other_step = runs_other_step(claim)
    boot = node_leases.now()[0]
    limit = (claim.job_start or time.time() - LAUNCH) - timestamps.CLOCK_SKEW
    try:
        with dirfd.Opened(cache_fd, cache_names.META) as meta_fd, dirfd.Opened(meta_fd, nodes) as nodes_fd:
            empty = True
            with os.scandir(nodes_fd) as entries:
                for entry in entries:
                    empty = False
                    if cache_names.lease_node(entry.name) == claim.node:
                        if other_step:
                            return False
                        # The command of a `jobcache run` needs no step: an ssh session in the job. It touches its lease.
                        if (other_step is False and entry.name == claim.node) or _is_of_other_boot(nodes_fd, entry.name, boot):
                            continue
                    if not entry.stat(follow_symlinks=False).st_mtime < limit:
                        return False
            # An Epilog that removed the last lease is about to remove nodes/. One that was killed has left it.
            return not empty or os.fstat(nodes_fd).st_mtime < limit
    except FileNotFoundError:
        return False


def _is_of_other_boot(nodes_fd: int, lease: str, boot: str) -> bool:
    """Return whether a lease of this node was taken before the node booted. In doubt, False."""
    try:
        taken = node_leases.parse_lease(dirfd.read_small(nodes_fd, lease) or "")
    except OSError:
        return False  # a symlink or a directory
    return taken is not None and taken[0] != boot


def runs_other_step(claim: "Claim") -> "bool | None":
    """Return whether another step of the job runs on this node, None if this process cannot see the node's steps.

    The batch step has two processes with its title; slurmd starts no second one. Slurm runs no TaskProlog for the extern step.
    """
    title = f"slurmstepd: [{claim.job_id}."
    if not _title(str(claim.stepd)).startswith(f"{title}batch]"):
        return None
    without = (f"{title}batch]", f"{title}extern]")
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            found = _title(pid)
            if found.startswith(title) and not found.startswith(without) and _can_be_slurms(pid, claim.uid):
                return True
    return False


def _title(pid: str) -> str:
    """Return the beginning of a process's title, "" if the process is gone or hidden."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return (file.read(_TITLE_LENGTH) or b"").decode("ascii", "replace")
    except OSError:
        return ""


def _can_be_slurms(pid: str, uid: int) -> bool:
    """Return whether root or the user `uid` owns a process. Any user can give a process any title."""
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return False
    return owner == file_owners.own(uid) or file_owners.can_be_roots_process(owner)
