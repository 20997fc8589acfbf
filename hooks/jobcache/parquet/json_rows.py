"""The rows of a split from JSON sources: one type for each column, whatever the size of a piece."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from jobcache.parquet import arrow_types, json_types
from jobcache.parquet.json_pieces import FieldAgain
from jobcache.parquet.json_reading import JsonFile, Piece, errors_of
from jobcache.parquet.json_types import Columns
from jobcache.parquet.sources import ParquetError, Progress, Source
from jobcache.parquet.spool import Spool


class JsonRows:
    """The rows of JSON sources. count: their number. schema: of the tables."""

    def __init__(self, sources: Sequence[Source], work: str, progress: Progress) -> None:
        """Read the sources. work: a new directory. Raise ParquetError, OSError."""
        self._files = [JsonFile(source) for source in sources]
        self._progress = progress
        self._spool = Spool(work)
        self._columns: Columns = {}
        self._found: list[Columns] = []  # of each table
        for file in self._files:
            self._read(file)
        self.count = sum(self._spool.rows)
        self._check()
        self._settle_types()
        self.schema = arrow_types.stored_schema(self._columns)

    def tables(self) -> Iterator[Any]:
        """Yield the rows as tables of the schema. Raise OSError."""
        plain = arrow_types.schema(self._columns)
        for table in self._spool:
            yield arrow_types.conform(table, plain).cast(self.schema)

    def _read(self, file: JsonFile) -> None:
        """Store the pieces of a file, with the types that each one has by itself. Raise ParquetError, OSError."""
        count, columns = len(self._found), self._columns
        try:
            for piece in file.pieces():
                with errors_of(file, piece):
                    table, found = piece.infer(self._expected(piece))
                self._spool.append(table)
                self._found.append(found)
                self._columns = json_types.join_columns(self._columns, found)
                self._report(file)
        except FieldAgain:
            self._spool.cut(count)
            del self._found[count:]
            self._columns = columns
            file.position = 0
            file.skip_fields += 1
            self._read(file)

    def _expected(self, piece: Piece) -> Any:
        """Return a schema that spares Arrow the search for times, or None. A wrong one costs time, and no more."""
        return arrow_types.string_columns(self._columns) if piece.is_array and self._columns else None

    def _check(self) -> None:
        """Raise ParquetError if there are no rows, or if values of different types cannot be stored."""
        path = self._files[0].source.path
        if not self.count:
            raise ParquetError(f"{path}: the file has no rows")
        if not self._columns:
            raise ParquetError(f"{path}: the records have no fields")
        if not any(map(json_types.needs_mixed, self._columns.values())):
            return
        if _datasets_has_json():
            self._columns = {name: json_types.settle(column) for name, column in self._columns.items()}
            return
        for name, column in self._columns.items():
            if json_types.has_conflict(column):
                raise ParquetError(
                    f"{path}: column {name + json_types.conflict(column)!r} has values of types that no column holds without "
                    "a change, and the installed version of datasets has no type Json for them"
                )

    def _settle_types(self) -> None:
        """Read again the pieces whose values do not fit the columns' types. Raise ParquetError, OSError."""
        unfit = {number for number, found in enumerate(self._found) if not self._fit(found)}
        with closing(self._pieces()) as pieces:
            for number, (file, piece) in enumerate(pieces) if unfit else ():
                if number in unfit:
                    with errors_of(file, piece):
                        table = piece.read_as(self._columns)
                    if len(table) != self._spool.rows[number]:
                        raise ParquetError(f"{file.source.path}: the file changed during the conversion; run it again")
                    self._spool.replace(number, table)
                    unfit.remove(number)
                self._progress(f"reading {os.path.basename(file.source.path)} again", number, len(self._found))
                if not unfit:
                    return

    def _pieces(self) -> Generator[tuple[JsonFile, Piece], None, None]:
        """Yield the pieces of all files. Raise ParquetError, OSError."""
        for file in self._files:
            with closing(file.pieces()) as pieces:
                for piece in pieces:
                    yield file, piece

    def _fit(self, found: Columns) -> bool:
        return all(json_types.fits(column, self._columns[name]) for name, column in found.items())

    def _report(self, file: JsonFile) -> None:
        size = os.path.getsize(file.source.path)
        self._progress(f"reading {os.path.basename(file.source.path)}", min(file.position, size), size)


def _datasets_has_json() -> bool:
    """Return whether the installed `datasets` has a type for values of various types."""
    try:
        import datasets
    except ImportError:
        return False
    return hasattr(datasets, "Json")
