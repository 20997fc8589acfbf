"""Caches begin with links to the user's own builds in every kind of job on a real cluster."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from conftest import Wired
from support.home import fingerprint
from support.site_dir import ALICE, Site
from support.user_cache import HASH, put

BUILD = f"json/default-1/0.0.0/{HASH}"
LINKS = f'find "$HF_DATASETS_CACHE/{BUILD}" -type l | wc -l'  # of one shard, one result of map and dataset_info.json


@pytest.fixture
def home(wired: Wired) -> Path:
    """A directory for HF_HOME, with one build in it."""
    made = wired.site.dir / "hf"
    put(made / "datasets", BUILD)
    for path in (made, *made.rglob("*")):
        shutil.chown(path, ALICE)
    return made


def batch(wired: Wired, home: Path, script: str, *options: str) -> int:
    return wired.batch(script, *options, HF_HOME=str(home))


def step(command: str, *options: str) -> str:
    return f"srun {' '.join(options)} sh -c '{command}'"


@pytest.mark.parametrize("scope", ["job", "node", "task"])
def test_batch_script_and_steps_on_two_nodes(wired: Wired, home: Path, scope: str) -> None:
    """Each directory of the job has the links, and the user's own cache stays as it was."""
    before = fingerprint(home)
    wired.site.configure(scope=scope)
    job = batch(wired, home, f"{LINKS}; {step(LINKS, '-N2', '-n2')}", "-N2")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["3"] * 3
    wired.assert_reaped(job)
    assert fingerprint(home) == before


def test_job_without_a_batch_script(wired: Wired, home: Path) -> None:
    """The tasks of the first step start together on two nodes."""
    done = wired.cluster.srun("-N2", "-n4", "sh", "-c", LINKS, user=ALICE, env={"HF_HOME": str(home)})
    assert done.stdout.split() == ["3"] * 4


def test_array_and_heterogeneous_jobs(wired: Wired, home: Path) -> None:
    first = batch(wired, home, LINKS, "--array=0-1")
    wired.wait(first)
    outputs = [wired.output(job) for job in (first, first + 1) if wired.wait(job) == "COMPLETED"]
    assert outputs == [["3"]] * 2
    het = batch(wired, home, f"#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n1\n{step(LINKS, '--het-group=0,1')}")
    assert wired.wait(het) == "COMPLETED"
    assert wired.output(het) == ["3"] * 2


def test_requeued_job_and_attached_step(wired: Wired, home: Path) -> None:
    """Each run begins with the links; a step that is attached joins the run's cache."""
    go, begun = wired.cluster.scratch / "inherit-go", wired.cluster.scratch / "inherit-begun"
    script = f'{LINKS}\ntouch {begun}\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 60\nuntil [ -e {go} ]; do sleep 0.05; done'
    job = batch(wired, home, script, "--requeue", "--open-mode=append")
    wired.wait_for(begun)  # and not for the cache: a requeue ends the TaskProlog too, before it has printed
    wired.cluster.run("scontrol", "requeue", str(job))
    wired.wait_for(wired.cache(job, 1) / BUILD)
    done = wired.cluster.run(
        "srun", f"--jobid={job}", "--overlap", "sh", "-c", LINKS, user=ALICE, env={"HF_HOME": str(home)}
    )  # fmt: skip
    assert done.stdout.split() == ["3"]
    go.touch()
    assert wired.wait(job) == "COMPLETED"
    assert [line for line in wired.output(job) if "REQUEUE" not in line] == ["3"] * 2


def test_steps_agree_where_links_are_refused(wired: Wired, home: Path) -> None:
    """The batch script and all its steps run as without jobcache, and no step tries again."""
    wired.site.configure(inherit_max_builds=1)
    put(home / "datasets", f"csv/default-2/0.0.0/{HASH}")
    shown = 'echo "<$HF_DATASETS_CACHE>"'
    job = batch(wired, home, f"{shown}; {step(shown, '-n2')}; {step(shown, '-n1')}", "-n2")
    assert wired.wait(job) == "COMPLETED"
    assert [line for line in wired.output(job) if not line.startswith("srun: ")] == ["<>"] * 4  # of a step that has to wait
    until = time.monotonic() + 5
    while not skips(wired.site, job) and time.monotonic() < until:
        time.sleep(0.05)
    assert [event["reason"] for event in skips(wired.site, job)] == ["inherit_too_many"]
    assert not wired.cache(job).exists() and wired.site.debris() == []


def test_steps_with_another_home(wired: Wired, home: Path) -> None:
    """By a variable, by `srun --export`, in an attached step and on two nodes: they share a directory that has its builds."""
    other = wired.site.dir / "other"
    put(other / "datasets", "parquet/default-7/0.0.0/x")
    for path in (other, *other.rglob("*")):
        shutil.chown(path, ALICE)
    before = fingerprint(other)
    shown = 'echo "$HF_HOME" "$HF_DATASETS_CACHE" $(cd "$HF_DATASETS_CACHE" && ls -d json parquet 2>/dev/null)'
    go = wired.cluster.scratch / "other-go"
    tries = [
        f"HF_HOME={other} {step(shown, '-N2', '-n2')}",
        step(shown, f"--export=ALL,HF_HOME={other}", "-N1", "-n1"),
        step(shown, f"--export=PATH=/usr/bin:/bin,HF_HOME={other}", "-N1", "-n1"),
        step(shown, "-N1", "-n1"),
    ]
    job = batch(wired, home, "\n".join([shown, *tries, f"until [ -e {go} ]; do sleep 0.05; done"]), "-N2")
    wired.wait_for(wired.cache(job) / f"home{str(other).replace('/', '+')}")
    done = wired.cluster.run(
        "srun", f"--jobid={job}", "--overlap", "-N1", "-n1", "sh", "-c", shown, user=ALICE, env={"HF_HOME": str(other)}
    )  # fmt: skip
    go.touch()
    assert wired.wait(job) == "COMPLETED"
    base = f"{home} {wired.cache(job)} json"
    own = f"{other} {wired.cache(job)}/home{str(other).replace('/', '+')} parquet"
    lines = wired.output(job)
    # Slurm 22.05 keeps the value of the job for `--export=ALL,…`: the directory is that of the HF_HOME which the task sees.
    assert lines[3] in (base, own) and lines[:3] + lines[4:] == [base, own, own, own, base]
    assert done.stdout.strip() == own
    wired.assert_reaped(job)
    assert fingerprint(other) == before


def skips(site: Site, job: int) -> list[dict[str, object]]:
    return [event for event in site.syslog.events("cache.skipped") if event["job_id"] == job]
