"""Entry point of the TaskProlog: make the job's cache or join it, as the user.

task-prolog imports this module and passes KEY=VALUE words. The hooks that an older `jobcache apply --hooks` copied run it as
a file. Its output is closed: it answers by its exit status, and logs to the system log.

On the hot path, it and `cache/` import a few light modules of the standard library (tests/unit/test_architecture.py).
"""

import os
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobcache.cache import event_line, protocol, reasons  # noqa: E402
from jobcache.cache.fields import natural  # noqa: E402

# The exit status. For any other, such as Python's own 1, the shell makes the cache.
EXPORT = 5  # the cache exists. Not 0: an empty file, as after a crash, ends with 0 as well
DECLINE = 3  # there will be no cache: print no exports
UNINHERITED = 8  # the same, and no task of this run needs to try again


def main(argv: "list[str]") -> int:
    """Make or join the cache, or log why the job gets none; return the exit status. argv: the words of jc_prepare."""
    os.umask(0o077)
    began = time.monotonic()
    words = dict(word.split("=", 1) for word in argv)
    facts = {"job_id": words["job_id"], "run": words["run"], "uid": words["uid"]}
    facts.update((key, event_line.quote(words[key])) for key in ("cluster", "node", "user", "path"))
    log = event_line.Log(words["syslog"], facts, began)
    if words["do"] == "skip":
        log.emit("cache.skipped", "info", "skipped", words["reason"])
        return EXPORT
    claim = _claim(words)
    seeds = None
    if words["store"] or words["site"] or words.get("inherit"):
        from jobcache.cache import seeding

        own = {name: value for name, value in os.environ.items() if name != "HF_DATASETS_CACHE"}  # the hook exports that one
        seeds = seeding.Seeds(words, claim, own, began)
    try:
        # Wait for a cache that is being reaped, but leave time to log before the hook's deadline.
        outcome = protocol.enter(claim, began + float(words["deadline"]) / 2)
        if outcome == "joined" and seeds and claim.below:
            seeds.seed_directory(claim.path)
    except reasons.Refused as refusal:
        details = event_line.quote(str(refusal))
        if seeds and seeds.inherited and seeds.inherited.refusal is refusal:
            log.emit("cache.skipped", "warning", "refused", refusal.reason, error=details, **seeds.facts())
            return UNINHERITED
        log.emit("cache.skipped", "warning", "refused", refusal.reason, error=details)
        return DECLINE
    except OSError as error:
        log.emit("cache.skipped", "warning", "failed", reasons.reason_of(error), error=event_line.quote(str(error)))
        return DECLINE
    if outcome != "joined":
        log.emit("cache.created", "info", outcome, **(seeds.facts() if seeds else {}))
    if seeds:
        seeds.report(words["syslog"], facts)
    return EXPORT


def _claim(words: "dict[str, str]") -> protocol.Claim:
    run, uid = natural(words["run"]), natural(words["uid"])
    assert run is not None and uid is not None
    claim = protocol.Claim(words["path"], words["cluster"], int(words["job_id"]), run, uid, words["node"])
    claim.first_task = words["first"] == "yes"
    claim.job_start = natural(words.get("start", "")) or 0  # hooks that an older version copied lack both
    claim.stepd = natural(words.get("stepd", "")) or 0
    claim.given_before = words["again"] == "yes"
    claim.keep = words["keep"] == "yes"
    claim.record = {"user": event_line.quote(words["user"]), "policy": event_line.quote(words["policy"])}
    claim.above = words.get("above")  # hooks of an earlier version, which `jobcache apply --hooks` has copied, pass none
    claim.job_directory = words.get("job_directory", "")
    claim.below = words["below"]
    return claim


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
