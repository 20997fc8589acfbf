"""The TaskProlog's slow branch: make the cache or join it, once per job and node, as the user.

Run by task-prolog as a file, `python -I -S prepare.py KEY=VALUE…`, with its output closed: what it has to say is its
exit status (below) and an event to syslog. On the hot path: standard library only, and nothing heavy of it.
"""

import os
import sys
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobcache import cachedir, devlog, layout, seed  # noqa: E402
from jobcache.job import natural  # noqa: E402

EXPORT = 5  # the cache is there. Not 0, with which a file that a crash has emptied ends as well
DECLINE = 3  # it definitely is not: no exports. Any other status: this program is broken, the shell does its work


def main(argv: "list[str]") -> int:
    """Do what `argv`, KEY=VALUE words, says; return the exit status. The words are those of task-prolog's jc_python."""
    os.umask(0o077)
    began = time.monotonic()
    words = dict(word.split("=", 1) for word in argv)
    facts = {"job_id": words["job_id"], "run": words["run"], "uid": words["uid"]}
    facts.update((key, cachedir.quote(words[key])) for key in ("cluster", "node", "user", "path"))
    if words["do"] == "skip":
        say(words["syslog"], "info", "cache.skipped", facts, "skipped", words["reason"], began)
        return EXPORT
    claim = _claim(words)
    seeds = Seeds(words, claim)
    try:
        # A cache that is being reaped is waited for, but not so long that the hook's own clock ends us without a word.
        outcome = cachedir.enter(claim, began + float(words["deadline"]) / 2)
    except cachedir.Refused as refusal:
        say(words["syslog"], "warning", "cache.skipped", facts, "refused", refusal.reason, began)
        return DECLINE
    except OSError as error:
        facts["error"] = cachedir.quote(str(error))
        say(words["syslog"], "warning", "cache.skipped", facts, "failed", cachedir.reason_of(error), began)
        return DECLINE
    if outcome != "joined":
        say(words["syslog"], "info", "cache.created", facts, outcome, "", began)
    elif claim.below:
        seeds.late(words["path"])
    seeds.tell(words["syslog"], facts)
    return EXPORT


def _claim(words: "dict[str, str]") -> cachedir.Claim:
    run, uid = natural(words["run"]), natural(words["uid"])
    assert run is not None and uid is not None
    claim = cachedir.Claim(words["path"], words["cluster"], int(words["job_id"]), run, uid, words["node"])
    claim.first = words["first"] == "yes"
    claim.again = words["again"] == "yes"
    claim.keep = words["keep"] == "yes"
    claim.record = {"user": cachedir.quote(words["user"]), "policy": cachedir.quote(words["policy"])}
    claim.below = words["below"]
    return claim


class Seeds:
    """The builds that the cache of `claim` begins with, out of the stores that the words name."""

    def __init__(self, words: "dict[str, str]", claim: cachedir.Claim) -> None:
        self.claim = claim
        self.result: "seed.Seeded | None" = None
        self.began = 0.0
        self.sources = []
        label = words["label"]
        self.refused: "list[tuple[str, str]]" = []
        if label and not layout.is_label(label):
            self.refused.append(("bad_name", "JOBCACHE_STORE is no label: A-Z a-z 0-9 . _ -, 64 at most, no dot in front"))
            label = ""
        if words["store"]:
            self.sources.append(seed.Source(words["store"], [label, ""] if label else [""], claim.uid))
            if label:
                claim.record["label"] = cachedir.quote(label)
        if words["site"]:
            self.sources.append(seed.Source(words["site"], [label, ""] if label else [""], None))
        if self.sources:
            claim.seed = self
        self.budget = min(seed.BUDGET, float(words["deadline"]) / 4)

    def __call__(self, cache_fd: int) -> None:
        self._seed(cache_fd, self.claim.below, f"{layout.META}/{layout.SEEDS}")
        result = self.result
        if result and result.builds:
            counts = {"builds": result.builds, "files": result.files, "bytes": result.bytes}
            self.claim.record["seeded"] = "{" + ", ".join(f'"{key}": {count}' for key, count in counts.items()) + "}"

    def _seed(self, cache_fd: int, below: str, place: str) -> None:
        self.began = time.monotonic()
        self.result = seed.seed(cache_fd, below, place, self.sources, self.budget)

    def late(self, path: str) -> None:
        """Seed a directory in a cache that is in use: made aside, and put in place where there is none yet."""
        if not self.sources or os.path.lexists(f"{path}/{self.claim.below}"):
            return
        aside = f"{layout.META}/{layout.SEEDS}-{cachedir.nonce()}"
        try:
            cache_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
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
            more = {**facts, "error": cachedir.quote(what)}
            say(address, "warning", "store.seeded", more, "refused", reason, self.began)
        if result.builds or result.cut:
            counts = {"builds": str(result.builds), "files": str(result.files), "bytes": str(result.bytes)}
            say(address, "info", "store.seeded", {**facts, **counts}, "seeded", "budget" if result.cut else "", self.began)


def say(address: str, level: str, event: str, facts: "dict[str, str]", outcome: str, reason: str, began: float) -> None:
    """Send one event to the system's log. The fields are those of schema/event.json; `facts` are JSON texts."""
    if not address:
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    fields = {"ts": cachedir.quote(stamp), "event": cachedir.quote(event), "level": cachedir.quote(level), **facts}
    fields["outcome"] = cachedir.quote(outcome)
    if reason:
        fields["reason"] = cachedir.quote(reason)
    fields["duration_ms"] = str(round((time.monotonic() - began) * 1000))
    devlog.send(address, level, "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
