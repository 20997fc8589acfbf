#!/usr/bin/env python3
"""Measure `report` and `explain` on the events of a cluster: CPU time and memory. Needs PYTHONPATH=hooks."""

import gzip
import json
import os
import sys
import tempfile
from pathlib import Path

from jobcache.cache import timestamps

END = 1795305600.0  # 2026-11-22
EVENT = {
    "ts": "2026-11-22T07:44:48.142Z", "event": "cache.reaped", "level": "info", "cluster": "tiger", "node": "n2", "job_id": 0,
    "uid": 65534, "user": "nobody", "partition": "gpu", "path": "/scratch/gpfs/nobody/.cache/hf-datasets-4242", "run": 0,
    "outcome": "reaped", "bytes": 2007040, "files": 2, "created_at": "2026-11-22T07:44:47Z", "policy": "d22848cb3760",
    "fs_total_bytes": 270553174016, "fs_free_bytes": 84036182016, "fs_used_percent": 22.9, "duration_ms": 32,
}  # fmt: skip


FILES = 200


def main(count: int) -> None:
    """Write events of a month into 200 files; print the CPU seconds and the peak memory of each command."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for packed in (False, True):
            where = Path(directory, "packed" if packed else "plain")
            where.mkdir()
            for at in range(FILES):
                with gzip.open(where / f"{at:03}.log.gz", "wt", 1) if packed else (where / f"{at:03}.log").open("w") as file:
                    file.writelines(line(job, count) for job in range(at * count // FILES, (at + 1) * count // FILES))
            config = Path(directory, "jobcache.yaml")
            config.write_text("path: /scratch/{user}/hf-datasets-{job_id}\ncluster: tiger\n")
            common = ["--config", str(config)]
            for name, argv in (
                ("report", ["report", "--json", "--since", "2026-10-01", "--until", "2026-12-01"]),
                ("report, a week", ["report", "--json", "--since", "2026-11-15", "--until", "2026-12-01"]),
                ("explain", ["explain", *common, str(count // 2)]),
            ):
                seconds, memory = measure([*argv, f"{where}/*"])
                print(f"{count:,} events {where.name:7} {name:15} {seconds:7.1f} s of CPU {memory:5.0f} MiB", flush=True)


def line(job: int, count: int) -> str:
    """Return the event of one of `count` jobs within 30 days."""
    ended, user = END - 30 * 86400 * (1 - job / count), job * job % 500
    names = {
        "user": f"user{user}",
        "uid": 5000 + user,
        "account": f"a{user % 50}",
        "partition": f"p{user % 3}",
        "node": f"n{job % 999}",
    }
    own = {
        "ts": timestamps.millisecond(ended),
        "job_id": job + 1,
        "path": f"/scratch/gpfs/user{user}/.cache/hf-datasets-{job + 1}",
    }
    made = timestamps.second(ended - 60 - job * 7919 % 20000)
    return json.dumps({**EVENT, **own, **names, "created_at": made, "bytes": job * 7919 % 10**10}) + "\n"


def measure(argv: list[str]) -> tuple[float, float]:
    """Run a command; return its CPU time in seconds and its peak memory in MiB."""
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "jobcache.cli", *argv], os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
    )  # fmt: skip
    _, status, used = os.wait4(pid, 0)
    assert os.WIFEXITED(status), argv
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
