"""A user's own history: what became of each of their caches, one event on each line, in a file beside the caches.

The user can forge it, and anything can stand at its name. A line that cannot be written is lost, and nothing else is.
"""

import os
import stat
import time

from jobcache.cache import bounded, cache_names, safe_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 1 << 20  # bytes of one generation; two are kept
PATIENCE = 0.2  # seconds that a hook waits for the line

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def append(parent_fd: int, lines: str) -> bool:
    """Append lines to the history in the directory open at `parent_fd`; return whether that succeeded. Raise nothing.

    In a directory of another user, write nothing. One open and one write, which begins with a newline: a line that another
    host tore, or wrote at the same place, does not reach into this one. Call it as the user, in a process that may hang.
    """
    data = b"\n" + lines.encode("ascii", "backslashreplace") + b"\n"
    try:
        if os.fstat(parent_fd).st_uid != os.geteuid():
            return False
        fd = os.open(cache_names.HISTORY, _FLAGS, 0o600, dir_fd=parent_fd)
        try:
            found = os.fstat(fd)
            if not _is_own(found):
                return False
            if found.st_size + len(data) > LIMIT:
                os.close(fd)
                fd = -1
                if not _rotate(parent_fd, found):
                    return False
                fd = os.open(cache_names.HISTORY, _FLAGS, 0o600, dir_fd=parent_fd)
                if not _is_own(os.fstat(fd)):
                    return False
            return os.write(fd, data) == len(data)
        finally:
            if fd >= 0:
                os.close(fd)
    except OSError:
        return False


def _is_own(found: "os.stat_result") -> bool:
    """Return whether this is a regular file of this user that has no other name."""
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1


def _rotate(parent_fd: int, full: "os.stat_result") -> bool:
    """Rename the full generation over the older one; return whether a new one can begin. Raise OSError.

    Two processes that do this at the same moment can lose a generation.
    """
    try:
        if not _is_own(os.stat(cache_names.HISTORY_OLDER, dir_fd=parent_fd, follow_symlinks=False)):
            return False
    except FileNotFoundError:
        pass
    current = os.stat(cache_names.HISTORY, dir_fd=parent_fd, follow_symlinks=False)
    if os.path.samestat(current, full):  # else another process was faster
        os.rename(cache_names.HISTORY, cache_names.HISTORY_OLDER, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    return True


def append_at_end(parent_fd: int, line: str) -> None:
    """Append a line as the last action of this process: if the file hangs, SIGALRM ends the process after PATIENCE.

    A child process would cost more than all the rest of the line.
    """
    import _signal  # type: ignore[import-not-found]  # `signal` would import `enum`

    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)  # the default action also ends a wait for a file server
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGALRM])
    _signal.setitimer(_signal.ITIMER_REAL, PATIENCE)
    append(parent_fd, line)


def append_in_time(parent_fd: int, line: str) -> None:
    """Append a line in a child that gets PATIENCE: even a file that hangs costs its caller no more."""
    _run_in_time(lambda: append(parent_fd, line))


def append_if_exists(parent: str, uid: int, above: "str | None", line: str) -> None:
    """Append a line as `append_in_time` does, if the directory `parent` exists and no other user could exchange it.

    uid, above: as in safe_path.open_safe.
    """
    _run_in_time(lambda: append(safe_path.open_safe(parent, uid, above), line))


def _run_in_time(write: "Callable[[], object]") -> None:
    def work(_report: object) -> None:
        write()

    try:
        bounded.run(work, time.monotonic() + PATIENCE)
    except OSError:
        pass  # no process can be created
