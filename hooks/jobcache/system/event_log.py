"""Events as they were written, read back in a stream: plain files, rotated and compressed ones, exports of a system log.

A log is no more to be trusted than who could write it. A line that is cut short, or is no event, is passed over and
counted; a field that is not of its kind is dropped. In an export of journald the sender is known, and an event that
says it is of another user is not believed. In other exports of a system log any user can have written any line: what
comes from there carries `source: "syslog"`, and no number and no reason that could be none of ours.
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

LOG, SYSLOG = "log", "syslog"  # sources

_decode = json.JSONDecoder().raw_decode
_LONGEST = 1 << 20  # bytes of one line
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
_STAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3})?Z").fullmatch
# The kinds of the fields that are read; of all others nothing is believed, nor are they needed.
_KINDS: dict[str, type] = {
    **dict.fromkeys("ts event level cluster node user path outcome reason partition account created_at policy".split(), str),
    **dict.fromkeys("trash keep_until error hook from".split(), str),
    **dict.fromkeys("job_id run uid bytes files found reaped kept reported troubles left duration_ms status".split(), int),
    **dict.fromkeys("fs_total_bytes fs_free_bytes builds saved_bytes".split(), int),
    "pids": list,
}
_WORDS = ("event", "outcome", "reason")  # of closed sets, which a newer version may have more of
_WORD = re.compile(r"[a-z_.]{1,32}").fullmatch
_MOST = 1 << 63  # of what any field counts
_ROOTS = frozenset(["cache.released", "cache.reaped", "cache.orphan_reaped", "sweep.finished", "hook.failed"])


@dataclass
class Tally:
    """What was read: lines, those of them that are events, and those that should be and are not; files that end early."""

    lines: int = 0
    events: int = 0
    torn: int = 0
    broken: tuple[str, ...] = ()


def rotations(path: str) -> list[str]:
    """Return a log and what a rotation made of it, oldest first: `.2.gz`, `.1`, `-20261122.gz` beside it."""
    found = [path] if os.path.exists(path) else []
    older = [name for pattern in (".*", "-*") for name in glob.glob(glob.escape(path) + pattern) if _is_rotation(path, name)]
    return sorted(older, key=lambda name: (_changed(name), name)) + found


def _is_rotation(path: str, name: str) -> bool:
    return re.fullmatch(r"[.-][0-9]+(-[0-9]+)?(\.(gz|bz2|xz))?", name[len(path) :]) is not None


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def epoch(stamp: str) -> float:
    """Return the seconds since the epoch of an event's moment. Raise ValueError for what is none."""
    if _STAMP(stamp) is None:
        raise ValueError(f"{stamp!r} is no moment")
    fraction = float(f"0{stamp[19:-1]}") if stamp[19:20] == "." else 0.0
    return _minute(stamp[:17]) + int(stamp[17:19]) + fraction


def epoch_or_none(text: str) -> Optional[float]:
    """Return the same, None for what is none: a line can say anything, and a record is its user's word."""
    try:
        return epoch(text)
    except ValueError:
        return None


@functools.lru_cache(maxsize=4096)
def _minute(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:"))  # slow, and events come by the minute


def read(
    sources: Iterable[Union[str, IO[bytes]]], tally: Tally, job_id: Optional[int] = None, since: str = "", until: str = "~"
) -> Iterator[Event]:
    """Yield the events of the sources in their order: paths, "-" for standard input, or open binary files.

    job_id: only that job's, which is quick: other lines are not even parsed. since, until: as timestamps.millisecond returns.
    An event that is in several sources is yielded as often.
    """
    needle = re.compile(rb'job_id\\?"\s*:\s*%d\b' % job_id) if job_id is not None else None
    for source in sources:
        for event in _events(_lines(source, tally), needle, tally):
            if since <= event["ts"] < until and (job_id is None or event.get("job_id") == job_id):
                yield event


def _lines(source: Union[str, IO[bytes]], tally: Tally) -> Iterator[bytes]:
    """Yield the lines of a source; one that is longer than any event is passed over, in pieces."""
    if not isinstance(source, str):
        yield from _pieces(source)
        return
    try:
        if source == "-":
            yield from _pieces(sys.stdin.buffer)
            return
        with _OPENERS.get(os.path.splitext(source)[1], open)(source, "rb") as file:
            yield from _pieces(file)
    except _BROKEN as error:
        tally.broken = (*tally.broken, f"{source}: {getattr(error, 'strerror', None) or error}")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    within = False
    while True:
        line = file.readline(_LONGEST)
        if not line:
            return
        if not within:
            yield line
        within = not line.endswith(b"\n")


def _events(lines: Iterable[bytes], needle: "Optional[re.Pattern[bytes]]", tally: Tally) -> Iterator[Event]:
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


def _event(line: bytes) -> Optional[Event]:
    """Return the event on a line, None where there is none that can be believed."""
    if line[:1] == b"{":
        found = _parse(line)
        if found is None:  # somebody's line was cut short, and ours was written behind it
            at = line.rfind(b'{"ts"')
            return _sound(_parse(line[at:]), LOG) if at > 0 else None
        if "event" in found:
            return _sound(found, LOG)
        return _journalled(found)
    at = line.find(b"{")
    return _sound(_parse(line[at:]), SYSLOG) if at > 0 and b"jobcache" in line[:at] else None


def _parse(text: bytes) -> Optional[Event]:
    try:
        line = text.decode("utf-8", "replace").rstrip()
        found, end = _decode(line)
    except (ValueError, RecursionError):
        return None
    if end != len(line):
        return None
    return found if isinstance(found, dict) else None


def _journalled(entry: Event) -> Optional[Event]:
    """Return the event of an entry of `journalctl -o json`, which tells who sent it."""
    message, sender = entry.get("MESSAGE"), entry.get("_UID")
    if isinstance(message, list):  # so journald spells what is not printable
        try:
            message = bytes(message).decode("utf-8", "replace")
        except (ValueError, TypeError):
            return None
    if not isinstance(message, str) or not isinstance(sender, str) or not message.startswith("{"):
        return None
    event = _sound(_parse(message.encode("utf-8", "surrogatepass")), SYSLOG)
    if event is None or (sender != "0" and (event["event"] in _ROOTS or str(event.get("uid")) != sender)):
        return None
    return event


def _sound(found: Optional[Event], source: str) -> Optional[Event]:
    """Return what of an event is of its kind; None where it lacks the moment or a name."""
    if found is None:
        return None
    kind = _KINDS.get
    wrong = [key for key, value in found.items() if type(value) is not kind(key)]
    if source == SYSLOG:  # of which any user can have written any line
        wrong += [key for key in _WORDS if key in found and key not in wrong and _WORD(found[key]) is None]
        wrong += [key for key, value in found.items() if type(value) is int and not 0 <= value < _MOST and kind(key) is int]
    for key in wrong:
        del found[key]
    moment = found.get("ts")
    if moment is None or "event" not in found or _STAMP(moment) is None:
        return None
    found["source"] = source
    return found
