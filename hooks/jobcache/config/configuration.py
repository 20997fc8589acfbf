"""The site's configuration: a valid file as a tree of values, each with its origin and its text."""

import re
from typing import Any, NamedTuple

from jobcache.config import validation
from jobcache.config.document import Document
from jobcache.config.errors import dotted
from jobcache.config.keys import Tree, definition, every_key, schema
from jobcache.config.notation import parse_duration, parse_size, text_of


class Config(NamedTuple):
    """A valid configuration.

    tree: nested as the file, with every key. Durations are float seconds, sizes int bytes, match patterns lists. A rule has
    only the keys that the file gives it.
    origins: "default" or "FILE:LINE" by dotted key, and by item of each list or map in the file (`rules[0].path`).
    texts: the values in the file's notation, by dotted key.
    """

    file: str
    tree: Tree
    origins: "dict[str, str]"
    texts: "dict[str, str]"


def load(path: str) -> Config:
    """Return the configuration in the file at `path`. Raise ConfigError with all problems if it is not valid."""
    document = Document(path)
    values = document.read()
    validation.validate(document, values)
    return Config(path, _tree(schema(), values), _origins(document), _texts(values))


def defaults() -> Tree:
    """Return the tree of an empty file."""
    return _tree(schema(), {})


def show(config: Config) -> "list[tuple[str, str, str]]":
    """Return (dotted key, value in the file's notation, origin) of every key. Each rule has its own row."""
    return [(key, text, config.origins[key]) for key, text in config.texts.items()]


def show_json(config: Config) -> "list[dict[str, Any]]":
    """Return the rows of `show` as objects for json.dumps: key, value (as in the tree), text, origin."""
    return [
        {"key": key, "value": _value_at(config.tree, key), "text": text, "origin": origin} for key, text, origin in show(config)
    ]


def _value_at(tree: Tree, name: str) -> Any:
    """Return the value of a dotted key such as `sweep.grace` or `rules[0]`."""
    value: Any = tree
    for part in re.findall(r"\w+", name):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def _tree(about: Tree, given: "Tree | None") -> Tree:
    """Return the converted values of all keys of `about`: those of `given`, and the defaults."""
    tree = {}
    for name, inner in about["properties"].items():
        value = (given or {}).get(name, inner.get("default"))
        tree[name] = _tree(inner, value) if "properties" in inner else _converted(inner, value)
    return tree


def _converted(about: Tree, value: Any) -> Any:
    """Return a new value: seconds of a duration, bytes of a size, a list of one or more patterns."""
    spec = definition(about)
    kind = spec.get("kind")
    if value is None:
        return [] if kind == "rules" else None
    if kind == "duration":
        return parse_duration(value)
    if kind == "size":
        return parse_size(value)
    if kind == "integer":
        return int(value)  # JSON Schema counts 2000.0 as an integer
    if kind == "patterns":
        return [value] if isinstance(value, str) else list(value)
    if isinstance(value, list):
        return [_converted(spec["items"], item) for item in value]
    if isinstance(value, dict):
        return {name: _converted(spec.get("properties", {}).get(name, {}), item) for name, item in value.items()}
    return value


def _texts(values: Tree) -> "dict[str, str]":
    """Return the value of every key in the file's notation; one entry for each rule."""
    texts: dict[str, str] = {}
    for key in every_key():
        outer, _, inner = key.name.rpartition(".")
        value = ((values.get(outer) or {}) if outer else values).get(inner, key.about["default"])
        if value and key.kind.get("kind") == "rules":
            texts.update((f"{key.name}[{i}]", text_of(rule)) for i, rule in enumerate(value))
        else:
            texts[key.name] = text_of(value, flow=bool(outer))
    return texts


def _origins(document: Document) -> "dict[str, str]":
    """Return the origin of each key, and of each item within rules, lists and maps."""
    origins = {key.name: "default" for key in every_key()}
    sections = [name for name, about in schema()["properties"].items() if "properties" in about]
    lines = {dotted(path): entry.key.start_mark.line + 1 for path, entry in document.entries.items() if path}
    origins.update((name, f"{document.file}:{line}") for name, line in lines.items() if name not in sections)
    return origins
