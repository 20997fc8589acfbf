"""Write the size of each job's cache into the AdminComment of the job. Off, unless the site turns it on.

The sweep does this; the Epilog runs no command of Slurm. slurmctld does not change a job that has ended, so sacctmgr writes
the comment into the accounting. A comment holds numbers only, and only from the log, which root alone writes.
"""

import os
import sys
import time
from collections.abc import Iterable

from jobcache.cache import timestamps
from jobcache.config.settings import Settings, slurm_client
from jobcache.diagnostics import units
from jobcache.sweep import scanning
from jobcache.system import event_log, files, log_files
from jobcache.system.live_jobs import Unknown

_FIRST = 7200.0  # seconds of events that the first sweep after a boot reads
_OVERLAP = 600.0  # seconds of events that two sweeps read: a job can reach the accounting after its cache is reaped
_AT_ONCE = 1000  # jobs in one command: the kernel limits the length of a command line


def record(site: Settings, options: scanning.Options) -> None:
    """Comment the jobs whose caches were reaped since the last sweep. Print an error to stderr."""
    if site.tree["sweep"].get("comment", "off") == "off" or site.log_file is None or options.user is not None:
        return
    mark = f"{site.run_dir}/commented"
    now = time.time()
    since = min(_read_mark(mark, now - _FIRST), now)
    events = event_log.read(log_files.rotations(site.log_file), event_log.Tally(), since=timestamps.millisecond(since - _OVERLAP))
    texts = of_jobs(events)
    slurm = slurm_client(site.tree)
    try:
        jobs = list(texts)
        for at in range(0, len(jobs), _AT_ONCE):
            for job_id in slurm.uncommented(jobs[at : at + _AT_ONCE]):
                slurm.comment(site.cluster, job_id, texts[job_id])
        _write_mark(mark, now)
    except (Unknown, OSError) as error:
        print(f"cannot comment jobs: {error}; without slurmdbd, set `sweep: {{comment: off}}`", file=sys.stderr)


def of_jobs(events: Iterable[event_log.Event]) -> "dict[int, str]":
    """Return the comment of each job, over all its runs, such as `jobcache: 2.0 gb in 12 files, left over`."""
    sums: dict[int, tuple[int, int, bool]] = {}
    for event in events:
        if event["source"] != event_log.LOG or event["event"] not in ("cache.reaped", "cache.orphan_reaped"):
            continue
        if "job_id" in event:
            size, files, orphan = sums.get(event["job_id"], (0, 0, False))
            orphan = orphan or event.get("reason") == "orphan"
            sums[event["job_id"]] = size + event.get("bytes", 0), files + event.get("files", 0), orphan
    return {
        # in lower case, as the accounting stores it
        job_id: f"jobcache: {units.size(size).lower()} in {files} files{', left over' if orphan else ''}"
        for job_id, (size, files, orphan) in sums.items()
    }


def _read_mark(mark: str, default: float) -> float:
    """Return the time of the last sweep that commented, in seconds since the epoch."""
    try:
        return float(files.read_text(mark, 64, follow=False))
    except (OSError, ValueError):
        return default


def _write_mark(mark: str, now: float) -> None:
    os.makedirs(os.path.dirname(mark), 0o700, exist_ok=True)
    files.replace_file(mark, f"{now}\n".encode("ascii"), 0o600)
