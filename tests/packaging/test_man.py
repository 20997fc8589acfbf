"""The manual pages say what the command's help, the configuration's schema and the events' schema say, and are sound."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from jobcache.cli.main import main
from jobcache.config import keys

ROOT = Path(__file__).parents[2]
PAGES = ("jobcache.8", "jobcache.yaml.5", "jobcache-hooks.7")


def written() -> dict[str, str]:
    made: dict[str, Any] = runpy.run_path(str(ROOT / "packaging/man.py"))
    pages: dict[str, str] = made["pages"]()
    return pages


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_current(page: str) -> None:
    """As packaging/man.py writes it from what there is now."""
    assert (ROOT / "docs/man" / page).read_text() == written()[page], "run packaging/man.py"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(shutil.which("mandoc") is None, reason="apt-get install mandoc")
def test_a_page_is_sound(page: str) -> None:
    """mandoc finds nothing wrong with it, but that the others are not installed here."""
    said = subprocess.run(["mandoc", "-T", "lint", str(ROOT / "docs/man" / page)], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert [line for line in lines if "referenced manual not found" not in line] == []


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="apt-get install mandoc")
def test_pages_have_all_there_is() -> None:
    """Every command and option, every key of the configuration, as they are typed."""
    shown = {}
    for page in PAGES:
        argv = ["mandoc", "-T", "utf8", "-O", "width=200", str(ROOT / "docs/man" / page)]
        rendered = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
        while "\b" in rendered:  # bold is overprinted
            at = rendered.index("\b")
            rendered = rendered[: at - 1] + rendered[at + 1 :]
        shown[page] = rendered
    for name, found in commands():
        assert f"\n   {name}" in shown["jobcache.8"]
        for param in found.params:
            if isinstance(param, click.Option):
                assert all(flag in shown["jobcache.8"] for flag in param.opts), (name, param.opts)
    for key in keys.every_key():
        assert f"     {key.name}" in shown["jobcache.yaml.5"]


def commands(group: click.Group = main, before: str = "") -> list[tuple[str, click.Command]]:
    """Each command that is no group, by the words that call it."""
    found = []
    for name, one in group.commands.items():
        found += commands(one, f"{before}{name} ") if isinstance(one, click.Group) else [(before + name, one)]
    return found


@pytest.mark.parametrize("name, found", commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_help_has_an_example(name: str, found: click.Command) -> None:
    """Of every command: a line that can be typed."""
    assert found.help and "Example:\n  " in found.help
    assert f"jobcache {name}" in found.help
