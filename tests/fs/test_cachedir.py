"""Making, joining, releasing: one actor at a time, on a real directory, with whatever may stand at the path."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import cache_names, dirfd, event_line, job_record, node_leases, protocol, reasons
from jobcache.cache.protocol import Claim
from jobcache.cache.reasons import Refused
from support.home import acting_as
from support.mounts import mount
from support.site_dir import ALICE, BOB, Site

JOB = 4242
BOOT = "11111111-2222-3333-4444-555555555555"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def parent() -> Iterator[Path]:
    """A user's directory on scratch, in that user's name."""
    top = Path(tempfile.mkdtemp(prefix="jobcache-"))
    top.chmod(0o755)
    own = top / "alice"
    own.mkdir()
    if os.geteuid() == 0:
        shutil.chown(own, ALICE)
    try:
        with acting_as(ALICE) if os.geteuid() == 0 else nullcontext():
            yield own
    finally:
        shutil.rmtree(top)


def claim(parent: Path, node: str = "n1", run: int = 0, **more: Any) -> Claim:
    asked = Claim(f"{parent}/hf-{cache_names.format_job(JOB, run)}", "test", JOB, run, os.geteuid(), node)
    for key, value in more.items():
        setattr(asked, key, value)
    return asked


def enter(asked: Claim, patience: float = 0.0) -> str:
    return protocol.enter(asked, time.monotonic() + patience)


def refusal(asked: Claim) -> str:
    with pytest.raises(Refused) as caught:
        enter(asked)
    return caught.value.reason


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def tree(top: Path) -> dict[str, str]:
    """Names below `top`, with what the files hold."""
    return {str(path.relative_to(top)): path.read_text() if path.is_file() else "" for path in sorted(top.rglob("*"))}


def release(cache: Path, node: str, boot: str = BOOT, uptime: float = 1e9) -> str:
    fd = opened(cache)
    try:
        return node_leases.release(fd, node, boot, uptime)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------- 1. making


def test_a_made_cache_is_complete(parent: Path) -> None:
    """Id, record, nodes/ and the first lease are there; all of it is its owner's alone."""
    asked = claim(parent, record={"user": event_line.quote(ALICE)})
    before = node_leases.now()
    assert enter(asked) == "made"
    cache = parent / "hf-4242"
    assert sorted(tree(cache)) == [f".jobcache{rest}" for rest in ("", "/id", "/job.json", "/nodes", "/nodes/n1")]
    assert (cache / ".jobcache/id").read_text() == f"test 4242 0 {os.geteuid()}\n"
    record = json.loads((cache / ".jobcache/job.json").read_text())
    assert {key: record[key] for key in ("schema", "cluster", "job_id", "run", "uid", "node", "user")} == {
        "schema": 1, "cluster": "test", "job_id": JOB, "run": 0, "uid": os.geteuid(), "node": "n1", "user": ALICE,
    }  # fmt: skip
    assert time.strptime(record["created_at"], "%Y-%m-%dT%H:%M:%SZ")
    boot, uptime = (cache / ".jobcache/nodes/n1").read_text().split()
    assert boot == before[0] and before[1] <= float(uptime) <= before[1] + 5
    assert all(not path.stat().st_mode & 0o077 for path in [cache, *cache.rglob("*")])
    assert os.listdir(parent) == ["hf-4242"]


def test_directories_above_are_made(parent: Path) -> None:
    """What is missing above the cache is made, for its owner alone."""
    asked = claim(parent / ".cache" / "deeper")
    assert enter(asked) == "made"
    assert stat.S_IMODE((parent / ".cache" / "deeper").stat().st_mode) == 0o700


def test_an_empty_directory_is_replaced(parent: Path) -> None:
    """An empty one of ours without a record is as good as none; that is what rename(2) replaces."""
    (parent / "hf-4242").mkdir()
    assert enter(claim(parent)) == "made"
    assert (parent / "hf-4242/.jobcache/id").exists()


@pytest.mark.parametrize("first", [True, False])
def test_what_has_no_record_is_left_alone(parent: Path, first: bool) -> None:
    """A directory with something in it and no record is somebody's: refused, and as it was."""
    (parent / "hf-4242").mkdir()
    (parent / "hf-4242/mine").write_text("x")
    before = tree(parent)
    assert refusal(claim(parent, first=first)) == "unrecorded"
    assert tree(parent) == before


def test_a_cache_half_made_leaves_nothing(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one step of the making fails, all before it is undone."""
    written = dirfd.write_new
    for failing in range(4):
        left = [failing]

        def fail(dir_fd: int, name: str, data: bytes, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "full")
            written(dir_fd, name, data)

        monkeypatch.setattr(dirfd, "write_new", fail)
        with pytest.raises(OSError, match="full"):
            enter(claim(parent, keep=True))
        assert os.listdir(parent) == []


@root_only
def test_a_full_disk(parent: Path) -> None:
    """ENOSPC is reported as such, and what was begun does not stay."""
    with acting_as_root():
        (parent / "tiny").mkdir()
        with mount("tmpfs", parent / "tiny", "tmpfs", "size=64k,nr_inodes=100"):
            shutil.chown(parent / "tiny", ALICE)
            with acting_as(ALICE):
                with suppress_full():
                    (parent / "tiny/filler").write_bytes(b"x" * 200000)
                with pytest.raises(OSError) as caught:
                    enter(claim(parent / "tiny"))
                assert reasons.reason_of(caught.value) == "no_space"
                assert os.listdir(parent / "tiny") == ["filler"]


class acting_as_root:
    """Be root again for a while."""

    def __enter__(self) -> None:
        self.ids = (os.geteuid(), os.getegid(), os.getgroups())
        os.seteuid(0)
        os.setegid(0)

    def __exit__(self, *_: object) -> None:
        uid, gid, groups = self.ids
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)


class suppress_full:
    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: object, __: object) -> bool:
        return isinstance(error, OSError) and error.errno == errno.ENOSPC


# --------------------------------------------------------------------------------------------------------- 2. joining


def test_further_nodes_join(parent: Path) -> None:
    """Each node has one lease, however many of its tasks come, and the first one's date stays."""
    assert enter(claim(parent)) == "made"
    lease = (parent / "hf-4242/.jobcache/nodes/n1").read_text()
    for node in ("n2", "n1", "n2"):
        assert enter(claim(parent, node)) == "joined"
    assert sorted(os.listdir(parent / "hf-4242/.jobcache/nodes")) == ["n1", "n2"]
    assert (parent / "hf-4242/.jobcache/nodes/n1").read_text() == lease


OTHERS = {
    "cluster": lambda uid: f"other 4242 0 {uid}\n",
    "job": lambda uid: f"test 4243 0 {uid}\n",
    "run": lambda uid: f"test 4242 1 {uid}\n",
    "uid": lambda uid: f"test 4242 0 {uid + 1}\n",
    "no newline": lambda uid: f"test 4242 0 {uid}",
    "a word more": lambda uid: f"test 4242 0 {uid} 2\n",
    "empty": lambda uid: "",
    "nonsense": lambda uid: "\x00\x01\n",
    "long": lambda uid: f"test 4242 0 {uid}\n" + "x" * 70000,
    "not ASCII": lambda uid: f"tést 4242 0 {uid}\n",
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_id_is_somebody_elses(parent: Path, other: str) -> None:
    """Cluster, job, run and uid: one that differs, or does not read as these, and nothing is joined or changed."""
    enter(claim(parent))
    (parent / "hf-4242/.jobcache/id").write_text(OTHERS[other](os.geteuid()))
    before = tree(parent)
    assert refusal(claim(parent, "n2")) == "foreign"
    assert tree(parent) == before


@root_only
def test_another_users_directory(parent: Path) -> None:
    """Whoever owns the directory at the path has to be the job's user, whatever its id says."""
    enter(claim(parent))
    with acting_as_root():
        shutil.chown(parent / "hf-4242", BOB)
        (parent / "hf-4242").chmod(0o755)
        (parent / "hf-4242/.jobcache").chmod(0o755)
    assert refusal(claim(parent, "n2")) == "foreign"
    assert refusal(claim(parent, "n2", first=True)) == "foreign"


def test_without_nodes_it_is_being_reaped(parent: Path) -> None:
    """nodes/ is never made again: who comes then waits, for as long as it may, and is refused."""
    enter(claim(parent))
    shutil.rmtree(parent / "hf-4242/.jobcache/nodes")
    before = tree(parent)
    began = time.monotonic()
    with pytest.raises(Refused) as caught:
        enter(claim(parent, "n2", again=True), 0.2)
    assert caught.value.reason == "busy"
    assert 0.2 <= time.monotonic() - began < 1
    assert tree(parent) == before


def test_waits_until_the_name_is_free(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the cache that was being reaped is gone, a new one is made."""
    enter(claim(parent))
    shutil.rmtree(parent / "hf-4242/.jobcache/nodes")
    monkeypatch.setattr(protocol.time, "sleep", lambda _: shutil.rmtree(parent / "hf-4242"))
    assert enter(claim(parent, "n2"), 60) == "made"


def test_a_lease_that_cannot_be_dated_holds_all_the_same(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk that takes the name of a lease and not its content keeps the cache from being reaped."""
    enter(claim(parent))

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(protocol.os, "write", full)
        assert enter(claim(parent, "n2")) == "joined"
    assert release(parent / "hf-4242", "n1") == "others"
    assert release(parent / "hf-4242", "n2") == "unreadable"


def test_keep_is_everybodys_word(parent: Path) -> None:
    """JOBCACHE=keep counts from the maker and from whoever joins."""
    for asked in (claim(parent, keep=True), claim(parent, "n2", run=1)):
        enter(asked)
    fds = [opened(parent / "hf-4242"), opened(parent / "hf-4242-r1")]
    assert [job_record.is_kept(fd) for fd in fds] == [True, False]
    enter(claim(parent, "n3", run=1, keep=True))
    assert job_record.is_kept(fds[1])
    for fd in fds:
        os.close(fd)


# -------------------------------------------------------------------------------------------------------- 3. no record


def remade(parent: Path, *files: str) -> Path:
    """The cache after the job's script has removed and remade it."""
    enter(claim(parent))
    shutil.rmtree(parent / "hf-4242")
    (parent / "hf-4242").mkdir()
    for name in files:
        (parent / "hf-4242" / name).write_text("x")
    return parent / "hf-4242"


@pytest.mark.parametrize("files", [[], ["a", "b"]])
def test_what_the_job_remade_gets_its_record_back(parent: Path, files: list[str]) -> None:
    """Where the job has the path from us, the directory that its script made stays the same, and is complete again."""
    cache = remade(parent, *files)
    inode = cache.stat().st_ino
    assert enter(claim(parent, again=True)) == "mended"
    assert cache.stat().st_ino == inode
    assert sorted(os.listdir(cache)) == [".jobcache", *files]
    assert (cache / ".jobcache/id").exists() and os.listdir(cache / ".jobcache/nodes") == ["n1"]
    assert os.listdir(parent) == ["hf-4242"]
    assert enter(claim(parent, "n2", again=True)) == "joined"


def test_the_first_task_mends_nothing(parent: Path) -> None:
    """A run that begins cannot have had the path before."""
    cache = remade(parent, "a")
    assert refusal(claim(parent, again=True, first=True)) == "unrecorded"
    assert os.listdir(cache) == ["a"]


def test_a_half_reaped_cache_is_not_mended(parent: Path) -> None:
    """Without an id, but not without anything in .jobcache, it is on its way out: waited for, not touched."""
    enter(claim(parent))
    (parent / "hf-4242/.jobcache/id").unlink()
    before = tree(parent)
    assert refusal(claim(parent, again=True)) == "busy"
    assert tree(parent) == before


# ------------------------------------------------------------------------------------------------------ 4. earlier lives


@pytest.mark.parametrize("run", [0, 3])
def test_the_first_task_discards_an_earlier_life(parent: Path, run: int) -> None:
    """Whatever run the cache at its path is of, and whoever has leases in it: into the trash, whole, never joined."""
    enter(claim(parent))
    enter(claim(parent, "n7"))
    (parent / "hf-4242/data").write_text("old")
    if run:
        (parent / "hf-4242").rename(parent / "hf-4242-r3")
    assert enter(claim(parent, run=run, first=True)) == "made"
    cache, (trash,) = parent / f"hf-{cache_names.format_job(JOB, run)}", parent.glob(".jobcache-trash-4242-*")
    assert (trash / "data").read_text() == "old" and not (cache / "data").exists()
    assert os.listdir(cache / ".jobcache/nodes") == ["n1"]
    assert not (trash / ".jobcache/nodes").exists()  # a late Epilog that holds it open has no claim to it any more


@pytest.mark.parametrize("other", ["cluster", "job", "uid", "nonsense"])
def test_the_first_task_discards_nobody_elses(parent: Path, other: str) -> None:
    """Another cluster's, another job's or an odd one stays where it is."""
    enter(claim(parent))
    (parent / "hf-4242/.jobcache/id").write_text(OTHERS[other](os.geteuid()))
    before = tree(parent)
    assert refusal(claim(parent, first=True)) == "foreign"
    assert tree(parent) == before


def test_the_first_task_waits_for_who_reaps_it_already(parent: Path) -> None:
    """An earlier life's cache without nodes/ is somebody's who is about to move it: it is not moved twice."""
    enter(claim(parent))
    shutil.rmtree(parent / "hf-4242/.jobcache/nodes")
    assert refusal(claim(parent, first=True)) == "busy"
    assert os.listdir(parent) == ["hf-4242"]


def test_seized_once(parent: Path) -> None:
    """Of two who would move a cache, one may; and nobody joins or releases it after."""
    enter(claim(parent))
    fd = opened(parent / "hf-4242")
    assert [node_leases.seize(fd), node_leases.seize(fd)] == [True, False]
    os.close(fd)
    assert release(parent / "hf-4242", "n1") == "none"
    assert refusal(claim(parent, "n2")) == "busy"
    (parent / "plain").mkdir()
    fd = opened(parent / "plain")
    assert not node_leases.seize(fd)
    os.close(fd)


# --------------------------------------------------------------------------------------------------- 5, 6. releasing


def lease(parent: Path, node: str, text: str) -> None:
    (parent / "hf-4242/.jobcache/nodes" / node).write_text(text)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (f"{BOOT} 99.99\n", "last"),
        (f"{BOOT} 100.00\n", "live"),
        (f"{BOOT} 100.01\n", "live"),
        ("another-boot 5000.00\n", "last"),
        ("", "unreadable"),
        (f"{BOOT} 99.99", "unreadable"),
        (f"{BOOT}\n", "unreadable"),
        (f"{BOOT} soon\n", "unreadable"),
        (f"{BOOT} 1 2\n", "unreadable"),
        (f"{BOOT} nan\n", "live"),
        (f"{BOOT} inf\n", "live"),
        ("é 1\n", "unreadable"),
        ("x" * 70000 + "\n", "unreadable"),
    ],
)
def test_a_lease_younger_than_the_epilog_is_live(parent: Path, text: str, outcome: str) -> None:
    """Only what was taken in another boot, or before the Epilog began, is given up; in doubt, it is kept."""
    enter(claim(parent))
    lease(parent, "n1", text)
    assert release(parent / "hf-4242", "n1", BOOT, 100.0) == outcome
    assert (parent / "hf-4242/.jobcache/nodes").exists() == (outcome != "last")


def test_the_last_one_out(parent: Path) -> None:
    """Each gives up its own lease, and only who gave up the last one is told so, once."""
    for node in ("n1", "n2", "n3"):
        enter(claim(parent, node))
    cache = parent / "hf-4242"
    assert [release(cache, node) for node in ("n2", "n2", "n1", "n3", "n3")] == ["others", "none", "others", "last", "none"]
    assert not (cache / ".jobcache/nodes").exists()


def test_who_held_no_lease_never_tries(parent: Path) -> None:
    """An Epilog of a node that has no lease leaves nodes/ as it is, empty or not."""
    enter(claim(parent))
    cache = parent / "hf-4242"
    assert release(cache, "n2") == "none"
    (cache / ".jobcache/nodes/n1").unlink()
    assert release(cache, "n2") == "none"
    assert (cache / ".jobcache/nodes").exists()


@pytest.mark.parametrize("odd", ["link", "directory", "fifo"])
def test_odd_leases(parent: Path, odd: str) -> None:
    """A lease that is no plain file gives nobody the right to reap, and holds nobody up."""
    enter(claim(parent))
    path = parent / "hf-4242/.jobcache/nodes/n1"
    path.unlink()
    make_odd(path, odd)
    try:
        outcome = release(parent / "hf-4242", "n1")
    except OSError as error:
        outcome = reasons.reason_of(error)
    assert outcome in ("unreadable", "not_directory")
    assert (parent / "hf-4242/.jobcache/nodes").exists()


def make_odd(path: Path, odd: str) -> None:
    if odd == "link":
        path.symlink_to("/proc/uptime")
    elif odd == "directory":
        path.mkdir()
    elif odd == "fifo":
        os.mkfifo(path)
    elif odd == "file":
        path.write_text("x")
    elif odd == "dangling":
        path.symlink_to("/nonexistent/place")


# ------------------------------------------------------------------------------------------------ 9. odd and forged ones


@pytest.mark.parametrize("odd", ["link", "directory", "fifo", "dangling"])
def test_an_odd_id(parent: Path, odd: str) -> None:
    """An id that is no plain file names nobody: the cache is not joined, not discarded, and nobody hangs on it."""
    enter(claim(parent))
    path = parent / "hf-4242/.jobcache/id"
    path.unlink()
    make_odd(path, odd)
    for first in (False, True):
        assert refusal(claim(parent, first=first)) == "foreign"
    fd = opened(parent / "hf-4242")
    assert job_record.identity(fd) != claim(parent).identity
    os.close(fd)


@pytest.mark.parametrize("odd", ["file", "link", "fifo", "dangling"])
@pytest.mark.parametrize("first", [True, False])
def test_an_odd_meta(parent: Path, odd: str, first: bool) -> None:
    """A .jobcache that is no directory is nothing of ours."""
    (parent / "hf-4242").mkdir()
    make_odd(parent / "hf-4242/.jobcache", odd)
    before = sorted(os.listdir(parent / "hf-4242"))
    assert refusal(claim(parent, first=first)) == "foreign"
    assert sorted(os.listdir(parent / "hf-4242")) == before
    fd = opened(parent / "hf-4242")
    assert job_record.identity(fd) == ("", 0, 0, -1)
    assert job_record.read_record(fd) == {}
    assert not job_record.is_kept(fd)
    os.close(fd)


def test_a_symlinked_meta_leads_nowhere(parent: Path) -> None:
    """A .jobcache that is a symlink to a real one elsewhere is not followed."""
    enter(claim(parent, run=1))
    (parent / "hf-4242").mkdir()
    (parent / "hf-4242/.jobcache").symlink_to(parent / "hf-4242-r1/.jobcache")
    assert refusal(claim(parent)) == "foreign"


@pytest.mark.parametrize("odd", ["file", "link", "fifo", "dangling"])
def test_something_else_at_the_path(parent: Path, odd: str) -> None:
    """What stands at the path and is no directory is left alone."""
    make_odd(parent / "hf-4242", odd)
    for first in (False, True):
        assert refusal(claim(parent, first=first)) == "foreign"
    assert os.listdir(parent) == ["hf-4242"]


def test_a_symlink_to_a_cache(parent: Path) -> None:
    """A symlink at the path is not followed, even to a cache of this very job."""
    enter(claim(parent))
    (parent / "hf-4242").rename(parent / "elsewhere")
    (parent / "hf-4242").symlink_to("elsewhere")
    for first in (False, True):
        assert refusal(claim(parent, "n2", first=first)) == "foreign"
    assert os.listdir(parent / "elsewhere/.jobcache/nodes") == ["n1"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '"x"', "null", '{"schema": 1', "\x00", "é", "x" * 70000, "[" * 60000, '{"a": ' * 10000, "NaN",
        '{"schema": 1}trailing',
        '{"schema": 1}' + " " * 65536,
    ],
)  # fmt: skip
def test_a_record_that_is_none(parent: Path, text: str) -> None:
    """What cannot be read as a JSON object is read as nothing, whatever it is."""
    enter(claim(parent))
    (parent / "hf-4242/.jobcache/job.json").write_text(text)
    fd = opened(parent / "hf-4242")
    assert job_record.read_record(fd) == {}
    os.close(fd)


@pytest.mark.parametrize("odd", ["link", "directory", "fifo", "dangling"])
def test_an_odd_record(parent: Path, odd: str) -> None:
    """No symlink is followed and no fifo waited for."""
    enter(claim(parent))
    path = parent / "hf-4242/.jobcache/job.json"
    path.unlink()
    make_odd(path, odd)
    fd = opened(parent / "hf-4242")
    assert job_record.read_record(fd) == {}
    os.close(fd)


def test_a_record_of_a_newer_schema_is_joined(parent: Path) -> None:
    """The id alone says whose a cache is: what a newer version writes beside it changes nothing."""
    enter(claim(parent))
    (parent / "hf-4242/.jobcache/job.json").write_text('{"schema": 99, "job_id": "elsewhere"}')
    assert enter(claim(parent, "n2")) == "joined"
    fd = opened(parent / "hf-4242")
    assert job_record.read_record(fd)["schema"] == 99
    os.close(fd)


def test_a_record_is_replaced_whole(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write_record puts a new one in place, or leaves the old one."""
    enter(claim(parent))
    fd = opened(parent / "hf-4242")
    job_record.write_record(fd, {"keep_until": "x"})
    assert job_record.read_record(fd) == {"keep_until": "x"}
    monkeypatch.setattr(dirfd.os, "write", lambda fd, data: 1)
    with pytest.raises(OSError, match="No space"):
        job_record.write_record(fd, {"keep_until": "y"})
    assert job_record.read_record(fd) == {"keep_until": "x"}
    assert sorted(os.listdir(parent / "hf-4242/.jobcache")) == ["id", "job.json", "nodes"]
    os.close(fd)


@pytest.mark.parametrize("text", ['a"b\\c', "tab\tnl\n", "é€😀", "\udcff\udcfe", "\x7f\x00", "", "</script>"])
def test_quoted_as_json(text: str) -> None:
    """Whatever a name holds, it is one ASCII JSON string; bytes that are not UTF-8 show as such."""
    quoted = event_line.quote(text)
    assert quoted.isascii() and "\n" not in quoted
    assert json.loads(quoted) == os.fsencode(text).decode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no_space"), (errno.EDQUOT, "no_space"), (errno.EACCES, "no_access"), (errno.EPERM, "no_access"),
        (errno.EROFS, "read_only"), (errno.ELOOP, "not_directory"), (errno.ENOTDIR, "not_directory"), (errno.EIO, "io_error"),
    ],
)  # fmt: skip
def test_reasons(number: int, reason: str) -> None:
    """Every error has a word of the closed set."""
    assert reasons.reason_of(OSError(number, "x")) == reason


# --------------------------------------------------------------------------------------------------- the way to the path


@root_only
@pytest.mark.parametrize("owner", ["root", ALICE])
def test_symlinks_on_the_way(parent: Path, owner: str) -> None:
    """Root's own are followed, as sites have them; a user's are not, since they could lead a deletion elsewhere."""
    (parent / "real").mkdir()
    with acting_as_root():
        (parent / "link").symlink_to("real")
        os.lchown(parent / "link", pwd.getpwnam(owner).pw_uid, -1)
    asked = claim(parent / "link" / "below")
    if owner == "root":
        assert enter(asked) == "made"
        assert (parent / "real/below/hf-4242").exists()
    else:
        with pytest.raises(OSError) as caught:
            enter(asked)
        assert reasons.reason_of(caught.value) == "not_directory"
        assert not (parent / "real/below/hf-4242").exists()


def test_directories_that_can_only_be_passed(parent: Path) -> None:
    """A directory on the way need not be readable, only passable."""
    (parent / "closed/open").mkdir(parents=True)
    (parent / "closed").chmod(0o100)
    assert enter(claim(parent / "closed" / "open")) == "made"
    (parent / "closed").chmod(0o700)


# ------------------------------------------------------------------------- what the Epilog makes of it: lines 5, 7, 8


@root_only
def test_a_late_epilog_leaves_the_live_run_alone(site: Site) -> None:
    """The Epilog of a lost run, which began before the live run's lease on the same node, releases its own run's only."""
    site.task_prolog()
    late = (site.cache() / ".jobcache/nodes/n1").read_text().split()
    time.sleep(0.03)
    site.task_prolog(SLURM_RESTART_COUNT="1")
    live = site.cache(run=1) / ".jobcache/nodes/n1"
    live.write_text(f"{late[0]} {float(late[1]) + 1e6:.2f}\n")
    site.epilog(SLURM_JOB_RESTART_COUNT="1")
    assert not site.cache().exists() and live.exists()
    assert [(event["event"], event.get("reason")) for event in site.events()] == [
        ("cache.reaped", None),
        ("cache.kept", "lease_live"),
    ]


@root_only
def test_an_epilog_looks_at_all_runs_of_its_job(site: Site) -> None:
    """SLURM_JOB_RESTART_COUNT is often the next run's: it plays no part. Other jobs' caches do not either."""
    for run in ("0", "1", "12"):
        site.task_prolog(SLURM_RESTART_COUNT=run)
    site.task_prolog(42421)
    site.task_prolog(424)
    site.epilog(SLURM_JOB_RESTART_COUNT="7")
    assert sorted(path.name for path in site.cache().parent.iterdir()) == ["hf-datasets-424", "hf-datasets-42421"]


@root_only
def test_reaping_frees_the_name_at_once(site: Site) -> None:
    """What the budget does not suffice for is trash beside it, with a name that says whose, for the sweep to finish."""
    site.configure(epilog={"budget": "0s"})
    site.task_prolog()
    site.fill(site.cache(), *(f"d/{at}" for at in range(50)))
    site.epilog()
    assert not site.cache().exists()
    (trash,) = site.debris()
    assert cache_names.parse_debris(trash) == (cache_names.TRASH, JOB)
    (reaped,) = site.events()
    assert (reaped["outcome"], reaped["reason"], reaped["trash"]) == ("trashed", "budget", f"{site.cache().parent}/{trash}")


@root_only
@pytest.mark.parametrize(
    ("env", "gone"),
    [
        ({"nodes": 1}, True),
        ({"nodes": 2}, False),
        ({"nodes": 1, "SLURM_HET_JOB_ID": "4242"}, False),
        ({"SLURM_JOB_NUM_NODES": ""}, False),
    ],
    ids=["one node", "two nodes", "het", "unknown"],
)
def test_no_record_at_the_epilog(site: Site, env: dict[str, Any], gone: bool) -> None:
    """What the script remade is reaped only by the Epilog of a job that had one node and no sisters."""
    site.task_prolog()
    shutil.rmtree(site.cache() / ".jobcache")
    site.fill(site.cache(), "left")
    site.epilog(**env)
    assert site.cache().exists() != gone
    (event,) = site.events()
    assert (event["event"], event.get("reason")) == (("cache.reaped", None) if gone else ("cache.kept", "unrecorded"))


FORGED: dict[str, Callable[[Path], object]] = {
    "id of another job": lambda cache: (cache / ".jobcache/id").write_text("test 4243 0 5\n"),
    "id of another cluster": lambda cache: (cache / ".jobcache/id").write_text("other 4242 0 5\n"),
    "id of another run": lambda cache: (cache / ".jobcache/id").write_text("test 4242 1 5\n"),
    "id a fifo": lambda cache: ((cache / ".jobcache/id").unlink(), os.mkfifo(cache / ".jobcache/id")),
    "id a link": lambda cache: ((cache / ".jobcache/id").unlink(), (cache / ".jobcache/id").symlink_to("/etc/passwd")),
    "lease a fifo": lambda cache: ((cache / ".jobcache/nodes/n1").unlink(), os.mkfifo(cache / ".jobcache/nodes/n1")),
    "lease of the future": lambda cache: (cache / ".jobcache/nodes/n1").write_text(f"{node_leases.now()[0]} 1e300\n"),
    "meta a file": lambda cache: (shutil.rmtree(cache / ".jobcache"), (cache / ".jobcache").write_text("")),
}


@root_only
@pytest.mark.parametrize("forged", FORGED)
def test_forged_ones_are_kept(site: Site, forged: str) -> None:
    """Whatever its user made of a cache: an Epilog that cannot tell that it is the last one keeps it, and says so."""
    site.task_prolog()
    FORGED[forged](site.cache())
    site.epilog()
    assert site.cache().exists()
    (event,) = site.events()
    assert event["event"] == "cache.kept" and event["reason"]
