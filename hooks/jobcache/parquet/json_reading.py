"""Read JSON lines and JSON arrays as Arrow tables, piece by piece, with the types of the columns.

Arrow parses the text, because it keeps all digits and is fast. Python parses a piece again in three cases: Arrow cannot read
it, it has numbers that a float cannot store, or Arrow has filled fields that objects lack with nulls.
"""

import io
import itertools
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import json as arrow_json

from jobcache.parquet import arrow_types, json_pieces, json_types
from jobcache.parquet.json_types import Columns, Struct, Type
from jobcache.parquet.sources import ParquetError, Source, open_source

PIECE = 4 << 20  # bytes of JSON that are parsed at once; this needs about ten times as many bytes of memory
_BLANK = " \t\r\n"
_NULL_FIRST = re.compile(rb"\s*null")
_NULL_LATER = re.compile(rb"\}\s*null")


def _finite(text: str) -> float:
    """Return a number that fits in a float. Raise ValueError."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text} is too large")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raise ValueError if it has a key twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


# `datasets` accepts more in arrays than in JSON lines: control characters in strings, and keys that come twice.
_ARRAY_DECODER = json.JSONDecoder(strict=False, parse_float=_finite)
_LINES_DECODER = json.JSONDecoder(parse_float=_finite, object_pairs_hook=_unique)


class BadRecord(ValueError):
    """A record that cannot be read. lines: of the piece, before it. column: of the error, from 1."""

    def __init__(self, problem: str, lines: int, column: int) -> None:
        super().__init__(problem)
        self.lines = lines
        self.column = column


@dataclass(frozen=True)
class Piece:
    """Records of a source, as JSON text with blanks between them.

    is_array: the records are elements of an array. Strings in it stay strings; in JSON lines they can be times.
    """

    text: bytes
    is_array: bool

    def infer(self, known: Any) -> tuple[Any, Columns]:
        """Return the table and the types of its columns. known: an Arrow schema of columns to expect. Raise ValueError."""
        if self._may_have_nulls():
            return self._infer_in_python()
        try:
            table = self._parse(self.text, known)
        except ValueError:
            return self._infer_in_python()
        columns = arrow_types.of_table(table)
        inexact = [name for name in columns if arrow_types.may_be_inexact(table.column(name))]
        lacking = [name for name in columns if arrow_types.may_lack_fields(table.column(name))]
        records = list(self._records()) if inexact or lacking else []
        for name in inexact:
            if json_types.has_conflict(json_types.join_all(json_types.infer(record.get(name)) for record in records)):
                return self._infer_in_python()
        for name in lacking:
            columns[name] = json_types.mark_varying(columns[name], [record.get(name) for record in records])
        return table, columns

    def read_as(self, columns: Mapping[str, Type]) -> Any:
        """Return the table with columns of these types. MIXED is JSON text. Raise ValueError."""
        schema = arrow_types.schema(columns)
        if not self._may_have_nulls() and not any(map(json_types.has_conflict, columns.values())):
            try:
                return self._parse(self.text, schema)
            except ValueError:
                pass  # control characters in strings, or keys that come twice
        return self._parse(self._encode(columns), schema)

    def _may_have_nulls(self) -> bool:
        """Return whether a record may be null: Arrow would crash. Such text can also be a part of a string."""
        return not self.is_array and bool(_NULL_FIRST.match(self.text) or _NULL_LATER.search(self.text))

    def _infer_in_python(self) -> tuple[Any, Columns]:
        """Return the table and the types of a piece that Arrow cannot read as it is. Raise ValueError."""
        exact = json_types.infer_columns(self._records())
        table = self._parse(self._encode(exact), None)
        found = arrow_types.of_table(table)
        return table, {name: json_types.mark_mixed(column, exact[name]) for name, column in found.items()}

    def _encode(self, columns: Mapping[str, Type]) -> bytes:
        """Return the records as JSON lines, with JSON text in place of the values of type MIXED."""
        target = Struct(tuple(columns.items()))
        return b"\n".join(json.dumps(json_types.encode(record, target)).encode() for record in self._records())

    def _records(self) -> Iterator[dict[str, Any]]:
        """Yield the parsed records. Raise ValueError."""
        text = self.text.decode()
        decoder = _ARRAY_DECODER if self.is_array else _LINES_DECODER
        at = 0
        while True:
            while text[at : at + 1] in _BLANK and at < len(text):
                at += 1
            if at == len(text):
                return
            try:
                record, end = decoder.raw_decode(text, at)
                if not isinstance(record, dict):
                    raise ValueError(f"the record {text[at : min(end, at + 60)]!r} is not an object")
            except json.JSONDecodeError as error:
                raise BadRecord(error.msg, text.count("\n", 0, error.pos), error.colno) from None
            except (ValueError, RecursionError) as error:
                raise BadRecord(str(error), text.count("\n", 0, at), at - text.rfind("\n", 0, at)) from None
            yield record
            at = end

    def _parse(self, text: bytes, schema: Any) -> Any:
        """Return the table that Arrow reads. Raise ValueError."""
        table = arrow_json.read_json(
            pa.BufferReader(text),
            arrow_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer"),
        )
        readable = arrow_types.readable(table.schema, not self.is_array)
        if arrow_types.is_valid(table) and table.schema == readable:
            return table
        if schema == readable:
            raise ValueError("Arrow makes an invalid table of it")
        return self._parse(text, readable)


@dataclass
class JsonFile:
    """A JSON source. skip_fields: fields of the source's name that are not the last. position: bytes or characters read."""

    source: Source
    skip_fields: int = 0
    position: int = 0

    def pieces(self) -> Generator[Piece, None, None]:
        """Yield the pieces, the same ones each time. Raise FieldAgain, ParquetError, OSError."""
        with open_source(self.source.path) as file:
            is_array = self.source.field is not None or _first_character(file) == b"["
            try:
                yield from self._array(file) if is_array else self._lines(file)
            except json_pieces.NotRecords as error:
                raise ParquetError(f"{self.source.path}: {error}") from None

    def _lines(self, file: Any) -> Iterator[Piece]:
        while True:
            text = file.read(PIECE)
            text += file.readline()
            if not text:
                return
            self.position += len(text)
            if not text.isascii():
                text.decode()  # Arrow does not check
            if not text.isspace():
                yield Piece(text, False)

    def _array(self, file: Any) -> Iterator[Piece]:
        with io.TextIOWrapper(file, "utf-8", newline="") as text:
            reader = json_pieces.Reader(text)
            yield from self._join(reader, _as_objects(reader.elements(self.source.field, self.skip_fields)))

    def _join(self, reader: json_pieces.Reader, elements: Iterator[str]) -> Iterator[Piece]:
        """Yield the elements that `reader` reads, in pieces."""
        records: list[str] = []
        length = 0
        for element in elements:
            records.append(element)
            length += len(element)
            if length >= PIECE:
                self.position = reader.position
                yield Piece("\n".join(records).encode(), True)
                records, length = [], 0
        if records:
            yield Piece("\n".join(records).encode(), True)


@contextmanager
def errors_of(file: JsonFile, piece: Piece) -> Iterator[None]:
    """Turn an error of a piece into a ParquetError that names the file and, for JSON lines, the line."""
    try:
        yield
    except BadRecord as error:
        line = 1 + error.lines + sum(other.text.count(b"\n") for other in _before(file, piece))
        place = "" if piece.is_array else f", line {line:,} column {error.column:,}"
        raise ParquetError(f"{file.source.path}: the file is not JSON: {error}{place}") from None
    except (ValueError, RecursionError) as error:
        raise ParquetError(f"{file.source.path}: the file cannot be read: {error}") from None


def _before(file: JsonFile, piece: Piece) -> Iterator[Piece]:
    """Yield the pieces of a file before one."""
    with closing(JsonFile(file.source).pieces()) as pieces:
        yield from itertools.takewhile(lambda other: other != piece, () if piece.is_array else pieces)


def _as_objects(elements: Iterable[str]) -> Iterator[str]:
    """Yield objects as they are. If the first element is another value, yield each in a column `text`, as `datasets` does."""
    are_objects = None
    for number, element in enumerate(elements, 1):
        is_object = element.startswith("{")
        are_objects = is_object if are_objects is None else are_objects
        if is_object != are_objects:
            raise json_pieces.NotRecords(f"element {number:,} is {'an' if is_object else 'not an'} object, unlike the first one")
        yield element if is_object else f'{{"text": {element}}}'


def _first_character(file: Any) -> bytes:
    """Return the first character that is not blank; consume only what comes before it."""
    while True:
        ahead = file.peek(1)
        rest = ahead.lstrip()
        file.read(len(ahead) - len(rest))
        if rest or not ahead:
            return bytes(rest[:1])
