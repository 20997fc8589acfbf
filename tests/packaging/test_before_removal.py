"""packaging/before-removal refuses as long as Slurm names the hooks, however the path is written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging/before-removal"


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A directory with slurm.conf, a TaskProlog and an Epilog beside it that lead to the package's hooks in `hooks`."""
    (tmp_path / "hooks").mkdir()
    for name in ("task-prolog", "epilog"):
        (tmp_path / "hooks" / name).write_text("#!/bin/sh\n")
    etc = tmp_path / "etc"
    (etc / "epilog.d").mkdir(parents=True)
    (etc / "taskprolog").symlink_to(tmp_path / "hooks/task-prolog")
    (etc / "epilog.d/50-jobcache").write_text(f"#!/bin/sh\nexec {tmp_path}/hooks/epilog\n")
    return etc


def removal(etc: Path, conf: str, running: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script for a slurm.conf with the text `conf`, and a controller that runs `running`."""
    (etc / "slurm.conf").write_text(conf)
    programs = etc.parent / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "scontrol").write_text(f"#!/bin/sh\ncat <<'END'\n{running}\nEND\n")
    (programs / "scontrol").chmod(0o755)
    env = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_CONF": f"{etc}/slurm.conf"}
    return subprocess.run(
        ["sh", str(SCRIPT), f"{etc.parent}/hooks"], env=env, cwd="/", capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "line", ["TaskProlog=taskprolog", "Epilog=epilog.d/*", "TaskProlog={etc}/taskprolog", "epilog = {etc}/epilog.d/50-jobcache"]
)
@pytest.mark.parametrize("where", ["file", "controller"])
def test_removal_is_refused_while_slurm_names_the_hooks(etc: Path, line: str, where: str) -> None:
    """Relative paths are taken from the directory of slurm.conf, as Slurm takes them."""
    line = line.format(etc=etc)
    running = f"SLURM_CONF              = {etc}/slurm.conf\n{line.replace('=', ' = ', 1)}"
    done = removal(etc, f"ClusterName=x\n{line}\n", "") if where == "file" else removal(etc, "ClusterName=x\n", running)
    assert done.returncode == 1 and "not removed" in done.stderr, done


@pytest.mark.parametrize("line", ["", "TaskProlog=other", "Epilog=/etc/slurm/epilog.d/*", "#TaskProlog=taskprolog"])
def test_removal_goes_on_where_slurm_names_other_scripts(etc: Path, line: str) -> None:
    """Scripts of the site that do not lead to the package do not matter."""
    (etc / "other").write_text("#!/bin/sh\n")
    assert removal(etc, f"ClusterName=x\n{line}\n", f"SLURM_CONF = {etc}/slurm.conf\n{line}").returncode == 0
