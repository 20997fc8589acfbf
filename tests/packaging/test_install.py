"""`pip install .` into a clean environment, on every Python there is here, brings the command and the hooks along."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


def interpreters() -> dict[str, str]:
    """The Pythons of this machine by version: the one that runs this, those on PATH and in pyenv."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    pyenv = Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv/versions")
    for version in VERSIONS:
        for candidate in (*sorted(map(str, pyenv.glob(f"{version}.*/bin/python"))), shutil.which(f"python{version}")):
            if candidate and version not in found and runs(candidate, version):
                found[version] = candidate
    return found


def runs(program: str, version: str) -> bool:
    """Whether it is a Python of that version, with what a virtual environment needs; pyenv's stand-ins may be none."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([program, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip() == version


@pytest.mark.parametrize("version", sorted(interpreters()))
def test_pip_install(tmp_path: Path, version: str) -> None:
    """The command runs, every module can be imported, and hooks-path names the hooks, executable."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("README.md", "LICENSE", "setup.cfg", "pyproject.toml", "hooks"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    bin_dir = tmp_path / "venv" / "bin"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*argv: str | Path) -> str:
        done = subprocess.run(
            argv, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run(interpreters()[version], "-m", "venv", tmp_path / "venv")
    run(bin_dir / "python", "-m", "pip", "install", "--disable-pip-version-check", source)
    assert run(bin_dir / "jobcache", "--version").startswith("jobcache, version ")
    hooks = Path(run(bin_dir / "jobcache", "hooks-path").strip())
    assert hooks == tmp_path / "venv/libexec/jobcache"
    assert all(os.access(hooks / name, os.X_OK) for name in ("task-prolog", "epilog"))
    assert run(bin_dir / "jobcache", "show-config", "--example") == (ROOT / "etc/jobcache.yaml").read_text()
    names = ",".join(f"jobcache.{path.stem}" for path in (ROOT / "hooks/jobcache").glob("*.py") if path.stem != "__init__")
    run(bin_dir / "python", "-W", "error", "-c", f"import {names}")
