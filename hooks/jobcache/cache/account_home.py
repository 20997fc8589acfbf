"""The home of an account of this node, which HOME has to be for a path template that begins with {home}.

The Epilog and the sweep know no task's HOME: they search in the home that the account has.
"""

import os

from jobcache.cache import file_owners, passwd, reasons


def look_up(uid: int) -> "str | None":
    """Return the home of an account without slashes at its end; None without an account, or for no answer in time."""
    found = passwd.look_up(uid)
    return found[1].rstrip("/") if found else None


def require(home: str, uid: int) -> None:
    """Raise Refused unless the account of the user has this home on this node, and the home exists. home: HOME of a task."""
    if file_owners.is_in_container(uid):
        raise reasons.Refused("home_differs", "a container has the accounts of its image: their homes can be others")
    found = look_up(uid)
    if found is None:
        raise reasons.Refused("home_differs", f"HOME is {home}, and this node knows no home of uid {uid}, or gave no answer")
    if found != home.rstrip("/"):
        raise reasons.Refused("home_differs", f"HOME is {home}, and the home of uid {uid} is {found} on this node")
    if not os.path.isdir(home):  # jobcache makes directories below it alone
        raise reasons.Refused("no_access", f"{home}, the home of uid {uid}, does not exist or cannot be entered")
