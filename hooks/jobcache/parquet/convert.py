"""JSON and CSV to Parquet, which `datasets` loads without a guess at its types: one file for each split, verified.

`datasets` itself reads the sources, so that the values are those that load_dataset gives; a long JSON array goes to it
in pieces, where it would take it whole. All work is done in a temporary directory beside the destination, and only what
is complete and was read again gets its name, which nobody else's file loses.
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

_PIECE = 8 << 20  # characters of a JSON array that `datasets` gets at once; it takes some ten times that of memory
_GROUP = 16 << 20  # bytes of a row group, before compression
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
_SPLIT = re.compile(r"\w+(\.\w+)*")
_KNOWN = ("train", "validation", "valid", "dev", "test", "eval")

Say = Callable[[str, int, int], None]  # what is being done, how much is, of how much (0: not known)


class ParquetError(Exception):
    """Nothing was written; the words for a person."""


@dataclass(frozen=True)
class Source:
    """A file, the split that it is of, and, for JSON, the field below which its records are."""

    path: str
    split: str
    field: Optional[str] = None


@dataclass(frozen=True)
class Written:
    """One Parquet file that is now there. bytes: its own, and those of its sources."""

    split: str
    path: str
    rows: int
    bytes: int
    source_bytes: int


def parse_sources(words: Sequence[str], fields: Sequence[str]) -> list[Source]:
    """Return the sources that `FILE` and `SPLIT=FILE` words stand for. Raise ParquetError.

    Without a split of its own, a file is of the split that its name is, else of train; with several fields, of one each.
    """
    sources = []
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or os.path.exists(word):
            name, path = "", word
        if not os.path.isfile(path):
            raise ParquetError(f"{path}: there is no such file")
        stem = os.path.basename(path).partition(".")[0]
        for field in fields or [None]:  # type: ignore[list-item]
            split = name or (field if field and len(fields) > 1 else stem if stem in _KNOWN else "train")
            if not _SPLIT.fullmatch(split):
                raise ParquetError(f"{split!r} cannot be a split's name: letters, digits and _ can; name one as SPLIT={path}")
            sources.append(Source(path, split, field))
    if name and len(fields) > 1:
        raise ParquetError("several fields are a split each: leave SPLIT= out")
    return sources


def convert(sources: Sequence[Source], destination: str, say: Say) -> list[Written]:
    """Write `destination`/<split>.parquet, for a destination that ends in .parquet that file; return what was written.

    Raise ParquetError, having left nothing behind.
    """
    datasets, pq = _libraries()
    targets = _targets(sources, destination)
    room = _nearest(os.path.dirname(os.path.abspath(destination)))
    try:
        before = [_stamp(source.path) for source in sources]
        with tempfile.TemporaryDirectory(prefix=".jobcache-parquet-", dir=room) as work:
            written = []
            for split, target in targets.items():
                mine = [source for source in sources if source.split == split]
                size = sum(os.path.getsize(path) for path in {source.path for source in mine})
                ready = f"{work}/{split}.parquet"
                rows = _Split(datasets, pq, f"{work}/{split}", say).write(mine, ready)
                written.append((ready, Written(split, target, rows, os.path.getsize(ready), size)))
            if [_stamp(source.path) for source in sources] != before:
                raise ParquetError("a source changed while it was read")
            _put([(ready, one.path) for ready, one in written])
        return [one for _, one in written]
    except OSError as error:
        raise ParquetError(str(error)) from None


def usage(written: Sequence[Written]) -> str:
    """Return the lines that load what was written, in Python and in YAML."""
    files = [(one.split, os.path.abspath(one.path)) for one in written]
    split = next((name for name, _ in files if name == "train"), files[0][0])
    python = ", ".join(f"{name!r}: {path!r}" for name, path in files)
    yaml = "\n".join(f"    {name}: {_yaml(path)}" for name, path in files)
    return (
        f"from datasets import load_dataset\n"
        f'dataset = load_dataset("parquet", data_files={{{python}}}, split={split!r})\n\n'
        f"dataset:\n  source: parquet\n  data_files:\n{yaml}\n  split: {split}\n"
    )


def _yaml(path: str) -> str:
    plain = re.fullmatch(r"[\w./-]+", path, re.ASCII)
    return path if plain else "'" + path.replace("'", "''") + "'"


def _libraries() -> tuple[Any, Any]:
    try:
        datasets, pq = importlib.import_module("datasets"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ParquetError(
            f"this needs the Python packages datasets and pyarrow ({error}); pip install 'slurm-jobcache[parquet]' brings them"
        ) from None
    datasets.disable_progress_bars() if hasattr(datasets, "disable_progress_bars") else datasets.disable_progress_bar()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    return datasets, pq


def _targets(sources: Sequence[Source], destination: str) -> dict[str, str]:
    """Return where each split goes. Raise ParquetError where something is there already."""
    splits = list(dict.fromkeys(source.split for source in sources))
    single = destination.endswith(".parquet")
    if single and len(splits) > 1:
        raise ParquetError(f"{destination}: one file, but there are {len(splits)} splits; name a directory")
    targets = {split: destination if single else os.path.join(destination, f"{split}.parquet") for split in splits}
    for target in targets.values():
        if os.path.lexists(target):
            raise ParquetError(f"{target}: is there already; nothing is overwritten")
    return targets


def _nearest(path: str) -> str:
    """Return the nearest directory that is there: the temporary one is made in it, and with luck on its filesystem."""
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return path


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _put(files: Sequence[tuple[str, str]]) -> None:
    """Give the files their names, all or none, and take none from anybody. Raise ParquetError, OSError."""
    done: list[tuple[str, str]] = []
    try:
        for ready, target in files:
            os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
            _name(ready, target)
            done.append((ready, target))
    except BaseException as error:
        for ready, target in done:
            os.rename(target, f"{ready}.back")
        if isinstance(error, FileExistsError):
            raise ParquetError(f"{error.filename2 or error.filename}: is there by now; nothing is overwritten") from None
        raise


def _name(ready: str, target: str) -> None:
    """link(2) never replaces anything; not every filesystem has it."""
    try:
        os.link(ready, target)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(ready, target)


class _Split:
    """One split under way, in a directory of its own."""

    def __init__(self, datasets: Any, pq: Any, work: str, say: Say) -> None:
        self._datasets = datasets
        self._pq = pq
        self._work = work
        self._say = say
        self._count = 0
        os.mkdir(work)

    def write(self, sources: Sequence[Source], ready: str) -> int:
        """Write the file and read it again; return its rows. Raise ParquetError, OSError."""
        parts = list(self._parts(sources))
        rows = sum(len(part) for part in parts)
        if not rows:
            raise ParquetError(f"{sources[0].path}: there are no rows in it")
        schema = self._schema([part.features for part in parts])
        if schema is None:  # then `datasets` has to see it all at once, whatever that takes
            parts = list(self._parts(sources, whole=True))
            schema = self._schema([part.features for part in parts])
            if schema is None or sum(len(part) for part in parts) != rows:
                raise ParquetError(f"{sources[0].path}: not all files of split {sources[0].split} have the same columns")
        with open(ready, "xb") as file:
            with self._pq.ParquetWriter(file, schema) as writer:
                done = 0
                for part in parts:
                    for table in self._tables(part, schema):
                        writer.write_table(table)
                        done += len(table)
                        self._say("writing", done, rows)
            file.flush()
            os.fsync(file.fileno())
        self._verify(ready, schema, rows)
        return rows

    def _parts(self, sources: Sequence[Source], whole: bool = False) -> Iterator[Any]:
        """Yield the sources as `datasets` loads them: lines and CSV as they are, arrays in pieces, but for `whole`."""
        rest = list(sources)
        while rest:
            kind, field = _kind(rest[0]), rest[0].field
            if kind == "array" and not whole:
                yield from self._pieces(rest.pop(0))
                continue
            together = []
            while rest and _kind(rest[0]) == kind:  # of several files, the first one's types hold, as they do there
                together.append(rest.pop(0).path)
            self._say(f"reading {os.path.basename(together[0])}", 0, 0)
            links = [self._link(path) for path in together]
            options = {"sep": "\t"} if kind == "tsv" else {"field": field} if field is not None else {}
            yield self._load("csv" if kind in ("csv", "tsv") else "json", links, together[0], **options)

    def _pieces(self, source: Source) -> Iterator[Any]:
        whole = os.path.getsize(source.path)
        with _text(source.path) as file:
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
                path = f"{self._new()}.json"
                with open(path, "x", encoding="utf-8") as out:
                    array = f"[{','.join(piece)}]"
                    out.write(array if source.field is None else f"{{{json.dumps(source.field)}: {array}}}")
                del piece, array
                yield self._load("json", [path], source.path, **({} if source.field is None else {"field": source.field}))
                os.truncate(path, 0)
                self._say(f"reading {os.path.basename(source.path)}", min(reader.position, whole), whole)

    def _load(self, kind: str, files: list[str], name: str, **options: Any) -> Any:
        try:
            return self._datasets.load_dataset(
                kind, data_files={"train": files}, split="train", cache_dir=f"{self._work}/cache", **options
            )
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__  # type: ignore[assignment]  # what `datasets` wraps says more
            raise ParquetError(f"{name}: datasets cannot load it: {type(error).__name__}: {error}") from None

    def _link(self, path: str) -> str:
        """A name without any of the characters that `datasets` takes for a pattern."""
        base = os.path.basename(path)
        link = self._new() + base[base.index(".") :] if re.fullmatch(r"[^.]+(\.\w+)+", base) else self._new()
        os.symlink(os.path.abspath(path), link)
        return link

    def _new(self) -> str:
        self._count += 1
        return f"{self._work}/{self._count}"

    def _schema(self, features: Sequence[Any]) -> Any:
        """Return the schema that the whole has, with what `datasets` notes of it.

        None where the parts do not tell: of nested values, dates and the like it takes the whole to see.
        """
        pa = importlib.import_module("pyarrow")
        schemas = [one.arrow_schema.remove_metadata() for one in features]
        if all(schema.equals(schemas[0]) for schema in schemas):
            return features[0].arrow_schema
        columns: dict[str, Any] = {}
        for field in (field for schema in schemas for field in schema):
            seen = {columns.get(field.name, field.type), field.type}
            clear = seen - {pa.null()}
            if len(clear) == 2 and clear == {pa.int64(), pa.float64()}:
                clear = {pa.float64()}
            if len(clear) > 1:
                return None
            columns[field.name] = next(iter(clear), pa.null())
        return self._datasets.Features.from_arrow_schema(pa.schema(list(columns.items()))).arrow_schema

    def _tables(self, part: Any, schema: Any) -> Iterator[Any]:
        """Yield a part as tables of that schema, of about a row group each."""
        cast, pa = importlib.import_module("datasets.table").table_cast, importlib.import_module("pyarrow")
        arrow = part.with_format("arrow")
        step = max(1, int(len(part) * _GROUP / max(1, part.data.nbytes)))
        for at in range(0, len(part), step):
            table = arrow[at : at + step]
            for field in schema:
                if field.name not in table.column_names:
                    table = table.append_column(field.name, pa.nulls(len(table), field.type))
            yield cast(table.select(schema.names), schema)

    def _types(self, schema: Any) -> str:
        """Return the columns' types in the words of `datasets`. Parquet has no seconds, and gives milliseconds back."""
        return repr(self._datasets.Features.from_arrow_schema(schema.remove_metadata())).replace("timestamp[s", "timestamp[ms")

    def _verify(self, ready: str, schema: Any, rows: int) -> None:
        """Read the whole file again, as `datasets` does. Raise ParquetError."""
        cast = importlib.import_module("datasets.table").table_cast
        with self._pq.ParquetFile(ready) as file:
            if self._types(file.schema_arrow) != self._types(schema):
                raise ParquetError("what was written has other types when it is read again")
            found = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                table.validate(full=True)
                found += len(cast(table, schema))
                self._say("checking", found, rows)
        if found != rows:
            raise ParquetError(f"of {rows} rows, {found} come back when what was written is read again")


def _kind(source: Source) -> str:
    """Return how a source is read: array, json (lines), csv or tsv. Raise ParquetError."""
    plain = source.path[: -len(".gz")] if source.path.endswith(".gz") else source.path
    kind = _KINDS.get(os.path.splitext(plain)[1].lower())
    if kind is None:
        raise ParquetError(f"{source.path}: neither .json, .jsonl, .ndjson, .csv nor .tsv")
    if source.field is not None:
        if kind != "json":
            raise ParquetError(f"{source.path}: only a .json file has fields")
        return "array"
    if kind == "json":
        with _text(source.path) as file:
            return "array" if json_pieces.Reader(file).peek() == "[" else "json"
    return "json" if kind == "jsonl" else kind


def _text(path: str) -> TextIO:
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")
