"""The private cache of one command: create or join it, keep its lease, delete it.

`jobcache run` uses the protocol of the hooks, as the user. In a job the commands share the job's cache, and each process
holds a lease of its own. Outside of jobs each command has a cache of its own, with a name that no job's cache has; commands
inside of this command share it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Optional

from jobcache.cache import (
    account_home,
    cache_names,
    dirfd,
    event_line,
    fields,
    history,
    job_record,
    lease_lock,
    node_leases,
    protocol,
    reasons,
    seeding,
    store_names,
    timestamps,
)
from jobcache.config import apptainer
from jobcache.runner import leftovers, relay, store_filling
from jobcache.runner.inherited_cache import InheritedCache
from jobcache.runner.request import Job, Request, scope_directory
from jobcache.store import publish_cache, usage
from jobcache.system import as_user, reaper
from jobcache.system.unlinked import Unlinked

if TYPE_CHECKING:
    from jobcache.cache.protocol import Clock

_PATIENCE = 5.0  # seconds for an earlier cache at this path to disappear
_MARKING = 1.0  # seconds to date the stored builds that were used
_LINGERING = 2.0  # seconds for the processes of a command to end after it
_PAUSE = 0.05  # seconds between two searches for them
_MOST_NAMED = 5  # processes that the message names
_STRIDE = 0.2  # seconds of deletion between two checks for a signal
_MOST_REMADE = 4  # times that the cache is deleted if a process makes it again
_OF_EVENT = ("level", "outcome", "reason", "duration_ms")  # fields that event_line.Log takes or adds itself


class PrivateCache:
    """A cache for one command. Call `enter`, `announce`, run the command, and call `leave`.

    before_seeding: called before a new cache is linked to builds of a store. inherited: the cache to join in place of one of
    its own. clock: for tests. Raise path_template.BadName, as for {account} in the path outside of a job, and for {cluster}
    without `cluster` in the configuration; Refused, for {home} in the path with another HOME than the account has.
    """

    def __init__(
        self,
        env: "dict[str, str]",
        request: Request,
        job: Optional[Job],
        before_seeding: "Callable[[], None]",
        inherited: Optional[InheritedCache] = None,
        clock: "Clock" = time,
    ) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._request = request
        self._job = job if inherited is None or inherited.has_job else None
        self._inherited = inherited
        stores = _store_words(env, request, job)
        self._user_store = stores["store"]
        self._scope = "" if inherited else scope_directory(request.scope, env, job)
        if inherited:
            self._claim = _inherited_claim(env, inherited, job)
            stores.update(store="", site="", inherit="")
        else:
            self._claim = _claim(env, request, job)
            below = request.exports.get("HF_DATASETS_CACHE", "")[len("{cache}") :]
            self._claim.below = f"{self._scope}{below}".strip("/")
        self._binds = apptainer.variables(request.template, self._claim.above or "", env) if request.binds else {}
        self._seeds = seeding.Seeds(stores, self._claim, env, self._began)
        if self._claim.seed:
            self._claim.seed = _seed_after(before_seeding, self._claim.seed)
        self._further_ids = fields.further_ids(env)
        self._nodes = fields.natural(env.get("SLURM_JOB_NUM_NODES", "")) if self._job else None
        self._is_alone = self._nodes == 1 and "SLURM_HET_SIZE" not in env  # no other node or part of the job has the path
        self._outcome = ""

    @property
    def exports(self) -> "dict[str, str]":
        """The variables of the command that name or mount the cache; none for an inherited cache, which they name already."""
        if self._inherited:
            return {}
        path = self._claim.path
        directory = f"{path}/{self._scope}" if self._scope else path
        exports = {name: value.replace("{cache}", directory) for name, value in self._request.exports.items()}
        return {**exports, "JOBCACHE_DIR": path, **self._binds}

    @property
    def is_inherited(self) -> bool:
        """Whether the command had the cache already, from an outer `jobcache run`."""
        return self._inherited is not None

    def enter(self) -> None:
        """Create the cache, or join that of the job, and hold its lease. Raise reasons.Refused, OSError."""
        parent, _, self._name = self._claim.path.rpartition("/")
        if self._inherited is None:
            self._outcome = protocol.enter(self._claim, self._began + _PATIENCE, self._clock)
        self._parent_fd = dirfd.open_directory(parent)
        self._fd = os.open(self._name, dirfd.DIRECTORY, dir_fd=self._parent_fd)
        if self._inherited:
            self._outcome = self._join_inherited()
        self._lock = lease_lock.hold(self._fd, self._claim.node)
        leftovers.close_inherited_locks(self._fd, self._claim.node)
        if self._outcome == "joined" and self._claim.below:
            try:
                self._seeds.seed_directory(self._claim.path)
            except reasons.Refused:
                self.leave(0, ran=False)
                raise

    def _join_inherited(self) -> str:
        """Take a lease in the inherited cache; return "joined". Raise reasons.Refused if it is being deleted, OSError."""
        if job_record.identity(self._fd) != self._claim.identity or os.fstat(self._fd).st_uid != self._claim.uid:
            raise reasons.Refused("foreign", "another cache is at the path by now")
        outcome = protocol.join(self._fd, self._claim)
        if outcome is None:
            raise reasons.Refused("busy", "the inherited cache is being deleted")
        return outcome

    def announce(self) -> None:
        """Log the creation of the cache and the builds linked into it."""
        if self._outcome != "joined":
            self._log("cache.created", self._outcome, "", self._began, **self._seeds.facts())
        self._seeds.report(self._request.syslog, self._facts())

    def beat(self) -> None:
        """Touch the lease, so that a sweep after a reboot of this host knows how long it has been silent."""
        lease_lock.beat(self._lock)

    def leave(self, status: int, ran: bool = True) -> None:
        """Release the lease, and delete the cache if it was the last one. A sweep deletes what this leaves.

        status: exit status of the command. ran: the command was run.
        """
        began = time.monotonic()
        try:
            probe = lease_lock.reopened(self._lock) if ran else None
            os.close(self._lock)
            if probe is not None and self._leave_to_others(probe, began):
                return
            if not self._is_last():
                return
            if ran and self._user_store:
                self._mark_used(began + _MARKING)
            is_kept = job_record.is_kept(self._fd)
            seconds = self._request.keep_max if is_kept else self._request.keep_failed if status else 0.0
            if seconds:
                self._keep("user_keep" if is_kept else "job_failed", seconds, began)
            else:
                if self._user_store and (ran or self._outcome == "joined"):
                    self._publish()
                self._delete_all(began)
        except (OSError, reaper.Kept) as error:
            print(f"jobcache run: cannot delete {self._claim.path}: {error}; `jobcache sweep` will delete it", file=sys.stderr)

    def _leave_to_others(self, probe: int, began: float) -> bool:
        """If processes of the command still work in the cache, leave it and the lease to them; return whether. Raise OSError.

        probe: the lease, opened anew. Closes it.
        """
        try:
            left = self._await_end_of_others(probe)
        finally:
            os.close(probe)
        if left is None or not dirfd.exists(self._parent_fd, self._name):
            return False
        named = [f"{process.name} (pid {process.pid})" for process in left[:_MOST_NAMED]]
        more = [f"{len(left) - _MOST_NAMED} more"] if len(left) > _MOST_NAMED else []
        users = ", ".join(named + more) or "a process that cannot be read"
        when = "after the job" if self._job else "when they have ended"
        print(f"jobcache run: keeps {self._claim.path}: in use by {users}; `jobcache sweep` deletes it {when}", file=sys.stderr)
        self._log("cache.kept", "kept", "in_use", began, pids=str([process.pid for process in left]))
        self._record_others(left)
        return True

    def _record_others(self, left: "list[leftovers.Process]") -> None:
        """Write the processes into the record: one that holds no lock is found by it."""
        try:
            self._take_remade(is_used=True)
            found = [[process.pid, process.started] for process in left]
            job_record.write_record(self._fd, {**job_record.read_record(self._fd), lease_lock.LEFT: found})
        except OSError:
            pass  # a full disk: a lock on the lease suffices; or the cache was removed meanwhile

    def _await_end_of_others(self, probe: int) -> "Optional[list[leftovers.Process]]":
        """Return the processes that work in the cache after _LINGERING seconds, or after the next signal; None if none does.

        The list is empty if a process that this one cannot read holds the lock, or if not all processes could be examined.
        """
        while relay.take_pending():
            pass  # signals that ended the command
        until = self._clock.monotonic() + _LINGERING
        while True:
            try:
                left = leftovers.find(self._claim.path, self._fd, self._claim.node)
                if not left and not lease_lock.is_held(probe):
                    return None
            except leftovers.UnfinishedError:
                left = []
            if self._clock.monotonic() >= until or relay.take_pending():
                return left
            self._clock.sleep(_PAUSE)

    def _is_last(self) -> bool:
        """Release the lease; return whether it was the last one. Raise OSError."""
        outcome = node_leases.release(self._fd, self._claim.node, node_leases.now()[0], float("inf"))
        return outcome == "last" or (outcome == "none" and self._take_remade())

    def _take_remade(self, is_used: bool = False) -> bool:
        """Write an id into a directory that a process of the command made again at its cache's path; return whether.

        Only such a process can have made it: nobody else has the name, but the other nodes and parts of a job. While a
        process works in it, it is left to the last `jobcache run`, unless `is_used`. Raise OSError.
        """
        if self._job and not self._is_alone:
            return False
        try:
            fd = os.open(self._name, dirfd.DIRECTORY, dir_fd=self._parent_fd)
        except FileNotFoundError:
            return False
        is_remade = os.fstat(fd).st_uid == self._claim.uid and not dirfd.exists(fd, cache_names.META)
        if not is_remade or not (is_used or self._is_unused(fd)):
            os.close(fd)
            return False
        try:
            job_record.sign(fd, *self._claim.identity)
        except (FileExistsError, FileNotFoundError):  # another `jobcache run` was faster; a process has removed it again
            os.close(fd)
            return False
        os.close(self._fd)
        self._fd = fd
        return True

    def _is_unused(self, fd: int) -> bool:
        """Return whether no process works in the directory that is open at `fd`. No lease in it covers any."""
        try:
            return not leftovers.find(self._claim.path, fd, None)
        except leftovers.UnfinishedError:
            return False

    def _keep(self, reason: str, seconds: float, began: float) -> None:
        """Record until when the cache is kept. Raise OSError."""
        until = timestamps.second(time.time() + seconds)
        job_record.write_record(self._fd, {**job_record.read_record(self._fd), "keep_until": until})
        self._log("cache.kept", "kept", reason, began, keep_until=event_line.quote(until))

    def _mark_used(self, until: float) -> None:
        """Date the stored builds that the cache used. until: seconds of time.monotonic."""
        try:
            usage.mark_used(self._fd, self._user_store, until)
        except OSError:
            pass  # a process has removed the cache; the builds count as unused

    def _publish(self) -> None:
        """Publish the finished builds, as the Epilog does for a job. Print a line if some are not published."""
        job, request, node = self._job, self._request, cache_names.lease_node(self._claim.node)
        manifest: dict[str, Any] = {"cluster": job.cluster, "job_id": job.job_id} if job else {"by": "run"}
        rules = publish_cache.Rules(self._user_store, request.publish, request.store_max_size, manifest)
        began = time.monotonic()
        until = began + request.publish_seconds
        try:
            record = job_record.read_record(self._fd)
            if rules.label_of(record) is None or self._nodes not in (1, None) or node_leases.is_shared(self._fd, node, record):
                return
            fact = store_filling.run(store_filling.Filling(self._claim.path, self._claim.identity, rules, until))
        except OSError as error:
            fact = {"level": "warning", "outcome": "refused", "reason": reasons.reason_of(error), "error": str(error)}
        if fact:
            self._report_published(fact, began)

    def _report_published(self, fact: "dict[str, Any]", began: float) -> None:
        """Log the event `store.published`, and print a line if not all builds were published. fact: the fields of the event."""
        more = {key: json.dumps(value) for key, value in fact.items() if key not in _OF_EVENT and value is not None}
        log = event_line.Log(self._request.syslog, self._facts(), began)
        log.emit("store.published", fact["level"], fact["outcome"], fact["reason"] or "", **more)
        if fact["reason"]:
            why = fact.get("error") or f"the time for it, {self._request.publish_seconds:g} s, is used up"
            print(f"jobcache run: not all builds were published into {self._user_store}: {why}", file=sys.stderr)

    def _delete_all(self, began: float) -> None:
        """Delete the cache, and each directory that a process makes in its place meanwhile. Raise OSError, reaper.Kept."""
        for _ in range(_MOST_REMADE):
            try:
                self._delete(began)
            except FileNotFoundError:
                pass  # a process has removed it
            except reaper.Kept as kept:
                if kept.reason != "changed":
                    raise
            if not self._take_remade():
                return
        raise reaper.Kept("changed", "a process makes it again and again")

    def _delete(self, began: float) -> None:
        """Delete the cache up to the end, or up to the next signal. Raise OSError, reaper.Kept."""
        trash = reaper.retire(self._parent_fd, self._name, self._fd, self._claim.uid, self._claim.job_id)
        freed = files = 0
        unlinked = Unlinked()
        while True:
            tally = reaper.delete(self._parent_fd, trash, self._fd, time.monotonic() + _STRIDE, unlinked=unlinked)
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

    def _log(self, event: str, outcome: str, reason: str, began: float, **more: str) -> None:
        """Send one event to the system's log if the site wants that, and write it into the history. more: JSON text by key."""
        line = event_line.Log(self._request.syslog, self._facts(), began).emit(event, "info", outcome, reason, **more)
        if self._request.history:
            history.append_in_time(self._parent_fd, line)

    def _facts(self) -> "dict[str, str]":
        """Return the fields that every event about this cache has: JSON text by key."""
        claim = self._claim
        facts = {
            "by": '"run"',
            "uid": str(claim.uid),
            "path": event_line.quote(claim.path),
            "node": event_line.quote(cache_names.lease_node(claim.node)),
        }
        if self._job:
            cluster = event_line.quote(self._job.cluster)
            facts.update(cluster=cluster, job_id=str(self._job.job_id), run=str(self._job.run))
            facts.update((key, str(value)) for key, value in self._further_ids.items())
        return facts


def _seed_after(before: "Callable[[], None]", seed: "Callable[[int], None]") -> "Callable[[int], None]":
    """Return a function that calls `before` and then `seed`."""

    def seed_cache(cache_fd: int) -> None:
        before()
        seed(cache_fd)

    return seed_cache


def _claim(env: "dict[str, str]", request: Request, job: Optional[Job]) -> protocol.Claim:
    """Return the claim on a cache. Its node is a lease of this process: several processes of a node share a job's cache.

    Raise path_template.BadName, and Refused if the template begins with {home} and HOME is not the home of the account.
    """
    uid, pid = os.getuid(), os.getpid()
    user = as_user.user_name(uid)
    node = job.node if job else lease_lock.host()
    home = env.get("HOME", "")
    if request.template.in_home:
        account_home.require(home, uid)
    place = request.template.bind(
        user=user,
        uid=uid,
        cluster=job.cluster if job else request.cluster,
        node=node,
        account=env.get("SLURM_JOB_ACCOUNT", "") if job else "",
        job_id=job.job_id if job else 0,
        home=home,
    )
    lease = cache_names.format_lease(node, dirfd.nonce())
    if job:
        claim = protocol.Claim(place.cache(job.job_id, job.run), job.cluster, job.job_id, job.run, uid, lease)
    else:
        letters = "".join(chr(ord("a") + byte % 26) for byte in os.urandom(cache_names.RUN_NONCE))
        claim = protocol.Claim(place.run_cache(pid, letters), cache_names.host_cluster(node), pid, 0, uid, lease)
    claim.above, claim.job_directory = place.above, place.job_directory
    claim.keep = env.get("JOBCACHE") == "keep"
    claim.record = {"user": event_line.quote(user), "node": event_line.quote(node)}
    claim.record.update(pid=str(pid), started=str(lease_lock.started(pid) or 0))
    return claim


def _inherited_claim(env: "dict[str, str]", inherited: InheritedCache, job: Optional[Job]) -> protocol.Claim:
    """Return the claim on an inherited cache: a lease of this process."""
    node = job.node if job and inherited.has_job else lease_lock.host()
    claim = protocol.Claim(inherited.path, *inherited.identity, cache_names.format_lease(node, dirfd.nonce()))
    claim.keep = env.get("JOBCACHE") == "keep"
    return claim


def _store_words(env: "dict[str, str]", request: Request, job: Optional[Job]) -> "dict[str, str]":
    """Return the words about stores that the TaskProlog passes to prepare.py. Raise path_template.BadName."""
    uid = os.getuid()
    who: dict[str, Any] = {"user": as_user.user_name(uid), "uid": uid, "cluster": job.cluster if job else request.cluster}
    templates = {"store": request.user_store, "site": request.site_store}
    paths = {name: store_names.store_path(text, **who) if text else "" for name, text in templates.items()}
    return {**paths, "label": env.get("JOBCACHE_STORE", ""), "deadline": str(_PATIENCE), "inherit": str(request.inherit)}
