"""The life of a cache from the TaskProlog to the Epilog, with the hooks as Slurm runs them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import cache_names, node_leases
from support.claims import JOB, root_only
from support.site_dir import SHELLS, Site


@pytest.mark.parametrize("shell", SHELLS)
def test_cache_is_made_filled_and_reaped(site: Site, shell: str) -> None:
    """One task, one Epilog, and an event from each."""
    task = site.task_prolog(shell=shell)
    cache = site.cache()
    assert task.status == 0
    assert task.exports == {"HF_DATASETS_CACHE": str(cache), "JOBCACHE_DIR": str(cache)}
    assert (cache / ".jobcache/id").read_text() == "test 4242 0 5\n"
    assert json.loads((cache / ".jobcache/job.json").read_text())["user"] == "games"
    assert cache.stat().st_mode & 0o777 == 0o700
    site.fill(cache, "json/default/a.arrow", "json/default/b.arrow", size=8192)
    site.epilog()
    assert not cache.exists() and site.debris() == []
    (reaped,) = site.events()
    assert (reaped["event"], reaped["outcome"], reaped["files"], reaped["bytes"]) == ("cache.reaped", "reaped", 2, 16384)
    assert [event["event"] for event in site.syslog.events()] == ["cache.created", "cache.reaped"]


@root_only
def test_late_epilog_leaves_the_live_run_alone(site: Site) -> None:
    """The Epilog of a lost run began before the live run took its lease on the same node: it reaps the lost run only."""
    site.task_prolog()
    late = (site.cache() / ".jobcache/nodes/n1").read_text().split()
    time.sleep(0.03)
    site.task_prolog(SLURM_RESTART_COUNT="1")
    live = site.cache(run=1) / ".jobcache/nodes/n1"
    live.write_text(f"{late[0]} {float(late[1]) + 1e6:.2f}\n")
    site.epilog(SLURM_JOB_RESTART_COUNT="1")
    assert not site.cache().exists() and live.exists()
    assert [(event["event"], event.get("reason")) for event in site.events()] == [
        ("cache.reaped", None),
        ("cache.kept", "lease_live"),
    ]


@root_only
def test_epilog_reaps_all_runs_of_its_job(site: Site) -> None:
    """The Epilog ignores SLURM_JOB_RESTART_COUNT, which is often that of the next run. Caches of other jobs stay."""
    for run in ("0", "1", "12"):
        site.task_prolog(SLURM_RESTART_COUNT=run)
    site.task_prolog(42421)
    site.task_prolog(424)
    site.epilog(SLURM_JOB_RESTART_COUNT="7")
    assert site.names() == ["hf-datasets-424", "hf-datasets-42421"]


@root_only
def test_epilog_without_budget_leaves_trash(site: Site) -> None:
    """The name of the cache is free at once; the name of the trash shows its job, and the sweep deletes it."""
    site.configure(epilog={"budget": "0s"})
    site.task_prolog()
    site.fill(site.cache(), *(f"d/{at}" for at in range(50)))
    site.epilog()
    assert not site.cache().exists()
    (trash,) = site.debris()
    assert cache_names.parse_debris(trash) == (cache_names.TRASH, JOB)
    (reaped,) = site.events()
    assert (reaped["outcome"], reaped["reason"], reaped["trash"]) == ("trashed", "budget", f"{site.cache().parent}/{trash}")


@root_only
@pytest.mark.parametrize(
    ("env", "gone"),
    [
        ({"nodes": 1}, True),
        ({"nodes": 2}, False),
        ({"nodes": 1, "SLURM_HET_JOB_ID": "4242"}, False),
        ({"SLURM_JOB_NUM_NODES": ""}, False),
    ],
    ids=["one node", "two nodes", "het", "unknown"],
)
def test_epilog_reaps_a_cache_without_record_only_for_a_job_of_one_node(site: Site, env: dict[str, Any], gone: bool) -> None:
    """The job's script has remade it. Another node, or another component of a het job, might still use it."""
    site.task_prolog()
    shutil.rmtree(site.cache() / ".jobcache")
    site.fill(site.cache(), "left")
    site.epilog(**env)
    assert site.cache().exists() != gone
    (event,) = site.events()
    assert (event["event"], event.get("reason")) == (("cache.reaped", None) if gone else ("cache.kept", "unrecorded"))


FORGED: dict[str, Callable[[Path], object]] = {
    "id of another job": lambda cache: (cache / ".jobcache/id").write_text("test 4243 0 5\n"),
    "id of another cluster": lambda cache: (cache / ".jobcache/id").write_text("other 4242 0 5\n"),
    "id of another run": lambda cache: (cache / ".jobcache/id").write_text("test 4242 1 5\n"),
    "id a fifo": lambda cache: ((cache / ".jobcache/id").unlink(), os.mkfifo(cache / ".jobcache/id")),
    "id a link": lambda cache: ((cache / ".jobcache/id").unlink(), (cache / ".jobcache/id").symlink_to("/etc/passwd")),
    "lease a fifo": lambda cache: ((cache / ".jobcache/nodes/n1").unlink(), os.mkfifo(cache / ".jobcache/nodes/n1")),
    "lease of the future": lambda cache: (cache / ".jobcache/nodes/n1").write_text(f"{node_leases.now()[0]} 1e300\n"),
    "meta a file": lambda cache: (shutil.rmtree(cache / ".jobcache"), (cache / ".jobcache").write_text("")),
}


@root_only
@pytest.mark.parametrize("forged", FORGED)
def test_epilog_keeps_a_forged_cache_with_a_reason(site: Site, forged: str) -> None:
    """An Epilog that cannot verify that its lease is the last one keeps the cache."""
    site.task_prolog()
    FORGED[forged](site.cache())
    site.epilog()
    assert site.cache().exists()
    (event,) = site.events()
    assert event["event"] == "cache.kept" and event["reason"]
