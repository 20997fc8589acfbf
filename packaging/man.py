#!/usr/bin/env python3
"""Write the manual pages into docs/man: from the commands' own help, the configuration's schema, and the events' schema.

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
from jobcache.diagnostics import explain

ROOT = Path(__file__).parents[1]
DATE = "November 22, 2026"
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
SCHEMA = Path(jobcache.__file__).parent / "config" / "schema" / "event.json"


def pages() -> dict[str, str]:
    """Return the text of each page by its file's name."""
    return {"jobcache.8": command(), "jobcache.yaml.5": configuration(), "jobcache-hooks.7": hooks()}


def head(name: str, section: int) -> list[str]:
    return [
        '.\\" Written by packaging/man.py: change the help, the schema, or jobcache-hooks.in.',
        f".Dd {DATE}", f".Dt {name.upper()} {section}", ".Os",
    ]  # fmt: skip


def see(*others: str) -> list[str]:
    """The section of references, in the order in which manuals have them: by section, then by name."""
    pages = sorted((word.split() for word in others), key=lambda word: (word[1], word[0]))
    return [
        ".Sh SEE ALSO",
        *(f".Xr {name} {section}{' ,' if at + 1 < len(pages) else ''}" for at, (name, section) in enumerate(pages)),
    ]


def text(words: str) -> list[str]:
    """Running text, as lines: each sentence on its own, as mdoc wants it, and no word taken for a request."""
    plain = " ".join(words.replace("``", '"').split())
    sentences = re.split(r"(?<=[A-Za-z0-9)`\"][.?!]) +(?=[A-Z`])", plain)
    return [escaped(line) for sentence in sentences for line in textwrap.wrap(quoted(sentence), 78, **_WHOLE)]


def quoted(words: str) -> str:
    """Backslashes and what stands between backticks, as roff has them."""
    return re.sub(r"`([^`]*)`", r"\\(lq\1\\(rq", words.replace("\\", "\\e"))


def escaped(line: str) -> str:
    """A line that is no request, whatever it begins with."""
    return "\\&" + line if line[:1] in (".", "'") else line


def literal(lines: list[str]) -> list[str]:
    return [".Bd -literal -offset indent", *(escaped(quoted(line)) if line.strip() else "" for line in lines), ".Ed"]


# ------------------------------------------------------------------------------------------------------------ commands


def command() -> str:
    """jobcache(8): the group's help, and each command with its options and examples."""
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
        "Fine.",
        ".It 1",
        "A problem was found.",
        ".It 2",
        "Wrong use.",
        ".El",
    ]
    lines += see("jobcache.yaml 5", "jobcache-hooks 7")
    return "\n".join(lines) + "\n"


def one_command(name: str, found: click.Command, above: click.Context) -> list[str]:
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
    """`[FILE]...` as manuals have it; nothing after it is punctuation."""
    return re.sub(r"(\w)(\]?)\.\.\.", r"\1 ...\2\\&", words)


def _takes_context(param: click.Parameter) -> bool:
    """Whether this click (8.2 and later) wants the context."""
    return "ctx" in inspect.signature(param.make_metavar).parameters


def one_option(option: click.Option, context: click.Context) -> Iterator[str]:
    flags = " , ".join(f"Fl {flag[1:]}" for flag in option.opts)
    value = ""
    if not option.is_flag:
        value = f" Ar {option.make_metavar(context) if _takes_context(option) else option.make_metavar()}"  # type: ignore[call-arg]
    yield f".It {flags}{value}"
    yield from text(option.help or "One of these.")
    if option.show_default and option.default is not None and not option.is_flag:
        yield f"Default: {quoted(str(option.default))}"


def body(help_text: str) -> list[str]:
    """A command's help: paragraphs, and what stands as it is."""
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
    """jobcache.yaml(5): every key of the schema."""
    lines = [*head("jobcache.yaml", 5), ".Sh NAME", ".Nm jobcache.yaml", ".Nd configuration of jobcache"]
    lines += [".Sh SYNOPSIS", ".Pa /etc/jobcache/jobcache.yaml", ".Sh DESCRIPTION"]
    lines += text(
        "The configuration of jobcache, in YAML. Every key is optional, and an empty file gives the defaults. `jobcache apply` "
        "reports all problems of the file at once, or compiles a valid file into the policy of the hooks. "
        "`jobcache show-config` prints each value and its origin."
    )
    lines += [".Pp", *text("A duration is a sequence of whole numbers with units, such as 500ms, 30s, 5m, 2h, 3d or 1h30m.")]
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
            # As one types it: a hyphen that a line may end after is another character.
            typed = (quoted(value).replace("-", "\\-") for value in (default, example))
            lines += textwrap.wrap("Default: {}; for example {}.".format(*typed), 78, **_WHOLE)
    return "\n".join([*lines, ".El", *see("jobcache-hooks 7", "jobcache 8")]) + "\n"


def _heading(name: str) -> str:
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
    """jobcache-hooks(7): what is written by hand, and the events with their reasons."""
    written = (ROOT / "docs/man/jobcache-hooks.in").read_text().rstrip("\n").split("\n")
    fields = json.loads(SCHEMA.read_text())["properties"]
    lines = [*head("jobcache-hooks", 7), *written, ".Sh EVENTS"]
    lines += text("One JSON object a line, one line an outcome, in the log file and in the system's log. The events are:")
    lines += [".Bl -item -compact", *(line for name in fields["event"]["enum"] for line in (".It", f".Ic {name}")), ".El"]
    lines += [".Pp", "Their fields:", ".Bl -tag -width Ds"]
    for name, about in fields.items():
        lines += [f".It Ic {name}", *text(about["description"][0].upper() + about["description"][1:] + ".")]
    lines += [".El", ".Pp", "The reasons that have something to do with one job:", ".Bl -tag -width Ds"]
    for reason, (means, mend) in explain.REASONS.items():
        lines += [f".It Ic {reason}", *text(means[0].upper() + means[1:] + ".")]
        lines += text(f"Mend: {mend}.") if mend else []
    return "\n".join([*lines, ".El", *see("jobcache.yaml 5", "jobcache 8")]) + "\n"


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/man"
    for name, page in pages().items():
        (directory / name).write_text(page)
