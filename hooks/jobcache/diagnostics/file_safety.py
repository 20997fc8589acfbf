"""Whether other users can change a file that jobcache obeys."""

import os

from jobcache.cache import write_access


def change_by_others(path: str) -> str:
    """Return why a user other than root or this one can change a file, such as `is writable by other users`; "" if none can.

    A missing file returns "".
    """
    try:
        found = os.stat(path)
    except OSError:
        return ""
    weak = write_access.weakness(found, (0, os.geteuid()))
    if weak == write_access.FOREIGN:
        return f"belongs to uid {found.st_uid}"
    return "is writable by other users" if weak else ""
