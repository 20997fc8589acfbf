"""The wheel, installed with pip on every Python of this host, brings the command and the hooks."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def interpreters() -> dict[str, str]:
    """Return the Pythons of this host by version: the one that runs this test, those on PATH and in pyenv."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    pyenv = Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv/versions")
    for version in VERSIONS:
        for candidate in (*sorted(map(str, pyenv.glob(f"{version}.*/bin/python"))), shutil.which(f"python{version}")):
            if candidate and version not in found and runs(candidate, version):
                found[version] = candidate
    return found


def runs(program: str, version: str) -> bool:
    """Return whether it is a Python of that version with venv. Wrappers of pyenv can fail."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([program, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip() == version


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of pip, shared by the Pythons."""
    return tmp_path_factory.mktemp("pip")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The wheel that tests/run.sh has built, or one built here by the oldest Python."""
    if "JOBCACHE_WHEEL" in os.environ:
        return Path(os.environ["JOBCACHE_WHEEL"])
    source = tmp_path_factory.mktemp("source")
    for name in ("README.md", "LICENSE", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "hooks", source / "hooks")
    by = interpreters()[min(interpreters(), key=lambda version: int(version.partition(".")[2]))]
    subprocess.run(
        [by, "-m", "pip", "-q", "wheel", "--no-deps", "--wheel-dir", source, source],
        env={"PATH": os.environ["PATH"], "HOME": str(source), "PIP_CACHE_DIR": str(cache)}, check=True,
    )  # fmt: skip
    (built,) = source.glob("*.whl")
    return built


@pytest.mark.parametrize("version", sorted(interpreters()))
def test_the_wheel_installs_and_runs(tmp_path: Path, version: str, wheel: Path, cache: Path) -> None:
    """The command runs, every module can be imported, and hooks-path names the executable hooks.

    Only the modules of the extra `parquet` need packages that are not installed here.
    """
    bin_dir = tmp_path / "venv" / "bin"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CACHE_DIR": str(cache)}

    def run(*argv: str | Path) -> str:
        done = subprocess.run(
            argv, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run(interpreters()[version], "-m", "venv", tmp_path / "venv")
    run(bin_dir / "python", "-m", "pip", "install", "--disable-pip-version-check", wheel)
    assert run(bin_dir / "jobcache", "--version").startswith("jobcache, version ")
    hooks = Path(run(bin_dir / "jobcache", "hooks-path").strip())
    assert hooks == tmp_path / "venv/libexec/jobcache"
    assert all(os.access(hooks / name, os.X_OK) for name in ("task-prolog", "epilog"))
    assert run(bin_dir / "jobcache", "show-config", "--example") == (ROOT / "etc/jobcache.yaml").read_text()
    files = (path.relative_to(ROOT / "hooks") for path in (ROOT / "hooks/jobcache").rglob("*.py") if path.stem[0] != "_")
    files = (path for path in files if path.parent.name != "parquet")
    names = [".".join(path.with_suffix("").parts) for path in files]
    run(bin_dir / "python", "-W", "error", "-c", f"import {', '.join(names)}")
