"""SIGKILL, wherever it strikes: what was begun is finished or undone later, what lives stays, what is dead goes.

Between two calls that change something on scratch there is one state. So each of them is a point at which strace kills the
process that is about to make it, one run for each.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import job_record, node_leases, protocol
from jobcache.config import settings
from jobcache.sweep import reaping
from jobcache.sweep.plan import REAP
from jobcache.system import as_user, epilog_work
from jobcache.system.epilog_job import Job
from support.faulty import EXPORTED, FULL, GID, UID, left, said, swept
from support.home import fingerprint
from support.site_dir import ALICE, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("strace"), reason="needs root and strace")
CHANGING = (
    "mkdir,mkdirat,openat,write,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,fchmod,chmod,fchmodat,utimensat"
)
MOST = 300  # calls; none of what is killed here makes as many
NEIGHBOUR = 4243
Report = Callable[[dict[str, Any]], None]


def as_alice(work: Callable[[Report], None], kill_at: int = 0) -> str:
    """Run `work` as ALICE in a child that is killed at its nth call that may change something; return how it ended."""
    gate, opened = os.pipe()

    def gated(report: Report) -> None:
        os.read(gate, 1)
        work(report)

    child = as_user.start(gated, uid=UID, gid=GID, user=ALICE, places=[gate])
    tracer = traced(child.pid, f"inject={CHANGING}:signal=KILL:when={kill_at}") if kill_at else None
    os.write(opened, b"x")
    os.close(opened)
    for _ in child.facts(time.monotonic() + 20):
        pass
    if tracer is not None:
        tracer.wait()
    return child.status


def traced(pid: int, inject: str) -> subprocess.Popen[bytes]:
    """Return the strace that has taken the process. On a busy machine one has been seen to wait for ever for its own child."""
    while True:
        command = ["strace", "-qq", "-o", os.devnull, "-e", f"trace={CHANGING}", "-e", inject, "-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text():
                return tracer
            time.sleep(0.001)
        tracer.kill()
        tracer.wait()


def at_every_call(work: Callable[[], Callable[[Report], None]]) -> Iterator[int]:
    """Kill what `work()` returns at its first such call, then a new one at its second, and so on until one is not reached.

    Yields after each kill.
    """
    for at in range(1, MOST):
        if as_alice(work(), kill_at=at) == "done":
            assert at > 5, "strace has killed nobody"
            return
        yield at
    raise AssertionError("it never came to its end")


@pytest.fixture
def compiled(site: Site) -> settings.Settings:
    """The site's settings, with a cache beside whose job lives."""
    made = site.configure(log={"file": str(site.log), "syslog": False})
    site.task_prolog(NEIGHBOUR)
    site.fill(site.cache(NEIGHBOUR), "json/a.arrow")
    return made


def claim(site: Site, node: str = "n1", first: bool = True) -> protocol.Claim:
    made = protocol.Claim(str(site.cache()), "test", 4242, 0, UID, node)
    made.first_task = first
    made.keep = False
    return made


def enter(site: Site, node: str = "n1", first: bool = True) -> Callable[[Report], None]:
    return lambda _: (protocol.enter(claim(site, node, first), time.monotonic() + 0.5), None)[1]


def end(compiled: settings.Settings, node: str = "n1", nodes: int = 1) -> Callable[[Report], None]:
    """What the Epilog of a node does as the user."""
    job = Job(4242, UID, node)
    job.user, job.gid, job.nodes, job.exit_status = ALICE, GID, nodes, 0
    return epilog_work.Work(job, compiled, compiled.templates, node_leases.now()[1] + 1)


def make(site: Site, *nodes: str) -> None:
    """A cache that these nodes use, with something in it."""
    for node in nodes:
        assert as_alice(enter(site, node, first=node == nodes[0])) == "done"
    site.fill(site.cache(), "json/a.arrow", "json/deep/b.arrow", "c")


def brought_right(site: Site, compiled: settings.Settings, *nodes: str) -> None:
    """The job ends: one more Epilog a node and one sweep, and nothing of it is left; its living neighbour is as it was."""
    before = fingerprint(site.cache(NEIGHBOUR))
    for node in nodes:
        assert as_alice(end(compiled, node, len(nodes))) == "done"
    result = swept(site, NEIGHBOUR)
    assert (left(site), result.trouble) == ([f"hf-datasets-{NEIGHBOUR}"], [])
    assert fingerprint(site.cache(NEIGHBOUR)) == before


def test_killed_while_it_makes_a_cache(site: Site, compiled: settings.Settings) -> None:
    """The next task has a whole cache, whatever the first one left; and after the job nothing is left."""
    for at in at_every_call(lambda: enter(site)):
        assert as_alice(enter(site, first=False)) == "done", at
        assert sorted(os.listdir(site.cache() / ".jobcache")) == ["id", "job.json", "nodes"]
        brought_right(site, compiled, "n1")


def test_killed_while_it_joins(site: Site, compiled: settings.Settings) -> None:
    """A lease that is there and empty holds the cache; no other node's work is lost, and after the job nothing is left."""

    def joining() -> Callable[[Report], None]:
        if site.cache().exists():
            shutil.rmtree(site.cache())
        make(site, "n1")
        return enter(site, "n2", first=False)

    killed = 0
    for at in range(1, MOST):
        if as_alice(joining(), kill_at=at) == "done":
            break
        killed += 1
        assert (site.cache() / "json/a.arrow").exists() and (site.cache() / ".jobcache/nodes/n1").exists()
        assert as_alice(enter(site, "n2", first=False)) == "done"
        brought_right(site, compiled, "n1", "n2")
    assert killed > 3


def test_killed_while_it_discards_an_earlier_life(site: Site, compiled: settings.Settings) -> None:
    """The job id came again: whatever is left of the earlier life, the new job never sees it, and it goes."""

    def discarding() -> Callable[[Report], None]:
        if not site.cache().exists():
            make(site, "n9")
        return enter(site)

    for _ in at_every_call(discarding):
        assert as_alice(enter(site)) == "done" or not (site.cache() / ".jobcache/nodes").exists()
        swept(site, NEIGHBOUR) if not (site.cache() / ".jobcache/nodes").exists() else None
        assert as_alice(enter(site)) == "done"
        assert os.listdir(site.cache()) == [".jobcache"]
        brought_right(site, compiled, "n1")


def test_killed_while_it_releases(site: Site, compiled: settings.Settings) -> None:
    """The node that is not the last one gives up its lease or does not: the other one's cache is as it was."""

    def releasing() -> Callable[[Report], None]:
        if not site.cache().exists():
            make(site, "n1", "n2")
        return end(compiled, "n1", 2)

    killed = 0
    for at in range(1, MOST):
        if as_alice(releasing(), kill_at=at) == "done":
            break
        killed += 1
        assert (site.cache() / "json/deep/b.arrow").exists() and (site.cache() / ".jobcache/nodes/n2").exists()
        brought_right(site, compiled, "n1", "n2")
    assert killed > 3


def test_killed_while_it_reaps(site: Site, compiled: settings.Settings) -> None:
    """Released, renamed, half deleted: one more Epilog and a sweep, and all of it is gone."""

    def reaping() -> Callable[[Report], None]:
        make(site, "n1")
        return end(compiled)

    for _ in at_every_call(reaping):
        brought_right(site, compiled, "n1")


def test_killed_while_it_keeps(site: Site, compiled: settings.Settings) -> None:
    """keep_until is written whole or not at all, and what is kept goes when its time has come."""

    def keeping() -> Callable[[Report], None]:
        make(site, "n1")
        (site.cache() / ".jobcache/keep").touch()
        os.chown(site.cache() / ".jobcache/keep", UID, GID)
        return end(compiled)

    for _ in at_every_call(keeping):
        fd = os.open(site.cache(), os.O_RDONLY)
        assert job_record.read_record(fd)["job_id"] == 4242
        os.close(fd)
        assert not [one for one in swept(site, NEIGHBOUR).reaped if one.decision.found.job_id == 4242]
        (site.cache() / ".jobcache/keep").unlink()
        text = (site.cache() / ".jobcache/job.json").read_text()
        (site.cache() / ".jobcache/job.json").write_text(text.replace("keep_until", "kept_until"))
        brought_right(site, compiled, "n1")


def test_killed_while_it_sweeps(site: Site, compiled: settings.Settings) -> None:
    """An orphan, trash and a half-made one: the next sweep finishes what a killed one began."""

    def sweeping() -> Callable[[Report], None]:
        make(site, "n1", "n2")
        for kind in ("trash", "new"):
            path = site.cache().with_name(f".jobcache-{kind}-7-0")
            (path / ".jobcache").mkdir(parents=True)
            (path / ".jobcache/id").write_text(f"test 7 0 {UID}\n")
            for part in (path, path / ".jobcache", path / ".jobcache/id"):
                os.chown(part, UID, GID)
        decisions = dry(site)
        assert len(decisions) == 3
        return reaping._Reaping(decisions, None)

    for _ in at_every_call(sweeping):
        brought_right(site, compiled)


def dry(site: Site) -> list[Any]:
    """What a sweep would reap."""
    acted, reaping.act = reaping.act, lambda *_: iter(())  # type: ignore[assignment,misc]
    try:
        return [one.found for one in swept(site, NEIGHBOUR).decisions if one.action == REAP]
    finally:
        reaping.act = acted


# --------------------------------------------------------------------------------------- whole hooks, at any moment


def killed(command: list[str], env: dict[str, str], after: float, **who: Any) -> None:
    """Run a hook, and kill all of its processes after so many seconds."""
    process = subprocess.Popen(
        command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, **who
    )
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while lives(process.pid):  # until the last of them has ended the call that it was in
        time.sleep(0.001)


def lives(group: int) -> bool:
    """Whether there is a process of this group that has not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                return True
    return False


def hook_env(job: int = 4242) -> dict[str, str]:
    told = {"SLURM_JOB_ID": str(job), "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    return {**told, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "1", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_a_killed_task_prolog(site: Site, python: bool) -> None:
    """Cancelled at any moment, the shell's work as well as Python's: the next task has its cache, and nothing is left."""
    if not python:
        site.policy(python="/nonexistent")
    rounds = random.Random(python)
    for _ in range(100 if FULL else 10):
        after = rounds.uniform(0.002, 0.12 if python else 0.05)
        killed(["/bin/sh", str(site.hooks / "task-prolog")], hook_env(), after, user=UID, group=GID, extra_groups=[])
        told = site.task_prolog(step="0")
        assert told.exports.keys() == EXPORTED
        assert {"id", "nodes"} <= set(os.listdir(site.cache() / ".jobcache"))
        assert swept(site, 4242).reaped == []
        swept(site)
        assert left(site) == []


def test_a_killed_epilog(site: Site) -> None:
    """At any moment: one more Epilog or a sweep has the rest, no line of the log is cut, the living are as they were."""
    site.task_prolog(NEIGHBOUR)
    before = fingerprint(site.cache(NEIGHBOUR))
    rounds = random.Random(1)
    for _ in range(100 if FULL else 10):
        site.task_prolog()
        site.fill(site.cache(), *(f"json/{at}" for at in range(50)), size=10)
        time.sleep(0.02)
        killed([str(site.hooks / "epilog")], hook_env(), rounds.uniform(0.01, 0.3))
        site.epilog()
        swept(site, NEIGHBOUR)
        assert left(site) == [f"hf-datasets-{NEIGHBOUR}"] and fingerprint(site.cache(NEIGHBOUR)) == before
    assert {event for event, _, _ in said(site)} <= {"cache.reaped", "hook.failed"}  # each line is held against the schema


def test_an_epilog_that_slurmd_terminates(site: Site) -> None:
    """SIGTERM, as at EpilogTimeout: exit 0 at once, said, and the next one reaps."""
    site.task_prolog()
    script = site.dir / "python"
    script.write_text(f"#!/bin/sh\n: >{site.dir}/begun\nexec /bin/sleep 30\n")
    script.chmod(0o755)
    site.policy(python=str(script))
    process = subprocess.Popen([str(site.hooks / "epilog")], env=hook_env(), start_new_session=True)
    until = time.monotonic() + 20
    while not (site.dir / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=5) == 0
    os.killpg(process.pid, signal.SIGKILL)  # as slurmd does with what an Epilog leaves
    assert said(site) == [("hook.failed", "failed", "deadline")]
    site.configure()
    site.epilog()
    assert left(site) == []
