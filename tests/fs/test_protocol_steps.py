"""Making a cache and joining it: one task at a time, with everything that can be at the path before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobcache.cache import cache_names, dirfd, event_line, job_record, node_leases, protocol, reasons
from jobcache.cache.reasons import Refused
from support.claims import CACHE, FOREIGN_IDS, JOB, age, claim, enter, make_odd, opened, refusal, release, root_only, tree
from support.home import acting_as, acting_as_root
from support.mounts import mount
from support.site_dir import ALICE, BOB

# ---- 1. making


def test_new_cache_is_complete_and_private(scratch: Path) -> None:
    """It has an id, a record, nodes/ and the first lease. Only its owner can read them."""
    asked = claim(scratch, record={"user": event_line.quote(ALICE)})
    before = node_leases.now()
    assert enter(asked) == "made"
    cache = scratch / CACHE
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
    assert os.listdir(scratch) == [CACHE]


def test_making_creates_missing_directories_above_the_cache(scratch: Path) -> None:
    """Only their owner has access to them."""
    asked = claim(scratch / ".cache" / "deeper")
    assert enter(asked) == "made"
    assert stat.S_IMODE((scratch / ".cache" / "deeper").stat().st_mode) == 0o700


def test_making_replaces_an_empty_directory(scratch: Path) -> None:
    """rename(2) replaces an empty directory of the job's user."""
    (scratch / CACHE).mkdir()
    assert enter(claim(scratch)) == "made"
    assert (scratch / CACHE / ".jobcache/id").exists()


@pytest.mark.parametrize("first_task", [True, False])
def test_making_leaves_a_directory_without_record_alone(scratch: Path, first_task: bool) -> None:
    """A directory that is not empty and has no record belongs to somebody: the claim is refused, nothing changes."""
    (scratch / CACHE).mkdir()
    (scratch / CACHE / "mine").write_text("x")
    before = tree(scratch)
    assert refusal(claim(scratch, first_task=first_task)) == "unrecorded"
    assert tree(scratch) == before


def test_failed_making_leaves_nothing(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one step of making a cache fails, all steps before it are undone."""
    write_new = dirfd.write_new
    for failing in range(4):
        left = [failing]

        def fail(dir_fd: int, path: str, data: bytes, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "full")
            write_new(dir_fd, path, data)

        monkeypatch.setattr(dirfd, "write_new", fail)
        with pytest.raises(OSError, match="full"):
            enter(claim(scratch, keep=True))
        assert os.listdir(scratch) == []


@root_only
def test_making_on_a_full_disk_raises_no_space_and_leaves_nothing(scratch: Path) -> None:
    """On a real filesystem without a free block."""
    with acting_as_root():
        (scratch / "tiny").mkdir()
        with mount("tmpfs", scratch / "tiny", "tmpfs", "size=64k,nr_inodes=100"):
            shutil.chown(scratch / "tiny", ALICE)
            with acting_as(ALICE):
                with pytest.raises(OSError, match="No space"):
                    (scratch / "tiny/filler").write_bytes(b"x" * 200000)
                with pytest.raises(OSError) as caught:
                    enter(claim(scratch / "tiny"))
                assert reasons.reason_of(caught.value) == "no_space"
                assert os.listdir(scratch / "tiny") == ["filler"]


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "dangling"])
def test_making_leaves_a_file_or_symlink_at_the_path_alone(scratch: Path, kind: str) -> None:
    """The claim is refused."""
    make_odd(scratch / CACHE, kind)
    for first_task in (False, True):
        assert refusal(claim(scratch, first_task=first_task)) == "foreign"
    assert os.listdir(scratch) == [CACHE]


# ---- 2. joining


def test_each_node_takes_one_lease(scratch: Path) -> None:
    """A node with any number of tasks has one lease, which keeps its first date."""
    assert enter(claim(scratch)) == "made"
    lease = (scratch / CACHE / ".jobcache/nodes/n1").read_text()
    for node in ("n2", "n1", "n2"):
        assert enter(claim(scratch, node)) == "joined"
    assert sorted(os.listdir(scratch / CACHE / ".jobcache/nodes")) == ["n1", "n2"]
    assert (scratch / CACHE / ".jobcache/nodes/n1").read_text() == lease


@pytest.mark.parametrize("id", FOREIGN_IDS)
def test_join_refuses_a_foreign_id(scratch: Path, id: str) -> None:
    """When cluster, job, run or uid differ, or the id cannot be parsed, nothing is joined or changed."""
    enter(claim(scratch))
    (scratch / CACHE / ".jobcache/id").write_text(FOREIGN_IDS[id](os.geteuid()))
    before = tree(scratch)
    assert refusal(claim(scratch, "n2")) == "foreign"
    assert tree(scratch) == before


@root_only
def test_join_refuses_another_users_directory(scratch: Path) -> None:
    """The job's user must own the directory, even if the id is right."""
    enter(claim(scratch))
    with acting_as_root():
        shutil.chown(scratch / CACHE, BOB)
        (scratch / CACHE).chmod(0o755)
        (scratch / CACHE / ".jobcache").chmod(0o755)
    assert refusal(claim(scratch, "n2")) == "foreign"
    assert refusal(claim(scratch, "n2", first_task=True)) == "foreign"


def test_join_follows_no_symlink_to_a_cache(scratch: Path) -> None:
    """The join is refused even if the target is a cache of this job."""
    enter(claim(scratch))
    (scratch / CACHE).rename(scratch / "elsewhere")
    (scratch / CACHE).symlink_to("elsewhere")
    for first_task in (False, True):
        assert refusal(claim(scratch, "n2", first_task=first_task)) == "foreign"
    assert os.listdir(scratch / "elsewhere/.jobcache/nodes") == ["n1"]


def test_join_follows_no_symlink_to_a_record(scratch: Path) -> None:
    """A .jobcache that is a symlink to a real one is refused."""
    enter(claim(scratch, run=1))
    (scratch / CACHE).mkdir()
    (scratch / CACHE / ".jobcache").symlink_to(scratch / "hf-4242-r1/.jobcache")
    assert refusal(claim(scratch)) == "foreign"


def test_join_of_a_cache_without_nodes_is_busy(scratch: Path) -> None:
    """Without nodes/, the cache is being reaped: the task waits as long as it may, and creates no nodes/."""
    enter(claim(scratch))
    shutil.rmtree(scratch / CACHE / ".jobcache/nodes")
    before = tree(scratch)
    began = time.monotonic()
    with pytest.raises(Refused) as caught:
        enter(claim(scratch, "n2", given_before=True), 0.2)
    assert caught.value.reason == "busy"
    assert 0.2 <= time.monotonic() - began < 1
    assert tree(scratch) == before


def test_join_waits_while_cache_is_reaped(scratch: Path) -> None:
    """Once the earlier cache is deleted, a new one is made."""
    enter(claim(scratch))
    shutil.rmtree(scratch / CACHE / ".jobcache/nodes")
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: shutil.rmtree(scratch / CACHE))
    assert protocol.enter(claim(scratch, "n2"), 60.0, clock) == "made"


def test_lease_without_a_date_holds_the_cache(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk can accept the name of a lease and not its content; the cache is not reaped then."""
    enter(claim(scratch))

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert enter(claim(scratch, "n2")) == "joined"
    assert release(scratch / CACHE, "n1") == "others"
    assert release(scratch / CACHE, "n2") == "unreadable"


def test_any_task_can_keep_the_cache(scratch: Path) -> None:
    """JOBCACHE=keep counts in the task that makes the cache and in each task that joins it."""
    for asked in (claim(scratch, keep=True), claim(scratch, "n2", run=1)):
        enter(asked)
    with opened(scratch / CACHE) as kept, opened(scratch / "hf-4242-r1") as joined:
        assert [job_record.is_kept(kept), job_record.is_kept(joined)] == [True, False]
        enter(claim(scratch, "n3", run=1, keep=True))
        assert job_record.is_kept(joined)


def test_join_ignores_a_record_of_a_newer_schema(scratch: Path) -> None:
    """The id alone identifies a cache."""
    enter(claim(scratch))
    (scratch / CACHE / ".jobcache/job.json").write_text('{"schema": 99, "job_id": "elsewhere"}')
    assert enter(claim(scratch, "n2")) == "joined"
    with opened(scratch / CACHE) as fd:
        assert job_record.read_record(fd)["schema"] == 99


# ---- 3. restoring the record


def remade(scratch: Path, *files: str) -> Path:
    """Return the cache after the job's script has removed it and created a directory in its place."""
    enter(claim(scratch))
    shutil.rmtree(scratch / CACHE)
    (scratch / CACHE).mkdir()
    for name in files:
        (scratch / CACHE / name).write_text("x")
    return scratch / CACHE


@pytest.mark.parametrize("files", [[], ["a", "b"]])
def test_directory_that_the_script_remade_gets_a_record(scratch: Path, files: list[str]) -> None:
    """If the job was given the path before, the script's directory stays, and becomes a complete cache."""
    cache = remade(scratch, *files)
    inode = cache.stat().st_ino
    assert enter(claim(scratch, given_before=True)) == "mended"
    assert cache.stat().st_ino == inode
    assert sorted(os.listdir(cache)) == [".jobcache", *files]
    assert (cache / ".jobcache/id").exists() and os.listdir(cache / ".jobcache/nodes") == ["n1"]
    assert os.listdir(scratch) == [CACHE]
    assert enter(claim(scratch, "n2", given_before=True)) == "joined"


def test_first_task_restores_no_record(scratch: Path) -> None:
    """A run that begins cannot have been given the path before."""
    cache = remade(scratch, "a")
    assert refusal(claim(scratch, given_before=True, first_task=True)) == "unrecorded"
    assert os.listdir(cache) == ["a"]


def test_partly_reaped_cache_gets_no_record(scratch: Path) -> None:
    """A .jobcache that has no id but is not empty is being deleted: the task waits and does not touch it."""
    enter(claim(scratch))
    (scratch / CACHE / ".jobcache/id").unlink()
    before = tree(scratch)
    assert refusal(claim(scratch, given_before=True)) == "busy"
    assert tree(scratch) == before


# ---- 4. earlier lives of a job id


@pytest.mark.parametrize("run", [0, 3])
def test_first_task_discards_an_earlier_life(scratch: Path, run: int) -> None:
    """A cache at its path becomes trash as a whole, if all its leases are old or its id has another run; no task joins it."""
    enter(claim(scratch))
    enter(claim(scratch, "n7"))
    (scratch / CACHE / "data").write_text("old")
    if run:
        (scratch / CACHE).rename(scratch / "hf-4242-r3")
    else:
        age(scratch / CACHE)
    assert enter(claim(scratch, run=run, first_task=True)) == "made"
    cache, (trash,) = scratch / f"hf-{cache_names.format_job(JOB, run)}", scratch.glob(".jobcache-trash-4242-*")
    assert (trash / "data").read_text() == "old" and not (cache / "data").exists()
    assert os.listdir(cache / ".jobcache/nodes") == ["n1"]
    assert not (trash / ".jobcache/nodes").exists()  # so a late Epilog that holds it open does not own it


@pytest.mark.parametrize("id", ["cluster", "job", "uid", "nonsense"])
def test_first_task_discards_no_foreign_cache(scratch: Path, id: str) -> None:
    """A cache of another cluster or job, or with an unreadable id, stays where it is."""
    enter(claim(scratch))
    (scratch / CACHE / ".jobcache/id").write_text(FOREIGN_IDS[id](os.geteuid()))
    before = tree(scratch)
    assert refusal(claim(scratch, first_task=True)) == "foreign"
    assert tree(scratch) == before


def test_first_task_waits_while_an_earlier_life_is_reaped(scratch: Path) -> None:
    """The process that has removed nodes/ will rename the cache. The task does not rename it as well."""
    enter(claim(scratch))
    shutil.rmtree(scratch / CACHE / ".jobcache/nodes")
    assert refusal(claim(scratch, first_task=True)) == "busy"
    assert os.listdir(scratch) == [CACHE]
