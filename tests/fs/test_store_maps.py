"""Results of `map` on top of a build that was linked from the store: handed on as a new generation of it, or not at all."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_store import (
    LABEL,
    UID,
    Clock,
    Dying,
    as_alice,
    elsewhere,
    ended_well,
    open_cache,
    published,
    seed_once,
    shards,
    site_store,
    template,  # noqa: F401 - a fixture
    whole_or_absent,
    zero_the_tail,
)
from test_store_command import command, copying, filled, jobs, queue, running, used  # noqa: F401 - a fixture

from jobcache.cache import dirfd, linking, store_reading
from jobcache.store import arrow, builds, map_results, store
from jobcache.system import mounts, reaper
from support.home import fingerprint
from support.site_dir import ALICE, BOB
from support.stores import Jobs, Template, links

GID = pwd.getpwnam(ALICE).pw_gid


def map_in(template: Template) -> Path:  # noqa: F811
    """The result of `map` in the template's build."""
    (found,) = (template.cache / template.key).glob("cache-*.arrow")
    return found


def add_map(build: Path, template: Template, at: int = 1) -> Path:  # noqa: F811
    """Leave a result of `map` in a job's build, as `datasets` does: a whole file, renamed into place."""
    path = build / f"cache-{at:016x}.arrow"
    shutil.copyfile(map_in(template), path.with_name("tmpabc"))
    os.chown(path.with_name("tmpabc"), UID, GID)
    path.with_name("tmpabc").rename(path)
    return path


def linked(jobs: Jobs, name: str) -> Path:  # noqa: F811
    """Return a cache of Alice's that has been linked to what the store has."""
    cache = jobs.home / name
    assert ended_well(as_alice(lambda: seed_once(jobs, cache)))
    return cache


def allocated(*paths: Path) -> int:
    return sum(path.stat().st_blocks for path in paths) * 512


def on_disk(top: Path) -> int:
    """Bytes allocated to the files below, each counted once."""
    found = {
        (info.st_dev, info.st_ino): info.st_blocks * 512 for info in (path.lstat() for path in top.rglob("*") if path.is_file())
    }
    return sum(found.values())


def live(jobs: Jobs) -> list[Path]:  # noqa: F811
    return [path for path in jobs.stored(LABEL) if not (path / "retired").exists()]


def names(build: Path) -> set[str]:
    return {path.name for path in (build / "files").iterdir()}


def test_from_job_to_job(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """The next job is given them as well; the files of the build are the very same, and the build is dated as it was."""
    old = published(jobs, template)
    before = {path.name: path.stat() for path in (old / "files").iterdir()}
    made = add_map(jobs.begin(LABEL) / template.key, template)
    inode, size = made.stat().st_ino, allocated(made)
    (event,) = jobs.end()
    assert (event["outcome"], event["builds"], event["files"], event["bytes"]) == ("published", 1, 1, size)
    assert event.get("reason") is None and event["label"] == LABEL
    reaped = jobs.site.events("cache.reaped")[-1]
    assert reaped["files"] == len(before), "the links, and not what is kept"

    (new,) = live(jobs)
    assert (old.name[-2:], new.name[-2:]) == (".1", ".2") and (old / "retired").exists()
    inodes = {path.name: path.stat().st_ino for path in (new / "files").iterdir()}
    assert inodes == {**{name: info.st_ino for name, info in before.items()}, made.name: inode}
    assert (new / "files").stat().st_mtime_ns == (old / "files").stat().st_mtime_ns
    assert {path.stat().st_mode & 0o222 for path in (new / "files").rglob("*")} == {0}
    assert {p.name: (p.stat().st_size, p.stat().st_mtime_ns) for p in (old / "files").iterdir()} == {
        name: (info.st_size, info.st_mtime_ns) for name, info in before.items()
    }
    manifest = json.loads((new / "manifest.json").read_text())
    assert (manifest["rows"], manifest["maps"], manifest["files"]) == (template.rows, 2, len(inodes))
    assert (manifest["job_id"], manifest["bytes"]) == (jobs.number, allocated(*(new / "files").iterdir()))
    done = command(jobs, "verify")
    assert (done.returncode, done.stdout) == (0, f"{jobs.path}: 2 of 2 builds are whole\n"), done.stderr

    cache = jobs.begin(LABEL)
    assert links(cache / template.key) == (len(before) + 1, 0)
    assert os.readlink(cache / template.key / made.name) == str(new / "files" / made.name)
    state = jobs.print()
    assert jobs.end() == [] and jobs.print() == state and jobs.left() == [], "nothing new, nothing done"


def test_a_map_that_is_made_again_stays_the_first_one(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """load_from_cache_file=False writes over the link in the job's cache: the store's own stays, as do those cleaned away."""
    published(jobs, template)
    before = jobs.print()
    build = jobs.begin(LABEL) / template.key
    (name,) = (path.name for path in build.glob("cache-*"))
    (build / name).unlink()
    add_map(build, template).rename(build / name)
    assert jobs.end() == [] and jobs.print() == before
    build = jobs.begin(LABEL) / template.key
    (build / name).unlink()
    add_map(build, template, 2)
    assert jobs.end()[0]["files"] == 1
    assert len([one for one in names(live(jobs)[0]) if one.startswith("cache-")]) == 2


def no_map(path: Path) -> None:
    path.unlink()


def a_link(path: Path) -> None:
    path.rename(path.parents[4] / "elsewhere.arrow")
    path.symlink_to(path.parents[4] / "elsewhere.arrow")
    os.lchown(path, UID, GID)


def a_second_name(path: Path) -> None:
    os.link(path, path.parents[4] / "elsewhere.arrow")


def anothers(path: Path) -> None:
    shutil.chown(path, BOB)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    os.chown(path, UID, GID)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def without_an_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-8] + bytes(8))


def nothing_in_it(path: Path) -> None:
    os.truncate(path, 0)


def before_all(path: Path) -> None:
    os.utime(path, (-5, -5))


def another_name(path: Path) -> None:
    path.rename(path.with_name("result.arrow"))


def half_made(path: Path) -> None:
    path.rename(path.with_name("tmpxyz"))


def locked(path: Path) -> None:
    path.rename(path.with_name(path.name + ".lock"))


NO_MAPS = [
    no_map, a_link, a_second_name, anothers, a_fifo, a_directory, cut, without_an_end, nothing_in_it, before_all, another_name,
    half_made, locked,
]  # fmt: skip


@pytest.mark.parametrize("spoil", NO_MAPS)
def test_only_what_is_whole_and_the_jobs_own(jobs: Jobs, template: Template, spoil: Callable[[Path], None]) -> None:  # noqa: F811
    """Alone, nothing comes into the store; beside a good one, that does."""
    published(jobs, template)
    before = jobs.print()
    spoil(add_map(jobs.begin(LABEL) / template.key, template))
    assert jobs.end() == [] and jobs.print() == before
    build = jobs.begin(LABEL) / template.key
    spoil(add_map(build, template))
    good = add_map(build, template, 2)
    (event,) = jobs.end()
    assert (event["outcome"], event["files"]) == ("published", 1)
    assert names(live(jobs)[0]) - names(jobs.stored(LABEL)[0]) == {good.name} and jobs.left() == []


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)
    os.lchown(path, UID, GID)


def built_anew(build: Path) -> None:
    """As force_redownload does: plain files in place of the links."""
    for path in build.iterdir():
        if path.is_symlink():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data)
            os.chown(path, UID, GID)


def one_part_rewritten(build: Path) -> None:
    path = shards(build)[0]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.chown(path, UID, GID)


def one_part_gone(build: Path) -> None:
    shards(build)[0].unlink()


def one_part_from_elsewhere(build: Path) -> None:
    path = shards(build)[0]
    copy = build.parents[3] / "copy.arrow"
    shutil.copyfile(path, copy)
    os.chown(copy, UID, GID)
    relink(path, str(copy))


def another_way(build: Path) -> None:
    for path in build.iterdir():
        if path.is_symlink():
            relink(path, os.readlink(path).replace("/v1/", "/v1/../v1/"))


def another_build(build: Path) -> None:
    for path in build.iterdir():
        if path.is_symlink():
            relink(path, os.readlink(path).replace("/files/", "/x/../files/"))


def another_key(build: Path) -> None:
    for path in build.iterdir():
        if path.is_symlink():
            parts = os.readlink(path).split("/")
            parts[-3] = "f" * 32 + ".1"
            relink(path, "/".join(parts))


def another_generation(build: Path) -> None:
    for path in build.iterdir():
        if path.is_symlink():
            relink(path, os.readlink(path).replace(".1/files", ".7/files"))


@pytest.mark.parametrize(
    "forge",
    [
        built_anew, one_part_rewritten, one_part_gone, one_part_from_elsewhere, another_way, another_build, another_key,
        another_generation,
    ],
)  # fmt: skip
def test_only_beside_the_very_build(jobs: Jobs, template: Template, forge: Callable[[Path], None]) -> None:  # noqa: F811
    """What is not linked as the TaskProlog links it may have been made from something else. The store is as it was."""
    published(jobs, template)
    before = jobs.print()
    build = jobs.begin(LABEL) / template.key
    add_map(build, template)
    forge(build)
    assert jobs.end() == [] and jobs.print() == before


def test_only_where_a_build_would_be(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Not from two nodes, a cache that is kept, a job without a label, or one with another label than the build's."""
    assert published(jobs, template).exists() and filled(jobs, template, "").exists()
    before = jobs.print()
    for label, begin, end in (
        (LABEL, {}, {"nodes": 2}), (LABEL, {"JOBCACHE": "keep"}, {}), ("", {}, {}), ("exp-2", {}, {}),
    ):  # fmt: skip
        build = jobs.begin(label, **begin) / template.key
        assert links(build)[0]
        add_map(build, template)
        assert jobs.end(**end) == [] and jobs.print() == before


def test_never_beside_a_build_of_the_sites(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Neither into its store, nor into the user's."""
    site_store(jobs, template)
    place = jobs.site.dir / "site-store"
    before = fingerprint(place)
    build = jobs.begin(LABEL) / template.key
    assert links(build)[0]
    add_map(build, template)
    assert jobs.end() == [] and not jobs.path.exists()
    assert fingerprint(place) == before
    shutil.chown(place, ALICE)
    for path in place.rglob("*"):
        shutil.chown(path, ALICE)
    jobs.site.configure(store={"user": None, "site": str(place)})
    build = jobs.begin(LABEL) / template.key
    add_map(build, template)
    assert jobs.end() == [] and len(list((place / "v1/default").iterdir())) == 1, "not even where it is theirs to write"


def test_a_damaged_build_is_not_added_to(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """And the event says why."""
    stored = published(jobs, template)
    add_map(jobs.begin(LABEL) / template.key, template)
    zero_the_tail(stored / "files")
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "damaged") and "in the store" in event["error"]
    assert jobs.stored(LABEL) == [stored] and jobs.left() == []


def test_by_store_build_as_well(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """A program that was edited, run once more."""
    filled(jobs, template)
    *shell, text = copying(template)
    text += f"; cp {map_in(template)} $HF_DATASETS_CACHE/{template.key}/cache-{7:016x}.arrow"
    done = command(jobs, "build", "--label", LABEL, "--", *shell, text)
    size = allocated(live(jobs)[0] / f"files/cache-{7:016x}.arrow")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"added results of map to {template.key}", f"{jobs.path}: 0 new, 0 as they were, {size} bytes more",
    ]  # fmt: skip
    assert command(jobs, "verify").returncode == 0 and jobs.left() == []


def test_by_store_build_neither_without_a_label_nor_into_the_sites(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """The same program, where results of map have no place, and where all users would be given them."""
    place = jobs.site.dir / "site-store"
    place.mkdir()
    shutil.chown(place, BOB)
    jobs.site.configure(store={**jobs.site.keys["store"], "site": str(place)})
    *shell, text = copying(template)
    text += f"; cp {map_in(template)} $HF_DATASETS_CACHE/{template.key}/cache-{7:016x}.arrow"
    for top, options, user in ((jobs.path, [], ALICE), (place, ["--site", "--label", LABEL], BOB), (place, ["--site"], BOB)):
        assert command(jobs, "build", *options, "--", *copying(template), user=user).returncode == 0
        (stored,) = top.glob(f"v1/{'label-' + LABEL if LABEL in options else 'default'}/[!.]*")
        before = fingerprint(stored / "files")
        done = command(jobs, "build", *options, "--", *shell, text, user=user)
        assert (done.returncode, done.stdout) == (0, f"{top}: 0 new, 1 as they were, 0 bytes more\n"), done.stderr
        assert list(stored.parent.iterdir()) == [stored] and fingerprint(stored / "files") == before


# -------------------------------------------------------------------------------------------------- as others change it


def test_a_build_that_was_replaced_meanwhile_takes_none(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """They belong to the old one, even where it is the same to the byte."""
    filled(jobs, template)
    add_map(jobs.begin(LABEL) / template.key, template)
    assert command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template)).returncode == 0
    before = jobs.print()
    assert jobs.end() == [] and jobs.print() == before


def test_a_build_that_was_retired_meanwhile_takes_none(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Nor one that is gone."""
    old = published(jobs, template)
    add_map(jobs.begin(LABEL) / template.key, template)
    used(old, 31)
    queue(jobs, running(time.time() + 3600, jobs.number))
    (old / "retired").touch()
    os.chown(old / "retired", UID, GID)
    assert jobs.end() == [] and jobs.stored(LABEL) == [old]
    os.unlink(old / "retired")
    add_map(jobs.begin(LABEL) / template.key, template)
    shutil.rmtree(old)
    assert jobs.end() == [] and jobs.stored(LABEL) == [] and jobs.left() == []


def test_what_is_rebuilt_takes_the_place_of_what_was_added_to_meanwhile(
    jobs: Jobs,  # noqa: F811
    template: Template,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`store build --rebuild` is about to publish when a job adds to the build that it replaces: the rebuilt one wins."""
    old = filled(jobs, template)
    cache = jobs.begin(LABEL)
    add_map(cache / template.key, template)
    mine = jobs.home / "mine"
    mine.mkdir()
    shutil.chown(mine, ALICE)
    template.put(mine)
    real = store._seal

    def work() -> None:
        def seal(*args: object) -> None:
            real(*args)  # type: ignore[arg-type]
            monkeypatch.setattr(store, "_seal", real)
            done = store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60)
            assert len(done.grown) == 1

        monkeypatch.setattr(store, "_seal", seal)
        done = store.publish(open_cache(mine), store.Publisher(str(jobs.path), LABEL, replace=True), time.monotonic() + 60)
        assert (done.keys, done.grown, done.there) == ([template.key], [], 0)

    assert ended_well(as_alice(work))
    (new,) = live(jobs)
    assert [path.name[-2:] for path in jobs.stored(LABEL)] == [".1", ".2", ".3"] and new.name.endswith(".3")
    assert names(new) == names(old) and (new / "files/dataset_info.json").stat().st_nlink == 1


def test_dated_when_a_job_of_an_older_generation_ends(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """It has used the build, whatever was added to that meanwhile; a rebuilt one it has not."""
    old = published(jobs, template)
    slow = jobs.begin(LABEL)
    number = jobs.number
    (slow / f"x_{template.key.replace('/', '_')}.lock").touch()
    add_map(jobs.begin(LABEL) / template.key, template)
    jobs.end()
    (new,) = live(jobs)
    os.utime(new, (1, 1))
    jobs.number = number
    assert jobs.end() == [] and new.stat().st_mtime > 1 and live(jobs) == [new] != [old]

    jobs.number += 1
    slow = jobs.begin(LABEL)
    (slow / f"x_{template.key.replace('/', '_')}.lock").touch()
    assert command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template)).returncode == 0
    (rebuilt,) = live(jobs)
    os.utime(rebuilt, (1, 1))
    assert jobs.end() == [] and rebuilt.stat().st_mtime == 1


def test_two_jobs_with_different_maps_hand_on_both(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """The second to end was linked to a generation that is retired by then: it is the same build."""
    published(jobs, template)
    first = jobs.begin(LABEL)
    number = jobs.number
    second = jobs.begin(LABEL)
    made = {add_map(cache / template.key, template, at).name for at, cache in enumerate((first, second))}
    assert jobs.end()[0]["files"] == 1
    jobs.number = number
    assert jobs.end()[0]["files"] == 1
    (new,) = live(jobs)
    assert made <= names(new) and new.name.endswith(".3")


@pytest.mark.parametrize("living", [True, False])
def test_publishers_readers_and_a_pruner_at_once(jobs: Jobs, template: Template, living: bool) -> None:  # noqa: F811
    """Eight jobs that each made a map of their own: all come into the store, and who reads meanwhile sees whole builds.

    Where Slurm is wrong about the living, what they are linked to goes: some of it may get lost, and nothing else.
    """
    oldest = time.time() if living else None
    published(jobs, template)
    go = jobs.site.dir / "go"
    caches = []
    for at in range(8):
        cache = linked(jobs, f"cache-{at}")
        add_map(cache / template.key, template, at)
        caches.append(cache)
    base = names(jobs.stored(LABEL)[0])

    def publisher(cache: Path) -> None:
        while not go.exists():
            pass
        done = store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60)
        assert (done.builds, done.files) == (1, 1) or not living, vars(done)
        assert (done.broken, done.late) == ({}, False)

    def reader(at: int) -> None:
        for turn in range(30):
            cache = jobs.home / f"reader-{at}-{turn}"
            if seed_once(jobs, cache):  # a live job's links hold: nothing that is retired goes while it lives
                found = {path.name for path in (cache / template.key).iterdir()}
                assert base <= found and links(cache / template.key)[1] == 0

    def pruner() -> None:
        for _ in range(30):
            found = list(store.look(str(jobs.path), UID))
            assert {one.problem for one in found if one.kind == "build" and not one.problem.startswith("[Errno 2]")} <= {""}
            verdicts = store.to_retire(found, time.time(), 1 << 40, 1e9, None)
            list(store.act(str(jobs.path), UID, [*verdicts, *store.to_delete(found, time.time(), oldest)], time.monotonic() + 9))

    pids = [as_alice(lambda cache=cache: publisher(cache)) for cache in caches]  # type: ignore[misc]
    pids += [as_alice(lambda at=at: reader(at)) for at in range(2)] + [as_alice(pruner)]  # type: ignore[misc]
    go.touch()
    assert {pid: ended_well(pid) for pid in pids} == dict.fromkeys(pids, True)
    (new,) = live(jobs)
    every = base | {f"cache-{at:016x}.arrow" for at in range(8)}
    assert names(new) == every or not living and base < names(new) <= every
    assert jobs.left() == [] and command(jobs, "verify").returncode == 0


# ------------------------------------------------------------------------------------------------- what goes wrong on the way


class Failing(Dying):
    """The os module, of which the n-th operation that changes something fails, and each one after it."""

    def __init__(self, at: int, number: int) -> None:
        super().__init__(at)
        self.number = number

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in ("mkdir", "rename", "write", "open", "link"):
            return real

        def counted(*args: object, **kwargs: object) -> object:
            flags = args[1] if name == "open" else os.O_CREAT
            if isinstance(flags, int) and flags & os.O_CREAT:
                self.left -= 1
                if self.left < 0:
                    raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)

        return counted


MODULES = (store, builds, map_results, linking, store_reading, dirfd, arrow, reaper, mounts)


def test_killed_at_every_step(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """There is the build as it was, or with what was added, and never another; what is left half made goes by pruning."""
    first = published(jobs, template)
    base = names(first)
    for step in range(400):
        cache = linked(jobs, f"cache-{step}")
        add_map(cache / template.key, template)

        def work(cache: Path = cache, step: int = step) -> None:
            dying = Dying(step)
            for module in MODULES:
                monkeypatch.setattr(module, "os", dying)
            store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60)

        status = os.waitpid(as_alice(work), 0)[1]
        assert whole_or_absent(jobs, template) in (1, 2)
        look = linked(jobs, f"again-{step}")
        seeded = {path.name for path in (look / template.key).iterdir()}
        (newest,) = {Path(os.readlink(path)).parents[1] for path in (look / template.key).iterdir()}
        assert seeded == names(newest) and base <= seeded and len(seeded) - len(base) == (newest != first)
        if status == 0:
            break
        if newest != first:  # it died behind the last rename
            shutil.rmtree(newest)
            (first / "retired").unlink(missing_ok=True)
        shutil.rmtree(cache)
    assert status == 0 and step > 20, "every step was one at which it died"
    assert jobs.left(), "they left something"
    later = time.time() + 3 * 86400
    pid = as_alice(
        lambda: list(
            store.act(str(jobs.path), UID, store.to_delete(store.look(str(jobs.path), UID), later, None), time.monotonic() + 60)
        )
    )
    assert ended_well(pid) and jobs.left() == [] and jobs.stored(LABEL) == [newest]
    assert names(newest) == seeded and command(jobs, "verify").returncode == 0


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_a_full_quota_at_every_step(
    jobs: Jobs,  # noqa: F811
    template: Template,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """The build stays as it was, whole and live, however far it came."""
    first = published(jobs, template)
    base = names(first)
    for step in range(100):
        cache = linked(jobs, f"cache-{step}")
        add_map(cache / template.key, template)

        def work(cache: Path = cache, step: int = step) -> None:
            failing = Failing(step, number)
            for module in MODULES:
                monkeypatch.setattr(module, "os", failing)
            store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60)

        status = os.waitpid(as_alice(work), 0)[1]
        newest = jobs.stored(LABEL)[-1]
        if newest != first:
            break
        assert status != 0 and names(first) == base and live(jobs) == [first]
        assert whole_or_absent(jobs, template) == 1
    assert step > 8 and names(newest) == base | {f"cache-{1:016x}.arrow"}


def test_a_filesystem_without_hard_links(
    jobs: Jobs,  # noqa: F811
    template: Template,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is added, with the reason, and other builds of the job are published all the same."""
    first = published(jobs, template)
    cache = linked(jobs, "cache")
    add_map(cache / template.key, template)
    template.put(cache, "json/other/0.0.0/x")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def work() -> None:
        monkeypatch.setattr(os, "link", refuse)
        done = store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60)
        assert done.keys == ["json/other/0.0.0/x"] and "no hard link" in done.broken[template.key]

    assert ended_well(as_alice(work))
    assert first in live(jobs) and len(jobs.stored(LABEL)) == 2 and jobs.left() == []


def test_a_store_on_another_filesystem(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Filled by `store build`: a job is linked to it, and cannot move anything there; the event says so."""
    with elsewhere(jobs):
        filled(jobs, template)
        before = jobs.print()
        add_map(jobs.begin(LABEL) / template.key, template)
        (event,) = jobs.end()
        assert (event["outcome"], event["reason"]) == ("refused", "other_filesystem")
        assert jobs.print().keys() == before.keys()


def test_no_time_no_adding(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Wherever time is up, it stops after a few looks at the clock, and there is the one generation or the other."""
    first = published(jobs, template)
    outcomes = []
    for ticks in range(400):
        cache = linked(jobs, f"cache-{ticks}")
        for at in range(4):
            add_map(cache / template.key, template, at)

        def work(cache: Path = cache, ticks: int = ticks) -> None:
            clock = Clock()
            clock.strftime, clock.gmtime = time.strftime, time.gmtime  # type: ignore[attr-defined]
            for module in (store, builds, map_results, linking, store_reading, arrow):
                monkeypatch.setattr(module, "time", clock)
            monkeypatch.setattr(store, "drop", lambda *_: None)  # has a time of its own
            done = store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), float(ticks))
            assert clock.now < ticks + 12 and (done.late or done.grown)

        assert ended_well(as_alice(work))
        outcomes.append(len(jobs.stored(LABEL)))
        assert whole_or_absent(jobs, template) == outcomes[-1]
        if outcomes[-1] == 2:
            break
    assert outcomes == [1] * (len(outcomes) - 1) + [2] and len(outcomes) > 20
    assert live(jobs) == [path for path in jobs.stored(LABEL) if path != first]


def test_no_budget(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """What does not fit the Epilog's is not added, and said; the cache goes all the same."""
    stored = published(jobs, template)
    jobs.site.configure(epilog={"budget": "0s", "deadline": "30s"})
    cache = jobs.begin(LABEL)
    add_map(cache / template.key, template)
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "budget")
    assert not cache.exists() and jobs.stored(LABEL) == [stored]


# ------------------------------------------------------------------------------------------------------ sizes and pruning


def test_counted_once_and_freed_when_the_last_name_goes(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """What two generations share counts as one in `list`, and is not said to be freed with the older one."""
    old = published(jobs, template)
    slow = jobs.begin(LABEL)
    number = jobs.number
    queue(jobs, running(time.time(), number))
    add_map(jobs.begin(LABEL) / template.key, template)
    jobs.end()
    (new,) = live(jobs)
    rows = json.loads(command(jobs, "list", "--json").stdout)
    assert sum(row["bytes"] for row in rows) == on_disk(jobs.path)
    assert {row["state"]: row["bytes"] for row in rows}["live"] == allocated(*(p for p in new.rglob("*") if p.is_file()))

    assert command(jobs, "prune").returncode == 0
    assert all(path.exists() for path in (slow / template.key).iterdir()), "a live job's links lead somewhere"
    assert old.exists()
    jobs.number = number
    jobs.end()
    queue(jobs, running(time.time() + 600, jobs.number + 1))
    alone = allocated(*(old / name for name in ("contents", "manifest.json", "retired")))
    before = on_disk(jobs.path)
    gone = [json.loads(line) for line in command(jobs, "prune", "--json").stdout.splitlines()]
    (freed,) = [one["bytes"] for one in gone if one["action"] == "delete"]
    assert freed == alone == before - on_disk(jobs.path) and jobs.stored(LABEL) == [new]
    assert command(jobs, "verify").returncode == 0


def test_max_size_holds_for_what_is_shared_once(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Two generations of a build that fits fit; beyond the limit, the longest unused goes, and its size is its own."""
    published(jobs, template)
    add_map(jobs.begin(LABEL) / template.key, template)
    jobs.end()
    queue(jobs, running(time.time() - 3600))
    limit = on_disk(jobs.path)
    (new,) = live(jobs)
    (jobs.stored(LABEL)[0] / "retired").unlink()  # whoever added was killed on the way
    used(new, 1)
    used(jobs.stored(LABEL)[0], 1)
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{limit}B"})
    assert command(jobs, "prune").returncode == 0 and live(jobs) == [new]
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{limit // 2}B"})
    assert command(jobs, "prune").returncode == 0 and live(jobs) == []


def test_no_more_than_the_store_may_hold(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """A build that is in use every day does not grow without end: the oldest results make room for the new ones."""
    stored = published(jobs, template)
    size = allocated(map_in(template))
    base = allocated(*(stored / "files").iterdir()) - size
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{base + 3 * size}B"})
    for at in range(1, 6):
        path = add_map(jobs.begin(LABEL) / template.key, template, at)
        os.utime(path, (time.time() + at, time.time() + at))
        assert jobs.end()[0]["files"] == 1
    (new,) = live(jobs)
    assert {name for name in names(new) if name.startswith("cache-")} == {f"cache-{at:016x}.arrow" for at in (3, 4, 5)}
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{base}B"})
    add_map(jobs.begin(LABEL) / template.key, template, 9)
    assert jobs.end() == [] and live(jobs) == [new]


def test_no_more_generations_than_pruning_keeps_up_with(
    jobs: Jobs,  # noqa: F811
    template: Template,  # noqa: F811
) -> None:
    """Those that wait to be deleted count; when they are gone, jobs add to the build again."""
    published(jobs, template)
    queue(jobs, running(time.time() - 3600))
    cache = jobs.begin(LABEL)
    for at in range(1, 40):
        add_map(cache / template.key, template, at)
        pid = as_alice(lambda: store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60))
        assert ended_well(pid)
    assert len(jobs.stored(LABEL)) == 32 and len(live(jobs)) == 1
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "budget")
    queue(jobs)
    assert command(jobs, "prune").returncode == 0 and len(jobs.stored(LABEL)) == 1
    add_map(jobs.begin(LABEL) / template.key, template, 40)
    assert jobs.end()[0]["outcome"] == "published" and live(jobs)[0].name.endswith(".33")


def file_of(size: int, mtime: int) -> map_results.File:
    return map_results.File(os.stat_result((0, 0, 0, 1, 0, 0, size, 0, 0, 0, 0.0, 0.0, 0.0, 0, mtime, 0, 512, size // 512, 0)))


def test_which_are_kept() -> None:
    """The newest first, as many and as much as may be; one that is too large keeps out none that is not."""
    files = {"a": file_of(512, 1), "b": file_of(2048, 2), "c": file_of(512, 3), "d": file_of(512, 3)}
    assert files["b"].allocated == 2048
    assert list(map_results.chosen(files, 9, float("inf"))) == ["c", "d", "b", "a"]
    assert list(map_results.chosen(files, 2, float("inf"))) == ["c", "d"]
    assert list(map_results.chosen(files, 9, 1536)) == ["c", "d", "a"]
    assert map_results.chosen(files, 9, 0) == {} == map_results.chosen(files, 9, -1)
