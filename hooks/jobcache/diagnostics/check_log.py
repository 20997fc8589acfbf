"""Judge the event log, and what it and the timers show of the sweep."""

from collections.abc import Iterator
from typing import Optional

from jobcache.diagnostics.check_facts import Log, Schedule
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from jobcache.diagnostics.rebuilding import Rebuilt
from jobcache.diagnostics.units import size

_STALE_SWEEP = 26 * 3600.0  # seconds; the timer fires hourly, and a large sweep takes hours
_MOST_USERS = 5  # in one finding
_ENABLE_TIMER = "systemctl enable --now jobcache-sweep.timer"


def log(facts: Log) -> Iterator[Finding]:
    """Yield findings on the log file, on syslog, and on the failures of hooks that the log has."""
    if facts.file is None:
        yield Finding("log", "file", OK if facts.syslog else WARNING, "log.file is null: the hooks write events to syslog only")
    elif facts.error:
        yield Finding(
            "log", "file", PROBLEM, f"{facts.file}: {facts.error}", f"install -d -m 750 {facts.file.rpartition('/')[0]}"
        )
    elif facts.insecure:
        text = f"{facts.insecure}: other users can forge events"
        yield Finding("log", "file", PROBLEM, text, f"chmod go-w {facts.file}")
    else:
        yield Finding("log", "file", OK, facts.file)
    if facts.syslog is None:
        text = "log.syslog is false: the TaskProlog runs as the user and can log nowhere else, so its events are lost"
        yield Finding("log", "syslog", WARNING, text, "log: {syslog: true}    # in jobcache.yaml")
    elif facts.syslog_error:
        text = f"{facts.syslog}: {facts.syslog_error}: the TaskProlog's events are lost"
        yield Finding("log", "syslog", WARNING, text, "systemctl start systemd-journald.socket    # or rsyslog")
    else:
        yield Finding("log", "syslog", OK, facts.syslog)
    if facts.failures:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(facts.failures.items()))
        text = f"failures in the last day, by reason: {counts}"
        yield Finding("log", "hook failures", WARNING, text, f"grep -a hook.failed {facts.file} | tail")
    if facts.rebuilt:
        yield _rebuilt(facts.rebuilt)


def _rebuilt(found: tuple[Rebuilt, ...]) -> Finding:
    """Return the finding on users whose jobs build the same data again. Name those who wrote the most."""
    worst = sorted(found, key=lambda one: (-one.again, one.user))
    named = [f"{one.user} ({one.caches} caches of {size(one.size)})" for one in worst[:_MOST_USERS]]
    more = f" and {len(worst) - _MOST_USERS} more users" if len(worst) > _MOST_USERS else ""
    text = f"jobs seem to build the same data again and again: {', '.join(named)}{more}"
    remedy = "store: {publish: all}    # in jobcache.yaml, with store.user; or these users set JOBCACHE_STORE=LABEL"
    return Finding("log", "same data again", WARNING, text, remedy)


def schedule(facts: Schedule, events: Optional[Log]) -> Iterator[Finding]:
    """Yield findings on the timers of the sweep, and on its last run in the log."""
    if facts.systemd and facts.timer in ("active", "enabled"):
        yield Finding("sweep", "schedule", OK, "jobcache-sweep.timer is active")
    elif facts.cron and not facts.cron_idle:
        yield Finding("sweep", "schedule", OK, "cron starts the sweep")
    else:
        systemd = f"jobcache-sweep.timer is {facts.timer or 'missing'}" if facts.systemd else "systemd does not run"
        cron = f"; cron: {facts.cron_idle}" if facts.cron else ""
        text = f"no sweep is scheduled on this host ({systemd}{cron}). One host must sweep shared scratch"
        copy = "cp etc/cron.d/jobcache /etc/cron.d    # from the source of slurm-jobcache"
        yield Finding("sweep", "schedule", WARNING, text, _ENABLE_TIMER if facts.systemd else facts.cron_remedy or copy)
    if events is not None and events.file is not None:
        yield _last_sweep(events, events.file)


def _last_sweep(events: Log, file: str) -> Finding:
    if events.last_sweep is None:
        text = f"{file} has no sweep: none has run on this host"
        if events.error:
            return Finding("sweep", "last", WARNING, text, "jobcache sweep --dry-run")
        return Finding("sweep", "last", OK, text)
    ago = f"{events.last_sweep / 60:.0f} min" if events.last_sweep < 7200 else f"{events.last_sweep / 3600:.0f} h"
    if events.last_sweep > _STALE_SWEEP:
        return Finding("sweep", "last", WARNING, f"the last sweep ended {ago} ago", _ENABLE_TIMER)
    if events.sweep_error:
        text = f"the last sweep, {ago} ago, reported an error: {events.sweep_error}"
        return Finding("sweep", "last", WARNING, text, "jobcache sweep --dry-run")
    return Finding("sweep", "last", OK, f"the last sweep ended {ago} ago")
