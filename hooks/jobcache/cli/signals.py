"""How a command ends on SIGTERM and SIGHUP."""

import signal
import sys

_TERMINATION = (signal.SIGTERM, signal.SIGHUP)


def exit_on_termination() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, with status 128+n, so that temporary files are removed.

    A signal that the parent process has set to be ignored stays ignored: nohup ignores SIGHUP.
    """
    for number in _TERMINATION:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
