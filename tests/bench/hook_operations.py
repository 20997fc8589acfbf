#!/usr/bin/env python3
"""Count the operations of one job's hooks on the metadata server of scratch, on each node and in total.

    tests/bench/hook_operations.py [--json FILE] [NODES…]

NODES is a number of nodes of the job; by default 1 2 8 32. Needs root, strace, and a Python with the packages that
tests/run.sh installs. The count has each system call that names an entry of scratch: open, stat, access, mkdir, rename,
unlink, rmdir, readdir and similar calls, but no operation on an open file. The cache stays empty.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "hooks"), str(ROOT / "tests")]

from support.site_dir import Site  # noqa: E402

NODES = (1, 2, 8, 32)
ON_OPEN_FILES = {"read", "write", "close", "fstat", "lseek", "fcntl", "ioctl", "dup", "dup2", "mmap", "pread64"}
ELSEWHERE = {"execve", "sendto"}  # a path in a program's arguments, in an event


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="*", type=int, metavar="NODES")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, to act as the job's user and as the Epilog")
    rows = [job_of(nodes) for nodes in options.nodes or NODES]
    print(f"{'nodes of the job':<36}" + "".join(f"{row['nodes']:>8}" for row in rows))
    for what in max(rows, key=len):
        if what != "nodes":
            print(f"{what:<36}" + "".join(f"{row.get(what, ''):>8}" for row in rows))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def job_of(nodes: int) -> dict[str, int]:
    """Return the operations of each hook of a job with `nodes` nodes and two tasks on each, and their sum."""
    site = Site()
    try:
        (site.scratch / "games").mkdir()
        os.chown(site.scratch / "games", 5, 60)
        counted = Counted(site)
        names = [f"n{at}" for at in range(1, nodes + 1)]
        row = {"nodes": nodes}
        row["TaskProlog, first task"] = counted.task("n1", "")
        row["TaskProlog, first of another node"] = same(lambda node: counted.task(node, "0"), names[1:])
        row["TaskProlog, further task"] = same(lambda node: counted.task(node, "0"), names)
        row["Epilog, not the last"] = same(lambda node: counted.epilog(node, nodes), names[1:])
        row["Epilog, the last"] = counted.epilog("n1", nodes)
        assert not site.names(), "the cache still exists"
        row["in all, a node"] = round(counted.total / nodes)
        return {what: count for what, count in row.items() if count}
    finally:
        site.close()


def same(count: Callable[[str], int], nodes: list[str]) -> int:
    """Return the count on each of these nodes, which must be equal; 0 without nodes."""
    counts = {count(node) for node in nodes}
    assert len(counts) <= 1, f"the count depends on the node: {counts}"
    return max(counts, default=0)


class Counted:
    """Runs the hooks of a site and counts their operations on its scratch. total: sum of all counts."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.total = 0
        self.trace = site.dir / "trace"
        self.traced = site.dir / "traced"
        self.strace = f"/usr/bin/strace -f -y -qq -o {self.trace}"
        self.traced.mkdir()
        (self.traced / "epilog").write_text(f"#!/bin/sh\nexec {self.strace} {site.hooks}/epilog\n")
        (self.traced / "epilog").chmod(0o755)

    def task(self, node: str, step: str) -> int:
        """Return the operations of the TaskProlog of a task."""
        self.trace.touch()
        self.trace.chmod(0o666)
        assert self.site.task_prolog(node=node, step=step, shell=f"{self.strace} /bin/sh").cache
        return self._count()

    def epilog(self, node: str, nodes: int) -> int:
        """Return the operations of the Epilog of a node."""
        hooks, self.site.hooks = self.site.hooks, self.traced
        try:
            self.site.epilog(node=node, nodes=nodes)
        finally:
            self.site.hooks = hooks
        return self._count()

    def _count(self) -> int:
        calls = [
            found[1]
            for line in self.trace.read_text().splitlines()
            if (found := re.match(r"\d+ +(\w+)\(", line)) and str(self.site.scratch) in line and "AT_EMPTY_PATH" not in line
        ]
        self.trace.unlink()
        operations = [call for call in calls if call not in ON_OPEN_FILES | ELSEWHERE]
        self.total += len(operations)
        return len(operations)


if __name__ == "__main__":
    sys.exit(main())
