"""A FUSE filesystem with faults: it passes each operation through to a directory, and adds the faults of the test.

Its server is a process of its own, so that a test that accesses the mount waits for the server alone.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import stat
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from support.mounts import mount

OPS = {
    1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir", 10: "unlink",
    11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs", 18: "release", 20: "fsync",
    25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir", 31: "getlk", 32: "setlk",
    33: "setlkw", 35: "create", 36: "interrupt", 38: "destroy", 42: "batch_forget",
}  # fmt: skip
CHANGES = ("mkdir", "create", "write", "rename", "unlink", "rmdir", "setattr")  # operations that change a scratch
_SILENT = ("forget", "batch_forget", "interrupt")
_IN = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_OUT = struct.Struct("=IiQ")
_GREETING = struct.Struct("=IIIIHHIIHHI28x")
_ATTR = struct.Struct("=6Q10I")
_FLOCK = 1 << 10  # FUSE_FLOCK_LOCKS: the kernel passes each flock(2) to the server
_DIRECT = 1  # FOPEN_DIRECT_IO: no page cache, so that each caller gets its own error
_MNT_FORCE = 1
_NOBODY = 65534


@dataclass
class Faults:
    """The faults of a filesystem.

    errors: errno by operation, "*" for all.
    delay: seconds that each operation takes.
    after: operations that succeed on the armed filesystem before the first fault.
    dies: the server ends at the first fault, like one that crashes.
    squash: root is nobody, as on NFS.
    owner: uid that owns all files, as far as stat reports; everybody may do everything. As with gcsfuse and bindfs.
    folds: names that differ in case alone are the same.
    no_types: readdir returns no types.
    hides: unlink renames a file that is open, as libfuse and NFS do, and the last close removes it.
    """

    errors: Mapping[str, int] = field(default_factory=dict)
    delay: float = 0.0
    after: int = 0
    dies: bool = False
    squash: bool = False
    owner: int | None = None
    folds: bool = False
    no_types: bool = False
    hides: bool = False


class FaultFS:
    """A mounted filesystem. Until it is armed, its only faults are `squash`, `owner`, `folds`, `no_types` and `hides`."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 16)

    def arm(self) -> None:
        self._shared[0] = 1

    def disarm(self) -> None:
        self._shared[0] = 0

    @property
    def served(self) -> int:
        """Return the number of operations that the armed filesystem has received."""
        return int.from_bytes(self._shared[8:16], "little")


@contextmanager
def faulty(backing: Path, point: Path, faults: Faults, *, only: tuple[int, int] | None = None) -> Iterator[FaultFS]:
    """Mount the directory `backing` at the existing directory `point` for the length of the block.

    only: (uid, gid) of the one user who may enter. Everybody else, root included, gets EACCES.
    Needs root and /dev/fuse.
    """
    fs = FaultFS()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    user, group = only or (0, 0)
    options = f"fd={device},rootmode=40000,user_id={user},group_id={group}"
    if faults.owner is None:
        options += ",default_permissions"
    try:
        with mount("faultfs", point, "fuse", options if only else f"{options},allow_other"):
            pid = os.fork()
            if pid == 0:
                try:
                    _Server(device, backing, faults, fs).serve()
                finally:
                    os._exit(0)
            os.close(device)
            device = -1
            try:
                yield fs
            finally:
                ctypes.CDLL(None).umount2(os.fsencode(point), _MNT_FORCE)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    finally:
        if device >= 0:
            os.close(device)


class _Server:
    def __init__(self, device: int, backing: Path, faults: Faults, fs: FaultFS) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0)
        self.device = device
        self.faults = faults
        self.shared = fs._shared
        root = os.open(backing, os.O_PATH | os.O_DIRECTORY)
        self.fds = {1: root}  # by node, O_PATH
        self.nodes = {self._key(root): 1}
        self.lookups = {1: 1}
        self.next = 2
        self.opened: Counter[tuple[int, int]] = Counter()  # by file
        self.hidden: dict[tuple[int, int], list[tuple[int, str]]] = {}  # by file: the nodes of its directories, its names

    @staticmethod
    def _key(fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 1 << 20)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # unmounted
            length, opcode, unique, node, uid, gid, _, _ = _IN.unpack_from(request)
            name = OPS.get(opcode, "")
            body = request[_IN.size : length]
            if name in _SILENT:
                if name == "forget":
                    self._forget(node, struct.unpack("=Q", body)[0])
                continue
            data, number = b"", 0
            try:
                if name != "init":
                    self._misbehave(name)
                work: Callable[..., bytes] | None = getattr(self, f"do_{name}", None)
                if work is None:
                    raise OSError(errno.ENOSYS, "")
                data = work(node, body, uid, gid)
            except OSError as error:
                number = error.errno or errno.EIO
            try:
                os.write(self.device, _OUT.pack(_OUT.size + len(data), -number, unique) + data)
            except OSError:
                continue  # the caller has ended

    def _misbehave(self, name: str) -> None:
        if not self.shared[0]:
            return
        served = int.from_bytes(self.shared[8:16], "little") + 1
        self.shared[8:16] = served.to_bytes(8, "little")
        if served <= self.faults.after:
            return
        if self.faults.dies:
            os._exit(0)
        time.sleep(self.faults.delay)
        number = self.faults.errors.get(name, self.faults.errors.get("*", 0))
        if number:
            raise OSError(number, "")

    # ------------------------------------------------------------------------------------------------------- helpers

    def _forget(self, node: int, count: int) -> None:
        self.lookups[node] = self.lookups.get(node, 0) - count
        if node != 1 and self.lookups[node] <= 0 and node in self.fds:
            fd = self.fds.pop(node)
            del self.nodes[self._key(fd)], self.lookups[node]
            os.close(fd)

    def _real(self, node: int) -> str:
        return f"/proc/self/fd/{self.fds[node]}"

    def _may(self, node: int, uid: int, bits: int) -> None:
        """Refuse root what `others` may not do, like an NFS server with root squash."""
        if self.faults.squash and uid == 0 and os.fstat(self.fds[node]).st_mode & bits != bits:
            raise OSError(errno.EACCES, "")

    def _named(self, node: int, name: bytes) -> bytes:
        if self.faults.folds and not os.path.lexists(os.fsencode(self._real(node)) + b"/" + name):
            for other in os.listdir(os.fsencode(self._real(node))):
                if other.lower() == name.lower():
                    return other
        return name

    def _entry(self, parent: int, name: bytes) -> bytes:
        fd = os.open(self._named(parent, name), os.O_PATH | os.O_NOFOLLOW, dir_fd=self.fds[parent])
        key = self._key(fd)
        node = self.nodes.get(key)
        if node is None:
            node, self.next = self.next, self.next + 1
            self.nodes[key], self.fds[node] = node, fd
        else:
            os.close(fd)
        self.lookups[node] = self.lookups.get(node, 0) + 1
        return struct.pack("=4Q2I", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _attributes(self, node: int) -> bytes:
        st = os.fstat(self.fds[node])
        uid = st.st_uid if self.faults.owner is None else self.faults.owner
        times = (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        return _ATTR.pack(
            st.st_ino, st.st_size, st.st_blocks, *(ns // 10**9 for ns in times), *(ns % 10**9 for ns in times),
            st.st_mode, st.st_nlink, uid, st.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def _made(self, parent: int, name: bytes, uid: int, gid: int) -> bytes:
        who = (_NOBODY, _NOBODY) if self.faults.squash and uid == 0 else (uid, gid)
        os.chown(name, *who, dir_fd=self.fds[parent], follow_symlinks=False)
        return self._entry(parent, name)

    # ---------------------------------------------------------------------------------------------------- operations

    def do_init(self, _node: int, _body: bytes, _uid: int, _gid: int) -> bytes:
        flags = _FLOCK if {"setlk", "*"} & set(self.faults.errors) else 0
        return _GREETING.pack(7, 31, 0, flags, 16, 12, 65536, 1, 1, 0, 0)

    def do_lookup(self, node: int, body: bytes, uid: int, _gid: int) -> bytes:
        self._may(node, uid, stat.S_IXOTH)
        return self._entry(node, body[:-1])

    def do_getattr(self, node: int, _body: bytes, _uid: int, _gid: int) -> bytes:
        return struct.pack("=QII", 0, 0, 0) + self._attributes(node)

    def do_setattr(self, node: int, body: bytes, uid: int, gid: int) -> bytes:
        self._may(node, uid, 0o10000000)  # a permission that no mode grants
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, to_uid, to_gid, _ = struct.unpack(
            "=IIQQQQQQIIIIIIII", body[:88]
        )
        real = self._real(node)
        if valid & 1:
            os.chmod(real, stat.S_IMODE(mode))
        if valid & 6:
            os.chown(real, to_uid if valid & 2 else -1, to_gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(real, size)
        if valid & 0x30:
            now, st = time.time_ns(), os.fstat(self.fds[node])
            first = now if valid & 128 else atime * 10**9 + atime_ns if valid & 16 else st.st_atime_ns
            second = now if valid & 256 else mtime * 10**9 + mtime_ns if valid & 32 else st.st_mtime_ns
            os.utime(real, ns=(first, second))
        return self.do_getattr(node, b"", uid, gid)

    def do_readlink(self, node: int, _body: bytes, _uid: int, _gid: int) -> bytes:
        return os.readlink(b"", dir_fd=self.fds[node])

    def do_symlink(self, node: int, body: bytes, uid: int, gid: int) -> bytes:
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        name, target = body.split(b"\0")[:2]
        os.symlink(target, name, dir_fd=self.fds[node])
        return self._made(node, name, uid, gid)

    def do_mknod(self, node: int, body: bytes, uid: int, gid: int) -> bytes:
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        mode, rdev, _, _ = struct.unpack_from("=IIII", body)
        name = body[16:-1]
        os.mknod(name, mode, rdev, dir_fd=self.fds[node])
        return self._made(node, name, uid, gid)

    def do_mkdir(self, node: int, body: bytes, uid: int, gid: int) -> bytes:
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        mode, _ = struct.unpack_from("=II", body)
        name = body[8:-1]
        if self._named(node, name) != name:
            raise OSError(errno.EEXIST, "")
        os.mkdir(name, mode, dir_fd=self.fds[node])
        return self._made(node, name, uid, gid)

    def do_unlink(self, node: int, body: bytes, uid: int, _gid: int) -> bytes:
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        name = self._named(node, body[:-1])
        found = os.lstat(name, dir_fd=self.fds[node])
        key = found.st_dev, found.st_ino
        if self.faults.hides and self.opened[key]:
            self.next += 1
            hidden = f".fuse_hidden{self.next:016x}"
            self.hidden[key] = [one for one in self.hidden.get(key, []) if one != (node, os.fsdecode(name))] + [(node, hidden)]
            os.rename(name, hidden, src_dir_fd=self.fds[node], dst_dir_fd=self.fds[node])
        else:
            os.unlink(name, dir_fd=self.fds[node])
        return b""

    def do_rmdir(self, node: int, body: bytes, uid: int, _gid: int) -> bytes:
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        os.rmdir(self._named(node, body[:-1]), dir_fd=self.fds[node])
        return b""

    def do_rename(self, node: int, body: bytes, uid: int, _gid: int) -> bytes:
        (to,) = struct.unpack_from("=Q", body)
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        self._may(to, uid, stat.S_IWOTH | stat.S_IXOTH)
        old, new = body[8:].split(b"\0")[:2]
        os.rename(self._named(node, old), self._named(to, new), src_dir_fd=self.fds[node], dst_dir_fd=self.fds[to])
        return b""

    def do_link(self, node: int, body: bytes, uid: int, _gid: int) -> bytes:
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        (old,) = struct.unpack_from("=Q", body)
        os.link(self._real(old), body[8:-1], dst_dir_fd=self.fds[node], follow_symlinks=True)
        return self._entry(node, body[8:-1])

    def _open(self, node: int, flags: int) -> bytes:
        fd = os.open(self._real(node), flags & ~(os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL | os.O_APPEND))
        self.opened[self._key(fd)] += 1
        return struct.pack("=QII", fd, _DIRECT, 0)

    def do_open(self, node: int, body: bytes, uid: int, _gid: int) -> bytes:
        self._may(node, uid, stat.S_IROTH)
        return self._open(node, struct.unpack_from("=I", body)[0])

    def do_opendir(self, node: int, body: bytes, uid: int, gid: int) -> bytes:
        return self.do_open(node, body, uid, gid)

    def do_create(self, node: int, body: bytes, uid: int, gid: int) -> bytes:
        self._may(node, uid, stat.S_IWOTH | stat.S_IXOTH)
        flags, mode, _, _ = struct.unpack_from("=IIII", body)
        name = self._named(node, body[16:-1])
        os.close(os.open(name, flags & ~os.O_TRUNC | os.O_CREAT | os.O_NOFOLLOW, stat.S_IMODE(mode), dir_fd=self.fds[node]))
        entry = self._made(node, name, uid, gid)
        return entry + self._open(struct.unpack_from("=Q", entry)[0], flags)

    def do_read(self, _node: int, body: bytes, _uid: int, _gid: int) -> bytes:
        fd, offset, size = struct.unpack_from("=QQI", body)
        return os.pread(fd, size, offset)

    def do_write(self, _node: int, body: bytes, _uid: int, _gid: int) -> bytes:
        fd, offset, size = struct.unpack_from("=QQI", body)
        return struct.pack("=II", os.pwrite(fd, body[40 : 40 + size], offset), 0)

    def do_readdir(self, node: int, body: bytes, _uid: int, _gid: int) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        out = b""
        with os.scandir(os.fsencode(self._real(node))) as entries:
            names = [(b".", 4), (b"..", 4), *((entry.name, 4 if entry.is_dir(follow_symlinks=False) else 8) for entry in entries)]
        for at, (name, kind) in enumerate(names[offset:], offset + 1):
            record = struct.pack("=QQII", at + 1000, at, len(name), 0 if self.faults.no_types else kind) + name
            record += b"\0" * (-len(record) % 8)
            if len(out) + len(record) > size:
                break
            out += record
        return out

    def do_statfs(self, node: int, _body: bytes, _uid: int, _gid: int) -> bytes:
        st = os.statvfs(self._real(node))
        figures = (st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree)
        return struct.pack("=5Q4I6I", *figures, st.f_bsize, 255, st.f_frsize, 0, *([0] * 6))

    def do_release(self, _node: int, body: bytes, _uid: int, _gid: int) -> bytes:
        fd = struct.unpack_from("=Q", body)[0]
        key = self._key(fd)
        self.opened[key] -= 1
        os.close(fd)
        for node, name in [] if self.opened[key] else self.hidden.pop(key, []):
            os.unlink(name, dir_fd=self.fds[node])
        return b""

    do_releasedir = do_release

    def do_flush(self, *_: object) -> bytes:
        return b""

    do_fsync = do_fsyncdir = do_destroy = do_setlk = do_setlkw = do_flush
