"""Entry point of the Epilog: one job has ended on this node. Release its lease there, and reap the cache with the last one.

The epilog hook runs it as root. A child that has become the job's user does all work on scratch, within a deadline. Every
outcome is one event. A failure is an event as well, and the sweep does what is left.
"""

import functools
import os
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobcache.cache import path_template
from jobcache.config import settings
from jobcache.system import as_user, children, events, stuck_processes
from jobcache.system.epilog_job import Job, JobError, from_epilog
from jobcache.system.epilog_places import Whereabouts
from jobcache.system.epilog_work import Work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from jobcache.system.epilog_work import Publish

    Emit = Callable[..., None]

UNUSABLE = 78  # exit status: the compiled settings cannot be used; the hook logs it
_MARGIN = 2.0  # seconds before the hook's deadline at which the wait for the children ends, to write the events


def main(argv: "list[str]") -> int:
    """Run for the job in the environment; return the exit status.

    argv: the directory of the compiled settings; the uptime, in seconds, at which the hook began.
    """
    began = time.monotonic()
    children.restore_signals()
    lib, uptime = argv[0], float(argv[1])
    try:
        site = settings.load(f"{lib}/{settings.FILE}")
    except settings.SettingsError:
        return UNUSABLE
    emit = functools.partial(events.Writer(site.log_file, site.log_socket, site.log_level).emit, cluster=site.cluster)
    try:
        job = from_epilog(dict(os.environ))
        reason = _skip_reason(job, site)
        if reason:
            level = "warning" if reason == "other_cluster" else "debug"
            emit("cache.skipped", level, job_id=job.job_id, uid=job.uid, node=job.node, outcome="skipped", reason=reason)
        else:
            end_job(job, site, emit, uptime, began + max(0.5, site.epilog_deadline - _MARGIN))
    except JobError as error:
        _emit_failure(emit, error.reason, str(error), level="warning")
    except Exception as error:  # noqa: BLE001 - the failure policy of this hook: log it, and leave the rest to the sweep
        _emit_failure(emit, "internal", f"{type(error).__name__}: {error}")
    return 0


def _skip_reason(job: Job, site: "settings.Settings") -> str:
    """Return why this job has no cache here, "" if it can have one. Hooks of one cluster can be wired into another one."""
    if os.environ.get("SLURM_CLUSTER_NAME", "") not in ("", site.cluster):
        return "other_cluster"
    return "unknown_job" if job.uid == 0 else "min_uid" if job.uid < site.min_uid else ""


def end_job(job: Job, site: "settings.Settings", emit: "Emit", uptime: float, until: float) -> None:
    """Release and reap the caches of the job on this node, in one child for each filesystem, and emit the outcomes.

    uptime: when the hook began, in seconds. until: deadline of the children, in seconds of time.monotonic.
    """
    known: dict[str, Any] = {"node": job.node, "job_id": job.job_id, "uid": job.uid, "user": job.user, **job.further_ids}
    known.update((key, os.environ.get(f"SLURM_JOB_{key.upper()}") or None) for key in ("partition", "account"))
    started = []
    job.home = _home(job, site)
    if job.home is None and any(template.in_home and template.text in site.current for template in site.templates):
        error = f"this node knows no home of uid {job.uid}, or its name service gave no answer"
        emit("cache.kept", "warning", outcome="kept", reason="unknown_user", error=error, **known)
    for place, templates in by_filesystem(site, job):
        try:
            place.claim(stuck_processes.OF_USER_AT_PLACE)
            work = Work(job, site, templates, uptime, _publisher(job, site))
            started.append(as_user.start(work, uid=job.uid, gid=job.gid, user=job.user, place=place))
        except OSError as error:
            reason = "stuck" if isinstance(error, stuck_processes.Stuck) else "internal"
            _emit_failure(emit, reason, str(error), **known)
    has_unknown_user = False
    for child in started:
        for fact in child.facts(until):
            if fact["reason"] == "unknown_user":
                if has_unknown_user:
                    continue  # reported for another filesystem
                has_unknown_user = True
            emit(fact.pop("event"), fact.pop("level"), **{**known, **fact})
        if child.status != "done":
            _emit_failure(emit, "deadline" if child.status == "late" else "child_died", child.error or None, **known)


def _home(job: Job, site: "settings.Settings") -> "str | None":
    """Return the home of the job's user, None if it is not needed or unknown. A child looks it up, for one second at most."""
    if not any(template.in_home for template in site.templates):
        return None
    from jobcache.cache import account_home  # most sites have no {home}

    return account_home.look_up(job.uid)


def by_filesystem(site: "settings.Settings", job: Job) -> "Iterable[tuple[stuck_processes.Place, list[path_template.Template]]]":
    """Return the templates, grouped by the filesystem on which the job's caches lie by them.

    The mount table suffices for this: scratch is not accessed, because it may hang. The name of the user is the one from
    Slurm, since a query to a directory service may hang as well. A template whose {home} is unknown leads to no place.
    """
    register = stuck_processes.Register(site.run_dir)
    where = Whereabouts(job, site.cluster, job.user or "")
    groups: dict[tuple[int, str], tuple[stuck_processes.Place, list[path_template.Template]]] = {}
    for template in site.templates:
        try:
            above = where.place(template, job.account or "").parent
        except path_template.BadName:
            above = template.text.partition("{")[0].rpartition("/")[0]
        place = register.place(job.uid, above)
        groups.setdefault((place.uid, place.device), (place, []))[1].append(template)
    return groups.values()


def _publisher(job: Job, site: "settings.Settings") -> "Publish | None":
    """Return what publishes a cache before it is reaped, None if the site has no users' stores."""

    def publish(cache: "Any", record: "dict[str, Any]", until: float) -> "dict[str, Any] | None":
        from jobcache.store.publish_cache import publish_cache  # only the child of a job with a store imports it

        return publish_cache(job, site, cache, record, until)

    return publish if site.store_user else None


def _emit_failure(emit: "Emit", reason: str, error: "str | None", level: str = "error", **known: "Any") -> None:
    emit("hook.failed", level, hook="epilog", outcome="failed", reason=reason, error=error, **known)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
