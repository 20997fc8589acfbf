"""A user mounts a filesystem that never answers on a directory of their own. Others lose nothing by it."""

from __future__ import annotations

import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jobcache.cli.main import main
from jobcache.system import gathering, stuck_processes
from support.faulty import GID, UID, swept
from support.home import uid_of
from support.host import HOST
from support.hungfs import hung, hung_by_user
from support.site_dir import ALICE, BOB, Site

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not shutil.which("fusermount3"), reason="needs root and FUSE"
)
Hang = Callable[[Path], AbstractContextManager[Any]]
# alone: with fusermount3, so that only the user enters it. everybody: as with user_allow_other in /etc/fuse.conf, so that
# root would hang as well. project: a dead server that root mounted for this user. killable: SIGKILL ends the wait.
HANGS: dict[str, Hang] = {
    "alone": lambda path: hung_by_user(path, ALICE),
    "everybody": lambda path: hung(path, mounter=(UID, GID)),
    "project": hung,
    "killable": lambda path: hung(path, killable=True, mounter=(UID, GID)),
}
hangs = pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PATIENCE", 2.0)


@pytest.fixture(autouse=True)
def nothing_hangs_afterwards() -> Iterator[None]:
    """Mark this process and all of its children by a limit that nobody uses. In the end, wait until none of them hangs."""
    before = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (os.getpid(), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, before)
    until = time.monotonic() + 20
    while stuck():
        assert time.monotonic() < until
        time.sleep(0.05)


def stuck() -> list[int]:
    """Return the processes of this test that SIGKILL has not ended."""
    found = []
    for name in os.listdir("/proc"):
        try:
            status = Path(f"/proc/{name}/status").read_text() if name.isdigit() else ""
            limits = Path(f"/proc/{name}/limits").read_text() if name.isdigit() else ""
        except OSError:
            continue
        killed = re.search(r"^SigPnd:\t[0-9a-f]{13}1", status, re.MULTILINE) and "State:\tZ" not in status
        if killed and re.search(rf"^Max msgqueue size +{os.getpid()} ", limits, re.MULTILINE):
            found.append(int(name))
    return found


def owned(path: Path, user: str = ALICE) -> Path:
    """Create the directories of a user up to `path`, as empty as after a job without work."""
    for part in (path.parent, path):
        part.mkdir(exist_ok=True)
        shutil.chown(part, user, user)
    return path


def other_users_cache(site: Site, job: int) -> Path:
    cache = Path(site.task_prolog(job, user=BOB).cache or "")
    assert cache.is_dir()
    return cache


def jobcache(site: Site, *argv: str) -> Result:
    return CliRunner().invoke(main, [*argv, "--hooks", str(site.hooks)], catch_exceptions=False, obj=HOST)


def reasons(site: Site, user: str) -> list[object]:
    return [event.get("reason") for event in site.events("hook.failed") if event["uid"] == uid_of(user)]


@hangs
def test_users_hung_filesystem_does_not_stop_epilogs_of_others(site: Site, hang: Hang) -> None:
    """The Epilogs of one user leave at most four processes behind. Those of another user reap, before and after."""
    site.configure(epilog={"deadline": "3s", "budget": "1s"})
    caches = [other_users_cache(site, job) for job in range(100, 112)]
    with hang(owned(site.scratch / ALICE / ".cache")):
        for job in range(10):
            site.epilog(1 + job)
            site.epilog(100 + job, user=BOB)
        killable = not stuck()
        assert len(stuck()) == (0 if killable else stuck_processes.OF_USER_AT_PLACE)
        assert reasons(site, ALICE) == ["deadline"] * 10 if killable else ["deadline"] * 4 + ["stuck"] * 6
    assert killable == (hang is HANGS["killable"])
    site.epilog(110, user=BOB)
    assert [cache.exists() for cache in caches] == [False] * 11 + [True] and reasons(site, BOB) == []


@hangs
def test_users_hung_filesystem_does_not_stop_sweeps_of_others(site: Site, hang: Hang) -> None:
    """Ten sweeps, lists and explanations leave one process behind, and say whose directory they did not examine."""
    cache_dir = owned(site.scratch / ALICE / ".cache")
    with hang(cache_dir):
        for round_ in range(10):
            cache = other_users_cache(site, 100 + round_)
            result = swept(site)
            assert not cache.exists()
            assert [text for text in result.trouble if not text.startswith(str(cache_dir.parent))] == []
            assert len(result.trouble) == 1
        for at in range(5):
            cache = other_users_cache(site, 200 + at)
            listed = jobcache(site, "list", "--json")
            assert str(cache) in listed.stdout and str(cache_dir.parent) in listed.stderr
            explained = jobcache(site, "explain", str(200 + at))
            assert "not answer" in explained.output or "hang" in explained.output
        assert len(stuck()) == (0 if hang is HANGS["killable"] else 1)


def test_sweep_after_epilogs_starts_no_further_process(site: Site) -> None:
    """Epilogs, sweeps and lists count in one register. The second sweep does not wait."""
    site.configure(epilog={"deadline": "3s", "budget": "1s"})
    with hung_by_user(owned(site.scratch / ALICE / ".cache"), ALICE):
        site.epilog(1)
        (first,) = stuck()
        began = time.monotonic()
        (text,) = swept(site).trouble
        assert time.monotonic() - began < 1.5 and "1 processes of uid" in text
        assert stuck() == [first]


def test_many_jobs_at_once_on_a_users_hung_filesystem(site: Site) -> None:
    """Jobs of one user that end at the same moment leave no more processes behind than one after another."""
    site.configure(epilog={"deadline": "4s", "budget": "1s"})
    with hung_by_user(owned(site.scratch / ALICE / ".cache"), ALICE):
        pids = []
        for job in range(1, 13):
            pids.append(os.fork())
            if pids[-1] == 0:
                try:
                    site.epilog(job)
                finally:
                    os._exit(0)
        for pid in pids:
            os.waitpid(pid, 0)
        assert len(stuck()) == stuck_processes.OF_USER_AT_PLACE
        assert sorted(map(str, reasons(site, ALICE))) == ["deadline"] * 4 + ["stuck"] * 8


def test_many_hung_filesystems_of_one_user(site: Site) -> None:
    """A user can mount any number of filesystems, one after another. The limit per user holds for all of them together."""
    site.configure(epilog={"deadline": "3s", "budget": "1s"})
    cache = other_users_cache(site, 100)
    places = [owned(site.scratch / ALICE / f".cache-{at}") for at in range(4)]
    mounts = [hung_by_user(place, ALICE) for place in places]
    for mount in mounts:
        mount.__enter__()
    try:
        for at in range(4):
            site.configure(path=f"{site.scratch}/{{user}}/.cache-{at}/hf-datasets-{{job_id}}")
            for job in range(4):
                site.epilog(1 + job)
        assert len(stuck()) == stuck_processes.OF_USER
        site.epilog(100, user=BOB)
        assert not cache.exists()
    finally:
        for mount in mounts:
            mount.__exit__(None, None, None)


def test_hung_filesystem_on_a_cache_is_not_entered(site: Site) -> None:
    """The user mounts it on the cache itself, or inside. The Epilog and the sweep see that without access to it."""
    caches = [Path(site.task_prolog(job).cache or "") for job in (1, 2)]
    inside = owned(caches[0] / "json")
    with hung_by_user(inside, ALICE), hung(caches[1], mounter=(UID, GID)) as server:
        began = time.monotonic()
        for job in (1, 2):
            site.epilog(job)
        assert [event["reason"] for event in site.events()] == ["mount"] * 2
        result = swept(site)
        assert time.monotonic() - began < 10
        assert (stuck(), server.waiting) == ([], 0)
        assert any(f"{caches[1]}: it is a mount point" in text for text in result.trouble)
    swept(site)
