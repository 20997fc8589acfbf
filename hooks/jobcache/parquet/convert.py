"""Convert JSON and CSV to Parquet, one verified file for each split. `datasets` loads Parquet without guessing types.

The values are those of the source. All work happens in a temporary directory beside the destination. A file gets its name when
it is complete and verified, and no existing file is overwritten.
"""

import errno
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from jobcache.parquet.sources import ParquetError, Progress, Source, kind


@dataclass(frozen=True)
class Written:
    """A Parquet file that was written. bytes: of the file. source_bytes: of its sources."""

    split: str
    path: str
    rows: int
    bytes: int
    source_bytes: int


def convert(sources: Sequence[Source], destination: str, progress: Progress) -> list[Written]:
    """Write <destination>/<split>.parquet for each split, or the file `destination` if that ends in .parquet.

    Return the written files. Raise ParquetError if anything fails; nothing is left behind.
    """
    targets = _targets(sources, destination)
    directory = _nearest_directory(os.path.dirname(os.path.abspath(destination)))
    try:
        before = [_fingerprint(source.path) for source in sources]
        with tempfile.TemporaryDirectory(prefix=".jobcache-parquet-", dir=directory) as work:
            finished = []
            for split, target in targets.items():
                of_split = [source for source in sources if source.split == split]
                size = sum(os.path.getsize(path) for path in {source.path for source in of_split})
                rows = _write_split(of_split, f"{work}/{split}", progress)
                file = f"{work}/{split}.parquet"
                finished.append((file, Written(split, target, rows, os.path.getsize(file), size)))
            if [_fingerprint(source.path) for source in sources] != before:
                raise ParquetError("a source file changed during the conversion; run it again")
            _move_all([(file, written.path) for file, written in finished])
        return [written for _, written in finished]
    except OSError as error:
        raise ParquetError(str(error)) from None


def usage(written: Sequence[Written]) -> str:
    """Return lines of Python and of YAML that load the written files."""
    files = [(file.split, os.path.abspath(file.path)) for file in written]
    split = next((name for name, _ in files if name == "train"), files[0][0])
    python = ", ".join(f"{name!r}: {path!r}" for name, path in files)
    yaml = "\n".join(f"    {name}: {_yaml(path)}" for name, path in files)
    return (
        f"from datasets import load_dataset\n"
        f'dataset = load_dataset("parquet", data_files={{{python}}}, split={split!r})\n\n'
        f"dataset:\n  source: parquet\n  data_files:\n{yaml}\n  split: {split}\n"
    )


def _yaml(path: str) -> str:
    """Return a path as a YAML scalar."""
    is_plain = re.fullmatch(r"[\w./-]+", path, re.ASCII)
    return path if is_plain else "'" + path.replace("'", "''") + "'"


def _write_split(sources: Sequence[Source], work: str, progress: Progress) -> int:
    """Write the Parquet file <work>.parquet, verify it, and return its rows. Raise ParquetError, OSError."""
    kinds = {kind(source).replace("tsv", "csv") for source in sources}
    if len(kinds) > 1:
        raise ParquetError(f"split {sources[0].split} has JSON and CSV files; give each format a split of its own, as NAME=FILE")
    try:
        import pyarrow as pa

        from jobcache.parquet import csv_rows, json_rows, parquet_file
    except ImportError as error:
        raise ParquetError(f"cannot import a Python package: {error}. Run pip install 'slurm-jobcache[parquet]'") from None
    path = f"{work}.parquet"
    try:
        rows = (csv_rows.CsvRows if kinds == {"csv"} else json_rows.JsonRows)(sources, work, progress)
        parquet_file.write(rows, path, rows.count, progress)
        parquet_file.verify(rows, path, rows.count, progress)
    except pa.ArrowException as error:
        raise ParquetError(f"split {sources[0].split}: Arrow cannot store the values: {error}") from None
    return rows.count


def _targets(sources: Sequence[Source], destination: str) -> dict[str, str]:
    """Return the path of each split's file. Raise ParquetError if one exists."""
    splits = list(dict.fromkeys(source.split for source in sources))
    is_file = destination.endswith(".parquet")
    if is_file and len(splits) > 1:
        raise ParquetError(f"{destination}: one file cannot hold {len(splits)} splits; name a directory")
    targets = {split: destination if is_file else os.path.join(destination, f"{split}.parquet") for split in splits}
    for target in targets.values():
        if os.path.lexists(target):
            raise ParquetError(f"{target}: the file exists, and nothing is overwritten; remove it or choose another name")
    return targets


def _nearest_directory(path: str) -> str:
    """Return `path`, or the nearest directory above it that exists. Usually this is on the destination's filesystem."""
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return path


def _fingerprint(path: str) -> tuple[int, int, int]:
    """Return values that differ if the file is replaced or changed. Raise OSError."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _move_all(files: Sequence[tuple[str, str]]) -> None:
    """Move each (file, target), all or none, and overwrite nothing. Raise ParquetError, OSError."""
    done: list[tuple[str, str]] = []
    try:
        for file, target in files:
            os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
            _move(file, target)
            done.append((file, target))
    except BaseException as error:
        for file, target in done:
            os.rename(target, f"{file}.back")
        if isinstance(error, FileExistsError):
            path = error.filename2 or error.filename
            raise ParquetError(f"{path}: another program created this file meanwhile, and nothing is overwritten") from None
        raise


def _move(file: str, target: str) -> None:
    """Move a file. Raise FileExistsError if the target exists, OSError.

    link(2) never replaces a file. On filesystems without hard links, check and rename.
    """
    try:
        os.link(file, target)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(file, target)
