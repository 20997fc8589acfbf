"""Whether other users can change a file that jobcache obeys."""

import os
import stat


def change_by_others(path: str) -> str:
    """Return why a user other than root or this one can change a file, such as `is writable by other users`; "" if none can.

    A missing file returns "".
    """
    try:
        found = os.stat(path)
    except OSError:
        return ""
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {found.st_uid}"
    return "is writable by other users" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""
