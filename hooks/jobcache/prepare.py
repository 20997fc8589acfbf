"""The TaskProlog's slow branch: make the cache or join it, once per job and node, as the user.

Run by task-prolog as a file, `python -I -S prepare.py KEY=VALUE…`, with its output closed: what it has to say is its
exit status (below) and an event to syslog. On the hot path: standard library only, and nothing heavy of it.
"""

import os
import sys
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from jobcache import cachedir, devlog  # noqa: E402
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
    try:
        # A cache that is being reaped is waited for, but not so long that the hook's own clock ends us without a word.
        outcome = cachedir.enter(_claim(words), began + float(words["deadline"]) / 2)
    except cachedir.Refused as refusal:
        say(words["syslog"], "warning", "cache.skipped", facts, "refused", refusal.reason, began)
        return DECLINE
    except OSError as error:
        facts["error"] = cachedir.quote(str(error))
        say(words["syslog"], "warning", "cache.skipped", facts, "failed", cachedir.reason_of(error), began)
        return DECLINE
    if outcome != "joined":
        say(words["syslog"], "info", "cache.created", facts, outcome, "", began)
    return EXPORT


def _claim(words: "dict[str, str]") -> cachedir.Claim:
    run, uid = natural(words["run"]), natural(words["uid"])
    assert run is not None and uid is not None
    claim = cachedir.Claim(words["path"], words["cluster"], int(words["job_id"]), run, uid, words["node"])
    claim.first = words["first"] == "yes"
    claim.again = words["again"] == "yes"
    claim.keep = words["keep"] == "yes"
    claim.record = {"user": cachedir.quote(words["user"]), "policy": cachedir.quote(words["policy"])}
    return claim


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
