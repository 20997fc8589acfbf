"""One job has ended on this node: give up the node's lease, and reap the cache where that was the last one.

Run by the epilog hook, as root. It finds the cache by job id over all templates, touches scratch only as the
job's user in a child with a deadline, and says in one event what became of each cache.
"""

import os
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobcache.cache import dirfd, job_record, node_leases, path_template, reasons, store_names, timestamps
from jobcache.config import settings  # noqa: E402
from jobcache.system import as_user, mounts, reaper
from jobcache.system.epilog_job import (
    Job,
    JobError,
    from_epilog,  # noqa: E402
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jobcache.system import events

    Fact = dict[str, Any]
    Report = Callable[[Fact], None]

UNUSABLE, UNSAID = 78, 70  # exit status: the compiled settings cannot be used; the log cannot
_MARGIN = 2.0  # seconds before the hook's deadline at which we stop waiting, to write the events
_MOST_RUNS = 64  # directories of one job that are looked at: a user can make any number
_REAPING = "reaping"  # the outcome that a child reports first, and no event tells: the parent gets ready to say the real one
_LOOK_UP = 1024  # entries of a directory between two looks at the clock
_RECENT = 86400  # seconds since it changed within which a directory may be the job's, where nobody says when that began


def main(argv: "list[str]") -> int:
    """Run for the job that the environment names. argv: the directory of the compiled pair, and the seconds since boot
    at which the hook began. Return 0, or what the shim is to say in our place: UNUSABLE settings, UNSAID events.
    """
    began = time.monotonic()
    lib, uptime = argv[0], float(argv[1])
    try:
        compiled = settings.load(f"{lib}/{settings.FILE}")
    except settings.SettingsError:
        return UNUSABLE
    log = Lazily(compiled)
    try:
        job = from_epilog(dict(os.environ))
        reason = "unknown_job" if job.uid == 0 else "min_uid" if job.uid < compiled.min_uid else ""
        if reason:
            log.emit("cache.skipped", "debug", job_id=job.job_id, uid=job.uid, node=job.node, outcome="skipped", reason=reason)
        else:
            run(job, compiled, log, uptime, began + max(0.5, compiled.epilog_deadline - _MARGIN))
    except JobError as error:
        log.emit("hook.failed", "warning", hook="epilog", outcome="failed", reason=error.reason, error=str(error))
    except Exception as error:  # noqa: BLE001 - the failure policy of this hook: said, and left to the sweep
        log.emit(
            "hook.failed", "error", hook="epilog", outcome="failed", reason="internal", error=f"{type(error).__name__}: {error}"
        )
    return UNSAID if log.failed else 0


class Lazily:
    """The log, opened when there is something to say: most jobs have no cache, and structlog is dear.

    failed: something could not be said, as where structlog is broken; that must not keep a cache from being reaped.
    """

    def __init__(self, compiled: settings.Settings) -> None:
        self.failed = False
        self._compiled = compiled
        self._log: "events.Log | None" = None

    def emit(self, event: str, level: str, **fields: "Any") -> None:
        """As events.Log.emit."""
        if level == "debug" and self._compiled.log_level != "debug":
            return
        try:
            if self._log is None:
                self._log = self._open()
            self._log.emit(event, level, **fields)
        except Exception:  # noqa: BLE001 - said by the shim, from our exit status
            self.failed = True

    def prepare(self) -> None:
        """Load what it takes to say something: called while a child deletes, it costs no time."""
        try:
            self._log = self._log or self._open()
        except Exception:  # noqa: BLE001 - said by the shim, from our exit status
            self.failed = True

    def _open(self) -> "events.Log":
        if sys.flags.no_site:  # the hook starts Python with -S, since few Epilogs need what is installed
            import site as installed

            installed.main()
        sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # structlog would load it, for a console: 50 ms
        from jobcache.system import events

        site = self._compiled
        return events.Log(site.log_file, site.log_socket, site.log_level, cluster=site.cluster)


def run(job: Job, compiled: settings.Settings, log: Lazily, uptime: float, until: float) -> None:
    """Release and reap the caches of `job` on this node, and say what became of them."""
    known = {"node": job.node, "job_id": job.job_id, "uid": job.uid, "user": job.user}
    known.update((key, os.environ.get(f"SLURM_JOB_{key.upper()}") or None) for key in ("partition", "account"))
    children = []
    for filesystem, templates in by_filesystem(compiled.templates).items():
        try:
            places = as_user.stuck_places(compiled.run_dir, filesystem)
            work = Work(job, compiled, templates, uptime)
            children.append(as_user.start(work, uid=job.uid, gid=job.gid, user=job.user, places=places))
        except (as_user.Stuck, OSError) as error:
            reason = "stuck" if isinstance(error, as_user.Stuck) else "internal"
            log.emit("hook.failed", "error", hook="epilog", outcome="failed", reason=reason, error=str(error), **known)
    for child in children:
        for fact in child.facts(until):
            if fact["outcome"] == _REAPING:
                log.prepare()
                continue
            log.emit(fact.pop("event"), fact.pop("level"), **{**known, **fact})
        if child.status != "done":
            reason = "deadline" if child.status == "late" else "child_died"
            log.emit("hook.failed", "error", hook="epilog", outcome="failed", reason=reason, error=child.error or None, **known)


def by_filesystem(templates: "list[path_template.Template]") -> "dict[str, list[path_template.Template]]":
    """Group the templates by the filesystem they begin on, told from the mount table alone: scratch may hang."""
    table = mounts.read()
    groups: dict[str, list[path_template.Template]] = {}
    for template in templates:
        fixed = template.text.partition("{")[0]
        mount = mounts.containing(fixed.rpartition("/")[0], table)
        groups.setdefault(mount.device if mount else "0:0", []).append(template)
    return groups


class Work:
    """What the child does, as the job's user, over the templates of one filesystem."""

    def __init__(self, job: Job, compiled: settings.Settings, templates: "list[path_template.Template]", uptime: float) -> None:
        self.job = job
        self.compiled = compiled
        self.templates = templates
        self.uptime = uptime

    def __call__(self, report: "Report") -> None:
        self.report = report
        self.boot = node_leases.now()[0]
        self.report = report
        user = _user_name(self.job)
        for template in self.templates:
            try:
                place = template.bind(user=user, uid=self.job.uid, cluster=self.compiled.cluster, node=self.job.node)
                self._over(place)
            except FileNotFoundError:
                continue
            except (OSError, path_template.BadName) as error:
                self.report(_fact("cache.kept", "warning", template.text, None, "kept", _reason(error), error=str(error)))

    def _over(self, place: path_template.Place) -> None:
        parent_fd = dirfd.open_directory(place.parent)
        try:
            for run in self._runs(place, parent_fd):
                began = time.monotonic()
                name = place.cache_name(self.job.job_id, run)
                path = f"{place.parent}/{name}"
                try:
                    fact = self._one(parent_fd, name, path, run)
                except FileNotFoundError:
                    continue
                except (OSError, reaper.Kept) as error:
                    fact = _fact("cache.kept", "warning", path, run, "kept", _reason(error), error=str(error))
                if fact:
                    fact["duration_ms"] = round((time.monotonic() - began) * 1000)
                    self.report(fact)
        finally:
            os.close(parent_fd)

    def _runs(self, place: path_template.Place, parent_fd: int) -> "list[int]":
        """The runs of this job that have something at their path: SLURM_JOB_RESTART_COUNT is not always this run's.

        A user can make any number of directories: the budget holds for looking at them as well.
        """
        runs = set()
        until = time.monotonic() + self.compiled.epilog_budget
        list_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            with os.scandir(list_fd) as entries:
                for at, entry in enumerate(entries, 1):
                    parsed = place.parse(entry.name)
                    if parsed and parsed[0] == self.job.job_id:
                        runs.add(parsed[1])
                    if at % _LOOK_UP == 0 and time.monotonic() > until:
                        self.report(_fact("cache.kept", "warning", place.parent, None, "kept", "budget"))
                        runs.add(0)  # what most jobs have
                        break
        finally:
            os.close(list_fd)
        return sorted(runs)[:_MOST_RUNS]

    def _one(self, parent_fd: int, name: str, path: str, run: int) -> "Fact | None":
        """Release one cache and reap it where that is ours to do; return what to say. Raise OSError, reaper.Kept."""
        job = self.job
        fd = os.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)
        try:
            if os.fstat(fd).st_uid != job.uid:
                return _fact("cache.kept", "warning", path, run, "kept", "foreign")
            found = job_record.identity(fd)
            if found is None:
                return self._unrecorded(parent_fd, name, path, run, fd)
            if found != (self.compiled.cluster, job.job_id, run, job.uid):
                return _fact("cache.kept", "info", path, run, "kept", "foreign")
            outcome = node_leases.release(fd, job.node, self.boot, self.uptime)
            if outcome == "none":
                return None
            if outcome == "others":
                return _fact("cache.released", "debug", path, run, "released", None)
            if outcome != "last":
                return _fact("cache.kept", "info", path, run, "kept", f"lease_{outcome}")
            record = job_record.read_record(fd)
            keep = self._keep(fd)
            if keep:
                return self._keep_it(fd, path, run, record, *keep)
            return self._reap(parent_fd, name, path, run, fd, record)
        finally:
            os.close(fd)

    def _unrecorded(self, parent_fd: int, name: str, path: str, run: int, fd: int) -> "Fact":
        """No record: the job's script removed and remade its cache, or somebody keeps this by hand.

        Only the Epilog of a job that had one node, no sister jobs and no earlier run, whose late Epilog this may be, knows
        that it is the last one; and what was last touched before the job began is not the job's. Before 23.02 Slurm does
        not say when that was.
        """
        job = self.job
        if job.nodes != 1 or job.het or run != 0:
            return _fact("cache.kept", "info", path, run, "kept", "unrecorded")
        since = time.time() - _RECENT if job.start is None else job.start - timestamps.CLOCK_SKEW
        if os.fstat(fd).st_ctime < since:
            return _fact("cache.kept", "info", path, run, "kept", "older_than_job")
        try:
            job_record.sign(fd, self.compiled.cluster, job.job_id, run, job.uid)
        except OSError:
            pass  # then a sweep only reports what the budget does not suffice for
        return self._reap(parent_fd, name, path, run, fd, {})

    def _keep(self, fd: int) -> "tuple[str, float] | None":
        """Why, and for how many seconds, a cache outlives its job; None: it does not. An unknown exit status may be a failure."""
        if job_record.is_kept(fd):
            return "user_keep", self.compiled.keep_max
        if self.compiled.keep_failed and self.job.exit_status != 0:
            return "job_failed", self.compiled.keep_failed
        return None

    def _keep_it(self, fd: int, path: str, run: int, record: "Fact", reason: str, seconds: float) -> "Fact":
        until = timestamps.second(time.time() + seconds)
        job_record.write_record(fd, {**record, "keep_until": until})
        return {**_fact("cache.kept", "info", path, run, "kept", reason), "keep_until": until, **_told(record)}

    def _reap(self, parent_fd: int, name: str, path: str, run: int, fd: int, record: "Fact") -> "Fact":
        job = self.job
        self.report(_fact("cache.reaped", "debug", path, run, _REAPING, None))
        until = time.monotonic() + self.compiled.epilog_budget
        if record and self.compiled.store_user:
            self._publish(path, run, fd, record, until - self.compiled.epilog_budget / 2)
        trash = reaper.retire(parent_fd, name, fd, job.uid, job.job_id)
        tally = reaper.delete(parent_fd, trash, fd, until)
        outcome, reason = ("reaped", None) if tally.done else ("trashed", "left" if tally.left else "budget")
        if tally.mounted:
            reason = "mount"
        fact = _fact("cache.reaped", "info" if tally.done or reason == "budget" else "warning", path, run, outcome, reason)
        fact.update(bytes=tally.bytes, files=tally.files, left=tally.left or None, error=tally.error or None)
        if not tally.done:
            fact["trash"] = os.path.dirname(path) + "/" + trash
        return {**fact, **_told(record), **_usage(parent_fd)}

    def _publish(self, path: str, run: int, fd: int, record: "Fact", until: float) -> None:
        """Move the cache's whole builds into the user's store, where the user asked for it, and date those it has used.

        The label is the record's, which is the user's to forge, as is the store: it is done as that user, to that user.
        """
        from jobcache.store import store

        job = self.job
        began = time.monotonic()
        try:
            place = store_names.store_path(
                str(self.compiled.store_user), user=_user_name(job), uid=job.uid, cluster=self.compiled.cluster
            )
            store.mark_used(fd, place, until)
            label = record.get("label")
            if not isinstance(label, str) or not store_names.is_label(label):
                return
            if job.nodes not in (1, None) or node_leases.is_shared(fd, job.node, record):
                return
            facts = {"cluster": self.compiled.cluster, "job_id": job.job_id}
            done = store.publish(fd, store.Publisher(place, label, most=self.compiled.store_max_size, facts=facts), until)
        except (OSError, reasons.Refused, path_template.BadName) as error:
            reason = error.reason if isinstance(error, reasons.Refused) else _reason(error)
            self.report(_fact("store.published", "warning", path, run, "refused", reason, error=str(error)))
            return
        if done.builds or done.broken or done.late:
            level = "warning" if done.broken else "info"
            why = "damaged" if done.broken else "budget" if done.late else None
            fact = _fact("store.published", level, path, run, "published" if done.builds else "skipped", why, label=label)
            fact.update(builds=done.builds, files=done.files, bytes=done.bytes, store=place)
            fact.update(error=next((f"{key}: {what}" for key, what in done.broken.items()), None))
            self.report({**fact, "duration_ms": round((time.monotonic() - began) * 1000)})


def _fact(event: str, level: str, path: str, run: "int | None", outcome: str, reason: "str | None", **more: "Any") -> "Fact":
    return {"event": event, "level": level, "path": path, "run": run, "outcome": outcome, "reason": reason, **more}


def _reason(error: "Exception") -> str:
    """Return the closed-set reason for which a cache is kept."""
    if isinstance(error, reaper.Kept):
        return error.reason
    return reasons.reason_of(error) if isinstance(error, OSError) else "bad_name"


def _told(record: "Fact") -> "Fact":
    """What of the record an event repeats. The record is the user's to forge: only what looks as we write it."""
    told: Fact = {}
    created, policy = record.get("created_at"), record.get("policy")
    if (
        isinstance(created, str)
        and len(created) == 20
        and created[10] == "T"
        and created.replace(":", "").replace("-", "").isalnum()
    ):
        told["created_at"] = created
    if isinstance(policy, str) and 0 < len(policy) <= 64 and policy.isalnum() and policy.isascii():
        told["policy"] = policy
    return told


def _usage(parent_fd: int) -> "Fact":
    """The filesystem's figures, after the fact, as psutil.disk_usage has them, whose import would hold the node for 20 ms."""
    try:
        found = os.statvfs(f"/proc/self/fd/{parent_fd}")
    except OSError:
        return {}
    used, free = found.f_blocks - found.f_bfree, found.f_bavail
    return {
        "fs_total_bytes": found.f_blocks * found.f_frsize,
        "fs_free_bytes": free * found.f_frsize,
        "fs_used_percent": round(100 * used / (used + free), 1) if used + free else 0.0,
    }


def _user_name(job: Job) -> str:
    """The name that the TaskProlog had. Where slurmd could not look it up, it said "nobody", or the number (23.11)."""
    if job.user not in (None, "nobody", str(job.uid)):
        return str(job.user)
    import pwd

    try:
        return pwd.getpwuid(job.uid).pw_name
    except KeyError:
        return job.user or str(job.uid)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
