"""A model checker for code that shares a directory: it runs every interleaving of the real system calls.

Actors are threads that run the code under test on a real directory. Each system call by which they can affect each other is
a point at which any actor may continue. The checker enumerates the choices, starting from a new directory each time, until
it has visited every reachable state. It checks the promises at each point.

The functions of `os` are replaced in one place, `intercept`. They behave as before, except in a thread of an actor, within
its `observed` block.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from jobcache.cache import cache_names, dirfd

POINTS = ("open", "mkdir", "rename", "rmdir", "unlink", "scandir", "stat", "lstat", "write")
_CHANGES = ("mkdir", "rename", "rmdir", "unlink", "write")
_TMPFS = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_thread = threading.local()  # actor: the one that the thread runs


class Violation(AssertionError):
    """A promise is broken. str(): how, and the choices that lead there."""


class Abandoned(BaseException):
    """Ends an actor of a run that is not worth finishing."""


class Actor:
    """A thread that runs `acts` in order. after: acts of other actors, as "name" or "name:count", that must be over before."""

    def __init__(self, name: str, *acts: Callable[[Any, Actor], None], after: Sequence[str] = ()) -> None:
        self.name = name
        self.acts = acts
        self.after = after

    def reset(self, world: World) -> None:
        """Get ready for a new run."""
        self.world = world
        self.go = threading.Lock()
        self.go.acquire()
        self.done = 0  # acts
        self.finished = False
        self.is_observed = False
        self.version = 0  # of the directory, when the actor last began an attempt
        self.asleep = False
        self.expired = False  # nothing can change any more, so its time is up
        self.knowledge = 0  # a hash of all results that it got
        self.trace: list[str] = []
        self.made = 0  # files, directories and nonces
        self.private: set[int] = set()  # descriptors of directories that no other actor can find

    def is_ready(self) -> bool:
        if self.finished or self._is_waiting():
            return False
        return self.done > 0 or all(self.world.is_over(act) for act in self.after)

    def state(self) -> tuple[object, ...]:
        return self.knowledge, self.done, self._is_waiting()

    def _is_waiting(self) -> bool:
        return self.asleep and self.version == self.world.version

    def learn(self, fact: object) -> None:
        self.knowledge = hash((self.knowledge, fact))

    @contextmanager
    def observed(self, on: bool = True) -> Iterator[None]:
        """For the length of the block, stop at each POINT; or, with `on` False, at none."""
        before, self.is_observed = self.is_observed, on
        try:
            yield
        finally:
            self.is_observed = before

    def clock(self) -> Any:
        """Return a clock for `protocol.enter`, on which waiting takes no time."""
        return SimpleNamespace(monotonic=lambda: float(self.expired), sleep=lambda _: self.world.wait(self))

    def run(self) -> None:
        world = self.world
        _thread.actor = self
        self.go.acquire()
        try:
            for act in self.acts:
                if world.failure is None and not world.aborting:
                    act(world, self)
                    self.done += 1
                    world.point(self, f"{self.name} ends its act")
        except Abandoned:
            pass
        except Violation as violation:
            world.failure = violation
        except BaseException as error:
            world.failure = Violation(f"{type(error).__name__}: {error}")
            world.failure.__cause__ = error
        self.finished = True
        world.leave()


class World:
    """One run in a directory of its own, along a schedule: the numbers of the actors that continue.

    A subclass fills the directory at first (`begin`), and checks it (`check`, `check_end`).
    """

    def __init__(self, actors: list[Actor], top: str, schedule: tuple[int, ...], visited: dict[int, int], bound: int) -> None:
        self.actors = actors
        self.top = top
        self.schedule = schedule
        self.visited = visited  # the lowest number of preemptions, by state
        self.bound = bound  # of preemptions
        self.preempted = 0
        self.taken: list[int] = []
        self.alternatives: list[tuple[int, ...]] = []  # schedules to run later
        self.failure: Violation | None = None
        self.aborting = False
        self.version = 0  # of the directory
        self.uptime = 100.0
        self.labels: dict[int, str] = {}  # by inode: names that are equal in all runs
        self.current: Actor | None = None
        self.over = threading.Lock()
        self.over.acquire()

    def begin(self) -> None:
        """Fill the directory."""

    def check(self) -> None:
        """Raise Violation if a promise is broken."""

    def check_end(self) -> None:
        """Raise Violation if a promise is broken after all actors have ended."""

    # ---- for actors

    def fail(self, problem: str) -> None:
        """Raise Violation."""
        steps = {actor.name: iter(["begins", *actor.trace]) for actor in self.actors}
        order = [self.actors[at].name for at in self.taken]
        raise Violation("\n  ".join([problem, *(f"{name}: {next(steps[name])}" for name in order)]))

    def is_over(self, act: str) -> bool:
        name, _, count = act.partition(":")
        return any(actor.name == name and actor.done >= int(count or 1) for actor in self.actors)

    def tick(self) -> float:
        """Return an uptime that is later than all before."""
        self.uptime += 1
        return self.uptime

    def wait(self, me: Actor) -> None:
        """Continue after the directory has changed since the last attempt; or, if nothing can change it, with the time up."""
        me.asleep = True
        self.point(me, f"{me.name} waits")

    def point(self, me: Actor, step: str) -> None:
        """Let any actor continue, before `me` takes a step that others can observe."""
        with me.observed(False):
            if self.aborting:
                raise Abandoned
            me.trace.append(step)
            me.learn(step)
            if len(self.taken) >= len(self.schedule):  # else an earlier run has checked it
                try:
                    self.check()
                except Violation as violation:
                    self.failure = violation
            chosen = None if self.failure else self._choose()
            if chosen is not me:
                self._hand_on(chosen)
                me.go.acquire()
            if self.aborting:
                raise Abandoned
            if me.asleep:
                me.asleep = False
                me.version = self.version

    # ---- scheduling

    def run(self) -> None:
        for actor in self.actors:
            actor.reset(self)
        self.begin()
        threads = [threading.Thread(target=actor.run, daemon=True) for actor in self.actors]
        for thread in threads:
            thread.start()
        self._hand_on(self._choose())
        self.over.acquire()
        self.aborting = True
        for actor in self.actors:
            if not actor.finished:
                actor.go.release()
        for thread in threads:
            thread.join()
        if self.failure is None and all(actor.done == len(actor.acts) for actor in self.actors):
            self.check_end()
        if self.failure:
            raise self.failure

    def leave(self) -> None:
        """Let another actor continue, after one has ended."""
        if not self.aborting:
            self._hand_on(None if self.failure else self._choose())

    def _hand_on(self, actor: Actor | None) -> None:
        self.current = actor
        (self.over if actor is None else actor.go).release()

    def _choose(self) -> Actor | None:
        """Return the actor that continues, or None to end the run: all actors have ended, or the state has been visited."""
        able = [actor for actor in self.actors if actor.is_ready()]
        if not able:
            able = [actor for actor in self.actors if actor.asleep and not actor.finished][:1]
            for actor in able:
                actor.expired = True
        if not able:
            return None
        at = len(self.taken)
        if at < len(self.schedule):
            chosen = self.actors[self.schedule[at]]
        else:
            state = hash((self._picture(), self._number(self.current), tuple(actor.state() for actor in self.actors)))
            if self.visited.get(state, self.bound + 1) <= self.preempted:
                return None
            self.visited[state] = self.preempted
            chosen = self.current if self.current in able else able[0]
            if self.preempted < self.bound or self.current not in able:
                self.alternatives += [(*self.taken, self._number(other)) for other in able if other is not chosen]
        if chosen is not self.current and self.current in able:
            self.preempted += 1
        self.taken.append(self._number(chosen))
        return chosen

    def _number(self, actor: Actor | None) -> int:
        return -1 if actor is None else self.actors.index(actor)

    def _picture(self) -> tuple[object, ...]:
        """Return the content of the directory."""
        found = []
        pending = [self.top]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    found.append((entry.path[len(self.top) :], self.labels.get(entry.inode(), "?"), entry.stat().st_size))
        return tuple(sorted(found))


def explore(make_world: Callable[..., World], bound: int, most: int = 20000) -> tuple[int, int]:
    """Run all interleavings with at most `bound` preemptions; return the numbers of runs and of states. Raise Violation.

    make_world: called with the keyword arguments top, schedule, visited and bound.
    """
    visited: dict[int, int] = {}
    pending: list[tuple[int, ...]] = [()]
    runs = 0
    while pending:
        assert runs < most, f"more than {most} runs"
        top = tempfile.mkdtemp(prefix="jobcache-", dir=_TMPFS)
        os.mkdir(f"{top}/u")
        try:
            world = make_world(top=f"{top}/u", schedule=pending.pop(), visited=visited, bound=bound)
            world.run()
        finally:
            shutil.rmtree(top)
        runs += 1
        pending += world.alternatives
    return runs, len(visited)


# ---- system calls


def current_actor() -> Actor | None:
    """Return the actor of this thread."""
    return getattr(_thread, "actor", None)


def intercept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the functions of `os` that actors can observe, until the test ends."""
    for name in POINTS:
        monkeypatch.setattr(os, name, _intercepted(name, getattr(os, name)))
    close, urandom = os.close, os.urandom

    def close_and_forget(fd: int) -> None:
        close(fd)
        actor = current_actor()
        if actor:
            actor.private.discard(fd)

    def repeatable(size: int) -> bytes:
        actor = current_actor()
        if actor is None:
            return urandom(size)
        actor.made += 1
        return (actor.name.encode() + b"%d" % actor.made).ljust(size, b"_")

    monkeypatch.setattr(os, "close", close_and_forget)
    monkeypatch.setattr(os, "urandom", repeatable)


def _intercepted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        actor = current_actor()
        if actor is None or not actor.is_observed or _is_above(name, args, actor.world.top):
            return real(*args, **kwargs)
        with actor.observed(False):
            return _observe(actor, name, real, args, kwargs)

    return function


def _observe(actor: Actor, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make the system call for an actor, after all others have had a chance to continue."""
    world = actor.world
    private = _is_private(name, args, kwargs, actor.private)
    creates = name == "mkdir" or (name == "open" and bool(args[1] & os.O_CREAT))
    if not private and not _is_merged(name, args):
        world.point(actor, f"{name} {args[0]}{' → ' + args[1] if name == 'rename' else ''}")
    outcome: object = "done"
    try:
        result = real(*args, **kwargs)
    except OSError as error:
        outcome = error.errno
        raise
    else:
        if name == "scandir":
            with result:
                result = Entries(result)
            outcome = tuple(sorted(entry.name for entry in result.entries))
        elif name == "open" and private:
            actor.private.add(result)
        if creates:
            actor.made += 1
            found = os.fstat(result) if name == "open" else os.stat(args[0], dir_fd=kwargs["dir_fd"])
            world.labels[found.st_ino] = f"{actor.name}.{actor.made}"
        if creates or name in _CHANGES:
            world.version += 1
        return result
    finally:
        if not private:
            actor.learn(outcome)


def _is_above(name: str, args: tuple[Any, ...], top: str) -> bool:
    """Return whether the call is about a directory on the way to `top`, which no actor changes."""
    path = args[0]
    if not isinstance(path, str):
        return False
    return f"{top}/".startswith(f"{path}/") or (name == "open" and path in ("/", *top.split("/")))


def _is_merged(name: str, args: tuple[Any, ...]) -> bool:
    """Return whether the call needs no point of its own, but can follow directly after the actor's call before.

    The files and directories in .jobcache come and go in one order; no other code uses the record; and only the actor that
    deletes a directory lists it by descriptor.
    """
    if name == "open":
        return args[0] in (".", cache_names.ID, cache_names.RECORD, cache_names.NODES) or args[1] == dirfd.FILE
    return name == "lstat" or args[0] == cache_names.RECORD or (name == "scandir" and isinstance(args[0], int))


def _is_private(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], private: Collection[int]) -> bool:
    """Return whether the call is about a cache that the actor builds under a name that no other actor knows."""
    if name == "rename":
        return False
    if kwargs.get("dir_fd") in private or (name in ("write", "scandir") and args[0] in private):
        return True
    return isinstance(args[0], str) and args[0].startswith(cache_names.NEW)


class Entries:
    """The result of scandir, with all entries read at once."""

    def __init__(self, entries: Iterator[os.DirEntry[str]]) -> None:
        self.entries = list(entries)
        self._rest = iter(self.entries)

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self._rest

    def __next__(self) -> os.DirEntry[str]:
        return next(self._rest)

    def close(self) -> None:
        pass
