#!/usr/bin/env python3
"""First process of a process namespace: run a command, reap every orphan, exit as the command does.

init.py COMMAND [ARGUMENT…]

The kernel hands orphans to the first process of their namespace. It must wait for them, or they stay behind as zombies.
A shell cannot do this job: it starts background commands with SIGINT ignored.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main(command: list[str]) -> int:
    """Run `command`. Return its exit status, or 128 plus the number of the signal that ended it."""

    def forward(number: int, _: object) -> None:
        os.kill(process.pid, number)

    # Popen, unlike glibc's posix_spawn, leaves no signal ignored in the command.
    process = subprocess.Popen(command)
    # A terminal sends SIGINT to the command as well.
    signal.signal(signal.SIGINT, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
