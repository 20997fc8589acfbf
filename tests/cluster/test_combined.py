"""Paths by account, steps with another HF_HOME and jobs that such steps submit, in each kind of job, on a real cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Wired, script
from support.home import fingerprint
from support.site_dir import ALICE, entries
from support.user_cache import HASH, put

# A word, the directory and JOBCACHE_DIR without the path above the account, and the builds that the task finds.
SHOW = """\
below() { echo "${1#*/projects/}" | sed "s,+.*,+HOME,"; }
echo "$1 $(below "${HF_DATASETS_CACHE-none}") $(below "${JOBCACHE_DIR-none}") $(ls "$HF_DATASETS_CACHE/json" 2>/dev/null)"
"""


class Homes:
    """Two homes, `own` and `other`, each with a build of its name, and a directory for each of two accounts.

    show: a program that prints a line. other: the assignment before a step with the other home.
    """

    def __init__(self, wired: Wired) -> None:
        self.wired = wired
        self.own, self.second = (self._home(name) for name in ("own", "second"))
        self.other = f"HF_HOME={self.second}"
        self.top = wired.site.scratch / "projects"
        for account in ("astro", "bio"):
            (self.top / account).mkdir(parents=True, exist_ok=True)
            (self.top / account).chmod(0o1777)
        self.show = script(wired.site.dir / "show", SHOW)
        self.before = [fingerprint(home) for home in (self.own, self.second)]

    def _home(self, name: str) -> Path:
        home = self.wired.site.dir / name
        shutil.rmtree(home, ignore_errors=True)
        put(home / "datasets", f"json/{name}/0.0.0/{HASH}")
        for path in (home, *home.rglob("*")):
            shutil.chown(path, ALICE)
        return home

    def configure(self, scope: str) -> None:
        self.wired.site.configure(path=f"{self.top}/{{account}}/{{user}}/hf-{{job_id}}", scope=scope)

    def run(self, text: str, *options: str) -> tuple[int, list[str]]:
        """Run a batch script of the account astro with the home `own`; return the job's id and its sorted output."""
        job = self.wired.batch(text, "-A", "astro", *options, HF_HOME=str(self.own))
        assert self.wired.cluster.wait(job, timeout=90) == "COMPLETED"
        return job, self.output(job)

    def output(self, job: int) -> list[str]:
        return sorted(line for line in self.wired.output(job) if "REQUEUE" not in line)

    def assert_nothing_is_left(self) -> None:
        """Check that each cache is gone, and that both homes are as before."""
        for node in self.wired.cluster.nodes:
            self.wired.cluster.wait_node(node, "IDLE")
        assert [entries(self.top / account / ALICE) for account in ("astro", "bio")] == [[], []]
        assert [fingerprint(home) for home in (self.own, self.second)] == self.before


@pytest.fixture
def homes(wired: Wired) -> Iterator[Homes]:
    made = Homes(wired)
    yield made
    made.assert_nothing_is_left()


DIRECTORIES = {"job": ("", "/home+HOME"), "node": ("/node-n1", "/node-n1+HOME"), "task": ("/batch", "/step-{step}-task-0+HOME")}


@pytest.mark.parametrize("scope", DIRECTORIES)
def test_steps_within_steps_of_a_requeued_job(homes: Homes, scope: str) -> None:
    """A step with another home, and in it a step that asks for no cache, one with the first home, and the next run."""
    homes.configure(scope)
    inner = script(
        homes.wired.site.dir / "inner",
        f"""\
{homes.show} outer
JOBCACHE=off srun --overlap -n1 --jobid=$SLURM_JOB_ID {homes.show} off
HF_HOME={homes.own} srun --overlap -n1 --jobid=$SLURM_JOB_ID {homes.show} back""",
    )
    text = f"""\
{homes.show} batch
{homes.other} srun -n1 {inner}
[ -n "$SLURM_RESTART_COUNT" ] || {{ scontrol requeue $SLURM_JOB_ID; sleep 60; }}"""
    job, lines = homes.run(text, "-N1", "-n1", "--nodelist=n1", "--requeue", "--open-mode=append")
    own, other = DIRECTORIES[scope]
    expected = []
    for run in ("", "-r1"):
        cache = f"astro/{ALICE}/hf-{job}{run}"
        back = own if scope != "task" else "/step-2-task-0"
        expected += [f"batch {cache}{own} {cache} own", f"back {cache}{back} {cache} own"]
        expected += [f"{word} {cache}{other.format(step=0)} {cache} second" for word in ("outer", "off")]
    assert lines == sorted(expected)


def test_job_that_a_step_with_another_home_submits(homes: Homes) -> None:
    """With another account: a cache of its own from its own home, or nothing of the first job."""
    homes.configure("node")
    out = homes.wired.cluster.dir / "out"
    submit = f"sbatch --parsable -W -N1 -n1 -A bio -o {out}/child-%j.out"
    inner = script(
        homes.wired.site.dir / "inner",
        f"""\
cat {out}/child-$({submit} --wrap "{homes.show} child").out
cat {out}/child-$(JOBCACHE=off {submit} --wrap "{homes.show} off").out""",
    )
    job, lines = homes.run(f"{homes.other} srun -n1 {inner}", "-N1", "-n1", "--nodelist=n1")
    assert lines[1] == "off none none "
    word, directory, cache, builds = lines[0].split(" ")
    assert (word, builds) == ("child", "second") and directory.startswith(f"{cache}/node-n")
    assert cache.startswith(f"bio/{ALICE}/hf-") and cache != f"bio/{ALICE}/hf-{job}"


def test_array_and_heterogeneous_jobs_with_another_home(homes: Homes) -> None:
    homes.configure("node")
    show = f"{homes.show} batch\n{homes.other} srun -n1 {homes.show} other"
    first, _ = homes.run(show, "--array=0-1", "-N1", "-n1")
    for job in (first, first + 1):
        assert homes.wired.wait(job) == "COMPLETED"
        assert [line.split(" ")[0::3] for line in homes.output(job)] == [["batch", "own"], ["other", "second"]]
    het, lines = homes.run(f"#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n1\n{homes.other} srun --het-group=0,1 {homes.show} het")
    cache = f"astro/{ALICE}/hf-{het}"
    assert lines == [f"het {cache}/node-{node}+HOME {cache} second" for node in ("n1", "n2")]
