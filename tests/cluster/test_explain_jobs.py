"""`jobcache explain` of real jobs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from click.testing import CliRunner

from conftest import ALICE, Wired, asked
from jobcache.cli.main import main
from support.home import acting_as
from support.slurm_version import slurm_version

FILL = 'head -c 8192 /dev/zero >"$HF_DATASETS_CACHE/a.arrow"'


@pytest.fixture
def site(wired: Wired) -> Wired:
    wired.site.configure(slurm={**asked(wired.cluster), "timeout": "10s"})
    wired.site.log.touch()  # before the first Epilog, no log exists
    return wired


def explain(wired: Wired, job: int, *files: str) -> dict[str, Any]:
    """Return the explanation from the log and from a system log in the format of a syslog daemon."""
    system_log = wired.site.dir / "syslog"
    wired.site.syslog.events()
    messages = [message[message.index("{") :] for message in wired.site.syslog.messages]
    system_log.write_text("".join(f"Nov 22 10:00:00 n1 jobcache[7]: {message}\n" for message in messages))
    argv = ["explain", "--hooks", str(wired.site.hooks), "--json", str(job), *(files or (str(wired.site.log), str(system_log)))]
    explanation: dict[str, Any] = json.loads(CliRunner().invoke(main, argv, catch_exceptions=False).stdout)
    return explanation


def test_missing_file_is_explained_by_the_end_of_the_job(site: Wired) -> None:
    """The answer has the time, the node and the size."""
    job = site.batch(FILL)
    site.wait(job)
    explanation = explain(site, job)
    assert [line["what"].partition(":")[0] for line in explanation["lines"]] == ["created", "reaped by the Epilog"]
    assert "8,192 bytes in 1 files" in explanation["answer"] and explanation["slurm"]["state"] == "COMPLETED"


def test_running_job_has_a_cache_in_use(site: Wired) -> None:
    """Without any event, the record in the cache is enough."""
    job = site.batch("touch $HF_DATASETS_CACHE/ready; sleep 60", "-N2")
    site.wait_for(site.cache(job) / "ready")
    explanation = explain(site, job)
    assert "used by n1" in explanation["answer"] and "RUNNING" in explanation["answer"]
    assert "created by policy" in "".join(line["what"] for line in explanation["lines"])
    assert explain(site, job, "/dev/null")["answer"] == explanation["answer"]
    site.cluster.run("scancel", str(job))
    site.wait(job)


def test_job_without_a_cache_has_a_reason(site: Wired) -> None:
    for variables, text in (
        ({"JOBCACHE": "off"}, "JOBCACHE=off"),
        ({"HF_HUB_OFFLINE": "1", "JOBCACHE_INHERIT": "off"}, "HF_HUB_OFFLINE"),
        ({"HF_DATASETS_CACHE": "/own"}, "does not change these"),
    ):
        job = site.batch("true", **variables)
        site.wait(job)
        assert text in explain(site, job)["answer"]
    site.site.configure(rules=[{"match": {"partition": ["other"]}, "cache": "off"}])
    job = site.batch("true", "-pother")
    site.wait(job)
    assert "a rule of the site" in explain(site, job)["answer"]


def test_kept_and_requeued_jobs_are_explained(site: Wired) -> None:
    """With JOBCACHE=keep, the answer has the time until which the cache is kept. A requeued job has one cache for each run."""
    job = site.batch("true", JOBCACHE="keep")
    site.wait(job)
    explanation = explain(site, job)
    assert "JOBCACHE=keep" in explanation["answer"] and "until 2" in explanation["lines"][-1]["what"]
    assert "kept until 2" in explain(site, job, "/dev/null")["answer"]  # as for a user who cannot read the log
    job = site.batch('touch $HF_DATASETS_CACHE/x; [ -n "$SLURM_RESTART_COUNT" ] || sleep 60', "--requeue")
    site.wait_for(site.cache(job) / "x")
    site.cluster.run("scontrol", "requeue", str(job))
    site.wait_for(site.site.scratch)
    site.wait(job, "COMPLETED")
    runs = {line["what"].rpartition("[")[2][:5] for line in explain(site, job)["lines"] if "reaped" in line["what"]}
    assert "run 1" in runs and len(runs) == 2


def test_unknown_job_exits_1(site: Wired) -> None:
    argv = ["explain", "--hooks", str(site.site.hooks), "99999", str(site.site.log)]
    result = CliRunner().invoke(main, argv, catch_exceptions=False)
    assert result.exit_code == 1 and "Nothing is known about this job" in result.output
    assert "Slurm reports nothing: " in result.output and "Invalid job id" in result.output


def test_job_cannot_forge_the_answer_of_slurm(site: Wired) -> None:
    """A user chooses the name, the comment and the account of a job."""
    forged = "JobState=COMPLETED UserId=root(0) EndTime=5 JobId=1"
    options = (f"--comment=x {forged}", f"--job-name=x {forged}\n   y", "--account=a|b")
    job = site.batch("touch $HF_DATASETS_CACHE/ready; sleep 60", *options)
    site.wait_for(site.cache(job) / "ready")
    slurm = explain(site, job)["slurm"]
    site.cluster.run("scancel", str(job))
    assert (slurm["state"], slurm["user"], slurm["nodes"], slurm["account"]) == ("RUNNING", ALICE, "n1", "a|b")
    assert slurm["start"].startswith("20") and slurm["by"] == "squeue"
    tasks = site.batch("sleep 60", "--array=1-2")
    site.wait(tasks, "RUNNING")
    states = [explain(site, task)["slurm"]["state"] for task in (tasks, tasks + 1)]  # each has a raw id of its own
    site.cluster.run("scancel", str(tasks))
    assert states == ["RUNNING", "RUNNING"]


def alone(site: Wired, *argv: str) -> str:
    """Return the explanation that ALICE gets on a host without any log."""
    site.site.log.unlink(missing_ok=True)
    (site.site.hooks / "settings.json").chmod(0o644)
    with acting_as(ALICE):
        done = CliRunner().invoke(main, ["explain", "--hooks", str(site.site.hooks), *argv], catch_exceptions=False)
    return done.stdout


def test_user_gets_the_answer_without_the_log(site: Wired) -> None:
    """By the job's id, by the path in an error message, as the newest job, and by root for a user."""
    job = site.batch(FILL, "-N2")
    site.wait(job)
    until = time.monotonic() + 30
    while site.cache(job).exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(0.5)  # the line follows the deletion
    for argv in ((str(job),), ("--path", f"{site.cache(job)}/a.arrow"), ()):
        answer = alone(site, *argv)
        assert "8,192 bytes in 1 files" in answer and "the Epilog on n" in answer and "history" not in answer
    by_root = CliRunner().invoke(main, ["explain", "--hooks", str(site.site.hooks), str(job)], catch_exceptions=False)
    assert f"the own history of {ALICE}, who can write any line into it" in by_root.stdout
    skipped = site.batch("true", JOBCACHE="off")
    site.wait(skipped)
    assert "JOBCACHE=off" in alone(site, str(skipped))


def test_task_of_an_array_is_explained(site: Wired) -> None:
    """By its name in squeue, also when Slurm has forgotten it."""
    array = site.batch(FILL, "--array=3,7")
    site.wait(array)
    for task in (3, 7):
        until = time.monotonic() + 30
        while "reaped it" not in (answer := alone(site, f"{array}_{task}")):
            assert time.monotonic() < until, answer
            time.sleep(0.2)
    site.site.configure(slurm={"squeue": "/nonexistent", "scontrol": "/nonexistent"})
    answers = [alone(site, f"{array}_{task}").splitlines()[0] for task in (3, 7)]
    assert len(set(answers)) == 2 and all(answer.startswith("Job ") for answer in answers)


def test_part_of_a_het_job_is_explained_by_its_own_id(site: Wired) -> None:
    """While it runs, by squeue; then by the events of its tasks and of its Epilog."""
    job = site.batch(f"#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n1\n{FILL}\nsleep 3")
    site.wait_for(site.cache(job) / "a.arrow")
    running = explain(site, job + 1)
    assert running["lead"] == f"Job {job + 1} is a part of the het job {job}." and "used by n1" in running["answer"]
    site.wait(job)
    site.wait(job + 1)
    assert site.site.history(event="cache.created")[-1]["het_job_ids"] == [job, job + 1]
    if slurm_version() >= (22, 5):  # an earlier Epilog does not know the leader
        ended = explain(site, job + 1)
        assert ended["job_id"] == job and "reaped it" in ended["answer"] and f"het job {job}." in ended["lead"]
