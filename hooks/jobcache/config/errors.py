"""Errors in the configuration, and the notation of keys and values in their messages."""

import json
import re
from typing import Any, NamedTuple, Union

KeyPath = tuple[Union[str, int], ...]  # of a key or list item in the document, such as ("rules", 0, "match")

_CLIP = 60  # characters of a value in a message


class Problem(NamedTuple):
    """One fault in a configuration file.

    line: counts from 1; None for the file as a whole.
    key: dotted; "" for the file as a whole.
    what: the fault.
    remedy: the next step.
    """

    file: str
    line: "int | None"
    key: str
    what: str
    remedy: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        parts = [place, self.key, f"{self.what}; {self.remedy}"] if self.key else [place, f"{self.what}; {self.remedy}"]
        return "".join(ch if ch.isprintable() else ascii(ch)[1:-1] for ch in ": ".join(parts))  # always one line


class ConfigError(Exception):
    """The configuration file is not valid. problems: all of them, in order of line."""

    def __init__(self, problems: "list[Problem]") -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class ApplyError(Exception):
    """The configuration was not applied, and nothing was changed. problems: messages, each with its remedy."""

    def __init__(self, problems: "list[str]") -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Refused(ValueError):
    """A value is not valid. what: the fault. remedy: the next step."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def dotted(path: KeyPath) -> str:
    """Return the name of a key in messages: `rules[0].match.user` for ("rules", 0, "match", "user")."""
    name = ""
    for part in path:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += ("." if name else "") + (part if re.fullmatch(r"[\w-]{1,60}", part) else quoted(part))
    return name


def split(name: str) -> KeyPath:
    """Return the path of a dotted key: ("sweep", "grace") for `sweep.grace`."""
    return tuple(name.split("."))


def quoted(value: Any) -> str:
    """Return a value as messages show it: text in quotes, anything else as JSON, both clipped."""
    return f'"{clipped(value)}"' if isinstance(value, str) else clipped(json.dumps(value))


def type_name(value: Any) -> str:
    """Return the type of a value in words; for text, also the text."""
    for python_type, name in ((dict, "a map"), (list, "a list"), (bool, "a boolean"), ((int, float), "a number")):
        if isinstance(value, python_type):
            return name
    return f"the text {quoted(value)}"


def clipped(text: str) -> str:
    """Return the text, cut to a length that fits into a message."""
    return text if len(text) <= _CLIP else text[:_CLIP] + "…"
