"""Answer "where is the cache of this job?" from facts: its events, its directories, and its state in Slurm."""

from collections.abc import Iterable, Sequence
from typing import Optional

from jobcache.cache import timestamps
from jobcache.diagnostics.explain_facts import Explanation, JobDirectory, SiteFacts, SlurmJob
from jobcache.diagnostics.reason_texts import meaning, remedy
from jobcache.diagnostics.timeline import doubt, timeline, unique
from jobcache.diagnostics.units import duration
from jobcache.system.event_log import HISTORY, LOG, Event, epoch, epoch_or_none
from jobcache.system.live_jobs import DEAD

Answer = tuple[str, str]  # the answer, and advice or ""

_END_EVENTS = ("cache.reaped", "cache.orphan_reaped")
_DRY_RUN = "jobcache sweep --dry-run"
_KEEP = "JOBCACHE=keep keeps a cache for a while; a path of your own in HF_DATASETS_CACHE keeps the files for good"
_WITH_PATH = 'jobcache explain --path PATH, with the path that the error message names, or with "$JOBCACHE_DIR" of the job'


def explain(
    job_id: int,
    events: Iterable[Event],
    directories: Sequence[JobDirectory],
    slurm: SlurmJob,
    site: SiteFacts,
    scratch_error: str = "",
) -> Explanation:
    """Return the explanation of a job. directories: those that exist. scratch_error: why that list may be incomplete, or ""."""
    known = unique(events)
    answer, advice = _answer(job_id, known, directories, slurm, site)
    answer = answer.replace("\n", "\\n")  # a user's text, such as the name of a lease, must not begin a line
    if not site.configured and not known and not directories:
        answer = f"{answer}\nThis host has no configuration of the site, so no directory on scratch was searched."
        advice = _WITH_PATH
    elif site.unreadable_log and not any(event["source"] == HISTORY for event in known):
        answer = f"{answer}\nThis user cannot read the event log, {site.unreadable_log}."
        if not known and not directories:
            advice = f"ask the cluster's admins for the output of `jobcache explain {job_id}`"
    if scratch_error:
        answer = f"{answer}\nThe content of scratch is unknown: {scratch_error}"
    return Explanation(
        job_id,
        _user(known, slurm),
        timeline(known, directories, site),
        answer,
        advice,
        bool(known or directories or slurm.state),
        slurm,
    )


def _user(events: Sequence[Event], slurm: SlurmJob) -> str:
    """Return the job's user by the log, else by Slurm, else by what users can write."""
    logged = next((event["user"] for event in events if event.get("user") and event["source"] == LOG), "")
    return logged or slurm.user or next((event["user"] for event in events if event.get("user")), "")


def is_alive(state: str) -> bool:
    """Return whether a job in this state, as squeue or sacct print it, has not ended.

    An unknown state counts as alive: the sweep, too, reaps nothing then.
    """
    return state != "" and state.split()[0] not in DEAD


def _answer(job_id: int, events: list[Event], directories: Sequence[JobDirectory], slurm: SlurmJob, site: SiteFacts) -> Answer:
    if directories:
        return _exists(events, directories, slurm, site)
    for known in ([event for event in events if event["source"] == LOG], events):  # the log counts before all else
        ended = [event for event in known if event["event"] in _END_EVENTS]
        if ended:
            return _reaped(ended[-1], events, slurm, site)
        skipped = [event for event in known if event["event"] == "cache.skipped"]
        if skipped:
            return _skipped(skipped[-1], site)
    if events:
        return "No event shows the end of the cache, and it is not on scratch.", "Did a user or the job's script delete it?"
    return _unmentioned(job_id, slurm, site)


def _note(event: Event, site: SiteFacts) -> str:
    """Return the end of a sentence that rests on an event which others than root can have written, else ""."""
    return f", according to {doubt(event, site)}" if doubt(event, site) else ""


def _skipped(event: Event, site: SiteFacts) -> Answer:
    reason = event.get("reason", "")
    text = f"The job had no private cache: {meaning(reason)}{_note(event, site)}. Its files are where its own settings put them."
    return text, remedy(reason)


# ------------------------------------------------------------------------------------------------------ a cache exists


def _exists(events: list[Event], directories: Sequence[JobDirectory], slurm: SlurmJob, site: SiteFacts) -> Answer:
    last = directories[-1].found
    alive = is_alive(slurm.state)
    leases = f", {'used by' if alive else 'with leases of'} {', '.join(last.nodes)}" if last.nodes else ""
    where = f"The cache exists: {', '.join(directory.found.path for directory in directories)}{leases}."
    if last.kind != "cache":
        return f"{where} It is not a cache any more: it is trash, or half-made.", _DRY_RUN
    if last.identity is None:
        return f"{where} It has no record: a user or a script created it.", "look at it"
    if not slurm.state:
        return f"{where} Slurm reports nothing about its job: {slurm.unknown}.", _DRY_RUN
    if alive:
        return f"{where} Its job is {slurm.state}.", ""
    all_kept = [event for event in events if event["event"] == "cache.kept"]
    kept = next(iter([event for event in all_kept if event["source"] == LOG][-1:] or all_kept[-1:]), None)
    if kept:
        reason = kept.get("reason", "")
        until = kept.get("keep_until", "")
        how = f"kept until {until}" if epoch_or_none(until) is not None else "kept"
        return f"{where} Its job is over, and the cache is {how}: {meaning(reason)}{_note(kept, site)}.", remedy(reason)
    if last.keep_until is not None and last.now is not None and last.now < last.keep_until:
        return f"{where} Its job is over. By its record, it is kept until {timestamps.second(last.keep_until)}.", ""
    return (
        f"{where} Its job is over, so it is an orphan. A sweep reaps it when it has shown no sign of life for `sweep.grace`.",
        _DRY_RUN,
    )


# ----------------------------------------------------------------------------------------------------- a cache is gone


def _reaped(last: Event, events: list[Event], slurm: SlurmJob, site: SiteFacts) -> Answer:
    """Return the answer for a cache that was reaped. last: the newest event about that."""
    by_run = last.get("by") == "run"
    reaper = f"{'`jobcache run`' if by_run else 'the Epilog'} on {last.get('node', 'its node')}"
    reaper = reaper if last["event"] == "cache.reaped" else "the sweep"
    answer = f"The cache is gone: {reaper} reaped it at {last['ts']}"
    if "bytes" in last:
        answer += f", with {last['bytes']:,} bytes in {last.get('files', 0):,} files"
    answer += f"{_note(last, site)}."
    alive = is_alive(slurm.state)
    if by_run:
        return f"{answer} It deletes a cache after the last command in it: keep results elsewhere.", _KEEP
    since = ""  # who reports that the job went on with another cache
    if alive and slurm.start and last["ts"] > slurm.start:
        later = _created_after(events, last)
        if later is None:
            return f"{answer} Its job is still alive, so this is a bug.", "report it, with these events"
        since = _note(later, site)
    if last["event"] == "cache.orphan_reaped":
        reason = last.get("reason", "")
        return f"{answer} No Epilog had reaped it: {meaning(reason)}.", remedy(reason)
    answer += f" A cache is deleted when its job ends{_lifetime(last)}: keep results elsewhere."
    if alive:
        answer += f" The job was requeued{since}: its next run begins with a new cache, at another path."
    return answer, _KEEP


def _created_after(events: list[Event], last: Event) -> Optional[Event]:
    return next((event for event in events if event["event"] == "cache.created" and event["ts"] > last["ts"]), None)


def _lifetime(last: Event) -> str:
    try:
        seconds = epoch(last["ts"]) - epoch(last["created_at"])
    except (KeyError, ValueError):
        return ""
    return f" (this one existed for {duration(seconds)})"


# ------------------------------------------------------------------------------------------------- no cache was logged


def _unmentioned(job_id: int, slurm: SlurmJob, site: SiteFacts) -> Answer:
    """Return the answer for a job without events and directories."""
    if site.mode == "off":
        return "The site's mode is off: no job gets a cache.", "`mode: on` in jobcache.yaml"
    if slurm.state and slurm.end and site.first_event and slurm.end < site.first_event:
        text = f"The job ended at {slurm.end}; the events that were read begin at {site.first_event}."
        return text, "name older log files"
    if slurm.state.startswith("PENDING"):
        return "The job has not begun. Its cache is created when its first task starts.", ""
    if is_alive(slurm.state):
        text = (
            "The job runs and has no cache. Its first task may not have begun, or it gets no cache: then the TaskProlog writes "
            "the reason to the system log of the node."
        )
        return text, f"jobcache explain {job_id}, on {slurm.nodes or 'its node'}"
    if slurm.state and site.off_file:
        text = f"The job is over, and no event mentions a cache of it. {site.off_file} exists: the hooks do nothing."
        return text, f"rm {site.off_file}, to switch the hooks on again"
    if slurm.state:
        nodes = slurm.nodes or "its nodes"
        advice = f"each node has its own log: jobcache explain {job_id}, and jobcache check, on {nodes}"
        return "The job is over, and no event that was read mentions a cache of it.", advice
    text = f"Nothing is known about this job: no event in {', '.join(site.sources) or 'any log'}, and nothing from Slurm."
    return text, f"is it the raw job id? `sacct -j {job_id} -o JobIDRaw`. Each node has its own log: run this there"
