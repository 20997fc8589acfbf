"""An account of this node, looked up in a child: a directory service that does not answer costs the caller a second."""

import time

from jobcache.cache import bounded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 1.0  # seconds


def look_up(uid: int) -> "tuple[str, str] | None":
    """Return the name and the home of an account; None if the account does not exist, or for no answer in time."""
    import pwd  # few hooks look up an account

    def work(report: "Callable[[str], None]") -> None:
        try:
            found = pwd.getpwuid(uid)
        except KeyError:
            return
        report(found.pw_name)
        report(found.pw_dir)

    try:
        lines = bounded.run(work, time.monotonic() + PATIENCE)[0]
    except OSError:
        return None
    return (lines[0], lines[1]) if len(lines) == 2 else None
