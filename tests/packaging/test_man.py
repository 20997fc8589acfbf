"""The manual pages agree with the help of the command and with both schemas, and have no errors."""

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
def test_a_page_is_up_to_date(page: str) -> None:
    """The page is what packaging/man.py writes now."""
    assert (ROOT / "docs/man" / page).read_text() == written()[page], "run packaging/man.py"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(shutil.which("mandoc") is None, reason="apt-get install mandoc")
def test_mandoc_finds_no_error(page: str) -> None:
    """Except that the pages are not installed here."""
    done = subprocess.run(["mandoc", "-T", "lint", str(ROOT / "docs/man" / page)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if "referenced manual not found" not in line] == []


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="apt-get install mandoc")
def test_pages_have_every_command_option_and_key() -> None:
    """Literally, as a user types them."""
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
    """Return each command that is not a group, with the words that call it."""
    found = []
    for name, one in group.commands.items():
        found += commands(one, f"{before}{name} ") if isinstance(one, click.Group) else [(before + name, one)]
    return found


@pytest.mark.parametrize("name, found", commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_help_of_every_command_has_an_example(name: str, found: click.Command) -> None:
    """A line that a user can copy."""
    assert found.help and "Example:\n  " in found.help
    assert f"jobcache {name}" in found.help
