"""The decision about each directory that a sweep finds: a pure function. In doubt a directory is kept, with the reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from jobcache.cache import lease_lock
from jobcache.system.live_jobs import Listing

# Kinds of directories. cache: at the path of a job's cache. run: at the path of a cache of `jobcache run` outside of jobs.
# new: creation is under way or was interrupted. trash: renamed for deletion. aside: renamed, and never deleted.
CACHE, RUN, NEW, TRASH, ASIDE = "cache", "run", "new", "trash", "aside"
REAP, KEEP, REPORT = "reap", "keep", "report"  # actions

_DEAD = (lease_lock.GONE, lease_lock.RELEASED, lease_lock.EMPTY, lease_lock.SILENT)
_ALIVE = {lease_lock.ALIVE: "alive", lease_lock.ELSEWHERE: "other_host", lease_lock.TOO_MANY: "too_many_leases"}  # reasons

Identity = tuple[str, int, int, int]


@dataclass(frozen=True)
class Directory:
    """A directory with a name that jobcache uses, with the facts that its owner can read.

    Times are seconds since the epoch by the clock of the filesystem.

    kind: one of the kinds above.
    run: restart count of the job, None for a directory that is not at the path of a cache.
    gid: primary group of the owner.
    identity: (cluster, job_id, run, uid) from the id; None without an id, an empty cluster for an id that cannot be parsed.
    sign: the last sign of life, the newest change of the directory, its id, its record and its leases.
    now: the current time, None while it is unknown.
    keep_until: from the record, which the user can forge.
    kept: the user requested JOBCACHE=keep.
    joinable: nodes/ exists.
    bare: the directory holds nothing but files of jobcache.
    nodes: some of the nodes that hold leases.
    local: on a filesystem that each node has for itself.
    running: the job has a step on this host.
    error: why the directory cannot be read.
    late: it was not inspected, because the time of its owner was used up.
    mounted: a filesystem is mounted on it, which is not read.
    pids: processes of this host that have the directory or a file in it open.
    holder: state of the command of a cache without a job, one of the states of lease_lock.
    """

    kind: str
    path: str
    job_id: int
    run: Optional[int]
    uid: int
    gid: int = -1
    identity: Optional[Identity] = None
    device: int = 0
    inode: int = 0
    sign: float = 0.0
    now: Optional[float] = None
    keep_until: Optional[float] = None
    kept: bool = False
    joinable: bool = False
    bare: bool = False
    nodes: tuple[str, ...] = ()
    local: bool = False
    running: bool = False
    error: str = ""
    late: bool = False
    mounted: bool = False
    pids: tuple[int, ...] = ()
    holder: str = ""


@dataclass(frozen=True)
class Rules:
    """The site's settings for decisions.

    grace, confirm, keep_max: seconds.
    own_nodes: the nodes that this host is, in lower case, for scratch that each node has for itself.
    """

    cluster: str
    grace: float
    confirm: float
    keep_max: float
    min_uid: int = 1000
    own_nodes: frozenset[str] = frozenset()
    reap_unrecorded: bool = False


@dataclass(frozen=True)
class Decision:
    """The action for one directory, and its reason from the closed set of events."""

    directory: Directory
    action: str
    reason: str


def plan(directories: Iterable[Directory], listings: Sequence[Listing], rules: Rules) -> list[Decision]:
    """Return one decision for each directory, in their order.

    listings: complete lists of the live jobs, requested after the directories were listed.
    Without two listings that are `confirm` seconds apart, no directory of a job is reaped.
    """
    confirmed = len(listings) >= 2 and listings[-1].at - listings[0].at >= rules.confirm
    return [_decide(one, listings, rules, confirmed) for one in directories]


def depends_on_jobs(one: Directory, rules: Rules) -> bool:
    """Return whether the decision depends on the job list. If no decision does, Slurm need not be asked."""
    return not has_no_job(one) and (one.kind == TRASH or not one.running) and _decide_by_identity(one, rules) is None


def is_retired(one: Directory) -> bool:
    """Return whether this is trash of a process that had removed nodes/: the cache of no job, not even of a live one.

    A job that is requeued again and again, or a scrontab job, keeps its id while its old caches become trash.
    """
    return one.kind == TRASH and one.now is not None and not one.joinable


def has_no_job(one: Directory) -> bool:
    """Return whether `jobcache run` made this outside of jobs. Slurm does not know whether such a command lives."""
    return one.kind == RUN or (one.kind != CACHE and one.identity is not None and one.identity[0].startswith("@"))


def job_of(one: Directory) -> dict[str, Any]:
    """Return job_id and run of a directory as fields, both None for a directory of a command outside of jobs."""
    return {"job_id": None, "run": None} if has_no_job(one) else {"job_id": one.job_id, "run": one.run}


def _decide(one: Directory, listings: Sequence[Listing], rules: Rules, confirmed: bool) -> Decision:
    if has_no_job(one):
        return _decide_without_job(one, rules)
    settled = _decide_by_identity(one, rules)
    if settled:
        return settled
    alive = one.running or any(listing.alive(one.job_id, one.uid) for listing in listings)
    if alive and not is_retired(one):
        return Decision(one, KEEP, "alive")
    if not confirmed:
        return Decision(one, KEEP, "unconfirmed")
    protected = _decide_by_use(one, rules, rules.grace)
    if protected:
        return protected
    if one.local and any(node.lower() not in rules.own_nodes for node in one.nodes):
        return Decision(one, REPORT, "other_node")  # this node has another name, or nodes share the scratch
    if one.kind != CACHE:
        if one.identity is None and not one.bare:
            return Decision(one, REPORT, "unrecorded")  # the name is of jobcache, and nothing else proves who made it
        return Decision(one, REAP, "half_made" if one.kind == NEW else "trash")
    if one.identity is None and not rules.reap_unrecorded:
        return Decision(one, REPORT, "unrecorded")
    return Decision(one, REAP, "unrecorded" if one.identity is None else "orphan")


def _decide_without_job(one: Directory, rules: Rules) -> Decision:
    """Return the decision about a directory of a command outside of jobs: its lease shows whether the command lives.

    New directories and trash have no lease: their age decides.
    """
    settled = _decide_by_owner(one, rules)
    if settled:
        return settled
    if one.identity is None:
        return Decision(one, REPORT, "unrecorded")
    if one.identity[1] != one.job_id or one.identity[3] != one.uid or not one.identity[0].startswith("@"):
        return Decision(one, KEEP, "foreign")
    if one.kind == RUN and one.holder not in _DEAD:
        return Decision(one, KEEP, _ALIVE.get(one.holder, "unconfirmed"))
    silent = one.holder == lease_lock.SILENT or one.kind == NEW
    protected = _decide_by_use(one, rules, max(rules.grace, lease_lock.SILENCE) if silent else rules.grace)
    return protected or Decision(one, REAP, {NEW: "half_made", TRASH: "trash"}.get(one.kind, "orphan"))


def _decide_by_owner(one: Directory, rules: Rules) -> Optional[Decision]:
    """Return the decision about a directory that no sweep reaps, None for any other."""
    if one.late:
        return Decision(one, KEEP, "budget")
    if one.error:
        return Decision(one, REPORT, "mount" if one.mounted else "unreadable")
    if one.kind == ASIDE:
        return Decision(one, REPORT, "aside")
    return Decision(one, KEEP, "min_uid") if one.uid == 0 or one.uid < rules.min_uid else None


def _decide_by_identity(one: Directory, rules: Rules) -> Optional[Decision]:
    """Return the decision about a directory that this cluster never reaps, whatever jobs live; None for any other."""
    settled = _decide_by_owner(one, rules)
    if settled or one.identity is None:
        return settled
    cluster, job_id, run, uid = one.identity
    if not cluster:
        return Decision(one, REPORT, "unreadable")  # a crash tore the id, or the id is forged: no sweep will ever reap this
    if cluster != rules.cluster:
        return Decision(one, KEEP, "other_cluster")
    same = (job_id, uid) == (one.job_id, one.uid) and (one.run is None or run == one.run)
    return None if same else Decision(one, KEEP, "foreign")


def _decide_by_use(one: Directory, rules: Rules, least: float) -> Optional[Decision]:
    """Return the decision to keep a directory that is kept by request, younger than `least` seconds, or in use; else None."""
    if one.now is not None and one.now < _keep_until(one, rules):
        return Decision(one, KEEP, "user_keep" if one.kept else "job_failed")
    if one.now is None or one.now - one.sign < least:
        return Decision(one, KEEP, "young")
    return Decision(one, KEEP, "in_use") if one.pids else None


def _keep_until(one: Directory, rules: Rules) -> float:
    """Return until when the directory is kept. A user can forge the record: at most keep_max after the last sign of life."""
    longest = one.sign + rules.keep_max
    if one.keep_until is not None:
        return min(one.keep_until, longest)
    return longest if one.kept else 0.0
