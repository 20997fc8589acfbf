"""Gather facts about the event log: whether the hooks can write it, and its recent failures and sweeps."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Optional

from jobcache.config.settings import Settings
from jobcache.diagnostics.check_facts import Log
from jobcache.diagnostics.file_safety import change_by_others
from jobcache.diagnostics.rebuilding import rebuilt
from jobcache.system import event_log, files, log_files

_TAIL = 4 << 20  # bytes at the end of a log file
_DAY = 86400.0  # seconds


def log(site: Settings) -> Log:
    """Return the facts about the log file and about syslog."""
    facts = Log(site.log_file, syslog=site.log_socket, syslog_error=_syslog_error(site.log_socket))
    if not site.log_file:
        return facts
    above = os.path.dirname(site.log_file)
    exists = os.path.lexists(site.log_file)
    target = site.log_file if exists else above
    if exists and (os.path.islink(site.log_file) or not os.path.isfile(site.log_file)):
        return replace(facts, error="not a regular file: the hooks do not write to it")
    if not os.path.exists(target):
        return replace(facts, error=f"{above} does not exist")
    if not os.access(target, os.W_OK):
        return replace(facts, error="cannot be written")
    why = change_by_others(target)
    insecure = f"{target} {why}" if why else ""
    return replace(facts, insecure=insecure, **_history(_recent_events(site.log_file), time.time()))


def _syslog_error(path: Optional[str]) -> str:
    """Return why nothing receives messages at a socket, "" if something does or the path is None."""
    if not path:
        return ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect(path)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _recent_events(log_file: str) -> Iterator[event_log.Event]:
    """Yield the last events of a log, and of the file that the last rotation put aside."""
    plain = [name for name in log_files.rotations(log_file) if not name.endswith(log_files.PACKED)]
    for path in plain[-2:]:
        try:
            with open(files.open_regular(path, follow=True), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                yield from event_log.read([file], event_log.Tally())
        except OSError:
            continue


def _history(events: Iterator[event_log.Event], now: float) -> dict[str, Any]:
    """Return the fields of `Log` that come from events. now: seconds since the epoch."""
    failures: dict[str, int] = {}
    last: Optional[float] = None
    error = ""
    sizes: dict[str, dict[tuple[Any, ...], int]] = {}
    for event in events:
        at = event_log.epoch_or_none(event["ts"])
        if at is None:
            continue
        ago = now - at
        if event["event"] == "hook.failed" and ago < _DAY:
            reason = event.get("reason", "no reason")
            failures[reason] = failures.get(reason, 0) + 1
        elif event["event"] == "sweep.finished":
            last, error = ago, str(event.get("error") or event.get("reason") or "")
        elif event["event"] in ("cache.reaped", "cache.orphan_reaped"):
            # A cache can end in several events: the Epilog deletes a part, and the sweep the rest.
            caches = sizes.setdefault(str(event.get("user") or event.get("uid") or ""), {})
            cache = tuple(event.get(key) for key in ("cluster", "job_id", "run", "path"))
            caches[cache] = caches.get(cache, 0) + event.get("bytes", 0)
    same = tuple(found for user, caches in sizes.items() if user and (found := rebuilt(user, list(caches.values()))))
    return {"failures": failures, "last_sweep": last, "sweep_error": error, "rebuilt": same}
