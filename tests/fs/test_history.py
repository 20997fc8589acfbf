"""A user's own history: what the hooks, the sweep and `jobcache run` write into it, and `jobcache explain` from it alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import pwd
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jobcache import epilog
from jobcache.cache import cache_names, entry_names, history, path_template
from jobcache.cli import explain_question, options
from jobcache.cli.main import main
from jobcache.config import settings
from jobcache.diagnostics import histories
from jobcache.runner.request import request_of
from jobcache.system import reaper
from support import task_prolog
from support.faulty import swept
from support.home import acting_as, uid_of
from support.prompt import User
from support.site_dir import ALICE, BOB, SHELLS, Site, validated

ROOT = os.geteuid() == 0
SKIPS: dict[str, tuple[dict[str, str], str]] = {
    "off": ({"JOBCACHE": "off"}, "JOBCACHE=off"),
    "offline": ({"HF_HUB_OFFLINE": "1", "JOBCACHE_INHERIT": "off"}, "HF_HUB_OFFLINE"),
    "own value": ({"HF_DATASETS_CACHE": "/own"}, "does not change these"),
    "a rule": ({"SLURM_JOB_PARTITION": "other"}, "a rule of the site"),
}


def parent_of(site: Site) -> Path:
    return site.scratch / ALICE / ".cache"


def make_parent(site: Site) -> Path:
    """Make the directory of ALICE's caches; return it."""
    parent = parent_of(site)
    parent.mkdir(parents=True)
    for path in (parent, parent.parent):
        os.chown(path, uid_of(ALICE), pwd.getpwnam(ALICE).pw_gid)
    return parent


def told(site: Site) -> list[tuple[object, ...]]:
    """Return (event, job id, outcome, reason) of each line of ALICE's history."""
    return [(one["event"], one.get("job_id"), one["outcome"], one.get("reason")) for one in site.history()]


def ask(site: Site, *argv: str, user: str = ALICE, env: dict[str, str] | None = None) -> Result:
    """Run `explain` as a user who can read no log. Slurm does not answer."""
    with acting_as(user):
        return CliRunner().invoke(main, ["explain", "--hooks", str(site.hooks), *argv], env=env, catch_exceptions=False)


@pytest.fixture
def quiet(site: Site) -> Site:
    """A site without Slurm, whose rules give the partition `other` no cache."""
    site.configure(
        slurm={"squeue": "/nonexistent", "scontrol": "/nonexistent"},
        rules=[{"match": {"partition": ["other"]}, "cache": "off"}],
        log={"file": str(site.log), "syslog": str(site.syslog.path)},
    )
    (site.hooks / settings.FILE).chmod(0o644)
    return site


# ----------------------------------------------------------------------------------------------------------- the writer


def lines_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / cache_names.HISTORY).read_text().splitlines() if line]


def append(directory: Path, line: str = '{"a": 1}') -> bool:
    fd = os.open(directory, os.O_PATH)
    try:
        return history.append(fd, line)
    finally:
        os.close(fd)


def test_line_begins_after_a_torn_one(scratch: Path) -> None:
    """A line that another host tore does not reach into the next one."""
    assert append(scratch)
    with (scratch / cache_names.HISTORY).open("a") as file:
        file.write('{"torn": ')
    assert append(scratch, '{"b": 2}')
    text = (scratch / cache_names.HISTORY).read_text()
    assert text == '\n{"a": 1}\n{"torn": \n{"b": 2}\n' and (scratch / cache_names.HISTORY).stat().st_mode & 0o777 == 0o600


def test_two_generations_are_kept_within_the_limit(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LIMIT", 1000)
    for at in range(200):
        assert append(scratch, json.dumps({"at": at}))
        sizes = [path.stat().st_size for path in scratch.iterdir()]
        assert max(sizes) <= 1000
    assert sorted(os.listdir(scratch)) == [cache_names.HISTORY, cache_names.HISTORY_OLDER]
    older = [json.loads(line)["at"] for line in (scratch / cache_names.HISTORY_OLDER).read_text().splitlines() if line]
    assert lines_of(scratch)[-1] == {"at": 199} and older[-1] + 1 == lines_of(scratch)[0]["at"]


def write_many(directory: Path, name: str) -> None:
    with acting_as(ALICE):
        for at in range(300):
            append(directory, json.dumps({"by": name, "at": at, "x": "y" * (at % 50)}))


def test_lines_of_many_processes_stay_whole(scratch: Path) -> None:
    """Also while generations change."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(scratch, f"p{at}")) for at in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(lines_of(scratch)) == 1200


def in_place(directory: Path, what: str) -> Callable[[], object] | None:
    """Put something else than a history at its name. Return what shows that nothing was done to it, None if nothing can be."""
    at, other = directory / cache_names.HISTORY, directory / "precious"
    other.write_text("precious")
    if what == "fifo":
        os.mkfifo(at)
    elif what == "fifo with a reader":
        os.mkfifo(at)
        os.open(at, os.O_RDONLY | os.O_NONBLOCK)  # closed with the child process that makes it
    elif what == "directory":
        at.mkdir()
    elif what == "symlink":
        at.symlink_to(other)
    elif what == "dangling symlink":
        at.symlink_to(directory / "new")
    elif what == "hard link":
        os.link(other, at)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            os.chdir(directory)
            made.bind(cache_names.HISTORY)
            os.chdir("/")
    elif what == "read-only":
        at.touch(0o400)
    return other.read_text


KINDS = ("fifo", "directory", "symlink", "dangling symlink", "hard link", "socket")


@pytest.mark.parametrize("what", KINDS)
def test_other_things_in_its_place_get_no_line(scratch: Path, what: str) -> None:
    content = in_place(scratch, what)
    began = time.monotonic()
    assert not append(scratch) and time.monotonic() - began < 5
    assert content and content() == "precious" and not (scratch / "new").exists()


@pytest.mark.skipif(not ROOT, reason="needs root, to make files of other users and devices")
@pytest.mark.parametrize("what", ["foreign", "device"])
def test_files_of_others_get_no_line(scratch: Path, what: str) -> None:
    at = scratch / cache_names.HISTORY
    os.seteuid(0)
    if what == "device":
        os.mknod(at, 0o020666, os.makedev(1, 3))
        os.chown(at, uid_of(ALICE), -1)
    else:
        at.touch()
        at.chmod(0o666)
        os.chown(at, uid_of(BOB), -1)
    os.seteuid(uid_of(ALICE))
    assert not append(scratch)


@pytest.mark.root
def test_directory_of_another_user_gets_no_line(quiet: Site) -> None:
    """A user who makes a directory at the path of another user, with a cache of the job in it, gets no file there."""
    parent = parent_of(quiet)
    (parent / quiet.cache().name).mkdir(parents=True)
    for path in (parent.parent, parent, quiet.cache()):
        os.chown(path, uid_of(BOB), -1)
        path.chmod(0o777)
    quiet.task_prolog()
    quiet.task_prolog(JOBCACHE="off")
    quiet.epilog()
    assert os.listdir(parent) == [quiet.cache().name]
    assert [(one["event"], one["reason"]) for one in quiet.events()] == [("cache.kept", "foreign")]


def test_full_history_stays_if_something_else_has_the_older_name(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rename replaces it; the history gets no more lines."""
    monkeypatch.setattr(history, "LIMIT", 15)
    (scratch / "precious").write_text("precious")
    os.link(scratch / "precious", scratch / cache_names.HISTORY_OLDER)
    assert append(scratch) and not append(scratch) and not append(scratch)
    assert (scratch / cache_names.HISTORY_OLDER).read_text() == "precious" and len(lines_of(scratch)) == 1


def test_history_is_no_cache_and_is_never_deleted(scratch: Path) -> None:
    """By no template, and not by the reaper."""
    template = path_template.Template("/s/{user}/{node}.{job_id}")
    for name in (cache_names.HISTORY, cache_names.HISTORY_OLDER):
        assert entry_names.parse_entry(name, path_template.matcher(template.name, {})) is None
        (scratch / name).mkdir()
        parent, fd = os.open(scratch, os.O_PATH), os.open(scratch / name, os.O_RDONLY)
        with pytest.raises(reaper.Kept, match="history"):
            reaper.retire(parent, name, fd, os.geteuid(), 1)
        os.close(parent)
        os.close(fd)
        assert (scratch / name).exists()


# ------------------------------------------------------------------------------------------------------------ the hooks


def test_life_of_a_job_is_two_lines(quiet: Site) -> None:
    """Further tasks and nodes write nothing."""
    quiet.task_prolog()
    quiet.task_prolog(step="0")
    quiet.task_prolog(step="0", node="n2")
    quiet.epilog(nodes=2)
    quiet.epilog(nodes=2, node="n2")
    assert told(quiet) == [("cache.created", 4242, "made", None), ("cache.reaped", 4242, "reaped", None)]
    found = (parent_of(quiet) / cache_names.HISTORY).stat()
    assert (found.st_uid, found.st_mode & 0o777) == (uid_of(ALICE), 0o600)
    (event,) = quiet.events("cache.reaped")
    assert {**quiet.history()[1], "ts": "", "fs_free_bytes": 0} == {**event, "ts": "", "fs_free_bytes": 0}
    assert quiet.names() == []


def test_task_of_an_array_is_in_all_events(quiet: Site) -> None:
    env = {"SLURM_ARRAY_JOB_ID": "4200", "SLURM_ARRAY_TASK_ID": "7"}
    quiet.task_prolog(**env)
    quiet.epilog(**env)
    for event in (*quiet.history(), *quiet.events(), *quiet.syslog.events("cache.created")):
        assert (event["array_job_id"], event["array_task_id"]) == (4200, 7)
    quiet.task_prolog(4243, SLURM_ARRAY_JOB_ID="4200", SLURM_ARRAY_TASK_ID="4294967294")
    assert "array_job_id" not in quiet.history()[-1]


@pytest.mark.parametrize("how", SKIPS)
def test_skipped_job_has_a_line_where_the_directory_exists(quiet: Site, how: str) -> None:
    variables, text = SKIPS[how]
    quiet.task_prolog(1, **variables)
    assert not parent_of(quiet).exists()
    make_parent(quiet)
    quiet.task_prolog(2, **variables)
    quiet.task_prolog(2, step="0", ENVIRONMENT="BATCH", **variables)
    assert [one[:3] for one in told(quiet)] == [("cache.skipped", 2, "skipped")]
    assert text in ask(quiet, "2").stdout


def test_job_that_is_only_observed_writes_nothing(quiet: Site) -> None:
    make_parent(quiet)
    quiet.configure(mode="observe")
    quiet.task_prolog()
    assert quiet.syslog.events("cache.skipped") and not list(parent_of(quiet).iterdir())


def test_refused_job_has_one_line(quiet: Site) -> None:
    """Each task of the job finds the same directory; the first one writes the line."""
    make_parent(quiet)
    quiet.cache().mkdir()
    (quiet.cache() / "x").touch()
    os.chown(quiet.cache(), uid_of(ALICE), -1)
    for step in ("", "0", "1"):
        quiet.task_prolog(step=step, ENVIRONMENT="BATCH")
    assert told(quiet) == [("cache.skipped", 4242, "refused", "unrecorded")]


def test_switched_off_history_is_not_written(quiet: Site) -> None:
    quiet.configure(history="off")
    quiet.task_prolog()
    quiet.epilog()
    quiet.task_prolog(7)
    swept(quiet)
    assert quiet.events("cache.reaped") and not list(parent_of(quiet).iterdir())


def test_kept_and_trashed_caches_have_their_reason(quiet: Site) -> None:
    quiet.task_prolog(JOBCACHE="keep")
    quiet.epilog()
    assert told(quiet)[-1] == ("cache.kept", 4242, "kept", "user_keep") and quiet.history()[-1]["keep_until"]
    assert "JOBCACHE=keep" in ask(quiet, "4242").stdout


def test_many_nodes_that_keep_one_directory_write_no_lines(quiet: Site) -> None:
    """Each of a thousand nodes would write the same one."""
    make_parent(quiet)
    quiet.cache().mkdir()
    os.chown(quiet.cache(), uid_of(ALICE), -1)
    for node in ("n1", "n2"):
        quiet.epilog(nodes=2, node=node)
    assert len(quiet.events("cache.kept")) == 2 and told(quiet) == []


def test_sweep_writes_what_it_reaps(quiet: Site) -> None:
    quiet.task_prolog(7)
    quiet.task_prolog(8)
    result = swept(quiet, 8)
    assert not result.trouble and quiet.names() == ["hf-datasets-8"]
    assert told(quiet)[2:] == [("cache.orphan_reaped", 7, "reaped", "orphan")]
    assert "No Epilog had reaped it" in ask(quiet, "7").stdout


def test_sweep_and_list_do_not_report_the_history(quiet: Site) -> None:
    """Even if it is a directory."""
    parent = make_parent(quiet)
    for name in (cache_names.HISTORY, cache_names.HISTORY_OLDER):
        (parent / name).mkdir()
        os.chown(parent / name, uid_of(ALICE), -1)
    result = swept(quiet)
    assert (result.decisions, result.trouble) == ([], [])


@pytest.mark.parametrize("what", KINDS)
def test_hooks_work_with_anything_in_its_place(quiet: Site, what: str) -> None:
    """The cost is the line."""
    parent = make_parent(quiet)
    content = in_place(parent, what)
    for path in parent.iterdir():
        os.chown(path, uid_of(ALICE), -1, follow_symlinks=False)
    began = time.monotonic()
    assert quiet.task_prolog().cache
    quiet.epilog()
    quiet.task_prolog(7)
    assert not swept(quiet).trouble and time.monotonic() - began < 30
    assert [one["outcome"] for one in quiet.events()] == ["reaped"] and not quiet.cache(7).exists()
    assert content and content() == "precious"


HANGING = """
import sys, time
sys.path.append(sys.argv[1])
from jobcache.cache import history
history.append = lambda *_: time.sleep(100)
from jobcache import prepare
sys.exit(prepare.main(sys.argv[2:]))
"""


def block_alarms() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


@pytest.mark.parametrize("inherited", [None, block_alarms])
@pytest.mark.parametrize("shell", SHELLS)
def test_hung_history_costs_a_first_task_nothing_but_the_line(
    quiet: Site, shell: str, inherited: Callable[[], None] | None
) -> None:
    """The cache is exported, long before the deadline, and the event is logged."""
    quiet.configure(task_prolog={"deadline": "60s"})
    (quiet.dir / "hanging.py").write_text(HANGING)
    program = quiet.dir / "python"
    program.write_text(f'#!/bin/sh\nshift 5\nexec {sys.executable} -I -S -B {quiet.dir}/hanging.py "$@"\n')
    program.chmod(0o755)
    quiet.policy(python=str(program))
    done = task_prolog.run(quiet.hooks, ALICE, task_prolog.environment(ALICE), shell=shell, inherited=inherited)
    assert (done.status, done.cache) == (0, str(quiet.cache())) and done.seconds < 30
    assert [one["outcome"] for one in quiet.syslog.events("cache.created")] == ["made"]
    assert quiet.cache().is_dir() and quiet.history() == []


def test_hung_history_costs_nothing_but_the_line(quiet: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Epilog and the sweep: no failure, no delay to the deadline."""
    quiet.configure(epilog={"deadline": "60s", "budget": "20s"})
    quiet.task_prolog()
    monkeypatch.setattr(history, "append", lambda *_: time.sleep(100))
    began = time.monotonic()
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(uid_of(ALICE)), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    time.sleep(0.02)
    assert epilog.main([str(quiet.hooks), "1e18"]) == 0
    assert [(one["event"], one["outcome"]) for one in quiet.events()] == [("cache.reaped", "reaped")]
    quiet.task_prolog(7)
    result = swept(quiet)
    assert len(result.reaped) == 1 and not result.trouble and time.monotonic() - began < 20


def test_run_writes_its_life(site: Site) -> None:
    user = User(site)
    assert user.run("true").returncode == 0 and user.left() == []
    assert [(one["event"], one["by"]) for one in site.history()] == [("cache.created", "run"), ("cache.reaped", "run")]


def test_epilog_names_the_directory_that_it_cannot_open(site: Site) -> None:
    """No event has a placeholder in its path. A user whose name cannot be part of a path has no cache, and no event."""
    (site.scratch / ALICE).write_text("")
    site.epilog()
    assert [(one["event"], one["reason"], one["path"]) for one in site.events()] == [
        ("cache.kept", "not_directory", f"{site.scratch}/{ALICE}/.cache")
    ]
    site.log.unlink()
    compiled = settings.load(str(site.hooks / settings.FILE))
    from jobcache.system.epilog_job import Job
    from jobcache.system.epilog_work import Work

    job = Job(4242, uid_of(ALICE), "n1")
    job.user = "a/b"
    facts: list[dict[str, Any]] = []
    Work(job, compiled, compiled.templates, 1e18)(facts.append)
    assert facts == []


# ------------------------------------------------------------------------------------------------------------ the reader


def forge(site: Site, *lines: str, user: str = ALICE) -> None:
    parent = site.scratch / user / ".cache"
    parent.mkdir(parents=True, exist_ok=True)
    who = pwd.getpwnam(user)
    (parent / cache_names.HISTORY).write_text("\n".join(lines))
    for path in (parent.parent, parent, parent / cache_names.HISTORY):
        os.chown(path, who.pw_uid, who.pw_gid)


def reaped(job: int = 4242, **more: Any) -> str:
    line = {"ts": "2026-11-22T07:05:00.000Z", "event": "cache.reaped", "level": "info", "cluster": "test", "node": "n1"}
    return json.dumps({**line, "job_id": job, "run": 0, "outcome": "reaped", "bytes": 8192, "files": 1, **more})


def read(site: Site, uid: int | None, wanted: histories.Wanted) -> tuple[histories.Found, list[str]]:
    trouble: list[str] = []
    return histories.read(settings.load(str(site.hooks / settings.FILE)), uid, wanted, trouble), trouble


def test_user_gets_the_answer_without_log_and_slurm(quiet: Site) -> None:
    """The sentence is that of root on the node."""
    quiet.task_prolog()
    quiet.fill(quiet.cache(), "json/a.arrow", size=8192)
    quiet.epilog()
    by_root = CliRunner().invoke(main, ["explain", "--hooks", str(quiet.hooks), "--json", "4242", str(quiet.log)]).stdout
    quiet.log.unlink()
    answer = json.loads(ask(quiet, "--json", "4242").stdout)["answer"]
    assert "the Epilog on n1 reaped it" in answer and "8,192 bytes in 1 files" in answer
    sentence = json.loads(by_root)["answer"]
    assert sentence[: sentence.index(" at ")] == answer[: answer.index(" at ")] and "history" not in sentence
    by_root = CliRunner().invoke(main, ["explain", "--hooks", str(quiet.hooks), "--json", "4242"]).stdout
    assert f"according to the own history of {ALICE}, who can write any line into it" in json.loads(by_root)["answer"]


def test_newest_job_is_explained_without_an_id(quiet: Site) -> None:
    for job in (5, 9, 7):
        quiet.task_prolog(job)
        quiet.epilog(job)
        time.sleep(0.01)
    assert "Job 7 " in ask(quiet).stdout
    (parent_of(quiet) / cache_names.HISTORY).unlink()
    quiet.configure(history="off")
    quiet.task_prolog(3)
    assert "Job 3 " in ask(quiet).stdout
    quiet.epilog(3)
    empty = ask(quiet)
    assert empty.exit_code == 1 and "no history and no cache" in empty.stdout and "jobcache explain JOBID" in empty.stdout
    result = CliRunner().invoke(main, ["explain", "--hooks", str(quiet.hooks)])
    assert result.exit_code == 2 and "root has no jobs" in result.output


def test_task_of_an_array_is_found_by_the_history(quiet: Site) -> None:
    """Where Slurm does not answer."""
    env = {"SLURM_ARRAY_JOB_ID": "4200", "SLURM_ARRAY_TASK_ID": "7"}
    quiet.task_prolog(**env)
    quiet.epilog(**env)
    assert "Job 4242 " in ask(quiet, "4200_7").stdout
    unknown = ask(quiet, "4200_8")
    assert unknown.exit_code == 1 and "sacct -j 4200_8 -o JobIDRaw" in unknown.stdout
    assert "Job 4242 " in ask(quiet, "4242+1").stdout  # a part of the het job 4242


@pytest.mark.parametrize("below", ["", "/json/default-0/json-train.arrow", "/node-n1/x"])
def test_path_of_an_error_message_is_explained(quiet: Site, below: str) -> None:
    quiet.task_prolog()
    quiet.epilog()
    result = ask(quiet, "--path", f"{quiet.cache()}{below}")
    assert "of job 4242" in result.stdout and "reaped it" in result.stdout and result.exit_code == 0


def test_path_in_no_cache_is_named(quiet: Site) -> None:
    own = ask(quiet, "--path", "/h/hf/datasets/json/x", env={"HF_HOME": "/h/hf"})
    assert own.exit_code == 0 and "a user's own cache" in own.stdout and "deletes nothing there" in own.stdout
    quiet.configure(store={"user": f"{quiet.scratch}/{{user}}/store"})
    assert "in a store" in ask(quiet, "--path", f"{quiet.scratch}/{ALICE}/store/v1/x").stdout
    other = ask(quiet, "--path", f"{quiet.scratch}/{BOB}/.cache/hf-datasets-7/x")
    assert f"belongs to {BOB}" in other.stdout and "admins" in other.stdout
    unknown = ask(quiet, "--path", "/etc/passwd")
    assert unknown.exit_code == 1 and "jobcache explain JOBID" in unknown.stdout


def test_host_without_configuration_explains_a_path(quiet: Site) -> None:
    """A login node: the history beside the cache names the job."""
    quiet.task_prolog()
    quiet.epilog()
    user = User(quiet)
    site_config = str(quiet.hooks / "missing")
    assert not os.path.exists(site_config) and not os.path.exists(settings.CONFIG) and not os.path.exists(settings.LIB)
    done = user.jobcache("explain", "--path", f"{quiet.cache()}/json/json-train.arrow")
    assert "of job 4242" in done.stdout and "the Epilog on n1 reaped it" in done.stdout and done.returncode == 0
    done = user.jobcache("explain", "4242")
    assert "no configuration of the site" in done.stdout and "--path" in done.stdout


def test_unreadable_configuration_stops_no_user(quiet: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is printed, and the path is explained."""
    quiet.task_prolog()
    quiet.epilog()
    closed = quiet.dir / "closed.yaml"
    closed.write_text("")
    closed.chmod(0o600)
    for module in (settings, explain_question, options):
        monkeypatch.setattr(module, "CONFIG", str(closed))
    with acting_as(ALICE):
        done = CliRunner().invoke(main, ["explain", "--config", str(closed), "--path", f"{quiet.cache()}/x"])
    assert "the Epilog on n1 reaped it" in done.stdout and "cannot read the file" in done.stderr


def test_forged_history_is_one_users_matter(quiet: Site) -> None:
    """Another user's lines about a job reach its owner's answer by no way; root sees whose history it is."""
    forge(quiet, reaped(user="root", uid=0, error="\x1b[2J", node="\x1b[31m"), user=BOB)
    quiet.task_prolog()
    quiet.epilog()
    assert BOB not in ask(quiet, "4242").stdout
    result = CliRunner().invoke(main, ["explain", "--hooks", str(quiet.hooks), "4242", str(quiet.log)])
    assert f"the own history of {BOB}" not in result.stdout.splitlines()[-2] and "\x1b" not in result.stdout
    found, trouble = read(quiet, None, histories.Wanted(4242))
    assert {one["user"] for one in found.events} == {ALICE, BOB} and trouble == []
    result = CliRunner().invoke(main, ["explain", "--hooks", str(quiet.hooks), "4242", "/dev/null"])
    assert "select one with --user" in result.stderr and "\x1b" not in result.output
    one = CliRunner().invoke(main, ["explain", "--hooks", str(quiet.hooks), "--user", ALICE, "4242", "/dev/null"])
    assert BOB not in one.output


def test_damaged_lines_are_skipped(quiet: Site) -> None:
    """Torn, overlapping, huge, binary and nested lines; fields of the wrong type or size."""
    lines = ["{", reaped()[:50], reaped()[50:] + reaped(), "\xff\x00", "[" * 5000, "x" * (1 << 17), '{"job_id": 4242}']
    bad = [reaped(bytes=-1, files=1 << 70, reason="Evil Words", ts="x"), reaped(bytes="x", event=7)]
    forge(quiet, *lines, *bad, "", reaped(bytes=-5, reason="Evil\nWords"), reaped())
    found, trouble = read(quiet, uid_of(ALICE), histories.Wanted(4242))
    assert trouble == [] and [one.get("bytes") for one in found.events] == [None, 8192]
    assert all("reason" not in one for one in found.events)


def test_events_of_one_history_are_bounded(quiet: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user who is asked about, more lines than of each of all users."""
    forge(quiet, *[reaped(run=at) for at in range(3000)])
    found, _ = read(quiet, uid_of(ALICE), histories.Wanted(4242))
    assert len(found.events) == histories.MOST_EVENTS and found.events[-1]["run"] == 2999
    found, _ = read(quiet, None, histories.Wanted(4242))
    assert len(found.events) == histories._MOST_OF_EACH
    monkeypatch.setattr(histories, "_TIME", -1.0)
    found, (trouble,) = read(quiet, None, histories.Wanted(4242))
    assert found.events == [] and "were not read within" in trouble


@pytest.mark.parametrize("what", ["fifo", "directory", "symlink", "socket", "foreign", "sparse"])
def test_reader_does_not_wait_for_or_follow_anything(quiet: Site, what: str) -> None:
    parent = make_parent(quiet)
    at = parent / cache_names.HISTORY
    if what == "foreign":
        at.write_text(reaped())
    elif what == "sparse":
        with at.open("w") as file:
            file.truncate(1 << 40)
    else:
        in_place(parent, what)
        (parent / "precious").write_text(reaped())
    if what != "foreign":
        for path in parent.iterdir():
            os.chown(path, uid_of(ALICE), -1, follow_symlinks=False)
    began = time.monotonic()
    found, trouble = read(quiet, uid_of(ALICE), histories.Wanted(4242))
    assert (found.events, trouble) == ([], []) and time.monotonic() - began < 10


def test_every_line_fits_the_schema(quiet: Site) -> None:
    quiet.task_prolog()
    quiet.epilog()
    for line in (parent_of(quiet) / cache_names.HISTORY).read_text().splitlines():
        assert line == "" or validated(line)


# --------------------------------------------------------------------------------------------- other directories and ids


def test_history_below_the_directory_of_an_account_is_found(quiet: Site) -> None:
    """By the user, who can name any account, and by root for this user."""
    quiet.configure(path=f"{quiet.scratch}/{{user}}/{{account}}/hf-datasets-{{job_id}}")
    parent = quiet.scratch / ALICE / "physics"
    parent.mkdir(parents=True)
    for path in (parent, parent.parent):
        os.chown(path, uid_of(ALICE), -1)
    quiet.task_prolog(SLURM_JOB_ACCOUNT="physics")
    quiet.epilog(SLURM_JOB_ACCOUNT="physics")
    assert (parent / cache_names.HISTORY).exists()
    assert "the Epilog on n1 reaped it" in ask(quiet, "4242").stdout and "Job 4242 " in ask(quiet).stdout
    found, trouble = read(quiet, uid_of(ALICE), histories.Wanted(4242))
    assert len(found.events) == 2 and trouble == []


def test_directory_that_ends_with_its_job_gets_no_history(quiet: Site) -> None:
    """From the hooks, the sweep and `jobcache run`: a file of another's would keep the site from removing it."""
    top = quiet.scratch / "local"
    directory = top / "4242"
    directory.mkdir(parents=True)
    os.chown(directory, uid_of(ALICE), -1)
    quiet.configure(path=f"{top}/{{job_id}}/hf-datasets-{{job_id}}")
    quiet.task_prolog()
    assert not swept(quiet).trouble and os.listdir(directory) == []
    template = path_template.Template(f"{top}/{{job_id}}/hf-datasets-{{job_id}}")
    assert template.has_directory(str(directory)) and not template.has_directory(f"{top}/x/y")
    tree = {**settings.load(str(quiet.hooks / settings.FILE)).tree, "path": template.text}
    assert not request_of({}, tree).history
    assert request_of({}, {**tree, "path": "/scratch/{user}/hf-{job_id}"}).history
    found, trouble = read(quiet, uid_of(ALICE), histories.Wanted(4242))
    assert (found.events, trouble) == ([], [])


def test_newest_job_is_one_that_began_and_not_one_of_the_future(quiet: Site) -> None:
    """A sweep writes about an old job later; a node whose clock was wrong has written 2099."""
    future = reaped(3, ts="2099-01-01T00:00:00.000Z", event="cache.created", outcome="made")
    lines = [reaped(8, event="cache.created", outcome="made"), future, reaped(5, event="cache.orphan_reaped")]
    forge(quiet, *lines)
    assert "Job 8 " in ask(quiet).stdout
    forge(quiet, future)
    assert "Job 3 " in ask(quiet).stdout


def test_histories_of_one_user_take_no_time_from_others(quiet: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a wildcard in the template, a user can have any number of them. The events of one user are bounded too."""
    quiet.configure(path=f"{quiet.scratch}/{{user}}/{{account}}/hf-datasets-{{job_id}}")
    for user, count in ((ALICE, 50), (BOB, 1)):
        for number in range(count):
            parent = quiet.scratch / user / f"a{number}"
            parent.mkdir(parents=True)
            (parent / cache_names.HISTORY).write_text("\n".join(reaped(run=at) for at in range(10)))
        for path in (quiet.scratch / user, *(quiet.scratch / user).rglob("*")):
            os.chown(path, uid_of(user), -1)
    found, trouble = read(quiet, None, histories.Wanted(4242))
    assert [one["user"] for one in found.events].count(ALICE) == histories._MOST_OF_EACH and trouble == []
    lines_in = histories._lines_in
    monkeypatch.setattr(histories, "_OF_ONE", 0.5)
    monkeypatch.setattr(histories, "_lines_in", lambda *args: time.sleep(0.1) or lines_in(*args))
    found, (trouble_of_alice,) = read(quiet, None, histories.Wanted(4242))
    assert BOB in {one["user"] for one in found.events} and "directories were not read within" in trouble_of_alice
    assert len([one for one in found.events if one["user"] == ALICE]) < 100


@pytest.mark.parametrize("name", ["²", "１２", "9" * 5000, "00", "\udcff"])
def test_digits_of_any_kind_are_no_traceback(quiet: Site, name: str) -> None:
    """In a path, as a user, and as a part of a sweep."""
    done = ask(quiet, "--path", f"{quiet.scratch}/{name}/.cache/hf-datasets-7/x")
    assert done.exit_code in (0, 1) and done.exception is None or isinstance(done.exception, SystemExit)
    for argv in (["explain", "--user", name, "7"], ["sweep", "--shard", f"{name}/3", "--dry-run"], ["list", "--user", name]):
        done = CliRunner().invoke(main, [*argv, "--hooks", str(quiet.hooks)])
        assert done.exit_code == 2 and isinstance(done.exception, SystemExit), (argv, done.exception)


def test_path_is_read_from_a_directory_that_is_gone(quiet: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory of a shell in a cache that was reaped."""
    quiet.task_prolog()
    gone = quiet.cache()
    before = os.getcwd()
    monkeypatch.setenv("PWD", str(gone))
    os.chdir(gone)
    try:
        quiet.epilog()
        assert "the Epilog on n1 reaped it" in ask(quiet, "--path", "json/json-train.arrow").stdout
    finally:
        os.chdir(before)


def test_path_is_printed_as_it_is(quiet: Site) -> None:
    quiet.task_prolog()
    assert "/:cat:/[red]x" in ask(quiet, "--path", f"{quiet.cache()}/:cat:/[red]x").stdout


HET = {"SLURM_JOB_ID_HET_GROUP_0": "4242", "SLURM_JOB_ID_HET_GROUP_1": "4243", "SLURM_HET_SIZE": "2"}


def test_part_of_a_het_job_leads_to_its_leader(quiet: Site) -> None:
    """By the events of tasks in the history, and by that of the part's Epilog in the log of root."""
    quiet.task_prolog(**HET)
    quiet.task_prolog(step="0", node="n2", **HET)
    quiet.epilog(nodes=2)
    quiet.epilog(4243, node="n2", nodes=2, SLURM_HET_JOB_ID="4242")
    assert quiet.history()[0]["het_job_ids"] == [4242, 4243]
    assert [one.get("het_job_ids") for one in quiet.events()] == [[4243]]
    assert {one["job_id"] for one in [*quiet.events(), *quiet.history()]} == {4242}
    done = ask(quiet, "4243")
    assert "Job 4243 is a part of the het job 4242." in done.stdout and "the Epilog on n2 reaped it" in done.stdout
    assert ask(quiet, "4242").stdout.splitlines()[-4:] == done.stdout.splitlines()[-4:]
    assert "history" not in ask(quiet, "4242").stdout
    argv = ["explain", "--hooks", str(quiet.hooks)]
    by_root = CliRunner().invoke(main, [*argv, "4243", str(quiet.log)]).stdout
    assert by_root.startswith("Job 4243 is a part of the het job 4242.\n") and "reaped it" in by_root
    by_root = CliRunner().invoke(main, [*argv, "4243", "/dev/null"]).stdout
    assert f"het job 4242, according to the own history of {ALICE}" in by_root


def test_job_that_a_het_job_has_submitted_is_no_part(quiet: Site) -> None:
    quiet.task_prolog(5000, **HET)
    assert "het_job_ids" not in quiet.history()[-1]
    forge(quiet, reaped(4242, het_job_ids=[5000, "x", -1, 1 << 70]), reaped(5000))
    assert "is a part of" not in ask(quiet, "5000").stdout  # it has events of its own


def test_forged_part_changes_no_answer_of_the_log(quiet: Site) -> None:
    """Nor a forged array: root reads whose line it is."""
    quiet.task_prolog()
    quiet.epilog()
    forge(quiet, reaped(7, het_job_ids=[4242, 9]), reaped(6, array_job_id=4200, array_task_id=1), user=BOB)
    argv = ["explain", "--hooks", str(quiet.hooks)]
    assert "is a part of" not in CliRunner().invoke(main, [*argv, "4242", str(quiet.log)]).stdout
    forged = CliRunner().invoke(main, [*argv, "9", str(quiet.log)]).stdout
    assert f"het job 7, according to the own history of {BOB}" in forged
    forged = CliRunner().invoke(main, [*argv, "4200_1", str(quiet.log)]).stdout
    assert f"4200_1 is job 6, according to the own history of {BOB}" in forged
