"""Convert JSON and CSV to Parquet, one verified file for each split. `datasets` loads Parquet without guessing types.

`datasets` itself reads the sources, so the values are those that load_dataset returns. It would read a long JSON array as a
whole, so it gets such an array in pieces. All work happens in a temporary directory beside the destination. A file gets its
name when it is complete and verified, and no existing file is overwritten.
"""

import errno
import gzip
import importlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, TextIO

from jobcache.parquet import json_pieces

_PIECE = 8 << 20  # characters of a JSON array that `datasets` reads at once; it needs about ten times as many bytes of memory
_ROW_GROUP = 16 << 20  # bytes, before compression
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
_KNOWN_SPLITS = ("train", "validation", "valid", "dev", "test", "eval")

Progress = Callable[[str, int, int], None]  # the current step, the amount done, the total amount (0: unknown)


class ParquetError(Exception):
    """Nothing was written; the message is for a person."""


@dataclass(frozen=True)
class Source:
    """A source file. split: to which its rows belong. field: of a JSON file, the field that has the records."""

    path: str
    split: str
    field: Optional[str] = None


@dataclass(frozen=True)
class Written:
    """A Parquet file that was written. bytes: of the file. source_bytes: of its sources."""

    split: str
    path: str
    rows: int
    bytes: int
    source_bytes: int


def parse_sources(words: Sequence[str], fields: Sequence[str]) -> list[Source]:
    """Given words of the form FILE or SPLIT=FILE, return the sources. Raise ParquetError.

    A file without SPLIT belongs to the split of its name, otherwise to train. With several fields, each is a split.
    """
    sources = []
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or os.path.exists(word):
            name, path = "", word
        if not os.path.isfile(path):
            raise ParquetError(f"{path}: no such file")
        stem = os.path.basename(path).partition(".")[0]
        for field in fields or [None]:  # type: ignore[list-item]
            split = name or (field if field and len(fields) > 1 else stem if stem in _KNOWN_SPLITS else "train")
            if not _SPLIT_NAME.fullmatch(split):
                raise ParquetError(f"{split!r} is not a name for a split: use letters, digits and _, as SPLIT={path}")
            sources.append(Source(path, split, field))
    if name and len(fields) > 1:
        raise ParquetError("with several fields, each field is a split: leave out SPLIT=")
    return sources


def convert(sources: Sequence[Source], destination: str, progress: Progress) -> list[Written]:
    """Write <destination>/<split>.parquet for each split, or the file `destination` if that ends in .parquet.

    Return the written files. Raise ParquetError if anything fails; nothing is left behind.
    """
    datasets, parquet = _import_libraries()
    targets = _targets(sources, destination)
    directory = _nearest_directory(os.path.dirname(os.path.abspath(destination)))
    try:
        before = [_fingerprint(source.path) for source in sources]
        with tempfile.TemporaryDirectory(prefix=".jobcache-parquet-", dir=directory) as work:
            finished = []
            for split, target in targets.items():
                of_split = [source for source in sources if source.split == split]
                size = sum(os.path.getsize(path) for path in {source.path for source in of_split})
                file = f"{work}/{split}.parquet"
                rows = _SplitWriter(datasets, parquet, f"{work}/{split}", progress).write(of_split, file)
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


def _import_libraries() -> tuple[Any, Any]:
    """Return the modules datasets, made silent, and pyarrow.parquet. Raise ParquetError."""
    try:
        datasets, parquet = importlib.import_module("datasets"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ParquetError(
            f"cannot import the Python packages datasets and pyarrow: {error}. Run pip install 'slurm-jobcache[parquet]'"
        ) from None
    datasets.disable_progress_bars() if hasattr(datasets, "disable_progress_bars") else datasets.disable_progress_bar()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    return datasets, parquet


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


class _SplitWriter:
    """The conversion of one split, in a directory of its own."""

    def __init__(self, datasets: Any, parquet: Any, work: str, progress: Progress) -> None:
        self._datasets = datasets
        self._parquet = parquet
        self._work = work
        self._progress = progress
        self._count = 0
        os.mkdir(work)

    def write(self, sources: Sequence[Source], path: str) -> int:
        """Write the Parquet file `path`, verify it, and return its rows. Raise ParquetError, OSError."""
        parts = list(self._parts(sources))
        rows = sum(len(part) for part in parts)
        if not rows:
            raise ParquetError(f"{sources[0].path}: the file has no rows")
        schema = self._schema([part.features for part in parts])
        if schema is None:  # the types show only in the whole: `datasets` has to read it at once, whatever memory that needs
            parts = list(self._parts(sources, whole=True))
            schema = self._schema([part.features for part in parts])
            if schema is None or sum(len(part) for part in parts) != rows:
                raise ParquetError(f"{sources[0].path}: the files of split {sources[0].split} differ in their columns")
        with open(path, "xb") as file:
            with self._parquet.ParquetWriter(file, schema) as writer:
                done = 0
                for part in parts:
                    for table in self._tables(part, schema):
                        writer.write_table(table)
                        done += len(table)
                        self._progress("writing", done, rows)
            file.flush()
            os.fsync(file.fileno())
        self._verify(path, schema, rows)
        return rows

    def _parts(self, sources: Sequence[Source], whole: bool = False) -> Iterator[Any]:
        """Yield the sources as `datasets` loads them: JSON lines and CSV as they are, arrays in pieces unless `whole`."""
        rest = list(sources)
        while rest:
            kind, field = _kind(rest[0]), rest[0].field
            if kind == "array" and not whole:
                yield from self._pieces(rest.pop(0))
                continue
            together = []
            while rest and _kind(rest[0]) == kind:  # the first file decides the types of several, as it does in load_dataset
                together.append(rest.pop(0).path)
            self._progress(f"reading {os.path.basename(together[0])}", 0, 0)
            links = [self._link(path) for path in together]
            options = {"sep": "\t"} if kind == "tsv" else {"field": field} if field is not None else {}
            yield self._load("csv" if kind in ("csv", "tsv") else "json", links, together[0], **options)

    def _pieces(self, source: Source) -> Iterator[Any]:
        """Yield a JSON array in pieces, each as `datasets` loads it. Raise ParquetError."""
        size = os.path.getsize(source.path)
        with _open_text(source.path) as file:
            reader = json_pieces.Reader(file)
            elements = reader.elements(source.field)
            while True:
                piece: list[str] = []
                length = 0
                try:
                    for element in elements:
                        piece.append(element)
                        length += len(element)
                        if length >= _PIECE:
                            break
                except (json_pieces.NotRecords, UnicodeDecodeError) as error:
                    raise ParquetError(f"{source.path}: {error}") from None
                if not piece:
                    return
                path = f"{self._new_path()}.json"
                with open(path, "x", encoding="utf-8") as out:
                    array = f"[{','.join(piece)}]"
                    out.write(array if source.field is None else f"{{{json.dumps(source.field)}: {array}}}")
                del piece, array
                yield self._load("json", [path], source.path, **({} if source.field is None else {"field": source.field}))
                os.truncate(path, 0)
                self._progress(f"reading {os.path.basename(source.path)}", min(reader.position, size), size)

    def _load(self, kind: str, files: list[str], source: str, **options: Any) -> Any:
        """Return `files` as `datasets` loads them. source: the path for messages. Raise ParquetError."""
        try:
            return self._datasets.load_dataset(
                kind, data_files={"train": files}, split="train", cache_dir=f"{self._work}/cache", **options
            )
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__  # type: ignore[assignment]  # the wrapped error has the better message
            raise ParquetError(f"{source}: datasets cannot load it: {type(error).__name__}: {error}") from None

    def _link(self, path: str) -> str:
        """Return a new symlink to `path`, whose name has no character that `datasets` would take for a pattern."""
        base = os.path.basename(path)
        link = self._new_path() + base[base.index(".") :] if re.fullmatch(r"[^.]+(\.\w+)+", base) else self._new_path()
        os.symlink(os.path.abspath(path), link)
        return link

    def _new_path(self) -> str:
        self._count += 1
        return f"{self._work}/{self._count}"

    def _schema(self, features: Sequence[Any]) -> Any:
        """Given the features of the parts, return the schema of the whole, with the metadata of `datasets`.

        Return None if only the whole shows the types, as it does for nested values and dates.
        """
        pa = importlib.import_module("pyarrow")
        schemas = [part.arrow_schema.remove_metadata() for part in features]
        if all(schema.equals(schemas[0]) for schema in schemas):
            return features[0].arrow_schema
        columns: dict[str, Any] = {}
        for field in (field for schema in schemas for field in schema):
            types = {columns.get(field.name, field.type), field.type} - {pa.null()}
            if types == {pa.int64(), pa.float64()}:
                types = {pa.float64()}
            if len(types) > 1:
                return None
            columns[field.name] = next(iter(types), pa.null())
        return self._datasets.Features.from_arrow_schema(pa.schema(list(columns.items()))).arrow_schema

    def _tables(self, part: Any, schema: Any) -> Iterator[Any]:
        """Yield a part as tables of that schema, each about as large as a row group."""
        cast, pa = importlib.import_module("datasets.table").table_cast, importlib.import_module("pyarrow")
        arrow = part.with_format("arrow")
        step = max(1, int(len(part) * _ROW_GROUP / max(1, part.data.nbytes)))
        for at in range(0, len(part), step):
            table = arrow[at : at + step]
            for field in schema:
                if field.name not in table.column_names:
                    table = table.append_column(field.name, pa.nulls(len(table), field.type))
            yield cast(table.select(schema.names), schema)

    def _types(self, schema: Any) -> str:
        """Return the types of the columns as `datasets` names them. Parquet stores milliseconds in place of seconds."""
        return repr(self._datasets.Features.from_arrow_schema(schema.remove_metadata())).replace("timestamp[s", "timestamp[ms")

    def _verify(self, path: str, schema: Any, rows: int) -> None:
        """Read the whole Parquet file, as `datasets` does, and check its types and rows. Raise ParquetError."""
        cast = importlib.import_module("datasets.table").table_cast
        with self._parquet.ParquetFile(path) as file:
            if self._types(file.schema_arrow) != self._types(schema):
                raise ParquetError("verification failed: the written file has other types than its sources")
            found = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                table.validate(full=True)
                found += len(cast(table, schema))
                self._progress("checking", found, rows)
        if found != rows:
            raise ParquetError(f"verification failed: the written file has {found} of {rows} rows")


def _kind(source: Source) -> str:
    """Return how to read a source: "array", "json" (lines), "csv" or "tsv". Raise ParquetError."""
    name = source.path[: -len(".gz")] if source.path.endswith(".gz") else source.path
    kind = _KINDS.get(os.path.splitext(name)[1].lower())
    if kind is None:
        raise ParquetError(f"{source.path}: the name ends in neither .json, .jsonl, .ndjson, .csv nor .tsv")
    if source.field is not None:
        if kind != "json":
            raise ParquetError(f"{source.path}: only a .json file has fields")
        return "array"
    if kind == "json":
        with _open_text(source.path) as file:
            return "array" if json_pieces.Reader(file).peek() == "[" else "json"
    return "json" if kind == "jsonl" else kind


def _open_text(path: str) -> TextIO:
    """Open a text file, compressed or not. Raise OSError."""
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")
