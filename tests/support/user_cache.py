"""A user's own datasets cache, with builds that look finished to a reader of names, sizes and ends of files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jobcache

END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
HASH = "a" * 64
# Kinds of system calls, and their names on different systems.
CALLS = {
    "open": ("openat", "open"), "stat": ("newfstatat", "fstat", "stat", "lstat", "statx", "readlink"),
    "list": ("getdents64",), "read": ("pread64", "read"), "mkdir": ("mkdirat", "mkdir"), "symlink": ("symlinkat", "symlink"),
    "utime": ("utimensat",),
}  # fmt: skip
_PROGRAM = """
import os, sys
sys.path.append({hooks!r})
from jobcache.cache import inheriting, workers
workers.THREADS = 1
fd = os.open({new!r}, os.O_RDONLY)
os.write(2, b"begin")
assert inheriting.inherit(inheriting.Request({{"HF_HOME": {home!r}}}, 10**6), fd, "", 600).refusal is None
"""


def put(cache: Path, key: str = f"json/default-1/0.0.0/{HASH}", *, shards: int = 1, maps: int = 1) -> Path:
    """Create a finished build at `key` in a cache; return its directory."""
    build = cache / key
    build.mkdir(parents=True, exist_ok=True)
    name = key.partition("/")[0].rpartition("___")[2]
    split = {"name": "train", "num_examples": 3 * shards, "dataset_name": name}
    if shards > 1:
        split["shard_lengths"] = [3] * shards
    (build / "dataset_info.json").write_text(json.dumps({"dataset_name": name, "splits": {"train": split}}))
    for at in range(shards):
        write_arrow(build / (f"{name}-train-{at:05d}-of-{shards:05d}.arrow" if shards > 1 else f"{name}-train.arrow"))
    for at in range(maps):
        write_arrow(build / f"cache-{at:016x}.arrow")
    return build


def write_arrow(path: Path) -> None:
    """Write a file that ends as an Arrow stream."""
    path.write_bytes(b"x" * 64 + END)


def cut_short(path: Path) -> None:
    """Remove the end of a file, as a crash of its writer does."""
    path.write_bytes(path.read_bytes()[:-1])


def count_calls(top: Path, home: Path) -> Counter[str]:
    """Return the number of system calls of each kind that name an entry of two caches, or read one.

    home: HF_HOME. top: a directory above it, which gets the new cache.
    """
    trace, new = top / "trace", top / "counted"
    new.mkdir()
    program = _PROGRAM.format(hooks=str(Path(jobcache.__file__).parents[1]), new=str(new), home=str(home))
    command = ["strace", "-f", "-qq", "-y", "-o", str(trace), sys.executable, "-I", "-S", "-c", program]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    _, _, text = trace.read_text().partition('"begin"')
    lines = [line for line in text.splitlines() if str(top) in line]
    found = Counter(match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line)))
    return Counter({kind: sum(found[name] for name in names) for kind, names in CALLS.items()})
