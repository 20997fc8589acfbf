"""Packages as they are built: the same bytes each time, one version in all of them, all that they bring along accounted for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import guide
import pytest

import jobcache
from jobcache.config import settings

ROOT = Path(__file__).parents[2]
PYTHONS = sorted(Path("/usr/bin").glob("python3.[0-9]*[0-9]"))


def said(*argv: str | Path, status: int = 0, **env: str) -> str:
    """Return what a command says on stdout."""
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def build(script: str, out: Path, *options: str, **env: str) -> Path:
    """Build a package; return its path, which is what the script says."""
    return Path(said(ROOT / "packaging" / script, *options, out, **env).strip().splitlines()[-1])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The relocatable tree, unpacked."""
    where = tmp_path_factory.mktemp("tree")
    with tarfile.open(build("build-tree", where)) as archive:
        archive.extractall(where)
    (unpacked,) = where.glob("jobcache-*")
    yield unpacked
    shutil.rmtree(where)


@pytest.mark.parametrize("script", ["build-deb", "build-rpm", "build-tree"])
def test_the_same_source_gives_the_same_bytes(tmp_path: Path, script: str) -> None:
    """Whenever, wherever and under whatever mask it is built."""
    first = build(script, tmp_path / "first")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    mask = os.umask(0o077)
    try:
        second = build(script, tmp_path / "second", TMPDIR=str(elsewhere), TZ="Asia/Tokyo", LC_ALL="C", HOME=str(elsewhere))
    finally:
        os.umask(mask)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_one_version(tmp_path: Path, tree: Path) -> None:
    """The version stands in one file; all the others have it from there."""
    version = jobcache.__version__
    assert said(ROOT / "packaging/version").strip() == version
    deb = build("build-deb", tmp_path)
    assert said("dpkg-deb", "--field", deb, "Version").strip() == said(ROOT / "packaging/version", "deb").strip()
    said("dpkg-deb", "--extract", deb, tmp_path / "deb")
    said(tree / "setup", shutil.which("python3", path="/usr/bin") or "")
    assert said(tree / "bin/jobcache", "--version").split()[-1] == version
    assert f'__version__ = "{version}"' in (tmp_path / "deb/usr/share/slurm-jobcache/jobcache/__init__.py").read_text()


@pytest.mark.parametrize(("python", "debian"), [("1.2.0", "1.2.0"), ("1.2.0rc1", "1.2.0~rc1"), ("1.2.0.dev3", "1.2.0~dev3")])
def test_a_release_to_come_is_older_than_the_release(tmp_path: Path, python: str, debian: str) -> None:
    """As dpkg orders versions. The changelog of the package begins with it, and tells what is not released yet."""
    deb = build("build-deb", tmp_path, "--version", python)
    assert said("dpkg-deb", "--field", deb, "Version").strip() == debian
    said("dpkg-deb", "--extract", deb, tmp_path / "deb")
    changes = said("zcat", tmp_path / "deb/usr/share/doc/slurm-jobcache/changelog.gz")
    assert changes.startswith(f"slurm-jobcache ({debian}) unstable") and "HF_DATASETS_CACHE" in changes
    if debian != "1.2.0":
        said("dpkg", "--compare-versions", debian, "lt", "1.2.0")


def test_a_changelog_without_the_version(tmp_path: Path) -> None:
    """A package whose changelog does not tell of it is not built."""
    copy = tmp_path / "source"
    for name in ("packaging", "docs", "hooks"):
        shutil.copytree(ROOT / name, copy / name)
    (copy / "docs/CHANGELOG.md").write_text(
        "## [Unreleased]\n\n## [0.0.9] - 2026-01-31\n\n### Fixed\n\n- Two\n  lines.\n- `One`.\n"
    )
    program = copy / "packaging/changelog.py"
    said(program, "deb", "0.1.0", "0", status=1)
    assert said(program, "rpm", "0.0.9", "0").endswith(" - 0.0.9-1\n- Two lines.\n- One.\n")


def test_hooks_as_shipped_agree(tmp_path: Path) -> None:
    """The deb's hooks are the source's, executable, and read the policy where `jobcache apply` puts it."""
    deb = build("build-deb", tmp_path)
    said("dpkg-deb", "--extract", deb, tmp_path / "deb")
    for name in ("task-prolog", "epilog"):
        hook = tmp_path / "deb/usr/libexec/jobcache" / name
        assert hook.read_bytes() == (ROOT / "hooks" / name).read_bytes() and os.access(hook, os.X_OK)
        assert f"jc_lib={settings.LIB}\n" in hook.read_text()
    make_cache = tmp_path / "deb/usr/libexec/jobcache/make-cache.sh"
    assert make_cache.read_bytes() == (ROOT / "hooks/make-cache.sh").read_bytes() and not os.access(make_cache, os.X_OK)
    shipped, source = tmp_path / "deb/usr/share/slurm-jobcache/jobcache", ROOT / "hooks/jobcache"
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()} == files


def test_rpm_and_deb_are_alike(tmp_path: Path) -> None:
    """One version, the same files but for each distribution's own places, and what an admin edits is kept by both."""
    rpm, deb = build("build-rpm", tmp_path), build("build-deb", tmp_path)
    assert said("rpm", "--query", "--queryformat", "%{VERSION}", "--package", rpm) == jobcache.__version__
    said("dpkg-deb", "--control", deb, tmp_path / "control")
    kept = (tmp_path / "control/conffiles").read_text().split()
    assert sorted(kept) == sorted(said("rpm", "--query", "--configfiles", "--package", rpm).split())
    files = [line.split()[5] for line in said("dpkg-deb", "--contents", deb).splitlines() if not line.startswith("d")]
    in_deb = {
        path[1:].replace("vendor-completions", "site-functions").replace("/lib/systemd", "/usr/lib/systemd")
        for path in files
        if "/share/doc/" not in path and not path.endswith(".rtupdate")
    }
    in_rpm = said("rpm", "--query", "--list", "--package", rpm).split()
    assert sorted(in_deb - set(in_rpm)) == []


def test_the_guide_has_commands_for_every_trial() -> None:
    """What each trial is asked to have typed is something: the page's form is what guide.py reads."""
    found = guide.commands((ROOT / "docs/admin-guide.md").read_text())
    matrix = (ROOT / "packaging/test-matrix.sh").read_text()
    trials = re.findall(r"^trial packaging/test-debian \w+ (\w+)", matrix, re.MULTILINE)
    assert set(found.values()) - {"build"} == set(trials) - {"ansible"}
    assert len(found) > 30


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.name)
def test_the_tree_runs_wherever_it_lies(tmp_path: Path, tree: Path, python: Path) -> None:
    """Moved, with each Python of this host, from a directory that others cannot write and with a hostile environment."""
    moved = shutil.copytree(tree, tmp_path / "a place of its own", symlinks=True)
    assert f"by {python}" in said(moved / "setup", python)
    (tmp_path / "click.py").write_text("raise SystemExit('picked up from the working directory')\n")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent"}
    assert said(moved / "bin/jobcache", "--version", **env).split()[-1] == jobcache.__version__
    assert said(moved / "bin/jobcache", "hooks-path", **env).strip() == f"{moved}/lib"
    assert said(moved / "bin/jobcache", "show-config", "--example", **env) == (ROOT / "etc/jobcache.yaml").read_text()
    modules = "yaml psutil structlog jsonschema click rich.table prometheus_client jobcache.cli.sweep".split()
    said(moved / "venv/bin/python", "-I", "-c", f"import {', '.join(modules)}")
    assert not [path for path in moved.rglob("*.so") if ".abi3." not in path.name], "for one Python alone"


def test_bill_of_materials(tree: Path) -> None:
    """It names all that lies in the tree, pinned by the hashes that were asked for, each with a licence and its text."""
    bill = json.loads((tree / "share/sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", jobcache.__version__)
    parts = {part["name"].lower().replace("_", "-"): part for part in bill["components"]}
    there = {path.name.rpartition(".dist-info")[0] for path in (tree / "venv/lib/site-packages").glob("*.dist-info")}
    assert {f"{name}-{part['version']}" for name, part in parts.items()} == {name.lower().replace("_", "-") for name in there}
    wanted = (ROOT / "packaging/tree/requirements.txt").read_text()
    for part in parts.values():
        assert part["hashes"][0]["content"] in wanted
        assert part["licenses"][0].get("expression") or part["licenses"][0]["license"]["name"]
    listed = [line.split()[0] for line in (tree / "share/licences/LIST").read_text().splitlines()]
    assert len(listed) == len(parts) + 1
    # mdurl's and markdown-it-py's, say, ask that the text goes along.
    assert all(any((tree / "share/licences" / name).iterdir()) for name in listed)


def test_mounts_for_containers(tmp_path: Path) -> None:
    """enroot's file mounts, read-only, each directory that the TaskProlog reads: what the deb brings, and the policy's."""
    said("dpkg-deb", "--extract", build("build-deb", tmp_path), tmp_path / "deb")
    (mounts,) = (tmp_path / "deb/usr/share/slurm-jobcache/enroot").iterdir()
    fields = [line.split() for line in mounts.read_text().splitlines() if line and not line.startswith("#")]
    assert all(len(line) == 6 and line[0] == line[1] and {"bind", "ro"} <= set(line[3].split(",")) for line in fields)
    shipped = {path for path, *_ in fields if (tmp_path / "deb" / path[1:]).is_dir()}
    assert {path for path, *_ in fields} - shipped == {settings.LIB}
    assert {"/usr/libexec/jobcache", "/usr/share/slurm-jobcache"} <= shipped
