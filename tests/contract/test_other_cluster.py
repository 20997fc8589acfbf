"""Hooks that were compiled for one cluster and are wired into another one leave that one's jobs alone."""

from __future__ import annotations

import os

import pytest

from support.site_dir import SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")


@pytest.mark.parametrize("shell", SHELLS)
def test_task_prolog_of_another_cluster_gives_no_cache(site: Site, shell: str) -> None:
    """One shared hooks directory: the other cluster's jobs run as without jobcache, and an event gives the reason."""
    found = site.task_prolog(shell=shell, SLURM_CLUSTER_NAME="other")
    assert (found.exports, found.unsets) == ({}, []) and not site.cache().exists()
    assert [(event["outcome"], event["reason"]) for event in site.syslog.events("cache.skipped")] == [
        ("skipped", "other_cluster")
    ]


@pytest.mark.parametrize("name", ["test", ""])
def test_task_prolog_of_its_own_cluster_gives_a_cache(site: Site, name: str) -> None:
    """The compiled name, and a Slurm that does not report one."""
    assert site.task_prolog(SLURM_CLUSTER_NAME=name).cache == str(site.cache())


def test_epilog_of_another_cluster_touches_nothing(site: Site) -> None:
    """A job of the other cluster with the same id ends: this cluster's cache stays, and an event gives the reason."""
    site.task_prolog(SLURM_CLUSTER_NAME="test")
    site.epilog(SLURM_CLUSTER_NAME="other")
    assert (site.cache() / ".jobcache/nodes/n1").exists()
    assert [(event["event"], event["reason"]) for event in site.events()] == [("cache.skipped", "other_cluster")]
    site.epilog(SLURM_CLUSTER_NAME="test")
    assert not site.cache().exists()
