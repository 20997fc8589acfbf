"""The pages agree with the code: links, names of tests, events, configurations and commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

import jobcache
from jobcache.cli.main import main
from jobcache.config import configuration

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


TESTED = ("failure-modes.md", "security.md", "promises.md")


@pytest.mark.parametrize("page", TESTED)
def test_tests_named_on_a_page_exist(page: str) -> None:
    """`tests/…/test_x.py::test_y` is a function in that file."""
    named = re.findall(r"`(tests/[^`]*)`", (ROOT / "docs" / page).read_text())
    missing = []
    for name in named:
        file, _, test = name.partition("::")
        text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        if not text or (test and not re.search(rf"^def {test}\(", text, re.MULTILINE)):
            missing.append(name)
    assert missing == [] and named


def test_each_fault_and_attack_has_a_test() -> None:
    """Each row of the tables names a test, and each test of a fault has a row."""
    pages = {page: (ROOT / "docs" / page).read_text() for page in TESTED}
    faults = [row for row in re.findall(r"^\|.*\|$", pages["failure-modes.md"], re.MULTILINE) if "---" not in row]
    attacks = re.findall(r"^\|.*\|$", pages["security.md"].partition("## What a user can't do")[2], re.MULTILINE)
    rows = [row for row in faults + attacks if "---" not in row and not row.endswith("| test |")]
    assert [row for row in rows if "::test_" not in row] == []
    tests = []
    for file in (*ROOT.glob("tests/faults/test_*.py"), ROOT / "tests/cluster/test_faults.py"):
        names = re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)
        tests += [f"{file.relative_to(ROOT)}::{name}" for name in names]
    assert sorted(test for test in tests if not any(f"`{test}`" in text for text in pages.values())) == []


def test_tests_named_in_promises_exist() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/promises.md").read_text())
    sources = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_events_page_covers_the_schema() -> None:
    """docs/events.md has every event, outcome, reason and field, and no other reason."""
    schema = json.loads((Path(jobcache.__file__).parent / "config/schema/event.json").read_text())["properties"]
    page = (ROOT / "docs/events.md").read_text()
    words = set(re.findall(r"`([a-z_.]+)`", page))
    wanted = {word for key in ("event", "outcome", "reason") for word in schema[key]["enum"]} | set(schema)
    assert sorted(wanted - words) == []
    reasons = re.findall(r"^\| (`.*?) \|", page.partition("## Why")[2].partition("## Fields")[0], re.MULTILINE)
    assert sorted({word for row in reasons for word in re.findall(r"`(\w+)`", row)}) == sorted(schema["reason"]["enum"])


def test_reasons_in_the_code_are_in_the_schema() -> None:
    """The schema has a closed set of reasons."""
    package = Path(jobcache.__file__).parent
    known = json.loads((package / "config/schema/event.json").read_text())["properties"]["reason"]["enum"]
    code = "".join(path.read_text() for path in package.rglob("*.py"))
    given = set(re.findall(r'(?:Refused|Kept|JobError)\(\s*"(\w+)"', code)) | set(re.findall(r'reason="(\w+)"', code))
    given |= set(re.findall(r"jc_skip_reason=(\w+)", (ROOT / "hooks/task-prolog").read_text())) - {"quiet"}
    given |= set(re.findall(r"jc_report_failure (\w+)", (ROOT / "hooks/epilog").read_text()))
    assert given and sorted(given - set(known)) == []


def configurations() -> list[tuple[str, str]]:
    """Return the page and the text of each block of YAML."""
    return [
        (page.name, block)
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "text"), configurations(), ids=lambda value: value[:20])
def test_configurations_on_pages_are_valid(tmp_path: Path, page: str, text: str) -> None:
    """A reader can copy them."""
    (file := tmp_path / "jobcache.yaml").write_text(text)
    assert configuration.load(str(file)).tree["rules"] or "rules:" not in text, page


def commands() -> dict[str, str]:
    """Return each command line of jobcache in code blocks and between backticks, with its page."""
    found: dict[str, str] = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        lines = [line for block in re.findall(r"```(?:sh|console)?\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        for line in lines + re.findall(r"`([^`\n]+)`", text):
            line = re.sub(r"^(?:[#$] |sudo -u \S+ |srun (?:-\S+ )*)+", "", line).partition(" #")[0].partition(" >")[0].strip()
            if re.match(r"(?:/\S+/)?jobcache [a-z]", line) and "…" not in line:
                found[line.split(" | ")[0]] = page.name
    return found


@pytest.mark.parametrize("line", commands())
def test_commands_on_pages_can_be_typed(line: str) -> None:
    """The subcommand, its options and their values are valid."""
    words = [{"JOBID": "4242", "TEMPLATE": "/s/{user}/x-{job_id}"}.get(word, word) for word in shlex.split(line)[1:]]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"`jobcache {name}` does not exist"
        command = found
    if words:  # without arguments, the page only names the command
        command.make_context(command.name, words)
