"""How events are written: one JSON object on one line, to the log file and to the system log.

config/schema/event.json defines the fields and their closed sets of words. A log that fails raises nothing: if the log
file cannot be written, only the system log gets the event. The Epilog imports this module, so it imports little.
"""

import fcntl
import json
import os
import time

from jobcache.cache import devlog, event_line
from jobcache.system import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LEVELS = ("debug", "info", "warning", "error")
_LOCK_TRIES, _LOCK_PAUSE = 100, 0.005  # a process that locks the log file writes one line


class Writer:
    """Writes the events of one level and above.

    file: path of the log file, None for none.
    socket: path of the system log's socket, None for none.
    level: the lowest level to write. Raise ValueError for an unknown level.
    """

    def __init__(self, file: "str | None", socket: "str | None", level: str = "info") -> None:
        self._file = file
        self._socket = socket
        self._levels = frozenset(LEVELS[LEVELS.index(level) :])

    def emit(self, event: str, level: str = "info", **fields: "Any") -> None:
        """Write one event. Omit the fields that are None."""
        if level not in self._levels:
            return
        line = encode(event, level, fields)
        if self._file is not None:
            append(self._file, line)
        if self._socket is not None:
            devlog.send(self._socket, level, line)


def encode(event: str, level: str, fields: "dict[str, Any]") -> str:
    """Return the event as one line of ASCII: ts, event, level, then the fields in their order, without those that are None."""
    whole: dict[str, Any] = {**event_line.head(event, level)}
    for key, value in fields.items():
        if value is not None:
            whole[key] = event_line.clean(value) if isinstance(value, str) else value
    return json.dumps(whole)


def append(path: str, line: str) -> bool:
    """Append one line to a log file in a single write; return whether that succeeded.

    O_APPEND keeps the lines of concurrent writers whole. The file is opened for each line, so that log rotation needs no
    signal. After a line that a full disk has cut short, the new one begins on a line of its own.
    """
    try:
        fd = files.open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
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
    """Lock the file until it is closed; return whether that succeeded.

    Without the lock, another writer's long line could be read while it is still growing.
    """
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        except OSError:
            return False  # a filesystem without locks, for example some NFS: O_APPEND has to suffice
        else:
            return True
    return False


def _is_torn(fd: int) -> bool:
    """Return whether the file ends within a line."""
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
