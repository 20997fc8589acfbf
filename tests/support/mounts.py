"""Mounts for one block of a test, below the directory for temporary files alone."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MS_BIND = 4096
_MNT_DETACH = 2


def umount(target: Path) -> None:
    """Unmount `target`, with all mounts below it."""
    assert os.fspath(target).startswith(f"{tempfile.gettempdir()}/")
    ctypes.CDLL(None).umount2(os.fsencode(target), _MNT_DETACH)


@contextmanager
def mount(source: object, target: Path, kind: str = "tmpfs", options: str = "") -> Iterator[Path]:
    """Mount `source` on the existing directory or file `target` for the length of the block. Raise OSError."""
    flags = _MS_BIND if kind == "bind" else 0
    assert os.fspath(target).startswith(f"{tempfile.gettempdir()}/"), "tests mount only below the directory for temporary files"
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.fsencode(target)
    if libc.mount(os.fsencode(str(source)), where, kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind}: {os.strerror(ctypes.get_errno())}", str(target))
    root = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        yield target
    finally:
        libc.umount2(b"/proc/self/fd/%d" % root, _MNT_DETACH)  # also if it was renamed meanwhile
        os.close(root)
