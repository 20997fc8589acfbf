"""The builds that a new cache starts with, from the TaskProlog's words to links and events.

In this order: builds of the user's store, with the job's label or without any; builds of the user's own cache (inheritance); if
the job has no label, what other such jobs have published; builds of the site's store. The first one of a name stays. Results of
`map` from the user's store are linked together with the builds of the user's own cache to which they belong. A store that cannot
be used costs a job its builds; a user's own cache that cannot be linked costs it the cache.
"""

import os
import time

from jobcache.cache import cache_names, default_cache, dirfd, event_line, inheriting, linking, protocol, reasons, store_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_INHERIT_SHARE = 0.4  # of the hook's deadline
_FIRST_SHARE = 0.75  # of the time for stores, for the first source, if others follow
_END = 0.85  # of the hook's deadline: the rest is for the lease and the log
_SOURCES = f"{cache_names.META}/{cache_names.SOURCES}"
_LISTED = 8  # datasets of one event


class _SameHome(Exception):
    """The directory of a home is not needed."""


class Seeds:
    """The seeds of the cache of `claim`. Set `claim.seed` if there can be any.

    words: `store` and `site`, the paths of stores, "" for none; `label`; `inherit`, the most builds of the user's own cache,
    "" for none; `deadline` of the hook, in seconds; `first`, "yes" in the batch task, and then `node`; `base`, of
    inheriting.Request.
    env: the variables of the job. began: time.monotonic of the hook's start.
    """

    def __init__(self, words: "dict[str, str]", claim: protocol.Claim, env: "Mapping[str, str]", began: float) -> None:
        self.claim = claim
        self.result: "linking.Seeded | None" = None
        self.inherited: "inheriting.Inherited | None" = None
        self.began = self.inherit_began = began
        self.deadline = float(words["deadline"])
        self.hook_began = began
        self.most = int(words.get("inherit") or 0)  # hooks that an older version copied pass none
        self.store, self.site = words["store"], words["site"]
        self.refused: "list[tuple[str, str]]" = []
        batch = (words["node"], claim.job_id, claim.uid) if words.get("first") == "yes" else None
        self.request = inheriting.Request(env, self.most, batch, words.get("base", ""))
        label = words["label"]
        if label and not store_names.is_label(label):
            details = "JOBCACHE_STORE is not a label: 64 letters, digits, `.`, `_` or `-` at most, and not a dot first"
            self.refused.append(("bad_name", details))
            label = ""
        self.label = label
        if self.store and label:
            claim.record["label"] = event_line.quote(label)
        if self.store or self.site or self.most:
            claim.seed = self.seed_new_cache

    def seed_new_cache(self, cache_fd: int) -> None:
        """Link the builds into a cache that nobody can find yet, and add the counts to its record.

        Raise Refused if the builds of the user's own cache cannot all be linked.
        """
        self._link(cache_fd, self.claim.below, f"{cache_names.META}/{cache_names.SEEDS}")
        if self.inherited:
            os.mkdir(_SOURCES, 0o700, dir_fd=cache_fd)
            self._record_home(cache_fd)
        if self.result and (self.result.builds or self.result.cut):
            self.claim.record["seeded"] = event_line.to_json(_counts(self.result))
        if self.inherited and self.inherited.source:
            self.claim.record.update(self.facts())

    def seed_directory(self, path: str) -> bool:
        """Create the directory `claim.below`, with the builds in it, in the cache at `path`, which others use already.

        Return False if it is not needed, because the task's home is that of the cache. Raise Refused as `seed_new_cache` does.
        """
        top, _, rest = self.claim.below.partition("/")
        if not self.claim.seed or os.path.lexists(f"{path}/{top}"):
            return True
        if self.request.base:
            self.request.homes = self._homes(path)
        aside = f"{cache_names.META}/{cache_names.SEEDS}-{dirfd.nonce()}"
        try:
            cache_fd = os.open(path, dirfd.DIRECTORY)
            try:
                os.mkdir(aside, 0o700, dir_fd=cache_fd)
                whole = f"{aside}/whole"
                dirfd.make_directories(cache_fd, f"{whole}/{rest}" if rest else whole)
                self._link(cache_fd, f"{whole}/{rest}" if rest else whole, f"{aside}/place")
                os.rename(whole, top, src_dir_fd=cache_fd, dst_dir_fd=cache_fd)
            except _SameHome:
                self._record_home(cache_fd)
                return False
            finally:
                os.close(cache_fd)
        except OSError as error:
            # If another task was faster, `aside` is deleted with the cache.
            if self.most and not os.path.lexists(f"{path}/{top}"):
                raise reasons.Refused("inherit_failed", str(error)) from None
        return True

    def has_home_of(self, path: str) -> bool:
        """Return whether the cache at `path` began with the builds of this task's home, or without the builds of any home."""
        sources = f"{path}/{_SOURCES}"
        name = default_cache.home_name(self.request.env)
        return not self.most or os.path.lexists(f"{sources}/{name}") or not os.path.lexists(sources)

    def _homes(self, path: str) -> "frozenset[str]":
        """Return the datasets caches of the homes of the cache at `path`. Raise nothing."""
        sources = f"{path}/{_SOURCES}"
        try:
            return frozenset(os.readlink(f"{sources}/{name}") for name in os.listdir(sources))
        except OSError:
            return frozenset()

    def _record_home(self, cache_fd: int) -> None:
        """Record the home of the cache, which the shell finds by its name alone. One home can have several names."""
        if self.inherited:
            name, target = self.inherited.home
            try:
                os.symlink(target, f"{_SOURCES}/{name}", dir_fd=cache_fd)
            except FileExistsError:
                pass

    def _link(self, cache_fd: int, below: str, aside: str) -> None:
        place = linking.Place(cache_fd, below, aside)
        until = time.monotonic() + min(linking.BUDGET, self.deadline / 4)
        self.began = time.monotonic()
        labels = [self.label, ""] if self.label else [""]
        sources: "list[linking.Source]" = []
        left_out: "frozenset[str]" = frozenset()
        closed: "frozenset[str]" = frozenset()
        if self.store:
            # Jobs with a label do not begin with builds that jobs without a label have published.
            offering = [linking.Source(self.store, [self.label or store_names.UNLABELLED], self.claim.uid)]
            user = [linking.Source(self.store, labels, self.claim.uid)]
            share = _FIRST_SHARE if self.site or not self.label else 1
            self.result = linking.seed(place, user, (until - time.monotonic()) * share, offering)
        offers = self.result.offers if self.result else None
        if self.most:
            self.inherit_began = time.monotonic()
            left = self.hook_began + _END * self.deadline - self.inherit_began
            budget = min(left, _INHERIT_SHARE * self.deadline)
            self.inherited = inheriting.inherit(self.request, cache_fd, below, budget, offers)
            self.inherited.milliseconds = round((time.monotonic() - self.inherit_began) * 1000)
            if self.inherited.refusal:
                raise self.inherited.refusal
            if self.inherited.same_home:
                raise _SameHome
            left_out = frozenset(name for name, _, _ in self.inherited.left_out)
            closed = self.inherited.closed
            until += time.monotonic() - self.inherit_began
        if self.store and not self.label:
            sources.append(linking.Source(self.store, [store_names.UNLABELLED], self.claim.uid, left_out))
        if self.site:
            sources.append(linking.Source(self.site, labels, None, closed))
        if sources:
            until = min(until, self.hook_began + _END * self.deadline)
            found = linking.seed(place, sources, until - time.monotonic(), offers=offers)
            self.result = linking.added(self.result, found) if self.result else found

    def facts(self) -> "dict[str, str]":
        """Return the field `inherited` of an event and of the record: JSON text by key; {} if nothing was to be inherited."""
        found = self.inherited
        if found is None:
            return {}
        numbers = {"builds": found.builds, "files": found.files, "bytes": found.bytes, "duration_ms": found.milliseconds}
        if found.results:
            numbers["results"] = found.results
        fields = {key: str(value) for key, value in numbers.items()}
        if found.source:
            fields.update(source=event_line.quote(found.source), found=str(found.candidates))
        if found.left_out:
            left_out = [
                event_line.to_json(
                    {"dataset": event_line.quote(name), "reason": event_line.quote(reason), "error": event_line.quote(why)}
                )
                for name, reason, why in found.left_out[:_LISTED]
            ]
            fields.update(left_out_datasets=str(len(found.left_out)), left_out="[" + ", ".join(left_out) + "]")
        return {"inherited": event_line.to_json(fields)}

    def report(self, address: str, facts: "dict[str, str]") -> None:
        """Log the number of builds from stores, and each store that could not be used. address, facts: as of event_line.Log."""
        result = self.result
        if result is None:
            return
        log = event_line.Log(address, facts, self.began)
        for reason, details in dict.fromkeys(self.refused + result.refused):
            log.emit("store.seeded", "warning", "refused", reason, error=event_line.quote(details))
        if result.builds or result.cut:
            log.emit("store.seeded", "info", "seeded", "budget" if result.cut else "", **_counts(result))


def _counts(result: linking.Seeded) -> "dict[str, str]":
    counts = {"builds": result.builds, "files": result.files, "bytes": result.bytes, "unlinked": result.unlinked}
    return {name: str(count) for name, count in counts.items() if count or name != "unlinked"}
