"""Timestamps as text: RFC 3339 in UTC, with milliseconds for events and without for records.

On the hot path: `time` alone is imported.
"""

import time

CLOCK_SKEW = 300  # seconds by which the clocks of a filesystem, of this host and of the controller may differ


def second(seconds: float) -> str:
    """Return seconds since the epoch as `2026-11-22T08:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def millisecond(seconds: float) -> str:
    """Return seconds since the epoch as `2026-11-22T08:00:00.000Z`. Such texts sort by time."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"
