"""`jobcache to-parquet` writes the values that the real `datasets` loads from the source, or it writes nothing."""

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
    """Write the records in the format that the file's name states."""
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
    """Return the types of the columns. Parquet stores milliseconds in place of seconds, as datasets' own to_parquet does."""
    return str(dataset.features).replace("timestamp[s]", "timestamp[ms]")


def assert_same(reference: Any, parquet: str, tmp_path: Path) -> None:
    """Assert that the Parquet file has the columns, types and values that `datasets` loads from the source."""
    written = loaded("parquet", parquet, tmp_path)
    assert types(written) == types(reference)
    assert written.to_list() == reference.to_list()


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
def test_values_are_those_that_datasets_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, options: dict[str, str], piece: int
) -> None:
    """Any text, gaps, nested lists and records, dates; in one piece and in many."""
    monkeypatch.setattr(convert, "_PIECE", piece)
    source = write(tmp_path / name, rows(300))
    plain = tmp_path / f"plain{Path(name).suffix}"  # not a pattern
    plain.symlink_to(source)
    fields = [options["field"]] if "field" in options else []
    (done,) = convert.convert(convert.parse_sources([source], fields), str(tmp_path / "out"), silent)
    assert (done.rows, done.split, done.bytes) == (300, "train", os.path.getsize(done.path))
    assert_same(loaded(kind, str(plain), tmp_path, **options), done.path, tmp_path)


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
def test_array_in_pieces_has_types_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]]
) -> None:
    """The type of a column shows in the last rows only."""
    monkeypatch.setattr(convert, "_PIECE", 500)
    source = write(tmp_path / "a.json", records)
    (done,) = convert.convert(convert.parse_sources([source], []), str(tmp_path / "out.parquet"), silent)
    assert done.path == str(tmp_path / "out.parquet")
    assert_same(loaded("json", source, tmp_path), done.path, tmp_path)


def test_splits_by_file_name_field_and_word(tmp_path: Path) -> None:
    """Several files of one split follow each other."""
    a, b, test = (write(tmp_path / name, rows(count)) for name, count in (("a.jsonl", 10), ("b.jsonl", 20), ("test.csv", 5)))
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows(4)).encode()))
    done = convert.convert(convert.parse_sources([a, b, test, f"extra={packed}"], []), str(tmp_path / "out"), silent)
    assert [(one.split, one.rows) for one in done] == [("train", 30), ("test", 5), ("extra", 4)]
    assert_same(loaded("json", [a, b], tmp_path), done[0].path, tmp_path)
    fields = convert.parse_sources([write(tmp_path / "field.json", rows(9))], ["train", "test"])
    done = convert.convert(fields, str(tmp_path / "fields"), silent)
    assert [(one.split, one.rows) for one in done] == [("train", 9), ("test", 3)]


def test_printed_lines_load_the_files(tmp_path: Path) -> None:
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
    """Return the message of a refused conversion, which leaves the directory as it was."""
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
    assert "the file exists" in refused(tmp_path, [a, test], [])
    assert "name a directory" in refused(tmp_path, [a, test], [], "new.parquet")


def test_file_created_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program creates a file with the target's name. It stays, and no split is written."""
    a, test = write(tmp_path / "a.jsonl", rows(3)), write(tmp_path / "test.jsonl", rows(3))
    move_all = convert._move_all

    def move_late(files: Any) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/test.parquet").write_text("theirs")
        move_all(files)

    monkeypatch.setattr(convert, "_move_all", move_late)
    with pytest.raises(convert.ParquetError, match="another program created this file"):
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
def test_unreadable_source_is_reported_by_name(tmp_path: Path, name: str, text: str, words: str) -> None:
    """Nothing is left."""
    (tmp_path / name).write_text(text)
    message = refused(tmp_path, [str(tmp_path / name)], [])
    assert words in message and name in message


def test_unknown_field_is_reported_with_known_ones(tmp_path: Path) -> None:
    """For users who mistyped the name."""
    source = write(tmp_path / "field.json", rows(3))
    assert "no field 'trian', but 'meta', 'train', 'test'" in refused(tmp_path, [source], ["trian"])


def test_changed_source_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the old and half of the new file is no dataset."""
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
def test_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM or SIGHUP during the conversion."""
    source = tmp_path / "a.json"
    source.write_text(json.dumps(rows(20)))
    slow = "from jobcache.parquet import convert; convert._PIECE = 100"  # about fifty loads of 50 ms each
    process = command(str(source), str(tmp_path / "out"), code=slow)
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".jobcache-parquet-*/train/cache/*")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_inside_a_destructor_ends_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """Python drops an exception that is raised while it removes an object, wherever in a library that may be."""
    source = tmp_path / "a.json"
    source.write_text(json.dumps(rows(20)))
    code = f"""
import os, signal
from jobcache.parquet import convert
class Object:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
link = convert._SplitWriter._new_path
def new_path(writer):
    Object()
    return link(writer)
convert._SplitWriter._new_path = new_path
"""
    process = command(str(source), str(tmp_path / "out"), code=code)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert list(tmp_path.iterdir()) == [source]


def test_missing_datasets_is_reported_with_remedy(tmp_path: Path) -> None:
    """The message has the command that installs it."""
    source = write(tmp_path / "a.jsonl", rows(3))
    process = command(source, str(tmp_path / "out"), code="import sys; sys.modules['datasets'] = None")
    assert "slurm-jobcache[parquet]" in process.communicate(timeout=60)[1] and process.returncode == 1


@pytest.mark.parametrize("name", ["a.json", "field.json", "a.jsonl", "a.csv"])
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    """A file of 120 MB needs about as much memory as one of 40 MB.

    The test counts memory that belongs to the process alone, without mapped files. The text of the larger file is 80 MB more.
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
    """Return the bytes of memory that belong to a process alone, without mapped files."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024 if "RssAnon:" in text else 0
