"""Interrupt this process in the middle of its work: at its n-th call of `os`, or when its clock has advanced far enough.

Every function replaces functions of the real `os` and `time`, so that it does not matter which module calls them. Use them
only in a forked child that ends afterwards.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

CHANGING = ("mkdir", "rename", "link", "write", "utime", "fchmod", "chmod", "symlink", "open", "unlink", "rmdir", "makedirs")
CREATING = ("mkdir", "rename", "write", "open", "link")


def kill_at(step: int) -> None:
    """Kill this process with SIGKILL at its call number `step`, from 0, of a function in CHANGING."""
    calls = Calls()

    def count(_name: str, _arguments: Sequence[Any]) -> None:
        if calls.next() >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each(CHANGING, count)


def fail_from(step: int, number: int) -> None:
    """Raise OSError with errno `number` at call number `step`, from 0, that creates something, and at each one after it."""
    calls = Calls()

    def count(name: str, arguments: Sequence[Any]) -> None:
        creates = name != "open" or (isinstance(arguments[1], int) and arguments[1] & os.O_CREAT)
        if creates and calls.next() >= step:
            raise OSError(number, os.strerror(number))

    before_each(CREATING, count)


def before_each(names: Sequence[str], call: Callable[[str, Sequence[Any]], None]) -> None:
    """Call `call(name, arguments)` before each call of these functions of `os`."""

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any, **keywords: Any) -> Any:
            call(name, arguments)
            return real(*arguments, **keywords)

        return function

    for name in names:
        setattr(os, name, wrapped(name, getattr(os, name)))


def in_next_child(work: Callable[[], None]) -> None:
    """Call `work` in the next process that this one forks."""
    real = os.fork

    def fork() -> int:
        pid = real()
        if pid == 0:
            os.fork = real
            work()
        return pid

    os.fork = fork


def at_exit(work: Callable[[], None]) -> None:
    """Call `work` in this process before os._exit."""
    real = os._exit

    def exit(status: int) -> NoReturn:
        work()
        real(status)

    os._exit = exit


class Calls:
    """A counter."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> int:
        self.count += 1
        return self.count - 1


class Clock:
    """A clock that goes on by one second whenever a program reads it. Use `install` in place of time.monotonic."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now

    def install(self) -> None:
        time.monotonic = self.monotonic
