"""The keys of slurm.conf: read from its files, and looked up as Slurm spells them."""

import glob
import os
from collections.abc import Mapping
from typing import Optional

from jobcache.system import files

_NO_LIMIT = (0.0, 65534.0)  # seconds; Slurm prints these where no limit is set
_MOST_BYTES = 1 << 24  # of one file
_MOST_DEEP = 5  # files that include each other


def read_conf(path: str, depth: int = 0) -> dict[str, str]:
    """Return the keys of slurm.conf and of the files that it includes; {} where it cannot be read.

    The last of several values counts; several Epilogs become `Epilog`, `Epilog[1]` and so on.
    """
    keys: dict[str, str] = {}
    try:
        lines = files.read_text(path, _MOST_BYTES).replace("\\\n", " ").splitlines()
    except OSError:
        return keys
    for line in lines:
        text = line.partition("#")[0].strip()
        word, _, rest = text.partition(" ")
        if word.lower() == "include" and depth < _MOST_DEEP:
            for included in sorted(glob.glob(os.path.join(os.path.dirname(path), rest.strip()))):
                keys.update(read_conf(included, depth + 1))
        elif "=" in text:
            key, _, value = text.partition("=")
            if key.strip().lower() == "epilog" and "Epilog" in keys:
                keys[f"Epilog[{sum(name.startswith('Epilog') for name in keys)}]"] = value.strip().strip('"')
            else:
                keys["Epilog" if key.strip().lower() == "epilog" else key.strip()] = value.strip().strip('"')
    return keys


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
