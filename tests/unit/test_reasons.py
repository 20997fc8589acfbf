"""Reasons: words of a closed set."""

from __future__ import annotations

import errno

import pytest

from jobcache.cache import reasons


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no_space"), (errno.EDQUOT, "no_space"), (errno.EACCES, "no_access"), (errno.EPERM, "no_access"),
        (errno.EROFS, "read_only"), (errno.ELOOP, "not_directory"), (errno.ENOTDIR, "not_directory"), (errno.EIO, "io_error"),
    ],
)  # fmt: skip
def test_every_error_has_a_reason(number: int, reason: str) -> None:
    """An error without a word of its own is an io_error."""
    assert reasons.reason_of(OSError(number, "x")) == reason
