"""One user can make files and processes in any number and of any size; they cost other users a bounded time of a sweep.

In each test Alice makes it, and the sweep reaps an orphan of Bob in time. What is given up is Alice's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobcache.cache import cache_names, lease_lock, node_leases, store_names
from jobcache.cli.main import main
from jobcache.config import settings
from jobcache.diagnostics import job_lookup
from jobcache.store import inventory
from jobcache.sweep import directories, listing, one_sweep, processes, reaping, scanning, tree_size, user_directories
from jobcache.system import gathering, stuck_processes
from support.faulty import FULL, GID, UID, prolog, swept
from support.home import acting_as, uid_of
from support.host import HOST
from support.site_dir import ALICE, BOB, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
MANY = 100_000 if FULL else 12_000
SECONDS = 30.0  # for a sweep on a busy machine; without the bounds, each bomb takes minutes
HERE = cache_names.host_cluster(lease_lock.host())


def run_cache(site: Site, name: str = "hf-datasets-run-77-abcdefgh", user: str = ALICE, **record: object) -> Path:
    """Make the cache of a `jobcache run` outside of jobs, with an empty nodes/."""
    cache = site.cache(user=user).parent / name
    pid = int(name.split("-")[3])
    with acting_as(user):
        (cache / ".jobcache/nodes").mkdir(parents=True)
        (cache / ".jobcache/id").write_text(f"{HERE} {pid} 0 {os.geteuid()}\n")
        (cache / ".jobcache/job.json").write_text(json.dumps({"cluster": HERE, "pid": pid, "started": 1, **record}))
    return cache


def timed(site: Site) -> one_sweep.Result:
    """Sweep, with an orphan of Bob. Check that it is reaped in time."""
    site.task_prolog(user=BOB)
    began = time.monotonic()
    result = swept(site)
    assert not site.cache(user=BOB).exists()
    assert time.monotonic() - began < SECONDS
    return result


def reasons(result: one_sweep.Result) -> dict[str, int]:
    """Return the number of Alice's directories by the reason of the decision."""
    found: dict[str, int] = {}
    for decision in result.decisions:
        if decision.directory.uid == UID:
            found[decision.reason] = found.get(decision.reason, 0) + 1
    return found


def test_forged_leases(site: Site) -> None:
    """A cache with more leases than jobcache makes is kept, with the reason. No lease of it is read."""
    cache = run_cache(site, padding="x" * 60_000)
    with acting_as(ALICE):
        text = node_leases.lease_text(*node_leases.now())
        for at in range(MANY):
            (cache / f".jobcache/nodes/{lease_lock.host()}+{at:016x}").write_bytes(text)
    assert reasons(timed(site)) == {"too_many_leases": 1}


def test_as_many_leases_as_are_read(site: Site) -> None:
    """The record is read once, and one lease that lives ends the reading."""
    cache = run_cache(site, padding="x" * 60_000)
    with acting_as(ALICE):
        text = node_leases.lease_text(*node_leases.now())
        for at in range(node_leases.MOST):
            (cache / f".jobcache/nodes/{lease_lock.host()}+{at:016x}").write_bytes(text)
    assert reasons(timed(site)) == {"orphan": 1}
    assert not cache.exists()


def test_leases_that_no_node_can_have(site: Site) -> None:
    """They keep the cache, whatever they are, and do not appear among its nodes."""
    cache = run_cache(site)
    with acting_as(ALICE):
        for name in ("\n", ".hidden", "+", "a\x1b[2Jb"):
            (cache / f".jobcache/nodes/{name}").touch()
    (decision,) = swept(site).decisions
    assert (decision.reason, decision.directory.nodes) == ("unconfirmed", ())


def test_slow_records_of_many_caches(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for the directories of one owner is limited. The rest is kept, with a reason, until the next sweep."""
    monkeypatch.setattr(scanning, "INSPECTION", 0.05)
    for at in range(1, 3000 if FULL else 1000):
        run_cache(site, f"hf-datasets-run-{at}-abcdefgh", padding=["x"] * 15_000)
    found = timed(site)
    assert reasons(found)["budget"] > 0
    assert any(f"uid {UID}" in message and "next sweep" in message for message in found.trouble)
    monkeypatch.setattr(scanning, "INSPECTION", 300.0)
    assert "budget" not in reasons(swept(site))


def test_names_beside_the_caches(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for the listing of one owner is limited as well."""
    monkeypatch.setattr(scanning, "LISTING", 0.05)
    prolog(site)
    with acting_as(ALICE):
        for at in range(10 * MANY):
            os.mknod(f"{site.cache().parent}/{at}")
    found = timed(site)
    assert any(str(site.cache().parent.parent) in message and "used up" in message for message in found.trouble)


def test_wildcard_directories(site: Site) -> None:
    """Directories where the template has {node} are counted."""
    site.configure(path=f"{site.scratch}/{{user}}/{{node}}/hf-datasets-{{job_id}}")
    with acting_as(ALICE):
        for at in range(12_000):
            (site.scratch / f"{ALICE}/n{at}").mkdir(parents=True)
    site.task_prolog(user=BOB)
    began = time.monotonic()
    found = swept(site)
    assert [one.decision.directory.uid for one in found.reaped] == [uid_of(BOB)]
    assert time.monotonic() - began < SECONDS
    assert any("more than 10000" in message for message in found.trouble)


def test_directories_in_a_sticky_scratch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of directories that could be users' ones, those of one user are counted as they are listed."""
    monkeypatch.setattr(user_directories, "MOST_UNATTRIBUTED", 100)
    with acting_as(ALICE):
        for at in range(MANY):
            (site.scratch / f"user{at}").mkdir()
    found = timed(site)
    assert any("more than 8 directories" in message for message in found.trouble)


PROCESS = """
import mmap, os, resource, sys
top, files, maps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (files + 100, files + 100))
fd = os.open(top, os.O_RDWR | os.O_CREAT)
held = [os.dup(fd) for _ in range(files)]
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
os.ftruncate(fd, 4096 * 2)
for at in range(maps):
    libc.mmap(None, 4096, 1 + at % 2 * 2, 1, fd, 4096 * (at % 2))
print(flush=True)
os.read(0, 1)
"""


@contextmanager
def heavy_processes(path: Path, count: int, files: int, maps: int) -> Iterator[list[int]]:
    """Keep processes of Alice alive with many open files and many mapped files at a long path."""

    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(path), str(files), str(maps)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, user=UID, group=GID, extra_groups=[])
        for _ in range(count)
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline()
        yield [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_processes_with_many_paths(site: Site) -> None:
    """They delay Bob's orphan for a limited time, and keep nothing of Bob. At most, Alice's own caches are kept."""
    prolog(site)
    with acting_as(ALICE):
        deep = site.scratch / ALICE / "/".join(["d"] * 1800 if FULL else ["d"] * 900)
        deep.mkdir(parents=True)
    with heavy_processes(deep / "file", 6, 10_000, 60_000):
        found = timed(site)
    assert reasons(found) in ({"in_use": 1}, {"orphan": 1})


def test_time_for_the_processes_of_one_user(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it does not suffice, the caches of this user are in use, and no other ones."""
    monkeypatch.setattr(processes, "OWNER_TIME", 0.0)
    prolog(site)
    with heavy_processes(site.scratch / ALICE / "file", 1, 1, 1) as (pid,):
        found = timed(site)
    assert reasons(found) == {"in_use": 1}
    assert [decision.directory.pids for decision in found.decisions if decision.directory.uid == UID] == [(pid,)]


def test_process_that_hangs_its_readers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner is given up, and while the reader is stuck, further sweeps do not wait. All processes of the owner live."""
    site.configure(sweep={"stray_processes": "terminate"})
    prolog(site)
    monkeypatch.setenv("SLURM_JOB_ID", "4242")  # the processes are strays
    real = processes._open_paths
    with heavy_processes(site.scratch / ALICE / "file", 2, 1, 1) as pids:
        monkeypatch.setattr(processes, "_open_paths", lambda pid: iter([[str(time.sleep(60))]]) if pid in pids else real(pid))
        monkeypatch.setattr(gathering, "PATIENCE", 2.0)
        found = [timed(site)]
        monkeypatch.setattr(gathering, "PATIENCE", 60.0)
        register = stuck_processes.Register(f"{site.dir}/run")
        with subprocess.Popen(["sleep", "600"]) as reader:
            register.note(register.processes(UID), reader.pid)
            found.append(timed(site))
            reader.kill()
        for one in found:
            assert (reasons(one), one.terminated) == ({"in_use": 1}, {})
            assert [set(decision.directory.pids) for decision in one.decisions if decision.directory.uid == UID] == [set(pids)]
        monkeypatch.setattr(processes, "_open_paths", real)
        assert reasons(timed(site)) == {"orphan": 1}


def test_environment_of_any_size(site: Site) -> None:
    """Of the environment of a stray process, the first MiB counts. To end strays of one user takes a limited time."""
    site.configure(sweep={"stray_processes": "terminate"})
    prolog(site)
    run = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    env = {**{f"X{at}": "x" * 100_000 for at in range(15)}, "SLURM_JOB_ID": "4242"}
    early = {"SLURM_JOB_ID": "4242", **env}
    with acting_as(ALICE):
        (site.cache() / "x").touch()
    with open(site.cache() / "x", encoding="ascii") as held:
        started = [
            subprocess.Popen(run, env=one, stdin=held, stdout=subprocess.PIPE, user=UID, group=GID, extra_groups=[])
            for one in (env, early)
        ]
        for process in started:
            assert process.stdout is not None and process.stdout.readline()
    found = timed(site)
    assert found.terminated == {str(site.cache()): (started[1].pid,)}
    for process in started:
        process.kill()
        process.communicate()


def test_errors_in_the_directories_of_one_user_are_few_lines(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's mail has some lines about a user whose directories all change under the sweep."""
    for at in range(1, 100):
        run_cache(site, f"hf-datasets-run-{at}-abcdefgh")

    class Changing(reaping.OwnerReaping):
        def _reap(self, one: object, report: object) -> dict[str, object]:
            raise OSError(5, "changed")

    monkeypatch.setattr(reaping, "OwnerReaping", Changing)
    found = swept(site)
    assert 10 < len(found.trouble) < 20 and f"--user {UID}" in found.trouble[-1]


def test_sizes_are_measured_for_a_limited_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing has no sizes of caches that are too large for it. Those of the other users are complete."""
    monkeypatch.setattr(scanning, "MEASUREMENT", 0.01)
    for user in (ALICE, BOB):
        site.task_prolog(user=user)
        site.fill(site.cache(user=user), "json/a.arrow", size=8192)
    with acting_as(ALICE):
        for at in range(MANY):
            os.mknod(f"{site.cache()}/json/{at}")
    compiled = settings.load(str(site.hooks / settings.FILE))
    rows = listing.list_caches(compiled, scanning.Options(node="n1", dry=True), host=HOST).rows
    assert {decision.directory.uid: size for decision, size in rows} == {UID: None, uid_of(BOB): (8192, 1)}


def test_sizes_need_little_memory() -> None:
    """A directory with a million entries is read one by one, and hard links are counted up to a limit."""
    scratch = tempfile.mkdtemp()
    try:
        os.mkdir(f"{scratch}/x")
        first = f"{scratch}/x/0"
        os.mknod(first)
        for at in range(1, 10_000):
            os.link(first, f"{scratch}/x/{at}")
            os.mkdir(f"{scratch}/x/d{at}")
        fd = os.open(scratch, os.O_RDONLY)
        tracemalloc.start()
        *_, last = tree_size.measure(fd, "x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        os.close(fd)
    finally:
        shutil.rmtree(scratch)
    assert last == (0, 10_000) and peak < 100_000


def test_events_about_one_user_are_few(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has an event for each of some caches that are kept, and the number of all."""
    monkeypatch.setattr(node_leases, "MOST", 0)
    for at in range(1, 300):
        (run_cache(site, f"hf-datasets-run-{at}-abcdefgh") / f".jobcache/nodes/{lease_lock.host()}+1").touch()
    done = CliRunner().invoke(main, ["sweep", "--hooks", str(site.hooks)], catch_exceptions=False, obj=HOST)
    assert done.exit_code == 0
    assert len(site.events("cache.kept")) == 100
    assert site.events("sweep.finished")[0]["reasons"] == {"too_many_leases": 299}


def test_directories_of_an_explained_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` examines some of one user, and none after one that does not answer."""
    parent = site.cache().parent
    with acting_as(ALICE):
        for at in range(1, 200):
            (parent / f".jobcache-trash-7-{at}").mkdir(parents=True)
    compiled = settings.load(str(site.hooks / settings.FILE))
    errors: list[str] = []
    assert len(job_lookup.job_directories(compiled, 7, None, "n1", errors)) == 64
    assert "more than 64" in errors[0]
    monkeypatch.setattr(job_lookup, "_PATIENCE", 0.1)
    monkeypatch.setattr(directories, "inspect", lambda *_: time.sleep(60))
    errors = []
    began = time.monotonic()
    assert job_lookup.job_directories(compiled, 7, None, "n1", errors) == []
    assert time.monotonic() - began < 5 and "does not answer" in errors[0]


def test_sections_with_many_names(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section of a store with more names than any has is reported, and not read to its end."""
    monkeypatch.setattr(inventory, "_MAX_NAMES", 100)
    section = site.dir / "store" / store_names.VERSION / store_names.section("")
    section.mkdir(parents=True)
    for at in range(200):
        (section / f"{at:032x}.1").mkdir()
    with pytest.raises(OSError, match="more than 100 entries"):
        list(inventory.entries(str(site.dir / "store"), 0))


# ------------------------------------------------------------------------- a cache without a lease, and with nodes/


def test_cache_whose_lease_is_gone_is_reaped(site: Site) -> None:
    """SIGKILL came between the removal of the last lease and that of nodes/."""
    cache = run_cache(site)
    assert reasons(swept(site)) == {"orphan": 1}
    assert not cache.exists()


def test_cache_without_a_lease_is_kept_in_doubt(site: Site) -> None:
    """Another host made it, its maker runs, or it is young."""
    elsewhere = run_cache(site, "hf-datasets-run-1-abcdefgh", cluster="@elsewhere")
    own = os.getpid()
    alive = run_cache(site, f"hf-datasets-run-{own}-abcdefgh", pid=own, started=lease_lock.started(own))
    found = {one.directory.path: one.reason for one in swept(site).decisions}
    assert found == {str(elsewhere): "other_host", str(alive): "alive"}


def test_cache_that_is_joined_before_it_is_reaped_is_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever removes nodes/ owns the cache: a lease that is taken after the last look prevents that."""
    cache = run_cache(site)
    seize = node_leases.seize_empty

    def joined(cache_fd: int) -> bool:
        os.mknod(f"/proc/self/fd/{cache_fd}/.jobcache/nodes/{lease_lock.host()}+1")
        return seize(cache_fd)

    monkeypatch.setattr(node_leases, "seize_empty", joined)
    found = swept(site)
    assert found.reaped == [] and "another process" in found.trouble[0]
    assert (cache / ".jobcache/nodes").is_dir()
