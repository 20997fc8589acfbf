"""Paths with the directory that the site makes for each job, and with the job's account, on a real cluster."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from itertools import filterfalse
from pathlib import Path

import pytest

import jobcache
from conftest import Wired, asked
from jobcache.cache import cache_names
from support.minicluster import Cluster
from support.site_dir import ALICE, Site

# A site's Prolog makes $local/<node>/<job id>, and its Epilog removes it: before jobcache's, or after it.
PROLOG = """\
#!/bin/sh
[ -e {local}/off ] && exit 0
mkdir -p {local}/$SLURMD_NODENAME/$SLURM_JOB_ID && chown $SLURM_JOB_UID {local}/$SLURMD_NODENAME/$SLURM_JOB_ID
"""
EPILOG = """\
#!/bin/sh
[ ! -e {local}/first ] || rm -rf {local}/$SLURMD_NODENAME/$SLURM_JOB_ID || exit 1
{hooks}/epilog
rm -rf {local}/$SLURMD_NODENAME/$SLURM_JOB_ID
"""
FILL = 'echo "$HF_DATASETS_CACHE"; mkdir "$HF_DATASETS_CACHE/json" && head -c 8192 /dev/zero >"$HF_DATASETS_CACHE/json/a.arrow"'


@pytest.fixture(scope="module")
def _local() -> Iterator[Wired]:
    site = Site()
    (site.scratch / "local").mkdir()
    for name, text in (("prolog", PROLOG), ("epilog", EPILOG)):
        script = site.dir / name
        script.write_text(text.format(local=site.scratch / "local", hooks=site.hooks))
        script.chmod(0o755)
    wired = {"TaskProlog": f"{site.hooks}/task-prolog", "Prolog": f"{site.dir}/prolog", "Epilog": f"{site.dir}/epilog"}
    cluster = Cluster(conf=[*(f"{name}={value}" for name, value in wired.items()), "PrologFlags=Alloc"])
    path = f"{site.scratch}/local/{{node}}/{{job_id}}/hf-datasets-{{job_id}}"
    site.configure(
        cluster=cluster.name, path=path, sweep={"grace": "0s", "confirm": "100ms"}, slurm={**asked(cluster), "timeout": "20s"}
    )
    with cluster:
        yield Wired(site, cluster)
    site.close()


@pytest.fixture
def local(_local: Wired) -> Iterator[Wired]:
    """The cluster. A test fails if it leaves a node that is not idle: an Epilog that failed would have drained it."""
    before = dict(_local.site.keys)
    yield _local
    for switch in ("first", "off"):
        (_local.site.scratch / "local" / switch).unlink(missing_ok=True)
    _local.site.keys = before
    _local.site.configure()
    for node in _local.cluster.nodes:
        _local.cluster.wait_node(node, "IDLE")


def step(command: str) -> str:
    return shlex.join(["srun", "-N2", "-n2", "sh", "-c", command])


@pytest.mark.parametrize("order", ["first", "last"])
def test_cache_in_the_directory_of_the_job(local: Wired, order: str) -> None:
    """On each of two nodes. The site's Epilog removes the directory, in either order."""
    top = local.site.scratch / "local"
    if order == "first":
        (top / "first").touch()
    job = local.batch(step(FILL), "-N2", "-n2")
    assert local.wait(job) == "COMPLETED"
    assert sorted(local.output(job)) == [f"{top}/{node}/{job}/hf-datasets-{job}" for node in ("n1", "n2")]
    for node in ("n1", "n2"):
        local.cluster.wait_node(node, "IDLE")
        assert os.listdir(top / node) == []
    events = [(event["event"], event["outcome"], event["node"]) for event in local.events(job)]
    reaped = [("cache.reaped", "reaped", node) for node in ("n1", "n2")]
    assert sorted(events) == ([] if order == "first" else reaped)


def test_job_without_the_directory_of_the_site(local: Wired) -> None:
    """The site's Prolog did not make it: the job runs without a private cache."""
    (local.site.scratch / "local/off").touch()
    job = local.batch('echo "${HF_DATASETS_CACHE-none}"')
    assert local.wait(job) == "COMPLETED"
    assert local.output(job) == ["none"] and not list((local.site.scratch / "local").glob(f"*/{job}"))
    (event,) = [one for one in local.site.syslog.events("cache.skipped") if one["job_id"] == job]
    assert event["reason"] == "no_job_directory"


def test_sweep_finds_what_a_crashed_node_left(local: Wired) -> None:
    """No Epilog ran, neither the site's. The sweep reaps the cache and leaves the directory of the job."""
    lives = local.batch(f"{FILL}\nsleep 300", "--nodelist=n2")
    job = local.batch(f"{FILL}\nsleep 300", "--nodelist=n1", "--no-requeue")
    caches = {one: local.site.scratch / f"local/{node}/{one}/hf-datasets-{one}" for one, node in ((job, "n1"), (lives, "n2"))}
    for cache in caches.values():
        local.wait_for(cache / "json/a.arrow")
    local.cluster.crash_node("n1")
    local.cluster.mark_down("n1")
    assert local.wait(job) == "NODE_FAIL"
    root = str(Path(jobcache.__file__).parents[1])
    command = (sys.executable, "-m", "jobcache.cli", "sweep", "--hooks", str(local.site.hooks))
    assert local.cluster.run(*command, env={"PYTHONPATH": root}).returncode == 0
    assert not caches[job].exists() and caches[job].parent.exists() and caches[lives].exists()
    (event,) = local.site.events("cache.orphan_reaped")
    assert (event["job_id"], event["path"]) == (job, str(caches[job]))
    local.cluster.run("scancel", str(lives))
    local.wait(lives)
    local.cluster.start_slurmd("n1")


def test_all_tasks_and_the_epilog_agree_on_the_account(local: Wired) -> None:
    """The batch script, a step, a job that the job submits, and an Epilog that may not know the account."""
    top = local.site.scratch / "projects"
    for account in ("astro", "bio"):
        (top / account).mkdir(parents=True)
        (top / account).chmod(0o1777)
    local.site.configure(path=f"{top}/{{account}}/{{user}}/hf-{{job_id}}")
    show = 'echo "$HF_DATASETS_CACHE"'
    child = f"sbatch --parsable -W -A bio -o {local.cluster.dir}/out/child-%j.out --wrap {shlex.quote(show)}"
    job = local.batch(f"{show}\nsrun -n1 sh -c {shlex.quote(show)}\nid=$({child})\necho $id", "-A", "astro")
    assert local.wait(job) == "COMPLETED"
    own, of_step, other = local.output(job)
    assert own == of_step == f"{top}/astro/{ALICE}/hf-{job}"
    assert Path(f"{local.cluster.dir}/out/child-{other}.out").read_text() == f"{top}/bio/{ALICE}/hf-{other}\n"
    local.wait(int(other))
    left = [path.name for path in top.rglob("*") if path.name.startswith(("hf-", ".jobcache"))]
    assert list(filterfalse(cache_names.is_history, left)) == []
    job = local.batch(show)
    assert local.wait(job) == "COMPLETED" and local.output(job) == [""]
