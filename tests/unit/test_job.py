"""The job of an Epilog, from environments that real clusters set, and from invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.cache.fields import component, natural, number
from jobcache.system.epilog_job import Job, JobError, from_epilog

RECORDED = Path(__file__).parents[1] / "contract" / "environments"
REQUIRED = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": "1000", "SLURMD_NODENAME": "n1"}
INVALID = [
    "", "-1", "+1", "01", " 1", "1 ", "1\n", "1.0", "1e3", "0x1", "1_000", "x", "(null)", "4294967296", "9" * 20, "9" * 5000,
    "٤٢", "１", "²", "1\x00", "\udcff", "../..", "4294967295x",
]  # fmt: skip


def epilogs() -> list[Path]:
    return sorted(RECORDED.glob("*/*-epilog*.env"))


def recorded(file: Path) -> dict[str, str]:
    lines = file.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("file", epilogs(), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_recorded_environments_name_the_job(file: Path) -> None:
    """Every Epilog that a real slurmd started has a job, an owner and a node; of a het job, the leader."""
    env = recorded(file)
    job = from_epilog(env)
    assert job.job_id == int(env.get("SLURM_HET_JOB_ID") or env["SLURM_JOB_ID"])
    assert job.het == ("het" in file.name)
    assert job.uid in (5, 0)  # 0: Slurm no longer knows the job
    assert job.node == env["SLURMD_NODENAME"]
    assert job.nodes == (int(env["SLURM_JOB_NUM_NODES"]) if "SLURM_JOB_NUM_NODES" in env else None)


def test_recordings_exist() -> None:
    """The test above has input."""
    assert len(epilogs()) >= 6


def test_three_variables_suffice() -> None:
    """Id, owner and node suffice. The rest is None, and not guessed."""
    job = from_epilog(REQUIRED)
    assert (job.job_id, job.uid, job.node, job.het) == (4242, 1000, "n1", False)
    assert (job.gid, job.user, job.nodes, job.start, job.failed) == (None, None, None, None, False)


def test_all_variables_are_used() -> None:
    """Every variable of Slurm is part of the job."""
    more = {"GID": "60", "USER": "al ice", "NUM_NODES": "2", "EXIT_CODE": "256", "START_TIME": "1795333674"}
    job = from_epilog({**REQUIRED, **{f"SLURM_JOB_{key}": value for key, value in more.items()}})
    assert (job.gid, job.user, job.nodes, job.failed, job.start) == (60, "al ice", 2, True, 1795333674)


@pytest.mark.parametrize("value", [*INVALID, "0"])
@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_HET_JOB_ID"])
def test_invalid_job_id_is_refused(name: str, value: str) -> None:
    """An invalid id is refused. An invalid het leader is refused as well: the component's id is not the job's."""
    if name == "SLURM_HET_JOB_ID" and value in ("", "0"):
        assert from_epilog({**REQUIRED, name: value}).job_id == 4242
        return
    with pytest.raises(JobError) as caught:
        from_epilog({**REQUIRED, name: value})
    assert caught.value.reason == "no_job"


@pytest.mark.parametrize("value", [*INVALID, "4294967295"])
def test_invalid_uid_is_refused(value: str) -> None:
    """An invalid uid is refused, and so is (uid_t) -1."""
    with pytest.raises(JobError):
        from_epilog({**REQUIRED, "SLURM_JOB_UID": value})


@pytest.mark.parametrize("value", ["", ".", "..", ".hidden", "../n1", "a/b", "n1\n", "n\x001", "n" * 256])
def test_invalid_node_is_refused(value: str) -> None:
    """A node name that cannot be the name of a lease is refused."""
    with pytest.raises(JobError):
        from_epilog({**REQUIRED, "SLURMD_NODENAME": value})


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_missing_variable_is_refused(name: str) -> None:
    """Without id, owner or node there is no job."""
    with pytest.raises(JobError):
        from_epilog({key: value for key, value in REQUIRED.items() if key != name})


@pytest.mark.parametrize("value", INVALID)
def test_invalid_optional_variable_is_unknown(value: str) -> None:
    """An optional variable that is invalid is None. It is not an error, and not guessed."""
    names = ("GID", "NUM_NODES", "EXIT_CODE")
    job = from_epilog({**REQUIRED, **{f"SLURM_JOB_{name}": value for name in names}})
    assert (job.gid, job.nodes, job.failed) == (None, None, True)


@pytest.mark.parametrize(
    ("env", "failed"),
    [
        ({}, False),  # Slurm 20.11 and 21.08 report neither
        ({"SLURM_JOB_NUM_NODES": "1"}, True),  # an aborted job of Slurm 22.05 or later
        ({"SLURM_JOB_EXIT_CODE": "0"}, False),
        ({"SLURM_JOB_EXIT_CODE": "0", "SLURM_JOB_NUM_NODES": "1"}, False),
        ({"SLURM_JOB_EXIT_CODE": "256"}, True),
        ({"SLURM_JOB_EXIT_CODE": "nonsense"}, True),
    ],
)
def test_unknown_exit_status_is_a_failure_if_slurm_reports_one(env: dict[str, str], failed: bool) -> None:
    assert from_epilog({**REQUIRED, **env}).failed is failed


@pytest.mark.parametrize("value", ["", "../root", ".", "..", "a/b", "a\nb", "a\x7f", "u" * 256])
def test_invalid_user_name_is_unknown(value: str) -> None:
    """A user name that no path can contain is None."""
    assert from_epilog({**REQUIRED, "SLURM_JOB_USER": value}).user is None


WORDS = "JOB_ID HET_JOB_ID JOB_UID JOB_GID JOB_USER JOB_NUM_NODES JOB_EXIT_CODE JOB_START_TIME".split()
NAMES = st.sampled_from([f"SLURM_{word}" for word in WORDS])
VALUES = st.one_of(st.text(max_size=24), st.integers().map(str))


@given(st.dictionaries(NAMES, VALUES, max_size=8), st.text())
def test_any_environment_is_a_job_or_an_error(env: dict[str, str], node: str) -> None:
    """The result is a job in the range of real ones, or JobError."""
    try:
        job = from_epilog({**env, "SLURMD_NODENAME": node})
    except JobError as error:
        assert error.reason == "no_job"
        return
    assert isinstance(job, Job)
    assert 0 < job.job_id < 2**32 and 0 <= job.uid < 2**32 - 1
    assert component(job.node) and (job.user is None or component(job.user))


@given(st.integers(0, 2**32 - 1))
def test_numbers_have_one_spelling(value: int) -> None:
    """Only the spelling of str() is accepted."""
    assert natural(str(value)) == value
    assert number(str(value)) == (value or None)
    assert natural(f"0{value}") is None and number(f"+{value}") is None


def test_limit_of_a_number_is_inclusive() -> None:
    """The limit itself is accepted."""
    assert (number("7", 7), number("8", 7), natural("0", 0)) == (7, None, 0)
