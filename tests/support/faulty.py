"""What the tests of faults share: hooks run against the clock, a Slurm that knows the jobs it is told, a sweep that mends."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Sequence

from jobcache.config import settings
from jobcache.sweep import (
    one_sweep,
    scanning,  # noqa: E402
)
from jobcache.system import slurm
from support import task_prolog
from support.site_dir import ALICE, Site
from support.task_prolog import Prologue

UID, GID = pwd.getpwnam(ALICE).pw_uid, pwd.getpwnam(ALICE).pw_gid
EXPORTED = {"HF_DATASETS_CACHE", "JOBCACHE_DIR"}
FULL = os.environ.get("JOBCACHE_FULL", "") not in ("", "0")  # the numbers that take minutes
_SLACK = 2.0  # seconds beyond a hook's deadline in which a busy machine lets it end


def prolog(site: Site, *, shell: str = "/bin/sh", step: str = "", deadline: float = 5, **env: str) -> Prologue:
    """Run the TaskProlog of ALICE's job as Slurm does. It exits 0, prints whole exports only, and keeps its deadline."""
    variables = {**task_prolog.environment(ALICE, step=step), **env}
    done = task_prolog.run(site.hooks, ALICE, variables, shell=shell, timeout=deadline + _SLACK)
    assert (done.status, done.stderr) == (0, b"")
    return done


def epilog(site: Site, *, shell: str = "/bin/sh", deadline: float = 30, **env: str) -> None:
    """Run the Epilog of ALICE's job as slurmd does. It exits 0, prints nothing, and keeps its deadline."""
    variables = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_GID": str(GID), "SLURM_JOB_USER": ALICE,
        "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_EXIT_CODE": "0", **env,
    }  # fmt: skip
    ended = run([*shell.split(), str(site.hooks / "epilog")], {key: value for key, value in variables.items() if value}, deadline)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def run(
    command: Sequence[str], env: dict[str, str], deadline: float, *, user: int | None = None, group: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a hook to the end of its output, which is what Slurm waits for; one that exceeds its deadline fails the test."""
    time.sleep(0.02)  # leases are dated in hundredths of a second, and one as young as the Epilog is kept
    who = {} if user is None else {"user": user, "group": group, "extra_groups": []}
    return subprocess.run(
        command, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=deadline + _SLACK, **who
    )  # type: ignore[call-overload,no-any-return]


def told(done: subprocess.CompletedProcess[bytes]) -> Prologue:
    assert (done.returncode, done.stderr) == (0, b"")
    return Prologue(done.returncode, done.stdout)


def said(site: Site) -> list[tuple[object, ...]]:
    """What root's events say, in short."""
    return [(event["event"], event["outcome"], event.get("reason")) for event in site.events()]


def skipped(site: Site) -> list[tuple[object, ...]]:
    """(outcome, reason) of what TaskPrologs said."""
    return [(event["outcome"], event["reason"]) for event in site.syslog.events("cache.skipped")]


class KnownJobs(slurm.Slurm):
    """A Slurm of which ALICE's `alive` are all the jobs."""

    def __init__(self, *alive: int) -> None:
        self.alive = alive

    def listing(self, cluster: str, *, node: str | None = None, only_own: bool = False) -> slurm.Listing:
        return slurm.Listing(time.monotonic(), {job: {UID} for job in self.alive})


def swept(site: Site, *alive: int) -> one_sweep.Result:
    """Sweep the site's scratch in this process, by the real code, for a Slurm that knows ALICE's jobs `alive` and no others."""
    compiled = settings.load(str(site.hooks / settings.FILE))
    compiled.tree["sweep"].update(grace=-1.0, confirm=0.0)  # the clock's grain is coarser than that of some change times
    return one_sweep.run(compiled, scanning.Options(node="n1"), slurm=KnownJobs(*alive))


def left(site: Site) -> list[str]:
    """All that lies where ALICE's caches do."""
    parent = site.cache().parent
    return sorted(os.listdir(parent)) if parent.exists() else []
