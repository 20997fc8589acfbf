"""What newer Slurm adds around the hooks: RunInJob, several Epilogs, private directories by namespaces.

The tests that this Slurm cannot run are skipped, with the version that they need. packaging/test-matrix.sh runs them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jobcache
from conftest import Wired, asked, script
from jobcache.cache import cache_names
from support.minicluster import Cluster
from support.site_dir import ALICE, Site
from support.slurm_version import needs_slurm, slurm_version

ETC = Path(__file__).parents[2] / "etc"
PRINT_CACHE = "srun sh -c 'echo $HF_DATASETS_CACHE'"
FILL_CACHE = 'mkdir -p "$HF_DATASETS_CACHE/json" && echo x >"$HF_DATASETS_CACHE/json/x" && '


def wire(site: Site, *conf: str, nodes: int = 2) -> Wired:
    """Return a cluster that has not started. conf: lines of slurm.conf beside the TaskProlog."""
    cluster = Cluster(nodes=nodes, conf=[f"TaskProlog={site.hooks}/task-prolog", *conf])
    site.configure(cluster=cluster.name)
    return Wired(site, cluster)


def check(wired: Wired) -> dict[str, tuple[str, str]]:
    """Return the findings of `jobcache check` about Slurm: level and text by name."""
    wired.site.configure(slurm={**asked(wired.cluster), "timeout": "10s"})
    config, hooks = str(wired.site.dir / "jobcache.yaml"), str(wired.site.hooks)
    command = [sys.executable, "-m", "jobcache.cli", "check", "--config", config, "--hooks", hooks, "--user", ALICE, "--json"]
    env = {"PYTHONPATH": str(Path(jobcache.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = wired.cluster.run(*command, env=env, check=False)
    return {row["name"]: (row["level"], row["fact"]) for row in json.loads(done.stdout) if row["area"] == "slurm"}


# ------------------------------------------------------------------------------------------- hooks inside the job's cgroup


@pytest.fixture(scope="module")
def _in_job() -> Iterator[Wired]:
    site = Site()
    scratch = site.dir / "closed"
    scratch.mkdir()
    text = (ETC / "prolog.d/jobcache-scratch").read_text().replace("scratch=/scratch/gpfs", f"scratch={scratch}", 1)
    prolog = script(site.dir / "prolog", text.partition("\n")[2])
    wired = wire(site, f"Epilog={site.hooks}/epilog", f"Prolog={prolog}", "PrologFlags=Contain,RunInJob")
    site.configure(path=f"{scratch}/{{user}}/hf-datasets-{{job_id}}")
    with wired.cluster:
        yield wired
    site.close()


@pytest.fixture
def in_job(_in_job: Wired) -> Iterator[Wired]:
    """A cluster whose slurmstepd runs Prolog and Epilog. From Slurm 25.05 it starts them with SIGCHLD blocked."""
    yield _in_job
    for node in _in_job.cluster.nodes:
        _in_job.cluster.wait_node(node)
    assert [path for path in (_in_job.site.dir / "closed").glob("*/*") if not cache_names.is_history(path.name)] == []
    assert _in_job.site.events("hook.failed") == []


run_in_job = needs_slurm("24.05", "PrologFlags=RunInJob")
QUICK = 15.0  # seconds; far below the deadline of 30 s, at which a hook that hangs is ended


@run_in_job
def test_hooks_end_in_the_job_on_two_nodes(in_job: Wired) -> None:
    for _ in range(2):
        job = in_job.batch(f"srun sh -c '{FILL_CACHE} echo $HF_DATASETS_CACHE'", "-N2")
        assert in_job.cluster.wait(job, timeout=QUICK) == "COMPLETED"
        assert in_job.output(job) == [f"{in_job.site.dir}/closed/{ALICE}/hf-datasets-{job}"] * 2
        (event,) = in_job.events(job, "cache.reaped")
        assert event["outcome"] == "reaped" and event["files"] >= 1


@run_in_job
def test_cancelled_job_with_hooks_in_it_leaves_nothing(in_job: Wired) -> None:
    job = in_job.batch(f"{FILL_CACHE} echo ready >{in_job.cluster.scratch}/ready; sleep 100")
    in_job.wait_for(in_job.cluster.scratch / "ready")
    in_job.cluster.run("scancel", str(job))
    assert in_job.cluster.wait(job, timeout=QUICK) == "CANCELLED"
    assert [event["outcome"] for event in in_job.events(job, "cache.reaped")] == ["reaped"]


@run_in_job
def test_requeued_job_with_hooks_in_it_leaves_nothing(in_job: Wired) -> None:
    mark = in_job.cluster.scratch / "first"
    job = in_job.batch(f"{FILL_CACHE} [ -e {mark} ] || {{ touch {mark}; sleep 100; }}", "--requeue")
    in_job.wait_for(mark)
    in_job.cluster.run("scontrol", "requeue", str(job))
    assert in_job.cluster.wait(job, timeout=60) == "COMPLETED"
    assert sorted(event["run"] for event in in_job.events(job, "cache.reaped")) == [0, 1]


# ------------------------------------------------------------------------------------------------- several lines of Epilog

several_epilogs = needs_slurm("24.05", "order of several Epilogs")


@several_epilogs
def test_epilogs_run_in_the_order_of_their_lines(site: Site) -> None:
    """The first that fails stops the rest and drains the node. jobcache's Epilog never is that one."""
    order = site.dir / "order"
    first = script(site.dir / "first", f"echo first >>{order}")
    last = script(site.dir / "last.d/10-last", f"echo last >>{order}")
    hooks = f"Epilog={site.hooks}/epilog"
    wired = wire(site, f"Epilog={first}", hooks, f"Epilog={last.parent}/*", "PrologEpilogTimeout=60", nodes=1)
    with wired.cluster as cluster:
        assert run_job(wired) == []
        assert order.read_text().split() == ["first", "last"]
        findings = check(wired)
        assert findings["Epilog"] == ("ok", f"{site.hooks}/epilog") and "reconfigured" not in findings

        site.policy(python="/nonexistent")  # jobcache's Epilog cannot work, and the next one runs
        order.unlink()
        assert run_job(wired) == ["hf-datasets"]
        assert order.read_text().split() == ["first", "last"]

        site.configure()
        for failing, left in ((last, []), (first, ["hf-datasets"])):
            text = failing.read_text()
            script(failing, "exit 1")
            assert run_job(wired, drained=True) == left
            failing.write_text(text)
            cluster.run("scontrol", "update", "NodeName=n1", "State=RESUME")
            cluster.wait_node("n1")


def run_job(wired: Wired, *, drained: bool = False) -> list[str]:
    """Run a job that uses its cache, and return what the Epilogs left: "hf-datasets" for a cache."""
    job = wired.batch(f"{FILL_CACHE} {PRINT_CACHE}")
    assert wired.wait(job) == "COMPLETED" and wired.output(job) == [str(wired.cache(job))]
    wanted: Callable[[str], bool] | str = "IDLE"
    if drained:
        wanted = lambda state: "DRAIN" in state and "COMPLETING" not in state  # noqa: E731
    wired.cluster.wait_node("n1", wanted)
    return [path.name.rpartition("-")[0] for path in (wired.site.scratch / ALICE).glob(f".cache/hf-datasets-{job}")]


def test_check_judges_the_epilogs_that_slurm_runs(site: Site) -> None:
    """Several lines with an Epilog: before Slurm 24.05, the last one counts. `check` reports what a job shows."""
    other = script(site.dir / "other", "true")
    wired = wire(site, f"Epilog={site.hooks}/epilog", f"Epilog={other}", "PrologEpilogTimeout=60", nodes=1)
    with wired.cluster:
        reaped = run_job(wired) == []
        assert reaped is (slurm_version() >= (24, 5))
        findings = check(wired)
        assert (findings["Epilog"][0] == "ok") is reaped
        assert "reconfigured" not in findings


# -------------------------------------------------------------------------------------- private directories of each job

# The line of slurm.conf, the file beside it, the text of that file, and the first version that has all of it.
TMPFS = "AutoBasePath=true\nBasePath={base}\nDirs={private}\n"
LINUX = "defaults:\n  auto_base_path: true\n  base_path: {base}\n  dirs: {private}\n"
NAMESPACES = {
    "namespace/tmpfs": ("NamespaceType=namespace/tmpfs", "job_container.conf", TMPFS, "25.11"),
    "job_container/tmpfs with Dirs": ("JobContainerType=job_container/tmpfs", "job_container.conf", TMPFS, "23.02"),
    "namespace/linux": ("NamespaceType=namespace/linux", "namespace.yaml", LINUX, "25.11"),
    "namespace/linux with NEWPID": (
        "NamespaceType=namespace/linux",
        "namespace.yaml",
        f"{LINUX}  clone_ns_flags: [CLONE_NEWPID]\n",
        "25.11",
    ),
    "namespace/linux with NEWUSER": (
        "NamespaceType=namespace/linux",
        "namespace.yaml",
        f"{LINUX}  clone_ns_flags: [CLONE_NEWUSER]\n",
        "25.11",
    ),
}


# Linux 6.18 counts mount namespaces on each CPU. It refuses to mount one in another whose number is larger, and Slurm does that
# for each job: with two CPUs, jobs of these plugins fail at random. On one CPU, newer namespaces have larger numbers.
ON_ONE_CPU = f"/usr/bin/env taskset --cpu-list {min(os.sched_getaffinity(0))} unshare --mount --propagation unchanged".split()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs_slurm(NAMESPACES[kind][3], kind)) for kind in NAMESPACES])
def test_cache_outside_of_private_directories_is_shared_and_reaped(site: Site, kind: str) -> None:
    """A cache below a private directory works for its job and vanishes with it; `check` reports it."""
    line, name, text, _ = NAMESPACES[kind]
    private = site.dir / "private"
    private.mkdir()
    private.chmod(0o1777)
    wired = wire(site, f"Epilog={site.hooks}/epilog", line, "PrologFlags=Contain", "PrologEpilogTimeout=60", nodes=1)
    base = wired.cluster.dir / "base"
    wired.cluster.conf_file.with_name(name).write_text(text.format(base=base, private=private))
    with wired.cluster as cluster:
        cluster.crash_node("n1")
        cluster.start_slurmd("n1", prefix=ON_ONE_CPU)
        cluster.wait_node("n1")
        assert run_job(wired) == []
        (event,) = site.events("cache.reaped")
        assert event["outcome"] == "reaped" and event["files"] == 1
        assert check(wired)["job_container"][0] == "ok"

        site.configure(path=f"{private}/{{user}}/hf-datasets-{{job_id}}")
        job = wired.batch(f"{FILL_CACHE} {PRINT_CACHE}")
        assert wired.wait(job) == "COMPLETED" and wired.output(job) == [f"{private}/{ALICE}/hf-datasets-{job}"]
        cluster.wait_node("n1")
        assert list(private.iterdir()) == [] and wired.events(job, "cache.reaped") == []
        assert check(wired)["job_container"][0] == "problem"
