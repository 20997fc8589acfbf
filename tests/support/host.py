"""The host of a sweep under test: it has only the processes of this test, although other processes run on the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from jobcache.sweep.host import Host


def own_pids() -> list[int]:
    """Return the ids of the processes that this test has started, and of their children."""
    return [process.pid for process in psutil.Process().children(recursive=True)]


HOST = Host(pids=own_pids)


@contextmanager
def foreign_step(job: int) -> Iterator[int]:
    """Keep a process alive that looks like slurmstepd with a step of `job`, and that is no child of this test. Yield its id.

    If the tests run as root, root owns it, as it owns every slurmstepd.
    """
    title = f"exec -a 'slurmstepd: [{job}.batch]' sleep 3600"
    script = 'bash -c "$1" >/dev/null 2>&1 & echo $!'
    pid = int(subprocess.run(["sh", "-c", script, "sh", title], stdout=subprocess.PIPE, check=True).stdout)
    try:
        while b"slurmstepd" not in Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]:
            time.sleep(0.01)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
