"""tests/support/init.py, the first process of the namespaces in which the full run executes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INIT = Path(__file__).parents[1] / "support/init.py"
# Prints the number of zombies that an orphan leaves: `sleep` outlives its parent, and ends before the count.
ORPHAN = "(sleep 0.1 &); sleep 0.5; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command below init.py."""
    return subprocess.run([sys.executable, INIT, *command], capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)])
def test_init_exits_as_its_command_does(script: str, status: int) -> None:
    assert run("sh", "-c", script).returncode == status


def test_no_signal_is_ignored_in_the_command() -> None:
    """Python ignores SIGPIPE, and a shell SIGINT in background commands. Tests rely on the defaults."""
    assert run("grep", "SigIgn", "/proc/self/status").stdout.split() == ["SigIgn:", "0" * 16]


@pytest.mark.root
def test_orphans_leave_no_zombie() -> None:
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(INIT)]
    done = subprocess.run([*namespace, "sh", "-c", ORPHAN], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout == "0\n"
