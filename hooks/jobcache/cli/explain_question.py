"""The job that `explain` is asked about: by its id as Slurm prints it, by a path, or the newest one."""

import contextlib
import os
import pwd
from dataclasses import dataclass, replace
from typing import Optional

import click

from jobcache.cache import default_cache, entry_names, fields, reasons
from jobcache.cli.common import load, plain
from jobcache.cli.event_sources import open_sources
from jobcache.config.settings import CONFIG, LIB, Settings, slurm_client
from jobcache.diagnostics import histories, path_meaning, timeline
from jobcache.diagnostics.explain_facts import SiteFacts
from jobcache.runner import own_config
from jobcache.sweep import scanning
from jobcache.sweep.plan import has_no_job
from jobcache.system import event_log
from jobcache.system.live_jobs import Unknown


@dataclass(frozen=True)
class Target:
    """Which job to explain: a raw id; or a task of an array, (array job id, task id). A part of a het job has its leader's id."""

    job_id: Optional[int] = None
    array: Optional[tuple[int, int]] = None


@dataclass(frozen=True)
class Question:
    """A job to explain. uid: of its user, None if unknown. lead: which path was asked about, and what it is."""

    job_id: int
    uid: Optional[int]
    lead: str = ""


class Answered(Exception):  # noqa: N818 - no error
    """The question is answered without a job. answer, advice: as of an Explanation. status: exit status."""

    def __init__(self, answer: str, advice: str, status: int = 0) -> None:
        super().__init__(answer)
        self.answer = answer
        self.advice = advice
        self.status = status


def settings_of(config_file: str, hooks: Optional[str]) -> tuple[Settings, str]:
    """Return the settings and their directory, as `load`; to a user who can read no configuration, the defaults."""
    try:
        return load(config_file, hooks)
    except click.ClickException as error:
        if os.geteuid() == 0 or hooks or config_file != CONFIG:
            raise
        click.echo(f"the site's configuration cannot be used: {error.format_message()}", err=True)
        return own_config.own_settings("", None), LIB


def is_configured(site: Settings) -> bool:
    """Return whether these are settings of the site, and not the defaults of `jobcache run`."""
    return site.current != [own_config.default_path()]


def about_target(
    target: Optional[Target], site: Settings, uid: Optional[int], files: tuple[str, ...], errors: list[str]
) -> Question:
    """Return the job that `target` is, None for the newest job. files: as of open_sources. Raise Answered."""
    if target is None:
        return newest_job(site, uid, errors)
    if target.array:
        return about_task(site, target.array, uid, files, errors)
    return Question(target.job_id or 0, uid)


def about_path(path: str, site: Settings, uid: Optional[int]) -> tuple[Settings, Question]:
    """Return the job whose cache a path lies in, and the settings with which to look for it. Raise Answered."""
    entry = path_meaning.entry_of(path, site.templates, site.cluster)
    reads_beside = os.geteuid() != 0 and (entry is None or entry.kind == entry_names.RUN)
    near = histories.beside(path) if reads_beside else histories.Beside()
    if entry is None and near.path:
        site, entry = _entry_beside(site, near)
    if entry is None:
        raise _elsewhere(path, site)
    lead = f"{plain(path)} lies in {plain(entry.describe())}."
    if entry.kind == entry_names.RUN:
        last = near.events[-1:]
        text = f"{lead} It ends with its command." + "".join(f" {one['ts']}: {timeline.text(one, _asking())}." for one in last)
        raise Answered(text, "`jobcache list` shows whether it exists")
    try:
        owner = fields.natural(entry.user)
        owner = pwd.getpwnam(entry.user).pw_uid if owner is None and entry.user else owner
    except KeyError:
        owner = None
    if os.geteuid() != 0 and owner not in (None, uid):
        advice = f"ask the cluster's admins: jobcache explain --path {plain(path)}"
        raise Answered(f"{lead} It belongs to {plain(entry.user)}.", advice)
    return site, Question(entry.number, owner if uid is None else uid, lead)


def _entry_beside(site: Settings, near: histories.Beside) -> tuple[Settings, Optional[path_meaning.Entry]]:
    """Return the entry that the own history or an id names, and settings that find it.

    Either the path has another spelling than the template, as behind a symlink, or this host has no configuration.
    """
    for event in near.events[-1:]:
        entry = path_meaning.entry_of(event.get("path", ""), site.templates, site.cluster)
        if entry:
            return site, entry
    job_ids = [event["job_id"] for event in near.events if "job_id" in event]
    job_ids += [near.identity[1]] if near.identity else []
    for job_id in job_ids[-1:]:
        cluster = near.identity[0] if near.identity else near.events[-1].get("cluster", "")
        for real in [near.path, *(event.get("path", "") for event in near.events[-1:])]:
            template = path_meaning.guessed_template(real, job_id, (pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid())))
            if template:
                site = own_config.own_settings("", template.text)
                site.cluster = cluster or site.cluster
                break
        entry = path_meaning.entry_of(near.path, site.templates, site.cluster)
        return site, entry or path_meaning.Entry(entry_names.CACHE, near.path, job_id, "")
    return site, None


def _elsewhere(path: str, site: Settings) -> Answered:
    """Return the answer about a path that lies in no cache of a job."""
    lead = f"{plain(path)} lies in no private cache"
    for text in filter(None, (site.store_user, site.store_site)):
        if path_meaning.is_in_store(path, text, site.cluster):
            answer = f"{lead}, but in a store. `jobcache store prune` deletes only builds that no new cache links."
            return Answered(answer, "`jobcache store list` shows its builds")
    with contextlib.suppress(reasons.Refused):
        own = default_cache.path({name: text for name, text in os.environ.items() if name != "HF_DATASETS_CACHE"})
        if f"{path}/".startswith(f"{own}/") or "/huggingface/datasets/" in path:
            answer = f"{lead}, but in a user's own cache, which jobs without a private cache use. jobcache deletes nothing there."
            return Answered(answer, "did another job or a script delete it? A private cache links to its builds")
    reason = "by the configuration" if is_configured(site) else "that is known here: this host has no configuration of the site"
    return Answered(f"{lead} {reason}.", "jobcache explain JOBID, on a node of the job", 1)


def newest_job(site: Settings, uid: Optional[int], errors: list[str]) -> Question:
    """Return the newest job of a user by their history, else by their caches. Raise Answered."""
    if uid is None:
        raise click.UsageError("root has no jobs: name a JOBID, a --user, or a --path")
    newest = max(histories.read(site, uid, histories.Wanted(), errors).events, key=histories.novelty, default=None)
    if newest is not None:
        return Question(newest["job_id"], uid)
    found = []
    for local in (False, True):
        found += list(scanning.list_all(site, scanning.Options(user=uid, local=local, dry=True), errors))
    job_ids = [one.job_id for one in found if not has_no_job(one)]
    if not job_ids:
        hint = "" if is_configured(site) else "; or name the path in the error message: jobcache explain --path PATH"
        advice = f"jobcache explain JOBID, of `squeue --me` or `sacct`{hint}"
        raise Answered("This host has no history and no cache of a job.", advice, 1)
    return Question(max(job_ids), uid)


def of_leader(question: Question, leader: int, by: str = "") -> Question:
    """Return the question about the het job of which the job is a part. by: who reports that, "" for Slurm and the log."""
    text = f"Job {question.job_id} is a part of the het job {leader}{', according to ' if by else ''}{by}."
    return replace(question, job_id=leader, lead="\n".join(filter(None, (question.lead, text))))


def leader_by_events(events: list[event_log.Event], job_id: int) -> tuple[int, str]:
    """Return the leader of the het job of which a job is a part, and who else than root can have written that, or ""; 0: unknown.

    A job with events of its own, such as a leader, is no part.
    """
    if any(event.get("job_id") == job_id for event in events):
        return 0, ""
    naming = [event for event in events if event.get("job_id") and job_id in event.get("het_job_ids", ())]
    by_trust = (event_log.LOG, event_log.HISTORY, event_log.SYSLOG)
    best = min(naming, key=lambda event: by_trust.index(event["source"]), default=None)
    return (best["job_id"], timeline.doubt(best, _asking())) if best else (0, "")


def _asking() -> SiteFacts:
    return SiteFacts(for_root=os.geteuid() == 0)


def about_task(site: Settings, array: tuple[int, int], uid: Optional[int], files: tuple[str, ...], errors: list[str]) -> Question:
    """Return the job that is a task of an array: by Slurm, else by the log, else by users' histories. Raise Answered."""
    try:
        return Question(slurm_client(site.tree).raw_id(*array), uid)
    except Unknown as error:
        unknown = str(error)
    name = f"{array[0]}_{array[1]}"
    # A job that a task has submitted can have inherited the task's variables. It has a larger id.
    wanted = histories.Wanted(array=array)
    with open_sources(site, files) as sources:
        logged = [event for event in event_log.read(sources, event_log.Tally()) if wanted.fits(event)]
    in_log = [event for event in logged if event["source"] == event_log.LOG]
    for found in (in_log, histories.read(site, uid, wanted, errors).events, logged):
        with_id = [event for event in found if "job_id" in event]
        if with_id:
            first = min(with_id, key=lambda event: int(event["job_id"]))
            by = timeline.doubt(first, _asking())
            return Question(first["job_id"], uid, f"{name} is job {first['job_id']}, according to {plain(by)}." if by else "")
    advice = f"`sacct -j {name} -o JobIDRaw`, once it answers"
    raise Answered(f"The raw id of job {name} is unknown: {plain(unknown)}", advice, 1)
