"""The TaskProlog as Slurm runs it: a subprocess, as the user, in each shell that /bin/sh may be."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.hungfs import hung  # noqa: E402
from support.mounts import mount  # noqa: E402
from support.site_dir import ALICE, BOB, SHELLS, Prologue, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
RECORDED = Path(__file__).parent / "environments"
UID = pwd.getpwnam(ALICE).pw_uid
EXPORTED = {"HF_DATASETS_CACHE", "JOBCACHE_DIR"}
each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])


class Told(Prologue):
    """As Prologue, with what went to stderr, and how long it took."""

    def __init__(self, status: int, output: bytes, stderr: bytes, seconds: float) -> None:
        super().__init__(status, output)
        self.stderr = stderr
        self.seconds = seconds


def run(site: Site, env: dict[str, str], *, shell: str = "/bin/sh", title: str = "", timeout: float = 20) -> Told:
    """Run the TaskProlog in exactly this environment. title: of the process that runs it, as slurmstepd has one."""
    command = [*shell.split(), str(site.hooks / "task-prolog")]
    executable = None
    if title:
        command = [title, "-c", '"$@"; exit $?', "sh", *command]
        executable = "/bin/dash"
    began = time.monotonic()
    done = subprocess.run(
        command, executable=executable, env=env, user=UID, group=UID, extra_groups=[], cwd="/", stdin=subprocess.DEVNULL,
        capture_output=True, check=False, timeout=timeout,
    )  # fmt: skip
    return Told(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def task(site: Site, *, step: str = "", job: int = 4242, shell: str = "/bin/sh", title: str = "", **env: str) -> Told:
    """Run the TaskProlog of a task on n1; step "" is the batch script's. env: further variables."""
    return run(site, {**slurm(job, step), **env}, shell=shell, title=title)


def slurm(job: int = 4242, step: str = "") -> dict[str, str]:
    """The least that Slurm sets."""
    told = {"SLURM_JOB_ID": str(job), "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    return {
        **told,
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "PATH": "/usr/bin:/bin",
        **({"SLURM_STEP_ID": step} if step else {}),
    }


def listing(site: Site) -> set[str]:
    """Everything that is in the site's directory but in the scratch."""
    return {str(path) for path in site.dir.rglob("*") if site.scratch not in path.parents}


def skipped(site: Site) -> list[tuple[str, str]]:
    """(outcome, reason) of each cache.skipped so far."""
    return [(event["outcome"], event["reason"]) for event in site.syslog.events("cache.skipped")]


def quiet(site: Site) -> None:
    """Have no event said: it takes a Python each."""
    site.configure(log={"file": str(site.log), "syslog": False})


def own(path: Path, user: str = ALICE) -> Path:
    """Give everything there and below to `user`."""
    who = pwd.getpwnam(user)
    for each in (path, *path.rglob("*")):
        os.lchown(each, who.pw_uid, who.pw_gid)
    return path


def marked(mark: str) -> list[str]:
    """The command lines of processes whose environment holds `mark`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found


def wait_for_none(mark: str, seconds: float = 1.0) -> list[str]:
    until = time.monotonic() + seconds
    while marked(mark) and time.monotonic() < until:
        time.sleep(0.02)
    return marked(mark)


# --------------------------------------------------------------------------------------------- recorded environments

FIRST = {"batch", "array", "het", "interactive", "requeued", "batch-in-requeued", "batch-in-step"}


def recorded(file: Path) -> tuple[str, dict[str, str]]:
    """The title and the environment in the file."""
    head, *lines = file.read_text().splitlines()
    return head[2:], dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("version", sorted(os.listdir(RECORDED)))
def test_recorded_environments(site: Site, version: str) -> None:
    """Job, run and node are read right, and the first task of a run is known as such: it joins no earlier life's cache."""
    files = [file for file in sorted((RECORDED / version).glob("*.env")) if "epilog" not in file.name]
    assert len(files) >= 12
    for at, file in enumerate(files):
        title, env = recorded(file)
        job, run_count = int(env["SLURM_JOB_ID"]), int(env.get("SLURM_RESTART_COUNT", "0"))
        cache = site.cache(job, run_count)
        shutil.rmtree(cache.parent, ignore_errors=True)
        site.task_prolog(job, SLURM_RESTART_COUNT=str(run_count), node="n9")
        told = run(site, env, shell=SHELLS[at % 3], title=title)
        assert (told.status, told.cache) == (0, str(cache)), file
        assert (cache / ".jobcache/nodes" / env["SLURMD_NODENAME"]).exists(), file
        assert len(site.debris()) == (file.stem in FIRST), file


@pytest.mark.parametrize("version", ["22.05", "26.05"])
@pytest.mark.parametrize("name", ["batch", "step", "interactive", "salloc-step", "het-step"])
def test_recorded_without_a_title(site: Site, version: str, name: str) -> None:
    """In a container the title may not be seen: SLURM_STEP_ID tells as much, but in a job that was submitted from a step."""
    _, env = recorded(RECORDED / version / f"{name}.env")
    site.task_prolog(int(env["SLURM_JOB_ID"]), node="n9")
    told = run(site, env)
    assert told.exports.keys() == EXPORTED
    assert len(site.debris()) == (name in FIRST)


# ----------------------------------------------------------------------------------------------------- each variable


@each_shell
def test_what_is_handed_on_is_replaced(site: Site, shell: str) -> None:
    """A value in a cache of this user's, of any job, run, template and depth, was another job's export."""
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
        told = task(site, step="0", shell=shell, HF_DATASETS_CACHE=value, JOBCACHE_DIR=value)
        assert told.exports == {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}, value
        assert told.unsets == []


@each_shell
def test_the_users_own_value_is_left_alone(site: Site, shell: str) -> None:
    """Whatever else the user has set, look-alikes included: nothing is exported, nothing made, and one event says so."""
    near = site.cache().parent
    others = [
        "/home/games/hf", "relative", "~", " ", "$(id)", "`id`", "*", "'\"\\", "\udcff\udcfe", "two\nlines", "é",
        f"{near}", f"{near}/",
        f"x{site.cache()}", f"{site.cache()}x", f"{site.cache()}\nexport A=b", str(site.cache(user=BOB)),
        f"{site.scratch}//{ALICE}/.cache/hf-datasets-4242", f"{near}/my-hf-datasets-4242",
    ]  # fmt: skip
    no_jobs = ["2024-corpus", "12abc", "", "0", "007", "4242-r0", "4242-r", "4242-r01", "99999999999"]
    quiet(site)
    for value in [*others, *(f"{near}/hf-datasets-{name}" for name in no_jobs)]:
        told = task(site, shell=shell, HF_DATASETS_CACHE=value)
        assert (told.status, told.output) == (0, b""), value
    assert not site.scratch.joinpath(ALICE).exists()
    site.configure(log={"file": str(site.log), "syslog": str(site.syslog.path)})
    task(site, shell=shell, HF_DATASETS_CACHE="/mine")
    assert skipped(site) == [("skipped", "user_value")]


@each_shell
def test_an_empty_value_is_none(site: Site, shell: str) -> None:
    """A variable that is set to nothing is as one that is not set."""
    assert task(site, shell=shell, HF_DATASETS_CACHE="").cache == str(site.cache())


@each_shell
def test_each_export_is_decided_by_itself(site: Site, shell: str) -> None:
    """One variable that the user has set does not keep another from being exported."""
    exports = {"HF_DATASETS_CACHE": "{cache}", "HF_MODULES_CACHE": "{cache}/modules", "HF_METRICS_CACHE": "{cache}/it's $x"}
    site.configure(exports=exports)
    told = task(site, shell=shell, HF_DATASETS_CACHE="/mine", HF_MODULES_CACHE=f"{site.cache(1)}/modules")
    assert told.exports == {
        "HF_MODULES_CACHE": f"{site.cache()}/modules",
        "HF_METRICS_CACHE": f"{site.cache()}/it's $x",
        "JOBCACHE_DIR": str(site.cache()),
    }


@each_shell
def test_another_jobs_value_goes_where_there_is_no_cache(site: Site, shell: str) -> None:
    """It goes with that job: where this one gets none of its own, it is unset. Its own job's, and the user's, are not."""
    inherited = {"HF_DATASETS_CACHE": str(site.cache(1)), "JOBCACHE_DIR": str(site.cache(1))}
    told = task(site, shell=shell, JOBCACHE="off", **inherited)
    assert (told.exports, told.unsets) == ({}, ["HF_DATASETS_CACHE", "JOBCACHE_DIR"])
    own = {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}
    told = task(site, shell=shell, JOBCACHE="off", **own)
    assert (told.exports, told.unsets) == (own, [])
    told = task(site, shell=shell, JOBCACHE="off", HF_DATASETS_CACHE="/mine", JOBCACHE_DIR=str(site.cache(1)))
    assert (told.exports, told.unsets) == ({}, ["JOBCACHE_DIR"])


# ------------------------------------------------------------------------------------------------------- the user's say


@each_shell
def test_jobcache_off_and_keep(site: Site, shell: str) -> None:
    """`off`: nothing but an event. `keep`: a word in the cache. Anything else: as if it were not set."""
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
def test_scopes(site: Site, shell: str) -> None:
    """The whole job's, each node's or each task's directory, all of them in the one cache; the user's word counts."""
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
        told = task(site, step=step, shell=shell, JOBCACHE_SCOPE=scope, SLURM_PROCID="7" if step else "0")
        assert told.exports == {"HF_DATASETS_CACHE": value, "JOBCACHE_DIR": cache}
    site.configure(scope="task")
    assert task(site, step="3", shell=shell).cache == f"{cache}/step-3-task-0"
    assert task(site, step="3", shell=shell, JOBCACHE_SCOPE="job").cache == cache
    # What the batch script's task was given, its steps inherit.
    assert (
        task(site, step="4", shell=shell, HF_DATASETS_CACHE=f"{cache}/batch", JOBCACHE_DIR=cache).cache
        == f"{cache}/step-4-task-0"
    )
    assert os.listdir(cache) == [".jobcache"]


@each_shell
def test_offline_jobs(site: Site, shell: str) -> None:
    """Jobs that say they are offline live from what is in their own cache, unless the site says `isolate`."""
    assert task(site, shell=shell, HF_HUB_OFFLINE="1").output == b""
    assert not site.cache().exists() and skipped(site) == [("skipped", "offline")]
    quiet(site)
    task(site)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        for value in ("1", "true", "TRUE", "True", "yes", "YES", "on", "ON", "oN"):
            assert task(site, step="0", shell=shell, **{name: value}).output == b"", value
        for value in ("0", "", "false", "no", "off", "2", "y", "1 ", "\n1"):
            assert task(site, step="0", shell=shell, **{name: value}).cache, value
    site.configure(offline="isolate")
    assert task(site, step="0", shell=shell, HF_HUB_OFFLINE="1").cache


# ------------------------------------------------------------------------------------------------------- the site's say


@each_shell
def test_rules(site: Site, shell: str) -> None:
    """The first rule of which every key matches overrides the rest; a job that says nothing of itself matches no name."""
    own_path = f"{site.scratch}/astro/{{user}}/{{job_id}}"
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
    for told, exports, reason in cases:
        before = len(skipped(site))
        env = {names.get(key, key): value for key, value in told.items()}
        assert task(site, shell=shell, **env).exports == exports, told
        assert [why for _, why in skipped(site)[before:]] == ([reason] if reason else []), told


@each_shell
def test_observe_and_off(site: Site, shell: str) -> None:
    """`observe` changes no job's environment, `off` does not even say so, and the file `off` stops all."""
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
def test_none_here_and_one_of_another_job(site: Site, shell: str, keys: dict[str, Any]) -> None:
    """What a job with a cache handed on to one that gets none is taken away: it goes when that other job ends."""
    site.configure(**keys)
    another = str(site.cache(1))
    told = task(site, shell=shell, HF_DATASETS_CACHE=f"{another}/x", JOBCACHE_DIR=another)
    assert told.output == b"unset HF_DATASETS_CACHE\nunset JOBCACHE_DIR\n"
    own = {"HF_DATASETS_CACHE": "/home/alice/hf", "JOBCACHE_DIR": ""}
    assert task(site, shell=shell, **own).output == b""
    assert not site.cache().exists()


@each_shell
@pytest.mark.parametrize("keys", NO_CACHE, ids=["observe", "off", "rule"])
def test_none_here_but_one_from_another_node(site: Site, shell: str, keys: dict[str, Any]) -> None:
    """While a policy is rolled out, a job that has its cache from a node where it gets one joins it where it would not."""
    assert task(site, shell=shell).cache
    site.configure(**keys)
    handed = {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}
    assert task(site, step="0", shell=shell, SLURMD_NODENAME="n2", **handed).exports == handed
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]


@each_shell
@pytest.mark.parametrize("said", [{"HF_HUB_OFFLINE": "1"}, {"JOBCACHE": "off"}], ids=["offline", "off"])
def test_a_step_that_asks_for_none(site: Site, shell: str, said: dict[str, str]) -> None:
    """A script that has filled its cache goes offline for its steps: they work in that cache, so their nodes hold it. A
    step that works elsewhere takes no part in it."""
    cache = str(site.cache())
    assert task(site, shell=shell).cache
    handed = {"HF_DATASETS_CACHE": cache, "JOBCACHE_DIR": cache, "SLURMD_NODENAME": "n2", **said}
    for elsewhere in ("", "/home/alice/hf", f"{cache}0"):
        assert task(site, step="0", shell=shell, **{**handed, "HF_DATASETS_CACHE": elsewhere}).exports == {}, elsewhere
    assert os.listdir(site.cache() / ".jobcache/nodes") == ["n1"]
    assert task(site, step="0", shell=shell, **handed).exports == {"HF_DATASETS_CACHE": cache, "JOBCACHE_DIR": cache}
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]


@each_shell
@pytest.mark.parametrize("scope", ["node", "task"])
def test_a_step_that_goes_offline_keeps_what_the_script_filled(site: Site, shell: str, scope: str) -> None:
    """Another node's or task's directory of the one cache would be empty, and nothing could fill it."""
    site.configure(scope=scope)
    filled = task(site, shell=shell).exports
    assert filled["HF_DATASETS_CACHE"] == f"{site.cache()}/{'node-n1' if scope == 'node' else 'batch'}"
    told = task(site, step="0", shell=shell, SLURMD_NODENAME="n2", HF_HUB_OFFLINE="1", **filled)
    assert told.exports == filled
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]


@each_shell
def test_handed_on_by_a_newer_policy(site: Site, shell: str) -> None:
    """A path that is not known here is no value of the user's where JOBCACHE_DIR says so: this job's gives way to the one
    that this node gives it, and stays where it gives none; another job's goes in any case."""
    mine, another = f"/new/{ALICE}/hf-datasets-4242", f"/new/{ALICE}/hf-datasets-42424"
    for path in (mine, f"{mine}-r2", another, "/new/1/4241"):
        told = task(site, step="0", shell=shell, HF_DATASETS_CACHE=f"{path}/x", JOBCACHE_DIR=path)
        assert told.cache == str(site.cache()), path
    for path in (f"/new/{ALICE}", "new/4242", f"{another}/", mine + "2"):  # of no job, or not where the value is
        own = task(site, step="0", shell=shell, HF_DATASETS_CACHE=f"{mine}/x", JOBCACHE_DIR=path)
        assert "HF_DATASETS_CACHE" not in own.exports, path
    site.configure(mode="observe")
    assert task(site, step="0", shell=shell, HF_DATASETS_CACHE=mine, JOBCACHE_DIR=mine).output == b""
    gone = b"unset HF_DATASETS_CACHE\nunset JOBCACHE_DIR\n"
    for path in (another, "/new/1/4241", "/new/1/14242"):
        assert task(site, step="0", shell=shell, HF_DATASETS_CACHE=path, JOBCACHE_DIR=path).output == gone


@each_shell
def test_min_uid(site: Site, shell: str) -> None:
    """Users below it get nothing, and nothing is said."""
    for least, given in ((UID + 1, False), (UID, True)):
        site.configure(min_uid=least)
        assert bool(task(site, shell=shell).cache) == given
    assert [event["event"] for event in site.syslog.events()] == ["cache.created"]


@each_shell
def test_said_once_a_job(site: Site, shell: str) -> None:
    """Why there is none is said by the batch script's task; without a batch script, by rank 0 of the first step."""
    off = {"JOBCACHE": "off", "shell": shell}
    task(site, ENVIRONMENT="BATCH", **off)
    task(site, step="0", ENVIRONMENT="BATCH", **off)
    assert len(skipped(site)) == 1
    task(site, step="0", SLURM_PROCID="1", **off)
    task(site, step="1", **off)
    assert len(skipped(site)) == 1
    task(site, step="0", **off)
    assert len(skipped(site)) == 2


# --------------------------------------------------------------------------------------------------- runs and lives


@each_shell
def test_each_run_has_a_cache_of_its_own(site: Site, shell: str) -> None:
    """A requeued job's restart is part of the name, canonical or 0."""
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
        told = task(site, shell=shell, SLURM_RESTART_COUNT=count)
        assert told.exports["JOBCACHE_DIR"] == str(site.cache(run=which)), count


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_the_first_task_joins_no_earlier_life(site: Site, shell: str, python: bool) -> None:
    """The batch script's task trashes a cache of this job id that it finds; a step's joins it."""
    site.task_prolog(node="n7")
    site.fill(site.cache(), "old")
    if not python:
        site.policy(python="/nonexistent")
    assert task(site, step="0", shell=shell).cache
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n7"] and not site.debris()
    assert task(site, shell=shell).cache
    assert os.listdir(site.cache() / ".jobcache/nodes") == ["n1"] and not (site.cache() / "old").exists()
    (trash,) = site.debris()
    assert trash.startswith(".jobcache-trash-4242-") and trash.rpartition("-")[2].isalnum()
    assert (site.cache().parent / trash / "old").exists()


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_a_job_that_has_the_path_already_is_past_its_first_task(site: Site, shell: str, python: bool) -> None:
    """An interactive step that comes second, however it looks, does not take the cache for an earlier life's."""
    if not python:
        site.policy(python="/nonexistent")
    told = task(site, shell=shell)
    site.fill(site.cache(), "live")
    task(site, shell=shell, title="slurmstepd: [4242.interactive]", **told.exports)
    assert (site.cache() / "live").exists() and not site.debris()


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_what_the_script_remade_is_mended(site: Site, shell: str, python: bool) -> None:
    """Where the job has the path from us, a directory that its script made there gets its record back."""
    if not python:
        site.policy(python="/nonexistent")
    told = task(site, shell=shell)
    shutil.rmtree(site.cache())
    site.cache().mkdir()
    own(site.cache())
    site.fill(site.cache(), "built")
    assert task(site, step="0", shell=shell).output == b"", "without JOBCACHE_DIR it is somebody's"
    assert task(site, step="0", shell=shell, **told.exports).exports == told.exports
    assert (site.cache() / ".jobcache/id").exists() and (site.cache() / "built").exists() and not site.debris()
    site.configure()  # the Epilog has its Python
    site.epilog()
    assert not site.cache().exists()


STANDS: dict[str, Any] = {
    "another user's": lambda cache: own(directory(cache), BOB),
    "another user's, recorded": lambda cache: own(directory(cache, f"test 4242 0 {UID}\n"), BOB),
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
    """A directory, with an id that holds `line`, where one is given."""
    path.mkdir()
    if line is not None:
        (path / ".jobcache/nodes").mkdir(parents=True)
        (path / ".jobcache/id").write_text(line)
    return path


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_what_is_not_ours_is_left_alone(site: Site, shell: str, python: bool) -> None:
    """Whatever stands at the path and is not this run's cache: no exports, exit 0, and it is as it was."""
    if not python:
        site.policy(python="/nonexistent")
    home = site.cache().parent
    home.mkdir(parents=True)
    for stands, make in STANDS.items():
        make(site.cache())
        if "another user" not in stands:
            own(home)
        own(site.scratch / ALICE) if "another user" not in stands else os.chown(home, UID, UID)
        before = sorted(str(path) for path in home.rglob("*"))
        for step in ("", "0"):
            told = task(site, step=step, shell=shell, HF_DATASETS_CACHE=str(site.cache(1)))
            assert (told.status, told.exports, told.unsets) == (0, {}, ["HF_DATASETS_CACHE"]), stands
        assert sorted(str(path) for path in home.rglob("*")) == before, stands
        for name in os.listdir(home):
            shutil.rmtree(home / name) if (home / name).is_dir() and not (home / name).is_symlink() else (home / name).unlink()
    if python:
        assert {why for _, why in skipped(site)} == {"foreign", "unrecorded"}


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_what_is_being_reaped_is_not_joined(site: Site, shell: str, python: bool) -> None:
    """Without nodes/ the cache is on its way out, to whomever comes: nothing is made in it, and no export names it."""
    site.configure(task_prolog={"deadline": "1s"})
    task(site)
    if not python:
        site.policy(python="/nonexistent")
    shutil.rmtree(site.cache() / ".jobcache/nodes")
    for step in ("0", ""):
        told = task(site, step=step, shell=shell)
        assert (told.status, told.output) == (0, b"")
    assert sorted(os.listdir(site.cache() / ".jobcache")) == ["id", "job.json"] and not site.debris()
    if python:
        assert skipped(site) == [("refused", "busy")] * 2


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_an_empty_unrecorded_directory_is_replaced(site: Site, shell: str, python: bool) -> None:
    """As scripts make it beforehand, with the very path in them. busybox's mv does not replace it: then there is none."""
    if not python:
        site.policy(python="/nonexistent")
    site.cache().mkdir(parents=True)
    own(site.scratch / ALICE)
    assert task(site, shell=shell).cache
    assert (site.cache() / ".jobcache/id").exists()


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
@pytest.mark.parametrize("level", [0, 1])
def test_symlinked_parents(site: Site, shell: str, python: bool, level: int) -> None:
    """Root's own symlinks on the way are followed; a user's are not, since the Epilog would not either."""
    if not python:
        site.policy(python="/nonexistent")
    link = [site.scratch / ALICE, site.scratch / ALICE / ".cache"][level]
    real = site.scratch / "real"
    real.mkdir()
    if level:
        own(directory(link.parent))
    link.symlink_to(real)
    own(real)
    assert task(site, shell=shell).cache
    assert len(list(real.rglob("id"))) == 1
    os.lchown(link, UID, UID)
    assert task(site, job=5, shell=shell).output == b""
    assert len(list(real.rglob("id"))) == 1
    if python:
        assert skipped(site) == [("failed", "not_directory")]


# ------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def closed(site: Site, how: str) -> Iterator[str]:
    """Make the user's part of scratch refuse; the reason that the event has to give."""
    place = directory(site.scratch / ALICE)
    if how == "closed":
        yield "no_access"  # root's, and not writable
        return
    with mount("tmpfs", place, "tmpfs", "size=1m,nr_inodes=40" if how == "full" else ""):
        own(directory(place / ".cache").parent)
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
    """Leave neither room nor inodes."""
    for at in range(100):
        try:
            (place / f"filler-{at}").write_bytes(b"x" * 65536)
        except OSError:
            if at > 60:
                break


@each_shell
@pytest.mark.parametrize("how", ["closed", "impassable", "read-only", "full"])
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_where_no_cache_can_be_made(site: Site, shell: str, how: str, python: bool) -> None:
    """The job runs as if we were not there: no exports, exit 0, what another job handed on taken away, and why is said."""
    if not python:
        site.policy(python="/nonexistent")
    with closed(site, how) as reason:
        before = set(os.listdir(site.scratch / ALICE))
        told = task(site, shell=shell, HF_DATASETS_CACHE=str(site.cache(1)), JOBCACHE_DIR=str(site.cache(1)))
        assert (told.status, told.exports, told.unsets) == (0, {}, ["HF_DATASETS_CACHE", "JOBCACHE_DIR"])
        assert set(os.listdir(site.scratch / ALICE)) == before
        assert not site.debris()
    if python:
        assert skipped(site) == [("failed", reason)]


@each_shell
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_joining_on_a_full_disk(site: Site, shell: str, python: bool) -> None:
    """A lease is a name: where there is room for that and not for what is in it, it holds the cache all the same."""
    place = directory(site.scratch / ALICE)
    with mount("tmpfs", place, "tmpfs", "size=1m"):
        own(place)
        site.task_prolog(node="n7")
        try:
            (place / "filler").write_bytes(b"x" * (2 << 20))
        except OSError:
            pass
        if not python:
            site.policy(python="/nonexistent")
        assert task(site, step="0", shell=shell).exports.keys() == EXPORTED
        assert (site.cache() / ".jobcache/nodes/n1").exists()


# ------------------------------------------------------------------------------------------------- Python in trouble


def script(site: Site, text: str) -> str:
    """A program in place of Python."""
    path = site.dir / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@each_shell
@pytest.mark.parametrize("python", ["/nonexistent", "exit 1", "exit 0", "kill -SEGV $$", "/etc/passwd", "/tmp"])
def test_without_python_the_shell_makes_the_cache(site: Site, shell: str, python: str) -> None:
    """It is as complete as Python's: id, record, nodes/, lease; joined, discarded, released and reaped like it."""
    site.task_prolog(1)
    site.policy(python=python if python.startswith("/") else script(site, python))
    told = task(site, shell=shell)
    assert told.exports.keys() == EXPORTED
    assert compared(site.cache()) == compared(site.cache(1))
    assert task(site, step="0", shell=shell, SLURMD_NODENAME="n2").exports == told.exports
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"]
    site.configure()  # the Epilog has its Python
    site.epilog(nodes=2)
    site.epilog(node="n2", nodes=2)
    assert not site.cache().exists() and not site.debris()


def compared(cache: Path) -> object:
    """What has to be alike in every cache."""
    identity = (cache / ".jobcache/id").read_text().split()
    record = json.loads((cache / ".jobcache/job.json").read_text())
    varying = {record.pop("job_id"): record.pop("created_at")}
    (boot, uptime) = (cache / ".jobcache/nodes/n1").read_text().split()
    modes = {str(path.relative_to(cache)): oct(path.stat().st_mode) for path in [cache, *cache.rglob("*")]}
    assert float(uptime) > 0 and len(varying) == 1
    return identity[0], identity[2:], record, boot, modes


def at_once(site: Site, **env: str) -> list[Told]:
    """Run TaskProlog in all shells at once, for the batch script and two steps."""
    with ThreadPoolExecutor(9) as pool:
        runs = [pool.submit(task, site, shell=shell, step=step, **env) for shell in SHELLS for step in ("", "0", "1")]
        return [run.result() for run in runs]


def test_a_hung_python(site: Site) -> None:
    """At the deadline it is killed, and the exports are printed all the same, so that all ranks of a job agree."""
    site.configure(task_prolog={"deadline": "1s"})
    site.policy(python=script(site, "/bin/sleep 30"))
    mark = f"mark-{uuid.uuid4()}"
    for told in at_once(site, JC_TEST=mark):
        assert (told.status, told.exports.keys()) == (0, EXPORTED)
        assert 0.9 < told.seconds < 2
    assert wait_for_none(mark) == []


@each_shell
def test_without_a_clock(site: Site, shell: str) -> None:
    """In a container without /bin/sleep there is nothing to keep the deadline by: no cache, rather than a task that hangs."""
    inside = 'mount --bind /etc/passwd /usr/bin/sleep && exec setpriv --reuid "$1" --regid "$1" --clear-groups -- "${@:2}"'
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", inside, "bash", str(UID), *shell.split(), str(site.hooks / "task-prolog")],
        env={**slurm(), "HF_DATASETS_CACHE": str(site.cache(1))}, capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"unset HF_DATASETS_CACHE\n", b"")


@each_shell
def test_no_process_outlives_the_hook(site: Site, shell: str) -> None:
    """Neither the timer nor its sleep, whether Python ran or not."""
    mark = f"mark-{uuid.uuid4()}"
    for step in ("", "0", "0"):
        task(site, step=step, shell=shell, JC_TEST=mark)
    task(site, shell=shell, JC_TEST=mark, JOBCACHE="off")
    assert wait_for_none(mark) == []


# ------------------------------------------------------------------------------------------------------- hung scratch


@pytest.mark.parametrize("killable", [True, False])
@pytest.mark.parametrize("python", [True, False], ids=["python", "shell"])
def test_hung_scratch(site: Site, killable: bool, python: bool) -> None:
    """The exports are printed within the deadline and a second, and no process is left that can be ended."""
    site.configure(task_prolog={"deadline": "1s"})
    if not python:
        site.policy(python="/nonexistent")
    place = own(directory(site.scratch / ALICE))
    mark = f"mark-{uuid.uuid4()}"
    with hung(place, killable=killable):
        for told in at_once(site, JC_TEST=mark):
            assert (told.status, told.exports.keys()) == (0, EXPORTED)
            assert 0.9 < told.seconds < 2
        if killable:
            assert wait_for_none(mark) == []
    assert wait_for_none(mark) == []


def test_a_fifo_for_an_id(site: Site) -> None:
    """What its own user makes of a cache holds up that user's task for the deadline, and no longer."""
    site.configure(task_prolog={"deadline": "1s"})
    task(site)
    (site.cache() / ".jobcache/id").unlink()
    os.mkfifo(site.cache() / ".jobcache/id")
    own(site.cache())
    mark = f"mark-{uuid.uuid4()}"
    with ThreadPoolExecutor(3) as pool:
        for told in pool.map(lambda shell: task(site, step="0", shell=shell, JC_TEST=mark), SHELLS):
            assert told.exports.keys() == EXPORTED and told.seconds < 2
    assert wait_for_none(mark) == []


# ------------------------------------------------------------------------------------------------------- many at once


@each_shell
def test_many_tasks_at_once(site: Site, shell: str) -> None:
    """16 tasks on each of two nodes: all are told the same, there is one cache with two leases, and little Python ran."""
    ran = site.scratch / "ran"
    ran.touch()
    ran.chmod(0o666)
    real = os.path.realpath(sys.executable)
    site.configure(task_prolog={"deadline": "20s"})
    site.policy(python=script(site, f'echo "$SLURMD_NODENAME" >>{ran}; exec {real} "$@"'))
    start = threading.Barrier(32)

    def one(at: int) -> Told:
        start.wait()
        return task(
            site, step="0", shell=shell, SLURMD_NODENAME=f"n{at % 2 + 1}", SLURM_LOCALID=str(at // 2), SLURM_PROCID=str(at)
        )

    with ThreadPoolExecutor(32) as pool:
        told = list(pool.map(one, range(32)))
    assert {(one.status, one.output) for one in told} == {(0, told[0].output)}
    assert told[0].exports.keys() == EXPORTED
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"] and not site.debris()
    assert all(ran.read_text().split().count(node) <= 2 for node in ("n1", "n2"))
    assert len(site.syslog.events("cache.created")) == 1


def test_nearly_all_tasks_run_no_python(site: Site) -> None:
    """Where id and lease are there, the shell alone does it."""
    task(site)
    site.policy(python=script(site, f"touch {site.scratch}/ran"))
    assert task(site, step="0").cache and task(site, step="0", SLURMD_NODENAME="n2").cache
    assert not (site.scratch / "ran").exists()


@each_shell
def test_descriptors_that_are_closed(site: Site, shell: str) -> None:
    """Slurm 20.11 runs it with stdin and stderr closed: it has its cache all the same, and so does the chained one."""
    closing = site.dir / "closing"
    closing.write_text('#!/bin/sh\nexec "$@" <&- 2>&-\n')
    closing.chmod(0o755)
    assert task(site, shell=f"{closing} {shell}").exports.keys() == EXPORTED
    chained(site, "#!/bin/sh\necho export SITE=1\necho said >&2\nexit 3\n")
    told = task(site, shell=f"{closing} {shell}", step="0")
    assert (told.status, told.exports.keys()) == (3, {*EXPORTED, "SITE"})


# ------------------------------------------------------------------------------------------------------------ chaining


def chained(site: Site, text: str, mode: int = 0o755) -> Path:
    """Configure a TaskProlog of the site's own."""
    path = site.dir / "site-task-prolog"
    path.write_text(text)
    path.chmod(mode)
    site.configure(task_prolog={"chain": str(path)})
    return path


@each_shell
@pytest.mark.parametrize("status", [0, 3])
def test_a_chained_task_prolog(site: Site, shell: str, status: int) -> None:
    """The site's own comes after ours, with the task's own environment and stderr; what it says and exits with, counts."""
    dump = site.scratch / "environment"
    chained(site, f"#!/bin/sh\n/usr/bin/env -0 >{dump}\necho export SITE=1\necho said >&2\nexit {status}\n")
    env = {
        **slurm(),
        "LD_LIBRARY_PATH": "/x",
        "ODD": "a\nb 'c' \\",
        "IFS": " \t\n",
        "JOBCACHE": "keep",
        "SHLVL": "1",
        "OLDPWD": "/",
        "PWD": "/",
        "_": "x",
    }
    told = run(site, env, shell=shell)
    assert (told.status, told.stderr) == (status, b"said\n")
    assert list(told.exports) == ["HF_DATASETS_CACHE", "JOBCACHE_DIR", "SITE"]
    found = dict(line.split("=", 1) for line in dump.read_text().split("\0")[:-1])
    varying = {"SHLVL", "OLDPWD", "PWD", "_"}
    assert {key: value for key, value in found.items() if key not in varying} == {
        key: value for key, value in env.items() if key not in varying
    }


@each_shell
def test_the_chained_one_runs_whatever_becomes_of_ours(site: Site, shell: str) -> None:
    """Nothing to do, no job, no scratch, switched off: the site's own is none the worse for it."""
    chained(site, "#!/bin/sh\necho export SITE=1\nexit 3\n")
    for env in ({"JOBCACHE": "off"}, {"SLURM_JOB_ID": ""}, {"SLURM_JOB_UID": "x"}, {"HF_DATASETS_CACHE": "/mine"}):
        told = task(site, shell=shell, **env)
        assert (told.status, told.exports) == (3, {"SITE": "1"})
    (site.hooks / "off").touch()
    assert task(site, shell=shell).status == 3


@each_shell
@pytest.mark.parametrize("kind", ["missing", "not executable", "directory", "bad interpreter", "garbage"])
def test_a_chained_one_that_cannot_run(site: Site, shell: str, kind: str) -> None:
    """It is ignored: no task is cancelled for it."""
    path = chained(
        site, {"bad interpreter": "#!/nonexistent\n", "garbage": "\x7fELF\x00\x01 garbage"}.get(kind, "#!/bin/sh\nexit 3\n")
    )
    if kind == "not executable":
        path.chmod(0o644)
    elif kind != "bad interpreter" and kind != "garbage":
        path.unlink()
        if kind == "directory":
            path.mkdir()
    told = task(site, shell=shell)
    assert told.exports.keys() == EXPORTED
    assert told.status == 0 or (kind, shell) == ("garbage", "/bin/busybox sh")  # which takes anything for a script


# ------------------------------------------------------------------------------------------------ hostile environments

FUNCTIONS = "[ printf read kill wait umask shopt set unset trap exec exit return jc_main jc_plan test true".split()
VARIABLES = "dir hash whole lib chain out exports unsets skip late status line found again first keep nl child clock".split()
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
    "ours": {f"jc_{name}": "export FORGED=1" for name in VARIABLES},
    "users": {"USER": "root", "LOGNAME": "root", "HOME": "/root", "PWD": "/x", "TMPDIR": "/nonexistent"},
    "numbers": {"UID": "0", "EUID": "0", "PPID": "1", "LINENO": "x", "RANDOM": "x", "SECONDS": "x", "HISTSIZE": "-1"},
    "bytes": {"A": "\udcff\udcfe", "B": "a\nexport FORGED=1\n", "C.D": "x", "1": "x", "@": "x"},
}


@pytest.mark.parametrize("shell", [*SHELLS, "sh"], ids=["dash", "bash", "busybox", "bash as sh"])
@pytest.mark.parametrize("odd", ODD_SHELL)
def test_odd_environments(site: Site, shell: str, odd: str) -> None:
    """Whatever a user has in the environment that shells, loaders and Python heed: it changes nothing that is printed."""
    if shell == "sh":
        (site.dir / "sh").symlink_to("/bin/bash")
        shell = str(site.dir / "sh")
    plain = task(site, shell=shell)
    before = listing(site)
    for step in ("", "0"):
        told = task(site, step=step, shell=shell, **ODD_SHELL[odd])
        assert (told.status, told.output) == (0, plain.output)
    assert listing(site) == before
    assert sorted(os.listdir(site.cache() / ".jobcache")) == ["id", "job.json", "nodes"]


@each_shell
def test_an_environment_that_lets_bash_run_nothing(site: Site, shell: str) -> None:
    """noexec: bash does as it is told, and reads us without running us."""
    told = task(site, shell=shell, SHELLOPTS="noexec")
    assert told.status == 0
    assert told.output == b"" or told.exports.keys() == EXPORTED


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
def test_absurd_words_of_slurm(site: Site, name: str) -> None:
    """Exit 0, whole lines, all values below the user's part of scratch, and nothing made anywhere else."""
    site.configure(scope="task", path=f"{site.scratch}/{{user}}/{{node}}/hf-{{job_id}}")
    before = listing(site)
    for at, value in enumerate(ABSURD):
        told = run(site, {**slurm(step="0"), name: value}, shell=SHELLS[(at + len(name)) % 3])
        assert told.status == 0
        for exported in told.exports.values():
            assert exported.startswith(f"{site.scratch}/") and exported == os.path.normpath(exported), value
    assert listing(site) == before
    assert {ALICE, *ABSURD} >= set(os.listdir(site.scratch))


@each_shell
def test_nothing_of_slurm(site: Site, shell: str) -> None:
    """No job, no cache."""
    assert run(site, {}, shell=shell).output == b""
    for name in NAMES[:4]:
        env = slurm()
        del env[name]
        told = run(site, env, shell=shell)
        assert (told.status, told.output) == (0, b"")
    assert os.listdir(site.scratch) == []


@each_shell
def test_a_user_whom_others_name(site: Site, shell: str) -> None:
    """A SLURM_JOB_USER that is another's leads to a place where that user's directory is not ours to write."""
    own(directory(site.scratch / BOB), BOB)
    (site.scratch / BOB).chmod(0o755)
    told = task(site, shell=shell, SLURM_JOB_USER=BOB)
    assert (told.status, told.output) == (0, b"")
    assert os.listdir(site.scratch / BOB) == []


# ------------------------------------------------------------------------------------------------------ broken policies


@each_shell
def test_a_policy_cut_short(site: Site, shell: str) -> None:
    """A file that ends early, wherever it does, is no policy."""
    policy = site.hooks / "policy.sh"
    text = policy.read_bytes()
    for length in range(0, len(text) - 1, 50):
        policy.write_bytes(text[:length])
        told = task(site, shell=shell, HF_DATASETS_CACHE=str(site.cache(1)))
        assert (told.status, told.output) == (0, b""), length
    for length in (len(text) - 2, len(text) - 3):
        policy.write_bytes(text[:length])
        assert task(site, shell=shell).output == b""
    assert not site.cache().exists()


BROKEN: dict[str, Any] = {
    "missing": lambda policy: policy.unlink(),
    "empty": lambda policy: policy.write_text(""),
    "a directory": lambda policy: (policy.unlink(), policy.mkdir()),
    "unreadable": lambda policy: policy.chmod(0),
    "syntax error": lambda policy: policy.write_text("jc_hash=1\nif then ((\njc_whole=1\n"),
    "not shell": lambda policy: policy.write_bytes(bytes(range(256)) * 8),
    "exits": lambda policy: policy.write_text("exit 7\n"),
    "prints": lambda policy: policy.write_text("jc_hash=1\n"),
    "everybody's": lambda policy: policy.chmod(0o666),
    "a fifo's": lambda policy: policy.chmod(0o602),
    "another hash": lambda policy: policy.write_text(policy.read_text().replace("jc_whole='", "jc_whole='0")),
}


@each_shell
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_policy(site: Site, shell: str, broken: str) -> None:
    """Exit 0 and no exports, whatever lies where the policy should be; one that users can write is not obeyed."""
    BROKEN[broken](site.hooks / "policy.sh")
    told = task(site, shell=shell)
    assert (told.status, told.output) == (0, b"")
    assert not site.cache().exists()


def test_killed_it_holds_nobody_up(site: Site) -> None:
    """A task that is cancelled while its TaskProlog waits: Slurm's pipe is closed at once, and our timer ends soon after."""
    site.configure(task_prolog={"deadline": "2s"})
    site.policy(python=script(site, "/bin/sleep 2"))
    mark = f"mark-{uuid.uuid4()}"
    running = []
    for shell in SHELLS:
        command = [*shell.split(), str(site.hooks / "task-prolog")]
        env = {**slurm(), "JC_TEST": mark}
        running.append(subprocess.Popen(command, env=env, user=UID, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    time.sleep(0.5)
    for process in running:
        process.send_signal(signal.SIGKILL)
        assert process.communicate(timeout=1) == (b"", b"")
    assert wait_for_none(mark, 5) == []
