"""The work of the Epilog's child, as the job's user: release the node's leases, then reap or keep each cache.

The child reports one fact for each outcome. The parent writes the facts as events.
"""

import os
import time

from jobcache.cache import dirfd, history, job_record, node_leases, path_template, reasons, timestamps
from jobcache.system import children, event_fields, events, mounts, reaper
from jobcache.system.epilog_places import Whereabouts
from jobcache.system.user_names import UserNames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jobcache.config.settings import Settings
    from jobcache.system.epilog_job import Job

    Fact = dict[str, Any]
    Report = Callable[[Fact], None]
    Publish = Callable[["Cache", Fact, float], "Fact | None"]

_RUNS_LIMIT = 64  # directories of one job to examine; a user can create any number
_CLOCK_INTERVAL = 1024  # directory entries between two checks of the clock
_BY_LAST_NODE = ("user_keep", "job_failed")  # reasons to keep a cache that only the last node has
_RECENT = 86400  # seconds; if the start of the job is unknown, an unrecorded directory that changed earlier is not the job's


class Cache:
    """A directory at the path of a cache of the job.

    fd: the directory, held open. parent_fd, name: where it lies. path: the whole path. run: the run in its name.
    user: the name by which the user's directory was found.
    """

    __slots__ = ("parent_fd", "name", "path", "run", "fd", "user")

    def __init__(self, parent_fd: int, name: str, path: str, run: int, fd: int) -> None:
        self.parent_fd = parent_fd
        self.name = name
        self.path = path
        self.run = run
        self.fd = fd
        self.user = ""

    def fact(self, event: str, level: str, outcome: str, reason: "str | None", **more: "Any") -> "Fact":
        """Return a fact about this cache."""
        return event_fields.fact(event, level, self.path, self.run, outcome, reason, **more)

    def kept(self, level: str, reason: str, **more: "Any") -> "Fact":
        """Return the fact that this cache is kept."""
        return self.fact("cache.kept", level, "kept", reason, **more)


class Work:
    """A callable for `as_user.start`: it handles the job's caches below the templates of one filesystem.

    uptime: of this boot, in seconds, when the Epilog began. Younger leases belong to a later run.
    publish: called with a cache, its record and a deadline (time.monotonic) before the cache is reaped; returns a fact or None.
    """

    def __init__(
        self,
        job: "Job",
        site: "Settings",
        templates: "list[path_template.Template]",
        uptime: float,
        publish: "Publish | None" = None,
    ) -> None:
        self.job = job
        self.site = site
        self.templates = templates
        self.uptime = uptime
        self.publish = publish

    def __call__(self, report: "Report") -> None:
        """Handle all caches. Report a fact for each error, and go on. At the end, write the user's history."""
        self._lines: list[str] = []  # of the history in the current directory
        self._histories: list[tuple[int, list[str]]] = []  # directories, held open, with their lines

        def report_and_note(fact: "Fact") -> None:
            report(fact)
            if self._belongs_into_history(fact):
                self._lines.append(self._history_line(fact))

        self.report = report_and_note
        self.boot = node_leases.now()[0]
        self.found = False
        self._try_names()
        if self._histories:
            report(children.END)
            for parent_fd, lines in self._histories:
                history.append(parent_fd, "\n".join(lines))
                os.close(parent_fd)

    def _try_names(self) -> None:
        """Handle the caches below the directories of one name of the user after another, until one leads to a cache."""
        names = UserNames(self.job.uid, self.job.user)
        by_user = [template for template in self.templates if (True, "user") in template.parts]
        # Those in use by which the user has no directory of any name that was tried; with the directory of the first name.
        missing = {template: "" for template in by_user if template.text in self.site.current}
        for count, user in enumerate(names):
            where = Whereabouts(self.job, self.site.cluster, user)
            self.user = user
            for template in by_user if count else self.templates:
                self._handle_template(template, where, is_first=count == 0)
            if self.found or not by_user:
                return
            paths = {template: where.missing_directory(template) for template in missing}
            missing = {template: first or paths[template] for template, first in missing.items() if paths[template]}
        if missing and names.are_uncertain():
            error = f"neither Slurm nor this node has a name for uid {self.job.uid}; tried {', '.join(names)}"
            self._report_kept(next(iter(missing.values())), "unknown_user", error)

    def _handle_template(self, template: "path_template.Template", where: Whereabouts, is_first: bool) -> None:
        """Handle the caches of one template.

        Any name of the user but the first, and any account that Slurm did not name, is a guess: below such a directory, only a
        cache with the identity of the job counts.
        """
        self.is_guess = not is_first or where.lack_account(template)
        try:
            for place in where.places(template):
                self._handle_place(place)
        except (FileNotFoundError, path_template.BadName):
            return  # the TaskProlog makes no cache for such a name
        except (OSError, reasons.Refused) as error:
            if is_first:
                reason = error.reason if isinstance(error, reasons.Refused) else reason_of(error)
                self._report_kept(where.account_directory(template), reason, str(error))

    def _report_kept(self, path: str, reason: str, error: str) -> None:
        self.report(event_fields.fact("cache.kept", "warning", path, None, "kept", reason, error=error))

    def _belongs_into_history(self, fact: "Fact") -> bool:
        """Return whether a fact is the end of a cache, or why it stays.

        If many nodes report that one cache stays, only their logs have it: the history has one line for the end of a job.
        """
        if fact["event"] == "cache.kept":
            return self.site.history and (fact["reason"] in _BY_LAST_NODE or self.job.nodes in (None, 1))
        return self.site.history and fact["event"] == "cache.reaped"

    def _history_line(self, fact: "Fact") -> str:
        job = self.job
        known = {"cluster": self.site.cluster, "node": job.node, "job_id": job.job_id, "uid": job.uid, "user": job.user}
        fields = {key: value for key, value in fact.items() if key not in ("event", "level")}
        return events.encode(fact["event"], fact["level"], {**known, **job.further_ids, **fields})

    def _handle_place(self, place: "path_template.Place") -> None:
        """Handle the caches of the job in one directory, if the directory exists. Report an error of this directory."""
        try:
            parent_fd = dirfd.open_directory(place.parent)
            self._handle_parent(place, parent_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if not self.is_guess:
                self._report_kept(place.parent, reason_of(error), str(error))

    def _handle_parent(self, place: "path_template.Place", parent_fd: int) -> None:
        """Raise OSError."""
        self._lines = []
        try:
            for run in self._find_runs(place, parent_fd):
                began = time.monotonic()
                fact = self._handle_run(place, parent_fd, run)
                if fact:
                    fact["duration_ms"] = round((time.monotonic() - began) * 1000)
                    self.report(fact)
            if self._lines and not place.job_directory:  # that directory ends with the job
                self._histories.append((os.dup(parent_fd), self._lines))
        finally:
            os.close(parent_fd)

    def _find_runs(self, place: "path_template.Place", parent_fd: int) -> "list[int]":
        """Return the runs of this job for which a directory entry exists. Raise OSError.

        SLURM_JOB_RESTART_COUNT is not always the run that has ended. The search stops after the time for deletion, because
        a user can create any number of entries.
        """
        runs = set()
        until = time.monotonic() + self.site.epilog_budget
        list_fd = os.open(".", dirfd.DIRECTORY, dir_fd=parent_fd)
        try:
            with os.scandir(list_fd) as entries:
                for count, entry in enumerate(entries, 1):
                    parsed = place.parse(entry.name)
                    if parsed and parsed[0] == self.job.job_id:
                        runs.add(parsed[1])
                    if count % _CLOCK_INTERVAL == 0 and time.monotonic() > until:
                        self.report(event_fields.fact("cache.kept", "warning", place.parent, None, "kept", "budget"))
                        runs.add(0)  # the only run of most jobs
                        break
        finally:
            os.close(list_fd)
        return sorted(runs)[:_RUNS_LIMIT]

    def _handle_run(self, place: "path_template.Place", parent_fd: int, run: int) -> "Fact | None":
        """Open the cache of one run and handle it; return the fact to report, None for no fact."""
        name = place.cache_name(self.job.job_id, run)
        path = f"{place.parent}/{name}"
        try:
            fd = mounts.open_beside(parent_fd, name)
            try:
                cache = Cache(parent_fd, name, path, run, fd)
                cache.user = self.user
                return self._handle_cache(cache, place)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except (OSError, reaper.Kept) as error:
            if self.is_guess and not self.found:
                return None
            return event_fields.fact("cache.kept", "warning", path, run, "kept", reason_of(error), error=str(error))

    def _handle_cache(self, cache: Cache, place: "path_template.Place") -> "Fact | None":
        """Release and reap a cache of the job; else return why the directory is kept. Raise OSError, reaper.Kept."""
        job = self.job
        is_own = os.fstat(cache.fd).st_uid == job.uid
        identity = job_record.identity(cache.fd) if is_own else None
        if identity == (self.site.cluster, job.job_id, cache.run, job.uid):
            self.found = True
            return self._release(cache)
        if self.is_guess:
            return None
        if identity is None and is_own:
            return self._handle_unrecorded(cache, place)
        return cache.kept("info" if is_own else "warning", "foreign")

    def _release(self, cache: Cache) -> "Fact | None":
        """Release the node's lease, and reap the cache if it was the last lease. Raise OSError, reaper.Kept."""
        job = self.job
        outcome = node_leases.release(cache.fd, job.node, self.boot, self.uptime)
        if outcome == "none":
            return None
        if outcome == "others":
            return cache.fact("cache.released", "debug", "released", None)
        if outcome != "last":
            return cache.kept("info", f"lease_{outcome}")
        record = job_record.read_record(cache.fd)
        return self._keep(cache, record) or self._reap(cache, record)

    def _handle_unrecorded(self, cache: Cache, place: "path_template.Place") -> "Fact | None":
        """Reap a directory without a record if only this job can have created it; else keep it. Raise OSError, reaper.Kept.

        Either the job's script removed its cache and created the directory again, or somebody keeps the directory by hand.
        The Epilog is the last one only if the job had one node, no other part and no earlier run. A directory that changed
        last before the job began is not the job's. Slurm before 23.02 does not report when the job began.
        In a directory that the site makes for each job, the site deletes it, perhaps at this moment.
        """
        job = self.job
        if place.job_directory:
            return None
        if job.nodes != 1 or job.het or cache.run != 0:
            return cache.kept("info", "unrecorded")
        since = time.time() - _RECENT if job.start is None else job.start - timestamps.CLOCK_SKEW
        if os.fstat(cache.fd).st_ctime < since:
            return cache.kept("info", "older_than_job")
        try:
            job_record.sign(cache.fd, self.site.cluster, job.job_id, cache.run, job.uid)
        except OSError:
            pass  # the sweep will report remains without an id, and not reap them
        return self._reap(cache, {})

    def _keep(self, cache: Cache, record: "Fact") -> "Fact | None":
        """Keep the cache if its user or the site wants that, and write into the record until when. Return None to reap it.

        Raise OSError.
        """
        if job_record.is_kept(cache.fd):
            reason, seconds = "user_keep", self.site.keep_max
        elif self.site.keep_failed and self.job.failed:
            reason, seconds = "job_failed", self.site.keep_failed
        else:
            return None
        until = timestamps.second(time.time() + seconds)
        job_record.write_record(cache.fd, {**record, "keep_until": until})
        return {**cache.kept("info", reason, keep_until=until), **event_fields.of_record(record)}

    def _reap(self, cache: Cache, record: "Fact") -> "Fact":
        """Publish builds, rename the cache to trash and delete it within the budget. Raise OSError, reaper.Kept."""
        budget = self.site.epilog_budget
        until = time.monotonic() + budget
        if record and self.publish is not None:
            published = self.publish(cache, record, until - budget / 2)
            if published:
                self.report(published)
        trash = reaper.retire(cache.parent_fd, cache.name, cache.fd, self.job.uid, self.job.job_id)
        tally = reaper.delete(cache.parent_fd, trash, cache.fd, until)
        outcome, reason = ("reaped", None) if tally.done else ("trashed", "left" if tally.left else "budget")
        if tally.mounted:
            reason = "mount"
        fact = cache.fact("cache.reaped", "info" if tally.done or reason == "budget" else "warning", outcome, reason)
        fact.update(bytes=tally.bytes, files=tally.files, left=tally.left or None, error=tally.error or None)
        if not tally.done:
            fact["trash"] = os.path.dirname(cache.path) + "/" + trash
        return {**fact, **event_fields.of_record(record), **event_fields.of_filesystem(cache.parent_fd)}


def reason_of(error: "Exception") -> str:
    """Given an error of one cache, return the reason (config/schema/event.json) for which it is kept."""
    if isinstance(error, reaper.Kept):
        return error.reason
    if isinstance(error, mounts.MountPoint):
        return "mount"
    return reasons.reason_of(error) if isinstance(error, OSError) else "bad_name"
