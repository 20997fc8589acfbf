"""A user who types `jobcache run` and `jobcache sweep` at a prompt."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support.site_dir import ALICE, Site, entries

WHO = pwd.getpwnam(ALICE)
SHOW = 'echo "$HF_DATASETS_CACHE"; echo "$JOBCACHE_DIR"'


class User:
    """Alice at a prompt. home: her empty directory. config: the site's file with `grace` 0; Slurm does not answer."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.home = site.dir / "home"
        self.home.mkdir()
        os.chown(self.home, WHO.pw_uid, WHO.pw_gid)
        site.configure(slurm={"squeue": "/nonexistent", "scontrol": "/nonexistent"}, sweep={"grace": "0s", "confirm": "0s"})
        self.config = str(site.dir / "jobcache.yaml")

    def start(self, *argv: str, as_root: bool = False, **kw: Any) -> subprocess.Popen[str]:
        """Start jobcache with these arguments. env: in addition to the environment of a login shell."""
        env = {"HOME": str(self.home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **kw.pop("env", {})}
        ids = {} if as_root else {"user": WHO.pw_uid, "group": WHO.pw_gid, "extra_groups": []}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **kw}
        return subprocess.Popen([sys.executable, "-m", "jobcache.cli", *argv], env=env, cwd="/", text=True, **ids, **pipes)

    def jobcache(self, *argv: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*argv, **kw)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def run(self, script: str, *options: str, **kw: Any) -> subprocess.CompletedProcess[str]:
        return self.jobcache("run", "--config", self.config, *options, "--", "/bin/sh", "-c", script, **kw)

    def left(self) -> list[str]:
        """Return the names in the site's directory for caches and in the user's own."""
        places = (self.site.scratch / ALICE / ".cache", self.home / ".cache/jobcache" / str(WHO.pw_uid))
        return sorted(name for place in places for name in entries(place))

    def decisions(self) -> dict[str, tuple[str, str]]:
        """Return (action, reason) of a dry run of the sweep, by name. The sweep must not ask Slurm."""
        done = self.jobcache("sweep", "--hooks", str(self.site.hooks), "--dry-run", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {os.path.basename(row["path"]): (row["action"], row["reason"]) for row in rows}

    @contextmanager
    def running(self, script: str = "echo $JOBCACHE_DIR; exec sleep 60", **kw: Any) -> Iterator[tuple[Any, Path]]:
        """Yield a running command and its cache. The script begins by printing that path."""
        process = self.start("run", "--config", self.config, "--", "/bin/sh", "-c", script, start_new_session=True, **kw)
        assert process.stdout
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until `holds` returns True, for 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
