"""Run a probe in a child process that acts as a user, with a deadline: the filesystem that it touches can hang."""

import pwd
import time
from typing import Any, Optional

from jobcache.system import as_user


def run(work: "as_user.Work", user: Optional[pwd.struct_passwd], patience: float) -> dict[str, Any]:
    """Return the facts that the work reported within `patience` seconds. user None: stay root.

    The work reports its current operation as `step`. Returned in its place, where it applies:
    `hung`, the operation that did not end in time; `error`, why the child died.
    """
    uid, gid, name = (user.pw_uid, user.pw_gid, user.pw_name) if user else (None, None, None)
    child = as_user.start(work, uid=uid, gid=gid, user=name, places=[])
    found: dict[str, Any] = {"step": "starting"}
    for fact in child.facts(time.monotonic() + patience):
        found.update(fact)
    step = found.pop("step")
    if child.status == "late":
        found["hung"] = step
    elif child.status != "done" and "error" not in found:
        found["error"] = child.error or f"the process was killed while {step}"
    return found
