"""Jobs with the real `datasets`, in each supported version, on a node without internet: all that a warm cache gives them.

Each program runs first as if jobcache were not installed, then in a job with a private cache. Both have the same result,
nothing is built or computed again, and the user's cache stays as it was: byte for byte, mtime for mtime.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import hf
from support.warm import HUB, HUB_RESULT, NO_WAITING, Warm, computed

OFFLINE = {"HF_HUB_OFFLINE": "1"}
VERSIONS = {"installed": sys.executable, **hf.EARLIER}


@pytest.fixture(
    scope="module", params=[pytest.param(path, id=name, marks=pytest.mark.xdist_group(name)) for name, path in VERSIONS.items()]
)
def warm(request: pytest.FixtureRequest) -> Iterator[Warm]:
    made = Warm(request.param)
    yield made
    made.close()


@contextmanager
def untouched(warm: Warm) -> Iterator[None]:
    """Assert that the block changes nothing in the user's cache, and that nothing asked the Hub."""
    before = warm.print()
    asked = len(warm.hub.asked)
    yield
    after = warm.print()
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == set()
    assert len(warm.hub.asked) == asked


WAYS = {
    "no variable": ({}, NO_WAITING),
    "HF_HUB_OFFLINE": (OFFLINE, ""),
    "HF_DATASETS_OFFLINE": ({"HF_DATASETS_OFFLINE": "1"}, ""),
    "in Python": ({}, "import os\nos.environ['HF_HUB_OFFLINE'] = '1'\n"),
}


@pytest.mark.parametrize("way", WAYS)
def test_job_without_internet_finds_newest_revision(warm: Warm, way: str) -> None:
    """However the job learns that it is offline: the datasets of the Hub, the newest revision, and a map computed before."""
    env, first = WAYS[way]
    assert warm.run(HUB, first, **env) == HUB_RESULT
    with untouched(warm):
        assert warm.job(HUB, first, **env) == (HUB_RESULT, [])


def test_revision_with_the_newest_date_wins(warm: Warm) -> None:
    """Without jobcache, a user who loads the older revision last has it offline: so has the job."""
    older = next(path for path in (warm.cache / "acme___rows/default/0.0.0").iterdir() if _rows(path) == 100)
    before = older.stat()
    os.utime(older)
    try:
        code = "result = len(load_dataset('acme/rows')['train'])"
        assert warm.run(code, **OFFLINE) == 100
        with untouched(warm):
            assert warm.job(code, **OFFLINE) == (100, [])
    finally:
        os.utime(older, ns=(before.st_atime_ns, before.st_mtime_ns))


def _rows(build: Path) -> int:
    from support.stores import info

    return int(info(build)["splits"]["train"]["num_examples"]) if build.is_dir() and (build / "dataset_info.json").exists() else 0


@pytest.mark.parametrize(
    "place", [{"HF_HOME": "~/project/hf"}, {"XDG_CACHE_HOME": "{home}/xdg"}], ids=["HF_HOME", "XDG_CACHE_HOME"]
)
def test_warm_cache_elsewhere(warm: Warm, place: dict[str, str]) -> None:
    """A job finds what lies below HF_HOME, as `datasets` spells it, and below XDG_CACHE_HOME."""
    env = {name: value.format(home=warm.home) for name, value in place.items()}
    to = warm.home / "project/hf" if "HF_HOME" in env else warm.home / "xdg/huggingface"
    warm.copy(to)
    aside = warm.huggingface.rename(warm.home / "aside")
    try:
        assert warm.run(HUB, **env, **OFFLINE) == HUB_RESULT
        assert warm.job(HUB, **env, **OFFLINE) == (HUB_RESULT, [])
    finally:
        shutil.rmtree(warm.huggingface, ignore_errors=True)
        aside.rename(warm.huggingface)


def test_step_with_another_home_finds_what_it_finds_without_jobcache(warm: Warm) -> None:
    """That home has only the older revision of a dataset. The batch script and the step each find their own, offline."""
    other = warm.home / "other"
    warm.copy(other)
    for build in (other / "datasets/acme___rows/default/0.0.0").iterdir():
        if _rows(build) == 200:
            shutil.rmtree(build)
    code = "result = len(load_dataset('acme/rows')['train'])"
    env = {"HF_HOME": str(other), **OFFLINE}
    assert warm.run(code, **env) == 100
    batch = warm.begin()
    step = warm.site.task_prolog(warm.number, step="0", HOME=str(warm.home), **{**batch, **env}).exports
    assert Path(step["HF_DATASETS_CACHE"]).parent == warm.site.cache(warm.number)
    with untouched(warm):
        assert warm.run(HUB, **{**batch, **OFFLINE}) == HUB_RESULT
        assert warm.run(code, **{**batch, **env, **step}) == 100
        assert warm.run(warm.local, **{**batch, **env, **step}) == warm.local_result
        assert computed(Path(step["HF_DATASETS_CACHE"])) == []
    warm.end()
    assert not warm.site.cache(warm.number).exists()


def test_local_data_is_not_built_again(warm: Warm) -> None:
    """Builds of JSON, CSV and Parquet, from_generator, and chains of map, filter, sort and shuffle are all found."""
    before = set(warm.cache.rglob("*.arrow"))
    assert warm.run(warm.local) == warm.local_result
    assert set(warm.cache.rglob("*.arrow")) == before, "without jobcache, nothing is computed"
    with untouched(warm):
        assert warm.job(warm.local) == (warm.local_result, [])


def test_job_can_do_anything_to_its_cache(warm: Warm) -> None:
    """New results, forced builds, cleaning, chmod and removal stay in the job's cache."""
    load = f"load_dataset('json', data_files={{'train': '{warm.data}/lines.jsonl', 'test': '{warm.data}/more.jsonl'}}"
    steps = f"""
import os, subprocess
cache = os.environ['HF_DATASETS_CACHE']
def shell(line):
    subprocess.run(line, shell=True, check=True)
ds = {load})['train']
result = [len(ds.map(lambda row: {{'new': row['id'] + 1}})), len(ds.map(lambda row: {{'new': 0}}, load_from_cache_file=False))]
ds.map(lambda row: {{'other': row['id']}}, cache_file_name=ds.cache_files[0]['filename'] + '.mine')
result.append(ds.cleanup_cache_files())
ds.save_to_disk({str(warm.home / "saved")!r})
result.append(len(load_from_disk({str(warm.home / "saved")!r})))
for mode in 'reuse_cache_if_exists', 'force_redownload':
    result.append(len({load}, download_mode=mode)['train']))
shell('find "$HF_DATASETS_CACHE" -name dataset_info.json -exec cat {{}} + > /dev/null')
shell('chmod -R a-w "$HF_DATASETS_CACHE"')
result.append(len(ds))
shell('chmod -R u+w "$HF_DATASETS_CACHE"; rm -rf "$HF_DATASETS_CACHE"/*')
result.append(len({load})['train']))
shell('rm -rf "$HF_DATASETS_CACHE"')
result.append(sum(ds['id']))
"""
    with untouched(warm):
        result, _ = warm.job(steps)
    assert result[:2] == [400, 400] and result[2] > 2 and result[3:] == [400, 400, 400, 400, 400, sum(range(400))]


# ------------------------------------------------------------------------------------------------------------- hazards


def test_user_cache_that_goes_away_after_linking(warm: Warm) -> None:
    """Links lead nowhere, as in a container without the home: local data is rebuilt; a dataset of the Hub fails loudly."""
    env = warm.begin(**OFFLINE)
    cache = Path(env["HF_DATASETS_CACHE"])
    linked = [path for path in cache.rglob("*") if path.is_symlink()]
    assert linked
    aside = warm.huggingface.rename(warm.home / "aside")
    try:
        with pytest.raises(hf.JobFailed, match=r"FileNotFoundError|ConnectionError|OfflineMode"):
            warm.run("result = len(load_dataset('acme/rows')['train'])", **env)
        assert warm.run(warm.local, **env) == warm.local_result
        assert computed(cache), "rebuilt, in the job's cache"
    finally:
        shutil.rmtree(warm.huggingface, ignore_errors=True)
        aside.rename(warm.huggingface)
        warm.end()


def test_results_removed_from_user_cache_after_linking(warm: Warm) -> None:
    """The job computes them again, in its own cache: nothing is written through a link that leads nowhere."""
    more = f"""
lines = load_dataset('json', data_files='{warm.data}/lines.jsonl', split='train')
two = lines.map(dict, num_proc=2)
result = [len(two), sum(two['id'])]
"""
    expected = warm.run(more)
    env = warm.begin()
    aside = []
    for path in warm.cache.rglob("cache-*.arrow"):
        aside.append((path, path.rename(warm.home / path.name)))
    try:
        with untouched(warm):
            assert warm.run(warm.local, **env) == warm.local_result
            assert warm.run(more, **env) == expected
        made = computed(Path(env["HF_DATASETS_CACHE"]))
    finally:
        for path, to in aside:
            to.rename(path)
        warm.end()
    assert len(made) >= 8 and all(os.path.basename(path).startswith("cache-") for path in made), made


def test_login_node_that_rebuilds(warm: Warm) -> None:
    """Eight jobs begin while a program on the login node builds the same dataset again and again: each has all rows.

    While they load, a link can lead nowhere for an instant. A job then fails like one that shares the user's cache, loudly.
    """
    load = f"load_dataset('json', data_files={{'train': '{warm.data}/lines.jsonl', 'test': '{warm.data}/more.jsonl'}}"
    going, stop = warm.home / "going", warm.data / "stop"
    loop = f"""
import os
result = 0
while not os.path.exists({str(stop)!r}):
    {load}, download_mode='force_redownload')
    result += 1
    open({str(going)!r}, 'w').close()
"""
    each = f"""
def loaded(cache):
    try:
        ds = {load}, cache_dir=cache)
        return [len(ds['train']), sum(ds['train']['id']), len(ds['test'])]
    except FileNotFoundError:
        return None
"""
    login = hf.Python(warm.executable, warm=True)
    rounds: list[int] = []
    thread = threading.Thread(target=lambda: rounds.append(login.run(loop, warm.home, HF_HOME=None)))
    thread.start()
    try:
        until = time.monotonic() + 30
        while not going.exists() and time.monotonic() < until:
            time.sleep(0.02)
        caches = [warm.begin()["HF_DATASETS_CACHE"] for _ in range(8)]
        each += f"result = [loaded(cache) for cache in {caches!r}]"
        meanwhile = warm.run(each)
    finally:
        stop.touch()
        thread.join()
        login.close()
        for path in going, stop:
            path.unlink(missing_ok=True)
    right = [400, sum(range(400)), 50]
    assert rounds[0] > 3
    assert right in meanwhile and meanwhile.count(right) + meanwhile.count(None) == 8, meanwhile
    assert warm.run(each) == [right] * 8


def test_user_cache_that_goes_away_under_a_running_job(warm: Warm) -> None:
    """Data that is loaded stays readable."""
    env = warm.begin()
    aside = warm.home / "aside"
    code = f"ds = load_dataset('json', data_files='{warm.data}/array.json')['train']\n"
    code += f"import os\nos.rename({str(warm.huggingface)!r}, {str(aside)!r})\n"
    try:
        rows = "result = [sum(ds['id']), len(ds.map(lambda row: {'new': -row['id']}))]\n"
        assert warm.run(code + rows, **env) == [sum(range(300)), 300]
    finally:
        shutil.rmtree(warm.huggingface, ignore_errors=True)
        aside.rename(warm.huggingface)
        warm.end()
