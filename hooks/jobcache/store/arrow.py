"""Arrow's stream format, as far as needed to check that a file is whole and to count its rows.

The functions walk from message to message and read no column data. All bytes are untrusted: every offset is checked against
the bounds of its message, and a mismatch raises BrokenStream.
"""

import os
import stat
import struct
import time

from jobcache.cache import dirfd

_CONTINUATION = 0xFFFFFFFF  # the marker in front of each message
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # kinds of messages
_MAX_METADATA = 1 << 24  # bytes; a schema of ten thousand columns has a tenth of this
_READ_AHEAD = 4096  # bytes; the metadata of most messages fits


class BrokenStream(ValueError):
    """The file is not a whole Arrow stream; the message is the reason."""


class OutOfTime(Exception):
    """The deadline passed before the end of the file."""


def rows_of(name: str, dir_fd: int, until: float) -> int:
    """Return the rows of the Arrow stream in a file. The stream must end where the file ends.

    until: in seconds of time.monotonic. Raise BrokenStream if the file is not regular or not a whole stream,
    OutOfTime after `until`, OSError.
    """
    fd = dirfd.open_unmarked(name, dirfd.FILE, dir_fd)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise BrokenStream("not a regular file")
        return _count_rows(fd, found.st_size, until)
    finally:
        os.close(fd)


def _count_rows(fd: int, size: int, until: float) -> int:
    rows = at = 0
    first = True
    while time.monotonic() < until:
        data = os.pread(fd, _READ_AHEAD, at)
        if len(data) < 8:
            raise BrokenStream(f"the stream has no end at byte {at}")
        marker, length = struct.unpack_from("<II", data)
        if marker != _CONTINUATION:
            raise BrokenStream(f"no message begins at byte {at}")
        if length == 0:
            if first or at + 8 != size:
                raise BrokenStream(f"the stream ends at byte {at + 8} of {size}")
            return rows
        if length > _MAX_METADATA or at + 8 + length > size:
            raise BrokenStream(f"the message at byte {at} extends beyond the end of the file")
        if 8 + length > len(data):
            data = os.pread(fd, 8 + length, at)
        kind, body, count = _parse_message(data[8 : 8 + length])
        if (kind == _SCHEMA) != first or kind not in (_SCHEMA, _DICTIONARY, _BATCH):
            raise BrokenStream(f"unexpected message of kind {kind} at byte {at}")
        rows += count
        first = False
        at += 8 + length + body
        if at > size:
            raise BrokenStream(f"a batch extends to byte {at} of {size}")
    raise OutOfTime


def _parse_message(data: bytes) -> "tuple[int, int, int]":
    """Return (kind, bytes of the body, rows) of a message's metadata. Raise BrokenStream.

    The metadata is a Flatbuffers table: it begins with the distance back to its vtable, and the vtable has the position of
    each field, 0 for a field that is absent.
    """
    try:
        table = struct.unpack_from("<I", data)[0]
        kind = _field(data, table, 1, "<B")
        body = _field(data, table, 3, "<q")
        rows = 0
        if kind == _BATCH:
            header = _position(data, table, 2)
            if not header:
                raise BrokenStream("a batch without a header")
            rows = _field(data, header + struct.unpack_from("<I", data, header)[0], 0, "<q")
    except struct.error:
        raise BrokenStream("the metadata of a message cannot be parsed") from None
    if body < 0 or rows < 0:
        raise BrokenStream("a message of negative length")
    return kind, body, rows


def _field(data: bytes, table: int, number: int, form: str) -> int:
    """Return the value of a field of a table, 0 if it is absent. Raise struct.error outside of the data."""
    position = _position(data, table, number)
    return int(struct.unpack_from(form, data, position)[0]) if position else 0


def _position(data: bytes, table: int, number: int) -> int:
    """Return the position of a field of a table, 0 if it is absent. Raise struct.error outside of the data."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise struct.error
    length = struct.unpack_from("<H", data, vtable)[0]
    at = 4 + 2 * number
    if at + 2 > length:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + at)[0]
    return table + offset if offset else 0
