"""The two texts that are generated from the schema: the commented example file and the reference page."""

import textwrap
from collections.abc import Iterator

from jobcache.config.keys import Key, Tree, definition, every_key, schema
from jobcache.config.notation import text_of

_EXAMPLE_HEAD = """\
# The configuration of jobcache. A line that begins with #key shows the default: remove the # and change it.
# Then run `jobcache apply`: it reports all problems at once, or activates a valid file.
# `jobcache show-config` prints each value and its origin; with --reference, the meaning of each key.
# Durations: 500ms, 30s, 5m, 2h, 3d, 1h30m. Sizes: 512MiB, 50GiB, 1TB.
"""

_REFERENCE_HEAD = """\
# Configuration

<!-- Generated from hooks/jobcache/config/schema/config.json: `jobcache show-config --reference > docs/config.md` -->

`/etc/jobcache/jobcache.yaml`, or the file that `--config` names, is YAML. An empty file gives the defaults. `jobcache apply`
reports all problems of a file at once, each with its line and its remedy, and activates a valid file.
`jobcache show-config` prints each value and its origin.

- A duration is a sequence of whole numbers with units: `500ms`, `30s`, `5m`, `2h`, `3d`, `1h30m`.
- A size is a whole number with a unit, decimal or binary: `512MiB`, `50GiB`, `10GB`, `1TB`.
- `on` and `off` are words; the only booleans are `true` and `false`. Put a value in quotes if it begins with one of
  `* & ! { [ % @` or a backtick, or if it is text that looks like a number or a date.
- YAML anchors, aliases and tags are not supported, and a key appears at most once.
"""

_COLUMN = 33  # of a comment in the example


def example_text() -> str:
    """Return the commented example file: every key with its default, commented out. It loads as the defaults."""
    lines = [_EXAMPLE_HEAD.rstrip("\n")]
    headings = _headings()
    for key in every_key():
        outer, _, inner = key.name.rpartition(".")
        if key.name in headings:
            lines += ["", f"# {headings[key.name]}"]
            lines += [f"{outer}:"] if outer else []
        setting = f"{'  ' if outer else ''}#{inner}: {text_of(key.about['default'], flow=bool(outer))}"
        lines.append(f"{setting:<{_COLUMN}}  # {key.about['title']}")
        if key.kind.get("kind") == "rules":
            lines += [f"#{inner}:", *(f"#  {line}" for line in _rules(key))]
    return "\n".join(lines) + "\n"


def reference_text() -> str:
    """Return the reference page, in Markdown."""
    lines = [_REFERENCE_HEAD]
    headings = _headings()
    for key in every_key():
        if key.name in headings:
            lines += [f"## {headings[key.name]}", ""]
        lines += [f"### `{key.name}`", "", f"{_type(key.kind)}; default `{text_of(key.about['default'])}`.", ""]
        lines += [textwrap.fill(key.about["description"], 120, break_long_words=False, break_on_hyphens=False), ""]
        if key.kind.get("kind") == "rules":
            lines += [*_rule_keys(key.kind["items"]), "", "```yaml", "rules:", *(f"  {line}" for line in _rules(key)), "```", ""]
        else:
            lines += ["Example: " + ", ".join(f"`{_setting(key, value)}`" for value in key.about["examples"]), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _headings() -> "dict[str, str]":
    """Return the heading of each group of keys, by the first key of the group."""
    headings = {}
    for name, about in schema()["properties"].items():
        if "heading" in about:
            headings[".".join([name, *list(about.get("properties", ()))[:1]])] = about["heading"]
    return headings


def _setting(key: Key, value: object) -> str:
    """Return `sweep: {grace: 1h}` for the key sweep.grace."""
    outer, _, inner = key.name.rpartition(".")
    return f"{outer}: {{{inner}: {text_of(value)}}}" if outer else f"{inner}: {text_of(value)}"


def _type(kind: Tree) -> str:
    """Return the type of a value, as the first words of a sentence."""
    if "enum" in kind:
        return "One of " + ", ".join(f"`{word}`" for word in kind["enum"])
    title = kind["title"][0].upper() + kind["title"][1:]
    return f"{title} ({kind['unit']})" if "unit" in kind else title


def _rules(key: Key) -> "Iterator[str]":
    """Yield the lines of the example of `rules`."""
    for rule in key.about["examples"][0]:
        for i, (name, value) in enumerate(rule.items()):
            yield f"{'  ' if i else '- '}{name}: {text_of(value, flow=isinstance(value, dict))}"


def _rule_keys(rule: Tree) -> "Iterator[str]":
    """Yield a line for each key that a rule may have."""
    for name, about in definition(rule)["properties"].items():
        yield f"- `{name}`: {about['description']}"
        for inner, inner_about in definition(about).get("properties", {}).items():
            yield f"  - `{name}.{inner}`: {inner_about['description']}"
