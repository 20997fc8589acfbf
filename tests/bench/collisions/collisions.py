#!/usr/bin/env python3
"""Measure how often jobs that load one dataset at once fail, and the costs of the remedy: real Slurm jobs, real `datasets`.

    tests/bench/collisions/collisions.py [--quick] [--json FILE] [--picture FILE]

Jobs wait for each other and load together. Their cache is `shared` (cold), `warm` (shared, and built before), `job` (a
private cache by the hooks), `seeded` (a private cache from a store) or `inherited` (a private cache that begins with the
user's own, warm cache). flock works, excludes `nobody`, or fails with ENOSYS or ENOLCK. Each job compares the rows and a
checksum with the written data, and so finds wrong data without an error. Needs root, Slurm and munge, cc, and a Python with
`datasets` that ordinary users can run; matplotlib for the picture.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pwd
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2] / "hooks")]

from jobcache.cli.main import main as jobcache  # noqa: E402
from support.home import fingerprint  # noqa: E402
from support.minicluster import Cluster  # noqa: E402
from support.site_dir import ALICE, Site  # noqa: E402

FLOCKS = ("works", "nobody", "ENOSYS", "ENOLCK")
CACHES = ("shared", "warm", "job", "seeded", "inherited")
FORMATS = {"jsonl": "json", "array": "json", "csv": "csv", "parquet": "parquet"}  # format: loader
SUFFIX = {"jsonl": "jsonl", "array": "json", "csv": "csv", "parquet": "parquet"}


@dataclass
class Data:
    """A dataset in a file. truth: its rows, the sum of its ids, and the CRC of its text."""

    kind: str
    path: Path
    truth: tuple[int, int, int]


@dataclass
class Cell:
    """The results of all jobs of one kind. Times are seconds of the jobs that succeeded; bytes are those of all caches."""

    format: str
    flock: str
    cache: str
    jobs: int = 0
    failed: int = 0
    wrong: int = 0
    hung: int = 0
    load: list[float] = field(default_factory=list)
    first_batch: list[float] = field(default_factory=list)
    map: list[float] = field(default_factory=list)
    bytes: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Bench:
    """A cluster with the hooks, a scratch, the datasets and the library."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.site = Site()
        self.dir = self.site.dir / "bench"
        self.dir.mkdir()
        self.uid = pwd.getpwnam(ALICE).pw_uid
        os.chown(self.dir, self.uid, -1)
        self.library = self.dir / "noflock.so"
        subprocess.run(
            ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(self.library), str(HERE / "noflock.c"), "-ldl"], check=True
        )
        shutil.copy(HERE / "load.py", self.dir)  # users cannot read every checkout
        self.cluster = Cluster(
            cpus=max(8, options.jobs), conf=[f"TaskProlog={self.site.hooks}/task-prolog", f"Epilog={self.site.hooks}/epilog"]
        )
        self.site.configure(cluster=self.cluster.name)
        self.count = 0

    def __enter__(self) -> Bench:
        self.cluster.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cluster.stop()
        self.site.close()

    # ------------------------------------------------------------------------------------------------------ the lock

    def check_library(self) -> None:
        """Check that the library answers the locks of `datasets`: two processes lock by flock, lockf and filelock."""
        holds = (
            "import fcntl, filelock, sys, datasets.utils._filelock as own\n"
            "path = sys.argv[1]; file = open(path, 'w'); lock = own.FileLock(path + '.lock')\n"
            "def tried(what):\n"
            "    try: what(); return 'granted'\n"
            "    except filelock.Timeout: return 'refused'\n"
            "    except OSError as error: return __import__('errno').errorcode[error.errno]\n"
            "    except NotImplementedError: return 'ENOSYS'\n"
            "how = fcntl.LOCK_EX | fcntl.LOCK_NB\n"
            "print(tried(lambda: fcntl.flock(file, how)), tried(lambda: fcntl.lockf(file, how)),\n"
            "      tried(lambda: lock.acquire(timeout=0.2)), flush=True)\n"
            "sys.stdin.read()\n"
        )
        wanted = {"works": "refused", "nobody": "granted", "ENOSYS": "ENOSYS", "ENOLCK": "ENOLCK"}
        for flock in FLOCKS:
            with subprocess.Popen(
                [sys.executable, "-c", holds, str(self.dir / f"lock-{flock}")], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **self.environment(flock)},
            ) as first:  # fmt: skip
                assert first.stdout
                first.stdout.readline()
                second = subprocess.run(
                    [sys.executable, "-c", holds, str(self.dir / f"lock-{flock}")], text=True, capture_output=True,
                    stdin=subprocess.DEVNULL, env={**os.environ, **self.environment(flock)}, check=True,
                ).stdout.split()  # fmt: skip
                first.communicate()
            plain = ["EAGAIN" if wanted[flock] == "refused" else wanted[flock]] * 2
            if second[:2] != plain or (second[2] != wanted[flock] and flock in ("works", "nobody")):
                raise SystemExit(f"noflock.so does not work: with flock {flock}, a second process gets {second}")
            print(f"flock {flock}: a second process's flock, lockf and filelock: {', '.join(second)}", file=sys.stderr)

    def environment(self, flock: str) -> dict[str, str]:
        return {} if flock == "works" else {"LD_PRELOAD": str(self.library), "NOLOCK": flock}

    # ------------------------------------------------------------------------------------------------------ the data

    def data(self, name: str) -> Data:
        """Write a dataset of about --size megabytes."""
        path = self.dir / f"data.{SUFFIX[name]}"
        text = [f"row {i}: " + f"{i * 7919 % 99991} some words, and more of them; " * 5 for i in range(997)]
        count = int(self.options.size * 1e6 / (len(text[0]) + 30))
        rows = [(i, text[i % len(text)]) for i in range(count)]
        if name == "csv":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([("id", "text"), *rows])
        elif name == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"id": [i for i, _ in rows], "text": [words for _, words in rows]}), path)
        else:
            lines = [json.dumps({"id": i, "text": words}) for i, words in rows]
            path.write_text("[" + ",\n".join(lines) + "]" if name == "array" else "\n".join(lines) + "\n")
        truth = (count, sum(i for i, _ in rows), zlib.crc32("".join(words for _, words in rows).encode()))
        return Data(FORMATS[name], path, truth)

    # ------------------------------------------------------------------------------------------------------- a round

    def round(self, cell: Cell, data: Data) -> None:
        """Let all jobs load at once, and count their results."""
        self.count += 1
        place = self.dir / f"round-{self.count}"
        place.mkdir()
        os.chown(place, self.uid, -1)
        shared = place / "shared"
        chosen = {"HF_DATASETS_CACHE": str(shared)} if cell.cache in ("shared", "warm") else {}
        if cell.cache == "warm":
            self.alone(data, place, chosen)
        self.site.configure(store={"user": None})  # no store of an earlier round
        if cell.cache == "seeded":
            self.seed(data, place)
        own = place / "own"
        if cell.cache == "inherited":
            chosen = {"HF_HOME": str(own)}
            self.alone(data, place, chosen)
        before = fingerprint(own / "datasets") if own.exists() else {}
        delays = [self.options.spread * i / max(1, self.options.jobs - 1) for i in range(self.options.jobs)]
        jobs = [self.submit(cell, data, place, i, delay, chosen) for i, delay in enumerate(delays)]
        self.wait_for([place / f"ready-{i}" for i in range(len(jobs))], 300, "the jobs do not start")
        results = [place / f"result-{i}" for i in range(len(jobs))]
        (place / "go").touch()
        until = time.monotonic() + self.options.hang
        while not all(map(Path.exists, results)) and time.monotonic() < until:
            time.sleep(0.05)
        self.cluster.run("scancel", "--signal=KILL", *map(str, jobs), check=False)
        sizes = [self.take(cell, result) for result in results]
        for job in jobs:
            self.cluster.wait(job, timeout=60)
        if before and fingerprint(own / "datasets") != before:
            raise SystemExit("a job changed the user's own cache")
        cell.bytes += allocated(shared) if shared.exists() else sum(sizes)
        if not self.options.keep:
            shutil.rmtree(place)

    def words(self, data: Data, result: Path, *start: object) -> list[str]:
        program = [sys.executable, self.dir / "load.py", data.kind, data.path, *data.truth, result, *start]
        return [str(word) for word in program]

    def submit(self, cell: Cell, data: Data, place: Path, i: int, delay: float, chosen: dict[str, str]) -> int:
        words = [f"{name}={value}" for name, value in self.environment(cell.flock).items()]
        command = shlex.join(["env", *words, *self.words(data, place / f"result-{i}", place / f"ready-{i}", place / "go", delay)])
        # Not in the script: a job whose script sets HF_HOME for one program gets no private cache.
        env = {"HF_HOME": f"{place}/home-{i}", **chosen}
        return self.cluster.sbatch(f"#!/bin/sh\nexec {command}\n", user=ALICE, env=env)

    def alone(self, data: Data, place: Path, chosen: dict[str, str]) -> None:
        """Load once, with locks that work, before the jobs."""
        env = {"HF_HOME": f"{place}/home", **chosen}
        self.cluster.run(*self.words(data, place / "alone"), user=ALICE, env=env, timeout=300)

    def seed(self, data: Data, place: Path) -> None:
        """Build the user's own store."""
        self.site.configure(store={"user": f"{self.site.scratch}/{{user}}/store-{self.count}"})
        build = [sys.executable, "-m", "jobcache.cli", "store", "build", "--config", str(self.site.dir / "jobcache.yaml"), "--"]
        env = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": f"{place}/home"}
        self.cluster.run(*build, *self.words(data, place / "alone"), user=ALICE, env=env, timeout=300)

    def take(self, cell: Cell, result: Path) -> int:
        """Count one job; return the bytes of its cache."""
        cell.jobs += 1
        if not result.exists():
            cell.hung += 1
            return 0
        found: dict[str, Any] = json.loads(result.read_text())
        if (cell.cache not in ("shared", "warm")) != found["cache"].startswith(f"{self.site.scratch}/"):
            raise SystemExit(f"a job that measures a cache of the kind {cell.cache} used {found['cache']}")
        if found["outcome"] == "ok":
            for name in ("load", "first_batch", "map"):
                getattr(cell, name).append(found[name])
        else:
            setattr(cell, found["outcome"], getattr(cell, found["outcome"]) + 1)
            words = found["error"].partition(":")[0] if found["outcome"] == "failed" else "wrong data"
            cell.errors[words] = cell.errors.get(words, 0) + 1
            print(f"  {found['outcome']}: {found['error']}", file=sys.stderr)
        return int(found["bytes"])

    def wait_for(self, paths: list[Path], seconds: float, words: str) -> None:
        until = time.monotonic() + seconds
        while not all(map(Path.exists, paths)):
            if time.monotonic() > until:
                raise SystemExit(words)
            time.sleep(0.05)


def allocated(directory: Path) -> int:
    """Return the bytes on disk below a directory."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if not path.is_dir())


def cells(options: argparse.Namespace) -> list[Cell]:
    """Return the cells: each cache and flock with the first format; other formats only with flock `works` or `nobody`.

    A warm cache is for comparison, and is measured only with locks that work; one that is inherited, if they exclude nobody also.
    """
    return [
        Cell(one, flock, cache)
        for at, one in enumerate(options.formats)
        for flock in options.flocks
        for cache in options.caches
        if (at == 0 or options.all or flock in ("works", "nobody"))
        and (cache != "warm" or flock == "works")
        and (cache != "inherited" or flock in ("works", "nobody"))
    ]


def table(measured: list[Cell], rounds: int) -> str:
    """Return the table. Times are medians; × is the ratio to the shared cache of this format with a flock that works."""
    head = ("format", "flock", "cache", "jobs", "failed", "wrong", "hung", "load s", "×", "first batch s", "map s", "MB", "×")
    lines = [head]
    for cell in measured:
        base = next((one for one in measured if (one.format, one.flock, one.cache) == (cell.format, "works", "shared")), None)
        middle = [statistics.median(times) if times else None for times in (cell.load, cell.first_batch, cell.map)]
        whole = statistics.median(base.load) if base and base.load else None
        lines.append((
            cell.format, cell.flock, cell.cache, str(cell.jobs), str(cell.failed), str(cell.wrong), str(cell.hung),
            said(middle[0]), said(middle[0] / whole if middle[0] and whole else None), said(middle[1]), said(middle[2]),
            f"{cell.bytes / rounds / 1e6:.0f}", said(cell.bytes / base.bytes if base and base.bytes else None),
        ))  # fmt: skip
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            word.ljust(width) if at < 3 else word.rjust(width) for at, (word, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def said(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def draw(measured: list[Cell], file: str) -> None:
    """Draw the results: one bar for each cell, except for warm caches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [cell for cell in measured if cell.cache != "warm"]
    labels = [f"{cell.format}, flock {cell.flock}, {cell.cache}" for cell in shown]
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(shown) + 1.4), layout="constrained")
    left = [0.0] * len(shown)
    for name, colour in (("ok", "#4c9f70"), ("failed", "#d1495b"), ("wrong", "#1d1d1d"), ("hung", "#edae49")):
        counts = [c.jobs - c.failed - c.wrong - c.hung if name == "ok" else getattr(c, name) for c in shown]
        share = [100 * count / cell.jobs for count, cell in zip(counts, shown)]
        axes.barh(labels, share, left=left, color=colour, label={"wrong": "wrong data, no error"}.get(name, name))
        left = [before + more for before, more in zip(left, share)]
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("% of jobs")
    axes.set_xlim(0, 100)
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False)
    figure.savefig(file, dpi=120)


def parse() -> argparse.Namespace:
    seeded = "store" in jobcache.commands
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="jobs that load at once (8)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each measurement (1)")
    parser.add_argument("--size", type=float, default=20, help="megabytes of the dataset (20)")
    parser.add_argument("--spread", type=float, default=0.0, help="seconds within which the jobs begin (0: the same instant)")
    parser.add_argument("--hang", type=float, default=40, help="seconds after which a job that loads is taken to hang (40)")
    parser.add_argument("--formats", type=lambda text: text.split(","), default=list(FORMATS))
    parser.add_argument("--flocks", type=lambda text: text.split(","), default=list(FLOCKS))
    parser.add_argument("--caches", type=lambda text: text.split(","), default=list(CACHES if seeded else CACHES[:3]))
    parser.add_argument("--all", action="store_true", help="every flock with every format")
    parser.add_argument("--quick", action="store_true", help="4 jobs, 2 MB, JSON lines, flock that works or excludes nobody")
    parser.add_argument("--keep", action="store_true", help="keep the caches until the end, to inspect them")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--picture", metavar="FILE", help="such as docs/collisions.png")
    options = parser.parse_args()
    if options.quick:
        options.jobs, options.size, options.formats, options.flocks = 4, 2.0, ["jsonl"], ["works", "nobody"]
    if "seeded" in options.caches and not seeded:
        parser.error("seeded: this jobcache has no store")
    return options


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that nothing is left
    began = time.monotonic()
    with Bench(options) as bench:
        bench.check_library()
        data = {name: bench.data(name) for name in options.formats}
        measured = cells(options)
        for cell in measured:
            for _ in range(options.rounds):
                bench.round(cell, data[cell.format])
            print(
                f"{cell.format}, flock {cell.flock}, {cell.cache}: of {cell.jobs} jobs {cell.failed} failed, {cell.wrong} wrong, "
                f"{cell.hung} hung  [{time.monotonic() - began:.0f} s]",
                file=sys.stderr,
            )
    import datasets

    print(
        f"{options.jobs} jobs at once, {options.rounds} round(s), {options.size:g} MB, begun within {options.spread:g} s, ",
        end="",
    )
    print(f"datasets {datasets.__version__}, {os.cpu_count()} CPUs; {time.monotonic() - began:.0f} s in all\n")
    print(table(measured, options.rounds))
    if options.json:
        facts = {"jobs": options.jobs, "rounds": options.rounds, "megabytes": options.size, "spread": options.spread}
        facts.update(datasets=datasets.__version__, cpus=os.cpu_count())
        Path(options.json).write_text(json.dumps({**facts, "cells": [asdict(cell) for cell in measured]}, indent=1) + "\n")
    if options.picture:
        draw(measured, options.picture)


if __name__ == "__main__":
    main()
