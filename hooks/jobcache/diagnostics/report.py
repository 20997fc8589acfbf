"""Collect the events of a period into a report on the usage of caches."""

from collections.abc import Sequence
from typing import Callable, Optional

from jobcache.cache import timestamps
from jobcache.diagnostics import rebuilding, report_advice, report_table
from jobcache.diagnostics.report_model import Cache, Report, Without
from jobcache.diagnostics.report_sums import UNKNOWN, Sums
from jobcache.diagnostics.report_table import EventTable
from jobcache.system.event_log import LOG, Event, epoch_or_none

_KINDS = {
    "cache.reaped": report_table.REAPED,
    "cache.orphan_reaped": report_table.ORPHAN_REAPED,
    "cache.created": report_table.CREATED,
    "store.seeded": report_table.SEEDED,
    "cache.skipped": report_table.SKIPPED,
    "cache.kept": report_table.KEPT,
    "hook.failed": report_table.FAILED,
    "sweep.finished": report_table.SWEPT,
}
_OF_USERS = ("cache.created", "cache.skipped", "store.seeded", "store.published")  # a user's TaskProlog can write these
_MOST = 1 << 53  # bytes or files of one event; more are no figure of jobcache
_LATEST = 1000  # caches of a user from which advice follows


class Collector:
    """Take events one by one, in any order, then `finish`, then `close`. A full disk raises sqlite3.Error.

    since, until: seconds since the epoch. name_of: return the user name of a uid that no event names.
    own_log: the site's log is among the sources. Then events that a user can have forged in a system log do not count.
    """

    def __init__(self, since: float, until: float, name_of: Callable[[int], str] = str, own_log: bool = False) -> None:
        self.report = Report(timestamps.millisecond(since), timestamps.millisecond(until))
        self._since, self._until = since, until
        self._name_of, self._own_log = name_of, own_log
        self._table = EventTable()
        self._names: dict[int, str] = {}

    def take(self, event: Event) -> None:
        """Count an event. Copies of it do not count again."""
        get = event.get
        kind, logged, stamp = event["event"], event["source"] == LOG, event["ts"]
        at = epoch_or_none(stamp)
        doubtful = not logged and kind not in _OF_USERS
        if logged:
            self._own_log = True
        if at is None or (doubtful and self._own_log):
            return
        job, run, uid, user, path, cluster = get("job_id", 0), get("run", 0), get("uid"), get("user"), get("path"), get("cluster")
        reason, outcome, made = get("reason", ""), get("outcome", ""), get("created_at")
        number = self._table.number
        self._table.add(
            (
                job,
                hash((cluster, run, uid, None if job else path)),  # of `jobcache run` outside of jobs: a path
                hash((stamp, kind, cluster, get("node"), path, run, reason)),
                doubtful,
                _KINDS.get(kind, report_table.OTHER),
                number((outcome if kind == "sweep.finished" else reason) or UNKNOWN),
                number(outcome),
                at,
                epoch_or_none(made) if made else None,
                *_numbers(event),
                uid,
                *self._table.names(user, get("account"), get("partition")),
            )
        )
        if user and uid is not None and logged:
            self._names[uid] = user

    def finish(self) -> Report:
        """Return the report of all events that were taken."""
        report, table = self.report, self._table
        report.events = table.close_events(doubtful=not self._own_log)
        table.name_users({uid: self._names.get(uid) or self._name_of(uid) for uid in table.unnamed()})
        sums = Sums(table, self._since, self._until)
        report.total, report.groups, report.lives = sums.total(), sums.groups(), sums.lives
        report.step, report.bins = sums.step, sums.bins
        for kind, counts in (
            (report_table.ORPHAN_REAPED, report.orphans),
            (report_table.SKIPPED, report.skipped),
            (report_table.KEPT, report.kept),
            (report_table.FAILED, report.failures),
            (report_table.SWEPT, report.sweeps),
        ):
            counts.update(table.counts(kind))
        self._count_links()
        self._advise()
        return report

    def _count_links(self) -> None:
        made, stored, own, both = self._table.created()
        self.report.made = made
        self.report.hits = {"created": made, "store": stored, "own cache": own, "any": both} if made else {}
        events, *numbers = self._table.inherited()
        if events:
            self.report.inherited = dict(zip(("caches", "builds", "files", "bytes", "left out datasets"), numbers))

    def _advise(self) -> None:
        report, table = self.report, self._table
        report.without = [Without(user, reason, outcome, jobs) for (user, reason, outcome), jobs in table.without().items()]
        report.without.sort(key=lambda one: (-one.jobs, one.user, one.reason))
        for name, rows in table.latest(_LATEST, report_advice.CONDITION):
            user = name or UNKNOWN
            caches = [Cache(ended, made, size, files, bool(orphan), seeded) for ended, made, size, files, orphan, seeded in rows]
            same = rebuilding.rebuilt(user, [cache.bytes for cache in caches])
            report.advice += report_advice.advice(user, caches, same)
            report.rebuilt += [same] if same else []
        report.advice.sort(key=lambda one: one.user)
        report.rebuilt.sort(key=lambda one: (-one.again, one.user))
        refused, unclear = _jobs(report.without, clear=True), _jobs(report.without, clear=False)
        report.advice += report_advice.inheritance_advice(refused, unclear, table.incomplete())

    def close(self) -> None:
        """Delete the temporary database."""
        self._table.close()


def _numbers(event: Event) -> tuple[int, int, Optional[int], int]:
    """Return the bytes, files and builds of an event, and the datasets that were left out of a new cache.

    builds None: the event is no creation of a cache whose user has an own cache.
    """
    if event["event"] != "cache.created":
        size, files = event.get("bytes", 0), event.get("files", 0)
        return size if size < _MOST else 0, files if files < _MOST else 0, None, 0
    found = event.get("inherited")
    if not isinstance(found, dict) or "source" not in found:
        return 0, 0, None, 0
    return _number(found, "bytes"), _number(found, "files"), _number(found, "builds"), _number(found, "left_out_datasets")


def _number(facts: Event, key: str) -> int:
    found = facts.get(key, 0)
    return found if type(found) is int and 0 <= found < _MOST else 0


def _jobs(without: Sequence[Without], *, clear: bool) -> dict[str, int]:
    """Return the numbers of jobs, by user, whose own builds could not be linked. clear: not because of their scripts."""
    found: dict[str, int] = {}
    for one in without:
        if one.reason.startswith("inherit_") and (one.reason != "inherit_script") == clear:
            found[one.user] = found.get(one.user, 0) + one.jobs
    return found
