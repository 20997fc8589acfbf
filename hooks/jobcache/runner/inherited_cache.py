"""The cache that this process has from its environment: from the hooks, or from an outer `jobcache run`.

The node's lease of the hooks covers all processes of the job on this node, and the Epilog ends it. In a cache of an outer
`jobcache run`, each inner one takes a lease of its own: any of them can end first.
"""

import os
from dataclasses import dataclass
from typing import Optional

from jobcache.cache import cache_names, dirfd, job_record, lease_lock
from jobcache.runner.request import Job


@dataclass(frozen=True)
class InheritedCache:
    """A live cache. identity: (cluster, job_id, run, uid). of_hooks: the hooks have taken this node's lease in it."""

    path: str
    identity: "tuple[str, int, int, int]"
    of_hooks: bool

    @property
    def has_job(self) -> bool:
        """Whether it is the cache of a job."""
        return not self.identity[0].startswith("@")


def find(env: "dict[str, str]", job: Optional[Job]) -> Optional[InheritedCache]:
    """Return the cache that JOBCACHE_DIR names if it is this job's, or that of a live `jobcache run` of this host."""
    path = env.get("JOBCACHE_DIR", "")
    if not path.startswith("/"):
        return None
    try:
        fd = dirfd.open_directory(path)
    except OSError:
        return None
    try:
        identity = job_record.identity(fd)
        if identity is None or identity[3] != os.getuid():
            return None
        if not cache_names.contains_name(os.path.basename(path), identity):
            return None  # its user has renamed it, and nobody may delete it
        if identity[0].startswith("@"):
            is_alive = lease_lock.state(fd) == lease_lock.ALIVE
            return InheritedCache(path, identity, of_hooks=False) if is_alive else None
        if job is None or identity[:3] != (job.cluster, job.job_id, job.run):
            return None
        of_hooks = dirfd.exists(fd, f"{cache_names.META}/{cache_names.NODES}/{job.node}")
        return InheritedCache(path, identity, of_hooks)
    except OSError:
        return None
    finally:
        os.close(fd)
