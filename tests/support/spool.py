"""slurmd's spool directory of one node, with one batch job."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path


class Spool:
    """A batch script as slurmd keeps it for `user`, below the directory `path`. While it is entered, slurmstepd listens.

    script: its path. uid: the user's.
    """

    def __init__(self, path: Path, user: str, node: str, job: int, text: str) -> None:
        account = pwd.getpwnam(user)
        self.uid = account.pw_uid
        directory = path / f"job{job:05d}"
        directory.mkdir(parents=True)
        directory.chmod(0o750)
        os.chown(directory, 0, account.pw_gid)
        self.script = directory / "slurm_script"
        self.script.write_bytes(os.fsencode(text))
        self.script.chmod(0o700)
        os.chown(self.script, account.pw_uid, 0)
        self._address = path / f"{node}_{job}.4294967291"
        self._socket = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Spool:
        self._socket.bind(str(self._address))
        self._socket.listen()
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()
        self._address.unlink()
