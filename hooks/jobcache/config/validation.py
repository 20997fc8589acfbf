"""Validate a document against the schema, and values against each other; describe each problem to an admin."""

import difflib
import re
from typing import Any

import jsonschema
import yaml

from jobcache.cache.cache_names import META
from jobcache.cache.path_template import Template, TemplateError
from jobcache.config import policy
from jobcache.config.document import Document
from jobcache.config.errors import KeyPath, Refused, dotted, quoted, split, type_name
from jobcache.config.keys import Tree, definition, every_key, schema
from jobcache.config.notation import parse_duration

# Variables whose change breaks jobs, and those of Slurm and jobcache.
_RESERVED = ("PATH", "IFS", "ENV", "BASH_ENV", "HOME", "USER", "SHELL", "SHELLOPTS")
_RESERVED_PREFIXES = ("PYTHON", "LD_", "SLURM_", "JOBCACHE")


def validate(document: Document, values: Any) -> None:
    """Raise ConfigError with all problems of the document, whose `values` have been read."""
    _check_schema(document, values)
    _check_order(document, "epilog.budget", "epilog.deadline", may_equal=False)
    _check_order(document, "keep_failed", "keep_max", may_equal=True)
    document.raise_problems()


# ------------------------------------------------------------------------------------------------ formats of the schema

_FORMATS = jsonschema.FormatChecker(formats=())
_RAISED = (TemplateError, Refused)
_SHELL_PATTERN = "shell-pattern"


@_FORMATS.checks("cache-template", raises=_RAISED)
def _check_cache_template(value: object) -> bool:
    return not isinstance(value, str) or bool(Template(value))


@_FORMATS.checks(_SHELL_PATTERN, raises=_RAISED)
def _check_shell_pattern(value: object) -> bool:
    if isinstance(value, str):
        try:
            policy.pattern(value)
        except ValueError:  # brackets that shells read differently
            remedy = "use brackets only with a leading !, letters, digits, _ . and ranges such as a-z"
            raise Refused(f"{quoted(value)} is not a shell-style pattern", remedy) from None
    return True


@_FORMATS.checks("store", raises=_RAISED)
def _check_store(value: object) -> bool:
    if isinstance(value, str):
        plain = value.replace("{user}", "x").replace("{uid}", "x").replace("{cluster}", "x")
        if "{" in plain or "}" in plain:
            raise Refused("an unknown placeholder in the path of a store", "use {user}, {uid} and {cluster} only")
        if not re.fullmatch(schema()["definitions"]["path"]["pattern"], plain):
            raise Refused("not an absolute path", "write an absolute path without `.`, `..` or a slash at the end")
    return True


@_FORMATS.checks("user-store", raises=_RAISED)
def _check_user_store(value: object) -> bool:
    if isinstance(value, str) and "{user}" not in value and "{uid}" not in value:
        raise Refused("neither {user} nor {uid} is in the path", "give each user a separate store")
    return _check_store(value)


@_FORMATS.checks("variable", raises=_RAISED)
def _check_variable(value: object) -> bool:
    if value in _RESERVED or str(value).startswith(_RESERVED_PREFIXES):
        raise Refused("a reserved variable", "remove it; jobs, Slurm or jobcache depend on its value")
    return True


@_FORMATS.checks("in-cache", raises=_RAISED)
def _check_in_cache(value: object) -> bool:
    if str(value).split("/")[1:2] == [META]:
        raise Refused(f"{META} in a cache is reserved for jobcache's own files", "choose another name")
    return True


# --------------------------------------------------------------------------------------------------- the schema's errors


def _check_schema(document: Document, values: Any) -> None:
    """Record each violation of the schema as a problem of the document."""
    validator = jsonschema.Draft7Validator(schema(), format_checker=_FORMATS)
    for error in validator.iter_errors(values):
        path: KeyPath = tuple(error.absolute_path)
        about: Any = error.schema
        if error.validator == "additionalProperties":
            for name in [name for name in error.instance if name not in about["properties"]]:
                key = document.entries[(*path, name)].key
                document.add_problem((*path, name), key, "unknown key", _suggestion(path, name, about["properties"]))
        elif "propertyNames" in error.absolute_schema_path:
            key = document.entries[(*path, error.instance)].key
            document.add_problem((*path, error.instance), key, *EXPLANATIONS[error.validator](about, key, error))
        else:
            node = document.entries[path].node
            document.add_problem(path, node, *EXPLANATIONS[error.validator](about, node, error))


def _suggestion(path: KeyPath, name: str, known: Tree) -> str:
    """Return the remedy for the unknown key `name` at `path`, where the keys `known` are allowed."""
    deeper = [f"{outer}.{inner}" for outer, about in known.items() for inner in definition(about).get("properties", {})]
    if name in deeper:
        outer, _, inner = name.partition(".")
        return f"write it as {outer}: {{{inner}: …}}"
    near = difflib.get_close_matches(name.lower(), known, n=1) or [at for at in deeper if at.partition(".")[2] == name]
    if near:
        return f"did you mean {' or '.join(dotted((*path, *split(at))) for at in near)}?"
    return f"the keys allowed here are {', '.join(known)}"


# Each function: given an entry of the schema, a node of the document and jsonschema's error, return (fault, remedy).


def _explain_type(about: Tree, node: yaml.Node, error: Any) -> "tuple[str, str]":
    value, text, types = error.instance, node.value, about["type"]
    wanted = about.get("title", "keys")
    remedy = about.get("remedy", "write its keys below it, indented, as in the commented example")
    if value is None:
        return "the value is missing", remedy
    if isinstance(value, dict) and getattr(node, "flow_style", False) and "string" in types:
        return f"expected {wanted}, got a map", "put a value that begins with { in quotes"
    if isinstance(value, (int, float)) and "string" in types:
        if "unit" in about and not isinstance(value, bool):
            return f"{text} has no unit", remedy
        if about.get("format", _SHELL_PATTERN) == _SHELL_PATTERN and re.search(about.get("pattern", ""), text):
            return f"expected text, but {text} is {type_name(value)}", f'put it in quotes: "{text}"'
    if about.get("kind") == "integer" and isinstance(value, str) and re.fullmatch(r"0*[1-9][0-9_]{0,11}", value):
        return f"expected {wanted}, got the text {quoted(value)}", f"write {int(value.replace('_', ''))}, without quotes"
    return f"expected {wanted}, got {type_name(value)}", remedy


def _explain_enum(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    allowed, value = about["enum"], error.instance
    choice = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
    if value is None:
        return "the value is missing", f"write {choice}"
    word = str(value).lower()
    near = difflib.get_close_matches({"true": "on", "yes": "on", "false": "off", "no": "off"}.get(word, word), allowed, n=1)
    return f"expected {choice}, got {quoted(value)}", f"did you mean {near[0]}?" if near else f"write {choice}"


def _explain_pattern(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    boolean = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}.get(error.instance.lower())
    if boolean and "boolean" in about.get("type", ()):
        return f"{quoted(error.instance)} is text here", f"write {boolean}"
    if "unit" in about and re.fullmatch(r"[0-9][0-9_]*(\.[0-9]*)?", error.instance):
        return f"{quoted(error.instance)} has no unit", about["remedy"]
    return f"{quoted(error.instance)} is not {about['title']}", about["remedy"]


def _explain_format(_about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    return error.cause.what, error.cause.remedy


def _explain_range(about: Tree, node: yaml.Node, _error: Any) -> "tuple[str, str]":
    return f"{node.value} is out of range", about["remedy"]


def _explain_empty(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    if error.instance:  # a rule: only a rule needs more than one key
        return f"the only key is {', '.join(error.instance)}", about["remedy"]
    return "the value is empty", about["remedy"]


def _explain_required(about: Tree, _node: yaml.Node, error: Any) -> "tuple[str, str]":
    return f"{', '.join(name for name in error.validator_value if name not in error.instance)} is missing", about["remedy"]


EXPLANATIONS = {  # by keyword of the schema
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


# ---------------------------------------------------------------------------------------------------- beyond the schema


def _check_order(document: Document, low: str, high: str, *, may_equal: bool) -> None:
    """Record a problem unless the duration at key `low` is less than the one at `high`, or equal with `may_equal`."""
    text = {key.name: document.valid_value(key) for key in every_key() if key.name in (low, high)}
    low_text, high_text = text[low], text[high]
    if low_text is None or high_text is None:
        return
    excess = parse_duration(low_text) - parse_duration(high_text)
    if excess < 0 or (excess == 0 and may_equal):
        return
    path = split(low) if split(low) in document.entries else split(high)  # one that the file has
    relation = "must not be more than" if may_equal else "must be less than"
    what = f"{low} ({low_text}) {relation} {high} ({high_text})"
    document.add_problem(path, document.entries[path].node, what, "change one of them")
