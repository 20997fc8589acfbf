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

    def emit(self, event: str, level: str, outcome: str, reason: str = "", **facts: str) -> str:
        """Send one event; return its line. reason: "" for none. facts: further fields, as JSON text."""
        fields = {key: quote(value) for key, value in head(event, level).items()}
        fields.update(self.facts, **facts)
        fields["outcome"] = quote(outcome)
        if reason:
            fields["reason"] = quote(reason)
        fields["duration_ms"] = str(round((time.monotonic() - self.began) * 1000))
        line = to_json(fields)
        if self.address:
            devlog.send(self.address, level, line)
        return line


def head(event: str, level: str) -> "dict[str, str]":
    """Return the fields that begin every event, in their order: ts, event, level."""
    return {"ts": timestamps.millisecond(time.time()), "event": event, "level": level}


def clean(text: str) -> str:
    """Return `text` without lone surrogates, which JSON cannot hold. Bytes that are not UTF-8 become \\xNN."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")  # not a file name: JSON from a user can hold any surrogate
    return data.decode("utf-8", "backslashreplace")


def quote(text: str) -> str:
    """Return `text` as a JSON string in ASCII. Bytes that are not UTF-8 appear as \\xNN in the text."""
    out = []
    for ch in clean(text):
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
