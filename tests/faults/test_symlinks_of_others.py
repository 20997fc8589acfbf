"""A symlink of another user above the path of a cache, to a directory of the user that has a cache of the same run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.home import acting_as, uid_of
from support.site_dir import ALICE, BOB, SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")


@pytest.mark.parametrize("shell", SHELLS)
def test_no_task_joins_its_former_cache_behind_a_symlink_of_another_user(site: Site, shell: str) -> None:
    """The configured path changes during the job, and Bob has made Alice's directory in the new scratch."""
    former = Path(site.task_prolog(shell=shell).cache or "").parent
    scratch = site.dir / "scratch2"
    scratch.mkdir()
    scratch.chmod(0o1777)
    site.configure(path=f"{scratch}/{{user}}/.cache/hf-datasets-{{job_id}}")
    with acting_as(BOB):
        (scratch / ALICE).mkdir()
        (scratch / ALICE / ".cache").symlink_to(former)
    assert site.task_prolog(step="1", shell=shell).cache is None


@pytest.mark.parametrize("shell", SHELLS)
def test_no_task_joins_the_cache_of_a_command_behind_a_symlink_of_another_user(site: Site, shell: str) -> None:
    """Bob has made Alice's directory, so her job has no cache. She uses `jobcache run --path` in the job."""
    own = site.dir / "own"
    own.mkdir()
    os.chown(own, uid_of(ALICE), -1)
    with acting_as(BOB):
        (site.scratch / ALICE).mkdir()
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(uid_of(ALICE)), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    env = {"PATH": os.environ["PATH"], "HOME": str(own), "SLURM_CLUSTER_NAME": "test", **job}
    path = f"{own}/{{user}}/hf-datasets-{{job_id}}"
    command = ["jobcache", "run", "--path", path, "--", "sh", "-c", "echo; read -r _"]
    who = {"user": ALICE, "group": ALICE, "extra_groups": [], "cwd": "/"}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **who) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        assert (own / ALICE / "hf-datasets-4242" / ".jobcache" / "id").exists()
        with acting_as(BOB):
            (site.scratch / ALICE / ".cache").symlink_to(own / ALICE)
        cache = site.task_prolog(step="1", shell=shell).cache
        process.communicate(b"\n")
    assert cache is None
