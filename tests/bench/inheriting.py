#!/usr/bin/env python3
"""Measure and count what links to a user's own datasets cache cost: on a local disk, and with 0.5 ms for each request.

    tests/bench/inheriting.py [--json FILE] [--rounds N] [BUILDS…]

A build has four files, as after one `load_dataset` and two `map`; each has a configuration of its own. BUILDS is their number;
by default 0 10 100 1000. The local disk is that of the temporary directory. The slow filesystem is a FUSE server that holds
the user's cache and the new cache; each of its answers takes 0.5 ms, and it gives up to 16 at the same time. Needs root,
/dev/fuse and strace.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "hooks"), str(ROOT / "tests")]

from jobcache.cache import inheriting  # noqa: E402
from support.slowfs import slow  # noqa: E402
from support.user_cache import CALLS, HASH, count_calls, put  # noqa: E402

DELAY = 0.0005  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="*", type=int, metavar="BUILDS")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, to mount a filesystem")
    rows = [row_of(builds, options.rounds) for builds in options.builds or (0, 10, 100, 1000)]
    for what in rows[0]:
        print(f"{what:<24}" + "".join(f"{row[what]:>10}" for row in rows))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def row_of(builds: int, rounds: int) -> dict[str, float]:
    """Return the times in ms, and the numbers of calls, for a cache with so many builds."""
    top = Path(tempfile.mkdtemp(prefix="jobcache-bench-"))
    try:
        home = top / "home"
        (home / "datasets").mkdir(parents=True)
        for at in range(builds):
            put(home / "datasets", f"json/default-{at:016x}/0.0.0/{HASH}", maps=2)
        row: dict[str, float] = {"builds": builds}
        row["local disk, ms"] = timed(home, lambda at: make(top / f"new-{at}"), builds, rounds)
        row["0.5 ms a request, ms"], row["requests"] = slow_row(top, home, builds)
        calls = count_calls(top, home)
        row["system calls"] = sum(calls.values())
        return {**row, **{f"  {name}": calls[name] for name in CALLS}}
    finally:
        shutil.rmtree(top)


def make(path: Path) -> Path:
    path.mkdir()
    return path


def timed(home: Path, new: Callable[[int], Path], builds: int, rounds: int) -> float:
    """Return the median time in ms of linking the cache below `home` into new directories."""
    times = []
    for at in range(rounds):
        fd = os.open(new(at), os.O_RDONLY)
        began = time.perf_counter()
        found = inheriting.inherit(inheriting.Request({"HF_HOME": str(home)}, 10**6), fd, "", 600)
        times.append((time.perf_counter() - began) * 1000)
        os.close(fd)
        assert found.refusal is None and found.builds == builds, (found.refusal, found.builds)
    return round(statistics.median(times), 1)


def slow_row(top: Path, home: Path, builds: int) -> tuple[float, int]:
    """Return the time in ms on the slow filesystem, and the number of requests."""
    mounted = make(top / "slow")
    paths = (path for path in home.rglob("*") if path.is_file())
    files = {f"home/{path.relative_to(home)}": path.read_bytes() for path in paths}
    files.update({"home/datasets/.any": b"", "new/.any": b""})
    with slow(mounted, files, uid=0, delay=DELAY) as server:
        return timed(mounted / "home", lambda _: mounted / "new", builds, 1), sum(server.asked.values())


if __name__ == "__main__":
    sys.exit(main())
