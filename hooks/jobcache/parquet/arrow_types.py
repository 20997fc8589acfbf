"""Arrow's types and those of json_types: one from the other, and from the values of a table."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import compute

from jobcache.parquet import json_types
from jobcache.parquet.json_types import EXACT, Columns, Leaf, ListOf, Struct, Type

_ARROW = {
    Leaf.NULL: pa.null(),
    Leaf.BOOL: pa.bool_(),
    Leaf.INT: pa.int64(),
    Leaf.LONG: pa.int64(),
    Leaf.DOUBLE: pa.float64(),
    Leaf.TIME: pa.timestamp("s"),
    Leaf.STRING: pa.string(),
    Leaf.MIXED: pa.string(),
}
_LEAVES = {_ARROW[leaf]: leaf for leaf in (Leaf.NULL, Leaf.BOOL, Leaf.DOUBLE, Leaf.TIME, Leaf.STRING)}


def of_table(table: Any) -> Columns:
    """Return the types of the columns of a table."""
    return {name: _of_array(table.column(name).combine_chunks()) for name in table.column_names}


def _of_array(array: Any) -> Type:
    """Return the type of the values of an array, which is NULL if all are null."""
    if array.null_count == len(array):
        return Leaf.NULL
    if pa.types.is_list(array.type):
        return ListOf(_of_array(array.flatten()))
    if pa.types.is_struct(array.type):
        return Struct(tuple((field.name, _of_array(part)) for field, part in zip(array.type, array.flatten())))
    if array.type == pa.int64():
        return Leaf.LONG if _reaches(array, EXACT + 1) else Leaf.INT
    return _LEAVES[array.type]


def may_be_inexact(column: Any) -> bool:
    """Return whether a column of a table has a float that can stand for a whole number which no float stores."""
    return any(_has_large_floats(chunk) for chunk in column.chunks)


def _has_large_floats(array: Any) -> bool:
    if pa.types.is_list(array.type):
        return _has_large_floats(array.flatten())
    if pa.types.is_struct(array.type):
        return any(map(_has_large_floats, array.flatten()))
    return bool(array.type == pa.float64() and _reaches(array, EXACT))


def _reaches(array: Any, limit: int) -> bool:
    """Return whether some value of an array of numbers is as large as `limit`, or as small as -limit."""
    found = compute.min_max(array).as_py()
    return found["min"] is not None and (found["max"] >= limit or found["min"] <= -limit)


def may_lack_fields(column: Any) -> bool:
    """Return whether objects in a column of a table may lack a field: Arrow fills these with nulls."""
    return any(_has_gaps(chunk) for chunk in column.chunks)


def _has_gaps(array: Any) -> bool:
    if pa.types.is_list(array.type):
        return _has_gaps(array.flatten())
    if pa.types.is_struct(array.type):
        present = array.drop_null() if array.null_count else array
        return any(part.null_count or _has_gaps(part) for part in present.flatten())
    return False


def is_valid(table: Any) -> bool:
    """Return whether the parts of a table fit together. To read a list that begins with nulls, Arrow has to know its type."""
    try:
        table.validate()
    except pa.ArrowInvalid:
        return False
    return True


def readable(schema: Any, with_times: bool) -> Any:
    """Return the schema with strings in place of times, and of nulls in lists: Arrow makes invalid arrays of these."""
    return pa.schema([(field.name, _readable(field.type, with_times, False)) for field in schema])


def _readable(found: Any, with_times: bool, in_list: bool) -> Any:
    if pa.types.is_list(found):
        return pa.list_(_readable(found.value_type, with_times, True))
    if pa.types.is_struct(found):
        return pa.struct([(field.name, _readable(field.type, with_times, in_list)) for field in found])
    is_string = (pa.types.is_timestamp(found) and not with_times) or (pa.types.is_null(found) and in_list)
    return pa.string() if is_string else found


def schema(columns: Mapping[str, Type]) -> Any:
    """Return the Arrow schema of columns, with text for MIXED."""
    return pa.schema([(name, _to_arrow(column, pa.string())) for name, column in columns.items()])


def stored_schema(columns: Mapping[str, Type]) -> Any:
    """Return the Arrow schema to store: JSON for MIXED, milliseconds for times, because Parquet has no seconds."""
    mixed = pa.json_() if any(map(json_types.has_conflict, columns.values())) else pa.string()
    return pa.schema([(name, _to_arrow(column, mixed, pa.timestamp("ms"))) for name, column in columns.items()])


def _to_arrow(column: Type, mixed: Any, time: Any = _ARROW[Leaf.TIME], in_list: bool = False) -> Any:
    if isinstance(column, ListOf):
        return pa.list_(_to_arrow(column.item, mixed, time, True))
    if isinstance(column, Struct):
        return pa.struct([(name, _to_arrow(part, mixed, time, in_list)) for name, part in column.fields])
    if column is Leaf.NULL and in_list:
        return pa.string()  # see `readable`
    return mixed if column is Leaf.MIXED else time if column is Leaf.TIME else _ARROW[column]


def string_columns(columns: Mapping[str, Type]) -> Any:
    """Return the Arrow schema of the columns that are strings."""
    return pa.schema([(name, pa.string()) for name, column in columns.items() if column is Leaf.STRING])


def conform(table: Any, wanted: Any) -> Any:
    """Return the table with the columns of a schema: a missing one is null, and whole numbers can become floats."""
    return pa.Table.from_arrays([_conform(table, field) for field in wanted], schema=wanted)


def _conform(table: Any, field: Any) -> Any:
    column = table.column(field.name) if field.name in table.column_names else None
    if column is None or (column.type != field.type and column.null_count == len(column)):
        return pa.nulls(len(table), field.type)
    return column if column.type == field.type else column.cast(field.type)
