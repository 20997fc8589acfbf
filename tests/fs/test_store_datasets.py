"""The real `datasets` in linked caches and with stored builds, in each version for which a Python is configured."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import hf
from support.store_jobs import LABEL
from support.stores import Jobs, info, links, own, write_rows

MAP = "def half(row):\n    return {'half': row['id'] / 2}\nmapped = ds['train'].map(half)\n"
RESULT = "result = [len(ds['train']), sum(ds['train']['id'])]\n"


@pytest.fixture(scope="module", params=hf.PYTHONS, ids=lambda path: Path(path).parent.parent.name)
def python(request: pytest.FixtureRequest) -> Iterator[hf.Python]:
    made = hf.Python(request.param)
    yield made
    made.close()


def load(data: Path, more: str = "") -> str:
    return f"ds = load_dataset('json', data_files={{'train': {str(data)!r}}}{more})\n"


def build_in(cache: Path) -> Path:
    (found,) = (path.parent for path in cache.glob("json/default-*/0.0.0/*/dataset_info.json"))
    return found


def total(rows: int) -> list[int]:
    return [rows, rows * (rows - 1) // 2]


def test_linked_cache_behaves_like_a_private_one(jobs: Jobs, python: hf.Python) -> None:
    """The second job loads and maps without a build. New maps, cleaning and forced downloads leave the store untouched."""
    data = write_rows(jobs.home / "data.jsonl", range(400))
    assert jobs.job(python, load(data) + MAP + RESULT, LABEL) == total(400)
    (stored,) = jobs.stored(LABEL)
    before = jobs.print()
    used = stored.stat().st_mtime_ns

    cache = jobs.begin(LABEL)
    env = {"HF_DATASETS_CACHE": str(cache)}
    seeded = links(build_in(cache))
    assert python.run(load(data) + MAP + RESULT, jobs.home, **env) == total(400)
    assert links(build_in(cache)) == seeded == (3, 0), "loaded and mapped from the store, nothing built"
    code = load(data) + "mapped = ds['train'].map(lambda row: {'twice': row['id'] * 2})\n" + "result = mapped['twice'][-1]"
    assert python.run(code, jobs.home, **env) == 798
    assert links(build_in(cache)) == (3, 1), "a new result of map is a file of the job"
    assert python.run(load(data) + "result = ds['train'].cleanup_cache_files()", jobs.home, **env) == 2
    assert links(build_in(cache)) == (2, 0)
    assert python.run(load(data, ", download_mode='force_redownload'") + RESULT, jobs.home, **env) == total(400)
    assert links(build_in(cache)) == (0, 2), "rebuilt in the job's cache"
    assert jobs.print() == before, "byte for byte, mtime for mtime"
    jobs.end()
    assert jobs.print() == before and stored.stat().st_mtime_ns == used

    jobs.job(python, load(data) + RESULT, LABEL)
    assert stored.stat().st_mtime_ns > used, "a job that loads the build dates it"
    after = stored.stat().st_mtime_ns
    jobs.job(python, "result = 0", LABEL)
    assert stored.stat().st_mtime_ns == after, "a job that is only linked to it does not"


@pytest.mark.parametrize("made_by", ["from_generator(rows)", "from_json({data!r})"], ids=["generator", "json"])
def test_builds_one_level_higher_are_handed_on(jobs: Jobs, python: hf.Python, made_by: str) -> None:
    """With results of map on top, and beside a build of `load_dataset`. The next job writes nothing."""
    data = write_rows(jobs.home / "data.jsonl", range(40))
    code = "from datasets import Dataset\ndef rows():\n    for at in range(40):\n        yield {'id': at}\n"
    code += f"ds = {{'train': Dataset.{made_by.format(data=str(data))}}}\n" + MAP
    both = code + "other = " + load(data).partition("= ")[2] + "result = [len(other['train']), sum(mapped['half'])]\n"
    made = []
    for _ in range(3):
        cache = jobs.begin(LABEL)
        assert python.run(both, jobs.home, HF_DATASETS_CACHE=str(cache)) == [40, 39 * 40 / 4]
        found = [path for path in cache.glob("*/*/0.0.0/**/*") if path.suffix in (".arrow", ".json")]
        made.append((len([path for path in found if path.is_symlink()]), len(found)))
        jobs.end()
    assert made == [(0, 5), (5, 5), (5, 5)] and len(jobs.stored(LABEL)) == 2


DELETE_LOCKS = """
for path in pathlib.Path(os.environ["HF_DATASETS_CACHE"]).rglob("*.lock"):
    path.unlink()
"""


def test_results_on_saved_dataset_are_beside_it_or_where_the_program_puts_them(jobs: Jobs, python: hf.Python) -> None:
    """As the user guide states of `load_from_disk`: the next job finds the results beside the data."""
    saved = jobs.home / "saved"
    data = write_rows(jobs.home / "data.jsonl", range(1, 3))
    python.run(load(data) + f"ds['train'].save_to_disk({str(saved)!r})\nresult = 0\n", jobs.home)
    code = f"import os\nfrom datasets import load_from_disk\nds = {{'train': load_from_disk({str(saved)!r})}}\n" + MAP
    result = "result = [mapped['half'][0], mapped.cache_files[0]['filename']]\n"
    for _ in range(2):
        half, file = jobs.job(python, code + result, LABEL)
        assert half == 0.5 and Path(file).parent == saved and len(list(saved.glob("cache-*.arrow"))) == 1
    code = code.replace("map(half)", "map(half, cache_file_name=os.environ['HF_DATASETS_CACHE'] + '/half.arrow')")
    saved.chmod(0o555)
    half, file = jobs.job(python, code + result, LABEL)
    assert half == 0.5 and Path(file).name == "half.arrow" and len(list(saved.glob("cache-*.arrow"))) == 1


@pytest.mark.parametrize("name", ["", "c" * 150])
@pytest.mark.parametrize("locks", ["import os, pathlib\n" + DELETE_LOCKS, ""], ids=["deleted", "kept"])
def test_use_is_dated_whatever_becomes_of_locks(jobs: Jobs, python: hf.Python, name: str, locks: str) -> None:
    """`datasets` shortens long names of locks, and some versions of filelock delete locks. Mere links date nothing."""
    data = write_rows(jobs.home / "data.jsonl", range(40))
    code = load(data).replace("'json',", f"'json', {name!r}," if name else "'json',")
    assert jobs.job(python, code + RESULT, LABEL) == total(40)
    (stored,) = jobs.stored(LABEL)
    os.utime(stored, (1, 1))
    jobs.job(python, "result = 0", LABEL)
    assert stored.stat().st_mtime == 1
    cache = jobs.begin(LABEL)
    assert python.run(code + RESULT + locks, jobs.home, HF_DATASETS_CACHE=str(cache)) == total(40)
    (build,) = cache.glob("json/*/0.0.0/*/dataset_info.json")
    assert build.is_symlink() and len(str(build.parent)) > (255 if name else 0), "loaded from the store"
    jobs.end()
    assert stored.stat().st_mtime > 1


def test_edited_map_is_computed_once(jobs: Jobs, python: hf.Python) -> None:
    """The first job that runs it adds its result to the store, and so do later maps on top; the next job computes nothing."""
    data = write_rows(jobs.home / "data.jsonl", range(400))
    twice = "def twice(row):\n    return {'twice': row['id'] * 2}\nmapped = ds['train'].map(twice)\n"
    both = MAP + "small = mapped.filter(lambda row: row['half'] < 50)\n" + twice.replace("ds['train']", "small")
    rows = "result = [len(mapped), mapped[-1]['id']]\n"
    jobs.job(python, load(data) + MAP, LABEL)
    made = []
    for code in (twice, both, both + "mapped = mapped.shuffle(seed=7).sort('id')\n"):
        expected = None
        for _ in range(2):
            cache = jobs.begin(LABEL)
            before = links(build_in(cache))
            assert before[1] == 0
            found = python.run(load(data) + code + rows, jobs.home, HF_DATASETS_CACHE=str(cache))
            assert found == (expected or found)
            expected = found
            made.append(links(build_in(cache))[1])
            assert links(build_in(cache))[0] == before[0]
            (stored,) = [path for path in jobs.stored(LABEL) if not (path / "retired").exists()]
            events = jobs.end()
            assert [event["files"] for event in events] == ([made[-1]] if made[-1] else [])
    assert made[1::2] == [0, 0, 0] and all(made[::2]), "one job computes each, and the next one is linked to it"
    assert jobs.left() == [] and stored.name.endswith(".4")


def test_missing_store_leads_to_a_rebuild(jobs: Jobs, python: hf.Python) -> None:
    """The store disappears as a whole or in part before the job loads: no failure, and the right rows."""
    data = write_rows(jobs.home / "data.jsonl", range(400))
    jobs.job(python, load(data) + MAP, LABEL)
    (stored,) = jobs.stored(LABEL)
    for part in ("files/dataset_info.json", ".", "files"):
        cache = jobs.begin(LABEL)
        assert links(build_in(cache)) == (3, 0)
        aside = jobs.site.dir / "aside"
        (stored / part).rename(aside)
        try:
            assert python.run(load(data) + MAP + RESULT, jobs.home, HF_DATASETS_CACHE=str(cache)) == total(400), part
        finally:
            if not (stored / part).exists():
                aside.rename(stored / part)
        jobs.site.configure()
        jobs.site.epilog(jobs.number, SLURM_JOB_NUM_NODES="2")  # publishes nothing


def test_offline_job_finds_newest_revision(jobs: Jobs, python: hf.Python) -> None:
    """`datasets` finds a dataset of the Hub in the cache by the mtimes of its directories: links keep these."""
    if not python.run("import importlib.util as u\nresult = bool(u.find_spec('datasets.packaged_modules.cache'))", jobs.home):
        pytest.skip("this version does not look in the cache")
    data = write_rows(jobs.home / "data.jsonl", range(10))
    jobs.site.configure(offline="isolate")
    for revision, rows, when in (("b" * 40, 20, 2_000), ("a" * 40, 30, 3_000), ("c" * 40, 10, 1_000)):
        write_rows(data, range(rows))
        cache = jobs.begin(LABEL)
        python.run(load(data), jobs.home, HF_DATASETS_CACHE=str(cache))
        built = build_in(cache)
        hub = cache / "acme___toy/default/0.0.0" / revision
        hub.parent.mkdir(parents=True, exist_ok=True)
        built.rename(hub)
        (hub / "json-train.arrow").rename(hub / "toy-train.arrow")
        content = info(hub)
        content["dataset_name"] = content["splits"]["train"]["dataset_name"] = "toy"
        (hub / "dataset_info.json").write_text(json.dumps(content))
        own(cache, hub)
        os.utime(hub, (when, when))
        (event,) = jobs.end()
        assert event["outcome"] == "published"
    cache = jobs.begin(LABEL, HF_HUB_OFFLINE="1")
    assert len(list((cache / "acme___toy/default/0.0.0").iterdir())) == 3
    code = "ds = load_dataset('acme/toy')\n" + RESULT
    assert python.run(code, jobs.home, HF_DATASETS_CACHE=str(cache), HF_HUB_OFFLINE="1") == total(30)


def test_labels_separate_data_with_same_path_and_date(jobs: Jobs, python: hf.Python) -> None:
    """Two containers have different data at the same path with the same mtime: `datasets` sees one dataset."""
    data = jobs.home / "data.jsonl"

    def container(first: int) -> None:
        write_rows(data, range(first, first + 100))
        os.utime(data, (1_000_000_000, 1_000_000_000))

    def first_row(label: str) -> int:
        found: int = jobs.job(python, load(data) + "result = ds['train'][0]['id']", label)
        return found

    container(0)
    assert first_row("image-a") == 0
    container(7000)
    assert first_row("image-a") == 0, "without a label of its own, the second job has the data of the first"
    assert first_row("image-b") == 7000
    container(0)
    assert first_row("image-a") == 0 and first_row("image-b") == 7000, "each label keeps its own data"


def test_unchecked_damaged_build_loads_without_error(jobs: Jobs, python: hf.Python) -> None:
    """The reason for checking builds: one without its tail gives fewer or other rows, and no error."""
    data = write_rows(jobs.home / "data.jsonl", range(5000))
    jobs.job(python, load(data), LABEL)
    (stored,) = jobs.stored(LABEL)
    shard = stored / "files/json-train.arrow"
    content = shard.read_bytes()
    before = shard.stat()
    shard.chmod(0o600)
    shard.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(shard, ns=(before.st_mtime_ns, before.st_mtime_ns))
    cache = jobs.begin(LABEL)
    assert not list(cache.glob("json/*/*/*"))
    env = {"HF_DATASETS_CACHE": str(cache)}
    assert python.run(load(data) + RESULT, jobs.home, **env) == total(5000), "not linked, so rebuilt"
    built = build_in(cache)
    shutil.copyfile(shard, built / shard.name)
    assert python.run(load(data) + RESULT, jobs.home, **env) != total(5000), "the damaged build gives wrong rows"


@pytest.mark.skipif(len(hf.PYTHONS) < 3, reason="needs two versions that use the same name for different builds, as 3.6 and 4.0")
def test_labels_separate_versions_of_datasets(jobs: Jobs) -> None:
    """datasets 4.0 writes `List`, which 3.6 does not know, and both give the build the same name."""
    code = "result = datasets.__version__"
    pythons = {}
    for path in hf.PYTHONS:
        one = hf.Python(path)
        pythons[jobs.job(one, code)[:3]] = one
    if not {"3.6", "4.0"} <= set(pythons):
        pytest.skip("no Pythons with datasets 3.6 and 4.0 among JOBCACHE_DATASETS_PYTHONS")
    data = write_rows(jobs.home / "data.jsonl", range(100))
    assert jobs.job(pythons["4.0"], load(data) + RESULT, "mixed") == total(100)
    with pytest.raises(hf.JobFailed, match="List"):
        jobs.job(pythons["3.6"], load(data) + RESULT, "mixed")
    assert jobs.job(pythons["4.0"], load(data) + RESULT, "v4") == total(100)
    for _ in range(2):
        assert jobs.job(pythons["3.6"], load(data) + RESULT, "v3") == total(100)
    for one in pythons.values():
        one.close()
