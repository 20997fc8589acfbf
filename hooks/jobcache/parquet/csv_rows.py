"""The rows of a split from CSV sources. All cells are read as text; the types of the columns follow from the whole."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import pyarrow as pa
from pyarrow import csv as arrow_csv

from jobcache.parquet import csv_types
from jobcache.parquet.csv_types import Cell
from jobcache.parquet.sources import ParquetError, Progress, Source, kind, open_source
from jobcache.parquet.spool import Spool

PIECE = 4 << 20  # bytes of CSV in a table
_BLOCK = 1 << 20  # bytes of CSV that Arrow reads at once; pandas reads files with longer rows
_FIRST = 10_000  # rows from which load_dataset takes the types
_END = "\x1ejobcache-end\x1e"  # a row of this text, added at the end: one that is missing was inside of quotes


class CsvRows:
    """The rows of CSV sources. count: their number. schema: of the tables."""

    def __init__(self, sources: Sequence[Source], work: str, progress: Progress) -> None:
        """Read the sources. work: a new directory. Raise ParquetError, OSError."""
        self._progress = progress
        self._spool = Spool(work)
        self._names: list[str] = []
        for source in sources:
            self._read(source)
        self.count = sum(self._spool.rows)
        if not self.count:
            raise ParquetError(f"{sources[0].path}: the file has no rows")
        self.schema = self._find_schema()

    def tables(self) -> Iterator[Any]:
        """Yield the rows as tables of the schema. Raise OSError."""
        for table in self._spool:
            columns = [csv_types.convert(table.column(field.name), field.type) for field in self.schema]
            yield pa.Table.from_arrays(columns, schema=self.schema)

    def _read(self, source: Source) -> None:
        """Store the cells of a file. Raise ParquetError, OSError."""
        start = len(self._spool.rows)
        if not self._store(source, _read_with_arrow(source)):
            self._spool.cut(start)
            self._store(source, _read_with_pandas(source))

    def _store(self, source: Source, tables: "Iterator[Optional[tuple[Any, int]]]") -> bool:
        """Store tables, each with the position in the file; return False if one is None. Raise ParquetError, OSError."""
        size = os.path.getsize(source.path)
        for found in tables:
            if found is None:
                return False
            table, position = found
            self._names = self._names or table.column_names
            if self._names != table.column_names:
                raise ParquetError(f"{source.path}: the files of split {source.split} differ in their columns")
            self._spool.append(table)
            self._progress(f"reading {os.path.basename(source.path)}", min(position, size), size)
        return True

    def _find_schema(self) -> Any:
        """Return the schema that holds all cells. Raise OSError."""
        cells = {name: set(Cell) for name in self._names}
        has_early_gaps = dict.fromkeys(self._names, False)
        before = 0
        for table in self._spool:
            for name in self._names:
                column = table.column(name)
                has_early_gaps[name] |= column.slice(0, max(0, _FIRST - before)).null_count > 0
                present = column.drop_null()
                if cells[name] and len(present):
                    cells[name] = csv_types.possible(present, cells[name])
            before += len(table)
            self._progress("finding types", before, self.count)
        return pa.schema([(name, _choose(cells[name], has_early_gaps[name])) for name in self._names])


def _choose(cells: "set[Cell]", has_early_gaps: bool) -> Any:
    """Return the Arrow type of a column, as load_dataset chooses it where it changes no value.

    An empty column has floats, and one of whole numbers with a gap among the first rows as well.
    """
    if len(cells) == len(Cell) or (has_early_gaps and Cell.DOUBLE in cells):
        return pa.float64()
    return next((cell.value for cell in Cell if cell in cells), pa.string())


def _read_with_arrow(source: Source) -> "Iterator[Optional[tuple[Any, int]]]":
    """Yield tables of text, each with the position in the file, then None if only pandas can read the file as it is meant.

    Raise ParquetError, OSError.
    """
    separator = _separator(source)
    names = _names(source, separator)
    if len(names) < 2:  # in one column a blank line could be a row
        yield None
        return
    with open_source(source.path) as file:
        if file.peek(1)[:1].isspace():  # a blank line before the names
            yield None
            return
        stream = _Stream(file, (separator.join([_END] * len(names)) + "\n").encode())
        batches: list[Any] = []
        begin = 0
        try:
            for batch in _open_with_arrow(stream, names, separator):
                if stream.position - begin > PIECE and batches:
                    yield pa.Table.from_batches(batches), stream.position
                    batches, begin = [], stream.position
                batches.append(batch)
        except pa.ArrowInvalid:
            stream.is_plain = False
        held = pa.Table.from_batches(batches) if batches else None
        if held is None or not stream.is_plain or held.slice(len(held) - 1).to_pylist() != [dict.fromkeys(names, _END)]:
            yield None
        else:
            yield held.slice(0, len(held) - 1), stream.position


def _open_with_arrow(stream: "_Stream", names: Sequence[str], separator: str) -> Any:
    return arrow_csv.open_csv(
        stream,
        arrow_csv.ReadOptions(column_names=names, skip_rows_after_names=1, block_size=min(PIECE, _BLOCK), use_threads=False),
        arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=csv_types.MISSING, strings_can_be_null=True
        ),
    )


class _Stream(io.RawIOBase):
    """A file with a last row added. is_plain: it has no carriage return alone, which pandas and Arrow read differently."""

    def __init__(self, file: Any, last: bytes) -> None:
        self._file = file
        self._last = b"\n" + last
        self._after_return = False
        self.is_plain = True
        self.position = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._file.read(size)) if self.is_plain else b""
        self.position += len(data)
        if b"\r" in data or self._after_return:
            text = b"\r" * self._after_return + data
            self._after_return = text.endswith(b"\r")
            self.is_plain = text.count(b"\r") - self._after_return == text.count(b"\r\n")
        if not data and self._last:
            data, self._last = self._last, b""
        return data


def _read_with_pandas(source: Source) -> Iterator[tuple[Any, int]]:
    """Yield tables of text, each with the position in the file. Raise ParquetError, OSError."""
    import pandas as pd

    with open_source(source.path) as file, _errors_of(source):
        for frame in pd.read_csv(file, sep=_separator(source), dtype=str, chunksize=_FIRST):
            table = pa.Table.from_pandas(frame).replace_schema_metadata(None)
            yield table.cast(pa.schema([(name, pa.string()) for name in table.column_names])), 0


def _names(source: Source, separator: str) -> list[str]:
    """Return the names of the columns as pandas makes them: unique. Raise ParquetError, OSError."""
    with open_source(source.path) as file:
        line = file.readline(_BLOCK).decode()
        names = line.rstrip("\r\n").split(separator)
        if line.endswith("\n") and all(names) and len(set(names)) == len(names) and not set(line.rstrip("\r\n")) & set('"\r'):
            return names  # without the start of pandas
    import pandas as pd

    with open_source(source.path) as file, _errors_of(source):
        return [str(name) for name in pd.read_csv(file, sep=separator, dtype=str, nrows=1).columns]


@contextmanager
def _errors_of(source: Source) -> Iterator[None]:
    """Turn an error of pandas into a ParquetError that names the file."""
    import pandas as pd

    try:
        yield
    except pd.errors.EmptyDataError:
        raise ParquetError(f"{source.path}: the file has no rows") from None
    except pd.errors.ParserError as error:
        raise ParquetError(f"{source.path}: the file cannot be read: {str(error).strip()}") from None


def _separator(source: Source) -> str:
    return "\t" if kind(source) == "tsv" else ","
