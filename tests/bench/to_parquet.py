#!/usr/bin/env python3
"""CPU time, wall time and memory of `jobcache to-parquet`, as ratios to `datasets`' own conversion.

    tests/bench/to_parquet.py [--mb 500] [--rounds 3] [--peers DIRECTORY]

Run it with a Python that has `datasets`. polars and duckdb join the table if they can be imported, also from DIRECTORY. The
programs take turns; the figures are medians. A ratio of CPU times suffers less from a busy machine than one of wall times.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HOOKS = Path(__file__).parents[2] / "hooks"
FORMATS = ("array.json", "field.json", "lines.jsonl", "table.csv")
WORDS = ("alpha", "beta", "gamma", 'delta "q"', "é", "x" * 30, "\n")

PROGRAMS = {
    "datasets": """
import datasets
datasets.disable_progress_bars()
kind = "csv" if source.endswith(".csv") else "json"
more = {"field": "data"} if "field." in source else {}
data = datasets.load_dataset(kind, data_files=source, split="train", cache_dir=out + ".cache", **more)
data.to_parquet(out + ".parquet")
""",
    "jobcache": """
from jobcache.parquet import convert, sources
fields = ["data"] if "field." in source else []
convert.convert(sources.parse_sources([source], fields), out + ".parquet", lambda *_: None)
""",
    "polars": """
import polars
if "field." in source:
    frame = polars.read_json(source).select(polars.col("data").explode()).unnest("data")
else:
    frame = {"json": polars.read_json, "jsonl": polars.read_ndjson, "csv": polars.read_csv}[source.rsplit(".")[-1]](source)
frame.write_parquet(out + ".parquet")
""",
    "duckdb": """
import duckdb
read = "read_csv" if source.endswith(".csv") else "read_json"
rows = f"{read}('{source}', maximum_object_size=2000000000)" if "field." in source else f"{read}('{source}')"
query = f"select unnest(data, recursive := true) from {rows}" if "field." in source else f"from {rows}"
duckdb.sql(f"copy ({query}) to '{out}.parquet'")
""",
}
MEASURE = """
import resource, sys, time
start = time.monotonic()
source, out = sys.argv[1:3]
sys.path[1:1] = sys.argv[3:]
exec(sys.stdin.read())
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, time.monotonic() - start, used.ru_maxrss / 1024)
"""


def write_sources(directory: Path, megabytes: int) -> None:
    """Write the same records in each format; the arrays and the lines have that size."""
    rng = random.Random(1)
    names = {name: directory / name for name in FORMATS}
    with (
        names["array.json"].open("w") as array, names["field.json"].open("w") as field,
        names["lines.jsonl"].open("w") as lines, names["table.csv"].open("w", newline="") as table,
    ):  # fmt: skip
        cells = csv.writer(table)
        cells.writerow(["id", "text", "score", "flag", "n", "label"])
        array.write("[")
        field.write('{"meta": {"x": [1, 2]}, "data": [')
        number = size = 0
        while size < megabytes << 20:
            record = {
                "id": number,
                "text": " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 80))),
                "score": rng.random(),
                "flag": bool(number % 2),
                "n": number * 7 % 1000,
                "label": None if number % 10 == 0 else rng.choice(["pos", "neg"]),
            }
            cells.writerow(record.values())
            text = json.dumps({**record, "embedding": [round(rng.random(), 8) for _ in range(8)]})
            array.write((", " if number else "") + text)
            field.write((", " if number else "") + text)
            lines.write(text + "\n")
            number += 1
            size += len(text)
        array.write("]")
        field.write("]}")


def measure(program: str, source: Path, out: Path, path: list[str]) -> tuple[float, float, float] | None:
    """Return seconds of CPU, seconds and MiB of one conversion; None if it failed."""
    argv = [sys.executable, "-W", "ignore", "-c", MEASURE, str(source), str(out), *path]
    done = subprocess.run(
        argv, input=PROGRAMS[program], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        print(f"{program}, {source.name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    cpu, wall, memory = map(float, done.stdout.split()[-3:])
    return cpu, wall, memory


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=500, help="size of a source (default: 500)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="", help="a directory with polars and duckdb")
    asked = parser.parse_args()
    path = [str(HOOKS), *filter(None, [asked.peers])]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_sources(directory, asked.mb)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs\n")
        print("source           MB  program   CPU s  CPU ratio  wall ratio  memory MiB")
        for form in FORMATS:
            found: dict[str, list[tuple[float, float, float]]] = {}
            for _ in range(asked.rounds):
                for program in PROGRAMS:
                    with tempfile.TemporaryDirectory(dir=directory) as out:
                        one = measure(program, directory / form, Path(out) / "out", path)
                    if one:
                        found.setdefault(program, []).append(one)
            size = (directory / form).stat().st_size >> 20
            middle = {program: [statistics.median(values) for values in zip(*runs)] for program, runs in found.items()}
            base = middle["datasets"]
            for program, (cpu, wall, memory) in middle.items():
                ratios = f"{cpu / base[0]:9.2f}  {wall / base[1]:10.2f}"
                print(f"{form:<14} {size:>4}  {program:<9}{cpu:6.1f}  {ratios}  {memory:10.0f}", flush=True)


if __name__ == "__main__":
    main()
