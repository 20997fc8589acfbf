"""Run a command as if we were not there: its signals, its terminal, its exit status.

The command stays in our process group: it is the terminal's foreground with us, Ctrl-Z stops both, and what Slurm signals
or kills by process group it signals or kills. So many signals reach it without us. Those that a process sends are handed
on where we alone got them; a third process of the group, the witness, tells: one that got the signal as well shows that
it went to all.
"""

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

PASSED = frozenset((signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
_SI_KERNEL = 0x80  # si_code of a signal that comes from a terminal, and so reaches its whole foreground group
_TOGETHER = 0.25  # seconds within which a signal to several processes has reached all of them
_BEGINNING = 5.0  # seconds that the witness has to begin
_NOT_FOUND, _NOT_RUN = 127, 126  # as shells have it

# Each signal that the witness gets becomes a byte in the pipe 1, after a 0 that says that it has begun; at the end of
# what is on 0, which is ours, it ends.
# A program of its own, so that no `pkill jobcache` hits it along with us.
_WITNESS = """
import _signal, os, sys
for number in map(int, sys.argv[1:]):
    _signal.signal(number, lambda *_: None)
os.set_blocking(1, False)
os.write(1, bytes(1))
_signal.set_wakeup_fd(1, warn_on_full_buffer=False)
_signal.pthread_sigmask(_signal.SIG_UNBLOCK, map(int, sys.argv[1:]))
os.read(0, 1)
"""


class NoProcess(Exception):
    """There is no process to be had for the command; nothing has begun."""


def replace(command: "Sequence[str]", env: "dict[str, str]") -> "int":
    """Become the command. Return, having said why, only where that fails: the exit status that a shell would give."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and a command does not expect to be
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), env)
    except OSError as error:
        os.write(2, f"jobcache run: {command[0]}: {error.strerror}\n".encode("utf-8", "backslashreplace"))
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUN


def hold_back() -> "set[int]":
    """Block the signals in PASSED, so that what is begun is ended; return what was blocked before, for `run`."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, PASSED))


def let_through(before: "Iterable[int]") -> None:
    """Block what was blocked before, and nothing else."""
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def came() -> int:
    """Return the number of a signal that has come meanwhile, and take it; 0 for none."""
    info = signal.sigtimedwait(PASSED, 0)
    return info.si_signo if info else 0


def run(
    command: "Sequence[str]",
    env: "dict[str, str]",
    tick: "Callable[[], None]",
    every: float,
    held: "Iterable[int] | None" = None,
) -> int:
    """Run the command to its end; return its exit status as a shell tells it, 128+n where signal n killed it.

    tick: called each `every` seconds meanwhile. From now on the signals in PASSED are blocked in this process, so that
    what is to be done at the end is done; ask `told`. held: what `hold_back` returned, where that is so already. Raise
    NoProcess, with all signals as they were.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED | {signal.SIGCHLD})
    before = blocked if held is None else held
    reaping = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it, as some who start us do, is told no status
    witness = None
    try:
        witness = _Witness()
        pid = os.fork()
    except OSError as error:
        if witness:
            witness.dismiss()
        signal.signal(signal.SIGCHLD, reaping)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise NoProcess(str(error)) from None
    if pid == 0:
        signal.signal(signal.SIGCHLD, reaping)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os._exit(replace(command, env))
    try:
        return _exit_status(_attend(pid, witness, tick, every))
    finally:
        witness.dismiss()


def told(*numbers: int) -> bool:
    """Whether one of these signals has come since `run` blocked them and nobody took it."""
    return signal.sigtimedwait(numbers, 0) is not None


def _attend(pid: int, witness: "_Witness", tick: "Callable[[], None]", every: float) -> int:
    """Wait for the command, hand on its signals; return its wait status."""
    due = time.monotonic() + every
    while True:
        came = signal.sigtimedwait(PASSED | {signal.SIGCHLD}, max(0.0, due - time.monotonic()))
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if came is not None and came.si_signo != signal.SIGCHLD:
            seen = witness.saw(came.si_signo)
            if came.si_code != _SI_KERNEL and not seen:
                os.kill(pid, came.si_signo)
        if time.monotonic() >= due:
            tick()
            due = time.monotonic() + every


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


class _Witness:
    """The third process of the group. Where there is none to be had, every signal that a process sends is handed on."""

    def __init__(self) -> None:
        self._pid = 0
        self._begun = False
        self._seen = b""
        self._words, says = os.pipe()
        listens, self._lifeline = os.pipe()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                ["signal-witness", "-I", "-S", "-c", _WITNESS, *(str(int(number)) for number in PASSED)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, listens, 0),
                    (os.POSIX_SPAWN_DUP2, says, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
            )
        except OSError:
            pass
        os.close(says)
        os.close(listens)

    def saw(self, number: int) -> bool:
        """Whether the witness gets this signal as well."""
        until = time.monotonic() + (_TOGETHER if self._begun else _BEGINNING)
        while self._pid and number not in self._seen:
            if not select.select([self._words], [], [], max(0.0, until - time.monotonic()))[0]:
                return False
            words = os.read(self._words, 4096)
            if not words:
                return False  # it is no more
            if not self._begun:
                self._begun, until = True, time.monotonic() + _TOGETHER
            self._seen += words.replace(b"\0", b"")
        at = self._seen.find(bytes((number,)))
        self._seen = self._seen[:at] + self._seen[at + 1 :] if at >= 0 else self._seen
        return at >= 0

    def dismiss(self) -> None:
        """Let it end."""
        os.close(self._lifeline)
        os.close(self._words)
        if self._pid:
            os.waitpid(self._pid, 0)
