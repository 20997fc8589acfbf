"""The type of a CSV column: the narrowest one that holds the text of all its cells. The rows' order plays no part."""

import enum
import re
from collections.abc import Collection
from typing import Any

import pyarrow as pa
from pyarrow import compute

from jobcache.parquet.json_types import EXACT


class Cell(enum.Enum):
    """A type of cells, narrow ones first. No member fits: text."""

    BOOL = pa.bool_()
    INT = pa.int64()
    UINT = pa.uint64()
    DOUBLE = pa.float64()


# Texts that pandas reads as missing, true or false, quoted or not.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN",
    "None", "n/a", "nan", "null",
)  # fmt: skip
_TRUE = ("True", "TRUE", "true")
_FALSE = ("False", "FALSE", "false")
_WHOLE = re.compile(r"[+-]?\d+")


def possible(column: Any, wanted: Collection[Cell]) -> set[Cell]:
    """Return the types of `wanted` that hold each text of a column without nulls."""
    if Cell.BOOL in wanted and compute.all(compute.is_in(column, pa.array(_TRUE + _FALSE))).as_py():
        return {Cell.BOOL}
    if Cell.INT in wanted:
        values = _whole_numbers(column, Cell.INT)
        if values is not None:
            return set(wanted) & _holding(values)
    if Cell.UINT in wanted and _whole_numbers(column, Cell.UINT) is not None:
        return {Cell.UINT}  # too large for INT, and so for a float
    return {Cell.DOUBLE} if Cell.DOUBLE in wanted and _are_floats(column) else set()


def _holding(values: Any) -> set[Cell]:
    """Return the types that hold these whole numbers of type INT."""
    limits = compute.min_max(values).as_py()
    is_exact = limits["min"] >= -EXACT and limits["max"] <= EXACT
    return {Cell.INT} | ({Cell.UINT} if limits["min"] >= 0 else set()) | ({Cell.DOUBLE} if is_exact else set())


def convert(column: Any, target: Any) -> Any:
    """Return a column of text as one of an Arrow type that is possible for it."""
    if target == pa.bool_():
        return compute.if_else(compute.is_valid(column), compute.is_in(column, pa.array(_TRUE)), pa.scalar(None, pa.bool_()))
    if target == pa.string():
        return column
    return _to_numbers(column, target)


def _whole_numbers(column: Any, cell: Cell) -> Any:
    """Return the numbers of a column, or None if some text is not a whole number of that type."""
    try:
        values = _to_numbers(column, cell.value)
    except pa.ArrowInvalid:
        return None
    return None if compute.any(compute.match_substring(column, "x", ignore_case=True)).as_py() else values  # 0x10


def _are_floats(column: Any) -> bool:
    """Return whether each text is a float, or a whole number that a float stores."""
    try:
        values = _to_numbers(column, Cell.DOUBLE.value)
    except pa.ArrowInvalid:
        return False
    if compute.any(compute.is_nan(values)).as_py():  # Arrow reads NAN, which is text for pandas
        return False
    large = column.filter(compute.greater_equal(compute.abs(values), float(EXACT)))
    return not any(_WHOLE.fullmatch(text.strip()) and (len(text) > 20 or abs(int(text)) > EXACT) for text in large.to_pylist())


def _to_numbers(column: Any, target: Any) -> Any:
    """Return the numbers of a column of text. Raise ArrowInvalid."""
    try:
        return column.cast(target)
    except pa.ArrowInvalid:
        bare = compute.replace_substring_regex(compute.utf8_trim(column, " \t"), r"^\+([\d.])", r"\1")
        return bare.cast(target)
