"""Read events back: from plain, rotated and compressed log files, and from exports of a system log.

A log is as trustworthy as everybody who can write to it. A line that is cut short or is no event is skipped and counted. A
field of the wrong type is dropped. journald records the sender of a line, so an event about another user is rejected. In
other exports of a system log, any user can have written any line: their events have `source: "syslog"`, and a number or a
word that jobcache cannot have written is dropped.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Callable, Optional

from jobcache.system import log_files
from jobcache.system.log_files import Source

Event = dict[str, Any]

LOG, SYSLOG, HISTORY = "log", "syslog", "history"  # sources. Users can write the last two

_BEGIN = b'{"ts": "'  # of each event, as jobcache writes it
_is_timestamp = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3})?Z").fullmatch
# Types of the fields that are read. All other fields are dropped.
_TYPES: dict[str, type] = {
    **dict.fromkeys("ts event level cluster node user path outcome reason partition account created_at policy".split(), str),
    **dict.fromkeys("trash keep_until error hook from by".split(), str),
    **dict.fromkeys("array_job_id array_task_id".split(), int),
    **dict.fromkeys("job_id run uid bytes files found reaped kept reported troubles left duration_ms status".split(), int),
    **dict.fromkeys("fs_total_bytes fs_free_bytes builds unlinked".split(), int),
    "pids": list,
    "het_job_ids": list,
    "inherited": dict,
}
_OF_INHERITED: dict[str, type] = {
    **dict.fromkeys("builds files bytes duration_ms results found left_out_datasets".split(), int),
    "source": str,
    "left_out": list,
}
_MOST_PARTS = 128  # of a het job, in Slurm
_MOST_LEFT_OUT = 64  # datasets of one event, each of which has three texts
_CLOSED_SETS = ("event", "outcome", "reason")  # a newer version may write words that this one does not know
_is_word = re.compile(r"[a-z_.]{1,32}").fullmatch
_NUMBER_LIMIT = 1 << 63
_MOST_SHAPES, _LONGEST_SHAPE = 1024, 2048  # of the cache of shapes; forged events can have any keys
_ROOT_EVENTS = frozenset(["cache.released", "cache.reaped", "cache.orphan_reaped", "sweep.finished", "hook.failed"])
_decode = json.JSONDecoder().raw_decode


@dataclass
class Tally:
    """Counts of what was read.

    events: lines with an event. torn: lines with a damaged event. broken: files that could not be read to the
    end, with the error.
    """

    events: int = 0
    torn: int = 0
    broken: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------ files and lines


def no_progress(_bytes: int) -> None:
    """Report no progress."""


def read(
    sources: Iterable[Source],
    tally: Tally,
    job_id: Optional[int] = None,
    since: str = "",
    until: str = "~",
    moved: Callable[[int], None] = no_progress,
) -> Iterator[Event]:
    """Yield the events of the sources in their order.

    sources: paths, "-" for standard input, or open binary files. An event in several sources is yielded several times.
    job_id: yield only the events that is_about accepts. Lines without its number are not parsed, which is fast.
    since, until: yield only events from `since` to before `until`; texts as timestamps.millisecond returns.
    moved: gets the number of bytes that were read from a file.
    """
    lines: Callable[[bytes], Iterable[bytes]] = _all_lines
    if job_id is not None:
        lines = functools.partial(_lines_with, str(job_id).encode(), about(job_id))
    elif since or until < "~":
        lines = functools.partial(_lines_between, since.encode(), until.encode())
    for source in sources:
        try:
            for block in log_files.blocks(source, moved):
                for line in lines(block):
                    event = _event(line) if 0 < len(line) <= log_files.LINE_LIMIT else None
                    if event is None:
                        tally.torn += b'"event"' in line
                        continue
                    tally.events += 1
                    if since <= event["ts"] < until and (job_id is None or is_about(event, job_id)):
                        yield event
        except log_files.LogError as error:
            tally.broken = (*tally.broken, str(error))


def about(job_id: int) -> "re.Pattern[bytes]":
    """Return a pattern that is in each line with an event that is_about accepts."""
    return re.compile(rb'(?:job_id\\?"\s*:\s*|het_job_ids\\?"\s*:\s*\[[0-9, ]*\b)%d\b' % job_id)


def is_about(event: Event, job_id: int) -> bool:
    """Return whether an event is about this job, or about the het job of which it is a part."""
    return event.get("job_id") == job_id or job_id in event.get("het_job_ids", ())


def _all_lines(block: bytes) -> Iterable[bytes]:
    return block.split(b"\n")


def _lines_with(digits: bytes, pattern: "re.Pattern[bytes]", block: bytes) -> Iterator[bytes]:
    """Yield the lines in which the pattern occurs. The digits, which are a part of it, are found without a look at each line."""
    at = block.find(digits)
    while at >= 0:
        begin, end = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at)
        line = block[begin : end if end >= 0 else None]
        if pattern.search(line) is not None:
            yield line
        at = block.find(digits, end) if end >= 0 else -1


def _lines_between(since: bytes, until: bytes, block: bytes) -> Iterator[bytes]:
    """Yield the lines, except those that begin one event, of another time."""
    for line in block.split(b"\n"):
        at = line.find(_BEGIN)
        if at >= 0:
            stamp = line[at + len(_BEGIN) : at + len(_BEGIN) + 24]
            if stamp[23:] == b"Z" and not since <= stamp < until and line.find(_BEGIN, at + 1) < 0:
                continue
        yield line


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
    dropped, numbers = _shape(found)
    invalid = list(dropped)
    for key in numbers:
        if not 0 <= found[key] < _NUMBER_LIMIT:
            invalid.append(key)
    if source != LOG:
        invalid += [key for key in _CLOSED_SETS if key in found and key not in invalid and _is_word(found[key]) is None]
    for key in invalid:
        del found[key]
    if "het_job_ids" in found:
        found["het_job_ids"] = [one for one in found["het_job_ids"][:_MOST_PARTS] if type(one) is int and one > 0]
    if "inherited" in found:
        found["inherited"] = _valid_inherited(found["inherited"])
    timestamp = found.get("ts")
    if timestamp is None or "event" not in found or _is_timestamp(timestamp) is None:
        return None
    found["source"] = source
    return found


_shapes: dict[tuple[object, ...], tuple[list[str], list[str]]] = {}


def _shape(found: Event) -> tuple[list[str], list[str]]:
    """Return the keys whose values have a wrong type, and those with numbers. Most events have one of a few shapes."""
    shape = (*found, *map(type, found.values()))
    known = _shapes.get(shape)
    if known is None:
        dropped = [key for key, value in found.items() if type(value) is not _TYPES.get(key)]
        known = dropped, [key for key in found if _TYPES.get(key) is int and key not in dropped]
        if len(_shapes) >= _MOST_SHAPES:
            _shapes.clear()
        if sum(map(len, found)) <= _LONGEST_SHAPE:
            _shapes[shape] = known
    return known


def of_history(line: bytes) -> Optional[Event]:
    """Return the event on a line of a user's own history, None without a valid one."""
    return _validated(_parse(line), HISTORY) if line.startswith(b"{") else None


def _valid_inherited(found: Event) -> Event:
    """Return the field `inherited` of an event without invalid values."""
    valid: Event = {
        key: value
        for key, value in found.items()
        if type(value) is _OF_INHERITED.get(key) and (type(value) is not int or 0 <= value < _NUMBER_LIMIT)
    }
    left_out = [one for one in valid.get("left_out", ())[:_MOST_LEFT_OUT] if isinstance(one, dict)]
    if left_out:
        keys = ("dataset", "reason", "error")
        valid["left_out"] = [{key: one[key] for key in keys if isinstance(one.get(key), str)} for one in left_out]
    else:
        valid.pop("left_out", None)
    return valid


# ----------------------------------------------------------------------------------------------------------- timestamps


def epoch(timestamp: str) -> float:
    """Given a timestamp of an event, return seconds since the epoch. Raise ValueError for another text."""
    if _is_timestamp(timestamp) is None:
        raise ValueError(f"{timestamp!r} is not a timestamp")
    whole = _minute(timestamp[:17]) + int(timestamp[17:19])
    return whole + int(timestamp[20:23]) / 1000 if len(timestamp) == 24 else float(whole)


def epoch_or_none(text: str) -> Optional[float]:
    """Given a text from a log line or a record, return seconds since the epoch, None if it is not a timestamp."""
    try:
        return epoch(text)
    except ValueError:
        return None


@functools.lru_cache(maxsize=4096)
def _minute(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}00+00:00").timestamp())
