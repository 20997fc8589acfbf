"""Which files are root's and the user's own, by the uids that a process sees. tests/faults/test_containers.py has namespaces."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from jobcache.cache import file_owners

NOBODY = 65534
USUAL, ITSELF, REMAPPED, BOTH = "0 0 4294967295\n", "1000 1000 1\n", "0 1000 1\n", "0 100000 1\n1000 1000 1\n"
CLOSED, GROUP, OPEN = 0o755, 0o775, 0o1777


def found(uid: int, mode: int = CLOSED) -> os.stat_result:
    return os.stat_result((stat.S_IFDIR | mode, 0, 0, 0, uid, 0, 0, 0, 0, 0))


def see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid_map: str, euid: int) -> None:
    """Let this process see itself as `euid` in a user namespace."""
    for name, text in (("_UID_MAP", uid_map), ("_HIDDEN", f"{NOBODY}\n")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(file_owners, name, str(tmp_path / name))
    monkeypatch.setattr(os, "geteuid", lambda: euid)


@pytest.mark.parametrize(
    ("uid_map", "euid", "owner", "above", "is_roots"),
    [
        (USUAL, 1000, 0, OPEN, True),
        (USUAL, 1000, NOBODY, CLOSED, False),
        (USUAL, 1000, 1001, CLOSED, False),
        (ITSELF, 1000, NOBODY, CLOSED, True),
        (ITSELF, 1000, NOBODY, GROUP, False),
        (ITSELF, 1000, NOBODY, OPEN, False),
        (ITSELF, 1000, 1000, CLOSED, False),
        (REMAPPED, 0, 0, CLOSED, False),
        (REMAPPED, 0, NOBODY, CLOSED, False),
        (BOTH, 1000, 0, CLOSED, True),
        (BOTH, 1000, NOBODY, CLOSED, False),
        ("", 1000, NOBODY, CLOSED, False),
        ("odd\n", 1000, NOBODY, CLOSED, False),
    ],
)
def test_entry_is_roots_by_its_uid_or_where_no_other_user_can_create_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid_map: str, euid: int, owner: int, above: int, is_roots: bool
) -> None:
    """The job's uid is 1000."""
    see(monkeypatch, tmp_path, uid_map, euid)
    assert file_owners.is_roots(found(owner), found(NOBODY, above), 1000) == is_roots


@pytest.mark.parametrize(
    ("uid_map", "euid", "own", "is_in_container", "nobodys_process"),
    [
        (USUAL, 1000, 1000, False, False),
        (ITSELF, 1000, 1000, True, True),
        (REMAPPED, 0, 0, True, True),
        (USUAL, 0, 1000, False, False),  # root, which acts for the user
        ("0 100000 65536\n", 0, 1000, False, True),  # root of a container that has users of its own
        ("0 0 1\n", 0, 0, True, True),  # in a second namespace
        (BOTH, 1000, 1000, False, True),
        ("0 1000 1\n1 100000 65536\n", 0, 0, True, True),
        ("", 1000, 1000, False, False),
    ],
)
def test_container_is_a_user_namespace_in_which_slurmd_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uid_map: str,
    euid: int,
    own: int,
    is_in_container: bool,
    nobodys_process: bool,
) -> None:
    """slurmd needs uid 0 and the job's uid, which is 1000."""
    see(monkeypatch, tmp_path, uid_map, euid)
    assert (file_owners.own(1000), file_owners.is_in_container(1000)) == (own, is_in_container)
    assert file_owners.can_be_roots_process(NOBODY) == nobodys_process and file_owners.can_be_roots_process(0)
    assert not file_owners.can_be_roots_process(1001)


def test_without_proc_all_uids_are_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container can have no /proc."""
    see(monkeypatch, tmp_path, USUAL, 1000)
    for name in ("_UID_MAP", "_HIDDEN"):
        (tmp_path / name).unlink()
    assert not file_owners.is_in_container(1000) and not file_owners.can_be_roots_process(NOBODY)
    assert not file_owners.is_roots(found(-1), found(0), 1000)
