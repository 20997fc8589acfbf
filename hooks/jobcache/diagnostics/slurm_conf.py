"""The keys of slurm.conf: read from its files, and looked up as Slurm spells them."""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from typing import Optional

from jobcache.system import files

_NO_LIMIT = (0.0, 65534.0)  # seconds; Slurm prints these where no limit is set
_MOST_BYTES = 1 << 24  # of one file
_MOST_DEEP = 5  # files that include each other

Version = tuple[int, int]
_SEVERAL_SCRIPTS: Version = (24, 5)  # the first version that runs the script of each line
_REPEATED = ("Epilog", "Prolog")


def parse_version(text: str) -> Optional[Version]:
    """Given "22.05.8", return (22, 5); None for any other text."""
    found = re.match(r"(\d+)\.(\d+)\b", text)
    return (int(found[1]), int(found[2])) if found else None


def read_conf(path: str, version: Optional[Version] = None) -> dict[str, str]:
    """Return the keys of slurm.conf and of the files that it includes; {} where it cannot be read.

    The last of several values counts. From Slurm 24.05, each Epilog and each Prolog counts: they become `Epilog[0]`, `Epilog[1]`.
    version: of this Slurm; None counts as a new one.
    """
    several = _REPEATED if version is None or version >= _SEVERAL_SCRIPTS else ()
    keys: dict[str, str] = {}
    spelled = {key.lower(): key for key in _REPEATED}
    for key, value in _settings(path):
        name = spelled.setdefault(key.lower(), key)
        keys[f"{name}[{len(values(keys, name))}]" if name in several else name] = value
    return keys


def _settings(path: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield keys and values in the order in which Slurm reads them."""
    try:
        lines = files.read_text(path, _MOST_BYTES).replace("\\\n", " ").splitlines()
    except OSError:
        return
    for line in lines:
        text = line.partition("#")[0].strip()
        word, _, rest = text.partition(" ")
        if word.lower() == "include" and depth < _MOST_DEEP:
            for included in sorted(glob.glob(os.path.join(os.path.dirname(path), rest.strip()))):
                yield from _settings(included, depth + 1)
        elif "=" in text:
            key, _, value = text.partition("=")
            yield key.strip(), value.strip().strip('"')


def is_pattern(text: str) -> bool:
    """Return whether Slurm takes a value of Epilog or Prolog as a pattern of file names."""
    return any(ch in text for ch in "*?[")


def values(conf: Mapping[str, str], key: str) -> list[str]:
    """Return the values of a key. Newer Slurm numbers several values: `Epilog[0]`."""
    found = [value for name, value in conf.items() if name.partition("[")[0].lower() == key.lower()]
    return [value for value in found if value not in ("", "(null)", "none")]


def seconds(conf: Mapping[str, str], *keys: str) -> Optional[float]:
    """Return the value of the first key that sets a limit, such as `60` or `60 sec`; None where no key does."""
    for key in keys:
        for value in values(conf, key):
            word = value.split()[0]
            if word.isdigit() and float(word) not in _NO_LIMIT:
                return float(word)
    return None
