"""Hooks on broken foundations: Python, its modules, its filesystem, process limits, the user's loader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import jobcache
from jobcache.config import settings
from support.faulty import EXPORTED, FULL, GID, UID, epilog, left, prolog, run, said, swept, told
from support.hungfs import hung
from support.mounts import mount
from support.site_dir import ALICE, SHELLS, Site, entries

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])
OF_PREPARE = ["cache/fields", "cache/cache_names", "cache/protocol", "cache/devlog"]
OF_EPILOG = [
    "cache/fields", "cache/path_template", "cache/node_leases", "cache/event_line", "config/settings",
    "system/as_user", "system/epilog_job", "system/epilog_work", "system/events", "system/reaper",
]  # fmt: skip

BREAKAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_text(""),
    "syntax": lambda file: file.write_text("match x:\n  case 1 if (\n"),
    "torn": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] + b"\n("),
    "binary": lambda file: file.write_bytes(b"\0\xff\xfe" * 100),
    "raises": lambda file: file.write_text("raise RuntimeError('no')\n"),
    "closed": lambda file: file.chmod(0),  # to users: root can still read it
}


def broken(program: str, modules: list[str]) -> list[tuple[str, str]]:
    """Return (module, breakage): all breakages of the program itself, and two of each module that it imports."""
    return [(program, how) for how in BREAKAGES] + [(module, how) for module in modules for how in ("missing", "torn")]


@pytest.fixture
def package(site: Site) -> Path:
    """Return the copy of the package that the hooks use."""
    return copied(site)


def copied(site: Site) -> Path:
    """Copy the package into the site, and make the hooks use it. Return its directory."""
    target = site.dir / "lib" / "jobcache"
    shutil.copytree(Path(jobcache.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    site.policy(package=str(target))
    return target


@pytest.mark.parametrize(("module", "how"), broken("prepare", OF_PREPARE))
def test_shell_makes_cache_where_module_is_broken(site: Site, package: Path, module: str, how: str) -> None:
    """The job has a cache, and an Epilog with a whole package reaps it."""
    BREAKAGES[how](package / f"{module}.py")
    assert prolog(site).exports.keys() == EXPORTED and (site.cache() / ".jobcache/nodes/n1").exists()
    site.configure()
    epilog(site)
    swept(site)  # a Python that failed after it made the cache left trash
    assert left(site) == []


@pytest.mark.parametrize(("module", "how"), broken("epilog", OF_EPILOG))
def test_epilog_with_broken_module_exits_0(site: Site, package: Path, module: str, how: str) -> None:
    """The shim reports that Python failed, and nothing is lost: the Epilog of a repaired package does the work."""
    prolog(site)
    BREAKAGES[how](package / f"{module}.py")
    epilog(site)
    if how == "closed":
        assert said(site) == [("cache.reaped", "reaped", None)]
        return
    ((event, outcome, reason),) = said(site)
    assert (event, outcome) == ("hook.failed", "failed") and reason in ("python", "internal", "child_died")
    assert (site.cache() / ".jobcache/nodes").exists()
    site.configure()
    epilog(site)
    assert left(site) == []


@pytest.mark.parametrize("module", ["structlog", "psutil"])
def test_epilog_needs_no_installed_module(site: Site, package: Path, module: str) -> None:
    """The cache is reaped and the event is logged, even if an installed module beside the package is broken."""
    prolog(site)
    (package.parent / f"{module}.py").write_text("import no_such_module\n")
    epilog(site)
    assert left(site) == [] and said(site) == [("cache.reaped", "reaped", None)]


VENVS: dict[str, Callable[[Path], object]] = {
    "python gone": lambda venv: (venv / "bin/python").unlink(),
    "python dangles": lambda venv: ((venv / "bin/python").unlink(), (venv / "bin/python").symlink_to("/nonexistent/python")),
    "python is a loop": lambda venv: ((venv / "bin/python").unlink(), (venv / "bin/python").symlink_to("python")),
    "its home is gone": lambda venv: (venv / "pyvenv.cfg").write_text("home = /nonexistent\nversion = 3.6.1\n"),
    "pyvenv.cfg gone": lambda venv: (venv / "pyvenv.cfg").unlink(),
    "packages gone": lambda venv: shutil.rmtree(venv / "lib"),
    "a bad .pth": lambda venv: next(venv.glob("lib/*/site-packages")).joinpath("x.pth").write_text("import sys; sys.exit(3)\n"),
    "closed": lambda venv: venv.chmod(0),
}


@pytest.mark.parametrize("how", VENVS)
def test_broken_venv_is_harmless(site: Site, how: str) -> None:
    """With Python or without, each job has its cache, each node's Epilog exits with 0, and in the end nothing is left."""
    venv = site.dir / "venv"
    packages = venv / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    packages.mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(os.path.realpath(sys.executable))
    (venv / "pyvenv.cfg").write_text(f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n")
    VENVS[how](venv)
    site.policy(python=str(venv / "bin/python"))
    assert prolog(site).exports.keys() == EXPORTED and (site.cache() / ".jobcache/nodes/n1").exists()
    epilog(site)
    # This Python has no structlog, but can find it beside the package if both are installed together.
    assert [event for event, _, _ in said(site)] in (["hook.failed"], ["cache.reaped"])
    site.configure()
    epilog(site)
    assert left(site) == []


@pytest.mark.parametrize("killable", [True, False])
@pytest.mark.parametrize("where", ["python", "package"])
def test_hung_filesystem_of_python_delays_hooks_until_deadline(site: Site, where: str, killable: bool) -> None:
    """A shared /opt hangs: tasks get their exports at the deadline, and Epilogs end by theirs and report it.

    Where caches begin with the builds of their users, the batch task gets none in place of an empty one.
    """
    site.configure(task_prolog={"deadline": "1s"}, epilog={"deadline": "2s"})
    prolog(site, SLURM_JOB_ID="7")
    opt = site.dir / "opt"
    opt.mkdir()
    site.policy(**{where: f"{opt}/{where}"})
    with hung(opt, killable=killable):
        assert prolog(site, deadline=1).exports == {}
        assert prolog(site, step="0", deadline=1).exports.keys() == EXPORTED
        assert prolog(site, deadline=1, JOBCACHE_INHERIT="off").exports.keys() == EXPORTED
        epilog(site, SLURM_JOB_ID="7", deadline=2)
        assert said(site) == [("hook.failed", "failed", "deadline")]
    site.configure()
    epilog(site, SLURM_JOB_ID="7")
    assert left(site) == []


# ------------------------------------------------------------------------------------------------------------- limits


def limited(site: Site, hook: str, shell: str, deadline: float, *limits: str, user: bool) -> subprocess.CompletedProcess[bytes]:
    """Run a hook of job 4242 under these options of prlimit(1)."""
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    env.update({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "HOME": "/nonexistent"} if user else {"SLURM_JOB_NUM_NODES": "1"})
    command = ["/usr/bin/prlimit", *limits, *shell.split(), str(site.hooks / hook)]
    return run(command, env, deadline, **({"user": UID, "group": GID} if user else {}))


@each_shell
@pytest.mark.parametrize("limit", ["--as=16777216", "--as=8388608", "--nofile=16", "--stack=65536", "--core=0"])
def test_low_limits_leave_a_cache(site: Site, shell: str, limit: str) -> None:
    """16 MiB of address space, few descriptors: with Python or without, the job has a cache, and the Epilog exits with 0."""
    assert told(limited(site, "task-prolog", shell, 5, limit, user=True)).exports.keys() == EXPORTED
    assert (site.cache() / ".jobcache/nodes/n1").exists()
    done = limited(site, "epilog", shell, 30, limit, user=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert left(site) == [] or [event[0] for event in said(site)] == ["hook.failed"]
    epilog(site)
    assert left(site) == []


@each_shell
def test_no_cache_where_no_file_may_be_written(site: Site, shell: str) -> None:
    """ulimit -f 0: no record can be written. No cache, no export, no debris."""
    done = told(limited(site, "task-prolog", shell, 5, "--fsize=0", user=True))
    assert done.exports == {} and left(site) == []


BASH_WAITS = 31.0  # seconds: bash retries a failed fork for 15 s, at most twice


@each_shell
@pytest.mark.parametrize("processes", [0, 2, 4])
def test_user_without_processes_gets_whole_exports_or_none(site: Site, shell: str, processes: int) -> None:
    """ulimit -u: exit 0. Of the shells, only bash retries a fork, beyond the deadline."""
    if "bash" in shell and not FULL:
        pytest.skip("bash tries for 15 s: JOBCACHE_FULL=1")
    deadline = BASH_WAITS if "bash" in shell else 5
    done = told(limited(site, "task-prolog", shell, deadline, f"--nproc={processes}", user=True))
    assert done.exports.keys() in (set(), {"JOBCACHE_DECLINED"}, EXPORTED)
    epilog(site)
    if done.exports.keys() != EXPORTED:
        assert left(site) == []


FULL_OF_PROCESSES = """
import os, sys, time
free, hook = int(sys.argv[1]), sys.argv[2:]
with open("/proc/sys/kernel/pid_max", "w") as file:
    file.write("320")
pids = []
try:
    while True:
        pids.append(os.fork())
        if pids[-1] == 0:
            time.sleep(100)
            os._exit(0)
except OSError:
    pass
for pid in pids[-free - 1:]:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
pid = os.fork()
if pid == 0:
    os.execv(hook[0], hook)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(tuple(map(int, os.uname().release.split(".")[:2])) < (6, 14), reason="pid_max holds for the whole machine")
@pytest.mark.parametrize("free", [0, 1, 2, 4])
def test_epilog_on_node_without_free_pids_exits_0(site: Site, free: int) -> None:
    """Nothing is lost, and the next Epilog reaps."""
    prolog(site)
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", FULL_OF_PROCESSES, str(free)]
    done = run([*inside, "/bin/dash", str(site.hooks / "epilog")], {**env, "PATH": "/usr/bin:/bin"}, 30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert left(site) in ([], ["hf-datasets-4242"])
    epilog(site)
    assert left(site) == []


@pytest.mark.skipif(jobcache.__file__.startswith("/tmp/"), reason="the package itself is in /tmp")
@each_shell
def test_hooks_need_no_tmp(site: Site, shell: str) -> None:
    """/tmp holds only the directory of the test, and no user may write or list it."""
    inside = (
        'mkdir -p "$1" && mount --bind "$1" /mnt && mount -t tmpfs -o mode=711 none /tmp && mkdir "$1" && '
        'mount --bind /mnt "$1" && umount /mnt && mount -o remount,ro,mode=711 /tmp && shift && exec "$@"'
    )
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    outside = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", inside, "sh", str(site.dir)]
    as_user = ["/usr/bin/setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--"]
    path = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    assert str(site.dir).startswith("/tmp/") and not str(site.dir).strip("/").partition("/")[2].count("/")
    for python in ("", "/nonexistent"):
        if python:
            site.policy(python=python)
        done = run([*outside, *as_user, *shell.split(), str(site.hooks / "task-prolog")], {**env, **path}, 5)
        assert told(done).exports.keys() == EXPORTED and (site.cache() / ".jobcache/nodes/n1").exists()
        site.configure()
        done = run([*outside, *shell.split(), str(site.hooks / "epilog")], {**env, **path, "SLURM_JOB_NUM_NODES": "1"}, 30)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert left(site) == []


# --------------------------------------------------------------------------------------------- the user's environment


def test_users_python_variables_reach_no_python(site: Site) -> None:
    """PYTHONPATH and PYTHONHOME name other modules by the names that the hooks import, LD_LIBRARY_PATH broken libraries."""
    evil = site.dir / "evil"
    evil.mkdir()
    names = ("os.py", "time.py", "errno.py", "stat.py", "jobcache.py", "sitecustomize.py", "usercustomize.py", "encodings.py")
    for name in names:
        (evil / name).write_text(f"import posix\nposix.open('{site.scratch}/loaded-{name}', posix.O_CREAT)\nposix._exit(0)\n")
    for library in ("libm.so.6", "libz.so.1", "libexpat.so.1", "libpython3.so"):
        (evil / library).write_bytes(b"no library")
    of_python = dict.fromkeys(["PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "HOME"], str(evil))
    env = {**of_python, "LD_LIBRARY_PATH": str(evil), "PYTHONVERBOSE": "1", "PYTHONDEVMODE": "1", "PYTHONUTF8": "x"}
    assert prolog(site, **env).exports.keys() == EXPORTED
    assert [event["event"] for event in site.syslog.events()] == ["cache.created"]  # it was Python
    epilog(site, **{name: value for name, value in env.items() if name != "LD_LIBRARY_PATH"})
    assert left(site) == [] and not list(site.scratch.glob("loaded-*"))
    assert sorted(os.listdir(evil)) == sorted([*names, "libm.so.6", "libz.so.1", "libexpat.so.1", "libpython3.so"])


PRELOADED = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
__attribute__((constructor)) static void begin(void) {
    if (strstr(program_invocation_short_name, "python")) { MISDEED; }
}
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")
@pytest.mark.parametrize("misdeed", ["abort()", "pause()", "_exit(0)"])
def test_users_preloaded_library_reaches_no_python(site: Site, misdeed: str) -> None:
    """A library that the user preloads reaches the user's own shell, and not the Python of the hooks."""
    source, library = site.dir / "preloaded.c", site.dir / "preloaded.so"
    source.write_text(PRELOADED.replace("MISDEED", misdeed))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert prolog(site, LD_PRELOAD=str(library)).exports.keys() == EXPORTED
    assert len(site.syslog.events("cache.created")) == 1  # it was Python
    epilog(site)
    assert left(site) == []


# ----------------------------------------------------------------------------------------------------------- upgrades


def test_upgrade_during_job_leaves_nothing(site: Site, package: Path) -> None:
    """The package moves and the path changes: a step joins by the new path, and both caches are reaped."""
    cache = prolog(site).cache
    site.configure(path=f"{site.scratch}/{{user}}/elsewhere/{{job_id}}", scope="node", min_uid=2)
    shutil.rmtree(package)
    moved = copied(site)
    compiled = settings.load(str(site.hooks / settings.FILE))
    assert compiled.hash not in (site.cache() / ".jobcache/job.json").read_text()
    moved.rename(site.dir / "lib/newer")
    (site.dir / "lib/newer").rename(site.dir / "lib/jobcache")
    step = prolog(site, step="0", HF_DATASETS_CACHE=str(cache), JOBCACHE_DIR=str(cache))
    assert step.cache and step.cache.startswith(f"{site.scratch}/{ALICE}/elsewhere/4242/")
    epilog(site)
    assert left(site) == [] and entries(site.scratch / ALICE / "elsewhere") == []


def test_missing_package_during_upgrade_is_harmless(site: Site, package: Path) -> None:
    """The shell makes the cache, the Epilog reports that Python failed, and the next Epilog reaps."""
    package.rename(package.with_name("away"))
    assert prolog(site).cache
    epilog(site)
    assert said(site) == [("hook.failed", "failed", "python")]
    package.with_name("away").rename(package)
    epilog(site)
    assert left(site) == []


def test_full_log_and_run_dir_keep_no_cache(site: Site) -> None:
    """A full /run and /var do not stop the reaping. The system log has the event."""
    var = site.dir / "var"
    var.mkdir()
    site.configure(log={"file": f"{var}/events.jsonl", "syslog": str(site.syslog.path)}, run_dir=f"{var}/run")
    with mount("none", var, "tmpfs", "size=4k,nr_inodes=1"):
        prolog(site)
        epilog(site)
        assert left(site) == [] and len(site.syslog.events("cache.reaped")) == 1
