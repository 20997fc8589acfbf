"""Write a Parquet file, and read it again."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import parquet

from jobcache.parquet.sources import ParquetError, Progress

_ROW_GROUP = 16 << 20  # bytes, before compression


class Rows(Protocol):
    """Rows that can be read several times. schema: of the tables."""

    schema: Any

    def tables(self) -> Iterator[Any]:
        """Yield the rows as tables."""


def write(rows: Rows, path: str, total: int, progress: Progress) -> None:
    """Write a new Parquet file with these rows. Raise OSError."""
    done = 0
    with open(path, "xb") as file:
        with parquet.ParquetWriter(file, rows.schema) as writer:
            for group in _groups(rows.tables()):
                writer.write_table(group, row_group_size=len(group))
                done += len(group)
                progress("writing", done, total)
        file.flush()
        os.fsync(file.fileno())


def verify(rows: Rows, path: str, total: int, progress: Progress) -> None:
    """Read the whole Parquet file and compare its types and values with the rows. Raise ParquetError, OSError."""
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        if file.schema_arrow.remove_metadata() != rows.schema or file.metadata.num_rows != total:
            raise ParquetError("verification failed: the written file has other types or rows than its sources")
        done = 0
        for number, group in enumerate(_groups(rows.tables())):
            found = file.read_row_group(number, use_threads=False)
            if not _same(found, group):
                raise ParquetError(f"verification failed: the written file has other values in row group {number}")
            done += len(group)
            del found, group
            pa.default_memory_pool().release_unused()
            progress("checking", done, total)


def _groups(tables: Iterable[Any]) -> Iterator[Any]:
    """Yield tables of about the size of a row group, from tables of any size."""
    held: list[Any] = []
    size = 0
    for table in tables:
        if len(table):
            held.append(table)
            size += table.nbytes
        if size >= _ROW_GROUP:
            yield pa.concat_tables(held)
            held, size = [], 0
    if held:
        yield pa.concat_tables(held)


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two tables have the same values."""
    # Arrow regards a NaN as different from another one, their texts are equal.
    return all(a.equals(b) or repr(a.to_pylist()) == repr(b.to_pylist()) for a, b in zip(found.columns, wanted.columns))
