"""Tasks, Epilogs and sweeps on a scratch filesystem that fails."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.faultfs import CHANGES, FaultFS, Faults, faulty
from support.faulty import EXPORTED, GID, UID, epilog, left, prolog, said, skipped, swept
from support.mounts import mount
from support.site_dir import ALICE, Site, entries

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE")
REASONS = {errno.EDQUOT: "no_space", errno.EIO: "io_error", errno.ESTALE: "io_error"}


@contextmanager
def failing_scratch(site: Site, faults: Faults, only: tuple[int, int] | None = None) -> Iterator[FaultFS]:
    """Mount a faulty filesystem as ALICE's directory on scratch. Its files are in site.dir/backing, also afterwards."""
    backing, point = site.dir / "backing", site.scratch / ALICE
    for path in (backing, point):
        path.mkdir(exist_ok=True)
    os.chown(backing, UID, GID)
    with faulty(backing, point, faults, only=only) as fs:
        yield fs


@contextmanager
def repaired_scratch(site: Site) -> Iterator[None]:
    """Mount the same directory without faults."""
    with mount(site.dir / "backing", site.scratch / ALICE, "bind"):
        yield


def assert_nothing_is_left(site: Site) -> None:
    """Run one more Epilog and a sweep on the repaired scratch. Fail if anything is left."""
    with repaired_scratch(site):
        epilog(site)
        result = swept(site)
        assert (left(site), result.trouble) == ([], [])


def test_faulty_filesystem_works_without_fault(site: Site) -> None:
    """A cache is made, joined, filled, reaped and swept: the tests below break calls that otherwise work."""
    with failing_scratch(site, Faults()) as fs:
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
def test_job_runs_without_cache_where_every_call_fails(site: Site, number: int, python: bool) -> None:
    """EIO, a stale handle, a full quota: existing caches are kept, and the events have the reason."""
    if not python:
        site.policy(python="/nonexistent")
    errors = dict.fromkeys(CHANGES, number) if number == errno.EDQUOT else {"*": number}
    with failing_scratch(site, Faults(errors=errors)) as fs:
        assert prolog(site, SLURM_JOB_ID="7").cache
        fs.arm()
        result = prolog(site, HF_DATASETS_CACHE=str(site.cache(1)))
        assert (result.exports, result.unsets) == ({}, ["HF_DATASETS_CACHE"])
        if python:
            assert skipped(site) == [("failed", REASONS[number])]
        site.configure()
        epilog(site, SLURM_JOB_ID="7")
        assert said(site) == [("cache.kept", "kept", REASONS[number])]
        assert swept(site).reaped == []
        fs.disarm()
        assert left(site) == ["hf-datasets-7"]
    assert_nothing_is_left(site)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOKEY, errno.EKEYEXPIRED], ids=errno.errorcode.get)
def test_cache_of_a_user_without_a_ticket_stays_until_a_sweep_with_one(site: Site, number: int) -> None:
    """Scratch with Kerberos refuses the user after the job, and root acts as the user there."""
    with failing_scratch(site, Faults(errors={"*": number})) as fs:
        assert prolog(site).cache
        fs.arm()
        epilog(site)
        assert said(site) == [("cache.kept", "kept", "no_access")]
        assert swept(site).reaped == []
        fs.disarm()
        assert left(site) == ["hf-datasets-4242"]
    assert_nothing_is_left(site)


@pytest.mark.parametrize("operation", CHANGES)
@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.EXDEV], ids=errno.errorcode.get)
def test_cache_is_whole_or_absent_where_one_call_fails(site: Site, operation: str, number: int) -> None:
    """For each call that fails, an Epilog ends in time, and later nothing is left."""
    with failing_scratch(site, Faults(errors={operation: number})) as fs:
        fs.arm()
        result = prolog(site)
        assert (result.cache is not None) == (site.cache() / ".jobcache/nodes/n1").exists()
        fs.disarm()
        if result.cache is None:
            assert prolog(site).cache
        site.fill(site.cache(), "json/a.arrow")
        fs.arm()
        epilog(site)
        swept(site, 4242)
    assert_nothing_is_left(site)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC], ids=errno.errorcode.get)
def test_full_quota_does_not_stop_reaping(site: Site, number: int) -> None:
    """A cache uses up the quota. The filesystem then creates no name but still removes: the cache is reaped."""
    with failing_scratch(site, Faults(errors=dict.fromkeys(("rename", "mkdir", "create", "write"), number))) as fs:
        for job in ("7", "8"):
            assert prolog(site, SLURM_JOB_ID=job).cache
        fs.arm()
        epilog(site, SLURM_JOB_ID="7")
        assert said(site) == [("cache.reaped", "reaped", None)]
        assert [one.done for one in swept(site).reaped] == [True]
        fs.disarm()
        assert left(site) == []


@pytest.mark.parametrize("after", [0, 3, 6, 10, 15, 21, 28, 36, 45, 60])
def test_hooks_end_in_time_where_scratch_disappears(site: Site, after: int) -> None:
    """The file server never answers after this many calls, in a task and in an Epilog. After its return, nothing is left."""
    with failing_scratch(site, Faults(after=after, dies=True)) as fs:
        fs.arm()
        prolog(site)
    with failing_scratch(site, Faults(after=after, dies=True)) as fs:
        prolog(site, SLURM_JOB_ID="7")
        fs.arm()
        epilog(site, SLURM_JOB_ID="7")
    with repaired_scratch(site):
        epilog(site, SLURM_JOB_ID="7")
    assert_nothing_is_left(site)


@pytest.mark.parametrize("after", [0, 10, 25, 40, 60, 80, 100])
def test_sweep_reports_scratch_that_disappears(site: Site, after: int) -> None:
    """The sweep ends and reports its failure, and the next sweep finishes the work."""
    with failing_scratch(site, Faults(after=after, dies=True)) as fs:
        prolog(site)
        site.fill(site.cache(), "json/a.arrow")
        fs.arm()
        result = swept(site)
        assert result.trouble or [decision.reason for decision in result.decisions] == ["unreadable"]
    assert_nothing_is_left(site)


def test_hooks_keep_deadlines_on_slow_scratch(site: Site) -> None:
    """At a second a call, no hook exceeds its deadline, and all tasks of the job get the same path."""
    site.configure(task_prolog={"deadline": "2s"}, epilog={"deadline": "4s"})
    with failing_scratch(site, Faults(delay=1.0)) as fs:
        prolog(site, SLURM_JOB_ID="7")
        fs.arm()
        assert prolog(site, deadline=2, JOBCACHE_INHERIT="off").exports.keys() == EXPORTED
        epilog(site, SLURM_JOB_ID="7", deadline=4)
        assert said(site) == [("hook.failed", "failed", "deadline")]
    with repaired_scratch(site):
        epilog(site, SLURM_JOB_ID="7")
    assert_nothing_is_left(site)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_scratch_needs_no_flock(site: Site, number: int) -> None:
    """The hooks and the sweep take no lock on scratch."""
    with failing_scratch(site, Faults(errors={"setlk": number, "setlkw": number, "getlk": number})) as fs:
        fs.arm()
        assert prolog(site).cache and prolog(site, step="0", SLURMD_NODENAME="n2").cache
        epilog(site, SLURM_JOB_NUM_NODES="2")
        epilog(site, SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n2")
        assert left(site) == [] and said(site) == [("cache.reaped", "reaped", None)]
        prolog(site)
        swept(site)
        assert left(site) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_log_and_run_dir_need_no_flock(site: Site, number: int) -> None:
    """The log has its events, and the Epilog does its work."""
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


def test_directories_without_entry_types_are_reaped(site: Site) -> None:
    """readdir returns no type, as on some NFS and XFS: caches are found, reaped and swept."""
    with failing_scratch(site, Faults(no_types=True)) as fs:
        fs.arm()
        prolog(site)
        site.fill(site.cache(), "json/deep/a.arrow", "b")
        epilog(site)
        assert left(site) == [] and site.events("cache.reaped")[0]["files"] == 2
        prolog(site)
        site.fill(site.cache(), "json/deep/a.arrow", "b")
        assert swept(site).reaped[0].files == 2 and left(site) == []


@pytest.mark.parametrize("folds", [False, True], ids=["exact", "folding"])
def test_name_in_other_case_is_not_a_cache(site: Site, folds: bool) -> None:
    """HF-DATASETS-4242 is left alone, also on a filesystem that ignores case."""
    with failing_scratch(site, Faults(folds=folds)) as fs:
        fs.arm()
        other = site.cache().with_name("HF-DATASETS-4242")
        subprocess.run(["install", "-d", "-o", ALICE, str(other.parent), str(other)], check=True)
        (other / "mine").write_text("x")
        result = prolog(site)
        assert (result.cache is None) == folds
        epilog(site)
        swept(site)
        assert left(site) == [other.name] and (other / "mine").read_text() == "x"
        assert skipped(site) == ([("refused", "unrecorded")] if folds else [])


SQUASHED = {"root-is-nobody": (Faults(squash=True), None), "only-the-user": (Faults(), (UID, GID))}


@pytest.mark.parametrize("how", SQUASHED)
def test_root_squash_does_not_stop_hooks_and_sweep(site: Site, how: str) -> None:
    """Root can do nothing on scratch: caches are made, joined, reaped and swept as their users."""
    faults, only = SQUASHED[how]
    with failing_scratch(site, faults, only) as fs:
        fs.arm()
        assert prolog(site).cache and prolog(site, step="0", SLURMD_NODENAME="n2").cache
        with pytest.raises(PermissionError):
            os.listdir(site.cache())  # as root
        backing = site.dir / "backing/.cache"
        site.fill(backing / "hf-datasets-4242", "json/a.arrow")
        epilog(site, SLURM_JOB_NUM_NODES="2")
        epilog(site, SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n2")
        assert entries(backing) == [] and said(site) == [("cache.reaped", "reaped", None)]
        prolog(site)
        site.fill(backing / "hf-datasets-4242", "json/a.arrow")
        result = swept(site)
        assert (entries(backing), result.trouble) == ([], [])
        assert [(one.files, one.done) for one in result.reaped] == [(1, True)]


@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_no_cache_without_inodes(site: Site, python: bool) -> None:
    """There is space, but no inode: no cache is made, and reaping works."""
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


def test_scratch_remounted_read_only_during_job(site: Site) -> None:
    """New tasks of the job lose the path, new jobs run without a cache, and later everything is reaped."""
    place = site.scratch / ALICE
    place.mkdir()
    with mount("none", place, "tmpfs", f"uid={UID},gid={GID}"):
        inherited = prolog(site).exports
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        later = prolog(site, step="0", **inherited)
        assert later.exports == {} and set(later.unsets) == EXPORTED
        assert prolog(site, SLURM_JOB_ID="7").exports == {}
        epilog(site)
        assert swept(site).trouble == []
        assert said(site) == [("cache.kept", "kept", "read_only")]
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        epilog(site)
        swept(site)
        assert left(site) == []


def test_missing_scratch_is_never_created(site: Site) -> None:
    """If scratch is not mounted, no task makes a cache below the mount point, and a sweep finds nothing."""
    site.scratch.rename(site.dir / "gone")
    assert prolog(site).exports == {}
    assert skipped(site) == [("refused", "no_access")]
    epilog(site)
    assert swept(site).decisions == []
    assert not Path(site.scratch).exists()


@pytest.mark.parametrize("links", [1, 2])
def test_open_file_that_unlink_renames_is_left(site: Site, links: int) -> None:
    """The Epilog and the sweep delete everything else, count only that, and do not try again and again."""
    with failing_scratch(site, Faults(hides=True)):
        assert prolog(site).cache
        names = [f"json/{at}/{name}.arrow" for at in range(20) for name in "abc"]
        site.fill(site.cache(), *names, size=1 << 20)
        for link in range(1, links):
            os.link(site.cache() / "json/7/b.arrow", site.cache() / f"json/7/.link-{link}")
        with open(site.cache() / "json/7/b.arrow", "rb") as file:
            began = time.monotonic()
            epilog(site)
            assert time.monotonic() - began < 5
            (event,) = site.events()
            assert (event["event"], event["outcome"], event["reason"]) == ("cache.reaped", "trashed", "left")
            assert event["files"] == len(names) - 1 + (links - 1)  # one of the names of one file
            assert event["bytes"] == (len(names) - 1) << 20
            assert event["error"].startswith("[Errno 16] a process has it open")
            trash = Path(event["trash"])
            rest = [path for path in trash.rglob("*") if path.is_file() and ".jobcache" not in path.parts]
            assert len(rest) == links and {path.parent for path in rest} == {trash / "json/7"}
            assert all(path.name.startswith(".fuse_hidden") for path in rest)
            began = time.monotonic()
            result = swept(site)
            assert time.monotonic() - began < 5
            assert [(one.files, one.bytes, one.done) for one in result.reaped] == [(links - 1, 0, False)]
            assert "a process has it open" in result.trouble[0]
            assert file.read(1) == b"x"
        result = swept(site)
        assert (left(site), result.trouble) == ([], [])
