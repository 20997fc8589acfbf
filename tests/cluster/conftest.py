"""A two-node Slurm cluster with the hooks wired in."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.minicluster import Cluster
from support.site_dir import ALICE, Site

SRUN_WAITED = re.compile(r"srun: (Job \S+ step creation temporarily disabled|Step created for )")


def asked(cluster: Cluster) -> dict[str, str | None]:
    """Return the `slurm` section of a configuration for this cluster, with the commands of its Slurm."""
    commands = {name: shutil.which(name, path=cluster.env["PATH"]) for name in ("squeue", "scontrol")}
    return {"conf": str(cluster.conf_file), **commands}


def script(path: Path, text: str) -> Path:
    """Write a shell script that everybody can run. Return its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Wired:
    """A cluster, and the site whose hooks it runs. Both nodes share the scratch of the site."""

    def __init__(self, site: Site, cluster: Cluster) -> None:
        self.site = site
        self.cluster = cluster

    def batch(self, script: str, *options: str, user: str = ALICE, **env: str) -> int:
        """Submit a script and return the job's id."""
        return self.cluster.sbatch(f"#!/bin/sh\n{script}\n", *options, user=user, env=env)

    def wait(self, job: int, *states: str) -> str:
        return self.cluster.wait(job, *states)

    def wait_for(self, path: Path) -> None:
        """Wait until `path` exists."""
        until = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < until, f"{path} does not exist after 20 s"
            time.sleep(0.02)

    def output(self, job: int) -> list[str]:
        """Return the lines of a job's output, without the messages of an srun that had to wait for the controller."""
        return [line for line in self.cluster.output(job).splitlines() if not SRUN_WAITED.match(line)]

    def cache(self, job: int, run: int = 0, user: str = ALICE) -> Path:
        return self.site.cache(job, run, user)

    def events(self, job: int, event: str = "") -> list[dict[str, Any]]:
        return [one for one in self.site.events(event) if one.get("job_id") == job]

    def assert_reaped(self, job: int, run: int = 0, user: str = ALICE, **fields: Any) -> dict[str, Any]:
        """Check that the cache is gone without debris. Return the event that records it."""
        assert not self.cache(job, run, user).exists()
        assert [name for name in self.site.debris(user) if f"-{job}-" in name] == []
        (event,) = [one for one in self.events(job, "cache.reaped") if one["run"] == run]
        assert event["outcome"] == "reaped"
        assert {name: event[name] for name in fields} == fields
        return event


@pytest.fixture(scope="module")
def _wired() -> Iterator[Wired]:
    site = Site()
    cluster = Cluster(conf=[f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog"])
    site.configure(cluster=cluster.name)
    with cluster:
        yield Wired(site, cluster)
    site.close()


@pytest.fixture
def wired(_wired: Wired) -> Iterator[Wired]:
    """The cluster with the default configuration. A test fails if it leaves a node that is not idle."""
    site = _wired.site
    before = dict(site.keys)
    yield _wired
    site.keys = before
    site.configure()
    for node in _wired.cluster.nodes:
        _wired.cluster.wait_node(node, "IDLE")
