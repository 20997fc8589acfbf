"""Arrow's stream format, as far as it takes to tell whether a file is whole and how many rows it has.

Walks from message to message over their framing; what is in the columns is not looked at. The bytes are the user's, and
may be anything: every offset is held against the message it is in, and what does not fit is `Broken`.
"""

import os
import stat
import struct
import time

from jobcache.cache import dirfd

_CONTINUES = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # kinds of messages
_METADATA_MAX = 1 << 24  # bytes; a schema of ten thousand columns has a tenth of it
_AHEAD = 4096  # bytes read at once: the metadata of most messages


class Broken(ValueError):
    """The file is no whole Arrow stream; the words say why."""


class Late(Exception):
    """Time was up before the end of the file."""


def rows_of(name: str, dir_fd: int, until: float) -> int:
    """Return the rows of the Arrow stream in the file `name`, which ends where the stream does.

    Raise Broken where it is no plain file or no whole stream, Late after `until` (seconds of time.monotonic), OSError.
    """
    fd = os.open(name, dirfd.FILE, dir_fd=dir_fd)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Broken("not a plain file")
        return _walk(fd, found.st_size, until)
    finally:
        os.close(fd)


def _walk(fd: int, size: int, until: float) -> int:
    rows = at = 0
    first = True
    while time.monotonic() < until:
        ahead = os.pread(fd, _AHEAD, at)
        if len(ahead) < 8:
            raise Broken(f"no end of stream at byte {at}")
        marker, length = struct.unpack_from("<II", ahead)
        if marker != _CONTINUES:
            raise Broken(f"no message at byte {at}")
        if length == 0:
            if first or at + 8 != size:
                raise Broken(f"the stream ends at byte {at + 8} of {size}")
            return rows
        if length > _METADATA_MAX or at + 8 + length > size:
            raise Broken(f"a message at byte {at} goes beyond the end")
        if 8 + length > len(ahead):
            ahead = os.pread(fd, 8 + length, at)
        kind, body, count = _message(ahead[8 : 8 + length])
        if (kind == _SCHEMA) != first or kind not in (_SCHEMA, _DICTIONARY, _BATCH):
            raise Broken(f"a message of kind {kind} at byte {at}")
        rows += count
        first = False
        at += 8 + length + body
        if at > size:
            raise Broken(f"a batch goes beyond the end, to byte {at} of {size}")
    raise Late


def _message(data: bytes) -> "tuple[int, int, int]":
    """Return (kind, bytes of the body, rows) of a message's metadata. Raise Broken.

    Flatbuffers: a table begins with the distance back to its vtable, which has the places of its fields, 0 for none.
    """
    try:
        table = struct.unpack_from("<I", data)[0]
        kind = _field(data, table, 1, "<B")
        body = _field(data, table, 3, "<q")
        rows = 0
        if kind == _BATCH:
            header = _place(data, table, 2)
            if not header:
                raise Broken("a batch without a header")
            rows = _field(data, header + struct.unpack_from("<I", data, header)[0], 0, "<q")
    except struct.error:
        raise Broken("a message that is none") from None
    if body < 0 or rows < 0:
        raise Broken("a message of negative length")
    return kind, body, rows


def _field(data: bytes, table: int, number: int, form: str) -> int:
    place = _place(data, table, number)
    return int(struct.unpack_from(form, data, place)[0]) if place else 0


def _place(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table is, 0 where the table has none. Raise struct.error beyond the data."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise struct.error
    length = struct.unpack_from("<H", data, vtable)[0]
    at = 4 + 2 * number
    if at + 2 > length:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + at)[0]
    return table + offset if offset else 0
