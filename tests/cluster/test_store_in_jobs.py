"""A store on a real cluster: the ranks of a job are linked to builds of earlier jobs, each node or task in its directory."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from test_jobs import step

from conftest import Wired
from support.site_dir import ALICE

LABEL = "exp-1"
SHOW = 'echo "$SLURMD_NODENAME $SLURM_PROCID $HF_DATASETS_CACHE"'


@pytest.mark.parametrize("scope", ["node", "task"])
def test_each_node_or_task_has_a_directory_of_its_own(wired: Wired, scope: str) -> None:
    """Four ranks on two nodes: the scope sets the number of directories. All lie in the job's cache and are reaped with it."""
    script = f"{step(f'{SHOW}; mkdir -p $HF_DATASETS_CACHE; echo x >$HF_DATASETS_CACHE/$SLURM_PROCID', '-N2', '-n4')}"
    job = wired.batch(script, "-N2", "-n4", JOBCACHE_SCOPE=scope)
    assert wired.wait(job) == "COMPLETED"
    rows = [line.split() for line in wired.output(job)]
    assert {row[0] for row in rows} == {"n1", "n2"} and len(rows) == 4
    own = {"node": lambda node, rank: f"node-{node}", "task": lambda node, rank: f"step-0-task-{rank}"}[scope]
    assert {row[2] for row in rows} == {f"{wired.cache(job)}/{own(node, rank)}" for node, rank, _ in rows}
    wired.assert_reaped(job, files=4)


def program_of(wired: Wired, name: str, *lines: str) -> str:
    """Return the command of a program with real `datasets` that begins with a thousand rows as `ds`. Configure a store."""
    wired.site.configure(store={"user": f"{wired.site.scratch}/{{user}}/.cache/hf-store"})
    home = wired.site.dir / name
    home.mkdir()
    shutil.chown(home, ALICE)
    data = home / "data.jsonl"
    data.write_text("".join(json.dumps({"id": id}) + "\n" for id in range(1000)))
    program = home / "program.py"
    load = f"ds = datasets.load_dataset('json', data_files={{'train': {str(data)!r}}})['train']"
    # Not in the batch script: the TaskProlog reads it, and HF_HOME there chooses the cache that the job begins with.
    variables = f"os.environ.update(HOME={str(home)!r}, HF_HOME='{home}/hf')"
    program.write_text("\n".join(["import glob, os, sys", variables, "import datasets", load, *lines, ""]))
    program.chmod(0o644)
    return f"exec {sys.executable} {program}"


def test_ranks_on_two_nodes_load_build_of_another_job(wired: Wired) -> None:
    """With real `datasets`: no rank builds, the rows are right, and a job of two nodes publishes nothing."""
    program = program_of(
        wired,
        "load",
        "files = glob.glob(os.environ['HF_DATASETS_CACHE'] + '/json/*/*/*/*')",
        "print('loaded', sum(ds['id']), all(map(os.path.islink, files)), flush=True)",
    )
    load = f"{program} 2>/dev/null"
    first = wired.batch(load, "-N1", JOBCACHE_STORE=LABEL)
    assert wired.wait(first) == "COMPLETED", wired.output(first)
    total = sum(range(1000))
    assert wired.output(first)[-1] == f"loaded {total} False"
    (published,) = wired.events(first, "store.published")
    assert (published["outcome"], published["builds"], published["label"]) == ("published", 1, LABEL)
    job = wired.batch(step(load, "-N2", "-n2"), "-N2", "-n2", JOBCACHE_STORE=LABEL, JOBCACHE_SCOPE="node")
    assert wired.wait(job) == "COMPLETED"
    assert [line for line in wired.output(job) if line.startswith("loaded")] == [f"loaded {total} True"] * 2
    wired.assert_reaped(job)
    assert wired.events(job, "store.published") == []


def test_edited_map_is_computed_once_for_later_jobs(wired: Wired) -> None:
    """With real `datasets`: one job builds, two map at the same time, and the next finds both results."""
    program = program_of(
        wired,
        "maps",
        "total = 0",
        "for factor in map(int, sys.argv[1:]):",
        "    total += sum(ds.map(lambda row, factor: {'id': row['id'] * factor}, fn_kwargs={'factor': factor})['id'])",
        "files = glob.glob(os.environ['HF_DATASETS_CACHE'] + '/json/*/*/*/*')",
        "print('mapped', total, sum(not os.path.islink(path) for path in files), flush=True)",
    )

    def job(*factors: int) -> int:
        words = " ".join(map(str, factors))
        return wired.batch(f"{program} {words} 2>/dev/null", "-N1", JOBCACHE_STORE=LABEL)

    def ended(number: int) -> tuple[int, int]:
        assert wired.wait(number) == "COMPLETED"
        _, total, made = wired.output(number)[-1].split()
        return int(total), int(made)

    total = sum(range(1000))
    assert ended(job()) == (0, 2)
    both = job(2), job(3)
    assert [ended(number) for number in both] == [(2 * total, 1), (3 * total, 1)]
    for number in both:
        (event,) = wired.events(number, "store.published")
        assert (event["outcome"], event["builds"], event["files"]) == ("published", 1, 1)
    last = job(2, 3)
    assert ended(last) == (5 * total, 0)
    wired.assert_reaped(last)
    assert wired.events(last, "store.published") == []
