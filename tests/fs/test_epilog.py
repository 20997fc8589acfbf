"""The Epilog as slurmd runs it: it reaps, keeps and reports caches, and always exits 0 in time."""

from __future__ import annotations

import calendar
import json
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobcache import epilog
from jobcache.cache import cache_names, path_template
from jobcache.config import settings
from jobcache.system import children, epilog_work, events, mounts
from jobcache.system.epilog_job import from_epilog
from support.home import acting_as, fingerprint, plant, uid_of
from support.hungfs import hung
from support.mounts import mount
from support.site_dir import ALICE, BOB, SHELLS, Site, entries, validated


def make_cache(site: Site, job: int = 4242, **more: Any) -> Path:
    """Run the TaskProlog of a job; return the job's cache, with two files in it."""
    prologue = site.task_prolog(job, **more)
    assert prologue.cache is not None
    cache = Path(prologue.cache)
    site.fill(cache, "json/a.arrow", "json/b.arrow")
    return cache


def outcomes(site: Site) -> list[tuple[object, ...]]:
    """Return (event, outcome, reason) of each event."""
    return [(event["event"], event["outcome"], event.get("reason")) for event in site.events()]


def hook(site: Site, shell: str = "/bin/sh", **env: str) -> float:
    """Run the Epilog with exactly this environment; return the duration in seconds. Assert that it exits 0 and prints nothing."""
    time.sleep(0.02)  # as in Site.epilog
    began = time.monotonic()
    done = subprocess.run(
        [*shell.split(), str(site.hooks / "epilog")], env=env, cwd="/", capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return time.monotonic() - began


def job_env(job: int = 4242) -> dict[str, str]:
    """Return the variables of Slurm that are required, and the user's name."""
    who = pwd.getpwnam(ALICE)
    return {"SLURM_JOB_ID": str(job), "SLURM_JOB_UID": str(who.pw_uid), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}


def debug(site: Site) -> None:
    site.configure(log={"file": str(site.log), "syslog": str(site.syslog.path), "level": "debug"})


# ------------------------------------------------------------------------------------------------------------ the owner


def test_job_unknown_to_slurm_is_skipped(site: Site) -> None:
    """Slurm sets uid 0 for it. Nothing is done, because the owner is unknown."""
    debug(site)
    cache = make_cache(site)
    site.epilog(SLURM_JOB_UID="0", SLURM_JOB_USER="root")
    assert cache.exists() and outcomes(site) == [("cache.skipped", "skipped", "unknown_job")]


def test_user_below_min_uid_is_skipped(site: Site) -> None:
    """Users below min_uid have no caches, and nothing is searched."""
    debug(site)
    cache = make_cache(site)
    site.configure(min_uid=1000)
    site.epilog()
    assert cache.exists() and outcomes(site) == [("cache.skipped", "skipped", "min_uid")]


def test_cache_of_another_cluster_is_kept(site: Site) -> None:
    """Two clusters on one scratch share job ids, but not caches."""
    cache = make_cache(site)
    (cache / ".jobcache/id").write_text("other 4242 0 5\n")
    before = fingerprint(cache)
    site.epilog()
    assert fingerprint(cache) == before and outcomes(site) == [("cache.kept", "kept", "foreign")]


@pytest.mark.parametrize("line", ["", "test 4242 0 5", "test 4242 1 5\n", "test 4242 0 33\n", "test 4243 0 5\n", "x" * 100_000])
def test_cache_with_another_id_is_kept(site: Site, line: str) -> None:
    """An id that is torn, forged or of another run does not identify this job."""
    cache = make_cache(site)
    (cache / ".jobcache/id").write_text(line)
    before = fingerprint(cache)
    site.epilog()
    assert fingerprint(cache) == before and outcomes(site) == [("cache.kept", "kept", "foreign")]


def test_directory_of_another_user_is_kept(site: Site) -> None:
    """A directory at the path of the cache that belongs to another user is not touched."""
    cache = make_cache(site)
    shutil.rmtree(cache)
    plant(cache)
    subprocess.run(["chown", "-R", BOB, str(cache)], check=True)
    before = fingerprint(cache)
    site.epilog()
    assert fingerprint(cache) == before and outcomes(site) == [("cache.kept", "kept", "foreign")]


@pytest.mark.parametrize("kind", ["symlink", "file", "fifo"])
def test_anything_but_a_directory_is_kept(site: Site, kind: str) -> None:
    """A symlink, file or fifo at the path stays. The target of the symlink stays too."""
    cache = make_cache(site)
    with acting_as(ALICE):
        target = cache.with_name("mine")
        cache.rename(target)
        {"symlink": lambda: cache.symlink_to(target), "file": cache.touch, "fifo": lambda: os.mkfifo(cache)}[kind]()
    before = fingerprint(target)
    site.epilog()
    assert fingerprint(target) == before and os.path.lexists(cache)
    assert outcomes(site) == [("cache.kept", "kept", "not_directory")]


@pytest.mark.parametrize(("owner", "reaped"), [("root", True), (ALICE, False)])
def test_only_roots_symlinks_are_followed(site: Site, owner: str, reaped: bool) -> None:
    """A site's own symlinks are followed, a user's are not: they could lead to any directory of the user."""
    cache = make_cache(site)
    cache.parent.rename(site.dir / "elsewhere")
    cache.parent.symlink_to(site.dir / "elsewhere")
    os.lchown(cache.parent, uid_of(owner), -1)
    site.epilog()
    assert cache.exists() is not reaped
    assert outcomes(site) == [("cache.reaped", "reaped", None) if reaped else ("cache.kept", "kept", "not_directory")]


@pytest.mark.parametrize("closed", ["", ".jobcache", ".jobcache/nodes"])
def test_cache_without_permissions_is_kept(site: Site, closed: str) -> None:
    """A cache that its owner has no access to is kept unchanged, and reported."""
    cache = make_cache(site)
    (cache / closed).chmod(0)
    before = fingerprint(cache)
    site.epilog()
    assert fingerprint(cache) == before and outcomes(site) == [("cache.kept", "kept", "no_access")]


def test_read_only_cache_is_joined_and_reaped(site: Site) -> None:
    """After `chmod -R a-w` another node can still join, and the last one reaps."""
    cache = make_cache(site)
    subprocess.run(["chmod", "-R", "a-w", str(cache)], check=True)
    assert site.task_prolog(node="n2", step="0").cache == str(cache)
    site.epilog(nodes=2)
    assert os.listdir(cache / ".jobcache/nodes") == ["n2"]
    subprocess.run(["chmod", "-R", "a-w", str(cache)], check=True)
    site.epilog(node="n2", nodes=2)
    assert not cache.exists() and site.debris() == [] and outcomes(site) == [("cache.reaped", "reaped", None)]


# -------------------------------------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize("exit_code", ["0", "256"])
def test_jobcache_keep_keeps_the_cache(site: Site, exit_code: str) -> None:
    """JOBCACHE=keep keeps the cache for keep_max. Record and event have the end of that time."""
    site.configure(keep_max="2h")
    cache = make_cache(site, JOBCACHE="keep")
    site.epilog(SLURM_JOB_EXIT_CODE=exit_code)
    (kept,) = site.events()
    assert (kept["event"], kept["reason"]) == ("cache.kept", "user_keep")
    assert json.loads((cache / ".jobcache/job.json").read_text())["keep_until"] == kept["keep_until"]
    assert 7190 < seconds_to(kept["keep_until"]) < 7210
    assert (cache / "json/a.arrow").exists()


@pytest.mark.parametrize(("exit_code", "kept"), [("256", True), ("9", True), ("", True), ("nonsense", True), ("0", False)])
def test_keep_failed_keeps_the_cache_of_a_failed_job(site: Site, exit_code: str, kept: bool) -> None:
    """With keep_failed, the cache of a failed job is kept. An unknown exit status counts as a failure."""
    site.configure(keep_failed="10m")
    cache = make_cache(site)
    site.epilog(SLURM_JOB_EXIT_CODE=exit_code)
    assert cache.exists() is kept
    (event,) = site.events()
    assert event.get("reason") == ("job_failed" if kept else None)
    if kept:
        assert json.loads((cache / ".jobcache/job.json").read_text())["keep_until"] == event["keep_until"]
        assert 590 < seconds_to(event["keep_until"]) < 610


def test_keep_failed_keeps_nothing_where_slurm_reports_no_exit_status(site: Site) -> None:
    """The Epilog of Slurm 20.11 and 21.08 has neither an exit status nor the number of nodes."""
    site.configure(keep_failed="10m")
    cache = make_cache(site)
    site.epilog(SLURM_JOB_EXIT_CODE="", SLURM_JOB_NUM_NODES="")
    assert not cache.exists()
    (event,) = site.events()
    assert event["event"] == "cache.reaped"


def seconds_to(stamp: str) -> float:
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")) - time.time()


def test_repeated_epilog_does_nothing(site: Site) -> None:
    """Slurm repeats an Epilog whose completion was lost. The second one finds nothing and logs nothing."""
    debug(site)
    make_cache(site)
    site.epilog()
    assert len(site.events("cache.reaped")) == 1
    site.epilog()
    assert len(site.events()) == 1


def test_repeated_epilog_does_not_reap_a_kept_cache(site: Site) -> None:
    """A cache that the first Epilog has kept stays."""
    cache = make_cache(site, JOBCACHE="keep")
    site.epilog()
    site.epilog()
    assert cache.exists() and len(site.events()) == 1


def test_last_node_reaps(site: Site) -> None:
    """The node that ends first releases its lease, and the last one reaps."""
    debug(site)
    cache = make_cache(site)
    assert site.task_prolog(node="n2", step="0").cache == str(cache)
    site.epilog(nodes=2)
    assert cache.exists() and outcomes(site) == [("cache.released", "released", None)]
    site.epilog(nodes=2, node="n2")
    assert not cache.exists() and outcomes(site)[1:] == [("cache.reaped", "reaped", None)]


def test_node_without_a_lease_does_nothing(site: Site) -> None:
    """A node of the job without a task on it has no lease to release."""
    debug(site)
    cache = make_cache(site)
    site.epilog(nodes=2, node="n2")
    assert cache.exists() and outcomes(site) == []


@pytest.mark.parametrize("direct", [False, True], ids=["younger-lease", "older-epilog"])
def test_late_epilog_leaves_the_next_run_alone(site: Site, direct: bool) -> None:
    """The late Epilog of a lost run does not touch the cache that the next run uses on the same node."""
    cache = make_cache(site, SLURM_RESTART_COUNT="1")
    assert cache == site.cache(run=1)
    lease = cache / ".jobcache/nodes/n1"
    boot, uptime = lease.read_text().split()
    if direct:
        compiled = settings.load(str(site.hooks / settings.FILE))
        at = str(float(uptime) - 1)
        subprocess.run([compiled.python, "-I", f"{compiled.package}/epilog.py", str(site.hooks), at], env=job_env(), check=True)
    else:
        lease.write_text(f"{boot} {float(uptime) + 1000:.2f}\n")
        site.epilog()
    assert lease.exists() and outcomes(site) == [("cache.kept", "kept", "lease_live")]


def test_lease_of_an_earlier_boot_is_released(site: Site) -> None:
    """A lease from before the last boot is not in use, with any uptime."""
    cache = make_cache(site)
    (cache / ".jobcache/nodes/n1").write_text("00000000-0000-0000-0000-000000000000 9999999.00\n")
    site.epilog()
    assert not cache.exists() and outcomes(site) == [("cache.reaped", "reaped", None)]


@pytest.mark.parametrize("lease", ["", "boot\n", "a b", "a b\n", "1 2 3\n", "x" * 100_000 + "\n"])
def test_unreadable_lease_keeps_the_cache(site: Site, lease: str) -> None:
    """In doubt, the node still uses the cache."""
    cache = make_cache(site)
    (cache / ".jobcache/nodes/n1").write_text(lease)
    site.epilog()
    assert (cache / ".jobcache/nodes/n1").exists() and outcomes(site) == [("cache.kept", "kept", "lease_unreadable")]


def test_all_runs_of_the_job_are_reaped(site: Site) -> None:
    """Every run of the job with a lease of this node is reaped, for any SLURM_JOB_RESTART_COUNT."""
    caches = [make_cache(site), make_cache(site, SLURM_RESTART_COUNT="1"), make_cache(site, SLURM_RESTART_COUNT="7")]
    others = [make_cache(site, job=424), make_cache(site, job=42420)]
    site.epilog(SLURM_JOB_RESTART_COUNT="3")
    assert [event["run"] for event in site.events("cache.reaped")] == [0, 1, 7]
    assert not any(cache.exists() for cache in caches) and all(cache.exists() for cache in others)


def test_het_job_has_the_cache_of_its_leader(site: Site) -> None:
    """The Epilogs of all components of a het job reap the leader's cache."""
    cache = make_cache(site, job=100)
    site.epilog(101, SLURM_HET_JOB_ID="100")
    assert not cache.exists() and site.events("cache.reaped")[0]["job_id"] == 100


@pytest.mark.parametrize(
    ("nodes", "env", "reason"),
    [
        (1, {}, None),
        (2, {}, "unrecorded"),
        (1, {"SLURM_HET_JOB_ID": "4242"}, "unrecorded"),
        (1, {"SLURM_JOB_NUM_NODES": ""}, "unrecorded"),
        (1, {"SLURM_JOB_START_TIME": "4000000000"}, "older_than_job"),
        (1, {"SLURM_JOB_START_TIME": "1000000000"}, None),
    ],
)
def test_unrecorded_directory_is_reaped_after_a_job_of_one_node(
    site: Site, nodes: int, env: dict[str, str], reason: str | None
) -> None:
    """If the job's script created the directory again, only a job of one node knows that it is the last user."""
    with acting_as(ALICE):
        plant(site.cache())
    before = fingerprint(site.cache())
    site.epilog(nodes=nodes, **env)
    if reason:
        assert fingerprint(site.cache()) == before and outcomes(site) == [("cache.kept", "kept", reason)]
    else:
        assert not site.cache().exists() and outcomes(site) == [("cache.reaped", "reaped", None)]


@pytest.mark.parametrize(("days", "reason"), [(0, None), (2, "older_than_job")])
def test_old_unrecorded_directory_is_kept_if_the_start_is_unknown(
    site: Site, monkeypatch: pytest.MonkeyPatch, days: int, reason: str | None
) -> None:
    """Slurm before 23.02 does not report the start. A directory that has not changed for long was kept by hand."""
    facts: list[dict[str, Any]] = []
    compiled = settings.load(str(site.hooks / settings.FILE))
    ended = from_epilog({**job_env(), "SLURM_JOB_NUM_NODES": "1"})
    now = time.time
    with acting_as(ALICE):
        plant(site.cache())
        monkeypatch.setattr(epilog_work.time, "time", lambda: now() + days * 86400)
        epilog_work.Work(ended, compiled, compiled.templates, time.monotonic())(facts.append)
    assert site.cache().exists() == bool(reason)
    assert facts[0]["reason"] == reason and facts[1:] == [children.END]


# -------------------------------------------------------------------------------------------- templates and filesystems


def other_template(site: Site) -> str:
    return f"{site.dir}/local/{{user}}/hf-{{job_id}}"


def test_caches_under_all_templates_are_reaped(site: Site) -> None:
    """A cache is found by the job's id under every template of the site."""
    (site.dir / "local").mkdir()
    with mount("none", site.dir / "local", options="mode=1777,size=64m"):
        site.configure(rules=[{"match": {"account": ["astro"]}, "path": other_template(site)}])
        caches = [make_cache(site), make_cache(site, SLURM_JOB_ACCOUNT="astro")]
        assert str(caches[1]).startswith(f"{site.dir}/local/")
        site.epilog()
        assert not any(cache.exists() for cache in caches)
    assert {event["path"] for event in site.events("cache.reaped")} == set(map(str, caches))
    assert len({event["fs_total_bytes"] for event in site.events("cache.reaped")}) == 2


def test_cache_of_a_former_template_is_reaped(site: Site) -> None:
    """A cache at a path that the site no longer uses is still reaped."""
    cache = make_cache(site)
    site.configure(path=other_template(site))
    site.epilog()
    assert not cache.exists() and outcomes(site) == [("cache.reaped", "reaped", None)]


def test_templates_are_grouped_by_mount_of_the_users_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path belongs to the longest mount point, and there to the last mount."""
    table = tmp_path / "mountinfo"
    points = (
        "8:1 / /",
        "0:40 / /scratch",
        "0:41 / /scratch",
        "0:42 /x /scratch/a\\040b",
        "0:43 / /scr",
        "0:44 / /scratch/a",
        "0:45 / /scratch2/bin",
        "0:46 / /scratch2/games",
    )
    table.write_text("".join(f"1 1 {point} rw - tmpfs none rw\n" for point in points))
    monkeypatch.setattr(mounts, "_TABLE", str(table))
    texts = [
        "/scratch/{user}/{job_id}",
        "/scratch/a b/{user}/{job_id}",
        "/scratch2/{user}/{job_id}",
        "/scratch/ab/{user}/{job_id}",
    ]
    site: Any = SimpleNamespace(run_dir=str(tmp_path), cluster="test", templates=[path_template.Template(text) for text in texts])
    groups = epilog.by_filesystem(site, from_epilog(job_env()))
    assert {place.device: [template.text for template in group] for place, group in groups} == {
        "0:41": [texts[0], texts[3]],
        "0:42": [texts[1]],
        "0:46": [texts[2]],
    }
    site.templates = [path_template.Template("/scratch2/{user}/{job_id}")]
    ((place, _),) = epilog.by_filesystem(site, from_epilog({**job_env(), "SLURM_JOB_USER": ""}))
    assert place.device == "8:1"


def test_hung_scratch_ends_at_the_deadline(site: Site) -> None:
    """The hook ends in time and logs it, at most four processes hang, and caches on other filesystems are reaped."""
    (site.dir / "local").mkdir()
    (site.dir / "local").chmod(0o1777)
    site.configure(epilog={"deadline": "4s"}, rules=[{"match": {"account": ["astro"]}, "path": other_template(site)}])
    good = [make_cache(site, job=job, SLURM_JOB_ACCOUNT="astro") for job in range(1, 6)]
    bad = [make_cache(site, job=job) for job in range(1, 6)]
    with hung(site.scratch):
        began = time.monotonic()
        environments = [job_env(job) for job in range(1, 5)]
        running = [subprocess.Popen([str(site.hooks / "epilog")], env=env, stdout=subprocess.PIPE) for env in environments]
        outputs = [one.communicate()[0] for one in running]  # until the end of file: no hung process holds the pipe
        assert [one.returncode for one in running] == [0] * 4 and outputs == [b""] * 4
        assert time.monotonic() - began < 4
        assert sorted(outcomes(site)) == [("cache.reaped", "reaped", None)] * 4 + [("hook.failed", "failed", "deadline")] * 4
        assert hook(site, **job_env(5)) < 2  # at once: it starts no process that would hang
        assert ("hook.failed", "failed", "stuck") in outcomes(site)
    assert not any(cache.exists() for cache in good) and all(cache.exists() for cache in bad)
    wait_for(lambda: hook(site, **job_env(5)) and not bad[4].exists())


def wait_for(true: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_read_only_scratch_keeps_the_cache(site: Site) -> None:
    """The cache is kept and reported with the reason."""
    with mount("none", site.scratch, options="mode=1777"):
        cache = make_cache(site)
        subprocess.run(["mount", "-o", "remount,ro", str(site.scratch)], check=True)
        site.epilog()
        assert cache.exists()
    assert outcomes(site) == [("cache.kept", "kept", "read_only")]


def test_missing_scratch_is_no_error(site: Site) -> None:
    """Without scratch there is no cache, and no event."""
    site.scratch.rename(site.dir / "gone")
    site.epilog()
    assert outcomes(site) == []


def test_full_scratch_is_reaped(site: Site) -> None:
    """A full scratch can still be reaped."""
    with mount("none", site.scratch, options="mode=1777,size=256k"):
        cache = make_cache(site)
        fill_up(site.scratch / "filler")
        site.epilog()
        assert not cache.exists()
    assert outcomes(site) == [("cache.reaped", "reaped", None)]


def fill_up(filler: Path) -> None:
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


# --------------------------------------------------------------------------------------------------------------- events


def test_event_has_job_path_sizes_and_filesystem(site: Site) -> None:
    """One event has the job, the path, the freed space and the usage of the filesystem."""
    cache = make_cache(site)
    record = json.loads((cache / ".jobcache/job.json").read_text())
    site.epilog()
    (event,) = site.events()
    whose = {"cluster": "test", "node": "n1", "job_id": 4242, "run": 0, "user": ALICE, "uid": 5}
    what = {"path": str(cache), "files": 2, "bytes": 8192}
    assert {name: event[name] for name in (*whose, *what)} == {**whose, **what}
    assert event["fs_total_bytes"] >= event["fs_free_bytes"] > 0 and event["created_at"] == record["created_at"]
    assert [sent["event"] for sent in site.syslog.events()] == ["cache.created", "cache.reaped"]


def test_forged_record_does_not_reach_the_event(site: Site) -> None:
    """Users can write any record. Only values that jobcache writes are repeated in an event."""
    cache = make_cache(site)
    forged = {"created_at": '2026\n{"event": "x"}', "policy": "a b", "user": "root", "keep_until": 7, "schema": 99}
    (cache / ".jobcache/job.json").write_text(json.dumps(forged))
    site.epilog()
    (event,) = site.events()
    assert "created_at" not in event and "policy" not in event and event["user"] == ALICE


def test_exceeded_budget_leaves_trash(site: Site) -> None:
    """The sweep recognizes the name of the trash that is left at the deadline, and the event has its path."""
    site.configure(epilog={"budget": "0s"})
    cache = make_cache(site)
    site.epilog()
    (event,) = site.events()
    assert (event["event"], event["outcome"], event["reason"]) == ("cache.reaped", "trashed", "budget")
    assert [event["trash"]] == [f"{cache.parent}/{name}" for name in site.debris()] and not cache.exists()
    assert cache_names.parse_debris(site.debris()[0]) == (cache_names.TRASH, 4242)


def test_undeletable_entries_are_reported(site: Site) -> None:
    """Entries that could not be deleted are counted, and their names neither break nor forge a line."""
    cache = make_cache(site)
    (cache / "bobs").mkdir()
    os.mkdir(os.fsencode(cache) + b'/bobs/x\n{"event": "cache.reaped"}\xff"')
    site.epilog()
    (event,) = site.events()
    assert (event["outcome"], event["reason"], event["files"]) == ("trashed", "left", 2)
    assert event["left"] >= 1 and "cache.reaped" in event["error"]


def test_mount_in_a_cache_is_reported(site: Site) -> None:
    """The event has the reason `mount` for the entries that are left."""
    cache = make_cache(site)
    with mount("none", cache / "json"):
        site.epilog()
    (event,) = site.events()
    assert (event["outcome"], event["reason"]) == ("trashed", "mount")


@pytest.mark.parametrize("name", [b'we"ird', b"a b'c\\", b"\xc3\xbc", b"\xff\xfe", b"$(reboot)"])
def test_any_user_name_is_one_line(site: Site, name: bytes) -> None:
    """A name can contain anything: the event is one line of JSON, and the cache is found."""
    parent = os.fsencode(site.scratch) + b"/" + name + b"/.cache"
    os.makedirs(parent)
    make_cache(site).rename(os.fsdecode(parent + b"/hf-datasets-4242"))
    shutil.chown(parent, ALICE)
    site.epilog(SLURM_JOB_USER=os.fsdecode(name))
    (event,) = site.events()
    assert entries(os.fsdecode(parent)) == [] and event["outcome"] == "reaped"
    assert event["user"] == name.decode("utf-8", "backslashreplace") and event["user"] in event["path"]


@pytest.mark.parametrize("name", ["../bob", "a/b", "..", "a\nb", "\x7f", "x" * 300])
def test_invalid_user_name_is_looked_up_by_uid(site: Site, name: str) -> None:
    """A name that cannot be part of a path is replaced by the name of the uid's account."""
    make_cache(site)
    site.epilog(SLURM_JOB_USER=name)
    assert not site.cache().exists() and len(site.events("cache.reaped")) == 1


# -------------------------------------------------------------------------------------------------------------- the log


def log_at(site: Site, path: Path) -> Path:
    site.configure(log={"file": str(path), "syslog": str(site.syslog.path)})
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [validated(line) for line in path.read_text().splitlines()]


def test_log_is_readable_by_root_and_its_group_alone(site: Site) -> None:
    """Other users cannot read which user ran which job."""
    make_cache(site)
    site.epilog()
    assert site.log.stat().st_mode & 0o777 == 0o640 & ~0o022


def test_missing_log_directory_leaves_the_event_to_the_system_log(site: Site) -> None:
    """The system log has the event."""
    log = log_at(site, site.dir / "nowhere/events.jsonl")
    make_cache(site)
    site.epilog()
    assert not log.exists() and len(site.syslog.events("cache.reaped")) == 1


def test_missing_system_log_leaves_the_event_to_the_file(site: Site) -> None:
    """The log file has the event, and nothing waits."""
    site.configure(log={"file": str(site.log), "syslog": str(site.dir / "nobody")})
    make_cache(site)
    assert hook(site, **job_env(), SLURM_JOB_NUM_NODES="1") < 5
    assert outcomes(site) == [("cache.reaped", "reaped", None)]


@pytest.mark.parametrize("failing", [False, True], ids=["python", "shim"])
def test_full_disk_damages_no_later_line(site: Site, failing: bool) -> None:
    """A line that a full disk cut short does not damage the lines that follow when there is room again."""
    (site.dir / "log").mkdir()
    with mount("none", site.dir / "log", options="size=64k"):
        log = log_at(site, site.dir / "log/events.jsonl")
        log.write_text("x" * 4000 + "\n")
        fill_up(site.dir / "log/filler")
        make_cache(site)
        site.epilog()
        assert not site.cache().exists() and len(site.syslog.events("cache.reaped")) == 1
        assert 4001 < log.stat().st_size <= 4096 and not log.read_text().endswith("\n")
        (site.dir / "log/filler").unlink()
        make_cache(site)
        if failing:
            site.policy(python="/nonexistent")
        site.epilog()
        last = log.read_text().splitlines()[-1]
        assert validated(last)["event"] == ("hook.failed" if failing else "cache.reaped")


def test_rotated_log_is_created_again(site: Site) -> None:
    """After the log was renamed, the next event creates it."""
    for job in (1, 2):
        make_cache(site, job=job)
        site.epilog(job)
        site.log.rename(site.dir / f"events.{job}")
    assert [lines_of(site.dir / f"events.{job}")[0]["job_id"] for job in (1, 2)] == [1, 2]


def test_lines_of_concurrent_writers_are_whole(site: Site) -> None:
    """Lines of concurrent writers, also long ones, are complete, and none is lost."""
    log = site.dir / "log"
    lines = [[f"{writer}-{at}-" + "x" * (20_000 if at % 20 == 0 else at) for at in range(200)] for writer in range(10)]
    children = []
    for mine in lines:
        pid = os.fork()
        if pid == 0:
            os._exit(sum(not events.append(str(log), line) for line in mine))
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 10
    assert sorted(log.read_text().splitlines()) == sorted(line for mine in lines for line in mine)


@pytest.mark.parametrize("python", ["", "/nonexistent"], ids=["python", "shim"])
@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_log_that_is_no_file_gets_no_event(site: Site, kind: str, python: str) -> None:
    """The hook writes no event to it and does not wait."""
    target = site.dir / "target"
    target.touch()
    log = log_at(site, site.dir / "odd")
    {"symlink": lambda: log.symlink_to(target), "directory": log.mkdir, "fifo": lambda: os.mkfifo(log)}[kind]()
    make_cache(site)
    if python:
        site.policy(python=python)
    site.epilog()
    assert site.cache().exists() is bool(python)
    assert len(site.syslog.events("hook.failed" if python else "cache.reaped")) == 1
    assert target.read_text() == ""


# ------------------------------------------------------------------------ a broken Python, configuration or environment


def broken_python(site: Site, script: str) -> None:
    path = site.dir / "broken"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    site.policy(python=str(path))


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("script", "reason", "status"),
    [
        ("trap '' TERM INT HUP; while :; do /bin/sleep 60; done", "deadline", None),
        ("exit 1", "python", 1),
        ("kill -SEGV $$", "python", 139),
        ("", "no_python", 127),
    ],
)
def test_broken_python_is_reported(site: Site, shell: str, script: str, reason: str, status: int | None) -> None:
    """If Python hangs, fails, crashes or is missing, the hook exits 0 in time, logs the reason and deletes nothing."""
    make_cache(site)
    site.configure(epilog={"deadline": "1s", "budget": "0s"})
    if script:
        broken_python(site, script)
    else:
        site.policy(python="/nonexistent")
    assert hook(site, shell=shell, **job_env()) < 3
    (event,) = site.events()
    assert (event["event"], event["hook"], event["reason"], event.get("status")) == ("hook.failed", "epilog", reason, status)
    assert (event["cluster"], event["job_id"], event["node"]) == ("test", 4242, "n1")
    assert (site.cache() / "json/a.arrow").exists()
    if reason != "deadline":
        assert [sent["event"] for sent in site.syslog.events()] == ["cache.created", "hook.failed"]


def test_event_of_the_shim_cannot_be_forged(site: Site) -> None:
    """The shim writes only valid numbers and names into an event."""
    site.policy(python="/nonexistent")
    hook(site, SLURM_JOB_ID='1", "event": "x', SLURMD_NODENAME='n"\n{')
    hook(site, SLURM_JOB_ID="007", SLURMD_NODENAME="n1.example-x_1")
    assert [(event.get("job_id"), event.get("node")) for event in site.events()] == [(None, None), (None, "n1.example-x_1")]


@pytest.mark.parametrize("python", ["", "/nonexistent"], ids=["python", "shim"])
def test_stuck_system_log_delays_the_hook_for_a_second(site: Site, python: str) -> None:
    """Python does not wait for a stuck system log, and the shim waits for a second."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        stuck.bind(str(site.dir / "stuck"))
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendto(b"x", str(site.dir / "stuck"))
        make_cache(site)
        site.configure(epilog={"deadline": "2s", "budget": "1s"}, log={"file": str(site.log), "syslog": str(site.dir / "stuck")})
        if python:
            site.policy(python=python)
        assert hook(site, **job_env()) < 4
    assert outcomes(site) == [("hook.failed", "failed", "no_python") if python else ("cache.reaped", "reaped", None)]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", ["", "exit 1"], ids=["python", "shim"])
def test_log_on_a_hung_filesystem_delays_the_hook_until_its_deadline(site: Site, shell: str, script: str) -> None:
    """Neither Python nor the shim holds the node beyond the deadline. The cache is reaped."""
    make_cache(site)
    (site.dir / "log").mkdir()
    site.configure(epilog={"deadline": "2s"}, log={"file": f"{site.dir}/log/events.jsonl", "syslog": str(site.syslog.path)})
    if script:
        broken_python(site, script)
    with hung(site.dir / "log"):
        command = [*shell.split(), str(site.hooks / "epilog")]
        running = subprocess.Popen(command, env=job_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            running.wait(10)
        finally:
            held = running.poll() is None
    assert not held and running.communicate()[0] == b"" and running.returncode == 0
    assert site.cache().exists() == bool(script)


SETTINGS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "garbage": lambda path: path.write_bytes(os.urandom(4096)),
    "torn": lambda path: path.write_text(path.read_text()[:-100]),
    "a-list": lambda path: path.write_text("[]"),
    "newer": lambda path: path.write_text(path.read_text().replace('"schema": 1', '"schema": 2')),
    "group-writable": lambda path: path.chmod(0o664),
    "world-writable": lambda path: path.chmod(0o646),
    "other-owner": lambda path: shutil.chown(path, ALICE),
    "symlink": lambda path: (path.rename(path.with_name("real")), path.symlink_to("real")),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("how", SETTINGS)
def test_untrusted_settings_are_refused(site: Site, how: str) -> None:
    """Settings that are torn, missing or writable by others are reported, and nothing is deleted."""
    make_cache(site)
    SETTINGS[how](site.hooks / settings.FILE)
    site.epilog()
    assert outcomes(site) == [("hook.failed", "failed", "settings")]
    assert (site.cache() / ".jobcache/nodes/n1").exists()


POLICIES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "syntax-error": lambda path: path.write_text(path.read_text().replace("jc_apply_rules()", "if (( ; then\njc_apply_rules()")),
    "torn": lambda path: path.write_text(path.read_text()[:-20]),
    "binary": lambda path: path.write_bytes(b"\0\x7fELF\xff\xfe\n" * 100),
    "exits": lambda path: path.write_text("exit 3\n"),
    "another-hash": lambda path: path.write_text(path.read_text() + "jc_policy_hash=x\n"),
    "group-writable": lambda path: path.chmod(0o664),
    "world-writable": lambda path: path.chmod(0o646),
    "other-owner": lambda path: shutil.chown(path, ALICE),
    "directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("how", POLICIES)
def test_untrusted_policy_is_refused(site: Site, how: str, shell: str) -> None:
    """With a policy that is torn, missing or writable by others, the shim exits 0 and does nothing."""
    make_cache(site)
    POLICIES[how](site.hooks / settings.POLICY)
    hook(site, shell=shell, **job_env())
    assert outcomes(site) == [] and (site.cache() / ".jobcache/nodes/n1").exists()


def test_file_off_disables_the_hook(site: Site) -> None:
    """A file `off` beside the compiled policy ends the hook at once."""
    make_cache(site)
    (site.hooks / settings.OFF).touch()
    site.policy(python="/nonexistent")
    site.epilog()
    assert outcomes(site) == [] and (site.cache() / ".jobcache/nodes/n1").exists()


def test_empty_environment_is_reported(site: Site) -> None:
    """Without any variable there is no job: the hook logs it and exits 0."""
    hook(site)
    assert outcomes(site) == [("hook.failed", "failed", "no_job")]


INVALID = {
    "SLURM_JOB_ID": ("0", "-1", "4242x", "04242", "4294967296", "1e3", " 4242", "../4242", "４２４２", "9" * 5000),
    "SLURM_JOB_UID": ("-1", "+5", "05", "4294967295", "games", "5.0"),
    "SLURMD_NODENAME": ("..", ".", "a/b", "a\nb", "../../id", ".hidden", "x" * 300),
    "SLURM_HET_JOB_ID": ("x",),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INVALID.items() for value in values])
def test_invalid_variables_are_refused(site: Site, name: str, value: str) -> None:
    """Without a valid job, user and node, nothing is searched."""
    make_cache(site)
    hook(site, **{**job_env(), name: value})
    assert outcomes(site) == [("hook.failed", "failed", "no_job")]
    assert (site.cache() / ".jobcache/nodes/n1").exists()


def test_three_variables_suffice(site: Site) -> None:
    """Slurm may omit all but the job's id, the user's uid and the node's name."""
    cache = make_cache(site)
    hook(site, SLURM_JOB_ID="4242", SLURM_JOB_UID=str(uid_of(ALICE)), SLURMD_NODENAME="n1")
    assert not cache.exists() and outcomes(site) == [("cache.reaped", "reaped", None)]


def test_hostile_environment_has_no_effect(site: Site) -> None:
    """No variable changes which programs root's shell and Python run."""
    cache = make_cache(site)
    evil = site.dir / "evil"
    evil.mkdir()
    programs = ["date", "json.py", "ls", "os.py", "sitecustomize.py", "sleep"]
    for name in programs:
        (evil / name).write_text(f"#!/bin/sh\n/bin/touch {evil}/done\n")
        (evil / name).chmod(0o755)
    of_python = {name: str(evil) for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "HOME", "PATH")}
    of_shells = {"ENV": f"{evil}/ls", "BASH_ENV": f"{evil}/ls", "IFS": "/0123456789"}
    of_ours = {"jc_lib": str(evil), "jc_log_file": f"{evil}/log", "jc_python": f"{evil}/ls", "jc_package": str(evil)}
    hostile = {**of_python, **of_shells, **of_ours}
    hook(site, **job_env(), **hostile)
    assert not cache.exists()
    site.policy(python="/nonexistent")
    hook(site, **job_env(), **hostile)
    assert len(site.events("hook.failed")) == 1
    assert sorted(os.listdir(evil)) == programs
