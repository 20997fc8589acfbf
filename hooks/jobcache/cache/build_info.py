"""Which files belong to a build: dataset_info.json, the shards that it names, and results of `map`."""

from jobcache.cache import reasons, store_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INFO = "dataset_info.json"
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
READ_LIMIT = 1 << 24  # bytes of an INFO, or of another description of a build
_MAX_SHARDS = 100_000  # of one split


def parse(data: bytes) -> "dict[str, Any]":
    """Return the content of an INFO. Raise Refused."""
    try:
        info = _parse_json(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise reasons.Refused("damaged", f"{INFO} is not JSON") from None
    if not isinstance(info, dict):
        raise reasons.Refused("damaged", f"{INFO} is not a JSON object")
    return info


class _Settings:
    """The attributes of a json.JSONDecoder that the scanner of `_json` reads."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int
    memo: "dict[str, str]" = {}


def _parse_json(text: str) -> object:
    """Return the value of a JSON text. Raise ValueError, RecursionError.

    `json` imports `re`. Its scanner, written in C, needs neither; but without `json` it cannot raise its own errors.
    """
    try:
        from _json import make_scanner

        settings: "Any" = _Settings
        value, end = make_scanner(settings)(text, 0)
        if not text[end:].strip(" \t\n\r"):
            return value
    except (ImportError, ValueError, TypeError, StopIteration, SystemError):
        pass
    import json  # for the error, or in a Python other than CPython

    return json.loads(text)


def shards(info: "dict[str, Any]") -> "dict[str, list[tuple[str, int]]]":
    """Return (file, rows) of each shard that an INFO names, by split. Raise Refused."""
    splits = info.get("splits")
    if not isinstance(splits, dict) or not splits or not all(isinstance(split, dict) for split in splits.values()):
        raise reasons.Refused("damaged", f"{INFO} names no splits")
    return {name: _shards_of(info, name, split) for name, split in splits.items()}


def _shards_of(info: "dict[str, Any]", name: str, split: "dict[str, Any]") -> "list[tuple[str, int]]":
    """Return (file, rows) of each shard of one split. Raise Refused."""
    rows, lengths = split.get("num_examples"), split.get("shard_lengths") or [split.get("num_examples")]
    dataset = split.get("dataset_name") or info.get("dataset_name") or info.get("builder_name")
    if not isinstance(dataset, str) or not isinstance(lengths, list) or len(lengths) > _MAX_SHARDS:
        raise reasons.Refused("damaged", f"{INFO} does not describe split {name!r}")
    if type(rows) is not int or any(type(length) is not int for length in lengths) or sum(lengths) != rows:
        raise reasons.Refused("damaged", f"{INFO} does not state the number of rows of split {name!r}")
    found = []
    for number, length in enumerate(lengths):
        suffix = f"-{number:05d}-of-{len(lengths):05d}" if len(lengths) > 1 else ""
        file = f"{dataset}-{name}{suffix}.arrow"
        if not store_names.is_build_file(file):
            raise reasons.Refused("damaged", f"{INFO} names a file {file!r}, which no build can have")
        found.append((file, length))
    return found


def is_map(name: str) -> bool:
    """Return whether a file of this name can be a result of `map`, `filter` and the like, unless it is a shard."""
    return name.startswith("cache-") and name.endswith(".arrow") and store_names.is_build_file(name)
