"""`jobcache run` in `jobcache run`, and background processes, under every interleaving of their system calls.

The actors run `inherited_cache.find` and `PrivateCache`, as support.interleaving describes. The locks are real: a process
that a command starts has a duplicate of the command's descriptor. A mutant leaves out one rule; the checker then finds an
interleaving that loses a live cache.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from jobcache.cache import lease_lock, node_leases, path_template, reasons
from jobcache.runner import inherited_cache, leftovers, private_cache
from jobcache.runner.private_cache import PrivateCache
from jobcache.runner.request import Job, Request
from jobcache.system import as_user
from support.home import acting_as
from support.interleaving import Actor, Violation, World, current_actor, explore, intercept
from support.site_dir import ALICE

FOREVER = 50.0  # seconds: less than the clock advances when nothing else can happen


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close what the actors have left open: a real command's process ends."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for fd in set(os.listdir("/proc/self/fd")) - before:
        with suppress(OSError):
            os.close(int(fd))


class Scenario:
    """A sequence of events. patience: seconds for which a command waits for its processes. job: the job of all commands."""

    def __init__(self, *actors: Actor, patience: float = 0.0, job: Job | None = None, is_all_reaped: bool = False) -> None:
        self.actors = list(actors)
        self.patience = patience
        self.job = job
        self.is_all_reaped = is_all_reaped


class Background:
    """A process that a command leaves behind. lock: its descriptor of the command's lease, None if it has closed that."""

    def __init__(self, command: str, path: str, lease: str, lock: int | None) -> None:
        self.command, self.path, self.lease, self.lock = command, path, lease, lock


class Commands(World):
    """A directory of caches, and the promises about it.

    caches: of the commands that run, by name. live: (path, label of the directory, lease) of each process that works in a
    cache. forked: processes that a command has started, by name: a descriptor of the lock. background: those without a lease.
    remade: what a process that hides has made in place of the cache.
    """

    def __init__(self, scenario: Scenario, **run: Any) -> None:
        super().__init__(scenario.actors, **run)
        self.scenario = scenario
        self.caches: dict[str, PrivateCache] = {}
        self.live: dict[str, tuple[str, str, str]] = {}
        self.forked: dict[str, tuple[str, int]] = {}
        self.background: dict[str, Background] = {}
        self.remade: tuple[str, int] | None = None  # name of the directory, and how many steps `outer` had taken by then

    def works(self, name: str, path: str, lease: str) -> None:
        """A process begins to work in a cache."""
        if not os.path.isdir(path):
            self.fail(f"{name} has a live cache that does not exist")
        self.live[name] = path, self.labels[os.stat(path).st_ino], lease

    def close_lock(self, name: str) -> None:
        """Close the descriptor of the lock that a process has from the command that started it."""
        lock = self.forked.pop(name, ("", -1))[1]
        if lock >= 0:
            os.close(lock)
            self.version += 1

    def run(self) -> None:
        """Run, and close the descriptors that the end of a process would close."""
        before = set(os.listdir("/proc/self/fd"))
        try:
            super().run()
        finally:
            for fd in set(os.listdir("/proc/self/fd")) - before:
                with suppress(OSError):
                    os.close(int(fd))

    def check(self) -> None:
        """No cache in which a process works is moved or deleted, or lacks the lease that covers the process."""
        for name, (path, label, lease) in self.live.items():
            if not os.path.isdir(path):
                self.fail(f"the live cache of {name} is gone")
            if self.labels[os.stat(path).st_ino] != label:
                self.fail(f"another directory is at the path of the live cache of {name}")
            if lease and not os.path.exists(f"{path}/.jobcache/nodes/{lease}"):
                self.fail(f"{name} has no lease in its live cache")

    def check_end(self) -> None:
        """The last command has deleted the cache, or a sweep can: no process is alive, and no lock is held."""
        left = os.listdir(self.top)
        if left and self.scenario.is_all_reaped:
            self.fail(f"left in the end: {left}")
        if left and self.remade and f"open {self.remade[0]}" in self.actors[0].trace[self.remade[1] :]:
            self.fail("the outer command has looked, and left what was made again")
        for name in left:
            fd = os.open(f"{self.top}/{name}", os.O_RDONLY)
            state = lease_lock.state(fd)
            os.close(fd)
            if state not in (lease_lock.GONE, lease_lock.RELEASED):
                self.fail(f"{name} is {state} in the end")


def world_of(actor: Actor) -> Commands:
    assert isinstance(actor.world, Commands)
    return actor.world


@pytest.fixture
def intercepted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """System calls, questions about locks and searches for processes are points. Each actor is a process of its own."""

    def now() -> tuple[str, float]:
        actor = current_actor()
        return "boot", actor.world.tick() if actor else 0.0

    def pid() -> int:
        actor = current_actor()
        return real_pid() if actor is None else 1000 + actor.world.actors.index(actor)

    def started(number: int) -> int | None:
        actor = current_actor()
        if actor is None:
            return None
        world = world_of(actor)
        names = [one.name for one in world.actors]
        is_alive = 0 <= number - 1000 < len(names) and names[number - 1000] in {*world.caches, *world.background}
        return 1 if is_alive else None

    def asked(real: Callable[..., Any], step: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            actor = current_actor()
            if actor is None:
                return real(*args)
            actor.world.point(actor, step)
            answer = real(*args)
            actor.learn(str(answer))
            return answer

        return call

    real_pid = os.getpid
    monkeypatch.setattr(os, "getpid", pid)
    monkeypatch.setattr(os, "getuid", os.geteuid)
    monkeypatch.setattr(as_user, "user_name", lambda _: "u")
    monkeypatch.setattr(node_leases, "now", now)
    monkeypatch.setattr(lease_lock, "started", started)
    monkeypatch.setattr(lease_lock, "is_held", asked(lease_lock.is_held, "asks the lock"))
    monkeypatch.setattr(lease_lock, "state", asked(lease_lock.state, "asks for the state"))
    monkeypatch.setattr(leftovers, "find", asked(find_processes, "looks for processes"))
    monkeypatch.setattr(leftovers, "close_inherited_locks", close_inherited_lock)
    with acting_as(ALICE) if os.geteuid() == 0 else nullcontext():
        intercept(monkeypatch)
        yield


def find_processes(path: str, _cache_fd: int, lease: str | None) -> list[leftovers.Process]:
    """Stand for `leftovers.find`: return the background processes that no other lease than `lease` covers.

    Without a lease, all processes that work there.
    """
    actor = current_actor()
    assert actor
    world = world_of(actor)
    found = []
    if lease is None:
        return [leftovers.Process(1, 1, name) for name, (at, _, _) in world.live.items() if at == path]
    for name, one in world.background.items():
        is_covered = one.lease != lease and (one.lock is not None or one.command in world.caches)
        if one.path == path and not is_covered:
            pid = next(1000 + at for at, other in enumerate(world.actors) if other.name == name)
            found.append(leftovers.Process(pid, 1, name))
    return found


def close_inherited_lock(_cache_fd: int, _lease: str) -> None:
    actor = current_actor()
    assert actor
    world = world_of(actor)
    if actor.name in world.forked:
        actor.world.point(actor, "closes the inherited lock")
        world.close_lock(actor.name)


def clock_of(me: Actor) -> Any:
    """Return a clock on which waiting takes no time, unless nothing else can happen."""
    clock = SimpleNamespace(now=0.0)

    def sleep(_: float) -> None:
        me.expired = False
        me.world.wait(me)
        clock.now += 100 * me.expired

    clock.monotonic, clock.sleep = lambda: clock.now, sleep
    return clock


# ---- acts


def starts(*processes: str, daemons: tuple[str, ...] = ()) -> Callable[[Commands, Actor], None]:
    """A `jobcache run` starts; its command starts these actors, the daemons without the descriptor of the lock."""

    def act(world: Commands, me: Actor) -> None:
        me.version = world.version
        with me.observed():
            cache, path, lease = ENTER(world, me)
        world.works(me.name, path, lease)
        for name in processes:
            world.forked[name] = path, os.dup(cache._lock)
        for name in daemons:
            world.forked[name] = path, -1
        for name in (*processes, *daemons):
            if name.startswith("late"):
                lock = world.forked.pop(name)[1]
                world.works(name, path, lease)
                world.background[name] = Background(me.name, path, lease, None if lock < 0 else lock)

    return act


def enter(world: Commands, me: Actor) -> tuple[PrivateCache, str, str]:
    """Enter the cache of a `jobcache run`, as `runner.run` does; return it, its path and the lease."""
    request = Request(template=path_template.Template(f"{os.path.dirname(world.top)}/{{user}}/hf-{{job_id}}"))
    env = {"JOBCACHE_DIR": world.forked[me.name][0]} if me.name in world.forked else {}
    inherited = inherited_cache.find(env, world.scenario.job)
    for one in (inherited, None) if inherited else (None,):
        cache = PrivateCache(env, request, world.scenario.job, lambda: None, one, clock_of(me))
        world.caches[me.name] = cache
        try:
            cache.enter()
        except (reasons.Refused, OSError):
            if one is None:
                raise
        else:
            return cache, cache._claim.path, cache._claim.node
    raise AssertionError


def ends(world: Commands, me: Actor) -> None:
    """The command ends, and `jobcache run` leaves the cache."""
    world.live.pop(me.name, None)
    if me.name in world.caches:
        with me.observed():
            world.caches[me.name].leave(0)
        del world.caches[me.name]
        world.close_lock(me.name)
        world.version += 1


def is_killed(world: Commands, me: Actor) -> None:
    """`jobcache run` and its command are killed."""
    world.live.pop(me.name)
    os.close(world.caches.pop(me.name)._lock)
    world.version += 1


def stops(world: Commands, me: Actor) -> None:
    """A background process ends."""
    world.point(me, "begins to end")
    world.live.pop(me.name)
    lock = world.background.pop(me.name).lock
    if lock is not None:
        os.close(lock)
    world.version += 1


def remakes(world: Commands, me: Actor) -> None:
    """A process that hides removes the cache of the outer command, which is at its end, and makes a directory in its place."""
    path = world.forked.pop(me.name)[0]
    world.live.pop("outer", None)
    world.point(me, "removes the cache")
    shutil.rmtree(path, ignore_errors=True)
    world.version += 1
    world.point(me, "makes a directory in its place")
    with suppress(FileExistsError):
        os.makedirs(f"{path}/json")
        world.remade = os.path.basename(path), len(world.actors[0].trace)
        world.labels[os.stat(path).st_ino], world.labels[os.stat(f"{path}/json").st_ino] = "remade", "remade/json"
    world.version += 1


ENTER = enter


# ---- scenarios


def inner(*acts: Any) -> Actor:
    return Actor("inner", *(acts or (starts(), ends)), after=["outer:1"])


def late(name: str = "late", after: str = "outer:1") -> Actor:
    return Actor(name, stops, after=[after])


def inner_command() -> Scenario:
    """A command starts another `jobcache run`. Either can end first; the last one deletes the cache."""
    return Scenario(Actor("outer", starts("inner"), ends), inner(), patience=FOREVER, is_all_reaped=True)


def inner_commands_in_a_job() -> Scenario:
    """Two inner commands in a job without hooks, whose cache has the job's name."""
    two = (Actor("inner", starts(), ends, after=["outer:1"]), Actor("other", starts(), ends, after=["outer:1"]))
    job = Job("test", 4242, 0, "n1")
    return Scenario(Actor("outer", starts("inner", "other"), ends), *two, patience=FOREVER, job=job, is_all_reaped=True)


def inner_daemon() -> Scenario:
    """The inner `jobcache run` starts as a daemon, without the lock: it can find the outer one gone."""
    return Scenario(Actor("outer", starts(daemons=("inner",)), ends), inner())


def inner_daemon_in_a_job() -> Scenario:
    """As `inner_daemon`, in a job without hooks."""
    scenario = inner_daemon()
    scenario.job = Job("test", 4242, 0, "n1")
    return scenario


def impatient_outer() -> Scenario:
    """The outer command does not wait until the inner one has its lease."""
    return Scenario(Actor("outer", starts("inner"), ends), inner())


def killed_outer() -> Scenario:
    """kill -9 of the outer command, at any moment of the inner one."""
    return Scenario(Actor("outer", starts("inner"), is_killed), inner())


def background_process() -> Scenario:
    """A process with the lock outlives its command."""
    return Scenario(Actor("outer", starts("late"), ends), late())


def awaited_process() -> Scenario:
    """A process with the lock and one without it end soon after their command, which deletes the cache."""
    outer = Actor("outer", starts("late", daemons=("late2",)), ends)
    return Scenario(outer, late(), late("late2"), patience=FOREVER, is_all_reaped=True)


def background_daemon() -> Scenario:
    """A process without the lock outlives its command."""
    return Scenario(Actor("outer", starts(daemons=("late",)), ends), late())


def background_and_inner() -> Scenario:
    """Both commands leave a process behind, one with the lock and one without."""
    return Scenario(
        Actor("outer", starts("inner", daemons=("late",)), ends),
        inner(starts("late2"), ends),
        late(),
        late("late2", after="inner:1"),
    )


def hidden_process() -> Scenario:
    """At any moment of the end, a process that nobody sees removes the cache and makes it again."""
    return Scenario(Actor("outer", starts(daemons=("remover",)), ends), Actor("remover", remakes, after=["outer:1"]))


# The number of preemptions, and how many states that has to reach: far fewer mean that a system call is not intercepted.
SCENARIOS: dict[Callable[[], Scenario], tuple[int, int]] = {
    inner_command: (2, 3000),
    inner_commands_in_a_job: (1, 1500),
    inner_daemon: (2, 1800),
    inner_daemon_in_a_job: (2, 1500),
    impatient_outer: (2, 1500),
    killed_outer: (3, 200),
    background_process: (3, 400),
    awaited_process: (3, 3000),
    background_daemon: (3, 400),
    background_and_inner: (1, 200),
    hidden_process: (3, 100),
}


@pytest.mark.usefixtures("intercepted")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_interleaving_loses_the_cache_of_a_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scenario: Callable[[], Scenario]
) -> None:
    """In any order, each process that works in a cache keeps it, and the last command or a sweep can delete it.

    No command reports that it cannot delete its cache.
    """
    bound, least = SCENARIOS[scenario]
    monkeypatch.setattr(private_cache, "_LINGERING", scenario().patience)
    runs, states = explore(partial(Commands, scenario()), bound)
    assert "cannot delete" not in capsys.readouterr().err
    print(f"{scenario.__name__}: {runs} runs, {states} states")
    assert states >= least


# ---- mutants: without one of the rules


def enter_without_a_lease(world: Commands, me: Actor) -> tuple[PrivateCache | None, str, str]:
    """The inner command takes no lease, and works in the cache that its variables name."""
    if me.name not in world.forked:
        return enter(world, me)
    path, lock = world.forked[me.name]
    if inherited_cache.find({"JOBCACHE_DIR": path}, world.scenario.job) is None:
        return enter(world, me)
    return None, path, ""


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any], Callable[[], Scenario]]] = {
    "an inner command takes no lease": (sys.modules[__name__], "ENTER", enter_without_a_lease, inner_daemon),
    "an inner command of a job takes no lease": (sys.modules[__name__], "ENTER", enter_without_a_lease, inner_daemon_in_a_job),
    "the lock is not asked": (lease_lock, "is_held", lambda _: False, background_process),
    "the lock is asked by the same open file": (lease_lock, "reopened", os.dup, background_process),
    "processes without the lock are not looked for": (leftovers, "find", lambda *_: [], background_daemon),
}


@pytest.mark.usefixtures("intercepted")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_a_rule_the_cache_of_a_process_is_lost(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    """The checker finds the interleaving that loses it."""
    module, name, replacement, scenario = MUTANTS[mutant]
    monkeypatch.setattr(module, name, replacement)
    if module is lease_lock:
        monkeypatch.setattr(leftovers, "find", lambda *_: [])  # which finds a process with the lock as well
    monkeypatch.setattr(private_cache, "_LINGERING", scenario().patience)
    with pytest.raises(Violation, match="live cache"):
        for bound in (1, 2, 3):
            print(bound, explore(partial(Commands, scenario()), bound))


@pytest.mark.usefixtures("intercepted")
def test_one_attempt_to_delete_is_not_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The checker finds the interleaving in which the cache changes between the last lease and the deletion."""
    monkeypatch.setattr(PrivateCache, "_delete_all", PrivateCache._delete)
    monkeypatch.setattr(private_cache, "_LINGERING", 0.0)
    explore(partial(Commands, hidden_process()), 2)
    assert "cannot delete" in capsys.readouterr().err
