"""The pages say what is: no dead link, no event or reason without a line, no test named that is not there."""

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
def test_no_dead_links(page: Path) -> None:
    """Every relative link leads to a file."""
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


TESTED = ("failure-modes.md", "security.md", "promises.md")


@pytest.mark.parametrize("page", TESTED)
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    """`tests/…/test_x.py::test_y` is a function of that file."""
    named = re.findall(r"`(tests/[^`]*)`", (ROOT / "docs" / page).read_text())
    missing = []
    for name in named:
        file, _, test = name.partition("::")
        text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        if not text or (test and not re.search(rf"^def {test}\(", text, re.MULTILINE)):
            missing.append(name)
    assert missing == [] and named


def test_every_fault_and_every_attack_has_its_test() -> None:
    """No row of these tables goes without one, and no test of a fault without a row."""
    pages = {page: (ROOT / "docs" / page).read_text() for page in TESTED}
    faults = [row for row in re.findall(r"^\|.*\|$", pages["failure-modes.md"], re.MULTILINE) if "---" not in row]
    attacks = re.findall(r"^\|.*\|$", pages["security.md"].partition("## What a user can't do")[2], re.MULTILINE)
    assert [row for row in faults if "::test_" not in row and not row.endswith("| test |")] == []
    assert [row for row in attacks[2:] if "::test_" not in row] == []
    tests = []
    for file in (*ROOT.glob("tests/faults/test_*.py"), ROOT / "tests/cluster/test_faults.py"):
        names = re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)
        tests += [f"{file.relative_to(ROOT)}::{name}" for name in names]
    assert sorted(test for test in tests if not any(f"`{test}`" in text for text in pages.values())) == []


def test_promises_name_tests_that_are_there() -> None:
    """Each test function that docs/promises.md names exists."""
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/promises.md").read_text())
    sources = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_events_are_documented() -> None:
    """docs/events.md has every event, outcome, reason and field of the schema, and no reason beside them."""
    schema = json.loads((Path(jobcache.__file__).parent / "config/schema/event.json").read_text())["properties"]
    page = (ROOT / "docs/events.md").read_text()
    words = set(re.findall(r"`([a-z_.]+)`", page))
    wanted = {word for key in ("event", "outcome", "reason") for word in schema[key]["enum"]} | set(schema)
    assert sorted(wanted - words) == []
    reasons = re.findall(r"^\| (`.*?) \|", page.partition("## Why")[2].partition("## Fields")[0], re.MULTILINE)
    assert sorted({word for row in reasons for word in re.findall(r"`(\w+)`", row)}) == sorted(schema["reason"]["enum"])


def test_reasons_in_the_code_are_in_the_schema() -> None:
    """Every reason that the code gives by name is one of the closed set."""
    package = Path(jobcache.__file__).parent
    known = json.loads((package / "config/schema/event.json").read_text())["properties"]["reason"]["enum"]
    code = "".join(path.read_text() for path in package.rglob("*.py"))
    given = set(re.findall(r'(?:Refused|Kept|JobError)\(\s*"(\w+)"', code)) | set(re.findall(r'reason="(\w+)"', code))
    given |= set(re.findall(r"jc_skip_reason=(\w+)", (ROOT / "hooks/task-prolog").read_text())) - {"quiet"}
    given |= set(re.findall(r"jc_report_failure (\w+)", (ROOT / "hooks/epilog").read_text()))
    assert given and sorted(given - set(known)) == []


def configurations() -> list[tuple[str, str]]:
    """Every block of YAML on a page, and the page."""
    return [
        (page.name, block)
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "text"), configurations(), ids=lambda value: value[:20])
def test_configurations_that_are_shown_are_valid(tmp_path: Path, page: str, text: str) -> None:
    """What one may copy loads as it is."""
    (file := tmp_path / "jobcache.yaml").write_text(text)
    assert configuration.load(str(file)).tree["rules"] or "rules:" not in text, page


def commands() -> dict[str, str]:
    """Every `jobcache …` that a page has in a block of code, or between backticks; and the page."""
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
def test_commands_that_are_told_can_be_typed(line: str) -> None:
    """Each subcommand and option is there, and takes what it is given."""
    words = [{"JOBID": "4242", "TEMPLATE": "/s/{user}/x-{job_id}"}.get(word, word) for word in shlex.split(line)[1:]]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"there is no `jobcache {name}`"
        command = found
    if words:  # else it is the command that is spoken of
        command.make_context(command.name, words)
