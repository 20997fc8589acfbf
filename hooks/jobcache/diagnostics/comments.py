"""What a job's cache held, in the job's AdminComment, for who asks sacct: off, unless the site turns it on.

By the sweep and never from the Epilog, which asks Slurm nothing. slurmctld refuses to change a job that has ended, so it
goes into the accounting. Only root's own events count, and nothing but numbers is written.
"""

import os
import sys
import time
from collections.abc import Iterable

from jobcache.cache import timestamps
from jobcache.config.settings import Settings, slurm_client
from jobcache.sweep import scanning
from jobcache.system import event_log, files
from jobcache.system.live_jobs import Unknown

_FIRST = 7200.0  # seconds back that the first sweep after a boot looks
_OVERLAP = 600.0  # seconds that are looked at twice: a job's record may reach the accounting after its cache has gone
_AT_ONCE = 1000  # jobs in one question: the kernel bounds a command's line
_UNITS = ("bytes", "kb", "mb", "gb", "tb")


def record(site: Settings, options: scanning.Options) -> None:
    """Comment the jobs whose caches have ended since the last time. What is in the way is said on stderr."""
    if site.tree["sweep"].get("comment", "off") == "off" or site.log_file is None or options.user is not None:
        return
    mark = f"{site.run_dir}/commented"
    now = time.time()
    since = min(_read(mark, now - _FIRST), now)
    events = event_log.read(event_log.rotations(site.log_file), event_log.Tally(), since=timestamps.millisecond(since - _OVERLAP))
    texts = of_jobs(events)
    slurm = slurm_client(site.tree)
    try:
        jobs = list(texts)
        for at in range(0, len(jobs), _AT_ONCE):
            for job_id in slurm.uncommented(jobs[at : at + _AT_ONCE]):
                slurm.comment(site.cluster, job_id, texts[job_id])
        _write(mark, now)
    except (Unknown, OSError) as error:
        print(f"no job is commented: {error}; `sweep: {{comment: off}}` where there is no slurmdbd", file=sys.stderr)


def of_jobs(events: Iterable[event_log.Event]) -> "dict[int, str]":
    """Return what is to be said of each job, all its runs together, such as `jobcache: 2.0 gb in 12 files, left over`."""
    sums: dict[int, tuple[int, int, bool]] = {}
    for event in events:
        if event["source"] != event_log.LOG or event["event"] not in ("cache.reaped", "cache.orphan_reaped"):
            continue
        if "job_id" in event:
            size, files, orphan = sums.get(event["job_id"], (0, 0, False))
            orphan = orphan or event.get("reason") == "orphan"
            sums[event["job_id"]] = size + event.get("bytes", 0), files + event.get("files", 0), orphan
    return {
        job_id: f"jobcache: {_size(size)} in {files} files{', left over' if orphan else ''}"
        for job_id, (size, files, orphan) in sums.items()
    }


def _size(count: float) -> str:
    at = 0
    while count >= 1000 and at < len(_UNITS) - 1:
        count, at = count / 1000, at + 1
    return f"{count:.1f} {_UNITS[at]}" if at else f"{count:.0f} bytes"


def _read(mark: str, otherwise: float) -> float:
    try:
        with open(mark, encoding="ascii") as file:
            return float(file.read(64))
    except (OSError, ValueError):
        return otherwise


def _write(mark: str, now: float) -> None:
    os.makedirs(os.path.dirname(mark), 0o700, exist_ok=True)
    files.replace_file(mark, f"{now}\n".encode("ascii"), 0o600)
