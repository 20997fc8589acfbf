"""The events: one JSON object a line, one line an outcome, to the log file and to syslog.

Written by structlog; their fields and the closed sets of their words are defined in schema/event.json. Never raises:
where the log file cannot be written, syslog alone has the event.
"""

import fcntl
import os
import time

import structlog

from jobcache.cache import devlog, timestamps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LEVELS = ("debug", "info", "warning", "error")
_LOOKS, _PAUSE = 100, 0.005  # at the lock of the log file: whoever holds it writes one line


class Log:
    """Where events go. file: its path, None for none. socket: syslog's, None for none. level: the least that is said.

    facts: fields that every event of this log carries.
    """

    def __init__(self, file: "str | None", socket: "str | None", level: str = "info", **facts: "Any") -> None:
        least = _LEVELS.index(level)
        self._said = frozenset(_LEVELS[least:])
        self._logger = structlog.wrap_logger(
            _Sink(file, socket),
            processors=[_complete, structlog.processors.JSONRenderer()],
            wrapper_class=structlog.BoundLoggerBase,
            cache_logger_on_first_use=True,
        ).bind(**facts)

    def emit(self, event: str, level: str = "info", **fields: "Any") -> None:
        """Write one event; fields that are None are left out."""
        if level in self._said:
            self._logger._proxy_to_logger(level, event, **fields)


def _complete(_logger: object, level: str, fields: "structlog.typing.EventDict") -> "structlog.typing.EventDict":
    """Put the moment, the event and its level first, and every string into what any JSON reader takes."""
    event = {"ts": timestamps.millisecond(time.time()), "event": fields.pop("event"), "level": level}
    event.update((key, _clean(value)) for key, value in fields.items() if value is not None)
    return event


def _clean(value: "Any") -> "Any":
    """Bytes that are not UTF-8, which Python keeps as lone surrogates, become \\xNN: JSON has no word for them."""
    if not isinstance(value, str):
        return value
    try:
        raw = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = value.encode("utf-8", "surrogatepass")  # of no file's name: somebody's JSON can spell such a one
    return raw.decode("utf-8", "backslashreplace")


class _Sink:
    """Takes whole lines."""

    def __init__(self, file: "str | None", socket: "str | None") -> None:
        self._file = file
        self._socket = socket

    def _write(self, level: str, line: str) -> None:
        if self._file is not None:
            append(self._file, line)
        if self._socket is not None:
            devlog.send(self._socket, level, line)

    def debug(self, line: str) -> None:
        self._write("debug", line)

    def info(self, line: str) -> None:
        self._write("info", line)

    def warning(self, line: str) -> None:
        self._write("warning", line)

    def error(self, line: str) -> None:
        self._write("error", line)


def append(path: str, line: str) -> bool:
    """Append one line to a log file in a single write, and return whether that worked.

    O_APPEND makes the lines of writers at once whole. Opened for each line, so that rotation needs no signal. Where a
    full disk has cut somebody's line short, ours begins on a new one.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
    except OSError:
        return False
    try:
        data = line.encode("ascii", "backslashreplace") + b"\n"
        if _lock(fd) and _is_torn(fd):
            data = b"\n" + data
        return os.write(fd, data) == len(data)
    except OSError:
        return False
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Whether the file is ours alone, until it is closed. A long line grows before others' eyes while it is written."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:
            return False  # a filesystem without locks, as some NFS: O_APPEND has to do
        else:
            return True
    return False


def _is_torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
