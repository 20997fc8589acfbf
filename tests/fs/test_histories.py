"""Random histories of jobs, nodes, users, two clusters and sweeps: the real code, on a real filesystem, against a model.

Hooks and sweeps run in this process, with the rights of their users. The model knows the jobs of Slurm, the nodes that are
up, and the files that each job needs. It does not know how caches work. Hooks and sweeps are killed at operations that
change something. Jobs start, end and get lost at any moment of a sweep.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from jobcache.cache import (
    cache_names,
    earlier_lives,
    lease_lock,
    node_leases,
    path_template,
    protocol,
    reasons,
    timestamps,
)
from jobcache.config import compilation
from jobcache.config.settings import Settings
from jobcache.runner import inherited_cache, leftovers, private_cache
from jobcache.runner.private_cache import PrivateCache
from jobcache.runner.request import Request
from jobcache.sweep import directories, one_sweep, scanning
from jobcache.sweep.host import Host
from jobcache.sweep.plan import Directory, has_no_job
from jobcache.system import as_user, children, epilog_work, event_fields
from jobcache.system.epilog_job import Job as EndedJob
from jobcache.system.live_jobs import Listing, Unknown
from jobcache.system.slurm import Slurm
from support.home import acting_as, uid_of
from support.host import foreign_step
from support.site_dir import ALICE, BOB

THIS_CLUSTER, OTHER_CLUSTER = "test", "della"  # ClusterNames
NODES = ("n1", "n2")
HOUR = 3600
GRACE, KEEP_MAX, CONFIRM = 1 * HOUR, 72 * HOUR, 120
MOST_JOBS = 5
MOST_COMMANDS = 4
MORE = os.environ.get("JOBCACHE_HISTORIES", "")  # number of histories; they differ in each run, and a failing one is made short
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

users = st.sampled_from([ALICE, ALICE, ALICE, BOB])
picks = st.integers(0, 5)  # index into the things that exist
kills = st.sampled_from([0] * 18 + list(range(1, 13)))  # 0: never; n: before the nth operation that changes something
MEANWHILE = [
    "submit",
    "submit",
    "reuse",
    "reuse",
    "finish",
    "step",
    "late_epilog",
    "lose_node",
    "lose_state",
    "remove",
    "run_command",
    "end_command",
]
seldom = st.sampled_from([False] * 4 + [True])
often = st.sampled_from([True] * 4 + [False])


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it happens."""


# ----------------------------------------------------------------------------------------------------------- the model


@dataclass
class Node:
    """A node.

    boot: number of the boot.
    uptime: advances with each reading.
    owed: Epilogs of the jobs that were lost with the node.
    """

    name: str
    boot: int = 1
    uptime: float = 0.0
    up: bool = True
    owed: list[Epilog] = field(default_factory=list)

    def now(self) -> tuple[str, float]:
        self.uptime += 1
        return f"{self.name}-{self.boot}", self.uptime


@dataclass
class Job:
    """A job that Slurm knows.

    life: number that distinguishes it from other jobs with its id.
    nodes: of the job.
    owing: nodes whose Epilog has not run yet.
    using: nodes whose tasks have the path of the cache.
    files: that tasks have written to the cache. They must exist while a node is using it.
    by_hand: file that the user has put at the cache's path without a record.
    again: the job's script has the path.
    """

    life: int
    id: int
    user: str
    width: int
    batch: bool
    keep: bool
    state: str = "PENDING"
    run: int = 0
    requeued: bool = False
    start: float = 0.0
    nodes: list[str] = field(default_factory=list)
    owing: set[str] = field(default_factory=set)
    using: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    by_hand: str = ""
    again: bool = False

    def ended_on(self, node: str) -> None:
        self.using.discard(node)
        self.nodes.remove(node)

    def next_run(self) -> None:
        self.state, self.run, self.requeued, self.again, self.by_hand = "PENDING", self.run + 1, False, False, ""
        self.nodes, self.using, self.files = [], set(), set()


@dataclass
class Epilog:
    """The facts that an Epilog has when it begins. width: number of nodes at the start of the job, None if unknown."""

    job_id: int
    user: str
    node: str
    uptime: float
    width: int | None
    start: float


@dataclass
class Command:
    """A `jobcache run` outside of jobs, or, without `cache`, a process that such a command has started.

    path, lease: of the cache in which it works.
    lock: descriptor of the lock that it has from another command, -1 for none.
    file: that it has written to the cache. The file must exist while it works.
    parent: the command that has started it.
    """

    user: str
    pid: int
    cache: PrivateCache | None = None
    path: str = ""
    lease: str = ""
    lock: int = -1
    file: str = ""
    parent: Command | None = None


class FilesystemClock:
    """The clock of the filesystem that the sweep reads: the real one, plus the hours by which the test advances it."""

    def __init__(self, top: Path) -> None:
        self.probe = top / "clock"
        self.marks = [(0.0, 0.0)]  # (since, seconds ahead)

    def tick(self) -> float:
        """Return a time later than the times of all files."""
        self.probe.touch()
        first = latest = self.probe.stat().st_ctime
        while latest <= first:
            os.utime(self.probe)
            latest = self.probe.stat().st_ctime
        return latest

    def advance(self, seconds: float) -> None:
        self.marks.append((self.tick(), self.ahead(time.time() + 1) + seconds))

    def ahead(self, real: float) -> float:
        return next(ahead for since, ahead in reversed(self.marks) if real >= since)

    def shown(self, real: float) -> float:
        return real + self.ahead(real)

    def now(self) -> float:
        return self.shown(self.tick())


@contextmanager
def killed_at(count: int, writes: bool = True) -> Iterator[None]:
    """Raise Killed before the `count`th operation that changes something; never for 0."""
    names = ("mkdir", "rename", "rmdir", "unlink", "open", *(["write"] if writes else []))
    real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in names}
    left = count

    def deadly(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if name != "open" or args[1] & os.O_CREAT:
                left -= 1
                if left == 0:
                    raise Killed
            return real[name](*args, **kwargs)

        return call

    try:
        for name in names if count else ():
            setattr(os, name, deadly(name))
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


class Child(children.Child):
    """Stands for a forked child: does its work in this process, with the rights of the user, when it is started."""

    def __init__(self, work: as_user.Work, user: str | None, most: int) -> None:
        pipe, into = os.pipe()
        super().__init__(0, pipe, [], most)
        self._outcome = "done"

        def report(fact: dict[str, Any]) -> None:
            os.write(into, json.dumps(fact).encode() + b"\n")

        try:
            with acting_as(user) if user else nullcontext():
                work(report)
        except Killed:
            self._outcome = "died"
        os.close(into)

    def _is_over(self) -> bool:
        self.status = self._outcome
        return True


class World:
    """Stands for the machine and for Slurm: clocks of the nodes and of the filesystem, processes, the job list."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scratch = top / "scratch"
        self.scratch.mkdir()
        config = {
            "cluster": THIS_CLUSTER,
            "path": f"{self.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}",
            "min_uid": 1,
            "keep_max": f"{KEEP_MAX}s",
            "epilog": {"budget": "10s"},
            "sweep": {"grace": f"{GRACE}s", "confirm": f"{CONFIRM}s"},
        }
        (top / "jobcache.yaml").write_text(yaml.safe_dump(config))
        self.settings = compilation.compile_settings(str(top / "jobcache.yaml"), str(top))
        self.others = Settings(self.settings.tree, {**self.settings.compiled, "cluster": OTHER_CLUSTER})
        self.top = top
        self.here = Node("")
        self.other_step: bool | None = None  # whether another step of the task's job runs on its node; None: titles are hidden
        self.clock = FilesystemClock(top)
        self.seconds = 0.0
        self.asked = 0
        self.moment: Callable[[int], None] = lambda _: None
        self.listing: Callable[[], dict[int, set[int]]] = dict
        self.login = Node("login")  # where commands outside of jobs run, and the sweep
        self.commands: list[Command] = []
        self.entering = 0  # pid of the `jobcache run` that takes a lease
        self.recorded: set[int] = set()  # pids of processes that a command has left behind, and recorded at its end
        self.host = Host(self.monotonic, self.sleep, self.pids, self.inspect, self.filesystem_time)
        monkeypatch.setattr(node_leases, "now", lambda: self.here.now())
        monkeypatch.setattr(os, "getuid", os.geteuid)
        monkeypatch.setattr(lease_lock, "host", lambda: self.login.name)
        monkeypatch.setattr(lease_lock, "started", self.started)
        monkeypatch.setattr(leftovers, "find", self.find_processes)
        monkeypatch.setattr(leftovers, "close_inherited_locks", lambda *_: None)
        monkeypatch.setattr(private_cache, "_LINGERING", 0)
        monkeypatch.setattr(earlier_lives, "runs_other_step", lambda _: self.other_step)
        monkeypatch.setattr(timestamps, "CLOCK_SKEW", 0)
        monkeypatch.setattr(event_fields, "of_filesystem", lambda _: {})
        monkeypatch.setattr(as_user, "start", lambda work, uid, most, **_: Child(work, uid and user_of(uid), most))

    # ---- the processes of commands outside of jobs

    def started(self, pid: int) -> int | None:
        return 1 if pid in {self.entering, *(one.pid for one in self.commands)} else None

    def find_processes(self, path: str, _cache_fd: int, lease: str) -> list[leftovers.Process]:
        """Stand for `leftovers.find`: return the processes without a lease that no other lease than `lease` covers."""
        found = []
        for one in self.commands:
            is_covered = one.lease != lease and (one.lock >= 0 or one.parent in self.commands)
            if one.cache is None and one.path == path and not is_covered:
                found.append(leftovers.Process(one.pid, 1, "late"))
        return found

    # ---- the host of a sweep

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += max(seconds, 0.001)

    def pids(self) -> list[int]:
        """Return no process. The second call of a sweep comes after both listings, before it acts: moment 4."""
        if self.asked == 2:
            self.happens(4)
        return []

    def inspect(self, parent_fd: int, name: str, plain: Directory) -> Directory:
        facts = directories.inspect(parent_fd, name, plain)
        until = None if facts.keep_until is None else facts.keep_until + self.clock.ahead(facts.sign)
        return replace(facts, sign=self.clock.shown(facts.sign), keep_until=until)

    def filesystem_time(self, parent_fd: int) -> float:
        return self.clock.shown(directories.filesystem_time(parent_fd))

    def begin(self) -> None:
        """Empty the scratch, and reset all clocks."""
        for home in self.scratch.iterdir():
            shutil.rmtree(home)
        for user in (ALICE, BOB):
            home = self.scratch / user / ".cache"
            home.mkdir(parents=True)
            for path in (home.parent, home):
                shutil.chown(path, user)
        self.clock = FilesystemClock(self.top)
        self.asked = 0
        for command in self.commands:
            close_descriptors(command)
        self.commands.clear()
        self.recorded.clear()

    def list_jobs(self) -> Listing:
        """Return the live jobs. Something can happen before and after that."""
        self.asked += 1
        self.happens(2 * self.asked - 2)
        listing = Listing(self.monotonic(), self.listing())
        self.happens(2 * self.asked - 1)
        return listing

    def happens(self, moment: int) -> None:
        """Let something happen during a sweep."""
        try:
            self.moment(moment)
        finally:
            self.here = self.login

    def names(self, user: str) -> set[str]:
        return set(os.listdir(self.scratch / user / ".cache"))


class ModelSlurm(Slurm):
    """A Slurm client whose job list is the one of the model."""

    def __init__(self, world: World) -> None:
        self.world = world

    def listing(self, cluster: str, *, only_own: bool = False) -> Listing:
        return self.world.list_jobs()


# ------------------------------------------------------------------------------------------------------- the histories


class Histories(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        world.begin()
        world.listing = self.alive
        self.nodes = {name: Node(name) for name in NODES}
        self.jobs: list[Job] = []
        self.late: list[Epilog] = []  # begun, with their work still to do
        self.next_id = 1
        self.lives = 0
        self.quiet = False  # nothing has happened since the last sweep
        self.other_node = Node("n1", boot=100)  # another machine of the same name
        self.others: set[str] = set()  # caches of live jobs of the other cluster
        self.untouchable: set[str] = set()  # files that users keep by hand, or under other names
        self.kept: dict[str, float] = {}  # when the cache of a file that an Epilog has kept may go
        self.by_hand: set[str] = set()  # directories that a user made without a record at the path of a job

    # ---- jobs

    @initialize(users=st.lists(users, max_size=3), width=st.integers(1, 2), lost=st.booleans())
    def rubble(self, users: list[str], width: int, lost: bool) -> None:
        """Begin with some jobs."""
        for user in users:
            self.submit(user, width, batch=True, keep=False, go=True)
        if lost:
            self.lose_state()

    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    @rule(user=users, width=st.integers(1, 2), batch=often, keep=seldom, go=often, attached=seldom)
    def submit(self, user: str, width: int, batch: bool, keep: bool, go: bool, attached: bool = False) -> None:
        if len(self.jobs) < MOST_JOBS:
            self.lives += 1
            self.jobs.append(Job(self.lives, self.next_id, user, width, batch, keep))
            self.next_id += 1
            if go:
                self.start(-1, self.lives, everywhere=True, kill=0, attached=attached)

    @precondition(lambda self: self.pending())
    @rule(pick=picks, at=picks, everywhere=st.booleans(), kill=kills, attached=seldom, hidden=seldom)
    def start(self, pick: int, at: int, everywhere: bool, kill: int, attached: bool = False, hidden: bool = False) -> None:
        """A job starts: the task of its batch script, if it has one, and possibly a step on each of its nodes.

        attached: a step is attached to the job before its batch script begins. hidden: titles of processes are hidden.
        """
        up = [node.name for node in self.up()]
        startable = [job for job in self.pending() if job.width <= len(up)]
        if startable:
            job = one_of(startable, pick)
            job.state, job.start = "RUNNING", self.world.clock.tick()
            job.nodes = [up[(at + n) % len(up)] for n in range(job.width)]
            job.owing = set(job.nodes)
            if attached and job.batch and not self.leaves_no_trace(job, job.nodes[-1], hidden):
                self.task(job, job.nodes[-1], first=False, kill=0)
            if job.batch:
                self.task(job, job.nodes[0], first=True, kill=kill, hidden=hidden)
            for node in job.nodes if everywhere else ():
                self.task(job, node, first=False, kill=0)

    @precondition(lambda self: self.running())
    @rule(pick=picks, at=picks, kill=kills)
    def step(self, pick: int, at: int, kill: int) -> None:
        """A task of a step begins on one of the job's nodes."""
        if self.running():
            job = one_of(self.running(), pick)
            self.task(job, one_of(job.nodes, at), first=False, kill=kill)

    def leaves_no_trace(self, job: Job, node: str, hidden: bool) -> bool:
        """Return whether a step that is attached joins a cache of an earlier life by a lease that this life has left there.

        The batch task sees that step only if it runs on the same node.
        """
        return os.path.exists(f"{self.path(job)}/.jobcache/nodes/{node}") and (hidden or node != job.nodes[0])

    def task(self, job: Job, node: str, *, first: bool, kill: int, hidden: bool = False) -> None:
        """Run the TaskProlog, and write a file as the task."""
        self.quiet = False
        attached = bool(job.using)
        self.world.other_step = None if hidden else node in job.using
        claim = protocol.Claim(self.path(job), THIS_CLUSTER, job.id, job.run, uid_of(job.user), node)
        claim.first_task, claim.given_before, claim.keep, claim.job_start = first, job.again, job.keep, job.start
        obstacle = self.obstacle(claim)
        self.world.here = self.nodes[node]
        with acting_as(job.user):
            try:
                with killed_at(kill):
                    outcome = protocol.enter(claim, time.monotonic() + (0 if obstacle else 30))
            except Killed:
                return
            except reasons.Refused as refusal:
                assert obstacle, f"job {job.id} got no cache: {refusal}"
                return
            finally:
                if job.by_hand and os.path.exists(f"{claim.path}/.jobcache/id"):  # recorded now
                    job.files.add(job.by_hand)
                    job.by_hand = ""
            if first and attached:
                assert outcome == "joined", "the batch script shares the cache of the attached step"
            elif first:
                assert outcome == "made" and os.listdir(claim.path) == [".jobcache"], "a batch job has a new cache"
            file = f"{claim.path}/{node}.{job.life}.{job.run}.arrow"
            Path(file).touch()
        self.by_hand.discard(claim.path)
        job.again = job.again or first
        job.files.add(file)
        job.using.add(node)

    def obstacle(self, claim: protocol.Claim) -> str:
        """Return the reason for which a task may get no path, "" if it must get one."""
        if not os.path.lexists(claim.path):
            return ""
        try:
            cluster, job_id, run, uid = Path(claim.path, ".jobcache/id").read_text().split()
        except FileNotFoundError:
            return "" if claim.given_before and not claim.first_task else "without a record"
        if (cluster, int(job_id), int(uid)) != (claim.cluster, claim.job_id, claim.uid):
            return "another's"
        return "" if os.path.exists(f"{claim.path}/.jobcache/nodes") else "being reaped"

    @precondition(lambda self: self.running())
    @rule(pick=picks, requeue=st.booleans(), at_once=st.booleans())
    def finish(self, pick: int, requeue: bool, at_once: bool) -> None:
        """A job ends. On each node its tasks run until the Epilog begins there."""
        if self.running():
            job = one_of(self.running(), pick)
            job.state, job.requeued = "COMPLETING", requeue
            for node in list(job.nodes) if at_once else ():
                self.do(self.epilog(job, node), 0)
                self.owes_no_more(job, node)

    @precondition(lambda self: self.completing())
    @rule(pick=picks, at=picks, kill=kills, again=seldom)
    def release(self, pick: int, at: int, kill: int, again: bool) -> None:
        """The Epilog runs on one node of a job that ends, and again if the completion message was lost."""
        if self.completing():
            job = one_of(self.completing(), pick)
            node = one_of(sorted(job.owing), at)
            ended = self.epilog(job, node)
            self.do(ended, kill)
            if again:
                self.do(ended, 0)
            self.owes_no_more(job, node)

    def owes_no_more(self, job: Job, node: str) -> None:
        job.owing.discard(node)
        if job.state == "COMPLETING" and not job.owing:
            if job.requeued:
                job.next_run()
            else:
                self.jobs.remove(job)

    @precondition(lambda self: self.wide())
    @rule(pick=picks, slow=st.booleans(), kill=kills)
    def shrink(self, pick: int, slow: bool, kill: int) -> None:
        """A running job gives a node back."""
        if self.wide():
            job = one_of(self.wide(), pick)
            ended = self.epilog(job, job.nodes[-1])
            job.owing.discard(ended.node)
            self.late.append(ended)
            if not slow:
                self.do(self.late.pop(), kill)

    # ---- nodes and controller

    def epilog(self, job: Job, node: str) -> Epilog:
        """End the job on a node, and return the Epilog that begins there."""
        self.quiet = False
        job.ended_on(node)
        return Epilog(job.id, job.user, node, self.nodes[node].now()[1], job.width, job.start)

    def do(self, ended: Epilog, kill: int, site: Settings | None = None) -> None:
        """Do the work of an Epilog. site: of the other cluster, None for this one."""
        job = EndedJob(ended.job_id, uid_of(ended.user), ended.node)
        job.gid, job.user, job.nodes = pwd.getpwnam(ended.user).pw_gid, ended.user, ended.width
        job.start = ended.start  # type: ignore[assignment]
        facts: list[dict[str, Any]] = []
        compiled = self.world.settings
        self.world.here = self.other_node if site else self.nodes[ended.node]
        with acting_as(ended.user):
            try:
                with killed_at(kill):
                    epilog_work.Work(job, site or compiled, compiled.templates, ended.uptime)(facts.append)
            except Killed:
                pass
        for fact in facts:
            if fact.get("reason") == "user_keep":  # children.END has no reason
                file = next(name for name in [*sorted(os.listdir(fact["path"])), ".jobcache/id"] if name != ".jobcache")
                self.kept[f"{fact['path']}/{file}"] = self.world.clock.now() + KEEP_MAX - 2  # the record has whole seconds

    @precondition(lambda self: self.late)
    @rule(pick=picks, kill=kills)
    def late_epilog(self, pick: int, kill: int) -> None:
        """A slow Epilog does its work. Meanwhile the job may run again, here or elsewhere."""
        if self.late:
            self.do(self.late.pop(pick % len(self.late)), kill)

    @precondition(lambda self: self.running() and len(self.up()) > 1)
    @rule(pick=picks, rebooted=st.booleans(), requeue=often, back=st.booleans())
    def lose_node(self, pick: int, rebooted: bool, requeue: bool, back: bool) -> None:
        """A node is lost with all its tasks. It may return soon. Slurm ends or requeues its jobs; their Epilogs are owed."""
        if not self.running():
            return
        node = self.nodes[one_of(one_of(self.running(), pick).nodes, pick)]
        node.up = False
        if rebooted:
            node.boot, node.uptime = node.boot + 1, 0.0
            self.late = [ended for ended in self.late if ended.node != node.name]
        for job in [job for job in self.jobs if node.name in job.owing]:
            node.owed.append(replace(self.epilog(job, node.name), width=None))  # as Slurm 22.05 has it
            if job.state == "RUNNING":
                job.state, job.requeued = "COMPLETING", requeue
            self.owes_no_more(job, node.name)
        if back:
            self.return_node(0, informed=True)
            self.start(-1, NODES.index(node.name), everywhere=True, kill=0)

    @precondition(lambda self: self.down())
    @rule(pick=picks, informed=often)
    def return_node(self, pick: int, informed: bool) -> None:
        """A lost node returns. It begins the Epilogs that it is owed, if the controller still knows the users of the jobs."""
        if self.down():
            node = one_of(self.down(), pick)
            node.up = True
            for ended in node.owed if informed else ():
                ended.uptime = node.now()[1]
                self.late.append(ended)
            node.owed = []

    @precondition(lambda self: len(self.jobs) > 2)
    @rule()
    def lose_state(self) -> None:
        """The controller loses its state: all jobs are over, no Epilog knows its user, and job ids start again."""
        self.jobs.clear()
        self.next_id = 1
        for node in self.nodes.values():
            node.owed = []

    # ---- users and the other cluster

    @precondition(lambda self: self.given())
    @rule(pick=picks, remake=st.booleans())
    def remove(self, pick: int, remake: bool) -> None:
        """The script of a job removes the cache, and possibly makes a directory in its place."""
        if self.given():
            job = one_of(self.given(), pick)
            path = self.path(job)
            with acting_as(job.user):
                shutil.rmtree(path)
                job.using, job.files, job.by_hand = set(), set(), ""
                if remake:
                    os.mkdir(path)
                    job.by_hand = f"{path}/by-hand.arrow"
                    Path(job.by_hand).touch()
                    self.by_hand.add(path)

    @precondition(lambda self: len(self.untouchable) < 3)
    @rule(
        user=users,
        ahead=st.integers(0, 2),
        name=st.sampled_from(["hf-datasets-{}", "hf-datasets-0{}", "hf-datasets-{}-r0", "hf-{}"]),
    )
    def keep_by_hand(self, user: str, ahead: int, name: str) -> None:
        """A user makes a directory, possibly at the path of a later job."""
        path = f"{self.world.scratch}/{user}/.cache/{name.format(self.next_id + ahead)}"
        if not os.path.lexists(path):
            with acting_as(user):
                os.mkdir(path)
                Path(path, "mine").touch()
            self.untouchable.add(f"{path}/mine")
            self.world.clock.tick()

    @precondition(lambda self: len(self.untouchable) < 3)
    @rule(user=users, job_id=st.integers(1, 4), lost=seldom)
    def other_cluster(self, user: str, job_id: int, lost: bool) -> None:
        """A job of another cluster with jobcache starts, ends or is lost, on the same scratch."""
        path = f"{self.world.scratch}/{user}/.cache/hf-datasets-{job_id}"
        file = f"{path}/others.arrow"
        self.world.here = self.other_node
        if path in self.others:
            self.others.remove(path)
            if lost:
                self.untouchable.add(file)
            else:
                self.do(Epilog(job_id, user, "n1", self.other_node.now()[1], 2, 0), 0, self.world.others)
                assert not os.path.exists(path)
        elif not os.path.lexists(path):
            claim = protocol.Claim(path, OTHER_CLUSTER, job_id, 0, uid_of(user), "n1")
            with acting_as(user):
                protocol.enter(claim, time.monotonic())
                Path(file).touch()
            self.others.add(path)

    # ---- commands outside of jobs

    @precondition(lambda self: len(self.world.commands) < MOST_COMMANDS)
    @rule(user=users, inner=often, pick=picks, locked=st.booleans(), kill=kills)
    def run_command(self, user: str, inner: bool, pick: int, locked: bool, kill: int) -> None:
        """A `jobcache run` starts, possibly inside of another one or of a process that another one has left behind."""
        parent = one_of(self.world.commands, pick) if inner and self.world.commands else None
        command = self.new_command(parent.user if parent else user, parent, locked)
        self.world.here, self.world.entering = self.world.login, command.pid
        env = {"JOBCACHE_DIR": parent.path} if parent else {}
        with acting_as(command.user):
            try:
                with killed_at(kill):
                    self.enter(command, env)
            except Killed:
                close_descriptors(command)
                return
            finally:
                self.world.entering = 0
            self.write(command)

    def enter(self, command: Command, env: dict[str, str]) -> None:
        """Enter a cache as `runner.run` does."""
        request = Request(template=path_template.Template(self.world.settings.tree["path"]))
        given = inherited_cache.find(env, None)
        for inherited in (given, None) if given else (None,):
            cache = command.cache = PrivateCache({}, request, None, lambda: None, inherited)
            cache._claim.record.update(pid=str(command.pid), started="1")
            try:
                cache.enter()
            except (reasons.Refused, OSError):
                assert inherited, "a command outside of jobs got no cache"
                continue
            command.path, command.lease = cache._claim.path, cache._claim.node
            if inherited and command.lock >= 0:  # as close_inherited_locks does
                os.close(command.lock)
                command.lock = -1
            return

    @precondition(lambda self: self.world.commands and len(self.world.commands) < MOST_COMMANDS)
    @rule(pick=picks, locked=st.booleans())
    def start_process(self, pick: int, locked: bool) -> None:
        """A command starts a process that can outlive it, with its descriptors or without."""
        parents = [one for one in self.world.commands if one.cache or one.lock >= 0]
        if parents:
            parent = one_of(parents, pick)
            process = self.new_command(parent.user, parent, locked)
            process.path, process.lease = parent.path, parent.lease
            with acting_as(process.user):
                self.write(process)

    def new_command(self, user: str, parent: Command | None, locked: bool) -> Command:
        self.quiet = False
        self.lives += 1
        command = Command(user, 1_000_000 + self.lives, parent=parent)
        lock = -1 if parent is None else parent.cache._lock if parent.cache else parent.lock
        command.lock = os.dup(lock) if locked and lock >= 0 else -1
        return command

    def write(self, command: Command) -> None:
        """Write a file to the cache, as the command."""
        command.file = f"{command.path}/{command.pid}.arrow"
        Path(command.file).touch()
        self.world.commands.append(command)

    @precondition(lambda self: self.world.commands)
    @rule(pick=picks, kill=st.one_of(kills, st.just(-1)))
    def end_command(self, pick: int, kill: int) -> None:
        """A command or a process ends. kill: -1 for SIGKILL to the command and its `jobcache run` before anything else."""
        if self.world.commands:
            command = one_of(self.world.commands, pick)
            self.quiet = False
            self.world.commands.remove(command)
            kill = kill if command.cache else 0
            self.world.here = self.world.login
            if command.cache and kill >= 0:
                with acting_as(command.user):
                    try:
                        with killed_at(kill):
                            command.cache.leave(0)
                    except Killed:
                        kill = -1
            if command.cache and kill >= 0:
                for process in self.world.find_processes(command.path, -1, command.lease):
                    self.world.recorded.add(process.pid)
            close_descriptors(command)
            if kill < 0 or (command.cache is None and not self.is_locked(command.lease)):
                self.end_daemons_of(command)

    def is_locked(self, lease: str) -> bool:
        """Return whether a command or a process holds the lock on a lease."""
        return any(one.lease == lease and (one.cache or one.lock >= 0) for one in self.world.commands)

    def end_daemons_of(self, command: Command) -> None:
        """End the processes without a lock that a command has started: only its own end can protect them, by the record.

        A process that outlives the command can start some as well, which its lock protects until it ends.
        """
        for one in list(self.world.commands):
            if one.cache is None and one.lock < 0 and one.lease == command.lease and one.pid not in self.world.recorded:
                self.world.commands.remove(one)

    # ---- sweeps

    @precondition(lambda self: not self.quiet)
    @rule(
        hours=st.sampled_from([0.5, 2, 2, 80]),
        how=st.sampled_from(["whole"] * 5 + ["killed", "in doubt"]),
        at=st.integers(1, 12),
        meanwhile=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(MEANWHILE), picks), max_size=3),
    )
    def sweep(self, hours: float, how: str, at: int, meanwhile: list[tuple[int, str, int]]) -> None:
        """Some time passes, and a sweep runs."""
        self.quiet = True
        self.world.clock.advance(hours * HOUR)
        if how == "whole":
            self.sweep_whole(meanwhile)
        elif how == "in doubt":
            self.sweep_in_doubt(question=at % 2 + 1)
        else:
            with killed_at(at, writes=False):  # one child; the others go on
                self.run_sweep(lambda _: None)

    def sweep_whole(self, meanwhile: list[tuple[int, str, int]]) -> None:
        """Sweep while other things happen: before and after each listing, and before the sweep acts."""

        def moment(now: int) -> None:
            for when, what, pick in meanwhile:
                if when == now:
                    self.happens(what, pick)

        result = self.run_sweep(moment)
        assert result.unknown is None
        assert result.trouble == [] or meanwhile

    def happens(self, what: str, pick: int) -> None:
        if what in ("submit", "reuse"):
            if what == "reuse":
                self.lose_state()
            self.submit((ALICE, BOB)[pick // 5], 1, batch=pick % 2 == 0, keep=False, go=True)
        elif what == "finish":
            self.finish(pick, requeue=pick % 2 == 0, at_once=True)
        elif what == "late_epilog":
            self.late_epilog(pick, kill=0)
        elif what == "lose_node":
            self.lose_node(pick, rebooted=False, requeue=True, back=False)
        elif what == "lose_state":
            self.lose_state()
        elif what == "run_command":
            if len(self.world.commands) < MOST_COMMANDS:
                self.run_command(ALICE, inner=pick % 2 == 0, pick=pick, locked=pick > 2, kill=0)
        elif what == "end_command":
            self.end_command(pick, kill=-(pick % 2))
        elif what == "remove":
            self.remove(pick, remake=pick % 2 == 0)
        else:
            self.step(pick, pick, kill=0)

    def sweep_in_doubt(self, question: int) -> None:
        """Slurm does not answer the first question, or the second. No cache of a job is reaped."""

        def moment(now: int) -> None:
            if now == 2 * question - 2:
                raise Unknown("slurm_timeout", "it is slow")

        before = {user: self.world.names(user) for user in (ALICE, BOB)}
        result = self.run_sweep(moment)
        assert [one for one in result.reaped if not has_no_job(one.decision.directory)] == []
        assert result.unknown or self.world.asked < question
        reaped = {one.decision.directory.path for one in result.reaped}
        for user, names in before.items():
            gone = {f"{self.world.scratch}/{user}/.cache/{name}" for name in names - self.world.names(user)}
            assert gone <= reaped

    def run_sweep(self, moment: Callable[[int], None]) -> one_sweep.Result:
        """Run a sweep. moment: called with the number of each moment at which something can happen."""
        self.world.asked, self.world.moment, self.world.here = 0, moment, self.world.login
        try:
            return one_sweep.run(self.world.settings, scanning.Options(), slurm=ModelSlurm(self.world), host=self.world.host)
        finally:
            self.world.moment = lambda _: None

    # ---- what must hold

    @invariant()
    def live_caches_are_whole(self) -> None:
        """P3: the files of a job exist as long as one of its tasks may need them."""
        for job in self.jobs:
            for file in job.files if job.using else ():
                assert os.path.exists(file), f"job {job.id}, run {job.run}, on {sorted(job.using)}, has lost {file}"
            if job.by_hand and job.nodes:
                assert os.path.exists(job.by_hand), f"job {job.id} has lost what its script made"

    @invariant()
    def caches_of_commands_are_whole(self) -> None:
        """P3: the files of a process exist as long as it works, in whatever cache."""
        for command in self.world.commands:
            assert os.path.exists(command.file), f"process {command.pid} has lost {command.file}"

    @invariant()
    def foreign_directories_exist(self) -> None:
        """P4: directories that users made by hand, and caches of the other cluster."""
        for file in [*self.untouchable, *(f"{path}/others.arrow" for path in self.others)]:
            assert os.path.exists(file), f"{file} was deleted, and belongs to no cache of this cluster"

    @invariant()
    def kept_caches_exist(self) -> None:
        """JOBCACHE=keep is honored until the time that the Epilog has recorded."""
        now = self.world.clock.shown(time.time())
        self.kept = {file: until for file, until in self.kept.items() if until > now}
        for file in self.kept:
            assert os.path.exists(file), f"{file} was to be kept"

    def teardown(self) -> None:
        """P5: of users without jobs a sweep leaves kept caches alone. A later sweep leaves nothing."""
        for user in (ALICE, BOB):  # one after the other, since both can have a job with the same id
            self.jobs = [job for job in self.jobs if job.user != user]
            while any(one.user == user for one in self.world.commands):
                self.end_command([one.user for one in self.world.commands].index(user), kill=-1)
            self.world.clock.advance(2 * HOUR)
            assert [path for path in self.left(user) if not os.path.exists(f"{path}/.jobcache/keep")] == []
        self.kept_caches_exist()
        self.world.clock.advance(80 * HOUR)
        assert [*self.left(ALICE), *self.left(BOB)] == []
        self.foreign_directories_exist()

    def left(self, user: str) -> list[str]:
        """Run a sweep, and return the recorded directories of this cluster that it leaves to a user."""
        result = self.run_sweep(lambda _: None)
        assert (result.unknown, result.trouble) == (None, [])
        foreign = {os.path.dirname(file) for file in self.untouchable} | self.others | self.by_hand
        names = (name for name in self.world.names(user) if not cache_names.is_history(name))
        present = {f"{self.world.scratch}/{user}/.cache/{name}" for name in names}
        return sorted(present - foreign)

    # ---- lists

    def alive(self) -> dict[int, set[int]]:
        alive: dict[int, set[int]] = {}
        for job in self.jobs:
            alive.setdefault(job.id, set()).add(uid_of(job.user))
        return alive

    def path(self, job: Job) -> str:
        return f"{self.world.scratch}/{job.user}/.cache/hf-datasets-{cache_names.format_job(job.id, job.run)}"

    def in_state(self, state: str) -> list[Job]:
        return [job for job in self.jobs if job.state == state]

    def pending(self) -> list[Job]:
        return self.in_state("PENDING")

    def running(self) -> list[Job]:
        return self.in_state("RUNNING")

    def completing(self) -> list[Job]:
        return self.in_state("COMPLETING")

    def wide(self) -> list[Job]:
        return [job for job in self.running() if len(job.nodes) > 1]

    def given(self) -> list[Job]:
        """Return the running jobs with a cache."""
        return [job for job in self.running() if job.using]

    def up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.up]

    def down(self) -> list[Node]:
        return [node for node in self.nodes.values() if not node.up]


def close_descriptors(command: Command) -> None:
    """Close the descriptors that the end of a process closes."""
    cache = command.cache
    for fd in (command.lock, *(getattr(cache, name, -1) for name in ("_lock", "_fd", "_parent_fd"))):
        with suppress(OSError):
            os.close(fd)


def user_of(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


def one_of(things: Sequence[Any], pick: int) -> Any:
    return things[pick % len(things)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root acts as others")
def test_no_history_loses_a_live_cache_or_leaves_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3, P4 and P5 hold in every history. Steps of other jobs with the same ids run on this machine meanwhile."""
    with foreign_step(1), foreign_step(2), tempfile.TemporaryDirectory(prefix="jobcache-", dir=FAST) as top:
        os.chmod(top, 0o755)
        world = World(Path(top), monkeypatch)
        run_state_machine_as_test(
            lambda: Histories(world),
            settings=settings(
                max_examples=int(MORE or 200),
                stateful_step_count=40,
                derandomize=not MORE,
                phases=[Phase.generate] + [Phase.shrink] * bool(MORE),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
