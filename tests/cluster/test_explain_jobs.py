"""`jobcache explain` of real jobs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from conftest import ALICE, Wired, asked
from jobcache.cli.main import main

FILL = 'head -c 8192 /dev/zero >"$HF_DATASETS_CACHE/a.arrow"'


@pytest.fixture
def site(wired: Wired) -> Wired:
    wired.site.configure(slurm={**asked(wired.cluster), "timeout": "10s"})
    return wired


def explain(wired: Wired, job: int, *files: str) -> dict[str, Any]:
    """The story, from the log and from the system log, as a syslog daemon would have written it."""
    system_log = wired.site.dir / "syslog"
    wired.site.syslog.events()
    messages = [message[message.index("{") :] for message in wired.site.syslog.messages]
    system_log.write_text("".join(f"Nov 22 10:00:00 n1 jobcache[7]: {message}\n" for message in messages))
    argv = ["explain", "--hooks", str(wired.site.hooks), "--json", str(job), *(files or (str(wired.site.log), str(system_log)))]
    story: dict[str, Any] = json.loads(CliRunner().invoke(main, argv, catch_exceptions=False).stdout)
    return story


def test_why_is_the_cached_file_missing(site: Wired) -> None:
    """The job ended, and its cache with it: when, on which node, how much it was."""
    job = site.batch(FILL)
    site.wait(job)
    story = explain(site, job)
    assert [line["what"].partition(":")[0] for line in story["lines"]] == ["made", "reaped by the Epilog"]
    assert "8,192 bytes in 1 files" in story["answer"] and story["slurm"]["state"] == "COMPLETED"


def test_a_job_that_runs(site: Wired) -> None:
    """Its cache is there, and who uses it; nothing but its record need be known."""
    job = site.batch("touch $HF_DATASETS_CACHE/ready; sleep 60", "-N2")
    site.wait_for(site.cache(job) / "ready")
    story = explain(site, job)
    assert "used by n1" in story["answer"] and "RUNNING" in story["answer"]
    assert "made, as its record says by policy" in "".join(line["what"] for line in story["lines"])
    assert explain(site, job, "/dev/null")["answer"] == story["answer"]
    site.cluster.run("scancel", str(job))
    site.wait(job)


def test_jobs_without_a_cache(site: Wired) -> None:
    """Each says why."""
    for variables, words in (
        ({"JOBCACHE": "off"}, "JOBCACHE=off"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        ({"HF_DATASETS_CACHE": "/own"}, "left alone"),
    ):
        job = site.batch("true", **variables)
        site.wait(job)
        assert words in explain(site, job)["answer"]
    site.site.configure(rules=[{"match": {"partition": ["other"]}, "cache": "off"}])
    job = site.batch("true", "-pother")
    site.wait(job)
    assert "a rule of the site" in explain(site, job)["answer"]


def test_kept_and_requeued(site: Wired) -> None:
    """JOBCACHE=keep: it is there, and until when. A requeued job has a cache for each run."""
    job = site.batch("true", JOBCACHE="keep")
    site.wait(job)
    story = explain(site, job)
    assert "JOBCACHE=keep" in story["answer"] and "until 2" in story["lines"][-1]["what"]
    assert "kept until 2" in explain(site, job, "/dev/null")["answer"]  # as to who may not read the log
    job = site.batch('touch $HF_DATASETS_CACHE/x; [ -n "$SLURM_RESTART_COUNT" ] || sleep 60', "--requeue")
    site.wait_for(site.cache(job) / "x")
    site.cluster.run("scontrol", "requeue", str(job))
    site.wait_for(site.site.scratch)
    site.wait(job, "COMPLETED")
    runs = {line["what"].rpartition("[")[2][:5] for line in explain(site, job)["lines"] if "reaped" in line["what"]}
    assert "run 1" in runs and len(runs) == 2


def test_a_job_that_never_was(site: Wired) -> None:
    argv = ["explain", "--hooks", str(site.site.hooks), "99999", str(site.site.log)]
    result = CliRunner().invoke(main, argv, catch_exceptions=False)
    assert result.exit_code == 1 and "Nothing is known of this job" in result.output
    assert "Slurm says nothing of it: " in result.output and "Invalid job id" in result.output


def test_a_job_that_names_itself_another(site: Wired) -> None:
    """Name, comment and account are the user's to choose, and no word of Slurm's."""
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
    said = [explain(site, task)["slurm"]["state"] for task in (tasks, tasks + 1)]  # each has a raw id of its own
    site.cluster.run("scancel", str(tasks))
    assert said == ["RUNNING", "RUNNING"]
