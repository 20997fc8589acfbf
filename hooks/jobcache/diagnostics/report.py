"""Collect the events of a period into a report on the usage of caches."""

from typing import Callable, Optional

from jobcache.cache import timestamps
from jobcache.diagnostics import report_sums
from jobcache.diagnostics.report_advice import advice, inheritance_advice
from jobcache.diagnostics.report_model import Cache, Report
from jobcache.diagnostics.report_sums import GROUPS, UNKNOWN
from jobcache.system.event_log import LOG, SYSLOG, Event, epoch_or_none

_Key = tuple[str, int, int, Optional[int], str]  # cluster, job, run, uid, path

_OF_USERS = ("cache.created", "cache.skipped", "store.seeded", "store.published")  # a user's TaskProlog can write these


class Collector:
    """Take events one by one, then `finish`.

    since, until: seconds since the epoch. name_of: return the user name of a uid that no event names.
    own_log: the site's log is among the sources. Then events that a user can have forged in a system log do not count.
    """

    def __init__(self, since: float, until: float, name_of: Callable[[int], str] = str, own_log: bool = False) -> None:
        self.report = Report(timestamps.millisecond(since), timestamps.millisecond(until))
        self._since, self._until, self._name_of = since, until, name_of
        self._taken: set[int] = set()
        self._caches: dict[_Key, Cache] = {}
        self._seeded: dict[_Key, int] = {}
        self._made: set[_Key] = set()
        self._names: dict[int, str] = {}
        self._refused: dict[str, int] = {}  # by user: jobs without a cache, because its builds could not be linked
        self._unclear: dict[str, int] = {}  # the same, because of what their scripts set
        self._incomplete: dict[str, int] = {}  # by user: jobs for which a dataset was left out
        self._own_log = own_log
        self._doubtful: set[int] = set()  # of _taken: events that a user can have forged

    def take(self, event: Event) -> None:
        """Count an event. Copies of it do not count again."""
        kind = event["event"]
        doubtful = event["source"] != LOG and kind not in _OF_USERS
        if event["source"] == LOG and not self._own_log:
            self._own_log = True
            self._discard_doubtful()
        elif doubtful and self._own_log:
            return
        where = event.get("cluster"), event.get("node"), event.get("path")
        identity = hash((event["ts"], kind, where, event.get("job_id"), event.get("run"), event.get("reason")))
        if identity in self._taken:
            return
        self._taken.add(identity)
        if doubtful:
            self._doubtful.add(identity)
        self.report.events += 1
        self._count_kind(event)
        if event["source"] != SYSLOG and event.get("user") and "uid" in event:
            self._names[event["uid"]] = event["user"]

    def _count_kind(self, event: Event) -> None:
        report, kind, reason = self.report, event["event"], event.get("reason", "")
        if kind in ("cache.reaped", "cache.orphan_reaped"):
            self._add_end(event)
        elif kind == "cache.created":
            self._made.add(_key(event))
            self._add_inherited(event)
        elif kind == "cache.skipped":
            _count(report.skipped, reason)
            if reason.startswith("inherit_"):
                _count(self._unclear if reason == "inherit_script" else self._refused, _user(event))
        elif kind == "cache.kept":
            _count(report.kept, reason)
        elif kind == "hook.failed":
            _count(report.failures, reason)
        elif kind == "sweep.finished":
            _count(report.sweeps, event.get("outcome", ""))
        elif kind == "store.seeded":
            key = _key(event)
            self._seeded[key] = self._seeded.get(key, 0) + event.get("bytes", 0)

    def _add_inherited(self, event: Event) -> None:
        """Count the builds of its user with which a cache began."""
        found, report = event.get("inherited"), self.report
        if not isinstance(found, dict) or "source" not in found:
            return
        keys = ("builds", "files", "bytes", "left_out_datasets")
        numbers = {key: number for key in keys if type(number := found.get(key, 0)) is int}
        for key, number in {"caches": int(numbers.get("builds", 0) > 0), **numbers}.items():
            name = key.replace("_", " ")
            report.inherited[name] = report.inherited.get(name, 0) + number
        self._seeded[_key(event)] = self._seeded.get(_key(event), 0) + numbers.get("bytes", 0)
        if numbers.get("left_out_datasets"):
            _count(self._incomplete, _user(event))

    def _discard_doubtful(self) -> None:
        """Discard the events that were taken before the first one from the log."""
        report = self.report
        report.events -= len(self._doubtful)
        self._taken -= self._doubtful
        self._doubtful.clear()
        self._caches.clear()
        for counts in (report.orphans, report.kept, report.failures, report.sweeps):
            counts.clear()

    def _add_end(self, event: Event) -> None:
        """Add the end of a cache. One cache can have several: the Epilog deletes a part, and the sweep the rest."""
        ended, made = epoch_or_none(event["ts"]), epoch_or_none(event.get("created_at", ""))
        if ended is None:
            return
        cache = self._caches.setdefault(_key(event), Cache(ended))
        cache.ended = max(cache.ended, ended)
        cache.made = made if made is not None and made <= ended else cache.made
        cache.user = event.get("user", cache.user)
        cache.uid = event.get("uid", cache.uid)
        cache.account = event.get("account", cache.account)
        cache.partition = event.get("partition", cache.partition)
        cache.bytes += event.get("bytes", 0)
        cache.files += event.get("files", 0)
        if event["event"] == "cache.orphan_reaped":
            reason = event.get("reason", "")
            _count(self.report.orphans, reason)
            cache.orphan = cache.orphan or reason == "orphan"

    def finish(self) -> Report:
        """Return the report of all events that were taken."""
        report = self.report
        for key, cache in self._caches.items():
            cache.seeded = self._seeded.get(key, 0)
            cache.user = cache.user or self._name(cache.uid)
        caches = list(self._caches.values())
        report.made = len(self._made)
        report.total = report_sums.row("all", caches)
        report.groups = {group: report_sums.rows(group, caches) for group in GROUPS}
        report.step = report_sums.bin_length(self._until - self._since)
        report.bins = report_sums.bins(caches, self._since, self._until, report.step)
        report.lives = report_sums.lives(caches)
        by_user = report_sums.by_group("user", caches)
        report.advice = [one for user in sorted(by_user) for one in advice(user, by_user[user])]
        report.advice += inheritance_advice(self._refused, self._unclear, self._incomplete)
        return report

    def _name(self, uid: Optional[int]) -> str:
        if uid is None:
            return UNKNOWN
        return self._names.get(uid) or self._name_of(uid)


def _key(event: Event) -> _Key:
    """Return the key of the cache that an event is about. A cache of `jobcache run` outside of jobs has a path only."""
    path = "" if "job_id" in event else event.get("path", "")
    return event.get("cluster", ""), event.get("job_id", 0), event.get("run", 0), event.get("uid"), path


def _user(event: Event) -> str:
    return str(event.get("user") or event.get("uid") or "")


def _count(counts: dict[str, int], name: str) -> None:
    counts[name or UNKNOWN] = counts.get(name or UNKNOWN, 0) + 1
