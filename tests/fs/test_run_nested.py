"""`jobcache run` inside `jobcache run`, and processes that outlive their command: who works in a cache keeps it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from support.prompt import SHOW, User, wait_until
from support.site_dir import Site

JOB = {"SLURM_JOB_ID": "4242", "SLURMD_NODENAME": "n1", "SLURM_CLUSTER_NAME": "test", "SLURM_PROCID": "0"}


@pytest.fixture
def user(site: Site) -> User:
    return User(site)


def nested(user: User, script: str) -> str:
    """Return a shell command: `jobcache run` with a script, for the script of another `jobcache run`."""
    argv = [sys.executable, "-m", "jobcache.cli", "run", "--config", user.config, "--", "/bin/sh", "-c", script]
    return shlex.join(argv)


def working(user: User, name: str) -> str:
    """Return a script that makes a file in the cache, and ends when `finish` is called. It then lists the cache."""
    made, end, listing = (f"{user.home}/{name}-{suffix}" for suffix in ("made", "end", "listing"))
    script = (
        f"echo $$ >{made}.new; touch $JOBCACHE_DIR/{name} && mv {made}.new {made}; while [ ! -e {end} ]; do sleep 0.02; done; "
    )
    return script + f"ls $JOBCACHE_DIR >{listing}.new 2>&1; mv {listing}.new {listing}"


def until_working(user: User, name: str) -> str:
    """Return a script that waits until the script of `working` has made its file."""
    return f"while [ ! -e {user.home}/{name}-made ]; do sleep 0.02; done"


def pid_of(user: User, name: str) -> int:
    """Return the process id of the shell that runs the script of `working`."""
    return int((user.home / f"{name}-made").read_text())


def finish(user: User, name: str) -> list[str]:
    """Let the script of `working` end; return the names that it found in the cache."""
    (user.home / f"{name}-end").touch()
    wait_until((user.home / f"{name}-listing").exists)
    return (user.home / f"{name}-listing").read_text().split()


def daemon(script: str) -> str:
    """Return a shell command that starts a script as a daemon: in a session of its own, with no inherited descriptor."""
    streams = "stdin=-3, stdout=-3, stderr=-3"  # of subprocess.DEVNULL
    start = f"import subprocess; subprocess.Popen(['/bin/sh', '-c', {script!r}], start_new_session=True, {streams})"
    return shlex.join([sys.executable, "-c", start])


QUIET = "</dev/null >/dev/null 2>&1"


# ----------------------------------------------------------------------------------------------------------------- nested


def test_nested_run_uses_the_outer_cache(user: User) -> None:
    """The inner command has the variables of the outer one and a lease of its own. Its end deletes nothing."""
    count = "ls $JOBCACHE_DIR/.jobcache/nodes | wc -l"
    inner = nested(user, f"echo $HF_DATASETS_CACHE $MINE; {count}")
    done = user.run(f"echo $HF_DATASETS_CACHE; MINE=1 {inner}; ls -A $HF_DATASETS_CACHE; {count}")
    outer, same, mine, during, content, after = done.stdout.split()
    assert (outer, mine, during, content, after, done.stderr) == (same, "1", "2", ".jobcache", "1", "")
    assert user.left() == []


@pytest.mark.parametrize("env", [{}, JOB], ids=["no job", "a job without hooks"])
@pytest.mark.parametrize("start", ["nohup {} &", "setsid {} &", "(trap '' HUP; exec {}) &"])
def test_inner_run_keeps_the_cache_when_the_outer_ends(user: User, start: str, env: dict[str, str]) -> None:
    """The outer command ends first, with its own status. The inner one finds its files, and deletes the cache at its end."""
    inner = start.format(f"{nested(user, working(user, 'inner'))} {QUIET}")
    done = user.run(f"{SHOW}\n{inner}\n{until_working(user, 'inner')}; exit 3", env=env)
    cache = Path(done.stdout.split()[1])
    assert (done.returncode, done.stderr) == (3, "") and len(list((cache / ".jobcache/nodes").iterdir())) == 1
    if not env:
        assert user.decisions() == {cache.name: ("keep", "alive")}
    assert finish(user, "inner") == ["inner"]
    wait_until(lambda: user.left() == [])


def test_inner_run_keeps_the_cache_when_the_outer_is_killed(user: User) -> None:
    """kill -9 of the outer `jobcache run` and of its command. The sweep deletes the cache after the inner command."""
    script = f"echo $JOBCACHE_DIR\nsetsid {nested(user, working(user, 'inner'))} {QUIET} &\nwait"
    with user.running(script) as (process, cache):
        wait_until((user.home / "inner-made").exists)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert user.decisions() == {cache.name: ("keep", "alive")}
        assert finish(user, "inner") == ["inner"]
        wait_until(lambda: user.decisions() == {cache.name: ("reap", "orphan")})
        user.jobcache("sweep", "--hooks", str(user.site.hooks))
    assert user.left() == []


def test_signal_to_both_runs_deletes_the_cache_once(user: User) -> None:
    """Ctrl-C reaches both commands and both `jobcache run`. Nothing is left, and nobody reports an error."""
    inner = nested(user, f"touch {user.home}/ready; exec sleep 60")
    with user.running(f"echo $JOBCACHE_DIR; {inner}") as (process, _):
        wait_until((user.home / "ready").exists)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")
        wait_until(lambda: user.left() == [])


def test_command_that_starts_after_the_outer_run_has_a_cache_of_its_own(user: User) -> None:
    """Its variables name a cache that is deleted or that nobody works in: it does not join."""
    late = nested(user, f"echo $JOBCACHE_DIR >{user.home}/late.new; mv {user.home}/late.new {user.home}/late")
    wait = f"while [ ! -e {user.home}/now ]; do sleep 0.02; done"
    env = "env -u JOBCACHE_DIR"  # so that the shell that waits is no user of the cache
    script = f"echo $JOBCACHE_DIR; {env} {daemon(f'cd /; {wait}; JOBCACHE_DIR=$OUTER {late}')}"
    done = user.run(f"export OUTER=$JOBCACHE_DIR; {script}")
    assert user.left() == [] and done.stderr == ""
    (user.home / "now").touch()
    wait_until((user.home / "late").exists)
    own = (user.home / "late").read_text().strip()
    assert "/hf-datasets-run-" in own and own != done.stdout.strip()
    wait_until(lambda: user.left() == [])


def test_renamed_cache_is_not_joined(user: User) -> None:
    """The name is not that of a cache: the last command would delete a directory that its user has put aside."""
    with user.running() as (_, cache):
        aside = cache.with_name("mine")
        cache.rename(aside)
        own, same = user.run(SHOW, env={"JOBCACHE_DIR": str(aside), "HF_DATASETS_CACHE": str(aside)}).stdout.split()
        assert own == same and "/hf-datasets-run-" in own and aside.exists()


def test_node_lease_of_the_hooks_covers_nested_commands(user: User) -> None:
    """In a job with hooks the Epilog ends the cache's life on the node. On a node without that lease, a command takes one."""
    exports = user.site.task_prolog(4242).exports
    show = "ls $JOBCACHE_DIR/.jobcache/nodes"
    assert user.run(show, env={**JOB, **exports}).stdout.split() == ["n1"]
    first, second = user.run(show, env={**JOB, **exports, "SLURMD_NODENAME": "n2"}).stdout.split()
    assert (first, second[:3]) == ("n1", "n2+")
    assert [lease.name for lease in (user.site.cache() / ".jobcache/nodes").iterdir()] == ["n1"]


# ------------------------------------------------------------------------------------------------------------- background


def test_background_process_keeps_its_cache(user: User) -> None:
    """It holds the inherited lock on the lease. The message has its name and id, and the status is the command's."""
    done = user.run(f"echo $JOBCACHE_DIR; ({working(user, 'late')}) {QUIET} &\n{until_working(user, 'late')}; exit 3")
    cache = Path(done.stdout.strip())
    assert done.returncode == 3 and user.decisions() == {cache.name: ("keep", "alive")}
    assert done.stderr.startswith(f"jobcache run: keeps {cache}: in use by sh (pid ") and "jobcache sweep" in done.stderr
    (kept,) = [event for event in user.site.syslog.events() if event["event"] == "cache.kept"]
    assert kept["reason"] == "in_use" and kept["pids"]
    assert finish(user, "late") == ["late"]
    wait_until(lambda: user.decisions() == {cache.name: ("reap", "orphan")})
    user.jobcache("sweep", "--hooks", str(user.site.hooks))
    assert user.left() == []


def test_daemon_without_descriptors_keeps_its_cache(user: User) -> None:
    """It holds no lock, as children of Python do. Its environment names the cache, and the record names the process."""
    done = user.run(f"echo $JOBCACHE_DIR; {daemon(working(user, 'late'))}; {until_working(user, 'late')}")
    cache, pid = Path(done.stdout.strip()), pid_of(user, "late")
    assert f"sh (pid {pid})" in done.stderr and done.returncode == 0
    assert [left[0] for left in json.loads((cache / ".jobcache/job.json").read_text())["left"]][0] == pid
    assert user.decisions() == {cache.name: ("keep", "alive")}
    assert finish(user, "late") == ["late"]
    wait_until(lambda: user.decisions() == {cache.name: ("reap", "orphan")})


def test_background_process_in_a_job_keeps_the_cache(user: User) -> None:
    """Commands that the job starts later join the cache as before."""
    script = f"({working(user, 'late')}) {QUIET} &\n{until_working(user, 'late')}"
    done = user.run(script, env=JOB)
    assert str(user.site.cache()) in done.stderr and "after the job" in done.stderr
    again = user.run(f"{SHOW}; ls $JOBCACHE_DIR", env=JOB)
    assert again.stdout.split() == [str(user.site.cache())] * 2 + ["late"] and again.stderr == ""
    assert finish(user, "late") == ["late"]


def test_process_that_ends_soon_after_the_command_is_awaited(user: User) -> None:
    """Helpers of Python's multiprocessing end a moment after the program. The cache is deleted, without a message."""
    done = user.run(f"{daemon('sleep 0.4')}; (exec sleep 0.4) {QUIET} &")
    assert (done.stderr, user.left()) == ("", [])


def test_background_process_of_an_inner_run_keeps_the_cache(user: User) -> None:
    """The inner lease stays for it, and the outer command's end deletes nothing."""
    inner = nested(user, f"({working(user, 'late')}) {QUIET} &\n{until_working(user, 'late')}")
    done = user.run(f"echo $JOBCACHE_DIR; {inner}")
    cache = Path(done.stdout.strip())
    assert done.stderr.count("jobcache run: keeps") == 1 and user.decisions() == {cache.name: ("keep", "alive")}
    assert finish(user, "late") == ["late"]


def test_signal_ends_the_wait_for_background_processes(user: User) -> None:
    """A user who presses Ctrl-C does not wait."""
    script = f"echo $JOBCACHE_DIR; (trap '' INT; exec sleep 60) {QUIET} &\nexit 0"
    with user.running(script) as (process, _):
        time.sleep(0.4)  # the command has ended
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - began < 1.2 and "keeps" in errors and process.returncode == 0


# ----------------------------------------------------------------------------------------------------------- made again


def test_directory_that_the_command_made_again_is_deleted(user: User) -> None:
    """`rm -rf` and `mkdir` in the command's script: the name is this command's alone, so it deletes the new directory."""
    done = user.run("rm -rf $JOBCACHE_DIR; mkdir -p $JOBCACHE_DIR/json; touch $JOBCACHE_DIR/json/a")
    assert (done.returncode, done.stderr, user.left()) == (0, "", [])
    user.run("rm -rf $JOBCACHE_DIR/.jobcache; touch $JOBCACHE_DIR/a")
    assert user.left() == []
    assert user.run("rm -rf $JOBCACHE_DIR").stderr == ""


MOMENTS = {
    "before the release": ("node_leases", "release", "before"),
    "after the release": ("node_leases", "release", "after"),
    "after the publication": ("reaper", "retire", "before"),
    "after the rename": ("reaper", "retire", "after"),
    "during the deletion": ("reaper", "delete", "before"),
    "after the deletion": ("reaper", "delete", "after"),
}


def meddling(user: User, moment: str, script: str, times: int = 1) -> dict[str, str]:
    """Return an environment in which a process that hides from `jobcache run` runs a script at this moment of its end."""
    module, name, order = MOMENTS[moment]
    (user.home / "sitecustomize.py").write_text(
        "import os, subprocess\n"
        "from jobcache.cache import node_leases\n"
        "from jobcache.system import reaper\n"
        f"real, left = {module}.{name}, [0] * {times}\n"
        "def meddle():\n"
        "    if left:\n"
        "        left.pop()\n"
        f"        cache = open({str(user.home / 'cache')!r}).read().strip()\n"
        f"        subprocess.run(['/bin/sh', '-c', {script!r}, 'sh', cache], cwd='/')\n"
        "def call(*args, **kw):\n"
        f"    {'meddle()' if order == 'before' else 'pass'}\n"
        "    result = real(*args, **kw)\n"
        f"    {'meddle()' if order == 'after' else 'pass'}\n"
        "    return result\n"
        f"{module}.{name} = call\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(user.home), *sys.path])}


REMAKE = "rm -rf $1; mkdir -p $1/json && echo x >$1/json/a"
NOTE = "echo $JOBCACHE_DIR >$HOME/cache; mkdir $JOBCACHE_DIR/csv; echo y >$JOBCACHE_DIR/csv/b"


@pytest.mark.parametrize("env", [{}, {**JOB, "SLURM_JOB_NUM_NODES": "1"}], ids=["no job", "a job without hooks"])
@pytest.mark.parametrize("script", [REMAKE, "rm -rf $1", "rm -rf $1/.jobcache"], ids=["made again", "removed", "without record"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_end_is_clean_whenever_a_hidden_process_remakes_the_cache(
    user: User, moment: str, script: str, env: dict[str, str]
) -> None:
    """Before, between and after the steps of the end: nothing is left, and nothing is printed."""
    user.site.configure(store={"user": f"{user.site.scratch}/{{user}}/store"})
    done = user.run(f"{NOTE}; exit 3", env={**env, "JOBCACHE_STORE": "x", **meddling(user, moment, script)})
    assert (done.returncode, done.stderr, user.left()) == (3, "", [])


def test_cache_that_is_made_again_and_again_is_left_to_the_sweep(user: User) -> None:
    """After some attempts, with an id: the sweep deletes it."""
    done = user.run(NOTE, env=meddling(user, "after the deletion", REMAKE, times=100))
    cache = (user.home / "cache").read_text().strip()
    assert f"cannot delete {cache}: a process makes it again and again; `jobcache sweep` will delete it" in done.stderr
    assert user.decisions() == {os.path.basename(cache): ("reap", "orphan")}


def test_cache_made_again_in_a_job_of_several_nodes_is_reported(user: User) -> None:
    """Another node can have made it: the sweep after the job reports it."""
    script = f"rm -rf $JOBCACHE_DIR; mkdir $JOBCACHE_DIR; touch $JOBCACHE_DIR/a; {SHOW}"
    done = user.run(script, env={**JOB, "SLURM_JOB_NUM_NODES": "2"})
    assert done.stderr == "" and user.left() == [os.path.basename(done.stdout.split()[1])]


@pytest.mark.parametrize("env", [{}, {**JOB, "SLURM_JOB_NUM_NODES": "1"}], ids=["no job", "a job without hooks"])
def test_directory_made_again_stays_while_an_inner_command_works_in_it(user: User, env: dict[str, str]) -> None:
    """Its lease went with the old directory. The inner command deletes the new one at its end."""
    inner = nested(user, working(user, "inner"))
    remake = "rm -rf $JOBCACHE_DIR; mkdir $JOBCACHE_DIR; touch $JOBCACHE_DIR/new"
    done = user.run(f"nohup {inner} {QUIET} &\n{until_working(user, 'inner')}; {remake}", env=env)
    assert done.stderr == "" and len(user.left()) == 1
    assert finish(user, "inner") == ["new"]
    wait_until(lambda: user.left() == [])


def test_directory_made_again_is_kept_for_a_background_process(user: User) -> None:
    """It gets an id and the process in its record: the sweep keeps it, and deletes it after the process."""
    script = f"echo $JOBCACHE_DIR; rm -rf $JOBCACHE_DIR; mkdir $JOBCACHE_DIR; ({working(user, 'late')}) {QUIET} &"
    done = user.run(f"{script}\n{until_working(user, 'late')}")
    cache = Path(done.stdout.strip())
    assert "keeps" in done.stderr and user.decisions() == {cache.name: ("keep", "alive")}
    assert finish(user, "late") == ["late"]
    wait_until(lambda: user.decisions() == {cache.name: ("reap", "orphan")})


def test_directory_of_a_process_that_nobody_could_see_is_listed(user: User) -> None:
    """A name and an owner prove nothing: the sweep reports the directory, and `list` shows it with the reason."""
    done = user.run("echo $JOBCACHE_DIR")
    cache = Path(done.stdout.strip())
    done = user.run(f"echo $JOBCACHE_DIR; mkdir {cache}; touch {cache}/a")
    assert user.decisions() == {cache.name: ("report", "unrecorded")}
    (row,) = json.loads(user.jobcache("list", "--config", user.config, "--json").stdout)
    assert (row["path"], row["state"], row["reason"]) == (str(cache), "unrecorded", "unrecorded")


def test_cache_whose_command_was_killed_after_its_lease_was_removed_is_reaped(user: User) -> None:
    """nodes/ is empty: nobody has a lease. The sweep deletes the cache."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    next((cache / ".jobcache/nodes").iterdir()).unlink()
    assert user.decisions() == {cache.name: ("reap", "orphan")}


def test_cache_with_a_lease_without_a_date_is_reaped_after_an_hour_of_silence(user: User) -> None:
    """A command was killed while it wrote its lease. A held lock keeps the cache."""
    with user.running() as (process, cache):
        (lease,) = (cache / ".jobcache/nodes").iterdir()
        os.truncate(lease, 0)
        process.kill()
        process.wait()
        assert user.decisions() == {cache.name: ("keep", "alive")}
    wait_until(lambda: user.decisions() == {cache.name: ("keep", "young")})
