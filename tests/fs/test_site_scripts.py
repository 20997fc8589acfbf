"""The scripts that a site can copy: a Prolog that creates users' directories, and exports for shells without a TaskProlog."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hungfs import hung
from support.site_dir import ALICE, BOB, SHELLS, Site

ETC = Path(__file__).parents[2] / "etc"
UID = pwd.getpwnam(ALICE).pw_uid


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "scratch"
    made.mkdir()
    made.chmod(0o1777)
    yield made


def prolog(scratch: Path, user: str = ALICE, **env: str) -> str:
    """Run the Prolog with an environment like slurmd's; assert that it exits 0; return its messages."""
    script = scratch.parent / "prolog"
    script.write_text((ETC / "prolog.d/jobcache-scratch").read_text().replace("scratch=/scratch/gpfs", f"scratch={scratch}", 1))
    script.chmod(0o755)
    account = pwd.getpwnam(user)
    job = {"SLURM_JOB_USER": user, "SLURM_JOB_UID": str(account.pw_uid), "SLURM_JOB_GID": str(account.pw_gid)}
    env = {"TMPDIR": str(scratch.parent), **job, **env}
    done = subprocess.run([str(script)], env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0 and done.stdout == ""
    return done.stderr


def test_prolog_creates_a_directory_that_belongs_to_the_user(scratch: Path) -> None:
    """A second Prolog changes nothing."""
    for _ in range(2):
        assert prolog(scratch) == ""
        found = (scratch / ALICE).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (UID, pwd.getpwnam(ALICE).pw_gid, 0o700)


@pytest.mark.parametrize("kind", ["directory", "file", "symlink", "dangling symlink"])
def test_prolog_reports_what_another_user_made_and_leaves_it(scratch: Path, kind: str) -> None:
    target = scratch.parent / "target"
    target.mkdir()
    place, bob = scratch / ALICE, pwd.getpwnam(BOB).pw_uid
    if kind == "directory":
        place.mkdir(mode=0o777)
    elif kind == "file":
        place.touch()
    else:
        place.symlink_to(target if kind == "symlink" else "/nonexistent")
    os.chown(place, bob, -1, follow_symlinks=False)
    assert "belongs to another user" in prolog(scratch)
    assert place.lstat().st_uid == bob and target.stat().st_uid == 0


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_prolog_creates_nothing_where_others_can_rename_it(scratch: Path, mode: int) -> None:
    scratch.chmod(mode)
    assert "chmod 1777" in prolog(scratch)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x"])
def test_prolog_refuses_names_that_are_no_directory(scratch: Path, name: str) -> None:
    before = sorted(scratch.parent.rglob("*"))
    assert prolog(scratch, SLURM_JOB_USER=name)
    assert sorted(path for path in scratch.parent.rglob("*") if path.name != "prolog") == before


def test_prolog_reports_a_scratch_that_is_missing(scratch: Path) -> None:
    scratch.rmdir()
    assert "No such file" in prolog(scratch)


def test_prolog_ends_when_scratch_hangs(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with hung(tmp_path / "scratch"):
        assert "did not answer" in prolog(tmp_path / "scratch")


# ---- shells without a TaskProlog


def shell(site: Site, program: str, command: str = 'echo "$HF_DATASETS_CACHE"', **env: str) -> str:
    """Source the snippet as ALICE in a shell, run `command`, and return its output."""
    snippet = site.dir / "jobcache.sh"
    text = (ETC / "profile.d/jobcache.sh").read_text()
    snippet.write_text(text.replace("/usr/libexec/jobcache", str(site.hooks)))
    done = subprocess.run(
        [*program.split(), "-c", f". {snippet}; {command}"], env={"PATH": "/usr/bin:/bin", **env}, user=ALICE, group=60,
        extra_groups=[], capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("program", SHELLS)
def test_shell_of_salloc_has_the_cache_of_its_job(site: Site, program: str) -> None:
    """A step of the job joins the same cache."""
    cache = shell(site, program, SLURM_JOB_ID="4242")
    assert cache == str(site.scratch / ALICE / ".cache/hf-datasets-4242")
    assert site.task_prolog(step="0").cache == cache


@pytest.mark.parametrize("program", SHELLS)
def test_shell_outside_of_a_job_and_task_of_a_job_are_left_alone(site: Site, program: str) -> None:
    """The TaskProlog of the task has decided already."""
    assert shell(site, program) == ""
    assert shell(site, program, SLURM_JOB_ID="4242", SLURM_PROCID="0") == ""
    assert shell(site, program, SLURM_JOB_ID="4242", JOBCACHE="off") == ""
    assert shell(site, program, SLURM_JOB_ID="4242", HF_DATASETS_CACHE="/mine") == "/mine"


@pytest.mark.parametrize("program", SHELLS)
def test_snippet_leaves_no_variable_behind(site: Site, program: str) -> None:
    assert shell(site, program, "set | grep -ci '^jobcache_[jlt]' || :", SLURM_JOB_ID="4242") == "0"
