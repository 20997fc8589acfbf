"""Accounts with other homes than the host has: in a mount namespace of this thread, and of the processes that it starts."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PASSWD = "/etc/passwd"


def call(result: int, what: str) -> None:
    """Raise OSError if a function of the C library failed."""
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def passwd_with(homes: Mapping[str, object]) -> str:
    """Return the text of /etc/passwd with these homes, by name; without the accounts whose home is None."""
    lines = []
    for line in Path(_PASSWD).read_text().splitlines():
        fields = line.split(":")
        if fields[0] in homes:
            if homes[fields[0]] is None:
                continue
            fields[5] = str(homes[fields[0]])
        lines.append(":".join(fields))
    return "\n".join(lines) + "\n"


@contextmanager
def accounts(directory: Path, homes: Mapping[str, object]) -> Iterator[Path]:
    """Give accounts these homes for the length of the block. The yielded file, in `directory`, can be written meanwhile.

    This thread stays in a mount namespace of its own: threads that it started meanwhile forbid the way back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    file = directory / "passwd"
    file.write_text(passwd_with(homes))
    file.chmod(0o644)
    call(libc.unshare(_CLONE_NEWNS), "unshare")
    call(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate")
    call(libc.mount(os.fsencode(file), os.fsencode(_PASSWD), None, _MS_BIND, None), "mount --bind")
    try:
        yield file
    finally:
        call(libc.umount2(os.fsencode(_PASSWD), _MNT_DETACH), "umount")
