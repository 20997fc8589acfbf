"""What is to become of each directory that a sweep found: a pure function. Doubt means keep, with the reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Optional

from jobcache.cache import lease_lock
from jobcache.system.live_jobs import Listing

CACHE, NEW, TRASH, ASIDE = "cache", "new", "trash", "aside"  # kinds: at a cache's path; half made; renamed away; never to go
RUN = "run"  # a kind: at the path of a cache that `jobcache run` makes where there is no job
REAP, KEEP, REPORT = "reap", "keep", "report"

Identity = tuple[str, int, int, int]


@dataclass(frozen=True)
class Found:
    """A directory of ours by its name, as its owner saw it. Times are seconds since the epoch by the filesystem's own clock.

    run: None for what is not at a cache's path. gid: the group by which its owner looks. identity: (cluster, job_id, run,
    uid) as its id says, None where it has none, with an empty cluster where it cannot be read. sign: the last sign of life,
    the newest change of the directory, its id, its record and its leases. now: the filesystem's clock, None where it has
    not been read. keep_until: from the record. kept: the user said JOBCACHE=keep. joinable: its nodes/ is there. nodes:
    some that hold leases. bare: nothing is in it but what is ours. local: on a filesystem that is each node's own.
    running: its job has a step on this host. error: why it could not be looked at. pids: processes of this host that
    have it open. holder: of a cache without a job, what is known of its command, one of holder's words.
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
    pids: tuple[int, ...] = ()
    holder: str = ""


@dataclass(frozen=True)
class Rules:
    """What the site says. grace, confirm, keep_max: seconds. node: the one this is, for scratch that is its own."""

    cluster: str
    grace: float
    confirm: float
    keep_max: float
    min_uid: int = 1000
    node: str = ""
    reap_unrecorded: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do with one directory, and the closed-set reason."""

    found: Found
    action: str
    reason: str = field(default="")


def plan(found: Iterable[Found], listings: Sequence[Listing], rules: Rules) -> list[Decision]:
    """Return one decision for each directory, in their order.

    listings: whole listings of the live jobs, asked after the directories were found. Without two of them that are
    `confirm` apart, nothing is reaped.
    """
    confirmed = len(listings) >= 2 and listings[-1].at - listings[0].at >= rules.confirm
    return [_decide(one, listings, rules, confirmed) for one in found]


def is_candidate(one: Found, rules: Rules) -> bool:
    """Whether it depends on the live jobs what becomes of it: where nothing does, Slurm need not be asked."""
    return not has_no_job(one) and (one.kind == TRASH or not one.running) and _settled(one, rules) is None


def is_retired(one: Found) -> bool:
    """Whether this was renamed away by who had taken its nodes/, and so is no job's cache any more, a live job's neither.

    A job that is requeued again and again, or of scrontab's, has one id for as long as it is wanted.
    """
    return one.kind == TRASH and one.now is not None and not one.joinable


def has_no_job(one: Found) -> bool:
    """Whether this is of `jobcache run` where there was no job: Slurm cannot tell whether it is alive."""
    return one.kind == RUN or (one.kind != CACHE and one.identity is not None and one.identity[0].startswith("@"))


def _decide_without_job(one: Found, rules: Rules) -> Decision:
    """The same for what no job has: its holder tells. What is half made or renamed away needs none, but its time."""
    untouchable = _untouchable(one, rules)
    if untouchable:
        return untouchable
    if one.identity is None:
        return Decision(one, REPORT, "unrecorded")
    if one.identity[1] != one.job_id or one.identity[3] != one.uid or not one.identity[0].startswith("@"):
        return Decision(one, KEEP, "foreign")
    if one.kind == RUN and one.holder not in (lease_lock.GONE, lease_lock.RELEASED, lease_lock.SILENT):
        return Decision(one, KEEP, {lease_lock.ALIVE: "alive", lease_lock.ELSEWHERE: "other_host"}.get(one.holder, "unconfirmed"))
    least = max(rules.grace, lease_lock.SILENCE) if one.holder == lease_lock.SILENT or one.kind == NEW else rules.grace
    if one.now is not None and one.now < _keep_until(one, rules):
        return Decision(one, KEEP, "user_keep" if one.kept else "job_failed")
    if one.now is None or one.now - one.sign < least:
        return Decision(one, KEEP, "young")
    if one.pids:
        return Decision(one, KEEP, "in_use")
    return Decision(one, REAP, {NEW: "half_made", TRASH: "trash"}.get(one.kind, "orphan"))


def _decide(one: Found, listings: Sequence[Listing], rules: Rules, confirmed: bool) -> Decision:
    if has_no_job(one):
        return _decide_without_job(one, rules)
    settled = _settled(one, rules)
    if settled:
        return settled
    alive = one.running or any(listing.alive(one.job_id, one.uid) for listing in listings)
    if alive and not is_retired(one):
        return Decision(one, KEEP, "alive")
    if not confirmed:
        return Decision(one, KEEP, "unconfirmed")
    if one.now is not None and one.now < _keep_until(one, rules):
        return Decision(one, KEEP, "user_keep" if one.kept else "job_failed")
    if one.now is None or one.now - one.sign < rules.grace:
        return Decision(one, KEEP, "young")
    if one.pids:
        return Decision(one, KEEP, "in_use")
    if one.local and any(node != rules.node for node in one.nodes):
        return Decision(one, REPORT, "other_node")  # said to be this node's own, and is not
    if one.kind != CACHE:
        if one.identity is None and not one.bare:
            return Decision(one, REPORT, "unrecorded")  # of such a name, but nothing says that we have made it
        return Decision(one, REAP, "half_made" if one.kind == NEW else "trash")
    if one.identity is None and not rules.reap_unrecorded:
        return Decision(one, REPORT, "unrecorded")
    return Decision(one, REAP, "unrecorded" if one.identity is None else "orphan")


def _untouchable(one: Found, rules: Rules) -> Optional[Decision]:
    """What becomes of that which nobody reaps, whatever it is; None for all else."""
    if one.error:
        return Decision(one, REPORT, "unreadable")
    if one.kind == ASIDE:
        return Decision(one, REPORT, "aside")
    return Decision(one, KEEP, "min_uid") if one.uid == 0 or one.uid < rules.min_uid else None


def _settled(one: Found, rules: Rules) -> Optional[Decision]:
    """What becomes of that which is not ours to reap, whatever jobs there are; None for what may be."""
    untouchable = _untouchable(one, rules)
    if untouchable or one.identity is None:
        return untouchable
    cluster, job_id, run, uid = one.identity
    if not cluster:
        return Decision(one, REPORT, "unreadable")  # a crash tore its id, or it is forged: nobody will ever reap it
    if cluster != rules.cluster:
        return Decision(one, KEEP, "other_cluster")
    same = (job_id, uid) == (one.job_id, one.uid) and (one.run is None or run == one.run)
    return None if same else Decision(one, KEEP, "foreign")


def _keep_until(one: Found, rules: Rules) -> float:
    """Until when it is kept. The record is the user's to forge: never longer than keep_max after its last sign of life."""
    longest = one.sign + rules.keep_max
    if one.keep_until is not None:
        return min(one.keep_until, longest)
    return longest if one.kept else 0.0
