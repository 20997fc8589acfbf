"""Steps that are attached to a running job, and shells without a batch script: no live cache is lost."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import Wired
from support.minicluster import Cluster
from support.site_dir import ALICE, Site

SHOW = 'echo "$HF_DATASETS_CACHE"; ls "$HF_DATASETS_CACHE"'


def running(wired: Wired, go: Path) -> int:
    """Start a batch job that has a file in its cache and waits for `go`; return its id when it has begun."""
    job = wired.batch(f'touch "$HF_DATASETS_CACHE/kept"\nuntil [ -e {go} ]; do sleep 0.05; done\nls "$HF_DATASETS_CACHE"')
    wired.wait_for(wired.cache(job) / "kept")
    return job


def test_an_interactive_step_joins_the_running_job(wired: Wired) -> None:
    """`srun --jobid --overlap --interactive` into a batch job sees the job's cache, and leaves it in place."""
    go = wired.cluster.scratch / "attached-go"
    job = running(wired, go)
    inode = wired.cache(job).stat().st_ino
    done = wired.cluster.run("srun", f"--jobid={job}", "--overlap", "--interactive", "sh", "-c", SHOW, user=ALICE)
    assert done.stdout.split() == [str(wired.cache(job)), "kept"]
    assert wired.cache(job).stat().st_ino == inode
    go.touch()
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["kept"]
    wired.assert_reaped(job)
    assert wired.site.debris() == []


def test_an_interactive_step_joins_after_another_step(wired: Wired) -> None:
    """`salloc --no-shell`, a step that fills the cache, then an interactive step: one cache for all."""
    wired.cluster.run("salloc", "--no-shell", "-N1", "-J", "noshell", user=ALICE)
    (job,) = (int(line) for line in wired.cluster.run("squeue", "-h", "-n", "noshell", "-o", "%A").stdout.split())
    fill = 'touch "$HF_DATASETS_CACHE/kept"'
    wired.cluster.run("srun", f"--jobid={job}", "sh", "-c", fill, user=ALICE)
    done = wired.cluster.run("srun", f"--jobid={job}", "--interactive", "sh", "-c", SHOW, user=ALICE)
    assert done.stdout.split() == [str(wired.cache(job)), "kept"]
    wired.cluster.run("scancel", str(job))
    wired.wait(job)
    until = time.monotonic() + 20
    while wired.cache(job).exists() and time.monotonic() < until:
        time.sleep(0.05)
    wired.assert_reaped(job)


def test_a_batch_task_discards_what_an_earlier_life_left(wired: Wired) -> None:
    """The path has the cache of a lost run with this id, cluster and user: the batch task moves it to the trash."""
    job = wired.batch(SHOW, "--hold")
    cache = wired.cache(job)
    old = f"mkdir -p {shlex.quote(str(cache))}/.jobcache/nodes && touch {cache}/old && " + (
        f"echo '{wired.cluster.name} {job} 0 '$(id -u) >{cache}/.jobcache/id && "
        f"echo '00000000-0000-0000-0000-000000000000 1.00' >{cache}/.jobcache/nodes/n1 && "
        f"touch -d @0 {cache}/.jobcache/nodes/n1"
    )
    wired.cluster.run("srun", "-N1", "sh", "-c", old, user=ALICE)
    wired.cluster.run("scontrol", "release", str(job))
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(cache)]


# ---- a step before the batch script


@pytest.fixture(scope="module")
def gated() -> Iterator[Wired]:
    """A cluster whose Prolog waits on n1, once for each job, until the file `gate` exists in scratch."""
    site = Site()
    prolog = site.dir / "prolog"
    prolog.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" != n1 ] || until [ -e {site.scratch}/gate ]; do sleep 0.02; done\n')
    prolog.chmod(0o755)
    hooks = {"TaskProlog": f"{site.hooks}/task-prolog", "Epilog": f"{site.hooks}/epilog", "Prolog": str(prolog)}
    cluster = Cluster(conf=[f"{name}={value}" for name, value in hooks.items()])
    site.configure(cluster=cluster.name)
    with cluster:
        yield Wired(site, cluster)
    site.close()


def test_the_batch_script_joins_a_step_on_another_node(gated: Wired) -> None:
    """The Prolog on the batch script's node is slow. Meanwhile a step on the other node has made the cache, and uses it."""
    gate, go, scratch = (gated.site.scratch / name for name in ("gate", "go", "step"))
    gate.unlink(missing_ok=True)
    job = gated.batch(f"{SHOW}\ntouch {go}\nsleep 60", "-N2", "--nodelist=n1,n2")
    gated.wait(job, "RUNNING")
    use = f'touch "$HF_DATASETS_CACHE/kept"; until [ -e {go} ]; do sleep 0.02; done; ls "$HF_DATASETS_CACHE" >{scratch}'
    attach = ["srun", f"--jobid={job}", "--overlap", "-N1", "-n1", "--nodelist=n2", "sh", "-c", use]
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(gated.cluster.run, *attach, user=ALICE)
        gated.wait_for(gated.cache(job) / "kept")
        inode = gated.cache(job).stat().st_ino
        gate.touch()
        gated.wait_for(go)
        step.result()
    assert scratch.read_text().split() == ["kept"]
    assert gated.cache(job).stat().st_ino == inode
    assert gated.output(job) == [str(gated.cache(job)), "kept"]
    gated.cluster.run("scancel", str(job))
    gated.wait(job)
    assert not gated.cache(job).exists() and gated.site.debris() == []


@pytest.mark.parametrize("interactive", [False, True])
def test_the_batch_script_and_a_step_on_its_node_share_a_cache(gated: Wired, interactive: bool) -> None:
    """Both begin at the same time, in any order."""
    gate, go, end = (gated.site.scratch / name for name in ("gate", "go", "end"))
    for _ in range(3):
        for path in (gate, go, end):
            path.unlink(missing_ok=True)
        use = f'touch "$HF_DATASETS_CACHE/$0"; until [ -e {go} ]; do sleep 0.02; done; ls "$HF_DATASETS_CACHE"'
        job = gated.batch(f"sh -c '{use}' batch\nuntil [ -e {end} ]; do sleep 0.02; done", "--nodelist=n1")
        gated.wait(job, "RUNNING")
        attach = ["srun", f"--jobid={job}", "--overlap", *["--interactive"] * interactive, "sh", "-c", use, "step"]
        with ThreadPoolExecutor(1) as pool:
            step = pool.submit(gated.cluster.run, *attach, user=ALICE)
            time.sleep(0.2)
            gate.touch()
            gated.wait_for(gated.cache(job) / "batch")
            gated.wait_for(gated.cache(job) / "step")
            go.touch()
            assert step.result().stdout.split() == ["batch", "step"]
        end.touch()
        assert gated.wait(job) == "COMPLETED"
        assert gated.output(job) == ["batch", "step"]
        assert gated.site.debris() == []


def test_a_requeued_job_has_a_cache_of_its_own(wired: Wired) -> None:
    """A step that was attached to the first run changes nothing: the second run's cache is new."""
    go = wired.cluster.scratch / "requeued-go"
    script = f'ls "$HF_DATASETS_CACHE"\ntouch "$HF_DATASETS_CACHE/kept"\nuntil [ -e {go} ]; do sleep 0.05; done'
    job = wired.batch(script, "--requeue")
    wired.wait_for(wired.cache(job) / "kept")
    wired.cluster.run("srun", f"--jobid={job}", "--overlap", "--interactive", "true", user=ALICE)
    assert (wired.cache(job) / "kept").exists()
    wired.cluster.run("scontrol", "requeue", str(job))
    go.touch()
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == []
    for run in (0, 1):
        wired.assert_reaped(job, run)
