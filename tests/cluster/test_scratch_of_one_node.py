"""A job on two nodes of which one does not see scratch, or sees it read-only."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from conftest import Wired
from support.minicluster import Cluster

SHOW = 'echo "$SLURMD_NODENAME <$HF_DATASETS_CACHE> <$JOBCACHE_DIR>"'
WRITE = '[ -z "$HF_DATASETS_CACHE" ] || : >"$HF_DATASETS_CACHE/$SLURMD_NODENAME"'


@contextmanager
def in_mount_namespace(cluster: Cluster, node: str, mounts: str) -> Iterator[None]:
    """Run the node's slurmd in a mount namespace of its own, after the commands `mounts`."""
    unshare = shutil.which("unshare", path=cluster.env["PATH"]) or ""
    command = [unshare, "--mount", "--propagation", "private", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    cluster.crash_node(node)
    cluster.start_slurmd(node, command)
    cluster.wait_node(node, "IDLE")
    try:
        yield
    finally:
        cluster.crash_node(node)
        cluster.start_slurmd(node)
        cluster.wait_node(node, "IDLE")


@pytest.mark.parametrize("view", ["missing", "read_only"])
def test_tasks_on_a_node_without_scratch_run_as_without_jobcache(wired: Wired, view: str) -> None:
    """srun hands on the variables of the batch step. The node without scratch removes them, and the other one keeps them."""
    scratch = wired.site.scratch
    mounts = {
        "missing": f"mount -t tmpfs -o mode=755 none {scratch}",
        "read_only": f"mount --bind {scratch} {scratch} && mount -o remount,bind,ro {scratch}",
    }[view]
    with in_mount_namespace(wired.cluster, "n2", mounts):
        job = wired.batch(f"{SHOW}\nsrun --label -N2 -n2 sh -c {shlex.quote(f'{SHOW} && {WRITE}')} | sort", "-N2")
        assert wired.wait(job) == "COMPLETED"
        cache = wired.cache(job)
        assert wired.output(job) == [f"n1 <{cache}> <{cache}>", f"0: n1 <{cache}> <{cache}>", "1: n2 <> <>"]
        wired.assert_reaped(job)
