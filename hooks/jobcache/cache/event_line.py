"""One event as a line of JSON, without `json`: what the TaskProlog's Python sends to the system's log.

On the hot path: standard library only, and nothing heavy of it.
"""

import os
import time

from jobcache.cache import devlog, timestamps


def head(event: str, level: str) -> "dict[str, str]":
    """Return the fields that begin every event, in their order: ts, event, level."""
    return {"ts": timestamps.millisecond(time.time()), "event": event, "level": level}


def clean(text: str) -> str:
    """Return `text` without lone surrogates, which JSON cannot hold: bytes that are not UTF-8 become \\xNN."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")  # not a file name: JSON from a user can hold any surrogate
    return data.decode("utf-8", "backslashreplace")


def quote(text: str) -> str:
    """Return `text` as a JSON string of ASCII alone. Bytes that are not UTF-8 come out as \\xNN in the text."""
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


def send(address: str, level: str, event: str, facts: "dict[str, str]", outcome: str, reason: str, began: float) -> None:
    """Send one event to the system log at the socket `address`; "" sends nothing.

    The fields are those of config/schema/event.json. facts: JSON text by key. began: seconds of time.monotonic.
    """
    if not address:
        return
    fields = {**{key: quote(value) for key, value in head(event, level).items()}, **facts}
    fields["outcome"] = quote(outcome)
    if reason:
        fields["reason"] = quote(reason)
    fields["duration_ms"] = str(round((time.monotonic() - began) * 1000))
    devlog.send(address, level, "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}")
