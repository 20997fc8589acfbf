"""Both hooks keep their promises with any inherited signal mask and dispositions.

slurmstepd of Slurm 25.05 to 26.05 starts the Epilog with SIGCHLD blocked under PrologFlags=RunInJob. `wait` of dash and busybox
then never returns. A signal that is blocked, or was ignored when the shell started, reaches no trap. The hooks are started
without a wrapper: a shell in between would reset the mask.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support import task_prolog
from support.faulty import EXPORTED, FULL
from support.hungfs import hung
from support.site_dir import ALICE, SHELLS, Site
from support.task_prolog import Prologue

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")

SIGNALS = ("SIGCHLD", "SIGTERM", "SIGWINCH", "SIGURG", "SIGALRM", "SIGUSR1", "SIGHUP", "SIGINT", "SIGPIPE")
ANY_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
DEADLINE = 2  # seconds, of each hook that hangs in these tests
SLACK = 2  # seconds that a busy machine may need beyond a deadline
Inherited = Callable[[], None]


def inherit(blocked: Collection[int] = (), ignored: Collection[int] = ()) -> Inherited:
    """Return a function that blocks and ignores these signals in its process."""

    def change() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    return change


def cases(names: Collection[str]) -> dict[str, Inherited]:
    """Return each of the signals blocked, each of them ignored, and all of them at once."""
    numbers = {name: [getattr(signal, name)] for name in names} | {"all": [getattr(signal, name) for name in SIGNALS]}
    return {
        **{f"{name} blocked": inherit(blocked=each) for name, each in numbers.items()},
        **{f"{name} ignored": inherit(ignored=each) for name, each in numbers.items()},
    }


EPILOG_CASES, CASES = cases(SIGNALS[:3]), cases(SIGNALS)
each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])
each_epilog_case = pytest.mark.parametrize("inherited", EPILOG_CASES)
each_case = pytest.mark.parametrize("inherited", CASES)


def sleeper(site: Site) -> None:
    """Replace Python by a program that does not end in time."""
    path = site.dir / "python"
    path.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    path.chmod(0o755)
    site.policy(python=str(path))


# ---------------------------------------------------------------------------------------------------------- the Epilog


def epilog(site: Site, shell: str, inherited: Inherited, limit: float, job: int = 4242) -> None:
    """Run the Epilog to the end of its output."""
    account = pwd.getpwnam(ALICE)
    variables = {
        "SLURM_JOB_ID": str(job), "SLURM_JOB_UID": str(account.pw_uid), "SLURM_JOB_GID": str(account.pw_gid),
        "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_EXIT_CODE": "0",
    }  # fmt: skip
    time.sleep(0.02)  # leases have dates in hundredths of a second, and an Epilog keeps a lease of its own age
    done = subprocess.run(
        [*shell.split(), str(site.hooks / "epilog")], env=variables, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
        check=False, timeout=limit, restore_signals=False, preexec_fn=inherited,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@each_shell
@each_epilog_case
def test_epilog_reaps_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """The cache is gone, and one event reports it."""
    site.task_prolog()
    epilog(site, shell, EPILOG_CASES[inherited], 20)
    assert not site.cache().exists() and site.debris() == []
    assert [event["outcome"] for event in site.events("cache.reaped")] == ["reaped"]


@each_shell
@each_epilog_case
def test_epilog_keeps_its_deadline_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """A Python that never ends is killed at the deadline, and an event reports it."""
    site.configure(epilog={"deadline": f"{DEADLINE}s", "budget": "1s"})
    sleeper(site)
    epilog(site, shell, EPILOG_CASES[inherited], 20)
    assert [event["reason"] for event in site.events("hook.failed")] == ["deadline"]


@each_shell
@each_epilog_case
def test_epilog_reports_missing_python_with_any_inherited_signals(site: Site, shell: str, inherited: str) -> None:
    """The event has the exit status of the shell."""
    site.policy(python="/nonexistent")
    epilog(site, shell, EPILOG_CASES[inherited], 20)
    assert [event["reason"] for event in site.events("hook.failed")] == ["no_python"]


# ------------------------------------------------------------------------------------------------------ the TaskProlog


def prolog(site: Site, shell: str, inherited: Inherited, job: int = 4242, step: str = "", **env: str) -> Prologue:
    """Run the TaskProlog of one task to the end of its output. Check that it exits 0 and exports this job's path or nothing."""
    variables = {**task_prolog.environment(ALICE, job, step=step), **env}
    done = task_prolog.run(site.hooks, ALICE, variables, shell=shell, timeout=20, inherited=inherited)
    assert (done.status, done.stderr) == (0, b"")
    assert done.exports in ({}, dict.fromkeys(EXPORTED, str(site.cache(job))))
    return done


def in_each_shell(site: Site, inherited: Inherited, step: str = "", **env: str) -> list[Prologue]:
    """Run the TaskProlog in all shells at once: jobs 1, 2 and 3."""
    with ThreadPoolExecutor(len(SHELLS)) as pool:
        runs = [pool.submit(prolog, site, shell, inherited, job, step, **env) for job, shell in enumerate(SHELLS, 1)]
        return [run.result() for run in runs]


@contextmanager
def hung_scratch(site: Site) -> Iterator[None]:
    """Scratch does not answer in the block."""
    place = site.scratch / ALICE
    place.mkdir(exist_ok=True)
    with hung(place):
        yield


def assert_whole(site: Site, job: int) -> None:
    """Check that the cache has its record and this node's lease."""
    meta = site.cache(job) / ".jobcache"
    assert {"id", "job.json", "nodes"} <= set(os.listdir(meta)) and os.listdir(meta / "nodes") == ["n1"]
    assert site.debris() == []


@each_case
@pytest.mark.parametrize("known", [True, False], ids=["lease", "no lease"])
def test_task_joins_with_any_inherited_signals(site: Site, inherited: str, known: bool) -> None:
    """A cache of the job exists. This node has its lease, or takes it."""
    site.configure(task_prolog={"deadline": "10s"})
    for job in (1, 2, 3):
        site.task_prolog(job, node="n1" if known else "n7")
    for job, done in enumerate(in_each_shell(site, CASES[inherited], step="0"), 1):
        assert done.cache and done.seconds < 5
        assert (site.cache(job) / ".jobcache/nodes/n1").exists()


@each_case
@pytest.mark.parametrize(("maker", "step"), [("python", ""), ("python", "0"), ("python with a store", ""), ("shell", "")])
def test_cache_is_made_with_any_inherited_signals(site: Site, inherited: str, maker: str, step: str) -> None:
    """The first task of a job makes a whole cache, with Python or without it."""
    site.configure(task_prolog={"deadline": "10s"})
    if maker == "shell":
        site.policy(python="/nonexistent")
    elif maker != "python":
        site.configure(store={"user": f"{site.scratch}/{{user}}/.cache/hf-store"})
    for job, done in enumerate(in_each_shell(site, CASES[inherited], step), 1):
        assert done.cache and done.seconds < 5
        assert_whole(site, job)
    assert [event["outcome"] for event in site.syslog.events()] == ([] if maker == "shell" else ["made"] * 3)


@each_case
def test_later_tasks_wait_for_the_cache_with_any_inherited_signals(site: Site, inherited: str) -> None:
    """Tasks with another local id than 0 start first and make the cache themselves after a second."""
    site.configure(task_prolog={"deadline": "10s"})
    for job, done in enumerate(in_each_shell(site, CASES[inherited], step="0", SLURM_LOCALID="1"), 1):
        assert done.cache and 1 < done.seconds < 6
        assert_whole(site, job)


@each_case
@pytest.mark.parametrize("step", ["", "0"], ids=["batch", "step"])
def test_task_prolog_keeps_its_deadline_with_any_inherited_signals(site: Site, inherited: str, step: str) -> None:
    """Scratch hangs. The exports are printed at the deadline."""
    site.configure(task_prolog={"deadline": f"{DEADLINE}s"}, inherit="off")
    with hung_scratch(site):
        for done in in_each_shell(site, CASES[inherited], step):
            assert done.cache and DEADLINE - 0.1 < done.seconds < DEADLINE + SLACK


@each_case
def test_task_prolog_ends_hung_python_with_any_inherited_signals(site: Site, inherited: str) -> None:
    """Python does not end. The exports are printed at the deadline."""
    site.configure(task_prolog={"deadline": f"{DEADLINE}s"}, inherit="off")
    sleeper(site)
    for done in in_each_shell(site, CASES[inherited]):
        assert done.cache and DEADLINE - 0.1 < done.seconds < DEADLINE + SLACK


@each_case
def test_skipped_job_is_reported_with_any_inherited_signals(site: Site, inherited: str) -> None:
    """A job without a cache has one event, and no exports."""
    for done in in_each_shell(site, CASES[inherited], JOBCACHE="off"):
        assert done.output == b"" and done.seconds < 5
    assert [event["reason"] for event in site.syslog.events("cache.skipped")] == ["user_off"] * 3


SHOW = """
while read -r key bits; do case $key in SigBlk:) echo "export BLOCKED=$bits" ;; SigIgn:) echo "export IGNORED=$bits" ;; esac
done </proc/self/status
"""


@each_case
@pytest.mark.parametrize("first", [True, False], ids=["first", "further"])
def test_chained_task_prolog_inherits_the_signals(site: Site, inherited: str, first: bool) -> None:
    """It has the same mask and dispositions as if the shell had started it at once."""
    chained = site.dir / "chained"
    chained.write_text(f"#!/bin/dash\n{SHOW}")
    chained.chmod(0o755)
    site.configure(task_prolog={"deadline": "10s", "chain": str(chained)})
    for job, shell in enumerate(SHELLS, 1):
        if not first:
            site.task_prolog(job)
        expected = subprocess.run(
            [*shell.split(), "-c", f"exec {chained}"], stdout=subprocess.PIPE, text=True, check=True, restore_signals=False,
            preexec_fn=CASES[inherited],
        ).stdout  # fmt: skip
        variables = task_prolog.environment(ALICE, job, step="" if first else "0")
        done = task_prolog.run(site.hooks, ALICE, variables, shell=shell, timeout=20, inherited=CASES[inherited])
        assert done.cache and done.output.decode().endswith(f"\n{expected}"), shell


# ------------------------------------------------------------------------------------------------- any set of signals


@settings(
    max_examples=300 if FULL else 24,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a hook that hangs takes too long to find the smallest set
)
@given(
    blocked=st.sets(st.sampled_from(ANY_SIGNALS)),
    ignored=st.sets(st.sampled_from(ANY_SIGNALS)),
    shell=st.sampled_from(SHELLS),
    fault=st.sampled_from(["none", "none", "no python", "hung python", "hung scratch"]),
    step=st.sampled_from(["", "0"]),
)
def test_hooks_keep_their_promises_with_random_signals(
    site: Site, blocked: set[int], ignored: set[int], shell: str, fault: str, step: str
) -> None:
    """Both hooks exit 0 in time, the TaskProlog exports the cache, a further task joins it, and the Epilog reaps it."""
    site.configure(task_prolog={"deadline": "2s"}, epilog={"deadline": "10s", "budget": "5s"}, inherit="off")
    inherited = inherit(blocked, ignored)
    if fault == "no python":
        site.policy(python="/nonexistent")
    elif fault == "hung python":
        sleeper(site)
    if fault == "hung scratch":
        with hung_scratch(site):
            done = prolog(site, shell, inherited, step=step)
    else:
        done = prolog(site, shell, inherited, step=step)
    assert done.cache and done.seconds < 2 + SLACK
    site.configure()
    done = prolog(site, shell, inherited, step="1")
    assert done.cache and done.seconds < 2 + SLACK
    assert_whole(site, 4242)
    epilog(site, shell, inherited, 10 + SLACK)
    assert not site.cache().exists() and site.debris() == []
