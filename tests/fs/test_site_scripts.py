"""The scripts that a site can copy: a Prolog that creates users' directories, and exports for shells without a TaskProlog."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from support.faultfs import Faults, faulty
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


def script_for(scratch: Path) -> Path:
    script = scratch.parent / "prolog"
    script.write_text((ETC / "prolog.d/jobcache-scratch").read_text().replace("scratch=/scratch/gpfs", f"scratch={scratch}", 1))
    script.chmod(0o755)
    return script


def job(user: str = ALICE) -> dict[str, str]:
    account = pwd.getpwnam(user)
    return {"SLURM_JOB_USER": user, "SLURM_JOB_UID": str(account.pw_uid), "SLURM_JOB_GID": str(account.pw_gid)}


def prolog(
    scratch: Path, user: str = ALICE, *, shell: str = "/bin/sh", inherited: Callable[[], None] | None = None, **env: str
) -> str:
    """Run the Prolog with an environment like slurmd's; assert that it exits 0; return its messages."""
    env = {"TMPDIR": str(scratch.parent), **job(user), **env}
    command = [*shell.split(), str(script_for(scratch))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=False, preexec_fn=inherited)
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


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("how", [signal.SIG_BLOCK, signal.SIG_IGN])
def test_prolog_works_with_inherited_signals(scratch: Path, shell: str, how: int) -> None:
    """slurmstepd starts it with SIGCHLD blocked under PrologFlags=RunInJob."""

    def inherit() -> None:
        if how == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE])

    assert prolog(scratch, shell=shell, inherited=inherit) == ""
    assert (scratch / ALICE).stat().st_uid == UID
    assert os.listdir(scratch) == [ALICE]


def test_prologs_of_many_nodes_at_once_make_one_directory(scratch: Path) -> None:
    """No node ever sees a directory that does not belong to the user yet."""
    script = script_for(scratch)
    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            runs = [pool.submit(subprocess.run, [script], env=job(), capture_output=True, check=False) for _ in range(8)]
            seen = set()
            while not all(run.done() for run in runs):
                with suppress(FileNotFoundError):
                    seen.add((scratch / ALICE).stat().st_uid)
        assert {run.result().stderr for run in runs} == {b""} and seen <= {UID}
        assert os.listdir(scratch) == [ALICE]
        (scratch / ALICE).rmdir()


def test_prolog_that_is_killed_leaves_the_name_free(scratch: Path) -> None:
    """Killed at any time, it leaves no directory of root under the name of the user."""
    script = script_for(scratch)
    for delay in range(0, 30, 2):
        with subprocess.Popen([script], env=job(), start_new_session=True) as process:
            time.sleep(delay / 1000)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (scratch / ALICE).exists() or (scratch / ALICE).stat().st_uid == UID
    assert prolog(scratch) == "" and (scratch / ALICE).stat().st_uid == UID


def test_prolog_leaves_nothing_under_root_squash(scratch: Path) -> None:
    """Root is nobody there and cannot give a directory away. The TaskProlog creates it, as the user."""
    backing = scratch.parent / "backing"
    backing.mkdir()
    backing.chmod(0o1777)
    with faulty(backing, scratch, Faults(squash=True)):
        assert "chown" in prolog(scratch)
    assert os.listdir(backing) == []


def test_prolog_gives_no_directory_to_a_uid_without_a_name(scratch: Path) -> None:
    """Where the look-up of a name fails, Slurm calls each such user nobody, or by the uid."""
    assert "has no name" in prolog(scratch, SLURM_JOB_USER="54321", SLURM_JOB_UID="54321")
    assert "in the job" in prolog(scratch, SLURM_JOB_USER="nobody", SLURM_JOB_UID="54321")
    assert "in the job" in prolog(scratch, SLURM_JOB_USER=BOB)
    assert os.listdir(scratch) == []
    assert prolog(scratch, SLURM_JOB_USER="elsewhere", SLURM_JOB_UID="54321") == ""  # the name is known to the controller alone
    assert (scratch / "elsewhere").stat().st_uid == 54321


@pytest.mark.parametrize(("name", "value"), [("UID", ""), ("UID", "0"), ("UID", "x"), ("UID", "-1"), ("GID", ""), ("GID", "1 2")])
def test_prolog_without_a_user_does_nothing(scratch: Path, name: str, value: str) -> None:
    """Slurm calls a job that it does not know any more root's."""
    assert "no user" in prolog(scratch, **{f"SLURM_JOB_{name}": value})
    assert os.listdir(scratch) == []


def test_prolog_follows_a_scratch_that_is_a_symlink_of_root(scratch: Path) -> None:
    link = scratch.parent / "link"
    link.symlink_to(scratch)
    assert prolog(link) == "" and (scratch / ALICE).stat().st_uid == UID


def test_prolog_does_not_enter_a_users_symlink_that_hangs(scratch: Path) -> None:
    """The user's symlink leads to a filesystem of the user."""
    (scratch.parent / "mine").mkdir()
    (scratch / ALICE).symlink_to(scratch.parent / "mine")
    os.chown(scratch / ALICE, UID, -1, follow_symlinks=False)
    with hung(scratch.parent / "mine"):
        assert prolog(scratch) == ""


def test_prolog_exits_0_without_a_place_for_its_file(scratch: Path) -> None:
    assert "no temporary file" in prolog(scratch, TMPDIR="/nonexistent")


def test_prolog_exits_0_when_its_messages_cannot_be_read(scratch: Path) -> None:
    """slurmd has closed the pipe."""
    scratch.rmdir()
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert subprocess.run([script_for(scratch)], env=job(), stderr=writing, check=False).returncode == 0
    finally:
        os.close(writing)


def test_prolog_ends_when_scratch_hangs(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with hung(tmp_path / "scratch"):
        assert "did not answer" in prolog(tmp_path / "scratch")


# ---- shells without a TaskProlog


def shell(site: Site, program: str, command: str = 'echo "$HF_DATASETS_CACHE"', *, before: str = "", **env: str) -> str:
    """Source the snippet as ALICE in a shell, run `command`, and return its output. before: commands before it."""
    snippet = site.dir / "jobcache.sh"
    text = (ETC / "profile.d/jobcache.sh").read_text()
    snippet.write_text(text.replace("/usr/libexec/jobcache", str(site.hooks)).replace("/proc/self/cgroup", f"{site.dir}/cgroup"))
    done = subprocess.run(
        [*program.split(), "-c", f"{before} . {snippet}; {command}"],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env}, user=ALICE, group=60, extra_groups=[],
        capture_output=True, text=True, timeout=30, check=False,
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


CGROUPS = {
    "v2": "0::/system.slice/slurmstepd.scope/job_4242/step_extern/user/task_0\n",
    "v1": "5:freezer:/slurm/uid_5/job_4242/step_extern\n1:name=systemd:/user.slice/user-5.slice\n",
    "none": "0::/user.slice/user-5.slice/session-1.scope\n",
    "forged": "0::/user.slice/job_42x/y\n",
}


@pytest.mark.parametrize("program", SHELLS)
@pytest.mark.parametrize("cgroup", CGROUPS)
def test_ssh_session_has_the_cache_of_the_job_in_its_cgroup(site: Site, program: str, cgroup: str) -> None:
    """pam_slurm_adopt put it there, and set no variable. A session in no job has no cache."""
    (site.dir / "cgroup").write_text(CGROUPS[cgroup])
    ours = str(site.scratch / ALICE / ".cache/hf-datasets-4242") if cgroup in ("v1", "v2") else ""
    assert shell(site, program, SSH_CONNECTION="192.0.2.1 1 192.0.2.2 22") == ours
    assert shell(site, program) == ""  # no ssh session
    if ours:
        assert site.task_prolog(step="0").cache == ours


@pytest.mark.parametrize("program", SHELLS)
def test_shell_survives_any_line_of_the_chained_task_prolog(site: Site, program: str) -> None:
    """Names that are none, values with blanks and quotes, lines that are no export: a shell with `set -eu`, too."""
    chain = site.dir / "chain"
    lines = [
        "export A-B=1",
        "export =2",
        "export 3C=4",
        "export NOVALUE",
        "unset A-B",
        'export D=it\'s a "$x" \\',
        "print hello",
        "x",
    ]
    chain.write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join(lines) + "\nE\n")
    chain.chmod(0o755)
    site.configure(task_prolog={"chain": str(chain)})
    expected = f'{site.scratch}/{ALICE}/.cache/hf-datasets-4242 it\'s a "$x" \\'
    for options in ("", "set -eu;"):
        snippet = 'printf "%s %s" "$HF_DATASETS_CACHE" "$D"'
        assert shell(site, program, snippet, before=options, SLURM_JOB_ID="4242") == expected
