"""The real path behind the symlinks of the user who starts a command, as of a ~/.cache that lies on scratch.

The protocol, the sweep and the Epilog follow only symlinks of root: a user's symlink could lead a deletion by root's programs
elsewhere. A command of the user acts with the rights of the user alone. So a template of the user's own is resolved once, before
the protocol begins, and every check applies to the real path. A sweep by the same user resolves the template in the same way.
"""

import os
import stat
from typing import Optional

from jobcache.system import as_user

_MOST = 40  # symlinks in one path, as in the kernel


def resolved(template: str) -> str:
    """Return a template without symlinks of this user in its directories. Root gets the template as it is.

    A directory {uid} is added if the directory that named the user lies in front of a symlink. Symlinks of other users, and what
    is below a directory with another placeholder than {user} and {uid}, are left to the checks of the protocol.
    """
    uid = os.geteuid()
    directory, _, name = template.rpartition("/")
    if uid == 0 or not directory.startswith("/"):
        return template
    values = {"{user}": as_user.user_name(uid), "{uid}": str(uid)}
    pending = directory.split("/")[:0:-1]
    done: "list[str]" = []
    owners: "list[int]" = []
    while pending:
        part = pending.pop()
        if part == "..":
            del done[-1:]
            continue
        path = _filled("/".join(["", *done, part]), values)
        if "{" in path:
            done += [part, *pending[::-1]]
            break
        link = _link(path)
        if link is None:
            done.append(part)
            continue
        owner, target = link
        owners.append(owner)
        if owner not in (0, uid) or len(owners) > _MOST or "{" in target or "}" in target:
            return template
        done = [] if target.startswith("/") else done
        pending += [one for one in target.split("/") if one not in ("", ".")][::-1]
    if uid not in owners:
        return template
    if not any(word in part for part in done for word in (*values, "{job_id}")):
        done.append("{uid}")
    return "/".join(["", *done, name])


def _filled(text: str, values: "dict[str, str]") -> str:
    for word, value in values.items():
        text = text.replace(word, value)
    return text


def _link(path: str) -> "Optional[tuple[int, str]]":
    """Return (owner, target) of a symlink, None for anything else and for what cannot be read."""
    try:
        found = os.lstat(path)
        return (found.st_uid, os.readlink(path)) if stat.S_ISLNK(found.st_mode) else None
    except OSError:
        return None
