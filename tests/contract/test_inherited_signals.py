"""Both hooks keep their promises whatever signal mask and dispositions they inherit.

slurmstepd of Slurm 25.05 to 26.05 starts the Epilog with SIGCHLD blocked under PrologFlags=RunInJob, and a user's program can
ignore any signal before it submits. The hooks are started without a wrapper: a shell in between would reset the mask.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from support.site_dir import ALICE, SHELLS, Prologue, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")

SIGNALS = ("SIGCHLD", "SIGTERM", "SIGWINCH", "SIGURG", "SIGALRM", "SIGUSR1", "SIGHUP", "SIGINT", "SIGPIPE")


def block(*names: str) -> Callable[[], None]:
    return lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in names]) and None


def ignore(*names: str) -> Callable[[], None]:
    def ignoring() -> None:
        for name in names:
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    return ignoring


INHERITED = {
    **{f"{name} blocked": block(name) for name in SIGNALS},
    **{f"{name} ignored": ignore(name) for name in SIGNALS},
    "all blocked": block(*SIGNALS),
    "all ignored": ignore(*SIGNALS),
}


def task_prolog(site: Site, shell: str, inherited: Callable[[], None], limit: float, **env: str) -> tuple[Prologue, float]:
    """Run the TaskProlog to the end of its output; return what it printed and the seconds that took."""
    who = pwd.getpwnam(ALICE)
    variables = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(who.pw_uid), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "PATH": "/nonexistent", **env,
    }  # fmt: skip

    def before() -> None:
        os.setgroups([])
        os.setgid(who.pw_gid)
        os.setuid(who.pw_uid)
        inherited()

    began = time.monotonic()
    done = subprocess.run(
        [*shell.split(), str(site.hooks / "task-prolog")], env=variables, cwd="/", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=limit, restore_signals=False, preexec_fn=before,
    )  # fmt: skip
    assert done.returncode == 0
    return Prologue(done.returncode, done.stdout), time.monotonic() - began


def epilog(site: Site, shell: str, inherited: Callable[[], None], limit: float) -> None:
    """Run the Epilog to the end of its output."""
    who = pwd.getpwnam(ALICE)
    variables = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(who.pw_uid), "SLURM_JOB_GID": str(who.pw_gid), "SLURM_JOB_USER": ALICE,
        "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_EXIT_CODE": "0",
    }  # fmt: skip
    time.sleep(0.02)  # leases are dated in hundredths of a second, and one as young as the Epilog is kept
    done = subprocess.run(
        [*shell.split(), str(site.hooks / "epilog")], env=variables, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
        check=False, timeout=limit, restore_signals=False, preexec_fn=inherited,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("inherited", INHERITED)
def test_a_job_lives_its_life_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """The first task creates the cache, a further one finds it, the Epilog reaps it."""
    for step in ("", "0"):
        found, _ = task_prolog(site, shell, INHERITED[inherited], 20, **({"SLURM_STEP_ID": step} if step else {}))
        assert found.cache == str(site.cache())
    epilog(site, shell, INHERITED[inherited], 20)
    assert not site.cache().exists() and site.debris() == []
    assert [event["outcome"] for event in site.events("cache.reaped")] == ["reaped"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("inherited", INHERITED)
def test_task_prolog_keeps_its_deadline_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """An id that blocks whoever reads it, as hung scratch does, costs the task its deadline and no more."""
    site.configure(task_prolog={"deadline": "1s", "chain": None})
    meta = site.cache() / ".jobcache"
    meta.mkdir(parents=True)
    os.mkfifo(meta / "id")
    for path in (site.scratch / ALICE, site.scratch / ALICE / ".cache", site.cache(), meta, meta / "id"):
        os.chown(path, pwd.getpwnam(ALICE).pw_uid, -1)
    found, seconds = task_prolog(site, shell, INHERITED[inherited], 20, SLURM_STEP_ID="0")
    assert found.cache == str(site.cache())
    assert seconds < 10, "far beyond the deadline of 1 s"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("inherited", INHERITED)
def test_epilog_keeps_its_deadline_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """A Python that never ends is ended at the deadline, and the event names it."""
    site.configure(epilog={"deadline": "2s", "budget": "1s"})
    sleeper = site.dir / "python"
    sleeper.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    sleeper.chmod(0o755)
    site.policy(python=str(sleeper))
    epilog(site, shell, INHERITED[inherited], 20)
    assert [event["reason"] for event in site.events("hook.failed")] == ["deadline"]
