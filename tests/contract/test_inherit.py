"""The TaskProlog begins a private cache with links to the builds of its user, or gives the job none."""

from __future__ import annotations

import os
import pwd
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from support.home import fingerprint
from support.hungfs import hung
from support.site_dir import ALICE, SHELLS, Site
from support.spool import Spool
from support.task_prolog import Prologue
from support.user_cache import HASH, cut_short, put

KEY = f"json/default-1/0.0.0/{HASH}"


class User:
    """Alice's home with a build in her own cache. env: what her jobs have."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.home = site.dir / "alice"
        self.cache = self.home / ".cache/huggingface/datasets"
        put(self.cache, KEY)
        self.own()
        self.env = {"HOME": str(self.home)}

    def own(self) -> None:
        for path in (self.home, *self.home.rglob("*")):
            shutil.chown(path, ALICE)

    def task(self, job: int = 4242, **env: Any) -> Prologue:
        return self.site.task_prolog(job, **{**self.env, **env})

    def created(self) -> dict[str, Any]:
        """Return the field `inherited` of the last creation."""
        found: dict[str, Any] = self.site.syslog.events("cache.created")[-1].get("inherited", {})
        return found

    def skipped(self) -> list[tuple[str, str]]:
        return [(event["outcome"], event["reason"]) for event in self.site.syslog.events("cache.skipped")]


@pytest.fixture
def user(site: Site) -> Iterator[User]:
    yield User(site)


def is_linked(cache: str | None, key: str = KEY, file: str = "json-train.arrow") -> bool:
    return cache is not None and (Path(cache) / key / file).is_symlink()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("online", [{}, {"HF_HUB_OFFLINE": "1"}, {"HF_DATASETS_OFFLINE": "yes"}])
def test_cache_begins_with_the_builds_of_its_user(user: User, shell: str, online: dict[str, str]) -> None:
    """Also for an offline job. The user's cache stays as it was, to the end of the job."""
    before = fingerprint(user.cache)
    task = user.task(shell=shell, **online)
    assert is_linked(task.cache)
    found = user.created()
    assert {key: found[key] for key in ("builds", "files", "found", "source")} == {
        "builds": 1, "files": 3, "found": 1, "source": str(user.cache),
    }  # fmt: skip
    user.site.epilog()
    assert not user.site.cache().exists() and user.site.debris() == []
    assert fingerprint(user.cache) == before


@pytest.mark.parametrize("place", ["HF_HOME", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("spelled", ["absolute", "tilde"])
def test_variables_name_the_cache_of_the_user(user: User, place: str, spelled: str) -> None:
    to = user.home / ("data/huggingface" if place == "XDG_CACHE_HOME" else "data")
    to.parent.mkdir(exist_ok=True)
    (user.home / ".cache/huggingface").rename(to)
    assert is_linked(user.task(**{place: "~/data" if spelled == "tilde" else f"{user.home}/data"}).cache)


def test_user_without_a_cache_gets_an_empty_one(user: User) -> None:
    shutil.rmtree(user.home)
    task = user.task()
    assert task.cache and os.listdir(task.cache) == [".jobcache"]
    assert {key: user.created()[key] for key in ("builds", "files", "bytes")} == {"builds": 0, "files": 0, "bytes": 0}


@pytest.mark.parametrize("way", ["key", "rule", "variable"])
def test_inheritance_can_be_switched_off(user: User, way: str) -> None:
    """An offline job then gets no private cache."""
    env = {"JOBCACHE_INHERIT": "off"} if way == "variable" else {}
    if way == "key":
        user.site.configure(inherit="off")
    elif way == "rule":
        user.site.configure(rules=[{"match": {"user": ALICE}, "inherit": "off"}])
    task = user.task(**env)
    assert task.cache and os.listdir(task.cache) == [".jobcache"] and user.created() == {}
    assert user.task(7, HF_HUB_OFFLINE="1", **env).cache is None
    assert user.skipped() == [("skipped", "offline")]


def test_offline_can_be_skipped(user: User) -> None:
    user.site.configure(offline="skip")
    assert user.task(HF_HUB_OFFLINE="1").cache is None and user.skipped() == [("skipped", "offline")]


def test_offline_step_in_a_container_gets_no_cache(user: User) -> None:
    """The links would lead to a home that the container may not see."""
    assert user.task(HF_HUB_OFFLINE="1", SLURM_CONTAINER="/bundle").cache is None
    assert is_linked(user.task(7, SLURM_CONTAINER="/bundle").cache)


def test_own_value_of_the_user_stays(user: User) -> None:
    user.site.configure(exports={"HF_DATASETS_CACHE": "{cache}", "OTHER": "{cache}/other"})
    task = user.task(HF_DATASETS_CACHE=str(user.cache))
    assert set(task.exports) == {"OTHER", "JOBCACHE_DIR"}
    assert os.listdir(user.site.cache()) == [".jobcache"] and user.created() == {}


def test_cache_of_another_job_is_not_inherited(user: User) -> None:
    """Not by HF_DATASETS_CACHE of the job that ran sbatch, and not by HF_HOME in that cache."""
    first = user.task()
    assert first.cache
    put(Path(first.cache), "json/private/0.0.0/x")
    put(Path(first.cache) / "datasets", "json/private/0.0.0/y")
    account = pwd.getpwnam(ALICE)
    for path in Path(first.cache).rglob("*"):
        os.lchown(path, account.pw_uid, account.pw_gid)
    env = {"HF_DATASETS_CACHE": first.cache, "JOBCACHE_DIR": first.cache}
    second = user.task(7, **env)
    assert is_linked(second.cache) and not (Path(second.cache or "") / "json/private").exists()
    third = user.task(8, HF_HOME=first.cache, **env)
    assert third.cache and os.listdir(third.cache) == [".jobcache"]


def test_path_below_the_cache_is_linked(user: User) -> None:
    """`exports` can put HF_DATASETS_CACHE below the cache."""
    user.site.configure(exports={"HF_DATASETS_CACHE": "{cache}/hf/datasets"})
    task = user.task()
    assert task.cache == f"{user.site.cache()}/hf/datasets" and is_linked(task.cache)
    user.site.configure(scope="task")
    for step in ("0", "1"):
        task = user.task(step=step, JOBCACHE_DIR=str(user.site.cache()))
        assert task.cache and task.cache.endswith(f"step-{step}-task-0/hf/datasets") and is_linked(task.cache)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("scope", ["node", "task"])
def test_own_directories_of_nodes_and_tasks_are_linked(user: User, shell: str, scope: str) -> None:
    user.site.configure(scope=scope)
    batch = user.task(shell=shell)
    assert is_linked(batch.cache)
    for node, rank in (("n1", "0"), ("n2", "1")):
        task = user.task(node=node, step="3", shell=shell, SLURM_PROCID=rank, JOBCACHE_DIR=str(user.site.cache()))
        assert is_linked(task.cache), task.output
        names = {"node": f"node-{node}", "task": f"step-3-task-{rank}"}
        assert task.cache == f"{user.site.cache()}/{names[scope]}"


def test_requeued_job_is_linked_again(user: User) -> None:
    for run in ("0", "1"):
        assert is_linked(user.task(SLURM_RESTART_COUNT=run).cache)


def test_damaged_dataset_is_left_out_and_named(user: User) -> None:
    build = put(user.cache, "alice___data/default/0.0.0/1")
    cut_short(build / "data-train.arrow")
    user.own()
    os.utime(build, (1_600_000_000, 1_600_000_000))
    task = user.task()
    assert is_linked(task.cache) and not (Path(task.cache or "") / "alice___data").exists()
    found = user.created()
    assert found["left_out_datasets"] == 1
    (left_out,) = found["left_out"]
    assert (left_out["dataset"], left_out["reason"]) == ("alice___data", "damaged") and "data-train.arrow" in left_out["error"]


@pytest.mark.parametrize("shell", SHELLS)
def test_job_with_too_many_builds_gets_no_cache(user: User, shell: str) -> None:
    """As if jobcache were not installed; its steps do not try again."""
    user.site.configure(inherit_max_builds=1)
    put(user.cache, "json/default-2/0.0.0/x")
    user.own()
    task = user.task(shell=shell)
    assert task.exports == {"JOBCACHE_DECLINED": str(user.site.cache())} and task.unsets == []
    assert user.site.debris() == [] and not user.site.cache().exists()
    (event,) = user.site.syslog.events("cache.skipped")
    assert (event["outcome"], event["reason"], event["inherited"]["found"]) == ("refused", "inherit_too_many", 2)
    step = user.task(step="0", shell=shell, **task.exports)
    assert step.exports == {} and len(user.site.syslog.events()) == 1
    assert user.task(7, shell=shell, **task.exports).exports["JOBCACHE_DECLINED"].endswith("-7")


def test_relative_path_gets_no_cache(user: User) -> None:
    assert user.task(HF_HOME="").cache is None
    assert user.skipped() == [("refused", "inherit_relative")]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("killable", [True, False])
def test_hung_home_costs_the_budget(user: User, shell: str, killable: bool) -> None:
    """The job gets no private cache, within the deadline."""
    user.site.configure(task_prolog={"deadline": "3s"})
    with hung(user.cache.parent, killable=killable):
        began = time.monotonic()
        task = user.task(shell=shell)
        assert time.monotonic() - began < 2.5
        assert task.cache is None and "JOBCACHE_DECLINED" in task.exports
    assert user.skipped() == [("refused", "inherit_budget")]
    assert not user.site.cache().exists() and user.site.debris() == []


@pytest.mark.parametrize("shell", SHELLS)
def test_late_batch_task_gets_no_cache(user: User, shell: str) -> None:
    """If scratch does not answer, no link exists. The batch script then runs as if jobcache were not installed."""
    user.site.configure(task_prolog={"deadline": "1s"})
    with hung(user.site.scratch):
        assert user.task(shell=shell).exports == {}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("python", ["/nonexistent", "/bin/false"])
def test_without_python_a_user_with_builds_gets_no_cache(user: User, shell: str, python: str) -> None:
    """The shell cannot link them. A user without builds gets an empty cache."""
    user.site.policy(python=python)
    task = user.task(shell=shell)
    assert task.cache is None and not user.site.cache().exists()
    assert user.task(7, shell=shell, JOBCACHE_INHERIT="off").cache
    assert user.task(8, shell=shell, HF_HOME="").cache is None
    shutil.rmtree(user.cache / "json")
    (user.cache / "downloads").mkdir()
    assert user.task(9, shell=shell).cache


@pytest.mark.parametrize("shell", SHELLS)
def test_without_python_the_directory_of_a_node_is_not_empty(user: User, shell: str) -> None:
    """A node whose Python is broken joins a cache, and has no links in its own directory."""
    user.site.configure(scope="node")
    assert is_linked(user.task(shell=shell).cache)
    user.site.policy(python="/nonexistent")
    known = {"JOBCACHE_DIR": str(user.site.cache())}
    assert user.task(step="0", node="n2", shell=shell, **known).cache is None
    assert is_linked(user.task(step="0", node="n1", shell=shell, **known).cache)


# ---------------------------------------------------------------------------------- scripts that set HF_HOME themselves


NODE = f"n{uuid.uuid4().hex[:8]}"  # test processes share the names of sockets, and have the same process ids


def in_batch(user: User, script: str, shell: str = "/bin/sh", **env: str) -> Prologue:
    """Run the TaskProlog of the batch task of a job with this script."""
    with Spool(user.site.dir / "spool", ALICE, NODE, 4242, f"#!/bin/bash\n{script}\n"):
        return user.task(shell=shell, node=NODE, **env)


@pytest.fixture
def other(user: User) -> Path:
    """A second cache of Alice, with another build; it is to be HF_HOME."""
    put(user.home / "other/datasets", "json/default-2/0.0.0/x")
    user.own()
    return user.home / "other"


@pytest.mark.parametrize("shell", SHELLS)
def test_cache_begins_with_the_builds_that_the_script_names(user: User, other: Path, shell: str) -> None:
    task = in_batch(user, f"export HF_HOME={other}\npython train.py", shell)
    assert is_linked(task.cache, "json/default-2/0.0.0/x") and not is_linked(task.cache)
    assert user.created()["source"] == f"{other}/datasets"


@pytest.mark.parametrize("shell", SHELLS)
def test_job_whose_script_computes_its_cache_gets_none(user: User, shell: str) -> None:
    """Its steps do not try again."""
    task = in_batch(user, "export HF_HOME=$SCRATCH/hf", shell)
    assert task.exports == {"JOBCACHE_DECLINED": str(user.site.cache())}
    assert user.site.debris() == [] and not user.site.cache().exists()
    (event,) = user.site.syslog.events("cache.skipped")
    assert (event["outcome"], event["reason"]) == ("refused", "inherit_script") and "$SCRATCH/hf" in event["error"]
    assert user.task(step="0", shell=shell, **task.exports).exports == {}


@pytest.mark.parametrize("script", ["python train.py", "export HF_HOME=$X\nexport HF_DATASETS_CACHE=/own"])
def test_script_without_a_word_on_it_changes_nothing(user: User, script: str) -> None:
    assert is_linked(in_batch(user, script).cache)


def test_script_does_not_count_without_inheritance(user: User) -> None:
    """Nor for a step of the same job."""
    script = "export HF_HOME=$SCRATCH/hf"
    task = in_batch(user, script, JOBCACHE_INHERIT="off")
    assert task.cache and os.listdir(task.cache) == [".jobcache"]
    with Spool(user.site.dir / "spool2", ALICE, NODE, 7, script):
        assert is_linked(user.task(7, step="0", node=NODE).cache)


# ------------------------------------------------------------------------------------------------- steps with another home


def known(user: User) -> dict[str, str]:
    """Return the variables that a step has from the batch script."""
    return {"JOBCACHE_DIR": str(user.site.cache()), "HF_DATASETS_CACHE": str(user.site.cache())}


def build(cache: Path, key: str) -> Path:
    """Put a build of Alice's into a cache; return its directory."""
    made = put(cache, key)
    for path in (*made.iterdir(), made, *list(made.parents)[:3]):
        shutil.chown(path, ALICE)
    return made


def is_other(cache: str | None) -> bool:
    """Return whether a directory has the builds of `other`, and those alone."""
    return is_linked(cache, "json/default-2/0.0.0/x") and not is_linked(cache)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("inherits", [True, False])
@pytest.mark.parametrize("online", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["online", "offline"])
def test_step_with_another_home_begins_with_its_builds(
    user: User, other: Path, shell: str, inherits: bool, online: dict[str, str]
) -> None:
    """In a directory of its own, which all steps with that home share. Steps of the cache's home see no difference."""
    assert is_linked(user.task(shell=shell).cache)
    env = {**online, **(known(user) if inherits else {})}
    first = user.task(step="0", shell=shell, HF_HOME=str(other), **env)
    assert is_other(first.cache) and Path(first.cache or "").parent == user.site.cache()
    assert first.exports["JOBCACHE_DIR"] == str(user.site.cache())
    build(Path(first.cache or ""), "json/default-9/0.0.0/x")
    for node in ("n1", "n2"):
        again = user.task(step="1", node=node, shell=shell, HF_HOME=str(other), **env)
        assert again.cache == first.cache and (Path(again.cache or "") / "json/default-9").exists()
    assert user.task(step="2", shell=shell, **env).cache == str(user.site.cache())
    assert user.task(step="3", shell=shell, **{**first.exports}).cache == str(user.site.cache())
    for node in ("n2", "n1"):
        user.site.epilog(node=node, nodes=2)
    assert not user.site.cache().exists() and user.site.debris() == []


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("scope", ["node", "task"])
def test_directory_of_a_node_or_task_with_another_home(user: User, other: Path, shell: str, scope: str) -> None:
    user.site.configure(scope=scope, exports={"HF_DATASETS_CACHE": "{cache}/datasets", "OTHER": "{cache}/other"})
    user.task(shell=shell)
    env = {"JOBCACHE_DIR": str(user.site.cache()), "step": "0", "shell": shell}
    assert is_other(user.task(HF_HOME=str(other), node="n2", **env).cache), "it is the first task there"
    theirs = user.task(**env)
    build(Path(theirs.cache or ""), "csv/default-5/0.0.0/x")
    task = user.task(HF_HOME=str(other), **env)
    assert is_other(task.cache) and is_linked(theirs.cache) and task.cache != theirs.cache
    assert is_linked(task.cache, "csv/default-5/0.0.0/x", "csv-train.arrow") or scope == "task"
    assert Path(task.exports["OTHER"]).parent == Path(task.cache or "").parent


@pytest.mark.parametrize("shell", SHELLS)
def test_other_spelling_of_the_home_changes_nothing(user: User, shell: str) -> None:
    """A further step with it needs no Python."""
    (user.home / "link").symlink_to(".cache/huggingface")
    user.task(shell=shell)
    for home in ("link", ".cache/huggingface", ".cache/../.cache/huggingface/"):
        for _ in range(2):
            task = user.task(step="0", shell=shell, HF_HOME=f"{user.home}/{home}", **known(user))
            assert task.cache == str(user.site.cache())
            user.site.policy(python="/nonexistent")
        user.site.configure()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("home", ["a+b", "a%2Bb", "a b", "ä", "a'\"\\b", "$HOME"])
def test_home_with_any_name(user: User, other: Path, shell: str, home: str) -> None:
    shutil.move(other, user.home / home)
    put(user.home / "a/b/datasets", "json/default-3/0.0.0/x")
    user.own()
    user.task(shell=shell)
    for name, key in ((home, "json/default-2/0.0.0/x"), ("a/b", "json/default-3/0.0.0/x")):
        task = user.task(step="0", shell=shell, HF_HOME=f"{user.home}/{name}", **known(user))
        assert is_linked(task.cache, key) and len(os.listdir(f"{task.cache}/json")) == 1
    user.task(7, shell=shell, HF_HOME=f"{user.home}/{home}")
    cache = str(user.site.cache(7))
    assert user.task(7, step="0", shell=shell, HF_HOME=f"{user.home}/{home}").cache == cache


@pytest.mark.parametrize("shell", SHELLS)
def test_step_with_the_home_of_the_script_uses_the_cache(user: User, other: Path, shell: str) -> None:
    """And a step without it, by `srun --export`, finds what it finds without jobcache."""
    task = in_batch(user, f"export HF_HOME={other}\nsrun a", shell)
    assert user.task(step="0", node=NODE, shell=shell, HF_HOME=str(other), **known(user)).cache == task.cache
    assert is_linked(user.task(step="1", node=NODE, shell=shell, **known(user)).cache)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("why", ["too many", "damaged home", "no python", "newline", "relative", "late"])
def test_step_whose_home_cannot_be_linked_gets_no_cache(user: User, other: Path, shell: str, why: str) -> None:
    """It runs as if jobcache were not installed; later steps of the cache's home use the cache."""
    home = str(other)
    user.task(shell=shell)
    if why == "too many":
        user.site.configure(inherit_max_builds=1)
        put(other / "datasets", "json/default-3/0.0.0/x")
        user.own()
    elif why == "damaged home":
        (other / "datasets").chmod(0o300)
    elif why == "no python":
        user.site.policy(python="/nonexistent")
    elif why == "late":
        user.site.configure(task_prolog={"deadline": "3s"})
    home = {"newline": f"{user.home}/a\nb", "relative": "hf"}.get(why, home)
    with hung(other / "datasets") if why == "late" else nullcontext():
        task = user.task(step="0", shell=shell, HF_HOME=home, **known(user))
    assert task.exports == {} and task.unsets == ["HF_DATASETS_CACHE", "JOBCACHE_DIR"]
    assert user.task(step="1", shell=shell, **known(user)).cache == str(user.site.cache())
    user.site.configure()
    user.site.epilog()
    assert not user.site.cache().exists() and user.site.debris() == []


def test_builds_that_the_job_made_are_found_with_another_home(user: User, other: Path) -> None:
    """A program of the batch script, whose directory does not depend on HF_HOME, can have made them for this step."""
    user.task()
    made = build(user.site.cache(), "csv/default-5/0.0.0/x")
    task = user.task(step="0", HF_HOME=str(other), **known(user))
    assert is_other(task.cache)
    assert (Path(task.cache or "") / "csv/default-5/0.0.0/x/csv-train.arrow").samefile(made / "csv-train.arrow")


def test_home_without_builds_begins_empty(user: User) -> None:
    user.task()
    task = user.task(step="0", HF_HOME="/nonexistent", **known(user))
    assert task.cache and task.cache.startswith(f"{user.site.cache()}/home") and os.listdir(task.cache) == []


@pytest.mark.parametrize("env", [{"JOBCACHE_INHERIT": "off"}, {"JOBCACHE": "off"}, {"HF_DATASETS_CACHE": "/own"}])
def test_home_does_not_count_for_a_step_without_links(user: User, other: Path, env: dict[str, str]) -> None:
    user.task()
    task = user.task(step="0", HF_HOME=str(other), **{**known(user), **env})
    assert task.cache == (None if "HF_DATASETS_CACHE" in env else str(user.site.cache()))
    assert [name for name in os.listdir(user.site.cache()) if name.startswith("home")] == []


@pytest.mark.parametrize("way", ["earlier version", "off"])
def test_home_does_not_count_in_a_cache_without_one(user: User, other: Path, way: str) -> None:
    """A job that began under an earlier version goes on as it began."""
    user.task(JOBCACHE_INHERIT="off" if way == "off" else "")
    if way != "off":
        shutil.rmtree(user.site.cache() / ".jobcache/sources")
    assert user.task(step="0", HF_HOME=str(other), **known(user)).cache == str(user.site.cache())


def test_tasks_with_two_homes_start_together(user: User, other: Path) -> None:
    """Without a batch script, on two nodes: each finds the builds of its home."""
    with ThreadPoolExecutor(8) as pool:

        def start(at: int) -> Prologue:
            home = {"HF_HOME": str(other)} if at % 2 else {}
            return user.task(step="0", node=f"n{at % 4}", SLURM_LOCALID=str(at // 4), SLURM_PROCID=str(at), **home)

        found = list(pool.map(start, range(8)))
    assert all(is_linked(task.cache) for task in found[::2])
    assert all(is_other(task.cache) for task in found[1::2])
    assert len({task.cache for task in found}) == 2
    (created,) = user.site.syslog.events("cache.created")
    for node in ("n0", "n1", "n2", "n3"):
        user.site.epilog(node=node, nodes=4)
    assert not user.site.cache().exists() and user.site.debris() == []
