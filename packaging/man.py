#!/usr/bin/env python3
"""Write the manual pages into docs/man, from the help of the commands and from the schemas of configuration and events.

PYTHONPATH=hooks packaging/man.py [DIRECTORY]
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import jobcache
from jobcache.cli.main import main as cli
from jobcache.config import keys, notation
from jobcache.diagnostics.reason_texts import REASONS

ROOT = Path(__file__).parents[1]
DATE = "November 22, 2026"
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
SCHEMA = Path(jobcache.__file__).parent / "config" / "schema" / "event.json"


def pages() -> dict[str, str]:
    """Return the text of each page by the name of its file."""
    return {"jobcache.8": command(), "jobcache.yaml.5": configuration(), "jobcache-hooks.7": hooks()}


def head(name: str, section: int) -> list[str]:
    """Return the first lines of a page."""
    return [
        '.\\" Written by packaging/man.py: change the help, the schema, or jobcache-hooks.in.',
        f".Dd {DATE}", f".Dt {name.upper()} {section}", ".Os",
    ]  # fmt: skip


def see(*others: str) -> list[str]:
    """Return the section SEE ALSO, sorted by section and name, as in other manual pages."""
    pages = sorted((word.split() for word in others), key=lambda word: (word[1], word[0]))
    return [
        ".Sh SEE ALSO",
        *(f".Xr {name} {section}{' ,' if at + 1 < len(pages) else ''}" for at, (name, section) in enumerate(pages)),
    ]


def text(words: str) -> list[str]:
    """Return running text as lines of mdoc: each sentence begins a new line, and no line is a roff request."""
    plain = " ".join(words.replace("``", '"').split())
    sentences = re.split(r"(?<=[A-Za-z0-9)`\"][.?!]) +(?=[A-Z`])", plain)
    return [escaped(line) for sentence in sentences for line in textwrap.wrap(quoted(sentence), 78, **_WHOLE)]


def quoted(words: str) -> str:
    """Return text with backslashes and backticks escaped for roff."""
    return re.sub(r"`([^`]*)`", r"\\(lq\1\\(rq", words.replace("\\", "\\e"))


def escaped(line: str) -> str:
    """Return a line that roff does not read as a request."""
    return "\\&" + line if line[:1] in (".", "'") else line


def literal(lines: list[str]) -> list[str]:
    """Return a block that keeps its line breaks."""
    return [".Bd -literal -offset indent", *(escaped(quoted(line)) if line.strip() else "" for line in lines), ".Ed"]


# ------------------------------------------------------------------------------------------------------------ commands


def command() -> str:
    """Return jobcache(8): the help of each command, with options and examples."""
    context = click.Context(cli, info_name="jobcache")
    lines = [*head("jobcache", 8), ".Sh NAME", ".Nm jobcache", ".Nd private datasets caches for Slurm jobs"]
    lines += [".Sh SYNOPSIS", ".Nm", ".Ar command", ".Op Ar options", ".Sh DESCRIPTION", *body(cli.help or "")]
    lines += [".Sh COMMANDS"]
    for name in cli.list_commands(context):
        found = cli.get_command(context, name)
        assert found is not None
        lines += one_command(name, found, context)
    lines += [
        ".Sh EXIT STATUS",
        ".Bl -tag -width Ds",
        ".It 0",
        "Success.",
        ".It 1",
        "A problem was found.",
        ".It 2",
        "Wrong usage.",
        ".El",
    ]
    lines += see("jobcache.yaml 5", "jobcache-hooks 7")
    return "\n".join(lines) + "\n"


def one_command(name: str, found: click.Command, above: click.Context) -> list[str]:
    """Return the section of a command; for a group, the sections of its commands."""
    context = click.Context(found, info_name=name, parent=above)
    if isinstance(found, click.Group):
        lines = [f".Ss {name} command", *body(found.help or "")]
        for inner in found.list_commands(context):
            below = found.get_command(context, inner)
            assert below is not None
            lines += one_command(f"{name} {inner}", below, context)
        return lines
    arguments = [param for param in found.params if isinstance(param, click.Argument)]
    words = " ".join(param.make_metavar(context) if _takes_context(param) else param.make_metavar() for param in arguments)  # type: ignore[call-arg]
    lines = [f".Ss {name} {_several(words)}".rstrip(), *body(found.help or "")]
    options = [param for param in found.params if isinstance(param, click.Option) and not param.hidden]
    if options:
        lines += [".Bl -tag -width Ds"]
        for option in options:
            lines += one_option(option, context)
        lines += [".El"]
    return lines


def _several(words: str) -> str:
    """Return the metavar `[FILE]...` in the notation of manual pages."""
    return re.sub(r"(\w)(\]?)\.\.\.", r"\1 ...\2\\&", words)


def _takes_context(param: click.Parameter) -> bool:
    """Return whether this version of click (8.2 and later) needs the context."""
    return "ctx" in inspect.signature(param.make_metavar).parameters


def one_option(option: click.Option, context: click.Context) -> Iterator[str]:
    """Yield the lines of an option."""
    flags = " , ".join(f"Fl {flag[1:]}" for flag in option.opts)
    value = ""
    if not option.is_flag:
        value = f" Ar {option.make_metavar(context) if _takes_context(option) else option.make_metavar()}"  # type: ignore[call-arg]
    yield f".It {flags}{value}"
    yield from text(option.help or "")
    if option.show_default and option.default is not None and not option.is_flag:
        yield f"Default: {quoted(str(option.default))}"


def body(help_text: str) -> list[str]:
    """Return the help of a command: paragraphs and literal blocks."""
    lines: list[str] = []
    for at, paragraph in enumerate(inspect.cleandoc(help_text).split("\n\n")):
        if paragraph.startswith("\b"):
            heading, *rest = paragraph.split("\n")[1:]
            lines += [".Pp", *text(heading), *literal([line[2:] for line in rest])]
        else:
            lines += [*([".Pp"] if at else []), *text(paragraph)]
    return lines


# ------------------------------------------------------------------------------------------------------- configuration


def configuration() -> str:
    """Return jobcache.yaml(5): every key of the schema."""
    lines = [*head("jobcache.yaml", 5), ".Sh NAME", ".Nm jobcache.yaml", ".Nd configuration of jobcache"]
    lines += [".Sh SYNOPSIS", ".Pa /etc/jobcache/jobcache.yaml", ".Sh DESCRIPTION"]
    lines += text(
        "This file is YAML. Every key is optional; an empty file gives the defaults. `jobcache apply` validates the file and "
        "compiles it for the hooks. If the file is invalid, it reports all errors at once and changes nothing. `jobcache "
        "show-config` prints each setting with its origin."
    )
    lines += [".Pp", *text("A duration is whole numbers with units, such as 500ms, 30s, 5m, 2h, 3d or 1h30m.")]
    lines += text("A size is a whole number with a unit, decimal or binary, such as 512MiB, 50GiB or 1TB.")
    for key in keys.every_key():
        heading = _heading(key.name)
        if heading:
            lines += [".El"] if lines[-1] != "" and any(line.startswith(".Bl") for line in lines) else []
            lines += [f".Sh {escaped(heading).upper()}", ".Bl -tag -width Ds"]
        default, example = (notation.text_of(value) for value in (key.about["default"], key.about["examples"][0]))
        lines += [f".It Ic {key.name}", *text(key.about["description"]), ".Pp", f"{_kind(key.kind)}."]
        if key.kind.get("kind") == "rules":
            lines += ["Default: none.", "Example:", *literal(_rules(key.about["examples"][0]))]
        else:
            # roff prints a plain hyphen as another character, which users cannot copy into a shell.
            typed = (quoted(value).replace("-", "\\-") for value in (default, example))
            lines += textwrap.wrap("Default: {}; for example {}.".format(*typed), 78, **_WHOLE)
    return "\n".join([*lines, ".El", *see("jobcache-hooks 7", "jobcache 8")]) + "\n"


def _heading(name: str) -> str:
    """Return the heading that begins before a key, "" if none does."""
    for outer, about in keys.schema()["properties"].items():
        first = ".".join([outer, *list(about.get("properties", ()))[:1]])
        if "heading" in about and first == name:
            return str(about["heading"])
    return ""


def _kind(kind: keys.Tree) -> str:
    if "enum" in kind:
        return "One of " + ", ".join(kind["enum"])
    return quoted(str(kind["title"][0].upper() + kind["title"][1:]))


def _rules(rules: list[keys.Tree]) -> list[str]:
    lines = ["rules:"]
    for rule in rules:
        lines += [f"{'  ' if at else '- '}{name}: {notation.text_of(value)}" for at, (name, value) in enumerate(rule.items())]
    return lines


# --------------------------------------------------------------------------------------------------------------- hooks


def hooks() -> str:
    """Return jobcache-hooks(7): the text of jobcache-hooks.in, and the events with their reasons."""
    written = (ROOT / "docs/man/jobcache-hooks.in").read_text().rstrip("\n").split("\n")
    fields = json.loads(SCHEMA.read_text())["properties"]
    lines = [*head("jobcache-hooks", 7), *written, ".Sh EVENTS"]
    lines += text("Each outcome is one JSON object on one line, in the log file and in syslog. The events are:")
    lines += [".Bl -item -compact", *(line for name in fields["event"]["enum"] for line in (".It", f".Ic {name}")), ".El"]
    lines += [".Pp", "Their fields:", ".Bl -tag -width Ds"]
    for name, about in fields.items():
        lines += [f".It Ic {name}", *text(about["description"][0].upper() + about["description"][1:] + ".")]
    lines += [".El", ".Pp", "The reasons that are about one job:", ".Bl -tag -width Ds"]
    for reason, (meaning, remedy) in REASONS.items():
        lines += [f".It Ic {reason}", *text(meaning[0].upper() + meaning[1:] + ".")]
        lines += text(f"Remedy: {remedy}{'' if remedy[-1] in '.?' else '.'}") if remedy else []
    return "\n".join([*lines, ".El", *see("jobcache.yaml 5", "jobcache 8")]) + "\n"


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/man"
    for name, page in pages().items():
        (directory / name).write_text(page)
