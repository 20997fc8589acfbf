"""The Epilog keeps its promises with any inherited signal mask and dispositions.

slurmstepd of Slurm 25.05 to 26.05 starts it with SIGCHLD blocked under PrologFlags=RunInJob. `wait` of dash and busybox then
never returns. The hook is started without a wrapper: a shell in between would reset the mask.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from support.site_dir import ALICE, SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")

SIGNALS = ("SIGCHLD", "SIGTERM", "SIGWINCH", "SIGURG", "SIGALRM", "SIGUSR1", "SIGHUP", "SIGINT", "SIGPIPE")


def block(*names: str) -> Callable[[], None]:
    def blocking() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in names])

    return blocking


def ignore(*names: str) -> Callable[[], None]:
    def ignoring() -> None:
        for name in names:
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    return ignoring


INHERITED = {
    **{f"{name} blocked": block(name) for name in SIGNALS[:3]},
    **{f"{name} ignored": ignore(name) for name in SIGNALS[:3]},
    "all blocked": block(*SIGNALS),
    "all ignored": ignore(*SIGNALS),
}
each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])
each_inherited = pytest.mark.parametrize("inherited", INHERITED)


def epilog(site: Site, shell: str, inherited: Callable[[], None], limit: float) -> None:
    """Run the Epilog to the end of its output."""
    account = pwd.getpwnam(ALICE)
    variables = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(account.pw_uid), "SLURM_JOB_GID": str(account.pw_gid),
        "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_EXIT_CODE": "0",
    }  # fmt: skip
    time.sleep(0.02)  # leases have dates in hundredths of a second, and an Epilog keeps a lease of its own age
    done = subprocess.run(
        [*shell.split(), str(site.hooks / "epilog")], env=variables, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
        check=False, timeout=limit, restore_signals=False, preexec_fn=inherited,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@each_shell
@each_inherited
def test_epilog_reaps_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """The cache is gone, and one event reports it."""
    site.task_prolog()
    epilog(site, shell, INHERITED[inherited], 20)
    assert not site.cache().exists() and site.debris() == []
    assert [event["outcome"] for event in site.events("cache.reaped")] == ["reaped"]


@each_shell
@each_inherited
def test_epilog_keeps_its_deadline_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """A Python that never ends is killed at the deadline, and an event reports it."""
    site.configure(epilog={"deadline": "2s", "budget": "1s"})
    sleeper = site.dir / "python"
    sleeper.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    sleeper.chmod(0o755)
    site.policy(python=str(sleeper))
    epilog(site, shell, INHERITED[inherited], 20)
    assert [event["reason"] for event in site.events("hook.failed")] == ["deadline"]


@each_shell
@each_inherited
def test_epilog_reports_missing_python_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """The event has the exit status of the shell."""
    site.policy(python="/nonexistent")
    epilog(site, shell, INHERITED[inherited], 20)
    assert [event["reason"] for event in site.events("hook.failed")] == ["no_python"]
