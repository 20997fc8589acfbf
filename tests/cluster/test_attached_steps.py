"""Steps that are attached to a running job, and shells without a batch script: no live cache is lost."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from conftest import Wired
from support.site_dir import ALICE

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
        f"echo '00000000-0000-0000-0000-000000000000 1.00' >{cache}/.jobcache/nodes/n1"
    )
    wired.cluster.run("srun", "-N1", "sh", "-c", old, user=ALICE)
    wired.cluster.run("scontrol", "release", str(job))
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(cache)]
