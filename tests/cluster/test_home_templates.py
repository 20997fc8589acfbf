"""Caches in the homes of users, on a real cluster."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Wired, asked
from support import homes
from support.minicluster import Cluster
from support.site_dir import ALICE, Site, entries

SHOW = 'echo "${HF_DATASETS_CACHE-none} ${JOBCACHE_DIR-none}"'
FILL = f'{SHOW}; mkdir -p "$HF_DATASETS_CACHE/json" && head -c 8192 /dev/zero >"$HF_DATASETS_CACHE/json/a.arrow"'


@pytest.fixture(scope="module")
def in_home() -> Iterator[tuple[Wired, Path]]:
    """The cluster, and the home of Alice on all hosts: a symlink of root, as an automounter makes one."""
    site = Site()
    volume, home = site.dir / "volume", site.dir / "home/alice"
    for directory in (volume, home.parent):
        directory.mkdir()
    os.chown(volume, pwd.getpwnam(ALICE).pw_uid, pwd.getpwnam(ALICE).pw_gid)
    home.symlink_to(volume)
    with homes.accounts(site.dir, {ALICE: home}):
        cluster = Cluster(conf=[f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog"])
        site.configure(
            cluster=cluster.name, path="{home}/.cache/hf-datasets-{job_id}", slurm={**asked(cluster), "timeout": "20s"}
        )
        with cluster:
            yield Wired(site, cluster), home
    site.close()


def test_nodes_share_a_cache_in_the_home(in_home: tuple[Wired, Path]) -> None:
    """The last Epilog reaps it. A step with another HOME has none of the variables."""
    wired, home = in_home
    other = wired.site.scratch / "other"
    other.mkdir()
    os.chown(other, pwd.getpwnam(ALICE).pw_uid, -1)
    step = shlex.join(["srun", "-N2", "-n2", "sh", "-c", FILL])
    elsewhere = shlex.join(["srun", "-N1", "-n1", "sh", "-c", SHOW])
    job = wired.batch(f"{FILL}\n{step}\nHOME={other} {elsewhere}", "-N2", "-n2", HOME=str(home))
    assert wired.wait(job) == "COMPLETED"
    cache = home / f".cache/hf-datasets-{job}"
    assert wired.output(job) == [f"{cache} {cache}"] * 3 + ["none none"]
    for node in wired.cluster.nodes:
        wired.cluster.wait_node(node, "IDLE")
    assert entries(cache.parent) == [] and os.listdir(other) == []
    (reaped,) = wired.events(job, "cache.reaped")
    assert (reaped["outcome"], reaped["path"]) == ("reaped", str(cache))
    (skipped,) = [one for one in wired.site.syslog.events("cache.skipped") if one["job_id"] == job]
    assert skipped["reason"] == "home_differs"


def test_job_with_another_home_runs_without_a_cache(in_home: tuple[Wired, Path]) -> None:
    wired, home = in_home
    job = wired.batch(SHOW, HOME=str(home.resolve()))
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["none none"] and entries(home / ".cache") == []
