"""Files that the hooks read: policies that an older version compiled, and make-cache.sh missing, torn or writable."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import jobcache
from jobcache.config import apply, settings
from support.faulty import EXPORTED, epilog, left, prolog
from support.site_dir import SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
OLD_POLICIES = sorted((Path(__file__).parent / "policies").glob("*.sh"))
each_shell = pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])
each_old_policy = pytest.mark.parametrize("policy", OLD_POLICIES, ids=lambda path: path.stem)


def install_old_policy(site: Site, policy: Path, chain: str = "") -> None:
    """Replace the compiled policy by one that an older version compiled. chain: the site's own TaskProlog."""
    places = {
        "/@SCRATCH@": site.scratch, "@PYTHON@": sys.executable, "@PACKAGE@": Path(jobcache.__file__).parent,
        "@CHAIN@": chain, "@LOG@": site.log, "@SYSLOG@": site.syslog.path,
    }  # fmt: skip
    text = policy.read_text()
    for placeholder, place in places.items():
        text = text.replace(placeholder, str(place))
    (site.hooks / settings.POLICY).write_text(text)


@each_shell
@each_old_policy
def test_task_gets_no_cache_with_old_policy(site: Site, policy: Path, shell: str) -> None:
    """A package brings new hooks before `jobcache apply` compiles a new policy: exit 0, print nothing, change nothing."""
    prolog(site, SLURM_JOB_ID="7")
    lease = (site.cache(7) / ".jobcache/nodes/n1").read_text()
    install_old_policy(site, policy)
    for step in ("", "0"):
        for env in ({}, {"HF_DATASETS_CACHE": str(site.cache(7)), "JOBCACHE_DIR": str(site.cache(7))}, {"JOBCACHE": "off"}):
            assert prolog(site, shell=shell, step=step, **env).output == b""
    assert left(site) == ["hf-datasets-7"] and (site.cache(7) / ".jobcache/nodes/n1").read_text() == lease
    site.configure()
    assert prolog(site, shell=shell).exports.keys() == EXPORTED


@each_shell
@each_old_policy
def test_old_policy_runs_chained_task_prolog(site: Site, policy: Path, shell: str) -> None:
    """The site's own TaskProlog runs during an upgrade, but not by a policy that is cut short."""
    chained = site.dir / "site-task-prolog"
    chained.write_text("#!/bin/sh\necho export SITE=1\n")
    chained.chmod(0o755)
    install_old_policy(site, policy, str(chained))
    assert prolog(site, shell=shell).exports == {"SITE": "1"}
    text = (site.hooks / settings.POLICY).read_text()
    (site.hooks / settings.POLICY).write_text(text[: text.index("jc_whole=")])
    assert prolog(site, shell=shell).output == b""


@each_shell
@each_old_policy
def test_epilog_reaps_with_old_policy(site: Site, policy: Path, shell: str) -> None:
    """Jobs that end during an upgrade leave nothing, and a Python that fails is reported in the log."""
    prolog(site)
    prolog(site, SLURM_JOB_ID="7")
    install_old_policy(site, policy)
    epilog(site, shell=shell)
    assert left(site) == ["hf-datasets-7"]
    text = (site.hooks / settings.POLICY).read_text()
    (site.hooks / settings.POLICY).write_text(text.replace("jc_whole=", "jc_python=/nonexistent\njc_whole="))
    epilog(site, shell=shell, SLURM_JOB_ID="7")
    assert [event["reason"] for event in site.events("hook.failed")] == ["no_python"]
    (site.hooks / settings.POLICY).write_text(text[: text.index("jc_whole=")])
    epilog(site, shell=shell, SLURM_JOB_ID="7")
    assert left(site) == ["hf-datasets-7"]


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "unreadable": lambda path: path.chmod(0),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_text(""),
    "torn": lambda path: path.write_text(path.read_text().removesuffix("jc_make_cache\n")),
    "torn in a function": lambda path: path.write_text(path.read_text()[:2000]),
    "syntax error": lambda path: path.write_text("if then ((\n"),
    "not shell": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "exits": lambda path: path.write_text("exit 7\n"),
    "writable by users": lambda path: path.chmod(0o666),
}


@each_shell
@pytest.mark.parametrize("how", BREAKAGES)
def test_broken_make_cache_means_no_cache(site: Site, shell: str, how: str) -> None:
    """If Python is broken as well, the task runs without a cache, and an inherited value is unset. Python does not need it."""
    BREAKAGES[how](site.hooks / apply.MAKE_CACHE)
    site.policy(python="/nonexistent")
    result = prolog(site, shell=shell, HF_DATASETS_CACHE=str(site.cache(1)))
    assert result.output == b"unset HF_DATASETS_CACHE\n" and left(site) == []
    site.policy(python=sys.executable)
    assert prolog(site, shell=shell).exports.keys() == EXPORTED


def test_apply_restores_make_cache(site: Site) -> None:
    """`jobcache apply` puts make-cache.sh beside the policy, with the hooks or without them."""
    compiled = settings.load(str(site.hooks / settings.FILE))
    shipped = Path(apply.hooks_path(), apply.MAKE_CACHE).read_text()
    for with_hooks in (False, True):
        (site.hooks / apply.MAKE_CACHE).write_text("exit 0\n")
        files = apply.wanted(compiled, str(site.hooks), with_hooks)
        assert apply.stale(files, str(site.hooks)) == [f"{site.hooks}/{apply.MAKE_CACHE}"]
        apply.put(files, str(site.hooks))
        assert (site.hooks / apply.MAKE_CACHE).read_text() == shipped
    shutil.rmtree(site.hooks)
    apply.put(apply.wanted(compiled, str(site.hooks), with_hooks=False), str(site.hooks))
    assert sorted(os.listdir(site.hooks)) == [apply.MAKE_CACHE, settings.POLICY, settings.FILE]
