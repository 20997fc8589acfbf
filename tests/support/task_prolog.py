"""Run the TaskProlog of one task as slurmstepd does, and read its output as Slurm does."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Prologue:
    """The result of one TaskProlog: its exit status, output and seconds, and the exports and unsets that Slurm obeys.

    Fails the test if the output holds anything but whole lines that Slurm obeys.
    """

    def __init__(self, status: int, output: bytes, stderr: bytes = b"", seconds: float = 0.0) -> None:
        self.status = status
        self.output = output
        self.stderr = stderr
        self.seconds = seconds
        assert output == b"" or output.endswith(b"\n"), output
        self.exports: dict[str, str] = {}
        self.unsets: list[str] = []
        for line in os.fsdecode(output).splitlines():
            word, _, rest = line.partition(" ")
            assert word in ("export", "unset"), output
            if word == "export":
                name, _, value = rest.partition("=")
                self.exports[name] = value
            else:
                self.unsets.append(rest)

    @property
    def cache(self) -> str | None:
        return self.exports.get("HF_DATASETS_CACHE")


def environment(user: str, job: int = 4242, *, node: str = "n1", step: str = "") -> dict[str, str]:
    """Return the least that Slurm sets for a task. step: "" for the batch step."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_UID": str(pwd.getpwnam(user).pw_uid),
        "SLURM_JOB_USER": user,
        "SLURMD_NODENAME": node,
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        **({"SLURM_STEP_ID": step} if step else {}),
    }


def run(
    hooks: Path, user: str, env: Mapping[str, str], *,
    shell: str = "/bin/sh", title: str = "", prefix: Sequence[str] = (), timeout: float = 60,
    inherited: Callable[[], None] | None = None,
) -> Prologue:  # fmt: skip
    """Run the TaskProlog in `hooks` as `user`, in exactly this environment, to the end of its output.

    title: the title of the parent process, as slurmstepd has one. prefix: a command that runs the hook as its arguments.
    timeout: in seconds; the test fails if the hook exceeds it. inherited: sets the signal mask and dispositions that the hook
    inherits.
    """
    command = [*prefix, *shell.split(), str(hooks / "task-prolog")]
    executable = None
    if title:
        command, executable = [title, "-c", '"$@"; exit $?', "sh", *command], "/bin/dash"
    account = pwd.getpwnam(user)
    began = time.monotonic()
    done = subprocess.run(
        command, executable=executable, env=dict(env), user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/",
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout,
        restore_signals=inherited is None, preexec_fn=inherited,
    )  # fmt: skip
    return Prologue(done.returncode, done.stdout, done.stderr, time.monotonic() - began)
