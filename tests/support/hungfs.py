"""A filesystem that hangs: every process that accesses it waits until it is unmounted.

It is a FUSE filesystem whose server answers the kernel's INIT request and nothing else. By default, the server reads each
request before it ignores it. Then not even SIGKILL ends the wait, as with a dead NFS or Lustre server.

An administrator mounts it with `hung`, a user with `hung_by_user`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.mounts import mount

_INIT = 26  # opcode of the kernel's first request
_INTERRUPT = 36  # opcode: a waiting process got a signal
_PARALLEL = 1 << 18  # FUSE_PARALLEL_DIROPS: lookups of different names do not wait for each other
_MNT_FORCE = 1
_IN = struct.Struct("=IIQ")  # of each request: length, opcode, unique id
_OUT = struct.Struct("=IiQ")  # of each answer: length, error, unique id
_INIT_REPLY = struct.Struct("=IIIIHHIIHHI28x")  # major, minor, readahead, flags, background, congestion, max_write, time_gran …
_INIT_BODY = _INIT_REPLY.pack(7, 31, 0, _PARALLEL, 16, 12, 4096, 1, 1, 0, 0)


# The server of `hung_by_user`. It gets the connection as fusermount3 passes it, by a socket.
_SERVER = """
import array, os, socket, struct, sys
_, ((_, _, data),), _, _ = socket.socket(fileno=int(sys.argv[1])).recvmsg(1, socket.CMSG_SPACE(4))
device = array.array("i", data)[0]
_, _, unique = struct.unpack_from("=IIQ", os.read(device, 1 << 17))
body = bytes.fromhex(sys.argv[2])
os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
print("mounted", flush=True)
while True:
    os.read(device, 1 << 17)
"""


@contextmanager
def hung_by_user(path: Path, user: str) -> Iterator[subprocess.Popen[bytes]]:
    """Let a user mount a filesystem that hangs on a directory of theirs. Nobody else can enter it, root included.

    The server is a process of the user. fusermount3 mounts, or, where users cannot open /dev/fuse, root as it would.
    Afterwards, the server has ended, and the waiting processes get ENOTCONN. Requires root, /dev/fuse and fusermount3.
    """
    who: dict[str, Any] = {"user": user, "group": user, "extra_groups": [], "cwd": "/"}
    ours, theirs = socket.socketpair()
    with ours, theirs, ExitStack() as stack:
        if os.stat("/dev/fuse").st_mode & 0o006:
            env = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
            mounting = ["fusermount3", "-o", "fsname=hungfs", "--", str(path)]
            subprocess.run(mounting, env=env, pass_fds=[theirs.fileno()], check=True, **who)
            stack.callback(subprocess.run, ["umount", "-l", str(path)], check=False)
        else:
            device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            account = pwd.getpwnam(user)
            options = f"fd={device},rootmode=40000,user_id={account.pw_uid},group_id={account.pw_gid}"
            stack.enter_context(mount("hungfs", path, "fuse", options))
            socket.send_fds(theirs, [b"x"], [device])
            os.close(device)
        command = [sys.executable, "-c", _SERVER, str(ours.fileno()), _INIT_BODY.hex()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[ours.fileno()], **who) as server:
            try:
                assert server.stdout is not None and server.stdout.readline() == b"mounted\n"
                yield server
            finally:
                server.kill()


@contextmanager
def hung(path: Path, *, killable: bool = False, mounter: tuple[int, int] = (0, 0)) -> Iterator[Hung]:
    """Mount a filesystem that hangs on the existing directory `path`, for the length of the block.

    Afterwards, the waiting processes get ENOTCONN. Requires root and /dev/fuse. In the block, statvfs of `path` and `ls -l`
    of its parent hang as well.
    killable: SIGKILL ends a wait.
    mounter: uid and gid of the user who has mounted it, by the mount table.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={mounter[0]},group_id={mounter[1]},allow_other"
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
        os.write(self._device, _OUT.pack(_OUT.size + len(_INIT_BODY), 0, unique) + _INIT_BODY)

    def _serve(self) -> None:
        try:
            while True:
                _, opcode, _ = _IN.unpack_from(os.read(self._device, 1 << 17))
                self.waiting += opcode != _INTERRUPT
        except OSError:
            return  # the connection was aborted
