"""Publish from the cache of commands that have ended, in a child that a deadline or a signal ends."""

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

from jobcache.cache import dirfd, job_record
from jobcache.runner import relay
from jobcache.store import publish_cache
from jobcache.system import as_user

_STRIDE = 50  # milliseconds between two checks for a signal
_GRACE = 0.25  # seconds after its deadline in which the child ends by itself

Fact = dict[str, Any]


@dataclass(frozen=True)
class Filling:
    """The work of the child. path, identity: of a cache that nobody uses any more. until: seconds of time.monotonic."""

    path: str
    identity: "tuple[str, int, int, int]"
    rules: publish_cache.Rules
    until: float

    def __call__(self, report: "Callable[[Fact], None]") -> None:
        fd = os.open(".", dirfd.DIRECTORY, dir_fd=dirfd.open_directory(self.path))  # open until the child ends
        if job_record.identity(fd) == self.identity:
            fields = publish_cache.publish_builds(fd, job_record.read_record(fd), self.rules, self.until)
            if fields:
                report(fields)


def run(filling: Filling) -> Optional[Fact]:
    """Publish; return the fields of the event `store.published`, None for no event.

    A signal of relay.PASSED, which are blocked, ends it without an event. Raise OSError if no process can be created.
    """
    child = as_user.start(filling, uid=None, gid=None, user=None, place=None)
    facts: "list[Fact]" = []
    poll = select.poll()
    poll.register(child.fileno(), select.POLLIN)
    until = filling.until + _GRACE
    while not child.status:
        is_stopped = bool(relay.take_pending())
        if is_stopped or time.monotonic() >= until:
            child.give_up()
            if is_stopped:
                return None
        elif poll.poll(_STRIDE):
            facts += child.read(until) or ()
    if facts or child.status == "done":
        return facts[0] if facts else None
    reason = "deadline" if child.status == "late" else "child_died"
    return {"level": "warning", "outcome": "refused", "reason": reason, "error": child.error or "the store does not answer"}
