"""The event log of the commands: structlog binds the context, and events.Writer writes the events.

No hook imports this module: structlog takes 60 ms to import.
"""

import sys
from typing import Any

import structlog

from jobcache.system import events


class CommandLog(structlog.BoundLoggerBase):
    """A log with bound context. `bind` returns one with more."""

    def emit(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one event with the bound context. Omit the fields that are None."""
        self._proxy_to_logger("emit", event, level=level, **fields)


def bound(file: "str | None", socket: "str | None", level: str = "info", **context: Any) -> CommandLog:
    """Return a log that adds `context` to every event.

    file, socket, level: of events.Writer. Raise ValueError for an unknown level.
    """
    log: CommandLog = structlog.wrap_logger(
        events.Writer(file, socket, level), processors=[_notify], wrapper_class=CommandLog
    ).bind(**context)
    return log


def _notify(_writer: object, _method: str, event: "structlog.typing.EventDict") -> "structlog.typing.EventDict":
    """Print a line about a warning or an error if stderr is a terminal; return the event, whose items Writer.emit gets.

    The line has words of closed sets only. Commands print the details themselves.
    """
    if event["level"] in ("warning", "error") and sys.stderr.isatty():
        reason = f" ({event['reason']})" if event.get("reason") else ""
        print(f"{event['level']} logged: {event['event']}: {event.get('outcome')}{reason}", file=sys.stderr)
    return event
