"""Jobs on a real cluster: each job gets its cache and leaves none."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
import time
from pathlib import Path

from conftest import Wired
from support.faulty import swept
from support.site_dir import ALICE, BOB
from support.slurm_version import slurm_version
from support.user_cache import put

SHOW = 'echo "$HF_DATASETS_CACHE"'
FILL = (
    'mkdir -p "$HF_DATASETS_CACHE/json"; head -c 8192 /dev/zero >"$HF_DATASETS_CACHE/json/$SLURMD_NODENAME-$SLURM_PROCID.arrow"'
)


def step(command: str, *options: str) -> str:
    """A job step that runs `command` in every task."""
    return shlex.join(["srun", *options, "sh", "-c", command])


def test_batch_script_has_its_cache_from_begin_to_end(wired: Wired) -> None:
    """The cache exists when the script begins and is gone after the job, with one event."""
    job = wired.batch(f"{SHOW}\n{FILL}\nls -A $HF_DATASETS_CACHE")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job)), ".jobcache", "json"]
    wired.assert_reaped(job, bytes=8192, files=1, user=ALICE, node="n1")


def test_all_ranks_on_two_nodes_share_one_cache(wired: Wired) -> None:
    """All 16 ranks have one path, the cache holds the files of both nodes, and the last node's Epilog reaps it."""
    job = wired.batch(step(f"{SHOW}; {FILL}", "-N2", "-n16"), "-N2", "-n16")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))] * 16
    wired.assert_reaped(job, files=16, bytes=16 * 8192)


def test_tasks_that_start_together_share_one_cache(wired: Wired) -> None:
    """srun without a batch script: 16 tasks on two nodes arrive together and get one cache."""
    done = wired.cluster.srun("-N2", "-n16", "sh", "-c", f"echo $SLURM_JOB_ID; {SHOW}; {FILL}", user=ALICE)
    lines = done.stdout.split()
    job = int(next(line for line in lines if line.isdigit()))
    assert [line for line in lines if not line.isdigit()] == [str(wired.cache(job))] * 16
    wired.wait(job)
    wired.assert_reaped(job, files=16)


def test_each_array_task_has_its_own_cache(wired: Wired) -> None:
    """Each task of an array is a job with a raw id of its own."""
    job = wired.batch(f"echo $SLURM_JOB_ID {SHOW[5:]}", "--array=1-3")
    wired.wait(job)
    lines = [line for record in wired.cluster.jobs(job) for line in wired.output(int(record["JobId"]))]
    caches = {int(line.split()[0]): line.split()[1] for line in lines}
    assert len(caches) == 3 and all(path == str(wired.cache(raw)) for raw, path in caches.items())
    for raw in caches:
        wired.assert_reaped(raw)


FULL_EPILOG = slurm_version() >= (22, 5)  # docs/compatibility.md


def assert_left_to_the_sweep(wired: Wired, job: int) -> None:
    """Check that the cache of the ended job is whole, and that a sweep reaps it."""
    assert len(list(wired.cache(job).rglob("*.arrow"))) == 2
    swept(wired.site)
    assert not wired.cache(job).exists() and wired.site.debris() == []


def test_het_components_share_the_leaders_cache(wired: Wired) -> None:
    """The last of the components' Epilogs reaps the cache, although one component has another job id. Slurm before 22.05 leaves
    it to the sweep: its Epilog does not know the leader."""
    job = wired.batch(f"#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n1\n{step(f'{SHOW}; {FILL}', '--het-group=0,1')}")
    assert wired.wait(job) == "COMPLETED"
    wired.wait(job + 1)
    assert wired.output(job) == [str(wired.cache(job))] * 2
    if FULL_EPILOG:
        wired.assert_reaped(job, files=2)
    else:
        assert_left_to_the_sweep(wired, job)
    assert wired.events(job + 1) == []


def test_job_submitted_from_a_job_has_its_own_cache(wired: Wired) -> None:
    """The child job does not use the cache whose path it inherits, from a batch script and from a step."""
    child = f"sbatch --parsable -W -o {wired.cluster.dir}/out/child-%j.out --wrap {shlex.quote(SHOW)}"
    job = wired.batch(f"{child}\n{step(child, '-n1')}\n{SHOW}")
    assert wired.wait(job) == "COMPLETED"
    first, second, own = wired.output(job)
    assert own == str(wired.cache(job))
    for child_job in (int(first), int(second)):
        assert (wired.cluster.dir / f"out/child-{child_job}.out").read_text().strip() == str(wired.cache(child_job))
        wired.assert_reaped(child_job)
    wired.assert_reaped(job)


def test_cancelled_job_leaves_nothing(wired: Wired) -> None:
    """The Epilog of a cancelled job reaps its cache."""
    job = wired.batch(f"{FILL}\nsleep 60")
    wired.wait_for(wired.cache(job) / "json/n1-0.arrow")
    wired.cluster.run("scancel", str(job))
    assert wired.wait(job) == "CANCELLED"
    wired.assert_reaped(job, files=1)


def test_job_over_its_time_limit_leaves_nothing(wired: Wired) -> None:
    """Slurm kills the script at the limit, so the script cannot clean up."""
    job = wired.batch(f"{FILL}\nsleep 600")
    wired.wait_for(wired.cache(job) / "json/n1-0.arrow")
    wired.cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now")  # a limit's unit is the minute
    assert wired.wait(job) == "TIMEOUT"
    wired.assert_reaped(job, files=1)


def test_task_killed_by_signal_leaves_nothing(wired: Wired) -> None:
    """A task is killed as the kernel kills one that is out of memory."""
    job = wired.batch(step(f"{FILL}; kill -9 $$", "-n1"))
    assert wired.wait(job) == "FAILED"
    wired.assert_reaped(job, files=1)


def test_requeued_job_has_a_cache_for_each_run(wired: Wired) -> None:
    """The second run has its own cache. The first run's cache is reaped when that run ends."""
    job = wired.batch(f'{FILL}\n{SHOW}\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 60', "--requeue", "--open-mode=append")
    wired.wait_for(wired.cache(job) / "json/n1-0.arrow")
    wired.cluster.run("scontrol", "requeue", str(job))
    assert wired.wait(job, "COMPLETED", "FAILED") == "COMPLETED"
    wired.wait(job)
    assert wired.output(job)[-1] == str(wired.cache(job, 1))
    wired.assert_reaped(job, run=0, files=1)
    wired.assert_reaped(job, run=1, files=1)


def test_cache_survives_when_the_job_gives_back_a_node(wired: Wired) -> None:
    """The node that a running job gives back runs an Epilog. The cache stays until the job ends. Slurm before 22.05 leaves it to
    the sweep: the first Epilog does not know the user, and keeps its lease."""
    go = wired.cluster.scratch / "shrink-go"
    job = wired.batch(
        f"{step(FILL, '-N2', '-n2')}\nuntil [ -e {go} ]; do sleep 0.05; done\nls $HF_DATASETS_CACHE/json", "-N2", "-n2"
    )
    wired.wait_for(wired.cache(job) / "json/n1-0.arrow")
    wired.wait_for(wired.cache(job) / "json/n2-1.arrow")
    lease = wired.cache(job) / ".jobcache/nodes/n2"
    assert lease.exists()
    wired.cluster.run("scontrol", "update", f"JobId={job}", "NumNodes=1", user=ALICE)
    until = time.monotonic() + 20
    while FULL_EPILOG and lease.exists():
        assert time.monotonic() < until, "the released node's Epilog has not given up its lease"
        time.sleep(0.02)
    wired.cluster.wait_node("n2", "IDLE")
    assert (wired.cache(job) / "json/n2-1.arrow").exists()
    go.touch()
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["n1-0.arrow", "n2-1.arrow"]
    if FULL_EPILOG:
        assert wired.assert_reaped(job, files=2)["node"] == "n1"
    else:
        assert_left_to_the_sweep(wired, job)


def test_job_without_its_users_environment_has_a_cache(wired: Wired) -> None:
    """--export=NIL for the job and --export=NONE for the step."""
    # NIL is NONE without slurmd asking the user's login shell for an environment: these accounts have none.
    path = f"PATH={shlex.quote(wired.cluster.env['PATH'])}"
    job = wired.batch(f"{SHOW}\n{path} srun --export=NONE /bin/sh -c {shlex.quote(SHOW)}", "--export=NIL")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))] * 2
    wired.assert_reaped(job)


def test_two_users_have_private_caches(wired: Wired) -> None:
    """Each cache belongs to its user with mode 0700, and is reaped as that user."""
    jobs = {user: wired.batch(f"{FILL}\nstat -c '%U %a' $HF_DATASETS_CACHE", user=user) for user in (ALICE, BOB)}
    for user, job in jobs.items():
        assert wired.wait(job) == "COMPLETED"
        assert wired.output(job) == [f"{user} 700"]
        wired.assert_reaped(job, user=user, files=1, uid=pwd.getpwnam(user).pw_uid)


def test_script_that_manages_its_own_cache_still_works(wired: Wired) -> None:
    """A script that creates and removes the directory itself works, and so do its later steps."""
    mine = f"{wired.site.scratch}/{ALICE}/.cache/hf-datasets-${{SLURM_JOB_ID}}"
    job = wired.batch(
        f'export HF_DATASETS_CACHE="{mine}"\nmkdir -p "$HF_DATASETS_CACHE"\n{step(FILL, "-n1")}\nrm -rf "$HF_DATASETS_CACHE"\n'
        f'mkdir -p "$HF_DATASETS_CACHE"\n{step(f"{FILL}; {SHOW}", "-n1")}\nrm -rf "$HF_DATASETS_CACHE"'
    )
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))]
    assert not wired.cache(job).exists() and wired.site.debris() == []
    assert wired.events(job) == []


def test_directory_created_again_by_the_script_is_reaped(wired: Wired) -> None:
    """The script removes the cache and creates the directory again. The next task records it and the Epilog reaps it."""
    job = wired.batch(f'rm -rf "$HF_DATASETS_CACHE"; mkdir "$HF_DATASETS_CACHE"\n{step(FILL, "-n1")}')
    assert wired.wait(job) == "COMPLETED"
    wired.assert_reaped(job, files=1)


def test_steps_of_an_salloc_share_one_cache(wired: Wired) -> None:
    """The cache goes when the allocation ends."""
    inner = f"srun -N2 sh -c {shlex.quote(FILL)}; srun -n1 sh -c 'echo $SLURM_JOB_ID; ls $HF_DATASETS_CACHE/json'"
    done = wired.cluster.run("salloc", "-N2", "sh", "-c", inner, user=ALICE)
    job, *files = done.stdout.split()
    assert files == ["n1-0.arrow", "n2-1.arrow"]
    wired.wait(int(job))
    wired.assert_reaped(int(job), files=2)


def test_jobcache_off_leaves_the_job_alone(wired: Wired) -> None:
    """JOBCACHE=off: no export, no cache, and one event with the reason."""
    job = wired.batch('echo "<$HF_DATASETS_CACHE$JOBCACHE_DIR>"', JOBCACHE="off")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["<>"]
    assert not wired.cache(job).exists()
    skipped = [event for event in wired.site.syslog.events("cache.skipped") if event["job_id"] == job]
    assert [event["reason"] for event in skipped] == ["user_off"]


def test_jobcache_keep_keeps_the_cache(wired: Wired) -> None:
    """The cache outlives the job, and the record holds the end of its keeping."""
    job = wired.batch(FILL, JOBCACHE="keep")
    assert wired.wait(job) == "COMPLETED"
    (event,) = wired.events(job)
    assert (event["event"], event["reason"]) == ("cache.kept", "user_keep")
    assert (wired.cache(job) / "json/n1-0.arrow").exists()
    assert event["keep_until"] in (wired.cache(job) / ".jobcache/job.json").read_text()


def test_keep_failed_keeps_caches_of_failed_jobs_only(wired: Wired) -> None:
    """A job with a non-zero exit status keeps its cache, and no other does. The Epilog of Slurm before 22.05 does not know it."""
    wired.site.configure(keep_failed="1h")
    bad, good = wired.batch(f"{FILL}; exit 3"), wired.batch(FILL)
    assert wired.wait(bad) == "FAILED" and wired.wait(good) == "COMPLETED"
    if FULL_EPILOG:
        assert wired.events(bad)[-1]["reason"] == "job_failed" and wired.cache(bad).exists()
    else:
        wired.assert_reaped(bad)
    wired.assert_reaped(good)


def test_missing_python_drains_no_node(wired: Wired) -> None:
    """With Python missing, jobs still have a cache, nodes stay up, and an event names the work left to the sweep."""
    wired.site.policy(python="/nonexistent")
    job = wired.batch(step(f"{SHOW}; {FILL}", "-N2", "-n2"), "-N2")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))] * 2
    assert {event["reason"] for event in wired.events(job, "hook.failed")} == {"no_python"}
    assert wired.cache(job).exists()


def test_jobs_load_one_file_with_datasets_at_once(wired: Wired) -> None:
    """Four jobs load one JSON file: each in its own cache, each with all rows, and no cache is left."""
    work = Path(wired.site.dir) / "work"
    work.mkdir()
    source = work / "words.jsonl"
    source.write_text("".join(f'{{"n": {n}, "text": "word {n}"}}\n' for n in range(20000)))
    program = work / "load.py"
    program.write_text(
        "import datasets, os\n"
        f"rows = datasets.load_dataset('json', data_files={str(source)!r}, split='train')\n"
        "assert rows.cache_files[0]['filename'].startswith(os.environ['HF_DATASETS_CACHE'] + '/'), rows.cache_files\n"
        "print(len(rows), sum(rows['n']))\n"
    )
    os.chmod(work, 0o755)
    home = work / "home"
    home.mkdir()
    home.chmod(0o1777)
    jobs = [wired.batch(f"{sys.executable} {program}", "-n1", HOME=str(home)) for _ in range(4)]
    for job in jobs:
        assert wired.wait(job) == "COMPLETED", wired.output(job)
        assert wired.output(job)[-1] == f"20000 {sum(range(20000))}"
        assert wired.assert_reaped(job)["bytes"] > 100_000


def own_cache(wired: Wired) -> Path:
    """Create a second datasets cache of Alice, with a build; return its HF_HOME."""
    home = wired.site.dir / "hf"
    if not home.exists():
        put(home / "datasets", "json/default-1/0.0.0/x")
    return home


def test_script_can_name_the_cache_that_its_job_begins_with(wired: Wired) -> None:
    """In a job, a task of an array and a het job, for a program without srun in front of it."""
    script = f"export HF_HOME={own_cache(wired)}\nreadlink $HF_DATASETS_CACHE/json/default-1/0.0.0/x/json-train.arrow"
    for options in ((), ("--array=1",), ("-n1", ":", "-n1")):
        job = wired.batch(script, *options)
        wired.wait(job)
        assert wired.output(job) == [f"{own_cache(wired)}/datasets/json/default-1/0.0.0/x/json-train.arrow"]
        wired.assert_reaped(job)


def test_job_whose_script_computes_its_cache_uses_that_one(wired: Wired) -> None:
    """No step gets a private cache either."""
    job = wired.batch(f"export HF_HOME=$(echo {own_cache(wired)})\necho ${{HF_DATASETS_CACHE-none}}\n{step(SHOW, '-n1')}")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["none", ""]
    assert not wired.cache(job).exists()


def test_line_of_the_guide_ends_the_use_of_a_private_cache(wired: Wired) -> None:
    """For a program of the script, and for later steps. The cache is reaped."""
    sourced = wired.site.scratch / "sourced"
    sourced.write_text(f"export HF_HOME={own_cache(wired)}\nunset HF_DATASETS_CACHE; export JOBCACHE=off\n")
    show = "echo ${HF_DATASETS_CACHE-none} $HF_HOME"
    job = wired.batch(f"{SHOW}\n. {sourced}\n{show}\n{step(show, '-N1', '-n1')}\n{step(show, '-N2', '-n2')}", "-N2")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job)), *[f"none {own_cache(wired)}"] * 4]
    wired.assert_reaped(job)
