"""Processes and mounts of any number and name, which the hooks and commands of all users meet in /proc."""

from __future__ import annotations

import functools
import os
import pwd
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jobcache.sweep import processes
from jobcache.system import as_user, children, mounts
from support.faulty import said, swept
from support.home import uid_of
from support.mounts import mount
from support.site_dir import ALICE, BOB, Site, entries

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
# PR_SET_NAME, as any process may call it
NAMED = "import ctypes, os, sys, time; ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[1])); print(flush=True); time.sleep(600)"


@contextmanager
def process(user: str, name: str, title: str) -> Iterator[int]:
    """Run a process with this name and title. Yield its id."""
    who: dict[str, Any] = {"user": user, "group": user, "extra_groups": [], "cwd": "/"}
    with subprocess.Popen([title, "-c", NAMED, name], executable=sys.executable, stdout=subprocess.PIPE, **who) as started:
        try:
            assert started.stdout is not None and started.stdout.readline()
            yield started.pid
        finally:
            started.kill()


@pytest.mark.parametrize("name", ["\rUid:", "\rUid: x", "\rUid:\t0 0", "\rUid:\t5 5", "x)", "\n\\Uid:\t0", "\udcff"])
def test_sweep_with_any_name_of_a_process(site: Site, name: str) -> None:
    """The kernel prints \\r in a name as it is. No name makes a process another user's, keeps a cache, or stops a sweep."""
    site.task_prolog()
    with process(BOB, name, "slurmstepd: [4242.0]") as pid:
        assert [decision.reason for decision in swept(site).decisions] == ["orphan"]
        assert list(processes._owned_by({0, uid_of(BOB)}, [pid])) == [(pid, uid_of(BOB))]


@pytest.mark.parametrize("name", ["a\rb", "\r", "a - b", "a\\040b", "a\x0b\x0c\x1c\x85b", "a\tb\nc", "\udcff"])
def test_hooks_and_sweep_with_any_name_of_a_mount_point(site: Site, name: str) -> None:
    """A user can mount a filesystem on a directory with any name. The mount table has \\r in it as it is."""
    point = site.scratch / BOB / name
    point.mkdir(parents=True)
    site.task_prolog()
    with mount("tmpfs", point):
        site.epilog()
        assert said(site) == [("cache.reaped", "reaped", None)]
        site.task_prolog()
        assert [decision.reason for decision in swept(site).decisions] == ["orphan"]
        assert str(point) in [one.point for one in mounts.read()]


IMPATIENT = """
import sys
from jobcache.runner import leftovers
from jobcache.cli.main import main
leftovers._PATIENCE = 0.0
sys.exit(main(sys.argv[1:]))
"""
# A daemon without descriptors, and a process that has nothing to do with the cache.
DAEMONS = """
import os, subprocess
quiet = {"close_fds": True, "start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
daemon = subprocess.Popen(["/bin/sleep", "600"], **quiet)
other = subprocess.Popen(["/bin/sleep", "600"], cwd="/", env={}, **quiet)
print(os.environ["JOBCACHE_DIR"], daemon.pid, other.pid)
"""


def test_too_many_processes_to_examine_keep_the_cache_of_a_command(site: Site) -> None:
    """`jobcache run` searches for processes that its command left behind. What it has no time to examine can be one."""
    account = pwd.getpwnam(ALICE)
    home = site.dir / "home"
    home.mkdir()
    os.chown(home, account.pw_uid, account.pw_gid)
    words = ["run", "--path", f"{home}/{{user}}/hf-datasets-{{job_id}}", "--", sys.executable, "-c", DAEMONS]
    who: dict[str, Any] = {"user": ALICE, "group": ALICE, "extra_groups": [], "cwd": "/"}
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", IMPATIENT, *words], env=env, capture_output=True, text=True, check=True, **who)
    cache, *left = done.stdout.split()
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert os.path.isdir(cache) and "in use by a process that cannot be read" in done.stderr


# Inherit descriptors up to 1,100, and become the command.
DESCRIPTORS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
null = os.open(os.devnull, os.O_RDONLY)
for _ in range(1100):
    os.set_inheritable(os.dup(null), True)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_command_with_many_inherited_descriptors_gets_signals(site: Site) -> None:
    """`jobcache run` stays until its command ends, passes signals on, and returns its status."""
    account = pwd.getpwnam(ALICE)
    home = site.dir / "home"
    home.mkdir()
    os.chown(home, account.pw_uid, account.pw_gid)
    script = "trap 'echo signal; exit 7' USR1; echo ready; while :; do sleep 0.05; done"
    run = ["jobcache", "run", "--path", f"{home}/{{user}}/hf-datasets-{{job_id}}", "--", "sh", "-c", script]
    who: dict[str, Any] = {"user": ALICE, "group": ALICE, "extra_groups": [], "cwd": "/", "text": True}
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", DESCRIPTORS, *run], env=env, **streams, **who) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert (process.communicate(timeout=20), process.returncode) == (("signal\n", ""), 7)
    assert entries(home / ALICE) == []


def test_children_of_a_process_with_many_descriptors_report() -> None:
    """The Epilog and the commands read their children, with any number of descriptors that they inherited."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, before[1]))
    null = os.open(os.devnull, os.O_RDONLY)
    held = [null, *(os.dup(null) for _ in range(1100))]
    try:
        child = as_user.start(lambda report: report({"x": 1}), uid=None, gid=None, user=None, place=None)
        assert list(child.facts(time.monotonic() + 10)) == [{"x": 1}] and child.status == "done"
        start = functools.partial(as_user.start, lambda report: report({"x": 2}), uid=None, gid=None, user=None, place=None)
        assert [fact for _, _, fact in children.each([("", start)], 1, 10.0)] == [{"x": 2}, None]
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
