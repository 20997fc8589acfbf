#!/usr/bin/env python3
"""Measure how many events a second are read: plain and compressed, all events and those of one job. Needs PYTHONPATH=hooks."""

import gzip
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from jobcache.system import event_log

EVENT = {
    "ts": "2026-11-22T07:44:48.142Z", "event": "cache.reaped", "level": "info", "cluster": "tiger", "node": "n2", "job_id": 0,
    "uid": 65534, "user": "nobody", "partition": "gpu", "path": "/scratch/gpfs/nobody/.cache/hf-datasets-4242", "run": 0,
    "outcome": "reaped", "bytes": 2007040, "files": 2, "created_at": "2026-11-22T07:44:47Z", "policy": "d22848cb3760",
    "fs_total_bytes": 270553174016, "fs_free_bytes": 84036182016, "fs_used_percent": 22.9, "duration_ms": 32,
}  # fmt: skip


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        plain, packed = Path(directory, "events.jsonl"), Path(directory, "events.jsonl.gz")
        with plain.open("w") as file:
            file.writelines(json.dumps({**EVENT, "job_id": at + 1}) + "\n" for at in range(count))
        with plain.open("rb") as source, gzip.open(packed, "wb") as target:
            shutil.copyfileobj(source, target)
        for path in (plain, packed):
            for job_id in (None, count // 2):
                began = time.perf_counter()
                found = sum(1 for _ in event_log.read([str(path)], event_log.Tally(), job_id))
                rate = count / (time.perf_counter() - began)
                print(f"{path.suffix:6} {'one job' if job_id else 'all':8} {found:8} found {rate:12,.0f} events/s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500_000)
