"""`jobcache run`: a private cache for one command, as its user, and what a sweep without Slurm makes of the leftovers."""

from __future__ import annotations

import json
import os
import pty
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support.site_dir import ALICE, Site

WHO = pwd.getpwnam(ALICE)
SHOW = 'echo "$HF_DATASETS_CACHE"; echo "$JOBCACHE_DIR"'


class User:
    """Alice at a prompt. home: hers, with nothing in it. config: the site's file, `grace` 0; Slurm is not to be had."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.home = site.dir / "home"
        self.home.mkdir()
        os.chown(self.home, WHO.pw_uid, WHO.pw_gid)
        site.configure(slurm={"squeue": "/nonexistent", "scontrol": "/nonexistent"}, sweep={"grace": "0s", "confirm": "0s"})
        self.config = str(site.dir / "jobcache.yaml")

    def start(self, *argv: str, as_root: bool = False, **kw: Any) -> subprocess.Popen[str]:
        """Run jobcache with these arguments; env: beside what a login shell has."""
        env = {"HOME": str(self.home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **kw.pop("env", {})}
        ids = {} if as_root else {"user": WHO.pw_uid, "group": WHO.pw_gid, "extra_groups": []}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **kw}
        return subprocess.Popen([sys.executable, "-m", "jobcache.cli", *argv], env=env, cwd="/", text=True, **ids, **pipes)

    def jobcache(self, *argv: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*argv, **kw)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def run(self, script: str, *options: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        return self.jobcache("run", "--config", self.config, *options, "--", "/bin/sh", "-c", script, **kw)

    def left(self) -> list[str]:
        """What lies where the site has caches, and in the user's home."""
        places = (self.site.scratch / ALICE / ".cache", self.home / ".cache/jobcache" / str(WHO.pw_uid))
        return sorted(path.name for place in places if place.exists() for path in place.iterdir())

    def decisions(self) -> dict[str, tuple[str, str]]:
        """What a dry run of the sweep says, by name. It must not have asked Slurm."""
        done = self.jobcache("sweep", "--hooks", str(self.site.hooks), "--dry-run", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {os.path.basename(row["path"]): (row["action"], row["reason"]) for row in rows}

    @contextmanager
    def running(self, script: str = "echo $JOBCACHE_DIR; exec sleep 60", **kw: Any) -> Iterator[tuple[Any, Path]]:
        """A command under way, and its cache. The script begins by telling that."""
        process = self.start("run", "--config", self.config, "--", "/bin/sh", "-c", script, start_new_session=True, **kw)
        assert process.stdout
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def user(site: Site) -> User:
    return User(site)


def until(what: Any) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------------- a command's life


def test_a_cache_of_its_own(user: User) -> None:
    """The command finds it made, private and empty, may fill it, and it is gone afterwards."""
    done = user.run(
        f"{SHOW}; ls -A $JOBCACHE_DIR; stat -c %a $JOBCACHE_DIR; mkdir $JOBCACHE_DIR/json; echo x >$JOBCACHE_DIR/json/a"
    )
    cache, same, *rest = done.stdout.split()
    assert cache == same and rest == [".jobcache", "700"] and (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{user.site.scratch}/{ALICE}/\.cache/hf-datasets-run-\d+-[a-z]{{8}}", cache)
    assert user.left() == []
    made, reaped = user.site.syslog.events()
    assert (made["event"], reaped["event"], reaped["outcome"], reaped["files"]) == ("cache.created", "cache.reaped", "reaped", 1)


def test_without_any_configuration(user: User) -> None:
    """On a laptop after pip install: below ~/.cache, or XDG_CACHE_HOME; and the sweep looks there."""
    if os.path.exists("/etc/jobcache/jobcache.yaml"):
        pytest.skip("this machine has a configuration")
    done = user.jobcache("run", "sh", "-c", SHOW)
    assert done.stdout.startswith(f"{user.home}/.cache/jobcache/{WHO.pw_uid}/hf-datasets-run-")
    done = user.jobcache("run", "sh", "-c", SHOW, env={"XDG_CACHE_HOME": f"{user.home}/xdg"})
    assert done.stdout.startswith(f"{user.home}/xdg/jobcache/") and done.stderr == ""
    mine = user.start("run", "--", "sh", "-c", "echo; exec sleep 60", start_new_session=True)
    assert mine.stdout and mine.stdout.readline()
    assert "1 keep: alive" in user.jobcache("sweep", "--dry-run").stdout
    os.killpg(mine.pid, signal.SIGKILL)
    mine.communicate()
    assert "1 keep: young" in user.jobcache("sweep", "--dry-run").stdout


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 77", 77), ("kill -TERM $$", 143), ("kill -KILL $$", 137)])
def test_the_exit_status_passes_through(user: User, script: str, status: int) -> None:
    """As a shell tells it; the cache goes whatever it is."""
    assert user.run(script).returncode == status
    assert user.left() == []


def test_commands_that_cannot_be_run(user: User) -> None:
    """127 and 126, as in a shell, and a word of why."""
    missing = user.jobcache("run", "--config", user.config, "--", "/nonexistent/command")
    barred = user.jobcache("run", "--config", user.config, "--", "/etc/passwd")
    assert (missing.returncode, barred.returncode) == (127, 126)
    assert "No such file" in missing.stderr and "Permission denied" in barred.stderr and user.left() == []


def test_a_cache_that_cannot_be_made(user: User) -> None:
    """The command runs without, and why is said with the file's name, and no Python."""
    done = user.jobcache("run", "--path", "/proc/x/{user}/hf-{job_id}", "--", "/bin/echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.startswith("jobcache run: no private cache: /proc/x") and "Errno" not in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_us_is_handed_on(user: User, name: str) -> None:
    """To the process that a person sees: the command gets it, once, and ends as it likes."""
    script = f"trap 'echo got' {name[3:]}; echo $JOBCACHE_DIR; while [ ! -e $JOBCACHE_DIR/go ]; do sleep 0.05; done; exit 9"
    with user.running(script) as (process, cache):
        os.kill(process.pid, getattr(signal, name))
        time.sleep(0.5)  # a second one would be here by then
        (cache / "go").touch()
        assert process.communicate(timeout=20)[0] == "got\n" and process.returncode == 9
    assert user.left() == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_all_comes_once(user: User, name: str) -> None:
    """To the process group, as Slurm and shells send it: the command has it already, and gets no second one."""
    script = f"trap 'echo got' {name[3:]}; echo $JOBCACHE_DIR; while [ ! -e $JOBCACHE_DIR/go ]; do sleep 0.05; done; exit 0"
    with user.running(script, stderr=subprocess.DEVNULL) as (process, cache):
        os.killpg(process.pid, getattr(signal, name))
        time.sleep(0.5)  # a second one would be here by then
        (cache / "go").touch()
        assert process.communicate(timeout=20)[0] == "got\n" and process.returncode == 0
    assert user.left() == []


def test_ctrl_c_on_a_terminal_comes_once(user: User) -> None:
    """From the terminal the command gets it with us."""
    ours, theirs = pty.openpty()
    script = "trap 'echo got' INT; echo $JOBCACHE_DIR; while [ ! -e $JOBCACHE_DIR/go ]; do sleep 0.05; done"
    take = f"import os, fcntl, termios, sys; fcntl.ioctl({theirs}, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-c", take, sys.executable, "-m", "jobcache.cli", "run", "--config", user.config]
    env = {"HOME": str(user.home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*argv, "--", "/bin/sh", "-c", script], env=env, cwd="/", stdin=theirs, stdout=subprocess.PIPE, text=True,
        user=WHO.pw_uid, group=WHO.pw_gid, extra_groups=[], start_new_session=True, pass_fds=[theirs],
    )  # fmt: skip
    assert process.stdout
    cache = Path(process.stdout.readline().strip())
    os.write(ours, b"\x03")
    time.sleep(0.5)
    (cache / "go").touch()
    assert process.communicate(timeout=20)[0] == "got\n" and process.returncode == 0
    os.close(ours)
    os.close(theirs)
    assert user.left() == []


def test_keep(user: User) -> None:
    """JOBCACHE=keep: the cache outlives the command, and the sweep keeps it until keep_max."""
    cache = Path(user.run(SHOW, env={"JOBCACHE": "keep"}).stdout.split()[0])
    assert cache.exists() and user.decisions() == {cache.name: ("keep", "user_keep")}
    user.site.configure(keep_max="0s")
    assert user.decisions() == {cache.name: ("reap", "orphan")}


@pytest.mark.parametrize(
    ("env", "said"),
    [({"JOBCACHE": "off"}, ""), ({"HF_HUB_OFFLINE": "1"}, "offline"), ({"HF_DATASETS_OFFLINE": "true"}, "offline")],
)
def test_without_a_cache(user: User, env: dict[str, str], said: str) -> None:
    """Off, or offline: the command runs as it would without us."""
    done = user.run(f"{SHOW}; exit 4", env={"HF_DATASETS_CACHE": "/mine", **env})
    assert (done.stdout, done.returncode) == ("/mine\n\n", 4) and said in done.stderr


@pytest.mark.parametrize("env", [{}, {"JOBCACHE": "off"}, {"HF_HUB_OFFLINE": "1"}])
def test_no_signal_is_ignored(user: User, env: dict[str, str]) -> None:
    """With a cache and without: Python ignores SIGPIPE, which a command that writes into `head` lives by."""
    done = user.run("grep SigIgn /proc/self/status", env=env)
    assert int(done.stdout.split()[1], 16) == 0


def test_as_root_there_is_none(user: User) -> None:
    """Nothing is deleted as root, so nothing is made; the command runs, and why is said."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    done = user.run(SHOW, as_root=True)
    assert (done.stdout, done.returncode) == ("\n\n", 0) and "root" in done.stderr


def test_where_none_can_be_made(user: User) -> None:
    """A directory that is closed to the user: the command runs, and why is said."""
    user.site.scratch.chmod(0o755)
    done = user.run(f"{SHOW}; exit 5")
    assert (done.stdout, done.returncode) == ("\n\n", 5) and "Permission denied" in done.stderr


@pytest.mark.parametrize("env", [{"HOME": "here"}, {"HOME": "/home/../home"}, {"XDG_CACHE_HOME": "/home/{x}"}])
def test_a_home_of_which_no_path_can_be_made(user: User, env: dict[str, str]) -> None:
    """That is no mistake of the command's, which runs."""
    if os.path.exists("/etc/jobcache/jobcache.yaml"):
        pytest.skip("this machine has a configuration")
    done = user.jobcache("run", "sh", "-c", f"{SHOW}; exit 5", env=env)
    assert (done.stdout, done.returncode) == ("\n\n", 5) and "HOME" in done.stderr
    done = user.jobcache("run", "sh", "-c", SHOW, env={"XDG_CACHE_HOME": f"{user.home}//x/./"})
    assert done.stdout.startswith(f"{user.home}/x/jobcache/") and done.stderr == ""


def test_where_no_process_is_to_be_had(user: User) -> None:
    """The command takes our place, and no cache is left behind."""
    limits = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-m", "jobcache.cli", "run", "--config", user.config, "--", "/bin/echo", "ran"]
    env = {"HOME": str(user.home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", limits, *argv], env=env, cwd="/", capture_output=True, text=True, check=False,
        user=WHO.pw_uid, group=WHO.pw_gid, extra_groups=[],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ran\n") and "temporarily unavailable" in done.stderr
    assert user.left() == []


def test_started_by_one_who_ignores_its_children(user: User) -> None:
    """As some schedulers and containers do: the status is the command's all the same, and the cache goes."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    done = user.run("exit 7", preexec_fn=ignore)
    assert (done.returncode, done.stderr) == (7, "")
    done = user.jobcache("run", "--config", user.config, "--", "grep", "SigIgn", "/proc/self/status", preexec_fn=ignore)
    assert int(done.stdout.split()[1], 16) == 1 << (signal.SIGCHLD - 1), "as it would be without us"
    assert user.left() == []


def test_within_another(user: User) -> None:
    """A script that calls itself, or is called, by `jobcache run` has one cache, and the inner one does not reap it."""
    command = f"{sys.executable} -m jobcache.cli run --config {user.config} -- sh -c 'echo $HF_DATASETS_CACHE'"
    outer, inner, there = user.run(f"echo $HF_DATASETS_CACHE; {command}; ls -A $HF_DATASETS_CACHE").stdout.split()
    assert outer == inner and there == ".jobcache" and user.left() == []


def test_wrong_use(user: User) -> None:
    """A template that cannot serve is the user's mistake: status 2, nothing runs."""
    done = user.jobcache("run", "--path", "relative/{job_id}", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (2, "") and "not an absolute path" in done.stderr
    assert user.jobcache("run").returncode == 2


# ---------------------------------------------------------------------------------------------------- what kill -9 leaves


def test_a_sweep_keeps_what_lives(user: User) -> None:
    """While the command lives, and while it lives on although `jobcache run` was killed, its cache is kept."""
    with user.running("echo $JOBCACHE_DIR; echo $$; exec sleep 60") as (process, cache):
        child = int(process.stdout.readline())
        assert user.decisions() == {cache.name: ("keep", "alive")}
        process.kill()
        process.wait()
        assert user.decisions() == {cache.name: ("keep", "alive")}
        os.kill(child, signal.SIGKILL)
        until(lambda: user.decisions() == {cache.name: ("reap", "orphan")})
        assert user.jobcache("sweep", "--hooks", str(user.site.hooks)).returncode == 0
    assert user.left() == []


def test_grace_holds_for_them_too(user: User) -> None:
    """What has just died is left alone for `sweep.grace`."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        user.site.configure(sweep={"grace": "1h", "confirm": "0s"})
        until(lambda: user.decisions() == {cache.name: ("keep", "young")})


def test_other_hosts_and_earlier_boots(user: User) -> None:
    """Another host's is never reaped; this host's of an earlier boot only when its lease was silent for an hour."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lease = next((cache / ".jobcache/nodes").iterdir())
    lease.write_text(f"{'0' * 8}-0000-0000-0000-{'0' * 12} 5.00\n")
    assert user.decisions() == {cache.name: ("keep", "young")}
    lease.rename(lease.with_name("elsewhere+" + lease.name.partition("+")[2]))
    assert user.decisions() == {cache.name: ("keep", "other_host")}


def test_a_forged_or_missing_id(user: User) -> None:
    """A name like that, without an id or with a job's, is not reaped."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    id_file = cache / ".jobcache/id"
    was = id_file.read_text()
    id_file.write_text(was.replace("@", ""))
    assert user.decisions() == {cache.name: ("keep", "foreign")}
    id_file.unlink()
    assert user.decisions() == {cache.name: ("report", "unrecorded")}


def test_trash_of_them(user: User) -> None:
    """A deletion that was cut short is finished by the sweep, without Slurm."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    trash = cache.with_name(f".jobcache-trash-{cache.name.split('-')[3]}-0123456789abcdef")
    cache.rename(trash)
    assert user.decisions() == {trash.name: ("reap", "trash")}
    user.jobcache("sweep", "--hooks", str(user.site.hooks))
    assert user.left() == []


def test_sweep_and_list_of_a_path(user: User) -> None:
    """Caches elsewhere are found by the template that they were made by."""
    template = f"{user.home}/{{user}}/hf-datasets-{{job_id}}"
    process = user.start("run", "--path", template, "--", "sh", "-c", "echo $JOBCACHE_DIR; sleep 60", start_new_session=True)
    assert process.stdout
    cache = process.stdout.readline().strip()
    assert cache.startswith(f"{user.home}/{ALICE}/hf-datasets-run-")
    (row,) = json.loads(user.jobcache("list", "--path", template, "--config", user.config, "--json").stdout)
    assert (row["path"], row["state"], row["job_id"]) == (cache, "live", None)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = user.jobcache("sweep", "--path", template, "--config", user.config)
    assert (done.returncode, done.stderr, Path(cache).exists()) == (0, "", False)


# ---------------------------------------------------------------------------------------------------------- in a job


def test_the_readmes_example(user: User) -> None:
    """The shortest example runs as it stands there, and prints what it is said to print."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    example, output = re.findall(r"```\w*\n(.*?)```", text.partition("## Without a cluster")[2], re.DOTALL)[:2]
    line = example.splitlines()[1].replace("jobcache run", f"{sys.executable} -m jobcache.cli run")
    env = {"HOME": str(user.home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["/bin/sh", "-c", line], env=env, cwd="/", user=WHO.pw_uid, group=WHO.pw_gid, extra_groups=[],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    shape = re.compile(r"/\.cache/jobcache/\d+/hf-datasets-run-\d+-[a-z]{8}\n$")
    assert shape.search(done.stdout) and shape.search(output)


def job(**more: str) -> dict[str, str]:
    return {"SLURM_JOB_ID": "4242", "SLURMD_NODENAME": "n1", "SLURM_CLUSTER_NAME": "test", "SLURM_PROCID": "0", **more}


def test_in_a_job_it_is_the_jobs(user: User) -> None:
    """Named by the job; restarts have their own; a directory for each task where that is asked for."""
    assert user.run(SHOW, env=job()).stdout.split() == [str(user.site.cache())] * 2
    assert user.run(SHOW, env=job(SLURM_RESTART_COUNT="2")).stdout.split()[0] == str(user.site.cache(run=2))
    cache, whole = user.run(SHOW, env=job(SLURM_STEP_ID="3", JOBCACHE_SCOPE="task")).stdout.split()
    assert (cache, whole) == (f"{user.site.cache()}/step-3-task-0", str(user.site.cache()))
    assert user.run(SHOW, env=job(JOBCACHE_SCOPE="node")).stdout.split()[0] == f"{user.site.cache()}/node-n1"
    assert user.left() == []


def test_commands_of_a_job_share_it(user: User) -> None:
    """Two ranks on a node: the first to end leaves the cache to the other, the last one reaps it."""
    with user.running(env=job()) as (_, cache):
        assert user.run(SHOW, env=job(SLURM_PROCID="1")).stdout.split()[0] == str(cache)
        assert user.run(SHOW, env=job(SLURMD_NODENAME="n2")).stdout.split()[0] == str(cache)
        assert cache.exists()
        (cache / "json").mkdir()
    until(lambda: user.left() == [cache.name])  # killed: its lease is there, so the cache is
    assert len(list((cache / ".jobcache/nodes").iterdir())) == 1


def test_a_login_shells_allocation_is_no_job(user: User) -> None:
    """A shell that salloc starts on a login node may outlive the job: its commands are not the job's."""
    env = {name: value for name, value in job().items() if name != "SLURMD_NODENAME"}
    assert "hf-datasets-run-" in user.run(SHOW, env=env).stdout


def test_with_the_hooks_it_changes_nothing(user: User) -> None:
    """The hooks' cache is used as it is, and is not reaped."""
    exports = user.site.task_prolog(4242).exports
    done = user.run(SHOW, env=job(**exports))
    assert done.stdout.split() == [str(user.site.cache())] * 2 and user.site.cache().exists()
    assert [lease.name for lease in (user.site.cache() / ".jobcache/nodes").iterdir()] == ["n1"]


def test_a_parent_jobs_variables_are_not_a_cache(user: User) -> None:
    """sbatch from inside a job hands them on: the child's command gets its own cache."""
    exports = user.site.task_prolog(4241).exports
    assert user.run(SHOW, env=job(**exports)).stdout.split()[0] == str(user.site.cache(4242))


def test_nor_are_they_left_where_there_is_to_be_none(user: User) -> None:
    """Another's cache is gone with it: without one of its own, the command has no such variable; the user's own stays."""
    exports = user.site.task_prolog(4241).exports
    assert user.run(SHOW, env=job(**exports, JOBCACHE="off")).stdout == "\n\n"
    assert user.run(SHOW, env=job(**{**exports, "HF_DATASETS_CACHE": "/mine"}, JOBCACHE="off")).stdout == "/mine\n\n"


def test_sbatch_within_run(user: User) -> None:
    """`jobcache run -- sbatch` hands its variables to the job: the hooks know them for what they are."""
    with user.running() as (_, cache):
        env = {"HF_DATASETS_CACHE": str(cache), "JOBCACHE_DIR": str(cache)}
        assert user.site.task_prolog(7, **env).cache == str(user.site.cache(7))
        assert user.site.task_prolog(8, JOBCACHE="off", **env).unsets == ["HF_DATASETS_CACHE", "JOBCACHE_DIR"]


def test_rules_hold(user: User) -> None:
    """The first rule that matches the job: another path, or none."""
    rules = [
        {"match": {"partition": "vi*"}, "cache": "off"},
        {"match": {"account": ["astro"]}, "path": f"{user.site.scratch}/astro/{{user}}/hf-{{job_id}}"},
    ]
    user.site.configure(rules=rules)
    (user.site.scratch / "astro").mkdir(mode=0o1777)
    (user.site.scratch / "astro").chmod(0o1777)
    assert user.run(SHOW, env=job(SLURM_JOB_PARTITION="viz")).stdout == "\n\n"
    assert user.run(SHOW, env=job(SLURM_JOB_ACCOUNT="astro")).stdout.split()[0] == f"{user.site.scratch}/astro/{ALICE}/hf-4242"
