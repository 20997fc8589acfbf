"""The protocol of the nodes of a job, as a model checker sees it: every interleaving of the real code's real operations.

Actors (the tasks and the Epilog of a node) are threads that run cachedir.enter and epilog.Work on a real directory. Each
operation by which they can see each other is a point at which any of them may go on; which one does is enumerated, from
a fresh directory each time, until every reachable state has been seen. What must hold is checked at each point.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from jobcache.cache import cache_names, dirfd, job_record, node_leases, path_template, protocol, reasons
from jobcache.system import epilog_work, event_fields, mounts, reaper
from jobcache.system.epilog_job import Job
from support.home import acting_as
from support.site_dir import ALICE

JOB = 4242
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
POINTS = ("open", "mkdir", "rename", "rmdir", "unlink", "scandir", "stat", "lstat", "write")


class Violation(AssertionError):
    """A promise was broken; the words tell the way there."""


class Abandoned(BaseException):
    """Unwinds an actor whose run is not worth finishing."""


# ------------------------------------------------------------------------------------------------------ the machinery


class Actor:
    """A thread that runs `acts` one after the other. after: acts of others that have to be over before it begins."""

    def __init__(self, name: str, *acts: Callable[[World, Actor], None], after: Sequence[str] = ()) -> None:
        self.name = name
        self.acts = acts
        self.after = after

    def reset(self, world: World) -> None:
        self.world = world
        self.go = threading.Lock()
        self.go.acquire()
        self.done = 0  # acts
        self.finished = False
        self.looked = 0  # the version of the world at which it last began to look
        self.asleep = False
        self.expired = False
        self.state = 0  # a digest of all that it has seen
        self.told: list[str] = []
        self.made = 0
        self.private: set[int] = set()  # descriptors below what nobody else can know of yet

    def ready(self) -> bool:
        if self.finished or (self.asleep and self.looked == self.world.version):
            return False
        return self.done > 0 or all(self.world.is_over(act) for act in self.after)

    def digest(self) -> tuple[object, ...]:
        return self.state, self.done, self.asleep and self.looked == self.world.version

    def run(self) -> None:
        world = self.world
        world.actor.now = self
        self.go.acquire()
        try:
            for act in self.acts:
                if world.failure is None and not world.aborting:
                    act(world, self)
                    self.done += 1
                    world.point(f"{self.name} ends its act")
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
    """One run of a scenario in a directory of its own, along a schedule: the numbers of the actors that go on."""

    def __init__(self, scenario: Scenario, top: str, schedule: tuple[int, ...], seen: dict[int, int], bound: int) -> None:
        self.scenario = scenario
        self.actors = scenario.actors
        self.top = top
        self.schedule = schedule
        self.seen = seen
        self.bound = bound
        self.preempted = 0
        self.taken: list[int] = []
        self.todo: list[tuple[int, ...]] = []
        self.failure: Violation | None = None
        self.aborting = False
        self.version = 0
        self.clock = 100.0
        self.live: dict[tuple[str, int], str] = {}  # (node, run) → the directory that its task was given
        self.labels: dict[int, str] = {}  # inode → a name that is the same in all runs
        self.retired: list[str] = []
        self.outcomes: dict[str, str] = {}
        self.actor = threading.local()
        self.current: Actor | None = None
        self.over = threading.Lock()
        self.over.acquire()

    # ---- running

    def run(self) -> None:
        for actor in self.actors:
            actor.reset(self)
        self.scenario.begin(self)
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

    def point(self, what: str) -> None:
        """The current actor is about to do something that others can see: who goes on?"""
        me = self.actor.now
        if self.aborting:
            raise Abandoned
        me.told.append(what)
        me.state = hash((me.state, what))
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
            me.looked = self.version

    def leave(self) -> None:
        if not self.aborting:
            self._hand_on(None if self.failure else self._choose())

    def sleep(self) -> None:
        """The current actor waits for something to change since it looked; where nothing can any more, its time is up."""
        me = self.actor.now
        me.asleep = True
        self.point(f"{me.name} waits")

    def _hand_on(self, actor: Actor | None) -> None:
        self.current = actor
        (self.over if actor is None else actor.go).release()

    def _choose(self) -> Actor | None:
        able = [actor for actor in self.actors if actor.ready()]
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
            state = hash((self._picture(), self._number(self.current), tuple(a.digest() for a in self.actors)))
            if self.seen.get(state, self.bound + 1) <= self.preempted:
                return None
            self.seen[state] = self.preempted
            chosen = self.current if self.current in able else able[0]
            if self.preempted < self.bound or self.current not in able:
                self.todo += [(*self.taken, self._number(other)) for other in able if other is not chosen]
        if chosen is not self.current and self.current in able:
            self.preempted += 1
        self.taken.append(self._number(chosen))
        return chosen

    def _number(self, actor: Actor | None) -> int:
        return -1 if actor is None else self.actors.index(actor)

    def _picture(self) -> tuple[object, ...]:
        """What the directory holds."""
        found = []
        pending = [self.top]
        while pending:
            directory = pending.pop()
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    found.append((entry.path[len(self.top) :], self.labels.get(entry.inode(), "?"), entry.stat().st_size))
        return tuple(sorted(found))

    # ---- what must hold

    def cache(self, run: int) -> str:
        return f"{self.top}/hf-{cache_names.format_job(JOB, run)}"

    def check(self) -> None:
        """No live cache is moved, deleted or without the lease of a node that uses it."""
        if len(self.taken) < len(self.schedule):
            return  # an earlier run came along here
        for (node, run), given in self.live.items():
            path = self.cache(run)
            if not os.path.isdir(path):
                self.fail(f"the live cache of {node} is gone")
            if self.labels[os.stat(path).st_ino] != given:
                self.fail(f"another directory stands where {node} has its live cache")
            if not os.path.exists(f"{path}/.jobcache/nodes/{node}"):
                self.fail(f"{node} has no lease in the live cache at its path")

    def check_end(self) -> None:
        """When all have ended, no cache is left, and nothing else that has no name of ours; each was reaped once."""
        left = os.listdir(self.top)
        if any(cache_names.parse_debris(name) is None for name in left) and not self.scenario.keeps:
            self.failure = Violation(self._story(f"left in the end: {left}"))
        elif len(left) > self.scenario.debris:
            self.failure = Violation(self._story(f"debris: {left}"))
        elif len(set(self.retired)) != len(self.retired):
            self.failure = Violation(self._story(f"reaped twice: {self.retired}"))

    def fail(self, what: str) -> None:
        raise Violation(self._story(what))

    def _story(self, what: str) -> str:
        told = {actor.name: iter(["begins", *actor.told]) for actor in self.actors}
        order = [self.actors[at].name for at in self.taken]
        lines = [f"{name}: {next(told[name])}" for name in order]
        return "\n  ".join([what, *lines, str(self.outcomes)])

    # ---- for acts

    def is_over(self, act: str) -> bool:
        name, _, number = act.partition(":")
        return any(actor.name == name and actor.done >= int(number or 1) for actor in self.actors)

    def tick(self) -> float:
        self.clock += 1
        return self.clock

    def entered(self, node: str, run: int, outcome: str) -> None:
        if outcome not in ("made", "joined", "mended"):
            self.fail(f"{node} was given no cache: {outcome}")
        path = self.cache(run)
        if not os.path.isdir(path):
            self.fail(f"{node} was told that it {outcome} a cache, and there is none")
        self.live[node, run] = self.labels[os.stat(path).st_ino]


class Seen:
    """The os module as the code under test sees it."""

    def __init__(self, worlds: list[World]) -> None:
        self._worlds = worlds

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in POINTS:
            return real

        def seen(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, real, args, kwargs)

        setattr(self, name, seen)
        return seen

    def close(self, fd: int) -> None:
        os.close(fd)
        actor = getattr(self._worlds[-1].actor, "now", None)
        if actor:
            actor.private.discard(fd)

    def urandom(self, size: int) -> bytes:
        actor = self._worlds[-1].actor.now
        actor.made += 1
        return (actor.name.encode() + b"%d" % actor.made).ljust(size, b"_")

    def _call(self, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        world = self._worlds[-1]
        actor = getattr(world.actor, "now", None)
        if actor is None:
            return real(*args, **kwargs)
        if self._is_above(name, args, kwargs, world):
            return real(*args, **kwargs)
        private = self._is_private(name, args, kwargs, actor)
        what = f"{name} {args[0]}{' → ' + args[1] if name == 'rename' else ''}"
        if not private and not self._is_joined(name, args):
            world.point(what)
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
            if name in ("mkdir", "open") and not outcome_is_old(name, args):
                actor.made += 1
                inode = os.fstat(result).st_ino if name == "open" else os.stat(args[0], dir_fd=kwargs["dir_fd"]).st_ino
                world.labels[inode] = f"{actor.name}.{actor.made}"
            if name in ("rename", "mkdir", "rmdir", "unlink", "write") or (name == "open" and not outcome_is_old(name, args)):
                world.version += 1
            return result
        finally:
            if not private:
                actor.state = hash((actor.state, outcome))

    def _is_above(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], world: World) -> bool:
        """Whether it is about the way to where the caches lie, which nobody changes."""
        return name == "open" and (args[0] == "/" or args[0] in world.top.split("/"))

    def _is_joined(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether it makes no difference if this happens right after what the actor did before.

        What is opened below .jobcache comes and goes in one order; the record is nobody else's concern; what is deleted
        is looked at only by who deletes it.
        """
        if name == "open":
            return args[0] in (".", cache_names.ID, cache_names.RECORD, cache_names.NODES) or args[1] == dirfd.FILE
        return name == "lstat" or args[0] == cache_names.RECORD or (name == "scandir" and isinstance(args[0], int))

    def _is_private(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], actor: Actor) -> bool:
        """Whether it is about what this actor is building under a name that nobody else can know."""
        if name == "rename":
            return False
        if kwargs.get("dir_fd") in actor.private or (name in ("write", "scandir") and args[0] in actor.private):
            return True
        return isinstance(args[0], str) and args[0].startswith(cache_names.NEW)


def outcome_is_old(name: str, args: tuple[Any, ...]) -> bool:
    return name == "open" and not args[1] & os.O_CREAT


class Entries:
    """A directory's entries, all read at once."""

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


class Checker:
    """Runs scenarios. runs, states: how many it took and saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worlds: list[World] = []
        self.runs = 0
        self.seen: dict[int, int] = {}
        retire = reaper.retire

        def counted(parent_fd: int, name: str, fd: int, uid: int, job_id: int) -> str:
            trash = retire(parent_fd, name, fd, uid, job_id)
            self.worlds[-1].retired.append(self.worlds[-1].labels[os.fstat(fd).st_ino])
            return trash

        eyes = Seen(self.worlds)
        for module in (protocol, node_leases, job_record, dirfd, epilog_work, mounts, reaper):
            monkeypatch.setattr(module, "os", eyes)
            if not hasattr(module, "time"):
                continue
            monkeypatch.setattr(
                module, "time", SimpleNamespace(**{**vars(__import__("time")), "monotonic": self._time, "sleep": self._sleep})
            )
        monkeypatch.setattr(reaper, "retire", counted)
        monkeypatch.setattr(mounts, "mount_id", lambda fd: "")
        monkeypatch.setattr(event_fields, "of_filesystem", lambda fd: {})
        monkeypatch.setattr(node_leases, "now", self._now)

    def _time(self) -> float:
        return 1.0 if self.worlds[-1].actor.now.expired else 0.0

    def _sleep(self, _: float) -> None:
        self.worlds[-1].sleep()

    def _now(self) -> tuple[str, float]:
        world = self.worlds[-1]
        actor = getattr(world.actor, "now", None)
        uptime = world.tick()
        if actor:
            actor.state = hash((actor.state, uptime))
        return "boot", uptime

    def check(self, scenario: Scenario, bound: int = 2, most: int = 20000) -> None:
        """Raise Violation for the first run of the scenario that breaks a promise."""
        self.runs = 0
        self.seen.clear()
        todo: list[tuple[int, ...]] = [()]
        while todo and self.runs < most:
            top = tempfile.mkdtemp(prefix="jobcache-", dir=FAST)
            os.mkdir(f"{top}/u")
            try:
                world = World(scenario, f"{top}/u", todo.pop(), self.seen, bound)
                self.worlds.append(world)
                world.run()
            finally:
                shutil.rmtree(top)
            self.runs += 1
            if world.failure:
                raise world.failure
            todo += world.todo
        assert not todo, f"more than {most} runs"


class Scenario:
    """actors; begin: what is there before. debris: how much may be left in the end. keeps: a cache may be left."""

    def __init__(
        self, *actors: Actor, begin: Callable[[World], None] = lambda world: None, debris: int = 0, keeps: bool = False
    ) -> None:
        self.actors = list(actors)
        self.begin = begin
        self.debris = debris
        self.keeps = keeps


# --------------------------------------------------------------------------------------------------------------- acts


def a_claim(world: World, node: str, run: int = 0) -> protocol.Claim:
    return protocol.Claim(world.cache(run), "test", JOB, run, os.geteuid(), node)


def task(node: str, run: int = 0, *, first: bool = False, again: bool = False) -> Callable[[World, Actor], None]:
    """The first task of a run on its node."""

    def act(world: World, me: Actor) -> None:
        me.looked = world.version
        claim = a_claim(world, node, run)
        claim.first, claim.again = first, again
        try:
            outcome = protocol.enter(claim, until=1.0)
        except reasons.Refused as refusal:
            outcome = refusal.reason
        except OSError as error:
            outcome = f"failed: {error}"
        world.outcomes[f"{node}-r{run}"] = outcome
        world.entered(node, run, outcome)

    return act


def ending(node: str, run: int = 0, *, nodes: int = 2, since: float | None = None) -> Callable[[World, Actor], None]:
    """The Epilog of a run on a node. since: the uptime at which it began, where that was before everything else."""

    def act(world: World, me: Actor) -> None:
        world.live.pop((node, run), None)
        world.point("begins")
        uptime = world.tick() if since is None else since
        me.state = hash((me.state, uptime))
        job = Job(JOB, os.geteuid(), node)
        job.nodes = nodes
        job.user = "u"
        compiled = SimpleNamespace(cluster="test", keep_failed=0, keep_max=0, store_user=None, epilog_budget=1.0)
        template = path_template.Template(f"{os.path.dirname(world.top)}/{{user}}/hf-{{job_id}}")
        epilog_work.Work(job, compiled, [template], uptime)(me_told(world, me))  # type: ignore[arg-type]

    return act


def me_told(world: World, me: Actor) -> Callable[[dict[str, Any]], None]:
    def report(fact: dict[str, Any]) -> None:
        if fact["reason"] not in (None, "lease_live", "unrecorded"):
            world.outcomes[f"{me.name} {fact['event']}"] = fact["reason"]

    return report


def script_remakes(node: str, run: int = 0) -> Callable[[World, Actor], None]:
    """The job's own script removes its cache and makes a directory in its place."""

    def act(world: World, me: Actor) -> None:
        world.live.clear()
        shutil.rmtree(world.cache(run))
        os.mkdir(world.cache(run))
        world.labels[os.stat(world.cache(run)).st_ino] = "remade"
        world.version += 1

    return act


def old_cache(*nodes: str, run: int = 0) -> Callable[[World], None]:
    """A cache that an earlier life has left, with the leases of these nodes."""

    def begin(world: World) -> None:
        path = world.cache(run)
        os.makedirs(f"{path}/.jobcache/nodes")
        with open(f"{path}/.jobcache/id", "w") as file:
            file.write(cache_names.format_id("test", JOB, run, os.geteuid()) + "\n")
        for node in nodes:
            with open(f"{path}/.jobcache/nodes/{node}", "w") as file:
                file.write("boot 1.00\n")
        for at, _, files in os.walk(path):
            for name in [at, *(f"{at}/{file}" for file in files)]:
                world.labels[os.stat(name).st_ino] = f"old{name[len(world.top) :]}"

    return begin


LATE = 50.0  # an uptime after that of old leases and before that of new ones


def batch_and_step() -> Scenario:
    """The batch script runs on n1; a step of its comes to n2 and ends there at any time, also after the script."""
    return Scenario(
        Actor("n1", task("n1", first=True), ending("n1")),
        Actor("n2", task("n2", again=True), ending("n2"), after=["n1"]),
    )


def two_steps() -> Scenario:
    """Two nodes begin at once: nobody is first."""
    return Scenario(Actor("n1", task("n1"), ending("n1")), Actor("n2", task("n2"), ending("n2")))


def repeated_epilog() -> Scenario:
    """n1's Epilog runs twice, the second time at once with the first, while n2 comes and goes."""
    return Scenario(
        Actor("n1", task("n1", first=True), ending("n1")),
        Actor("again", ending("n1"), after=["n1"]),
        Actor("n2", task("n2", again=True), ending("n2"), after=["n1"]),
    )


def late_epilog() -> Scenario:
    """n1 was lost; the job runs again, there and on n2, while the Epilog of the lost run is at work."""
    return Scenario(
        Actor("late", ending("n1", since=LATE)),
        Actor("n1", task("n1", 1, first=True), ending("n1", 1)),
        Actor("n2", task("n2", 1, again=True), ending("n2", 1), after=["n1"]),
        begin=old_cache("n1"),
    )


def earlier_life() -> Scenario:
    """The job's id was another job's, whose cache is there yet, and whose Epilog on n1 is at work."""
    return Scenario(
        Actor("late", ending("n1", since=LATE)),
        Actor("n1", task("n1", first=True), ending("n1")),
        Actor("n2", task("n2", again=True), ending("n2"), after=["n1"]),
        begin=old_cache("n1"),
        debris=1,
    )


def earlier_life_of_two_nodes() -> Scenario:
    """As before, and the other life's second node never comes to an Epilog."""
    return Scenario(
        Actor("late", ending("n1", since=LATE)),
        Actor("n1", task("n1", first=True), ending("n1")),
        begin=old_cache("n1", "n3"),
        debris=1,
    )


def three_steps() -> Scenario:
    """Three nodes, and nobody is first."""
    return Scenario(*(Actor(node, task(node), ending(node)) for node in ("n1", "n2", "n3")))


def remade_by_the_script() -> Scenario:
    """The script removes and remakes the cache; then tasks start on both nodes at once."""
    return Scenario(
        Actor("n1", task("n1", first=True), script_remakes("n1"), task("n1", again=True), ending("n1")),
        Actor("n2", task("n2", again=True), ending("n2"), after=["n1:2"]),
        debris=1,
    )


# By how often one is interrupted while it could go on. Of three actors, two are hardly to be told apart from all.
SCENARIOS = {
    batch_and_step: 3,
    two_steps: 2,
    three_steps: 1,
    repeated_epilog: 2,
    late_epilog: 2,
    earlier_life: 2,
    earlier_life_of_two_nodes: 4,
    remade_by_the_script: 2,
}


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checker]:
    """A checker, and an ordinary user's identity: the code under test refuses to work as root."""
    with acting_as(ALICE) if os.geteuid() == 0 else nullcontext():
        yield Checker(monkeypatch)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_interleaving_breaks_a_promise(checker: Checker, scenario: Callable[[], Scenario]) -> None:
    """Whatever the order, no live cache is touched, each is reaped exactly once, and nothing is left."""
    checker.check(scenario(), SCENARIOS[scenario])


# ---------------------------------------------------------------------------------- each line of the protocol is needed


def made_in_place(parent_fd: int, name: str, claim: protocol.Claim) -> str:
    """1. Without a temporary name: the cache grows where others look."""
    seen = protocol.os
    for directory in (name, f"{name}/.jobcache", f"{name}/.jobcache/nodes"):
        with suppress(FileExistsError):
            seen.mkdir(directory, 0o700, dir_fd=parent_fd)
    fd = seen.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)
    dirfd.write_new(fd, ".jobcache/id", cache_names.format_id(*claim.identity).encode() + b"\n")
    dirfd.write_new(fd, f".jobcache/nodes/{claim.node}", b"boot 1.00\n")
    seen.close(fd)
    return "made"


def made_at_any_price(parent_fd: int, name: str, claim: protocol.Claim) -> str | None:
    """1. What stands at the path, not empty, is moved out of the way."""
    outcome = MAKE(parent_fd, name, claim)
    if outcome is None:
        protocol.os.rename(name, cache_names.trash_name(JOB, "0"), src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        outcome = MAKE(parent_fd, name, claim)
    return outcome


def joined_by_making_nodes(fd: int, claim: protocol.Claim) -> str | None:
    """2. nodes/ is made again where it is missing."""
    with suppress(FileExistsError, FileNotFoundError):
        protocol.os.mkdir(".jobcache/nodes", 0o700, dir_fd=fd)
    return JOIN(fd, claim)


def first_joins(claim: protocol.Claim, until: float) -> str:
    """4. The first task takes what it finds."""
    claim.first = False
    return ENTER(claim, until)


def released_by_counting(fd: int, node: str, boot: str, uptime: float) -> str:
    """6. Who sees no other lease reaps."""
    meta = protocol.os.open(".jobcache", dirfd.DIRECTORY, dir_fd=fd)
    outcome = node_leases._drop_lease(meta, node, boot, uptime)
    if outcome == "dropped":
        protocol.os.lstat(".")
        outcome = "others" if os.listdir(f"/proc/self/fd/{meta}/nodes") else "last"
    protocol.os.close(meta)
    return outcome


ENTER, JOIN, MAKE = protocol.enter, protocol._join, protocol._make
MUTANTS = {
    "1 made in place": (protocol, "_make", made_in_place, two_steps),
    "1 made at any price": (protocol, "_make", made_at_any_price, two_steps),
    "2 nodes/ made again": (protocol, "_join", joined_by_making_nodes, two_steps),
    "3 mended wherever it is": (protocol, "_is_at", lambda *_: True, batch_and_step),
    "4 the first one joins": (protocol, "enter", first_joins, earlier_life),
    "4 discarded, not seized": (node_leases, "seize", lambda fd: True, earlier_life),
    "5 a lease of any age is dropped": (node_leases, "parse_lease", lambda text: ("boot", 0.0), late_epilog),
    "6 released by counting": (node_leases, "release", released_by_counting, two_steps),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_a_line_of_the_protocol_a_live_cache_is_lost(
    checker: Checker, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    """The checker finds the order in which it is."""
    module, name, mutated, scenario = MUTANTS[mutant]
    monkeypatch.setattr(module, name, mutated)
    with pytest.raises(Violation, match="live cache|there is none|given no cache"):
        for bound in (1, 2, 3):
            checker.check(scenario(), bound)
