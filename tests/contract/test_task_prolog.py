"""Run the TaskProlog as Slurm does: a subprocess, as the user, in each shell that /bin/sh can be."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import cache_names
from support import task_prolog
from support.claims import age
from support.hungfs import hung
from support.mounts import mount
from support.site_dir import ALICE, BOB, SHELLS, Site
from support.task_prolog import Prologue

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
RECORDED = Path(__file__).parent / "environments"
UID = pwd.getpwnam(ALICE).pw_uid
EXPORTED = {"HF_DATASETS_CACHE", "JOBCACHE_DIR"}
each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])


def run(site: Site, env: dict[str, str], *, shell: str = "/bin/sh", title: str = "") -> Prologue:
    """Run the TaskProlog as ALICE in exactly this environment. title: the title of its parent process."""
    return task_prolog.run(site.hooks, ALICE, env, shell=shell, title=title, timeout=20)


def task(site: Site, *, step: str = "", job: int = 4242, shell: str = "/bin/sh", title: str = "", **env: str) -> Prologue:
    """Run the TaskProlog of a task on n1. step: "" for the batch step. env: further variables."""
    return run(site, {**task_prolog.environment(ALICE, job, step=step), **env}, shell=shell, title=title)


def listing(site: Site) -> set[str]:
    """Return all paths in the site's directory, without the content of scratch."""
    return {str(path) for path in site.dir.rglob("*") if site.scratch not in path.parents}


def skipped(site: Site) -> list[tuple[str, str]]:
    """Return (outcome, reason) of each cache.skipped event so far."""
    return [(event["outcome"], event["reason"]) for event in site.syslog.events("cache.skipped")]


def disable_events(site: Site) -> None:
    """Send no events, since each one starts a Python."""
    site.configure(log={"file": str(site.log), "syslog": False})


def give(path: Path, user: str = ALICE) -> Path:
    """Give `path` and all below it to `user`. Return `path`."""
    account = pwd.getpwnam(user)
    for each in (path, *path.rglob("*")):
        os.lchown(each, account.pw_uid, account.pw_gid)
    return path


def processes_with(mark: str) -> list[str]:
    """Return the command lines of processes whose environment holds `mark`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found


def processes_left(mark: str, seconds: float = 1.0) -> list[str]:
    """Return those of processes_with(mark) that still run after at most `seconds`."""
    until = time.monotonic() + seconds
    while processes_with(mark) and time.monotonic() < until:
        time.sleep(0.02)
    return processes_with(mark)


# --------------------------------------------------------------------------------------------- recorded environments

FIRST = {"batch", "array", "het", "requeued", "batch-in-requeued", "batch-in-step"}


def recorded(file: Path) -> tuple[str, dict[str, str]]:
    """Return the title of the parent process, and the environment, that the file holds; the cluster is the site's."""
    head, *lines = file.read_text().splitlines()
    return head[2:], {**dict(line.split("=", 1) for line in lines), "SLURM_CLUSTER_NAME": "test"}


@pytest.mark.parametrize("version", sorted(os.listdir(RECORDED)))
def test_recorded_environments_of_slurm_are_understood(site: Site, version: str) -> None:
    """Find job, run and node, and recognise the batch task: it discards a stale cache instead of joining it."""
    files = [file for file in sorted((RECORDED / version).glob("*.env")) if "epilog" not in file.name]
    assert len(files) >= 12
    for at, file in enumerate(files):
        title, env = recorded(file)
        job, run_count = int(env["SLURM_JOB_ID"]), int(env.get("SLURM_RESTART_COUNT", "0"))
        cache = site.cache(job, run_count)
        shutil.rmtree(cache.parent, ignore_errors=True)
        same_home = {name: env[name] for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME") if name in env}
        site.task_prolog(job, SLURM_RESTART_COUNT=str(run_count), node="n9", **same_home)
        age(cache)
        result = run(site, env, shell=SHELLS[at % 3], title=title)
        assert (result.status, result.cache) == (0, str(cache)), file
        assert (cache / ".jobcache/nodes" / env["SLURMD_NODENAME"]).exists(), file
        assert len(site.debris()) == (file.stem in FIRST), file


@pytest.mark.parametrize("version", ["22.05", "26.05"])
@pytest.mark.parametrize("name", ["batch", "step", "interactive", "salloc-step", "het-step"])
def test_step_id_decides_where_title_is_hidden(site: Site, version: str, name: str) -> None:
    """In a container the title of slurmstepd can be hidden. The step id then names the first task, except in a job that a step
    submitted."""
    _, env = recorded(RECORDED / version / f"{name}.env")
    site.task_prolog(int(env["SLURM_JOB_ID"]), node="n9")
    age(site.cache(int(env["SLURM_JOB_ID"])))
    result = run(site, env)
    assert result.exports.keys() == EXPORTED
    assert len(site.debris()) == (name in FIRST)


# ------------------------------------------------------------------------------------------------------------ variables


@each_shell
def test_inherited_value_is_replaced(site: Site, shell: str) -> None:
    """A value in a cache of this user, of any job, run, template and depth, comes from another job's exports."""
    former = f"{site.scratch}/{{uid}}/old/{{node}}-{{job_id}}"
    site.configure(path=former)
    site.task_prolog(1, node="n7")
    site.configure(
        path=f"{site.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}",
        rules=[{"match": {"user": ["nobody"]}, "path": f"{site.scratch}/{{user}}/{{cluster}}/{{job_id}}.{{node}}.d"}],
    )
    inherited = [
        f"{site.cache(1)}", f"{site.cache(1)}/", f"{site.cache(99)}/node-n1", f"{site.cache(7, 3)}", f"{site.cache(4242)}/x/y z",
        f"{site.cache(4242, 1)}", f"{site.scratch}/{UID}/old/n7-1", f"{site.scratch}/{UID}/old/any-other-17-r2/below",
        f"{site.scratch}/{ALICE}/test/5.far-away.d",
    ]  # fmt: skip
    for value in inherited:
        result = task(site, step="0", shell=shell, HF_DATASETS_CACHE=value, JOBCACHE_DIR=value)
        assert result.exports == {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}, value
        assert result.unsets == []


@each_shell
def test_users_own_value_is_kept(site: Site, shell: str) -> None:
    """Any other value, similar ones included, is the user's: export nothing, make nothing, report it in one event."""
    near = site.cache().parent
    others = [
        "/home/games/hf", "relative", "~", " ", "$(id)", "`id`", "*", "'\"\\", "\udcff\udcfe", "two\nlines", "é",
        f"{near}", f"{near}/",
        f"x{site.cache()}", f"{site.cache()}x", f"{site.cache()}\nexport A=b", str(site.cache(user=BOB)),
        f"{site.scratch}//{ALICE}/.cache/hf-datasets-4242", f"{near}/my-hf-datasets-4242",
    ]  # fmt: skip
    no_jobs = ["2024-corpus", "12abc", "", "0", "007", "4242-r0", "4242-r", "4242-r01", "99999999999"]
    disable_events(site)
    for value in [*others, *(f"{near}/hf-datasets-{name}" for name in no_jobs)]:
        result = task(site, shell=shell, HF_DATASETS_CACHE=value)
        assert (result.status, result.output) == (0, b""), value
    assert not site.scratch.joinpath(ALICE).exists()
    site.configure(log={"file": str(site.log), "syslog": str(site.syslog.path)})
    task(site, shell=shell, HF_DATASETS_CACHE="/mine")
    assert skipped(site) == [("skipped", "user_value")]


@each_shell
def test_empty_value_counts_as_unset(site: Site, shell: str) -> None:
    """Export a variable that the user has set to the empty string."""
    assert task(site, shell=shell, HF_DATASETS_CACHE="").cache == str(site.cache())


@each_shell
def test_users_own_value_does_not_stop_other_exports(site: Site, shell: str) -> None:
    """Decide about each variable separately."""
    exports = {"HF_DATASETS_CACHE": "{cache}", "HF_MODULES_CACHE": "{cache}/modules", "HF_METRICS_CACHE": "{cache}/it's $x"}
    site.configure(exports=exports)
    result = task(site, shell=shell, HF_DATASETS_CACHE="/mine", HF_MODULES_CACHE=f"{site.cache(1)}/modules")
    assert result.exports == {
        "HF_MODULES_CACHE": f"{site.cache()}/modules",
        "HF_METRICS_CACHE": f"{site.cache()}/it's $x",
        "JOBCACHE_DIR": str(site.cache()),
    }


@each_shell
def test_another_jobs_value_is_unset_without_cache(site: Site, shell: str) -> None:
    """A job without a cache must not keep the path of another job's cache. It keeps its own path and the user's value."""
    inherited = {"HF_DATASETS_CACHE": str(site.cache(1)), "JOBCACHE_DIR": str(site.cache(1))}
    result = task(site, shell=shell, JOBCACHE="off", **inherited)
    assert (result.exports, result.unsets) == ({}, ["HF_DATASETS_CACHE", "JOBCACHE_DIR"])
    own = {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}
    result = task(site, shell=shell, JOBCACHE="off", **own)
    assert (result.exports, result.unsets) == (own, [])
    result = task(site, shell=shell, JOBCACHE="off", HF_DATASETS_CACHE="/mine", JOBCACHE_DIR=str(site.cache(1)))
    assert (result.exports, result.unsets) == ({}, ["JOBCACHE_DIR"])


# ----------------------------------------------------------------------------------------------- what the user asks for


@each_shell
def test_jobcache_off_and_keep(site: Site, shell: str) -> None:
    """JOBCACHE=off: no cache, one event. JOBCACHE=keep: a file in the cache. Any other value has no effect."""
    assert task(site, shell=shell, JOBCACHE="off").output == b""
    assert not site.cache().exists() and skipped(site) == [("skipped", "user_off")]
    task(site)
    for value in ("on", "OFF", "Keep", "", "off ", "no", "0", "\n", "*", "off\nkeep"):
        assert task(site, step="0", shell=shell, JOBCACHE=value).cache, value
        assert not (site.cache() / ".jobcache/keep").exists()
    assert task(site, step="0", shell=shell, JOBCACHE="keep").cache
    assert (site.cache() / ".jobcache/keep").exists()
    assert task(site, job=5, shell=shell, JOBCACHE="keep").cache
    assert (site.cache(5) / ".jobcache/keep").exists()


@each_shell
def test_scope_selects_exported_directory(site: Site, shell: str) -> None:
    """Export the directory of the job, the node or the task, all of them in one cache. The user's JOBCACHE_SCOPE counts first."""
    cache = str(site.cache())
    expected = {
        ("", "job"): cache,
        ("0", "job"): cache,
        ("", "node"): f"{cache}/node-n1",
        ("3", "node"): f"{cache}/node-n1",
        ("", "task"): f"{cache}/batch",
        ("3", "task"): f"{cache}/step-3-task-7",
        ("", "Task"): cache,
        ("0", "../.."): cache,
        ("0", ""): cache,
    }
    for (step, scope), value in expected.items():
        result = task(site, step=step, shell=shell, JOBCACHE_SCOPE=scope, SLURM_PROCID="7" if step else "0")
        assert result.exports == {"HF_DATASETS_CACHE": value, "JOBCACHE_DIR": cache}
    site.configure(scope="task")
    assert task(site, step="3", shell=shell).cache == f"{cache}/step-3-task-0"
    assert task(site, step="3", shell=shell, JOBCACHE_SCOPE="job").cache == cache
    # The steps inherit the exports of the batch script's task.
    assert (
        task(site, step="4", shell=shell, HF_DATASETS_CACHE=f"{cache}/batch", JOBCACHE_DIR=cache).cache
        == f"{cache}/step-4-task-0"
    )
    begun = {"node-n1", "batch", "step-3-task-0", "step-3-task-7", "step-4-task-0"}
    assert set(os.listdir(cache)) == {".jobcache", *begun}


@each_shell
def test_offline_job_gets_no_cache_unless_isolated(site: Site, shell: str) -> None:
    """With `offline: skip` it uses the cache that the user has filled. With `offline: isolate` it gets a private cache."""
    site.configure(offline="skip")
    assert task(site, shell=shell, HF_HUB_OFFLINE="1").output == b""
    assert not site.cache().exists() and skipped(site) == [("skipped", "offline")]
    disable_events(site)
    task(site)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        for value in ("1", "true", "TRUE", "True", "yes", "YES", "on", "ON", "oN"):
            assert task(site, step="0", shell=shell, **{name: value}).output == b"", value
        for value in ("0", "", "false", "no", "off", "2", "y", "1 ", "\n1"):
            assert task(site, step="0", shell=shell, **{name: value}).cache, value
    site.configure(offline="isolate")
    assert task(site, step="0", shell=shell, HF_HUB_OFFLINE="1").cache


# ------------------------------------------------------------------------------------------ rules and modes of the site


@each_shell
def test_first_matching_rule_overrides_settings(site: Site, shell: str) -> None:
    """A rule matches if each of its keys matches. A job without an account, partition or QOS matches no name."""
    own_path = f"{site.scratch}/astro/{{user}}/{{job_id}}"
    (site.scratch / "astro").mkdir()
    (site.scratch / "astro").chmod(0o1777)
    site.configure(
        rules=[
            {"match": {"partition": ["debug", "viz-*"], "user": ["svc-*", ALICE[:3] + "*"]}, "cache": "off"},
            {"match": {"account": ["astro", "as tro"]}, "path": own_path, "scope": "node"},
            {"match": {"qos": ["h?gh"]}, "exports": {"OTHER": "{cache}/o"}, "offline": "isolate"},
            {"match": {"partition": ["look"]}, "mode": "observe"},
            {"match": {"partition": ["none"]}, "mode": "off"},
            {"match": {"user": ["[!g]*"]}, "cache": "off"},
        ]
    )
    names = {"partition": "SLURM_JOB_PARTITION", "account": "SLURM_JOB_ACCOUNT", "qos": "SLURM_JOB_QOS"}
    astro = f"{site.scratch}/astro/{ALICE}/4242"
    default = {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}
    cases: list[tuple[dict[str, str], dict[str, str], str]] = [
        ({}, default, ""),
        ({"partition": "batch"}, default, ""),
        ({"partition": "debug"}, {}, "rule"),
        ({"partition": "viz-1", "account": "astro"}, {}, "rule"),
        ({"partition": "viz"}, default, ""),
        ({"account": "astro"}, {"HF_DATASETS_CACHE": f"{astro}/node-n1", "JOBCACHE_DIR": astro}, ""),
        ({"account": "as tro", "qos": "high"}, {"HF_DATASETS_CACHE": f"{astro}/node-n1", "JOBCACHE_DIR": astro}, ""),
        ({"account": "as"}, default, ""),
        ({"qos": "high", "HF_HUB_OFFLINE": "1"}, {"OTHER": f"{site.cache()}/o", "JOBCACHE_DIR": str(site.cache())}, ""),
        ({"partition": "look"}, {}, "observe"),
        ({"partition": "none"}, {}, ""),
        ({"partition": "debug\n"}, default, ""),
        ({"partition": "*"}, default, ""),
    ]
    for job, exports, reason in cases:
        before = len(skipped(site))
        env = {names.get(key, key): value for key, value in job.items()}
        assert task(site, shell=shell, **env).exports == exports, job
        assert [why for _, why in skipped(site)[before:]] == ([reason] if reason else []), job


@each_shell
def test_observe_and_off_change_no_job(site: Site, shell: str) -> None:
    """`observe` sends an event alone, `off` nothing at all, and a file `off` stops everything."""
    inherited = {"HF_DATASETS_CACHE": str(site.cache(1)), "JOBCACHE_DIR": str(site.cache(1))}
    site.configure(mode="observe")
    assert task(site, shell=shell).output == b""
    assert skipped(site) == [("skipped", "observe")]
    site.configure(mode="off")
    assert task(site, shell=shell).output == b""
    site.configure(mode="on")
    (site.hooks / "off").touch()
    assert task(site, shell=shell, **inherited).output == b""
    assert len(site.syslog.events()) == 1 and not site.cache().exists()
    (site.hooks / "off").unlink()
    assert task(site, shell=shell, **inherited).cache


NO_CACHE: list[dict[str, Any]] = [{"mode": "observe"}, {"mode": "off"}, {"rules": [{"match": {"user": ["*"]}, "cache": "off"}]}]


@each_shell
@pytest.mark.parametrize("keys", NO_CACHE, ids=["observe", "off", "rule"])
def test_inherited_value_is_unset_where_policy_gives_no_cache(site: Site, shell: str, keys: dict[str, Any]) -> None:
    """A job without a cache loses the path that it inherited from another job, whose cache goes away with that job."""
    site.configure(**keys)
    another = str(site.cache(1))
    result = task(site, shell=shell, HF_DATASETS_CACHE=f"{another}/x", JOBCACHE_DIR=another)
    assert result.output == b"unset HF_DATASETS_CACHE\nunset JOBCACHE_DIR\n"
    own = {"HF_DATASETS_CACHE": "/home/alice/hf", "JOBCACHE_DIR": ""}
    assert task(site, shell=shell, **own).output == b""
    assert not site.cache().exists()


@each_shell
@pytest.mark.parametrize("keys", NO_CACHE, ids=["observe", "off", "rule"])
def test_job_joins_its_cache_where_policy_gives_none(site: Site, shell: str, keys: dict[str, Any]) -> None:
    """While a policy is rolled out, a job with a cache from one node joins it on nodes whose policy gives none."""
    assert task(site, shell=shell).cache
    site.configure(**keys)
    handed = {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}
    assert task(site, step="0", shell=shell, SLURMD_NODENAME="n2", **handed).exports == handed
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]


@each_shell
@pytest.mark.parametrize("asked", [{"HF_HUB_OFFLINE": "1"}, {"JOBCACHE": "off"}], ids=["offline", "off"])
def test_step_that_asks_for_no_cache_joins_the_one_it_uses(site: Site, shell: str, asked: dict[str, str]) -> None:
    """A script fills its cache and starts offline steps. They work in that cache, so that their nodes need a lease. A step that
    works elsewhere takes no lease."""
    cache = str(site.cache())
    assert task(site, shell=shell).cache
    handed = {"HF_DATASETS_CACHE": cache, "JOBCACHE_DIR": cache, "SLURMD_NODENAME": "n2", **asked}
    for elsewhere in ("", "/home/alice/hf", f"{cache}0"):
        assert task(site, step="0", shell=shell, **{**handed, "HF_DATASETS_CACHE": elsewhere}).exports == {}, elsewhere
    assert os.listdir(site.cache() / ".jobcache/nodes") == ["n1"]
    assert task(site, step="0", shell=shell, **handed).exports == {"HF_DATASETS_CACHE": cache, "JOBCACHE_DIR": cache}
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]


@each_shell
@pytest.mark.parametrize("scope", ["node", "task"])
def test_offline_step_keeps_directory_that_script_filled(site: Site, shell: str, scope: str) -> None:
    """The own directory of another node or task would be empty, and an offline step could not fill it."""
    site.configure(scope=scope)
    filled = task(site, shell=shell).exports
    assert filled["HF_DATASETS_CACHE"] == f"{site.cache()}/{'node-n1' if scope == 'node' else 'batch'}"
    result = task(site, step="0", shell=shell, SLURMD_NODENAME="n2", HF_HUB_OFFLINE="1", **filled)
    assert result.exports == filled
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]


@each_shell
def test_jobcache_dir_identifies_inherited_values_of_newer_policy(site: Site, shell: str) -> None:
    """The policy of this node may not know the template of another node's. JOBCACHE_DIR then identifies the value as inherited:
    this job's is replaced if the node gives it a path, and kept otherwise; another job's is always unset."""
    mine, another = f"/new/{ALICE}/hf-datasets-4242", f"/new/{ALICE}/hf-datasets-42424"
    for path in (mine, f"{mine}-r2", another, "/new/1/4241"):
        result = task(site, step="0", shell=shell, HF_DATASETS_CACHE=f"{path}/x", JOBCACHE_DIR=path)
        assert result.cache == str(site.cache()), path
    for path in (f"/new/{ALICE}", "new/4242", f"{another}/", mine + "2"):  # of no job, or not the place of the value
        own = task(site, step="0", shell=shell, HF_DATASETS_CACHE=f"{mine}/x", JOBCACHE_DIR=path)
        assert "HF_DATASETS_CACHE" not in own.exports, path
    site.configure(mode="observe")
    assert task(site, step="0", shell=shell, HF_DATASETS_CACHE=mine, JOBCACHE_DIR=mine).output == b""
    gone = b"unset HF_DATASETS_CACHE\nunset JOBCACHE_DIR\n"
    for path in (another, "/new/1/4241", "/new/1/14242"):
        assert task(site, step="0", shell=shell, HF_DATASETS_CACHE=path, JOBCACHE_DIR=path).output == gone


@each_shell
def test_users_below_min_uid_get_nothing(site: Site, shell: str) -> None:
    """They get no cache and no event."""
    for least, given in ((UID + 1, False), (UID, True)):
        site.configure(min_uid=least)
        assert bool(task(site, shell=shell).cache) == given
    assert [event["event"] for event in site.syslog.events()] == ["cache.created"]


@each_shell
def test_skip_is_reported_once_per_job(site: Site, shell: str) -> None:
    """The batch step sends the event, or rank 0 of the first step if the job has no batch script."""
    off = {"JOBCACHE": "off", "shell": shell}
    task(site, ENVIRONMENT="BATCH", **off)
    task(site, step="0", ENVIRONMENT="BATCH", **off)
    assert len(skipped(site)) == 1
    task(site, step="0", SLURM_PROCID="1", **off)
    task(site, step="1", **off)
    assert len(skipped(site)) == 1
    task(site, step="0", **off)
    assert len(skipped(site)) == 2


# ----------------------------------------------------------------------------------------- runs, and caches at the path


@each_shell
def test_each_run_has_its_own_cache(site: Site, shell: str) -> None:
    """The restart count is part of the name. A count that is not canonical counts as 0."""
    counts = {
        "": 0,
        "0": 0,
        "1": 1,
        "12": 12,
        "01": 0,
        "-1": 0,
        "x": 0,
        "1\n": 0,
        " 1": 0,
        "99999999999": 0,
        "../..": 0,
        "4294967295": 4294967295,
    }
    for count, which in counts.items():
        result = task(site, shell=shell, SLURM_RESTART_COUNT=count)
        assert result.exports["JOBCACHE_DIR"] == str(site.cache(run=which)), count


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_first_task_discards_stale_cache(site: Site, shell: str, python: bool) -> None:
    """The batch step moves a cache with its own job id to trash, since an earlier job left it. Ordinary steps join."""
    site.task_prolog(node="n7")
    site.fill(site.cache(), "old")
    if not python:
        site.policy(python="/nonexistent")
    assert task(site, step="0", shell=shell).cache
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n7"] and not site.debris()
    age(site.cache())
    assert task(site, shell=shell).cache
    assert os.listdir(site.cache() / ".jobcache/nodes") == ["n1"] and not (site.cache() / "old").exists()
    (trash,) = site.debris()
    assert trash.startswith(".jobcache-trash-4242-") and trash.rpartition("-")[2].isalnum()
    assert (site.cache().parent / trash / "old").exists()


WATCHED = 1000000 + os.getpid()  # a job whose processes no other test imitates at the same time
BATCH = f"slurmstepd: [{WATCHED}.batch]"


@contextmanager
def process(title: str, user: str = "root") -> Iterator[None]:
    """Run a process with this title for the length of the block."""
    with subprocess.Popen([title, "60"], executable="/bin/sleep", user=user, cwd="/") as started:
        try:
            while title.encode() not in Path(f"/proc/{started.pid}/cmdline").read_bytes():
                time.sleep(0.01)
            yield
        finally:
            started.kill()


# A cache with this job's id at the path of a batch task on n1: the node of its lease, the lease, its age in seconds, the
# SLURM_JOB_START_TIME of the task in seconds ago, the title of its parent, another process, its user; is the cache discarded?
BOOTED = "00000000-0000-0000-0000-000000000000 1.00\n"
FOUND: dict[str, tuple[str, str, int, int | None, str, str, str, bool]] = {
    "another node, now": ("n2", "", 0, None, BATCH, "", "", False),
    "another node, now, its boot": ("n2", BOOTED, 0, None, BATCH, "", "", False),
    "another node, within an hour": ("n2", "", 3000, None, BATCH, "", "", False),
    "another node, hours ago": ("n2", "", 7200, None, BATCH, "", "", True),
    "another node, before the start": ("n2", "", 1000, 600, BATCH, "", "", True),
    "another node, before the start by less than clocks differ": ("n2", "", 700, 600, BATCH, "", "", False),
    "another node, after the start": ("n2", "", 7200, 10000, BATCH, "", "", False),
    "this node, no step": ("n1", "", 0, None, BATCH, "", "", True),
    "this node, a step": ("n1", "", 7200, 600, BATCH, f"slurmstepd: [{WATCHED}.0]", "root", False),
    "this node, an interactive step": ("n1", "", 0, None, BATCH, f"slurmstepd: [{WATCHED}.interactive]", "root", False),
    "this node, the batch step's own process": ("n1", "", 0, None, BATCH, f"slurmstepd: [{WATCHED}.batch]", "root", True),
    "this node, a step by its user": ("n1", "", 0, None, BATCH, f"slurmstepd: [{WATCHED}.0]", ALICE, False),
    "this node, the extern step": ("n1", "", 0, None, BATCH, f"slurmstepd: [{WATCHED}.extern]", "root", True),
    "this node, another job's step": ("n1", "", 0, None, BATCH, f"slurmstepd: [{WATCHED}1.0]", "root", True),
    "this node, a title forged by another user": ("n1", "", 0, None, BATCH, f"slurmstepd: [{WATCHED}.0]", BOB, True),
    "this node, titles hidden": ("n1", "", 0, None, "", "", "", False),
    "this node, titles hidden, hours ago": ("n1", "", 7200, None, "", "", "", True),
    "this node, titles hidden, before it booted": ("n1", BOOTED, 0, None, "", "", "", True),
    "a command of this node, no step": ("n1+0123", "", 0, None, BATCH, "", "", False),
    "a command of this node, the extern step": ("n1+0123", "", 0, None, BATCH, f"slurmstepd: [{WATCHED}.extern]", "root", False),
    "a command of this node, no step, hours ago": ("n1+0123", "", 7200, None, BATCH, "", "", True),
    "a command of this node, no step, before it booted": ("n1+0123", BOOTED, 0, None, BATCH, "", "", True),
    "no lease, now": ("", "", 0, None, BATCH, "", "", False),
    "no lease, hours ago": ("", "", 7200, None, BATCH, "", "", True),
}


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_batch_task_discards_only_a_cache_that_no_step_of_its_run_uses(site: Site, shell: str, python: bool) -> None:
    """A step can be attached before the batch script begins. In doubt, the batch task joins the cache."""
    for name, (node, lease, age_of_lease, start, title, other, user, discarded) in FOUND.items():
        site.configure()
        shutil.rmtree(site.cache(WATCHED).parent, ignore_errors=True)
        site.task_prolog(WATCHED, node=node or "n2", step="0")
        site.fill(site.cache(WATCHED), "filled")
        leases = site.cache(WATCHED) / ".jobcache/nodes"
        if not node:
            (leases / "n2").unlink()
        elif lease:
            (leases / node).write_text(lease)
        at = time.time() - age_of_lease
        os.utime(leases / node, (at, at))
        if not python:
            site.policy(python="/nonexistent")
        env = {} if start is None else {"SLURM_JOB_START_TIME": str(int(time.time()) - start)}
        with process(other, user) if other else nullcontext():
            assert task(site, job=WATCHED, shell=shell, title=title, **env).cache == str(site.cache(WATCHED)), name
        assert (site.cache(WATCHED) / "filled").exists() != discarded, name
        assert (leases / "n1").exists(), name
        assert len(site.debris()) == discarded, name


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_batch_task_of_a_het_job_looks_for_no_titles(site: Site, shell: str, python: bool) -> None:
    """The titles of a het job's steps have the ids of its components. So a lease of this node counts as another node's does."""
    site.task_prolog(WATCHED, step="0")
    site.fill(site.cache(WATCHED), "filled")
    if not python:
        site.policy(python="/nonexistent")
    assert task(site, job=WATCHED, shell=shell, title=BATCH, SLURM_HET_SIZE="2").cache
    assert (site.cache(WATCHED) / "filled").exists() and not site.debris()
    age(site.cache(WATCHED))
    assert task(site, job=WATCHED, shell=shell, title=BATCH, SLURM_HET_SIZE="2").cache
    assert not (site.cache(WATCHED) / "filled").exists()


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_interactive_step_with_known_path_discards_no_cache(site: Site, shell: str, python: bool) -> None:
    """An interactive step that inherits the job's path is not its first task, with any title of its parent."""
    if not python:
        site.policy(python="/nonexistent")
    result = task(site, shell=shell)
    site.fill(site.cache(), "live")
    task(site, shell=shell, title="slurmstepd: [4242.interactive]", **result.exports)
    assert (site.cache() / "live").exists() and not site.debris()


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_remade_directory_gets_its_record_again(site: Site, shell: str, python: bool) -> None:
    """A script may delete its cache and make the directory again. With the exported JOBCACHE_DIR, a step restores the record."""
    if not python:
        site.policy(python="/nonexistent")
    result = task(site, shell=shell)
    shutil.rmtree(site.cache())
    site.cache().mkdir()
    give(site.cache())
    site.fill(site.cache(), "built")
    assert task(site, step="0", shell=shell).output == b"", "without JOBCACHE_DIR it is somebody's"
    assert task(site, step="0", shell=shell, **result.exports).exports == result.exports
    assert (site.cache() / ".jobcache/id").exists() and (site.cache() / "built").exists() and not site.debris()
    site.configure()  # the Epilog has its Python
    site.epilog()
    assert not site.cache().exists()


STANDS: dict[str, Any] = {
    "another user's": lambda cache: give(directory(cache), BOB),
    "another user's, recorded": lambda cache: give(directory(cache, f"test 4242 0 {UID}\n"), BOB),
    "another cluster's": lambda cache: directory(cache, f"other 4242 0 {UID}\n"),
    "another job's": lambda cache: directory(cache, f"test 4243 0 {UID}\n"),
    "an id cut short": lambda cache: directory(cache, "test 42"),
    "a symlink": lambda cache: cache.symlink_to(directory(cache.with_name("real"), f"test 4242 0 {UID}\n")),
    "a dangling symlink": lambda cache: cache.symlink_to("/nonexistent/place"),
    "a file": lambda cache: cache.write_text(""),
    "a fifo": lambda cache: os.mkfifo(cache),
    "unrecorded, in use": lambda cache: (directory(cache) / "mine").write_text("x"),
}


def directory(path: Path, line: str | None = None) -> Path:
    """Make a directory, with a record whose id holds `line` if that is given. Return its path."""
    path.mkdir()
    if line is not None:
        (path / ".jobcache/nodes").mkdir(parents=True)
        (path / ".jobcache/id").write_text(line)
    return path


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_foreign_file_at_path_is_left_alone(site: Site, shell: str, python: bool) -> None:
    """An entry at the path that is not this run's cache stays as it is: exit 0 without exports."""
    if not python:
        site.policy(python="/nonexistent")
    home = site.cache().parent
    home.mkdir(parents=True)
    for stands, make in STANDS.items():
        make(site.cache())
        if "another user" not in stands:
            give(home)
        give(site.scratch / ALICE) if "another user" not in stands else os.chown(home, UID, UID)
        before = sorted(str(path) for path in home.rglob("*"))
        for step in ("", "0"):
            result = task(site, step=step, shell=shell, HF_DATASETS_CACHE=str(site.cache(1)))
            assert (result.status, result.exports, result.unsets) == (0, {}, ["HF_DATASETS_CACHE"]), stands
        assert sorted(str(path) for path in home.rglob("*") if not cache_names.is_history(path.name)) == before, stands
        for name in os.listdir(home):
            shutil.rmtree(home / name) if (home / name).is_dir() and not (home / name).is_symlink() else (home / name).unlink()
    if python:
        assert {why for _, why in skipped(site)} == {"foreign", "unrecorded"}


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_cache_without_nodes_is_not_joined(site: Site, shell: str, python: bool) -> None:
    """A cache without nodes/ is being reaped: make nothing in it, and export nothing."""
    site.configure(task_prolog={"deadline": "1s"})
    task(site)
    if not python:
        site.policy(python="/nonexistent")
    shutil.rmtree(site.cache() / ".jobcache/nodes")
    for step in ("0", ""):
        result = task(site, step=step, shell=shell)
        assert (result.status, result.output) == (0, b"")
    assert sorted(os.listdir(site.cache() / ".jobcache")) == ["id", "job.json", "sources"] and not site.debris()
    if python:
        assert skipped(site) == [("refused", "busy")] * 2


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_empty_unrecorded_directory_is_replaced(site: Site, shell: str, python: bool) -> None:
    """Some scripts make the directory of the path beforehand."""
    if not python:
        site.policy(python="/nonexistent")
    site.cache().mkdir(parents=True)
    give(site.scratch / ALICE)
    assert task(site, shell=shell).cache
    assert (site.cache() / ".jobcache/id").exists()


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
@pytest.mark.parametrize("level", [0, 1])
def test_only_roots_symlinks_in_path_are_followed(site: Site, shell: str, python: bool, level: int) -> None:
    """A user's symlink on the way is refused, since the Epilog would not follow it."""
    if not python:
        site.policy(python="/nonexistent")
    link = [site.scratch / ALICE, site.scratch / ALICE / ".cache"][level]
    real = site.scratch / "real"
    real.mkdir()
    if level:
        give(directory(link.parent))
    link.symlink_to(real)
    give(real)
    assert task(site, shell=shell).cache
    assert len(list(real.rglob("id"))) == 1
    os.lchown(link, UID, UID)
    assert task(site, job=5, shell=shell).output == b""
    assert len(list(real.rglob("id"))) == 1
    if python:
        assert skipped(site) == [("failed", "not_directory")]


# ------------------------------------------------------------------------------------------------------- broken scratch


@contextmanager
def broken_scratch(site: Site, how: str) -> Iterator[str]:
    """Make the user's part of scratch fail. Yield the reason that the event must have."""
    place = directory(site.scratch / ALICE)
    if how == "closed":
        yield "no_access"  # it belongs to root, and users cannot write to it
        return
    with mount("tmpfs", place, "tmpfs", "size=1m,nr_inodes=40" if how == "full" else ""):
        give(directory(place / ".cache").parent)
        if how == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            yield "read_only"
        elif how == "full":
            fill(place)
            yield "no_space"
        else:
            os.chmod(place, 0)
            yield "no_access"


def fill(place: Path) -> None:
    """Use up all space and all inodes."""
    for at in range(100):
        try:
            (place / f"filler-{at}").write_bytes(b"x" * 65536)
        except OSError:
            if at > 60:
                break


@each_shell
@pytest.mark.parametrize("how", ["closed", "impassable", "read-only", "full"])
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_failed_creation_leaves_job_unchanged(site: Site, shell: str, how: str, python: bool) -> None:
    """The job runs as if jobcache were not installed: exit 0, no exports, inherited values unset, an event with the reason."""
    if not python:
        site.policy(python="/nonexistent")
    with broken_scratch(site, how) as reason:
        before = set(os.listdir(site.scratch / ALICE))
        result = task(site, shell=shell, HF_DATASETS_CACHE=str(site.cache(1)), JOBCACHE_DIR=str(site.cache(1)))
        assert (result.status, result.exports, result.unsets) == (0, {}, ["HF_DATASETS_CACHE", "JOBCACHE_DIR"])
        assert set(os.listdir(site.scratch / ALICE)) == before
        assert not site.debris()
    if python:
        assert skipped(site) == [("failed", reason)]


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_lease_without_content_holds_cache(site: Site, shell: str, python: bool) -> None:
    """On a full disk a lease can be created but not written. Its name alone counts."""
    place = directory(site.scratch / ALICE)
    with mount("tmpfs", place, "tmpfs", "size=1m"):
        give(place)
        site.task_prolog(node="n7")
        try:
            (place / "filler").write_bytes(b"x" * (2 << 20))
        except OSError:
            pass
        if not python:
            site.policy(python="/nonexistent")
        assert task(site, step="0", shell=shell).exports.keys() == EXPORTED
        assert (site.cache() / ".jobcache/nodes/n1").exists()


# -------------------------------------------------------------------------------------------------------- broken Python


def script(site: Site, text: str) -> str:
    """Write a program to be used as Python. Return its path."""
    path = site.dir / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@each_shell
@pytest.mark.parametrize("python", ["/nonexistent", "exit 1", "exit 0", "kill -SEGV $$", "/etc/passwd", "/tmp"])
def test_shell_makes_cache_where_python_is_broken(site: Site, shell: str, python: str) -> None:
    """The cache is as complete as Python's: id, record, nodes/ and lease. It can be joined, discarded, released and reaped."""
    site.task_prolog(1)
    site.policy(python=python if python.startswith("/") else script(site, python))
    result = task(site, shell=shell)
    assert result.exports.keys() == EXPORTED
    assert compared(site.cache()) == compared(site.cache(1))
    assert task(site, step="0", shell=shell, SLURMD_NODENAME="n2").exports == result.exports
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]
    site.configure()  # the Epilog has its Python
    site.epilog(nodes=2)
    site.epilog(node="n2", nodes=2)
    assert not site.cache().exists() and not site.debris()


def compared(cache: Path) -> object:
    """Return the parts of a cache that do not vary from cache to cache."""
    identity = (cache / ".jobcache/id").read_text().split()
    record = json.loads((cache / ".jobcache/job.json").read_text())
    varying = {record.pop("job_id"): record.pop("created_at")}
    (boot, uptime) = (cache / ".jobcache/nodes/n1").read_text().split()
    modes = {str(path.relative_to(cache)): oct(path.lstat().st_mode) for path in [cache, *cache.rglob("*")]}
    homes = {path.name: os.readlink(path) for path in (cache / ".jobcache/sources").iterdir()}
    assert float(uptime) > 0 and len(varying) == 1 and homes
    return identity[0], identity[2:], record, boot, modes, homes


def at_once(site: Site, **env: str) -> list[Prologue]:
    """Run the TaskProlog in all shells at once, for two ordinary steps, and for the batch step of a job that inherits nothing."""
    batch = {"JOBCACHE_INHERIT": "off"}
    with ThreadPoolExecutor(9) as pool:
        steps: list[tuple[str, dict[str, str]]] = [("", batch), ("0", {}), ("1", {})]
        runs = [pool.submit(task, site, shell=shell, step=step, **more, **env) for shell in SHELLS for step, more in steps]
        return [run.result() for run in runs]


def test_hung_python_is_killed_at_deadline(site: Site) -> None:
    """The exports are still printed, so that all ranks of a job agree."""
    site.configure(task_prolog={"deadline": "1s"})
    site.policy(python=script(site, "/bin/sleep 30"))
    mark = f"mark-{uuid.uuid4()}"
    for result in at_once(site, JC_TEST=mark):
        assert (result.status, result.exports.keys()) == (0, EXPORTED)
        assert 0.9 < result.seconds < 2
    assert processes_left(mark) == []


@each_shell
def test_no_cache_without_sleep_program(site: Site, shell: str) -> None:
    """Without /bin/sleep, as in some containers, nothing could keep the deadline: the task gets no cache."""
    inside = 'mount --bind /etc/passwd /usr/bin/sleep && exec setpriv --reuid "$1" --regid "$1" --clear-groups -- "${@:2}"'
    env = {**task_prolog.environment(ALICE), "HF_DATASETS_CACHE": str(site.cache(1))}
    prefix = ["unshare", "--mount", "bash", "-c", inside, "bash", str(UID)]
    result = task_prolog.run(site.hooks, "root", env, shell=shell, prefix=prefix, timeout=20)
    assert (result.status, result.output, result.stderr) == (0, b"unset HF_DATASETS_CACHE\n", b"")


@each_shell
def test_no_process_outlives_hook(site: Site, shell: str) -> None:
    """The timer and its sleep end with the hook, whether Python ran or not."""
    mark = f"mark-{uuid.uuid4()}"
    for step in ("", "0", "0"):
        task(site, step=step, shell=shell, JC_TEST=mark)
    task(site, shell=shell, JC_TEST=mark, JOBCACHE="off")
    assert processes_left(mark) == []


# ------------------------------------------------------------------------------------------------------- hung scratch


@pytest.mark.parametrize("killable", [True, False])
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_hung_scratch_delays_task_until_deadline(site: Site, killable: bool, python: bool) -> None:
    """The exports are printed within the deadline and a second. Each process that can be killed ends."""
    site.configure(task_prolog={"deadline": "1s"})
    if not python:
        site.policy(python="/nonexistent")
    place = give(directory(site.scratch / ALICE))
    mark = f"mark-{uuid.uuid4()}"
    with hung(place, killable=killable):
        for result in at_once(site, JC_TEST=mark):
            assert (result.status, result.exports.keys()) == (0, EXPORTED)
            assert 0.9 < result.seconds < 2
        if killable:
            assert processes_left(mark) == []
    assert processes_left(mark) == []


def test_fifo_as_id_delays_task_until_deadline(site: Site) -> None:
    """A user can put anything into a cache. It delays the task of this user until the deadline at most."""
    site.configure(task_prolog={"deadline": "1s"})
    task(site)
    (site.cache() / ".jobcache/id").unlink()
    os.mkfifo(site.cache() / ".jobcache/id")
    give(site.cache())
    mark = f"mark-{uuid.uuid4()}"
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda shell: task(site, step="0", shell=shell, JC_TEST=mark), SHELLS):
            assert result.exports.keys() == EXPORTED and result.seconds < 2
    assert processes_left(mark) == []


# ----------------------------------------------------------------------------------------------------------- many tasks


@each_shell
def test_many_tasks_at_once_share_one_cache(site: Site, shell: str) -> None:
    """16 tasks on each of two nodes print the same exports, there is one cache with two leases, and few of them run Python."""
    ran = site.scratch / "ran"
    ran.touch()
    ran.chmod(0o666)
    real = os.path.realpath(sys.executable)
    site.configure(task_prolog={"deadline": "20s"})
    site.policy(python=script(site, f'echo "$SLURMD_NODENAME" >>{ran}; exec {real} "$@"'))
    start = threading.Barrier(32)

    def one(at: int) -> Prologue:
        start.wait()
        return task(
            site, step="0", shell=shell, SLURMD_NODENAME=f"n{at % 2 + 1}", SLURM_LOCALID=str(at // 2), SLURM_PROCID=str(at)
        )

    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(one, range(32)))
    assert {(one.status, one.output) for one in results} == {(0, results[0].output)}
    assert results[0].exports.keys() == EXPORTED
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"] and not site.debris()
    assert all(ran.read_text().split().count(node) <= 2 for node in ("n1", "n2"))
    assert len(site.syslog.events("cache.created")) == 1


def test_join_runs_no_python(site: Site) -> None:
    """If the cache exists, the shell takes the lease by itself."""
    task(site)
    site.policy(python=script(site, f"touch {site.scratch}/ran"))
    assert task(site, step="0").cache and task(site, step="0", SLURMD_NODENAME="n2").cache
    assert not (site.scratch / "ran").exists()


@each_shell
def test_closed_stdin_and_stderr_are_harmless(site: Site, shell: str) -> None:
    """Slurm 20.11 closes both. The task has its cache, and the chained TaskProlog works."""
    closing = site.dir / "closing"
    closing.write_text('#!/bin/sh\nexec "$@" <&- 2>&-\n')
    closing.chmod(0o755)
    assert task(site, shell=f"{closing} {shell}").exports.keys() == EXPORTED
    chained(site, "#!/bin/sh\necho export SITE=1\necho said >&2\nexit 3\n")
    result = task(site, shell=f"{closing} {shell}", step="0")
    assert (result.status, result.exports.keys()) == (3, {*EXPORTED, "SITE"})


# ------------------------------------------------------------------------------------------------------------ chaining


def chained(site: Site, text: str, mode: int = 0o755) -> Path:
    """Configure a site's own TaskProlog with this text. Return its path."""
    path = site.dir / "site-task-prolog"
    path.write_text(text)
    path.chmod(mode)
    site.configure(task_prolog={"chain": str(path)})
    return path


@each_shell
@pytest.mark.parametrize("status", [0, 3])
def test_chained_task_prolog_runs_last_in_tasks_environment(site: Site, shell: str, status: int) -> None:
    """It has the task's environment and stderr. Its output and its exit status count."""
    dump = site.scratch / "environment"
    chained(site, f"#!/bin/sh\n/usr/bin/env -0 >{dump}\necho export SITE=1\necho said >&2\nexit {status}\n")
    env = {
        **task_prolog.environment(ALICE),
        "LD_LIBRARY_PATH": "/x",
        "ODD": "a\nb 'c' \\",
        "IFS": " \t\n",
        "JOBCACHE": "keep",
        "SHLVL": "1",
        "OLDPWD": "/",
        "PWD": "/",
        "_": "x",
    }
    result = run(site, env, shell=shell)
    assert (result.status, result.stderr) == (status, b"said\n")
    assert list(result.exports) == ["HF_DATASETS_CACHE", "JOBCACHE_DIR", "SITE"]
    found = dict(line.split("=", 1) for line in dump.read_text().split("\0")[:-1])
    varying = {"SHLVL", "OLDPWD", "PWD", "_"}
    assert {key: value for key, value in found.items() if key not in varying} == {
        key: value for key, value in env.items() if key not in varying
    }


@each_shell
def test_chained_task_prolog_runs_without_cache(site: Site, shell: str) -> None:
    """It runs if the job is skipped, if Slurm describes no job, and if the hook is switched off."""
    chained(site, "#!/bin/sh\necho export SITE=1\nexit 3\n")
    for env in ({"JOBCACHE": "off"}, {"SLURM_JOB_ID": ""}, {"SLURM_JOB_UID": "x"}, {"HF_DATASETS_CACHE": "/mine"}):
        result = task(site, shell=shell, **env)
        assert (result.status, result.exports) == (3, {"SITE": "1"})
    (site.hooks / "off").touch()
    assert task(site, shell=shell).status == 3


@each_shell
@pytest.mark.parametrize("kind", ["missing", "not executable", "directory", "bad interpreter", "garbage"])
def test_chained_task_prolog_that_cannot_run_is_ignored(site: Site, shell: str, kind: str) -> None:
    """No task is cancelled because of it."""
    path = chained(
        site, {"bad interpreter": "#!/nonexistent\n", "garbage": "\x7fELF\x00\x01 garbage"}.get(kind, "#!/bin/sh\nexit 3\n")
    )
    if kind == "not executable":
        path.chmod(0o644)
    elif kind != "bad interpreter" and kind != "garbage":
        path.unlink()
        if kind == "directory":
            path.mkdir()
    result = task(site, shell=shell)
    assert result.exports.keys() == EXPORTED
    assert result.status == 0 or (kind, shell) == ("garbage", "/bin/busybox sh")  # busybox runs any file as a script


# ------------------------------------------------------------------------------------------------ hostile environments

FUNCTIONS = "[ printf read kill wait umask shopt set unset trap exec exit return jc_main jc_build_exports test true".split()
VARIABLES = (
    "job_dir export_dir policy_hash policy_end hash whole lib chain output slow_path exports held_exports unsets skip_reason "
    "status answered deadline_passed id_line cache_job known_path first_task keep newline child timer_process ready".split()
)
ODD_SHELL = {
    "IFS": {"IFS": "/-.0 4"},
    "no PATH": {"PATH": ""},
    "ENV": {"ENV": "/etc/shadow", "BASH_ENV": "/nonexistent"},
    "functions": {f"BASH_FUNC_{name}%%": "() { echo export FORGED=1; }" for name in FUNCTIONS},
    "options": {
        "SHELLOPTS": "xtrace:errexit:nounset:verbose:allexport:noglob:noclobber:pipefail:keyword:physical",
        "PS4": "export FORGED=1\n",
    },
    "BASHOPTS": {"BASHOPTS": "extglob:nocasematch:nullglob:failglob:lastpipe:inherit_errexit"},
    "POSIXLY_CORRECT": {"POSIXLY_CORRECT": "", "BASH_COMPAT": "3.1"},
    "loader": {"LD_PRELOAD": "/nonexistent.so", "LD_LIBRARY_PATH": "/nonexistent:.", "GCONV_PATH": "/nonexistent"},
    "Python": dict.fromkeys(["PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONIOENCODING"], "/nonexistent"),
    "locale": {"LC_ALL": "tr_TR.UTF-8", "LANG": "xx_XX", "LANGUAGE": "../../x"},
    "names of the hook": {f"jc_{name}": "export FORGED=1" for name in VARIABLES},
    "users": {"USER": "root", "LOGNAME": "root", "HOME": "/root", "PWD": "/x", "TMPDIR": "/nonexistent"},
    "numbers": {"UID": "0", "EUID": "0", "PPID": "1", "LINENO": "x", "RANDOM": "x", "SECONDS": "x", "HISTSIZE": "-1"},
    "bytes": {"A": "\udcff\udcfe", "B": "a\nexport FORGED=1\n", "C.D": "x", "1": "x", "@": "x"},
}


@pytest.mark.parametrize("shell", [*SHELLS, "sh"], ids=["dash", "bash", "busybox", "bash as sh"])
@pytest.mark.parametrize("odd", ODD_SHELL)
def test_environment_of_user_changes_no_output(site: Site, shell: str, odd: str) -> None:
    """Variables that shells, the loader and Python obey have no effect on the exports."""
    if shell == "sh":
        (site.dir / "sh").symlink_to("/bin/bash")
        shell = str(site.dir / "sh")
    same_home = {name: value for name, value in ODD_SHELL[odd].items() if name == "HOME"}  # another home, another directory
    plain = task(site, shell=shell, **same_home)
    before = listing(site)
    for step in ("", "0"):
        result = task(site, step=step, shell=shell, **ODD_SHELL[odd])
        assert (result.status, result.output) == (0, plain.output)
    assert listing(site) == before
    assert sorted(os.listdir(site.cache() / ".jobcache")) == ["id", "job.json", "nodes", "sources"]


@each_shell
def test_noexec_in_shellopts_is_harmless(site: Site, shell: str) -> None:
    """With noexec, bash reads the hook and runs nothing: exit 0."""
    result = task(site, shell=shell, SHELLOPTS="noexec")
    assert result.status == 0
    assert result.output == b"" or result.exports.keys() == EXPORTED


NAMES = [
    "SLURM_JOB_ID",
    "SLURM_JOB_UID",
    "SLURM_JOB_USER",
    "SLURMD_NODENAME",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_RESTART_COUNT",
]
ABSURD = [
    "",
    "../..",
    "..",
    ".",
    "/",
    "a/b",
    "1\n2",
    "9" * 20,
    "-1",
    "01",
    "0",
    "$(touch x)",
    "`id`",
    "*",
    "x" * 300,
    "\udcff",
    "a b",
    "1;2",
    "'",
    "\x01",
]


@pytest.mark.parametrize("name", NAMES)
def test_absurd_values_of_slurm_variables_are_harmless(site: Site, name: str) -> None:
    """Exit 0, whole lines, all paths below the user's part of scratch, and nothing made anywhere else."""
    site.configure(scope="task", path=f"{site.scratch}/{{user}}/{{node}}/hf-{{job_id}}")
    before = listing(site)
    for at, value in enumerate(ABSURD):
        result = run(site, {**task_prolog.environment(ALICE, step="0"), name: value}, shell=SHELLS[(at + len(name)) % 3])
        assert result.status == 0
        for exported in result.exports.values():
            assert exported.startswith(f"{site.scratch}/") and exported == os.path.normpath(exported), value
    assert listing(site) == before
    assert {ALICE, *ABSURD} >= set(os.listdir(site.scratch))


@each_shell
def test_missing_slurm_variables_mean_no_cache(site: Site, shell: str) -> None:
    """Print nothing and make nothing if the job cannot be identified."""
    assert run(site, {}, shell=shell).output == b""
    for name in NAMES[:4]:
        env = task_prolog.environment(ALICE)
        del env[name]
        result = run(site, env, shell=shell)
        assert (result.status, result.output) == (0, b"")
    assert os.listdir(site.scratch) == []


@each_shell
def test_forged_user_name_gets_no_cache(site: Site, shell: str) -> None:
    """A user may set SLURM_JOB_USER to another user's name, but cannot write in that user's directory."""
    give(directory(site.scratch / BOB), BOB)
    (site.scratch / BOB).chmod(0o755)
    result = task(site, shell=shell, SLURM_JOB_USER=BOB)
    assert (result.status, result.output) == (0, b"")
    assert os.listdir(site.scratch / BOB) == []


# ------------------------------------------------------------------------------------------------------ broken policies


@each_shell
def test_torn_policy_is_ignored(site: Site, shell: str) -> None:
    """A policy that was cut short, at any byte, is not used."""
    policy = site.hooks / "policy.sh"
    text = policy.read_bytes()
    for length in range(0, len(text) - 1, 50):
        policy.write_bytes(text[:length])
        result = task(site, shell=shell, HF_DATASETS_CACHE=str(site.cache(1)))
        assert (result.status, result.output) == (0, b""), length
    for length in (len(text) - 2, len(text) - 3):
        policy.write_bytes(text[:length])
        assert task(site, shell=shell).output == b""
    assert not site.cache().exists()


BROKEN: dict[str, Any] = {
    "missing": lambda policy: policy.unlink(),
    "empty": lambda policy: policy.write_text(""),
    "a directory": lambda policy: (policy.unlink(), policy.mkdir()),
    "unreadable": lambda policy: policy.chmod(0),
    "syntax error": lambda policy: policy.write_text("jc_policy_hash=1\nif then ((\njc_policy_end=1\n"),
    "not shell": lambda policy: policy.write_bytes(bytes(range(256)) * 8),
    "exits": lambda policy: policy.write_text("exit 7\n"),
    "prints": lambda policy: policy.write_text("jc_policy_hash=1\n"),
    "everybody's": lambda policy: policy.chmod(0o666),
    "a fifo's": lambda policy: policy.chmod(0o602),
    "another hash": lambda policy: policy.write_text(policy.read_text().replace("jc_policy_end='", "jc_policy_end='0")),
}


@each_shell
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_policy_is_ignored(site: Site, shell: str, broken: str) -> None:
    """Any file can be at the path of the policy: exit 0 without exports. A policy that users can write is not used."""
    BROKEN[broken](site.hooks / "policy.sh")
    result = task(site, shell=shell)
    assert (result.status, result.output) == (0, b"")
    assert not site.cache().exists()


def test_killed_hook_closes_slurms_pipe(site: Site) -> None:
    """If Slurm cancels a task whose TaskProlog waits, the pipe closes at once, and the timer ends soon after."""
    site.configure(task_prolog={"deadline": "2s"})
    site.policy(python=script(site, "/bin/sleep 2"))
    mark = f"mark-{uuid.uuid4()}"
    running = []
    for shell in SHELLS:
        command = [*shell.split(), str(site.hooks / "task-prolog")]
        env = {**task_prolog.environment(ALICE), "JC_TEST": mark}
        running.append(subprocess.Popen(command, env=env, user=UID, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    time.sleep(0.5)
    for process in running:
        process.send_signal(signal.SIGKILL)
        assert process.communicate(timeout=1) == (b"", b"")
    assert processes_left(mark, 5) == []
