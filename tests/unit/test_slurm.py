"""Which jobs are alive: a whole listing, or Unknown with its reason, and never anything in between."""

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
    """squeue and scontrol as files: each question's answer, what it says on stderr, and how it exits.

    Every question and the environment in which it was asked is written down.
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
        """Answer `text` to the question squeue, config or jobs. before: what the program does first."""
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


# ------------------------------------------------------------------------------------------------------------ parsing

ids = st.integers(1, 2**32 - 1)
states = st.sampled_from(sorted(ALIVE | DEAD))
words = st.one_of(ids.map(str), states, st.sampled_from(["", "0", "07", "12+0", "+1", "12_3", "NULL", "-1", "٣", "4294967296"]))


@given(st.text() | st.lists(st.lists(words, max_size=5).map("|".join)).map("\n".join) | st.binary().map(os.fsdecode))
def test_parse_raises_nothing_but_unknown(text: str) -> None:
    """Whatever squeue may print: whole rows, or Unknown."""
    try:
        rows = parse(text)
    except Unknown as unknown:
        assert unknown.reason in ("slurm_malformed", "slurm_state")
    else:
        assert text == "" or text.endswith("\n")
        assert all(row[0] > 0 and row[1] > 0 and row[2] in ALIVE | DEAD and row[3] >= 0 for row in rows)


@given(st.lists(st.tuples(ids, states, st.integers(0, 2**31))))
def test_parse_reads_every_line(jobs: list[tuple[int, str, int]]) -> None:
    """Each line of a whole answer is one row: nothing is passed over."""
    text = "".join(f"{job}|{job}|{state}|{uid}\n" for job, state, uid in jobs)
    assert parse(text) == [(job, job, state, uid) for job, state, uid in jobs]


@given(st.lists(st.tuples(ids, states, ids), min_size=1), st.data())
def test_what_is_cut_short_is_no_answer(jobs: list[tuple[int, str, int]], data: st.DataObject) -> None:
    """An answer that ends within a line is Unknown, even where the rest of that line could be read."""
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
def test_a_line_that_is_none(line: str) -> None:
    """One odd line among good ones makes the whole answer Unknown."""
    with pytest.raises(Unknown) as caught:
        parse(f"8|8|RUNNING|5\n{line}\n9|9|RUNNING|5\n")
    assert caught.value.reason == "slurm_malformed"


def test_a_state_that_is_not_known_here() -> None:
    """A later Slurm's new state may be a live one."""
    with pytest.raises(Unknown) as caught:
        parse("8|8|LEVITATING|5\n")
    assert caught.value.reason == "slurm_state"


# ---------------------------------------------------------------------------------------------------------- listings


def test_which_states_are_alive(fake: Fake) -> None:
    """Pending, suspended, completing, held, requeued: alive. Only what has ended is not."""
    every = sorted(ALIVE | DEAD)
    fake.answer("squeue", "".join(f"{at}|{at}|{state}|5\n" for at, state in enumerate(every, 1)))
    listing = fake.slurm.listing("tiger")
    assert {state for at, state in enumerate(every, 1) if listing.alive(at, 5)} == ALIVE
    assert not ALIVE & DEAD


def test_the_uid_matters(fake: Fake) -> None:
    """After the ids have come round, job 7 can be another's: that does not make it this user's."""
    fake.answer("squeue", "7|7|RUNNING|5\n8|8|COMPLETED|5\n8|8|RUNNING|6\n")
    listing = fake.slurm.listing("tiger")
    assert [listing.alive(7, 5), listing.alive(7, 6), listing.alive(8, 5), listing.alive(8, 6)] == [True, False, False, True]


def test_a_het_leader_is_alive_while_any_part_is(fake: Fake) -> None:
    """The cache has the leader's id; the leader may have ended before its other part."""
    fake.answer("squeue", "7|7+0|COMPLETED|5\n8|7+1|RUNNING|5\n")
    assert fake.slurm.listing("tiger").alive(7, 5)
    fake.answer("squeue", "7|7+0|COMPLETED|5\n8|7+1|COMPLETED|5\n")
    assert not fake.slurm.listing("tiger").alive(7, 5)


def test_tasks_of_an_array(fake: Fake) -> None:
    """Each task is alive by its own raw id, and the array's by the task that has it."""
    fake.answer("squeue", "9|7_1|RUNNING|5\n7|7_2|PENDING|5\n")
    listing = fake.slurm.listing("tiger")
    assert [listing.alive(job, 5) for job in (7, 8, 9)] == [True, False, True]


def test_at_is_before_the_question(fake: Fake) -> None:
    """`confirm` counts from before the first answer to before the second: never longer than they are apart."""
    before = time.monotonic()
    fake.answer("squeue", "7|7|RUNNING|5\n", before="sleep 0.1")
    assert before <= fake.slurm.listing("tiger").at <= time.monotonic() - 0.1
    assert isinstance(fake.slurm.listing("tiger"), Listing)


def test_no_jobs_at_all(fake: Fake) -> None:
    """An empty answer is one where the controller confirms it, and only there."""
    assert fake.slurm.listing("tiger").jobs == {}
    assert fake.asked()[-1] == "scontrol show jobs"
    for confirmation in ("", "JobId=7 JobName=x\n", "slurm_load_jobs error\n"):
        fake.answer("jobs", confirmation)
        assert fake.unknown().reason == "slurm_empty"


# ---------------------------------------------------------------------------------------------------- why it is unknown


@pytest.mark.parametrize("question", ["squeue", "config", "jobs"])
def test_no_answer_to_any_question(fake: Fake, question: str) -> None:
    """Down, failed or slow, whichever question it is: each has its reason, and the command's own last words."""
    fake.answer(question, "7|7|RUNNING|5\n", stderr=DOWN, status=1)
    assert fake.unknown().reason == "slurm_down"
    fake.answer(question, "7|7|RUNNING|5\n", stderr="warning: x\nfatal: out of memory\n", status=1)
    failed = fake.unknown()
    assert failed.reason == "slurm_failed" and "fatal: out of memory" in str(failed)
    fake.answer(question, "", status=3)
    assert "exit status 3" in str(fake.unknown())
    fake.answer(question, "", before="kill -9 $$")
    assert fake.unknown().reason == "slurm_failed"


def test_slow(fake: Fake) -> None:
    """A controller that does not answer is not waited for longer than the timeout, nor are the command's children."""
    fake.slurm = Slurm(None, f"{fake.dir}/squeue", f"{fake.dir}/scontrol", 0.3)
    fake.answer("squeue", "7|7|RUNNING|5\n", before="/bin/sleep 3; :")
    began = time.monotonic()
    assert fake.unknown().reason == "slurm_timeout"
    assert time.monotonic() - began < 2


def test_missing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such program by its path or its name, or one that cannot be executed. PATH of the caller finds nothing."""
    (fake.dir / "not-executable").write_text("")
    monkeypatch.setenv("PATH", str(fake.dir))
    os.symlink(fake.dir / "squeue", fake.dir / "squeue-of-path")
    for name in (f"{fake.dir}/none", f"{fake.dir}/not-executable", "squeue-of-path"):
        fake.slurm = Slurm(None, name, f"{fake.dir}/scontrol", 10)
        assert fake.unknown().reason == "slurm_missing"
        fake.slurm = Slurm(None, f"{fake.dir}/squeue", name, 10)
        assert fake.unknown().reason == "slurm_missing"


def test_names_are_looked_up_on_a_fixed_path(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is found on a PATH of ours."""
    monkeypatch.setattr(slurm, "PATH", f"{fake.dir}:/bin")
    fake.slurm = Slurm(None, "squeue", "scontrol", 10)
    assert fake.slurm.listing("tiger").jobs == {}


def test_other_cluster(fake: Fake) -> None:
    """What answers for another cluster, as with that one's SLURM_CONF, is not asked for its jobs."""
    fake.config(cluster="della")
    fake.answer("squeue", "7|7|RUNNING|5\n")
    assert fake.unknown().reason == "slurm_other_cluster"
    fake.answer("config", "")
    assert fake.unknown().reason == "slurm_other_cluster"
    assert not any(line.startswith("squeue") for line in fake.asked())


def test_cluster_name(fake: Fake) -> None:
    """`apply` has the name from Slurm, or Unknown where it has none."""
    assert fake.slurm.cluster_name() == "tiger"
    for text in ("", "ClusterName = (null)\n", "ClusterName\n"):
        fake.answer("config", text)
        with pytest.raises(Unknown):
            fake.slurm.cluster_name()


@pytest.mark.parametrize("private", ["jobs", "accounts,jobs,usage", "Jobs", "cloud, jobs"])
def test_private_data_blinds_all_but_root(fake: Fake, monkeypatch: pytest.MonkeyPatch, private: str) -> None:
    """Under PrivateData=jobs, a user's squeue exits 0 without the others' jobs. Root sees all, a user their own."""
    fake.config(private=private)
    fake.answer("squeue", "7|7|RUNNING|5\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert fake.slurm.listing("tiger").alive(7, 5)
    monkeypatch.setattr(os, "geteuid", lambda: 5)
    assert fake.unknown().reason == "slurm_private"
    assert fake.slurm.listing("tiger", only_own=True).alive(7, 5)
    fake.config(private="accounts,usage")
    assert fake.slurm.listing("tiger").alive(7, 5)


# ------------------------------------------------------------------------------------------------------- environment

HOSTILE = {
    "SQUEUE_STATES": "COMPLETED", "SQUEUE_PARTITION": "none", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%j",
    "SLURM_CLUSTERS": "other", "SQUEUE_SORT": "x", "SLURM_TIME_FORMAT": "relative", "SLURM_DEBUG": "9", "LD_PRELOAD": "",
    "LC_ALL": "de_DE.UTF-8", "PATH": "/nonexistent", "HOME": "/x",
}  # fmt: skip


@pytest.mark.parametrize("conf", [None, "/etc/conf-of-ours"])
def test_nothing_of_the_environment_arrives(fake: Fake, monkeypatch: pytest.MonkeyPatch, conf: str | None) -> None:
    """SQUEUE_* and SLURM_* filter even under --all --states=all: none arrives, not even SLURM_CONF; the site's own does."""
    for name, value in {**HOSTILE, "SLURM_CONF": "/etc/conf-of-environment"}.items():
        monkeypatch.setenv(name, value)
    fake.slurm = Slurm(conf, f"{fake.dir}/squeue", f"{fake.dir}/scontrol", 10)
    fake.slurm.listing("tiger")
    arrived = set((fake.dir / "env").read_text().splitlines())
    of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    told = {line.partition("=")[0]: line.partition("=")[2] for line in arrived}
    assert {name: told[name] for name in set(told) - of_the_shell} == {
        "PATH": slurm.PATH,
        "LC_ALL": "C",
        "TZ": "UTC0",
        **({"SLURM_CONF": conf} if conf else {}),
    }


def test_the_question_is_the_widest_there_is(fake: Fake) -> None:
    """All partitions, all states, every task of an array, this cluster alone."""
    fake.slurm.listing("tiger")
    (question,) = [line for line in fake.asked() if line.startswith("squeue")]
    assert {"--all", "--states=all", "--array", "--local", "--noheader"} <= set(question.split())


def test_comments_of_several_lines(tmp_path: Path) -> None:
    """Such as another tool of the site's leaves: that job has one, and no line of it is a job."""
    sacct = tmp_path / "sacct"
    sacct.write_text("#!/bin/sh\nprintf '42|2026-11-22T07:00:00|\\n43|2026-11-22T07:00:00|first\\nsecond\\n'\n")
    sacct.chmod(0o755)
    assert Slurm(None, "squeue", f"{tmp_path}/scontrol", 10).uncommented([42, 43]) == [42]
