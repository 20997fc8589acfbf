"""The configuration file: YAML in, a tree of values with the origin of each out, or all that is wrong with it at once.

`schema/config.json` is the one definition of the keys. This module reads YAML more narrowly than YAML is (`on` is a word, a
key stands once, nothing is constructed), holds the file against the schema, and says in an admin's words what does not fit.
"""

import difflib
import functools
import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Union

import jsonschema
import yaml

from jobcache.cache.cache_names import META
from jobcache.cache.path_template import Template, TemplateError

Path = tuple[Union[str, int], ...]  # of a key or list item in the document, such as ("rules", 0, "match")
Tree = dict[str, Any]

DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}  # in milliseconds
SIZE_UNITS = {
    "B": 1,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", 1)},
}

_FILE_MAX = 1024 * 1024
_DEPTH_MAX = 16  # the deepest valid document has 6 levels

# What a site that sets it by accident would break jobs with, and what is Slurm's or ours.
_NOT_OURS = ("PATH", "IFS", "ENV", "BASH_ENV", "HOME", "USER", "SHELL", "SHELLOPTS")
_NOT_OURS_PREFIXES = ("PYTHON", "LD_", "SLURM_", "JOBCACHE")


class Problem(NamedTuple):
    """One thing that is wrong: where, what, and how it is mended. `line` counts from 1; `key` is "" for the file as a whole."""

    file: str
    line: "int | None"
    key: str
    what: str
    mend: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        words = f"{place}: {self.key}: {self.what}; {self.mend}" if self.key else f"{place}: {self.what}; {self.mend}"
        return "".join(ch if ch.isprintable() else ascii(ch)[1:-1] for ch in words)  # one line, whatever the file holds


class ConfigError(Exception):
    """A configuration file that cannot serve: all its `problems`, in order of line."""

    def __init__(self, problems: "list[Problem]") -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Config(NamedTuple):
    """A valid configuration.

    `tree` has the nesting of the file, with every key in it: durations are float seconds, sizes int bytes, match patterns
    lists; a rule has only the keys it was given. `origins` has "default" or "FILE:LINE" for every dotted key, and within a
    list or map that the file gives also for each item (`rules[0].path`). `texts` has the values in the file's notation.
    """

    file: str
    tree: Tree
    origins: "dict[str, str]"
    texts: "dict[str, str]"


class Key(NamedTuple):
    """One key of the schema: its dotted `name`, what is said of it (`about`) and what its value may be (`kind`)."""

    name: str
    about: Tree
    kind: Tree


class _Refused(ValueError):
    """A value that does not fit: `what` is wrong, and the `remedy`."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def load(path: str) -> Config:
    """Return the configuration in the file at `path`. Raise ConfigError, and nothing else, for one that cannot serve."""
    document = _Document(path)
    values = document.read()
    _hold_against_schema(document, values)
    _hold_against_each_other(document)
    document.raise_problems()
    return Config(path, _tree(schema(), values), _origins(document), _texts(values))


def defaults() -> Tree:
    """Return the tree of a configuration that an empty file gives."""
    return _tree(schema(), {})


@functools.cache
def schema() -> Tree:
    """Return the schema. It is shared: not to be changed."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "schema", "config.json"), encoding="utf-8") as file:
        read: Tree = json.load(file)
        return read


def every_key() -> "Iterator[Key]":
    """Yield every key that has a default, in the order of the schema."""
    for name, about in schema()["properties"].items():
        for inner, inner_about in about.get("properties", {}).items():
            yield Key(f"{name}.{inner}", inner_about, definition(inner_about))
        if "properties" not in about:
            yield Key(name, about, definition(about))


def show(config: Config) -> "list[tuple[str, str, str]]":
    """Return (dotted key, value in the file's notation, origin) of every key; each rule has a row of its own."""
    return [(key, text, config.origins[key]) for key, text in config.texts.items()]


def show_json(config: Config) -> "list[dict[str, Any]]":
    """Return what `show` does as objects of key, value (as in the tree), text and origin, for json.dumps."""
    return [
        {"key": key, "value": _value_at(config.tree, key), "text": text, "origin": origin} for key, text, origin in show(config)
    ]


def _value_at(tree: Tree, name: str) -> Any:
    value: Any = tree
    for part in re.findall(r"\w+", name):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


# Notations


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `1h30m`. Raise ValueError for what is none."""
    if not re.fullmatch(schema()["definitions"]["duration"]["pattern"], text):
        raise ValueError(f"{_shown(text)} is not a duration; {schema()['definitions']['duration']['mend']}")
    parts: list[tuple[str, str]] = re.findall(r"([0-9]+)([a-z]+)", text)
    return sum(int(number) * DURATION_UNITS[unit] for number, unit in parts) / 1000


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `50GiB`. Raise ValueError for what is none."""
    if not re.fullmatch(schema()["definitions"]["size"]["pattern"], text):
        raise ValueError(f"{_shown(text)} is not a size; {schema()['definitions']['size']['mend']}")
    number = text.rstrip("BikKMGTP")
    factor: int = SIZE_UNITS[text[len(number) :].replace("KB", "kB")]
    return int(number) * factor


def text_of(value: Any, *, flow: bool = True) -> str:
    """Return YAML on one line that `load` reads as `value`, which is as the file or the schema has it.

    With `flow` it may stand within [] and {}, without it on the line of a key of its own only.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {text_of(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if isinstance(value, str):
        plain = r"[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*" if flow else r"[A-Za-z0-9_/.][A-Za-z0-9_/.+{}-]*"
        return value if re.fullmatch(plain, value) and _tag(value) == _STR else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


# The schema


def definition(about: Tree) -> Tree:
    """Return the definition that `about` refers to, else itself."""
    kind: Tree = schema()["definitions"][about["$ref"].rpartition("/")[2]] if "$ref" in about else about
    return kind


# Reading YAML

_YAML = "tag:yaml.org,2002:"
_STR, _NULL, _BOOL, _INT, _FLOAT, _DATE = (_YAML + name for name in ("str", "null", "bool", "int", "float", "timestamp"))

# YAML 1.1 reads `on` and `no` as booleans, 010 as eight and 1:30 as ninety: none of these is meant here.
_IMPLICIT = (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (_FLOAT, r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (_DATE, r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", list("0123456789")),
)

_SCALAR_TAGS = (_STR, *(tag for tag, _, _ in _IMPLICIT))


class _Loader(yaml.SafeLoader):
    """YAML to nodes; without anchors and aliases, and no deeper than any valid document."""

    yaml_implicit_resolvers = {}
    depth = 0

    def compose_node(self, parent: "yaml.Node | None", index: int) -> "yaml.Node | None":
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases", problem_mark=event.start_mark)
        if self.depth >= _DEPTH_MAX:
            raise yaml.MarkedYAMLError(problem="too deep", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern, _first in _IMPLICIT:
    _Loader.add_implicit_resolver(_name, re.compile(f"(?:{_pattern})$"), _first)


def _tag(text: str) -> str:
    """Return the tag of the unquoted `text`."""
    return next((tag for tag, pattern, _ in _IMPLICIT if re.fullmatch(pattern, text)), _STR)


class _Given(NamedTuple):
    """What the file has at a path: the node of its key (of a list's item and the whole, its own), its node and its value."""

    key: yaml.Node
    node: yaml.Node
    value: Any


class _Document:
    """A file being read: what it has at each path, and what is wrong with it so far."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.given: dict[Path, _Given] = {}
        self.problems: dict[tuple[int, int, Path], Problem] = {}  # by line, column and path

    def complain(self, path: Path, node: yaml.Node, what: str, mend: str) -> None:
        """Record a problem with `node`, unless there is one: the first complaint about a value says enough."""
        line, column = node.start_mark.line + 1, node.start_mark.column
        self.problems.setdefault((line, column, path), Problem(self.file, line, _dotted(path), what, mend))

    def sound(self, key: Key) -> "Any | None":
        """Return the value of `key`, given or default, or None where the given one is wrong."""
        path = _split(key.name)
        if any(path == bad for _, _, bad in self.problems):
            return None
        return self.given[path].value if path in self.given else key.about["default"]

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigError([problem for _, problem in sorted(self.problems.items(), key=lambda item: item[0][:2])])

    def read(self) -> Any:
        """Return the values of the file, {} for an empty one. Raise ConfigError where it is no YAML at all."""
        try:
            root = _compose(_decoded(_contents(self.file)))
        except _Unreadable as error:
            raise ConfigError([Problem(self.file, error.line, "", error.what, error.remedy)]) from None
        value = None if root is None else self._value((), root, root)
        return {} if value is None else value

    def _value(self, path: Path, key: yaml.Node, node: yaml.Node) -> Any:
        value: Any = node.value
        try:
            if isinstance(node, yaml.MappingNode):
                value = self._mapping(path, node)
                _check_tag(node, "map")
            elif isinstance(node, yaml.SequenceNode):
                value = [self._value((*path, i), item, item) for i, item in enumerate(node.value)]
                _check_tag(node, "seq")
            else:
                value = _scalar(node)
        except _Refused as error:
            self.complain(path, node, error.what, error.remedy)
        self.given[path] = _Given(key, node, value)
        return value

    def _mapping(self, path: Path, node: yaml.MappingNode) -> Tree:
        mapping: Tree = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.complain(
                    path, key, "a list or map stands where a key belongs", "put a value that begins with [ or { in quotes"
                )
            elif key.value in mapping:
                first = self.given[(*path, key.value)].key.start_mark.line + 1
                self.complain((*path, key.value), key, f"given twice, first on line {first}", "keep one of the two")
            else:
                mapping[key.value] = self._value((*path, key.value), key, value)
                if key.tag not in _SCALAR_TAGS:
                    self.complain((*path, key.value), key, *_foreign(key.tag))
        return mapping


class _Unreadable(_Refused):
    """A file that is no YAML, from `line` on."""

    def __init__(self, line: "int | None", what: str, mend: str) -> None:
        super().__init__(what, mend)
        self.line = line


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            contents = file.read(_FILE_MAX + 1)
    except FileNotFoundError:
        raise _Unreadable(None, "no such file", "make it (empty, it gives the defaults), or name another with --config") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        mend = "make it a file that root can read" if os.geteuid() == 0 else "run this as root, or make it readable to you"
        raise _Unreadable(None, f"cannot be read: {reason}", mend) from None
    if len(contents) > _FILE_MAX:
        raise _Unreadable(None, "larger than 1 MiB", "check that this is jobcache's configuration")
    return contents


def _decoded(contents: bytes) -> str:
    try:
        return contents.decode("utf-8")
    except UnicodeDecodeError as error:
        line = contents.count(b"\n", 0, error.start) + 1
        raise _Unreadable(line, f"the byte 0x{contents[error.start]:02x} is not UTF-8", "save the file as UTF-8") from None


def _compose(text: str) -> "yaml.Node | None":
    """Return the root node of `text`, None for an empty one. Raise _Unreadable for what is no YAML."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _in_plain_words(error) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _Unreadable(line, f"a control character, U+{ord(text[error.position]):04X}", "remove it") from None
    except (ValueError, OverflowError):  # from chr() and int() within the parser
        line = 1 if loader is None else loader.get_mark().line + 1
        raise _Unreadable(line, "an escape or a number beyond what can be", "write the character itself") from None
    finally:
        if loader is not None:
            loader.dispose()


# What the parser's words have in them, what it means, how it is mended, and whether to name the place where the fault began.
_SYNTAX = (
    ("anchors and aliases", "a value that begins with * or &", 'put it in quotes, such as "*-svc"', False),
    ("scanning an alias", "a value that begins with *", 'put it in quotes, such as "*-svc"', True),
    ("scanning an anchor", "a value that begins with &", "put it in quotes", True),
    ("too deep", "lists or maps within each other, too deep", "compare it with the commented example", False),
    ("character '\\t'", "a tab", "indent with spaces", False),
    ("cannot start any token", "a value that begins with %, @ or `", "put it in quotes", False),
    ("escape", "a backslash in double quotes that begins no escape", "use single quotes, or double the backslash", False),
    ("quoted scalar", "a quote that is not closed", "close it", True),
    ("mapping values are not", "a `:` where none can be", "align the line, or put the value with the colon in quotes", False),
    ("sequence entries are not", "a `- ` where none can be", "begin the list on a line of its own", False),
    ("find expected ':'", "neither `key: value` nor `- item`", "write a colon and a space after the key", True),
    ("node content", "a bracket, a comma or the end where a value belongs", "write the value, and close what is open", False),
    ("flow sequence", "a [ that is not closed", "close it with ], with commas between the items", True),
    ("flow mapping", "a { that is not closed", "close it with }, with commas between the keys", True),
    ("<block end>", "what does not belong to the value before", "align the line, or put the whole value in quotes", False),
    ("another document", "a second document", "keep one, without a line --- before it", False),
    ("document start", "a second document, or a line with %", "keep one, without lines that begin with ... or %", False),
    ("tag", "a value that begins with !", "put it in quotes", False),
)


def _in_plain_words(error: yaml.MarkedYAMLError) -> _Unreadable:
    words = f"{error.context or ''} {error.problem or ''}".strip()
    fallback = ("", f"not YAML ({words})", "compare the line with the commented example", False)
    _, what, mend, from_start = next((row for row in _SYNTAX if row[0] in words), fallback)
    mark = error.context_mark if from_start and error.context_mark else error.problem_mark
    if mark is None:
        return _Unreadable(None, what, mend)
    return _Unreadable(mark.line + 1, f"at column {mark.column + 1}, {what}", mend)


def _scalar(node: yaml.Node) -> Any:
    """Return the value of a scalar node. Raise _Refused for one that no key can have."""
    text: str = node.value
    if node.tag == _STR:
        unseen = next((ch for ch in text if not ch.isprintable()), None)  # would break or forge a line of policy or log
        if unseen is not None:
            raise _Refused(f"{_shown(text)} has a control or invisible character in it, U+{ord(unseen):04X}", "remove it")
        return text
    if _tag(text) != node.tag:
        raise _Refused(*_foreign(node.tag))
    if node.tag == _DATE:
        raise _Refused(f"{_shown(text)} is read as a date", f'put it in quotes: "{text}"')
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    if len(text) > 20:
        raise _Refused(f"{text[:20]}… is too long for a number", "shorten it, or put it in quotes where it is a name")
    return int(text) if node.tag == _INT else float(text)


def _check_tag(node: yaml.Node, name: str) -> None:
    if node.tag != _YAML + name:
        raise _Refused(*_foreign(node.tag))


def _foreign(tag: str) -> "tuple[str, str]":
    name = "!!" + tag[len(_YAML) :] if tag.startswith(_YAML) else tag
    return f"the YAML tag {_clipped(name)} is not read", "remove it, and write the plain value"


# Holding it against the schema

_FORMATS = jsonschema.FormatChecker(formats=())
_CHECKED = (TemplateError, _Refused)


@_FORMATS.checks("cache-template", raises=_CHECKED)
def _check_cache_template(value: object) -> bool:
    return not isinstance(value, str) or bool(Template(value))


@_FORMATS.checks("store", raises=_CHECKED)
def _check_store(value: object) -> bool:
    if isinstance(value, str):
        plain = value.replace("{user}", "x").replace("{uid}", "x").replace("{cluster}", "x")
        if "{" in plain or "}" in plain:
            raise _Refused("a placeholder that no store has", "known are {user}, {uid} and {cluster}")
        if not re.fullmatch(schema()["definitions"]["path"]["pattern"], plain):
            raise _Refused("not an absolute, clean path", "write the path out from /, without `.`, `..` or a slash at its end")
    return True


@_FORMATS.checks("user-store", raises=_CHECKED)
def _check_user_store(value: object) -> bool:
    if isinstance(value, str) and "{user}" not in value and "{uid}" not in value:
        raise _Refused("neither {user} nor {uid} in it", "give each user a store of their own")
    return _check_store(value)


@_FORMATS.checks("variable", raises=_CHECKED)
def _check_variable(value: object) -> bool:
    if value in _NOT_OURS or str(value).startswith(_NOT_OURS_PREFIXES):
        raise _Refused("not a variable to be set here", "remove it; jobs, Slurm or jobcache itself depend on it")
    return True


@_FORMATS.checks("in-cache", raises=_CHECKED)
def _check_in_cache(value: object) -> bool:
    if str(value).split("/")[1:2] == [META]:
        raise _Refused(f"{META} in the cache is kept for our own files", "write another name")
    return True


def _hold_against_schema(document: _Document, values: Any) -> None:
    validator = jsonschema.Draft7Validator(schema(), format_checker=_FORMATS)
    for error in validator.iter_errors(values):
        path: Path = tuple(error.absolute_path)
        about: Any = error.schema
        if error.validator == "additionalProperties":
            for name in [name for name in error.instance if name not in about["properties"]]:
                key = document.given[(*path, name)].key
                document.complain((*path, name), key, "unknown key", _whereto(path, name, about["properties"]))
        elif "propertyNames" in error.absolute_schema_path:
            key = document.given[(*path, error.instance)].key
            document.complain((*path, error.instance), key, *_EXPLAIN[error.validator](about, key, error))
        else:
            node = document.given[path].node
            document.complain(path, node, *_EXPLAIN[error.validator](about, node, error))


def _whereto(path: Path, name: str, known: Tree) -> str:
    """Return what somebody may have meant who wrote the unknown `name` at `path`, beside the `known` keys."""
    deeper = [f"{outer}.{inner}" for outer, about in known.items() for inner in definition(about).get("properties", {})]
    if name in deeper:
        outer, _, inner = name.partition(".")
        return f"write it as {outer}: {{{inner}: …}}"
    near = difflib.get_close_matches(name.lower(), known, n=1) or [at for at in deeper if at.partition(".")[2] == name]
    if near:
        return f"did you mean {' or '.join(_dotted((*path, *_split(at))) for at in near)}?"
    return f"known here are {', '.join(known)}"


def _explain_type(about: Tree, node: yaml.Node, error: Any) -> "tuple[str, str]":
    value, text, types = error.instance, node.value, about["type"]
    wanted, mend = about.get("title", "keys"), about.get("mend", "write its keys below it, indented, as in the commented example")
    if value is None:
        return "no value", mend
    if isinstance(value, dict) and getattr(node, "flow_style", False) and "string" in types:
        return f"expected {wanted}, got a map", "put a value that begins with { in quotes"
    if isinstance(value, (int, float)) and "string" in types:
        if "unit" in about and not isinstance(value, bool):
            return f"{text} has no unit", mend
        if "format" not in about and re.search(about.get("pattern", ""), text):
            return f"{text} is no text here, but {_sort_of(value)}", f'put it in quotes: "{text}"'
    if about.get("kind") == "integer" and isinstance(value, str) and re.fullmatch(r"0*[1-9][0-9_]{0,11}", value):
        return f"expected {wanted}, got the text {_shown(value)}", f"write {int(value.replace('_', ''))}, without quotes"
    return f"expected {wanted}, got {_sort_of(value)}", mend


def _explain_enum(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    allowed, value = about["enum"], error.instance
    mend = f"write {', '.join(allowed[:-1])} or {allowed[-1]}"
    if value is None:
        return "no value", mend
    word = str(value).lower()
    near = difflib.get_close_matches({"true": "on", "yes": "on", "false": "off", "no": "off"}.get(word, word), allowed, n=1)
    return f"{_shown(value)} is none of {', '.join(allowed)}", f"did you mean {near[0]}?" if near else mend


def _explain_pattern(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    boolean = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}.get(error.instance.lower())
    if boolean and "boolean" in about.get("type", ()):
        return f"{_shown(error.instance)} is text here", f"write {boolean}"
    if "unit" in about and re.fullmatch(r"[0-9][0-9_]*(\.[0-9]*)?", error.instance):
        return f"{_shown(error.instance)} has no unit", about["mend"]
    return f"{_shown(error.instance)} is not {about['title']}", about["mend"]


def _explain_format(_about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    return error.cause.what, error.cause.remedy


def _explain_range(about: Tree, node: yaml.Node, _error: Any) -> "tuple[str, str]":
    return f"{node.value} is out of range", about["mend"]


def _explain_empty(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    if error.instance:  # a rule, the one thing that has a minimum of more than one
        return f"nothing but {', '.join(error.instance)} in it", about["mend"]
    return "empty", about["mend"]


def _explain_required(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    return f"no {', '.join(name for name in error.validator_value if name not in error.instance)} in it", about["mend"]


_EXPLAIN = {
    "type": _explain_type,
    "enum": _explain_enum,
    "pattern": _explain_pattern,
    "format": _explain_format,
    "minimum": _explain_range,
    "maximum": _explain_range,
    "minLength": _explain_empty,
    "minItems": _explain_empty,
    "minProperties": _explain_empty,
    "required": _explain_required,
}


# Beyond the schema


def _hold_against_each_other(document: _Document) -> None:
    _check_order(document, "epilog.budget", "epilog.deadline", may_equal=False)
    _check_order(document, "keep_failed", "keep_max", may_equal=True)


def _check_order(document: _Document, low: str, high: str, *, may_equal: bool) -> None:
    """Complain where the duration at `low` is not less than that at `high`: about the one that the file gives."""
    text = {key.name: document.sound(key) for key in every_key() if key.name in (low, high)}
    low_text, high_text = text[low], text[high]
    if low_text is None or high_text is None:
        return
    excess = parse_duration(low_text) - parse_duration(high_text)
    if excess < 0 or (excess == 0 and may_equal):
        return
    path = _split(low) if _split(low) in document.given else _split(high)
    relation = "may not be more than" if may_equal else "has to be less than"
    what = f"{low} ({low_text}) {relation} {high} ({high_text})"
    document.complain(path, document.given[path].node, what, "change one of the two")


# The result


def _tree(about: Tree, given: "Tree | None") -> Tree:
    """Return the values `given` for the keys of `about`, converted, and the defaults of those that are not."""
    tree = {}
    for name, inner in about["properties"].items():
        value = (given or {}).get(name, inner.get("default"))
        tree[name] = _tree(inner, value) if "properties" in inner else _converted(inner, value)
    return tree


def _converted(about: Tree, value: Any) -> Any:
    """Return a new `value`: seconds of a duration, bytes of a size, a list of one or many patterns."""
    spec = definition(about)
    kind = spec.get("kind")
    if value is None:
        return [] if kind == "rules" else None
    if kind == "duration":
        return parse_duration(value)
    if kind == "size":
        return parse_size(value)
    if kind == "integer":
        return int(value)  # the schema's integers include 2000.0
    if kind == "patterns":
        return [value] if isinstance(value, str) else list(value)
    if isinstance(value, list):
        return [_converted(spec["items"], item) for item in value]
    if isinstance(value, dict):
        return {name: _converted(spec.get("properties", {}).get(name, {}), item) for name, item in value.items()}
    return value


def _texts(values: Tree) -> "dict[str, str]":
    texts: dict[str, str] = {}
    for key in every_key():
        outer, _, inner = key.name.rpartition(".")
        value = ((values.get(outer) or {}) if outer else values).get(inner, key.about["default"])
        if value and key.kind.get("kind") == "rules":
            texts.update((f"{key.name}[{i}]", text_of(rule)) for i, rule in enumerate(value))
        else:
            texts[key.name] = text_of(value, flow=bool(outer))
    return texts


def _origins(document: _Document) -> "dict[str, str]":
    """Return where each key's value comes from, and within rules, lists and maps that of each item."""
    origins = {key.name: "default" for key in every_key()}
    sections = [name for name, about in schema()["properties"].items() if "properties" in about]
    given = {_dotted(path): given.key.start_mark.line + 1 for path, given in document.given.items() if path}
    origins.update((name, f"{document.file}:{line}") for name, line in given.items() if name not in sections)
    return origins


# Words


def _dotted(path: Path) -> str:
    """Return `rules[0].match.user` for ("rules", 0, "match", "user")."""
    words = ""
    for part in path:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            words += ("." if words else "") + (part if re.fullmatch(r"[\w-]{1,60}", part) else _shown(part))
    return words


def _split(name: str) -> Path:
    return tuple(name.split("."))


def _shown(value: Any) -> str:
    """Return `value` as it stands in a message."""
    return f'"{_clipped(value)}"' if isinstance(value, str) else _clipped(json.dumps(value))


def _sort_of(value: Any) -> str:
    """Return what `value` is, in words."""
    for sort, name in ((dict, "a map"), (list, "a list"), (bool, "a boolean"), ((int, float), "a number")):
        if isinstance(value, sort):
            return name
    return f"the text {_shown(value)}"


def _clipped(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
