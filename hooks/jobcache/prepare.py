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

from jobcache.cache import event_line, fields, history, protocol, reasons  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcache.cache import seeding

# The exit status. For any other, such as Python's own 1, the shell makes the cache. SIGALRM ends this process only after the
# cache exists (history.append_at_end); the shell knows that.
EXPORT = 5  # the cache exists. Not 0: an empty file, as after a crash, ends with 0 as well
DECLINE = 3  # there will be no cache: print no exports
UNINHERITED = 8  # the same, and no task of this run needs to try again
_UNRECORDED = ("observe", "other_cluster")  # reasons without a line in the history: scratch is not touched for such a job
OTHER_HOME = 9  # the cache exists, and began with the builds of another home than this task has
SAME_HOME = 10  # the task needs no directory for its home, which is that of the cache


def main(argv: "list[str]") -> int:
    """Make or join the cache, or log why the job gets none; return the exit status. argv: the words of jc_prepare."""
    os.umask(0o077)
    began = time.monotonic()
    words = dict(word.split("=", 1) for word in argv)
    facts = {"job_id": words["job_id"], "run": words["run"], "uid": words["uid"]}
    facts.update((key, event_line.quote(words[key])) for key in ("cluster", "node", "user", "path"))
    facts.update((key, str(value)) for key, value in fields.further_ids(os.environ).items())
    log = event_line.Log(words["syslog"], facts, began)
    skips = _Skips(words, log)
    if words["do"] == "skip":
        skips.report("info", "skipped", words["reason"])
        return EXPORT
    claim = _claim(words)
    seeds: "seeding.Seeds | None" = None
    if words["store"] or words["site"] or words.get("inherit"):
        from jobcache.cache import seeding

        own = {name: value for name, value in os.environ.items() if name != "HF_DATASETS_CACHE"}  # the hook exports that one
        seeds = seeding.Seeds(words, claim, own, began)
    parent_fds: "list[int]" = []
    if _has_history(words):
        claim.on_made = lambda parent_fd: parent_fds.append(os.dup(parent_fd))
    try:
        if words.get("home"):
            from jobcache.cache import account_home  # most sites have no {home}

            account_home.require(words["home"], claim.uid)
        # Wait for a cache that is being reaped, but leave time to log before the hook's deadline.
        outcome = protocol.enter(claim, began + float(words["deadline"]) / 2)
        if outcome == "joined" and seeds:
            if not (claim.first_task or words.get("base") or seeds.has_home_of(claim.path)):
                return OTHER_HOME
            if claim.below and not seeds.seed_directory(claim.path):
                return SAME_HOME
    except reasons.Refused as refusal:
        details = event_line.quote(str(refusal))
        if seeds and seeds.inherited and seeds.inherited.refusal is refusal:
            skips.report("warning", "refused", refusal.reason, error=details, **seeds.facts())
            return UNINHERITED
        skips.report("warning", "refused", refusal.reason, error=details)
        return DECLINE
    except OSError as error:
        skips.report("warning", "failed", reasons.reason_of(error), error=event_line.quote(str(error)))
        return DECLINE
    line = ""
    if outcome != "joined":
        line = log.emit("cache.created", "info", outcome, **(seeds.facts() if seeds else {}))
    if seeds:
        seeds.report(words["syslog"], facts)
    for parent_fd in parent_fds:
        history.append_at_end(parent_fd, line)
    return EXPORT


class _Skips:
    """Reports that the job gets no cache. words: of jc_prepare."""

    def __init__(self, words: "dict[str, str]", log: event_line.Log) -> None:
        self._words = words
        self._log = log

    def report(self, level: str, outcome: str, reason: str, **facts: str) -> None:
        """Send the event `cache.skipped`, and write it into the history once for each job. facts: as JSON text."""
        line = self._log.emit("cache.skipped", level, outcome, reason, **facts)
        words = self._words
        if _has_history(words) and reason not in _UNRECORDED and (words["do"] == "skip" or self._is_first_task()):
            history.append_if_exists(os.path.dirname(words["path"]), int(words["uid"]), words.get("above"), line)

    def _is_first_task(self) -> bool:
        """Return whether this is the batch script's task or, in a job without one, rank 0 of step 0: as jc_report_skip."""
        if self._words["first"] == "yes":
            return True
        ids = (os.environ.get("SLURM_STEP_ID"), os.environ.get("SLURM_PROCID"), os.environ.get("ENVIRONMENT", ""))
        return ids == ("0", "0", "")


def _has_history(words: "dict[str, str]") -> bool:
    """Return whether there is a history beside the cache. A directory that the site makes for each job ends with the job."""
    return bool(words.get("history")) and not words.get("job_directory")


def _claim(words: "dict[str, str]") -> protocol.Claim:
    run, uid = fields.natural(words["run"]), fields.natural(words["uid"])
    assert run is not None and uid is not None
    claim = protocol.Claim(words["path"], words["cluster"], int(words["job_id"]), run, uid, words["node"])
    claim.first_task = words["first"] == "yes"
    claim.job_start = fields.natural(words.get("start", "")) or 0  # hooks that an older version copied lack both
    claim.stepd = fields.natural(words.get("stepd", "")) or 0
    claim.given_before = words["again"] == "yes"
    claim.keep = words["keep"] == "yes"
    claim.record = {"user": event_line.quote(words["user"]), "policy": event_line.quote(words["policy"])}
    claim.above = words.get("above")  # hooks of an earlier version, which `jobcache apply --hooks` has copied, pass none
    if words.get("home"):
        claim.above = words["home"].rpartition("/")[0]  # the home itself is the user's
    claim.scratch = claim.above  # the site, or the system, has created it
    claim.job_directory = words.get("job_directory", "")
    claim.below = words["below"]
    return claim


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
