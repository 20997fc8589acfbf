"""Completion in real shells, with the files that packages install."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jobcache


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which `jobcache` is the tested one, and HOME is empty."""
    program = tmp_path / "bin" / "jobcache"
    program.parent.mkdir()
    path = Path(jobcache.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(path)!r}); from jobcache.cli.main import main; main(prog_name='jobcache')"
    program.write_text(f'#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 exec {sys.executable} -c {shlex.quote(code)} "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"apt-get install {shell}")


FILES = Path(__file__).parents[2] / "etc/completion"
CASES = {
    "jobcache che": {"check"},
    "jobcache sweep --dry": {"--dry-run"},
    "jobcache list --state or": {"orphan"},
    "jobcache report --by a": {"account"},
}


@needs("bash")
@pytest.mark.parametrize("typed", CASES)
def test_bash_completes(env: dict[str, str], typed: str) -> None:
    words = typed.split()
    script = (
        f". {FILES}/jobcache; complete -p jobcache >/dev/null || exit 9\n"
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        "_jobcache_completion jobcache; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "--norc", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == CASES[typed]


@needs("fish")
@pytest.mark.parametrize("typed", CASES)
def test_fish_completes(env: dict[str, str], typed: str) -> None:
    script = f"source {FILES}/jobcache.fish; complete -C '{typed}'"
    done = subprocess.run(["fish", "--no-config", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == CASES[typed]


@needs("zsh")
@pytest.mark.parametrize("typed", CASES)
def test_zsh_completes(env: dict[str, str], typed: str) -> None:
    """In a terminal: zsh completes only there."""
    (want,) = CASES[typed]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/usr/bin/zsh", ["zsh", "-f", "-i"], env)
    try:
        setup = f'PS1="> "; unsetopt zle_bracketed_paste; fpath=({FILES} $fpath); autoload -U compinit; compinit -D -u'
        os.write(terminal, f'{setup}; echo rea""dy\n'.encode())
        shown = until(terminal, rb"ready\r?\n")
        os.write(terminal, typed.encode() + b"\t")
        shown = until(terminal, re.escape(f"{typed.split()[-1]}".encode()) + rb".*" + want[len(typed.split()[-1]) :].encode())
        assert want.encode() in re.sub(rb"\x1b\[[^a-zA-Z]*[a-zA-Z]|\x07|\r|\x08", b"", shown)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def until(terminal: int, wanted: bytes) -> bytes:
    """Return the output of the terminal as soon as it matches `wanted`."""
    shown, end = b"", time.monotonic() + 30
    while not re.search(wanted, shown, re.DOTALL):
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536)
    return shown
