"""Faults on a real cluster: jobs end as without the fault, nodes stay up, and the sweep reaps the rest.

Each test ends with both nodes idle: the fixture waits for that.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Wired
from jobcache.config import settings
from jobcache.sweep import one_sweep, scanning
from jobcache.system import live_jobs, slurm
from support.hungfs import hung  # noqa: E402
from support.mounts import mount  # noqa: E402
from support.site_dir import ALICE

UID, GID = pwd.getpwnam(ALICE).pw_uid, pwd.getpwnam(ALICE).pw_gid
SHOW = 'echo "<$HF_DATASETS_CACHE>"'


def users_directory(wired: Wired) -> Path:
    """Return the user's directory on scratch. It stays for the next test, so the user has to own it."""
    place = wired.site.scratch / ALICE
    place.mkdir(exist_ok=True)
    os.chown(place, UID, GID)
    return place


def codes(wired: Wired, *scripts: str) -> list[tuple[int, str]]:
    """Run these scripts as jobs at the same time; after all have ended, return Slurm's exit code of each."""
    jobs = [wired.batch(script) for script in scripts]
    for job in jobs:
        wired.wait(job)
    return [(job, wired.cluster.job(job)["ExitCode"]) for job in jobs]


def both_idle(wired: Wired) -> None:
    """Assert that no node is drained or down, or has a reason for it."""
    for node in wired.cluster.nodes:
        wired.cluster.wait_node(node, "IDLE")
        assert wired.cluster.node(node).get("Reason", "") == ""


def swept(wired: Wired) -> one_sweep.Result:
    """Run a sweep with an empty job list."""

    class NoJobs(slurm.Slurm):
        def listing(self, cluster: str, *, node: str | None = None, only_own: bool = False) -> live_jobs.Listing:
            return live_jobs.Listing(time.monotonic(), {})

    compiled = settings.load(str(wired.site.hooks / settings.FILE))
    compiled.tree["sweep"].update(grace=-1.0, confirm=0.0)
    return one_sweep.run(compiled, scanning.Options(), slurm=NoJobs(None, "squeue", "scontrol", 1.0))


@pytest.mark.parametrize("killable", [True, False])
def test_hung_scratch_costs_no_job_and_no_node(wired: Wired, killable: bool) -> None:
    """Jobs get their path at the deadline, Epilogs end by their deadline, and no node is drained."""
    wired.site.configure(task_prolog={"deadline": "1s"}, epilog={"deadline": "3s"}, inherit="off")
    place = users_directory(wired)
    with hung(place, killable=killable):
        jobs = [wired.batch(f"{SHOW}\nexit {code}") for code in (0, 7)]
        for job in jobs:
            until = time.monotonic() + 20
            while not (output := wired.cluster.dir / f"out/{job}.out").exists() or not output.read_text():
                assert time.monotonic() < until
                time.sleep(0.05)
        if killable:
            assert [wired.wait(job) for job in jobs] == ["COMPLETED", "FAILED"]
            both_idle(wired)
    for job, code in zip(jobs, ("0:0", "7:0")):
        wired.wait(job)
        assert wired.output(job) == [f"<{wired.cache(job)}>"] and wired.cluster.job(job)["ExitCode"] == code
        if killable:
            assert {event["reason"] for event in wired.events(job, "hook.failed")} == {"deadline"}
    both_idle(wired)


def test_full_disk_leaves_jobs_without_a_cache(wired: Wired) -> None:
    """Without space or inodes, jobs run without a private cache. Existing caches are reaped."""
    place = users_directory(wired)
    with mount("none", place, "tmpfs", f"size=256k,nr_inodes=60,uid={UID},gid={GID}"):
        go = wired.cluster.scratch / "full-go"
        first = wired.batch(f"{SHOW}\nuntil [ -e {go} ]; do sleep 0.05; done\nexit 5")
        wired.wait_for(wired.cache(first) / ".jobcache/nodes/n1")
        at = 0
        with pytest.raises(OSError):
            while True:
                (place / f"filler-{at}").write_bytes(b"x" * 16384)
                at += 1
        with pytest.raises(OSError):
            while True:
                (place / f"filler-{at}").touch()
                at += 1
        assert [code for _, code in codes(wired, f"{SHOW}\nexit 0", f"{SHOW}\nexit 7")] == ["0:0", "7:0"]
        assert wired.output(first + 1) == wired.output(first + 2) == ["<>"]
        go.touch()
        wired.wait(first)
        assert wired.cluster.job(first)["ExitCode"] == "5:0"
        wired.assert_reaped(first)
        both_idle(wired)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "policy closed to users": lambda hooks: (hooks / "policy.sh").chmod(0o600),
    "settings gone": lambda hooks: (hooks / "settings.json").unlink(),
    "both torn": lambda hooks: [
        (hooks / name).write_text((hooks / name).read_text()[:-100]) for name in ("policy.sh", "settings.json")
    ],
    "both gone": lambda hooks: [(hooks / name).unlink() for name in ("policy.sh", "settings.json")],
    "policy of another user": lambda hooks: shutil.chown(hooks / "policy.sh", ALICE),
}


@pytest.mark.parametrize("how", UNREADABLE)
def test_unreadable_configuration_costs_no_job_and_no_node(wired: Wired, how: str) -> None:
    """Jobs end with the same status, with a cache or without one."""
    UNREADABLE[how](wired.site.hooks)
    assert [code for _, code in codes(wired, f"{SHOW}\nexit 0", f"{SHOW}\nexit 7")] == ["0:0", "7:0"]
    both_idle(wired)
    wired.site.configure()
    swept(wired)


@pytest.mark.parametrize("python", ["exit 1", "kill -SEGV $$", "exec /bin/sleep 60"])
def test_broken_python_costs_no_job_and_no_node(wired: Wired, python: str) -> None:
    """Python fails, crashes or hangs. The sweep reaps the rest."""
    script = wired.site.dir / "broken-python"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    wired.site.configure(task_prolog={"deadline": "1s"}, epilog={"deadline": "2s"}, inherit="off")
    wired.site.policy(python=str(script))
    ended = codes(wired, f"{SHOW}\nexit 0", f"{SHOW}\nexit 7")
    assert [code for _, code in ended] == ["0:0", "7:0"]
    for job, _ in ended:
        assert wired.output(job) == [f"<{wired.cache(job)}>"]
    both_idle(wired)
    assert {event["reason"] for job, _ in ended for event in wired.events(job)} <= {"python", "deadline"}
    wired.site.configure()
    assert swept(wired).trouble == []
    assert not any(wired.cache(job).exists() for job, _ in ended)


def test_scratch_remounted_read_only_costs_no_job(wired: Wired) -> None:
    """Scratch becomes read-only while a job runs. Its later steps run as without jobcache."""
    place = users_directory(wired)
    with mount("none", place, "tmpfs", f"uid={UID},gid={GID}"):
        go = wired.cluster.scratch / "ro-go"
        job = wired.batch(f"{SHOW}\nuntil [ -e {go} ]; do sleep 0.05; done\nsrun -n1 sh -c '{SHOW}'\nexit 3")
        wired.wait_for(wired.cache(job) / ".jobcache/nodes/n1")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        go.touch()
        wired.wait(job)
        assert wired.cluster.job(job)["ExitCode"] == "3:0"
        assert wired.output(job) == [f"<{wired.cache(job)}>", "<>"]
        assert [event["reason"] for event in wired.events(job)] == ["read_only"]
        both_idle(wired)
