"""One function for many items, in several threads as soon as the items turn out to be slow.

A local disk answers sooner than threads hand over to each other. A metadata server answers many requests at the same time,
and each of them slowly. `threading` would import slow modules.
"""

import _thread
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    Item = TypeVar("Item")

THREADS = 16
_SLOW = 0.001  # seconds for an item, on average, from which on threads help
_STACK = 1 << 18  # bytes; the default of 8 MiB counts against `ulimit -v`


def each(work: "Callable[[Item], None]", items: "Sequence[Item]") -> None:
    """Call work(item) for each item, in order or several at a time. After an exception begin no further item, and raise it."""
    pending = list(reversed(items))
    errors: "list[BaseException]" = []
    running: "list[_thread.LockType]" = []  # one lock for each further thread, released when it ends

    def drain(after_each: "Callable[[], None]") -> None:
        while not errors:
            try:
                item = pending.pop()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                errors.append(error)
            after_each()

    def start_threads_if_slow() -> None:
        done = len(items) - len(pending)
        if running or len(pending) < 2 or time.monotonic() - began < _SLOW * done:
            return
        _thread.stack_size(_STACK)
        for _ in range(min(THREADS - 1, len(pending))):
            lock = _thread.allocate_lock()
            lock.acquire()
            try:
                _thread.start_new_thread(help_out, (lock,))
            except RuntimeError:  # a limit on the user's processes
                break
            running.append(lock)

    def help_out(lock: "_thread.LockType") -> None:
        drain(lambda: None)
        lock.release()

    began = time.monotonic()
    drain(start_threads_if_slow)
    for lock in running:
        lock.acquire()
    if errors:
        raise errors[0]
