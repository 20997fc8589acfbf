"""The elements of a JSON array, cut out of a text that is read in small blocks."""

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
    """The elements, read in blocks of `block` characters."""
    was, json_pieces._BLOCK = json_pieces._BLOCK, block
    try:
        return [json.loads(element) for element in Reader(io.StringIO(text)).elements(field)]
    finally:
        json_pieces._BLOCK = was


@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_an_array_at_the_top(values: list[Any], indent: int | None, ascii_only: bool, block: int) -> None:
    """Whatever it holds, however it is written, wherever a block ends."""
    assert elements(json.dumps(values, indent=indent, ensure_ascii=ascii_only), block=block) == values


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.lists(VALUES, max_size=4), st.integers(1, 9))
def test_an_array_in_a_field(others: dict[str, Any], values: list[Any], block: int) -> None:
    """Found behind other fields, which are skipped."""
    text = json.dumps({**others, 'train "x"': values, "more": [1]})
    assert elements(text, 'train "x"', block) == values


def test_elements_are_given_as_they_are_spelled() -> None:
    """Nothing is lost on the way: digits, doubled keys, escapes."""
    text = '[1.10000000000000000001, {"a": 1, "a":2}, "\\u00e9é", 1E5]'
    assert list(Reader(io.StringIO(text)).elements()) == ["1.10000000000000000001", '{"a": 1, "a":2}', '"\\u00e9é"', "1E5"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no list"), ("{}", "no list"), ('{"a": [1]}', "no list"), ("[1, 2", "cut short"), ("[1 2]", "expected"),
        ("[1,]", "a comma at the end"), ("[tru]", "not JSON"), ('["a]', "cut short"), ("[1] 2", "more after"),
    ],
)  # fmt: skip
def test_what_is_no_array(text: str, words: str) -> None:
    """Said in words, whatever block it is read in."""
    with pytest.raises(NotRecords, match=words):
        elements(text)


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "expected"), ('{"a": 1, "b": []}', "no field 'x', but 'a', 'b'"), ('{"x": 1}', "no list")]
)
def test_what_has_no_such_field(text: str, words: str) -> None:
    """The fields that there are, for who mistyped it."""
    with pytest.raises(NotRecords, match=words):
        elements(text, "x")
