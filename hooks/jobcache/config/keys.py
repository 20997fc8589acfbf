"""The keys of the configuration file. schema/config.json is their only definition."""

import functools
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

Tree = dict[str, Any]


class Key(NamedTuple):
    """One key that has a default.

    name: dotted, such as `sweep.grace`.
    about: its entry in the schema: default, title, description, examples.
    kind: the definition of its value.
    """

    name: str
    about: Tree
    kind: Tree


@functools.cache
def schema() -> Tree:
    """Return the schema. All callers share one object: do not change it."""
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


def definition(about: Tree) -> Tree:
    """Given an entry of the schema, return the definition that its $ref names, or the entry itself."""
    kind: Tree = schema()["definitions"][about["$ref"].rpartition("/")[2]] if "$ref" in about else about
    return kind
