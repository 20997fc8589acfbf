"""The sweep on a real filesystem, with a Slurm that says what the test wants."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import jobcache as package
from jobcache.cli.main import main
from jobcache.sweep import directories, lock, processes, reaping, scanning
from jobcache.system import gathering
from support.hungfs import hung
from support.mounts import mount
from support.site_dir import ALICE, BOB, Site

UID = pwd.getpwnam(ALICE).pw_uid


class FakeSlurm:
    """squeue and scontrol that answer from files; every question is counted."""

    def __init__(self, site: Site) -> None:
        self.dir = site.dir / "slurm"
        self.dir.mkdir()
        self.asked = self.dir / "asked"
        self.says()
        for name in ("squeue", "scontrol"):
            program = self.dir / name
            program.write_text(
                f'#!/bin/sh\necho "{name} $*" >>{self.asked}\ncase "{name} $*" in\n'
                f'"scontrol show config") cat {self.dir}/config ;;\n"scontrol show jobs") cat {self.dir}/none ;;\n'
                f"squeue*) n=$(grep -c ^squeue {self.asked}); f={self.dir}/queue.$n; [ -e $f ] || f={self.dir}/queue; cat $f\n"
                f"    cat {self.dir}/stderr >&2; exit $(cat {self.dir}/status) ;;\nesac\n"
            )
            program.chmod(0o755)

    def says(
        self, *jobs: str, cluster: str = "test", private: str = "none", none: str = "No jobs in the system", **more: str
    ) -> None:
        (self.dir / "config").write_text(f"ClusterName             = {cluster}\nPrivateData             = {private}\n")
        (self.dir / "queue").write_text("".join(f"{job}\n" for job in jobs))
        (self.dir / "none").write_text(none + "\n")
        (self.dir / "stderr").write_text(more.get("stderr", ""))
        (self.dir / "status").write_text(more.get("status", "0"))

    def questions(self) -> list[str]:
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
    return CliRunner().invoke(main, [*argv, "--hooks", str(site.hooks)], catch_exceptions=False)


def sweep(site: Site, *options: str) -> Result:
    return jobcache(site, "sweep", *options)


def decisions(site: Site, *options: str) -> dict[str, tuple[str, str]]:
    """What a dry run says: (action, reason) by the directory's name."""
    result = sweep(site, "--dry-run", "--json", *options)
    rows = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    return {os.path.basename(row["path"]): (row["action"], row["reason"]) for row in rows}


def test_orphans_go_and_the_living_stay(site: Site, slurm: FakeSlurm) -> None:
    """Alice's 7 is dead and goes, as alice; 8 lives; bob's 7 lives."""
    for job, user in ((7, ALICE), (8, ALICE), (7, BOB)):
        site.task_prolog(job, user=user)
        site.fill(site.cache(job, user=user), "json/a.arrow", size=8192)
    slurm.says("8|8|RUNNING|5", f"7|7|PENDING|{pwd.getpwnam(BOB).pw_uid}")
    result = sweep(site)
    assert (result.exit_code, result.output) == (0, "")
    assert [site.cache(7).exists(), site.cache(8).exists(), site.cache(7, user=BOB).exists()] == [False, True, True]
    assert site.debris() == []
    (reaped,) = site.events("cache.orphan_reaped")
    assert (reaped["reason"], reaped["outcome"], reaped["bytes"], reaped["files"]) == ("orphan", "reaped", 8192, 1)
    (finished,) = site.events("sweep.finished")
    assert (finished["found"], finished["reaped"], finished["kept"], finished["troubles"]) == (3, 1, 2, 0)


def test_nothing_there_asks_nothing(site: Site, slurm: FakeSlurm) -> None:
    """No candidates, no question to the controller."""
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
def test_in_doubt_nothing_goes(site: Site, slurm: FakeSlurm, reason: str) -> None:
    """Each kind of doubt has its own reason, exit status 1, and deletes nothing."""
    site.task_prolog(7)
    how = dict(UNKNOWN[reason])
    slurm.says(*how.pop("jobs", []), **how)
    result = sweep(site)
    assert result.exit_code == 1 and f"({reason})" in result.output
    assert site.cache(7).exists()
    assert [event["reason"] for event in site.events("sweep.finished")] == [reason]


def test_unrecorded_is_reported(site: Site, slurm: FakeSlurm) -> None:
    """A directory kept by hand stays, unless the site says otherwise."""
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


def test_young_and_kept(site: Site, slurm: FakeSlurm) -> None:
    """What is younger than grace stays; what the user keeps stays until keep_max."""
    site.task_prolog(7)
    site.task_prolog(8, JOBCACHE="keep")
    site.epilog(8)
    site.configure(sweep={"grace": "1h", "confirm": "0s"})
    assert decisions(site) == {"hf-datasets-7": ("keep", "young"), "hf-datasets-8": ("keep", "user_keep")}
    site.configure(sweep={"grace": "0s", "confirm": "0s"})
    assert decisions(site) == {"hf-datasets-7": ("reap", "orphan"), "hf-datasets-8": ("keep", "user_keep")}
    site.configure(keep_max="0s")
    assert decisions(site)["hf-datasets-8"] == ("reap", "orphan")


def test_half_made_and_trash(site: Site, slurm: FakeSlurm) -> None:
    """What prepare left half made, and trash that an Epilog had no time for, goes."""
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
    """One that is preempted again and again leaves trash each time that the budget does not suffice: it does not pile up."""
    site.configure(epilog={"budget": "0s"})
    for run in ("0", "1", "2"):
        site.task_prolog(7, SLURM_RESTART_COUNT=run)
        site.fill(site.cache(7, int(run)), "json/a.arrow")
        if run != "2":
            site.epilog(7)
    slurm.says("7|7|RUNNING|5")
    assert len(site.debris()) == 2
    assert sweep(site).exit_code == 0
    assert site.debris() == [] and (site.cache(7, 2) / "json/a.arrow").exists()


@pytest.mark.parametrize("inodes", [True, False], ids=["blocks", "inodes"])
def test_run_dir_is_full(site: Site, slurm: FakeSlurm, inodes: bool) -> None:
    """A full /run: where the lock can be had, the sweep does its work; where not, it says so, and what to do."""
    site.task_prolog(7)
    (site.dir / "run").mkdir(exist_ok=True)
    with mount("tmpfs", site.dir / "run", "tmpfs", f"size=4k,nr_inodes={4 if inodes else 1}"):
        if inodes:
            (site.dir / "run/full").write_bytes(b"x" * 4096)
        result = sweep(site)
        assert inodes or (result.exit_code == 1 and "No space left on device; mend run_dir" in result.output)
    assert site.cache(7).exists() is not inodes


def test_read_only_orphans_go(site: Site, slurm: FakeSlurm) -> None:
    """What its user guarded with `chmod -R a-w` is dead all the same when its job is."""
    site.task_prolog(7)
    site.fill(site.cache(7), "json/a.arrow")
    subprocess.run(["chmod", "-R", "a-w", str(site.cache(7))], check=True)
    assert sweep(site).exit_code == 0
    assert not site.cache(7).exists() and site.debris() == []


def test_what_had_no_record_is_known_as_trash(site: Site, slurm: FakeSlurm) -> None:
    """A cache that its job's script removed and remade, larger than the Epilog's budget: the sweep finishes it."""
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


def test_another_clusters_stay(site: Site, slurm: FakeSlurm) -> None:
    """Another cluster's cache on the same scratch is that cluster's."""
    site.task_prolog(7)
    (site.cache(7) / ".jobcache/id").write_text("della 7 0 5\n")
    assert decisions(site) == {"hf-datasets-7": ("keep", "other_cluster")}
    assert slurm.questions() == []


def test_open_files_keep(site: Site, slurm: FakeSlurm) -> None:
    """A cache that a process of its owner has open stays, and the event names the process."""
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


def test_alive_again_in_the_second_listing(site: Site, slurm: FakeSlurm) -> None:
    """Two listings have to agree that a job is dead."""
    site.task_prolog(7)
    slurm.says("1|1|RUNNING|9")
    (slurm.dir / "queue.2").write_text("7|7|RUNNING|5\n")
    sweep(site)
    assert site.cache(7).exists()


def test_only_ones_own(site: Site, slurm: FakeSlurm) -> None:
    """Without root, a user sweeps their own and cannot ask for another's."""
    for user in (ALICE, BOB):
        site.task_prolog(7, user=user)
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
    assert [site.cache(7).exists(), site.cache(7, user=BOB).exists()] == [False, True]
    done = subprocess.run(
        [*command, "--user", BOB], user=UID, group=60, extra_groups=[], env=env, cwd="/", capture_output=True, check=False
    )
    assert done.returncode == 2


def test_one_at_a_time(site: Site, slurm: FakeSlurm) -> None:
    """A second sweep says who holds the first, and does nothing."""
    with lock.Lock(f"{site.dir}/run/sweep-shared-1-of-1.lock"):
        result = sweep(site)
    assert result.exit_code == 1 and f"pid {os.getpid()}" in result.output


def test_off(site: Site, slurm: FakeSlurm) -> None:
    """The file `off` stops the sweep too."""
    site.task_prolog(7)
    (site.hooks / "off").touch()
    assert sweep(site).exit_code == 0
    assert site.cache(7).exists()


def test_shards_are_a_partition(site: Site, slurm: FakeSlurm) -> None:
    """Each user is in exactly one shard."""
    for user in (ALICE, BOB):
        site.task_prolog(7, user=user)
    seen = [len(decisions(site, "--shard", f"{part}/3")) for part in (1, 2, 3)]
    assert sum(seen) == 2


def test_removed_users(site: Site, slurm: FakeSlurm) -> None:
    """A user who is no longer known is a number, and their orphans go all the same."""
    site.task_prolog(7)
    home = site.scratch / ALICE
    for path in (home, *home.rglob("*")):
        os.lchown(path, 54321, 54321)
    (site.cache(7) / ".jobcache/id").write_text("test 7 0 54321\n")
    sweep(site)
    assert not site.cache(7).exists()


def test_node_local(site: Site, slurm: FakeSlurm) -> None:
    """Node-local scratch is swept by --node-local, and only by that."""
    local = site.dir / "local"
    local.mkdir(mode=0o1777)
    local.chmod(0o1777)
    site.configure(path=f"{local}/{{node}}/{{user}}/hf-{{node}}-{{job_id}}", node_local=[str(local)])
    made = site.task_prolog(7).cache
    assert made and Path(made).exists()
    assert decisions(site) == {}
    assert decisions(site, "--node-local", "--node", "n1") != {}


def test_list(site: Site, slurm: FakeSlurm) -> None:
    """Every directory with its state, sizes and leases; as JSON and as a table."""
    site.task_prolog(7)
    site.task_prolog(7, node="n2", step="0")
    site.fill(site.cache(7), "a", "b", size=4096)
    site.task_prolog(8)
    slurm.says("7|7|RUNNING|5")
    rows = json.loads(jobcache(site, "list", "--json").output)
    assert [(row["job_id"], row["state"], row["nodes"], row["bytes"], row["files"]) for row in rows] == [
        (7, "live", ["n1", "n2"], 8192, 2),
        (8, "orphan", ["n1"], 0, 0),
    ]
    table = jobcache(site, "list", "--state", "live").output
    assert "n1,n2" in table and "8.2 kB" in table and "hf-datasets-8" not in table


# ------------------------------------------------------------------------------------------------------ what hangs


def hang(monkeypatch: pytest.MonkeyPatch, *users: str) -> None:
    """The directories of these users do not answer; half a second is patience enough."""
    real = directories.caches

    def caches(home: directories.Home, *rest: Any) -> Any:
        if home.user in users:
            time.sleep(60)
        return real(home, *rest)

    monkeypatch.setattr(directories, "caches", caches)
    monkeypatch.setattr(gathering, "PATIENCE", 0.5)


def test_hung_homes_are_said(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's directory that does not answer costs its own caches' sweep, and nobody else's."""
    for user in (ALICE, BOB):
        site.task_prolog(7, user=user)
    hang(monkeypatch, ALICE)
    result = sweep(site)
    assert result.exit_code == 1 and "does not answer" in result.output
    assert [site.cache(7).exists(), site.cache(7, user=BOB).exists()] == [True, False]


def survey(items: list[int], hung: set[int], memory: gathering.Hung) -> tuple[list[int], dict[int, str]]:
    """Survey numbers, at some of which a child hangs; return those that answered, and why others are lost."""
    lost: dict[int, str] = {}

    def facts(item: int) -> Any:
        if item in hung:
            time.sleep(60)
        yield {}
        yield {"item": item}

    found = gathering.survey(items, facts, lambda gone, why: lost.update(dict.fromkeys(gone, why)), memory, str)
    return sorted(fact["item"] for fact in found), lost


def test_any_number_may_hang_while_others_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that hangs is lost, and only those."""
    monkeypatch.setattr(gathering, "PATIENCE", 0.2)
    hung = set(range(3, 100, 10))
    answered, lost = survey(list(range(100)), hung, gathering.Hung(str(tmp_path)))
    assert answered == sorted(set(range(100)) - hung)
    assert set(lost) == hung


def test_a_filesystem_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing answers at all, it ends after a few, and says so of all."""
    monkeypatch.setattr(gathering, "PATIENCE", 0.2)
    monkeypatch.setattr(gathering, "_BATCH", 10)
    began = time.monotonic()
    answered, lost = survey(list(range(1000)), set(range(1000)), gathering.Hung(str(tmp_path)))
    assert (answered, len(lost)) == ([], 1000)
    assert time.monotonic() - began < 20


def test_where_a_process_is_stuck_none_is_added(tmp_path: Path) -> None:
    """As long as it lives; and a process that has its number later is another."""
    memory = gathering.Hung(str(tmp_path / "run"))
    with subprocess.Popen(["sleep", "60"]) as stuck:
        memory.note("5", stuck.pid)
        assert survey([4, 5, 6], set(), memory) == ([4, 6], {5: "a process of an earlier sweep still hangs there"})
        stuck.kill()
    assert survey([4, 5, 6], set(), memory) == ([4, 5, 6], {})
    (note,) = (tmp_path / "run").iterdir()
    note.write_text(f"{os.getpid()} 1.5\n")
    assert not memory.holds("5")


def test_one_user_cannot_fill_a_sweep(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one user's directories, so many are looked at, and it is said that there are more."""
    monkeypatch.setattr(scanning, "_MOST_EACH", 3)
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
    """A process of alice's that has the job's cache as its directory, started with a job's environment, or none's."""
    env = {"SLURM_JOB_ID": str(environment_of)} if environment_of else {}
    return subprocess.Popen(["/bin/sleep", "60"], cwd=site.cache(job), env=env, user=UID, group=60, extra_groups=[])


def test_strays_are_ended_where_the_site_says_so(site: Site, slurm: FakeSlurm) -> None:
    """Those of this very job; what another job or a login left open keeps the cache, and lives."""
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


def test_strays_are_only_reported_unless_the_site_says_so(site: Site, slurm: FakeSlurm) -> None:
    """And never ended by a dry run."""
    site.task_prolog(7)
    with holding(site, 7, 7) as stray:
        sweep(site)
        site.configure(sweep={**site.keys["sweep"], "stray_processes": "terminate"})
        said = sweep(site, "--dry-run").output
        assert stray.poll() is None
        assert f"would terminate {stray.pid} in {site.cache(7)}\n" in said
        stray.kill()


@pytest.mark.parametrize("whose", ["root", ALICE])
def test_a_step_on_this_host_says_that_its_job_lives(site: Site, slurm: FakeSlurm, whose: str) -> None:
    """Then nobody has to be asked. A title that a user gave a process of their own says nothing."""
    site.task_prolog(7)
    title = ["bash", "-c", "exec -a 'slurmstepd: [7.batch]' sleep 60"]
    with subprocess.Popen(title, user=pwd.getpwnam(whose).pw_uid) as step:
        while b"slurmstepd" not in Path(f"/proc/{step.pid}/cmdline").read_bytes().partition(b"\0")[0]:
            time.sleep(0.01)
        sweep(site)
        step.kill()
    assert site.cache(7).exists() == (whose == "root")
    assert bool(slurm.questions()) == (whose != "root")


# -------------------------------------------------------------------------------------------------- reported, and kept


def test_what_is_only_reported(site: Site, slurm: FakeSlurm) -> None:
    """What its owner closed, and what was put aside: they stay, the event counts them, `list` shows them."""
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


def test_a_deep_tree_is_listed(site: Site, slurm: FakeSlurm) -> None:
    """However deep: what lies too deep for a dataset is not measured."""
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


def test_cron_cannot_name_another_slurm(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM_CONF counts when `apply` runs, and never for a sweep."""
    told = slurm.dir / "conf"
    squeue = slurm.dir / "squeue"
    squeue.write_text(squeue.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\necho "${{SLURM_CONF-none}}" >>{told}\n'))
    site.task_prolog(7)
    monkeypatch.setenv("SLURM_CONF", "/etc/of-cron")
    sweep(site)
    site.configure()
    site.task_prolog(7)
    monkeypatch.delenv("SLURM_CONF")
    sweep(site)
    assert told.read_text().split() == ["none", "none", "/etc/of-cron", "/etc/of-cron"]


# ------------------------------------------------------------------------------ what anybody can put beside the others


def owned_by(user: str, path: Path) -> Path:
    """Make a directory that is this user's."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    return path


def test_a_users_directory_that_hangs_costs_that_user_alone(
    site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even to ask whose it is can hang."""
    monkeypatch.setattr(gathering, "PATIENCE", 3.0)
    site.task_prolog(7, user=BOB)
    with hung(owned_by(ALICE, site.scratch / ALICE)) as server:
        result = sweep(site)
        assert server.waiting
    assert f"{site.scratch / ALICE}: late" in result.output and "{user}" not in result.output
    assert not site.cache(7, user=BOB).exists()


def test_what_is_no_nodes_directory_costs_nobody(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a link to nowhere, and a directory that hangs, beside the nodes' own."""
    monkeypatch.setattr(gathering, "PATIENCE", 3.0)
    site.configure(path=f"{site.scratch}/{{node}}/{{user}}/hf-{{job_id}}")
    caches = [Path(site.task_prolog(7, node=f"n{at}").cache or "") for at in range(5)]
    for at in range(9):
        (site.scratch / f"file-{at}").touch()
        (site.scratch / f"link-{at}").symlink_to("/nonexistent")
        os.lchown(site.scratch / f"link-{at}", UID, -1)
    with hung(owned_by(BOB, site.scratch / "hung")):
        result = sweep(site)
    said = result.output.splitlines()
    assert said[0] == f"{site.scratch}/hung: late: it does not answer"
    assert {line.partition(": ")[0] for line in said} == {f"{site.scratch}/hung"}
    assert not any(cache.exists() for cache in caches)


def test_many_directories_of_one_user_do_not_fill_a_sweep(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by directories that look like other users', nor by some in each of them."""
    monkeypatch.setattr(scanning, "_MOST_EACH", 5)
    for at in range(20):
        for job in (1, 2, 3):
            owned_by(ALICE, site.scratch / f"user-{at}")
            owned_by(ALICE, site.scratch / f"user-{at}/.cache")
            owned_by(ALICE, site.scratch / f"user-{at}/.cache/hf-datasets-{job}")
    site.task_prolog(7, user=BOB)
    result = sweep(site)
    assert "more than 8 such directories" in result.output and "more than 5 directories" in result.output
    assert site.events("sweep.finished")[0]["found"] == 6
    assert not site.cache(7, user=BOB).exists()


def test_uid_above_and_user_below(site: Site, slurm: FakeSlurm) -> None:
    """The user's name is the account's where the directory above does not tell it."""
    site.configure(path=f"{site.scratch}/{{uid}}/hf-{{user}}-{{job_id}}")
    made = Path(site.task_prolog(7).cache or "")
    assert made.name == f"hf-{ALICE}-7"
    sweep(site)
    assert not made.exists()


@pytest.mark.parametrize("name", ["hf-datasets-7", ".jobcache-trash-7-abcd", ".jobcache-new-7-abcd"])
def test_what_is_mounted_is_left_alone(site: Site, slurm: FakeSlurm, name: str) -> None:
    """Under any name of ours, with a record of ours: seized or emptied, it would be lost where it comes from."""
    site.task_prolog(7)
    precious = site.dir / "precious"
    shutil.copytree(site.cache(7), precious)
    (precious / "thesis").touch()
    subprocess.run(["chown", "-R", ALICE, precious], check=True)
    shutil.rmtree(site.cache(7))
    with mount(precious, owned_by(ALICE, site.cache(7).parent / name), "bind"):
        result = sweep(site)
    assert result.exit_code == 1 and "it is a mount point" in result.output
    assert (precious / "thesis").exists() and (precious / ".jobcache/nodes/n1").exists()


def test_processes_that_open_everything_do_not_fill_a_sweep(
    site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that use a cache, some are named; all of them keep it."""
    monkeypatch.setattr(processes, "_MOST_USING", 2)
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


def test_another_clusters_job_of_this_id_is_not_ended(site: Site, slurm: FakeSlurm) -> None:
    """On a host that serves two clusters, it may use a directory of the same name."""
    site.configure(sweep={**site.keys["sweep"], "stray_processes": "terminate"})
    site.task_prolog(7)
    env = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "della"}
    with subprocess.Popen(["/bin/sleep", "60"], cwd=site.cache(7), env=env, user=UID, group=60, extra_groups=[]) as other:
        sweep(site)
        (kept,) = site.events("cache.kept")
        assert kept["pids"] == [other.pid] and "terminated" not in kept
        other.kill()
        assert other.wait() == -9


def test_one_users_orphans_have_their_time_and_no_more(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sweep reaps one of them at least; what it leaves, it says."""
    monkeypatch.setattr(reaping, "_LONGEST", 0.0)
    for job in (71, 72, 73):
        site.task_prolog(job)
    result = sweep(site)
    assert result.exit_code == 1 and f"2 of uid {UID}'s are left for the next sweep" in result.output
    assert len(site.events("cache.orphan_reaped")) == 1


def test_a_cache_made_after_slurm_was_asked_is_young(site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job id that comes again: the new job's cache stands where the dead one's was found. Without any grace, even."""
    site.task_prolog(71)
    real = scanning.look_again

    def later(*args: Any, **more: Any) -> Any:
        site.task_prolog(71)
        return real(*args, **more)

    monkeypatch.setattr(scanning, "look_again", later)
    sweep(site)
    assert site.cache(71).exists()
    assert site.events("sweep.finished")[0]["reasons"] == {"young": 1}


def test_what_else_a_user_has_beside_their_nodes_directories(site: Site, slurm: FakeSlurm) -> None:
    """A file and a directory that they closed: the caches are found all the same, and the closed one is said."""
    site.configure(path=f"{site.scratch}/{{user}}/{{node}}/of/{{node}}/hf-{{job_id}}")
    made = [Path(site.task_prolog(71, node=f"n{at}").cache or "") for at in range(4)]
    for at in range(4):
        (site.scratch / ALICE / f"file-{at}").touch()
        owned_by(ALICE, site.scratch / ALICE / f"closed-{at}").chmod(0)
    result = sweep(site)
    assert result.exit_code == 1 and "Permission denied" in result.output
    assert not any(cache.exists() for cache in made)


def test_a_project_that_only_another_group_of_the_user_enters(
    site: Site, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TaskProlog has all groups of its user, and so has who looks for what it has made."""
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


def test_what_others_say_stays_one_plain_line(site: Site, slurm: FakeSlurm) -> None:
    """A directory that is named like a smiley, and an error of Slurm's with what moves a terminal's cursor."""
    home = owned_by(ALICE, site.scratch / ":skull:")
    owned_by(ALICE, home / ".cache")
    owned_by(ALICE, home / ".cache/hf-datasets-71")
    assert ":skull:" in jobcache(site, "list").output
    slurm.says(status="1", stderr="squeue: error: \x1b[2J\x1b[31mall is well\n")
    assert "\\x1b[2J" in sweep(site).output
