"""Source files: how to read each one, from its name and its first bytes."""

import bz2
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Callable, Optional

_KINDS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BOM = b"\xef\xbb\xbf"
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
        if name and len(fields) > 1:
            raise ParquetError("with several fields, each field is a split: leave out SPLIT=")
        stem = os.path.basename(path).partition(".")[0]
        for field in fields or [None]:  # type: ignore[list-item]
            split = name or (field if field and len(fields) > 1 else stem if stem in _KNOWN_SPLITS else "train")
            if not _SPLIT_NAME.fullmatch(split):
                raise ParquetError(f"{split!r} is not a name for a split: use letters, digits and _, as SPLIT={path}")
            sources.append(Source(path, split, field))
    return sources


def kind(source: Source) -> str:
    """Return "json", "csv" or "tsv". Raise ParquetError."""
    name = source.path.lower()
    stem, suffix = os.path.splitext(name)
    found = _KINDS.get(os.path.splitext(stem)[1] if suffix in _COMPRESSED else suffix)
    if found is None:
        raise ParquetError(f"{source.path}: the name ends in neither .json, .jsonl, .ndjson, .csv nor .tsv")
    if source.field is not None and not name.removesuffix(suffix if suffix in _COMPRESSED else "").endswith(".json"):
        raise ParquetError(f"{source.path}: only a .json file has fields")
    return found


@contextmanager
def open_source(path: str) -> Iterator[io.BufferedReader]:
    """Open a file, compressed or not, whatever its name, after the mark that some programs write before UTF-8.

    Raise ParquetError for damaged compressed data and for text that is not UTF-8, also while the caller reads; OSError.
    """
    try:
        with open(path, "rb") as raw:
            first = raw.peek(8)
            compression = next((name for magic, name in _MAGIC.items() if first.startswith(magic)), None)
            file: Any = io.BufferedReader(_decompressed(raw, compression), 1 << 20) if compression else raw
            if file.peek(3).startswith(_BOM):
                file.read(3)
            yield file
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ParquetError(f"{path}: the compressed file is damaged or cut short: {error}") from None
    except UnicodeDecodeError as error:
        raise ParquetError(f"{path}: the file is not UTF-8: {error.reason} ({error.object[error.start : error.end]!r})") from None


class _Decompressed(io.RawIOBase):
    """The contents of a compressed stream of Arrow, as a raw Python file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:  # of Arrow: damaged data; it has no number of the system
            if error.errno is not None:
                raise
            raise EOFError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)


def _decompressed(raw: IO[bytes], compression: str) -> Any:
    """Return a raw file with the decompressed contents."""
    if compression in ("bz2", "xz"):  # Arrow does not notice that bz2 data is cut short
        return bz2.open(raw) if compression == "bz2" else lzma.open(raw)
    import pyarrow as pa

    return _Decompressed(pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression))
