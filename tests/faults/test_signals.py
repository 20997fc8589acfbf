"""SIGKILL at every point: later runs finish or undo the work, live caches stay, dead ones are reaped.

The state of scratch changes only by system calls. strace kills the process before each call that changes something, one run
for each call.
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

from jobcache.cache import cache_names, job_record, lease_lock, node_leases, protocol
from jobcache.config import settings
from jobcache.sweep import reaping
from jobcache.sweep.plan import REAP
from jobcache.system import as_user, epilog_work, reaper
from jobcache.system.epilog_job import Job
from support.claims import age
from support.faulty import EXPORTED, FULL, GID, UID, left, said, swept
from support.home import fingerprint
from support.site_dir import ALICE, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("strace"), reason="needs root and strace")
CHANGING = (
    "mkdir,mkdirat,openat,write,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,fchmod,chmod,fchmodat,utimensat"
)
MOST = 300  # calls; no work in these tests makes as many
NEIGHBOUR = 4243
MAKER = 4_194_304  # above every process id of Linux
Report = Callable[[dict[str, Any]], None]


def as_alice(work: Callable[[Report], None], kill_at: int = 0) -> str:
    """Run `work` as ALICE in a child. Kill it before its nth call that may change something, never for 0. Return its status."""

    def gated(report: Report) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        work(report)

    child = as_user.start(gated, uid=UID, gid=GID, user=ALICE, place=None)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    tracer = traced(child.pid, f"inject={CHANGING}:signal=KILL:when={kill_at}") if kill_at else None
    os.kill(child.pid, signal.SIGCONT)
    for _ in child.facts(time.monotonic() + 20):
        pass
    if tracer is not None:
        tracer.wait()
    return child.status


def traced(pid: int, inject: str) -> subprocess.Popen[bytes]:
    """Return an strace that is attached to the process. On a busy machine strace can wait forever for its own child: retry."""
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
    """Run `work()` again and again: kill it before its first call, then before its second, until it ends by itself.

    Yield the number of the call after each kill.
    """
    for at in range(1, MOST):
        if as_alice(work(), kill_at=at) == "done":
            assert at > 5, "strace has killed no process"
            return
        yield at
    raise AssertionError(f"the work makes more than {MOST} calls")


@pytest.fixture
def compiled(site: Site) -> settings.Settings:
    """Return the site's settings. Another job is live, and has a cache."""
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
    """Return the work of the Epilog of a node as the user."""
    job = Job(4242, UID, node)
    job.user, job.gid, job.nodes = ALICE, GID, nodes
    return epilog_work.Work(job, compiled, compiled.templates, node_leases.now()[1] + 1)


def make(site: Site, *nodes: str) -> None:
    """Make a cache with files in it that these nodes use."""
    for node in nodes:
        assert as_alice(enter(site, node, first=node == nodes[0])) == "done"
    site.fill(site.cache(), "json/a.arrow", "json/deep/b.arrow", "c")


def finish(site: Site, compiled: settings.Settings, *nodes: str) -> None:
    """End the job: run an Epilog on each node and a sweep. Check that nothing is left but the other job's cache, unchanged."""
    before = fingerprint(site.cache(NEIGHBOUR))
    for node in nodes:
        assert as_alice(end(compiled, node, len(nodes))) == "done"
    result = swept(site, NEIGHBOUR)
    assert (left(site), result.trouble) == ([f"hf-datasets-{NEIGHBOUR}"], [])
    assert fingerprint(site.cache(NEIGHBOUR)) == before


def test_killed_while_it_makes_a_cache(site: Site, compiled: settings.Settings) -> None:
    """The next task gets a whole cache. After the job nothing is left."""
    for at in at_every_call(lambda: enter(site)):
        assert as_alice(enter(site, first=False)) == "done", at
        assert sorted(os.listdir(site.cache() / ".jobcache")) == ["id", "job.json", "nodes"]
        finish(site, compiled, "n1")


def test_killed_while_a_command_releases_its_cache(site: Site, compiled: settings.Settings) -> None:
    """`jobcache run` outside of jobs. At every point, also between the removal of its lease and that of nodes/, the next sweep
    reaps the cache.
    """

    def leave() -> Callable[[Report], None]:
        cache = site.cache().parent / f"hf-datasets-run-{MAKER}-abcdefgh"
        host = lease_lock.host()
        made = protocol.Claim(str(cache), cache_names.host_cluster(host), MAKER, 0, UID, f"{host}+1")
        made.record = {"pid": str(MAKER), "started": "1"}
        assert as_alice(lambda _: (protocol.enter(made, time.monotonic()), None)[1]) == "done"
        site.fill(cache, "json/a.arrow")

        def work(_: Report) -> None:
            parent_fd, fd = os.open(cache.parent, os.O_PATH), os.open(cache, os.O_RDONLY)
            assert node_leases.release(fd, f"{host}+1", node_leases.now()[0], float("inf")) == "last"
            trash = reaper.retire(parent_fd, cache.name, fd, UID, MAKER)
            assert reaper.delete(parent_fd, trash, fd, time.monotonic() + 10).done

        return work

    for at in at_every_call(leave):
        result = swept(site, NEIGHBOUR)
        assert (left(site), result.trouble) == ([f"hf-datasets-{NEIGHBOUR}"], []), at


def test_killed_while_it_joins(site: Site, compiled: settings.Settings) -> None:
    """An empty lease holds the cache. No other node loses files, and after the job nothing is left."""

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
        finish(site, compiled, "n1", "n2")
    assert killed > 3


def test_killed_while_it_discards_an_earlier_life(site: Site, compiled: settings.Settings) -> None:
    """A new job has the same id. It never gets files of the earlier job, and these are deleted."""

    def discarding() -> Callable[[Report], None]:
        if not site.cache().exists():
            make(site, "n9")
        if (site.cache() / ".jobcache/nodes").exists():
            age(site.cache())
        return enter(site)

    for _ in at_every_call(discarding):
        assert as_alice(enter(site)) == "done" or not (site.cache() / ".jobcache/nodes").exists()
        swept(site, NEIGHBOUR) if not (site.cache() / ".jobcache/nodes").exists() else None
        assert as_alice(enter(site)) == "done"
        assert os.listdir(site.cache()) == [".jobcache"]
        finish(site, compiled, "n1")


def test_killed_while_it_releases(site: Site, compiled: settings.Settings) -> None:
    """A node that is not the last one releases its lease, or fails to. The files stay for the other node."""

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
        finish(site, compiled, "n1", "n2")
    assert killed > 3


def test_killed_while_it_reaps(site: Site, compiled: settings.Settings) -> None:
    """The cache is released, renamed or half deleted. One more Epilog and a sweep delete all of it."""

    def reaping() -> Callable[[Report], None]:
        make(site, "n1")
        return end(compiled)

    for _ in at_every_call(reaping):
        finish(site, compiled, "n1")


def test_killed_while_it_keeps(site: Site, compiled: settings.Settings) -> None:
    """keep_until is written whole or not at all. The kept cache is deleted when its time has come."""

    def keeping() -> Callable[[Report], None]:
        make(site, "n1")
        (site.cache() / ".jobcache/keep").touch()
        os.chown(site.cache() / ".jobcache/keep", UID, GID)
        return end(compiled)

    for _ in at_every_call(keeping):
        fd = os.open(site.cache(), os.O_RDONLY)
        assert job_record.read_record(fd)["job_id"] == 4242
        os.close(fd)
        assert not [one for one in swept(site, NEIGHBOUR).reaped if one.decision.directory.job_id == 4242]
        (site.cache() / ".jobcache/keep").unlink()
        text = (site.cache() / ".jobcache/job.json").read_text()
        (site.cache() / ".jobcache/job.json").write_text(text.replace("keep_until", "kept_until"))
        finish(site, compiled, "n1")


def test_killed_while_it_sweeps(site: Site, compiled: settings.Settings) -> None:
    """The next sweep finishes what a killed one began: an orphan, trash and a half-made directory."""

    def sweeping() -> Callable[[Report], None]:
        make(site, "n1", "n2")
        for kind in ("trash", "new"):
            path = site.cache().with_name(f".jobcache-{kind}-7-0")
            (path / ".jobcache").mkdir(parents=True)
            (path / ".jobcache/id").write_text(f"test 7 0 {UID}\n")
            for part in (path, path / ".jobcache", path / ".jobcache/id"):
                os.chown(part, UID, GID)
        decisions = swept(site, NEIGHBOUR, dry=True).decisions
        orphans = [decision.directory for decision in decisions if decision.action == REAP]
        assert len(orphans) == 3
        return reaping.OwnerReaping(orphans, None)

    for _ in at_every_call(sweeping):
        finish(site, compiled)


# --------------------------------------------------------------------------------------- whole hooks, at random moments


def killed(command: list[str], env: dict[str, str], after: float, **who: Any) -> None:
    """Run a hook, and kill all its processes after that many seconds."""
    process = subprocess.Popen(
        command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, **who
    )
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while lives(process.pid):  # until the last process has left its system call
        time.sleep(0.001)


def lives(group: int) -> bool:
    """Return whether a process of this group has not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state not in "ZX":
                return True
    return False


def hook_env(job: int = 4242) -> dict[str, str]:
    job_env = {"SLURM_JOB_ID": str(job), "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    return {**job_env, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "1", "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_a_killed_task_prolog(site: Site, python: bool) -> None:
    """The job is cancelled while the shell or Python works. The next task gets its cache, and nothing is left."""
    if not python:
        site.policy(python="/nonexistent")
    rounds = random.Random(python)
    for _ in range(100 if FULL else 10):
        after = rounds.uniform(0.002, 0.12 if python else 0.05)
        killed(["/bin/sh", str(site.hooks / "task-prolog")], hook_env(), after, user=UID, group=GID, extra_groups=[])
        assert site.task_prolog(step="0").exports.keys() == EXPORTED
        assert {"id", "nodes"} <= set(os.listdir(site.cache() / ".jobcache"))
        assert swept(site, 4242).reaped == []
        swept(site)
        assert left(site) == []


def test_a_killed_epilog(site: Site) -> None:
    """One more Epilog or a sweep reaps the rest. No line of the log is cut short, and the other job's cache is as it was."""
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
    assert {event for event, _, _ in said(site)} <= {"cache.reaped", "hook.failed"}  # said() checks each line against the schema


def test_an_epilog_that_slurmd_terminates(site: Site) -> None:
    """SIGTERM, as at EpilogTimeout: the Epilog exits 0 at once and logs it. The next one reaps."""
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
    os.killpg(process.pid, signal.SIGKILL)  # like slurmd, which kills the processes that an Epilog leaves
    assert said(site) == [("hook.failed", "failed", "deadline")]
    site.configure()
    site.epilog()
    assert left(site) == []
