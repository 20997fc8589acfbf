"""Children that act as a user: with the user's rights alone, out of the user's reach, and within their deadline."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobcache.system import as_user, children, mounts, stuck_processes
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


def start(work: Callable[[Report], None], **who: Any) -> children.Child:
    return as_user.start(work, **{"uid": uid_of(ALICE), "gid": None, "user": ALICE, "place": None, **who})


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


def test_child_holds_only_its_pipe() -> None:
    """Standard input, output and error are /dev/null."""
    held = os.open("/etc/shadow", os.O_RDONLY)
    os.dup2(held, 777, inheritable=True)
    os.close(held)

    def work(report: Report) -> None:
        report(descriptors("self"))

    try:
        child, (links,) = run(work)
    finally:
        os.close(777)
    assert {fd: link for fd, link in links.items() if int(fd) < 3} == dict.fromkeys("012", "/dev/null")
    assert sorted(link for fd, link in links.items() if int(fd) > 2) == ["pipe"]


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


def test_failed_fork_closes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of fork is raised, and no descriptor stays open."""

    def fork() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(OSError, match="unavailable"):
        start(idle)


# ----------------------------------------------------------------------------------------------------- hung filesystems


@pytest.fixture
def point() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="jobcache-"))
    directory.chmod(0o755)
    yield directory
    directory.rmdir()


def stuck_at(place: stuck_processes.Place, path: Path, most: int = 4) -> children.Child:
    """Start a child of the place's user that hangs at `path`; return it after its deadline."""
    place.claim(most)
    child, facts = run(lambda _: os.stat(path) and None, seconds=0.1, uid=place.uid, gid=60, user=None, place=place)
    assert (child.status, facts) == ("late", [])
    return child


def wait_for(children_: list[children.Child]) -> None:
    for child in children_:
        os.waitpid(child.pid, 0)


def test_stuck_processes_are_limited_per_user_and_filesystem(point: Path, run_dir: str) -> None:
    """At most four processes of one user, which SIGKILL does not end, hang on one filesystem. Nothing else is held up by them."""
    with hung(point) as server:

        def place(uid: int = 5, path: str = f"{point}/x") -> stuck_processes.Place:
            return stuck_processes.Register(run_dir).place(uid, path)

        stuck = [stuck_at(place(), point / str(at)) for at in range(4)]
        assert server.waiting == 4
        with pytest.raises(stuck_processes.Stuck, match="4 processes of uid 5"):
            place().claim(4)
        for free in (place(33), place(5, "/"), place(33, "/"), place(0)):
            free.claim(4)
        with pytest.raises(stuck_processes.Stuck):
            place(33, f"{point}/y").check(0)
    wait_for(stuck)
    place().check()
    assert os.listdir(f"{run_dir}/stuck") == []


def test_memory_of_a_stuck_process_is_freed(point: Path, run_dir: str) -> None:
    """A stuck process of some megabytes keeps little memory."""
    ballast = b"x" * (64 << 20)

    def work(_: Report) -> None:
        copied = bytearray(ballast)
        os.stat(point / "x")
        del copied

    with hung(point):
        child, _ = run(work, seconds=0.5, place=stuck_processes.Register(run_dir).place(5, str(point)))
        assert child.stuck
        until = time.monotonic() + 10
        while int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) > 2048 and time.monotonic() < until:
            time.sleep(0.01)
        assert int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) <= 2048  # pages
    wait_for([child])


def test_killed_process_is_not_counted(point: Path, run_dir: str) -> None:
    """A late process that could be killed is not stuck."""
    with hung(point, killable=True):
        for _ in range(6):
            stuck_at(stuck_processes.Register(run_dir).place(5, f"{point}/x"), point / "x", most=1)
    assert not os.path.exists(f"{run_dir}/stuck")


def named(register: stuck_processes.Register, uid: int, device: str) -> stuck_processes.Place:
    """Return a place without a look at the mount table."""
    return stuck_processes.Place(register, uid, device, "", False)


@pytest.fixture
def sleepers() -> Iterator[Callable[[], int]]:
    """Yield a function that starts a process and returns its id."""
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> int:
        running.append(subprocess.Popen(["sleep", "600"]))
        return running[-1].pid

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_user_cannot_use_up_the_limit_of_the_node(run_dir: str, sleepers: Callable[[], int]) -> None:
    """One user counts for eight, also with many filesystems of their own, and with many processes at the same moment."""
    register = stuck_processes.Register(run_dir)
    for at in range(100):
        register.note(named(register, 1000, f"0:{at % 25}"), sleepers())
    fresh = stuck_processes.Register(run_dir)
    with pytest.raises(stuck_processes.Stuck, match="100 processes of uid 1000"):
        named(fresh, 1000, "0:99").check()
    for place in (named(fresh, 1001, "0:1"), named(fresh, 1001, "0:99"), named(fresh, 0, "0:1")):
        place.check()


def test_stuck_processes_of_all_users_are_limited(run_dir: str, sleepers: Callable[[], int]) -> None:
    """A filesystem that hangs for everybody leaves the others alone, up to the limit of the node."""
    register = stuck_processes.Register(run_dir)
    for uid in range(1000, 1000 + stuck_processes.ON_FILESYSTEM):
        named(register, uid, "0:1").check()
        register.note(named(register, uid, "0:1"), sleepers())
    with pytest.raises(stuck_processes.Stuck, match="16 processes on this filesystem"):
        named(stuck_processes.Register(run_dir), 2000, "0:1").check()
    named(register, 2000, "0:2").check()
    for uid in range(3000, 3000 + stuck_processes.ON_NODE - stuck_processes.ON_FILESYSTEM):
        named(register, uid, f"0:{uid}").check()
        register.note(named(register, uid, f"0:{uid}"), sleepers())
    with pytest.raises(stuck_processes.Stuck, match="64 processes on this node"):
        named(stuck_processes.Register(run_dir), 2000, "0:2").check()


def test_claims_on_a_users_filesystem_count_at_once(run_dir: str) -> None:
    """Jobs that end at the same moment cannot all pass. On a filesystem of the site, they all do."""
    register = stuck_processes.Register(run_dir)
    for _ in range(6):
        named(register, 1000, "0:1").claim(4)
    pids = []
    for _ in range(12):
        pid = os.fork()
        if pid == 0:
            place = stuck_processes.Place(stuck_processes.Register(run_dir), 1000, "0:2", "", True)
            try:
                place.claim(4)
                time.sleep(2)
            except stuck_processes.Stuck:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    assert sorted(os.waitpid(pid, 0)[1] for pid in pids) == [0] * 4 + [256] * 8
    place = stuck_processes.Place(stuck_processes.Register(run_dir), 1000, "0:2", "", True)
    for _ in range(6):
        place.claim(4)
        place.leave()


def test_process_with_a_reused_id_is_not_counted(run_dir: str, sleepers: Callable[[], int]) -> None:
    """Neither is a zombie. What else lies in the directory is left alone."""
    register = stuck_processes.Register(run_dir)
    name = register.note(named(register, 1000, "0:1"), sleepers())
    os.rename(f"{run_dir}/stuck/{name}", f"{run_dir}/stuck/{name}1")
    zombie = os.fork()
    if zombie == 0:
        time.sleep(0.2)
        os._exit(0)
    assert register.note(named(register, 1000, "0:1"), zombie)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    Path(f"{run_dir}/stuck/note").write_text("mine")
    named(stuck_processes.Register(run_dir), 1000, "0:1").check()
    assert os.listdir(f"{run_dir}/stuck") == ["note"]
    os.waitpid(zombie, 0)


def test_process_whose_first_thread_has_ended_is_counted(point: Path, run_dir: str) -> None:
    """The reaper has threads, and the one that hangs may be any of them."""

    def work(report: Report) -> None:
        threading.Thread(target=lambda: os.stat(point / "x")).start()
        report({"pid": os.getpid()})
        time.sleep(60)

    register = stuck_processes.Register(run_dir)
    with hung(point) as server:
        child = start(work, place=register.place(5, str(point)))
        facts = child.facts(time.monotonic() + 0.5)
        next(facts)
        assert (list(facts), child.stuck, server.waiting) == ([], True, 1)
        with pytest.raises(stuck_processes.Stuck):
            stuck_processes.Register(run_dir).place(5, str(point)).check()
    wait_for([child])


def test_missing_run_dir_does_not_stop_the_work(tmp_path: Path, sleepers: Callable[[], int]) -> None:
    """If the register cannot be written, each process counts what it started itself."""
    (tmp_path / "file").write_text("")
    register = stuck_processes.Register(str(tmp_path / "file"))
    place = named(register, 1000, "0:1")
    place.claim(4)
    register.note(place, sleepers())
    with pytest.raises(stuck_processes.Stuck):
        place.check()
    named(stuck_processes.Register(str(tmp_path / "file")), 1000, "0:1").check()


def test_register_is_private(run_dir: str) -> None:
    """Only root can read it."""
    register = stuck_processes.Register(run_dir)
    name = register.note(named(register, 1000, "0:1"), os.getpid())
    modes = [os.stat(path).st_mode & 0o777 for path in (run_dir, f"{run_dir}/stuck", f"{run_dir}/stuck/{name}")]
    assert modes == [0o700, 0o700, 0o600]


def test_fifo_in_the_register_hangs_nobody(run_dir: str) -> None:
    """It counts nevertheless: its name has all that is known."""
    register = stuck_processes.Register(run_dir)
    place = named(register, 1000, "0:1")
    name, pid = register.note(place, os.getpid()), os.getpid()
    os.unlink(f"{run_dir}/stuck/{name}")
    os.mkfifo(f"{run_dir}/stuck/{name}")
    child, _ = run(lambda _: bool(register.note(place, pid)), seconds=5, uid=None, gid=None, user=None)
    assert child.status == "done"
    with pytest.raises(stuck_processes.Stuck):
        named(stuck_processes.Register(run_dir), 1000, "0:1").check()


def test_user_who_mounted_a_filesystem_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user can mount one on a path that root reads."""
    table = tmp_path / "mountinfo"
    fuse = "rw,user_id=1001,group_id=1001"
    table.write_text(
        "1 1 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:40 / /scratch rw - fuse root rw,user_id=0,group_id=0\n"
        f"3 2 0:41 / /scratch/eve rw - fuse.sshfs x {fuse}\n4 2 0:42 / /scratch/not rw - nfs x {fuse}\n"
    )
    monkeypatch.setattr(mounts, "_TABLE", str(table))
    register = stuck_processes.Register(str(tmp_path))
    found = {path: register.place(0, path) for path in ("/scratch/eve/x", "/scratch/bob", "/scratch/not/x", "/")}
    assert {path: (place.uid, place.device, place.is_users) for path, place in found.items()} == {
        "/scratch/eve/x": (1001, "0:41", True),
        "/scratch/bob": (0, "0:40", False),
        "/scratch/not/x": (0, "0:42", False),
        "/": (0, "8:1", False),
    }


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

    child = as_user.start(work, uid=None, gid=None, user=None, place=None)
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

    child = as_user.start(work, uid=None, gid=None, user=None, place=None)
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
        return as_user.start(work, uid=None, gid=None, user=None, place=None)

    running = children.each([(at, begin) for at in range(3)], 3, 30.0)
    pids = [fact["pid"] for _, _, fact in (next(running) for _ in range(3)) if fact]
    running.close()
    assert len(pids) == 3 and not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_long_fact_arrives_complete() -> None:
    """A fact that arrives in many pieces is one fact."""
    text = "x" * (8 << 20)
    child = as_user.start(lambda report: report({"text": text}), uid=None, gid=None, user=None, place=None, most=1 << 28)
    assert [fact["text"] for fact in child.facts(time.monotonic() + 30)] == [text]
    assert child.status == "done"
