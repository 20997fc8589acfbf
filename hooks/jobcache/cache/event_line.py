"""Events as lines of JSON, written without `json`: how the TaskProlog's Python logs to the system log."""

import os
import time

from jobcache.cache import devlog, timestamps


class Log:
    """Sends the events of one hook run to the system log at the socket `address`; "" discards them.

    facts: the fields of every event, as JSON text by key (config/schema/event.json). began: time.monotonic of its start.
    """

    __slots__ = ("address", "facts", "began")

    def __init__(self, address: str, facts: "dict[str, str]", began: float) -> None:
        self.address = address
        self.facts = facts
        self.began = began

    def emit(self, event: str, level: str, outcome: str, reason: str = "", **facts: str) -> None:
        """Send one event. reason: "" for none. facts: further fields, as JSON text."""
        if not self.address:
            return
        fields = {"ts": quote(timestamps.millisecond(time.time())), "event": quote(event), "level": quote(level)}
        fields.update(self.facts, **facts)
        fields["outcome"] = quote(outcome)
        if reason:
            fields["reason"] = quote(reason)
        fields["duration_ms"] = str(round((time.monotonic() - self.began) * 1000))
        devlog.send(self.address, level, to_json(fields))


def quote(text: str) -> str:
    """Return `text` as a JSON string in ASCII. Bytes that are not UTF-8 appear as \\xNN in the text."""
    clean = os.fsencode(text).decode("utf-8", "backslashreplace")
    out = []
    for ch in clean:
        if ch in '"\\':
            out.append("\\" + ch)
        elif " " <= ch <= "~":
            out.append(ch)
        else:
            units = ch.encode("utf-16-be")
            out.extend(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    return '"' + "".join(out) + '"'


def to_json(fields: "dict[str, str]") -> str:
    """Given JSON text by key, return a JSON object on one line."""
    return "{" + ", ".join(f"{quote(key)}: {value}" for key, value in fields.items()) + "}"
