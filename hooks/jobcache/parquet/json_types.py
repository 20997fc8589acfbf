"""Types of JSON values. Pure rules: the type of a whole column follows from the types of its parts, in whatever order.

A program that reads a file in pieces gets the same types for each size of a piece.
"""

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union

EXACT = 1 << 53  # a float stores each whole number up to this one
_INT64 = range(-(1 << 63), 1 << 63)


class Leaf(enum.Enum):
    """A type without parts. INT fits in a float, LONG in 64 bits only. MIXED: each value keeps its own type."""

    NULL = "null"
    BOOL = "bool"
    INT = "int"
    LONG = "long"
    DOUBLE = "double"
    TIME = "time"
    STRING = "string"
    MIXED = "mixed"


@dataclass(frozen=True)
class ListOf:
    """A list whose items have one type."""

    item: "Type"


@dataclass(frozen=True)
class Struct:
    """An object. varies: some objects lack a field that others have."""

    fields: "tuple[tuple[str, Type], ...]"
    varies: bool = False


Type = Union[Leaf, ListOf, Struct]
Columns = dict[str, Type]

_WIDER = {
    frozenset((Leaf.INT, Leaf.LONG)): Leaf.LONG,
    frozenset((Leaf.INT, Leaf.DOUBLE)): Leaf.DOUBLE,
    frozenset((Leaf.TIME, Leaf.STRING)): Leaf.STRING,
}


def join(a: Type, b: Type) -> Type:
    """Return the narrowest type that holds the values of both without changing one."""
    if a == b or b is Leaf.NULL:
        return a
    if a is Leaf.NULL:
        return b
    if isinstance(a, ListOf) and isinstance(b, ListOf):
        return ListOf(join(a.item, b.item))
    if isinstance(a, Struct) and isinstance(b, Struct):
        one, other = dict(a.fields), dict(b.fields)
        return Struct(tuple(join_columns(one, other).items()), a.varies or b.varies or one.keys() != other.keys())
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        return _WIDER.get(frozenset((a, b)), Leaf.MIXED)
    return Leaf.MIXED


def join_columns(a: Mapping[str, Type], b: Mapping[str, Type]) -> Columns:
    """Return the columns of both, those of `a` first."""
    return {name: join(a.get(name, Leaf.NULL), b.get(name, Leaf.NULL)) for name in {**a, **b}}


def infer(value: Any) -> Type:
    """Return the type of a parsed JSON value. Strings are strings, whatever they contain."""
    if value is None:
        return Leaf.NULL
    if isinstance(value, bool):
        return Leaf.BOOL
    if isinstance(value, int):
        return Leaf.INT if abs(value) <= EXACT else Leaf.LONG if value in _INT64 else Leaf.MIXED
    if isinstance(value, float):
        return Leaf.DOUBLE
    if isinstance(value, str):
        return Leaf.STRING
    if isinstance(value, list):
        return ListOf(join_all(map(infer, value)))
    return Struct(tuple((name, infer(part)) for name, part in value.items()))


def infer_columns(records: Iterable[Mapping[str, Any]]) -> Columns:
    """Return the types of the columns of parsed records."""
    columns: Columns = {}
    for record in records:
        for name, value in record.items():
            columns[name] = join(columns.get(name, Leaf.NULL), infer(value))
    return columns


def join_all(types: Iterable[Type]) -> Type:
    """Return the type that holds the values of all."""
    joined: Type = Leaf.NULL
    for one in types:
        joined = join(joined, one)
    return joined


def mark_mixed(found: Type, exact: Type) -> Type:
    """Return `found`, with MIXED and `varies` wherever `exact` has them. `exact`: the type of the same values by `infer`."""
    if exact is Leaf.MIXED:
        return exact
    if isinstance(found, ListOf) and isinstance(exact, ListOf):
        return ListOf(mark_mixed(found.item, exact.item))
    if isinstance(found, Struct) and isinstance(exact, Struct):
        others = dict(exact.fields)
        fields = tuple((name, mark_mixed(part, others.get(name, Leaf.NULL))) for name, part in found.fields)
        return Struct(fields, found.varies or exact.varies)
    return found


def mark_varying(found: Type, values: Iterable[Any]) -> Type:
    """Return `found`, with `varies` set in structs of which some object lacks a field. values: of that type."""
    if not has_struct(found):
        return found
    present = [value for value in values if value is not None]
    if isinstance(found, ListOf):
        return ListOf(mark_varying(found.item, (item for value in present for item in value)))
    if isinstance(found, Struct):
        fields = tuple(
            (name, mark_varying(part, (value[name] for value in present if name in value))) for name, part in found.fields
        )
        return Struct(fields, found.varies or any(len(value) != len(fields) for value in present))
    return found


def has_struct(found: Type) -> bool:
    """Return whether the type has a struct in it."""
    return isinstance(found, Struct) or (isinstance(found, ListOf) and has_struct(found.item))


def needs_mixed(found: Type) -> bool:
    """Return whether only MIXED keeps all values of the type as they are."""
    if isinstance(found, ListOf):
        return needs_mixed(found.item)
    if isinstance(found, Struct):
        return found.varies or not found.fields or any(needs_mixed(part) for _, part in found.fields)
    return found is Leaf.MIXED


def settle(found: Type) -> Type:
    """Return the type with MIXED in place of each struct whose fields vary."""
    if isinstance(found, ListOf):
        return ListOf(settle(found.item))
    if isinstance(found, Struct):
        if found.varies or not found.fields:
            return Leaf.MIXED
        return Struct(tuple((name, settle(part)) for name, part in found.fields))
    return found


def conflict(found: Type) -> str:
    """Return the place below a column that only MIXED can hold, such as "[].x"; "" for the column itself."""
    if isinstance(found, ListOf):
        return "[]" + conflict(found.item)
    if isinstance(found, Struct):
        return next((f".{name}{conflict(part)}" for name, part in found.fields if has_conflict(part)), "")
    return ""


def has_conflict(found: Type) -> bool:
    """Return whether the type cannot be stored without MIXED. Structs whose fields vary can be: with nulls."""
    if isinstance(found, ListOf):
        return has_conflict(found.item)
    if isinstance(found, Struct):
        return not found.fields or any(has_conflict(part) for _, part in found.fields)
    return found is Leaf.MIXED


def encode(value: Any, target: Type) -> Any:
    """Return the value with JSON text in place of each part whose type is MIXED."""
    if value is None:
        return None
    if target is Leaf.MIXED:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(target, ListOf):
        return [encode(item, target.item) for item in value]
    if isinstance(target, Struct):
        parts = dict(target.fields)
        return {name: encode(part, parts.get(name, Leaf.NULL)) for name, part in value.items()}
    return value


def fits(found: Type, target: Type, is_column: bool = True) -> bool:
    """Return whether values that were read as `found` are valid as `target`. A whole column can still be cast."""
    if isinstance(found, ListOf) and isinstance(target, ListOf):
        return fits(found.item, target.item, False)
    if isinstance(found, Struct) and isinstance(target, Struct):
        if [name for name, _ in found.fields] != [name for name, _ in target.fields]:
            return False
        return all(fits(part, other, False) for (_, part), (_, other) in zip(found.fields, target.fields))
    casts = ((Leaf.INT, Leaf.DOUBLE), (Leaf.NULL, target)) if is_column else ()
    return found is target or (found, target) in ((Leaf.INT, Leaf.LONG), *casts)
