"""The sweep on a real filesystem. The answers of Slurm are files of the test."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import jobcache as package
from jobcache.cli.main import main
from jobcache.sweep import accounts, directories, lock, processes, reaping, scanning, user_directories
from jobcache.sweep.host import Host
from jobcache.system import gathering, stuck_processes
from support.autofs import OnDemand, on_demand
from support.claims import age
from support.host import HOST, foreign_step
from support.hungfs import hung
from support.mounts import mount
from support.site_dir import ALICE, BOB, Site

UID = pwd.getpwnam(ALICE).pw_uid
NOBODYS_JOB = 4_000_000_007  # no cluster runs it, so no host has a step of it; for sweeps in processes of their own


@pytest.fixture(autouse=True, scope="module")
def foreign_steps() -> Iterator[None]:
    """The host runs steps of other jobs with the ids that these tests use, as a compute node can."""
    with ExitStack() as stack:
        for job in (1, 7, 8, 71):
            stack.enter_context(foreign_step(job))
        yield


class FakeSlurm:
    """squeue and scontrol that answer from files, and log each call."""

    def __init__(self, site: Site) -> None:
        self.dir = site.dir / "slurm"
        self.dir.mkdir()
        self.asked = self.dir / "asked"
        self.answer()
        for name in ("squeue", "scontrol"):
            program = self.dir / name
            program.write_text(
                f'#!/bin/sh\necho "{name} $*" >>{self.asked}\ncase "{name} $*" in\n'
                f'"scontrol show config") cat {self.dir}/config ;;\n"scontrol show jobs") cat {self.dir}/none ;;\n'
                f"squeue*) n=$(grep -c ^squeue {self.asked}); f={self.dir}/queue.$n; [ -e $f ] || f={self.dir}/queue; cat $f\n"
                f"    cat {self.dir}/stderr >&2; exit $(cat {self.dir}/status) ;;\nesac\n"
            )
            program.chmod(0o755)

    def answer(
        self, *jobs: str, cluster: str = "test", private: str = "none", none: str = "No jobs in the system", **more: str
    ) -> None:
        """Set the answers. jobs: lines of squeue. none: the answer of `scontrol show jobs`. more: stderr, status of squeue."""
        (self.dir / "config").write_text(f"ClusterName             = {cluster}\nPrivateData             = {private}\n")
        (self.dir / "queue").write_text("".join(f"{job}\n" for job in jobs))
        (self.dir / "none").write_text(none + "\n")
        (self.dir / "stderr").write_text(more.get("stderr", ""))
        (self.dir / "status").write_text(more.get("status", "0"))

    def questions(self) -> list[str]:
        """Return the command lines of all calls."""
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture
def slurm(site: Site) -> FakeSlurm:
    fake = FakeSlurm(site)
    site.configure(
        slurm={"squeue": str(fake.dir / "squeue"), "scontrol": str(fake.dir / "scontrol"), "timeout": "5s"},
        sweep={"grace": "0s", "confirm": "0s"},
    )
    return fake


def jobcache(site: Site, *argv: str) -> Result:
    """Run a command in this process, on a host that has the processes of this test alone."""
    return CliRunner().invoke(main, [*argv, "--hooks", str(site.hooks)], catch_exceptions=False, obj=HOST)


def sweep(site: Site, *options: str) -> Result:
    return jobcache(site, "sweep", *options)


def decisions(site: Site, *options: str) -> dict[str, tuple[str, str]]:
    """Return the decisions of a dry run: (action, reason) by the directory's name."""
    result = sweep(site, "--dry-run", "--json", *options)
    rows = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    return {os.path.basename(row["path"]): (row["action"], row["reason"]) for row in rows}


def test_orphan_is_reaped_and_live_caches_stay(site: Site, slurm: FakeSlurm) -> None:
    """Alice's job 7 is dead. Alice's job 8 and Bob's job 7 are live."""
    for job, user in ((7, ALICE), (8, ALICE), (7, BOB)):
        site.task_prolog(job, user=user)
        site.fill(site.cache(job, user=user), "json/a.arrow", size=8192)
    slurm.answer("8|8|RUNNING|5", f"7|7|PENDING|{pwd.getpwnam(BOB).pw_uid}")
    result = sweep(site)
    assert (result.exit_code, result.output) == (0, "")
    assert [site.cache(7).exists(), site.cache(8).exists(), site.cache(7, user=BOB).exists()] == [False, True, True]
    assert site.debris() == []
    (reaped,) = site.events("cache.orphan_reaped")
    assert (reaped["reason"], reaped["outcome"], reaped["bytes"], reaped["files"]) == ("orphan", "reaped", 8192, 1)
    (finished,) = site.events("sweep.finished")
    assert (finished["found"], finished["reaped"], finished["kept"], finished["troubles"]) == (3, 1, 2, 0)


# ------------------------------------------------------------------------------ placeholders without a known value


@pytest.mark.parametrize(
    "path", ["p-{account}/{user}/hf-{job_id}", "{user}/{account}/x/hf-{job_id}", "{account}/{node}/{uid}/hf-{job_id}"]
)
def test_caches_of_any_account_are_found(site: Site, slurm: FakeSlurm, path: str) -> None:
    """The sweep does not know the accounts of users. Each template puts them elsewhere."""
    site.configure(path=f"{site.scratch}/{path}")
    for level in ("p-astro", "p-bio", "astro/n1", "bio/n1"):
        (site.scratch / level).mkdir(parents=True)
        (site.scratch / level).chmod(0o1777)
    caches = []
    for job, account in ((7, "astro"), (8, "bio")):
        cache = site.task_prolog(job, SLURM_JOB_ACCOUNT=account).cache
        assert cache is not None
        caches.append(Path(cache))
    slurm.answer(f"8|8|RUNNING|{UID}")
    assert sweep(site).exit_code == 0
    assert [cache.exists() for cache in caches] == [False, True]


JOB_DIRECTORIES = [
    ("{job_id}/hf-{job_id}", ALICE, 0o700),
    ("{job_id}/hf-{job_id}", "root", 0o1777),
    ("j-{job_id}/tmp/hf-{job_id}", "root", 0o755),
    ("{job_id}/{user}/hf-{job_id}", "root", 0o755),
]


@pytest.mark.parametrize(("path", "owner", "mode"), JOB_DIRECTORIES)
def test_caches_in_directories_of_jobs_are_found(site: Site, slurm: FakeSlurm, path: str, owner: str, mode: int) -> None:
    """After a crash, the site's directory stays, and so does a directory that is no job's."""
    site.configure(path=f"{site.scratch}/local/{path}")
    top = path.partition("/")[0]
    (site.scratch / "local/4242x").mkdir(parents=True)
    caches = []
    for job in (7, 8, 9):
        directory = site.scratch / "local" / top.replace("{job_id}", str(job))
        directory.mkdir()
        for below in [directory / "tmp"] if "tmp" in path else [directory / ALICE] if "{user}" in path else []:
            below.mkdir()
            os.chown(below, UID, -1)
        os.chown(directory, pwd.getpwnam(owner).pw_uid, -1)
        directory.chmod(mode)
        cache = site.task_prolog(job).cache
        assert cache is not None
        caches.append(Path(cache))
    stray = caches[0].with_name("hf-71")  # of another job than its directory: its user has renamed it
    caches[2].rename(stray)
    slurm.answer(f"8|8|RUNNING|{UID}")
    assert sweep(site).exit_code == 0
    assert [cache.exists() for cache in caches] == [False, True, False] and stray.exists()
    assert all((site.scratch / "local" / top.replace("{job_id}", str(job))).exists() for job in (7, 8, 9))
    assert [event["job_id"] for event in site.events("cache.orphan_reaped")] == [7]


def test_user_can_have_many_directories_of_jobs(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike directories with the user's name. A bound holds also here."""
    site.configure(path=f"{site.scratch}/local/{{job_id}}/hf-{{job_id}}")
    for job in range(1, user_directories.MOST_SIDE_BY_SIDE + 5):
        directory = site.scratch / "local" / str(job)
        directory.mkdir(parents=True)
        os.chown(directory, UID, -1)
        site.task_prolog(job)
    slurm.answer("9|9|RUNNING|33")
    monkeypatch.setattr(user_directories, "MOST_UNATTRIBUTED", 3)
    result = sweep(site)
    assert (result.exit_code, result.output) == (0, "")
    assert list((site.scratch / "local").glob("*/*")) == []
    monkeypatch.setattr(user_directories, "MOST_JOBS", 3)
    result = sweep(site)
    assert "has more than 3 directories here" in result.output


def test_former_template_with_directories_of_jobs_is_kept_while_caches_exist(site: Site, slurm: FakeSlurm) -> None:
    """Of any run of the job; the directory of the job alone is not enough."""
    former = f"{site.scratch}/local/{{job_id}}/hf-{{job_id}}"
    site.configure(path=former)
    directory = site.scratch / "local/7"
    directory.mkdir(parents=True)
    os.chown(directory, UID, -1)
    site.task_prolog(7, SLURM_RESTART_COUNT="2")
    compiled = site.configure(path=f"{site.scratch}/{{user}}/hf-{{job_id}}")
    assert former in compiled.former
    slurm.answer("9|9|RUNNING|33")
    assert sweep(site).exit_code == 0 and directory.exists()
    assert former not in site.configure().former


def test_slurm_is_not_asked_without_candidates(site: Site, slurm: FakeSlurm) -> None:
    """An empty scratch costs the controller nothing."""
    assert sweep(site).exit_code == 0
    assert slurm.questions() == []


UNKNOWN: dict[str, dict[str, Any]] = {
    "slurm_down": {"status": "1", "stderr": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"},
    "slurm_failed": {"status": "1", "stderr": "squeue: fatal: out of memory\n"},
    "slurm_malformed": {"jobs": ["8|8|RUNNING"]},
    "slurm_empty": {"none": ""},
    "slurm_other_cluster": {"cluster": "della"},
    "slurm_state": {"jobs": ["8|8|LEVITATING|5"]},
}


@pytest.mark.parametrize("reason", sorted(UNKNOWN))
def test_unknown_job_list_reaps_nothing(site: Site, slurm: FakeSlurm, reason: str) -> None:
    """Each kind of failure has a reason of its own, and exit status 1."""
    site.task_prolog(7)
    how = dict(UNKNOWN[reason])
    slurm.answer(*how.pop("jobs", []), **how)
    result = sweep(site)
    assert result.exit_code == 1 and f"({reason})" in result.output
    assert site.cache(7).exists()
    assert [event["reason"] for event in site.events("sweep.finished")] == [reason]


def test_unrecorded_directory_is_reported(site: Site, slurm: FakeSlurm) -> None:
    """A directory that a user made by hand stays, unless `sweep.unrecorded` is `reap`."""
    site.task_prolog(1)
    own = site.cache(7)
    own.mkdir()
    os.chown(own, UID, -1)
    assert decisions(site)[own.name] == ("report", "unrecorded")
    sweep(site)
    assert own.exists()
    site.configure(sweep={"grace": "0s", "confirm": "0s", "unrecorded": "reap"})
    sweep(site)
    assert not own.exists()


def test_young_and_kept_caches_stay(site: Site, slurm: FakeSlurm) -> None:
    """A cache younger than `grace` stays. A cache that the user keeps stays until `keep_max`."""
    site.task_prolog(7)
    site.task_prolog(8, JOBCACHE="keep")
    site.epilog(8)
    site.configure(sweep={"grace": "1h", "confirm": "0s"})
    assert decisions(site) == {"hf-datasets-7": ("keep", "young"), "hf-datasets-8": ("keep", "user_keep")}
    site.configure(sweep={"grace": "0s", "confirm": "0s"})
    assert decisions(site) == {"hf-datasets-7": ("reap", "orphan"), "hf-datasets-8": ("keep", "user_keep")}
    site.configure(keep_max="0s")
    assert decisions(site)["hf-datasets-8"] == ("reap", "orphan")


def test_half_made_directory_and_trash_are_reaped(site: Site, slurm: FakeSlurm) -> None:
    """A killed prepare leaves a half-made directory, and an Epilog at its deadline leaves trash."""
    site.task_prolog(7)
    site.fill(site.cache(7), *(f"f{n}" for n in range(500)), size=1)
    site.configure(epilog={"budget": "1ms"})
    site.epilog(7)
    half = site.scratch / ALICE / ".cache/.jobcache-new-9-abcd"
    half.mkdir()
    os.chown(half, UID, -1)
    assert len(site.debris()) == 2
    assert sweep(site).exit_code == 0
    assert site.debris() == []
    assert {event["reason"] for event in site.events("cache.orphan_reaped")} == {"trash", "half_made"}


def test_trash_of_a_job_that_is_requeued(site: Site, slurm: FakeSlurm) -> None:
    """A job that is preempted again and again can leave trash each time. The trash does not accumulate while the job is live."""
    site.configure(epilog={"budget": "0s"})
    for run in ("0", "1", "2"):
        site.task_prolog(7, SLURM_RESTART_COUNT=run)
        site.fill(site.cache(7, int(run)), "json/a.arrow")
        if run != "2":
            site.epilog(7)
    slurm.answer("7|7|RUNNING|5")
    assert len(site.debris()) == 2
    assert sweep(site).exit_code == 0
    assert site.debris() == [] and (site.cache(7, 2) / "json/a.arrow").exists()


@pytest.mark.parametrize("inodes", [True, False], ids=["blocks", "inodes"])
def test_run_dir_is_full(site: Site, slurm: FakeSlurm, inodes: bool) -> None:
    """With a lock file the sweep does its work. Without one it prints the reason and the remedy."""
    site.task_prolog(7)
    (site.dir / "run").mkdir(exist_ok=True)
    with mount("tmpfs", site.dir / "run", "tmpfs", f"size=4k,nr_inodes={4 if inodes else 1}"):
        if inodes:
            (site.dir / "run/full").write_bytes(b"x" * 4096)
        result = sweep(site)
        assert inodes or (result.exit_code == 1 and "No space left on device; fix run_dir" in result.output)
    assert site.cache(7).exists() is not inodes


def test_read_only_orphan_is_reaped(site: Site, slurm: FakeSlurm) -> None:
    """`chmod -R a-w` does not protect the cache of a dead job."""
    site.task_prolog(7)
    site.fill(site.cache(7), "json/a.arrow")
    subprocess.run(["chmod", "-R", "a-w", str(site.cache(7))], check=True)
    assert sweep(site).exit_code == 0
    assert not site.cache(7).exists() and site.debris() == []


def test_trash_of_unrecorded_cache_is_reaped(site: Site, slurm: FakeSlurm) -> None:
    """The job's script removed and remade its cache, and the Epilog had no time to delete it."""
    site.task_prolog(7)
    shutil.rmtree(site.cache(7))
    site.cache(7).mkdir()
    os.chown(site.cache(7), UID, -1)
    site.fill(site.cache(7), "a.arrow")
    site.configure(epilog={"budget": "0s"})
    site.epilog(7)
    assert len(site.debris()) == 1 and not site.cache(7).exists()
    assert sweep(site).exit_code == 0
    assert site.debris() == []


def test_cache_of_another_cluster_stays(site: Site, slurm: FakeSlurm) -> None:
    """Two clusters can share a scratch."""
    site.task_prolog(7)
    (site.cache(7) / ".jobcache/id").write_text("della 7 0 5\n")
    assert decisions(site) == {"hf-datasets-7": ("keep", "other_cluster")}
    assert slurm.questions() == []


def test_open_file_keeps_cache(site: Site, slurm: FakeSlurm) -> None:
    """The event names the process of the owner that has the file open."""
    site.task_prolog(7)
    site.fill(site.cache(7), "open.arrow")
    with (site.cache(7) / "open.arrow").open() as file, subprocess.Popen(["sleep", "60"], stdin=file, user=UID) as holder:
        sweep(site)
        assert site.cache(7).exists()
        (kept,) = site.events("cache.kept")
        assert (kept["reason"], kept["pids"]) == ("in_use", [holder.pid])
        holder.kill()
    sweep(site)
    assert not site.cache(7).exists()


def test_job_in_second_listing_alone_is_alive(site: Site, slurm: FakeSlurm) -> None:
    """Two listings must agree that a job is dead."""
    site.task_prolog(7)
    slurm.answer("1|1|RUNNING|9")
    (slurm.dir / "queue.2").write_text("7|7|RUNNING|5\n")
    sweep(site)
    assert site.cache(7).exists()


def test_ordinary_user_sweeps_own_caches_only(site: Site, slurm: FakeSlurm) -> None:
    """--user with another name is wrong use."""
    for user in (ALICE, BOB):
        site.task_prolog(NOBODYS_JOB, user=user)
    site.dir.joinpath("slurm").chmod(0o777)
    slurm.asked.touch()
    slurm.asked.chmod(0o666)
    command = [sys.executable, "-m", "jobcache.cli", "sweep", "--hooks", str(site.hooks)]
    home = site.dir / "home"
    home.mkdir()
    home.chmod(0o777)
    root = str(Path(package.__file__).parents[1])
    env = {"PYTHONPATH": root, "HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        command, user=UID, group=60, extra_groups=[], env=env, cwd="/", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [site.cache(NOBODYS_JOB).exists(), site.cache(NOBODYS_JOB, user=BOB).exists()] == [False, True]
    done = subprocess.run(
        [*command, "--user", BOB], user=UID, group=60, extra_groups=[], env=env, cwd="/", capture_output=True, check=False
    )
    assert done.returncode == 2


def test_second_sweep_ends_at_once(site: Site, slurm: FakeSlurm) -> None:
    """It prints the process that holds the lock, and does nothing."""
    with lock.Lock(f"{site.dir}/run/sweep-shared-1-of-1.lock"):
        result = sweep(site)
    assert result.exit_code == 1 and f"pid {os.getpid()}" in result.output


def test_off_file_stops_sweep(site: Site, slurm: FakeSlurm) -> None:
    """The sweep prints the name of the file, and the remedy."""
    site.task_prolog(7)
    (site.hooks / "off").touch()
    result = sweep(site)
    assert result.exit_code == 0 and f"{site.hooks}/off exists; remove it" in result.output
    assert site.cache(7).exists()


def test_shards_are_a_partition(site: Site, slurm: FakeSlurm) -> None:
    """Each user is in exactly one shard."""
    for user in (ALICE, BOB):
        site.task_prolog(7, user=user)
    seen = [len(decisions(site, "--shard", f"{part}/3")) for part in (1, 2, 3)]
    assert sum(seen) == 2


def test_orphan_of_removed_user_is_reaped(site: Site, slurm: FakeSlurm) -> None:
    """A user without an account is a number."""
    site.task_prolog(7)
    home = site.scratch / ALICE
    for path in (home, *home.rglob("*")):
        os.lchown(path, 54321, 54321)
    (site.cache(7) / ".jobcache/id").write_text("test 7 0 54321\n")
    sweep(site)
    assert not site.cache(7).exists()


def test_node_local_scratch_needs_option(site: Site, slurm: FakeSlurm) -> None:
    """Only --node-local sweeps it."""
    local = site.dir / "local"
    (local / "n1").mkdir(parents=True)
    (local / "n1").chmod(0o1777)
    site.configure(path=f"{local}/{{node}}/{{user}}/hf-{{node}}-{{job_id}}", node_local=[str(local)])
    made = site.task_prolog(7).cache
    assert made and Path(made).exists()
    assert decisions(site) == {}
    assert decisions(site, "--node-local", "--node", "n1") != {}


@pytest.fixture
def autofs(site: Site, slurm: FakeSlurm) -> Iterator[OnDemand]:
    """A scratch of autofs, which mounts the users' directories when they are accessed. Each test ends with it."""
    source, point = site.dir / "source", site.dir / "auto"
    for user in (ALICE, BOB):
        home = source / user
        home.mkdir(parents=True)
        os.chown(home, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    point.mkdir()
    site.configure(path=f"{source}/{{user}}/hf-{{job_id}}")
    for user in (ALICE, BOB):
        site.task_prolog(7, user=user)
    site.configure(path=f"{point}/{{user}}/hf-{{job_id}}")
    for name in ("policy.sh", "settings.json"):  # without the former template, by which the sweep would find them
        text = (site.hooks / name).read_text()
        (site.hooks / name).write_text(text.replace(f"{source}/{{user}}/hf-{{job_id}}", f"{point}/{{user}}/hf-{{job_id}}"))
    with on_demand(point, source, site.dir / "requests") as autofs:
        yield autofs


def test_sweep_finds_users_whose_directories_are_mounted_on_demand(site: Site, slurm: FakeSlurm, autofs: OnDemand) -> None:
    """autofs lists nothing. The sweep accesses the directory of each account, at most one time."""
    assert os.listdir(site.dir / "auto") == []
    result = sweep(site)
    assert (result.exit_code, result.output) == (0, "")
    assert {one["uid"] for one in site.events("cache.orphan_reaped")} == {pwd.getpwnam(user).pw_uid for user in (ALICE, BOB)}
    assert {ALICE, BOB} < set(autofs.requests) <= {account.pw_name for account in pwd.getpwall() if account.pw_uid}
    assert len(autofs.requests) == len(set(autofs.requests))


def test_sweep_of_one_user_mounts_one_directory(site: Site, slurm: FakeSlurm, autofs: OnDemand) -> None:
    """The directories of other users are not accessed."""
    assert sweep(site, "--user", ALICE).exit_code == 0
    assert [one["uid"] for one in site.events("cache.orphan_reaped")] == [UID] and autofs.requests == [ALICE]


def test_likely_users_come_first_and_others_are_reported(
    site: Site, slurm: FakeSlurm, autofs: OnDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of directories that a sweep mounts is limited: of a user with a job, of a user in the log, of no third one."""
    monkeypatch.setattr(accounts, "MOST", 2)
    slurm.answer(f"8|8|RUNNING|{pwd.getpwnam(BOB).pw_uid}")
    event = {"ts": "2026-11-22T13:22:13Z", "event": "cache.released", "level": "debug", "outcome": "released", "uid": UID}
    site.log.write_text(json.dumps(event) + "\n")
    result = sweep(site)
    assert result.exit_code == 1 and "one sweep looks up 2 of them; split the sweep with --shard" in result.output
    assert sorted(autofs.requests) == sorted([ALICE, BOB])
    assert len(site.events("cache.orphan_reaped")) == 2


def test_directory_on_a_dead_server_of_autofs_is_reported(
    site: Site, slurm: FakeSlurm, autofs: OnDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caches of other users are reaped."""
    monkeypatch.setattr(gathering, "PATIENCE", 0.5)
    (site.dir / "source" / ALICE / ".dead").touch()
    result = sweep(site)
    assert result.exit_code == 1 and f"{site.dir}/auto/{ALICE}: late: it does not answer" in result.output
    assert [one["uid"] for one in site.events("cache.orphan_reaped")] == [pwd.getpwnam(BOB).pw_uid]


def test_names_that_autofs_lists_need_no_account(
    site: Site, slurm: FakeSlurm, autofs: OnDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `browse`, the directories are swept whose names are listed, and more accounts than are looked up are no trouble."""
    monkeypatch.setattr(accounts, "MOST", 1)
    point = site.dir / "browse"
    point.mkdir()
    text = (site.hooks / "settings.json").read_text()
    (site.hooks / "settings.json").write_text(text.replace(f"{site.dir}/auto/", f"{point}/"))
    with on_demand(point, site.dir / "source", site.dir / "browsed", browse=True) as browsed:
        assert sweep(site).exit_code == 0
        assert {ALICE, BOB} <= set(browsed.requests) and len(browsed.requests) <= 3
    assert len(site.events("cache.orphan_reaped")) == 2


@pytest.mark.parametrize("browse, warned", [(False, True), (True, False)])
def test_check_warns_of_autofs_that_hides_users(site: Site, slurm: FakeSlurm, browse: bool, warned: bool) -> None:
    """With `browse`, the names are listed."""
    source, point = site.dir / "source", site.dir / "auto"
    (source / ALICE).mkdir(parents=True)
    os.chown(source / ALICE, UID, UID)
    (source / BOB).mkdir()
    point.mkdir()
    with on_demand(point, source, site.dir / "requests", browse=browse):
        site.configure(path=f"{point}/{{user}}/hf-{{job_id}}")
        config = str(site.dir / "jobcache.yaml")
        rows = json.loads(jobcache(site, "check", "--config", config, "--user", ALICE, "--json").stdout)
    found = [row["fact"] for row in rows if row["name"] == "autofs"]
    assert len(found) == warned and all(f"{point} is autofs" in fact for fact in found)


def test_autofs_without_names_to_access_is_reported(site: Site, slurm: FakeSlurm, autofs: OnDemand) -> None:
    """Where autofs mounts a directory for each node, and where it cannot mount the directory of all users."""
    point = f"{site.dir}/auto"
    text = (site.hooks / "settings.json").read_text()
    (site.hooks / "settings.json").write_text(text.replace("auto/{user}/", "auto/x{node}/{user}/"))
    result = sweep(site)
    assert result.exit_code == 1 and f"{point}: autofs mounts the directories in it when they are accessed" in result.output
    (site.hooks / "settings.json").write_text(text.replace("auto/{user}/", "auto/missing/{user}/"))
    result = sweep(site)
    assert result.exit_code == 1 and f"{point}/missing/{{user}}" in result.output and "autofs has not mounted it" in result.output


@pytest.fixture
def local(site: Site, slurm: FakeSlurm) -> str:
    """The node-local scratch of the site. scontrol has the nodes of this host in the file `aliases`."""
    path = f"{site.dir}/local"
    os.mkdir(path)
    os.chmod(path, 0o1777)
    site.configure(path=f"{path}/{{user}}/hf-{{job_id}}", node_local=[path])
    program = slurm.dir / "scontrol"
    program.write_text(program.read_text().replace("squeue*)", f'"scontrol show aliases"*) cat {slurm.dir}/aliases ;;\nsqueue*)'))
    return path


def test_node_local_sweep_knows_the_nodes_of_this_host(site: Site, slurm: FakeSlurm, local: str) -> None:
    """Their names differ from the host name. `list` and the sweep agree, and no message or failure follows."""
    (slurm.dir / "aliases").write_text("N1 n2.site-a\n")
    for job, node in ((7, "n1"), (8, "n2.site-a")):
        site.task_prolog(job, node=node)
    result = jobcache(site, "list", "--node-local", "--json")
    assert [row["reason"] for row in json.loads(result.output)] == ["orphan", "orphan"]
    result = sweep(site, "--node-local")
    assert (result.exit_code, result.output) == (0, "")
    assert [one["job_id"] for one in site.events("cache.orphan_reaped")] == [7, 8]
    assert len([call for call in slurm.questions() if "aliases" in call]) == 2  # once for each command


def test_orphan_with_the_lease_of_another_node_is_reported_with_the_remedy(site: Site, slurm: FakeSlurm, local: str) -> None:
    """Nothing is reaped, the sweep exits 1, and the event has the message. The remedy works."""
    (slurm.dir / "aliases").write_text("n1.site-a\n")
    for node in ("n1.site-a", "n1.site-b"):
        site.task_prolog(7, node=node, step="" if node == "n1.site-a" else "0")
    result = sweep(site, "--node-local")
    assert result.exit_code == 1
    assert "a lease of n1.site-b; this host is n1.site-a" in result.output and "--node NAME" in result.output
    assert os.path.exists(f"{local}/{ALICE}/hf-7")
    (finished,) = site.events("sweep.finished")
    assert (finished["level"], finished["troubles"], finished["reasons"]) == ("warning", 1, {"other_node": 1})
    assert "n1.site-b" in finished["error"]
    site.task_prolog(8, node="n9")
    assert sweep(site, "--node-local", "--node", "N9").exit_code == 1
    assert [one["job_id"] for one in site.events("cache.orphan_reaped")] == [8]


def test_node_local_scratch_without_other_nodes_is_swept_without_a_question(site: Site, slurm: FakeSlurm, local: str) -> None:
    """Slurm is asked for the nodes of this host only if the decision depends on them."""
    site.task_prolog(7)
    slurm.answer("7|7|RUNNING|5")
    assert sweep(site, "--node-local").exit_code == 0
    assert [call for call in slurm.questions() if "aliases" in call] == []


def test_unknown_name_of_this_node_keeps_every_cache(site: Site, slurm: FakeSlurm, local: str) -> None:
    """The sweep exits 1 and names the option."""
    site.task_prolog(7)
    program = slurm.dir / "scontrol"
    program.write_text(program.read_text().replace(f"cat {slurm.dir}/aliases", "echo fatal >&2; exit 1"))
    result = sweep(site, "--node-local")
    assert result.exit_code == 1 and "set it with the option --node" in result.output
    assert os.path.exists(f"{local}/{ALICE}/hf-7")


def test_list_shows_state_size_and_leases(site: Site, slurm: FakeSlurm) -> None:
    """As JSON and as a table, which can be filtered."""
    site.task_prolog(7)
    site.task_prolog(7, node="n2", step="0")
    site.fill(site.cache(7), "a", "b", size=4096)
    site.task_prolog(8)
    slurm.answer("7|7|RUNNING|5")
    rows = json.loads(jobcache(site, "list", "--json").output)
    assert [(row["job_id"], row["state"], row["nodes"], row["bytes"], row["files"]) for row in rows] == [
        (7, "live", ["n1", "n2"], 8192, 2),
        (8, "orphan", ["n1"], 0, 0),
    ]
    table = jobcache(site, "list", "--state", "live").output
    assert "n1,n2" in table and "8.2 kB" in table and "hf-datasets-8" not in table


# ---------------------------------------------------------------------------------------------------- hung directories


def hang(monkeypatch: pytest.MonkeyPatch, *users: str) -> None:
    """Let the directories of these users hang, and half a second count as hung."""
    real = directories.list_directories

    def list_directories(place: user_directories.UserDirectory, *rest: Any) -> Any:
        if place.user in users:
            time.sleep(60)
        return real(place, *rest)

    monkeypatch.setattr(directories, "list_directories", list_directories)
    monkeypatch.setattr(gathering, "PATIENCE", 0.5)


def test_hung_user_directory_is_reported(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches of other users are swept."""
    for user in (ALICE, BOB):
        site.task_prolog(7, user=user)
    hang(monkeypatch, ALICE)
    result = sweep(site)
    assert result.exit_code == 1 and "does not answer" in result.output
    assert [site.cache(7).exists(), site.cache(7, user=BOB).exists()] == [True, False]


def survey(items: list[int], hung: set[int], run_dir: Path, users: int = 1000) -> tuple[list[int], dict[int, str]]:
    """Survey numbers. A child hangs at those in `hung`. Return the numbers with facts, and the reason for each lost one.

    users: to each of whom every so many numbers belong.
    """
    lost: dict[int, str] = {}
    register = stuck_processes.Register(str(run_dir))

    def place(item: int) -> stuck_processes.Place:
        return stuck_processes.Place(register, 1 + item % users, "0:1", str(item), False)

    def facts(item: int) -> Any:
        if item in hung:
            time.sleep(60)
        yield {}
        yield {"item": item}

    found = gathering.survey(items, facts, lambda items, why: lost.update(dict.fromkeys(items, why)), place)
    return sorted(fact["item"] for fact in found), lost


def test_survey_loses_only_hung_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children finish their other items."""
    monkeypatch.setattr(gathering, "PATIENCE", 0.2)
    hung = set(range(3, 100, 10))
    answered, lost = survey(list(range(100)), hung, tmp_path)
    assert answered == sorted(set(range(100)) - hung)
    assert set(lost) == hung


def test_survey_ends_after_few_hung_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing answers, the whole filesystem hangs. Every item is reported as lost."""
    monkeypatch.setattr(gathering, "PATIENCE", 0.2)
    monkeypatch.setattr(gathering, "_BATCH", 10)
    began = time.monotonic()
    answered, lost = survey(list(range(1000)), set(range(1000)), tmp_path)
    assert (answered, len(lost)) == ([], 1000)
    assert time.monotonic() - began < 20


def test_user_with_many_hung_places_costs_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two places of a user did not answer, the user's other places are skipped. The survey goes on."""
    monkeypatch.setattr(gathering, "PATIENCE", 0.2)
    hung = set(range(0, 100, 2))
    began = time.monotonic()
    answered, lost = survey(list(range(100)), hung, tmp_path, users=2)
    assert (answered, set(lost)) == (sorted(set(range(100)) - hung), hung)
    assert list(lost.values()).count("skipped, because it did not answer before") == 48
    assert time.monotonic() - began < 10


def test_survey_avoids_place_of_stuck_process(tmp_path: Path) -> None:
    """The survey avoids the place until that process has ended."""
    register = stuck_processes.Register(str(tmp_path / "run"))
    with subprocess.Popen(["sleep", "60"]) as stuck:
        register.note(stuck_processes.Place(register, 6, "0:1", "5", False), stuck.pid)
        answered, lost = survey([4, 5, 6], set(), tmp_path / "run")
        assert (answered, list(lost)) == ([4, 6], [5]) and "1 processes of uid 6" in lost[5]
        stuck.kill()
    assert survey([4, 5, 6], set(), tmp_path / "run") == ([4, 5, 6], {})


def test_many_items_at_one_stuck_place_are_one_message(tmp_path: Path) -> None:
    """A user can have any number of directories on a filesystem that hangs."""
    register = stuck_processes.Register(str(tmp_path / "run"))
    place = stuck_processes.Place(register, 6, "0:1", "", False)
    lost: list[tuple[int, str]] = []
    with subprocess.Popen(["sleep", "60"]) as stuck:
        register.note(place, stuck.pid)
        facts = gathering.survey(range(200), lambda _: [], lambda items, why: lost.append((len(items), why)), lambda _: place)
        assert list(facts) == []
        stuck.kill()
    assert [count for count, _ in lost] == [200] and "1 processes of uid 6" in lost[0][1]


def test_one_user_cannot_fill_a_sweep(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep takes a bounded number of directories of one user, and reports that there are more."""
    monkeypatch.setattr(scanning, "MOST_DIRECTORIES", 3)
    for job in range(1, 6):
        site.task_prolog(job)
    site.task_prolog(7, user=BOB)
    result = sweep(site)
    assert result.exit_code == 1 and "more than 3 directories" in result.output
    assert len(site.events("cache.orphan_reaped")) == 4
    assert sweep(site).exit_code == 0
    assert site.debris() == [] and not list(site.scratch.glob("*/.cache/hf-*"))


# ------------------------------------------------------------------------------------------- processes of this host


def holding(site: Site, job: int, environment_of: int | None) -> subprocess.Popen[bytes]:
    """Start a process of Alice in the job's cache, with the environment of a job, or of none."""
    env = {"SLURM_JOB_ID": str(environment_of)} if environment_of else {}
    return subprocess.Popen(["/bin/sleep", "60"], cwd=site.cache(job), env=env, user=UID, group=60, extra_groups=[])


def test_stray_processes_are_terminated_on_request(site: Site, slurm: FakeSlurm) -> None:
    """Only processes of the same job are terminated. Processes of another job or a login continue, and keep the cache."""
    site.configure(sweep={**site.keys["sweep"], "stray_processes": "terminate"})
    for job in (7, 8):
        site.task_prolog(job)
    with holding(site, 7, 7) as stray, holding(site, 8, 9) as of_another, holding(site, 8, None) as of_a_login:
        try:
            sweep(site)
            assert stray.wait(10) == -15
            assert [of_another.poll(), of_a_login.poll()] == [None, None]
            events = {event["job_id"]: event for event in site.events("cache.kept")}
            assert events[7]["terminated"] == [stray.pid] == events[7]["pids"]
            assert "terminated" not in events[8] and events[8]["pids"] == sorted([of_another.pid, of_a_login.pid])
            sweep(site)
            assert [site.cache(7).exists(), site.cache(8).exists()] == [False, True]
        finally:
            for process in (stray, of_another, of_a_login):
                process.kill()


def test_stray_processes_are_reported_by_default(site: Site, slurm: FakeSlurm) -> None:
    """A dry run never terminates a process."""
    site.task_prolog(7)
    with holding(site, 7, 7) as stray:
        sweep(site)
        site.configure(sweep={**site.keys["sweep"], "stray_processes": "terminate"})
        output = sweep(site, "--dry-run").output
        assert stray.poll() is None
        assert f"would terminate {stray.pid} in {site.cache(7)}\n" in output
        stray.kill()


@pytest.mark.parametrize("owner", ["root", ALICE])
def test_step_on_this_host_proves_job_alive(site: Site, slurm: FakeSlurm, owner: str) -> None:
    """The sweep does not ask Slurm. A user's process with the title of a step proves nothing."""
    site.task_prolog(7)
    title = ["bash", "-c", "exec -a 'slurmstepd: [7.batch]' sleep 60"]
    with subprocess.Popen(title, user=pwd.getpwnam(owner).pw_uid) as step:
        while b"slurmstepd" not in Path(f"/proc/{step.pid}/cmdline").read_bytes().partition(b"\0")[0]:
            time.sleep(0.01)
        sweep(site)
        step.kill()
    assert site.cache(7).exists() == (owner == "root")
    assert bool(slurm.questions()) == (owner != "root")


def test_steps_outside_of_given_host_do_not_count(site: Site, slurm: FakeSlurm) -> None:
    """A sweep takes the processes from its host. Steps of job 1 run on this machine while these tests run."""
    site.task_prolog(1)
    foreign = processes.jobs_with_steps(Host().pids())
    assert os.geteuid() != 0 or {1, 7, 8, 71} <= foreign
    assert processes.jobs_with_steps(HOST.pids()) == set()
    assert decisions(site) == {"hf-datasets-1": ("reap", "orphan")}


# ------------------------------------------------------------------------------------------------------- reported, kept


def test_unreadable_and_set_aside_directories_are_reported(site: Site, slurm: FakeSlurm) -> None:
    """They stay, the event counts them, and `list` shows them."""
    site.task_prolog(7)
    site.task_prolog(8)
    site.cache(8).chmod(0)
    aside = site.cache().parent / ".jobcache-aside-9-0123456789abcdef"
    aside.mkdir()
    os.chown(aside, UID, -1)
    site.configure(log={**site.keys["log"], "level": "debug"})
    assert sweep(site).exit_code == 0
    assert [site.cache(7).exists(), site.cache(8).exists(), aside.exists()] == [False, True, True]
    (finished,) = site.events("sweep.finished")
    assert finished["reasons"] == {"orphan": 1, "unreadable": 1, "aside": 1} and finished["reported"] == 2
    assert {event["reason"] for event in site.events("cache.kept")} == {"unreadable", "aside"}
    rows = json.loads(jobcache(site, "list", "--json").output)
    assert {row["state"] for row in rows} == {"unknown", "aside"}


def test_deep_tree_is_listed_and_reaped(site: Site, slurm: FakeSlurm) -> None:
    """Levels too deep for a dataset are not measured."""
    site.task_prolog(7)
    deep = os.open(site.cache(7), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    subprocess.run(["chown", "-R", ALICE, site.cache(7)], check=True)
    assert json.loads(jobcache(site, "list", "--json").output)[0]["files"] == 0
    assert sweep(site).exit_code == 0
    assert not site.cache(7).exists()


def test_sweep_ignores_slurm_conf_of_environment(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM_CONF is read when `apply` runs, and never by a sweep."""
    confs = slurm.dir / "conf"
    squeue = slurm.dir / "squeue"
    squeue.write_text(squeue.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\necho "${{SLURM_CONF-none}}" >>{confs}\n'))
    site.task_prolog(7)
    monkeypatch.setenv("SLURM_CONF", "/etc/of-cron")
    sweep(site)
    site.configure()
    site.task_prolog(7)
    monkeypatch.delenv("SLURM_CONF")
    sweep(site)
    assert confs.read_text().split() == ["none", "none", "/etc/of-cron", "/etc/of-cron"]


# ------------------------------------------------------------------------------------ directories that users can plant


def owned_by(user: str, path: Path) -> Path:
    """Make a directory with this owner."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    return path


def test_hung_owner_lookup_skips_one_user(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even reading the owner of a directory can hang."""
    monkeypatch.setattr(gathering, "PATIENCE", 3.0)
    site.task_prolog(7, user=BOB)
    with hung(owned_by(ALICE, site.scratch / ALICE)) as server:
        result = sweep(site)
        assert server.waiting
    assert f"{site.scratch / ALICE}: late" in result.output and "{user}" not in result.output
    assert not site.cache(7, user=BOB).exists()


def test_obstacles_beside_node_directories_are_skipped(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, dangling links, and a directory that hangs. Only the last one is reported."""
    monkeypatch.setattr(gathering, "PATIENCE", 3.0)
    site.configure(path=f"{site.scratch}/{{node}}/{{user}}/hf-{{job_id}}")
    for at in range(5):
        owned_by(ALICE, site.scratch / f"n{at}")
    caches = [Path(site.task_prolog(7, node=f"n{at}").cache or "/") for at in range(5)]
    assert all(cache.is_dir() and cache != Path("/") for cache in caches)
    for at in range(9):
        (site.scratch / f"file-{at}").touch()
        (site.scratch / f"link-{at}").symlink_to("/nonexistent")
        os.lchown(site.scratch / f"link-{at}", UID, -1)
    with hung(owned_by(BOB, site.scratch / "hung")):
        result = sweep(site)
    lines = result.output.splitlines()
    assert lines[0] == f"{site.scratch}/hung: late: it does not answer"
    assert {line.partition(": ")[0] for line in lines} == {f"{site.scratch}/hung"}
    assert not any(cache.exists() for cache in caches)


def test_many_planted_directories_do_not_fill_a_sweep(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the directories with names of users and the directories in them are bounded."""
    monkeypatch.setattr(scanning, "MOST_DIRECTORIES", 5)
    for at in range(20):
        for job in (1, 2, 3):
            owned_by(ALICE, site.scratch / f"user-{at}")
            owned_by(ALICE, site.scratch / f"user-{at}/.cache")
            owned_by(ALICE, site.scratch / f"user-{at}/.cache/hf-datasets-{job}")
    site.task_prolog(7, user=BOB)
    result = sweep(site)
    assert "more than 8 directories here" in result.output and "more than 5 directories" in result.output
    assert site.events("sweep.finished")[0]["found"] == 6
    assert not site.cache(7, user=BOB).exists()


def test_template_with_uid_above_user(site: Site, slurm: FakeSlurm) -> None:
    """If the path has the uid alone, the account provides the name."""
    site.configure(path=f"{site.scratch}/{{uid}}/hf-{{user}}-{{job_id}}")
    made = Path(site.task_prolog(7).cache or "")
    assert made.name == f"hf-{ALICE}-7"
    sweep(site)
    assert not made.exists()


@pytest.mark.parametrize("name", ["hf-datasets-7", ".jobcache-trash-7-abcd", ".jobcache-new-7-abcd"])
def test_mount_point_is_left_alone(site: Site, slurm: FakeSlurm, name: str) -> None:
    """Under each kind of name, with a record of jobcache. Deleting it would destroy the data at its source."""
    site.task_prolog(7)
    precious = site.dir / "precious"
    shutil.copytree(site.cache(7), precious, symlinks=True)
    (precious / "thesis").touch()
    subprocess.run(["chown", "-R", ALICE, precious], check=True)
    shutil.rmtree(site.cache(7))
    with mount(precious, owned_by(ALICE, site.cache(7).parent / name), "bind"):
        result = sweep(site)
    assert result.exit_code == 1 and "it is a mount point" in result.output
    assert (precious / "thesis").exists() and (precious / ".jobcache/nodes/n1").exists()


def test_many_processes_do_not_fill_a_sweep(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them keeps the cache. The event names some of them."""
    monkeypatch.setattr(processes, "MOST_NAMED", 2)
    site.task_prolog(7)
    users = [holding(site, 7, None) for _ in range(5)]
    try:
        sweep(site)
        (kept,) = site.events("cache.kept")
        assert len(kept["pids"]) == 2 and set(kept["pids"]) < {user.pid for user in users}
    finally:
        for user in users:
            user.kill()
            user.wait()


def test_process_of_another_clusters_job_is_not_terminated(site: Site, slurm: FakeSlurm) -> None:
    """On a host that serves two clusters, a job with the same id can use a directory with the same name."""
    site.configure(sweep={**site.keys["sweep"], "stray_processes": "terminate"})
    site.task_prolog(7)
    env = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "della"}
    with subprocess.Popen(["/bin/sleep", "60"], cwd=site.cache(7), env=env, user=UID, group=60, extra_groups=[]) as other:
        sweep(site)
        (kept,) = site.events("cache.kept")
        assert kept["pids"] == [other.pid] and "terminated" not in kept
        other.kill()
        assert other.wait() == -9


def test_time_for_one_owner_is_bounded(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sweep reaps at least one directory of each owner, and reports the rest."""
    monkeypatch.setattr(reaping, "OWNER_BUDGET", 0.0)
    for job in (71, 72, 73):
        site.task_prolog(job)
    result = sweep(site)
    assert result.exit_code == 1 and f"the time for uid {UID} is used up; 2 directories are left" in result.output
    assert len(site.events("cache.orphan_reaped")) == 1


def test_cache_that_replaces_orphan_is_young(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new job with the same id makes its cache after the two listings. Even `grace: 0` does not make it an orphan."""
    site.task_prolog(71)
    age(site.cache(71))
    real = scanning.inspect_all

    def later(*args: Any, **more: Any) -> Any:
        site.task_prolog(71)
        return real(*args, **more)

    monkeypatch.setattr(scanning, "inspect_all", later)
    sweep(site)
    assert site.cache(71).exists()
    assert site.events("sweep.finished")[0]["reasons"] == {"young": 1}


def test_closed_directory_beside_node_directories_is_reported(site: Site, slurm: FakeSlurm) -> None:
    """The caches in the node directories are reaped."""
    site.configure(path=f"{site.scratch}/{{user}}/{{node}}/of/{{node}}/hf-{{job_id}}")
    made = [Path(site.task_prolog(71, node=f"n{at}").cache or "") for at in range(4)]
    for at in range(4):
        (site.scratch / ALICE / f"file-{at}").touch()
        owned_by(ALICE, site.scratch / ALICE / f"closed-{at}").chmod(0)
    result = sweep(site)
    assert result.exit_code == 1 and "Permission denied" in result.output
    assert not any(cache.exists() for cache in made)


def test_sweep_uses_all_groups_of_user(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project directory can be open to another group of the user alone, which the TaskProlog has as well."""
    project = site.scratch / "project"
    site.configure(path=f"{project}/{{user}}/hf-{{job_id}}")
    owned_by(ALICE, project / ALICE)
    made = Path(site.task_prolog(71).cache or "")
    os.chown(project, 0, 54321)
    project.chmod(0o750)
    assert sweep(site).exit_code == 1 and made.exists()
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [gid, 54321] if user == ALICE else [gid])
    result = sweep(site)
    assert (result.exit_code, result.output, made.exists()) == (0, "", False)


def test_foreign_text_is_printed_as_one_plain_line(site: Site, slurm: FakeSlurm) -> None:
    """The name of a directory with an emoji code, and an error of Slurm with a terminal escape."""
    home = owned_by(ALICE, site.scratch / ":skull:")
    owned_by(ALICE, home / ".cache")
    owned_by(ALICE, home / ".cache/hf-datasets-71")
    assert ":skull:" in jobcache(site, "list").output
    slurm.answer(status="1", stderr="squeue: error: \x1b[2J\x1b[31mall is well\n")
    assert "\\x1b[2J" in sweep(site).output
