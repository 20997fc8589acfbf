"""A directory whose entries are mounted on demand, by the kernel's autofs: it lists only the entries that are mounted.

The server speaks version 5 of the kernel's protocol, as automount does for an indirect map without `browse`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.mounts import umount

# The server: a process group of its own, since the kernel mounts nothing for the group of the server.
_SERVER = r"""
import ctypes, fcntl, os, struct, sys, time
point, source, log, browse = sys.argv[1:5]
read, write = os.pipe()
libc = ctypes.CDLL(None, use_errno=True)

def mount(what, where, kind, flags, options):
    if libc.mount(os.fsencode(what), os.fsencode(where), kind.encode(), flags, options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), where)

mount("map", point, "autofs", 0, f"fd={write},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect")
root = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
for name in os.listdir(source) if browse else ():
    os.mkdir(f"{point}/{name}")
print("mounted", flush=True)
packet = struct.Struct("=iiIIQIIIII256s4x")
READY, FAIL = 0x9360, 0x9361
while True:
    _, _, token, _, _, _, _, _, _, length, name = packet.unpack(os.read(read, packet.size))
    name = os.fsdecode(name[:length])
    with open(log, "a") as file:
        file.write(name + "\n")
    if os.path.exists(f"{source}/{name}/.dead"):
        continue
    try:
        os.stat(f"{source}/{name}")
        os.makedirs(f"{point}/{name}", exist_ok=True)
        mount(f"{source}/{name}", f"{point}/{name}", "bind", 4096, "")
    except OSError:
        fcntl.ioctl(root, FAIL, token)
    else:
        fcntl.ioctl(root, READY, token)
"""


class OnDemand:
    """The mounted directory. requests: the names that were looked up, in order, without those that were mounted already."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def requests(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@contextmanager
def on_demand(point: Path, source: Path, log: Path, *, browse: bool = False) -> Iterator[OnDemand]:
    """Mount each directory in `source` below `point` when it is accessed. Requires root.

    browse: names that are not mounted are listed. A directory with a file `.dead` in it is on a server that does not answer.
    """
    command = [sys.executable, "-c", _SERVER, str(point), str(source), str(log), "yes" if browse else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == b"mounted\n"
            yield OnDemand(log)
        finally:
            umount(point)
            server.kill()
