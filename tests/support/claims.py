"""One task or one Epilog at a time on a directory of caches: short forms of the calls that the hooks make."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import cache_names, node_leases, protocol
from jobcache.cache.reasons import Refused

JOB = 4242
CACHE = f"hf-{JOB}"
BOOT = "11111111-2222-3333-4444-555555555555"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def claim(scratch: Path, node: str = "n1", run: int = 0, **more: Any) -> protocol.Claim:
    """Return the claim of a task of JOB. more: attributes of the claim."""
    made = protocol.Claim(f"{scratch}/hf-{cache_names.format_job(JOB, run)}", "test", JOB, run, os.geteuid(), node)
    for key, value in more.items():
        setattr(made, key, value)
    return made


def enter(asked: protocol.Claim, patience: float = 0.0) -> str:
    """Enter the cache; wait `patience` seconds while an earlier one is being reaped."""
    return protocol.enter(asked, time.monotonic() + patience)


def refusal(asked: protocol.Claim) -> str:
    """Return the reason for which the claim is refused."""
    with pytest.raises(Refused) as caught:
        enter(asked)
    return caught.value.reason


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a directory for the length of the block."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def release(cache: Path, node: str, boot: str = BOOT, uptime: float = 1e9) -> str:
    """Release a node's lease, for an Epilog that began at `uptime`; return the outcome."""
    with opened(cache) as fd:
        return node_leases.release(fd, node, boot, uptime)


def age(cache: Path) -> None:
    """Set the time of each lease to a time before any job."""
    for lease in (cache / ".jobcache/nodes").iterdir():
        os.utime(lease, (0, 0))


def tree(top: Path) -> dict[str, str]:
    """Return the content of each file below `top`, "" for a directory, by path."""
    return {str(path.relative_to(top)): path.read_text() if path.is_file() else "" for path in sorted(top.rglob("*"))}


def make_odd(path: Path, kind: str) -> None:
    """Create something that jobcache does not expect at `path`: a link, dangling link, directory, fifo or file."""
    if kind == "link":
        path.symlink_to("/proc/uptime")
    elif kind == "dangling":
        path.symlink_to("/nonexistent/place")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("x")


FOREIGN_IDS = {
    "cluster": lambda uid: f"other 4242 0 {uid}\n",
    "job": lambda uid: f"test 4243 0 {uid}\n",
    "run": lambda uid: f"test 4242 1 {uid}\n",
    "uid": lambda uid: f"test 4242 0 {uid + 1}\n",
    "no newline": lambda uid: f"test 4242 0 {uid}",
    "a word more": lambda uid: f"test 4242 0 {uid} 2\n",
    "empty": lambda uid: "",
    "nonsense": lambda uid: "\x00\x01\n",
    "long": lambda uid: f"test 4242 0 {uid}\n" + "x" * 70000,
    "not ASCII": lambda uid: f"tést 4242 0 {uid}\n",
}  # texts of .jobcache/id, given the uid of its owner, that are not the id of JOB's first run
