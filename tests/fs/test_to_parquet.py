"""`jobcache to-parquet`: what it writes is what the real `datasets` loads from the source, or it writes nothing."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobcache.parquet import convert

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def silent(_what: str, _done: int, _of: int) -> None:
    pass


def rows(count: int) -> list[dict[str, Any]]:
    rng = random.Random(7)
    return [
        {
            "id": i,
            "text": f'é "{rng.random()}"\n\t, line {i}',
            "score": None if i % 5 == 0 else rng.random(),
            "n": {"list": list(range(i % 4)), "name": str(i), "deep": [{"x": i}]},
            "flag": bool(i % 2),
            "day": f"2024-01-{i % 28 + 1:02d} 10:00:00",
            "empty": None,
        }
        for i in range(count)
    ]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """Write the records in the form that the file's name says."""
    text = json.dumps(records)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(record) + "\n" for record in records)
    elif path.name.startswith("field"):
        text = json.dumps({"meta": {"x": [1]}, "train": records, "test": records[:3]}, indent=1)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "score", "flag"], "", "ignore", delimiter=",\t"[path.suffix == ".tsv"])
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_text(text)
    return str(path)


def loaded(kind: str, files: Any, tmp_path: Path, **options: Any) -> Any:
    return datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(tmp_path / "hf"), **options)


def types(dataset: Any) -> str:
    """Parquet has no moments in seconds: datasets' own to_parquet makes milliseconds of them as well."""
    return str(dataset.features).replace("timestamp[s]", "timestamp[ms]")


def same(reference: Any, parquet: str, tmp_path: Path) -> None:
    """The Parquet file gives the same columns, types and values as `datasets` gave for the source."""
    ours = loaded("parquet", parquet, tmp_path)
    assert types(ours) == types(reference)
    assert ours.to_list() == reference.to_list()


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("a.json", "json", {}),
        ("field.json", "json", {"field": "train"}),
        ("a.jsonl", "json", {}),
        ("a.csv", "csv", {}),
        ("a.tsv", "csv", {"sep": "\t"}),
        ("odd name [1]*{x}, é.jsonl", "json", {}),
    ],
)
@pytest.mark.parametrize("piece", [convert._PIECE, 3000])
def test_the_values_are_those_of_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, options: dict[str, str], piece: int
) -> None:
    """Text with everything in it, gaps, nested lists and records, dates; in one piece and in many."""
    monkeypatch.setattr(convert, "_PIECE", piece)
    source = write(tmp_path / name, rows(300))
    plain = tmp_path / f"plain{Path(name).suffix}"  # a name that is no pattern
    plain.symlink_to(source)
    fields = [options["field"]] if "field" in options else []
    (done,) = convert.convert(convert.parse_sources([source], fields), str(tmp_path / "out"), silent)
    assert (done.rows, done.split, done.bytes) == (300, "train", os.path.getsize(done.path))
    same(loaded(kind, str(plain), tmp_path, **options), done.path, tmp_path)


@pytest.mark.parametrize(
    "records",
    [
        [{"a": i if i < 200 else i + 0.5} for i in range(300)],
        [{"a": None} for _ in range(200)] + [{"a": "text"} for _ in range(100)],
        [{"a": i} if i < 200 else {"a": i, "late": [i]} for i in range(300)],
        [{"n": {"x": i} if i < 200 else {"x": i, "y": "s"}} for i in range(300)],
    ],
    ids=["int-then-float", "null-then-text", "late-column", "late-member"],
)
def test_types_that_show_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]]) -> None:
    """An array in pieces has the types of the whole."""
    monkeypatch.setattr(convert, "_PIECE", 500)
    source = write(tmp_path / "a.json", records)
    (done,) = convert.convert(convert.parse_sources([source], []), str(tmp_path / "out.parquet"), silent)
    assert done.path == str(tmp_path / "out.parquet")
    same(loaded("json", source, tmp_path), done.path, tmp_path)


def test_splits(tmp_path: Path) -> None:
    """By name, by field, by word; several files of one split follow each other."""
    a, b, test = (write(tmp_path / name, rows(count)) for name, count in (("a.jsonl", 10), ("b.jsonl", 20), ("test.csv", 5)))
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows(4)).encode()))
    done = convert.convert(convert.parse_sources([a, b, test, f"extra={packed}"], []), str(tmp_path / "out"), silent)
    assert [(one.split, one.rows) for one in done] == [("train", 30), ("test", 5), ("extra", 4)]
    same(loaded("json", [a, b], tmp_path), done[0].path, tmp_path)
    fields = convert.parse_sources([write(tmp_path / "field.json", rows(9))], ["train", "test"])
    done = convert.convert(fields, str(tmp_path / "fields"), silent)
    assert [(one.split, one.rows) for one in done] == [("train", 9), ("test", 3)]


def test_what_is_printed_loads_it(tmp_path: Path) -> None:
    """The Python lines run as they are, and the YAML names the same files."""
    import yaml

    source = write(tmp_path / "it's.jsonl", rows(10))
    out = tmp_path / "out's dir"
    done = convert.convert(convert.parse_sources([source, f"test={source}"], []), str(out), silent)
    python, _, text = convert.usage(done).partition("\n\n")
    script = f"{python}\nassert (len(dataset), dataset.split) == (10, 'train')"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "hf")}, check=True)
    assert yaml.safe_load(text)["dataset"] == {
        "source": "parquet",
        "data_files": {"train": f"{out}/train.parquet", "test": f"{out}/test.parquet"},
        "split": "train",
    }


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(tmp_path: Path, words: list[str], fields: list[str], destination: str = "out") -> str:
    """What is said of it; and nothing is there that was not before."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(convert.ParquetError) as raised:
        convert.convert(convert.parse_sources(words, fields), str(tmp_path / destination), silent)
    assert sorted(path for path in tmp_path.rglob("*") if "hf" not in path.parts) == before
    return str(raised.value)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Neither a file nor a link, dangling or not; and none of the splits is written."""
    a, test = write(tmp_path / "a.jsonl", rows(3)), write(tmp_path / "test.jsonl", rows(3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/test.parquet").symlink_to("nowhere")
    assert "is there already" in refused(tmp_path, [a, test], [])
    assert "name a directory" in refused(tmp_path, [a, test], [], "new.parquet")


def test_a_file_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's file that appears at the name while we work is not replaced, and the other splits are not left."""
    a, test = write(tmp_path / "a.jsonl", rows(3)), write(tmp_path / "test.jsonl", rows(3))
    put = convert._put

    def late(files: Any) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/test.parquet").write_text("theirs")
        put(files)

    monkeypatch.setattr(convert, "_put", late)
    with pytest.raises(convert.ParquetError, match="is there by now"):
        convert.convert(convert.parse_sources([a, test], []), str(tmp_path / "out"), silent)
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("test.parquet", "theirs")]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '[{"a": 1}, {"a": 2', "cut short"),
        ("a.json", "[]", "no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "datasets cannot load it"),
        ("a.txt", "x", "neither .json"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    """Said with the file's name, and nothing is left."""
    (tmp_path / name).write_text(text)
    said = refused(tmp_path, [str(tmp_path / name)], [])
    assert words in said and name in said


def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    """The fields that there are."""
    source = write(tmp_path / "field.json", rows(3))
    assert "no field 'trian', but 'meta', 'train', 'test'" in refused(tmp_path, [source], ["trian"])


def test_a_source_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the old and half of the new file is no data set."""
    source = write(tmp_path / "a.jsonl", rows(3))

    def change(what: str, _done: int, _of: int) -> None:
        if what == "checking":
            Path(source).write_text("{}")

    with pytest.raises(convert.ParquetError, match="changed"):
        convert.convert(convert.parse_sources([source], []), str(tmp_path / "out"), change)
    assert not (tmp_path / "out").exists()


def command(*argv: str, code: str = "", **more: Any) -> subprocess.Popen[str]:
    start = f"{code}\nfrom jobcache.cli.main import main\nmain()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", start, "to-parquet", *argv], env=env, **pipes, **more)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM in the middle of the work."""
    source = tmp_path / "a.json"
    source.write_text(json.dumps(rows(20)))
    slow = "from jobcache.parquet import convert; convert._PIECE = 100"  # some fifty loads, 50 ms each
    process = command(str(source), str(tmp_path / "out"), code=slow)
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".jobcache-parquet-*/train/cache/*")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert list(tmp_path.iterdir()) == [source]


def test_without_datasets(tmp_path: Path) -> None:
    """What is missing, and how to get it."""
    source = write(tmp_path / "a.jsonl", rows(3))
    process = command(source, str(tmp_path / "out"), code="import sys; sys.modules['datasets'] = None")
    assert "slurm-jobcache[parquet]" in process.communicate(timeout=60)[1] and process.returncode == 1


@pytest.mark.parametrize("name", ["a.json", "field.json", "a.jsonl", "a.csv"])
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    """A file of 120 MB takes no more memory than one of 40 MB, give or take what allocators keep.

    Counted is what is the process's own, without what is mapped from files. To hold the text alone would be 80 MB more.
    """
    record = "x" * 1000
    used = []
    for megabytes in (40, 120):
        source = tmp_path / f"{megabytes}-{name}"
        records: list[dict[str, Any]] = [{"id": i, "text": record, "score": i / 7, "flag": True} for i in range(megabytes * 1000)]
        write(tmp_path / name, records)
        (tmp_path / name).rename(source)
        del records
        fields = ["--field", "train"] if name.startswith("field") else []
        process = command(str(source), *fields, str(tmp_path / f"out-{megabytes}"))
        peak = 0
        while process.poll() is None:
            peak = max(peak, own_memory(process.pid))
            time.sleep(0.01)
        assert process.communicate()[1] == ""
        used.append(peak)
    assert used[1] - used[0] < 60e6, f"{used[0] / 1e6:.0f} MB, then {used[1] / 1e6:.0f} MB"


def own_memory(pid: int) -> int:
    """Bytes of memory that are a process's own."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024 if "RssAnon:" in text else 0
