"""Unusual, invalid and half-applied configurations."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobcache.cli.main import main
from support.faulty import EXPORTED, UID, epilog, left, prolog, said, swept
from support.site_dir import ALICE, SHELLS, Site, entries

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
SPECIAL = [
    "a b",
    "it's",
    'quo"te',
    "$(touch x)",
    "`id`",
    "back\\slash",
    "glob*[a-z]?",
    "-rf",
    "ü",
    "semi;colon&",
    "#hash",
    "~",
    "%s%n",
]


@pytest.mark.parametrize("name", SPECIAL)
def test_special_characters_in_path_are_literal(site: Site, name: str) -> None:
    """Python and each shell create a cache at the same path, join it, reap it and sweep it."""
    site.configure(path=f"{site.scratch}/{name}/{{user}}/{name}/{name}-{{job_id}}-{name}")
    (site.scratch / name).mkdir(mode=0o777)
    (site.scratch / name).chmod(0o1777)
    parent = site.scratch / name / ALICE / name
    for at, shell in enumerate((SHELLS[0], SHELLS[1], SHELLS[2])):
        if at:
            site.policy(python="/nonexistent")
        assert prolog(site, shell=shell).cache == f"{parent}/{name}-4242-{name}"
        assert prolog(site, shell=shell, step="0", SLURMD_NODENAME="n2").cache
        assert sorted(os.listdir(parent / f"{name}-4242-{name}/.jobcache/nodes")) == ["n1", "n2"]
        site.configure()
        if at == 2:
            swept(site)
        else:
            epilog(site, SLURM_JOB_NUM_NODES="2")
            epilog(site, SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n2")
        assert entries(parent) == []
    assert {event for event, _, _ in said(site)} == {"cache.reaped"} and not Path("x").exists()


FILES: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "half written": lambda text: text[: len(text) // 2].rstrip("\n") + "\n  x: [",
    "no YAML": lambda text: "{" + text,
    "tabs": lambda text: "\tmode: on\n",
    "a list": lambda text: "- 1\n",
    "unknown key": lambda text: text + "pth: /x\n",
    "no job_id": lambda text: re.sub(r"\{job_id\}", "x", text),
    "no user": lambda text: re.sub(r"\{user\}", "x", text),
}


@pytest.mark.parametrize("how", FILES)
def test_hooks_ignore_an_invalid_file(site: Site, how: str) -> None:
    """`apply` refuses the file with a message, and the hooks use the policy of the last valid one."""
    file = site.dir / "jobcache.yaml"
    file.write_text(FILES[how](file.read_text()))
    before = {path.name: path.read_bytes() for path in site.hooks.iterdir()}
    result = CliRunner().invoke(main, ["apply", "--config", str(file), "--hooks", str(site.hooks)])
    if how == "empty":  # all defaults; the name of the cluster is missing, because this host has no Slurm
        assert "cluster" in result.output
    assert result.exit_code != 0 and str(file) in result.output
    assert {path.name: path.read_bytes() for path in site.hooks.iterdir()} == before
    assert prolog(site).exports.keys() == EXPORTED
    epilog(site)
    assert left(site) == []


def test_policy_older_than_settings_leaks_no_cache(site: Site) -> None:
    """After half of an `apply`, tasks use the old policy, whose template is a former one in the new settings."""
    old = (site.hooks / "policy.sh").read_bytes()
    site.configure(path=f"{site.scratch}/{{user}}/elsewhere/{{job_id}}")
    (site.hooks / "policy.sh").write_bytes(old)
    assert prolog(site).cache == str(site.cache())
    epilog(site)
    assert left(site) == [] and said(site) == [("cache.reaped", "reaped", None)]


def test_settings_older_than_policy_leak_no_cache_after_apply(site: Site) -> None:
    """`apply` never leaves this state. The Epilog keeps the cache, and the sweep reaps it after the next `apply`."""
    old = (site.hooks / "settings.json").read_bytes()
    site.configure(path=f"{site.scratch}/{{user}}/elsewhere/{{job_id}}")
    new = (site.hooks / "settings.json").read_bytes()
    (site.hooks / "settings.json").write_bytes(old)
    cache = prolog(site).cache
    assert cache == f"{site.scratch}/{ALICE}/elsewhere/4242"
    epilog(site)
    assert os.path.exists(cache) and said(site) == []
    (site.hooks / "settings.json").write_bytes(new)
    swept(site)
    assert not os.path.exists(cache)


def test_policy_that_its_group_can_write_is_ignored(site: Site) -> None:
    """Members of the group could run code in every job, so neither they nor root use the policy."""
    (site.hooks / "policy.sh").chmod(0o664)
    os.chown(site.hooks / "policy.sh", 0, 60)
    printed = prolog(site)  # as ALICE, a member of the group
    assert printed.exports == {} and UID
    site.task_prolog(7, user="www-data")
    epilog(site)
    assert said(site) == []


def test_hooks_behind_a_relative_symlink_use_their_policy(site: Site) -> None:
    """The path of hooks may have symlinks, such as /etc/slurm: the hooks read the policy beside them."""
    (site.dir / "etc").symlink_to("hooks")
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    done = subprocess.run([str(site.dir / "etc/task-prolog")], env=env, user=UID, capture_output=True, check=True, cwd="/")
    assert str(site.cache()).encode() in done.stdout
    epilog(site)
    assert left(site) == []
