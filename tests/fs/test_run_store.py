"""`jobcache run` fills a store: the last command of a cache publishes its finished builds, as the Epilog of a job does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from typing import Any

import pytest

from support.prompt import User, wait_until
from support.site_dir import Site
from support.store_jobs import LABEL, copying
from support.stores import Jobs, Template

JOB = {"SLURM_JOB_ID": "4242", "SLURMD_NODENAME": "n1", "SLURM_CLUSTER_NAME": "test", "SLURM_JOB_NUM_NODES": "1"}
LABELLED = {"JOBCACHE_STORE": LABEL}


@pytest.fixture
def user(site: Site) -> User:
    return User(site)


@pytest.fixture
def jobs(user: User) -> Jobs:
    """The site of `user`, with stores."""
    return Jobs(user.site)


def building(template: Template) -> str:
    """Return a script that leaves a build in the cache, as `load_dataset` does."""
    return copying(template)[-1]


def events(user: User) -> list[dict[str, Any]]:
    return user.site.syslog.events("store.published")


def nested(user: User, script: str) -> str:
    return shlex.join([sys.executable, "-m", "jobcache.cli", "run", "--config", user.config, "--", "/bin/sh", "-c", script])


def slow_store(user: User, seconds: float) -> str:
    """Return a PYTHONPATH with which each publication takes this time."""
    (user.home / "sitecustomize.py").write_text(
        "import time\nfrom jobcache.store import publishing\n"
        f"real = publishing.publish\npublishing.publish = lambda *args: (time.sleep({seconds}), real(*args))[1]\n"
    )
    return os.pathsep.join([str(user.home), *sys.path])


@pytest.mark.parametrize("env", [{}, JOB], ids=["no job", "a job without hooks"])
def test_next_command_begins_with_the_build_of_the_one_before(
    user: User, jobs: Jobs, template: Template, env: dict[str, str]
) -> None:
    """The build moves into the section of the label. Nothing is printed, and the cache is deleted."""
    done = user.run(building(template), env={**LABELLED, **env})
    assert (done.returncode, done.stderr, user.left()) == (0, "", ["hf-store"])
    (stored,) = jobs.stored(LABEL)
    (event,) = events(user)
    assert (event["outcome"], event["builds"], event["label"], event["by"]) == ("published", 1, LABEL, "run")
    manifest = json.loads((stored / "manifest.json").read_text())
    assert (manifest.get("job_id"), manifest.get("by")) == ((4242, None) if env else (None, "run"))
    again = user.run(f"readlink $HF_DATASETS_CACHE/{template.key}/*", env={**LABELLED, **env})
    assert {os.path.dirname(line) for line in again.stdout.split()} == {f"{stored}/files"} and again.stderr == ""
    assert len(events(user)) == 1 and user.run(f"ls $HF_DATASETS_CACHE/{template.key}").returncode != 0


def test_without_a_label_only_publish_all_publishes(user: User, jobs: Jobs, template: Template) -> None:
    """`publish: all`: the next command without a label begins with the build."""
    user.run(building(template))
    assert not jobs.path.exists() and events(user) == []
    jobs.site.configure(store={**jobs.site.keys["store"], "publish": "all"})
    assert user.run(building(template)).stderr == ""
    assert len(jobs.stored("*")) == 1
    assert user.run(f"test -L $HF_DATASETS_CACHE/{template.key}/dataset_info.json").returncode == 0


def test_results_of_map_on_top_of_a_stored_build_are_published(user: User, jobs: Jobs) -> None:
    """With the real `datasets`: of three equal commands, the first builds, the second one maps, and the third finds both."""
    data = user.home / "data.jsonl"
    data.write_text("".join(json.dumps({"id": number}) + "\n" for number in range(500)))
    load = f"import datasets, sys; ds = datasets.load_dataset('json', data_files={str(data)!r})['train']"
    load += "; [ds.map(lambda row: {'half': row['id'] / 2}) for _ in sys.argv[1:]]"
    count = "find $HF_DATASETS_CACHE/json -name '*.arrow' -type f | wc -l"
    made = []
    for words in ("", "map", "map"):
        done = user.run(f"{shlex.join([sys.executable, '-c', load])} {words} 2>/dev/null; {count}", env=LABELLED)
        assert done.stderr == ""
        made.append(int(done.stdout.split()[-1]))
    assert made == [1, 1, 0]


def test_failed_command_publishes_what_it_has_finished(user: User, jobs: Jobs, template: Template) -> None:
    """As in a failed job: a build is complete, or it is not published. The status stays the command's."""
    done = user.run(f"{building(template)}; exit 7", env=LABELLED)
    assert (done.returncode, done.stderr, len(jobs.stored(LABEL))) == (7, "", 1)


def test_kept_cache_is_not_published(user: User, jobs: Jobs, template: Template) -> None:
    """Its user wants to examine it as it is."""
    user.run(building(template), env={**LABELLED, "JOBCACHE": "keep"})
    assert not jobs.path.exists() and len(user.left()) == 1


def test_damaged_build_is_named_and_not_published(user: User, jobs: Jobs, template: Template) -> None:
    """One line on stderr. The other build enters the store, and the cache is deleted."""
    damaged = template.key.replace("default-", "default-0")
    script = f"{building(template)}; cp -a {template.key} {damaged[:-1]}0 2>/dev/null || {{ mkdir -p {os.path.dirname(damaged)}; "
    script += f"cp -a {template.key} {damaged}; }}; for file in {damaged}/*.arrow; do chmod u+w $file; echo x >$file; done"
    done = user.run(script, env=LABELLED)
    assert done.stderr.count("\n") == 1 and f"not all builds were published into {jobs.path}: {damaged}" in done.stderr
    assert len(jobs.stored(LABEL)) == 1 and user.left() == ["hf-store"]


def test_store_that_cannot_be_trusted_is_named(user: User, jobs: Jobs, template: Template) -> None:
    """Other users can write it: nothing is published, with the reason, and the cache is deleted."""
    jobs.path.mkdir(parents=True)
    for path in (jobs.path, *list(jobs.path.parents)[:2]):
        os.chown(path, *(os.stat(user.home).st_uid, os.stat(user.home).st_gid))
    jobs.path.chmod(0o777)
    done = user.run(building(template), env=LABELLED)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1) and f"published into {jobs.path}: " in done.stderr
    assert list(jobs.path.iterdir()) == [] and user.left() == ["hf-store"]


# ------------------------------------------------------------------------------------------------------- several commands


def test_only_the_last_of_nested_commands_publishes(user: User, jobs: Jobs, template: Template) -> None:
    """Builds of the inner and of the outer command enter the store together."""
    look = f"ls {jobs.path} 2>/dev/null | wc -l"
    done = user.run(f"{nested(user, building(template))}; {look}", env=LABELLED)
    assert (done.stdout.strip(), done.stderr) == ("0", "") and len(events(user)) == len(jobs.stored(LABEL)) == 1


def test_inner_command_that_ends_last_publishes(user: User, jobs: Jobs, template: Template) -> None:
    """The outer one has ended before: the label is that of the cache."""
    script = f"touch {user.home}/in; while [ ! -e {user.home}/go ]; do sleep 0.02; done; {building(template)}"
    inner = f"env -u JOBCACHE_STORE nohup {nested(user, script)} </dev/null >/dev/null 2>&1 &"
    done = user.run(f"{inner}\nwhile [ ! -e {user.home}/in ]; do sleep 0.02; done", env=LABELLED)
    assert done.stderr == "" and not jobs.path.exists()
    (user.home / "go").touch()
    wait_until(lambda: user.left() == ["hf-store"])
    assert len(jobs.stored(LABEL)) == len(events(user)) == 1


def test_last_of_two_ranks_on_a_node_publishes(user: User, jobs: Jobs, template: Template) -> None:
    """Two leases of one node are not two nodes."""
    wait = f"echo $JOBCACHE_DIR; while [ ! -e {user.home}/go ]; do sleep 0.02; done; exit 0"
    env = {**LABELLED, **JOB}
    with user.running(wait, env=env) as (process, _):
        assert user.run(building(template), env=env).stderr == "" and not jobs.path.exists()
        (user.home / "go").touch()
        assert process.communicate(timeout=20)[1] == ""
    assert len(jobs.stored(LABEL)) == 1


def test_cache_of_two_nodes_is_not_published(user: User, jobs: Jobs, template: Template) -> None:
    """The last node does not see the processes of the other one, as in a job with hooks."""
    wait = f"echo $JOBCACHE_DIR; while [ ! -e {user.home}/go ]; do sleep 0.02; done; exit 0"
    env = {**LABELLED, **JOB}
    with user.running(wait, env=env) as (process, _):
        user.run(building(template), env={**env, "SLURMD_NODENAME": "n2"})
        (user.home / "go").touch()
        assert process.communicate(timeout=20)[1] == ""
    user.run(building(template), env={**env, "SLURM_JOB_NUM_NODES": "2"})
    assert not jobs.path.exists() and events(user) == []


def test_background_process_leaves_the_builds_unpublished(user: User, jobs: Jobs, template: Template) -> None:
    """It may still write them: the cache is kept, and the sweep deletes it."""
    done = user.run(f"{building(template)}; sleep 60 </dev/null >/dev/null 2>&1 & echo $! >{user.home}/pid", env=LABELLED)
    os.kill(int((user.home / "pid").read_text()), signal.SIGKILL)
    assert "keeps" in done.stderr and not jobs.path.exists()


# ----------------------------------------------------------------------------------------------------------- time, signals


def test_publication_ends_at_its_deadline(user: User, jobs: Jobs, template: Template) -> None:
    """Half of `epilog.budget`: a store that hangs costs no more, one line reports it, and the cache is deleted."""
    began = time.monotonic()
    done = user.run(building(template), env={**LABELLED, "PYTHONPATH": slow_store(user, 50)})
    assert time.monotonic() - began < 30 and "does not answer" in done.stderr and user.left() == []
    (event,) = events(user)
    assert (event["outcome"], event["reason"]) == ("refused", "deadline")


def test_second_ctrl_c_skips_publishing(user: User, jobs: Jobs, template: Template) -> None:
    """The first one ends the command, the second one the publication. The cache is deleted, and nothing is printed."""
    jobs.site.configure(epilog={"budget": "100s", "deadline": "200s"})
    script = f"{building(template)}; echo $JOBCACHE_DIR; exec sleep 60"
    with user.running(script, env={**LABELLED, "PYTHONPATH": slow_store(user, 50)}) as (process, cache):
        os.killpg(process.pid, signal.SIGINT)
        wait_until(lambda: not (cache / ".jobcache/nodes").exists())  # the cache is left, and the publication begins
        time.sleep(0.5)
        assert process.poll() is None and cache.exists()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")
    assert user.left() == [] and not jobs.path.exists()


def test_killed_publication_leaves_what_a_sweep_deletes(user: User, jobs: Jobs, template: Template) -> None:
    """kill -9 during the publication."""
    jobs.site.configure(epilog={"budget": "100s", "deadline": "200s"})
    script = f"{building(template)}; echo $JOBCACHE_DIR"
    with user.running(script, env={**LABELLED, "PYTHONPATH": slow_store(user, 50)}) as (process, cache):
        wait_until(lambda: not (cache / ".jobcache/nodes").exists())
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)
        assert user.decisions() == {cache.name: ("reap", "orphan")}
