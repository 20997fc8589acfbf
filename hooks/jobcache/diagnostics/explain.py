"""The life of one job's cache as a timeline, and the answer to "where is it?": pure functions of what is known."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobcache.cache import timestamps
from jobcache.sweep.plan import Found
from jobcache.system.event_log import SYSLOG, Event, epoch, epoch_or_none
from jobcache.system.slurm import DEAD

# Each reason: what it means, and what to do about it, "" where nothing is to be done.
REASONS = {
    "rule": ("a rule of the site says that such jobs get none", ""),
    "user_off": ("the user said JOBCACHE=off", ""),
    "user_value": ("the user had set every variable that would have been exported, and the user's value is left alone", ""),
    "offline": (
        "the job said HF_HUB_OFFLINE or HF_DATASETS_OFFLINE, and lives from what its usual cache holds",
        "`offline: isolate` gives such jobs a cache too",
    ),
    "observe": ("the site only observes: the path is what it would have been", "`mode: on` in jobcache.yaml"),
    "min_uid": ("the user's uid is below min_uid", "`min_uid` in jobcache.yaml"),
    "unknown_job": ("slurmctld no longer knew the job when its Epilog ran", "the sweep reaps what is left"),
    "foreign": ("what stood at the path was another user's or another cluster's", "put {cluster} or {user} into `path`"),
    "unrecorded": ("a directory of that name without our record was there: kept by hand, or made by a script", "look at it"),
    "older_than_job": ("a directory without our record was there, and last touched before the job began", "look at it"),
    "busy": ("an earlier cache at the path was still being reaped", ""),
    "not_directory": ("a file, or a symlink that is not root's, was in the path", "namei -l PATH"),
    "no_space": ("the disk was full, or the user's quota", "quota, or `jobcache list --sort bytes`"),
    "no_access": ("permission denied", "can this user write there? `jobcache check --user NAME`"),
    "read_only": ("the filesystem was read-only", "mend the filesystem"),
    "io_error": ("the filesystem said an error", "mend the filesystem"),
    "bad_name": ("the user's name cannot be part of a path", ""),
    "lease_live": ("this was the late Epilog of a run that had been lost: the cache is the next run's", ""),
    "lease_unreadable": ("the node's lease was damaged, as by a full disk", "the sweep reaps it"),
    "user_keep": ("the user said JOBCACHE=keep", ""),
    "job_failed": ("the job ended non-zero, and the site keeps such caches for a while", ""),
    "budget": ("it held more than the Epilog has time to delete; the sweep deletes the rest", ""),
    "left": ("some entries could not be deleted", "look at the trash"),
    "mount": ("a filesystem is mounted in it, and was left alone", "unmount it"),
    "changed": ("the directory was exchanged while we looked", "a user who tries things?"),
    "orphan": ("its job was dead in two listings of Slurm, and it had long given no sign of life", ""),
    "half_made": ("its making had been killed", ""),
    "trash": ("it was trash that an Epilog had no time for", ""),
    "in_use": ("processes of this host have it open, though its job is dead", "are these stray?"),
    "unreadable": ("its owner closed it, or its id is torn", "look at it"),
    "aside": ("it was moved by mistake while its owner exchanged directories; nothing deletes it", "its owner may"),
    "other_node": ("it lies on node-local scratch, and another node has a lease in it", "sweep that with --node NAME"),
    "writable": ("others than its owner may write in the store", "chmod go-w"),
    "other_filesystem": ("the store is on another filesystem than the cache", "`store.user` on the filesystem of `path`"),
    "damaged": ("a build was not whole", "jobcache store verify"),
    "superseded": ("the store has a newer build of the same", ""),
    "age": ("it had not been used for store.max_age", ""),
    "size": ("the store was larger than store.max_size, and others had been used since", ""),
    "retired": ("it was linked into no new cache any more, and every job of that time has ended", ""),
    "stuck": ("four processes hang on that filesystem of the node already", "mend the filesystem"),
    "deadline": ("scratch, or Python, did not answer within epilog.deadline", "mend the filesystem"),
    "child_died": ("the process that works as the user was killed", "memory? look at the node's log"),
    "internal": ("a fault of ours", "report it"),
    "no_job": ("Slurm's variables made no sense", ""),
    "no_python": ("the hook's Python is not there", "jobcache apply"),
    "python": ("the hook's Python failed", "jobcache check"),
    "settings": ("the compiled settings could not be used", "jobcache apply"),
}  # fmt: skip

_ENDED = ("cache.reaped", "cache.orphan_reaped")


@dataclass(frozen=True)
class Slurms:
    """What Slurm says of the job now: state, "" where it says nothing; why it does not. times: RFC 3339, or ""."""

    state: str = ""
    user: str = ""
    nodes: str = ""
    partition: str = ""
    account: str = ""
    start: str = ""
    end: str = ""
    unknown: str = ""
    by: str = "squeue"


@dataclass(frozen=True)
class Site:
    """What is in force now. hash: of the policy. mode. first: moment of the oldest event that was read, "" for none.

    off: path of the file that stops all hooks, "" where there is none. closed: the log that may not be read, or "".
    """

    hash: str = ""
    mode: str = "on"
    first: str = ""
    sources: tuple[str, ...] = ()
    off: str = ""
    closed: str = ""


@dataclass(frozen=True)
class Remains:
    """A directory of the job that still exists. record: what its job.json says, which its user can forge."""

    found: Found
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One line of the timeline."""

    ts: str
    node: str
    what: str
    level: str = "info"


@dataclass(frozen=True)
class Story:
    """What there is to tell. answer: where the cache is, or why there is none. advice: what to do, or ""."""

    job_id: int
    user: str
    lines: list[Line]
    answer: str
    advice: str = ""
    known: bool = True
    slurm: Slurms = field(default_factory=Slurms)


def tell(job_id: int, events: Iterable[Event], there: Sequence[Remains], slurm: Slurms, site: Site, trouble: str = "") -> Story:
    """Return the story of a job. there: its directories that still exist. trouble: why it is not known which do."""
    told = unique(events)
    users = [(event["source"] == SYSLOG, event["user"]) for event in told if event.get("user")]
    user = next((name for doubtful, name in users if not doubtful), slurm.user or next((name for _, name in users), ""))
    lines = [Line(event["ts"], event.get("node", ""), words(event, site), event.get("level", "info")) for event in told]
    lines += [line for one in there for line in _recorded(one, site)]
    answer, advice = _answer(job_id, told, there, slurm, site)
    answer = answer.replace("\n", "\\n")  # a lease's name, or a path, can hold one, and begins no line of ours
    if site.closed:
        answer = f"{answer}\nThe log with its events, {site.closed}, is not yours to read."
        advice = advice if told or there else f"ask who runs the cluster for `jobcache explain {job_id}`"
    if trouble:
        answer = f"{answer}\nWhat is on scratch now is not known: {trouble}"
    return Story(
        job_id,
        user,
        sorted(lines, key=lambda line: line.ts.rstrip("Z")),
        answer,
        advice,
        bool(told or there or slurm.state),
        slurm,
    )


def _recorded(one: Remains, site: Site) -> Iterator[Line]:
    """The record's own word of the cache's making, and what it was seeded with."""
    made, node = one.record.get("created_at"), one.record.get("node")
    if not isinstance(made, str) or epoch_or_none(made) is None:
        return
    seeded = one.record.get("seeded")
    how = f", seeded with {seeded}" if seeded else ""
    text = f"made, as its record says{_policy(one.record, site)}{how}: {one.found.path}"
    yield Line(made, node if isinstance(node, str) else "", text)


def unique(events: Iterable[Event]) -> list[Event]:
    """Return the events in the order of time, one that came from the log and from a system log once."""
    seen: dict[tuple[object, ...], Event] = {}
    for event in events:
        key = tuple(event.get(name) for name in ("ts", "event", "node", "run", "path", "outcome", "reason"))
        if key not in seen or seen[key]["source"] == SYSLOG:
            seen[key] = event
    return sorted(seen.values(), key=lambda event: str(event["ts"]))


def words(event: Event, site: Site) -> str:
    """Return what an event says, as a sentence."""
    kind, outcome, reason = event["event"], event.get("outcome", ""), event.get("reason", "")
    path = event.get("path", "its cache")
    why = REASONS[reason][0] if reason in REASONS else reason
    size = f": {event['bytes']:,} bytes in {event.get('files', 0):,} files" if "bytes" in event else ""
    if kind == "cache.created":
        again = "its script had removed the cache and made it anew; recorded again" if outcome == "mended" else "made"
        text = f"{again}: {path}{_policy(event, site)}"
    elif kind == "cache.skipped":
        text = f"no cache: {why}"
    elif kind == "cache.released":
        text = "this node is done with it, others are not"
    elif kind == "cache.reaped":
        text = f"{'reaped' if outcome == 'reaped' else 'renamed away, not all of it deleted'} by the Epilog{size}"
        text += (f" ({why})" if reason else "") + _policy(event, site, ", made")
    elif kind == "cache.orphan_reaped":
        text = f"{'reaped' if outcome == 'reaped' else 'partly deleted'} by the sweep{size}: {why}"
    elif kind == "cache.kept":
        until = f", until {event['keep_until']}" if "keep_until" in event else ""
        text = f"kept: {why}{until}"
    elif kind == "hook.failed":
        text = f"the {event.get('hook', 'hook')} failed: {why}"
    else:
        text = " ".join(str(part) for part in (kind, outcome, why) if part)
    extra = [f"run {event['run']}"] if event.get("run") else []
    extra += [event["error"]] if "error" in event else []
    extra += ["from a system log, which users can write"] if event["source"] == SYSLOG else []
    return text + (f" [{'; '.join(extra)}]" if extra else "")


def _policy(event: Event, site: Site, made: str = "") -> str:
    if "policy" not in event:
        return ""
    return (
        f"{made} by policy {event['policy']} ({'in force now' if event['policy'] == site.hash else 'not the one in force now'})"
    )


def _answer(job_id: int, told: list[Event], there: Sequence[Remains], slurm: Slurms, site: Site) -> tuple[str, str]:
    if there:
        return _still_there(told, there, slurm)
    ended = [event for event in told if event["event"] in _ENDED]
    if ended:
        return _gone(ended, told, slurm)
    skipped = [event for event in told if event["event"] == "cache.skipped"]
    if skipped:
        reason = skipped[-1].get("reason", "")
        means, mend = REASONS.get(reason, (reason, ""))
        return f"It had no cache of its own: {means}. Its files are where its own settings put them.", mend
    if told:
        return "No event says what became of it, and it is not on scratch.", "Was it removed by hand, or by the job's script?"
    return _nothing(job_id, slurm, site)


def _still_there(told: list[Event], there: Sequence[Remains], slurm: Slurms) -> tuple[str, str]:
    one = there[-1].found
    held = "used by" if is_alive(slurm.state) else "with leases of"
    holders = f", {held} {', '.join(one.nodes)}" if one.nodes else ""
    where = f"It is there: {', '.join(remains.found.path for remains in there)}{holders}."
    if one.kind != "cache":
        return f"{where} It is no cache any more: renamed away, or never finished.", "jobcache sweep --dry-run"
    if one.identity is None:
        return f"{where} It has no record of ours: kept by hand, or made by a script.", "look at it"
    kept = next((event for event in reversed(told) if event["event"] == "cache.kept"), None)
    if not slurm.state:
        return f"{where} Slurm says nothing of its job: {slurm.unknown}.", "jobcache sweep --dry-run"
    if is_alive(slurm.state):
        return f"{where} Its job is {slurm.state}.", ""
    if not kept and one.keep_until is not None and one.now is not None and one.now < one.keep_until:
        return f"{where} Its job is over, and it is kept until {timestamps.second(one.keep_until)}, as its record says.", ""
    if kept:
        means, mend = REASONS.get(kept.get("reason", ""), (kept.get("reason", ""), ""))
        said = "; so a system log says, which users can write" if kept["source"] == SYSLOG else ""
        return f"{where} Its job is over, and it is kept: {means}{said}.", mend
    return (
        f"{where} Its job is over: an orphan. A sweep reaps it, when it has given no sign of life for `sweep.grace`.",
        "jobcache sweep --dry-run",
    )


def _gone(ended: list[Event], told: list[Event], slurm: Slurms) -> tuple[str, str]:
    """The answer to "Why is the cached training file missing?"."""
    last = ([event for event in ended if event["source"] != SYSLOG] or ended)[-1]
    who = f"the Epilog on {last.get('node', 'its node')}" if last["event"] == "cache.reaped" else "the sweep"
    answer = f"It is gone: reaped by {who} at {last['ts']}"
    if "bytes" in last:
        answer += f", with {last['bytes']:,} bytes in {last.get('files', 0):,} files"
    answer += "; so a system log says, which users can write." if last["source"] == SYSLOG else "."
    if is_alive(slurm.state) and slurm.start and last["ts"] > slurm.start and not _made_after(told, last):
        means = "Its job is still alive, so this should not have happened"
        return f"{answer} {means}.", "report it, with these events"
    if last["event"] == "cache.orphan_reaped":
        means, mend = REASONS.get(last.get("reason", ""), ("", ""))
        return f"{answer} It was left over: {means}.", mend
    again = ""
    if is_alive(slurm.state):
        again = " The job was requeued: its next run begins with a cache of its own, at another path."
    life = _lifetime(last)
    answer += f" A job's cache goes with its job{life}: what has to outlive it belongs elsewhere.{again}"
    return answer, "JOBCACHE=keep keeps it for a while; a path of the user's own in HF_DATASETS_CACHE, for good"


def _made_after(told: list[Event], last: Event) -> bool:
    return any(event["event"] == "cache.created" and event["ts"] > last["ts"] for event in told)


def _lifetime(last: Event) -> str:
    try:
        seconds = epoch(last["ts"]) - epoch(last["created_at"])
    except (KeyError, ValueError):
        return ""
    return f" (this one lived {duration(seconds)})"


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    left = max(0, round(seconds))
    said: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or said or unit == "s":
            said.append(f"{count} {unit}")
    return " ".join(said[:2])


def _nothing(job_id: int, slurm: Slurms, site: Site) -> tuple[str, str]:
    """No event and no directory: why there may be none."""
    if site.mode == "off":
        return "The site's mode is off: no job gets a cache.", "`mode: on` in jobcache.yaml"
    if slurm.state and slurm.end and site.first and slurm.end < site.first:
        return f"The job ended at {slurm.end}; the events that were read begin at {site.first}.", "name older files of the log"
    if slurm.state.startswith("PENDING"):
        return "The job has not begun: its cache is made when its first task starts.", ""
    if is_alive(slurm.state):
        return (
            "The job runs, and has no cache: its first task may not have begun, or it got none. Why, the TaskProlog says to "
            "the system log of the node.",
            f"jobcache explain {job_id}, on {slurm.nodes or 'its node'}",
        )
    if slurm.state and site.off:
        return f"The job is over, and no event tells of a cache of it. {site.off} is there: no hook does anything.", (
            f"rm {site.off}, when they may again"
        )
    if slurm.state:
        return "The job is over, and no event that was read tells of a cache of it.", (
            f"each node has its own log: jobcache explain {job_id}, and jobcache check, on {slurm.nodes or 'its nodes'}"
        )
    return (
        f"Nothing is known of this job: no event in {', '.join(site.sources) or 'any log'}, and nothing from Slurm.",
        f"is it the raw job id? `sacct -j {job_id} -o JobIDRaw`. Each node has its own log: run this there",
    )


def is_alive(state: str) -> bool:
    """Return whether a job in this state, as squeue or sacct print it, has not ended.

    An unknown state counts as alive: the sweep, too, reaps nothing then.
    """
    return state != "" and state.split()[0] not in DEAD
