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
from site_dir import ALICE, Site

PACKAGE = Path(jobcache.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"

# What the hot path may load beyond what a bare `python3 -I -S` has.
HOT = {
    "jobcache",
    "jobcache.cachedir",
    "jobcache.devlog",
    "jobcache.job",
    "jobcache.layout",
    "jobcache.seed",
    "_socket",
    "encodings.ascii",
    "binascii",
    "errno",
    "select",
    "time",
}
# What no hook may ever load.
NEVER = {"yaml", "jsonschema", "click", "rich", "prometheus_client"}
# What an Epilog that has nothing to say may not load either.
DEAR = {"structlog", "psutil", "typing", "dataclasses", "logging", "argparse", "pathlib", "subprocess", "inspect"}


def ours(module: str) -> set[str]:
    """Names of the package's modules that `module` imports, anywhere in it but for the type checker."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "jobcache":
            found |= {alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jobcache."):
            found.add(node.module.partition(".")[2])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("jobcache.")}
        pending += ast.iter_child_nodes(node)
    return found


def table() -> dict[str, set[str]]:
    """The table of rooms: each module and what it may import, as docs/architecture.md says."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    return {module: set(re.findall(r"`(\w+)`", allowed)) for module, allowed in rows}


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def test_every_module_has_a_room() -> None:
    """The table names the modules there are, and no others."""
    assert sorted(table()) == modules()


@pytest.mark.parametrize("module", modules())
def test_imports_what_its_room_allows(module: str) -> None:
    """A module imports no more of ours than its row says."""
    assert ours(module) <= table()[module]


def test_no_cycles() -> None:
    """Importing never comes back to where it began."""
    above: dict[str, set[str]] = {module: ours(module) for module in modules()}
    while above:
        free = [module for module, needs in above.items() if not needs & set(above)]
        assert free, f"a cycle among {sorted(above)}"
        for module in free:
            del above[module]


def test_only_the_reaper_deletes_trees() -> None:
    """No module but the reaper walks and deletes; cachedir unlinks by name what it has made itself."""
    for module in modules():
        text = (PACKAGE / f"{module}.py").read_text()
        assert "rmtree" not in text and "removedirs" not in text, module
        if module not in ("reaper", "cachedir", "apply"):
            assert not re.search(r"\bos\.(unlink|remove|rmdir)\b", text), module


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
    assert (loaded(code, "-S") - loaded(SAY, "-S")) - {"jobcache.prepare"} <= HOT
    assert [event["outcome"] for event in site.syslog.events()] == ["made"]


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
