"""Jobs on a real cluster: each gets its cache, and leaves none."""

from __future__ import annotations

import os
import pwd
import shlex
import sys
import time
from pathlib import Path

from conftest import Wired
from support.site_dir import ALICE, BOB

SHOW = 'echo "$HF_DATASETS_CACHE"'
FILL = (
    'mkdir -p "$HF_DATASETS_CACHE/json"; head -c 8192 /dev/zero >"$HF_DATASETS_CACHE/json/$SLURMD_NODENAME-$SLURM_PROCID.arrow"'
)


def step(command: str, *options: str) -> str:
    """A job step that runs `command` in every task."""
    return shlex.join(["srun", *options, "sh", "-c", command])


def test_batch(wired: Wired) -> None:
    """The script has its cache; it is there when the script begins and gone when the job is, with one event."""
    job = wired.batch(f"{SHOW}\n{FILL}\nls -A $HF_DATASETS_CACHE")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job)), ".jobcache", "json"]
    wired.assert_reaped(job, bytes=8192, files=1, user=ALICE, node="n1")


def test_many_tasks_on_two_nodes(wired: Wired) -> None:
    """All 16 ranks agree on one path, the cache holds what both nodes wrote, and the last node's Epilog reaps it."""
    job = wired.batch(step(f"{SHOW}; {FILL}", "-N2", "-n16"), "-N2", "-n16")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))] * 16
    wired.assert_reaped(job, files=16, bytes=16 * 8192)


def test_steps_without_a_batch_task_race_fairly(wired: Wired) -> None:
    """An srun of its own: 16 tasks on two nodes arrive together, and one cache comes of it."""
    done = wired.cluster.srun("-N2", "-n16", "sh", "-c", f"echo $SLURM_JOB_ID; {SHOW}; {FILL}", user=ALICE)
    lines = done.stdout.split()
    job = int(next(line for line in lines if line.isdigit()))
    assert [line for line in lines if not line.isdigit()] == [str(wired.cache(job))] * 16
    wired.wait(job)
    wired.assert_reaped(job, files=16)


def test_array(wired: Wired) -> None:
    """Each task of an array is a job of its own, by its raw id."""
    job = wired.batch(f"echo $SLURM_JOB_ID {SHOW[5:]}", "--array=1-3")
    wired.wait(job)
    lines = [line for record in wired.cluster.jobs(job) for line in wired.output(int(record["JobId"]))]
    caches = {int(line.split()[0]): line.split()[1] for line in lines}
    assert len(caches) == 3 and all(path == str(wired.cache(raw)) for raw, path in caches.items())
    for raw in caches:
        wired.assert_reaped(raw)


def test_het_job(wired: Wired) -> None:
    """Both components use the leader's cache, and the last of their Epilogs reaps it, though one has another job id."""
    job = wired.batch(f"#SBATCH -n1\n#SBATCH hetjob\n#SBATCH -n1\n{step(f'{SHOW}; {FILL}', '--het-group=0,1')}")
    assert wired.wait(job) == "COMPLETED"
    wired.wait(job + 1)
    assert wired.output(job) == [str(wired.cache(job))] * 2
    wired.assert_reaped(job, files=2)
    assert wired.events(job + 1) == []


def test_sbatch_inside_a_job(wired: Wired) -> None:
    """The child job has its own cache, not the one it inherits, from the script as from a step."""
    child = f"sbatch --parsable -W -o {wired.cluster.dir}/out/child-%j.out --wrap {shlex.quote(SHOW)}"
    job = wired.batch(f"{child}\n{step(child, '-n1')}\n{SHOW}")
    assert wired.wait(job) == "COMPLETED"
    first, second, own = wired.output(job)
    assert own == str(wired.cache(job))
    for child_job in (int(first), int(second)):
        assert (wired.cluster.dir / f"out/child-{child_job}.out").read_text().strip() == str(wired.cache(child_job))
        wired.assert_reaped(child_job)
    wired.assert_reaped(job)


def test_scancel(wired: Wired) -> None:
    """A cancelled job leaves nothing."""
    job = wired.batch(f"{FILL}\nsleep 60")
    wired.wait_for(wired.cache(job) / "json/n1-0.arrow")
    wired.cluster.run("scancel", str(job))
    assert wired.wait(job) == "CANCELLED"
    wired.assert_reaped(job, files=1)


def test_timeout(wired: Wired) -> None:
    """Nor does one that ran out of time: the end of a job's time is what its script never lives to clean up after."""
    job = wired.batch(f"{FILL}\nsleep 600")
    wired.wait_for(wired.cache(job) / "json/n1-0.arrow")
    wired.cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now")  # a limit's unit is the minute
    assert wired.wait(job) == "TIMEOUT"
    wired.assert_reaped(job, files=1)


def test_killed_task(wired: Wired) -> None:
    """A task that is killed like one out of memory leaves nothing."""
    job = wired.batch(step(f"{FILL}; kill -9 $$", "-n1"))
    assert wired.wait(job) == "FAILED"
    wired.assert_reaped(job, files=1)


def test_requeue(wired: Wired) -> None:
    """A requeued job's second run has its own cache; the first run's is reaped when that run ends."""
    job = wired.batch(f'{FILL}\n{SHOW}\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 60', "--requeue", "--open-mode=append")
    wired.wait_for(wired.cache(job) / "json/n1-0.arrow")
    wired.cluster.run("scontrol", "requeue", str(job))
    assert wired.wait(job, "COMPLETED", "FAILED") == "COMPLETED"
    wired.wait(job)
    assert wired.output(job)[-1] == str(wired.cache(job, 1))
    wired.assert_reaped(job, run=0, files=1)
    wired.assert_reaped(job, run=1, files=1)


def test_shrink(wired: Wired) -> None:
    """A node that a running job gives back runs an Epilog; the cache lives on until the job has ended."""
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
    while lease.exists():
        assert time.monotonic() < until, "the released node's Epilog has not given up its lease"
        time.sleep(0.02)
    wired.cluster.wait_node("n2", "IDLE")
    assert (wired.cache(job) / "json/n2-1.arrow").exists()
    go.touch()
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["n1-0.arrow", "n2-1.arrow"]
    assert wired.assert_reaped(job, files=2)["node"] == "n1"


def test_export_none(wired: Wired) -> None:
    """A job and a step that get nothing of their user's environment have their cache too."""
    # NIL is NONE without slurmd asking the user's login shell for an environment: these accounts have none.
    path = f"PATH={shlex.quote(wired.cluster.env['PATH'])}"
    job = wired.batch(f"{SHOW}\n{path} srun --export=NONE /bin/sh -c {shlex.quote(SHOW)}", "--export=NIL")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))] * 2
    wired.assert_reaped(job)


def test_two_users_at_once(wired: Wired) -> None:
    """Each user's cache is theirs alone, and is reaped as theirs."""
    jobs = {user: wired.batch(f"{FILL}\nstat -c '%U %a' $HF_DATASETS_CACHE", user=user) for user in (ALICE, BOB)}
    for user, job in jobs.items():
        assert wired.wait(job) == "COMPLETED"
        assert wired.output(job) == [f"{user} 700"]
        wired.assert_reaped(job, user=user, files=1, uid=pwd.getpwnam(user).pw_uid)


def test_the_users_old_script_lines(wired: Wired) -> None:
    """A script that still makes and removes its cache by itself works, and so do the steps after it."""
    mine = f"{wired.site.scratch}/{ALICE}/.cache/hf-datasets-${{SLURM_JOB_ID}}"
    job = wired.batch(
        f'export HF_DATASETS_CACHE="{mine}"\nmkdir -p "$HF_DATASETS_CACHE"\n{step(FILL, "-n1")}\nrm -rf "$HF_DATASETS_CACHE"\n'
        f'mkdir -p "$HF_DATASETS_CACHE"\n{step(f"{FILL}; {SHOW}", "-n1")}\nrm -rf "$HF_DATASETS_CACHE"'
    )
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))]
    assert not wired.cache(job).exists() and wired.site.debris() == []
    assert wired.events(job) == []


def test_remade_and_left(wired: Wired) -> None:
    """A cache that the script removed and remade is the job's all the same: the next task records it, the Epilog reaps it."""
    job = wired.batch(f'rm -rf "$HF_DATASETS_CACHE"; mkdir "$HF_DATASETS_CACHE"\n{step(FILL, "-n1")}')
    assert wired.wait(job) == "COMPLETED"
    wired.assert_reaped(job, files=1)


def test_salloc(wired: Wired) -> None:
    """Steps in an salloc share the allocation's cache, which goes when the allocation does."""
    inner = f"srun -N2 sh -c {shlex.quote(FILL)}; srun -n1 sh -c 'echo $SLURM_JOB_ID; ls $HF_DATASETS_CACHE/json'"
    done = wired.cluster.run("salloc", "-N2", "sh", "-c", inner, user=ALICE)
    job, *files = done.stdout.split()
    assert files == ["n1-0.arrow", "n2-1.arrow"]
    wired.wait(int(job))
    wired.assert_reaped(int(job), files=2)


def test_jobcache_off(wired: Wired) -> None:
    """JOBCACHE=off: the job is as if jobcache were not there."""
    job = wired.batch('echo "<$HF_DATASETS_CACHE$JOBCACHE_DIR>"', JOBCACHE="off")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == ["<>"]
    assert not wired.cache(job).exists()
    skipped = [event for event in wired.site.syslog.events("cache.skipped") if event["job_id"] == job]
    assert [event["reason"] for event in skipped] == ["user_off"]


def test_jobcache_keep(wired: Wired) -> None:
    """JOBCACHE=keep: the cache outlives the job, and the record says until when."""
    job = wired.batch(FILL, JOBCACHE="keep")
    assert wired.wait(job) == "COMPLETED"
    (event,) = wired.events(job)
    assert (event["event"], event["reason"]) == ("cache.kept", "user_keep")
    assert (wired.cache(job) / "json/n1-0.arrow").exists()
    assert event["keep_until"] in (wired.cache(job) / ".jobcache/job.json").read_text()


def test_keep_failed(wired: Wired) -> None:
    """keep_failed keeps the cache of a job that ended non-zero, and of no other."""
    wired.site.configure(keep_failed="1h")
    bad, good = wired.batch(f"{FILL}; exit 3"), wired.batch(FILL)
    assert wired.wait(bad) == "FAILED" and wired.wait(good) == "COMPLETED"
    assert wired.events(bad)[-1]["reason"] == "job_failed" and wired.cache(bad).exists()
    wired.assert_reaped(good)


def test_hooks_that_fail_drain_no_node(wired: Wired) -> None:
    """With Python gone, jobs run with a cache all the same, nodes stay up, and an event says what the sweep is to finish."""
    wired.site.policy(python="/nonexistent")
    job = wired.batch(step(f"{SHOW}; {FILL}", "-N2", "-n2"), "-N2")
    assert wired.wait(job) == "COMPLETED"
    assert wired.output(job) == [str(wired.cache(job))] * 2
    assert {event["reason"] for event in wired.events(job, "hook.failed")} == {"no_python"}
    assert wired.cache(job).exists()


def test_real_datasets(wired: Wired) -> None:
    """Four jobs at once load the same JSON through `datasets`: each in its own cache, each with all rows, none left."""
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
    jobs = [wired.batch(f"HOME={home} {sys.executable} {program}", "-n1") for _ in range(4)]
    for job in jobs:
        assert wired.wait(job) == "COMPLETED", wired.output(job)
        assert wired.output(job)[-1] == f"20000 {sum(range(20000))}"
        assert wired.assert_reaped(job)["bytes"] > 100_000
