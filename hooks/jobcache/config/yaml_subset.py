"""A subset of YAML: no tags, anchors or aliases; `on` and `off` are strings.

Text to nodes, which know their positions, and scalar nodes to values. Syntax errors in plain words.
"""

import re
from typing import Any

import yaml

from jobcache.config.errors import Refused, clipped, quoted

_DEPTH_LIMIT = 16  # levels; the deepest valid document has 6
_NUMBER_LIMIT = 20  # characters

_YAML = "tag:yaml.org,2002:"
STR, _NULL, _BOOL, _INT, _FLOAT, _DATE = (_YAML + name for name in ("str", "null", "bool", "int", "float", "timestamp"))

# (tag, pattern, first characters) of plain scalars that are not text. YAML 1.1 would also read `on` and `no` as booleans,
# 010 as eight and 1:30 as ninety.
_IMPLICIT = (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (_FLOAT, r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (_DATE, r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", list("0123456789")),
)

_SCALAR_TAGS = (STR, *(tag for tag, _, _ in _IMPLICIT))


class Unreadable(Refused):
    """A file is not a document of this subset. line: counts from 1; None for the file as a whole."""

    def __init__(self, line: "int | None", what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Compose nodes. Refuse anchors, aliases and more levels than any valid document has."""

    yaml_implicit_resolvers = {}
    depth = 0

    def compose_node(self, parent: "yaml.Node | None", index: int) -> "yaml.Node | None":
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases", problem_mark=event.start_mark)
        if self.depth >= _DEPTH_LIMIT:
            raise yaml.MarkedYAMLError(problem="too deep", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern, _first in _IMPLICIT:
    _Loader.add_implicit_resolver(_name, re.compile(f"(?:{_pattern})$"), _first)


def compose(text: str) -> "yaml.Node | None":
    """Return the root node of `text`, None for an empty document. Raise Unreadable."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _explained(error) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(line, f"a control character, U+{ord(text[error.position]):04X}", "remove it") from None
    except (ValueError, OverflowError):  # from chr() and int() within the parser
        line = 1 if loader is None else loader.get_mark().line + 1
        raise Unreadable(line, "an escape or a number is out of range", "write the character itself") from None
    finally:
        if loader is not None:
            loader.dispose()


# (part of the parser's message, our message, remedy, whether to name the place where the construct began)
_SYNTAX = (
    ("anchors and aliases", "a value begins with * or &", 'put it in quotes, such as "*-svc"', False),
    ("scanning an alias", "a value begins with *", 'put it in quotes, such as "*-svc"', True),
    ("scanning an anchor", "a value begins with &", "put it in quotes", True),
    ("too deep", "lists or maps are nested too deeply", "compare the line with the commented example", False),
    ("character '\\t'", "a tab", "indent with spaces", False),
    ("cannot start any token", "a value begins with %, @ or `", "put it in quotes", False),
    ("escape", "a backslash in double quotes begins no known escape", "use single quotes, or double the backslash", False),
    ("quoted scalar", "a quote is not closed", "close it", True),
    ("mapping values are not", "an unexpected `:`", "align the line, or put the value with the colon in quotes", False),
    ("sequence entries are not", "an unexpected `- `", "begin the list on a new line", False),
    ("find expected ':'", "neither `key: value` nor `- item`", "write a colon and a space after the key", True),
    ("node content", "a bracket, a comma or the end in place of a value", "write the value, and close open brackets", False),
    ("flow sequence", "a [ is not closed", "close it with ], with commas between the items", True),
    ("flow mapping", "a { is not closed", "close it with }, with commas between the keys", True),
    ("<block end>", "text that does not continue the value before it", "align the line, or put the whole value in quotes", False),
    ("another document", "a second document", "keep one, without a line --- before it", False),
    ("document start", "a second document, or a line with %", "keep one, without lines that begin with ... or %", False),
    ("tag", "a value begins with !", "put it in quotes", False),
)


def _explained(error: yaml.MarkedYAMLError) -> Unreadable:
    """Return the parser's error in plain words."""
    words = f"{error.context or ''} {error.problem or ''}".strip()
    fallback = ("", f"not YAML ({words})", "compare the line with the commented example", False)
    _, what, remedy, from_start = next((row for row in _SYNTAX if row[0] in words), fallback)
    mark = error.context_mark if from_start and error.context_mark else error.problem_mark
    if mark is None:
        return Unreadable(None, what, remedy)
    return Unreadable(mark.line + 1, f"at column {mark.column + 1}, {what}", remedy)


def is_plain_text(text: str) -> bool:
    """Return whether an unquoted scalar `text` is read as text, not as a number, a date, a boolean or null."""
    return _tag_of(text) == STR


def _tag_of(text: str) -> str:
    """Return the tag of the unquoted scalar `text`."""
    return next((tag for tag, pattern, _ in _IMPLICIT if re.fullmatch(pattern, text)), STR)


def scalar(node: yaml.Node) -> Any:
    """Return the value of a scalar node: str, int, float, bool or None. Raise Refused for any other."""
    text: str = node.value
    if node.tag == STR:
        hidden = next((ch for ch in text if not ch.isprintable()), None)  # could break or forge a line of policy or log
        if hidden is not None:
            raise Refused(f"{quoted(text)} contains a control or invisible character, U+{ord(hidden):04X}", "remove it")
        return text
    if _tag_of(text) != node.tag:
        raise _tag_refused(node.tag)
    if node.tag == _DATE:
        raise Refused(f"{quoted(text)} is a date in YAML", f'put it in quotes: "{text}"')
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    if len(text) > _NUMBER_LIMIT:
        raise Refused(f"{text[:_NUMBER_LIMIT]}… is too long for a number", "shorten it, or put a name in quotes")
    return int(text) if node.tag == _INT else float(text)


def check_tag(node: yaml.Node, *names: str) -> None:
    """Raise Refused if the node has an explicit tag other than those of YAML's types `names`; without names, of scalars."""
    if node.tag not in ([_YAML + name for name in names] or _SCALAR_TAGS):
        raise _tag_refused(node.tag)


def _tag_refused(tag: str) -> Refused:
    name = "!!" + tag[len(_YAML) :] if tag.startswith(_YAML) else tag
    return Refused(f"the YAML tag {clipped(name)} is not supported", "remove the tag, and write the plain value")
