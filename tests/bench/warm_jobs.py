#!/usr/bin/env python3
"""Time jobs that live from a warm cache, on a node without internet: without jobcache, and with a private cache.

    tests/bench/warm_jobs.py [--rows N] [--rounds N] [PYTHON…]

Prints a table in Markdown for each Python: seconds from the import of `datasets` to the data, the medians of all rounds. `cold`:
without jobcache and with an empty cache. A stub of the Hub serves what the user's cache is filled from, and is then stopped.
Needs root, to act as the job's user, and Pythons with `datasets`, such as those that tests/run.sh installs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "hooks"), str(ROOT / "tests")]

from support.warm import Warm, computed  # noqa: E402

OFFLINE = {"HF_HUB_OFFLINE": "1"}
HUB = "ds = load_dataset('acme/rows')['train']\n"
LINES = "ds = load_dataset('json', data_files='DATA/rows.jsonl', split='train')\n"
MAP = "mapped = ds.map(lambda row: {'words': len(row['text'].split())})\n"
CHAIN = (
    "few = mapped.filter(lambda row: row['id'] % 3 == 0).sort('id', reverse=True).shuffle(seed=1).map(lambda row: {'new': 1})\n"
)
GENERATOR = "def rows():\n    for id in range(COUNT):\n        yield {'id': id}\n\nds = Dataset.from_generator(rows)\n"
# The task of a job, its variables, and its program.
JOBS = {
    "a dataset of the Hub, no offline variable": ({}, HUB),
    "the same, `HF_HUB_OFFLINE=1`": (OFFLINE, HUB),
    "the same, `HF_DATASETS_OFFLINE=1`": ({"HF_DATASETS_OFFLINE": "1"}, HUB),
    "the same, warm below `HF_HOME`": ({"HF_HOME": "~/project/hf", **OFFLINE}, HUB),
    "the same, warm below `XDG_CACHE_HOME`": ({"XDG_CACHE_HOME": "~/xdg", **OFFLINE}, HUB),
    "JSON Lines": ({}, LINES),
    "a JSON array": ({}, "ds = load_dataset('json', data_files='DATA/rows.json', split='train')\n"),
    "CSV": ({}, "ds = load_dataset('csv', data_files='DATA/rows.csv', split='train')\n"),
    "`from_generator`": ({}, GENERATOR),
    "JSON Lines and a Python `map`": ({}, LINES + MAP),
    "JSON Lines, `map`, `filter`, `sort`, `shuffle`, `map`": ({}, LINES + MAP + CHAIN),
}
TIMED = "import time\nbegan = time.monotonic()\ntry:\n    exec(CODE, globals())\nexcept ConnectionError:\n    result = None\n"
TIMED += "else:\n    result = time.monotonic() - began\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the local data (300,000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", default=[sys.executable])
    options = parser.parse_args()
    for python in options.pythons:
        warm = Warm(python)
        try:
            measure(warm, options.rows, options.rounds)
        finally:
            warm.close()
    return 0


def measure(warm: Warm, rows: int, rounds: int) -> None:
    """Print the table of one Python."""
    write(warm.data, rows)
    programs = {
        name: (env, text.replace("DATA", str(warm.data)).replace("COUNT", str(rows))) for name, (env, text) in JOBS.items()
    }
    for env, text in programs.values():
        if not env and text != HUB:
            warm.run(text)
    for place in ("project/hf", "xdg/huggingface"):
        warm.copy(warm.home / place)
    version = warm.run("result = datasets.__version__")
    print(f"| on a node without internet, datasets {version} | cold | without jobcache | with jobcache | rebuilt |")
    print("|---|---|---|---|---|")
    prologs: list[float] = []
    for name, (env, text) in programs.items():
        times: dict[str, list[float | None]] = {"cold": [], "without": [], "with": []}
        rebuilt = 0
        for at in range(1 if text == HUB and not env else rounds):
            code = TIMED.replace("CODE", repr(text))
            if at == 0:
                times["cold"].append(warm.run(code, **{**env, "HF_DATASETS_CACHE": str(warm.home / f"cold-{len(prologs)}")}))
            times["without"].append(warm.run(code, **env))
            began = time.monotonic()
            given = warm.begin(**env)
            prologs.append(time.monotonic() - began)
            times["with"].append(warm.run(code, **given))
            rebuilt += len(computed(Path(given["HF_DATASETS_CACHE"])))
            warm.end()
        print(f"| {name} | {' | '.join(said(found) for found in times.values())} | {rebuilt or ''} |", flush=True)
    builds = sum(1 for _ in warm.cache.rglob("dataset_info.json"))
    print(f"\nThe TaskProlog of a job's first task, with {builds} builds to link: {statistics.median(prologs) * 1000:.0f} ms.\n")


def write(data: Path, rows: int) -> None:
    """Write the same rows as JSON Lines, as a JSON array and as CSV."""
    words = random.Random(1)
    texts = [" ".join(str(words.random())[2:10] for _ in range(18)) for _ in range(997)]
    lines = [json.dumps({"id": id, "text": texts[id % 997]}) for id in range(rows)]
    (data / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (data / "rows.json").write_text("[" + ",\n".join(lines) + "]\n")
    (data / "rows.csv").write_text("id,text\n" + "".join(f"{id},{texts[id % 997]}\n" for id in range(rows)))


def said(times: list[float | None]) -> str:
    """Return the median in seconds, or that the job fails."""
    found = [one for one in times if one is not None]
    return f"{statistics.median(found):.2f} s" if len(found) == len(times) else "**fails**"


if __name__ == "__main__":
    sys.exit(main())
