"""The rooms and who may enter them: the table of docs/architecture.md, held against the code."""

from __future__ import annotations

import ast
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jobcache
from support.site_dir import ALICE, Site

PACKAGE = Path(jobcache.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"

# What the hot path may load beyond what a bare `python3 -I -S` has, besides `jobcache.cache`.
HOT = {"jobcache", "_socket", "encodings.ascii", "binascii", "errno", "select", "time"}
# What no hook may ever load.
NEVER = {"yaml", "jsonschema", "click", "rich", "prometheus_client"}
# What an Epilog that has nothing to say may not load either.
DEAR = {"structlog", "psutil", "typing", "dataclasses", "logging", "argparse", "pathlib", "subprocess", "inspect"}


def modules() -> list[str]:
    """Return every module of the package, as a dotted name below `jobcache`."""
    found = (path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(parts) for parts in found if parts[-1] != "__init__")


def imports(module: str) -> set[str]:
    """Return the modules of ours that `module` imports, anywhere in it but for the type checker."""
    tree = ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text())
    known = set(modules())
    found = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "jobcache":
            base = node.module.partition(".")[2]
            found |= {name for alias in node.names if (name := f"{base}.{alias.name}".lstrip(".")) in known}
            found |= {base} & known
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names} & known
        pending += ast.iter_child_nodes(node)
    return found


def package_of(module: str) -> str:
    """Return the package of a module; an entry point on top stands for itself."""
    return module.partition(".")[0]


def table() -> dict[str, set[str]]:
    """Return the table of docs/architecture.md: each package or entry point, and the packages that it may import."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    return {package: set(re.findall(r"`(\w+)`", allowed)) for package, allowed in rows}


def test_the_table_names_every_package() -> None:
    """The table has a row for each package and entry point, and no others."""
    assert sorted(table()) == sorted({package_of(module) for module in modules()})


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_package_may(module: str) -> None:
    """A module imports modules of its own package, and of those that the table allows."""
    package = package_of(module)
    assert {package_of(other) for other in imports(module)} - {package} <= table()[package]


def test_packages_form_no_cycle() -> None:
    """The table has an order: no package leads back to itself."""
    rest = table()
    while rest:
        free = [package for package, allowed in rest.items() if not allowed & set(rest)]
        assert free, f"a cycle among {sorted(rest)}"
        for package in free:
            del rest[package]


def test_modules_form_no_cycle() -> None:
    """No module leads back to itself by imports."""
    rest = {module: imports(module) for module in modules()}
    while rest:
        free = [module for module, needs in rest.items() if not needs & set(rest)]
        assert free, f"a cycle among {sorted(rest)}"
        for module in free:
            del rest[module]


def test_package_files_are_empty() -> None:
    """An `__init__.py` below the top imports and defines nothing."""
    assert all(not path.read_text() for path in PACKAGE.glob("*/**/__init__.py"))


# The modules that unlink: the reaper; the others, by name, files that they have made themselves.
UNLINKERS = {"system.reaper", "system.files", "cache.dirfd", "cache.protocol", "cache.node_leases", "config.apply"}


@pytest.mark.parametrize("module", modules())
def test_only_the_reaper_deletes_trees(module: str) -> None:
    """No module but the reaper walks and deletes, and few unlink at all."""
    text = PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()
    assert "rmtree" not in text and "removedirs" not in text
    assert module in UNLINKERS or not re.search(r"\bos\.(unlink|remove|rmdir)\b", text)


def loaded(code: str, *flags: str, **env: str) -> set[str]:
    """The modules in memory after `code` ran in a bare interpreter."""
    done = subprocess.run([sys.executable, "-I", *flags, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return set(done.stdout.decode().splitlines()[-1].split())


SAY = "import sys as s, os; os.write(1, (chr(10) + ' '.join(m for m in s.modules if s.modules[m]) + chr(10)).encode())"


def test_the_hot_path_is_light(site: Site) -> None:
    """prepare.py, doing all of its work, loads nothing beyond the allow-list."""
    cache = site.cache(user=str(os.getuid()))
    words = {
        "do": "make", "reason": "", "path": str(cache), "cluster": "test", "job_id": "7", "run": "0", "uid": str(os.getuid()),
        "user": "x", "node": "n1", "first": "yes", "again": "no", "keep": "yes", "policy": "p", "deadline": "5",
        "syslog": str(site.syslog.path), "below": "", "store": f"{site.dir}/store", "site": "", "label": "x",
    }  # fmt: skip
    argv = [f"{key}={value}" for key, value in words.items()]
    code = f"import sys; sys.path.append({str(PACKAGE.parent)!r}); from jobcache import prepare;"
    code += f"assert prepare.main({argv!r}) == prepare.EXPORT; {SAY}"
    found = loaded(code, "-S") - loaded(SAY, "-S") - {"jobcache.prepare"}
    assert {name for name in found if not (name + ".").startswith("jobcache.cache.")} <= HOT
    assert [event["outcome"] for event in site.syslog.events()] == ["made"]


@pytest.mark.root
@pytest.mark.parametrize("cached", [False, True])
def test_an_epilog_loads_what_it_needs(site: Site, cached: bool) -> None:
    """No YAML, no schema, no command line; and where there is no cache, no structlog and no psutil."""
    if cached:
        site.task_prolog()
    who = pwd.getpwnam(ALICE)
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(who.pw_uid), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    code = (
        f"import sys; sys.path.append({str(PACKAGE.parent)!r}); from jobcache import epilog;"
        f"assert epilog.main([{str(site.hooks)!r}, '1e18']) == 0; {SAY}"
    )
    found = loaded(code, **env)
    assert not found & NEVER
    assert cached == bool(site.events("cache.reaped")) == bool(found & {"structlog"})
    if not cached:
        assert not found & DEAR
