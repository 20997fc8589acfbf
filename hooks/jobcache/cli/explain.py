"""The command `explain`: find the job, read its events and its user's history, look it up, print the explanation."""

import json
import os
import pwd
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Optional

import click

from jobcache.cache import timestamps
from jobcache.cli import common, explain_question
from jobcache.cli.common import parse_time, plain, wanted_user
from jobcache.cli.event_sources import open_sources, print_damage, progress, unreadable_log
from jobcache.config.settings import OFF, Settings
from jobcache.diagnostics import explain, histories, job_lookup
from jobcache.diagnostics.explain_facts import Explanation, SiteFacts, SlurmJob
from jobcache.system import event_log, node_names

_MOST_SYSLOG_LINES = 10_000  # about one job: a node writes a few, and a job can have thousands of nodes
_MOST_CLUSTERS = 10_000


def explain_command(
    config_file: str,
    hooks: Optional[str],
    target: Optional[explain_question.Target],
    path: Optional[str],
    user: Optional[str],
    files: tuple[str, ...],
    since: Optional[str],
    node: Optional[str],
    as_json: bool,
) -> int:
    """Print the explanation of a job; return the exit status: 1 if the job is unknown. target: None for the newest job."""
    site, lib = explain_question.settings_of(config_file, hooks)
    uid = wanted_user(user)
    errors: list[str] = []
    try:
        if path:
            site, question = explain_question.about_path(_absolute(path), site, uid)
        else:
            question = explain_question.about_target(target, site, uid, files, errors)
    except explain_question.Answered as answered:
        if as_json:
            click.echo(json.dumps({"answer": answered.answer, "advice": answered.advice}, indent=1))
        else:
            _print_answer(answered.answer, answered.advice)
        return answered.status
    node = node or node_names.host_name()
    search = _Search(site, files, parse_time(since, time.time(), "--since") if since else 0.0, errors)
    slurm = job_lookup.slurm_job(site, question.job_id)
    if slurm.leader:
        question = explain_question.of_leader(question, slurm.leader)
        slurm = job_lookup.slurm_job(site, slurm.leader)
    evidence = search.evidence(question, slurm)
    leader, by = (0, "") if slurm.state else explain_question.leader_by_events(evidence.events, question.job_id)
    if leader:
        question = explain_question.of_leader(question, leader, plain(by))
        slurm = job_lookup.slurm_job(site, leader)
        evidence = evidence.joined(search.evidence(question, slurm))
    job_id = question.job_id
    events = [event for event in evidence.events if event["job_id"] == job_id]
    directories = job_lookup.job_directories(site, job_id, evidence.uid, node, errors)
    _report_owners([event for event in events if event["source"] == event_log.HISTORY])
    paths = evidence.paths
    off_file = f"{lib}/{OFF}" if os.path.lexists(f"{lib}/{OFF}") else ""
    facts = SiteFacts(
        site.hash, site.tree["mode"],
        min(filter(None, ("" if events else _first_event(paths), evidence.first)), default=""),
        paths, off_file,
        unreadable_log="" if files else unreadable_log(site),
        for_root=os.geteuid() == 0,
        configured=explain_question.is_configured(site),
    )  # fmt: skip
    explanation = explain.explain(job_id, events, directories, slurm, facts, "; ".join(dict.fromkeys(errors)))
    explanation = replace(explanation, lead=question.lead)
    if as_json:
        click.echo(json.dumps(asdict(explanation), indent=1))
    else:
        _print(explanation)
    print_damage(search.tally)
    return 0 if explanation.known else 1


def _absolute(path: str) -> str:
    """Return the absolute path. The current directory can be gone, as in a cache that was reaped; the shell has its name."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        return os.path.normpath(os.path.join(os.environ.get("PWD") or "/", path))


@dataclass(frozen=True)
class _Evidence:
    """What was read about a job. uid: of its user, None if unknown. paths: the files that were read.

    events: those of event_log.is_about that have a job id. first: the time of the user's oldest line in a history, or "".
    """

    events: list[event_log.Event]
    uid: Optional[int]
    paths: tuple[str, ...]
    first: str

    def joined(self, more: "_Evidence") -> "_Evidence":
        """Return `more` with the events of both: standard input can be read only once."""
        return replace(more, events=[*self.events, *more.events])


class _Search:
    """Searches the logs and the histories for a job. files, begin: as of open_sources. errors: takes messages."""

    def __init__(self, site: Settings, files: tuple[str, ...], begin: float, errors: list[str]) -> None:
        self.tally = event_log.Tally()
        self._site, self._files, self._begin, self._errors = site, files, begin, errors

    def evidence(self, question: explain_question.Question, slurm: SlurmJob) -> _Evidence:
        """Return what the logs and the histories have about a job."""
        site, job_id = self._site, question.job_id
        stamp = timestamps.millisecond(self._begin) if self._begin else ""
        with open_sources(site, self._files, self._begin) as sources, progress(sources) as moved:
            read = event_log.read(sources, self.tally, job_id, stamp, moved=moved)
            events = list(_limit_syslog(_of_cluster(read, site.cluster)))
        uid = _uid_of_job(events, slurm) if question.uid is None else question.uid
        own = histories.read(site, uid, histories.Wanted(job_id), self._errors)
        events = [event for event in [*events, *_of_cluster(own.events, site.cluster)] if "job_id" in event]
        paths = tuple(source for source in sources if isinstance(source, str))
        return _Evidence(events, uid, paths, own.first if uid is not None else "")


def _report_owners(events: list[event_log.Event]) -> None:
    """Print to stderr if several users' histories mention the job: any user can write any job's id."""
    names = sorted({event["user"] for event in events})
    if len(names) > 1:
        click.echo(f"the histories of {', '.join(map(plain, names[:5]))} mention this job: select one with --user", err=True)


def _of_cluster(events: Iterable[event_log.Event], cluster: str) -> Iterator[event_log.Event]:
    """Yield the events of this cluster. Several clusters can log to one place, and each has a job with this id."""
    others: dict[str, int] = {}
    for event in events:
        name = event.get("cluster", "")
        if name in ("", cluster) or not cluster or cluster.startswith("@"):
            yield event
        elif len(others) < _MOST_CLUSTERS:
            others[name] = others.get(name, 0) + 1
    for name, count in sorted(others.items())[:3]:
        click.echo(f"skipped {count} events of the job with this id in cluster {plain(name)}; this is {cluster}", err=True)


def _limit_syslog(events: Iterable[event_log.Event]) -> Iterator[event_log.Event]:
    """Yield all events of the log, and a limited number from system logs, which any user can fill."""
    doubtful = 0
    for event in events:
        doubtful += event["source"] == event_log.SYSLOG
        if event["source"] != event_log.SYSLOG or doubtful <= _MOST_SYSLOG_LINES:
            yield event
    if doubtful > _MOST_SYSLOG_LINES:
        click.echo(f"skipped {doubtful - _MOST_SYSLOG_LINES} more lines of a system log about this job", err=True)


def _uid_of_job(events: list[event_log.Event], slurm: SlurmJob) -> Optional[int]:
    """Return the uid of the job's user by Slurm or by the log, None if unknown. Without root, return this user's uid."""
    if os.geteuid() != 0:
        return os.geteuid()
    try:
        return pwd.getpwnam(slurm.user).pw_uid
    except KeyError:
        uids = {event["uid"] for event in events if event["source"] == event_log.LOG and event.get("uid")}
    return uids.pop() if len(uids) == 1 else None


def _first_event(paths: tuple[str, ...]) -> str:
    """Return the time of the oldest event, "" without events. The events of one file are in the order of time."""
    first = (next((event["ts"] for event in event_log.read([path], event_log.Tally())), "") for path in paths)
    return min(filter(None, first), default="")


def _print(explanation: Explanation) -> None:
    from rich.text import Text

    console = common.console(piped=1000, soft_wrap=True)
    if explanation.lead:
        console.print(explanation.lead)
    slurm = explanation.slurm
    state = f"{slurm.state}, by {slurm.by}" if slurm.state else f"Slurm reports nothing: {plain(slurm.unknown)}"
    user = f"of {plain(explanation.user)}" if explanation.user else ""
    facts = [user, f"on {slurm.nodes}" if slurm.nodes else "", f"({state})"]
    console.print(Text(f"Job {explanation.job_id} {' '.join(fact for fact in facts if fact)}", style="bold"))
    styles = {"warning": "yellow", "error": "red", "debug": "dim"}
    for line in explanation.lines:
        at = line.ts[:19].replace("T", " ")
        console.print(Text(f"  {plain(at)}  {plain(line.node):<8} {plain(line.what)}", style=styles.get(line.level, "")))
    console.print()
    _print_answer(explanation.answer, explanation.advice)


def _print_answer(answer: str, advice: str) -> None:
    for part in answer.split("\n"):
        click.echo(plain(part))
    if advice:
        click.echo(f"→ {advice}")
