"""`jobcache to-parquet` writes the values of the source, as the real `datasets` loads them, or it writes nothing."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobcache.parquet import convert, csv_rows, json_reading
from jobcache.parquet.sources import ParquetError, Source, parse_sources

datasets = pytest.importorskip("datasets")
pandas = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
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
    """Return the types of the columns. Parquet has no seconds, and pandas decides between string and large_string."""
    return str(dataset.features).replace("timestamp[s]", "timestamp[ms]").replace("large_string", "string")


def assert_same(reference: Any, parquet: str, tmp_path: Path) -> None:
    """Assert that the Parquet file has the columns, types and values that `datasets` loads from the source."""
    written = loaded("parquet", parquet, tmp_path)
    assert types(written) == types(reference)
    assert written.to_list() == reference.to_list()


def small_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(json_reading, "PIECE", size)
    monkeypatch.setattr(csv_rows, "PIECE", size)


def converted(tmp_path: Path, name: str, text: str | bytes, *fields: str) -> pa.Table:
    """Return the table that is written for a source with that name and text."""
    directory = Path(tempfile.mkdtemp(dir=tmp_path))
    source = directory / name
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    (done,) = convert.convert(parse_sources([str(source)], fields), str(directory / "out.parquet"), silent)
    return parquet.read_table(done.path)


def decoded(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows, with the values that JSON in a column stands for."""
    return [{name: decode(row[name], table.schema.field(name).type) for name in row} for row in table.to_pylist()]


def decode(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_list(kind):
        return [decode(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: decode(value[field.name], field.type) for field in kind}
    return value


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("a.jsonl", "json", {}),
        ("a.csv", "csv", {}),
        ("a.tsv", "csv", {"sep": "\t"}),
        ("odd name [1]*{x}, é.jsonl", "json", {}),
    ],
)
@pytest.mark.parametrize("piece", [json_reading.PIECE, 3000])
def test_values_are_those_that_datasets_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, options: dict[str, str], piece: int
) -> None:
    """Any text, gaps, nested lists and records, dates; in one piece and in many."""
    small_pieces(monkeypatch, piece)
    source = write(tmp_path / name, rows(300))
    plain = tmp_path / f"plain{Path(name).suffix}"  # not a pattern
    plain.symlink_to(source)
    (done,) = convert.convert(parse_sources([source], []), str(tmp_path / "out"), silent)
    assert (done.rows, done.split, done.bytes) == (300, "train", os.path.getsize(done.path))
    assert_same(loaded(kind, str(plain), tmp_path, **options), done.path, tmp_path)


@pytest.mark.parametrize(("name", "fields"), [("a.json", []), ("field.json", ["train"])])
@pytest.mark.parametrize("piece", [json_reading.PIECE, 3000])
def test_values_of_an_array_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fields: list[str], piece: int
) -> None:
    """Strings stay strings, also those that look like dates."""
    small_pieces(monkeypatch, piece)
    source = write(tmp_path / name, rows(300))
    (done,) = convert.convert(parse_sources([source], fields), str(tmp_path / "out"), silent)
    assert loaded("parquet", done.path, tmp_path).to_list() == rows(300)


@pytest.mark.parametrize(
    "records",
    [
        [{"a": i if i < 200 else i + 0.5} for i in range(300)],
        [{"a": None} for _ in range(200)] + [{"a": "text"} for _ in range(100)],
        [{"a": i} if i < 200 else {"a": i, "late": [i]} for i in range(300)],
        [{"n": {"x": i} if i < 200 else {"x": i, "y": "s"}} for i in range(300)],
        [{"n": {"x": None, "y": []}} if i < 200 else {"n": {"x": i, "y": ["s"]}} for i in range(300)],
        [{"n": [{"x": 1}, {"x": 2} if i < 200 else {"y": 1}]} for i in range(300)],
        [{"a": i if i < 200 else f"t{i}"} for i in range(300)],
    ],
    ids=["int-then-float", "null-then-text", "late-column", "late-member", "nested-null", "late-key-in-list", "int-then-text"],
)
def test_array_in_pieces_has_types_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]]
) -> None:
    """The type of a column shows in the last rows only."""
    small_pieces(monkeypatch, 500)
    source = write(tmp_path / "a.json", records)
    (done,) = convert.convert(parse_sources([source], []), str(tmp_path / "out.parquet"), silent)
    assert done.path == str(tmp_path / "out.parquet")
    assert_same(loaded("json", source, tmp_path), done.path, tmp_path)


# -------------------------------------------------------------------------------------------------- the values of the file

EXACT = 1 << 53


@pytest.mark.parametrize(("name", "fields"), [("a.json", []), ("field.json", ["train"]), ("a.jsonl", [])])
def test_floats_keep_all_digits(tmp_path: Path, name: str, fields: list[str]) -> None:
    """`datasets` itself writes the elements of an array anew, with ten decimals."""
    records = [{"x": 1.23456789012345e-12, "y": 0.1234567890123456, "z": [{"e": 2 / 3}], "w": 1.0}]
    source = write(tmp_path / name, records)
    (done,) = convert.convert(parse_sources([source], fields), str(tmp_path / "out.parquet"), silent)
    (found,) = parquet.read_table(done.path).to_pylist()
    assert found == records[0] and isinstance(found["w"], float)


@pytest.mark.parametrize("name", ["timestamp", "date", "modified_at"])
@pytest.mark.parametrize("kind", ["a.json", "field.json", "a.jsonl"])
def test_numbers_stay_numbers_whatever_their_column_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Without a unit, a time cannot be read from them."""
    small_pieces(monkeypatch, 100)
    records = [{name: 1600000000 * 1000 ** (i % 4)} for i in range(50)]
    source = write(tmp_path / kind, records)
    fields = ["train"] if kind == "field.json" else []
    (done,) = convert.convert(parse_sources([source], fields), str(tmp_path / "out.parquet"), silent)
    table = parquet.read_table(done.path)
    assert table.schema.field(name).type == pa.int64() and table.to_pylist() == records


@pytest.mark.parametrize(
    "values",
    [
        [EXACT + 1, None, 5],
        [EXACT + 1, 0.5],
        [0.5, EXACT + 1],
        [2**63, 1],
        [10**30],
        [-(2**63), 1],
        [[EXACT + 1], [0.5]],
        [EXACT, 0.5],
        ["2024-01-01", "soon"],
        ["1", 1],
        [True, 1],
        ["text", {"a": 1}],
        [{"a": 1}, [1]],
        [{}, {"a": None}],
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("piece", [1, json_reading.PIECE])
def test_no_value_changes_for_the_sake_of_others_in_its_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, values: list[Any], piece: int
) -> None:
    """Whole numbers that no float stores beside floats, types that have nothing in common."""
    small_pieces(monkeypatch, piece)
    source = write(tmp_path / name, [{"a": value} for value in values])
    (done,) = convert.convert(parse_sources([source], []), str(tmp_path / "out.parquet"), silent)
    found = [row["a"] for row in decoded(parquet.read_table(done.path))]
    assert found == values and [type(a) for a in found if not isinstance(a, float)] == [
        type(b) for a, b in zip(found, values) if not isinstance(a, float)
    ]


def test_without_type_json_a_conflict_is_reported_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions of `datasets` have no type for values of various types. Missing fields are null there."""
    monkeypatch.delattr(datasets, "Json", raising=False)
    assert converted(tmp_path, "a.json", '[{"n": {"x": 1}}, {"n": {"y": 2}}]').to_pylist()[1] == {"n": {"x": None, "y": 2}}
    with pytest.raises(ParquetError, match=r"a\.json: column 'n\[\]\.x' has values of types"):
        converted(tmp_path, "a.json", '[{"n": [{"x": 1}]}, {"n": [{"x": "s"}]}]')


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([EXACT, EXACT + 1, 2**63 - 1, 2**64, "2024-01-01", "2024-01-01T10:00:00", "", "x", "5", "null"])
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(["p", "q", "date"]), VALUES, max_size=3), min_size=1, max_size=8).filter(any)


@given(RECORDS, st.sampled_from(["a.json", "a.jsonl"]), st.integers(1, 60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_types_and_values_do_not_depend_on_the_size_of_a_piece(
    tmp_path: Path, records: list[dict[str, Any]], name: str, piece: int
) -> None:
    """Any records. The values are those of the file; only whole columns of times, in JSON lines, are read as times."""
    text = json.dumps(records) if name == "a.json" else "\n".join(map(json.dumps, records))
    with pytest.MonkeyPatch.context() as patch:
        whole = converted(tmp_path, name, text)
        small_pieces(patch, piece)
        pieces = converted(tmp_path, name, text)
    assert pieces.schema == whole.schema and pieces.to_pylist() == whole.to_pylist()
    if "timestamp" not in str(whole.schema):
        assert decoded(whole) == [{column: record.get(column) for column in whole.column_names} for record in records]


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ('[{"a": "x\ty\n"}]', [], [{"a": "x\ty\n"}]),
        ('{"d": [{"a": "x\ty"}]}', ["d"], [{"a": "x\ty"}]),
        ('{"d": {"a": [1, 2], "b": ["x", null]}}', ["d"], [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
        ('[{"a": 1, "a": 2.5}]', [], [{"a": 2.5}]),
        ('{"d": [{"a": 1}], "e": 1, "d": [{"b": 2}, {"b": 3}], "f": {}}', ["d"], [{"b": 2}, {"b": 3}]),
        ('["x", null]', [], [{"text": "x"}, {"text": None}]),
        ('{"d": [1, 2]}', ["d"], [{"text": 1}, {"text": 2}]),
        (' \n [{"a": 1}]\n', [], [{"a": 1}]),
        ('\ufeff[{"a": 1}]', [], [{"a": 1}]),
        ('{"a": 1}{"a": 2}\n\n{"a": 3}', [], [{"a": 1}, {"a": 2}, {"a": 3}]),
        ('[{"a": 1, "t": "} null"}, {}]', [], [{"a": 1, "t": "} null"}, {"a": None, "t": None}]),
        ('{"a": "} null"}', [], [{"a": "} null"}]),
    ],
)
@pytest.mark.parametrize("piece", [1, json_reading.PIECE])
def test_odd_json_that_datasets_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fields: list[str], expected: list[Any], piece: int
) -> None:
    """Control characters, columns, keys that come twice (the last one counts), values instead of records."""
    small_pieces(monkeypatch, piece)
    assert converted(tmp_path, "a.json", text, *fields).to_pylist() == expected


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_file_is_recognized_by_its_contents(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Whatever its name, also in several parts; damage is reported."""
    packed = pack(b'[{"a": 1}, ') + pack(b'{"a": 2}]')
    for name in ("a.json", "a.json.GZ", "a.json.gz", "a.json.xz"):
        assert converted(tmp_path, name, packed).to_pylist() == [{"a": 1}, {"a": 2}]
    text = "\n".join(f'{{"a": "{random.Random(i).random()}"}}' for i in range(5000)).encode()
    for name in ("a.jsonl", "a.csv"):
        with pytest.raises(ParquetError, match="damaged or cut short"):
            converted(tmp_path, name, pack(text)[:-2000])


# ------------------------------------------------------------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,x\n,\n", [{"a": 1.0, "b": "x"}, {"a": None, "b": None}]),
        ('a,b\n1,NA\n2,"NA"\n', [{"a": 1, "b": None}, {"a": 2, "b": None}]),
        ("a,b\n1,2\n3\n", [{"a": 1, "b": 2}, {"a": 3, "b": None}]),
        ("a,a\n1,2\n", [{"a": 1, "a.1": 2}]),
        ("a,b\nTrue,true\n,false\n", [{"a": True, "b": True}, {"a": None, "b": False}]),
        ("a,b\n2024-01-01,10:00\n", [{"a": "2024-01-01", "b": "10:00"}]),
        ("a,b\n18446744073709551615,1\n", [{"a": 2**64 - 1, "b": 1}]),
        ("a,b\n0x10,007\n", [{"a": "0x10", "b": 7}]),
        ("a,b\n+1, 2 \n", [{"a": 1, "b": 2}]),
        ("a,b\n1,y\nx,\n01,z\n", [{"a": "1", "b": "y"}, {"a": "x", "b": None}, {"a": "01", "b": "z"}]),
        ('a,b\n"x""y","1"\nz"q,2\n"ab"cd,3\n', [{"a": 'x"y', "b": 1}, {"a": 'z"q', "b": 2}, {"a": "abcd", "b": 3}]),
        ("a\nx\n\n \ny\n", [{"a": "x"}, {"a": "y"}]),
        ("a,b\r\n1,1.5\r\n2.5,2\r\n", [{"a": 1.0, "b": 1.5}, {"a": 2.5, "b": 2.0}]),
        ("a,b\ninf,NAN\n-Infinity,x\n", [{"a": float("inf"), "b": "NAN"}, {"a": -float("inf"), "b": "x"}]),
        ('a,b\n"x\n1","y,\r\nz"\n', [{"a": "x\n1", "b": "y,\r\nz"}]),
    ],
)
@pytest.mark.parametrize("piece", [1, csv_rows.PIECE])
def test_cells_are_those_that_datasets_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: list[dict[str, Any]], piece: int
) -> None:
    """Gaps, quotes, names that come twice, short rows, numbers in odd spellings."""
    source = tmp_path / "a.csv"
    source.write_bytes(text.encode())
    monkeypatch.setattr(csv_rows, "PIECE", piece)
    monkeypatch.setattr(csv_rows, "_BLOCK", 200)
    (done,) = convert.convert(parse_sources([str(source)], []), str(tmp_path / "out.parquet"), silent)
    found = parquet.read_table(done.path).to_pylist()
    assert found == expected == loaded("csv", str(source), tmp_path).to_list()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["9007199254740993", ""], [EXACT + 1, None]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["184467440737095516150", "1"], ["184467440737095516150", "1"]),
        (["-1", "18446744073709551615"], ["-1", "18446744073709551615"]),
        (["x"] + ["01"] * 30, ["x"] + ["01"] * 30),
        (["01"] * 30 + ["x"], ["01"] * 30 + ["x"]),
        (["1"] * 30 + ["0.1234567890123456"], [1.0] * 30 + [0.1234567890123456]),
        ([""] * 30 + ["x"], [None] * 30 + ["x"]),
        (["true"] * 30 + ["1"], ["true"] * 30 + ["1"]),
    ],
)
@pytest.mark.parametrize("piece", [1, csv_rows.PIECE])
def test_no_cell_changes_for_the_sake_of_others_in_its_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[str], expected: list[Any], piece: int
) -> None:
    """Where no type of numbers holds all cells, the column has the text of the file."""
    small_pieces(monkeypatch, piece)
    monkeypatch.setattr(csv_rows, "_BLOCK", 60)
    text = "a,b\n" + "".join(f"{value},1\n" for value in values)
    assert converted(tmp_path, "a.csv", text).column("a").to_pylist() == expected


TOKENS = st.sampled_from(["a", "b", ",", ",", "\n", "\n", "\r\n", '"', '"x"', '""', " ", "1", "NA", "\t", "\r", "é", ',"x,\ny"'])


@given(st.lists(TOKENS, max_size=14).map("".join), st.sampled_from(["h,i\n", "h\n", "\n\nh,i,j\n"]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_is_cut_into_cells_as_pandas_does(tmp_path: Path, text: str, header: str) -> None:
    """Any text: the same rows of text, or an error where pandas has one."""
    source = tmp_path / "a.csv"
    source.write_bytes((header + text).encode())
    try:
        frame = pandas.read_csv(source, dtype=str)
        expected = pa.Table.from_pandas(frame).to_pylist()
    except ValueError:
        expected = []
    try:
        spool = Path(tempfile.mkdtemp(dir=tmp_path)) / "spool"
        rows = csv_rows.CsvRows([Source(str(source), "train")], str(spool), silent)
        found = [row for table in rows._spool for row in table.to_pylist()]
    except ParquetError:
        found = []
    assert found == expected


# ---------------------------------------------------------------------------------------------------------------- splits


def test_splits_by_file_name_field_and_word(tmp_path: Path) -> None:
    """Several files of one split follow each other."""
    a, b, test = (write(tmp_path / name, rows(count)) for name, count in (("a.jsonl", 10), ("b.jsonl", 20), ("test.csv", 5)))
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows(4)).encode()))
    done = convert.convert(parse_sources([a, b, test, f"extra={packed}"], []), str(tmp_path / "out"), silent)
    assert [(one.split, one.rows) for one in done] == [("train", 30), ("test", 5), ("extra", 4)]
    assert_same(loaded("json", [a, b], tmp_path), done[0].path, tmp_path)
    fields = parse_sources([write(tmp_path / "field.json", rows(9))], ["train", "test"])
    done = convert.convert(fields, str(tmp_path / "fields"), silent)
    assert [(one.split, one.rows) for one in done] == [("train", 9), ("test", 3)]


def test_printed_lines_load_the_files(tmp_path: Path) -> None:
    """The Python lines run as they are, and the YAML names the same files."""
    import yaml

    source = write(tmp_path / "it's.jsonl", rows(10))
    out = tmp_path / "out's dir"
    done = convert.convert(parse_sources([source, f"test={source}"], []), str(out), silent)
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
    with pytest.raises(ParquetError) as raised:
        convert.convert(parse_sources(words, fields), str(tmp_path / destination), silent)
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
    with pytest.raises(ParquetError, match="another program created this file"):
        convert.convert(parse_sources([a, test], []), str(tmp_path / "out"), silent)
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("test.parquet", "theirs")]


@pytest.mark.parametrize(
    ("name", "text", "words", "fields"),
    [
        ("a.json", '[{"a": 1}, {"a": 2', "cut short", []),
        ("a.json", "[]", "no rows", []),
        ("a.json", "[{}, {}]", "no fields", []),
        ("a.json", '[{"a": 1},\n {"b": 2,}, {"c": 3}' + " " * 100 + "]", "line 2 column 10", []),
        ("a.json", '[{"a": 1},]', "a comma at the end of a list, line 1 column 11", []),
        ("a.json", '[{"a": 1}, null]', "element 2 is not an object", []),
        ("a.json", '[{"a": 1e999}]', "too large", []),
        ("a.json", '[{"a": "\\ud800"}]', "surrogate", []),
        ("a.json", '{"d": [{"a": 1}]', "cut short", ["d"]),
        ("a.json", '{"d": [{"a": 1}]} x', "unexpected text after the end", ["d"]),
        ("a.json", '{"d": 5}', "not a list of records", ["d"]),
        ("a.json", '{"d": {"a": [1], "b": []}}', "lists of one length", ["d"]),
        ("a.json", "", "no rows", []),
        ("a.json", b'[{"a": "\xff"}]', "not UTF-8", []),
        ("a.json", "[" * 100000, "nested too deeply", []),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 3 column 1", []),
        ("a.jsonl", '{"a": 1}\n\n5\n', "not an object, line 3 column 1", []),
        ("a.jsonl", '{"a": 1}\nnull\n', "not an object, line 2 column 1", []),
        ("a.jsonl", '{"a": "\t"}\n', "control character at, line 1 column 8", []),
        ("a.jsonl", '{"a": 1, "a": 1}\n', "key twice, line 1 column 1", []),
        ("a.jsonl", b'{"a": "\xff"}', "not UTF-8", []),
        ("a.csv", "a,b\n1,2\n3,4,5\n", "Expected 2 fields in line 3, saw 3", []),
        ("a.csv", 'a,b\n1,"2\n', "EOF inside string", []),
        ("a.csv", "a,b\n", "no rows", []),
        ("a.csv", "", "no rows", []),
        ("a.csv", b"a,b\n\xff,1\n", "not UTF-8", []),
        ("a.txt", "x", "neither .json", []),
        ("a.csv", "x", "only a .json file has fields", ["x"]),
    ],
)
@pytest.mark.parametrize("piece", [1, json_reading.PIECE])
def test_unreadable_source_is_reported_by_name_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | bytes, words: str, fields: list[str], piece: int
) -> None:
    """Nothing is left."""
    small_pieces(monkeypatch, piece)
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    message = refused(tmp_path, [str(tmp_path / name)], fields)
    assert words in message and name in message


def test_formats_cannot_be_mixed_in_a_split(tmp_path: Path) -> None:
    """`datasets` cannot load them together."""
    words = [write(tmp_path / name, rows(3)) for name in ("a.jsonl", "b.csv")]
    assert "split train has JSON and CSV files" in refused(tmp_path, words, [])


def test_csv_files_of_a_split_have_the_same_columns(tmp_path: Path) -> None:
    """The message names the file that differs."""
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.csv").write_text("a,c\n1,2\n")
    assert "b.csv: the files of split train differ" in refused(tmp_path, [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"], [])


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

    with pytest.raises(ParquetError, match="changed"):
        convert.convert(parse_sources([source], []), str(tmp_path / "out"), change)
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
    slow = """
import time
from jobcache.parquet import json_reading, spool
json_reading.PIECE = 100
append = spool.Spool.append
spool.Spool.append = lambda *args: (time.sleep(0.1), append(*args))
"""
    process = command(str(source), str(tmp_path / "out"), code=slow)
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".jobcache-parquet-*/train/*")):
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
from jobcache.parquet import convert, csv_rows, json_reading
from jobcache.parquet.sources import ParquetError, Source, parse_sources
class Object:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
append = spool.Spool.append
def new_append(*args):
    Object()
    return append(*args)
spool.Spool.append = new_append
"""
    process = command(str(source), str(tmp_path / "out"), code=code)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert list(tmp_path.iterdir()) == [source]


def test_missing_package_is_reported_with_remedy(tmp_path: Path) -> None:
    """The message has the command that installs it."""
    source = write(tmp_path / "a.jsonl", rows(3))
    process = command(source, str(tmp_path / "out"), code="import sys; sys.modules['pyarrow'] = None")
    assert "slurm-jobcache[parquet]" in process.communicate(timeout=60)[1] and process.returncode == 1


@pytest.mark.parametrize("name", ["a.json", "field.json", "a.jsonl", "a.csv", "late.json"])
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    """A file of 160 MB needs about as much memory as one of 40 MB.

    The test counts memory that belongs to the process alone, without mapped files. The text of the larger file is 120 MB more.
    Arrow's allocator alone makes runs with one file differ by up to 60 MB.
    """
    record = "x" * 1000
    used = []
    for megabytes in (40, 160):
        source = tmp_path / f"{megabytes}-{name}"
        records: list[dict[str, Any]] = [{"id": i, "text": record, "score": i / 7, "flag": True} for i in range(megabytes * 1000)]
        if name == "late.json":  # the first piece does not show the types
            records = [
                {**one, "n": {"x": None if i < 20000 else 1, "y": [] if i < 20000 else ["s"]}} for i, one in enumerate(records)
            ]
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
    assert used[1] - used[0] < 100e6, f"{used[0] / 1e6:.0f} MB, then {used[1] / 1e6:.0f} MB"


def own_memory(pid: int) -> int:
    """Return the bytes of memory that belong to a process alone, without mapped files."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024 if "RssAnon:" in text else 0
