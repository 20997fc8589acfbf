"""Deletion: a cache with any content is deleted. No action of its user makes the reaper touch anything else."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobcache.cache import cache_names
from jobcache.system import as_user, mounts, reaper
from jobcache.system.tally import Tally
from support.home import ALICE, BOB, JOB, Home, acting_as, fingerprint, make_cache, plant, uid_of
from support.mounts import mount
from support.slowfs import Slow, slow

SEARCH = os.O_PATH | os.O_DIRECTORY
READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
EXCHANGE = 2  # of renameat2


@pytest.fixture(autouse=True, params=[False, True], ids=["alone", "helped"])
def helped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with one thread, and with helpers for every directory."""
    if request.param:
        monkeypatch.setattr(reaper, "_SLOW", 0)


@pytest.fixture
def home() -> Iterator[Home]:
    """Return Alice's directory. Afterwards, the trees around the cache must be unchanged."""
    made = Home()
    try:
        yield made
        made.check()
    finally:
        made.close()


@contextmanager
def opened(directory: Path) -> Iterator[tuple[int, int]]:
    """Yield descriptors of the directory's parent and of the directory, as the Epilog opens them."""
    parent_fd = os.open(directory.parent, SEARCH)
    fd = os.open(directory, READ)
    try:
        yield parent_fd, fd
    finally:
        os.close(fd)
        os.close(parent_fd)


def reap(cache: Path, then: Callable[[], object] = lambda: None) -> tuple[str, Tally]:
    """Open, retire and delete a cache as Alice; return the trash's name and the tally. then: called after the cache is opened."""
    with acting_as(ALICE), opened(cache) as (parent_fd, fd):
        then()
        trash = reaper.retire(parent_fd, cache.name, fd, uid_of(ALICE), JOB)
        return trash, reaper.delete(parent_fd, trash, fd, time.monotonic() + 60)


def finish(trash: Path, until: float | None = None) -> Tally:
    """Delete the rest of `trash`, as Alice."""
    with acting_as(ALICE), opened(trash) as (parent_fd, fd):
        return reaper.delete(parent_fd, trash.name, fd, time.monotonic() + 60 if until is None else until)


@contextmanager
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def deepen(top: Path, levels: int) -> None:
    """Create nested directories, each with a file, deeper than a path can be long."""
    fd = os.open(top, READ)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", READ, dir_fd=fd)
        os.close(fd)
        fd = below
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


# ------------------------------------------------------------------------------------------- the whole cache is deleted


def closed_directories(cache: Path) -> None:
    make_cache(cache, "none/f", "none/none/f", "read/f", "search/f", "write/f")
    for name, mode in (("none/none", 0), ("none", 0), ("read", 0o500), ("search", 0o100), ("write", 0o200)):
        (cache / name).chmod(mode)


def closed_record(cache: Path) -> None:
    make_cache(cache, "f")
    (cache / ".jobcache/nodes").mkdir(mode=0)
    (cache / ".jobcache").chmod(0)


def read_only_throughout(cache: Path) -> None:
    make_cache(cache, "a/b/f")
    for path in (cache / "a/b/f", cache / "a/b", cache / "a", cache / ".jobcache", cache):
        path.chmod(path.stat().st_mode & 0o555)


def many_entries(cache: Path) -> None:
    make_cache(cache)
    (cache / "many").mkdir()
    for at in range(5000):
        os.mknod(cache / f"many/{at}")


def any_name(cache: Path) -> None:
    make_cache(cache)
    names = [
        b"\xff\xfe", b"a\nb", b" ", b"-rf", b"--", b"*", b"a b", b"\x01\x7f", "ü".encode(), b"'\"$(reboot)", b"...", b"\\",
        b"x" * 255, b".jobcache-deep-00", b".jobcache-trash-1-00", b".jobcache-new-1-00", b"hf-datasets-4242",
    ]  # fmt: skip
    for name in names:
        os.mkdir(os.fsencode(cache) + b"/" + name)
        os.mknod(os.fsencode(cache) + b"/" + name + b"/" + name)
    make_cache(cache / "a b", "f")
    make_cache(cache / "a b/.jobcache/.jobcache", "f")
    make_cache(cache / ".jobcache/.jobcache/.jobcache", "f")


def odd_files(cache: Path) -> None:
    make_cache(cache, "f")
    os.mkfifo(cache / "fifo", 0)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(cache / "socket"))
    (cache / "dangling").symlink_to("/nonexistent/x")
    (cache / "loop").symlink_to("loop")
    (cache / "up").symlink_to("..")
    (cache / "itself").symlink_to(".")


def no_record(cache: Path) -> None:
    (cache / "a").mkdir(parents=True)
    (cache / "a/f").write_text("x")


def record_is_a_file(cache: Path) -> None:
    cache.mkdir()
    (cache / ".jobcache").write_text("x")


def record_is_a_symlink(cache: Path) -> None:
    cache.mkdir()
    (cache / ".jobcache").symlink_to("../../canary")


def record_is_full_of_other_things(cache: Path) -> None:
    make_cache(cache)
    (cache / ".jobcache/id").unlink()
    make_cache(cache / ".jobcache/id", "a/b")
    (cache / ".jobcache/job.json").unlink()
    (cache / ".jobcache/job.json").symlink_to("/etc/passwd")
    deepen(cache / ".jobcache", 100)


SHAPES = (
    closed_directories, closed_record, read_only_throughout, many_entries, any_name, odd_files, no_record, record_is_a_file,
    record_is_a_symlink, record_is_full_of_other_things,
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_cache_of_any_content_is_deleted(home: Home, shape: Callable[[Path], None]) -> None:
    """Entries can have any mode, name, number and kind: nothing of the cache is left."""
    with acting_as(ALICE):
        shape(home.cache)
    trash, tally = reap(home.cache)
    assert (home.rest(), tally.done, tally.left, tally.error) == ([], True, 0, "")
    assert cache_names.parse_debris(trash) == (cache_names.TRASH, JOB)


def test_cache_without_permissions_is_deleted(home: Home) -> None:
    """The mode may change to 000 even after the cache was opened."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
    _, tally = reap(home.cache, then=lambda: home.cache.chmod(0))
    assert (home.rest(), tally.done) == ([], True)


def test_tree_deeper_than_any_path_is_deleted(home: Home) -> None:
    """10,000 levels are deleted, without recursion and with few descriptors."""
    with mount("none", home.cache_dir, options="mode=777"):
        with acting_as(ALICE):
            make_cache(home.cache)
            deepen(home.cache, 10_000)
        with few_descriptors():
            _, tally = reap(home.cache)
        assert (os.listdir(home.cache_dir), tally.done, tally.files) == ([], True, 10_000)


def test_other_users_files_are_left(home: Home) -> None:
    """Another user's files stay and are counted, and the rest is deleted. Another user's empty directory is removed."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f", "z/f")
    for name in ("a/open/of-bob", "a/closed/of-bob", "empty"):
        (home.cache / name).mkdir(parents=True)
    plant(home.cache / "a/open/of-bob/tree")
    plant(home.cache / "a/closed/of-bob/tree")
    subprocess.run(
        ["chown", "-R", BOB, *map(str, (home.cache / "a/open", home.cache / "a/closed", home.cache / "empty"))], check=True
    )
    (home.cache / "a/open").chmod(0o555)
    (home.cache / "a/closed").chmod(0o700)
    (home.cache / "empty").chmod(0o700)
    before = {name: fingerprint(home.cache / "a" / name) for name in ("open", "closed")}
    trash, tally = reap(home.cache)
    after = {name: fingerprint(home.cache_dir / trash / "a" / name) for name in ("open", "closed")}
    assert [list(after[name].values()) for name in after] == [list(before[name].values()) for name in before]
    assert not tally.done and tally.left >= 2 and tally.files == 2 and tally.error
    assert sorted(os.listdir(home.cache_dir / trash)) == [".jobcache", "a"]
    assert (home.cache_dir / trash / ".jobcache/id").exists()


def test_immutable_file_is_left_and_counted(home: Home) -> None:
    """An entry that cannot be removed is counted with its error. A later call finishes."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/b/f", "a/b/g", "h")
    if subprocess.run(["chattr", "+i", str(home.cache / "a/b/f")], capture_output=True, check=False).returncode:
        pytest.skip("no immutable files on this filesystem")
    trash, tally = reap(home.cache)
    subprocess.run(["chattr", "-i", str(home.cache_dir / trash / "a/b/f")], check=True)
    assert (tally.done, tally.files, tally.left) == (False, 2, 3)  # f, and the two directories above it
    assert "Operation not permitted: 'f'" in tally.error and not tally.mounted
    assert finish(home.cache_dir / trash).done and home.rest() == []


def test_cache_in_use_is_deleted(home: Home) -> None:
    """A process that still works in the cache neither breaks the deletion nor prevents its end."""
    with acting_as(ALICE):
        make_cache(home.cache, *(f"{at}/f" for at in range(300)))
        top = os.open(home.cache, READ)
        rounds, stop = [0], threading.Event()

        def work() -> None:
            while not stop.is_set() and rounds[0] < 2000:
                rounds[0] += 1
                at = rounds[0] % 300
                for call in (
                    lambda at=at: os.unlink(f"{at}/f", dir_fd=top),
                    lambda at=at: os.rmdir(str(at), dir_fd=top),
                    lambda at=at: os.mkdir(f"{at}-{rounds[0]}", dir_fd=top),
                    lambda at=at: os.mknod(f"{at}-{rounds[0]}/f", dir_fd=top),
                    lambda at=at: os.rename(f"{at + 1}/f", f"{at}-{rounds[0]}/g", src_dir_fd=top, dst_dir_fd=top),
                ):
                    try:
                        call()
                    except OSError:
                        continue  # the entry has been deleted

        worker = threading.Thread(target=work)
        worker.start()
        try:
            trash, tally = reap(home.cache, then=lambda: wait_until(lambda: rounds[0] > 5))
        finally:
            stop.set()
            worker.join()
            os.close(top)
    assert home.rest() in ([], [trash])
    assert tally.done or finish(home.cache_dir / trash).done
    assert home.rest() == []


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_two_processes_delete_the_same_trash(home: Home) -> None:
    """A sweep and a late Epilog may empty the same trash at the same time. Neither reports an error."""
    with acting_as(ALICE):
        make_cache(home.cache, *(f"{at % 40}/{at}" for at in range(2000)))
        trash = home.cache_dir / cache_names.trash_name(JOB, "00ff")
        home.cache.rename(trash)
        with opened(trash) as (parent_fd, fd), opened(trash) as (_, other_fd):
            tallies: list[Tally] = []
            both = [
                threading.Thread(
                    target=lambda fd=fd: tallies.append(reaper.delete(parent_fd, trash.name, fd, time.monotonic() + 60))
                )
                for fd in (fd, other_fd)
            ]
            for one in both:
                one.start()
            for one in both:
                one.join()
    assert [(tally.done, tally.left, tally.error) for tally in tallies] == [(True, 0, "")] * 2
    assert home.rest() == []


def test_cache_vanishes_at_any_moment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may delete the cache at any moment. That is not an error.

    The other process ignores what a helper has removed before it.
    """
    vanished, step = True, 0
    while vanished:
        with acting_as(ALICE):
            make_cache(home.cache, "a/b/f", "g")
        vanished, step = False, step + 1
        clock = iter(range(1 << 30))

        def monotonic(clock: Iterator[int] = clock, last: int = step) -> int:
            nonlocal vanished
            now = next(clock)
            if now == last:
                vanished = True
                shutil.rmtree(home.cache, ignore_errors=True)
            return now

        monkeypatch.setattr(reaper, "time", SimpleNamespace(monotonic=monotonic))
        tally = finish(home.cache, until=1 << 30)
        assert (tally.done, tally.left, tally.error, home.rest()) == (True, 0, "", [])
    assert step > 10


def test_unreadable_directory_is_left_and_counted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O error in one directory is reported, and the rest is deleted."""
    with acting_as(ALICE):
        make_cache(home.cache, "refused/f", "broken/f", "refused-later/f", "fine/f")
    inodes = {os.stat(home.cache / name).st_ino: name for name in os.listdir(home.cache)}
    real, scanned = os.scandir, []

    def scandir(fd: int) -> object:
        name = inodes.get(os.fstat(fd).st_ino, "")
        scanned.append(name)
        if name == "refused" or (name == "refused-later" and scanned.count(name) > 1):
            raise OSError(errno.EIO, "Input/output error")
        return Broken(real(fd)) if name == "broken" else real(fd)

    class Broken:
        def __init__(self, entries: Iterator[os.DirEntry[str]]) -> None:
            self.close = entries.close  # type: ignore[attr-defined]

        def __next__(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reaper.os, "scandir", scandir)
    descriptors = len(os.listdir("/proc/self/fd"))
    trash, tally = reap(home.cache)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    monkeypatch.undo()
    assert (tally.done, tally.files, "Input/output" in tally.error) == (False, 2, True)
    assert sorted(os.listdir(home.cache_dir / trash)) == [".jobcache", "broken", "refused"]
    assert finish(home.cache_dir / trash).done


# --------------------------------------------------------------------------------------------------------------- counts


def test_bytes_are_the_space_that_becomes_free(home: Home) -> None:
    """bytes is the size from du: blocks, not file sizes; hard links once; nothing for a file whose other link stays."""
    with acting_as(ALICE):
        make_cache(home.cache, "a", "b/c", "b/d", ".jobcache/uncounted")
        os.link(home.cache / "b/c", home.cache / "twin")
        (home.cache / "big").write_bytes(os.urandom(3 << 20))
        with open(home.cache / "sparse", "wb") as file:
            file.seek(1 << 32)
            file.write(b"x")
        (home.cache / "long").symlink_to("x" * 1000)
        (home.cache / "short").symlink_to("x")
        outside = home.cache_dir.parent / "outside"
        outside.write_bytes(b"x" * 4096)
        os.link(outside, home.cache / "stays")
    os.sync()  # now all blocks are allocated
    counted = [home.cache / name for name in ("a", "b/c", "b/d", "big", "sparse", "long", "short")]
    expected = sum(path.lstat().st_blocks * 512 for path in counted)
    before = outside.stat()
    _, tally = reap(home.cache)
    after = outside.stat()
    assert (tally.bytes, tally.files) == (expected, len(counted) + 2)
    assert 3 << 20 < tally.bytes < 4 << 20
    assert outside.read_bytes() == b"x" * 4096 and after.st_nlink == 1
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


def test_memory_does_not_grow_with_a_directory(home: Home) -> None:
    """100,000 files in one directory are deleted with the memory that ten need."""
    directory = home.dir / "tmpfs"
    directory.mkdir()

    def work(report: Callable[[dict[str, int]], None]) -> None:
        cache = directory / "cache"
        make_cache(cache)
        fd = os.open(cache, READ)
        for at in range(100_000):
            os.mknod(f"{at:0100}", dir_fd=fd)
        with opened(cache) as (parent_fd, fd):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            tally = reaper.delete(parent_fd, cache.name, fd, time.monotonic() + 60)
            report({"files": tally.files, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before})

    with mount("none", directory, options="mode=777"):
        child = as_user.start(work, uid=uid_of(ALICE), gid=None, user=None, place=None)
        (fact,) = child.facts(time.monotonic() + 60)
    assert fact["files"] == 100_000 and fact["kib"] < 4096


# ---------------------------------------------------------------------------------------------- nothing else is touched


def test_symlinks_are_deleted_and_their_targets_stay(home: Home) -> None:
    """No symlink is followed, wherever it leads."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
        for at, target in enumerate(
            (home.canary, home.canary / "a", home.canary / "e", home.dir / "root", home.dir / "bob", "/etc")
        ):
            (home.cache / f"link{at}").symlink_to(target)
            (home.cache / f"a/link{at}").symlink_to(target)
    _, tally = reap(home.cache)
    assert (home.rest(), tally.files) == ([], 13)


@pytest.mark.parametrize("fdinfo", [True, False], ids=["fdinfo", "before-5.14"])
@pytest.mark.parametrize("inside", ["", "a/", ".jobcache/"])
@pytest.mark.parametrize("what", ["tmpfs", "bind", "bind-of-closed", "bind-file"])
def test_mounts_in_a_cache_are_left_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch, what: str, inside: str, fdinfo: bool
) -> None:
    """A mount in a cache stays unchanged and is reported. The rest is deleted, and after the unmount all of it."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f", "g")
        point = home.cache / f"{inside}point"
        point.touch() if what == "bind-file" else point.mkdir()
        closed = home.canary.parent / "closed"
        plant(closed)
        closed.chmod(0)
    source = {"tmpfs": "none", "bind": home.canary, "bind-of-closed": closed, "bind-file": home.canary / "e"}[what]
    if not fdinfo:
        monkeypatch.setattr(mounts, "open", no_fdinfo, raising=False)
    with mount(source, point, "tmpfs" if what == "tmpfs" else "bind", "mode=755" if what == "tmpfs" else ""):
        if what == "tmpfs":
            plant(point / "tree")
            subprocess.run(["chown", "-R", ALICE, str(point)], check=True)
        before = [*fingerprint(point).values(), *fingerprint(closed).values()]
        trash, tally = reap(home.cache)
        point = home.cache_dir / trash / f"{inside}point"
        assert [*fingerprint(point).values(), *fingerprint(closed).values()] == before
        assert (tally.done, tally.mounted, tally.files) == (False, True, 2)
        assert tally.left and "mount point" in tally.error
        assert (home.cache_dir / trash / ".jobcache/id").exists()
    assert finish(home.cache_dir / trash).done and home.rest() == []


def no_fdinfo(path: str, **_: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", path)


def test_mount_on_the_record_is_left_alone(home: Home) -> None:
    """A mount on .jobcache is not entered, and is reported."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
    with mount(home.canary, home.cache / ".jobcache", "bind"):
        trash, tally = reap(home.cache)
        assert (tally.done, tally.mounted, tally.left, tally.files) == (False, True, 1, 1)
        home.check()
    assert finish(home.cache_dir / trash).done


def test_file_mounted_on_the_record_is_left_alone(home: Home) -> None:
    """A mount on a .jobcache that is a file is reported."""
    with acting_as(ALICE):
        record_is_a_file(home.cache)
    with mount(home.canary / "e", home.cache / ".jobcache", "bind"):
        trash, tally = reap(home.cache)
        assert (tally.done, tally.mounted, tally.left) == (False, True, 1)
    assert finish(home.cache_dir / trash).done


@pytest.mark.parametrize("fdinfo", [True, False], ids=["fdinfo", "before-5.14"])
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_cache_that_is_a_mount_point_is_kept(home: Home, monkeypatch: pytest.MonkeyPatch, kind: str, fdinfo: bool) -> None:
    """The cache is kept under its name, with the reason `mount`."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
    if not fdinfo:
        monkeypatch.setattr(mounts, "open", no_fdinfo, raising=False)
    uid = uid_of(ALICE)
    with mount(home.cache, home.cache, kind, f"uid={uid}" if kind == "tmpfs" else ""), pytest.raises(reaper.Kept) as kept:
        reap(home.cache)
    assert kept.value.reason == "mount"
    assert home.rest() == [home.cache.name] and (home.cache / "a/f").exists()


def test_mounts_without_handles_differ_by_device() -> None:
    """Without a mount ID and without handles, filesystems are distinguished by their device."""
    fds = [os.open(path, SEARCH) for path in ("/proc", "/sys", "/proc/self")]
    proc, sys, below = map(mounts._mount_id_by_handle, fds)
    for fd in fds:
        os.close(fd)
    assert proc == below != sys


def test_directory_of_another_owner_is_kept(home: Home) -> None:
    """A directory that the job's user does not own is kept."""
    with acting_as(BOB), opened(home.dir / "bob" / f"hf-datasets-{JOB}") as (parent_fd, fd), pytest.raises(reaper.Kept) as kept:
        reaper.retire(parent_fd, f"hf-datasets-{JOB}", fd, uid_of(ALICE), JOB)
    assert kept.value.reason == "foreign"


@pytest.mark.parametrize("owner", ["root", ALICE])
def test_root_deletes_nothing(home: Home, owner: str) -> None:
    """As root, the reaper deletes neither root's files nor a user's."""
    cache = home.dir / "root" / f"hf-datasets-{JOB}" if owner == "root" else home.cache
    if owner != "root":
        with acting_as(ALICE):
            make_cache(cache, "f")
    before = fingerprint(cache)
    with opened(cache) as (parent_fd, fd):
        with pytest.raises(reaper.Kept) as kept:
            reaper.retire(parent_fd, cache.name, fd, uid_of(owner), JOB)
        tally = reaper.delete(parent_fd, cache.name, fd, time.monotonic() + 60)
    assert kept.value.reason == "foreign"
    assert (tally.done, tally.left, tally.files) == (False, 1, 0)
    assert fingerprint(cache) == before


def test_delete_refuses_another_users_trash(home: Home) -> None:
    """`delete` refuses a directory of another owner, even if the caller could write to it."""
    place = home.dir / "of-bob"
    make_cache(place / "x", "f")
    shutil.chown(place / "x", BOB)
    (place / "x").chmod(0o777)
    with acting_as(ALICE), opened(place / "x") as (parent_fd, fd):
        tally = reaper.delete(parent_fd, "x", fd, time.monotonic() + 60)
    assert (tally.done, tally.left, (place / "x/f").exists()) == (False, 1, True)


SWAPPED_IN: dict[str, Callable[[Path], object]] = {
    "full": plant,
    "empty": Path.mkdir,
    "file": Path.touch,
    "symlink": lambda path: path.symlink_to("/etc"),
}


@pytest.mark.parametrize("what", SWAPPED_IN)
def test_directory_swapped_in_gets_its_name_back(home: Home, what: str) -> None:
    """An entry that replaces the cache between open and rename gets its name back, and nothing is deleted."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
    before = fingerprint(home.cache)
    away = home.cache_dir / "away"

    def swap() -> None:
        home.cache.rename(away)
        SWAPPED_IN[what](home.cache)
        swapped.update(identity(home.cache))

    swapped: dict[str, object] = {}
    with pytest.raises(reaper.Kept) as kept:
        reap(home.cache, then=swap)
    assert kept.value.reason == "changed"
    assert home.rest() == sorted(["away", home.cache.name])
    assert identity(home.cache) == swapped
    away.rename(away.with_name("x"))
    (home.cache_dir / "x").rename(away)
    assert [found[:5] for found in fingerprint(away).values()] == [found[:5] for found in before.values()]


def identity(path: Path) -> dict[str, object]:
    return {"inode": path.lstat().st_ino, "names": sorted(os.listdir(path)) if path.is_dir() and not path.is_symlink() else []}


@pytest.mark.parametrize("taken_by", SWAPPED_IN)
@pytest.mark.parametrize("what", SWAPPED_IN)
def test_directory_swapped_in_twice_is_put_aside(home: Home, monkeypatch: pytest.MonkeyPatch, what: str, taken_by: str) -> None:
    """If the name is taken before it can be given back, both entries stay, and neither has a name that anything deletes."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
    identities: list[dict[str, object]] = []

    def swap() -> None:
        home.cache.rename(home.cache_dir / "away")
        SWAPPED_IN[what](home.cache)
        identities.append(identity(home.cache))
        monkeypatch.setattr(reaper.os, "lstat", take_first)

    def take_first(name: str, **where: int) -> os.stat_result:
        monkeypatch.undo()
        SWAPPED_IN[taken_by](home.cache)
        identities.append(identity(home.cache))
        return os.lstat(name, **where)

    with pytest.raises(reaper.Kept) as kept:
        reap(home.cache, then=swap)
    (aside,) = set(home.rest()) - {"away", home.cache.name}
    assert [identity(home.cache_dir / aside), identity(home.cache)] == identities
    assert kept.value.reason == "changed" and aside in str(kept.value)
    assert cache_names.parse_debris(aside) == (cache_names.ASIDE, JOB)


def test_symlinks_swapped_in_lead_nowhere(home: Home) -> None:
    """A user who swaps directories for symlinks during the deletion gains nothing: the victim's tree stays unchanged."""
    with mount("none", home.cache_dir, options="mode=777"):
        victim = home.cache_dir / "victim"
        with acting_as(ALICE):
            plant(victim)
            (victim / "x").mkdir(mode=0o500)
        before = fingerprint(victim)
        attacker = os.fork()
        if attacker == 0:
            try:
                as_user.become(uid_of(ALICE), None, None)
                swap_forever(os.fsencode(home.cache_dir))
            finally:
                os._exit(1)
        try:
            for _ in range(1000):
                with acting_as(ALICE):
                    make_cache(home.cache, *(f"d{at}/{name}" for at in range(4) for name in ("e", "a/d")))
                    (home.cache / "d0").chmod(0)
                    (home.cache / "d1").chmod(0)
                    for at in range(4):
                        (home.cache / f"s{at}").symlink_to(victim)
                trash, tally = reap(home.cache)
                while not tally.done:  # the attacker can prevent removals, as long as entries exist
                    tally = finish(home.cache_dir / trash)
            assert os.waitpid(attacker, os.WNOHANG) == (0, 0), "the attacker lives"
        finally:
            os.kill(attacker, 9)
            os.waitpid(attacker, 0)
        assert fingerprint(victim) == before


def swap_forever(parent: bytes) -> None:
    """In all caches and trash, exchange directories and symlinks as fast as possible."""
    libc = ctypes.CDLL(None)
    here = os.open(parent, SEARCH)
    while True:
        for name in os.listdir(parent):
            for at in range(4):
                libc.renameat2(here, b"%s/d%d" % (name, at), here, b"%s/s%d" % (name, at), EXCHANGE)


@pytest.mark.parametrize("when", ["refused", "held"])
def test_symlink_swapped_in_for_a_closed_directory(home: Home, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A directory without permissions can be swapped before and after it is opened. The symlink's target stays unchanged."""
    with acting_as(ALICE):
        make_cache(home.cache, "closed/f")
        (home.cache / "closed").chmod(0)
    real = os.open

    def swap(dir_fd: int | None) -> None:
        monkeypatch.undo()
        os.rename("closed", "away", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.symlink(home.canary, "closed", dir_fd=dir_fd)

    def swap_at_that_moment(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        try:
            fd = real(path, flags, mode, dir_fd=dir_fd)
        except PermissionError:
            if when == "refused":
                swap(dir_fd)
            raise
        if when == "held" and path == "closed":
            swap(dir_fd)
        return fd

    trash, tally = reap(home.cache, then=lambda: monkeypatch.setattr(reaper.os, "open", swap_at_that_moment))
    home.check()
    assert tally.done or finish(home.cache_dir / trash).done


# ---------------------------------------------------------------------------------------------------- a slow filesystem


Slowly = Callable[..., "tuple[Slow, Tally]"]
TREE = [f"cache/{at}/{name}" for at in range(12) for name in ("f", "g", "d/h")]


@pytest.fixture
def slowly(home: Home) -> Slowly:
    """Return a function that deletes a tree on a filesystem with a latency of 1 ms. It returns the server and the tally."""

    def delete(*, refused: str = "", seconds: float = 60, rate: float | None = None) -> tuple[Slow, Tally]:
        with slow(home.cache_dir, [*TREE, "cache/.jobcache/id"], uid=uid_of(ALICE)) as server:
            server.refused = {refused}
            with acting_as(ALICE), opened(home.cache_dir / "cache") as (parent_fd, fd):
                tally = reaper.delete(parent_fd, "cache", fd, time.monotonic() + seconds, rate)
            assert threading.active_count() == before + len(server.threads)
            return server, tally

    before = threading.active_count()
    return delete


def test_slow_filesystem_gets_up_to_four_requests_at_once(slowly: Slowly) -> None:
    """Up to four directories are emptied at the same time, and not more."""
    server, tally = slowly()
    assert (tally.done, tally.files, tally.left, server.left()) == (True, len(TREE), 0, 0)
    assert tally.bytes == len(TREE) * 4096
    assert 1 < server.most <= 4


def test_deletion_with_a_rate_has_no_helpers(slowly: Slowly) -> None:
    """A rate limit holds for one thread."""
    server, tally = slowly(rate=2000)
    assert (tally.done, server.most) == (True, 1)


def test_helper_counts_what_it_cannot_remove(slowly: Slowly) -> None:
    """A helper counts as a single thread does: the twelve files that stay, and each directory above them. The rest is deleted."""
    server, tally = slowly(refused="h")
    assert (tally.done, tally.files, tally.left) == (False, 24, 12 * 3) and "Operation not permitted: 'h'" in tally.error
    assert server.left() == 12 * 3 + 3


def test_helpers_stop_at_the_deadline(slowly: Slowly) -> None:
    """At the deadline all threads stop, and nothing counts as left."""
    server, tally = slowly(seconds=0.05)
    assert (tally.done, tally.left, tally.error) == (False, 0, "") and server.left() > 3


def test_deletion_continues_without_threads(slowly: Slowly, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, one thread deletes everything."""

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with with_thread_start(monkeypatch, no_thread):
        server, tally = slowly()
    assert (tally.done, tally.files, server.most) == (True, len(TREE), 1)


@contextmanager
def with_thread_start(monkeypatch: pytest.MonkeyPatch, start: Callable[[threading.Thread], None]) -> Iterator[None]:
    """Replace Thread.start by `start` when the deletion begins, after the server's threads have started."""
    real = reaper.delete

    def delete(*words: object) -> Tally:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(reaper, "delete", delete)
    yield


def test_helper_that_fails_counts_as_left(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper can run out of memory. Then its directory is left, counted and reported, and the id stays."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
    real = reaper._Emptying._remove_files

    def out_of_memory(self: Any, *words: Any) -> str | None:
        if not self.helped:
            raise MemoryError
        return real(self, *words)

    monkeypatch.setattr(reaper, "_SLOW", 0)
    monkeypatch.setattr(reaper._Emptying, "_remove_files", out_of_memory)
    trash, tally = reap(home.cache)
    assert (tally.done, tally.error) == (False, "MemoryError") and tally.left >= 1
    assert (home.cache_dir / trash / ".jobcache/id").exists() and (home.cache_dir / trash / "a/f").exists()
    monkeypatch.undo()
    assert finish(home.cache_dir / trash).done and home.rest() == []


@pytest.mark.parametrize("meanwhile", ["gone", "filled"])
def test_directory_changes_after_a_helper_emptied_it(home: Home, monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    """A directory that vanishes before it is removed is not an error. A directory that is filled again is emptied again."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f", "z")
    real, removed = os.rmdir, []

    def rmdir(name: str, dir_fd: int) -> None:
        if name == "a" and not removed:
            removed.append(name)
            if meanwhile == "gone":
                real(name, dir_fd=dir_fd)
            else:
                os.mknod("a/late", dir_fd=dir_fd)
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(reaper.os, "rmdir", rmdir)
    trash, tally = reap(home.cache)
    assert tally.error == "" or meanwhile == "filled"
    assert tally.done or finish(home.cache_dir / trash).done
    assert removed and home.rest() == []


def test_helper_reports_another_users_directory(home: Home) -> None:
    """Another user's directory without access is left and counted, whichever thread finds it."""
    with acting_as(ALICE):
        make_cache(home.cache, "f")
    plant(home.cache / "bobs")
    subprocess.run(["chown", "-R", BOB, str(home.cache / "bobs")], check=True)
    (home.cache / "bobs").chmod(0o555)
    _, tally = reap(home.cache)
    assert not tally.done and tally.left >= 1 and tally.error and tally.files == 1


# --------------------------------------------------------------------------------------------------------- the deadline


def test_no_time_deletes_nothing(home: Home) -> None:
    """Without time, nothing is deleted. The trash has a name that the sweep recognizes, and the next call finishes."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f", "g")
        before = len(fingerprint(home.cache))
        with opened(home.cache) as (parent_fd, fd):
            trash = reaper.retire(parent_fd, home.cache.name, fd, uid_of(ALICE), JOB)
            tally = reaper.delete(parent_fd, trash, fd, time.monotonic())
    assert (tally.done, tally.files, tally.left, tally.error) == (False, 0, 0, "")
    assert len(fingerprint(home.cache_dir / trash)) == before
    assert cache_names.parse_debris(trash) == (cache_names.TRASH, JOB)
    assert finish(home.cache_dir / trash).done and home.rest() == []


def test_rate_limits_the_deletion(home: Home) -> None:
    """A rate leaves a shared filesystem time between entries."""
    with acting_as(ALICE):
        make_cache(home.cache, *(f"a/{at}" for at in range(20)))
        with opened(home.cache) as (parent_fd, fd):
            began = time.monotonic()
            tally = reaper.delete(parent_fd, home.cache.name, fd, began + 60, rate=200)
    assert tally.done and time.monotonic() - began >= 20 / 200


@pytest.mark.parametrize("deep", [3, 40])
def test_deadline_at_any_moment_loses_no_count(home: Home, monkeypatch: pytest.MonkeyPatch, deep: int) -> None:
    """The deadline can end the deletion at any moment: no file counts twice or is lost, and the id is removed last."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f", "a/b/g", "h")
        deepen(home.cache, deep)
        (home.cache / ".jobcache/nodes").mkdir()
    files = delete_in_steps(home.cache, monkeypatch)
    assert files == 3 + deep


def delete_in_steps(directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Delete in steps of growing length, each cut short; return the number of files. Assert that the id is removed last."""
    steps, files, tally = 0, 0, None
    name = directory / ".jobcache/id"
    while tally is None or not tally.done:
        steps += 1
        clock = iter(range(1 << 30))
        monkeypatch.setattr(reaper, "time", SimpleNamespace(monotonic=lambda clock=clock: next(clock)))
        tally = finish(directory, until=steps)
        files += tally.files
        assert tally.left == 0 and tally.error == ""
        if directory.exists() and set(os.listdir(directory)) - {".jobcache"}:
            assert name.read_text() == f"test {JOB} 0 {uid_of(ALICE)}\n"
        elif name.parent.exists() and os.listdir(name.parent):
            assert name.exists()
    assert steps > 5 and not directory.exists()
    return files


# ------------------------------------------------------------------------------- a filesystem that renames no directory


@pytest.fixture
def lower(home: Home) -> Iterator[Callable[[Callable[[Path], None]], Path]]:
    """Return a function that puts a cache on the lower layer of an overlay, where no directory can be renamed."""
    layers = home.dir / "layers"
    layers.mkdir(mode=0o755)
    top = home.dir / "overlay"
    top.mkdir()
    stack = []
    with mount("none", layers):
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
            os.chown(layers / name, uid_of(ALICE), -1)
        overlay = mount(
            "none", top, "overlay", f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work,redirect_dir=off"
        )

        def make(shape: Callable[[Path], None]) -> Path:
            with acting_as(ALICE):
                shape(layers / "lower" / home.cache.name)
            stack.append(overlay.__enter__())
            return top / home.cache.name

        try:
            yield make
        finally:
            if stack:
                overlay.__exit__(None, None, None)


Lower = Callable[[Callable[[Path], None]], Path]


def test_cache_that_cannot_be_renamed_is_deleted_in_place(lower: Lower) -> None:
    """If the rename fails with EXDEV, the cache is deleted under its own name."""
    cache = lower(lambda cache: make_cache(cache, "a/f", "b/c/g"))
    name, tally = reap(cache)
    assert (name, tally.done, tally.files, os.listdir(cache.parent)) == (cache.name, True, 2, [])


def test_deletion_in_place_removes_the_id_last(lower: Lower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until everything else is gone, the id shows that the rest is a cache of jobcache."""
    cache = lower(lambda cache: make_cache(cache, "a/f", "b/c/g", ".jobcache/x", ".jobcache/zz/z"))
    assert delete_in_steps(cache, monkeypatch) == 2


def test_directory_swapped_in_is_not_deleted_in_place(lower: Lower) -> None:
    """Another directory with the name of the cache is not touched."""
    cache = lower(lambda cache: make_cache(cache, "a/f"))
    with acting_as(ALICE):
        make_cache(cache.with_name("other"), "b")
        with opened(cache.with_name("other")) as (parent_fd, fd), pytest.raises(reaper.Kept) as kept:
            reaper.retire(parent_fd, cache.name, fd, uid_of(ALICE), JOB)
    assert kept.value.reason == "changed" and (cache / "a/f").exists()


def test_deep_tree_is_deleted_in_place(lower: Lower) -> None:
    """A deep tree that cannot be moved up takes one descriptor for each level."""

    def shape(cache: Path) -> None:
        make_cache(cache)
        deepen(cache, 100)

    cache = lower(shape)
    _, tally = reap(cache)
    assert (tally.done, tally.files) == (True, 100)


def test_too_deep_tree_is_reported(lower: Lower) -> None:
    """If descriptors run out, that is reported, and the rest is deleted."""

    def shape(cache: Path) -> None:
        make_cache(cache, "f")
        deepen(cache, 200)

    cache = lower(shape)
    with few_descriptors():
        _, tally = reap(cache)
    assert not tally.done and "Too many open files" in tally.error
    assert finish(cache).done


def test_failed_rename_changes_nothing(home: Home) -> None:
    """An error of the rename is raised, and nothing has changed."""
    with acting_as(ALICE):
        make_cache(home.cache, "a/f")
    os.chown(home.cache_dir, 0, 0)
    home.cache_dir.chmod(0o755)
    with pytest.raises(PermissionError):
        reap(home.cache)
    assert home.rest() == [home.cache.name] and (home.cache / "a/f").exists()


def test_cache_removed_before_the_rename(home: Home) -> None:
    """If the user removes the cache at that moment, FileNotFoundError is raised."""
    with acting_as(ALICE):
        make_cache(home.cache)
    with pytest.raises(FileNotFoundError):
        reap(home.cache, then=lambda: subprocess.run(["rm", "-r", str(home.cache)], check=True))
