"""Leases: which process may release a lease, and which process then owns the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobcache.cache import node_leases, reasons
from support.claims import BOOT, CACHE, claim, enter, make_odd, opened, refusal, release


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (f"{BOOT} 99.99\n", "last"),
        (f"{BOOT} 100.00\n", "live"),
        (f"{BOOT} 100.01\n", "live"),
        ("another-boot 5000.00\n", "last"),
        ("", "unreadable"),
        (f"{BOOT} 99.99", "unreadable"),
        (f"{BOOT}\n", "unreadable"),
        (f"{BOOT} soon\n", "unreadable"),
        (f"{BOOT} 1 2\n", "unreadable"),
        (f"{BOOT} nan\n", "live"),
        (f"{BOOT} inf\n", "live"),
        ("é 1\n", "unreadable"),
        ("x" * 70000 + "\n", "unreadable"),
    ],
)
def test_release_keeps_a_lease_that_is_younger_than_the_epilog(scratch: Path, text: str, outcome: str) -> None:
    """A lease is released if it is of another boot, or was taken before the Epilog began. In doubt, it is kept."""
    enter(claim(scratch))
    (scratch / CACHE / ".jobcache/nodes/n1").write_text(text)
    assert release(scratch / CACHE, "n1", BOOT, 100.0) == outcome
    assert (scratch / CACHE / ".jobcache/nodes").exists() == (outcome != "last")


def test_only_the_last_release_owns_the_cache(scratch: Path) -> None:
    """Each node releases its lease; "last" is returned once, and nodes/ is gone then."""
    for node in ("n1", "n2", "n3"):
        enter(claim(scratch, node))
    cache = scratch / CACHE
    assert [release(cache, node) for node in ("n2", "n2", "n1", "n3", "n3")] == ["others", "none", "others", "last", "none"]
    assert not (cache / ".jobcache/nodes").exists()


def test_release_without_a_lease_leaves_nodes_alone(scratch: Path) -> None:
    """An Epilog of a node without a lease does not remove nodes/, even if it is empty."""
    enter(claim(scratch))
    cache = scratch / CACHE
    assert release(cache, "n2") == "none"
    (cache / ".jobcache/nodes/n1").unlink()
    assert release(cache, "n2") == "none"
    assert (cache / ".jobcache/nodes").exists()


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_release_keeps_a_lease_that_is_no_regular_file(scratch: Path, kind: str) -> None:
    """The release does not hang on it."""
    enter(claim(scratch))
    path = scratch / CACHE / ".jobcache/nodes/n1"
    path.unlink()
    make_odd(path, kind)
    try:
        outcome = release(scratch / CACHE, "n1")
    except OSError as error:
        outcome = reasons.reason_of(error)
    assert outcome in ("unreadable", "not_directory")
    assert (scratch / CACHE / ".jobcache/nodes").exists()


def test_seize_succeeds_once(scratch: Path) -> None:
    """Of two processes that want to move a dead cache, only one succeeds. Then no task joins it, and no lease is released."""
    enter(claim(scratch))
    with opened(scratch / CACHE) as fd:
        assert [node_leases.seize(fd), node_leases.seize(fd)] == [True, False]
    assert release(scratch / CACHE, "n1") == "none"
    assert refusal(claim(scratch, "n2")) == "busy"


def test_seize_of_a_directory_without_record_fails(scratch: Path) -> None:
    """It has no nodes/ to take."""
    (scratch / "plain").mkdir()
    with opened(scratch / "plain") as fd:
        assert not node_leases.seize(fd)
    assert os.listdir(scratch / "plain") == []
