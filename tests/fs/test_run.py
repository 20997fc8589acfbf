"""`jobcache run`: a private cache for one command, as its user, and a sweep without Slurm of the caches that are left."""

from __future__ import annotations

import json
import os
import pty
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.prompt import SHOW, WHO, User, wait_until
from support.site_dir import ALICE, BOB, Site
from support.user_cache import HASH, put


@pytest.fixture
def user(site: Site) -> User:
    return User(site)


# ------------------------------------------------------------------------------------------------------- a command's life


def test_command_has_an_empty_private_cache(user: User) -> None:
    """The command finds the cache, may fill it, and it is deleted afterwards."""
    done = user.run(
        f"{SHOW}; ls -A $JOBCACHE_DIR; stat -c %a $JOBCACHE_DIR; mkdir $JOBCACHE_DIR/json; echo x >$JOBCACHE_DIR/json/a"
    )
    cache, same, *rest = done.stdout.split()
    assert cache == same and rest == [".jobcache", "700"] and (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{user.site.scratch}/{ALICE}/\.cache/hf-datasets-run-\d+-[a-z]{{8}}", cache)
    assert user.left() == []
    created, reaped = user.site.syslog.events()
    assert (created["event"], reaped["event"]) == ("cache.created", "cache.reaped")
    assert (reaped["outcome"], reaped["files"]) == ("reaped", 1)


@pytest.mark.parametrize("variable", ["HOME", "HF_HOME", "HF_DATASETS_CACHE"])
def test_cache_begins_with_the_builds_of_the_usual_cache(user: User, variable: str) -> None:
    """Of the cache that the command would use: its own HF_DATASETS_CACHE too, since `jobcache run` replaces that."""
    below = {"HOME": ".cache/huggingface/datasets", "HF_HOME": "datasets", "HF_DATASETS_CACHE": ""}[variable]
    top = user.site.dir / "own"
    build = put(top / below, f"json/default-1/0.0.0/{HASH}")
    subprocess.run(["chown", "-R", ALICE, str(top)], check=True)
    script = f"readlink $HF_DATASETS_CACHE/json/default-1/0.0.0/{HASH}/*"
    done = user.run(script, env={variable: str(top)})
    assert done.stdout.split() == sorted(map(str, build.iterdir())) and done.stderr == ""
    assert user.left() == [] and len(list(build.iterdir())) == 3
    (created,) = user.site.syslog.events("cache.created")
    assert (created["inherited"]["builds"], created["inherited"]["files"]) == (1, 3)
    assert user.run(script, env={variable: str(top), "JOBCACHE_INHERIT": "off"}).returncode != 0


def test_command_has_the_caches_of_further_programs(user: User) -> None:
    """`exports_for` of the configuration counts, and a value from another cache is replaced."""
    config = user.site.dir / "own.yaml"
    config.write_text(f"cluster: test\npath: {user.site.scratch}/{{user}}/hf-{{job_id}}\nexports_for: [triton]\n")
    done = user.run('echo "$TRITON_CACHE_DIR $HF_DATASETS_CACHE"', "--config", str(config))
    triton, cache = done.stdout.split()
    assert triton == f"{cache}/.triton"


def test_command_runs_without_cache_if_its_builds_cannot_be_linked(user: User) -> None:
    """As if jobcache were not there; the message has the reason."""
    user.site.configure(inherit_max_builds=1)
    top = user.site.dir / "own"
    for at in range(2):
        put(top / "datasets", f"json/default-{at}/0.0.0/{HASH}")
    subprocess.run(["chown", "-R", ALICE, str(top)], check=True)
    done = user.run(f"{SHOW}; exit 4", env={"HF_HOME": str(top)})
    assert (done.stdout, done.returncode) == ("\n\n", 4) and "more than 1 builds" in done.stderr
    assert user.left() == []


def test_without_configuration_cache_lies_below_xdg_cache_home(user: User) -> None:
    """On a laptop after pip install: below ~/.cache or XDG_CACHE_HOME; and the sweep finds it."""
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
def test_exit_status_is_that_of_the_command(user: User, script: str, status: int) -> None:
    """The status is the one that a shell reports. The cache is deleted in each case."""
    assert user.run(script).returncode == status
    assert user.left() == []


def test_command_that_cannot_run_has_status_of_a_shell(user: User) -> None:
    """127 or 126, and a message with the reason."""
    missing = user.jobcache("run", "--config", user.config, "--", "/nonexistent/command")
    barred = user.jobcache("run", "--config", user.config, "--", "/etc/passwd")
    assert (missing.returncode, barred.returncode) == (127, 126)
    assert "No such file" in missing.stderr and "Permission denied" in barred.stderr and user.left() == []


def test_command_runs_without_cache_if_creation_fails(user: User) -> None:
    """The message has the path and the system's error, and no Python."""
    done = user.jobcache("run", "--path", "/proc/x/{user}/hf-{job_id}", "--", "/bin/echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.startswith("jobcache run: no private cache: /proc/x") and "Errno" not in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signal_to_jobcache_is_passed_on_once(user: User, name: str) -> None:
    """The user sees one process: the command gets the signal once, and ends as it likes."""
    script = f"trap 'echo got' {name[3:]}; echo $JOBCACHE_DIR; while [ ! -e $JOBCACHE_DIR/go ]; do sleep 0.05; done; exit 9"
    with user.running(script) as (process, cache):
        os.kill(process.pid, getattr(signal, name))
        time.sleep(0.5)  # a second one would be here by then
        (cache / "go").touch()
        assert process.communicate(timeout=20)[0] == "got\n" and process.returncode == 9
    assert user.left() == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_to_process_group_arrives_once(user: User, name: str) -> None:
    """Slurm and shells signal the process group: the command gets no second signal."""
    script = f"trap 'echo got' {name[3:]}; echo $JOBCACHE_DIR; while [ ! -e $JOBCACHE_DIR/go ]; do sleep 0.05; done; exit 0"
    with user.running(script, stderr=subprocess.DEVNULL) as (process, cache):
        os.killpg(process.pid, getattr(signal, name))
        time.sleep(0.5)  # a second one would be here by then
        (cache / "go").touch()
        assert process.communicate(timeout=20)[0] == "got\n" and process.returncode == 0
    assert user.left() == []


def test_ctrl_c_on_a_terminal_arrives_once(user: User) -> None:
    """The terminal signals the command as well as jobcache."""
    terminal, stdin = pty.openpty()
    script = "trap 'echo got' INT; echo $JOBCACHE_DIR; while [ ! -e $JOBCACHE_DIR/go ]; do sleep 0.05; done"
    take = f"import os, fcntl, termios, sys; fcntl.ioctl({stdin}, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-c", take, sys.executable, "-m", "jobcache.cli", "run", "--config", user.config]
    env = {"HOME": str(user.home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*argv, "--", "/bin/sh", "-c", script], env=env, cwd="/", stdin=stdin, stdout=subprocess.PIPE, text=True,
        user=WHO.pw_uid, group=WHO.pw_gid, extra_groups=[], start_new_session=True, pass_fds=[stdin],
    )  # fmt: skip
    assert process.stdout
    cache = Path(process.stdout.readline().strip())
    os.write(terminal, b"\x03")
    time.sleep(0.5)
    (cache / "go").touch()
    assert process.communicate(timeout=20)[0] == "got\n" and process.returncode == 0
    os.close(terminal)
    os.close(stdin)
    assert user.left() == []


def test_reader_in_the_same_pipeline_keeps_the_terminal(user: User) -> None:
    """`jobcache run -- … | less`: less reads keys from the terminal, whose foreground group is that of both."""
    reader = f"with open('/dev/tty') as keys: open('{user.home}/read', 'w').write(keys.readline())"
    run = shlex.join([sys.executable, "-m", "jobcache.cli", "run", "--config", user.config, "--", "sh", "-c"])
    wait = shlex.quote(f"touch {user.home}/runs; while [ ! -s {user.home}/read ]; do sleep 0.02; done")
    pid, terminal = pty.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(WHO.pw_gid)
        os.setuid(WHO.pw_uid)
        env = {"HOME": str(user.home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        line = f"cd /; {run} {wait} | {shlex.join([sys.executable, '-c', reader])}"
        os.execve("/bin/sh", ["sh", "-c", line], env)
    wait_until((user.home / "runs").exists)
    os.write(terminal, b"key\n")
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    os.close(terminal)
    assert (user.home / "read").read_text() == "key\n"
    wait_until(lambda: user.left() == [])


def test_keep_leaves_cache_until_keep_max(user: User) -> None:
    """JOBCACHE=keep: the cache outlives the command."""
    cache = Path(user.run(SHOW, env={"JOBCACHE": "keep"}).stdout.split()[0])
    assert cache.exists() and user.decisions() == {cache.name: ("keep", "user_keep")}
    user.site.configure(keep_max="0s")
    assert user.decisions() == {cache.name: ("reap", "orphan")}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"JOBCACHE": "off"}, ""),
        ({"HF_HUB_OFFLINE": "1", "JOBCACHE_INHERIT": "off"}, "offline"),
        ({"HF_DATASETS_OFFLINE": "true", "JOBCACHE_INHERIT": "off"}, "offline"),
    ],
)
def test_command_without_cache_keeps_its_environment(user: User, env: dict[str, str], message: str) -> None:
    """Off, or offline: the command runs as without jobcache."""
    done = user.run(f"{SHOW}; exit 4", env={"HF_DATASETS_CACHE": "/mine", **env})
    assert (done.stdout, done.returncode) == ("/mine\n\n", 4) and message in done.stderr


@pytest.mark.parametrize("env", [{}, {"JOBCACHE": "off"}, {"HF_HUB_OFFLINE": "1"}])
def test_command_ignores_no_signal(user: User, env: dict[str, str]) -> None:
    """With a cache and without: Python ignores SIGPIPE, and a command that writes into `head` needs it."""
    done = user.run("grep SigIgn /proc/self/status", env=env)
    assert int(done.stdout.split()[1], 16) == 0


def test_root_gets_no_cache(user: User) -> None:
    """jobcache deletes nothing as root: the command runs, and a message has the reason."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    done = user.run(SHOW, as_root=True)
    assert (done.stdout, done.returncode) == ("\n\n", 0) and "root" in done.stderr


def test_command_runs_without_cache_if_directory_is_closed(user: User) -> None:
    """The message has the system's error."""
    user.site.scratch.chmod(0o755)
    done = user.run(f"{SHOW}; exit 5")
    assert (done.stdout, done.returncode) == ("\n\n", 5) and "Permission denied" in done.stderr


@pytest.mark.parametrize("env", [{"HOME": "here"}, {"HOME": "/home/../home"}, {"XDG_CACHE_HOME": "/home/{x}"}])
def test_unusable_home_does_not_stop_the_command(user: User, env: dict[str, str]) -> None:
    """The command runs without a cache, and the message names the variable HOME."""
    if os.path.exists("/etc/jobcache/jobcache.yaml"):
        pytest.skip("this machine has a configuration")
    done = user.jobcache("run", "sh", "-c", f"{SHOW}; exit 5", env=env)
    assert (done.stdout, done.returncode) == ("\n\n", 5) and "HOME" in done.stderr
    done = user.jobcache("run", "sh", "-c", SHOW, env={"XDG_CACHE_HOME": f"{user.home}//x/./"})
    assert done.stdout.startswith(f"{user.home}/x/jobcache/") and done.stderr == ""


def test_command_replaces_jobcache_if_no_process_can_be_created(user: User) -> None:
    """No cache is left."""
    limits = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); os.execv(sys.argv[1], sys.argv[1:])"
    argv = [sys.executable, "-m", "jobcache.cli", "run", "--config", user.config, "--", "/bin/echo", "ran"]
    env = {"HOME": str(user.home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", limits, *argv], env=env, cwd="/", capture_output=True, text=True, check=False,
        user=WHO.pw_uid, group=WHO.pw_gid, extra_groups=[],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ran\n") and "temporarily unavailable" in done.stderr
    assert user.left() == []


def test_works_under_a_parent_that_ignores_sigchld(user: User) -> None:
    """Some schedulers and containers ignore it. The status is the command's, and the cache is deleted."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    done = user.run("exit 7", preexec_fn=ignore)
    assert (done.returncode, done.stderr) == (7, "")
    done = user.jobcache("run", "--config", user.config, "--", "grep", "SigIgn", "/proc/self/status", preexec_fn=ignore)
    assert int(done.stdout.split()[1], 16) == 1 << (signal.SIGCHLD - 1), "as it would be without jobcache"
    assert user.left() == []


def test_unusable_path_is_a_usage_error(user: User) -> None:
    """Status 2, and the command does not run."""
    done = user.jobcache("run", "--path", "relative/{job_id}", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (2, "") and "not an absolute path" in done.stderr
    assert user.jobcache("run").returncode == 2


# ---------------------------------------------------------------------------------------------------- after kill -9


def test_sweep_keeps_cache_of_live_command(user: User) -> None:
    """The command can continue after `jobcache run` was killed: its cache stays."""
    with user.running("echo $JOBCACHE_DIR; echo $$; exec sleep 60") as (process, cache):
        child = int(process.stdout.readline())
        assert user.decisions() == {cache.name: ("keep", "alive")}
        process.kill()
        process.wait()
        assert user.decisions() == {cache.name: ("keep", "alive")}
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: user.decisions() == {cache.name: ("reap", "orphan")})
        assert user.jobcache("sweep", "--hooks", str(user.site.hooks)).returncode == 0
    assert user.left() == []


def test_sweep_waits_for_grace_after_death(user: User) -> None:
    """A cache whose command has just died stays for `sweep.grace`."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        user.site.configure(sweep={"grace": "1h", "confirm": "0s"})
        wait_until(lambda: user.decisions() == {cache.name: ("keep", "young")})


def test_sweep_keeps_caches_of_other_hosts_and_recent_boots(user: User) -> None:
    """A cache of another host is never reaped; one of an earlier boot only after an hour without a touch of its lease."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lease = next((cache / ".jobcache/nodes").iterdir())
    lease.write_text(f"{'0' * 8}-0000-0000-0000-{'0' * 12} 5.00\n")
    assert user.decisions() == {cache.name: ("keep", "young")}
    lease.rename(lease.with_name("elsewhere+" + lease.name.partition("+")[2]))
    assert user.decisions() == {cache.name: ("keep", "other_host")}


def test_sweep_keeps_cache_with_forged_or_missing_id(user: User) -> None:
    """The cache has the id of a job, or no id: its name alone is no proof."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    id_file = cache / ".jobcache/id"
    was = id_file.read_text()
    id_file.write_text(was.replace("@", ""))
    assert user.decisions() == {cache.name: ("keep", "foreign")}
    id_file.unlink()
    assert user.decisions() == {cache.name: ("report", "unrecorded")}


def test_sweep_finishes_interrupted_deletion(user: User) -> None:
    """The sweep needs no Slurm for it."""
    with user.running() as (process, cache):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    trash = cache.with_name(f".jobcache-trash-{cache.name.split('-')[3]}-0123456789abcdef")
    cache.rename(trash)
    assert user.decisions() == {trash.name: ("reap", "trash")}
    user.jobcache("sweep", "--hooks", str(user.site.hooks))
    assert user.left() == []


def test_sweep_and_list_find_caches_by_path(user: User) -> None:
    """`--path` is the template by which the caches were created."""
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


# -------------------------------------------------------------------------------------------------------- own symlinks


def own_link(link: Path, target: Path | str, owner: int = WHO.pw_uid) -> None:
    """Make a symlink of Alice, and its target if that is a path."""
    for path in (link.parent, *([target] if isinstance(target, Path) else [])):
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, WHO.pw_uid, WHO.pw_gid)
    link.symlink_to(target)
    os.lchown(link, owner, owner)


def leave_and_sweep(user: User, real: Path, *options: str, env: dict[str, str] | None = None) -> str:
    """Let a command and its cache end, kill another one, and sweep with the same options; return the killed one's cache."""
    assert user.jobcache("run", *options, "--", "sh", "-c", "ls -d $JOBCACHE_DIR", env=env or {}).stderr == ""
    words = ["run", *options, "--", "sh", "-c", "echo $JOBCACHE_DIR; exec sleep 60"]
    process = user.start(*words, start_new_session=True, env=env or {})
    assert process.stdout
    cache = Path(process.stdout.readline().strip())
    assert cache.is_relative_to(real.resolve()) and list(real.rglob("hf-datasets-*")) == [cache]
    assert "1 keep: alive" in user.jobcache("sweep", "--dry-run", *options, env=env or {}).stdout
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "1 keep: young" in user.jobcache("sweep", "--dry-run", *options, env=env or {}).stdout
    return str(cache)


@pytest.mark.parametrize("dangling", [False, True])
def test_default_path_behind_an_own_symlink_is_used(user: User, dangling: bool) -> None:
    """~/.cache on scratch, because of a quota: the cache is there, a sweep finds it, and a missing target is made."""
    if os.path.exists("/etc/jobcache/jobcache.yaml"):
        pytest.skip("this machine has a configuration")
    real = user.site.scratch / "alice-has-room" / "cache"
    own_link(user.home / ".cache", real)
    os.chown(real.parent, WHO.pw_uid, WHO.pw_gid)
    if dangling:
        real.rmdir()
    cache = leave_and_sweep(user, real)
    assert cache.startswith(f"{real}/jobcache/{WHO.pw_uid}/hf-datasets-run-")


@pytest.mark.parametrize(
    ("template", "link", "target", "expected"),
    [
        ("link/{user}/hf-datasets-{job_id}", "link", "real", "real/{user}"),
        ("{user}/link/hf-datasets-{job_id}", "{user}/link", "../real", "real/{uid}"),
        ("{user}/link/a/{uid}/hf-datasets-{job_id}", "{user}/link", "../real/b", "real/b/a/{uid}"),
        ("{user}/a/hf-datasets-{job_id}", "{user}", "real", "real/a/{uid}"),
    ],
)
def test_path_through_an_own_symlink_is_resolved(user: User, template: str, link: str, target: str, expected: str) -> None:
    """For `--path` of `run`, `sweep` and `list`. The directory that names the user is added where the link hides it."""
    real, top = user.home / "real", user.home
    real.mkdir()
    os.chown(real, WHO.pw_uid, WHO.pw_gid)
    own_link(Path(f"{top}/{link}".replace("{user}", ALICE)), target)
    cache = leave_and_sweep(user, real, "--path", f"{top}/{template}")
    place = expected.replace("{user}", ALICE).replace("{uid}", str(WHO.pw_uid))
    assert cache.startswith(f"{top}/{place}/hf-datasets-run-")
    (row,) = json.loads(user.jobcache("list", "--path", f"{top}/{template}", "--json").stdout)
    assert row["path"] == cache


def test_root_still_follows_no_symlink_of_a_user(user: User) -> None:
    """Root's sweep by the same template finds nothing, and deletes nothing."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    template = f"{user.home}/link/{{user}}/hf-datasets-{{job_id}}"
    own_link(user.home / "link", user.home / "real")
    cache = Path(leave_and_sweep(user, user.home / "real", "--path", template))
    user.jobcache("sweep", "--path", template, "--config", user.config, as_root=True)
    assert cache.exists()


@pytest.mark.parametrize("owner", ["another user", "this user, in the site's path"])
def test_symlink_that_is_not_followed_is_named(user: User, owner: str) -> None:
    """With its target and the next step. The command runs without a cache."""
    is_own = owner.startswith("this")
    link = user.site.scratch / ALICE if is_own else user.home / "link"
    own_link(link, user.home / "real", WHO.pw_uid if is_own else pwd.getpwnam(BOB).pw_uid)
    path = [] if is_own else ["--path", f"{link}/{{user}}/hf-{{job_id}}"]
    done = user.run(f"{SHOW}; exit 5", *path)
    assert (done.stdout, done.returncode, list((user.home / "real").iterdir())) == ("\n\n", 5, [])
    assert f"{link}: a symlink of uid " in done.stderr and f" to {user.home}/real; " in done.stderr
    assert "use the real path" in done.stderr and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- in a job


def test_example_in_readme_runs_as_printed(user: User) -> None:
    """It prints what the README shows."""
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


def test_in_a_job_the_cache_has_the_name_of_the_job(user: User) -> None:
    """Each run of a requeued job has its own; `scope` gives each task or node a directory."""
    assert user.run(SHOW, env=job()).stdout.split() == [str(user.site.cache())] * 2
    assert user.run(SHOW, env=job(SLURM_RESTART_COUNT="2")).stdout.split()[0] == str(user.site.cache(run=2))
    cache, whole = user.run(SHOW, env=job(SLURM_STEP_ID="3", JOBCACHE_SCOPE="task")).stdout.split()
    assert (cache, whole) == (f"{user.site.cache()}/step-3-task-0", str(user.site.cache()))
    assert user.run(SHOW, env=job(JOBCACHE_SCOPE="node")).stdout.split()[0] == f"{user.site.cache()}/node-n1"
    assert user.left() == []


def test_commands_of_a_job_share_one_cache(user: User) -> None:
    """Two ranks on a node: the first to end leaves the cache to the other, the last one deletes it."""
    with user.running(env=job()) as (_, cache):
        assert user.run(SHOW, env=job(SLURM_PROCID="1")).stdout.split()[0] == str(cache)
        assert user.run(SHOW, env=job(SLURMD_NODENAME="n2")).stdout.split()[0] == str(cache)
        assert cache.exists()
        (cache / "json").mkdir()
    wait_until(lambda: user.left() == [cache.name])  # the killed process's lease keeps the cache
    assert len(list((cache / ".jobcache/nodes").iterdir())) == 1


def test_login_shell_of_salloc_is_not_a_task(user: User) -> None:
    """The shell may outlive the job, so its commands have caches of their own."""
    env = {name: value for name, value in job().items() if name != "SLURMD_NODENAME"}
    assert "hf-datasets-run-" in user.run(SHOW, env=env).stdout


def test_cache_of_the_hooks_is_used_and_kept(user: User) -> None:
    """The hooks' cache stays as it is."""
    exports = user.site.task_prolog(4242).exports
    done = user.run(SHOW, env=job(**exports))
    assert done.stdout.split() == [str(user.site.cache())] * 2 and user.site.cache().exists()
    assert [lease.name for lease in (user.site.cache() / ".jobcache/nodes").iterdir()] == ["n1"]


def test_variables_of_a_parent_job_are_not_a_cache(user: User) -> None:
    """sbatch inside a job passes them on. The child's command gets its own cache."""
    exports = user.site.task_prolog(4241).exports
    assert user.run(SHOW, env=job(**exports)).stdout.split()[0] == str(user.site.cache(4242))


def test_variables_of_a_parent_job_are_removed_without_a_cache(user: User) -> None:
    """The parent's cache is deleted with the parent; a value of the user's own stays."""
    exports = user.site.task_prolog(4241).exports
    assert user.run(SHOW, env=job(**exports, JOBCACHE="off")).stdout == "\n\n"
    assert user.run(SHOW, env=job(**{**exports, "HF_DATASETS_CACHE": "/mine"}, JOBCACHE="off")).stdout == "/mine\n\n"


def test_hooks_recognise_variables_of_an_outer_run(user: User) -> None:
    """`jobcache run -- sbatch` passes its variables to the job."""
    with user.running() as (_, cache):
        env = {"HF_DATASETS_CACHE": str(cache), "JOBCACHE_DIR": str(cache)}
        assert user.site.task_prolog(7, **env).cache == str(user.site.cache(7))
        assert user.site.task_prolog(8, JOBCACHE="off", **env).unsets == ["HF_DATASETS_CACHE", "JOBCACHE_DIR"]


def test_first_matching_rule_decides(user: User) -> None:
    """Another path, or no cache."""
    rules = [
        {"match": {"partition": "vi*"}, "cache": "off"},
        {"match": {"account": ["astro"]}, "path": f"{user.site.scratch}/astro/{{user}}/hf-{{job_id}}"},
    ]
    user.site.configure(rules=rules)
    (user.site.scratch / "astro").mkdir(mode=0o1777)
    (user.site.scratch / "astro").chmod(0o1777)
    assert user.run(SHOW, env=job(SLURM_JOB_PARTITION="viz")).stdout == "\n\n"
    assert user.run(SHOW, env=job(SLURM_JOB_ACCOUNT="astro")).stdout.split()[0] == f"{user.site.scratch}/astro/{ALICE}/hf-4242"
