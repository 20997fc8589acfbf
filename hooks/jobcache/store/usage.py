"""The last use of each build in a store: its mtime, set when a job that used the build ends."""

import os
import time

from jobcache.cache import build_info, build_links, reasons, store_names, store_reading
from jobcache.store import builds, sections

_LINK_LEVELS = 5  # <version>/<section>/<build>/files/<file>, below the store


def mark_used(cache_fd: int, path: str, until: float) -> int:
    """Given a cache and the path of a store, date the store's builds that the cache's programs used; return how many.

    Raise OSError.
    """
    used = _Used(cache_fd)
    marked = 0
    for below, key in builds.find(cache_fd, until):
        build_fd = builds.open_build(cache_fd, below, key)
        if build_fd is None:
            continue
        try:
            found = _links(build_fd, f"{path}/{store_names.VERSION}/", until)
        finally:
            os.close(build_fd)
        if not found or time.monotonic() >= until:
            continue
        if used.includes(below, key):
            marked += sum(_touch(path, link) for link in found)
    return marked


class _Used:
    """Which linked builds of a cache its programs have used, by the locks of `datasets`."""

    def __init__(self, cache_fd: int) -> None:
        self._cache_fd = cache_fd
        self._locks: "dict[str, list[str]]" = {}
        self._opened: "dict[str, set[str]]" = {}

    def includes(self, below: str, key: str) -> bool:
        """Return whether a build was used. below, key: as of builds.find. Raise OSError."""
        above, _, name = f"{below}/{key}".strip("/").rpartition("/")
        if above not in self._opened:
            self._opened[above] = self._opened_in(above)
        return name in self._opened[above] or self._has_lock(below, key)

    def _opened_in(self, above: str) -> "set[str]":
        """Return the names of the builds in the directory `above` of the cache that were opened. Raise OSError."""
        above_fd = builds.open_build(self._cache_fd, "", above)
        if above_fd is None:
            return set()
        try:
            with os.scandir(above_fd) as entries:
                names = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
            return build_links.opened(above_fd, names)
        finally:
            os.close(above_fd)

    def _has_lock(self, below: str, key: str) -> bool:
        """Return whether the lock exists that `datasets` names after the whole path of a build, unless the path is too long.

        Raise OSError.
        """
        if below not in self._locks:
            names = os.listdir(f"/proc/self/fd/{self._cache_fd}/{below}")
            self._locks[below] = [name for name in names if name.endswith(".lock")]
        lock = f"_{key}.lock".replace("/", "_")
        return any(name.endswith(lock) for name in self._locks[below])


def _links(build_fd: int, below: str, until: float) -> "list[str]":
    """Return a link of a build into a store, and one into each result set that its results are linked to, up to the deadline.

    below: the beginning of the targets of such links.
    """
    found: "dict[str, str]" = {}
    link = builds.link_of(build_fd)
    if link is not None and link.startswith(below):
        found[os.path.dirname(link)] = link
    with os.scandir(build_fd) as entries:
        for entry in entries:
            if time.monotonic() >= until:
                break
            if link is not None and build_info.is_map(entry.name) and entry.is_symlink():
                target = os.readlink(entry.name, dir_fd=build_fd)
                if target.startswith(below):
                    found.setdefault(os.path.dirname(target), target)
    return list(found.values())


def _touch(path: str, link: str) -> bool:
    """Date the build that `link` leads to, if it is in the store at `path` and owned by this user. Return whether it was.

    The user can forge the link.
    """
    if not link.startswith(f"{path}/{store_names.VERSION}/"):
        return False
    parts = link[len(path) + 1 :].split("/")
    if len(parts) != _LINK_LEVELS or store_names.parse_section(parts[1]) is None or store_names.parse_build(parts[2]) is None:
        return False
    try:
        store_fd, owner = store_reading.open_store(path, os.geteuid())
        try:
            section_fd = store_reading.open_below(store_fd, "/".join(parts[:2]), owner)
        finally:
            os.close(store_fd)
        try:
            fd = store_reading.open_below(section_fd, _current_generation(section_fd, parts[2]), owner)
        finally:
            os.close(section_fd)
        try:
            os.utime(fd)
        finally:
            os.close(fd)
    except (OSError, reasons.Refused):
        return False
    return True


def _current_generation(section_fd: int, name: str) -> str:
    """Return the newest generation of the build `name` if other jobs have extended it meanwhile, else `name`."""
    if not sections.is_retired(section_fd, name):
        return name
    digest = name.partition(".")[0]
    newest = sections.newest_name(digest, sections.generations(section_fd, digest))
    return newest if sections.are_one_build(section_fd, name, newest) else name
