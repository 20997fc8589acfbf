"""One user's directory on scratch, with that user's identity taken in this very process, and canaries all around it."""

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
    """Be `user` to the filesystem, for the length of the block: root's capabilities are out of effect meanwhile."""
    who = pwd.getpwnam(user)
    if os.geteuid() == who.pw_uid:
        yield
        return
    groups = os.getgroups()
    os.setgroups([who.pw_gid])
    os.setegid(who.pw_gid)
    os.seteuid(who.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def uid_of(user: str) -> int:
    return pwd.getpwnam(user).pw_uid


def fingerprint(top: Path) -> dict[str, tuple[object, ...]]:
    """Return what a look can tell of everything below `top` and of itself: owner, mode, times, links, content."""
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
    """dir: the temporary directory. cache_dir: where Alice's caches lie. canary: a tree of hers, outside of any cache.

    Beside these: trees of root's, of Bob's and of hers that nothing may touch, held against their fingerprints by `check`.
    """

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="jobcache-"))
        self.dir.chmod(0o755)
        self.cache_dir = self.dir / "alice" / ".cache"
        self.canary = self.dir / "alice" / "canary"
        self.cache = self.cache_dir / f"hf-datasets-{JOB}"
        for user, place in ((ALICE, self.dir / "alice"), (BOB, self.dir / "bob"), ("root", self.dir / "root")):
            place.mkdir()
            shutil.chown(place, user)
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
        """Everything around the cache is as it was."""
        assert self._fingerprints() == self._before

    def close(self) -> None:
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.dir)], check=True)

    def rest(self) -> list[str]:
        """Names that are left of the cache."""
        return sorted(set(os.listdir(self.cache_dir)) - {f"hf-datasets-{JOB + 1}"})


def plant(top: Path) -> None:
    """Make a small tree of files, as whoever acts."""
    for name in ("a/b/c", "a/d", "e"):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{top} {name}")
    (top / "a").chmod(0o550)
    (top / "e").chmod(0o440)


def make_cache(cache: Path, *files: str) -> None:
    """Make a cache as the Epilog finds it when its last lease is gone, as whoever acts; `files` in it, a block each."""
    (cache / ".jobcache").mkdir(parents=True)
    (cache / ".jobcache/id").write_text(f"test {JOB} 0 {os.geteuid()}\n")
    (cache / ".jobcache/job.json").write_text("{}\n")
    for name in files:
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 4096)
