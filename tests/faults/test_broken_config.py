"""Configurations that are odd, half written or not what the hooks were compiled from."""

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
from support.site_dir import ALICE, SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
ODD = [
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


@pytest.mark.parametrize("name", ODD)
def test_paths_that_are_odd(site: Site, name: str) -> None:
    """Blanks, quotes and what a shell would make of them: made by Python and by the shell, joined, reaped and swept."""
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
        assert os.listdir(parent) == []
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
def test_a_bad_file_is_not_obeyed(site: Site, how: str) -> None:
    """`apply` refuses it, says what is wrong, and the hooks go on with what was compiled before."""
    file = site.dir / "jobcache.yaml"
    file.write_text(FILES[how](file.read_text()))
    before = {path.name: path.read_bytes() for path in site.hooks.iterdir()}
    result = CliRunner().invoke(main, ["apply", "--config", str(file), "--hooks", str(site.hooks)])
    if how == "empty":  # is all defaults, but for the name of the cluster, which Slurm does not tell here
        assert "cluster" in result.output
    assert result.exit_code != 0 and str(file) in result.output
    assert {path.name: path.read_bytes() for path in site.hooks.iterdir()} == before
    assert prolog(site).exports.keys() == EXPORTED
    epilog(site)
    assert left(site) == []


def test_a_policy_older_than_the_settings(site: Site) -> None:
    """Half an `apply`: tasks follow the old policy, and the Epilog knows its template by the new settings."""
    old = (site.hooks / "policy.sh").read_bytes()
    site.configure(path=f"{site.scratch}/{{user}}/elsewhere/{{job_id}}")
    (site.hooks / "policy.sh").write_bytes(old)
    assert prolog(site).cache == str(site.cache())
    epilog(site)
    assert left(site) == [] and said(site) == [("cache.reaped", "reaped", None)]


def test_settings_older_than_the_policy(site: Site) -> None:
    """The other way round, which `apply` never leaves: kept, not lost, and the sweep of the mended pair has it."""
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


def test_a_policy_that_its_group_may_write(site: Site) -> None:
    """Whoever is in that group could have every job run code: no such member, nor root, obeys it."""
    (site.hooks / "policy.sh").chmod(0o664)
    os.chown(site.hooks / "policy.sh", 0, 60)
    told = prolog(site)  # as ALICE, whose group it is
    assert told.exports == {} and UID
    site.task_prolog(7, user="www-data")
    epilog(site)
    assert said(site) == []


def test_a_relative_link_in_place_of_the_hooks(site: Site) -> None:
    """Hooks reached by a symlink, as /etc/slurm often is one: they read the pair that they were compiled for."""
    (site.dir / "etc").symlink_to("hooks")
    env = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    done = subprocess.run([str(site.dir / "etc/task-prolog")], env=env, user=UID, capture_output=True, check=True, cwd="/")
    assert str(site.cache()).encode() in done.stdout
    epilog(site)
    assert left(site) == []
