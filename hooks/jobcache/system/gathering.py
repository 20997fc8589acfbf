"""Facts of many items, gathered by a few children: an item at which one hangs is lost, and the others are not."""

import errno
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional, TypeVar

import psutil

from jobcache.system import as_user

AT_ONCE = 4  # children; a metadata server is not to notice us
PATIENCE = 30.0  # seconds without a word, and a child is taken to hang
REPORT = 1 << 28  # bytes a child may report
_BATCH = 256  # items that one child looks at
_MOST_IN_A_ROW = 4  # children that hang at the first item they look at: it is the filesystem that hangs
_MOST_STUCK = 16  # processes that one survey may leave behind in the kernel

Item = TypeVar("Item")
Fact = dict[str, Any]


class Hung:
    """Where processes of ours are stuck in the kernel, from one run to the next, so that none joins them.

    directory: keeps a file for each, which counts as long as its process lives; one that cannot be written is none.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def holds(self, place: str) -> bool:
        """Whether a process of ours is still stuck at `place`."""
        try:
            with open(self._file(place), encoding="ascii") as file:
                pid, began = file.read().split()
            return psutil.Process(int(pid)).create_time() == float(began)
        except (OSError, ValueError, psutil.Error):
            return False

    def note(self, place: str, pid: int) -> None:
        """Remember that process `pid` is stuck at `place`."""
        try:
            began = psutil.Process(pid).create_time()
            os.makedirs(self._directory, 0o700, exist_ok=True)
            fd = os.open(self._file(place), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="ascii") as file:
                file.write(f"{pid} {began!r}\n")
        except (OSError, psutil.Error):
            return

    def _file(self, place: str) -> str:
        return f"{self._directory}/hung-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}"


def survey(
    items: Sequence[Item],
    facts: Callable[[Item], Iterable[Fact]],
    lost: Callable[[Sequence[Item], str], None],
    hung: Hung,
    place: Callable[[Item], str],
    begun: Callable[[int], None] = lambda _: None,
) -> Iterator[Fact]:
    """Yield the facts of all items, which children gather, many items each.

    An item at which a child hangs or dies is `lost`, with the words why, and another child takes up those after it. Where
    nothing answers at all, or too many processes would be left stuck, what remains is lost as well. An empty fact is a
    sign of life. place: what of an item can hang, as `hung` remembers it. begun: is told how many items have been begun.
    """
    known = [item for item in items if hung.holds(place(item))]
    if known:
        lost(known, "a process of ours hangs there already")
        items = [item for item in items if item not in known]
    todo = [items[at : at + _BATCH] for at in range(0, len(items), _BATCH)]
    count = in_a_row = stuck = 0

    def starts(batches: list[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Callable[[], as_user.Child]]]:
        for batch in batches:
            if in_a_row >= _MOST_IN_A_ROW or stuck >= _MOST_STUCK:
                lost(batch, "left for another time, since others do not answer")
            else:
                yield batch, starter(_Gathering(batch, facts), None, None)

    while todo:
        batches, todo = todo, []
        reached: dict[int, int] = {}
        for batch, child, fact in as_user.each(starts(batches), AT_ONCE, PATIENCE):
            if fact is not None and "at" in fact:
                reached[child.pid] = fact["at"]
                count += 1
                begun(count)
            elif fact:
                yield fact
            elif fact is not None:
                continue  # a sign of life
            elif child.status == "done":
                in_a_row = 0
            else:
                at = reached.pop(child.pid, 0)
                in_a_row = in_a_row + 1 if at == 0 and child.status == "late" else 0
                if child.stuck:
                    stuck += 1
                    hung.note(place(batch[at]), child.pid)
                lost(batch[at : at + 1], f"{child.status}: {child.error or 'it does not answer'}")
                if batch[at + 1 :]:
                    todo.append(batch[at + 1 :])


class _Gathering:
    """The work of a child that gathers the facts of one item after the other, and says at which it is."""

    def __init__(self, items: Sequence[Item], facts: Callable[[Item], Iterable[Fact]]) -> None:
        self.items = items
        self.facts = facts

    def __call__(self, report: Callable[[Fact], None]) -> None:
        for at, item in enumerate(self.items):
            report({"at": at})
            _pass_on(self.facts(item), report)


def starter(
    work: "as_user.Work", uid: Optional[int], gid: Optional[int], user: Optional[str] = None
) -> Callable[[], as_user.Child]:
    """Return what starts a child that is `uid`, None for who we are, for a survey or for `asuser.each`.

    user: the name by which to find further groups, "" for the account's.
    """
    return lambda: as_user.start(work, uid=uid, gid=gid, user=user, places=[], most=REPORT)


def with_rights_of(uid: int, gid: int, path: str, look: Callable[[], Iterable[Fact]]) -> Iterator[Fact]:
    """Yield what `look` finds below the directory `path` with a user's rights. Raise OSError.

    What is above it may be open to another group of the user's alone, as a project's directory. And a FUSE filesystem that
    only its user may enter keeps out who merely has these rights: there a child becomes the user.
    """
    for all_groups in (False, True):  # which it can take a directory service to tell
        with as_user.Acting(uid, gid, as_user.groups_of(uid, gid) if all_groups else ()):
            if _can_enter(path):
                yield from look()
                return
    child = starter(lambda report: _pass_on(look(), report), uid, gid, "")()
    yield from child.facts(time.monotonic() + PATIENCE / 2)
    if child.status != "done":
        raise OSError(child.error or "it does not answer")


def _can_enter(path: str) -> bool:
    """Whether it is not closed to us: what else is wrong with it, who looks will see."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.EACCES
    return True


def _pass_on(facts: Iterable[Fact], report: Callable[[Fact], None]) -> None:
    for fact in facts:
        report(fact)
