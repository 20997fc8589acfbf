"""Handing work on from job to job: results of `map` on top of the user's own builds, and `store.publish: all`."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobcache.cache import bases, inheriting, linking
from jobcache.cache.store_names import UNLABELLED
from jobcache.store import inventory, publishing
from jobcache.store.publication import Destination
from support import hf, os_calls
from support.damage import shards
from support.home import fingerprint
from support.site_dir import ALICE, BOB
from support.store_jobs import (
    LABEL,
    UID,
    as_alice,
    filled,
    prune_entries,
    queue,
    running,
    site_store,
    store_command,
    succeeded,
    used,
)
from support.stores import Jobs, Template, info, links, write_rows

MAP = "def half(row):\n    return {'half': row['id'] / 2}\nmapped = ds['train'].map(half)\n"
RESULT = "result = [len(mapped), sum(mapped['half'])]\n"
NUMBER = 7  # of the result of `map` that `compute` leaves


class User:
    """Alice, with builds of her own. own: her cache. python: what runs her programs. label: of her jobs."""

    def __init__(self, jobs: Jobs, python: hf.Python | None, label: str) -> None:
        self.jobs = jobs
        self.python = python
        self.label = label
        self.own = jobs.home / "hf/datasets"
        self.env = {"HF_HOME": str(jobs.home / "hf")}

    def begin(self, **env: str) -> Path:
        return self.jobs.begin(self.label, **self.env, **env)

    def run(self, code: str, cache: Path | None = None) -> object:
        """Run a program on the login node, or in a job with this cache."""
        assert self.python
        return self.python.run(code, self.jobs.home, **({"HF_DATASETS_CACHE": str(cache)} if cache else {}))

    def stored(self) -> list[Path]:
        return self.jobs.stored(self.label or UNLABELLED)

    def live(self) -> list[Path]:
        return [path for path in self.stored() if not (path / "retired").exists()]

    def inherited(self) -> dict[str, int]:
        found: dict[str, int] = self.jobs.site.syslog.events("cache.created")[-1]["inherited"]
        return found


@pytest.fixture(scope="module")
def python() -> Iterator[hf.Python]:
    made = hf.Python(hf.PYTHONS[0])
    yield made
    made.close()


def publish_all(jobs: Jobs, **store: object) -> None:
    jobs.site.configure(store={**jobs.site.keys["store"], "publish": "all", **store})


@pytest.fixture(params=["", LABEL], ids=["all", "label"])
def user(jobs: Jobs, request: pytest.FixtureRequest, python: hf.Python) -> User:
    """A user whose jobs publish: without a label by `publish: all`, or with a label."""
    if not request.param:
        publish_all(jobs)
    return User(jobs, python, request.param)


def load(jobs: Jobs) -> str:
    return f"ds = load_dataset('json', data_files={{'train': {str(jobs.home / 'data.jsonl')!r}}})\n"


def build_in(cache: Path) -> Path:
    (found,) = (path.parent for path in cache.glob("json/default-*/0.0.0/*/dataset_info.json"))
    return found


def results_in(build: Path) -> tuple[int, int]:
    """Return how many results of `map` are links, and how many are regular files."""
    found = [path.is_symlink() for path in build.glob("cache-*")]
    return sum(found), len(found) - sum(found)


# -------------------------------------------------------------------------------------------------- the real `datasets`


def test_next_job_finds_map_on_inherited_build(user: User) -> None:
    """Nothing is computed or built again. The user's own cache stays as it was, and the store has no copy of the build."""
    write_rows(user.jobs.home / "data.jsonl", range(400))
    user.run(load(user.jobs))
    before = fingerprint(user.own)
    total = [400, 399 * 400 / 4]
    made = []
    for _ in range(3):
        cache = user.begin()
        assert user.run(load(user.jobs) + MAP + RESULT, cache) == total
        made.append(results_in(build_in(cache)))
        events = user.jobs.end()
        assert [(event["outcome"], event["builds"], event["files"]) for event in events] == [("published", 1, 1)][: made[-1][1]]
    assert made == [(0, 1), (1, 0), (1, 0)] and user.inherited()["results"] == 1
    assert fingerprint(user.own) == before
    (stored,) = user.stored()
    assert sorted(path.name[:6] for path in (stored / "files").iterdir()) == ["cache-"]
    assert store_command(user.jobs, "verify").stdout == f"{user.jobs.path}: 1 of 1 builds are whole\n"


def test_maps_on_top_of_results_are_found(user: User) -> None:
    """A chain of functions, edited between the jobs: each is computed once. Concurrent jobs add up."""
    write_rows(user.jobs.home / "data.jsonl", range(400))
    user.run(load(user.jobs))
    chain = MAP + "small = mapped.filter(lambda row: row['half'] < 50)\n"
    longer = chain + "small = small.map(lambda row: {'twice': row['id'] * 2}).shuffle(seed=7).sort('id')\n"
    one, other = user.begin(), user.begin()
    user.run(load(user.jobs) + chain, one)
    user.run(load(user.jobs) + "ds['train'].map(lambda row: {'third': row['id'] / 3})", other)
    user.jobs.number -= 1
    user.jobs.end()
    user.jobs.number += 1
    user.jobs.end()
    cache = user.begin()
    assert results_in(build_in(cache)) == (3, 0)
    user.run(load(user.jobs) + longer, cache)
    new = results_in(build_in(cache))[1]
    assert new
    assert user.jobs.end()[0]["files"] == new
    cache = user.begin()
    assert user.run(load(user.jobs) + longer + "result = small['twice'][-1]", cache) == 198
    assert results_in(build_in(cache)) == (3 + new, 0)


def test_next_job_finds_build_and_map_of_a_job_without_label(jobs: Jobs, python: hf.Python) -> None:
    """With `publish: all`, neither is made again."""
    publish_all(jobs)
    user = User(jobs, python, "")
    write_rows(jobs.home / "data.jsonl", range(400))
    made = []
    for _ in range(2):
        cache = user.begin()
        assert user.run(load(jobs) + MAP + RESULT, cache) == [400, 399 * 400 / 4]
        made.append(links(build_in(cache)))
        jobs.end()
    assert made == [(0, 3), (3, 0)]
    cache = user.begin()
    user.run(load(jobs) + "ds['train'].map(lambda row: {'third': row['id'] / 3})", cache)
    assert jobs.end()[0]["files"] == 1
    assert links(build_in(user.begin())) == (4, 0), "results on top of a stored build become its next generation"


def test_without_a_label_nothing_is_published_by_default(jobs: Jobs, python: hf.Python) -> None:
    """Neither a build nor a result of `map` on top of an inherited one."""
    user = User(jobs, python, "")
    write_rows(jobs.home / "data.jsonl", range(400))
    for _ in range(2):
        cache = user.begin()
        user.run(load(jobs) + MAP, cache)
        assert jobs.end() == [] and not jobs.path.exists()
        user.run(load(jobs))


def test_base_built_again_is_offered_no_results(user: User) -> None:
    """The data changes under one name and date, and is built again in the user's own cache: the bytes and rows are as many."""
    data = user.jobs.home / "data.jsonl"

    def write(first: int) -> None:
        write_rows(data, range(first, first + 100))
        os.utime(data, (1_000_000_000, 1_000_000_000))

    write(100)
    user.run(load(user.jobs))
    before = info(build_in(user.own))
    cache = user.begin()
    assert user.run(load(user.jobs) + MAP + RESULT, cache) == [100, sum(range(100, 200)) / 2]
    user.jobs.end()
    write(400)
    user.run(load(user.jobs).replace("})\n", "}, download_mode='force_redownload')\n"))
    assert info(build_in(user.own))["splits"] == before["splits"]
    cache = user.begin()
    assert results_in(build_in(cache)) == (0, 0)
    assert user.run(load(user.jobs) + MAP + RESULT, cache) == [100, sum(range(400, 500)) / 2]
    user.jobs.end()
    cache = user.begin()
    assert results_in(build_in(cache)) == (1, 0)
    assert user.run(load(user.jobs) + MAP + RESULT, cache) == [100, sum(range(400, 500)) / 2]


def test_base_built_again_during_the_job_gets_no_results(user: User) -> None:
    """The job has read the old rows, or the new ones: in both cases the results are for the state that it began with."""
    data = write_rows(user.jobs.home / "data.jsonl", range(100))
    os.utime(data, (1_000_000_000, 1_000_000_000))
    user.run(load(user.jobs))
    cache = user.begin()
    user.run(load(user.jobs) + MAP, cache)
    user.run(load(user.jobs).replace("})\n", "}, download_mode='force_redownload')\n"))
    user.jobs.end()
    assert results_in(build_in(user.begin())) == (0, 0)


def test_next_job_finds_map_on_build_of_a_generator(user: User) -> None:
    """Its directory is one level higher. The store gets the results, and no copy of the build."""
    code = "from datasets import Dataset\ndef rows():\n    for at in range(50):\n        yield {'id': at}\n"
    code += "ds = {'train': Dataset.from_generator(rows)}\n" + MAP + "result = sum(mapped['half'])\n"
    user.run(code.replace(MAP, "mapped = {'half': [0]}\n"))
    before = fingerprint(user.own)
    made = []
    for _ in range(3):
        cache = user.begin()
        assert user.run(code, cache) == 49 * 50 / 4
        (build,) = (path.parent for path in cache.glob("generator/default-*/0.0.0/dataset_info.json"))
        made.append(results_in(build))
        user.jobs.end()
    assert made == [(0, 1), (1, 0), (1, 0)]
    assert fingerprint(user.own) == before and len(user.stored()) == 1


# --------------------------------------------------------------------------------- on builds of other parts of the store


def other_build(jobs: Jobs, template: Template, place: str) -> Path:
    """Put the template's build into the store without a label, or into the site's; return it."""
    if place == "default":
        return filled(jobs, template, "")
    return site_store(jobs, template)


@pytest.mark.parametrize("label", ["", LABEL], ids=["all", "label"])
@pytest.mark.parametrize("place", ["default", "site"])
@pytest.mark.parametrize("inherit", ["on", "off"])
def test_results_on_builds_of_another_section_are_handed_on(
    jobs: Jobs, template: Template, label: str, place: str, inherit: str
) -> None:
    """They enter the section of the job. The build stays as it was; another one at its place gets no results."""
    stored = other_build(jobs, template, place)
    jobs.site.configure(inherit=inherit)
    if not label:
        publish_all(jobs)
    before = fingerprint(stored / "files")
    section = label or UNLABELLED
    cache = jobs.begin(label)
    assert (cache / template.key / "dataset_info.json").is_symlink()
    result = compute(template, cache)
    (event,) = jobs.end()
    assert (event["outcome"], event["builds"], event["files"]) == ("published", 1, 1)
    (made,) = jobs.stored(section)
    os.utime(made, (5, 5))
    linked = jobs.begin(label) / template.key / result.name
    assert linked.is_symlink() and linked.resolve().parent == made / "files"
    lock = linked.parents[4] / f"_x_{template.key.replace('/', '_')}.lock"
    lock.touch()
    shutil.chown(lock, ALICE)
    jobs.end()
    assert made.stat().st_mtime > 5
    assert not (jobs.begin("another") / template.key / result.name).exists()
    assert fingerprint(stored / "files") == before
    path = made / "contents"
    head, _, state = path.read_text().rstrip("\n").rpartition(" ")
    rewrite(path, f"{head} {int(state) ^ 1}\n".encode())
    assert not (jobs.begin(label) / template.key / result.name).exists(), "it belongs to another state of the build"


# ------------------------------------------------------------------------------------------------- forged and damaged


@pytest.fixture
def alice(jobs: Jobs, template: Template) -> User:
    """A user without a label whose own cache has the template's build, without results of `map`."""
    publish_all(jobs)
    user = User(jobs, None, "")
    user.own.mkdir(parents=True)
    for path in (user.own.parent, user.own):
        shutil.chown(path, ALICE)
    for path in template.put(user.own).glob("cache-*"):
        path.unlink()
    return user


def compute(template: Template, cache: Path, number: int = NUMBER, key: str = "") -> Path:
    """Leave a result of `map` in the build of a job."""
    (result,) = (template.cache / template.key).glob("cache-*.arrow")
    path = cache / (key or template.key) / f"cache-{number:016x}.arrow"
    shutil.copyfile(result, path)
    shutil.chown(path, ALICE, cache.stat().st_gid)
    return path


def published(user: User, template: Template, *numbers: int) -> Path:
    """Run a job that computes results on top of the user's own build; return the result set in the store."""
    cache = user.begin()
    for number in numbers or (NUMBER,):
        compute(template, cache, number)
    (event,) = user.jobs.end()
    assert event["outcome"] == "published" and event.get("label") is None, event
    (stored,) = user.live()
    return stored


def rewrite(path: Path, data: bytes) -> None:
    """Replace the content of a file, and keep its date."""
    before = path.stat()
    path.chmod(0o600)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))


def cut(stored: Path) -> None:
    (path,) = (stored / "files").iterdir()
    rewrite(path, path.read_bytes()[:-8])


def without_end(stored: Path) -> None:
    (path,) = (stored / "files").iterdir()
    rewrite(path, path.read_bytes()[:-8] + bytes(8))


def redated(stored: Path) -> None:
    (path,) = (stored / "files").iterdir()
    os.utime(path, (1, 1))


def a_symlink(stored: Path) -> None:
    (path,) = (stored / "files").iterdir()
    (stored / "files").chmod(0o700)
    path.rename(stored / "elsewhere")
    path.symlink_to(stored / "elsewhere")


def one_more_file(stored: Path) -> None:
    (path,) = (stored / "files").iterdir()
    (stored / "files").chmod(0o700)
    shutil.copy2(path, path.with_name(f"cache-{9:016x}.arrow"))


def a_shard(stored: Path) -> None:
    """Offer a file that would replace a part of the build."""
    (path,) = (stored / "files").iterdir()
    (stored / "files").chmod(0o700)
    path.rename(path.with_name("json-train.arrow"))
    contents = stored / "contents"
    rewrite(contents, contents.read_bytes().replace(path.name.encode(), b"json-train.arrow"))


def another_state(stored: Path) -> None:
    contents = stored / "contents"
    text, _, number = contents.read_text().rstrip("\n").rpartition(" ")
    rewrite(contents, f"{text} {(int(number) + 1) % 2**32}\n".encode())


def a_build(stored: Path) -> None:
    contents = stored / "contents"
    rewrite(contents, contents.read_bytes().replace(b" results ", b" files "))


def no_state(stored: Path) -> None:
    contents = stored / "contents"
    rewrite(contents, contents.read_bytes().replace(b" results ", b" other "))


def of_another_user(stored: Path) -> None:
    shutil.chown(stored, BOB)


def writable(stored: Path) -> None:
    stored.chmod(0o777)


def taken_out(stored: Path) -> None:
    (stored / "retired").touch()


SPOILS = [
    cut, without_end, redated, a_symlink, one_more_file, a_shard, another_state, a_build, no_state, of_another_user, writable,
    taken_out,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILS)
def test_spoiled_results_are_not_linked(alice: User, template: Template, spoil: Callable[[Path], None]) -> None:
    """The build is linked without them."""
    stored = published(alice, template)
    assert results_in(alice.begin() / template.key) == (1, 0)
    spoil(stored)
    build = alice.begin() / template.key
    assert results_in(build) == (0, 0) and len(links(build)) and {path.name for path in build.iterdir()} == {
        path.name for path in (alice.own / template.key).iterdir()
    }  # fmt: skip
    assert os.readlink(build / "json-test.arrow").startswith(str(alice.own))


@pytest.mark.parametrize(
    "spoil", [cut, without_end, redated, a_symlink, one_more_file, a_shard, another_state, a_build, no_state]
)
def test_verification_finds_spoiled_results(alice: User, template: Template, spoil: Callable[[Path], None]) -> None:
    """Pruning takes them out of use, and jobs fill a set again."""
    stored = published(alice, template)
    spoil(stored)
    done = store_command(alice.jobs, "verify")
    assert done.returncode == 1 and f"{stored}: " in done.stderr
    assert store_command(alice.jobs, "prune").returncode == 0
    again = published(alice, template)
    assert again.exists() and results_in(alice.begin() / template.key) == (1, 0)
    assert store_command(alice.jobs, "verify").returncode == 0


@pytest.mark.parametrize("part", ["dataset_info.json", "json-test.arrow"])
@pytest.mark.parametrize("change", ["content", "date"])
def test_changed_base_is_offered_no_results(alice: User, template: Template, part: str, change: str) -> None:
    """Its dataset_info.json, or the date of a shard, differs."""
    published(alice, template)
    path = alice.own / template.key / part
    if change == "date" and part.endswith(".arrow"):
        os.utime(path, (5, 5))
    elif change == "date":
        os.utime(path, (5, 5))  # its content counts
    else:
        data = path.read_bytes()
        path.write_bytes(data + b" " if part.endswith(".json") else data)
    same = (change, part) == ("date", "dataset_info.json")
    assert results_in(alice.begin() / template.key) == ((1, 0) if same else (0, 0))


def test_results_of_the_users_own_cache_stay(alice: User, template: Template) -> None:
    """A result that the own cache has as well is linked from there, and the build keeps its date."""
    published(alice, template, 1, 2)
    compute(template, alice.own, 2)
    build = alice.own / template.key
    os.utime(build, (1_700_000_000, 1_700_000_000))
    linked = alice.begin() / template.key
    assert results_in(linked) == (2, 0)
    assert os.readlink(linked / f"cache-{2:016x}.arrow").startswith(str(alice.own))
    assert os.readlink(linked / f"cache-{1:016x}.arrow").startswith(str(alice.jobs.path))
    assert linked.stat().st_mtime_ns == build.stat().st_mtime_ns


def rebuilt(build: Path) -> None:
    """Replace the links by regular files, as force_redownload does."""
    for path in build.iterdir():
        if path.is_symlink():
            replace(path)


def replace(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    shutil.chown(path, ALICE)


def one_shard_rewritten(build: Path) -> None:
    replace(shards(build)[0])


def one_shard_added(build: Path) -> None:
    shutil.copyfile(shards(build)[0], build / "json-more.arrow")


def another_link(build: Path) -> None:
    path = shards(build)[0]
    path.unlink()
    path.symlink_to(build / "dataset_info.json")


def no_info(build: Path) -> None:
    (build / "dataset_info.json").unlink()


def no_states(build: Path) -> None:
    (build.parents[3] / ".jobcache/bases").unlink()


def broken_states(build: Path) -> None:
    (build.parents[3] / ".jobcache/bases").write_bytes(b"/\xff\n-1 x\n\n 7\nx " + bytes(5000))


def states_elsewhere(build: Path) -> None:
    path = build.parents[3] / ".jobcache/bases"
    path.write_text(path.read_text().replace("/hf/", "/other/"))


@pytest.mark.parametrize(
    "forge",
    [one_shard_rewritten, one_shard_added, another_link, no_info, no_states, broken_states, states_elsewhere],
)
def test_results_of_a_changed_build_are_not_published(alice: User, template: Template, forge: Callable[[Path], None]) -> None:
    """They can belong to other rows."""
    build = alice.begin() / template.key
    compute(template, alice.jobs.site.cache(alice.jobs.number))
    forge(build)
    assert alice.jobs.end() == [] and alice.stored() == []


def test_build_made_again_is_published_as_a_build(alice: User, template: Template) -> None:
    """The next job begins with the one in the user's own cache, as it would without jobcache."""
    cache = alice.begin()
    compute(template, cache)
    rebuilt(cache / template.key)
    (event,) = alice.jobs.end()
    assert (event["outcome"], event["builds"]) == ("published", 1)
    linked = alice.begin() / template.key
    assert {os.readlink(path) for path in linked.iterdir()} == {str(path) for path in (alice.own / template.key).iterdir()}


# ------------------------------------------------------------------------------------------------------ limits and prune


def test_jobs_on_two_nodes_and_kept_caches_publish_no_results(alice: User, template: Template) -> None:
    for begin, end in (({}, {"nodes": 2}), ({"JOBCACHE": "keep"}, {})):
        compute(template, alice.begin(**begin))
        assert alice.jobs.end(**end) == [] and alice.stored() == []


def test_result_set_stays_within_max_size(alice: User, template: Template) -> None:
    """The oldest results make room for new ones."""
    size = published(alice, template, 1).joinpath(f"files/cache-{1:016x}.arrow").stat().st_blocks * 512
    publish_all(alice.jobs, max_size=f"{2 * size}B")
    for number in (2, 3):
        path = compute(template, alice.begin(), number)
        os.utime(path, (time.time() + number, time.time() + number))
        assert alice.jobs.end()[0]["files"] == 1
    (stored,) = alice.live()
    assert {path.name for path in (stored / "files").iterdir()} == {f"cache-{number:016x}.arrow" for number in (2, 3)}


def test_use_dates_result_set_and_pruning_deletes_an_unused_one(alice: User, template: Template) -> None:
    """A job that opens the base uses its results. `list` shows them."""
    stored = published(alice, template)
    used(stored, 20)
    old = stored.stat().st_mtime
    alice.begin()
    alice.jobs.end()
    assert stored.stat().st_mtime == old, "a link alone is no use"
    lock = alice.begin() / f"_x_{template.key.replace('/', '_')}.lock"
    lock.touch()
    alice.jobs.end()
    assert stored.stat().st_mtime > old
    assert "(results of map)" in store_command(alice.jobs, "list").stdout
    (row,) = json.loads(store_command(alice.jobs, "list", "--json").stdout)
    assert (row["key"], row["state"], row["is_result_set"]) == (template.key, "live", True)

    used(stored, 31)
    queue(alice.jobs, running(time.time(), alice.jobs.number + 1))
    assert store_command(alice.jobs, "prune").returncode == 0
    assert (stored / "retired").exists() and results_in(alice.begin() / template.key) == (0, 0)
    queue(alice.jobs)
    assert store_command(alice.jobs, "prune").returncode == 0 and alice.stored() == []


def test_older_generation_is_superseded(alice: User, template: Template) -> None:
    """Links of running jobs stay valid: the next generation has hard links to the files."""
    first = published(alice, template, 1)
    running_job = alice.begin() / template.key
    second = published(alice, template, 2)
    assert (first / "retired").exists() and first.name.partition(".")[0] == second.name.partition(".")[0]
    assert (first / "files" / f"cache-{1:016x}.arrow").samefile(second / "files" / f"cache-{1:016x}.arrow")
    assert all(path.exists() for path in running_job.iterdir())
    queue(alice.jobs)
    assert store_command(alice.jobs, "prune").returncode == 0 and alice.stored() == [second]


# ---------------------------------------------------------------------------------------------------- crashes and errors


def begun(alice: User, name: str) -> Path:
    """Create a cache of Alice's as prepare.py does."""
    cache = alice.jobs.home / name

    def work() -> None:
        (cache / ".jobcache").mkdir(parents=True)
        fd = os.open(cache, os.O_RDONLY)
        store = [linking.Source(str(alice.jobs.path), [UNLABELLED], UID)]
        offers = linking.seed(linking.Place(fd, "", ".jobcache/seeds"), [], offering=store).offers
        assert inheriting.inherit(inheriting.Request(alice.env, 9), fd, "", 20, offers).builds == 1

    assert succeeded(as_alice(work))
    return cache


def publish(alice: User, cache: Path) -> None:
    to = Destination(str(alice.jobs.path), UNLABELLED, maps=True)
    publishing.publish(os.open(cache, os.O_RDONLY), to, time.monotonic() + 60)


def try_each_step(alice: User, template: Template, interrupt: Callable[[int], None]) -> int:
    """Publish one more result, interrupted at each step; return the number of steps. The set is always whole."""
    for step in range(100):
        cache = begun(alice, f"cache-{step}")
        before = results_in(cache / template.key)[0]
        compute(template, cache, 1000 + before)

        def work(cache: Path = cache, step: int = step) -> None:
            interrupt(step)
            publish(alice, cache)

        done = succeeded(as_alice(work))
        found = [entry for entry in inventory.entries(str(alice.jobs.path), UID, deep=True) if entry.kind == "build"]
        assert [entry.problem for entry in found] == [""] * len(found)
        again = begun(alice, f"again-{step}") / template.key
        assert all(path.exists() for path in again.iterdir())
        after = results_in(again)[0]
        assert after in ((before + 1,) if done else (before, before + 1))
        if after > before:
            return step
        for path in (cache, again.parents[3]):
            shutil.rmtree(path)
        assert succeeded(as_alice(lambda: prune_entries(alice.jobs, time.time() + 3 * 86400)))
        assert alice.jobs.left() == [] and len(alice.stored()) <= 1
    raise AssertionError("never done")


@pytest.mark.parametrize("stored", [False, True], ids=["first", "next"])
def test_kill_at_any_step_leaves_whole_result_sets(alice: User, template: Template, stored: bool) -> None:
    if stored:
        published(alice, template, 1)
    assert try_each_step(alice, template, os_calls.kill_at) > 20


@pytest.mark.parametrize("stored", [False, True], ids=["first", "next"])
def test_full_quota_at_any_step_leaves_whole_result_sets(alice: User, template: Template, stored: bool) -> None:
    if stored:
        published(alice, template, 1)
    assert try_each_step(alice, template, lambda step: os_calls.fail_from(step, errno.EDQUOT)) > 8


# --------------------------------------------------------------------------------------------------------------- order


def test_order_of_builds_of_one_name(alice: User, template: Template) -> None:
    """A label, the store without a label, the user's own cache, what jobs have published. A label keeps the last away."""
    for label in (LABEL, ""):
        template.put(alice.jobs.begin(label))  # in this job, nothing is inherited
        assert alice.jobs.end()[0]["outcome"] == "published"
    filled(alice.jobs, template, "")

    def origin(label: str = "") -> str:
        link = alice.jobs.begin(label, **alice.env) / template.key / "json-test.arrow"
        return os.readlink(link) if link.is_symlink() else ""

    places = [
        f"{alice.jobs.path}/v1/label-{LABEL}",
        f"{alice.jobs.path}/v1/default",
        str(alice.own),
        f"{alice.jobs.path}/v1/jobs",
    ]
    for label, order in ((LABEL, places[:3]), ("", places[1:])):
        for place in order:
            assert origin(label).startswith(place + "/")
            Path(place).rename(f"{place}.aside")
        assert origin(label) == ""
        for place in order:
            Path(f"{place}.aside").rename(place)


def test_dataset_that_is_left_out_gets_no_build_of_the_default_section(alice: User, template: Template) -> None:
    """One of its builds is damaged. Another build alone could be an older revision."""
    template.put(alice.jobs.begin(), "json/other/0.0.0/x")
    assert alice.jobs.end()[0]["outcome"] == "published"
    assert (alice.begin() / "json/other/0.0.0/x").exists()
    shard = shards(alice.own / template.key)[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    os.utime(shard.parent, (5, 5))
    assert not (alice.begin() / "json").exists()


def test_state_of_a_build_depends_on_each_of_its_parts() -> None:
    parts = [("a.arrow", 1, 2), ("b.arrow", 3, 4)]
    state = bases.state(b"{}", parts)
    assert state == bases.state(b"{}", parts[::-1])
    others = [("a.arrow", 1, 2), ("b.arrow", 3, 5)], [("a.arrow", 1, 2), ("c.arrow", 3, 4)], parts[:1]
    assert state not in [bases.state(b"{} ", parts), *(bases.state(b"{}", other) for other in others)]
