"""Mounts of a test's own, and a check that they are its own: gone when the block ends, whatever happens in it."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MS_BIND = 4096
_MNT_DETACH = 2


@contextmanager
def mount(source: object, target: Path, kind: str = "tmpfs", options: str = "") -> Iterator[Path]:
    """Mount on the existing `target`, below the directory for temporary files, for the length of the block."""
    flags = _MS_BIND if kind == "bind" else 0
    assert os.fspath(target).startswith(f"{tempfile.gettempdir()}/"), "tests mount nothing elsewhere"
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.fsencode(target)
    if libc.mount(os.fsencode(str(source)), where, kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind}: {os.strerror(ctypes.get_errno())}", str(target))
    root = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        yield target
    finally:
        libc.umount2(b"/proc/self/fd/%d" % root, _MNT_DETACH)  # wherever it is by now
        os.close(root)
