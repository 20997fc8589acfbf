"""Hooks in unusual order and number, as unusual users, and in containers that hold hardly any program."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.faulty import EXPORTED, GID, UID, epilog, left, prolog, run, said, swept, told
from support.site_dir import ALICE, SHELLS, Site, entries

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")


def test_epilog_of_job_without_task_does_nothing(site: Site) -> None:
    """The job ran no task: no event, and no file made."""
    epilog(site)
    assert said(site) == [] and os.listdir(site.scratch) == []
    prolog(site, SLURM_JOB_ID="7")
    epilog(site)
    assert said(site) == [] and left(site) == ["hf-datasets-7"]


def test_late_task_prolog_makes_whole_cache(site: Site) -> None:
    """A second Epilog or the sweep reaps it."""
    prolog(site)
    epilog(site)
    assert prolog(site, step="0").cache and left(site) == ["hf-datasets-4242"]
    assert swept(site, 4242).reaped == []
    swept(site)
    assert left(site) == []


def test_one_of_many_epilogs_reaps(site: Site) -> None:
    """Slurm repeats an Epilog. Exactly one of them reaps and writes the event."""
    prolog(site)
    site.fill(site.cache(), *(f"json/{at}" for at in range(100)), size=10)
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    running = [subprocess.Popen([str(site.hooks / "epilog")], env={**env, "SLURM_JOB_NUM_NODES": "1"}) for _ in range(8)]
    assert [one.wait(timeout=30) for one in running] == [0] * 8
    assert left(site) == [] and len(site.events("cache.reaped")) == 1


@pytest.mark.parametrize("user", ["daemon", ALICE])
def test_epilog_that_does_not_run_as_root_exits_0(site: Site, user: str) -> None:
    """SlurmdUser is not root. It reaps no cache of another user, and the sweep does so later."""
    prolog(site)
    account = pwd.getpwnam(user)
    env = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_GID": str(GID), "SLURM_JOB_USER": ALICE,
        "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1",
    }  # fmt: skip
    ended = run([str(site.hooks / "epilog")], env, 30, user=account.pw_uid, group=account.pw_gid)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert left(site) == ["hf-datasets-4242"]
    swept(site)
    assert left(site) == []


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_nothing_happens_as_root_or_nobody(site: Site, user: str) -> None:
    """Slurm names root or nobody if it does not know the user: no cache is made or touched as one of these."""
    site.configure(min_uid=1000)
    uid = {"root": 0, "nobody": 65534}[user]
    env = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_UID": str(uid),
        "SLURM_JOB_USER": user,
        "SLURMD_NODENAME": "n1",
        "SLURM_PROCID": "0",
    }
    assert bool(told(run([str(site.hooks / "task-prolog")], env, 5, user=uid, group=uid)).exports) == (user == "nobody")
    epilog(site, SLURM_JOB_UID=str(uid), SLURM_JOB_GID=str(uid), SLURM_JOB_USER=user)
    assert [entries(path) for path in site.scratch.glob("*/.cache")] in ([], [[]])


@pytest.fixture
def container(site: Site) -> Path:
    """Return a root directory with busybox and its libraries; without Python, /etc/passwd and /tmp."""
    root = site.dir / "root"
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", "/bin/busybox"], capture_output=True, text=True).stdout)
    for file in ("/bin/busybox", *libraries):
        target = root / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(file), target)
    for name in ("sh", "sleep", "mkdir", "rmdir", "mv", "ln", "rm", "ls", "date"):
        (root / "bin" / name).symlink_to("busybox")
    for path in ("proc", "dev", str(site.hooks), str(site.scratch)):
        (root / path.lstrip("/")).mkdir(parents=True)
    return root


def inside(site: Site, root: Path, hook: str, *mounts: str, user: bool, **more: str) -> subprocess.CompletedProcess[bytes]:
    """Run a hook with `root` as its root directory. The hooks, scratch and `mounts` of this host are mounted there."""
    binds = "".join(f'mount --rbind "{path}" "$1{path}" && ' for path in (str(site.hooks), str(site.scratch), *mounts))
    who = ["--userspec", f"{UID}:{GID}", "--groups", ""] if user else []
    inner = f'{binds}root=$1 && shift && exec chroot "$@" "$root" /bin/sh {site.hooks}/{hook}'
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    env["HOME"] = "/nonexistent"
    command = ["unshare", "--mount", "sh", "-c", inner, "sh", str(root), *who]
    return run(command, {**env, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **more}, 5 if user else 30)


def test_shell_makes_cache_in_container_with_busybox_alone(site: Site, container: Path) -> None:
    """Further tasks join it, and the Epilog reaps it outside of the container."""
    for step in ({}, {"SLURM_STEP_ID": "0"}):
        done = told(inside(site, container, "task-prolog", "/proc", "/dev", user=True, **step))
        assert done.exports.keys() == EXPORTED and (site.cache() / ".jobcache/nodes/n1").exists()
    epilog(site)
    assert left(site) == [] and said(site) == [("cache.reaped", "reaped", None)]


def test_no_cache_in_container_without_proc_and_dev(site: Site, container: Path) -> None:
    """A cache needs a date and a unique name. Without them nothing is left, and the task runs."""
    done = inside(site, container, "task-prolog", user=True)
    assert (done.returncode, b"export" in done.stdout, left(site)) == (0, False, [])


def test_epilog_without_python_touches_nothing(site: Site, container: Path) -> None:
    """In a container without Python: exit 0, nothing printed, nothing touched. The next Epilog outside reaps."""
    prolog(site)
    for mounts in ((), ("/proc", "/dev")):
        done = inside(site, container, "epilog", *mounts, user=False)
        assert (done.returncode, done.stdout) == (0, b"")
    assert left(site) == ["hf-datasets-4242"]
    epilog(site)
    assert left(site) == []


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])
@pytest.mark.parametrize("hook", ["task-prolog", "epilog"])
def test_hooks_start_with_all_descriptors_closed(site: Site, hook: str, shell: str) -> None:
    """Exit 0."""
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    command = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *shell.split(), str(site.hooks / hook)]
    who = {"user": UID, "group": GID} if hook == "task-prolog" else {}
    assert run(command, env, 30, **who).returncode == 0
