"""How a command ends on SIGINT, SIGTERM and SIGHUP."""

import signal
import sys
from typing import Optional

_TERMINATION = (signal.SIGTERM, signal.SIGHUP)
_received: Optional[int] = None


def exit_on_termination() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, with status 128+n, so that temporary files are removed.

    SIGINT raises KeyboardInterrupt, as ever. A signal that the parent process has set to be ignored stays ignored: nohup
    ignores SIGHUP. Python drops an exception that arises inside a destructor: a long command also calls exit_if_received.
    """
    for number in (*_TERMINATION, signal.SIGINT):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


def exit_if_received() -> None:
    """Raise again what a signal raised, if one came before."""
    if _received is not None:
        _raise(_received)


def _end(number: int, _: object) -> None:
    global _received
    _received = number
    _raise(number)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
