"""The packages and their imports: the table of docs/architecture.md, compared with the code."""

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
from support.user_cache import put

PACKAGE = Path(jobcache.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"

# The modules that the hot path may load beyond `jobcache.cache` and those of a bare `python3 -I -S`.
HOT = {"jobcache", "_socket", "encodings.ascii", "binascii", "errno", "select", "time"}
# What an Epilog may not load: installed packages, the module that finds them, and slow modules of the standard library.
NEVER = {"yaml", "jsonschema", "click", "rich", "prometheus_client", "structlog", "psutil", "site"}
SLOW = {"typing", "dataclasses", "logging", "argparse", "pathlib", "subprocess", "inspect", "asyncio"}


def modules() -> list[str]:
    """Return all modules of the package, as dotted names below `jobcache`."""
    found = (path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(parts) for parts in found if parts[-1] != "__init__")


def imports(module: str) -> set[str]:
    """Return the modules of the package that `module` imports, anywhere but for the type checker."""
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
    """Return the package of a module; an entry point is its own package."""
    return module.partition(".")[0]


def table() -> dict[str, set[str]]:
    """Return the packages that each package or entry point may import, from the table of docs/architecture.md."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    return {package: set(re.findall(r"`(\w+)`", allowed)) for package, allowed in rows}


def test_table_names_every_package() -> None:
    """The table has a row for each package and entry point, and no others."""
    assert sorted(table()) == sorted({package_of(module) for module in modules()})


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_packages_in_the_table(module: str) -> None:
    """Modules of its own package are allowed as well."""
    package = package_of(module)
    assert {package_of(other) for other in imports(module)} - {package} <= table()[package]


def test_packages_form_no_cycle() -> None:
    """By the imports that the table allows."""
    rest = table()
    while rest:
        free = [package for package, allowed in rest.items() if not allowed & set(rest)]
        assert free, f"a cycle among {sorted(rest)}"
        for package in free:
            del rest[package]


def test_modules_form_no_cycle() -> None:
    """By their real imports, also those in functions."""
    rest = {module: imports(module) for module in modules()}
    while rest:
        free = [module for module, needs in rest.items() if not needs & set(rest)]
        assert free, f"a cycle among {sorted(rest)}"
        for module in free:
            del rest[module]


def test_package_files_are_empty() -> None:
    """An `__init__.py` below the top imports and defines nothing."""
    assert all(not path.read_text() for path in PACKAGE.glob("*/**/__init__.py"))


# The modules that unlink: the reaper, and those that remove files of their own by name.
UNLINKERS = {
    "system.reaper",
    "system.files",
    "system.stuck_processes",
    "cache.dirfd",
    "cache.protocol",
    "cache.node_leases",
    "config.apply",
}


@pytest.mark.parametrize("module", modules())
def test_only_the_reaper_deletes_trees(module: str) -> None:
    """No other module walks a tree and deletes it, and few unlink at all."""
    text = PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()
    assert "rmtree" not in text and "removedirs" not in text
    assert module in UNLINKERS or not re.search(r"\bos\.(unlink|remove|rmdir)\b", text)


def loaded(code: str, *flags: str, **env: str) -> set[str]:
    """Return the modules that an interpreter has loaded after `code`, which ends with PRINT_MODULES."""
    done = subprocess.run([sys.executable, "-I", *flags, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return set(done.stdout.decode().splitlines()[-1].split())


PRINT_MODULES = "import sys as s, os; os.write(1, (chr(10) + ' '.join(m for m in s.modules if s.modules[m]) + chr(10)).encode())"


@pytest.mark.parametrize("store", [False, True])
def test_hot_path_loads_few_modules(site: Site, store: bool) -> None:
    """prepare.py loads no module beyond the allow-list, and without a store none that reads one."""
    cache = site.cache(user=str(os.getuid()))
    words = {
        "do": "make", "reason": "", "path": str(cache), "cluster": "test", "job_id": "7", "run": "0", "uid": str(os.getuid()),
        "user": "x", "node": "n1", "first": "yes", "again": "no", "keep": "yes", "policy": "p", "deadline": "5",
        "syslog": str(site.syslog.path), "below": "", "store": f"{site.dir}/store" if store else "", "site": "", "label": "x",
    }  # fmt: skip
    argv = [f"{key}={value}" for key, value in words.items()]
    code = f"import sys; sys.path.append({str(PACKAGE.parent)!r}); from jobcache import prepare;"
    code += f"assert prepare.main({argv!r}) == prepare.EXPORT; {PRINT_MODULES}"
    found = loaded(code, "-S") - loaded(PRINT_MODULES, "-S") - {"jobcache.prepare"}
    assert ("jobcache.cache.linking" in found) == store
    assert {name for name in found if not (name + ".").startswith("jobcache.cache.")} <= HOT
    assert [event["outcome"] for event in site.syslog.events()] == ["made"]


def test_inheritance_loads_few_modules(tmp_path: Path) -> None:
    """Its child, which reads the user's own cache, loads one module beyond the allow-list."""
    put(tmp_path / "hf/datasets")
    code = f"import os, sys; sys.path.append({str(PACKAGE.parent)!r}); from jobcache.cache import inheriting; lines = [];"
    code += f"fd = os.open({str(tmp_path)!r}, os.O_RDONLY); env = {{'HF_HOME': {str(tmp_path / 'hf')!r}}};"
    code += "request = inheriting.Request(env, 9, ('n1', 7, 1));"
    code += "inheriting._Inheritance(request, fd, '', float('inf'), {}).run(lines.append);"
    code += f"assert lines[-1] == 'complete', lines; {PRINT_MODULES}"
    found = loaded(code, "-S") - loaded(PRINT_MODULES, "-S")
    assert {name for name in found if not (name + ".").startswith("jobcache.cache.")} <= HOT | {"_json"}


@pytest.mark.root
@pytest.mark.parametrize("cached", [False, True])
def test_epilog_loads_no_installed_and_no_slow_module(site: Site, cached: bool) -> None:
    """Neither the Epilog nor its child loads one, whether or not the job has a cache."""
    if cached:
        site.task_prolog()
    who = pwd.getpwnam(ALICE)
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(who.pw_uid), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    by_child = site.scratch / "modules"
    code = (
        f"import sys; sys.path.append({str(PACKAGE.parent)!r}); from jobcache import epilog;"
        "work = epilog.Work.__call__;"
        f"epilog.Work.__call__ = lambda *a: (work(*a), open({str(by_child)!r}, 'w').write(' '.join(sys.modules)));"
        f"assert epilog.main([{str(site.hooks)!r}, '1e18']) == 0; {PRINT_MODULES}"
    )
    found = loaded(code, "-S", **env)
    assert bool(site.events("cache.reaped")) == cached
    assert "jobcache.system.reaper" in found and not found & (NEVER | SLOW)
    assert found <= set(by_child.read_text().split()) and not set(by_child.read_text().split()) & (NEVER | SLOW)
