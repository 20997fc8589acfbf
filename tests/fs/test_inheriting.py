"""A new cache begins with links to all finished builds of the cache that its job would have used without jobcache."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobcache.cache import finished_builds, inheriting, workers
from support.home import acting_as_root, fingerprint
from support.hungfs import hung
from support.user_cache import HASH, cut_short, put, write_arrow

BUDGET = 20.0
OLD = 1_600_000_000  # seconds; long before the test, so that nothing waits for a change to end


@pytest.fixture
def own(scratch: Path) -> Path:
    """The user's own datasets cache."""
    path = scratch / "hf" / "datasets"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def inherit(scratch: Path) -> Iterator[Callable[..., inheriting.Inherited]]:
    """A function that links the user's own cache into the new cache `scratch / "new"`."""
    new = scratch / "new"
    new.mkdir()
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY)

    def call(most: int = 10_000, budget: float = BUDGET, below: str = "", **env: str) -> inheriting.Inherited:
        return inheriting.inherit(inheriting.Request(env or {"HF_HOME": str(scratch / "hf")}, most), fd, below, budget)

    yield call
    os.close(fd)


def age(top: Path, seconds: int = OLD) -> None:
    """Date `top` and everything below it."""
    for path in (*top.rglob("*"), top):
        os.utime(path, (seconds, seconds), follow_symlinks=False)


def linked(new: Path) -> list[str]:
    """Return the paths of all symlinks in the new cache."""
    return sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_symlink())


def test_links_each_file_of_builds_on_both_levels(scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    """Directories are real and private, files are symlinks, and directories of builds keep their dates."""
    four = put(own, f"json/default-1/0.0.0/{HASH}", shards=2, maps=2)
    three = put(own, "generator/default-2/0.0.0")
    both = put(own, "generator/default-2/0.0.0/0123")
    for at, build in enumerate((four, both, three)):
        os.utime(build, ns=(OLD * 10**9 + at, OLD * 10**9 + at))
    before = fingerprint(own)
    found = inherit()
    assert (found.refusal, found.left_out) == (None, [])
    assert (found.builds, found.files, found.candidates, found.source) == (3, 5 + 3 + 3, 3, str(own))
    new = scratch / "new"
    for build in (four, three, both):
        copy = new / build.relative_to(own)
        names = {path.name for path in build.iterdir() if not path.is_dir()}
        assert {path.name for path in copy.iterdir() if path.is_symlink()} == names
        assert all(os.readlink(copy / name) == str(build / name) for name in names)
        assert copy.stat().st_mtime_ns == build.stat().st_mtime_ns
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in new.rglob("*") if path.is_dir())
    assert found.bytes == sum(path.stat().st_size for path in own.rglob("*") if path.is_file())
    assert fingerprint(own) == before


def test_links_nothing_temporary(scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    """No lock, nothing incomplete, hidden or downloaded, no empty build, and no private cache that lies there."""
    build = put(own)
    put(own, f"json/default-1/0.0.0/{'b' * 64}.incomplete")
    put(own, "generator/default-1/0.0.0.incomplete")
    put(own, f"downloads/default-1/0.0.0/{HASH}")
    put(own, f".hidden/default-1/0.0.0/{HASH}")
    put(own, f"hf-datasets-7/json/0.0.0/{HASH}")
    (own / "hf-datasets-7/.jobcache").mkdir()
    (own / "json/default-1/0.0.0/empty").mkdir()
    (own / f"json/default-1/0.0.0/{HASH}_builder.lock").touch()
    (own / "_home_alice.lock").touch()
    for name in ("tmpabc", ".cache-1.arrow", "cache-1.arrow.lock", "notes.txt"):
        write_arrow(build / name)
    write_arrow(build / "cache-short.arrow")
    cut_short(build / "cache-short.arrow")
    found = inherit()
    assert (found.refusal, found.left_out, found.builds) == (None, [], 1)
    assert {Path(path).name for path in linked(scratch / "new")} == {
        "dataset_info.json",
        "json-train.arrow",
        f"cache-{0:016x}.arrow",
    }
    assert [path.name for path in (scratch / "new").iterdir()] == ["json"]


def missing_info(build: Path) -> None:
    (build / "dataset_info.json").unlink()


def torn_info(build: Path) -> None:
    cut_short(build / "dataset_info.json")


def no_splits(build: Path) -> None:
    (build / "dataset_info.json").write_text('{"splits": null}')


def missing_shard(build: Path) -> None:
    (build / "data-train-00001-of-00002.arrow").unlink()


def short_shard(build: Path) -> None:
    cut_short(build / "data-train-00001-of-00002.arrow")


def empty_shard(build: Path) -> None:
    (build / "data-train-00001-of-00002.arrow").write_bytes(b"")


def fifo_shard(build: Path) -> None:
    missing_shard(build)
    os.mkfifo(build / "data-train-00001-of-00002.arrow")


def dangling_shard(build: Path) -> None:
    missing_shard(build)
    (build / "data-train-00001-of-00002.arrow").symlink_to("nowhere")


def closed_build(build: Path) -> None:
    build.chmod(0o000)


def closed_version(build: Path) -> None:
    build.parent.chmod(0o000)


DAMAGE = [
    missing_info, torn_info, no_splits, missing_shard, short_shard, empty_shard, fifo_shard, dangling_shard, closed_build,
    closed_version,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_dataset_with_a_damaged_build_is_left_out_whole(
    scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited], damage: Callable[[Path], None]
) -> None:
    """The older revision is not linked: offline, `datasets` would silently load it. Other datasets are linked."""
    put(own, "alice___data/default/0.0.0/1111")
    newer = put(own, "alice___data/default/0.0.0/2222", shards=2)
    put(own, "bob___data/default/0.0.0/3333")
    damage(newer)
    if damage not in (closed_build, closed_version):
        age(own)
    try:
        found = inherit()
    finally:
        newer.parent.chmod(0o755)
        newer.chmod(0o755)
    assert found.refusal is None
    ((name, reason, details),) = found.left_out
    assert (name, reason) == ("alice___data", "no_access" if "closed" in damage.__name__ else "damaged")
    assert "alice___data/default/0.0.0" in details
    assert [path.name for path in (scratch / "new").iterdir()] == ["bob___data"] and found.builds == 1


def test_build_that_is_being_replaced_is_linked_once_it_is_there(
    scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]
) -> None:
    """`datasets` removes the old build file by file, and renames the new one into place."""
    build = put(own, "alice___data/default/0.0.0/2222")
    put(own, "alice___data/default/0.0.0/1111")
    incomplete = put(own, "alice___data/default/0.0.0/2222.incomplete")
    (build / "data-train.arrow").unlink()

    def replace() -> None:
        time.sleep(0.01)
        shutil.rmtree(build)
        incomplete.rename(build)

    thread = threading.Thread(target=replace)
    thread.start()
    found = inherit()
    thread.join()
    assert (found.refusal, found.left_out, found.builds) == (None, [], 2)


def test_build_of_a_store_stays(scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    """A build that the new cache has already is not mixed with the user's own."""
    for key in (f"json/default-1/0.0.0/{HASH}", "json/default-2/0.0.0"):
        put(own, key, maps=3)
        put(scratch / "new", key, maps=0)
    put(own, "json/default-1/0.0.0/other")
    before = fingerprint(scratch / "new/json/default-2/0.0.0")
    found = inherit()
    assert (found.refusal, found.builds) == (None, 1)
    assert all("/other/" in path for path in linked(scratch / "new"))
    assert fingerprint(scratch / "new/json/default-2/0.0.0") == before


def test_too_many_builds_are_refused_before_anything_is_linked(
    scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]
) -> None:
    for at in range(4):
        put(own, f"json/default-{at}/0.0.0/{HASH}")
    found = inherit(most=3)
    assert found.refusal and found.refusal.reason == "inherit_too_many" and found.candidates == 4
    assert list((scratch / "new").iterdir()) == []
    assert inherit(most=4).refusal is None


def test_deadline_is_reported_with_numbers(own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    put(own)
    found = inherit(budget=0.0)
    assert found.refusal and found.refusal.reason == "inherit_budget" and (found.builds, found.files) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
@pytest.mark.parametrize("killable", [True, False])
def test_home_that_hangs_costs_the_budget(
    scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited], killable: bool
) -> None:
    put(own)
    with acting_as_root(), hung(own, killable=killable):
        began = time.monotonic()
        found = inherit(budget=0.3)
        assert time.monotonic() - began < 2
    assert found.refusal and found.refusal.reason == "inherit_budget"


def test_full_scratch_is_reported(scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    """An error on the new cache's side refuses the whole."""
    put(own)
    (scratch / "new/json").write_text("a file is in the way")
    found = inherit()
    assert found.refusal and found.refusal.reason == "inherit_failed"


def test_unreadable_cache_of_the_user_is_reported(own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    put(own)
    own.chmod(0o111)
    found = inherit()
    own.chmod(0o755)
    assert found.refusal and found.refusal.reason == "inherit_failed"


@pytest.mark.parametrize("obstacle", ["nothing", "file", "dangling", "closed"])
def test_no_cache_of_the_user_is_nothing_to_inherit(
    scratch: Path, inherit: Callable[..., inheriting.Inherited], obstacle: str
) -> None:
    """The job could not have used it."""
    home = scratch / "hf"
    if obstacle == "file":
        home.write_text("")
    elif obstacle == "dangling":
        home.symlink_to("nowhere")
    elif obstacle == "closed":
        (home / "datasets").mkdir(parents=True)
        home.chmod(0o000)
    found = inherit()
    if obstacle == "closed":
        home.chmod(0o755)
    assert (found.refusal, found.source, found.builds) == (None, "", 0)


def test_private_cache_is_not_inherited(scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    """HF_HOME can lie in the cache of another job."""
    put(own)
    (scratch / "hf/.jobcache").mkdir()
    (scratch / "hf/.jobcache/id").write_text("x")
    found = inherit()
    assert (found.refusal, found.source, found.builds) == (None, "", 0)


def test_symlinks_of_the_user_are_followed(scratch: Path, own: Path, inherit: Callable[..., inheriting.Inherited]) -> None:
    """The home, the cache, a dataset and a shard can lie elsewhere. Links lead through the path that the job would
    use, as a container may see only that one."""
    build = put(own)
    other = scratch / "elsewhere"
    (own / "json").rename(other)
    (own / "json").symlink_to(other)
    shard = build / "json-train.arrow"
    shard.rename(scratch / "shard")
    shard.symlink_to(scratch / "shard")
    (scratch / "home").symlink_to("hf")
    found = inherit(HF_HOME=str(scratch / "home"))
    source = scratch / "home/datasets"
    assert (found.refusal, found.source, found.builds) == (None, str(source), 1)
    link = scratch / "new" / build.relative_to(own) / shard.name
    assert os.readlink(link) == str(source / shard.relative_to(own)) and link.read_bytes() == (scratch / "shard").read_bytes()


def test_relative_path_is_refused(inherit: Callable[..., inheriting.Inherited]) -> None:
    """It depends on the directory in which the user's program runs."""
    found = inherit(HF_HOME="hf")
    assert found.refusal and found.refusal.reason == "inherit_relative"


def test_threads_help_with_slow_items_and_each_item_is_done_once() -> None:
    """Items that take long are done at the same time."""
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.02)
        done.append(item)

    began = time.monotonic()
    workers.each(work, range(100))
    assert sorted(done) == list(range(100)) and time.monotonic() - began < 1


def test_error_in_one_thread_is_raised_and_ends_the_work() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.005)
        if item == 30:
            raise OSError(errno.EIO, "broken")
        done.append(item)

    with pytest.raises(OSError, match="broken"):
        workers.each(work, range(1000))
    assert len(done) < 100


def test_scan_raises_after_its_deadline(own: Path) -> None:
    put(own)
    with pytest.raises(finished_builds.OutOfTime):
        finished_builds.Scan(str(own), time.monotonic() - 1, 10).run()
