"""Seeds: the builds of stores that a new cache starts with, from the TaskProlog's words to links and events."""

import os
import time

from jobcache.cache import cache_names, dirfd, event_line, linking, protocol, store_names


class Seeds:
    """The seeds of the cache of `claim`.

    words: `store` and `site`, the paths of stores, "" for none; `label`; `deadline` of the hook, in seconds. With a store,
    set `claim.seed`.
    """

    def __init__(self, words: "dict[str, str]", claim: protocol.Claim) -> None:
        self.claim = claim
        self.result: "linking.Seeded | None" = None
        self.began = 0.0
        self.budget = min(linking.BUDGET, float(words["deadline"]) / 4)
        self.sources = []
        self.refused: "list[tuple[str, str]]" = []
        label = words["label"]
        if label and not store_names.is_label(label):
            details = "JOBCACHE_STORE is not a label: 64 letters, digits, `.`, `_` or `-` at most, and not a dot first"
            self.refused.append(("bad_name", details))
            label = ""
        labels = [label, ""] if label else [""]
        if words["store"]:
            self.sources.append(linking.Source(words["store"], labels, claim.uid))
            if label:
                claim.record["label"] = event_line.quote(label)
        if words["site"]:
            self.sources.append(linking.Source(words["site"], labels, None))
        if self.sources:
            claim.seed = self.seed_new_cache

    def seed_new_cache(self, cache_fd: int) -> None:
        """Link the builds into a cache that nobody can find yet, and add the counts to its record."""
        result = self._link(cache_fd, self.claim.below, f"{cache_names.META}/{cache_names.SEEDS}")
        if result.builds:
            self.claim.record["seeded"] = event_line.to_json(_counts(result))

    def seed_directory(self, path: str) -> None:
        """Create the directory `claim.below`, with the builds in it, in the cache at `path`, which others use already."""
        if not self.sources or os.path.lexists(f"{path}/{self.claim.below}"):
            return
        aside = f"{cache_names.META}/{cache_names.SEEDS}-{dirfd.nonce()}"
        try:
            cache_fd = os.open(path, dirfd.DIRECTORY)
            try:
                os.mkdir(aside, 0o700, dir_fd=cache_fd)
                os.mkdir(f"{aside}/whole", 0o700, dir_fd=cache_fd)
                self._link(cache_fd, f"{aside}/whole", f"{aside}/place")
                os.rename(f"{aside}/whole", self.claim.below, src_dir_fd=cache_fd, dst_dir_fd=cache_fd)
            finally:
                os.close(cache_fd)
        except OSError:
            pass  # another task was faster; `aside` is deleted with the cache

    def _link(self, cache_fd: int, below: str, place: str) -> linking.Seeded:
        self.began = time.monotonic()
        self.result = linking.seed(cache_fd, below, place, self.sources, self.budget)
        return self.result

    def report(self, address: str, facts: "dict[str, str]") -> None:
        """Log the number of linked builds, and each store that could not be used. address, facts: as of event_line.Log."""
        result = self.result
        if result is None:
            return
        log = event_line.Log(address, facts, self.began)
        for reason, details in self.refused + result.refused:
            log.emit("store.seeded", "warning", "refused", reason, error=event_line.quote(details))
        if result.builds or result.cut:
            log.emit("store.seeded", "info", "seeded", "budget" if result.cut else "", **_counts(result))


def _counts(result: linking.Seeded) -> "dict[str, str]":
    return {"builds": str(result.builds), "files": str(result.files), "bytes": str(result.bytes)}
