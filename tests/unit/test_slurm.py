"""The list of live jobs: it is complete, or Unknown with a reason."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.system import slurm
from jobcache.system.live_jobs import ALIVE, DEAD, Listing, Unknown, parse
from jobcache.system.slurm import Slurm

DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"


class Fake:
    """squeue and scontrol as shell scripts, whose output, error output and exit status a test sets.

    They record each command line and each environment.
    """

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.slurm = Slurm(None, self.program("squeue"), self.program("scontrol"), 10)
        self.config()
        self.answer("squeue", "")
        self.answer("jobs", "No jobs in the system\n")

    def program(self, name: str) -> str:
        path = self.dir / name
        path.write_text(
            f'#!/bin/sh\ncd {self.dir}; echo "{name} $*" >>asked; /usr/bin/env >>env\n'
            f'case "{name} $*" in squeue*) to=squeue ;; *config) to=config ;; *jobs) to=jobs ;; esac\n'
            ". ./before-$to; cat stderr-$to >&2; cat stdout-$to; exit $(cat status-$to)\n"
        )
        path.chmod(0o755)
        return str(path)

    def answer(self, to: str, text: str, *, stderr: str = "", status: int = 0, before: str = "") -> None:
        """Set the output of squeue, of `show config` or of `show jobs`. before: shell code to run first."""
        for name, value in {"stdout": text, "stderr": stderr, "status": str(status), "before": before}.items():
            (self.dir / f"{name}-{to}").write_text(value)

    def config(self, cluster: str = "tiger", private: str = "none") -> None:
        self.answer("config", f"Configuration data\nClusterName             = {cluster}\nPrivateData = {private}\n")

    def asked(self) -> list[str]:
        return (self.dir / "asked").read_text().splitlines()

    def unknown(self, cluster: str = "tiger", **options: Any) -> Unknown:
        with pytest.raises(Unknown) as caught:
            self.slurm.listing(cluster, **options)
        assert str(caught.value)
        return caught.value


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


# -------------------------------------------------------------------------------------------------------------- parsing

ids = st.integers(1, 2**32 - 1)
states = st.sampled_from(sorted(ALIVE | DEAD))
words = st.one_of(ids.map(str), states, st.sampled_from(["", "0", "07", "12+0", "+1", "12_3", "NULL", "-1", "٣", "4294967296"]))


@given(st.text() | st.lists(st.lists(words, max_size=5).map("|".join)).map("\n".join) | st.binary().map(os.fsdecode))
def test_parse_raises_nothing_but_unknown(text: str) -> None:
    """For any output of squeue, the result is complete rows, or Unknown."""
    try:
        rows = parse(text)
    except Unknown as unknown:
        assert unknown.reason in ("slurm_malformed", "slurm_state")
    else:
        assert text == "" or text.endswith("\n")
        assert all(row[0] > 0 and row[1] > 0 and row[2] in ALIVE | DEAD and row[3] >= 0 for row in rows)


@given(st.lists(st.tuples(ids, states, st.integers(0, 2**31))))
def test_parse_reads_every_line(jobs: list[tuple[int, str, int]]) -> None:
    """Each line of a complete output is one row, and none is skipped."""
    text = "".join(f"{job}|{job}|{state}|{uid}\n" for job, state, uid in jobs)
    assert parse(text) == [(job, job, state, uid) for job, state, uid in jobs]


@given(st.lists(st.tuples(ids, states, ids), min_size=1), st.data())
def test_truncated_output_is_unknown(jobs: list[tuple[int, str, int]], data: st.DataObject) -> None:
    """An output that ends within a line is Unknown, even if the rest of the line can be parsed."""
    text = "".join(f"{job}|{job}|{state}|{uid}\n" for job, state, uid in jobs)
    cut = text[: data.draw(st.integers(1, len(text) - 1))]
    if not cut.endswith("\n"):
        with pytest.raises(Unknown):
            parse(cut)


@pytest.mark.parametrize(
    "line",
    ["", "7", "7|7|RUNNING", "7|7|RUNNING|5|x", "0|0|RUNNING|5", "07|07|RUNNING|5", "7|x+1|RUNNING|5", "7|7|RUNNING|games",
     "4294967296|4294967296|RUNNING|5", "slurm_load_jobs error: out of memory"],
)  # fmt: skip
def test_invalid_line_makes_the_output_unknown(line: str) -> None:
    """One invalid line among valid ones makes the whole output Unknown."""
    with pytest.raises(Unknown) as caught:
        parse(f"8|8|RUNNING|5\n{line}\n9|9|RUNNING|5\n")
    assert caught.value.reason == "slurm_malformed"


def test_unknown_state_makes_the_output_unknown() -> None:
    """A new state of a later Slurm can be that of a live job."""
    with pytest.raises(Unknown) as caught:
        parse("8|8|LEVITATING|5\n")
    assert caught.value.reason == "slurm_state"


# ------------------------------------------------------------------------------------------------------------- listings


def test_only_ended_jobs_are_dead(fake: Fake) -> None:
    """Pending, suspended, completing, held and requeued jobs are alive."""
    every = sorted(ALIVE | DEAD)
    fake.answer("squeue", "".join(f"{at}|{at}|{state}|5\n" for at, state in enumerate(every, 1)))
    listing = fake.slurm.listing("tiger")
    assert {state for at, state in enumerate(every, 1) if listing.alive(at, 5)} == ALIVE
    assert not ALIVE & DEAD


def test_job_of_another_uid_is_not_alive(fake: Fake) -> None:
    """After the ids have wrapped around, job 7 can belong to another user."""
    fake.answer("squeue", "7|7|RUNNING|5\n8|8|COMPLETED|5\n8|8|RUNNING|6\n")
    listing = fake.slurm.listing("tiger")
    assert [listing.alive(7, 5), listing.alive(7, 6), listing.alive(8, 5), listing.alive(8, 6)] == [True, False, False, True]


def test_a_het_leader_is_alive_while_any_part_is(fake: Fake) -> None:
    """The cache has the leader's id, and the leader can end before another part."""
    fake.answer("squeue", "7|7+0|COMPLETED|5\n8|7+1|RUNNING|5\n")
    assert fake.slurm.listing("tiger").alive(7, 5)
    fake.answer("squeue", "7|7+0|COMPLETED|5\n8|7+1|COMPLETED|5\n")
    assert not fake.slurm.listing("tiger").alive(7, 5)


def test_tasks_of_an_array_are_alive_by_their_raw_ids(fake: Fake) -> None:
    """The id of the array belongs to one of its tasks."""
    fake.answer("squeue", "9|7_1|RUNNING|5\n7|7_2|PENDING|5\n")
    listing = fake.slurm.listing("tiger")
    assert [listing.alive(job, 5) for job in (7, 8, 9)] == [True, False, True]


def test_listing_is_dated_before_the_query(fake: Fake) -> None:
    """`confirm` counts from before the first query to before the second, so it is never shorter than configured."""
    before = time.monotonic()
    fake.answer("squeue", "7|7|RUNNING|5\n", before="sleep 0.1")
    assert before <= fake.slurm.listing("tiger").at <= time.monotonic() - 0.1
    assert isinstance(fake.slurm.listing("tiger"), Listing)


def test_empty_listing_needs_confirmation(fake: Fake) -> None:
    """An empty output is accepted only if the controller confirms that no job exists."""
    assert fake.slurm.listing("tiger").jobs == {}
    assert fake.asked()[-1] == "scontrol show jobs"
    for confirmation in ("", "JobId=7 JobName=x\n", "slurm_load_jobs error\n"):
        fake.answer("jobs", confirmation)
        assert fake.unknown().reason == "slurm_empty"


# -------------------------------------------------------------------------------------------------------------- unknown


@pytest.mark.parametrize("question", ["squeue", "config", "jobs"])
def test_failing_command_is_unknown(fake: Fake, question: str) -> None:
    """For each command that fails, the reason is specific and has the last line of its error output."""
    fake.answer(question, "7|7|RUNNING|5\n", stderr=DOWN, status=1)
    assert fake.unknown().reason == "slurm_down"
    fake.answer(question, "7|7|RUNNING|5\n", stderr="warning: x\nfatal: out of memory\n", status=1)
    failed = fake.unknown()
    assert failed.reason == "slurm_failed" and "fatal: out of memory" in str(failed)
    fake.answer(question, "", status=3)
    assert "exit status 3" in str(fake.unknown())
    fake.answer(question, "", before="kill -9 $$")
    assert fake.unknown().reason == "slurm_failed"


def test_slow_command_is_unknown_after_the_timeout(fake: Fake) -> None:
    """Neither the command nor its children are waited for any longer."""
    fake.slurm = Slurm(None, f"{fake.dir}/squeue", f"{fake.dir}/scontrol", 0.3)
    fake.answer("squeue", "7|7|RUNNING|5\n", before="/bin/sleep 3; :")
    began = time.monotonic()
    assert fake.unknown().reason == "slurm_timeout"
    assert time.monotonic() - began < 2


def test_missing_command_is_unknown(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is missing by its path or by its name, or cannot be executed. The caller's PATH is not used."""
    (fake.dir / "not-executable").write_text("")
    monkeypatch.setenv("PATH", str(fake.dir))
    os.symlink(fake.dir / "squeue", fake.dir / "squeue-of-path")
    for name in (f"{fake.dir}/none", f"{fake.dir}/not-executable", "squeue-of-path"):
        fake.slurm = Slurm(None, name, f"{fake.dir}/scontrol", 10)
        assert fake.unknown().reason == "slurm_missing"
        fake.slurm = Slurm(None, f"{fake.dir}/squeue", name, 10)
        assert fake.unknown().reason == "slurm_missing"


def test_names_are_searched_in_a_fixed_path(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is found in the PATH of the module."""
    monkeypatch.setattr(slurm, "PATH", f"{fake.dir}:/bin")
    fake.slurm = Slurm(None, "squeue", "scontrol", 10)
    assert fake.slurm.listing("tiger").jobs == {}


def test_other_cluster_is_unknown(fake: Fake) -> None:
    """If the commands answer for another cluster, as with its SLURM_CONF, no jobs are queried."""
    fake.config(cluster="della")
    fake.answer("squeue", "7|7|RUNNING|5\n")
    assert fake.unknown().reason == "slurm_other_cluster"
    fake.answer("config", "")
    assert fake.unknown().reason == "slurm_other_cluster"
    assert not any(line.startswith("squeue") for line in fake.asked())


def test_cluster_name_comes_from_slurm(fake: Fake) -> None:
    """`apply` gets the name from Slurm, or Unknown."""
    assert fake.slurm.cluster_name() == "tiger"
    for text in ("", "ClusterName = (null)\n", "ClusterName\n"):
        fake.answer("config", text)
        with pytest.raises(Unknown):
            fake.slurm.cluster_name()


@pytest.mark.parametrize("private", ["jobs", "accounts,jobs,usage", "Jobs", "cloud, jobs"])
def test_private_data_hides_jobs_from_users(fake: Fake, monkeypatch: pytest.MonkeyPatch, private: str) -> None:
    """Under PrivateData=jobs, a user's squeue exits 0 without the jobs of others. Root sees all jobs, a user their own."""
    fake.config(private=private)
    fake.answer("squeue", "7|7|RUNNING|5\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert fake.slurm.listing("tiger").alive(7, 5)
    monkeypatch.setattr(os, "geteuid", lambda: 5)
    assert fake.unknown().reason == "slurm_private"
    assert fake.slurm.listing("tiger", only_own=True).alive(7, 5)
    fake.config(private="accounts,usage")
    assert fake.slurm.listing("tiger").alive(7, 5)


# ---------------------------------------------------------------------------------------------------------- environment

HOSTILE = {
    "SQUEUE_STATES": "COMPLETED", "SQUEUE_PARTITION": "none", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%j",
    "SLURM_CLUSTERS": "other", "SQUEUE_SORT": "x", "SLURM_TIME_FORMAT": "relative", "SLURM_DEBUG": "9", "LD_PRELOAD": "",
    "LC_ALL": "de_DE.UTF-8", "PATH": "/nonexistent", "HOME": "/x",
}  # fmt: skip


@pytest.mark.parametrize("conf", [None, "/etc/conf-of-ours"])
def test_environment_of_the_caller_is_not_passed_on(fake: Fake, monkeypatch: pytest.MonkeyPatch, conf: str | None) -> None:
    """SQUEUE_* and SLURM_* would filter the output. None is passed on, but the configured SLURM_CONF."""
    for name, value in {**HOSTILE, "SLURM_CONF": "/etc/conf-of-environment"}.items():
        monkeypatch.setenv(name, value)
    fake.slurm = Slurm(conf, f"{fake.dir}/squeue", f"{fake.dir}/scontrol", 10)
    fake.slurm.listing("tiger")
    arrived = set((fake.dir / "env").read_text().splitlines())
    of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    variables = {line.partition("=")[0]: line.partition("=")[2] for line in arrived}
    assert {name: variables[name] for name in set(variables) - of_the_shell} == {
        "PATH": slurm.PATH,
        "LC_ALL": "C",
        "TZ": "UTC0",
        **({"SLURM_CONF": conf} if conf else {}),
    }


def test_query_covers_all_jobs(fake: Fake) -> None:
    """All partitions, all states, every task of an array, and this cluster alone."""
    fake.slurm.listing("tiger")
    (question,) = [line for line in fake.asked() if line.startswith("squeue")]
    assert {"--all", "--states=all", "--array", "--local", "--noheader"} <= set(question.split())


def test_comment_of_several_lines_is_one_comment(tmp_path: Path) -> None:
    """A job with such a comment from another tool is commented, and no line of it is taken for a job."""
    sacct = tmp_path / "sacct"
    sacct.write_text("#!/bin/sh\nprintf '42|2026-11-22T07:00:00|\\n43|2026-11-22T07:00:00|first\\nsecond\\n'\n")
    sacct.chmod(0o755)
    assert Slurm(None, "squeue", f"{tmp_path}/scontrol", 10).uncommented([42, 43]) == [42]


# --------------------------------------------------------------------------------------------------------------- nodes


def scontrol(tmp_path: Path, body: str) -> Slurm:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / "scontrol").chmod(0o755)
    return Slurm(None, "squeue", f"{tmp_path}/scontrol", 10)


def test_nodes_of_a_host(tmp_path: Path) -> None:
    """Slurm prints an empty line for a host without a node."""
    assert scontrol(tmp_path, 'test "$*" = "show aliases vm" && echo n1 n2').nodes_of_host("vm") == ["n1", "n2"]
    assert scontrol(tmp_path, "echo").nodes_of_host("vm") == []


def test_host_of_a_node(tmp_path: Path) -> None:
    """A node that does not exist has no host. Any other failure is Unknown."""
    found = "NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=vm Port=6818"
    assert scontrol(tmp_path, f"echo '{found}'").host_of_node("n1") == "vm"
    assert scontrol(tmp_path, "echo 'Node n1 not found'; exit 1").host_of_node("n1") == ""
    with pytest.raises(Unknown):
        scontrol(tmp_path, f"echo '{DOWN}' >&2; exit 1").host_of_node("n1")
