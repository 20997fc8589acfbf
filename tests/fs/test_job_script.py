"""The batch script is found by the socket of slurmstepd, and is read only if it is slurmd's copy."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from jobcache.cache import job_script
from support.site_dir import ALICE, BOB
from support.spool import Spool

pytestmark = pytest.mark.root


NODE = f"n{uuid.uuid4().hex[:8]}"  # test processes share the names of sockets, and have the same process ids


def read(spool: Spool, budget: float = 5.0, **other: object) -> str | None:
    words = {"node": NODE, "job_id": 42, "uid": spool.uid, **other}
    return job_script.read(**words, until=time.monotonic() + budget)  # type: ignore[arg-type]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, ALICE, NODE, 42, "export HF_HOME=\xff\n")


def test_script_is_found(spool: Spool) -> None:
    with spool:
        assert read(spool) == "export HF_HOME=\xff\n"
        assert read(spool, node=f"{NODE}0") is None and read(spool, node=NODE[1:]) is None
        assert read(spool, job_id=2) is None and read(spool, job_id=4) is None
        assert read(spool, budget=0.0) is None
    assert read(spool) is None  # no slurmstepd


def missing(script: Path) -> None:
    script.unlink()


def symlink(script: Path) -> None:
    script.rename(script.with_name("other"))
    script.symlink_to("other")


def directory_of_another_user(script: Path) -> None:
    shutil.chown(script.parent, BOB)


def linked_directory(script: Path) -> None:
    to = script.parent.with_name("other")
    script.parent.rename(to)
    script.parent.symlink_to(to)


def of_another_user(script: Path) -> None:
    shutil.chown(script, BOB)


def writable(script: Path) -> None:
    script.chmod(0o722)


def fifo(script: Path) -> None:
    script.unlink()
    os.mkfifo(script, 0o700)


def too_large(script: Path) -> None:
    os.truncate(script, (1 << 20) + 1)


@pytest.mark.parametrize(
    "damage",
    [missing, symlink, directory_of_another_user, linked_directory, of_another_user, writable, fifo, too_large],
)
def test_other_files_are_not_read(spool: Spool, damage: Callable[[Path], None]) -> None:
    """Another user can bind a socket of this name and create files beside it."""
    damage(spool.script)
    with spool:
        assert read(spool) is None


def test_sockets_of_other_users_hide_nothing(spool: Spool, tmp_path: Path) -> None:
    """Two clusters with one name for a node can share a host: then the script is not known."""
    other = Spool(tmp_path / "other", BOB, NODE, 42, "bad\n")
    with spool, other:
        assert read(spool) == "export HF_HOME=\xff\n"
        for path in (other.script, other.script.parent):
            shutil.chown(path, ALICE)
        assert read(spool) is None
