"""A filesystem that hangs: every process that accesses it waits until it is unmounted.

It is a FUSE filesystem whose server answers the kernel's INIT request and nothing else. By default, the server reads each
request before it ignores it. Then not even SIGKILL ends the wait, as with a dead NFS or Lustre server.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.mounts import mount

_INIT = 26  # opcode of the kernel's first request
_INTERRUPT = 36  # opcode: a waiting process got a signal
_PARALLEL = 1 << 18  # FUSE_PARALLEL_DIROPS: lookups of different names do not wait for each other
_MNT_FORCE = 1
_IN = struct.Struct("=IIQ")  # of each request: length, opcode, unique id
_OUT = struct.Struct("=IiQ")  # of each answer: length, error, unique id
_INIT_REPLY = struct.Struct("=IIIIHHIIHHI28x")  # major, minor, readahead, flags, background, congestion, max_write, time_gran …


@contextmanager
def hung(path: Path, *, killable: bool = False) -> Iterator[Hung]:
    """Mount a filesystem that hangs on the existing directory `path`, for the length of the block.

    Afterwards, the waiting processes get ENOTCONN. Requires root and /dev/fuse. In the block, statvfs of `path` and `ls -l`
    of its parent hang as well.
    killable: SIGKILL ends a wait.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    server = Hung(device, killable)
    try:
        with mount("hungfs", path, "fuse", options):
            server.start()
            try:
                yield server
            finally:
                server.stop(path)
    finally:
        os.close(device)


class Hung:
    """The server. waiting: number of requests that it has read and ignored."""

    def __init__(self, device: int, killable: bool) -> None:
        self.waiting = 0
        self._device = device
        self._killable = killable
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._answer_init()
        if not self._killable:
            self._thread.start()

    def stop(self, path: Path) -> None:
        """Abort the connection, which ends every wait, also the server's."""
        ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_FORCE)
        if self._thread.is_alive():
            self._thread.join()

    def _answer_init(self) -> None:
        request = os.read(self._device, 1 << 17)
        _, opcode, unique = _IN.unpack_from(request)
        assert opcode == _INIT
        body = _INIT_REPLY.pack(7, 31, 0, _PARALLEL, 16, 12, 4096, 1, 1, 0, 0)
        os.write(self._device, _OUT.pack(_OUT.size + len(body), 0, unique) + body)

    def _serve(self) -> None:
        try:
            while True:
                _, opcode, _ = _IN.unpack_from(os.read(self._device, 1 << 17))
                self.waiting += opcode != _INTERRUPT
        except OSError:
            return  # the connection was aborted
