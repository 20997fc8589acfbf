"""A user's directory on scratch with canaries around it, and acting as that user in this process."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.site_dir import ALICE, BOB

JOB = 4242


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Act as `user` for the length of the block: with that user's effective ids, and without root's capabilities."""
    account = pwd.getpwnam(user)
    if os.geteuid() == account.pw_uid:
        yield
        return
    groups = os.getgroups()
    os.setgroups([account.pw_gid])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextmanager
def acting_as_root() -> Iterator[None]:
    """Act as root again, within a block of `acting_as`."""
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.seteuid(0)
    os.setegid(0)
    try:
        yield
    finally:
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)


def uid_of(user: str) -> int:
    """Return the uid of an account."""
    return pwd.getpwnam(user).pw_uid


def fingerprint(top: Path) -> dict[str, tuple[object, ...]]:
    """Return the mode, owner, size, times and content of `top` and of everything below it, by path."""
    found = {}
    for path in [top, *(Path(at, name) for at, dirs, files in os.walk(top) for name in dirs + files)]:
        info = path.lstat()
        content = ""
        if stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        found[str(path)] = (info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, info.st_ctime_ns, content)
    return found


class Home:
    """A temporary directory of Alice, Bob and root.

    dir: its path. cache_dir: the directory of Alice's caches. cache: the path of JOB's cache. canary: a tree of Alice outside
    of any cache. Bob, root and Alice's neighbouring job have trees as well. Nothing may touch any of them: see `check`.
    """

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="jobcache-"))
        self.dir.chmod(0o755)
        self.cache_dir = self.dir / "alice" / ".cache"
        self.canary = self.dir / "alice" / "canary"
        self.cache = self.cache_dir / f"hf-datasets-{JOB}"
        for user, home in ((ALICE, self.dir / "alice"), (BOB, self.dir / "bob"), ("root", self.dir / "root")):
            home.mkdir()
            shutil.chown(home, user)
        with acting_as(ALICE):
            self.cache_dir.mkdir(mode=0o700)
            plant(self.canary)
            plant(self.cache_dir / f"hf-datasets-{JOB + 1}")
        with acting_as(BOB):
            plant(self.dir / "bob" / f"hf-datasets-{JOB}")
        plant(self.dir / "root" / f"hf-datasets-{JOB}")
        self._before = self._fingerprints()

    def _fingerprints(self) -> dict[str, tuple[object, ...]]:
        neighbour = self.cache_dir / f"hf-datasets-{JOB + 1}"
        return {
            **fingerprint(self.canary),
            **fingerprint(neighbour),
            **fingerprint(self.dir / "bob"),
            **fingerprint(self.dir / "root"),
        }

    def check(self) -> None:
        """Assert that all canaries are as they were."""
        assert self._fingerprints() == self._before

    def close(self) -> None:
        """Remove the temporary directory."""
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.dir)], check=True)

    def rest(self) -> list[str]:
        """Return the names in the directory of caches, but for the neighbouring job's."""
        return sorted(set(os.listdir(self.cache_dir)) - {f"hf-datasets-{JOB + 1}"})


def plant(top: Path) -> None:
    """Create a small tree of files, as the acting user."""
    for name in ("a/b/c", "a/d", "e"):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{top} {name}")
    (top / "a").chmod(0o550)
    (top / "e").chmod(0o440)


def make_cache(cache: Path, *files: str) -> None:
    """Create a cache as it is after its last lease was released, as the acting user. files: names, of one block each."""
    (cache / ".jobcache").mkdir(parents=True)
    (cache / ".jobcache/id").write_text(f"test {JOB} 0 {os.geteuid()}\n")
    (cache / ".jobcache/job.json").write_text("{}\n")
    for name in files:
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 4096)
