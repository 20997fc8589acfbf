"""Crashes on a real cluster: live jobs keep their caches, and the sweep reaps all others, and nothing else.

Only this module uses the cluster: it kills and freezes nodes and the controller, and deletes their state.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jobcache
from conftest import Wired, asked
from jobcache.system.live_jobs import Unknown
from jobcache.system.slurm import Slurm
from support.minicluster import Cluster
from support.site_dir import ALICE, BOB, Site
from support.slurm_version import slurm_version

FILL = 'echo data >"$HF_DATASETS_CACHE/$SLURMD_NODENAME.arrow"'
SLEEP = "sleep 300"
# Variables that hide jobs, even under --all --states=all, or that make Slurm ask another cluster.
HOSTILE = {
    "SQUEUE_STATES": "COMPLETED", "SQUEUE_PARTITION": "other", "SQUEUE_USERS": "root", "SQUEUE_ACCOUNT": "none",
    "SQUEUE_NAMES": "none", "SQUEUE_FORMAT": "%j", "SQUEUE_SORT": "x", "SLURM_CLUSTERS": "other", "SLURM_CONF": "/nonexistent",
}  # fmt: skip


@pytest.fixture(scope="module")
def _fragile() -> Iterator[Wired]:
    site = Site()
    cluster = Cluster(
        conf=[f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog", "PrivateData=jobs"],
        partitions={"debug": "Default=YES", "hidden": "Hidden=YES"},
    )
    site.configure(
        cluster=cluster.name,
        sweep={"grace": "0s", "confirm": "100ms"},
        slurm={**asked(cluster), "timeout": "20s"},
    )
    with cluster:
        yield Wired(site, cluster)
    site.close()


@pytest.fixture
def fragile(_fragile: Wired) -> Iterator[Wired]:
    """A cluster that tests can break. After each test, both nodes must be up without jobs, and a sweep must leave no cache."""
    yield _fragile
    for user in (ALICE, BOB):
        _fragile.cluster.run("scancel", "--user", user)
    for node in _fragile.cluster.nodes:
        _fragile.cluster.wait_node(node, "IDLE")
    assert sweep(_fragile).returncode == 0
    assert names(_fragile, ALICE) == names(_fragile, BOB) == []


def sweep(wired: Wired, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `jobcache sweep` in an environment that hides jobs."""
    command = (sys.executable, "-m", "jobcache.cli", "sweep", "--hooks", wired.site.hooks, *options)
    root = str(Path(jobcache.__file__).parents[1])
    return wired.cluster.run(*command, env={**HOSTILE, "PYTHONPATH": root}, check=False)


def names(wired: Wired, user: str = ALICE) -> list[str]:
    """Return all names in the directory of the user's caches, without the history."""
    return wired.site.names(user)


def reaped(wired: Wired, begun: int) -> list[tuple[int, str]]:
    """Return (job, reason) of each cache that sweeps have reaped, without the first `begun`."""
    return [(one["job_id"], one["reason"]) for one in wired.site.events("cache.orphan_reaped")[begun:]]


def start(wired: Wired, *options: str, user: str = ALICE, script: str = f"{FILL}\n{SLEEP}", on: tuple[str, ...] = ()) -> int:
    """Submit a job; wait until it has written to its cache on its one node, or on each node in `on`. Return its id."""
    job = wired.batch(script, *options, user=user)
    wired.wait(job, "RUNNING")
    for node in on or (wired.cluster.job(job)["NodeList"],):
        wired.wait_for(wired.cache(job, user=user) / f"{node}.arrow")
    return job


def lives(wired: Wired, job: int) -> bool:
    """Return whether ALICE's job is alive in the listing of the sweep."""
    ask = wired.site.keys["slurm"]
    slurm = Slurm(ask["conf"], ask["squeue"], ask["scontrol"], 20)
    return slurm.listing(wired.cluster.name).alive(job, pwd.getpwnam(ALICE).pw_uid)


# ------------------------------------------------------------------------------------------------------ live jobs


def test_listing_has_every_kind_of_living_job(fragile: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pending, running, suspended, requeued, held, of an array, of a het job, hidden, completing: all are alive."""
    cluster = fragile.cluster
    jobs = {
        "pending": fragile.batch(SLEEP, "--hold"),
        "running": fragile.batch(SLEEP),
        "suspended": fragile.batch(SLEEP),
        "requeued and held": fragile.batch(SLEEP, "--requeue"),
        "hidden": fragile.batch(SLEEP, "--partition=hidden"),
        "completing": fragile.batch("trap '' TERM\nwhile :; do sleep 1; done"),
        "het": fragile.batch(f"#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n1\n{SLEEP}"),
        "array": fragile.batch(SLEEP, "--array=1-2", "--requeue"),
    }
    for kind in set(jobs) - {"pending"}:
        fragile.wait(jobs[kind], "RUNNING")
    tasks = sorted(int(record["JobId"]) for record in cluster.jobs(jobs["array"]))
    jobs.update({f"task {task}": task for task in tasks})
    cluster.run("scontrol", "suspend", str(jobs["suspended"]))
    cluster.run("scontrol", "requeuehold", str(jobs["requeued and held"]))
    cluster.run("scontrol", "requeue", str(jobs["array"]))  # all its tasks
    cluster.run("scancel", str(jobs["completing"]))
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    assert cluster.job(jobs["completing"])["JobState"] == "COMPLETING"
    assert [kind for kind, job in jobs.items() if not lives(fragile, job)] == []
    assert cluster.job(jobs["suspended"])["JobState"] == "SUSPENDED"

    for node in cluster.nodes:
        cluster.wait_node(node, lambda state: "COMPLETING" not in state)
    assert not lives(fragile, jobs["completing"])
    assert cluster.job(jobs["requeued and held"])["JobState"] == "PENDING"
    assert [kind for kind, job in jobs.items() if not lives(fragile, job) and kind != "completing"] == []
    cluster.run("scancel", "--user", ALICE)
    for job in jobs.values():
        fragile.wait(job)
    assert [kind for kind, job in jobs.items() if lives(fragile, job)] == []


def test_listing_under_private_data_is_refused(fragile: Wired) -> None:
    """Under PrivateData=jobs, squeue of another user reports no jobs. This is not a listing."""
    job = fragile.batch(SLEEP)
    fragile.wait(job, "RUNNING")
    assert fragile.cluster.run("squeue", "--noheader", user=BOB).stdout == ""
    pid = os.fork()
    if pid == 0:
        os.setuid(pwd.getpwnam(BOB).pw_uid)
        try:
            lives(fragile, job)
        except Unknown as unknown:
            os._exit(0 if unknown.reason == "slurm_private" else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


# -------------------------------------------------------------------------------------------------------- lost nodes


@pytest.mark.parametrize("lose", [Cluster.kill_slurmd, Cluster.crash_node])
def test_second_run_keeps_its_cache_when_the_lost_node_returns(fragile: Wired, lose: Callable[[Cluster, str], None]) -> None:
    """The node of the first run returns during the second run, with its late Epilog or without one. The second cache stays.

    Slurm 26.05 can start a late Epilog without the user of the job. Then the sweep reaps the first run's cache.
    """
    cluster, site = fragile.cluster, fragile.site
    site.configure(log={**site.keys["log"], "level": "debug"})
    unknown = len(site.events("cache.skipped"))
    job = start(fragile, "--requeue")
    lost = cluster.job(job)["NodeList"]
    (node,) = set(cluster.nodes) - {lost}
    other = start(fragile, "-w", node, user=BOB)
    begun = len(site.events("cache.orphan_reaped"))

    lose(cluster, lost)
    cluster.mark_down(lost)
    assert sweep(fragile).returncode == 0
    assert (fragile.cache(job) / f"{lost}.arrow").exists()  # the job is pending: alive

    fragile.wait(job, "RUNNING")
    again = fragile.cache(job, run=1) / f"{node}.arrow"
    fragile.wait_for(again)
    assert sweep(fragile).returncode == 0
    assert (fragile.cache(job) / f"{lost}.arrow").exists() and again.exists()

    cluster.start_slurmd(lost)
    cluster.wait_node(lost, lambda state: state in ("IDLE", "MIXED"))
    if lose is Cluster.kill_slurmd:  # the job's slurmstepd is still alive, so an Epilog runs
        wait_until(lambda: not fragile.cache(job).exists() or len(site.events("cache.skipped")) > unknown)
    assert {event["reason"] for event in site.events("cache.skipped")[unknown:]} <= {"unknown_job"}
    late = fragile.cache(job).exists()
    assert sweep(fragile).returncode == 0
    assert again.exists() and cluster.job(job)["JobState"] == "RUNNING"

    cluster.run("scancel", str(job))
    fragile.wait(job)
    assert not again.exists()
    assert sweep(fragile).returncode == 0
    assert names(fragile) == []
    assert reaped(fragile, begun) == ([(job, "orphan")] if late else [])
    assert late or lose is Cluster.kill_slurmd
    assert (fragile.cache(other, user=BOB) / f"{node}.arrow").exists()


def test_job_that_outlives_its_node_leaves_its_cache_to_the_sweep(fragile: Wired) -> None:
    """--no-kill: the job continues without the lost node, which returns. Its lease stays, so the sweep reaps the cache."""
    cluster = fragile.cluster
    begun = len(fragile.site.events("cache.orphan_reaped"))
    job = start(fragile, "-N2", "--no-kill", script=f"srun -N2 -n2 sh -c '{FILL}'\n{SLEEP}", on=cluster.nodes)
    cluster.crash_node("n2")
    cluster.mark_down("n2")
    cluster.start_slurmd("n2")
    cluster.wait_node("n2", "IDLE")
    assert sweep(fragile).returncode == 0
    assert sorted(path.name for path in fragile.cache(job).glob("*.arrow")) == ["n1.arrow", "n2.arrow"]
    cluster.run("scancel", str(job))
    fragile.wait(job)
    assert fragile.cache(job).exists()
    assert sweep(fragile).returncode == 0
    assert names(fragile) == [] and reaped(fragile, begun) == [(job, "orphan")]


def test_sweep_of_node_local_scratch_knows_all_nodes_of_its_host(fragile: Wired) -> None:
    """The host has another name than its nodes n1 and n2, and no slurmd of n2 runs. The lease of a third node keeps the cache."""
    cluster = fragile.cluster
    begun = len(fragile.site.events("cache.orphan_reaped"))
    job = start(fragile, "-N2", "--no-kill", script=f"srun -N2 -n2 sh -c '{FILL}'\n{SLEEP}", on=cluster.nodes)
    cluster.crash_node("n2")
    cluster.mark_down("n2")
    cluster.run("scancel", str(job))
    fragile.wait(job)
    lease = fragile.cache(job) / ".jobcache/nodes/n2"
    other = lease.rename(lease.with_name("n3"))
    fragile.site.configure(node_local=[str(fragile.site.scratch)])
    try:
        done = sweep(fragile, "--node-local")
        assert done.returncode == 1 and "a lease of n3; this host is n1, n2" in done.stderr
        assert fragile.cache(job).exists()
        other.rename(lease)
        done = sweep(fragile, "--node-local")
        assert (done.returncode, done.stderr) == (0, "")
        assert reaped(fragile, begun) == [(job, "orphan")]
    finally:
        fragile.site.configure(node_local=[])
        cluster.start_slurmd("n2")


# -------------------------------------------------------------------------------------------------------- controllers


def test_sweep_deletes_nothing_while_the_controller_is_down(fragile: Wired) -> None:
    """The sweep fails and reports why. Later it does its work."""
    job = start(fragile)
    dead = orphan(fragile, 999)
    before = names(fragile)
    fragile.cluster.stop_controller()
    done = sweep(fragile)
    assert (done.returncode, names(fragile)) == (1, before)
    assert "(slurm_down)" in done.stderr
    assert fragile.site.events("sweep.finished")[-1]["reason"] == "slurm_down"
    fragile.cluster.start_controller()
    assert sweep(fragile).returncode == 0
    assert not dead.exists() and fragile.cache(job).exists()


def test_sweep_deletes_nothing_while_the_controller_is_slow(fragile: Wired) -> None:
    """A controller that does not answer in time counts as no answer."""
    job = start(fragile)
    dead = orphan(fragile, 999)
    before = names(fragile)
    fragile.site.configure(slurm={**fragile.site.keys["slurm"], "timeout": "2s"})
    controller = int((fragile.cluster.dir / "run/slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        done = sweep(fragile)
    finally:
        os.kill(controller, signal.SIGCONT)
        fragile.site.configure(slurm={**fragile.site.keys["slurm"], "timeout": "20s"})
    assert (done.returncode, names(fragile)) == (1, before)
    assert "(slurm_timeout)" in done.stderr
    assert sweep(fragile).returncode == 0
    assert not dead.exists() and fragile.cache(job).exists()


def test_reused_job_id_never_sees_an_older_cache(fragile: Wired) -> None:
    """The controller loses its state and job ids start again. The sweep reaps only the old caches."""
    cluster = fragile.cluster
    lose_state(cluster)
    first = start(fragile, "-N2", script=f"srun -N2 -n2 sh -c '{FILL}'\n{SLEEP}", on=cluster.nodes)
    assert first <= 2  # Slurm 20.11 begins at 2
    # A slurmstepd that cannot report the end of its step stays for minutes, and its node launches no job with the same id; or
    # the new job joins, since it cannot know whether that step uses the cache.
    wait_until(lambda: f"{first}.0" not in cluster.run("squeue", "--steps", "--noheader", "--format=%i").stdout.split())
    lose_state(cluster)
    assert len(list(fragile.cache(first).glob("*.arrow"))) == 2  # no Epilog knew the user of the job
    # The new job cannot see whether the other node uses the cache: that lease must be older than clocks may differ.
    os.utime(fragile.cache(first) / ".jobcache/nodes/n2", (0, 0))

    if slurm_version() > (22, 5):  # its slurmd launches no job with the id of one that it killed before the credential expires
        time.sleep(6)
    second = fragile.batch(f'ls -A "$HF_DATASETS_CACHE"\ntouch "$HF_DATASETS_CACHE/second.arrow"\n{SLEEP}', "-w", "n1")
    assert second == first
    fragile.wait_for(fragile.cache(first) / "second.arrow")
    assert fragile.output(second) == [".jobcache"]
    assert len(names(fragile)) == 2  # the earlier one is trash; it is reaped although a live job has its id
    begun = len(fragile.site.events("cache.orphan_reaped"))
    assert sweep(fragile).returncode == 0
    assert [path.name for path in fragile.cache(first).glob("*.arrow")] == ["second.arrow"]
    assert names(fragile) == [f"hf-datasets-{first}"] and reaped(fragile, begun) == [(first, "trash")]
    cluster.run("scancel", str(second))
    fragile.wait(second)
    assert names(fragile) == []


# ------------------------------------------------------------------------------------------------------------ helpers


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def orphan(wired: Wired, job: int) -> Path:
    """Make a cache of ALICE that a former job left; return its path."""
    made = wired.site.task_prolog(job).cache
    assert made
    return Path(made)


def lose_state(cluster: Cluster) -> None:
    """Stop the controller, and start it without its state; return when the nodes have ended their jobs."""
    cluster.stop_controller()
    cluster.start_controller(clean=True)
    for node in cluster.nodes:
        cluster.wait_node(node, "IDLE")
