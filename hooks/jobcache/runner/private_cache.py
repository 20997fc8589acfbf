"""The private cache of one command: create or join it, keep its lease, delete it.

`jobcache run` uses the protocol of the hooks, as the user. In a job the commands share the job's cache, and each process
holds a lease of its own. Outside of jobs each command has a cache of its own, with a name that no job's cache has.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Optional

from jobcache.cache import (
    cache_names,
    dirfd,
    event_line,
    job_record,
    lease_lock,
    node_leases,
    protocol,
    seeding,
    store_names,
    timestamps,
)
from jobcache.runner import relay
from jobcache.runner.request import Job, Request, scope_directory
from jobcache.store import usage
from jobcache.system import as_user, reaper

_PATIENCE = 5.0  # seconds for an earlier cache at this path to disappear
_MARKING = 1.0  # seconds to date the stored builds that were used
_STRIDE = 0.2  # seconds of deletion between two checks for a signal


def is_inherited(env: "dict[str, str]", job: Optional[Job]) -> bool:
    """Return whether this process already has a private cache, from the hooks or from an outer `jobcache run`."""
    path = env.get("JOBCACHE_DIR", "")
    if not path.startswith("/"):
        return False
    try:
        fd = dirfd.open_directory(path)
    except OSError:
        return False
    try:
        identity = job_record.identity(fd)
        if identity is None or identity[3] != os.getuid():
            return False
        if identity[0].startswith("@"):
            return lease_lock.state(fd) == lease_lock.ALIVE
        return job is not None and identity[:3] == (job.cluster, job.job_id, job.run)
    except OSError:
        return False
    finally:
        os.close(fd)


class PrivateCache:
    """A cache for one command. Call `enter`, `announce`, run the command, and call `leave`.

    before_seeding: called before a new cache is linked to builds of a store. Raise path_template.BadName, as for {cluster}
    in the path outside of a job and without `cluster` in the configuration.
    """

    def __init__(self, env: "dict[str, str]", request: Request, job: Optional[Job], before_seeding: "Callable[[], None]") -> None:
        self._began = time.monotonic()
        self._request = request
        self._job = job
        self._claim = _claim(env, request, job)
        self._claim.below = scope_directory(request.scope, env, job)
        stores = _store_words(env, request, job)
        self._user_store = stores["store"]
        self._seeds = seeding.Seeds(stores, self._claim)
        if self._claim.seed:
            self._claim.seed = _seed_after(before_seeding, self._claim.seed)
        self._outcome = ""

    @property
    def exports(self) -> "dict[str, str]":
        """The variables of the command that name the cache."""
        path = self._claim.path
        directory = f"{path}/{self._claim.below}" if self._claim.below else path
        exports = {name: value.replace("{cache}", directory) for name, value in self._request.exports.items()}
        return {**exports, "JOBCACHE_DIR": path}

    def enter(self) -> None:
        """Create the cache, or join that of the job, and hold its lease. Raise reasons.Refused, OSError."""
        self._outcome = protocol.enter(self._claim, self._began + _PATIENCE)
        parent, _, self._name = self._claim.path.rpartition("/")
        self._parent_fd = dirfd.open_directory(parent)
        self._fd = os.open(self._name, dirfd.DIRECTORY, dir_fd=self._parent_fd)
        self._lock = lease_lock.hold(self._fd, self._claim.node)

    def announce(self) -> None:
        """Log the creation of the cache and the builds linked into it; link builds into a directory of a joined cache."""
        if self._outcome != "joined":
            self._log("cache.created", self._outcome, "", self._began)
        elif self._claim.below:
            self._seeds.seed_directory(self._claim.path)
        self._seeds.report(self._request.syslog, self._facts())

    def beat(self) -> None:
        """Touch the lease, so that a sweep after a reboot of this host knows how long it has been silent."""
        lease_lock.beat(self._lock)

    def leave(self, status: int, ran: bool = True) -> None:
        """Release the lease, and delete the cache if it was the last one. A sweep deletes what this leaves.

        status: exit status of the command. ran: the command was run.
        """
        os.close(self._lock)
        began = time.monotonic()
        try:
            if node_leases.release(self._fd, self._claim.node, node_leases.now()[0], float("inf")) != "last":
                return
            if ran and self._user_store:
                usage.mark_used(self._fd, self._user_store, began + _MARKING)
            is_kept = job_record.is_kept(self._fd)
            seconds = self._request.keep_max if is_kept else self._request.keep_failed if status else 0.0
            if seconds:
                self._keep("user_keep" if is_kept else "job_failed", seconds, began)
            else:
                self._delete(began)
        except (OSError, reaper.Kept) as error:
            print(f"jobcache run: cannot delete {self._claim.path}: {error}; `jobcache sweep` will delete it", file=sys.stderr)

    def _keep(self, reason: str, seconds: float, began: float) -> None:
        """Record until when the cache is kept. Raise OSError."""
        until = timestamps.second(time.time() + seconds)
        job_record.write_record(self._fd, {**job_record.read_record(self._fd), "keep_until": until})
        self._log("cache.kept", "kept", reason, began, keep_until=event_line.quote(until))

    def _delete(self, began: float) -> None:
        """Delete the cache up to the end, or up to the next signal. Raise OSError, reaper.Kept."""
        trash = reaper.retire(self._parent_fd, self._name, self._fd, self._claim.uid, self._claim.job_id)
        freed = files = 0
        while True:
            tally = reaper.delete(self._parent_fd, trash, self._fd, time.monotonic() + _STRIDE)
            freed, files = freed + tally.bytes, files + tally.files
            if tally.done or tally.left or relay.take_pending():
                break
        outcome = "reaped" if tally.done else "trashed"
        self._log("cache.reaped", outcome, "left" if tally.left else "", began, bytes=str(freed), files=str(files))
        if tally.error:
            print(
                f"jobcache run: cannot delete all of {self._claim.path}: {tally.error}; `jobcache sweep` will delete the rest",
                file=sys.stderr,
            )

    def _log(self, event: str, outcome: str, reason: str, began: float, **fields: str) -> None:
        """Send one event to the system's log if the site wants that. fields: JSON text by key."""
        event_line.Log(self._request.syslog, self._facts(), began).emit(event, "info", outcome, reason, **fields)

    def _facts(self) -> "dict[str, str]":
        """Return the fields that every event about this cache has: JSON text by key."""
        claim = self._claim
        facts = {
            "uid": str(claim.uid),
            "path": event_line.quote(claim.path),
            "node": event_line.quote(cache_names.lease_node(claim.node)),
        }
        if self._job:
            cluster = event_line.quote(self._job.cluster)
            facts.update(cluster=cluster, job_id=str(self._job.job_id), run=str(self._job.run))
        return facts


def _seed_after(before: "Callable[[], None]", seed: "Callable[[int], None]") -> "Callable[[int], None]":
    """Return a function that calls `before` and then `seed`."""

    def seed_cache(cache_fd: int) -> None:
        before()
        seed(cache_fd)

    return seed_cache


def _claim(env: "dict[str, str]", request: Request, job: Optional[Job]) -> protocol.Claim:
    """Return the claim on a cache. Its node is a lease of this process: several processes of a node share a job's cache.

    Raise path_template.BadName.
    """
    uid, pid = os.getuid(), os.getpid()
    user = as_user.user_name(uid)
    node = job.node if job else lease_lock.host()
    place = request.template.bind(user=user, uid=uid, cluster=job.cluster if job else request.cluster, node=node)
    lease = cache_names.format_lease(node, dirfd.nonce())
    if job:
        claim = protocol.Claim(place.cache(job.job_id, job.run), job.cluster, job.job_id, job.run, uid, lease)
    else:
        letters = "".join(chr(ord("a") + byte % 26) for byte in os.urandom(cache_names.RUN_NONCE))
        claim = protocol.Claim(place.run_cache(pid, letters), cache_names.host_cluster(node), pid, 0, uid, lease)
    claim.keep = env.get("JOBCACHE") == "keep"
    claim.record = {"user": event_line.quote(user), "node": event_line.quote(node)}
    claim.record.update(pid=str(pid), started=str(lease_lock.started(pid) or 0))
    return claim


def _store_words(env: "dict[str, str]", request: Request, job: Optional[Job]) -> "dict[str, str]":
    """Return the words about stores that the TaskProlog passes to prepare.py. Raise path_template.BadName."""
    uid = os.getuid()
    who: dict[str, Any] = {"user": as_user.user_name(uid), "uid": uid, "cluster": job.cluster if job else request.cluster}
    templates = {"store": request.user_store, "site": request.site_store}
    paths = {name: store_names.store_path(text, **who) if text else "" for name, text in templates.items()}
    return {**paths, "label": env.get("JOBCACHE_STORE", ""), "deadline": str(_PATIENCE)}
