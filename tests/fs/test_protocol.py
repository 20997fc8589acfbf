"""The protocol of the nodes of a job, under every interleaving of the system calls of tasks, Epilogs and scripts.

The actors run `protocol.enter` and `epilog_work.Work`, as support.interleaving describes. A mutant leaves out one line of the
protocol; the checker then finds an interleaving that loses a live cache, so each line is needed.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from jobcache.cache import cache_names, dirfd, earlier_lives, node_leases, path_template, protocol, reasons
from jobcache.system import epilog_work, reaper
from jobcache.system.epilog_job import Job
from support.claims import JOB
from support.home import acting_as
from support.interleaving import Actor, Violation, World, current_actor, explore, intercept
from support.site_dir import ALICE

LATE = 50.0  # an uptime after that of old leases and before that of new ones


class Scenario:
    """A sequence of events. begin: fills the directory. debris: how many names may be left in the end."""

    def __init__(self, *actors: Actor, begin: Callable[[Caches], None] = lambda world: None, debris: int = 0) -> None:
        self.actors = list(actors)
        self.begin = begin
        self.debris = debris


class Caches(World):
    """A directory of caches, and the promises about it.

    live: the label of the directory that each task was given, by (node, run). steps: the node on which each actor's step runs,
    by the actor's name. retired: labels of caches that were reaped.
    """

    def __init__(self, scenario: Scenario, **run: Any) -> None:
        super().__init__(scenario.actors, **run)
        self.scenario = scenario
        self.live: dict[tuple[str, int], str] = {}
        self.steps: dict[str, str] = {}
        self.retired: list[str] = []
        self.outcomes: dict[str, str] = {}

    def path(self, run: int) -> str:
        return f"{self.top}/hf-{cache_names.format_job(JOB, run)}"

    def begin(self) -> None:
        self.scenario.begin(self)

    def entered(self, node: str, run: int, outcome: str) -> None:
        """A task was given its cache: from now on, it is live."""
        if outcome not in ("made", "joined", "mended"):
            self.fail(f"{node} was given no cache: {outcome}")
        path = self.path(run)
        if not os.path.isdir(path):
            self.fail(f"{node} {outcome} a live cache that does not exist")
        self.live[node, run] = self.labels[os.stat(path).st_ino]

    def check(self) -> None:
        """No live cache is moved or deleted, or lacks the lease of a node that uses it."""
        for (node, run), given in self.live.items():
            path = self.path(run)
            if not os.path.isdir(path):
                self.fail(f"the live cache of {node} is gone")
            if self.labels[os.stat(path).st_ino] != given:
                self.fail(f"another directory is at the path of the live cache of {node}")
            # A batch task that judges the leases again has renamed nodes/ for a moment.
            if not glob.glob(f"{path}/.jobcache/nodes*/{node}"):
                self.fail(f"{node} has no lease in its live cache")

    def check_end(self) -> None:
        """No cache and no unknown name is left; each cache was reaped once."""
        left = os.listdir(self.top)
        if any(cache_names.parse_debris(name) is None for name in left):
            self.fail(f"left in the end: {left}, {self.outcomes}")
        if len(left) > self.scenario.debris:
            self.fail(f"debris: {left}, {self.outcomes}")
        if len(set(self.retired)) != len(self.retired):
            self.fail(f"reaped twice: {self.retired}, {self.outcomes}")


@pytest.fixture
def intercepted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The actors' system calls are points, their leases have the world's uptime, and worlds count what is reaped.

    The test acts as an ordinary user: the code under test refuses to work as root.
    """
    retire = reaper.retire

    def counted(parent_fd: int, name: str, fd: int, uid: int, job_id: int) -> str:
        trash = retire(parent_fd, name, fd, uid, job_id)
        world = current_world()
        world.retired.append(world.labels[os.fstat(fd).st_ino])
        return trash

    def now() -> tuple[str, float]:
        actor = current_actor()
        assert actor
        uptime = actor.world.tick()
        actor.learn(uptime)
        return "boot", uptime

    def runs_other_step(claim: protocol.Claim) -> bool:
        actor = current_actor()
        assert actor
        found = any(node == claim.node for name, node in current_world().steps.items() if name != actor.name)
        actor.learn(found)
        return found

    monkeypatch.setattr(earlier_lives, "runs_other_step", runs_other_step)
    monkeypatch.setattr(reaper, "retire", counted)
    monkeypatch.setattr(node_leases, "now", now)
    with acting_as(ALICE) if os.geteuid() == 0 else nullcontext():
        intercept(monkeypatch)
        yield


def current_world() -> Caches:
    actor = current_actor()
    assert actor and isinstance(actor.world, Caches)
    return actor.world


# ---- acts


def task(node: str, run: int = 0, *, first_task: bool = False, given_before: bool = False) -> Callable[[Caches, Actor], None]:
    """A task that starts on a node."""

    def act(world: Caches, me: Actor) -> None:
        me.version = world.version
        world.steps[me.name] = node
        claim = protocol.Claim(world.path(run), "test", JOB, run, os.geteuid(), node)
        claim.first_task, claim.given_before = first_task, given_before
        try:
            with me.observed():
                outcome = protocol.enter(claim, 1.0, me.clock())
        except reasons.Refused as refusal:
            outcome = refusal.reason
        except OSError as error:
            outcome = f"failed: {error}"
        world.outcomes[f"{node}-r{run}"] = outcome
        world.entered(node, run, outcome)

    return act


def ending(node: str, run: int = 0, *, since: float | None = None) -> Callable[[Caches, Actor], None]:
    """The Epilog of a run on a node. since: the uptime at which it began, if before everything else."""

    def act(world: Caches, me: Actor) -> None:
        world.live.pop((node, run), None)
        world.steps = {name: at for name, at in world.steps.items() if at != node}
        world.point(me, "begins")
        uptime = world.tick() if since is None else since
        me.learn(uptime)
        job = Job(JOB, os.geteuid(), node)
        job.nodes = 2
        job.user = "u"
        template = path_template.Template(f"{os.path.dirname(world.top)}/{{user}}/hf-{{job_id}}")
        compiled: Any = SimpleNamespace(cluster="test", keep_failed=0, keep_max=0, store_user=None, epilog_budget=1e9)
        compiled.current, compiled.history = [template.text], False

        def report(fact: dict[str, Any]) -> None:
            if fact["reason"] not in (None, "lease_live", "unrecorded"):
                world.outcomes[f"{me.name} {fact['event']}"] = fact["reason"]

        with me.observed():
            epilog_work.Work(job, compiled, [template], uptime)(report)

    return act


def script_remakes(run: int = 0) -> Callable[[Caches, Actor], None]:
    """The job's script removes its cache and creates a directory in its place."""

    def act(world: Caches, me: Actor) -> None:
        world.live.clear()
        shutil.rmtree(world.path(run))
        os.mkdir(world.path(run))
        world.labels[os.stat(world.path(run)).st_ino] = "remade"
        world.version += 1

    return act


def old_cache(*nodes: str) -> Callable[[Caches], None]:
    """A cache of an earlier life of the job id, with the leases of `nodes`."""

    def begin(world: Caches) -> None:
        path = world.path(0)
        os.makedirs(f"{path}/.jobcache/nodes")
        with open(f"{path}/.jobcache/id", "w") as file:
            file.write(cache_names.format_id("test", JOB, 0, os.geteuid()) + "\n")
        for node in nodes:
            with open(f"{path}/.jobcache/nodes/{node}", "w") as file:
                file.write("boot 1.00\n")
            os.utime(f"{path}/.jobcache/nodes/{node}", (0, 0))
        for at, _, files in os.walk(path):
            for name in [at, *(f"{at}/{file}" for file in files)]:
                world.labels[os.stat(name).st_ino] = f"old{name[len(world.top) :]}"

    return begin


# ---- scenarios


def batch_and_step() -> Scenario:
    """The batch script runs on n1. Its step starts on n2, and ends there at any time, even after the script."""
    return Scenario(
        Actor("n1", task("n1", first_task=True), ending("n1")),
        Actor("n2", task("n2", given_before=True), ending("n2"), after=["n1"]),
    )


def two_steps() -> Scenario:
    """Two nodes start at once; neither has the first task."""
    return Scenario(Actor("n1", task("n1"), ending("n1")), Actor("n2", task("n2"), ending("n2")))


def three_steps() -> Scenario:
    """Three nodes start at once; none has the first task."""
    return Scenario(*(Actor(node, task(node), ending(node)) for node in ("n1", "n2", "n3")))


def repeated_epilog() -> Scenario:
    """The Epilog runs twice on n1, the second time together with the first, while n2 starts and ends."""
    return Scenario(
        Actor("n1", task("n1", first_task=True), ending("n1")),
        Actor("again", ending("n1"), after=["n1"]),
        Actor("n2", task("n2", given_before=True), ending("n2"), after=["n1"]),
    )


def late_epilog() -> Scenario:
    """n1 was lost. The job runs again, on n1 and n2, while the Epilog of the lost run is at work."""
    return Scenario(
        Actor("late", ending("n1", since=LATE)),
        Actor("n1", task("n1", 1, first_task=True), ending("n1", 1)),
        Actor("n2", task("n2", 1, given_before=True), ending("n2", 1), after=["n1"]),
        begin=old_cache("n1"),
    )


def earlier_life() -> Scenario:
    """Another job had the job's id. Its cache is left, and its Epilog on n1 is at work."""
    return Scenario(
        Actor("late", ending("n1", since=LATE)),
        Actor("n1", task("n1", first_task=True), ending("n1")),
        Actor("n2", task("n2", given_before=True), ending("n2"), after=["n1"]),
        begin=old_cache("n1"),
        debris=1,
    )


def earlier_life_of_two_nodes() -> Scenario:
    """As `earlier_life`, and the second node of the other job never runs an Epilog."""
    return Scenario(
        Actor("late", ending("n1", since=LATE)),
        Actor("n1", task("n1", first_task=True), ending("n1")),
        begin=old_cache("n1", "n3"),
        debris=1,
    )


def attached_on_another_node() -> Scenario:
    """A step is attached on n2 while the batch script begins on n1: before it, or after it."""
    return Scenario(Actor("n1", task("n1", first_task=True), ending("n1")), Actor("n2", task("n2"), ending("n2")))


def attached_on_the_same_node() -> Scenario:
    """A step is attached on the node of the batch script while that begins."""
    return Scenario(
        Actor("batch", task("n1", first_task=True)),
        Actor("step", task("n1")),
        Actor("end", ending("n1"), after=["batch", "step"]),
    )


def earlier_life_and_attached() -> Scenario:
    """Another job had the job's id, and its cache is left. A step is attached on n2 while the batch script begins on n1."""
    return Scenario(
        Actor("n1", task("n1", first_task=True), ending("n1")),
        Actor("n2", task("n2"), ending("n2")),
        begin=old_cache("n1"),
        debris=1,
    )


def earlier_life_and_attached_on_the_same_node() -> Scenario:
    """Another job had the job's id, and its cache is left. A step is attached on the node of the batch script."""
    return Scenario(
        Actor("batch", task("n1", first_task=True)),
        Actor("step", task("n1")),
        Actor("end", ending("n1"), after=["batch", "step"]),
        begin=old_cache("n1"),
        debris=1,
    )


def remade_by_the_script() -> Scenario:
    """The script removes and remakes the cache; then tasks start on both nodes at once."""
    return Scenario(
        Actor("n1", task("n1", first_task=True), script_remakes(), task("n1", given_before=True), ending("n1")),
        Actor("n2", task("n2", given_before=True), ending("n2"), after=["n1:2"]),
        debris=1,
    )


# The number of preemptions, and how many states that has to reach: far fewer mean that a system call is not intercepted.
SCENARIOS: dict[Callable[[], Scenario], tuple[int, int]] = {
    batch_and_step: (3, 2000),
    two_steps: (2, 2000),
    three_steps: (1, 1500),
    repeated_epilog: (2, 3500),
    late_epilog: (2, 14000),
    earlier_life: (2, 5000),
    earlier_life_of_two_nodes: (4, 1200),
    attached_on_another_node: (2, 2000),
    attached_on_the_same_node: (4, 180),
    earlier_life_and_attached: (2, 3000),
    earlier_life_and_attached_on_the_same_node: (4, 500),
    remade_by_the_script: (2, 2500),
}


@pytest.mark.usefixtures("intercepted")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_interleaving_breaks_a_promise(scenario: Callable[[], Scenario]) -> None:
    """In any order, no live cache is touched, each cache is reaped exactly once, and nothing is left."""
    bound, least = SCENARIOS[scenario]
    runs, states = explore(partial(Caches, scenario()), bound)
    print(f"{runs} runs, {states} states")
    assert states >= least


# ---- mutants: the protocol without one of its lines


def make_in_place(parent_fd: int, name: str, claim: protocol.Claim) -> str:
    """1. The cache is built at its path, not under another name."""
    for directory in (name, f"{name}/.jobcache", f"{name}/.jobcache/nodes"):
        with suppress(FileExistsError):
            os.mkdir(directory, 0o700, dir_fd=parent_fd)
    fd = os.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)
    dirfd.write_new(fd, ".jobcache/id", cache_names.format_id(*claim.identity).encode() + b"\n")
    dirfd.write_new(fd, f".jobcache/nodes/{claim.node}", b"boot 1.00\n")
    os.close(fd)
    return "made"


def make_at_any_price(parent_fd: int, name: str, claim: protocol.Claim) -> str | None:
    """1. A directory at the path that is not empty is moved away."""
    outcome = MAKE(parent_fd, name, claim)
    if outcome is None:
        os.rename(name, cache_names.trash_name(JOB, "0"), src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        outcome = MAKE(parent_fd, name, claim)
    return outcome


def join_and_create_nodes(fd: int, claim: protocol.Claim) -> str | None:
    """2. nodes/ is created again if it is missing."""
    with suppress(FileExistsError, FileNotFoundError):
        os.mkdir(".jobcache/nodes", 0o700, dir_fd=fd)
    return JOIN(fd, claim)


def enter_as_a_later_task(claim: protocol.Claim, until: float, clock: Any) -> str:
    """4. The first task joins the cache that it finds."""
    claim.first_task = False
    return ENTER(claim, until, clock)


def enter_as_a_first_task(parent_fd: int, name: str, fd: int, claim: protocol.Claim) -> str | None:
    """4. An attached step discards the cache that it finds, as interactive steps did in version 0.1."""
    return MAKE(parent_fd, name, claim) if protocol.discard_earlier_life(parent_fd, name, fd, claim) else None


def seize_without_a_second_look(fd: int, is_unused: Any = None) -> bool:
    """4. The leases are judged only before nodes/ is renamed."""
    return SEIZE(fd)


def release_by_counting(fd: int, lease: str, boot: str, uptime: float) -> str:
    """6. A node that sees no other lease reaps."""
    meta = os.open(".jobcache", dirfd.DIRECTORY, dir_fd=fd)
    outcome = node_leases.drop_lease(meta, lease, boot, uptime)
    if outcome == "dropped":
        outcome = "others" if os.listdir(f"/proc/self/fd/{meta}/nodes") else "last"
    os.close(meta)
    return outcome


ENTER, JOIN, MAKE, SEIZE = protocol.enter, protocol.join, protocol.make, node_leases.seize
MUTANTS: dict[str, tuple[Any, str, Callable[..., Any], Callable[[], Scenario]]] = {
    "1 made in place": (protocol, "make", make_in_place, two_steps),
    "1 made at any price": (protocol, "make", make_at_any_price, two_steps),
    "2 nodes/ created again": (protocol, "join", join_and_create_nodes, two_steps),
    "3 record restored in any directory": (dirfd, "is_at", lambda *_: True, batch_and_step),
    "4 first task joins": (protocol, "enter", enter_as_a_later_task, earlier_life),
    "4 discarded, not seized": (node_leases, "seize", lambda *_: True, earlier_life),
    "4 discarded without proof": (earlier_lives, "is_unused", lambda *_: True, attached_on_another_node),
    "4 discarded while a step of this node runs": (earlier_lives, "runs_other_step", lambda _: False, attached_on_the_same_node),
    "4 interactive step discards": (protocol, "_enter_recorded", enter_as_a_first_task, attached_on_another_node),
    "4 not judged again": (node_leases, "seize", seize_without_a_second_look, earlier_life_and_attached),
    "4 not judged again, same node": (
        node_leases,
        "seize",
        seize_without_a_second_look,
        earlier_life_and_attached_on_the_same_node,
    ),
    "5 lease of any age is dropped": (node_leases, "parse_lease", lambda text: ("boot", 0.0), late_epilog),
    "6 released by counting": (node_leases, "release", release_by_counting, two_steps),
}


@pytest.mark.usefixtures("intercepted")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_a_line_of_the_protocol_a_live_cache_is_lost(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    """The checker finds the interleaving that loses it."""
    module, name, replacement, scenario = MUTANTS[mutant]
    monkeypatch.setattr(module, name, replacement)
    with pytest.raises(Violation, match="live cache|given no cache"):
        for bound in (1, 2, 3):
            print(bound, explore(partial(Caches, scenario()), bound))
