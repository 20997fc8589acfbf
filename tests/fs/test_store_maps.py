"""Results of `map` on top of a build that is linked to the store: some become a new generation of the build."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobcache.store import inventory, map_results, removal, staging
from support import os_calls
from support.damage import shards, zero_second_half
from support.home import fingerprint
from support.site_dir import ALICE, BOB
from support.store_jobs import (
    GID,
    LABEL,
    UID,
    as_alice,
    copying,
    count_whole_builds,
    filled,
    link_cache,
    prune_entries,
    publish,
    published,
    queue,
    running,
    site_store,
    store_command,
    store_elsewhere,
    succeeded,
    used,
)
from support.stores import Jobs, Template, links


def map_in(template: Template) -> Path:
    """Return the result of `map` in the template's build."""
    (found,) = (template.cache / template.key).glob("cache-*.arrow")
    return found


def add_map(build: Path, template: Template, at: int = 1) -> Path:
    """Leave a result of `map` in a job's build as `datasets` does: a whole file, renamed into place."""
    path = build / f"cache-{at:016x}.arrow"
    shutil.copyfile(map_in(template), path.with_name("tmpabc"))
    os.chown(path.with_name("tmpabc"), UID, GID)
    path.with_name("tmpabc").rename(path)
    return path


def linked_cache(jobs: Jobs, name: str) -> Path:
    """Return a cache of Alice's that is linked to the builds in the store."""
    cache = jobs.home / name
    assert succeeded(as_alice(lambda: link_cache(jobs, cache)))
    return cache


def allocated(*paths: Path) -> int:
    return sum(path.stat().st_blocks for path in paths) * 512


def on_disk(top: Path) -> int:
    """Return the bytes allocated to the files below `top`, each counted once."""
    found = {
        (info.st_dev, info.st_ino): info.st_blocks * 512 for info in (path.lstat() for path in top.rglob("*") if path.is_file())
    }
    return sum(found.values())


def live(jobs: Jobs) -> list[Path]:
    return [path for path in jobs.stored(LABEL) if not (path / "retired").exists()]


def names(build: Path) -> set[str]:
    return {path.name for path in (build / "files").iterdir()}


def test_next_job_gets_results_of_map(jobs: Jobs, template: Template) -> None:
    """The build's own files stay the very same ones, and the build keeps its date."""
    old = published(jobs, template)
    before = {path.name: path.stat() for path in (old / "files").iterdir()}
    made = add_map(jobs.begin(LABEL) / template.key, template)
    inode, size = made.stat().st_ino, allocated(made)
    (event,) = jobs.end()
    assert (event["outcome"], event["builds"], event["files"], event["bytes"]) == ("published", 1, 1, size)
    assert event.get("reason") is None and event["label"] == LABEL
    reaped = jobs.site.events("cache.reaped")[-1]
    assert reaped["files"] == len(before), "the links, without the file that moved into the store"

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
    done = store_command(jobs, "verify")
    assert (done.returncode, done.stdout) == (0, f"{jobs.path}: 2 of 2 builds are whole\n"), done.stderr

    cache = jobs.begin(LABEL)
    assert links(cache / template.key) == (len(before) + 1, 0)
    assert os.readlink(cache / template.key / made.name) == str(new / "files" / made.name)
    state = jobs.print()
    assert jobs.end() == [] and jobs.print() == state and jobs.left() == [], "a job without new results changes nothing"


def test_recomputed_map_does_not_replace_stored_result(jobs: Jobs, template: Template) -> None:
    """load_from_cache_file=False replaces the link in the job's cache. Results that a job cleans up stay in the store."""
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


def deleted(path: Path) -> None:
    path.unlink()


def a_link(path: Path) -> None:
    path.rename(path.parents[4] / "elsewhere.arrow")
    path.symlink_to(path.parents[4] / "elsewhere.arrow")
    os.lchown(path, UID, GID)


def a_second_name(path: Path) -> None:
    os.link(path, path.parents[4] / "elsewhere.arrow")


def of_another_user(path: Path) -> None:
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


def without_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-8] + bytes(8))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def dated_before_the_epoch(path: Path) -> None:
    os.utime(path, (-5, -5))


def another_name(path: Path) -> None:
    path.rename(path.with_name("result.arrow"))


def unfinished(path: Path) -> None:
    path.rename(path.with_name("tmpxyz"))


def locked(path: Path) -> None:
    path.rename(path.with_name(path.name + ".lock"))


SPOILED = [
    deleted, a_link, a_second_name, of_another_user, a_fifo, a_directory, cut, without_end, emptied, dated_before_the_epoch,
    another_name, unfinished, locked,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED)
def test_only_whole_results_of_the_job_are_added(jobs: Jobs, template: Template, spoil: Callable[[Path], None]) -> None:
    """A spoiled file alone adds nothing to the store; beside a whole one, only the whole one is added."""
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


def rebuilt(build: Path) -> None:
    """Replace the links by regular files, as force_redownload does."""
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


def another_path(build: Path) -> None:
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
     rebuilt, one_part_rewritten, one_part_gone, one_part_from_elsewhere, another_path, another_build, another_key,
        another_generation,
    ],
)  # fmt: skip
def test_results_are_added_only_to_the_linked_build(jobs: Jobs, template: Template, forge: Callable[[Path], None]) -> None:
    """Results beside links that the TaskProlog did not make may belong to another build. The store stays as it was."""
    published(jobs, template)
    before = jobs.print()
    build = jobs.begin(LABEL) / template.key
    add_map(build, template)
    forge(build)
    assert jobs.end() == [] and jobs.print() == before


def test_results_are_added_only_where_a_build_would_be_published(jobs: Jobs, template: Template) -> None:
    """Not from two nodes, from a kept cache, or without a label."""
    assert published(jobs, template).exists() and filled(jobs, template, "").exists()
    before = jobs.print()
    for label, begin, end in ((LABEL, {}, {"nodes": 2}), (LABEL, {"JOBCACHE": "keep"}, {}), ("", {}, {})):
        build = jobs.begin(label, **begin) / template.key
        assert links(build)[0]
        add_map(build, template)
        assert jobs.end(**end) == [] and jobs.print() == before


def test_results_are_never_added_to_build_of_site_store(jobs: Jobs, template: Template) -> None:
    """They enter a result set in the user's store (test_store_results.py)."""
    site_store(jobs, template)
    place = jobs.site.dir / "site-store"
    before = fingerprint(place)
    build = jobs.begin(LABEL) / template.key
    assert links(build)[0]
    add_map(build, template)
    assert [event["builds"] for event in jobs.end()] == [1] and fingerprint(place) == before
    assert [path.name.startswith("results-") for path in jobs.stored(LABEL)] == [True]
    shutil.chown(place, ALICE)
    for path in place.rglob("*"):
        shutil.chown(path, ALICE)
    jobs.site.configure(store={"user": None, "site": str(place)})
    build = jobs.begin(LABEL) / template.key
    add_map(build, template)
    assert jobs.end() == [] and len(list((place / "v1/default").iterdir())) == 1, "not even if the user owns the site's store"


def test_damaged_build_in_store_is_not_extended(jobs: Jobs, template: Template) -> None:
    """The event has the reason."""
    stored = published(jobs, template)
    add_map(jobs.begin(LABEL) / template.key, template)
    zero_second_half(stored / "files")
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "damaged") and "in the store" in event["error"]
    assert jobs.stored(LABEL) == [stored] and jobs.left() == []


def test_store_build_adds_results_of_edited_program(jobs: Jobs, template: Template) -> None:
    """The edited program runs once more."""
    filled(jobs, template)
    *shell, text = copying(template)
    text += f"; cp {map_in(template)} $HF_DATASETS_CACHE/{template.key}/cache-{7:016x}.arrow"
    done = store_command(jobs, "build", "--label", LABEL, "--", *shell, text)
    size = allocated(live(jobs)[0] / f"files/cache-{7:016x}.arrow")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"added results of map to {template.key}", f"{jobs.path}: 0 new, 0 unchanged, {size} bytes added",
    ]  # fmt: skip
    assert store_command(jobs, "verify").returncode == 0 and jobs.left() == []


def test_store_build_adds_no_results_without_label_or_to_site_store(jobs: Jobs, template: Template) -> None:
    """A store without a label holds no results of `map`, and all users would get those in the site's store."""
    place = jobs.site.dir / "site-store"
    place.mkdir()
    shutil.chown(place, BOB)
    jobs.site.configure(store={**jobs.site.keys["store"], "site": str(place)})
    *shell, text = copying(template)
    text += f"; cp {map_in(template)} $HF_DATASETS_CACHE/{template.key}/cache-{7:016x}.arrow"
    for top, options, user in ((jobs.path, [], ALICE), (place, ["--site", "--label", LABEL], BOB), (place, ["--site"], BOB)):
        assert store_command(jobs, "build", *options, "--", *copying(template), user=user).returncode == 0
        (stored,) = top.glob(f"v1/{'label-' + LABEL if LABEL in options else 'default'}/[!.]*")
        before = fingerprint(stored / "files")
        done = store_command(jobs, "build", *options, "--", *shell, text, user=user)
        assert (done.returncode, done.stdout) == (0, f"{top}: 0 new, 1 unchanged, 0 bytes added\n"), done.stderr
        assert list(stored.parent.iterdir()) == [stored] and fingerprint(stored / "files") == before


# -------------------------------------------------------------------------------------------------- concurrent changes


def test_replaced_build_is_not_extended(jobs: Jobs, template: Template) -> None:
    """The results belong to the old build, even if the new one has the same bytes."""
    filled(jobs, template)
    add_map(jobs.begin(LABEL) / template.key, template)
    assert store_command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template)).returncode == 0
    before = jobs.print()
    assert jobs.end() == [] and jobs.print() == before


def test_retired_or_deleted_build_is_not_extended(jobs: Jobs, template: Template) -> None:
    """The job ends after the build was retired or deleted."""
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


def test_rebuild_replaces_build_that_a_job_extends_meanwhile(
    jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job extends the build just before `store build --rebuild` publishes its own: the rebuilt one wins."""
    old = filled(jobs, template)
    cache = jobs.begin(LABEL)
    add_map(cache / template.key, template)
    rebuilt_cache = jobs.home / "rebuilt"
    rebuilt_cache.mkdir()
    shutil.chown(rebuilt_cache, ALICE)
    template.put(rebuilt_cache)
    real = staging.seal

    def work() -> None:
        def seal(*args: object) -> None:
            real(*args)  # type: ignore[arg-type]
            monkeypatch.setattr(staging, "seal", real)
            assert len(publish(jobs, cache).extended) == 1

        monkeypatch.setattr(staging, "seal", seal)
        done = publish(jobs, rebuilt_cache, replace=True)
        assert (done.added, done.extended, done.already_stored) == ([template.key], [], 0)

    assert succeeded(as_alice(work))
    (new,) = live(jobs)
    assert [path.name[-2:] for path in jobs.stored(LABEL)] == [".1", ".2", ".3"] and new.name.endswith(".3")
    assert names(new) == names(old) and (new / "files/dataset_info.json").stat().st_nlink == 1


def test_job_of_older_generation_dates_the_newest(jobs: Jobs, template: Template) -> None:
    """The job has used the build, also if results were added meanwhile. It has not used a rebuilt build."""
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
    assert store_command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template)).returncode == 0
    (rebuilt,) = live(jobs)
    os.utime(rebuilt, (1, 1))
    assert jobs.end() == [] and rebuilt.stat().st_mtime == 1


def test_results_of_two_jobs_are_both_added(jobs: Jobs, template: Template) -> None:
    """The second job is linked to a generation that is retired when the job ends: it is the same build."""
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
def test_publishers_readers_and_a_pruner_at_once(jobs: Jobs, template: Template, living: bool) -> None:
    """Eight jobs with a result of their own: the store gets all of them, and readers find whole builds.

    If Slurm does not know the live jobs, the builds that they are linked to are deleted. Some results may be lost.
    """
    oldest_job = time.time() if living else None
    published(jobs, template)
    go = jobs.site.dir / "go"
    caches = []
    for at in range(8):
        cache = linked_cache(jobs, f"cache-{at}")
        add_map(cache / template.key, template, at)
        caches.append(cache)
    base = names(jobs.stored(LABEL)[0])

    def publisher(cache: Path) -> None:
        while not go.exists():
            pass
        done = publish(jobs, cache)
        assert (done.builds, done.files) == (1, 1) or not living, vars(done)
        assert (done.broken, done.late) == ({}, False)

    def reader(at: int) -> None:
        for turn in range(30):
            cache = jobs.home / f"reader-{at}-{turn}"
            if link_cache(jobs, cache):  # no retired build is deleted while a live job may have links to it
                found = {path.name for path in (cache / template.key).iterdir()}
                assert base <= found and links(cache / template.key)[1] == 0

    def pruner() -> None:
        for _ in range(30):
            problems = {entry.problem for entry in inventory.entries(str(jobs.path), UID) if entry.kind == "build"}
            assert {problem for problem in problems if not problem.startswith("[Errno 2]")} <= {""}
            prune_entries(jobs, time.time(), oldest_job, retire=True)

    pids = [as_alice(lambda cache=cache: publisher(cache)) for cache in caches]  # type: ignore[misc]
    pids += [as_alice(lambda at=at: reader(at)) for at in range(2)] + [as_alice(pruner)]  # type: ignore[misc]
    go.touch()
    assert {pid: succeeded(pid) for pid in pids} == dict.fromkeys(pids, True)
    (new,) = live(jobs)
    every = base | {f"cache-{at:016x}.arrow" for at in range(8)}
    assert names(new) == every or not living and base < names(new) <= every
    assert jobs.left() == [] and store_command(jobs, "verify").returncode == 0


# ------------------------------------------------------------------------------------------------- interruption and errors


def test_kill_at_any_step_leaves_old_or_extended_build(jobs: Jobs, template: Template) -> None:
    """No other state is visible. A pruning deletes unfinished entries."""
    first = published(jobs, template)
    base = names(first)
    for step in range(400):
        cache = linked_cache(jobs, f"cache-{step}")
        add_map(cache / template.key, template)

        def work(cache: Path = cache, step: int = step) -> None:
            os_calls.kill_at(step)
            publish(jobs, cache)

        status = os.waitpid(as_alice(work), 0)[1]
        assert count_whole_builds(jobs) in (1, 2)
        look = linked_cache(jobs, f"again-{step}")
        seeded = {path.name for path in (look / template.key).iterdir()}
        (newest,) = {Path(os.readlink(path)).parents[1] for path in (look / template.key).iterdir()}
        assert seeded == names(newest) and base <= seeded and len(seeded) - len(base) == (newest != first)
        if status == 0:
            break
        if newest != first:  # killed after the last rename
            shutil.rmtree(newest)
            (first / "retired").unlink(missing_ok=True)
        shutil.rmtree(cache)
    assert status == 0 and step > 60, f"killed at {step} steps"
    assert jobs.left(), "killed publications left debris"
    assert succeeded(as_alice(lambda: prune_entries(jobs, time.time() + 3 * 86400)))
    assert jobs.left() == [] and jobs.stored(LABEL) == [newest]
    assert names(newest) == seeded and store_command(jobs, "verify").returncode == 0


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_full_quota_at_any_step_leaves_build_as_it_was(
    jobs: Jobs,
    template: Template,
    number: int,
) -> None:
    """The build stays whole and live."""
    first = published(jobs, template)
    base = names(first)
    for step in range(100):
        cache = linked_cache(jobs, f"cache-{step}")
        add_map(cache / template.key, template)

        def work(cache: Path = cache, step: int = step) -> None:
            os_calls.fail_from(step, number)
            publish(jobs, cache)

        status = os.waitpid(as_alice(work), 0)[1]
        newest = jobs.stored(LABEL)[-1]
        if newest != first:
            break
        assert status != 0 and names(first) == base and live(jobs) == [first]
        assert count_whole_builds(jobs) == 1
    assert step > 12 and names(newest) == base | {f"cache-{1:016x}.arrow"}


def test_filesystem_without_hard_links_adds_nothing(
    jobs: Jobs,
    template: Template,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result has the reason, and other builds of the job are published."""
    first = published(jobs, template)
    cache = linked_cache(jobs, "cache")
    add_map(cache / template.key, template)
    template.put(cache, "json/other/0.0.0/x")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def work() -> None:
        monkeypatch.setattr(os, "link", refuse)
        done = publish(jobs, cache)
        assert done.added == ["json/other/0.0.0/x"] and "hard link" in done.broken[template.key]

    assert succeeded(as_alice(work))
    assert first in live(jobs) and len(jobs.stored(LABEL)) == 2 and jobs.left() == []


def test_store_on_another_filesystem_is_not_extended(jobs: Jobs, template: Template) -> None:
    """`store build` has filled it. A job is linked to it and cannot move anything into it; the event has the reason."""
    with store_elsewhere(jobs):
        filled(jobs, template)
        before = jobs.print()
        add_map(jobs.begin(LABEL) / template.key, template)
        (event,) = jobs.end()
        assert (event["outcome"], event["reason"]) == ("refused", "other_filesystem")
        assert jobs.print().keys() == before.keys()


def test_adding_stops_at_any_deadline(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read a few times after the deadline, and the store has the old generation or the new one."""
    first = published(jobs, template)
    outcomes = []
    for ticks in range(400):
        cache = linked_cache(jobs, f"cache-{ticks}")
        for at in range(4):
            add_map(cache / template.key, template, at)

        def work(cache: Path = cache, ticks: int = ticks) -> None:
            clock = os_calls.Clock()
            clock.install()
            monkeypatch.setattr(removal, "drop", lambda *_: None)  # a deletion has a deadline of its own
            done = publish(jobs, cache, float(ticks))
            assert clock.now < ticks + 12 and (done.late or done.extended)

        assert succeeded(as_alice(work))
        outcomes.append(len(jobs.stored(LABEL)))
        assert count_whole_builds(jobs) == outcomes[-1]
        if outcomes[-1] == 2:
            break
    assert outcomes == [1] * (len(outcomes) - 1) + [2] and len(outcomes) > 60
    assert live(jobs) == [path for path in jobs.stored(LABEL) if path != first]


def test_adds_nothing_beyond_epilog_budget(jobs: Jobs, template: Template) -> None:
    """The event has the reason, and the Epilog deletes the cache."""
    stored = published(jobs, template)
    jobs.site.configure(epilog={"budget": "0s", "deadline": "30s"})
    cache = jobs.begin(LABEL)
    add_map(cache / template.key, template)
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "budget")
    assert not cache.exists() and jobs.stored(LABEL) == [stored]


# ------------------------------------------------------------------------------------------------------ sizes and pruning


def test_shared_files_count_once_and_are_freed_with_last_name(jobs: Jobs, template: Template) -> None:
    """Files that two generations share count once in `list`, and are not reported as deleted with the older one."""
    old = published(jobs, template)
    slow = jobs.begin(LABEL)
    number = jobs.number
    queue(jobs, running(time.time(), number))
    add_map(jobs.begin(LABEL) / template.key, template)
    jobs.end()
    (new,) = live(jobs)
    rows = json.loads(store_command(jobs, "list", "--json").stdout)
    assert sum(row["bytes"] for row in rows) == on_disk(jobs.path)
    assert {row["state"]: row["bytes"] for row in rows}["live"] == allocated(*(p for p in new.rglob("*") if p.is_file()))

    assert store_command(jobs, "prune").returncode == 0
    assert all(path.exists() for path in (slow / template.key).iterdir()), "the links of a live job work"
    assert old.exists()
    jobs.number = number
    jobs.end()
    queue(jobs, running(time.time() + 600, jobs.number + 1))
    alone = allocated(*(old / name for name in ("contents", "manifest.json", "retired")))
    before = on_disk(jobs.path)
    gone = [json.loads(line) for line in store_command(jobs, "prune", "--json").stdout.splitlines()]
    (freed,) = [one["bytes"] for one in gone if one["action"] == "delete"]
    assert freed == alone == before - on_disk(jobs.path) and jobs.stored(LABEL) == [new]
    assert store_command(jobs, "verify").returncode == 0


def test_max_size_counts_shared_files_once(jobs: Jobs, template: Template) -> None:
    """Two generations of a build fit where the build fits. Beyond the limit, the build unused for longest is retired."""
    published(jobs, template)
    add_map(jobs.begin(LABEL) / template.key, template)
    jobs.end()
    queue(jobs, running(time.time() - 3600))
    limit = on_disk(jobs.path)
    (new,) = live(jobs)
    (jobs.stored(LABEL)[0] / "retired").unlink()  # as if the publisher had been killed before
    used(new, 1)
    used(jobs.stored(LABEL)[0], 1)
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{limit}B"})
    assert store_command(jobs, "prune").returncode == 0 and live(jobs) == [new]
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{limit // 2}B"})
    assert store_command(jobs, "prune").returncode == 0 and live(jobs) == []


def test_extended_build_stays_within_max_size(jobs: Jobs, template: Template) -> None:
    """The oldest results make room for new ones, so a build that is used every day stays bounded."""
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


def test_number_of_generations_is_limited_until_pruning(
    jobs: Jobs,
    template: Template,
) -> None:
    """Generations that wait for deletion count. After their deletion, jobs extend the build again."""
    published(jobs, template)
    queue(jobs, running(time.time() - 3600))
    cache = jobs.begin(LABEL)
    for at in range(1, 40):
        add_map(cache / template.key, template, at)
        assert succeeded(as_alice(lambda: publish(jobs, cache)))
    assert len(jobs.stored(LABEL)) == 32 and len(live(jobs)) == 1
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "budget")
    queue(jobs)
    assert store_command(jobs, "prune").returncode == 0 and len(jobs.stored(LABEL)) == 1
    add_map(jobs.begin(LABEL) / template.key, template, 40)
    assert jobs.end()[0]["outcome"] == "published" and live(jobs)[0].name.endswith(".33")


def file_of(size: int, mtime: int) -> map_results.File:
    return map_results.File(os.stat_result((0, 0, 0, 1, 0, 0, size, 0, 0, 0, 0.0, 0.0, 0.0, 0, mtime, 0, 512, size // 512, 0)))


def test_select_keeps_newest_results_that_fit() -> None:
    """A result that is too large does not exclude smaller ones."""
    files = {"a": file_of(512, 1), "b": file_of(2048, 2), "c": file_of(512, 3), "d": file_of(512, 3)}
    assert files["b"].allocated == 2048
    assert list(map_results.select(files, 9, float("inf"))) == ["c", "d", "b", "a"]
    assert list(map_results.select(files, 2, float("inf"))) == ["c", "d"]
    assert list(map_results.select(files, 9, 1536)) == ["c", "d", "a"]
    assert map_results.select(files, 9, 0) == {} == map_results.select(files, 9, -1)
