"""The host on which a sweep runs: clocks, processes, and the reading of directories. Tests pass a host of their own."""

import os
import time
from dataclasses import dataclass
from typing import Callable

from jobcache.sweep import directories
from jobcache.sweep.plan import Directory


def list_pids() -> list[int]:
    """Return the ids of the processes in /proc."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


@dataclass(frozen=True)
class Host:
    """The functions by which a sweep reads its host.

    monotonic: returns the seconds of a clock that is never set.
    sleep: waits for a number of seconds.
    pids: returns the ids of the processes that can be steps of jobs or use a cache.
    inspect, filesystem_time: as in `directories`.
    clock: returns the seconds since the epoch, by this host's clock.
    """

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    pids: Callable[[], list[int]] = list_pids
    inspect: Callable[[int, str, Directory], Directory] = directories.inspect
    filesystem_time: Callable[[int], float] = directories.filesystem_time
    clock: Callable[[], float] = time.time


THIS_HOST = Host()
