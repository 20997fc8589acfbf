"""The elements of a JSON array in a text that is read in small blocks."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.parquet import json_pieces
from jobcache.parquet.json_pieces import NotRecords, Reader

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def elements(text: str, field: str | None = None, block: int = 1) -> list[Any]:
    """Return the elements, read in blocks of `block` characters."""
    default, json_pieces._BLOCK = json_pieces._BLOCK, block
    try:
        return [json.loads(element) for element in Reader(io.StringIO(text)).elements(field)]
    finally:
        json_pieces._BLOCK = default


@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_array_at_the_top(values: list[Any], indent: int | None, ascii_only: bool, block: int) -> None:
    """Any values, in any formatting, wherever a block ends."""
    assert elements(json.dumps(values, indent=indent, ensure_ascii=ascii_only), block=block) == values


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.lists(VALUES, max_size=4), st.integers(1, 9))
def test_array_in_a_field(others: dict[str, Any], values: list[Any], block: int) -> None:
    """The field follows other fields, which are skipped."""
    text = json.dumps({**others, 'train "x"': values, "more": [1]})
    assert elements(text, 'train "x"', block) == values


def test_elements_keep_their_spelling() -> None:
    """Digits, doubled keys and escapes stay."""
    text = '[1.10000000000000000001, {"a": 1, "a":2}, "\\u00e9é", 1E5]'
    assert list(Reader(io.StringIO(text)).elements()) == ["1.10000000000000000001", '{"a": 1, "a":2}', '"\\u00e9é"', "1E5"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a list"), ("{}", "not a list"), ('{"a": [1]}', "not a list"), ("[1, 2", "cut short"), ("[1 2]", "expected"),
        ("[1,]", "a comma at the end"), ("[tru]", "not JSON"), ('["a]', "cut short"), ("[1] 2", "unexpected text after the end"),
    ],
)  # fmt: skip
def test_other_text_is_reported(text: str, words: str) -> None:
    """The error has a message, for any size of a block."""
    with pytest.raises(NotRecords, match=words):
        elements(text)


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "expected"), ('{"a": 1, "b": []}', "no field 'x', but 'a', 'b'"), ('{"x": 1}', "not a list")]
)
def test_missing_field_is_reported_with_known_ones(text: str, words: str) -> None:
    """For users who mistyped the name."""
    with pytest.raises(NotRecords, match=words):
        elements(text, "x")


@pytest.mark.parametrize(
    "text", ['[{"a": 1,}', '[{"a" 1}', "[{'a': 1}", '[{"a": tru, ', '[{"a": 1}}', "[1, +2", '{"x": [{"a": 1}], "b": [1 2]']
)
def test_reader_gives_up_at_an_error_that_is_no_cut(text: str) -> None:
    """The rest of the file can be large."""
    reader = Reader(io.StringIO(text + " " * (8 * json_pieces._BLOCK)))
    with pytest.raises(NotRecords, match="not JSON.* line 1 column"):
        list(reader.elements("x" if text.startswith("{") else None))
    assert reader.position <= 2 * json_pieces._BLOCK


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_error_has_its_line_and_column(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a block ends."""
    monkeypatch.setattr(json_pieces, "_BLOCK", block)
    text = '[\n {"a": 1},\n {"a": "\\u00e9",\n  "b": 1, c: 2}\n' + " " * 50 + "]"
    with pytest.raises(NotRecords, match="line 4 column 11$"):
        list(Reader(io.StringIO(text)).elements())


def test_last_field_of_a_name_counts() -> None:
    """The reader reports a further field of the name; the caller passes over the first one in a new reader."""
    text = '{"d": [1], "e": 0, "d": [2, 3]}'
    with pytest.raises(json_pieces.FieldAgain):
        list(Reader(io.StringIO(text)).elements("d"))
    assert list(Reader(io.StringIO(text)).elements("d", skip=1)) == ["2", "3"]
