"""A configuration file as a document: its values, where each of them stands, and the problems found so far."""

import os
from typing import Any, NamedTuple

import yaml

from jobcache.config import yaml_subset
from jobcache.config.errors import ConfigError, KeyPath, Problem, Refused, dotted, split
from jobcache.config.keys import Key, Tree
from jobcache.config.yaml_subset import Unreadable
from jobcache.system import files

_SIZE_LIMIT = 1024 * 1024  # bytes


class Entry(NamedTuple):
    """One value of the file. key: the node of its key; for a list item and for the root, the node itself."""

    key: yaml.Node
    node: yaml.Node
    value: Any


class Document:
    """A configuration file: `entries` by path, and `problems` by line, column and path."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.entries: dict[KeyPath, Entry] = {}
        self.problems: dict[tuple[int, int, KeyPath], Problem] = {}

    def add_problem(self, path: KeyPath, node: yaml.Node, what: str, remedy: str) -> None:
        """Record a problem with `node`, unless the node already has one: the first problem is the cause of others."""
        line, column = node.start_mark.line + 1, node.start_mark.column
        self.problems.setdefault((line, column, path), Problem(self.file, line, dotted(path), what, remedy))

    def raise_problems(self) -> None:
        """Raise ConfigError with all recorded problems, in order of line."""
        if self.problems:
            raise ConfigError([problem for _, problem in sorted(self.problems.items(), key=lambda item: item[0][:2])])

    def valid_value(self, key: Key) -> "Any | None":
        """Return the value of `key` in the file or its default; None if the value has a problem."""
        path = split(key.name)
        if any(path == bad for _, _, bad in self.problems):
            return None
        return self.entries[path].value if path in self.entries else key.about["default"]

    def read(self) -> Any:
        """Return the values of the file, {} if it is empty. Raise ConfigError if the file cannot be read as YAML."""
        try:
            root = yaml_subset.compose(_decoded(_contents(self.file)))
        except Unreadable as error:
            raise ConfigError([Problem(self.file, error.line, "", error.what, error.remedy)]) from None
        value = None if root is None else self._value((), root, root)
        return {} if value is None else value

    def _value(self, path: KeyPath, key: yaml.Node, node: yaml.Node) -> Any:
        value: Any = node.value
        try:
            if isinstance(node, yaml.MappingNode):
                value = self._mapping(path, node)
                yaml_subset.check_tag(node, "map")
            elif isinstance(node, yaml.SequenceNode):
                value = [self._value((*path, i), item, item) for i, item in enumerate(node.value)]
                yaml_subset.check_tag(node, "seq")
            else:
                value = yaml_subset.scalar(node)
        except Refused as error:
            self.add_problem(path, node, error.what, error.remedy)
        self.entries[path] = Entry(key, node, value)
        return value

    def _mapping(self, path: KeyPath, node: yaml.MappingNode) -> Tree:
        mapping: Tree = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.add_problem(path, key, "a list or map in place of a key", "put a value that begins with [ or { in quotes")
                continue
            inner = (*path, key.value)
            if key.value in mapping:
                first = self.entries[inner].key.start_mark.line + 1
                self.add_problem(inner, key, f"the key appears twice, first on line {first}", "remove one of them")
                continue
            mapping[key.value] = self._value(inner, key, value)
            try:
                yaml_subset.check_tag(key)
            except Refused as error:
                self.add_problem(inner, key, error.what, error.remedy)
        return mapping


def _contents(path: str) -> bytes:
    """Return the bytes of a file. Raise Unreadable if it cannot be opened or is too large."""
    try:
        with open(files.open_regular(path, follow=True), "rb") as file:
            contents = file.read(_SIZE_LIMIT + 1)
    except FileNotFoundError:
        remedy = "create it (an empty file gives the defaults), or name another file with --config"
        raise Unreadable(None, "the file does not exist", remedy) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        is_root = os.geteuid() == 0
        remedy = "replace it with a file that root can read" if is_root else "run this as root, or make the file readable"
        raise Unreadable(None, f"cannot read the file: {reason}", remedy) from None
    if len(contents) > _SIZE_LIMIT:
        raise Unreadable(None, "the file is larger than 1 MiB", "check that this is jobcache's configuration")
    return contents


def _decoded(contents: bytes) -> str:
    try:
        return contents.decode("utf-8")
    except UnicodeDecodeError as error:
        line = contents.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, f"the byte 0x{contents[error.start]:02x} is not UTF-8", "save the file as UTF-8") from None
