"""The program of each job of the benchmark: load the dataset, read it, map it, and report the result.

    load.py KIND FILE ROWS SUM CRC RESULT [READY GO DELAY]

It waits for the file GO, and DELAY seconds more, so that all jobs load together. RESULT gets one JSON object: outcome
"ok", "failed" (an exception) or "wrong" (no exception, but the data differ from the written data), and the times in seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from pathlib import Path

import datasets
import pyarrow.compute as pc


def seen(dataset: datasets.Dataset, column: str = "id") -> tuple[int, int, int]:
    """Return rows, sum of a column of numbers, and CRC of all text."""
    total = crc = 0
    arrow = dataset.with_format("arrow")
    for at in range(0, len(dataset), 10_000):
        table = arrow[at : at + 10_000]
        total += pc.sum(table[column]).as_py() or 0
        crc = zlib.crc32("".join(table["text"].to_pylist()).encode(), crc)
    return len(dataset), total, crc


def double(batch: dict[str, list[int]]) -> dict[str, list[int]]:
    return {"double": [number * 2 for number in batch["id"]]}


def work(kind: str, file: str, truth: tuple[int, int, int]) -> dict[str, object]:
    began = time.monotonic()
    try:
        dataset = datasets.load_dataset(kind, data_files=file, split="train")
        loaded = time.monotonic()
        dataset[:1000]
        first = time.monotonic()
        found = seen(dataset)
        before = time.monotonic()
        mapped = dataset.map(double, batched=True)
        done = time.monotonic()
        found_mapped = seen(mapped, "double")
    except Exception as error:  # noqa: BLE001 - the benchmark counts any error
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        return {"outcome": "failed", "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    times = {"load": loaded - began, "first_batch": first - began, "map": done - before}
    if found != truth or found_mapped != (truth[0], 2 * truth[1], truth[2]):
        return {"outcome": "wrong", "error": f"{found}, mapped {found_mapped}, expected {truth}", **times}
    return {"outcome": "ok", **times}


def allocated(directory: str) -> int:
    """Return the bytes on disk below a directory."""
    return sum(os.lstat(os.path.join(path, name)).st_blocks * 512 for path, _, names in os.walk(directory) for name in names)


def main() -> None:
    kind, file, rows, total, crc, result, *start = sys.argv[1:]
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    if start:
        ready, go, delay = start
        Path(ready).touch()
        while not os.path.exists(go):
            time.sleep(0.005)
        time.sleep(float(delay))
    answer = work(kind, file, (int(rows), int(total), int(crc)))
    answer["cache"] = str(datasets.config.HF_DATASETS_CACHE)
    answer["bytes"] = allocated(answer["cache"])
    new = Path(f"{result}.new")
    new.write_text(json.dumps(answer))
    new.rename(result)


if __name__ == "__main__":
    main()
