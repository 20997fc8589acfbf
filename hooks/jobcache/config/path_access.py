"""Whether other users could replace a path that root obeys, and whether users can reach one that tasks need."""

import os
import stat
from collections.abc import Iterator

from jobcache.cache import write_access


def insecure(path: str) -> "list[str]":
    """Return a message if users other than root and the caller could replace `path` or a directory above it.

    Directories that do not exist yet are skipped.
    """
    for part in _steps(os.path.realpath(path)):
        try:
            found = os.stat(part)
        except FileNotFoundError:
            break
        weak = write_access.weakness(found, (0, os.geteuid()), sticky=True)  # each step has its owner checked
        if weak == write_access.FOREIGN:
            return [f"{path}: uid {found.st_uid} owns {part}; choose a path on which root owns every directory"]
        if weak:
            return [f"{path}: other users can write {part}; `chmod go-w {part}`, or choose another path"]
    return []


def unreachable(path: str) -> "list[str]":
    """Return a message if ordinary users cannot reach `path`, which their tasks need. Only root's installation is checked."""
    if os.geteuid() != 0:
        return []
    for part in _steps(os.path.realpath(path)):
        if not os.stat(part).st_mode & stat.S_IXOTH:
            return [f"{path}: users cannot enter {part}; `chmod o+x {part}`, or install jobcache elsewhere"]
    return []


def _steps(path: str) -> "Iterator[str]":
    """Yield `/`, each directory above an absolute path, and the path."""
    parts = path.rstrip("/").split("/")
    return ("/".join(parts[: at + 1]) or "/" for at in range(len(parts)))
