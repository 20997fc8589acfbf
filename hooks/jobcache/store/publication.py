"""One publication: the cache it publishes, the destination in a store, the deadline and the result."""

from jobcache.store import sections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Destination:
    """The section of a store into which builds are published.

    path: of the store. label: of the section, "" for the default one. maps: results of `map` are published, too. replace: a
    build replaces the stored build of the same key. shared: other users may read the store, as they read the site's.
    max_bytes: size of a build up to which results of `map` are added to it. facts: further fields of each manifest.
    """

    def __init__(
        self,
        path: str,
        label: str,
        *,
        maps: bool,
        replace: bool = False,
        shared: bool = False,
        max_bytes: float = float("inf"),
        facts: "dict[str, Any] | None" = None,
    ) -> None:
        self.path = path
        self.label = label
        self.maps = maps
        self.replace = replace
        self.shared = shared
        self.max_bytes = max_bytes
        self.facts = facts or {}


class Published:
    """The result of one publication.

    builds: builds that were added to the store or extended by results of `map`. files, bytes: files that moved from the
    cache into the store, and bytes allocated to them. added: keys of the builds that were added. extended: keys of the
    builds that were extended. already_stored: builds that the store had before. used: stored builds that the cache's
    programs used. late: time or attempts ran out before everything was published. broken: why a build was not published,
    by key.
    """

    def __init__(self) -> None:
        self.builds = 0
        self.files = 0
        self.bytes = 0
        self.added: "list[str]" = []
        self.extended: "list[str]" = []
        self.already_stored = 0
        self.used = 0
        self.late = False
        self.broken: "dict[str, str]" = {}


class Publication:
    """One cache that is published into one section.

    cache_fd: the cache. to: the destination. until: the deadline, in seconds of time.monotonic. sync: flush files to disk,
    so that a crash of the host loses nothing that was published; this takes as long as it takes.
    """

    def __init__(self, cache_fd: int, to: Destination, until: float, sync: bool) -> None:
        self.cache_fd = cache_fd
        self.to = to
        self.until = until
        self.sync = sync
        self.section = sections.Section(to.path, to.label, to.shared)
        self.result = Published()
