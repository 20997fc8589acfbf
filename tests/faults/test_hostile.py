"""Attacks by users with their own uid, for thousands of rounds. All trees outside of the cache must stay unchanged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import node_leases, protocol, reasons
from jobcache.config import settings
from jobcache.system import as_user, children, epilog_work
from jobcache.system.epilog_job import Job
from support.faulty import FULL, GID, UID, epilog, left, prolog, said, skipped, swept
from support.home import acting_as, fingerprint, uid_of
from support.mounts import mount
from support.racing import racing
from support.site_dir import ALICE, BOB, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
ROUNDS = 4_000 if FULL else 200  # of each step with each canary, of which there are 15
ENTRIES, LEVELS = (1_000_000, 100_000) if FULL else (20_000, 2_000)
BOBS = uid_of(BOB)


class Canaries:
    """Trees that root, Bob and Alice own, and that every user may write, so that no permission protects them.

    Each looks like a cache of Alice with the record of her job, which a misled process would accept.
    """

    def __init__(self, site: Site) -> None:
        self.trees = []
        for owner, uid in (("root", 0), (BOB, BOBS), (ALICE, UID)):
            top = site.dir / f"canary-{owner}"
            cache = top / "hf-datasets-4242"
            (cache / ".jobcache/nodes").mkdir(parents=True)
            (cache / "json/deep").mkdir(parents=True)
            (cache / ".jobcache/id").write_text(f"test 4242 0 {UID}\n")
            (cache / ".jobcache/job.json").write_text("{}\n")
            (cache / ".jobcache/nodes/n1").write_text("another-boot 1.00\n")
            (cache / "json/deep/precious").write_text(owner)
            for path in (top, *top.rglob("*")):
                os.chown(path, uid, -1)
                path.chmod(0o777 if path.is_dir() else 0o666)
            self.trees.append(top)
        self.before = self.fingerprints()

    def fingerprints(self) -> dict[str, tuple[object, ...]]:
        return {path: facts for tree in self.trees for path, facts in fingerprint(tree).items()}

    def check(self) -> None:
        assert self.fingerprints() == self.before


@pytest.fixture
def canaries(site: Site) -> Iterator[Canaries]:
    made = Canaries(site)
    yield made
    made.check()


def as_alice(work: Callable[[Callable[[dict[str, Any]], None]], None]) -> list[dict[str, Any]]:
    child = as_user.start(work, uid=UID, gid=GID, user=ALICE, place=None, most=1 << 28)
    facts = list(child.facts(time.monotonic() + 300))
    assert (child.status, child.error) == ("done", "")
    return facts


STEPS = {
    "the directory of caches": ("", "hf-datasets-4242/.."),
    "the cache": ("hf-datasets-4242", "hf-datasets-4242"),
    "its record": ("hf-datasets-4242/.jobcache", "hf-datasets-4242/.jobcache"),
    "its leases": ("hf-datasets-4242/.jobcache/nodes", "hf-datasets-4242/.jobcache/nodes"),
    "a directory in it": ("hf-datasets-4242/json", "hf-datasets-4242/json"),
}


@pytest.mark.parametrize("canary", ["root", BOB, ALICE])
@pytest.mark.parametrize("step", STEPS)
def test_a_symlink_swapped_in(site: Site, canaries: Canaries, step: str, canary: str) -> None:
    """Tasks make and join the cache, Epilogs release and reap it. Whatever component is swapped, nothing outside changes."""
    name, target = STEPS[step]
    parent = site.cache().parent
    prolog(site)
    compiled = settings.load(str(site.hooks / settings.FILE))
    aside = site.scratch / ALICE / "aside"
    os.symlink(os.path.normpath(f"{site.dir}/canary-{canary}/{target}"), aside)
    os.lchown(aside, UID, GID)

    def rounds(report: Callable[[dict[str, Any]], None]) -> None:
        job = Job(4242, UID, "n1")
        job.user, job.gid, job.nodes = ALICE, GID, 1
        outcomes: dict[str, int] = {}
        for _ in range(ROUNDS):
            try:
                claim = protocol.Claim(str(site.cache()), "test", 4242, 0, UID, "n1")
                claim.given_before = True
                outcome = protocol.enter(claim, 0)
                os.makedirs(f"{site.cache()}/json/deep", exist_ok=True)
            except (OSError, reasons.Refused) as error:
                outcome = type(error).__name__
            facts: list[dict[str, Any]] = []
            work = epilog_work.Work(job, compiled, compiled.templates, node_leases.now()[1] + 1)
            work(facts.append)
            for word in (outcome, *(f"{fact['outcome']} {fact['reason']}" for fact in facts if fact != children.END)):
                outcomes[word] = outcomes.get(word, 0) + 1
        report(outcomes)

    with racing((parent / name if name else parent, aside)):
        (outcomes,) = as_alice(rounds)
    assert sum(outcomes.values()) >= ROUNDS and len(outcomes) > 1, outcomes
    canaries.check()


def test_a_home_swapped_for_anothers(site: Site, canaries: Canaries) -> None:
    """During a sweep, Alice's directory becomes a symlink to a tree of root. The sweep reaps files of Alice alone."""
    homes = [site.scratch / ALICE, site.scratch / "aside"]
    (site.dir / "canary-root/.cache").symlink_to("../canary-root")
    canaries.before = canaries.fingerprints()
    homes[1].symlink_to(site.dir / "canary-root")
    os.lchown(homes[1], UID, GID)
    reaped = rounds = 0
    while rounds < ROUNDS // 20 or (not reaped and rounds < ROUNDS):  # on a busy machine, few sweeps meet her own directory
        rounds += 1
        prolog(site)
        with racing((homes[0], homes[1])):
            reaped += len(swept(site).reaped)
        if homes[0].is_symlink():
            with acting_as(ALICE):
                homes[0].rename(site.scratch / "third")
                homes[1].rename(homes[0])
                (site.scratch / "third").rename(homes[1])
    assert reaped
    canaries.check()


def test_a_cache_directory_that_leads_elsewhere(site: Site, canaries: Canaries) -> None:
    """.cache is a symlink to a tree of another user, or to /etc. No hook and no sweep follows it."""
    home = site.scratch / ALICE
    with acting_as(ALICE):
        home.mkdir()
    for target in (f"{site.dir}/canary-{BOB}", f"{site.dir}/canary-root", f"{site.dir}/canary-{ALICE}", "/etc"):
        (home / ".cache").symlink_to(target)
        os.lchown(home / ".cache", UID, GID)
        for python in ("", "/nonexistent"):
            site.configure()
            if python:
                site.policy(python=python)
            assert prolog(site).exports == {}
        site.configure()
        epilog(site)
        assert swept(site).reaped == []
        canaries.check()
        (home / ".cache").unlink()
    assert set(skipped(site)) == {("failed", "not_directory")}
    assert {reason for _, _, reason in said(site)} == {"not_directory"}


def test_hardlinks_to_files_of_others(site: Site, canaries: Canaries) -> None:
    """The name in the cache is deleted. The file has other names, and keeps content, mode and owner."""
    prolog(site)
    for tree in canaries.trees:
        os.link(tree / "hf-datasets-4242/json/deep/precious", site.cache() / f"link-{tree.name}")
    (site.cache() / "closed").mkdir(mode=0)
    os.chown(site.cache() / "closed", UID, GID)
    epilog(site)
    assert left(site) == []
    (reaped,) = site.events("cache.reaped")
    assert (reaped["files"], reaped["bytes"]) == (3, 0)
    for path, facts in canaries.fingerprints().items():
        assert (facts[:5], facts[6:]) == (canaries.before[path][:5], canaries.before[path][6:])  # all but the change time
    canaries.before = canaries.fingerprints()


def test_a_cache_planted_for_anothers_job(site: Site) -> None:
    """In a scratch that all may write, Bob makes a directory for Alice, and in it a cache for her job with her uid in the id."""
    with acting_as(BOB):
        planted = site.cache()
        (planted / ".jobcache/nodes").mkdir(parents=True)
        (planted / ".jobcache/id").write_text(f"test 4242 0 {UID}\n")
        (planted / ".jobcache/nodes/n1").write_text("another-boot 1.00\n")
        (planted / "poison.arrow").write_text("x")
        for path in (site.scratch / ALICE, *(site.scratch / ALICE).rglob("*")):
            path.chmod(0o777)
    before = fingerprint(site.scratch / ALICE)
    for python in ("", "/nonexistent"):
        if python:
            site.policy(python=python)
        for step in ("", "0"):
            assert prolog(site, step=step).exports == {}
    site.configure()
    epilog(site)
    assert swept(site).reaped == []
    assert fingerprint(site.scratch / ALICE) == before
    assert said(site) == [("cache.kept", "kept", "foreign")]


HUGE = 10 << 30  # bytes, in a sparse file


@pytest.mark.parametrize("what", ["id", "job.json", "nodes/n1", "keep"])
@pytest.mark.parametrize("kind", ["huge", "fifo", "directory", "device", "deep"])
def test_forged_files(site: Site, what: str, kind: str) -> None:
    """A file of 10 GB, a fifo, a directory, a device, deep JSON: hooks read each in time, and the sweep deletes it."""
    if (what, kind) == ("id", "fifo"):
        pytest.skip("contract/test_task_prolog.py::test_a_fifo_for_an_id")
    site.configure(task_prolog={"deadline": "1s"})
    prolog(site)
    path = site.cache() / ".jobcache" / what
    if path.exists():
        path.unlink()
    with acting_as("root" if kind == "device" else ALICE):
        if kind == "huge":
            path.touch()
            os.truncate(path, HUGE)
        elif kind == "deep":
            path.write_text("[" * 60_000)
        else:
            {"fifo": os.mkfifo, "directory": os.mkdir, "device": lambda at: os.mknod(at, 0o20666, os.makedev(1, 5))}[kind](path)
    prolog(site, step="0")
    epilog(site)
    assert all(len(str(event)) < 4096 for event in site.events())
    site.configure(keep_max="0s")
    swept(site)
    if left(site):  # a directory with a forged id is kept and reported
        assert what == "id" and left(site) == ["hf-datasets-4242"]
        assert said(site)[-1][0] == "cache.kept"


def test_leases_of_missing_nodes(site: Site) -> None:
    """They prevent reaping by an Epilog, but not by a sweep: the cache occupies the user's quota for `grace` at most."""
    prolog(site)
    with acting_as(ALICE):
        for at in range(1000):
            (site.cache() / f".jobcache/nodes/ghost-{at}").write_text("boot 1e300\n")
    epilog(site)
    assert left(site) == ["hf-datasets-4242"]
    swept(site)
    assert left(site) == []


def test_signals_from_the_user(site: Site) -> None:
    """The user can kill and stop the child of the Epilog. The Epilog exits 0 in time, and a later one reaps the cache."""
    site.configure(epilog={"deadline": "3s"})
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        prolog(site)
        site.fill(site.cache(), *(f"json/{at}" for at in range(200)), size=1)
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                as_user.become(UID, None, ALICE)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    for name in filter(str.isdigit, os.listdir("/proc")):
                        try:
                            if int(name) != os.getpid() and os.stat(f"/proc/{name}").st_uid in (0, UID):
                                os.kill(int(name), number)
                        except OSError:
                            continue
            finally:
                os._exit(1)
        try:
            epilog(site, deadline=3)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        epilog(site)
        swept(site)
        assert left(site) == []


# -------------------------------------------------------------------------------------------------------------- bombs


def entries(cache: Path) -> None:
    (cache / "many").mkdir()
    for at in range(ENTRIES):
        os.mknod(f"{cache}/many/{at}")


def levels(cache: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(cache)
    for _ in range(LEVELS):
        os.mkdir("d")
        os.chdir("d")
    os.fchdir(here)
    os.close(here)


def leases(cache: Path) -> None:
    for at in range(ENTRIES):
        os.mknod(f"{cache}/.jobcache/nodes/{at}")


def runs(cache: Path) -> None:
    for at in range(1, ENTRIES):
        os.mkdir(f"{cache}-r{at}")


def neighbours(cache: Path) -> None:
    for at in range(1, ENTRIES):
        os.mkdir(f"{cache.parent}/hf-datasets-{10_000_000 + at}")


def trash(cache: Path) -> None:
    for at in range(ENTRIES):
        os.mkdir(f"{cache.parent}/.jobcache-trash-7-{at}")


@pytest.mark.parametrize("bomb", [entries, levels, leases, runs, neighbours, trash], ids=lambda bomb: bomb.__name__)
def test_a_directory_bomb(site: Site, bomb: Callable[[Path], None]) -> None:
    """It delays the node for the deadline at most, and does not stop a sweep from reaping the cache of Bob."""
    place = site.scratch / ALICE
    place.mkdir()
    with mount("none", place, "tmpfs", f"uid={UID},gid={GID},nr_inodes=0,size=8g"):
        prolog(site)
        with acting_as(ALICE):
            bomb(site.cache())
        began = time.monotonic()
        epilog(site)
        ended = time.monotonic()
        site.task_prolog(user=BOB)
        result = swept(site)
        print(f"{bomb.__name__}: Epilog {ended - began:.1f} s, sweep {time.monotonic() - ended:.1f} s, {result.trouble}")
        assert not site.cache(user=BOB).exists()
        if bomb in (runs, neighbours, trash):  # the sweep takes 10,000 of them, and reports that there are more
            assert [message for message in result.trouble if "more than 10000" in message]
            assert len(result.decisions) == 10_001
        else:
            for _ in range(10):  # each sweep deletes for five seconds only if no other file is left
                if left(site):
                    swept(site)
            assert left(site) == []


def test_more_directories_than_there_is_time_for(site: Site) -> None:
    """The budget covers the listing of the job's directory as well. The Epilog logs the rest as kept, and the sweep reaps it."""
    site.configure(epilog={"budget": "0s"})
    prolog(site)
    with acting_as(ALICE):
        for at in range(3000):
            os.mkdir(f"{site.cache().parent}/other-{at}")
    epilog(site)
    assert said(site) == [("cache.kept", "kept", "budget"), ("cache.reaped", "trashed", "budget")]
    swept(site)
    assert not site.cache().exists() and not site.debris()
