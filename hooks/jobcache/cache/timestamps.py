"""Timestamps as text (RFC 3339, UTC): with milliseconds for events, without for records."""

import time

CLOCK_SKEW = 300  # seconds by which the clocks of the file server, this host and the controller may differ


def second(seconds: float) -> str:
    """Given seconds since the epoch, return a text such as `2026-11-22T08:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def millisecond(seconds: float) -> str:
    """Given seconds since the epoch, return a text such as `2026-11-22T08:00:00.000Z`. Such texts sort by time."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"
