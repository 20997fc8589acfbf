"""Children that act as a user: with the user's rights alone, out of the user's reach, and within their deadline."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobcache.system import as_user, children, stuck_places
from support.home import ALICE, acting_as, uid_of
from support.hungfs import hung

Report = Callable[[dict[str, Any]], None]
ATTACK = """
import ctypes, os, sys
pid, attach, detach = int(sys.argv[1]), 16, 17
libc = ctypes.CDLL(None, use_errno=True)
print("ptrace" if libc.ptrace(attach, pid, 0, 0) == 0 else "")
os.path.exists("/") and libc.ptrace(detach, pid, 0, 0)
for name in ("mem", "environ"):
    try:
        open(f"/proc/{pid}/{name}", "rb").close()
        print(name)
    except PermissionError:
        pass
for name in ("fd", "fdinfo", "cwd/"):
    try:
        print(os.listdir(f"/proc/{pid}/{name}") and name)
    except PermissionError:
        pass
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Assert that no descriptor and no zombie is left in the parent."""
    before, children = len(os.listdir("/proc/self/fd")), psutil.Process().children()
    yield
    assert len(os.listdir("/proc/self/fd")) == before
    assert [child for child in psutil.Process().children() if child not in children] == []


def start(work: Callable[[Report], None], places: list[int] | None = None, **who: Any) -> children.Child:
    who = {"uid": uid_of(ALICE), "gid": None, "user": ALICE, **who}
    return as_user.start(work, places=places or [], **who)


def run(work: Callable[[Report], None], seconds: float = 20, **who: Any) -> tuple[children.Child, list[dict[str, Any]]]:
    """Run `work` as Alice; return the child after its end, and what it reported."""
    child = start(work, **who)
    return child, list(child.facts(time.monotonic() + seconds))


def idle(report: Report) -> None:
    """Report the pid, and wait to be killed."""
    report({"pid": os.getpid()})
    time.sleep(60)


def pipe_of(_: Report) -> int:
    """Return the child's report pipe, to write invalid data to it."""
    for fd in range(3, 1000):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                return fd
        except OSError:
            continue
    raise AssertionError


# ------------------------------------------------------------------------------------------------------------- identity


def test_child_has_the_rights_of_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """uid, gid and groups are the user's, without the parent's groups, root's groups, or capabilities."""
    groups = os.getgroups()
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [gid, 33, 34])
    os.setgroups([0, 4, 24])
    try:
        child, facts = run(
            lambda report: report(
                {
                    "uid": os.getresuid(),
                    "gid": os.getresgid(),
                    "groups": sorted(os.getgroups()),
                    "status": Path("/proc/self/status").read_text(),
                    "cwd": os.getcwd(),
                    "umask": os.umask(0),
                }
            )
        )
    finally:
        os.setgroups(groups)
    (fact,) = facts
    status = dict(line.split(":\t", 1) for line in fact.pop("status").splitlines())
    assert child.status == "done"
    assert fact == {"uid": [5] * 3, "gid": [60] * 3, "groups": [33, 34, 60], "cwd": "/", "umask": 0o077}
    assert status["Uid"].split() == ["5"] * 4 and status["Gid"].split() == ["60"] * 4  # the filesystem uid as well
    assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [0] * 4


def test_group_from_slurm_suffices_for_an_unknown_name() -> None:
    """If the group is given and the name is unknown on this node, the child has this group only."""
    _, facts = run(lambda report: report({"gid": os.getresgid(), "groups": os.getgroups()}), gid=33, user="no-such-user")
    assert facts == [{"gid": [33] * 3, "groups": [33]}]


def test_child_cannot_become_root_again() -> None:
    """No system call leads back to root."""

    def work(report: Report) -> None:
        calls = (
            lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setreuid(0, 0), lambda: os.setresuid(0, 0, 0),
            lambda: os.setgid(0), lambda: os.setegid(0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0]),
        )  # fmt: skip
        for call in calls:
            try:
                call()
            except PermissionError:
                report({"refused": True})

    _, facts = run(work)
    assert facts == [{"refused": True}] * 8


@pytest.mark.parametrize("who", [{"uid": 0}, {"uid": 0, "gid": 60}, {"uid": 4294967294}])
def test_root_and_unknown_users_are_refused(who: dict[str, int]) -> None:
    """The work does not begin."""
    child, facts = run(lambda report: report({"done": True}), **who)
    assert (child.status, facts) == ("died", []) and child.error


@pytest.mark.parametrize("faked", ["nothing", "getresuid"])
def test_change_of_user_is_verified_before_the_work(monkeypatch: pytest.MonkeyPatch, faked: str) -> None:
    """The kernel's view of the new identity is checked, and that root is out of reach."""
    monkeypatch.setattr(os, "setresuid", lambda *_: None)
    if faked == "getresuid":
        monkeypatch.setattr(os, "getresuid", lambda: (5, 5, 5))
    child, facts = run(lambda report: report({"done": True}))
    words = "could not become uid 5" if faked == "nothing" else "could become root again"
    assert (child.status, facts, child.error) == ("died", [], f"PermissionError: {words}")


def test_same_user_needs_no_root() -> None:
    """If the caller is the user already, root is not needed."""

    def work(report: Report) -> None:
        child = start(lambda inner: inner({"uid": os.getresuid()}))
        for fact in child.facts(time.monotonic() + 20):
            report({**fact, "status": child.status})

    assert run(work)[1] == [{"uid": [5] * 3, "status": ""}]


def test_child_holds_only_its_pipe_and_places(run_dir: str) -> None:
    """Standard input, output and error are /dev/null."""
    held = os.open("/etc/shadow", os.O_RDONLY)
    os.dup2(held, 777, inheritable=True)
    os.close(held)

    def work(report: Report) -> None:
        report(descriptors("self"))

    places = stuck_places.open_places(run_dir, "1:2")
    try:
        child, (links,) = run(work, places=places)
    finally:
        os.close(777)
    assert {fd: link for fd, link in links.items() if int(fd) < 3} == dict.fromkeys("012", "/dev/null")
    rest = sorted(link for fd, link in links.items() if int(fd) > 2)
    assert rest == [f"{run_dir}/stuck-1" for _ in range(4)] + ["pipe"]


def descriptors(pid: object) -> dict[str, str]:
    """Return the targets of all open descriptors of a process."""
    links = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            links[fd] = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0]
        except FileNotFoundError:
            continue  # the descriptor of the listing
    return links


def test_user_cannot_trace_the_child() -> None:
    """Another process of the user can neither trace the child nor read its memory, environment or descriptors."""
    child = start(idle)
    facts = child.facts(time.monotonic() + 60)
    attacked = attack(next(facts)["pid"])
    os.kill(child.pid, signal.SIGKILL)
    assert (list(facts), attacked) == ([], [])


def test_user_can_trace_an_executed_process() -> None:
    """The control: a process that was exec'd as the user is within reach."""
    if Path("/proc/sys/kernel/yama/ptrace_scope").exists():
        pytest.skip("Yama lets nobody trace")
    with subprocess.Popen(["/bin/sleep", "60"], user=ALICE) as sleep:
        attacked = attack(sleep.pid)
        sleep.kill()
    assert attacked == ["ptrace", "mem", "environ", "fd", "fdinfo", "cwd/"]


def attack(pid: int) -> list[str]:
    done = subprocess.run([sys.executable, "-c", ATTACK, str(pid)], user=ALICE, capture_output=True, check=True, text=True)
    return done.stdout.split()


# -------------------------------------------------------------------------------------------------------------- the end


def test_facts_arrive_in_order() -> None:
    """Facts of any content arrive in order, and the status is done."""
    facts = [{"n": at, "text": '\udcff\n"ü' * at} for at in range(200)]
    child, found = run(lambda report: [report(fact) for fact in facts] and None)
    assert (child.status, child.error, found) == ("done", "", facts)


def test_late_child_is_killed() -> None:
    """At the deadline the child is killed. Earlier facts are returned."""
    began = time.monotonic()
    child, facts = run(idle, seconds=0.2)
    assert (child.status, facts) == ("late", [{"pid": child.pid}])
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_child_killed_by_its_user_has_died() -> None:
    """The user can kill the child, and the status shows it."""
    child = start(idle)
    facts = child.facts(time.monotonic() + 60)
    pid = next(facts)["pid"]
    with acting_as(ALICE):
        os.kill(pid, signal.SIGKILL)
    assert (list(facts), child.status) == ([], "died")


def test_stopped_child_is_late() -> None:
    """The user can stop the child, but that does not extend the deadline."""
    child = start(idle)
    pid = next(child.facts(time.monotonic() + 60))["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert (list(child.facts(time.monotonic() + 0.2)), child.status) == ([], "late")


@pytest.mark.parametrize("error", [ValueError("no \udcff"), SystemExit(0), KeyboardInterrupt(), OSError(28, "No space")])
def test_error_of_the_work_is_reported(error: BaseException) -> None:
    """If the work raises any exception, the child dies with its text."""

    def work(report: Report) -> None:
        report({"n": 1})
        raise error

    child, facts = run(work)
    assert (child.status, facts, child.error) == ("died", [{"n": 1}], f"{type(error).__name__}: {error}")


def test_report_is_limited() -> None:
    """A child that reports without end is killed, so the parent's memory is bounded."""

    def work(report: Report) -> None:
        while True:
            report({"x": "x" * 1000})

    child, facts = run(work)
    assert (child.status, child.error) == ("died", "it reported too much data")
    assert sum(len(str(fact)) for fact in facts) <= children.REPORT_MAX


@pytest.mark.parametrize("data", [b'{"b": ', b"{", b'{"b": 2}'])
def test_incomplete_fact_is_ignored(data: bytes) -> None:
    """An incomplete last line is not a fact and not an error."""

    def work(report: Report) -> None:
        report({"a": 1})
        os.write(pipe_of(report), data)
        os.kill(os.getpid(), signal.SIGKILL)

    child, facts = run(work)
    assert (child.status, facts) == ("died", [{"a": 1}])


@pytest.mark.parametrize("data", [b"nonsense\n", b"\n", b"\xff\n", b"[1]\n", b'"died"\n', b"null\n"])
def test_invalid_fact_ends_the_child(data: bytes) -> None:
    """A complete line that is not a fact kills the child, and raises nothing in the parent."""

    def work(report: Report) -> None:
        os.write(pipe_of(report), data)
        time.sleep(60)

    child, facts = run(work)
    assert (child.status, facts, child.error) == ("died", [], "it reported invalid data")


def test_child_that_hangs_at_its_end_is_late() -> None:
    """The parent waits until the deadline for a child that has closed its pipe and does not end."""

    def work(report: Report) -> None:
        report({"n": 1})
        os.close(pipe_of(report))
        time.sleep(60)

    child, facts = run(work, seconds=0.3)
    assert (child.status, facts) == ("late", [{"n": 1}])


def test_facts_reported_in_time_count() -> None:
    """While one child uses up the time, the others' facts are kept."""
    child = start(lambda report: report({"n": 1}))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert (list(child.facts(time.monotonic() - 10)), child.status) == ([{"n": 1}], "done")


def test_finished_child_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that has finished its work gets a moment to end."""
    monkeypatch.setattr(children, "_GRACE", 10)

    def work(report: Report) -> None:
        report({"n": 1})
        os.close(pipe_of(report))
        time.sleep(0.05)

    child = start(work)
    while "pipe" in descriptors(child.pid).values():
        time.sleep(0.001)
    assert (list(child.facts(time.monotonic())), child.status) == ([{"n": 1}], "done")


def test_failed_fork_closes_everything(run_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of fork is raised, and no descriptor stays open."""

    def fork() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    places = stuck_places.open_places(run_dir, "1:2")
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(OSError, match="unavailable"):
        start(idle, places)


# ----------------------------------------------------------------------------------------------------- hung filesystems


@pytest.fixture
def point() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="jobcache-"))
    directory.chmod(0o755)
    yield directory
    directory.rmdir()


def test_stuck_processes_are_limited(point: Path, run_dir: str) -> None:
    """At most four processes that SIGKILL does not end hang on one filesystem. When they end, their places are free."""
    stuck = []
    with hung(point) as server:
        for at in range(4):
            began = time.monotonic()
            child, facts = run(
                lambda _, at=at: os.stat(point / str(at)) and None, seconds=0.1, places=stuck_places.open_places(run_dir, "0:99")
            )
            assert (child.status, facts) == ("late", []) and time.monotonic() - began < 5
            stuck.append(child.pid)
        assert server.waiting == 4
        with pytest.raises(stuck_places.Stuck):
            stuck_places.open_places(run_dir, "0:99")
        assert run(lambda _: None, places=stuck_places.open_places(run_dir, "8:1"))[0].status == "done"
    for pid in stuck:
        os.waitpid(pid, 0)
    assert run(lambda _: None, places=stuck_places.open_places(run_dir, "0:99"))[0].status == "done"


def test_killed_process_occupies_no_place(point: Path, run_dir: str) -> None:
    """A late process that could be killed does not count."""
    with hung(point, killable=True):
        for _ in range(6):
            child, _ = run(
                lambda _: os.stat(point / "x") and None, seconds=0.05, places=stuck_places.open_places(run_dir, "0:99")
            )
            assert child.status == "late"


def test_checking_for_a_place_occupies_none(run_dir: str) -> None:
    """Concurrent checks do not take each other for stuck processes."""
    checks = [stuck_places.open_places(run_dir, "1:2") for _ in range(8)]
    for places in checks:
        for place in places:
            fcntl.flock(place, fcntl.LOCK_SH)
    checks.append(stuck_places.open_places(run_dir, "1:2"))
    for places in checks:
        for place in places:
            os.close(place)


def test_missing_run_dir_means_no_limit(tmp_path: Path) -> None:
    """If the directory of the places cannot be used, the work is done without a limit."""
    (tmp_path / "file").write_text("")
    places = stuck_places.open_places(str(tmp_path / "file"), "1:2")
    assert places == []
    assert run(lambda report: report({}), places=places)[1] == [{}]


def test_places_are_private(run_dir: str) -> None:
    """Only root can open the places, and a symlink in their stead is not followed."""
    for place in stuck_places.open_places(run_dir, "1:2"):
        os.close(place)
    modes = {os.stat(path).st_mode & 0o777 for path in (run_dir, f"{run_dir}/stuck-1:2.0")}
    assert modes == {0o700, 0o600}
    os.symlink("/dev/null", f"{run_dir}/stuck-3:4.0")
    assert stuck_places.open_places(run_dir, "3:4") == []


# -------------------------------------------------------------------------------------------- many children, many users


def starter(work: Callable[[Report], None]) -> Callable[[], children.Child]:
    return lambda: start(work)


def test_children_run_a_few_at_a_time() -> None:
    """All children run, with a limit at any time. The facts of each arrive in order, then its end."""
    running, most, ended, heard = 0, 0, [], {}

    def counted(at: int) -> Callable[[], children.Child]:
        def begin() -> children.Child:
            nonlocal running, most
            running += 1
            most = max(most, running)
            return start(lambda report: [report({"at": at, "n": n}) for n in range(at)] and None)

        return begin

    for key, child, fact in children.each(((at, counted(at)) for at in range(20)), 3, 20):
        if fact is None:
            running -= 1
            assert (child.status, heard.get(key, 0)) == ("done", key)
            ended.append(key)
        else:
            assert (fact, key in ended) == ({"at": key, "n": heard.get(key, 0)}, False)
            heard[key] = heard.get(key, 0) + 1
    assert sorted(ended) == list(range(20)) and most == 3


def test_silent_child_is_late_and_others_continue() -> None:
    """A silent child is late, a failing child has died, and the facts of the others arrive."""

    def talk(report: Report) -> None:
        for n in range(10):
            report({"n": n})
            time.sleep(0.05)

    def die(report: Report) -> None:
        raise ValueError("no")

    works = {"silent": idle, "talks": talk, "dies": die}
    ends = {}
    for key, child, fact in children.each(((key, starter(work)) for key, work in works.items()), 3, 0.6):
        if fact is None:
            ends[key] = child.status
    assert ends == {"silent": "late", "talks": "done", "dies": "died"}


def test_acting_switches_rights_for_a_block() -> None:
    """In the block the process has the user's rights alone. Afterwards root's rights are back, also after an error."""

    def work(report: Report) -> None:
        os.setgroups([0, 4])
        try:
            with as_user.Acting(5, 60):
                report({"uid": os.getresuid(), "gid": os.getegid(), "groups": os.getgroups()})
                Path("/etc/shadow").read_text()
        except PermissionError:
            report({"uid": os.getresuid(), "gid": os.getegid(), "groups": os.getgroups()})
        time.sleep(60)

    child = as_user.start(work, uid=None, gid=None, user=None, places=[])
    facts = child.facts(time.monotonic() + 20)
    assert next(facts) == {"uid": [0, 5, 0], "gid": 60, "groups": [60]}
    assert next(facts) == {"uid": [0, 0, 0], "gid": 0, "groups": [0, 4]}
    child.kill()
    assert list(facts) == []


def test_acting_as_another_user_requires_root() -> None:
    """A user cannot act as another user."""

    def work(report: Report) -> None:
        with as_user.Acting(5, 60):
            report({"own": True})
        with as_user.Acting(33, 33):
            report({"other": True})

    child, facts = run(work)
    assert (child.status, facts) == ("died", [{"own": True}])


def test_user_cannot_trace_root_with_its_rights() -> None:
    """While root has a user's rights, the user can neither signal nor trace it."""

    def work(report: Report) -> None:
        with as_user.Acting(5, 60):
            idle(report)

    child = as_user.start(work, uid=None, gid=None, user=None, places=[])
    facts = child.facts(time.monotonic() + 60)
    pid = next(facts)["pid"]
    signalled = subprocess.run(["/bin/kill", "-0", str(pid)], user=ALICE, stderr=subprocess.DEVNULL, check=False)
    assert signalled.returncode != 0 and attack(pid) == []
    child.kill()
    assert list(facts) == []


def test_closing_the_iterator_kills_the_children() -> None:
    """If the consumer of `each` stops, the running children are killed."""

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        report({"pid": os.getpid()})
        time.sleep(60)

    def begin() -> children.Child:
        return as_user.start(work, uid=None, gid=None, user=None, places=[])

    running = children.each([(at, begin) for at in range(3)], 3, 30.0)
    pids = [fact["pid"] for _, _, fact in (next(running) for _ in range(3)) if fact]
    running.close()
    assert len(pids) == 3 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_long_fact_arrives_complete() -> None:
    """A fact that arrives in many pieces is one fact."""
    text = "x" * (8 << 20)
    child = as_user.start(lambda report: report({"text": text}), uid=None, gid=None, user=None, places=[], most=1 << 28)
    assert [fact["text"] for fact in child.facts(time.monotonic() + 30)] == [text]
    assert child.status == "done"
