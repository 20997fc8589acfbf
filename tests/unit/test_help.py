"""The help texts of the command line."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from jobcache.cli.main import main


def commands(group: click.Group = main, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command with the words that call it, groups included."""
    yield before, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


GROUPS = [words for words, command in commands() if isinstance(command, click.Group)]


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_list_of_commands_has_no_truncated_line_at_80_columns(words: tuple[str, ...]) -> None:
    """click shortens a long first line with "..."."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*words, "--help"], catch_exceptions=False)
    lines = result.output.partition("Commands:")[2].splitlines()
    assert len(lines) > 4 and [line for line in lines if "..." in line or len(line) > 80] == []


@pytest.mark.parametrize("command", [command for _, command in commands()], ids=lambda command: command.name)
def test_each_option_has_a_help_text(command: click.Command) -> None:
    """It begins like a sentence."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [option.opts for option in options if not (option.help and option.help[0].isupper())] == []
