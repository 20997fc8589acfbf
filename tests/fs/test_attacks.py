"""Attacks and accidents that earlier versions did not withstand."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace

import pytest

from jobcache.cache import dirfd
from jobcache.sweep.plan import CACHE, KEEP, REPORT, TRASH, Directory, Rules, plan
from jobcache.system.live_jobs import Listing
from support.site_dir import ALICE, BOB, Site

ALICES, BOBS = pwd.getpwnam(ALICE).pw_uid, pwd.getpwnam(BOB).pw_uid


def test_a_late_epilog_leaves_the_next_runs_unrecorded_cache(site: Site) -> None:
    """The node of run 0 runs its Epilog late, while run 1's script has created its cache directory again elsewhere."""
    site.task_prolog(SLURM_RESTART_COUNT="1", node="n2")
    live = site.cache(run=1)
    for path in sorted(live.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    site.epilog(node="n1", nodes=1)
    assert live.exists()
    assert site.events("cache.kept")[0]["reason"] == "unrecorded"


def test_roots_symlink_to_a_users_symlink_is_not_followed(site: Site) -> None:
    """A symlink of root is followed. In its target, a user's symlink is not."""
    home, other = site.dir / "home", site.dir / "other"
    for path, uid in ((home, ALICES), (other, BOBS)):
        path.mkdir()
        os.chown(path, uid, -1)
    (site.scratch / ALICE).symlink_to(home / "s")
    (home / "s").symlink_to(other)
    os.lchown(home / "s", ALICES, -1)
    with pytest.raises(OSError, match="follows only symlinks of root|Too many levels"):
        dirfd.open_directory(str(site.scratch / ALICE))
    assert site.task_prolog().cache is None
    (home / "s").unlink()
    (home / "s").mkdir()
    os.chown(home / "s", ALICES, -1)
    assert site.task_prolog().cache == str(site.cache())
    site.epilog()
    assert not site.cache().exists()


def test_id_of_another_owner_is_not_trusted(site: Site) -> None:
    """A user who can write to another user's directory could otherwise turn it into a cache, and have it deleted."""
    own = site.cache()
    (own / ".jobcache/nodes").mkdir(parents=True)
    (own / ".jobcache/id").write_text(f"test 4242 0 {ALICES}\n")
    (own / ".jobcache/nodes/n1").write_text("another-boot 1.0\n")
    for path in (own.parents[1], own.parent, own, own / ".jobcache", own / ".jobcache/nodes", own / ".jobcache/nodes/n1"):
        os.chown(path, ALICES, -1)
    os.chown(own / ".jobcache/id", BOBS, -1)
    site.epilog()
    assert own.exists() and site.events("cache.kept")[0]["reason"] == "foreign"


def test_no_cache_is_made_in_another_users_directory(site: Site) -> None:
    """A user who creates another user's directory first does not become the owner of the cache in it."""
    parent = site.cache().parent
    parent.mkdir(parents=True)
    os.chown(parent, BOBS, -1)
    parent.chmod(0o777)
    for python in ("", "/nonexistent"):
        if python:
            site.policy(python=python)
        assert site.task_prolog().cache is None
    assert site.syslog.events("cache.skipped")[0]["reason"] == "foreign"


FOUND = Directory(kind=CACHE, path="/l/a/hf-7", job_id=7, run=0, uid=1000, identity=("t", 7, 0, 1000), sign=1.0, now=9e9)
RULES = Rules(cluster="t", grace=1, confirm=0, keep_max=1, own_nodes=frozenset({"n1"}))
NOBODY = [Listing(0, {}), Listing(1, {})]


def test_lease_of_another_node_on_local_scratch_keeps_the_cache() -> None:
    """Scratch that the configuration declares node-local by mistake has leases of other nodes."""
    alone, shared = replace(FOUND, local=True, nodes=("n1",)), replace(FOUND, local=True, nodes=("n1", "n2"))
    assert [decision.reason for decision in plan([alone, shared], NOBODY, RULES)] == ["orphan", "other_node"]


def test_trash_without_an_id_is_reported() -> None:
    """A directory with the name of trash, but without an id, is not deleted."""
    planted = replace(FOUND, kind=TRASH, run=None, identity=None)
    assert [(d.action, d.reason) for d in plan([planted], NOBODY, RULES)] == [(REPORT, "unrecorded")]
    assert plan([replace(planted, bare=True)], NOBODY, RULES)[0].action != KEEP
