"""Former templates: those of earlier configurations, by which the sweep must still look for caches."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobcache.cache import dirfd
from jobcache.cache.entry_names import parse_entry
from jobcache.cache.path_template import ANY, Template, components, joined, matcher

if TYPE_CHECKING:
    from jobcache.cache.path_template import Parts

_DEADLINE = 5.0  # seconds for one template; scratch may hang
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the sweep enters no user's symlink either


def still_needed(former: "list[str]", cluster: str) -> "list[str]":
    """Return those of the templates `former` by which a cache of `cluster` or its debris may exist."""
    return [text for text in former if may_have_caches(Template(text), cluster)]


def may_have_caches(template: Template, cluster: str) -> bool:
    """Return whether a name that jobcache creates by `template` exists, or cannot be ruled out.

    A closed directory or a filesystem that hangs may hide one, and no search finds all homes. The search runs in a child process
    with a deadline.
    """
    if template.in_home:
        return True
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(int(_exists_below("", components(template.parent), template, {"cluster": cluster})))
        except BaseException:  # noqa: BLE001 - cannot be ruled out
            os._exit(1)
    until = time.monotonic() + _DEADLINE
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return True


def _exists_below(path: str, levels: "list[Parts]", template: Template, known: "dict[str, str]") -> bool:
    """Return whether such a name exists below `path`. Raise OSError if a directory cannot be listed.

    levels: the components between `path` and the template's last one.
    known: the values of placeholders in `path`.
    """
    if not levels:
        matches = matcher(template.name, {name: value for name, value in known.items() if name != "job_id"})
        entries = ((entry, parse_entry(entry.name, matches)) for entry in _entries(path))
        return any(
            parsed and template.has_job(path, parsed[1]) and entry.is_dir(follow_symlinks=False) for entry, parsed in entries
        )
    name = joined(levels[0], known)
    if ANY not in name:
        return _exists_below(f"{path}/{name}", levels[1:], template, known)
    matches = matcher(levels[0], known)
    found = ((entry.name, matches(entry.name)) for entry in _entries(path))
    return any(
        _exists_below(f"{path}/{name}", levels[1:], template, {**known, **values}) for name, values in found if values is not None
    )


def _entries(path: str) -> "Iterator[os.DirEntry[str]]":
    """Yield the entries of a directory, none if it does not exist. Raise OSError if it cannot be listed."""
    try:
        directory = dirfd.open_directory(path or "/")
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise
    try:
        list_fd = os.open(".", dirfd.DIRECTORY, dir_fd=directory)  # `directory` itself may be open for search only
    finally:
        os.close(directory)
    try:
        with os.scandir(list_fd) as entries:
            yield from entries
    finally:
        os.close(list_fd)
