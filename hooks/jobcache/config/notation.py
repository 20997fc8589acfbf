"""The notation of values in the configuration file: durations, sizes, and any value as YAML on one line."""

import json
import re
from typing import Any

from jobcache.config import keys, yaml_subset
from jobcache.config.errors import quoted

DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}  # in milliseconds
SIZE_UNITS = {
    "B": 1,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", 1)},
}


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `1h30m`. Raise ValueError if `text` is not a duration."""
    _check("duration", text)
    parts: list[tuple[str, str]] = re.findall(r"([0-9]+)([a-z]+)", text)
    return sum(int(number) * DURATION_UNITS[unit] for number, unit in parts) / 1000


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `50GiB`. Raise ValueError if `text` is not a size."""
    _check("size", text)
    number = text.rstrip("BikKMGTP")
    factor: int = SIZE_UNITS[text[len(number) :].replace("KB", "kB")]
    return int(number) * factor


def _check(kind: str, text: str) -> None:
    about = keys.schema()["definitions"][kind]
    if not re.fullmatch(about["pattern"], text):
        raise ValueError(f"{quoted(text)} is not {about['title']}; {about['remedy']}")


def text_of(value: Any, *, flow: bool = True) -> str:
    """Return YAML on one line that loads as `value`, in the notation of the file or of the schema.

    flow: the text can stand within [] and {}; otherwise only as the value of a key on its own line.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {text_of(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if isinstance(value, str):
        plain = r"[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*" if flow else r"[A-Za-z0-9_/.][A-Za-z0-9_/.+{}-]*"
        return value if re.fullmatch(plain, value) and yaml_subset.is_plain_text(value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
