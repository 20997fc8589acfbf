"""The stores that a new cache begins with: from the TaskProlog's words to links, and the events about them.

On the hot path: standard library only, and nothing heavy of it.
"""

import os
import time

from jobcache.cache import cache_names, dirfd, event_line, linking, protocol, store_names


class Seeds:
    """The builds that the cache of `claim` begins with, out of the stores that the words name."""

    def __init__(self, words: "dict[str, str]", claim: protocol.Claim) -> None:
        self.claim = claim
        self.result: "linking.Seeded | None" = None
        self.began = 0.0
        self.sources = []
        label = words["label"]
        self.refused: "list[tuple[str, str]]" = []
        if label and not store_names.is_label(label):
            self.refused.append(("bad_name", "JOBCACHE_STORE is no label: A-Z a-z 0-9 . _ -, 64 at most, no dot in front"))
            label = ""
        if words["store"]:
            self.sources.append(linking.Source(words["store"], [label, ""] if label else [""], claim.uid))
            if label:
                claim.record["label"] = event_line.quote(label)
        if words["site"]:
            self.sources.append(linking.Source(words["site"], [label, ""] if label else [""], None))
        if self.sources:
            claim.seed = self
        self.budget = min(linking.BUDGET, float(words["deadline"]) / 4)

    def __call__(self, cache_fd: int) -> None:
        self._seed(cache_fd, self.claim.below, f"{cache_names.META}/{cache_names.SEEDS}")
        result = self.result
        if result and result.builds:
            counts = {"builds": result.builds, "files": result.files, "bytes": result.bytes}
            self.claim.record["seeded"] = "{" + ", ".join(f'"{key}": {count}' for key, count in counts.items()) + "}"

    def _seed(self, cache_fd: int, below: str, place: str) -> None:
        self.began = time.monotonic()
        self.result = linking.seed(cache_fd, below, place, self.sources, self.budget)

    def late(self, path: str) -> None:
        """Seed a directory in a cache that is in use: made aside, and put in place where there is none yet."""
        if not self.sources or os.path.lexists(f"{path}/{self.claim.below}"):
            return
        aside = f"{cache_names.META}/{cache_names.SEEDS}-{dirfd.nonce()}"
        try:
            cache_fd = os.open(path, dirfd.DIRECTORY)
            try:
                os.mkdir(aside, 0o700, dir_fd=cache_fd)
                os.mkdir(f"{aside}/whole", 0o700, dir_fd=cache_fd)
                self._seed(cache_fd, f"{aside}/whole", f"{aside}/place")
                os.rename(f"{aside}/whole", self.claim.below, src_dir_fd=cache_fd, dst_dir_fd=cache_fd)
            finally:
                os.close(cache_fd)
        except OSError:
            pass  # another task has made it; what is aside goes with the cache

    def tell(self, address: str, facts: "dict[str, str]") -> None:
        """Say what was linked, and which store could not be used."""
        result = self.result
        if result is None:
            return
        for reason, what in self.refused + result.refused:
            more = {**facts, "error": event_line.quote(what)}
            event_line.send(address, "warning", "store.seeded", more, "refused", reason, self.began)
        if result.builds or result.cut:
            counts = {"builds": str(result.builds), "files": str(result.files), "bytes": str(result.bytes)}
            event_line.send(
                address, "info", "store.seeded", {**facts, **counts}, "seeded", "budget" if result.cut else "", self.began
            )
