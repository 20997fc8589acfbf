"""Read the files of a log: plain, rotated, packed with gzip, bzip2, xz or zstd, in blocks of whole lines."""

import bz2
import glob
import gzip
import importlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Callable, Union

Source = Union[str, IO[bytes]]

LINE_LIMIT = 1 << 20  # bytes
PACKED = (".gz", ".bz2", ".xz", ".zst")

_BLOCK = 1 << 18  # bytes
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
_ZSTD = ("compression.zstd", "backports.zstd")  # the module of Python 3.14, and its copy for earlier versions
_CLOCKS = 86400.0  # seconds by which the clocks of the nodes and of the log host may differ
_is_suffix = re.compile(rf"[.-][0-9]+(-[0-9]+)?({'|'.join(map(re.escape, PACKED))})?").fullmatch


def rotations(path: str) -> list[str]:
    """Return the log and its rotated files (`.1`, `.2.gz`, `-20261122.zst`), oldest first. A fifo or a device is no log."""
    current = [path] if os.path.isfile(path) else []
    names = [name for pattern in (".*", "-*") for name in glob.glob(glob.escape(path) + pattern)]
    older = [name for name in names if _is_suffix(name[len(path) :]) and os.path.isfile(name)]
    return sorted(older, key=lambda name: (_modified(name), name)) + current


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def changed_since(sources: Iterable[Source], since: float) -> list[Source]:
    """Return the sources that can have an event from `since` on, in seconds since the epoch.

    A file has no later event than its last change. Its name proves nothing: it can have the first or the last day in it.
    """
    return [one for one in sources if not (isinstance(one, str) and 0.0 < _modified(one) < since - _CLOCKS)]


def total_size(sources: Iterable[Source]) -> int:
    """Return the bytes of all sources, as they are on disk. 0: unknown, since one is no regular file."""
    total = 0
    for one in sources:
        if not isinstance(one, str) or not os.path.isfile(one):
            return 0
        total += os.path.getsize(one)
    return total


def blocks(source: Source, moved: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the content in blocks of whole lines; the last line can lack its end. Of a line over the limit, yield a part.

    source: a path, "-" for standard input, or an open binary file. moved: gets the number of bytes that were read, as they
    are on disk. Raise LogError for a file that cannot be read to its end.
    """
    try:
        with _open(source) as (file, raw):
            before = 0
            for block in _of_lines(file):
                yield block
                now = os.lseek(raw.fileno(), 0, os.SEEK_CUR) if raw is not None else before
                moved(now - before)
                before = now
    except _READ_ERRORS as error:
        raise LogError(f"{source}: {getattr(error, 'strerror', None) or error}") from None


class LogError(Exception):
    """A file cannot be read to its end."""


def _of_lines(file: IO[bytes]) -> Iterator[bytes]:
    read: Callable[[int], bytes] = file.read1  # type: ignore[attr-defined]  # no damaged block loses the block before it
    rest = b""
    is_cut = False
    while True:
        block = read(_BLOCK)
        if not block:
            break
        end = block.rfind(b"\n") + 1
        if end == 0 and len(rest) > LINE_LIMIT:
            is_cut = True
        elif end == 0:
            rest += block
        else:
            if is_cut:
                yield rest + b"\n"
                yield block[block.find(b"\n") + 1 : end]
            else:
                yield rest + block[:end]
            rest, is_cut = block[end:], False
    if rest:
        yield rest


@contextmanager
def _open(source: Source) -> Iterator[tuple[IO[bytes], Any]]:
    """Yield the unpacked file, and the file on disk or None. Raise OSError and the errors of the packers."""
    if not isinstance(source, str) or source == "-":
        yield (sys.stdin.buffer if isinstance(source, str) else source), None
        return
    suffix = os.path.splitext(source)[1]
    with open(source, "rb") as raw:
        if suffix == ".zst":
            with _open_zstd(raw) as file:
                yield file, raw
        elif suffix in _OPENERS:
            with _OPENERS[suffix](raw, "rb") as file:
                yield file, raw
        else:
            yield raw, raw


@contextmanager
def _open_zstd(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    for name in _ZSTD:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        try:
            with module.open(raw, "rb") as file:
                yield file
        except module.ZstdError as error:
            raise OSError(str(error)) from None
        return
    program = shutil.which("zstd", path="/usr/bin:/bin:/usr/local/bin")
    if program is None:
        raise OSError("nothing here unpacks zstd; install the program zstd, or Python's backports.zstd")
    with subprocess.Popen([program, "-dcq"], stdin=raw, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            yield process.stdout
            message = process.stderr.read(4096).decode("utf-8", "replace").strip()
            if process.wait() != 0:
                raise OSError(message or f"zstd: exit status {process.returncode}")
        finally:
            process.kill()
