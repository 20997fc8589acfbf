"""The AdminComments that a sweep writes."""

from __future__ import annotations

import json
import time
from pathlib import Path

from jobcache.cache import timestamps
from jobcache.diagnostics import admin_comments
from jobcache.sweep import scanning
from support.site_dir import Site


def test_more_jobs_than_one_command_holds_are_all_commented(site: Site, tmp_path: Path) -> None:
    """sacct gets each job once, and each job gets one comment."""
    for name, does in (
        ("sacct", 'for word; do case $word in --jobs=*) echo "${word#--jobs=}" | tr , "\\n" | sed "s/$/|1|/" ;; esac; done'),
        ("sacctmgr", f'echo "$*" >>{tmp_path}/commands'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    compiled = site.configure(slurm={"scontrol": f"{tmp_path}/scontrol"}, sweep={"comment": "admin"})
    event = {"ts": timestamps.millisecond(time.time()), "event": "cache.reaped", "level": "info", "outcome": "reaped", "bytes": 1}
    site.log.write_text("".join(json.dumps({**event, "job_id": at}) + "\n" for at in range(1, 1202)))
    admin_comments.record(compiled, scanning.Options(node="n1"))
    site.log.unlink()
    commands = (tmp_path / "commands").read_text().splitlines()
    assert len(commands) == 1201 and "jobid=1201 " in commands[-1]
