"""Work in a child process until a deadline: a filesystem that hangs costs its caller that time, and nothing else.

The child answers in lines. Lines that it wrote before the deadline arrive, whatever happens to it.
"""

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[[str], None]

_GRACE = 0.05  # seconds in which the child can end by itself after the deadline
_SIGKILL = 9  # importing `signal` would import `enum`
LINE = 500  # characters of a report; the rest is cut


def run(work: "Callable[[Report], None]", until: float) -> "tuple[list[str], bool]":
    """Call work(report) in a child; return the reported lines, and whether the child ended by itself. Raise OSError.

    until: seconds of time.monotonic at which `work` ends by itself, if it can. report: sends one line to this process.
    """
    pid, read, write = fork()
    if pid == 0:
        _child(work, write)
    os.close(write)
    text = _read_until(read, until + _GRACE)
    return [os.fsdecode(line) for line in text.split(b"\n")[:-1]], _end(pid)


def fork() -> "tuple[int, int, int]":
    """Return (pid, read, write): the process id as of os.fork, and a pipe from the child to this process. Raise OSError."""
    read, write = os.pipe()
    try:
        return os.fork(), read, write
    except OSError:
        os.close(read)
        os.close(write)
        raise


def _child(work: "Callable[[Report], None]", pipe: int) -> None:
    def report(line: str) -> None:
        os.write(pipe, os.fsencode(line.replace("\n", " ")[:LINE]) + b"\n")

    try:
        work(report)
    finally:
        os._exit(0)


def _read_until(pipe: int, until: float) -> bytes:
    """Return the child's output to its end, or until the deadline."""
    text = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    try:
        while poll.poll(max(0.0, until - time.monotonic()) * 1000):
            chunk = os.read(pipe, 65536)
            if not chunk:
                break
            text += chunk
    finally:
        os.close(pipe)
    return text


def _end(pid: int) -> bool:
    """End the child; return whether it ended by itself. Leave one behind that is stuck in the kernel."""
    for pause in (0.0, 0.002, 0.01, 0.02):
        time.sleep(pause)
        if _has_ended(pid):
            return True
    os.kill(pid, _SIGKILL)
    for pause in (0.002, 0.02):
        time.sleep(pause)
        if _has_ended(pid):
            break
    return False


def _has_ended(pid: int) -> bool:
    """Return whether the child has ended. If SIGCHLD is ignored, as it can be inherited, the kernel has forgotten the child."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
