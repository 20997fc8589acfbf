#!/usr/bin/env python3
"""Record the environments that a real Slurm passes to TaskProlog and Epilog, as environments/VERSION/NAME.env.

    tests/contract/record.py [PATH]

PATH is the search path for Slurm's programs. Each file begins with a comment, the title of the process that ran the hook.
Names of hosts, paths and the cluster are replaced by invented ones.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent

sys.path.insert(0, str(HERE.parent))  # this is a program

from support.minicluster import Cluster, ClusterError  # noqa: E402

USER = "games"
HOOK = """\
#!/bin/sh
file=DIR/KIND.$SLURM_JOB_ID.$SLURMD_NODENAME.$$
{ /usr/bin/tr '\\0' ' ' </proc/$PPID/cmdline; printf '\\0'; /usr/bin/env -0; } >$file.part
/bin/mv $file.part $file
"""
# Variables of the machine or the shell that records.
DROPPED = ("_", "OLDPWD", "LS_COLORS", "LANG", "TMPDIR", "SHLVL")


class Recorder:
    """A cluster whose hooks record their environment."""

    def __init__(self, path: str | None) -> None:
        self.dir = Path(tempfile.mkdtemp())
        self.dir.chmod(0o1777)
        for kind in ("task-prolog", "epilog"):
            hook = self.dir / kind
            hook.write_text(HOOK.replace("DIR", str(self.dir)).replace("KIND", kind))
            hook.chmod(0o755)
        conf = [f"TaskProlog={self.dir}/task-prolog", f"Epilog={self.dir}/epilog", "LaunchParameters=use_interactive_step"]
        self.cluster = Cluster(name="tiny", path=path, conf=conf)

    def start(self) -> None:
        self.cluster.start()
        version = re.findall(r"[0-9]+", self.cluster.run("sbatch", "--version").stdout)
        self.into = HERE / "environments" / ".".join(version[:2])
        self.into.mkdir(parents=True, exist_ok=True)

    def stop(self) -> None:
        self.cluster.stop()
        shutil.rmtree(self.dir)

    def save(self, name: str, kind: str, job: int, title: str = "", node: str = "*", at: int = 0) -> None:
        """Wait for the hooks of `job` whose parent's title contains `title`, and save number `at` as `name`."""
        until = time.monotonic() + 20
        while True:
            files = sorted(self.dir.glob(f"{kind}.{job}.{node}.*[0-9]"), key=lambda file: file.stat().st_mtime_ns)
            found = [words for words in map(self._read, files) if title in words[0]]
            if len(found) > at:
                break
            if time.monotonic() > until:
                raise ClusterError(f"no {kind} of job {job} for {name}")
            time.sleep(0.05)
        head, *variables = found[at]
        kept = sorted(line for line in variables if line and line.partition("=")[0] not in DROPPED)
        (self.into / f"{name}.env").write_text("".join(f"{line}\n" for line in [f"# {head}".rstrip(), *kept]))

    def _read(self, file: Path) -> list[str]:
        text = file.read_text()
        slurmd = shutil.which("slurmd", path=self.cluster.env["PATH"]) or ""
        places = {
            self.cluster.env["PATH"]: "/usr/bin:/bin",
            os.path.dirname(slurmd): "/usr/sbin",
            str(self.cluster.dir): "/slurm",
        }
        for place, other in {**places, socket.gethostname(): "login"}.items():
            text = text.replace(place, other)
        return text.split("\0")


def batch(record: Recorder) -> None:
    """A batch script with a step, and the Epilog of its node."""
    job = record.cluster.sbatch("srun true", user=USER)
    record.cluster.wait(job)
    record.save("batch", "task-prolog", job, "batch]")
    record.save("step", "task-prolog", job, ".0]")
    record.save("batch-epilog", "epilog", job)


def array(record: Recorder) -> None:
    """The second task of an array."""
    job = record.cluster.sbatch("true", "--array=1-2", user=USER)
    record.cluster.wait(job)
    other = next(int(task["JobId"]) for task in record.cluster.jobs(job) if task["ArrayTaskId"] == "1")
    record.save("array", "task-prolog", other, "batch]")
    record.save("array-epilog", "epilog", other)


def het(record: Recorder) -> None:
    """A het job: its batch script, a step of its second component, and the Epilog of each."""
    job = record.cluster.sbatch("srun --het-group=1 true", "-N1", ":", "-N1", user=USER)
    record.cluster.wait(job)
    record.save("het", "task-prolog", job, "batch]")
    record.save("het-step", "task-prolog", job, ".0]")
    record.save("het-epilog-0", "epilog", job)
    record.save("het-epilog-1", "epilog", job + 1)


def salloc(record: Recorder) -> None:
    """salloc with a command of its own, whose step is the first task; and with an interactive step."""
    job = _granted(record.cluster.run("salloc", "srun", "true", user=USER).stderr)
    record.save("salloc-step", "task-prolog", job, ".0]")
    job = _granted(record.cluster.run("salloc", user=USER, input="srun true\nexit\n", check=False).stderr)
    record.save("interactive", "task-prolog", job, "interactive]")
    record.save("interactive-step", "task-prolog", job, ".0]")


def _granted(output: str) -> int:
    """Return the job id that salloc printed."""
    return int(output.partition("Granted job allocation ")[2].split()[0])


def requeued(record: Recorder) -> None:
    """A job that is requeued once, with a step in its second run; and a job that it submits then."""
    first = f'[ -z "$SLURM_RESTART_COUNT" ] && {{ touch {record.dir}/here; sleep 60; }}'
    job = record.cluster.sbatch(f"{first}; srun true; sbatch --wrap true -o /dev/null", "--requeue", user=USER)
    record.cluster.wait(job, "RUNNING")
    while not (record.dir / "here").exists():
        time.sleep(0.05)
    record.cluster.run("scontrol", "requeue", str(job))
    record.cluster.wait(job, "COMPLETED", timeout=60)
    record.save("requeued-epilog", "epilog", job)  # of the first run
    record.save("requeued", "task-prolog", job, "batch]", at=1)
    record.save("requeued-step", "task-prolog", job, ".0]")
    record.save("batch-in-requeued", "task-prolog", job + 1, "batch]")


def inside(record: Recorder) -> None:
    """A job that is submitted from inside a step."""
    job = record.cluster.sbatch("srun sbatch --wrap true -o /dev/null", user=USER)
    record.cluster.wait(job)
    record.save("batch-in-step", "task-prolog", job + 1, "batch]")


def shrunk(record: Recorder) -> None:
    """A node that a running job gives up."""
    job = record.cluster.sbatch("sleep 60", "-N2", user=USER)
    record.cluster.wait(job, "RUNNING")
    record.cluster.run("scontrol", "update", f"JobId={job}", "NumNodes=1")
    record.save("shrunk-epilog", "epilog", job)
    record.cluster.run("scancel", str(job))
    record.cluster.wait(job)


def lost(record: Recorder) -> None:
    """The late Epilog of a node whose slurmd had died, when the job is to run again."""
    job = record.cluster.sbatch("sleep 60", "--requeue", "--nodelist=n1", user=USER)
    record.cluster.wait(job, "RUNNING")
    record.cluster.kill_slurmd("n1")
    record.cluster.mark_down("n1")
    record.cluster.wait(job, "PENDING")
    record.cluster.start_slurmd("n1")
    record.save("lost-epilog", "epilog", job)
    record.cluster.run("scancel", str(job))


def downed(record: Recorder) -> None:
    """The Epilog of a node that was set down while its slurmd lived, when the job is to run again."""
    job = record.cluster.sbatch("sleep 60", "--requeue", "--nodelist=n2", user=USER)
    record.cluster.wait(job, "RUNNING")
    record.cluster.mark_down("n2")
    record.save("downed-epilog", "epilog", job)
    record.cluster.run("scancel", str(job))


SCENES: tuple[Callable[[Recorder], None], ...] = (batch, array, het, salloc, requeued, inside, shrunk, lost, downed)


def main(path: str | None) -> None:
    """Record every scene."""
    record = Recorder(path)
    try:
        record.start()
        for scene in SCENES:
            scene(record)
    finally:
        record.stop()


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
