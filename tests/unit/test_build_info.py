"""Reading dataset_info.json without `json`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jobcache
from jobcache.cache import build_info, reasons

TEXTS = [
    '{"a": [1, -2.5, 1e9, null, true, false, NaN, -Infinity], "b": {"c": "\\u00e9\\n\\ud83d\\ude00"}}',
    ' \t\r\n{"a" : {} , "b":[ ]}\n',
    '{"a": 1, "a": 2}',
]
BROKEN = [
    "",
    " ",
    "{",
    "[1]",
    '"a"',
    "1",
    '{"a": tru}',
    '{"a": 1} x',
    '{"a": 1',
    '{"a": "b',
    "{'a': 1}",
    '{"a": 1,}',
    '{"a": "\n"}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", TEXTS)
def test_parse_agrees_with_json(text: str) -> None:
    assert repr(build_info.parse(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("with_json", [True, False])
def test_parse_refuses_anything_else(text: str, with_json: bool) -> None:
    """Also in an interpreter that has not imported `json`, which the scanner needs for its errors."""
    if with_json:
        with pytest.raises(reasons.Refused):
            build_info.parse(text.encode())
        return
    code = f"try: build_info.parse({text.encode()!r})\nexcept reasons.Refused: os.write(1, b'refused')"
    assert run("assert 'json' not in sys.modules\n" + code) == b"refused"


def test_parse_of_a_whole_text_imports_no_json() -> None:
    run(f"build_info.parse({TEXTS[0].encode()!r}); assert not {{'json', 're'}} & set(sys.modules)")


def run(code: str) -> bytes:
    """Run `code` in an interpreter with no more modules than the TaskProlog has; return its output."""
    head = f"import os, sys; sys.path.append({str(Path(jobcache.__file__).parents[1])!r})\n"
    head += "from jobcache.cache import build_info, reasons\n"
    return subprocess.run([sys.executable, "-I", "-S", "-c", head + code], stdout=subprocess.PIPE, check=True).stdout


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(reasons.Refused):
        build_info.parse(b'{"a": "\xff"}')


@pytest.mark.parametrize(
    ("split", "files"),
    [
        ({"num_examples": 3, "dataset_name": "x"}, ["x-train.arrow"]),
        ({"num_examples": 3, "dataset_name": "x", "shard_lengths": [3]}, ["x-train.arrow"]),
        ({"num_examples": 3, "shard_lengths": [1, 2]}, [f"builder-train-0000{at}-of-00002.arrow" for at in (0, 1)]),
        ({"num_examples": 0}, ["builder-train.arrow"]),
    ],
)  # fmt: skip
def test_shards_have_the_names_that_datasets_gives_them(split: dict[str, object], files: list[str]) -> None:
    found = build_info.shards({"builder_name": "builder", "splits": {"train": split}})
    assert [file for file, _ in found["train"]] == files


@pytest.mark.parametrize(
    "split",
    [{}, {"num_examples": "3"}, {"num_examples": 3, "shard_lengths": [1, 1]}, {"num_examples": 3, "dataset_name": "../x"}],
)
def test_shards_of_an_odd_description_are_refused(split: dict[str, object]) -> None:
    with pytest.raises(reasons.Refused):
        build_info.shards({"builder_name": "x", "splits": {"train": split}})
