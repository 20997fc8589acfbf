"""A filesystem with latency: each request takes a delay, as with a busy metadata server.

It is a FUSE filesystem whose server keeps a tree of names in memory. It supports the requests of a deletion (lookup, list,
stat, rename, remove), and those of links to builds (mkdir, symlink, read). The kernel may cache attributes for a second.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.hungfs import _IN, _OUT, Hung
from support.mounts import mount

_SERVERS = 16  # requests that are answered at the same time
_ROOT = 1
_HEAD = struct.Struct("=IIQQIIII")  # length, opcode, unique id, node, uid, gid, pid, padding
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")  # inode, size, blocks, three times, their nanoseconds, mode, links, uid, gid …
_ENTRY = struct.Struct("=QQQQII")  # node, generation, validity of name and attributes, their nanoseconds
_DIRENT = struct.Struct("=QQII")
_STATFS = struct.Struct("=QQQQQIIII24x")
LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, RMDIR, RENAME = 1, 2, 3, 4, 10, 11, 12
STATFS, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET, RENAME2 = 17, 27, 28, 29, 36, 42, 45
SYMLINK, MKDIR, OPEN, READ, RELEASE = 6, 9, 14, 15, 18
_UNANSWERED = {FORGET, INTERRUPT, BATCH_FORGET}
_SIZE = 4096  # bytes of a file without content


@contextmanager
def slow(path: Path, files: list[str] | dict[str, bytes], *, uid: int, delay: float = 0.001) -> Iterator[Slow]:
    """Mount a filesystem on the existing directory `path` for the length of the block. Requires root and /dev/fuse.

    files: relative paths of its files, with their contents if these matter. uid: owner of all entries. delay: seconds for
    each answer.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other"
    server = Slow(device, uid, delay)
    for name in files:
        server.plant(name, files[name] if isinstance(files, dict) else None)
    try:
        with mount("slowfs", path, "fuse", options):
            server.start()
            try:
                yield server
            finally:
                server.stop(path)
    finally:
        os.close(device)


class Slow(Hung):
    """The server. asked: number of requests by opcode. most: highest number of simultaneous requests.

    refused: names that cannot be removed.
    """

    def __init__(self, device: int, uid: int, delay: float) -> None:
        super().__init__(device, killable=False)
        self.asked: Counter[int] = Counter()
        self.most = 0
        self.refused: set[str] = set()
        self._uid = uid
        self._delay = delay
        self._nodes: dict[int, dict[bytes, int] | None] = {_ROOT: {}}  # of a directory its entries, of a file None
        self._next = _ROOT + 1
        self._contents: dict[int, bytes] = {}
        self._symlinks: set[int] = set()
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        self._lock = threading.Lock()
        self._busy = 0
        self.threads = [self._thread, *(threading.Thread(target=self._serve, daemon=True) for _ in range(_SERVERS - 1))]

    def plant(self, path: str, content: bytes | None = None) -> None:
        """Add a file and the directories above it."""
        *above, name = os.fsencode(path).split(b"/")
        at = _ROOT
        for part in above:
            at = self._add(at, part, {})
        file = self._add(at, name, None)
        if content is not None:
            self._contents[file] = content

    def left(self) -> int:
        """Return the number of files and directories."""
        return len(self._nodes) - 1

    def start(self) -> None:
        super().start()
        for thread in self.threads[1:]:
            thread.start()

    def stop(self, path: Path) -> None:
        super().stop(path)
        for thread in self.threads[1:]:
            thread.join()

    def _add(self, parent: int, name: bytes, what: dict[bytes, int] | None) -> int:
        entries = self._entries(parent)
        if name not in entries:
            entries[name] = self._next
            self._nodes[self._next] = what
            self._next += 1
        return entries[name]

    def _entries(self, node: int) -> dict[bytes, int]:
        entries = self._nodes[node]
        assert entries is not None
        return entries

    def _serve(self) -> None:
        try:
            while True:
                request = os.read(self._device, 1 << 17)
                _, opcode, unique, node = _HEAD.unpack_from(request)[:4]
                if opcode in _UNANSWERED:
                    continue
                is_waiting = opcode not in (RELEASEDIR, RELEASE)
                with self._lock:
                    self._busy += is_waiting
                    self.most = max(self.most, self._busy)
                    self.asked[opcode] += 1
                time.sleep(self._delay)
                with self._lock:
                    self._busy -= is_waiting
                    error, body = self._answer(opcode, node, request[_HEAD.size :])
                os.write(self._device, _OUT.pack(_OUT.size + len(body), -error, unique) + body)
        except OSError:
            return  # the connection was aborted

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        """Return (errno, body of the answer)."""
        if opcode == LOOKUP:
            child = self._entries(node).get(body[:-1])
            return (0, _ENTRY.pack(child, 0, 1, 1, 0, 0) + self._attr(child)) if child else (errno.ENOENT, b"")
        if opcode in (GETATTR, SETATTR):
            return 0, struct.pack("=QII", 1, 0, 0) + self._attr(node)
        if opcode in (UNLINK, RMDIR):
            return self._remove(node, body[:-1]), b""
        if opcode in (RENAME, RENAME2):
            (to,) = struct.unpack_from("=Q", body)
            old, new, _ = body[8 if opcode == RENAME else 16 :].split(b"\0")
            self._entries(to)[new] = self._entries(node).pop(old)
            return 0, b""
        if opcode in (MKDIR, SYMLINK):
            name = body[8:-1] if opcode == MKDIR else body.partition(b"\0")[0]
            if name in self._entries(node):
                return errno.EEXIST, b""
            child = self._add(node, name, {} if opcode == MKDIR else None)
            if opcode == SYMLINK:
                self._symlinks.add(child)
            return 0, _ENTRY.pack(child, 0, 1, 1, 0, 0) + self._attr(child)
        if opcode == OPEN:
            return 0, struct.pack("=QII", self._new_handle(), 0, 0)
        if opcode == READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return 0, self._contents.get(node, b"")[offset : offset + size]
        if opcode == RELEASE:
            return 0, b""
        if opcode == OPENDIR:
            return 0, struct.pack("=QII", self._new_handle(), 0, 0)
        if opcode == READDIR:
            return 0, self._listing(node, *struct.unpack_from("=QQI", body))
        if opcode == RELEASEDIR:
            self._listings.pop(struct.unpack_from("=Q", body)[0], None)
            return 0, b""
        if opcode == STATFS:
            return 0, _STATFS.pack(1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0)
        return errno.ENOSYS, b""

    def _attr(self, node: int) -> bytes:
        entries = self._nodes.get(node)
        kind = stat.S_IFLNK if node in self._symlinks else stat.S_IFREG
        mode = kind | 0o600 if entries is None else stat.S_IFDIR | 0o700
        size = len(self._contents[node]) if node in self._contents else _SIZE
        return _ATTR.pack(node, size, 8, 0, 0, 0, 0, 0, 0, mode, 1 if entries is None else 2, self._uid, self._uid, 0, 4096, 0)

    def _remove(self, parent: int, name: bytes) -> int:
        entries = self._entries(parent)
        if name not in entries:
            return errno.ENOENT
        if os.fsdecode(name) in self.refused:
            return errno.EPERM
        if self._nodes[entries[name]]:
            return errno.ENOTEMPTY
        del self._nodes[entries.pop(name)]
        return 0

    def _new_handle(self) -> int:
        self._next += 1
        return self._next

    def _listing(self, node: int, handle: int, offset: int, size: int) -> bytes:
        if offset == 0:
            self._listings[handle] = list((self._nodes.get(node) or {}).items())
        data = b""
        for at, (name, child) in enumerate(self._listings[handle][offset:], offset + 1):
            kind = 8 if self._nodes.get(child) is None else 4
            entry = _DIRENT.pack(child, at, len(name), kind) + name
            entry += bytes(-len(entry) % 8)
            if len(data) + len(entry) > size:
                break
            data += entry
        return data


assert _HEAD.size == 40 and _ATTR.size == 88 and _STATFS.size == 80 and _IN.size == 16
