"""A scratch in trouble: what each task, each node and the next sweep make of it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.faultfs import CHANGES, FaultFS, Faults, faulty
from support.faulty import EXPORTED, GID, UID, epilog, left, prolog, said, skipped, swept
from support.mounts import mount
from support.site_dir import ALICE, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE")
REASONS = {errno.EDQUOT: "no_space", errno.EIO: "io_error", errno.ESTALE: "io_error"}


@contextmanager
def trouble(site: Site, faults: Faults, only: tuple[int, int] | None = None) -> Iterator[FaultFS]:
    """ALICE's directory on scratch is a faulty filesystem; what lies on it is in site.dir/backing, also afterwards."""
    backing, point = site.dir / "backing", site.scratch / ALICE
    for path in (backing, point):
        path.mkdir(exist_ok=True)
    os.chown(backing, UID, GID)
    with faulty(backing, point, faults, only=only) as fs:
        yield fs


@contextmanager
def mended(site: Site) -> Iterator[None]:
    """The same directory, on a filesystem without a fault."""
    with mount(site.dir / "backing", site.scratch / ALICE, "bind"):
        yield


def brought_right(site: Site) -> None:
    """One more Epilog and a sweep, on a scratch that works again: nothing is left."""
    with mended(site):
        epilog(site)
        result = swept(site)
        assert (left(site), result.trouble) == ([], [])


def test_the_faulty_filesystem_without_a_fault(site: Site) -> None:
    """What the tests below break does work: made, joined, filled, reaped, swept."""
    with trouble(site, Faults()) as fs:
        fs.arm()
        assert prolog(site).exports.keys() == EXPORTED
        assert prolog(site, step="0", SLURMD_NODENAME="n2").exports.keys() == EXPORTED
        site.fill(site.cache(), "json/a.arrow", "json/b.arrow")
        epilog(site)
        assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n2"]
        epilog(site, SLURMD_NODENAME="n2")
        assert left(site) == [] and said(site) == [("cache.reaped", "reaped", None)]
        assert prolog(site).cache
        assert swept(site).reaped[0].done and left(site) == []
        assert fs.served > 100


@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
@pytest.mark.parametrize("number", REASONS, ids=errno.errorcode.get)
def test_every_call_fails(site: Site, number: int, python: bool) -> None:
    """EIO, a stale handle, a quota: the job runs without a cache, what is there is kept, and the events say why."""
    if not python:
        site.policy(python="/nonexistent")
    errors = dict.fromkeys(CHANGES, number) if number == errno.EDQUOT else {"*": number}
    with trouble(site, Faults(errors=errors)) as fs:
        assert prolog(site, SLURM_JOB_ID="7").cache
        fs.arm()
        told = prolog(site, HF_DATASETS_CACHE=str(site.cache(1)))
        assert (told.exports, told.unsets) == ({}, ["HF_DATASETS_CACHE"])
        if python:
            assert skipped(site) == [("failed", REASONS[number])]
        site.configure()
        epilog(site, SLURM_JOB_ID="7")
        assert said(site) == [("cache.kept", "kept", REASONS[number])]
        assert swept(site).reaped == []
        fs.disarm()
        assert left(site) == ["hf-datasets-7"]
    brought_right(site)


@pytest.mark.parametrize("operation", CHANGES)
@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.EXDEV], ids=errno.errorcode.get)
def test_one_kind_of_call_fails(site: Site, operation: str, number: int) -> None:
    """Whichever it is: a task has a whole cache or none at all, an Epilog ends in time, and later nothing is left."""
    with trouble(site, Faults(errors={operation: number})) as fs:
        fs.arm()
        told = prolog(site)
        assert (told.cache is not None) == (site.cache() / ".jobcache/nodes/n1").exists()
        fs.disarm()
        if told.cache is None:
            assert prolog(site).cache
        site.fill(site.cache(), "json/a.arrow")
        fs.arm()
        epilog(site)
        swept(site, 4242)
    brought_right(site)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC], ids=errno.errorcode.get)
def test_no_room_for_a_new_name(site: Site, number: int) -> None:
    """A quota that is used up, by the very cache, on a filesystem that then takes no new name, and lets go: the cache goes."""
    with trouble(site, Faults(errors=dict.fromkeys(("rename", "mkdir", "create", "write"), number))) as fs:
        for job in ("7", "8"):
            assert prolog(site, SLURM_JOB_ID=job).cache
        fs.arm()
        epilog(site, SLURM_JOB_ID="7")
        assert said(site) == [("cache.reaped", "reaped", None)]
        assert [one.done for one in swept(site).reaped] == [True]
        fs.disarm()
        assert left(site) == []


@pytest.mark.parametrize("after", [0, 3, 6, 10, 15, 21, 28, 36, 45, 60])
def test_scratch_disappears_halfway(site: Site, after: int) -> None:
    """The server is gone for good after so many calls, in a task and in an Epilog: in time, and all right when it is back."""
    with trouble(site, Faults(after=after, dies=True)) as fs:
        fs.arm()
        prolog(site)
    with trouble(site, Faults(after=after, dies=True)) as fs:
        prolog(site, SLURM_JOB_ID="7")
        fs.arm()
        epilog(site, SLURM_JOB_ID="7")
    with mended(site):
        epilog(site, SLURM_JOB_ID="7")
    brought_right(site)


@pytest.mark.parametrize("after", [0, 10, 25, 40, 60, 80, 100])
def test_scratch_disappears_under_a_sweep(site: Site, after: int) -> None:
    """The sweep ends, says what it could not do, and the next one finishes."""
    with trouble(site, Faults(after=after, dies=True)) as fs:
        prolog(site)
        site.fill(site.cache(), "json/a.arrow")
        fs.arm()
        result = swept(site)
        assert result.trouble or [decision.reason for decision in result.decisions] == ["unreadable"]
    brought_right(site)


def test_scratch_is_slow(site: Site) -> None:
    """At a second a call, neither hook waits beyond its deadline; the tasks of the job agree on the path all the same."""
    site.configure(task_prolog={"deadline": "2s"}, epilog={"deadline": "4s"})
    with trouble(site, Faults(delay=1.0)) as fs:
        prolog(site, SLURM_JOB_ID="7")
        fs.arm()
        assert prolog(site, deadline=2).exports.keys() == EXPORTED
        epilog(site, SLURM_JOB_ID="7", deadline=4)
        assert said(site) == [("hook.failed", "failed", "deadline")]
    with mended(site):
        epilog(site, SLURM_JOB_ID="7")
    brought_right(site)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_scratch_without_flock(site: Site, number: int) -> None:
    """No lock is taken on scratch: one that refuses them changes nothing."""
    with trouble(site, Faults(errors={"setlk": number, "setlkw": number, "getlk": number})) as fs:
        fs.arm()
        assert prolog(site).cache and prolog(site, step="0", SLURMD_NODENAME="n2").cache
        epilog(site, SLURM_JOB_NUM_NODES="2")
        epilog(site, SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n2")
        assert left(site) == [] and said(site) == [("cache.reaped", "reaped", None)]
        prolog(site)
        swept(site)
        assert left(site) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_log_without_flock(site: Site, number: int) -> None:
    """A log on a filesystem that knows no locks has its events, and an Epilog whose run_dir knows none does its work."""
    backing, point = site.dir / "backing", site.dir / "var"
    for path in (backing, point):
        path.mkdir()
    site.configure(log={"file": f"{point}/events.jsonl", "syslog": False}, run_dir=f"{point}/run")
    prolog(site)
    with faulty(backing, point, Faults(errors={"setlk": number, "setlkw": number})) as fs:
        fs.arm()
        epilog(site)
        assert left(site) == []
        assert '"cache.reaped"' in (point / "events.jsonl").read_text()


def test_no_types_in_directories(site: Site) -> None:
    """readdir that does not tell what is a directory, as on some NFS and XFS: found, reaped and swept all the same."""
    with trouble(site, Faults(no_types=True)) as fs:
        fs.arm()
        prolog(site)
        site.fill(site.cache(), "json/deep/a.arrow", "b")
        epilog(site)
        assert left(site) == [] and site.events("cache.reaped")[0]["files"] == 2
        prolog(site)
        site.fill(site.cache(), "json/deep/a.arrow", "b")
        assert swept(site).reaped[0].files == 2 and left(site) == []


@pytest.mark.parametrize("folds", [False, True], ids=["exact", "folding"])
def test_names_that_differ_in_case_alone(site: Site, folds: bool) -> None:
    """HF-DATASETS-4242 is no cache of ours: never taken for one, on a filesystem that folds case neither."""
    with trouble(site, Faults(folds=folds)) as fs:
        fs.arm()
        other = site.cache().with_name("HF-DATASETS-4242")
        subprocess.run(["install", "-d", "-o", ALICE, str(other.parent), str(other)], check=True)
        (other / "mine").write_text("x")
        told = prolog(site)
        assert (told.cache is None) == folds
        epilog(site)
        swept(site)
        assert left(site) == [other.name] and (other / "mine").read_text() == "x"
        assert skipped(site) == ([("refused", "unrecorded")] if folds else [])


SQUASHED = {"root-is-nobody": (Faults(squash=True), None), "only-the-user": (Faults(), (UID, GID))}


@pytest.mark.parametrize("how", SQUASHED)
def test_root_squash(site: Site, how: str) -> None:
    """Root can do nothing there: made, joined, reaped and swept all the same, each as the user."""
    faults, only = SQUASHED[how]
    with trouble(site, faults, only) as fs:
        fs.arm()
        assert prolog(site).cache and prolog(site, step="0", SLURMD_NODENAME="n2").cache
        with pytest.raises(PermissionError):
            os.listdir(site.cache())  # as root
        backing = site.dir / "backing/.cache"
        site.fill(backing / "hf-datasets-4242", "json/a.arrow")
        epilog(site, SLURM_JOB_NUM_NODES="2")
        epilog(site, SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n2")
        assert os.listdir(backing) == [] and said(site) == [("cache.reaped", "reaped", None)]
        prolog(site)
        site.fill(backing / "hf-datasets-4242", "json/a.arrow")
        result = swept(site)
        assert (os.listdir(backing), result.trouble) == ([], [])
        assert [(one.files, one.done) for one in result.reaped] == [(1, True)]


@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_out_of_inodes_alone(site: Site, python: bool) -> None:
    """Room, but no inode: no cache, and what there was goes, which needs none."""
    place = site.scratch / ALICE
    place.mkdir()
    with mount("none", place, "tmpfs", f"nr_inodes=40,uid={UID},gid={GID}"):
        site.task_prolog(7)
        made = 0
        try:
            while True:
                (place / f"filler-{made}").touch()
                made += 1
        except OSError:
            assert made
        if not python:
            site.policy(python="/nonexistent")
        assert prolog(site).exports == {}
        assert not site.debris()
        site.configure()
        epilog(site, SLURM_JOB_ID="7")
        assert left(site) == []


def test_read_only_from_one_moment_to_the_next(site: Site) -> None:
    """Remounted read-only under a job: its tasks go on with what they have, new jobs run without, and later all is reaped."""
    place = site.scratch / ALICE
    place.mkdir()
    with mount("none", place, "tmpfs", f"uid={UID},gid={GID}"):
        prolog(site)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert prolog(site, step="0").exports.keys() == EXPORTED
        assert prolog(site, SLURM_JOB_ID="7").exports == {}
        epilog(site)
        assert swept(site).trouble == []
        assert said(site) == [("cache.kept", "kept", "read_only")]
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        epilog(site)
        swept(site)
        assert left(site) == []


def test_no_scratch_at_all(site: Site) -> None:
    """Not mounted: no cache, nobody makes one below the mount point as root, and a sweep finds nothing."""
    site.scratch.rename(site.dir / "gone")
    assert prolog(site).exports == {}
    assert skipped(site) == [("failed", "no_access")]
    epilog(site)
    assert swept(site).decisions == []
    assert not Path(site.scratch).exists()
