"""The TaskProlog's slow branch: make the cache or join it, once per job and node, as the user.

Imported by task-prolog, which hands it KEY=VALUE words and closes its output: its answer is its exit status (below) and an
event to syslog. Hooks that an older `jobcache apply --hooks` copied run it as a file instead.
On the hot path: it imports `cache/` alone.
"""

import os
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobcache.cache import event_line, protocol, reasons, seeding  # noqa: E402
from jobcache.cache.fields import natural  # noqa: E402

EXPORT = 5  # the cache is there. Not 0, with which a file that a crash has emptied ends as well
DECLINE = 3  # it definitely is not: no exports. Any other status: this program is broken, the shell does its work


def main(argv: "list[str]") -> int:
    """Do what `argv`, KEY=VALUE words, says; return the exit status. The words are those of task-prolog's jc_prepare."""
    os.umask(0o077)
    began = time.monotonic()
    words = dict(word.split("=", 1) for word in argv)
    facts = {"job_id": words["job_id"], "run": words["run"], "uid": words["uid"]}
    facts.update((key, event_line.quote(words[key])) for key in ("cluster", "node", "user", "path"))
    if words["do"] == "skip":
        event_line.send(words["syslog"], "info", "cache.skipped", facts, "skipped", words["reason"], began)
        return EXPORT
    claim = _claim(words)
    seeds = seeding.Seeds(words, claim)
    try:
        # A cache that is being reaped is waited for, but not so long that the hook's own clock ends us without a word.
        outcome = protocol.enter(claim, began + float(words["deadline"]) / 2)
    except reasons.Refused as refusal:
        event_line.send(words["syslog"], "warning", "cache.skipped", facts, "refused", refusal.reason, began)
        return DECLINE
    except OSError as error:
        facts["error"] = event_line.quote(str(error))
        event_line.send(words["syslog"], "warning", "cache.skipped", facts, "failed", reasons.reason_of(error), began)
        return DECLINE
    if outcome != "joined":
        event_line.send(words["syslog"], "info", "cache.created", facts, outcome, "", began)
    elif claim.below:
        seeds.late(words["path"])
    seeds.tell(words["syslog"], facts)
    return EXPORT


def _claim(words: "dict[str, str]") -> protocol.Claim:
    run, uid = natural(words["run"]), natural(words["uid"])
    assert run is not None and uid is not None
    claim = protocol.Claim(words["path"], words["cluster"], int(words["job_id"]), run, uid, words["node"])
    claim.first = words["first"] == "yes"
    claim.again = words["again"] == "yes"
    claim.keep = words["keep"] == "yes"
    claim.record = {"user": event_line.quote(words["user"]), "policy": event_line.quote(words["policy"])}
    claim.below = words["below"]
    return claim


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
