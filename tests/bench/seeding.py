#!/usr/bin/env python3
"""Measure the costs of links to a store for the first task of a job: ten builds, a thousand files, five thousand builds.

    tests/bench/seeding.py [--rounds N]

Runs the TaskProlog of a job's first task with a store and without one, in turns, and prints the medians. Needs root, to
act as the job's user, and a Python with `datasets`, which makes one real build. All other builds are copies of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "hooks"), str(ROOT / "tests")]

from support.site_dir import Site  # noqa: E402
from support.stores import Jobs, Template, links  # noqa: E402

CASES = {"10 builds": (10, 30), "1,000 files": (1_000, 150), "5,000 builds": (5_000, 1_000)}  # number, and target in ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    template = Template()
    try:
        print(f"{'in the store':<14}{'without':>10}{'with':>10}{'more':>10}{'target':>10}{'linked':>9}")
        for what, (count, target) in CASES.items():
            files = len(list((template.cache / template.key).iterdir()))
            measure(what, count // files if "files" in what else count, target, template, options.rounds)
    finally:
        template.close()
    return 0


def measure(what: str, builds: int, target: int, template: Template, rounds: int) -> None:
    """Print one line: the medians of the first task in ms, without a store and with it, and the number of linked builds."""
    site = Site()
    try:
        jobs = Jobs(site)
        site.configure(epilog={"budget": "100s", "deadline": "300s"})
        cache = jobs.begin("bench")
        for at in range(builds):
            template.put(cache, f"json/build-{at}/0.0.0/x")
        (event,) = jobs.end()
        assert event["builds"] == builds, event
        times: dict[str, list[float]] = {"": [], "bench": []}
        for _ in range(rounds if builds < 1_000 else 3):
            for label, found in times.items():
                site.configure(store={"user": f"{site.scratch}/{{user}}/.cache/hf-store" if label else None})
                began = time.perf_counter()
                cache = jobs.begin(label)
                found.append((time.perf_counter() - began) * 1000)
                linked = sum(links(path)[0] > 0 for path in cache.glob("json/*/0.0.0/x"))
                site.configure(store={"user": None})
                site.epilog(jobs.number)
        without, with_it = (statistics.median(found) for found in times.values())
        print(f"{what:<14}{without:>7.1f} ms{with_it:>7.1f} ms{with_it - without:>7.1f} ms{target:>7} ms{linked:>9}", flush=True)
    finally:
        site.close()


if __name__ == "__main__":
    sys.exit(main())
