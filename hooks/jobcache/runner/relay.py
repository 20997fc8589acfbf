"""Run a command so that it behaves as if it were started directly: signals, terminal and exit status.

The command stays in the process group of `jobcache run`. Both are in the terminal's foreground, Ctrl-Z stops both, and Slurm
signals both when it signals the process group: many signals reach the command without help. A signal that a process sends to
`jobcache run` alone has to be passed on. A third process of the group, the witness, shows the difference: a signal that the
witness receives as well was sent to the whole group. docs/decisions/passing-signals.md has the forms that do not suffice.
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
_SI_KERNEL = 0x80  # si_code of a signal from a terminal, which reaches the whole foreground group
_GROUP_DELAY = 0.25  # seconds within which a signal to the group has reached all of its processes
_WITNESS_START = 5.0  # seconds for the witness to start
_NOT_FOUND, _CANNOT_EXECUTE = 127, 126  # exit status of shells

# The witness writes a 0 to its standard output when it is ready, and then the number of each signal it receives, as a byte.
# It ends at the end of its standard input. It is a separate program so that `pkill jobcache` does not reach it.
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
    """The command was not started, because no process could be created."""


def replace(command: "Sequence[str]", env: "dict[str, str]") -> "int":
    """Become the command. If that fails, print the reason and return the exit status of a shell."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; a command does not expect that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), env)
    except OSError as error:
        message = f"jobcache run: cannot run {command[0]}: {error.strerror}\n"
        os.write(2, message.encode("utf-8", "backslashreplace"))
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT_EXECUTE


class DeferredSignals:
    """The signals in PASSED, blocked from `block` on, so that work which has begun is finished or undone.

    before: the signals that were blocked before, None until `block` is called.
    """

    def __init__(self) -> None:
        self.before: "set[int] | None" = None

    @property
    def is_blocking(self) -> bool:
        """Whether `block` has been called."""
        return self.before is not None

    def block(self) -> None:
        """Block the signals."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED)
        self.before = set(blocked) if self.before is None else self.before

    def restore(self) -> None:
        """Undo `block`."""
        if self.before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def take_pending() -> int:
    """Consume one blocked signal of PASSED that has arrived, and return its number; return 0 if none has."""
    info = signal.sigtimedwait(PASSED, 0)
    return info.si_signo if info else 0


def run(
    command: "Sequence[str]",
    env: "dict[str, str]",
    tick: "Callable[[], None]",
    interval: float,
    blocked_before: "Iterable[int] | None" = None,
) -> int:
    """Run the command to its end. Return its exit status as a shell does: 128+n if signal n killed it.

    tick: called every `interval` seconds. blocked_before: `DeferredSignals.before`, if signals are deferred already. When
    this returns, the signals in PASSED are still blocked in this process, so that the cache can be deleted; `take_pending`
    returns them. Raise NoProcess, with all signals as they were.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED | {signal.SIGCHLD})
    before = blocked if blocked_before is None else blocked_before
    on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, as by some parents, no status is available
    witness = None
    try:
        witness = _Witness()
        pid = os.fork()
    except OSError as error:
        if witness:
            witness.dismiss()
        signal.signal(signal.SIGCHLD, on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise NoProcess(str(error)) from None
    if pid == 0:
        signal.signal(signal.SIGCHLD, on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os._exit(replace(command, env))
    try:
        return _exit_status(_attend(pid, witness, tick, interval))
    finally:
        witness.dismiss()


def _attend(pid: int, witness: "_Witness", tick: "Callable[[], None]", interval: float) -> int:
    """Wait for the command and pass its signals on; return its wait status."""
    due = time.monotonic() + interval
    while True:
        info = signal.sigtimedwait(PASSED | {signal.SIGCHLD}, max(0.0, due - time.monotonic()))
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if info is not None and info.si_signo != signal.SIGCHLD:
            in_group = witness.received(info.si_signo)
            if info.si_code != _SI_KERNEL and not in_group:
                os.kill(pid, info.si_signo)
        if time.monotonic() >= due:
            tick()
            due = time.monotonic() + interval


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


class _Witness:
    """The third process of the group. If it cannot be started, every signal that a process sends is passed on."""

    def __init__(self) -> None:
        self._pid = 0
        self._ready = False
        self._signals = b""
        self._pipe, output = os.pipe()
        self._poll = select.poll()  # select() refuses descriptors from 1024 on, and this process inherits any number
        self._poll.register(self._pipe, select.POLLIN)
        standard_input, self._lifeline = os.pipe()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                ["signal-witness", "-I", "-S", "-c", _WITNESS, *(str(int(number)) for number in PASSED)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, standard_input, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
            )
        except OSError:
            pass
        os.close(output)
        os.close(standard_input)

    def received(self, number: int) -> bool:
        """Return whether the witness receives this signal as well, and forget one such signal."""
        until = time.monotonic() + (_GROUP_DELAY if self._ready else _WITNESS_START)
        while self._pid and number not in self._signals:
            if not self._poll.poll(max(0.0, until - time.monotonic()) * 1000):
                return False
            data = os.read(self._pipe, 4096)
            if not data:
                return False  # the witness has ended
            if not self._ready:
                self._ready, until = True, time.monotonic() + _GROUP_DELAY
            self._signals += data.replace(b"\0", b"")
        at = self._signals.find(bytes((number,)))
        self._signals = self._signals[:at] + self._signals[at + 1 :] if at >= 0 else self._signals
        return at >= 0

    def dismiss(self) -> None:
        """End the witness."""
        os.close(self._lifeline)
        os.close(self._pipe)
        if self._pid:
            os.waitpid(self._pid, 0)
