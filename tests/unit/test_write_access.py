"""Which users can change a file or directory, by its owner and mode."""

from __future__ import annotations

import os
import stat

import pytest

from jobcache.cache import write_access

ROOT, SERVICE, USER = 0, 800, 1000


def found(mode: int, uid: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 0, uid, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "uid", "sticky", "weakness"),
    [
        (0o755, ROOT, False, ""),
        (0o700, SERVICE, False, ""),
        (0o755, USER, False, write_access.FOREIGN),
        (0o777, USER, True, write_access.FOREIGN),
        (0o775, ROOT, False, write_access.WRITABLE),
        (0o757, ROOT, True, write_access.WRITABLE),
        (0o1777, ROOT, False, write_access.WRITABLE),
        (0o1777, ROOT, True, ""),
        (0o1775, SERVICE, True, ""),
        (0o1777, USER, True, write_access.FOREIGN),
    ],
)
def test_weakness_names_how_other_users_can_change_an_entry(mode: int, uid: int, sticky: bool, weakness: str) -> None:
    """Only trusted owners may own an entry. A sticky bit excuses an open mode for callers that check the entry below."""
    assert write_access.weakness(found(stat.S_IFDIR | mode, uid), (ROOT, SERVICE), sticky) == weakness


@pytest.mark.parametrize(("mode", "is_open"), [(0o755, False), (0o775, True), (0o757, True), (0o1777, True), (0o744, False)])
def test_a_mode_is_open_if_the_group_or_all_users_can_write(mode: int, is_open: bool) -> None:
    """The sticky bit does not close a directory: users still create entries in it."""
    assert write_access.is_open(stat.S_IFDIR | mode) == is_open
