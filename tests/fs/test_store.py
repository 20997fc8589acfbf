"""A store that jobs fill and read: which builds enter it, which builds never do, and which are linked into caches."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobcache.cache import linking, store_names
from jobcache.store import builds, inventory, removal, retention
from support import os_calls
from support.damage import DAMAGE, delete_info
from support.in_container import MAPPINGS, Container
from support.site_dir import ALICE, BOB, entries
from support.store_jobs import (
    LABEL,
    UID,
    as_alice,
    count_whole_builds,
    link_cache,
    open_cache,
    prune_entries,
    publish,
    published,
    site_store,
    store_elsewhere,
    succeeded,
)
from support.stores import Jobs, Template, links

# --------------------------------------------------------------------------------------------------------- publishing


def test_next_job_is_linked_to_build_of_previous_job(jobs: Jobs, template: Template) -> None:
    """The next job's cache has real directories, one link for each file, and the directories' mtimes."""
    first = jobs.begin(LABEL)
    build = template.put(first)
    names = sorted(path.name for path in build.iterdir())
    before = {path.name: path.stat() for path in [build, *build.iterdir()]}
    (event,) = jobs.end()
    assert (event["builds"], event["files"], event["label"]) == (1, len(names), LABEL)
    assert event["bytes"] == sum(before[name].st_blocks * 512 for name in names)
    (reaped,) = jobs.site.events("cache.reaped")
    assert (reaped["bytes"], reaped["files"]) == (0, 0), "files that moved into the store are not reported as deleted"

    (stored,) = jobs.stored(LABEL)
    assert {path.name: path.stat().st_ino for path in (stored / "files").iterdir()} == {n: before[n].st_ino for n in names}
    assert (stored / "files").stat().st_mtime_ns == before[build.name].st_mtime_ns
    assert {path.stat().st_mode & 0o222 for path in (stored / "files").rglob("*")} == {0}
    manifest = json.loads((stored / "manifest.json").read_text())
    assert (manifest["key"], manifest["rows"], manifest["label"]) == (template.key, template.rows, LABEL)
    assert (manifest["job_id"], manifest["cluster"], manifest["files"]) == (jobs.number, "test", len(names))

    second = jobs.begin(LABEL)
    seeded = second / template.key
    assert links(seeded) == (len(names), 0) and not seeded.is_symlink() and not seeded.parent.is_symlink()
    assert seeded.stat().st_mtime_ns == before[build.name].st_mtime_ns
    assert {os.readlink(path) for path in seeded.iterdir()} == {str(stored / "files" / name) for name in names}
    (event,) = jobs.seeded()
    assert (event["builds"], event["files"], event["outcome"]) == (1, len(names), "seeded")
    assert event["bytes"] == sum(before[name].st_size for name in names)
    record = json.loads((second / ".jobcache/job.json").read_text())
    assert record["label"] == LABEL and record["seeded"]["builds"] == 1
    before_end = jobs.print()
    assert jobs.end() == [] and jobs.print() == before_end, "a link is never published"
    assert jobs.left() == [] and jobs.site.debris() == []


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("is_site", [False, True])
def test_builds_are_linked_in_a_container_with_mapped_uids(jobs: Jobs, template: Template, mapping: str, is_site: bool) -> None:
    """In the container, the owner of a store can have another uid than outside."""
    mounts = [(jobs.site.scratch, jobs.site.scratch)]
    if is_site:
        site_store(jobs, template)
        mounts.append((jobs.site.dir / "site-store",) * 2)
    else:
        published(jobs, template)
    inside = Container(jobs.site, mapping=mapping, mounts=mounts)
    cache = inside.task_prolog(7, JOBCACHE_STORE=LABEL).cache
    assert cache and links(Path(cache) / template.key)[1] == 0
    jobs.site.epilog(7)
    assert not Path(cache).exists(), jobs.site.events()


def test_publishes_nothing_without_valid_label_or_store(jobs: Jobs, template: Template) -> None:
    """Without a label, with an invalid one or without a store, the build is deleted with its cache."""
    template.put(jobs.begin())
    assert jobs.end() == [] and not jobs.path.exists()
    for label in ("../x", ".x", "a/b", "x" * 65, "a b", "ä", "x\ny", "$(touch /tmp/x)", "x" * 120_000):
        template.put(jobs.begin(label))
        assert jobs.end() == [] and not jobs.path.exists(), label
    jobs.site.configure(store={"user": None})
    template.put(jobs.begin(LABEL))
    assert jobs.end() == [] and not jobs.path.exists()


def test_run_outside_of_jobs_links_and_dates_builds(jobs: Jobs, template: Template) -> None:
    """`jobcache run` links the same builds, dates those that were used, and changes nothing else in the store."""
    stored = published(jobs, template)
    before = jobs.print()
    os.utime(stored, (1, 1))
    lock = f"x_{template.key.replace('/', '_')}.lock"
    script = f'cd "$HF_DATASETS_CACHE"; find "{template.key}" -type l | wc -l; touch "{lock}"'
    done = subprocess.run(
        [sys.executable, "-m", "jobcache.cli", "run", "--config", str(jobs.site.dir / "jobcache.yaml"), "--", "sh", "-c", script],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"], "JOBCACHE_STORE": LABEL, "HOME": str(jobs.home)},
        user=UID, group=pwd.getpwnam(ALICE).pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == len(list((stored / "files").iterdir()))
    assert stored.stat().st_mtime > 1 and jobs.print().keys() == before.keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_run_links_builds_prevents_command(jobs: Jobs, template: Template, number: signal.Signals) -> None:
    """A signal while `jobcache run` links builds: the command does not run, and no cache is left."""
    fill_store(published(jobs, template), 1500)
    argv = [sys.executable, "-m", "jobcache.cli", "run", "--config", str(jobs.site.dir / "jobcache.yaml"), "--", "echo", "ran"]
    with subprocess.Popen(
        argv, env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"], "JOBCACHE_STORE": LABEL, "HOME": str(jobs.home)},
        user=UID, group=pwd.getpwnam(ALICE).pw_gid, extra_groups=[], cwd="/", stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        while not list(jobs.path.parent.glob(".jobcache-new-*/json/many-1")):
            assert process.poll() is None
        process.send_signal(number)
        assert (process.wait(60), process.stdout.read()) == (128 + number, "")
    assert entries(jobs.path.parent) == [jobs.path.name]


def test_invalid_label_is_reported_and_default_builds_are_linked(jobs: Jobs, template: Template) -> None:
    """The job has its cache and the builds of the default section."""
    published(jobs, template)
    shutil.copytree(jobs.path / f"v1/label-{LABEL}", jobs.path / "v1/default", copy_function=shutil.copy2)
    for path in [jobs.path / "v1/default", *(jobs.path / "v1/default").rglob("*")]:
        shutil.chown(path, ALICE)
    cache = jobs.begin(f"../label-{LABEL}")
    refused, seeded = sorted(jobs.seeded(), key=lambda event: event["outcome"])
    assert (refused["outcome"], refused["reason"]) == ("refused", "bad_name") and "JOBCACHE_STORE" in refused["error"]
    assert seeded["builds"] == 1 and links(cache / template.key)[0] > 0


def test_publishes_nothing_from_cache_of_two_nodes(jobs: Jobs, template: Template) -> None:
    """Also if Slurm no longer knows the number of nodes, and for each node that can be the last."""
    for first, last in (("n1", "n2"), ("n2", "n1")):
        cache = jobs.begin(LABEL)
        jobs.site.task_prolog(jobs.number, node="n2", step="0", JOBCACHE_STORE=LABEL)
        template.put(cache)
        jobs.site.epilog(jobs.number, node=first, SLURM_JOB_NUM_NODES="")
        assert cache.exists()
        assert jobs.end(node=last, SLURM_JOB_NUM_NODES="") == []
        assert not cache.exists() and not jobs.path.exists()
    template.put(jobs.begin(LABEL))
    assert jobs.end(nodes=2) == [] and not jobs.path.exists()


def test_publishes_nothing_from_kept_cache(jobs: Jobs, template: Template) -> None:
    """JOBCACHE=keep: the cache stays as it is."""
    cache = jobs.begin(LABEL, JOBCACHE="keep")
    build = template.put(cache)
    assert jobs.end() == [] and (build / "dataset_info.json").exists() and not jobs.path.exists()


def test_existing_build_is_not_replaced_by_job(jobs: Jobs, template: Template) -> None:
    """A build that the store has stays as it is."""
    stored = published(jobs, template)
    before = jobs.print()
    cache = jobs.begin(LABEL)
    shutil.rmtree(cache / template.key)  # as force_redownload does
    template.put(cache)
    assert jobs.end() == [] and jobs.stored(LABEL) == [stored] and jobs.print() == before


def test_publishes_nothing_beyond_epilog_budget(jobs: Jobs, template: Template) -> None:
    """The Epilog reports the reason and deletes the cache."""
    jobs.site.configure(epilog={"budget": "0s", "deadline": "30s"})
    cache = jobs.begin(LABEL)
    template.put(cache)
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "budget")
    assert not cache.exists() and jobs.stored(LABEL) == []


def test_publishes_only_whole_files_of_the_build(jobs: Jobs, template: Template) -> None:
    """Locks, unfinished files, notes, links and a damaged result of `map` stay out of the store."""
    cache = jobs.begin(LABEL)
    build = template.put(cache)
    names = {path.name for path in build.iterdir()}
    for name in ("x.lock", "tmpabc", "notes.txt", "cache-0000000000000000.arrow"):
        (build / name).write_text("x")
    whole = next(path for path in build.glob("cache-*.arrow") if path.name in names)
    shutil.copy2(whole, build / "cache-two\nlines.arrow")  # the user can choose the name
    (build / "cache-1111111111111111.arrow").symlink_to("/etc/passwd")
    os.mkfifo(build / "cache-2222222222222222.arrow")
    template.put(cache, f"{template.key}.incomplete")  # `datasets` was killed just before it renamed the directory
    template.put(cache, "generator/default-0123456789abcdef/0.0.0.incomplete")
    jobs.site.fill(cache, f"{template.key}_builder.lock")
    for path in build.iterdir():
        os.lchown(path, *cache.stat()[4:6])
    jobs.end()
    (stored,) = jobs.stored(LABEL)
    assert {path.name for path in (stored / "files").iterdir()} == names
    seeded = jobs.begin(LABEL)
    assert links(seeded / template.key) == (len(names), 0)
    assert [str(p.relative_to(seeded)) for p in seeded.rglob("*") if p.name.endswith((".lock", ".incomplete"))] == []


def test_node_and_task_directories_are_linked_and_published(jobs: Jobs, template: Template) -> None:
    """With scope node or task, each new directory in the cache begins with the store's builds."""
    cache = jobs.begin(LABEL, JOBCACHE_SCOPE="node")
    assert cache.name == "node-n1"
    template.put(cache)
    assert jobs.end()[0]["builds"] == 1
    cache = jobs.begin(LABEL, JOBCACHE_SCOPE="task")
    assert cache.name == "batch" and links(cache / template.key)[0] > 0
    for rank in ("0", "1"):
        exported = jobs.site.task_prolog(
            jobs.number, step="3", SLURM_PROCID=rank, SLURM_LOCALID=rank, JOBCACHE_STORE=LABEL, JOBCACHE_SCOPE="task"
        )
        assert exported.cache and exported.cache.endswith(f"step-3-task-{rank}")
        assert links(Path(exported.cache) / template.key)[0] > 0
    other = jobs.site.task_prolog(jobs.number, node="n2", step="4", JOBCACHE_STORE=LABEL, JOBCACHE_SCOPE="node")
    assert other.cache and links(Path(other.cache) / template.key)[0] > 0
    assert len(jobs.seeded()) == 4


def test_directory_of_another_home_is_linked_and_published(jobs: Jobs, template: Template) -> None:
    """A step with another HF_HOME has a directory of its own, which begins with the store's builds."""

    def begin() -> Path:
        cache = jobs.begin(LABEL)
        step = jobs.site.task_prolog(jobs.number, step="0", JOBCACHE_STORE=LABEL, HF_HOME="/nonexistent+x")
        assert step.cache and Path(step.cache) == cache / "home+nonexistent%2Bx"
        return Path(step.cache)

    template.put(begin())
    assert jobs.end()[0]["builds"] == 1
    assert links(begin() / template.key)[0] > 0


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_build_is_not_published(jobs: Jobs, template: Template, damage: Callable[[Path], None]) -> None:
    """The event has the reason. A build without an info is unfinished for `datasets` as well, and there is no event."""
    damage(template.put(jobs.begin(LABEL)))
    events = jobs.end()
    assert jobs.stored(LABEL) == [] and jobs.left() == []
    if damage is delete_info:
        assert events == []
    else:
        (event,) = events
        assert (event["outcome"], event["reason"], event["level"]) == ("skipped", "damaged", "warning")
        assert event["error"].startswith(template.key)


@pytest.mark.parametrize("damage", DAMAGE)
def test_build_damaged_in_store_is_not_linked(jobs: Jobs, template: Template, damage: Callable[[Path], None]) -> None:
    """A server's crash may damage it and keep sizes and times. Other builds are linked."""
    stored = published(jobs, template)
    other = template.key.replace("json/default", "json/other")
    template.put(jobs.begin(LABEL), other)
    jobs.end()
    damage(stored / "files")
    cache = jobs.begin(LABEL)
    assert not (cache / template.key).exists() and links(cache / other)[0] > 0
    assert jobs.seeded()[0]["builds"] == 1


# ------------------------------------------------------------------------------------------------------ untrusted stores


def test_symlink_in_place_of_store_is_refused(jobs: Jobs, template: Template) -> None:
    """Nothing is read or written at its target."""
    elsewhere = jobs.site.dir / "elsewhere"
    elsewhere.mkdir()
    shutil.chown(elsewhere, ALICE)
    jobs.path.parent.mkdir(parents=True)
    for path in (jobs.path.parent.parent, jobs.path.parent):
        shutil.chown(path, ALICE)
    jobs.path.symlink_to(elsewhere)
    os.lchown(jobs.path, *elsewhere.stat()[4:6])
    template.put(jobs.begin(LABEL))
    assert {event["reason"] for event in jobs.seeded()} == {"not_directory"}
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("refused", "not_directory")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("part", ["", "v1", f"v1/label-{LABEL}"])
@pytest.mark.parametrize("how", ["symlink", "foreign", "writable"])
def test_store_that_others_can_change_is_refused(jobs: Jobs, template: Template, part: str, how: str) -> None:
    """At every level: a link, another user's directory, a directory that others may write."""
    published(jobs, template)
    place = jobs.path / part
    if how == "symlink":
        aside = jobs.site.dir / "aside"
        place.rename(aside)
        place.symlink_to(aside)
        os.lchown(place, *aside.stat()[4:6])
    elif how == "foreign":
        shutil.chown(place, BOB)
        place.chmod(0o777)
    else:
        place.chmod(0o770)
    cache = jobs.begin(LABEL)
    assert not (cache / template.key).exists()
    reason = {"symlink": "not_directory"}.get(how, how)
    assert reason in {event.get("reason") for event in jobs.seeded()}
    before = {str(path) for path in jobs.site.dir.rglob("*") if "hf-datasets" not in str(path)}
    template.put(cache)
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("refused", reason)
    assert {str(path) for path in jobs.site.dir.rglob("*") if "hf-datasets" not in str(path)} == before


def forge_key(build: Path, key: str) -> None:
    text = (build / "contents").read_text()
    (build / "contents").write_text(key + text[text.index("\n") :])


FORGERIES = {
    "a key that leads out": lambda build: forge_key(build, "../../../x"),
    "an absolute key": lambda build: forge_key(build, "/tmp/a/b/c"),
    "a key in the cache's own directory": lambda build: forge_key(build, ".jobcache/nodes/a/b"),
    "a key with two dots": lambda build: forge_key(build, "json/../../x"),
    "a file that does not exist": lambda build: (build / "contents").write_text(
        (build / "contents").read_text().replace("\n", "\n1 1 x.arrow\n", 1)
    ),
    "a file outside of the build": lambda build: (build / "contents").write_text(
        (build / "contents").read_text().replace("dataset_info.json", "../../etc/passwd")
    ),
    "no contents": lambda build: (build / "contents").unlink(),
    "empty contents": lambda build: (build / "contents").write_text(""),
    "contents cut short": lambda build: (build / "contents").write_text((build / "contents").read_text()[:-9]),
    "contents of zeros": lambda build: (build / "contents").write_bytes(bytes(300)),
    "contents that never end": lambda build: ((build / "contents").unlink(), os.mkfifo(build / "contents")),
    "contents elsewhere": lambda build: (
        (build / "contents").rename(build.parent.parent / "c"),
        (build / "contents").symlink_to(build.parent.parent / "c"),
    ),
    "files elsewhere": lambda build: (
        (build / "files").rename(build.parent.parent / "f"),
        (build / "files").symlink_to(build.parent.parent / "f"),
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_build_is_not_linked(jobs: Jobs, template: Template, forgery: str) -> None:
    """The new cache has no entry but jobcache's own."""
    stored = published(jobs, template)
    (stored / "contents").chmod(0o644)
    FORGERIES[forgery](stored)
    for path in [*stored.iterdir()]:
        os.lchown(path, *stored.stat()[4:6])
    cache = jobs.begin(LABEL)
    assert [path.name for path in cache.iterdir()] == [".jobcache"]
    assert jobs.seeded() == []


def test_invalid_label_in_forged_record_publishes_nothing(jobs: Jobs, template: Template) -> None:
    """The user can change the label in the record; an invalid one is ignored."""
    for label in ("../../bob", "", 7, None, ["x"], "x/y"):
        cache = jobs.begin(LABEL)
        record = json.loads((cache / ".jobcache/job.json").read_text())
        (cache / ".jobcache/job.json").write_text(json.dumps({**record, "label": label}))
        template.put(cache)
        assert jobs.end() == [] and not jobs.path.exists()


# ---------------------------------------------------------------------------------------------------- the site's store


def test_site_store_is_linked_into_every_cache(jobs: Jobs, template: Template) -> None:
    """No user can change what others get."""
    stored = site_store(jobs, template)
    cache = jobs.begin()
    assert os.readlink(cache / template.key / "dataset_info.json") == str(stored / "files/dataset_info.json")
    place = jobs.site.dir / "site-store"
    before = {str(path): path.lstat() for path in place.rglob("*")}
    jobs.end()
    assert {str(path): path.lstat() for path in place.rglob("*")} == before


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_site_store_that_users_can_write_is_refused(jobs: Jobs, template: Template, mode: int) -> None:
    """At any level."""
    site_store(jobs, template)
    place = jobs.site.dir / "site-store"
    for part in (place, place / "v1", place / "v1/default"):
        part.chmod(mode)
        cache = jobs.begin()
        assert not (cache / template.key).exists()
        assert "writable" in {event.get("reason") for event in jobs.seeded()}
        part.chmod(0o755)


def test_site_store_in_public_directory_must_belong_to_root(jobs: Jobs, template: Template) -> None:
    """Anybody could have created it there."""
    site_store(jobs, template)
    open_to_all = jobs.site.dir / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)
    (jobs.site.dir / "site-store").rename(open_to_all / "store")
    jobs.site.configure(store={"site": str(open_to_all / "store")})
    assert not (jobs.begin() / template.key).exists()
    assert [event["reason"] for event in jobs.seeded()] == ["writable"]
    (open_to_all / "root").mkdir()
    (open_to_all / "store").rename(open_to_all / "root/store")
    jobs.site.configure(store={"site": str(open_to_all / "root/store")})
    assert (jobs.begin() / template.key).exists()


# ------------------------------------------------------------------------------------------------------------- budgets


def test_most_recently_used_builds_are_linked_within_deadline(jobs: Jobs, template: Template) -> None:
    """Of very many builds, as many as time allows, the last used first; and the job has its cache."""
    stored = published(jobs, template)
    fill_store(stored, 1500)
    jobs.site.configure(task_prolog={"deadline": "2s"})
    cache = jobs.begin(LABEL)
    (event,) = jobs.seeded()
    linked = {path.name for path in cache.glob("json/many-*")}
    assert event["builds"] == len(linked) + 1, "the last used build, and these"
    assert linked == {f"many-{at}" for at in range(len(linked))}
    assert event.get("reason") == ("budget" if len(linked) < 1500 else None)


@pytest.mark.parametrize(("ticks", "linked", "last"), [(250, "small", "cut 1"), (1500, "all", "large"), (4000, "all", "small")])
def test_large_build_does_not_keep_small_ones_from_their_links(
    jobs: Jobs, template: Template, ticks: int, linked: str, last: str
) -> None:
    """The last used build takes half of the time, then waits for the others, and goes on; the number of the rest is reported."""
    stored = published(jobs, template)
    fill_store(stored, 4)
    add_files(stored, 400)
    cache = jobs.site.scratch / ALICE / "cache"
    lines: list[str] = []

    def work() -> None:
        (cache / ".jobcache").mkdir(parents=True)
        clock = os_calls.Clock()
        clock.install()
        place = linking.Place(open_cache(cache), "", ".jobcache/seeds")
        source = linking.Source(str(jobs.path), [LABEL], UID)
        linking._Linking(place, float(ticks), lines.append, None, False).link([source], [])
        large = [line for line in lines if line.startswith("seeded 40")]
        assert len(lines) == 5 and len(large) == (linked == "all")
        want = {"large": lines[-1] in large, "cut 1": lines[-1] == "cut 1", "small": lines[0] in large}
        assert want[last], lines
        assert links(cache / template.key)[0] > 400 if large else not (cache / template.key).exists()
        assert all(links(build) == (5, 0) for build in cache.glob("json/many-*/*/*"))

    assert succeeded(as_alice(work))


def add_files(stored: Path, count: int) -> None:
    """Add `count` results of `map` to a stored build."""
    contents = store_names.parse_contents((stored / "contents").read_text())
    assert contents
    (shard, *_) = (stored / "files").glob("*-train-*.arrow")
    for at in range(count):
        name = f"cache-{at:016x}.arrow"
        os.link(shard, stored / "files" / name)
        contents.files[name] = contents.files[shard.name]
    (stored / "contents").unlink()
    (stored / "contents").write_text(store_names.format_contents(contents))
    shutil.chown(stored / "contents", ALICE)


def test_finding_builds_stops_at_deadline(jobs: Jobs) -> None:
    """A user can create any number of directories in a cache."""
    cache = jobs.begin(LABEL)
    for at in range(300):
        (cache / f"d{at}/a/b").mkdir(parents=True)

    def work() -> None:
        clock = os_calls.Clock()
        clock.install()
        assert list(builds.find(open_cache(cache), 100.0)) == []
        assert clock.now < 110, "the clock is read a few times after the deadline"

    assert succeeded(as_alice(work))


def fill_store(stored: Path, count: int) -> None:
    """Add `count` builds beside `stored`, the first of them used last."""
    text = (stored / "contents").read_text()
    owner = stored.stat()
    key = text.partition("\n")[0]
    for at in range(count):
        other = key.replace("json/default", f"json/many-{at}").split("/")
        other[1] = f"many-{at}"
        name = "/".join(other)
        path = stored.parent / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.1"
        path.mkdir()
        (path / "files").mkdir()
        for file in (stored / "files").iterdir():
            os.link(file, path / "files" / file.name)
        (path / "contents").write_text(name + text[text.index("\n") :])
        for one in (path / "files", path / "contents", path):
            os.lchown(one, owner.st_uid, owner.st_gid)
        os.utime(path, (owner.st_mtime - 60 - at, owner.st_mtime - 60 - at))


# --------------------------------------------------------------------------------------------------- concurrency and interruption


def test_store_on_another_filesystem_is_refused(jobs: Jobs, template: Template) -> None:
    """Builds are moved, never copied: the event has the reason, and nothing unfinished is left."""
    with store_elsewhere(jobs):
        template.put(jobs.begin(LABEL))
        (event,) = jobs.end()
        assert (event["outcome"], event["reason"]) == ("refused", "other_filesystem")
        assert jobs.stored(LABEL) == [] and jobs.left() == []


def test_thirty_publishers_readers_and_a_pruner_at_once(jobs: Jobs, template: Template) -> None:
    """One build wins and 29 stay in their caches. A reader finds no build or the whole one."""
    go = jobs.site.dir / "go"
    caches = []
    for at in range(30):
        cache = jobs.home / f"cache-{at}"
        cache.mkdir()
        shutil.chown(cache, ALICE)
        template.put(cache)
        caches.append(cache)

    def publisher(cache: Path) -> None:
        while not go.exists():
            pass
        done = publish(jobs, cache)
        assert (done.builds, done.already_stored) in ((1, 0), (0, 1)), vars(done)
        assert done.broken == {} and not done.late

    names = {path.name for path in (template.cache / template.key).iterdir()}

    def reader(at: int) -> None:
        while not jobs.path.exists():
            pass
        for turn in range(30):
            cache = jobs.home / f"reader-{at}-{turn}"
            if link_cache(jobs, cache):
                for name in names:
                    assert (cache / template.key / name).read_bytes() == (template.cache / template.key / name).read_bytes()
            else:
                assert not list(cache.glob("json/*/*/*"))

    def pruner() -> None:
        while not jobs.path.exists():
            pass
        for _ in range(30):
            found = list(inventory.entries(str(jobs.path), UID)) if jobs.path.exists() else []
            assert [entry.problem for entry in found if entry.kind == "build"] in ([], [""])
            prune_entries(jobs, time.time(), retire=True)

    pids = [as_alice(lambda cache=cache: publisher(cache)) for cache in caches]  # type: ignore[misc]
    pids += [as_alice(lambda at=at: reader(at)) for at in range(3)] + [as_alice(pruner)]  # type: ignore[misc]
    go.touch()
    assert {pid: succeeded(pid) for pid in pids} == dict.fromkeys(pids, True)
    (stored,) = jobs.stored(LABEL)
    assert jobs.left() == [] and {path.name for path in (stored / "files").iterdir()} == names
    assert [entry.problem for entry in inventory.entries(str(jobs.path), UID, deep=True)] == [""]


def test_kill_at_any_step_of_publishing_leaves_no_partial_build(jobs: Jobs, template: Template) -> None:
    """The next publication still succeeds, and a pruning deletes the debris."""
    outcomes = []
    for step in range(400):
        cache = jobs.home / f"cache-{step}"
        cache.mkdir()
        shutil.chown(cache, ALICE)
        template.put(cache)

        def work(cache: Path = cache, step: int = step) -> None:
            os_calls.kill_at(step)
            publish(jobs, cache)

        status = os.waitpid(as_alice(work), 0)[1]
        outcomes.append(count_whole_builds(jobs))
        shutil.rmtree(cache)
        if outcomes[-1]:
            assert outcomes == [0] * step + [1]
        if status == 0:
            break
        if outcomes[-1]:  # killed after the last rename
            shutil.rmtree(jobs.stored(LABEL)[0])
            outcomes[-1] = 0
    assert status == 0 and step > 50, f"killed at {step} steps"
    assert jobs.left(), "killed publications left debris"
    assert succeeded(as_alice(lambda: prune_entries(jobs, time.time() + 3 * 86400)))
    assert jobs.left() == [] and len(jobs.stored(LABEL)) == 1


def test_kill_at_any_step_of_linking_leaves_only_whole_builds(jobs: Jobs, template: Template) -> None:
    """The cache has whole builds only, and the store is as it was."""
    for name in ("a", "b"):
        template.put(jobs.begin(LABEL), f"json/{name}/0.0.0/x")
        jobs.end()
    before = jobs.print()
    counts = set()
    for step in range(100):
        cache = jobs.home / f"cache-{step}"
        killed = cache.with_suffix(".killed")

        def work(cache: Path = cache, killed: Path = killed, step: int = step) -> None:
            def child() -> None:
                killed.touch()
                unlink = os.unlink
                os_calls.kill_at(step)
                os_calls.at_exit(lambda: unlink(killed))

            os_calls.in_next_child(child)
            (cache.with_suffix(".count")).write_text(str(link_cache(jobs, cache)))

        assert succeeded(as_alice(work))
        linked = [path.parent for path in cache.glob("json/*/0.0.0/x/dataset_info.json")]
        assert all(links(build) == links(linked[0]) and links(build)[1] == 0 for build in linked)
        assert len(list(cache.glob("json/*/0.0.0/x"))) == len(linked)
        counts.add(int(cache.with_suffix(".count").read_text()))
        if not killed.exists():
            break
    assert step > 40, f"killed at {step} steps"
    assert counts == {0, 1, 2} and jobs.print() == before


def test_kill_at_any_step_of_pruning_leaves_no_partial_build(jobs: Jobs, template: Template) -> None:
    """The next pruning finishes the deletion."""
    for step in range(200):
        template.put(jobs.begin(LABEL))
        jobs.end()

        def work(step: int = step) -> None:
            (entry,) = [entry for entry in inventory.entries(str(jobs.path), UID) if entry.kind == "build"]
            os_calls.kill_at(step)
            list(removal.carry_out(str(jobs.path), UID, [retention.Decision(entry, "delete", "age")], time.monotonic() + 60))

        status = os.waitpid(as_alice(work), 0)[1]
        left = count_whole_builds(jobs)
        if status == 0:
            break
        if left:
            shutil.rmtree(jobs.stored(LABEL)[0])
    assert status == 0 and left == 0 and step > 12, f"killed at {step} steps"
    assert succeeded(as_alice(lambda: prune_entries(jobs, 0))) and jobs.left() == []
