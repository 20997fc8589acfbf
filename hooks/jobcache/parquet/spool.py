"""Tables on disk, so that memory does not grow with the source: the types of a column can show in the last rows."""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa


class Spool:
    """Tables of various types in a directory, uncompressed, numbered from 0."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.rows: list[int] = []
        os.mkdir(directory)

    def append(self, table: Any) -> None:
        """Store a table. Raise OSError."""
        self.rows.append(len(table))
        self.replace(len(self.rows) - 1, table)

    def replace(self, number: int, table: Any) -> None:
        """Store a table in place of another one with the same rows. Raise OSError."""
        path = self._path(number)
        with pa.OSFile(f"{path}.new", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.replace(f"{path}.new", path)

    def cut(self, count: int) -> None:
        """Forget all tables from number `count` on."""
        del self.rows[count:]

    def table(self, number: int) -> Any:
        """Return a table, mapped into memory. Raise OSError."""
        with pa.memory_map(self._path(number)) as file:
            return pa.ipc.open_file(file).read_all()

    def __iter__(self) -> Iterator[Any]:
        return (self.table(number) for number in range(len(self.rows)))

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number}.arrow"
