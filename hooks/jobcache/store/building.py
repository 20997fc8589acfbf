"""A cache in a section of the store, in which the command of `store build` builds."""

import os
import time

from jobcache.cache import cache_names, dirfd, linking, store_names
from jobcache.store import publishing, removal, sections, usage
from jobcache.store.publication import Destination, Published

_CLEARING = 600.0  # seconds for the deletion of the cache
_NO_DEADLINE = 1e9  # seconds


class BuildCache:
    """Use as `with BuildCache(to, sources) as cache: …`: create the cache, and delete it and what is left in it at the end.

    to: the destination of the builds. sources: the stores whose builds the cache begins with. path: of the cache.
    Raise reasons.Refused, OSError.
    """

    def __init__(self, to: Destination, sources: "list[linking.Source]") -> None:
        self.to = to
        self.sources = sources
        self.name = store_names.STAGING + dirfd.nonce()
        self.path = f"{to.path}/{store_names.VERSION}/{store_names.section(to.label)}/{self.name}"

    def __enter__(self) -> "BuildCache":
        self._section_fd = sections.open_section(self.to.path, self.to.label, self.to.shared)
        os.mkdir(self.name, 0o700, dir_fd=self._section_fd)
        self._fd = self._open()
        os.mkdir(cache_names.META, 0o700, dir_fd=self._fd)
        if self.sources:
            seeds = f"{cache_names.META}/{cache_names.SEEDS}"
            linking.seed(linking.Place(self._fd, "", seeds), self.sources, budget=10 * linking.BUDGET)
        return self

    def _open(self) -> int:
        return os.open(self.name, dirfd.DIRECTORY, dir_fd=self._section_fd)

    def publish(self) -> Published:
        """Publish the whole builds, flushed to disk, and date the stored builds that were used. Raise as publishing.publish."""
        try:
            fd = self._open()
        except FileNotFoundError:
            return Published()  # the command has removed the cache
        os.close(self._fd)
        self._fd = fd  # the command may have removed the directory and created it again
        forever = time.monotonic() + _NO_DEADLINE
        used = usage.mark_used(self._fd, self.to.path, forever)
        result = publishing.publish(self._fd, self.to, forever, sync=True)
        result.used = used
        return result

    def __exit__(self, *exc: object) -> None:
        try:
            removal.drop(self._section_fd, self.name, time.monotonic() + _CLEARING)
        except FileNotFoundError:
            pass
        os.close(self._fd)
        os.close(self._section_fd)
