"""Read events back: from plain, rotated and compressed log files, and from exports of a system log.

A log is as trustworthy as everybody who can write to it. A line that is cut short or is no event is skipped and counted. A
field of the wrong type is dropped. journald records the sender of a line, so an event about another user is rejected. In
other exports of a system log, any user can have written any line: their events have `source: "syslog"`, and a number or a
word that jobcache cannot have written is dropped.
"""

import bz2
import calendar
import functools
import glob
import gzip
import json
import lzma
import os
import re
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Optional, Union

Event = dict[str, Any]

LOG, SYSLOG, HISTORY = "log", "syslog", "history"  # sources. Users can write the last two

_LINE_LIMIT = 1 << 20  # bytes
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
_is_timestamp = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3})?Z").fullmatch
# Types of the fields that are read. All other fields are dropped.
_TYPES: dict[str, type] = {
    **dict.fromkeys("ts event level cluster node user path outcome reason partition account created_at policy".split(), str),
    **dict.fromkeys("trash keep_until error hook from by".split(), str),
    **dict.fromkeys("array_job_id array_task_id".split(), int),
    **dict.fromkeys("job_id run uid bytes files found reaped kept reported troubles left duration_ms status".split(), int),
    **dict.fromkeys("fs_total_bytes fs_free_bytes builds saved_bytes".split(), int),
    "pids": list,
}
_CLOSED_SETS = ("event", "outcome", "reason")  # a newer version may write words that this one does not know
_is_word = re.compile(r"[a-z_.]{1,32}").fullmatch
_NUMBER_LIMIT = 1 << 63
_ROOT_EVENTS = frozenset(["cache.released", "cache.reaped", "cache.orphan_reaped", "sweep.finished", "hook.failed"])
_decode = json.JSONDecoder().raw_decode


@dataclass
class Tally:
    """Counts of what was read.

    lines: all. events: lines with an event. torn: lines with a damaged event. broken: files that could not be read to the
    end, with the error.
    """

    lines: int = 0
    events: int = 0
    torn: int = 0
    broken: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------ files and lines


def rotations(path: str) -> list[str]:
    """Return the log and its rotated files (`.1`, `.2.gz`, `-20261122.gz`), oldest first. A fifo or a device is no log."""
    current = [path] if os.path.isfile(path) else []
    older = [name for pattern in (".*", "-*") for name in glob.glob(glob.escape(path) + pattern) if _is_rotation(path, name)]
    return sorted(older, key=lambda name: (_modified(name), name)) + current


def _is_rotation(path: str, name: str) -> bool:
    suffix = re.fullmatch(r"[.-][0-9]+(-[0-9]+)?(\.(gz|bz2|xz))?", name[len(path) :])
    return suffix is not None and os.path.isfile(name)


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def read(
    sources: Iterable[Union[str, IO[bytes]]], tally: Tally, job_id: Optional[int] = None, since: str = "", until: str = "~"
) -> Iterator[Event]:
    """Yield the events of the sources in their order.

    sources: paths, "-" for standard input, or open binary files. An event in several sources is yielded several times.
    job_id: yield only this job's events. Lines without its number are not parsed, which is fast.
    since, until: yield only events from `since` to before `until`; texts as timestamps.millisecond returns.
    """
    needle = re.compile(rb'job_id\\?"\s*:\s*%d\b' % job_id) if job_id is not None else None
    for source in sources:
        for event in _events(_lines(source, tally), needle, tally):
            if since <= event["ts"] < until and (job_id is None or event.get("job_id") == job_id):
                yield event


def _lines(source: Union[str, IO[bytes]], tally: Tally) -> Iterator[bytes]:
    if not isinstance(source, str):
        yield from _lines_of_file(source)
        return
    try:
        if source == "-":
            yield from _lines_of_file(sys.stdin.buffer)
            return
        with _OPENERS.get(os.path.splitext(source)[1], open)(source, "rb") as file:
            yield from _lines_of_file(file)
    except _READ_ERRORS as error:
        tally.broken = (*tally.broken, f"{source}: {getattr(error, 'strerror', None) or error}")


def _lines_of_file(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines. Of a line longer than the limit, yield the first part only."""
    continued = False
    while True:
        line = file.readline(_LINE_LIMIT)
        if not line:
            return
        if not continued:
            yield line
        continued = not line.endswith(b"\n")


def _events(lines: Iterable[bytes], needle: "Optional[re.Pattern[bytes]]", tally: Tally) -> Iterator[Event]:
    """Yield the events on the lines that contain `needle`."""
    for line in lines:
        tally.lines += 1
        if needle is not None and needle.search(line) is None:
            continue
        event = _event(line)
        if event is not None:
            tally.events += 1
            yield event
        elif b'"event"' in line:
            tally.torn += 1


# -------------------------------------------------------------------------------------------------- one line, one event


def _event(line: bytes) -> Optional[Event]:
    """Return the event on a line, None without a valid event."""
    if line[:1] == b"{":
        found = _parse(line)
        if found is None:  # another line was cut short, and an event follows it on the same line
            at = line.rfind(b'{"ts"')
            return _validated(_parse(line[at:]), LOG) if at > 0 else None
        if "event" in found:
            return _validated(found, LOG)
        return _from_journal(found)
    at = line.find(b"{")
    return _validated(_parse(line[at:]), SYSLOG) if at > 0 and b"jobcache" in line[:at] else None


def _parse(data: bytes) -> Optional[Event]:
    """Return the JSON object that `data` consists of, None for anything else."""
    try:
        text = data.decode("utf-8", "replace").rstrip()
        found, end = _decode(text)
    except (ValueError, RecursionError):
        return None
    if end != len(text):
        return None
    return found if isinstance(found, dict) else None


def _from_journal(entry: Event) -> Optional[Event]:
    """Given an entry of `journalctl -o json`, return its event, None if its sender cannot have sent it."""
    message, sender = entry.get("MESSAGE"), entry.get("_UID")
    if isinstance(message, list):  # journald's form of a message that is not printable
        try:
            message = bytes(message).decode("utf-8", "replace")
        except (ValueError, TypeError):
            return None
    if not isinstance(message, str) or not isinstance(sender, str) or not message.startswith("{"):
        return None
    event = _validated(_parse(message.encode("utf-8", "surrogatepass")), SYSLOG)
    if event is None or (sender != "0" and (event["event"] in _ROOT_EVENTS or str(event.get("uid")) != sender)):
        return None
    return event


def _validated(found: Optional[Event], source: str) -> Optional[Event]:
    """Drop invalid fields and add the source; return the event, None without a timestamp or a name."""
    if found is None:
        return None
    type_of = _TYPES.get
    invalid = [key for key, value in found.items() if type(value) is not type_of(key)]
    if source != LOG:
        invalid += [key for key in _CLOSED_SETS if key in found and key not in invalid and _is_word(found[key]) is None]
        invalid += [
            key for key, value in found.items() if type(value) is int and not 0 <= value < _NUMBER_LIMIT and type_of(key) is int
        ]
    for key in invalid:
        del found[key]
    timestamp = found.get("ts")
    if timestamp is None or "event" not in found or _is_timestamp(timestamp) is None:
        return None
    found["source"] = source
    return found


def of_history(line: bytes) -> Optional[Event]:
    """Return the event on a line of a user's own history, None without a valid one."""
    return _validated(_parse(line), HISTORY) if line.startswith(b"{") else None


# ----------------------------------------------------------------------------------------------------------- timestamps


def epoch(timestamp: str) -> float:
    """Given a timestamp of an event, return seconds since the epoch. Raise ValueError for another text."""
    if _is_timestamp(timestamp) is None:
        raise ValueError(f"{timestamp!r} is not a timestamp")
    fraction = float(f"0{timestamp[19:-1]}") if timestamp[19:20] == "." else 0.0
    return _minute(timestamp[:17]) + int(timestamp[17:19]) + fraction


def epoch_or_none(text: str) -> Optional[float]:
    """Given a text from a log line or a record, return seconds since the epoch, None if it is not a timestamp."""
    try:
        return epoch(text)
    except ValueError:
        return None


@functools.lru_cache(maxsize=4096)
def _minute(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:"))  # slow, so one call for all events of a minute
