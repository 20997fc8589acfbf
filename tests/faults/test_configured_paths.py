"""Any kind of file at any configured path: every command and both hooks end in time, and change nothing that it leads to.

An admin's mistake, or a path in a directory that others can write, puts a fifo, a device, a socket, a directory or a symlink
there. A fifo hangs a process that opens it, and a symlink leads a process that writes to another file.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobcache.cli.main import main
from support.faulty import FULL, GID, UID
from support.host import HOST
from support.site_dir import ALICE, Site
from support.task_prolog import environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make devices and to run hooks as users")
DEADLINE = 20.0  # seconds for a command on a busy machine; the hooks have deadlines of their own
SECRET = "a file that no command may change\n"


def _device(minor: int) -> Callable[[Path], None]:
    return lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")


KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "directory": os.mkdir,
    "symlink": lambda path: path.symlink_to(path.parent / "victim"),
    "dangling symlink": lambda path: path.symlink_to(path.parent / "nothing"),
    "symlink to a fifo": lambda path: (os.mkfifo(path.parent / "fifo"), path.symlink_to(path.parent / "fifo"))[0],
    "zero": _device(5),
    "full": _device(7),
    "null": _device(3),
    "socket": _socket,
    "empty": Path.touch,
}
PATHS = {
    "metrics": "metrics/jobcache.prom",
    "metrics of the host": "metrics/jobcache-host.prom",
    "log": "events.jsonl",
    "rotated log": "events.jsonl.1",
    "syslog": "devlog2",
    "run_dir": "run",
    "register": "run/stuck",
    "lock": "run/sweep-shared-1-of-1.lock",
    "mark": "run/commented",
    "stamp": "run/store-pruned",
    "settings": "hooks/settings.json",
    "policy": "hooks/policy.sh",
    "off": "hooks/off",
    "make-cache": "hooks/make-cache.sh",
    "configuration": "jobcache.yaml",
    "slurm.conf": "slurm.conf",
    "squeue": "slurm/squeue",
    "scontrol": "slurm/scontrol",
    "chain": "chain",
    "site store": "site-store",
    "user store": f"scratch/{ALICE}/.cache/store",
    "users' directory": f"scratch/{ALICE}",
    "caches' directory": f"scratch/{ALICE}/.cache",
    "report": "report.html",
}
COMMANDS = (
    ["apply", "--hooks", "{hooks}", "--config", "{dir}/jobcache.yaml"],
    ["apply", "--check", "--hooks", "{hooks}", "--config", "{dir}/jobcache.yaml"],
    ["check", "--hooks", "{hooks}", "--config", "{dir}/jobcache.yaml", "--user", ALICE],
    ["show-config", "--config", "{dir}/jobcache.yaml"],
    ["sweep", "--hooks", "{hooks}"],
    ["sweep", "--hooks", "{hooks}", "--dry-run"],
    ["list", "--hooks", "{hooks}"],
    ["explain", "--hooks", "{hooks}", "4242"],
    ["report", "--hooks", "{hooks}", "--html", "{dir}/report.html"],
    ["store", "list", "--hooks", "{hooks}", "--user", ALICE],
    ["store", "prune", "--hooks", "{hooks}"],
)


@pytest.fixture
def configured(site: Site) -> Iterator[Site]:
    """A site with every path configured, whose files exist."""
    for name in ("slurm", "metrics", "site-store", "run"):
        (site.dir / name).mkdir()
    config = 'echo "ClusterName = test"; echo "PrivateData = none"'
    answers = {"scontrol": f'case "$*" in *config*) {config} ;; *) echo "No jobs in the system" ;; esac', "squeue": ""}
    for name, answer in answers.items():
        (site.dir / "slurm" / name).write_text(f"#!/bin/sh\n{answer}\n")
        (site.dir / "slurm" / name).chmod(0o755)
    (site.dir / "slurm.conf").write_text("ClusterName=test\n")
    (site.dir / "chain").write_text("#!/bin/sh\n")
    (site.dir / "chain").chmod(0o755)
    shutil.chown(site.dir / "site-store", ALICE)
    site.configure(
        log={"file": str(site.log), "syslog": str(site.dir / "devlog2")},
        metrics={"textfile": f"{site.dir}/metrics/jobcache.prom"},
        slurm={
            **{name: f"{site.dir}/slurm/{name}" for name in ("squeue", "scontrol")},
            "timeout": "3s",
            "conf": f"{site.dir}/slurm.conf",
        },
        sweep={"grace": "0s", "confirm": "0s", "comment": "admin"},
        store={"user": f"{site.scratch}/{{user}}/.cache/store", "site": f"{site.dir}/site-store"},
        task_prolog={"chain": f"{site.dir}/chain", "deadline": "2s"},
        epilog={"deadline": "4s"},
    )  # fmt: skip
    yield site
    site.log.unlink(missing_ok=True) if not site.log.is_dir() else None
    if site.log.is_dir():
        site.log.rmdir()


def command(site: Site, words: list[str]) -> None:
    """Run a command in a child, as root. Fail if it does not end in time, or ends by an unexpected exception."""
    argv = [word.format(hooks=site.hooks, dir=site.dir) for word in words]
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            result = CliRunner().invoke(main, argv, obj=HOST)
            status = 0 if result.exception is None or isinstance(result.exception, SystemExit) else 98
            if status:
                import traceback

                traceback.print_exception(*result.exc_info)  # type: ignore[misc]
        finally:
            os._exit(status)
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, f"{argv} ended by an exception"
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"{argv} does not end")


def hook(site: Site, name: str, env: dict[str, str], **who: object) -> None:
    """Run a hook, which exits 0 in time."""
    done = subprocess.run(
        ["/bin/sh", f"{site.hooks}/{name}"], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=8, check=False, **who
    )  # type: ignore[call-overload]
    assert done.returncode == 0


def place(site: Site, path: Path, kind: str) -> None:
    """Put an object at a path, in place of what is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "victim").write_text(SECRET)
    (path.parent / "victim").chmod(0o755)
    KINDS[kind](path)


def run_all(site: Site, where: str, kind: str) -> None:
    """Put an object at a configured path, and run every hook and command."""
    path = site.dir / PATHS[where]
    task = environment(ALICE)
    end = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    words = list(COMMANDS)
    random.Random(f"{where} {kind}").shuffle(words)
    place(site, path, kind)
    before = os.lstat(path).st_mode
    hook(site, "task-prolog", task, user=UID, group=GID, extra_groups=[])
    hook(site, "epilog", end)
    for argv in words:
        command(site, argv)
        if not path.is_symlink() and (not path.exists() or stat.S_IFMT(path.lstat().st_mode) != stat.S_IFMT(before)):
            place(site, path, kind)  # a command has replaced it by a file of its own
    assert (path.parent / "victim").read_text() == SECRET
    assert not (path.parent / "nothing").exists()
    hook(site, "task-prolog", task, user=UID, group=GID, extra_groups=[])
    hook(site, "epilog", end)


COMBINATIONS = [(where, kind) for where in PATHS for kind in KINDS]


@pytest.mark.parametrize(
    ("where", "kind"),
    COMBINATIONS if FULL else [one for at, one in enumerate(COMBINATIONS) if one[1] in ("fifo", "zero") or at % 5 == 0],
)
def test_any_file_at_a_configured_path(configured: Site, where: str, kind: str) -> None:
    """In a random order that is the same each time, so that each run finds what the last one found."""
    run_all(configured, where, kind)
