"""Run a probe in a child process that acts as a user, with a deadline: the filesystem that it touches can hang."""

import pwd
import time
from typing import Any, Optional

from jobcache.system import as_user
from jobcache.system.stuck_processes import Place, Stuck


def run(work: "as_user.Work", user: Optional[pwd.struct_passwd], patience: float, place: Place) -> dict[str, Any]:
    """Return the facts that the work reported within `patience` seconds. user None: stay root. place: where it works.

    The work reports its current operation as `step`. Returned in its place, where it applies:
    `hung`, the operation that did not end in time; `error`, why the child died.
    """
    uid, gid, name = (user.pw_uid, user.pw_gid, user.pw_name) if user else (None, None, None)
    try:
        place.check()
    except Stuck as stuck:
        return {"error": str(stuck)}
    child = as_user.start(work, uid=uid, gid=gid, user=name, place=place)
    found: dict[str, Any] = {"step": "starting"}
    for fact in child.facts(time.monotonic() + patience):
        found.update(fact)
    step = found.pop("step")
    if child.status == "late":
        found["hung"] = step
    elif child.status != "done" and "error" not in found:
        found["error"] = child.error or f"the process was killed while {step}"
    return found
