"""Built packages: reproducible, of one version, with complete file lists and a complete bill of materials."""

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


def output(*argv: str | Path, status: int = 0, **env: str) -> str:
    """Return the stdout of a command."""
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def build(script: str, out: Path, *options: str, **env: str) -> Path:
    """Build a package. Return its path, which is the last line that the script prints."""
    return Path(output(ROOT / "packaging" / script, *options, out, **env).strip().splitlines()[-1])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Unpack the relocatable tree. Return its directory."""
    where = tmp_path_factory.mktemp("tree")
    with tarfile.open(build("build-tree", where)) as archive:
        archive.extractall(where)
    (unpacked,) = where.glob("jobcache-*")
    yield unpacked
    shutil.rmtree(where)


@pytest.mark.parametrize("script", ["build-deb", "build-rpm", "build-tree"])
def test_a_build_is_reproducible(tmp_path: Path, script: str) -> None:
    """The bytes do not depend on time, directory, umask, time zone, locale or home."""
    first = build(script, tmp_path / "first")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    mask = os.umask(0o077)
    try:
        second = build(script, tmp_path / "second", TMPDIR=str(elsewhere), TZ="Asia/Tokyo", LC_ALL="C", HOME=str(elsewhere))
    finally:
        os.umask(mask)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_every_package_has_the_version_of_the_source(tmp_path: Path, tree: Path) -> None:
    """The version is defined in one file."""
    version = jobcache.__version__
    assert output(ROOT / "packaging/version").strip() == version
    deb = build("build-deb", tmp_path)
    assert output("dpkg-deb", "--field", deb, "Version").strip() == output(ROOT / "packaging/version", "deb").strip()
    output("dpkg-deb", "--extract", deb, tmp_path / "deb")
    output(tree / "setup", shutil.which("python3", path="/usr/bin") or "")
    assert output(tree / "bin/jobcache", "--version").split()[-1] == version
    assert f'__version__ = "{version}"' in (tmp_path / "deb/usr/share/slurm-jobcache/jobcache/__init__.py").read_text()


@pytest.mark.parametrize(("python", "debian"), [("1.2.0", "1.2.0"), ("1.2.0rc1", "1.2.0~rc1"), ("1.2.0.dev3", "1.2.0~dev3")])
def test_a_prerelease_sorts_before_its_release(tmp_path: Path, python: str, debian: str) -> None:
    """In the order of dpkg. The changelog of the package begins with the pre-release and its unreleased changes."""
    deb = build("build-deb", tmp_path, "--version", python)
    assert output("dpkg-deb", "--field", deb, "Version").strip() == debian
    output("dpkg-deb", "--extract", deb, tmp_path / "deb")
    changes = output("zcat", tmp_path / "deb/usr/share/doc/slurm-jobcache/changelog.gz")
    assert changes.startswith(f"slurm-jobcache ({debian}) unstable") and "HF_DATASETS_CACHE" in changes
    if debian != "1.2.0":
        output("dpkg", "--compare-versions", debian, "lt", "1.2.0")


def test_a_version_without_a_changelog_is_not_built(tmp_path: Path) -> None:
    """packaging/changelog.py fails for a version that docs/CHANGELOG.md does not have."""
    copy = tmp_path / "source"
    for name in ("packaging", "docs", "hooks"):
        shutil.copytree(ROOT / name, copy / name)
    (copy / "docs/CHANGELOG.md").write_text(
        "## [Unreleased]\n\n## [0.0.9] - 2026-01-31\n\n### Fixed\n\n- Two\n  lines.\n- `One`.\n"
    )
    program = copy / "packaging/changelog.py"
    output(program, "deb", "0.1.0", "0", status=1)
    assert output(program, "rpm", "0.0.9", "0").endswith(" - 0.0.9-1\n- Two lines.\n- One.\n")


def test_the_deb_ships_the_hooks_and_every_module(tmp_path: Path) -> None:
    """Hooks are identical to the source, executable, and read the policy where `jobcache apply` writes it."""
    deb = build("build-deb", tmp_path)
    output("dpkg-deb", "--extract", deb, tmp_path / "deb")
    for name in ("task-prolog", "epilog"):
        hook = tmp_path / "deb/usr/libexec/jobcache" / name
        assert hook.read_bytes() == (ROOT / "hooks" / name).read_bytes() and os.access(hook, os.X_OK)
        assert f"jc_lib={settings.LIB}\n" in hook.read_text()
    make_cache = tmp_path / "deb/usr/libexec/jobcache/make-cache.sh"
    assert make_cache.read_bytes() == (ROOT / "hooks/make-cache.sh").read_bytes() and not os.access(make_cache, os.X_OK)
    shipped, source = tmp_path / "deb/usr/share/slurm-jobcache/jobcache", ROOT / "hooks/jobcache"
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()} == files


def test_rpm_and_deb_ship_the_same_files(tmp_path: Path) -> None:
    """Except for the directories of each distribution. Both keep the same edited configuration files."""
    rpm, deb = build("build-rpm", tmp_path), build("build-deb", tmp_path)
    assert (
        output("rpm", "--query", "--queryformat", "%{VERSION}", "--package", rpm)
        == output(ROOT / "packaging/version", "deb").strip()
    )
    output("dpkg-deb", "--control", deb, tmp_path / "control")
    kept = (tmp_path / "control/conffiles").read_text().split()
    assert sorted(kept) == sorted(output("rpm", "--query", "--configfiles", "--package", rpm).split())
    files = [line.split()[5] for line in output("dpkg-deb", "--contents", deb).splitlines() if not line.startswith("d")]
    in_deb = {
        path[1:].replace("vendor-completions", "site-functions").replace("/lib/systemd", "/usr/lib/systemd")
        for path in files
        if "/share/doc/" not in path and not path.endswith(".rtupdate")
    }
    in_rpm = output("rpm", "--query", "--list", "--package", rpm).split()
    assert sorted(in_deb - set(in_rpm)) == []


def test_the_guide_has_commands_for_every_trial() -> None:
    """guide.py finds commands in docs/admin-guide.md for each form of package."""
    found = guide.commands((ROOT / "docs/admin-guide.md").read_text())
    matrix = (ROOT / "packaging/test-matrix.sh").read_text()
    trials = re.findall(r"^trial packaging/test-debian \w+ (\w+)", matrix, re.MULTILINE)
    assert set(found.values()) - {"build"} == set(trials) - {"ansible", "cluster"}
    assert len(found) > 30


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.name)
def test_the_tree_runs_from_any_directory(tmp_path: Path, tree: Path, python: Path) -> None:
    """After a move, with each Python of this host, and with hostile variables and modules around it."""
    moved = shutil.copytree(tree, tmp_path / "another directory", symlinks=True)
    assert f"by {python}" in output(moved / "setup", python)
    (tmp_path / "click.py").write_text("raise SystemExit('picked up from the working directory')\n")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent"}
    assert output(moved / "bin/jobcache", "--version", **env).split()[-1] == jobcache.__version__
    assert output(moved / "bin/jobcache", "hooks-path", **env).strip() == f"{moved}/lib"
    assert output(moved / "bin/jobcache", "show-config", "--example", **env) == (ROOT / "etc/jobcache.yaml").read_text()
    modules = "yaml psutil structlog jsonschema click rich.table prometheus_client jobcache.cli.sweep".split()
    output(moved / "venv/bin/python", "-I", "-c", f"import {', '.join(modules)}")
    assert not [path for path in moved.rglob("*.so") if ".abi3." not in path.name], (
        "an extension module for a single Python version"
    )


def test_the_bill_of_materials_is_complete(tree: Path) -> None:
    """It lists every distribution in the tree, with the hash of requirements.txt, a licence and the text of the licence."""
    bill = json.loads((tree / "share/sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", jobcache.__version__)
    parts = {part["name"].lower().replace("_", "-"): part for part in bill["components"]}
    distributions = {path.name.rpartition(".dist-info")[0] for path in (tree / "venv/lib/site-packages").glob("*.dist-info")}
    assert {f"{name}-{part['version']}" for name, part in parts.items()} == {
        name.lower().replace("_", "-") for name in distributions
    }
    pinned = (ROOT / "packaging/tree/requirements.txt").read_text()
    for part in parts.values():
        assert part["hashes"][0]["content"] in pinned
        assert part["licenses"][0].get("expression") or part["licenses"][0]["license"]["name"]
    listed = [line.split()[0] for line in (tree / "share/licences/LIST").read_text().splitlines()]
    assert len(listed) == len(parts) + 1
    # Some licences, for example those of mdurl and markdown-it-py, require that their text is shipped.
    assert all(any((tree / "share/licences" / name).iterdir()) for name in listed)


def test_enroot_mounts_every_directory_of_the_task_prolog(tmp_path: Path) -> None:
    """The file for enroot mounts, read-only, each directory that the TaskProlog reads: those of the deb, and of the policy."""
    output("dpkg-deb", "--extract", build("build-deb", tmp_path), tmp_path / "deb")
    (mounts,) = (tmp_path / "deb/usr/share/slurm-jobcache/enroot").iterdir()
    fields = [line.split() for line in mounts.read_text().splitlines() if line and not line.startswith("#")]
    assert all(len(line) == 6 and line[0] == line[1] and {"bind", "ro"} <= set(line[3].split(",")) for line in fields)
    shipped = {path for path, *_ in fields if (tmp_path / "deb" / path[1:]).is_dir()}
    assert {path for path, *_ in fields} - shipped == {settings.LIB}
    assert {"/usr/libexec/jobcache", "/usr/share/slurm-jobcache"} <= shipped


def test_package_has_the_configuration_for_rsyslog(tmp_path: Path) -> None:
    for form in ("deb", "rpm"):
        output(ROOT / "packaging/install", tmp_path / form, form)
        names = {path.name for path in (tmp_path / form / "usr/share/slurm-jobcache/rsyslog.d").iterdir()}
        assert names == {"jobcache-node.conf", "jobcache-loghost.conf"}
