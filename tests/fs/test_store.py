"""A store as jobs fill it and live from it: what comes into it, what never does, and what is linked."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobcache.cache import dirfd, linking, reasons, store_reading
from jobcache.store import arrow, builds, store
from jobcache.system import mounts, reaper
from support.site_dir import ALICE, BOB, Site
from support.stores import Jobs, Template, info, jobs_of, links

LABEL = "exp-1"
UID = pwd.getpwnam(ALICE).pw_uid


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    made = Template()
    yield made
    made.close()


@pytest.fixture
def jobs(site: Site) -> Iterator[Jobs]:
    yield from jobs_of(site)


def published(jobs: Jobs, template: Template, label: str = LABEL) -> Path:
    """Have a job publish the template's build; return it in the store."""
    template.put(jobs.begin(label))
    (event,) = jobs.end()
    assert event["outcome"] == "published", event
    return jobs.stored(label)[-1]


# --------------------------------------------------------------------------------------------------------- the way in


def test_a_build_goes_from_job_to_job(jobs: Jobs, template: Template) -> None:
    """What one job built is linked into the next one's cache: real directories, a link a file, mtimes kept."""
    first = jobs.begin(LABEL)
    build = template.put(first)
    names = sorted(path.name for path in build.iterdir())
    before = {path.name: path.stat() for path in [build, *build.iterdir()]}
    (event,) = jobs.end()
    assert (event["builds"], event["files"], event["label"]) == (1, len(names), LABEL)
    assert event["bytes"] == sum(before[name].st_blocks * 512 for name in names)
    (reaped,) = jobs.site.events("cache.reaped")
    assert (reaped["bytes"], reaped["files"]) == (0, 0), "what is kept is not said to be freed"

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
    (said,) = jobs.seeded()
    assert (said["builds"], said["files"], said["outcome"]) == (1, len(names), "seeded")
    assert said["bytes"] == sum(before[name].st_size for name in names)
    record = json.loads((second / ".jobcache/job.json").read_text())
    assert record["label"] == LABEL and record["seeded"]["builds"] == 1
    before_end = jobs.print()
    assert jobs.end() == [] and jobs.print() == before_end, "a link is never published"
    assert jobs.left() == [] and jobs.site.debris() == []


def test_nothing_is_published_without_the_users_word(jobs: Jobs, template: Template) -> None:
    """No label, a store that is switched off, a label that is none: the build goes with its cache."""
    template.put(jobs.begin())
    assert jobs.end() == [] and not jobs.path.exists()
    for label in ("../x", ".x", "a/b", "x" * 65, "a b", "ä", "x\ny", "$(touch /tmp/x)", "x" * 120_000):
        template.put(jobs.begin(label))
        assert jobs.end() == [] and not jobs.path.exists(), label
    jobs.site.configure(store={"user": None})
    template.put(jobs.begin(LABEL))
    assert jobs.end() == [] and not jobs.path.exists()


def test_a_command_outside_of_any_job_begins_with_them_too(jobs: Jobs, template: Template) -> None:
    """`jobcache run`: the same links, the store as it was when it ends, and the build dated where it was used."""
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
def test_a_command_is_ended_before_it_begins(jobs: Jobs, template: Template, number: signal.Signals) -> None:
    """A signal while `jobcache run` links what the store has: the command does not run, and no cache is left behind."""
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
    assert list(jobs.path.parent.iterdir()) == [jobs.path]


def test_a_label_that_is_none_is_refused_with_the_reason(jobs: Jobs, template: Template) -> None:
    """The job has its cache and the default store's builds all the same."""
    published(jobs, template)
    shutil.copytree(jobs.path / f"v1/label-{LABEL}", jobs.path / "v1/default", copy_function=shutil.copy2)
    for path in [jobs.path / "v1/default", *(jobs.path / "v1/default").rglob("*")]:
        shutil.chown(path, ALICE)
    cache = jobs.begin(f"../label-{LABEL}")
    refused, seeded = sorted(jobs.seeded(), key=lambda event: event["outcome"])
    assert (refused["outcome"], refused["reason"]) == ("refused", "bad_name") and "JOBCACHE_STORE" in refused["error"]
    assert seeded["builds"] == 1 and links(cache / template.key)[0] > 0


def test_not_from_a_cache_that_two_nodes_used(jobs: Jobs, template: Template) -> None:
    """Not even where Slurm has forgotten the number of nodes, whichever node is the last one."""
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


def test_not_from_a_cache_that_is_kept(jobs: Jobs, template: Template) -> None:
    """JOBCACHE=keep: the cache stays as it is."""
    cache = jobs.begin(LABEL, JOBCACHE="keep")
    build = template.put(cache)
    assert jobs.end() == [] and (build / "dataset_info.json").exists() and not jobs.path.exists()


def test_the_first_writer_wins(jobs: Jobs, template: Template) -> None:
    """A build that is there already stays as it is."""
    stored = published(jobs, template)
    before = jobs.print()
    cache = jobs.begin(LABEL)
    shutil.rmtree(cache / template.key)  # as force_redownload does
    template.put(cache)
    assert jobs.end() == [] and jobs.stored(LABEL) == [stored] and jobs.print() == before


def test_no_budget_no_publishing(jobs: Jobs, template: Template) -> None:
    """What does not fit the Epilog's budget is not published, and the cache goes all the same."""
    jobs.site.configure(epilog={"budget": "0s", "deadline": "30s"})
    cache = jobs.begin(LABEL)
    template.put(cache)
    (event,) = jobs.end()
    assert (event["outcome"], event["reason"]) == ("skipped", "budget")
    assert not cache.exists() and jobs.stored(LABEL) == []


def test_what_else_lies_in_a_build_is_left_behind(jobs: Jobs, template: Template) -> None:
    """Locks, half-written files, somebody's notes and links are no part of it; a damaged map's result neither."""
    cache = jobs.begin(LABEL)
    build = template.put(cache)
    names = {path.name for path in build.iterdir()}
    for name in ("x.lock", "tmpabc", "notes.txt", "cache-0000000000000000.arrow"):
        (build / name).write_text("x")
    (whole,) = build.glob("cache-*[!0].arrow")
    shutil.copy2(whole, build / "cache-two\nlines.arrow")  # a name that the user gave to `map`
    (build / "cache-1111111111111111.arrow").symlink_to("/etc/passwd")
    os.mkfifo(build / "cache-2222222222222222.arrow")
    (cache / f"{template.key}.incomplete").mkdir()
    jobs.site.fill(cache, f"{template.key}.incomplete/json-train.arrow", f"{template.key}_builder.lock")
    for path in build.iterdir():
        os.lchown(path, *cache.stat()[4:6])
    jobs.end()
    (stored,) = jobs.stored(LABEL)
    assert {path.name for path in (stored / "files").iterdir()} == names
    seeded = jobs.begin(LABEL)
    assert links(seeded / template.key) == (len(names), 0)
    assert [str(p.relative_to(seeded)) for p in seeded.rglob("*") if p.name.endswith((".lock", ".incomplete"))] == []


def test_a_scope_of_ones_own_is_seeded_and_published_as_well(jobs: Jobs, template: Template) -> None:
    """With scope node or task, the builds lie in a directory in the cache; each new one begins with the store's."""
    cache = jobs.begin(LABEL, JOBCACHE_SCOPE="node")
    assert cache.name == "node-n1"
    template.put(cache)
    assert jobs.end()[0]["builds"] == 1
    cache = jobs.begin(LABEL, JOBCACHE_SCOPE="task")
    assert cache.name == "batch" and links(cache / template.key)[0] > 0
    for rank in ("0", "1"):
        said = jobs.site.task_prolog(
            jobs.number, step="3", SLURM_PROCID=rank, SLURM_LOCALID=rank, JOBCACHE_STORE=LABEL, JOBCACHE_SCOPE="task"
        )
        assert said.cache and said.cache.endswith(f"step-3-task-{rank}")
        assert links(Path(said.cache) / template.key)[0] > 0
    other = jobs.site.task_prolog(jobs.number, node="n2", step="4", JOBCACHE_STORE=LABEL, JOBCACHE_SCOPE="node")
    assert other.cache and links(Path(other.cache) / template.key)[0] > 0
    assert len(jobs.seeded()) == 4


# ------------------------------------------------------------------------------------------------------------- damage


def shards(build: Path) -> list[Path]:
    return sorted(path for path in build.glob("json-*.arrow"))


def zero_the_tail(build: Path) -> None:
    data = shards(build)[0].read_bytes()
    rewrite(shards(build)[0], data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def zero_the_end(build: Path) -> None:
    data = shards(build)[0].read_bytes()
    rewrite(shards(build)[0], data[:-8] + bytes(8))


def cut_in_a_batch(build: Path) -> None:
    data = shards(build)[0].read_bytes()
    rewrite(shards(build)[0], data[: len(data) * 2 // 3])


def cut_between_batches(build: Path) -> None:
    rewrite(shards(build)[0], shards(build)[0].read_bytes()[:-8])


def empty_a_shard(build: Path) -> None:
    rewrite(shards(build)[0], b"")


def lose_a_shard(build: Path) -> None:
    shards(build)[-1].unlink()


def empty_info(build: Path) -> None:
    rewrite(build / "dataset_info.json", b"")


def cut_info(build: Path) -> None:
    rewrite(build / "dataset_info.json", (build / "dataset_info.json").read_bytes()[:100])


def lose_info(build: Path) -> None:
    (build / "dataset_info.json").unlink()


def miscount(build: Path) -> None:
    said = info(build)
    said["splits"]["train"]["num_examples"] += 1
    rewrite(build / "dataset_info.json", json.dumps(said).encode())


def swap_two_shards(build: Path) -> None:
    one, other = shards(build)[0], shards(build)[-1]
    rewrite(one, other.read_bytes())


def info_that_names_no_split(build: Path) -> None:
    rewrite(build / "dataset_info.json", json.dumps({**info(build), "splits": {}}).encode())


def info_that_leads_outside(build: Path) -> None:
    said = info(build)
    for split in said["splits"].values():
        split["dataset_name"] = "../../../../../etc/x"
    rewrite(build / "dataset_info.json", json.dumps({**said, "dataset_name": "../x"}).encode())


def info_with_a_split_that_no_file_can_be(build: Path) -> None:
    said = info(build)
    rewrite(
        build / "dataset_info.json", json.dumps({**said, "splits": {**said["splits"], "\ud800": said["splits"]["test"]}}).encode()
    )


def a_date_before_all(build: Path) -> None:
    os.utime(shards(build)[0], (-5, -5))


def a_link_for_a_shard(build: Path) -> None:
    path = shards(build)[0]
    data = path.read_bytes()
    aside = build.parent / "aside.arrow"
    aside.write_bytes(data)
    shutil.chown(aside, ALICE)
    path.unlink()
    path.symlink_to(aside)
    os.lchown(path, *build.stat()[4:6])


def rewrite(path: Path, data: bytes) -> None:
    """Change what is in a file, and nothing else that a look would show: a crash leaves the times as they were."""
    before, above = path.stat(), path.parent.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    os.utime(path.parent, ns=(above.st_mtime_ns, above.st_mtime_ns))


DAMAGE = [
    zero_the_tail, zero_the_end, cut_in_a_batch, cut_between_batches, empty_a_shard, lose_a_shard, empty_info, cut_info,
    lose_info, miscount, swap_two_shards, info_that_names_no_split, info_that_leads_outside, a_link_for_a_shard,
    info_with_a_split_that_no_file_can_be, a_date_before_all,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_build_is_not_published(jobs: Jobs, template: Template, damage: Callable[[Path], None]) -> None:
    """And the event says why; but for one without an info, which is unfinished to `datasets` as well."""
    damage(template.put(jobs.begin(LABEL)))
    said = jobs.end()
    assert jobs.stored(LABEL) == [] and jobs.left() == []
    if damage is lose_info:
        assert said == []
    else:
        (event,) = said
        assert (event["outcome"], event["reason"], event["level"]) == ("skipped", "damaged", "warning")
        assert event["error"].startswith(template.key)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_build_that_is_damaged_in_the_store_is_not_seeded(
    jobs: Jobs, template: Template, damage: Callable[[Path], None]
) -> None:
    """As a server's crash may damage it, even with sizes and times as they were. Other builds are linked all the same."""
    stored = published(jobs, template)
    other = template.key.replace("json/default", "json/other")
    template.put(jobs.begin(LABEL), other)
    jobs.end()
    damage(stored / "files")
    cache = jobs.begin(LABEL)
    assert not (cache / template.key).exists() and links(cache / other)[0] > 0
    assert jobs.seeded()[0]["builds"] == 1


# ------------------------------------------------------------------------------------------------------ not to be trusted


def test_a_store_that_is_a_symlink_is_refused(jobs: Jobs, template: Template) -> None:
    """Whoever made it: nothing is read or written where it leads."""
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
def test_a_store_that_others_have_a_hand_in_is_refused(jobs: Jobs, template: Template, part: str, how: str) -> None:
    """At every level: a link, another user's directory, one that others may write."""
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


LIES = {
    "a key that leads out": lambda build: forge_key(build, "../../../x"),
    "an absolute key": lambda build: forge_key(build, "/tmp/a/b/c"),
    "a key in our own directory": lambda build: forge_key(build, ".jobcache/nodes/a/b"),
    "a key that is a cache's own": lambda build: forge_key(build, "json/../../x"),
    "a file that is not there": lambda build: (build / "contents").write_text(
        (build / "contents").read_text().replace("\n", "\n1 1 x.arrow\n", 1)
    ),
    "a file of another place": lambda build: (build / "contents").write_text(
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


@pytest.mark.parametrize("lie", LIES)
def test_a_build_that_lies_is_not_linked(jobs: Jobs, template: Template, lie: str) -> None:
    """Nothing appears in the new cache but what is ours."""
    stored = published(jobs, template)
    (stored / "contents").chmod(0o644)
    LIES[lie](stored)
    for path in [*stored.iterdir()]:
        os.lchown(path, *stored.stat()[4:6])
    cache = jobs.begin(LABEL)
    assert [path.name for path in cache.iterdir()] == [".jobcache"]
    assert jobs.seeded() == []


def test_a_forged_record_publishes_to_oneself_alone(jobs: Jobs, template: Template) -> None:
    """The label in the record is the user's to change; what is none is not taken."""
    for label in ("../../bob", "", 7, None, ["x"], "x/y"):
        cache = jobs.begin(LABEL)
        record = json.loads((cache / ".jobcache/job.json").read_text())
        (cache / ".jobcache/job.json").write_text(json.dumps({**record, "label": label}))
        template.put(cache)
        assert jobs.end() == [] and not jobs.path.exists()


# ---------------------------------------------------------------------------------------------------- the site's store


def site_store(jobs: Jobs, template: Template, owner: str = BOB) -> Path:
    """A sealed store of the site's, whose owner is an account of its own, with the template's build in it."""
    stored = published(jobs, template)
    place = jobs.site.dir / "site-store"
    shutil.copytree(jobs.path, place, copy_function=shutil.copy2)
    (place / "v1" / f"label-{LABEL}").rename(place / "v1/default")
    for path in [place, *place.rglob("*")]:
        shutil.chown(path, owner)
        path.chmod(0o755 if path.is_dir() else 0o444)
    shutil.rmtree(jobs.path)
    jobs.site.configure(store={"user": str(jobs.path).replace(ALICE, "{user}"), "site": str(place)})
    return place / "v1/default" / stored.name


def test_the_sites_store_is_everybodys(jobs: Jobs, template: Template) -> None:
    """Linked into every cache, and no user can change what others get."""
    stored = site_store(jobs, template)
    cache = jobs.begin()
    assert os.readlink(cache / template.key / "dataset_info.json") == str(stored / "files/dataset_info.json")
    place = jobs.site.dir / "site-store"
    before = {str(path): path.lstat() for path in place.rglob("*")}
    jobs.end()
    assert {str(path): path.lstat() for path in place.rglob("*")} == before


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_sites_store_that_users_may_write_is_refused(jobs: Jobs, template: Template, mode: int) -> None:
    """At any level."""
    site_store(jobs, template)
    place = jobs.site.dir / "site-store"
    for part in (place, place / "v1", place / "v1/default"):
        part.chmod(mode)
        cache = jobs.begin()
        assert not (cache / template.key).exists()
        assert "writable" in {event.get("reason") for event in jobs.seeded()}
        part.chmod(0o755)


def test_a_sites_store_that_a_user_has_put_there_is_refused(jobs: Jobs, template: Template) -> None:
    """Where the directory above is open to all, anybody could have made it: it has to be root's."""
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


def test_the_most_recently_used_are_linked_and_time_is_kept(jobs: Jobs, template: Template) -> None:
    """Of very many builds, as many as there is time for, beginning with the last used; and the job has its cache."""
    stored = published(jobs, template)
    fill_store(stored, 1500)
    jobs.site.configure(task_prolog={"deadline": "2s"})
    cache = jobs.begin(LABEL)
    (event,) = jobs.seeded()
    linked = {path.name for path in cache.glob("json/many-*")}
    assert event["builds"] == len(linked) + 1, "the last one used, and these"
    assert linked == {f"many-{at}" for at in range(len(linked))}
    assert event.get("reason") == ("budget" if len(linked) < 1500 else None)


def test_looking_for_builds_ends_in_time(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many directories a user has put into a cache."""
    cache = jobs.begin(LABEL)
    for at in range(300):
        (cache / f"d{at}/a/b").mkdir(parents=True)
    clock = Clock()
    monkeypatch.setattr(builds, "time", clock)
    fd = open_cache(cache)
    assert list(builds.find(fd, 100.0)) == []
    os.close(fd)
    assert clock.now < 110, "it looks at the clock a few times beyond its end"


class Clock:
    """A clock that goes on by one second whenever somebody looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def fill_store(stored: Path, count: int) -> None:
    """Put `count` builds beside `stored`, the first of them used last."""
    import hashlib

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


# --------------------------------------------------------------------------------------------------- all at the same time


@contextmanager
def elsewhere(jobs: Jobs) -> Iterator[None]:
    """The store is on another filesystem than the caches."""
    place = jobs.path.parent / "other"
    place.mkdir(parents=True)
    for path in (place.parent.parent, place.parent):
        shutil.chown(path, ALICE)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,uid={UID}", "tmpfs", place], check=True)
    try:
        jobs.path = place / "store"
        jobs.site.configure(store={"user": f"{jobs.site.scratch}/{{user}}/.cache/other/store"})
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_store_on_another_filesystem_is_refused(jobs: Jobs, template: Template) -> None:
    """Builds are moved, never copied: the event says so, and nothing is left half done."""
    with elsewhere(jobs):
        template.put(jobs.begin(LABEL))
        (event,) = jobs.end()
        assert (event["outcome"], event["reason"]) == ("refused", "other_filesystem")
        assert jobs.stored(LABEL) == [] and jobs.left() == []


def as_alice(work: Callable[[], object]) -> int:
    """Start a process that is Alice and does `work`; return its pid. It ends with status 0, or 1 where `work` raises."""
    who = pwd.getpwnam(ALICE)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(who.pw_gid)
            os.setuid(who.pw_uid)
            os.umask(0o077)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def ended_well(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def open_cache(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def seed_once(jobs: Jobs, cache: Path) -> int:
    """Make a cache as prepare.py does, and return how many builds are linked into it."""
    (cache / ".jobcache").mkdir(parents=True)
    fd = open_cache(cache)
    try:
        return linking.seed(fd, "", ".jobcache/seeds", [linking.Source(str(jobs.path), [LABEL], UID)]).builds
    finally:
        os.close(fd)


def test_thirty_publishers_readers_and_a_pruner(jobs: Jobs, template: Template) -> None:
    """One build wins and 29 go with their caches; who reads meanwhile sees nothing, or the whole build."""
    go = jobs.site.dir / "go"
    caches = []
    for at in range(30):
        cache = jobs.home / f"cache-{at}"
        cache.mkdir()
        shutil.chown(cache, ALICE)
        template.put(cache)
        caches.append(cache)

    def publisher(cache: Path) -> None:
        fd = open_cache(cache)
        while not go.exists():
            pass
        done = store.publish(fd, store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60)
        assert (done.builds, done.there) in ((1, 0), (0, 1)), vars(done)
        assert done.broken == {} and not done.late

    names = {path.name for path in (template.cache / template.key).iterdir()}

    def reader(at: int) -> None:
        while not jobs.path.exists():
            pass
        for turn in range(30):
            cache = jobs.home / f"reader-{at}-{turn}"
            if seed_once(jobs, cache):
                for name in names:
                    assert (cache / template.key / name).read_bytes() == (template.cache / template.key / name).read_bytes()
            else:
                assert not list(cache.glob("json/*/*/*"))

    def pruner() -> None:
        while not jobs.path.exists():
            pass
        for _ in range(30):
            found = list(store.look(str(jobs.path), UID)) if jobs.path.exists() else []
            assert [one.problem for one in found if one.kind == "build"] in ([], [""])
            verdicts = store.to_retire(found, time.time(), 1 << 40, 1e9, None)
            list(store.act(str(jobs.path), UID, [*verdicts, *store.to_delete(found, time.time(), None)], time.monotonic() + 9))

    pids = [as_alice(lambda cache=cache: publisher(cache)) for cache in caches]  # type: ignore[misc]
    pids += [as_alice(lambda at=at: reader(at)) for at in range(3)] + [as_alice(pruner)]  # type: ignore[misc]
    go.touch()
    assert {pid: ended_well(pid) for pid in pids} == dict.fromkeys(pids, True)
    (stored,) = jobs.stored(LABEL)
    assert jobs.left() == [] and {path.name for path in (stored / "files").iterdir()} == names
    assert [one.problem for one in store.look(str(jobs.path), UID, deep=True)] == [""]


CHANGES = ("mkdir", "rename", "link", "write", "utime", "fchmod", "chmod", "symlink", "open", "unlink", "rmdir", "makedirs")


class Dying:
    """The os module, with which a process kills itself at its n-th operation that changes something."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in CHANGES:
            return real

        def counted(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return counted


def whole_or_absent(jobs: Jobs, template: Template) -> int:
    """Assert that the store holds whole builds alone, as far as anybody can see; return how many."""
    found = [one for one in store.look(str(jobs.path), UID, deep=True) if one.kind == "build"]
    assert [one.problem for one in found] == [""] * len(found)
    cache = jobs.home / f"look-{time.monotonic_ns()}"
    assert ended_well(as_alice(lambda: seed_once(jobs, cache)))
    for link in cache.rglob("*"):
        assert link.exists(), f"{link} leads nowhere"
    return len(found)


def test_killed_at_every_step_of_publishing(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is no build; the next one publishes all the same, and pruning clears away what was left."""
    outcomes = []
    for step in range(400):
        cache = jobs.home / f"cache-{step}"
        cache.mkdir()
        shutil.chown(cache, ALICE)
        template.put(cache)

        def work(cache: Path = cache, step: int = step) -> None:
            dying = Dying(step)
            for module in (store, builds, store_reading, dirfd, reasons, arrow):
                monkeypatch.setattr(module, "os", dying)
            store.publish(open_cache(cache), store.Publisher(str(jobs.path), LABEL), time.monotonic() + 60)

        status = os.waitpid(as_alice(work), 0)[1]
        outcomes.append(whole_or_absent(jobs, template))
        shutil.rmtree(cache)
        if outcomes[-1]:
            assert outcomes == [0] * step + [1]
        if status == 0:
            break
        if outcomes[-1]:  # it died behind the last rename
            shutil.rmtree(jobs.stored(LABEL)[0])
            outcomes[-1] = 0
    assert status == 0 and step > 20, "every step was one at which it died"
    assert jobs.left(), "they left something"
    later = time.time() + 3 * 86400
    pid = as_alice(
        lambda: list(
            store.act(str(jobs.path), UID, store.to_delete(store.look(str(jobs.path), UID), later, None), time.monotonic() + 60)
        )
    )
    assert ended_well(pid) and jobs.left() == [] and len(jobs.stored(LABEL)) == 1


def test_killed_at_every_step_of_seeding(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is made with what is linked whole, and nothing else; the store is as it was."""
    for name in ("a", "b"):
        template.put(jobs.begin(LABEL), f"json/{name}/0.0.0/x")
        jobs.end()
    before = jobs.print()
    counts = set()
    for step in range(100):
        cache = jobs.home / f"cache-{step}"

        def work(cache: Path = cache, step: int = step) -> None:
            real = linking._child

            def child(*args: object) -> None:
                monkeypatch.setattr(linking, "os", Dying(step))
                real(*args)  # type: ignore[arg-type]

            monkeypatch.setattr(linking, "_child", child)
            (cache.with_suffix(".count")).write_text(str(seed_once(jobs, cache)))

        assert ended_well(as_alice(work))
        linked = [path.parent for path in cache.glob("json/*/0.0.0/x/dataset_info.json")]
        assert all(links(build) == links(linked[0]) and links(build)[1] == 0 for build in linked)
        assert len(list(cache.glob("json/*/0.0.0/x"))) == len(linked)
        counts.add(int(cache.with_suffix(".count").read_text()))
        if step > 80:
            break
    assert counts == {0, 1, 2} and jobs.print() == before


def test_killed_at_every_step_of_pruning(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is half deleted is none; another pruning finishes it."""
    for step in range(200):
        template.put(jobs.begin(LABEL))
        jobs.end()

        def work(step: int = step) -> None:
            (one,) = [one for one in store.look(str(jobs.path), UID) if one.kind == "build"]
            for module in (store, store_reading, reaper, mounts):
                monkeypatch.setattr(module, "os", Dying(step))
            list(store.act(str(jobs.path), UID, [store.Verdict(one, "delete", "age")], time.monotonic() + 60))

        status = os.waitpid(as_alice(work), 0)[1]
        left = whole_or_absent(jobs, template)
        if status == 0:
            break
        if left:
            shutil.rmtree(jobs.stored(LABEL)[0])
    assert status == 0 and left == 0 and step > 10
    pid = as_alice(
        lambda: list(
            store.act(str(jobs.path), UID, store.to_delete(store.look(str(jobs.path), UID), 0, None), time.monotonic() + 60)
        )
    )
    assert ended_well(pid) and jobs.left() == []
