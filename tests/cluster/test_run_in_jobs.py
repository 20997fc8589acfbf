"""`jobcache run` in jobs of a cluster without the hooks, and of one with them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import Wired, asked
from support.site_dir import ALICE

SHOW = 'echo "$HF_DATASETS_CACHE"'


class Bare(Wired):
    """A cluster whose hooks do nothing, and a configuration file that a user can name."""

    def __init__(self, wired: Wired) -> None:
        super().__init__(wired.site, wired.cluster)
        site = self.site
        site.configure(mode="off", sweep={"grace": "0s", "confirm": "0s"}, slurm=asked(self.cluster))
        self.config = site.dir / "user.yaml"
        self.config.write_text((site.dir / "jobcache.yaml").read_text())

    def command(self, script: str) -> str:
        """Return a line for a batch script: `jobcache run` of this checkout with a shell script as its command."""
        env = f"PYTHONPATH={os.pathsep.join(sys.path)}"
        argv = [sys.executable, "-m", "jobcache.cli", "run", "--config", str(self.config), "--", "sh", "-c", script]
        return f"env {shlex.quote(env)} {shlex.join(argv)}"

    def left(self) -> list[str]:
        return self.site.names()


def writable(bare: Bare) -> Path:
    """Return a directory in which every user may write."""
    home = bare.site.dir / "home"
    home.mkdir(exist_ok=True)
    home.chmod(0o777)
    return home


@pytest.fixture
def bare(wired: Wired) -> Bare:
    return Bare(wired)


def test_ranks_share_the_cache_of_the_job(bare: Bare) -> None:
    """Four ranks on two nodes end one after the other: one cache, deleted after the last of them."""
    script = f"{SHOW}; touch $JOBCACHE_DIR/$SLURM_PROCID; sleep 0.$SLURM_PROCID; ls -d $JOBCACHE_DIR"
    job = bare.batch(f"srun -N2 -n4 {bare.command(script)}", "-N2", "-n4")
    assert bare.wait(job) == "COMPLETED"
    assert bare.output(job) == [str(bare.cache(job))] * 8
    assert bare.left() == []


def test_cancelled_step_deletes_its_cache(bare: Bare) -> None:
    """The step gets its signal, and the cache is deleted within KillWait."""
    job = bare.batch(f"srun {bare.command('touch $JOBCACHE_DIR/there; exec sleep 60')}")
    bare.wait_for(bare.cache(job) / "there")
    bare.cluster.run("scancel", str(job))
    bare.wait(job)
    assert bare.left() == []


def test_sweep_deletes_cache_of_killed_step_after_job(bare: Bare) -> None:
    """kill -9 leaves the cache. The user's sweep keeps it while Slurm reports the job as live, and deletes it afterwards."""
    home = writable(bare)
    script = bare.command(f"echo $PPID $$ >{home}/pids; touch $JOBCACHE_DIR/there; exec sleep 60")
    job = bare.batch(f"srun {script}\ntouch {home}/step-is-over\nexec sleep 60")
    bare.wait_for(bare.cache(job) / "there")
    # Not by scancel: Slurm can kill the command first, and then `jobcache run` deletes the cache before it is killed as well.
    for pid in (home / "pids").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    bare.wait_for(home / "step-is-over")
    sweep = [sys.executable, "-m", "jobcache.cli", "sweep", "--hooks", str(bare.site.hooks)]
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_RUNTIME_DIR": str(home)}
    bare.cluster.run(*sweep, user=ALICE, env=env)
    assert bare.left() == [bare.cache(job).name]
    bare.cluster.run("scancel", str(job))
    bare.wait(job)
    bare.cluster.run(*sweep, user=ALICE, env=env)
    assert bare.left() == []


def test_sweep_by_path_asks_slurm_about_the_job(bare: Bare) -> None:
    """A user with a path and no configuration: the sweep asks the job's own cluster and keeps the cache."""
    template = f"{bare.site.scratch}/{{user}}/mine/hf-datasets-{{job_id}}"
    line = bare.command("touch $JOBCACHE_DIR/there; exec sleep 60").replace(
        f"--config {bare.config}", f"--path {shlex.quote(template)}"
    )
    job = bare.batch(f"srun {line}")
    cache = bare.site.scratch / ALICE / "mine" / f"hf-datasets-{job}"
    bare.wait_for(cache / "there")
    sweep = [sys.executable, "-m", "jobcache.cli", "sweep", "--path", template, "--dry-run", "--json"]
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_RUNTIME_DIR": str(bare.site.scratch)}
    (row,) = map(json.loads, bare.cluster.run(*sweep, user=ALICE, env=env).stdout.splitlines())
    assert (row["path"], row["action"], row["reason"]) == (str(cache), "keep", "alive")
    bare.cluster.run("scancel", str(job))
    bare.wait(job)
    assert not cache.exists()


def test_job_without_hooks_fills_a_store(bare: Bare) -> None:
    """With real `datasets`: the first job builds and publishes, the second one begins with links and builds nothing."""
    bare.site.configure(store={"user": f"{bare.site.scratch}/{{user}}/hf-store"})
    bare.config.write_text((bare.site.dir / "jobcache.yaml").read_text())
    data = writable(bare) / "data.jsonl"
    data.write_text("".join(json.dumps({"id": id}) + "\n" for id in range(500)))
    load = f"import os; os.environ['HOME'] = {str(data.parent)!r}; import datasets; "
    load += f"datasets.load_dataset('json', data_files={str(data)!r})"
    count = "find $HF_DATASETS_CACHE/json -name '*.arrow' -type f | wc -l"
    made = []
    for _ in range(2):
        job = bare.batch(bare.command(f"{shlex.join([sys.executable, '-c', load])} >/dev/null 2>&1; {count}"), JOBCACHE_STORE="x")
        assert bare.wait(job) == "COMPLETED"
        made.append(bare.output(job))
    assert made == [["1"], ["0"]] and bare.left() == []


def test_cache_of_the_hooks_is_used_and_left_to_the_epilog(wired: Wired) -> None:
    """`jobcache run` changes nothing in a job with hooks."""
    bare = Bare(wired)
    wired.site.configure(mode="on")
    job = wired.batch(f"{SHOW}\n{bare.command(SHOW)}\nls -d $JOBCACHE_DIR")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))] * 3
    wired.assert_reaped(job)


def test_inner_command_of_a_job_keeps_the_cache_when_the_outer_ends(bare: Bare) -> None:
    """A job without hooks: a nohup child of the outer command works on in the cache, and deletes it at its end."""
    go = bare.site.dir / "go"
    inner = bare.command(f"touch $JOBCACHE_DIR/in; while [ ! -e {go} ]; do sleep 0.02; done; ls $JOBCACHE_DIR")
    outer = bare.command(f"nohup {inner} >$OUT 2>/dev/null & while [ ! -e $JOBCACHE_DIR/in ]; do sleep 0.02; done; exit 3")
    wait = "while [ ! -s $OUT ]; do sleep 0.02; done"
    script = f"export OUT=$PWD/inner-$SLURM_JOB_ID\n{outer}\necho $?; touch $OUT.over; {wait}; cat $OUT"
    job = bare.batch(script, f"--chdir={writable(bare)}")
    cache = bare.cache(job)
    bare.wait_for(writable(bare) / f"inner-{job}.over")
    assert (cache / "in").exists() and [lease.name[:3] for lease in (cache / ".jobcache/nodes").iterdir()] == ["n1+"]
    go.touch()
    assert bare.wait(job) == "COMPLETED" and bare.output(job) == ["3", "in"]
    assert bare.left() == []


def test_epilog_ends_the_cache_of_an_inner_command(wired: Wired) -> None:
    """A job with hooks: an inner command whose session outlives the job has no lease, and its cache ends with the job."""
    bare = Bare(wired)
    wired.site.configure(mode="on")
    home = writable(bare)
    inner = bare.command(f"echo $$ >{home}/pid.new; mv {home}/pid.new {home}/pid; exec sleep 60")
    job = wired.batch(
        f"nohup setsid {inner} >/dev/null 2>&1 & while [ ! -e {home}/pid ]; do sleep 0.02; done; ls $JOBCACHE_DIR/.jobcache/nodes"
    )
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["n1"]
    wired.assert_reaped(job)
    with suppress(ProcessLookupError):  # Slurm kills it where it finds it
        os.kill(int((home / "pid").read_text()), signal.SIGKILL)
