"""The type of a JSON column follows from the types of its parts, in whatever order and grouping."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.parquet import json_types
from jobcache.parquet.json_types import EXACT, Leaf, ListOf, Struct, Type, infer, join, join_all

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from([1, EXACT, EXACT + 1, 2**63, -(2**63)]) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


def unordered(kind: Type) -> Type:
    """Return the type with the fields of structs in the order of their names."""
    if isinstance(kind, ListOf):
        return ListOf(unordered(kind.item))
    if isinstance(kind, Struct):
        return Struct(tuple(sorted((name, unordered(part)) for name, part in kind.fields)), kind.varies)
    return kind


@given(st.lists(VALUES, max_size=6), st.data())
def test_order_and_grouping_play_no_part(values: list[Any], data: st.DataObject) -> None:
    """So the size of a piece does not either."""
    shuffled = data.draw(st.permutations(values))
    cut = data.draw(st.integers(0, len(values)))
    whole = join_all(map(infer, values))
    assert unordered(join(join_all(map(infer, shuffled[:cut])), join_all(map(infer, shuffled[cut:])))) == unordered(whole)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, 1], Leaf.INT),
        ([1, 0.5], Leaf.DOUBLE),
        ([EXACT, 0.5], Leaf.DOUBLE),
        ([EXACT + 1, 1], Leaf.LONG),
        ([EXACT + 1, 0.5], Leaf.MIXED),
        ([2**63], Leaf.MIXED),
        ([True, 1], Leaf.MIXED),
        (["1", 1], Leaf.MIXED),
        ([[], [1], [0.5], None], ListOf(Leaf.DOUBLE)),
        ([{"a": 1}, {"a": None}], Struct((("a", Leaf.INT),))),
        ([{"a": 1}, {"b": 1}], Struct((("a", Leaf.INT), ("b", Leaf.INT)), varies=True)),
        ([[1], {"a": 1}], Leaf.MIXED),
    ],
)
def test_type_holds_all_values(values: list[Any], expected: Type) -> None:
    """Without a change of one."""
    assert join_all(map(infer, values)) == expected


@given(st.lists(st.dictionaries(st.sampled_from("pq"), VALUES, max_size=2), max_size=4))
def test_encoded_values_decode_to_themselves(records: list[dict[str, Any]]) -> None:
    """JSON text stands in place of the values of type MIXED, and of no others."""
    columns = {name: json_types.settle(kind) for name, kind in json_types.infer_columns(records).items()}
    for record in records:
        encoded = json_types.encode(record, Struct(tuple(columns.items())))
        for name, value in record.items():
            if columns[name] is Leaf.MIXED and value is not None:
                assert json.dumps(json.loads(encoded[name])) == json.dumps(value)
            elif not isinstance(columns[name], (ListOf, Struct)):
                assert encoded[name] is value


def test_conflict_is_named_by_its_place() -> None:
    """For the message."""
    kind = join(infer([{"x": {"y": 1}}]), infer([{"x": {"y": "s"}}]))
    assert json_types.has_conflict(kind) and json_types.conflict(kind) == "[].x.y"
