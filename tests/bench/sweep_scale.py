#!/usr/bin/env python3
"""Measure how the costs of `jobcache sweep` grow with the number of caches: seconds, memory and system calls.

    tests/bench/sweep_scale.py [--large] [--json FILE] [SIZE…]

SIZE is a number of caches, three for each user: by default 1000 10000 30000, and 100000 with --large. Needs root, to act
as that many users, strace, and a Python with the packages that tests/run.sh installs. Everything lies below one temporary
directory, in TMPDIR, which is removed at the end. Slurm is a program that prints 100,000 live jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "hooks"), str(ROOT / "tests")]

from jobcache.cache import event_line, protocol  # noqa: E402
from jobcache.system import as_user  # noqa: E402
from support.site_dir import Site  # noqa: E402

JOBS = 100_000
EACH = 3  # caches of each user
SIZES = (1_000, 10_000, 30_000)
LARGE = 100_000
RUNS = 3
TRACED = 1_000
REAPED = 3_000
FILES = 5  # of 4 KiB, in each cache that is reaped
FIRST_UID = 20_000

# The peak memory of a process includes its memory before exec, so a small process must start the measured one.
MEASURE = """
import json, os, sys, time
began = time.monotonic()
pid = os.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print(json.dumps({"status": os.WEXITSTATUS(status), "seconds": round(time.monotonic() - began, 2),
                  "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2), "mib": round(usage.ru_maxrss / 1024)}))
"""

Row = "dict[str, str | int | float]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, metavar="SIZE")
    parser.add_argument("--large", action="store_true", help="100,000 caches as well")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, to act as many users")
    rows = []
    for row in measured([*(options.sizes or SIZES), *([LARGE] if options.large else [])]):
        rows.append(row)
        print_row(row)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measured(sizes: list[int]) -> Iterator[Row]:
    """Yield each measurement as it is made."""
    for size in sizes:
        with scratch(size) as site:
            jobs_are(site, alive=size)
            yield {"what": "all alive", **fastest(site, size)}
            drop_caches()
            yield {"what": "all alive, disk cold", **sweep(site, size, "--dry-run")}
            jobs_are(site, alive=0)
            yield {"what": "none alive", **fastest(site, size)}
    for what, alive in (("all alive", True), ("none alive", False)):
        with scratch(EACH) as few, scratch(TRACED) as many:
            calls = []
            for site, size in ((few, EACH), (many, TRACED)):
                jobs_are(site, alive=size if alive else 0)
                calls.append(traced(site, size))
        yield {"what": f"{what}: system calls", "caches": TRACED, "each": round((calls[1] - calls[0]) / (TRACED - EACH), 1)}
    with scratch(REAPED, FILES) as site:
        jobs_are(site, alive=0)
        yield {"what": f"reaping, {FILES} files each", **sweep(site, REAPED)}
        assert not any(site.scratch.glob("*/.cache/*")), "some caches still exist"


def print_row(row: Row) -> None:
    """Print one line of the table."""
    figures = "".join(f"  {row[key]:>8} {unit}" for key, unit in UNITS.items() if key in row)
    print(f"{row['what']:<26}{row['caches']:>8} caches{figures}", flush=True)


UNITS = {"seconds": "s", "cpu_seconds": "s of CPU", "mib": "MiB", "each": "a cache"}

# ------------------------------------------------------------------------------------------------- the swept scratch


@contextmanager
def scratch(caches: int, files: int = 0) -> Iterator[Site]:
    """Yield a site with `caches` caches of `files` files. The code of the hooks makes each cache, as its owner."""
    site = Site()
    try:
        slurm = fake_slurm(site)
        site.configure(slurm={name: str(slurm / name) for name in ("squeue", "scontrol")}, sweep={"grace": "0s", "confirm": "0s"})
        for at in range(0, caches, EACH):
            make_user(site, at, min(EACH, caches - at), files)
        yield site
    finally:
        site.close()


def make_user(site: Site, first: int, caches: int, files: int) -> None:
    """Make a user's directory and caches; the first cache belongs to job number `first`."""
    uid = uid_of(first)
    home = site.scratch / f"u{uid}"
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    with as_user.Acting(uid, uid):
        for at in range(first, first + caches):
            path = f"{home}/.cache/hf-datasets-{job_of(at)}"
            claim = protocol.Claim(path, "test", job_of(at), 0, uid, f"n{at % 1000}")
            claim.record = {"user": event_line.quote(f"u{uid}"), "policy": '"d22848cb3760"'}
            protocol.enter(claim, time.monotonic())
            for number in range(files):
                Path(path, f"{number}.arrow").write_bytes(b"x" * 4096)


def uid_of(at: int) -> int:
    return FIRST_UID + at // EACH


def job_of(at: int) -> int:
    return 1_000_000 + at


def fake_slurm(site: Site) -> Path:
    """Write a squeue and a scontrol that print the content of files beside them. Return their directory."""
    where = site.dir / "slurm"
    where.mkdir()
    for name, file in (("squeue", "queue"), ("scontrol", "config")):
        (where / name).write_text(f"#!/bin/sh\nexec cat {where}/{file}\n")
        (where / name).chmod(0o755)
    (where / "config").write_text("ClusterName             = test\nPrivateData             = none\n")
    return where


def jobs_are(site: Site, alive: int) -> None:
    """Set the live jobs of Slurm: JOBS jobs, including the jobs of the first `alive` caches."""
    with (site.dir / "slurm/queue").open("w") as queue:
        for at in range(JOBS):
            job = job_of(at) if at < alive else 5_000_000 + at
            queue.write(f"{job}|{job}|RUNNING|{uid_of(at)}\n")


def drop_caches() -> None:
    """Drop the kernel's caches of the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


# ---------------------------------------------------------------------------------------------------------- measuring


def command(site: Site, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobcache.cli", "sweep", "--hooks", str(site.hooks), *options]


def run(site: Site, argv: list[str]) -> tuple[str, str]:
    """Run a command; return the last line of its stdout, and all of its stderr."""
    env = {"PYTHONPATH": str(ROOT / "hooks"), "PYTHONPYCACHEPREFIX": f"{site.dir}/pyc", "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, check=True)
    return (done.stdout.splitlines() or [""])[-1], done.stderr


def fastest(site: Site, caches: int) -> Row:
    """Return the costs of the fastest of some dry runs: other load has disturbed the slower ones."""
    return min((sweep(site, caches, "--dry-run") for _ in range(RUNS)), key=lambda row: row["seconds"])


def sweep(site: Site, caches: int, *options: str) -> Row:
    """Run a sweep and return its costs."""
    line, trouble = run(site, [sys.executable, "-I", "-S", "-c", MEASURE, *command(site, *options)])
    row = {"caches": caches, **json.loads(line)}
    assert row.pop("status") == 0 and not trouble, trouble
    return row


def traced(site: Site, caches: int) -> int:
    """Return the number of system calls of a dry run, children included."""
    with tempfile.NamedTemporaryFile("r") as summary:
        line, trouble = run(site, ["strace", "-f", "-c", "-o", summary.name, *command(site, "--dry-run")])
        assert line.startswith(str(caches)) and not trouble, (line, trouble)
        total = summary.read().splitlines()[-1].split()
    assert total[-1] == "total", total
    return int(total[3])


if __name__ == "__main__":
    sys.exit(main())
