"""Forked children that report facts through a pipe, one JSON object on each line, each within its deadline."""

import json
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeVar

    from jobcache.system.stuck_processes import Place

    Key = TypeVar("Key")

    Fact = dict[str, Any]

REPORT_MAX = 1 << 20  # bytes that a child may report by default
_PAUSE = 0.001  # seconds between two checks whether a child has ended
_GRACE = 0.1  # seconds in which a killed child has to end
_EPILOGUE = 0.3  # seconds that a child gets after END
END = {"end": True}  # the last fact: what the child does afterwards may be lost, and makes it neither late nor dead


def restore_signals() -> None:
    """Unblock all signals, and give SIGCHLD its default action: with an ignored one, no exit status of a child is known.

    slurmstepd of Slurm 25.05 to 26.05 starts the Epilog with SIGCHLD blocked under PrologFlags=RunInJob.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


class Child:
    """A running child.

    status: "" while it runs; "done"; "late": killed at its deadline; "died": it ended in another way.
    error: the reason for "died", "" if it is unknown.
    ended: it has reported END; then it is done, whatever happens.
    stuck: it is still in the kernel after SIGKILL, and nobody waits for it.
    place: where it works now, and where it is counted if it is stuck.
    """

    def __init__(self, pid: int, pipe: int, place: "Place | None", report_max: int = REPORT_MAX) -> None:
        self.pid = pid
        self.status = ""
        self.error = ""
        self.stuck = False
        self.ended = False
        self.place = place
        self._pipe = pipe
        self._incomplete: list[bytes] = []  # the beginning of a line
        self._size = 0
        self._report_max = report_max

    def facts(self, until: float) -> "Iterator[Fact]":
        """Yield the facts as they arrive, until the child ends or the deadline `until` (seconds of time.monotonic).

        Facts that arrived before the deadline are yielded even if the deadline has passed when the caller begins to read.
        """
        while _ready([self.fileno()], until):
            facts = self.read(until)
            yield from facts or ()
            if facts is None:
                return
            until = self.limit(until)
        self.give_up()

    def limit(self, until: float) -> float:
        """Return the deadline: `until`, or sooner if only what may be lost is left."""
        return min(until, time.monotonic() + _EPILOGUE) if self.ended else until

    def fileno(self) -> int:
        """Return the descriptor for poll. It is readable when facts or the end have arrived."""
        return self._pipe

    def read(self, until: float) -> "list[Fact] | None":
        """Return the facts that have arrived; at the end of the child, wait for it until `until` and return None."""
        chunk = os.read(self._pipe, 65536)
        if not chunk:  # an incomplete line was cut short by the child's death
            self._end(until)
            return None
        self._size += len(chunk)
        self._incomplete.append(chunk)
        lines: list[bytes] = []
        if b"\n" in chunk:
            *lines, rest = b"".join(self._incomplete).split(b"\n")
            self._incomplete = [rest]
        facts = _parse(lines) if self._size <= self._report_max else None
        if facts is None:
            self.error = "it reported invalid data" if self._size <= self._report_max else "it reported too much data"
            self.kill()
            self._end(until)
            return None
        self.ended = self.ended or END in facts
        if not self.ended:
            self.error = next((fact["died"] for fact in facts if "died" in fact), self.error)
        return [fact for fact in facts if "died" not in fact and fact != END]

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def _end(self, until: float) -> None:
        """Wait for a child that has closed its pipe or was killed. A filesystem can still hold it: then give up."""
        until = max(until, time.monotonic() + _GRACE)
        while not self._is_over():
            if time.monotonic() >= until:
                self.give_up()
                return
            time.sleep(_PAUSE)
        self._close()

    def _is_over(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = "done" if status == 0 or self.ended else "died"
        return pid != 0

    def give_up(self) -> None:
        """Kill a child whose time is over. A child that is stuck in the kernel is left behind, and counted at its place."""
        self.kill()
        until = time.monotonic() + _GRACE
        while not self._is_over() and time.monotonic() < until:
            time.sleep(_PAUSE)
        if not self.status:
            self.stuck = True
            if self.place:
                self.place.occupy(self.pid)
        self.status = "done" if self.ended else "late"
        self._close()

    def _close(self) -> None:
        os.close(self._pipe)
        if self.place:
            self.place.leave()


def each(
    starts: "Iterable[tuple[Key, Callable[[], Child]]]", at_once: int, patience: float
) -> "Iterator[tuple[Key, Child, Fact | None]]":
    """Start and read children, `at_once` of them at a time. Yield (key, child, fact), and (key, child, None) at an end.

    patience: seconds without a fact after which a child is late.
    If the caller closes the iterator, all running children are killed.
    """
    running: dict[int, tuple[Key, Child, float]] = {}
    try:
        yield from _each(iter(starts), running, at_once, patience)
    finally:
        for _, child, _ in running.values():
            child.give_up()


def _each(
    waiting: "Iterator[tuple[Key, Callable[[], Child]]]",
    running: "dict[int, tuple[Key, Child, float]]",
    at_once: int,
    patience: float,
) -> "Iterator[tuple[Key, Child, Fact | None]]":
    while True:
        while len(running) < at_once:
            following = next(waiting, None)
            if following is None:
                break
            key, child = following[0], following[1]()
            running[child.fileno()] = key, child, time.monotonic() + patience
        if not running:
            return
        until = min(deadline for _, _, deadline in running.values())
        ready = _ready(running, until)
        for fd in ready:
            key, child, until = running[fd]
            facts = child.read(until)
            if facts is None:
                del running[fd]
                yield key, child, None
                continue
            running[fd] = key, child, child.limit(time.monotonic() + patience)
            for fact in facts:
                yield key, child, fact
        for fd, (key, child, until) in [] if ready else list(running.items()):
            if time.monotonic() >= until:
                del running[fd]
                child.give_up()
                yield key, child, None


def _ready(fds: "Iterable[int]", until: float) -> "list[int]":
    """Wait until one of the descriptors is readable, or until the deadline; return those that are.

    select() refuses descriptors from 1024 on, and a process can inherit any number.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000)]


def _parse(lines: "list[bytes]") -> "list[Fact] | None":
    """Return the facts on complete lines, None if a line is no JSON object."""
    try:
        facts = [json.loads(line) for line in lines]
    except ValueError:
        return None
    return facts if all(isinstance(fact, dict) for fact in facts) else None
