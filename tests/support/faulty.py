"""Helpers of the tests of faults: hooks with a deadline, a Slurm client with a fixed list of jobs, a sweep without grace."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Sequence

from jobcache.config import settings
from jobcache.sweep import one_sweep, scanning
from jobcache.system import live_jobs, slurm
from support import task_prolog
from support.host import HOST
from support.site_dir import ALICE, Site
from support.task_prolog import Prologue

UID, GID = pwd.getpwnam(ALICE).pw_uid, pwd.getpwnam(ALICE).pw_gid
EXPORTED = {"HF_DATASETS_CACHE", "JOBCACHE_DIR"}
FULL = os.environ.get("JOBCACHE_FULL", "") not in ("", "0")  # run the counts that take minutes
_SLACK = 2.0  # seconds that a busy machine may need beyond a hook's deadline


def prolog(site: Site, *, shell: str = "/bin/sh", step: str = "", deadline: float = 5, **env: str) -> Prologue:
    """Run the TaskProlog of ALICE's job as Slurm does. Check that it exits 0, prints whole exports and meets its deadline."""
    variables = {**task_prolog.environment(ALICE, step=step), **env}
    done = task_prolog.run(site.hooks, ALICE, variables, shell=shell, timeout=deadline + _SLACK)
    assert (done.status, done.stderr) == (0, b"")
    return done


def epilog(site: Site, *, shell: str = "/bin/sh", deadline: float = 30, **env: str) -> None:
    """Run the Epilog of ALICE's job as slurmd does. Check that it exits 0, prints nothing and meets its deadline."""
    variables = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_GID": str(GID), "SLURM_JOB_USER": ALICE,
        "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_EXIT_CODE": "0", **env,
    }  # fmt: skip
    ended = run([*shell.split(), str(site.hooks / "epilog")], {key: value for key, value in variables.items() if value}, deadline)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def run(
    command: Sequence[str], env: dict[str, str], deadline: float, *, user: int | None = None, group: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a hook until its output ends, as Slurm does. Fail the test if the hook exceeds its deadline."""
    time.sleep(0.02)  # leases have dates in hundredths of a second, and an Epilog keeps a lease of its own age
    who = {} if user is None else {"user": user, "group": group, "extra_groups": []}
    return subprocess.run(
        command, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=deadline + _SLACK, **who
    )  # type: ignore[call-overload,no-any-return]


def told(done: subprocess.CompletedProcess[bytes]) -> Prologue:
    """Return the parsed output of a TaskProlog. Check that it exited 0 and wrote nothing to stderr."""
    assert (done.returncode, done.stderr) == (0, b"")
    return Prologue(done.returncode, done.stdout)


def said(site: Site) -> list[tuple[object, ...]]:
    """Return (event, outcome, reason) of each event in the log."""
    return [(event["event"], event["outcome"], event.get("reason")) for event in site.events()]


def skipped(site: Site) -> list[tuple[object, ...]]:
    """Return (outcome, reason) of each `cache.skipped` that TaskPrologs logged."""
    return [(event["outcome"], event["reason"]) for event in site.syslog.events("cache.skipped")]


class KnownJobs(slurm.Slurm):
    """A Slurm client whose live jobs are ALICE's jobs `alive`."""

    def __init__(self, *alive: int) -> None:
        self.alive = alive

    def listing(self, cluster: str, *, node: str | None = None, only_own: bool = False) -> live_jobs.Listing:
        return live_jobs.Listing(time.monotonic(), {job: {UID} for job in self.alive})


def swept(site: Site, *alive: int, dry: bool = False) -> one_sweep.Result:
    """Sweep the site's scratch in this process, with ALICE's jobs `alive` as the only live ones."""
    compiled = settings.load(str(site.hooks / settings.FILE))
    compiled.tree["sweep"].update(grace=-1.0, confirm=0.0)  # the clock is coarser than some change times
    return one_sweep.run(compiled, scanning.Options(node="n1", dry=dry), slurm=KnownJobs(*alive), host=HOST)


def left(site: Site) -> list[str]:
    """Return all names in the directory of ALICE's caches, without her history."""
    return site.names()
