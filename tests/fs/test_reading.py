"""Commands that only read leave the directories of users, and all files in them, as they are: no time changes, not even that
of the last access.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobcache.cli.main import main
from support.host import HOST
from support.mounts import mount
from support.site_dir import ALICE, BOB, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
COMMANDS = {
    "list": ["list"],
    "list of a user": ["list", "--user", ALICE, "--json"],
    "sweep": ["sweep", "--dry-run"],
    "sweep of node-local scratch": ["sweep", "--dry-run", "--node-local"],
    "explain": ["explain", "7"],
    "report": ["report", "--since", "1d"],
    "store list": ["store", "list", "--user", ALICE],
    "store verify": ["store", "verify", "--user", ALICE],
    "store prune": ["store", "prune", "--dry-run"],
    "show-config": ["show-config"],
}


def snapshot(top: Path) -> dict[str, tuple[int, ...]]:
    """Return everything that stat has about `top` and each file below it, in a way that changes no access time."""
    found = {}
    stack = [str(top)]
    while stack:
        path = stack.pop()
        info = os.lstat(path)
        found[path] = (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_size, info.st_ino)
        found[path] += (info.st_mtime_ns, info.st_ctime_ns, info.st_atime_ns)
        if stat.S_ISDIR(info.st_mode):  # following a symlink changes its access time
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
            stack += [f"{path}/{name}" for name in os.listdir(fd)]
            os.close(fd)
    return found


def age(top: Path) -> None:
    """Set access times that any reading changes: older than the change, and older than a day."""
    for path in snapshot(top):
        info = os.lstat(path)
        os.utime(path, ns=(info.st_mtime_ns - 10**15, info.st_mtime_ns), follow_symlinks=False)


@pytest.fixture
def used(site: Site) -> Iterator[Site]:
    """A site with caches of every state. Its scratch records access times, as the kernel does by default."""
    with mount("none", site.scratch, "tmpfs", "mode=1777"):
        fill(site)
        yield site


def fill(site: Site) -> None:
    """Make live, dead, kept, half-made and unrecorded caches, caches of `jobcache run`, trash and a store."""
    fake = site.dir / "slurm"
    fake.mkdir()
    for name, answer in (
        ("scontrol", 'case "$*" in *config*) echo "ClusterName = test"; echo "PrivateData = none" ;; esac'),
        ("squeue", 'case "$*" in *%V*|*%S*) echo "8|8|RUNNING|5|N/A" ;; *) echo "8|8|RUNNING|5" ;; esac'),
    ):
        (fake / name).write_text(f"#!/bin/sh\n{answer}\n")
        (fake / name).chmod(0o755)
    site.configure(
        slurm={"squeue": str(fake / "squeue"), "scontrol": str(fake / "scontrol"), "timeout": "5s"},
        sweep={"grace": "0s", "confirm": "0s"},
        store={"user": f"{site.scratch}/{{user}}/.cache/store"},
    )
    for user in (ALICE, BOB):
        for job in (7, 8, 9):
            site.task_prolog(job, user=user, JOBCACHE="keep" if job == 9 else "on")
            site.fill(site.cache(job, user=user), "json/a.arrow", size=8192)
        parent = site.cache(user=user).parent
        uid = parent.stat().st_uid
        for name, cluster, pid in ((".jobcache-trash-7-ab", "test", 7), ("hf-datasets-run-5-abcdefgh", "@elsewhere", 5)):
            (parent / name / ".jobcache/nodes").mkdir(parents=True)
            (parent / name / ".jobcache/id").write_text(f"{cluster} {pid} 0 {uid}\n")
            (parent / name / ".jobcache/job.json").write_text("{}\n")
            (parent / name / ".jobcache/nodes/n1").write_text("boot 1.00\n")
        (parent / "hf-datasets-6/data").mkdir(parents=True)
        (parent / ".jobcache-new-6-ab").mkdir()
        build = parent / "store/v1/default/0123456789abcdef0123456789abcdef.1"
        (build / "files").mkdir(parents=True)
        (build / "contents").write_text("")
        for path in [parent, *parent.rglob("*")]:
            os.chown(path, uid, -1, follow_symlinks=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_reading_changes_no_time_in_users_directories(used: Site, name: str) -> None:
    """Root's commands, with caches of every state."""
    age(used.scratch)
    before = snapshot(used.scratch)
    time.sleep(0.02)
    done = CliRunner().invoke(main, [*COMMANDS[name], "--hooks", str(used.hooks)], catch_exceptions=False, obj=HOST)
    print(done.output)
    assert snapshot(used.scratch) == before


@pytest.mark.parametrize("name", ["list", "sweep", "explain", "store list"])
def test_reading_of_ones_own_directories_writes_no_file(used: Site, name: str) -> None:
    """A user's own commands, with the user's home among the directories."""
    home = used.scratch / ALICE
    age(home)
    before = snapshot(home)
    account = home.stat()
    words = [word for word in COMMANDS[name] if word not in ("--user", ALICE)]
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(account.st_gid)
            os.setuid(account.st_uid)
            os.environ.update(HOME=str(home), XDG_RUNTIME_DIR=str(home))
            CliRunner().invoke(main, [*words, "--hooks", str(used.hooks)], catch_exceptions=False, obj=HOST)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert snapshot(home) == before
