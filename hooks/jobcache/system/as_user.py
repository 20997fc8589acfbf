"""Do this as that user, within this deadline.

Whatever touches scratch on behalf of root runs in a child that has become the user for good. It is forked and never
exec'd: such a process cannot be ptraced by the user whose name it carries. It holds no descriptor but its report pipe,
so a filesystem that hangs it holds nothing of ours.
"""

import fcntl
import json
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeVar

    Key = TypeVar("Key")

    Fact = dict[str, Any]
    Work = Callable[[Callable[[Fact], None]], None]

_MOST_STUCK = 4  # processes that hang on one filesystem of this node, before we stop adding to them
_LONGEST = 1 << 20  # bytes a child may report, unless more is asked for
_PAUSE = 0.001  # seconds between two looks at a child that is ending
_LAST_GRACE = 0.1  # seconds that a killed child has to end


class Stuck(Exception):
    """As many processes as we allow hang on this filesystem already."""


class Child:
    """A running child: `facts` are what it reports, `status` then says how it ended.

    status: "done"; "late", it was killed at the deadline; "died", of whatever else. error: why, if that is known.
    stuck: it could not even be killed, and is left behind in the kernel.
    """

    def __init__(self, pid: int, pipe: int, places: "list[int]", most: int = _LONGEST) -> None:
        self.pid = pid
        self.status = ""
        self.error = ""
        self.stuck = False
        self._pipe = pipe
        self._places = places
        self._begun: list[bytes] = []  # of a line that has not ended yet
        self._size = 0
        self._most = most

    def facts(self, until: float) -> "Iterator[Fact]":
        """Yield the facts as they come, to the child's end or to `until` (seconds of time.monotonic).

        What has been reported by then is yielded even if `until` has long passed: other children had their time first.
        """
        while select.select([self], [], [], max(0.0, until - time.monotonic()))[0]:
            facts = self.read(until)
            yield from facts or ()
            if facts is None:
                return
        self.give_up()

    def fileno(self) -> int:
        """For select: readable when there are facts, or the end."""
        return self._pipe

    def read(self, until: float) -> "list[Fact] | None":
        """Return the facts that have come, None at the child's end, which is then waited for until `until`."""
        chunk = os.read(self._pipe, 65536)
        if not chunk:  # a line that has not ended was cut short by the child's death
            self._end(until)
            return None
        self._size += len(chunk)
        self._begun.append(chunk)
        lines: list[bytes] = []
        if b"\n" in chunk:
            *lines, rest = b"".join(self._begun).split(b"\n")
            self._begun = [rest]
        facts = _parse(lines) if self._size <= self._most else None
        if facts is None:
            self.error = "it reported what is no fact" if self._size <= self._most else "it reported too much"
            self.kill()
            self._end(until)
            return None
        self.error = next((fact["died"] for fact in facts if "died" in fact), self.error)
        return [fact for fact in facts if "died" not in fact]

    def kill(self) -> None:
        """End the child now."""
        os.kill(self.pid, signal.SIGKILL)

    def _end(self, until: float) -> None:
        """The child has closed its pipe or is killed: it is as good as gone, unless a filesystem holds it even now."""
        until = max(until, time.monotonic() + _LAST_GRACE)
        while not self._is_over():
            if time.monotonic() >= until:
                self.give_up()
                return
            time.sleep(_PAUSE)
        self._close()

    def _is_over(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = "done" if status == 0 else "died"
        return pid != 0

    def give_up(self) -> None:
        """End a child that has had its time; one that is stuck in the kernel is left behind, counted."""
        self.kill()
        until = time.monotonic() + _LAST_GRACE
        while not self._is_over() and time.monotonic() < until:
            time.sleep(_PAUSE)
        if not self.status:  # it holds a place until it ends
            self.stuck = True
            any(_lock(place, fcntl.LOCK_EX) for place in self._places)
        self.status = "late"
        self._close()

    def _close(self) -> None:
        for fd in (self._pipe, *self._places):
            os.close(fd)


def start(
    work: "Work", *, uid: "int | None", gid: "int | None", user: "str | None", places: "list[int]", most: int = _LONGEST
) -> Child:
    """Run `work(report)` in a child that is user `uid`; `report` takes one dict, which JSON can say, and passes it on.

    uid None: who we are, for work that is many users in turn (`Acting`). gid None: the user's primary group. user: the
    name by which to find further groups, "" for the account's. places: from `stuck_places`. most: bytes it may report.
    Raise OSError where there is no process to be had; the places are closed all the same.
    """
    opened = [*places]
    try:
        opened += os.pipe()
        pid = os.fork()
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    read, write = opened[-2:]
    if pid == 0:
        _child(work, uid, gid, user, write, places)
    os.close(write)
    return Child(pid, read, places, most)


def _child(work: "Work", uid: "int | None", gid: "int | None", user: "str | None", pipe: int, places: "list[int]") -> None:
    """Never returns. Whatever goes wrong ends here, as the child's last words."""

    def report(fact: "Fact") -> None:
        data = json.dumps(fact).encode("ascii") + b"\n"
        while data:
            data = data[os.write(pipe, data) :]

    code = 1
    try:
        _close_all_but({pipe, *places})
        if uid is not None:
            become(uid, gid, user)
        os.chdir("/")
        os.umask(0o077)
        work(report)
        code = 0
    except BaseException as error:  # noqa: BLE001 - the process ends on the next line
        report({"died": f"{type(error).__name__}: {error}"[:500]})
    finally:
        os._exit(code)


def become(uid: int, gid: "int | None", user: "str | None") -> None:
    """Become `uid` for good. Raise PermissionError where that does not hold, or where root is asked for."""
    if uid == 0:
        raise PermissionError("never as root")
    if os.geteuid() == uid:
        return  # a cluster of one user's own
    if gid is None:
        import pwd

        gid = pwd.getpwuid(uid).pw_gid
    groups = groups_of(uid, gid) if user == "" else [gid]
    if user:
        try:
            groups = os.getgrouplist(user, gid)
        except (KeyError, OSError, ValueError):
            pass  # the name is unknown here, or is no text: the group that Slurm named will do
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PermissionError(f"could not become uid {uid}")
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise PermissionError("could become root again")


def user_name(uid: int) -> str:
    """Return the user's name; of one who was removed, the number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def groups_of(uid: int, gid: int) -> "list[int]":
    """Return all groups of an account, `gid` alone where there is none of this uid. Asks a directory service: in a child."""
    import pwd

    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]


class Acting:
    """With the rights of a user for a while, to look and never to delete: `with Acting(uid, gid): …`.

    Root stays the real and the saved user: the user whose rights these are cannot signal or trace us.
    groups: all of the user's, from `groups_of`, where their own is not enough.
    """

    def __init__(self, uid: int, gid: int, groups: "Sequence[int]" = ()) -> None:
        self._ids = uid, gid
        self._as = list(groups) or [gid]
        self._switch = os.geteuid() == 0 != uid

    def __enter__(self) -> None:
        uid, gid = self._ids
        if uid == 0:
            raise PermissionError("never as root")
        if self._switch:
            self._groups = os.getgroups()
            os.setgroups(self._as)
            os.setegid(gid)
            os.seteuid(uid)
        elif os.geteuid() != uid:
            raise PermissionError(f"not uid {uid}")

    def __exit__(self, *exc: object) -> None:
        if self._switch:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(self._groups)


def each(
    starts: "Iterable[tuple[Key, Callable[[], Child]]]", at_once: int, patience: float
) -> "Iterator[tuple[Key, Child, Fact | None]]":
    """Run children, `at_once` of them; yield (key, child, fact) as facts come, and (key, child, None) when one has ended.

    A child that reports nothing for `patience` seconds is late. Whoever stops listening ends them all.
    """
    running: dict[int, tuple[Key, Child, float]] = {}
    try:
        yield from _each(iter(starts), running, at_once, patience)
    finally:
        for _, child, _ in running.values():
            child.give_up()


def _each(
    waiting: "Iterator[tuple[Key, Callable[[], Child]]]",
    running: "dict[int, tuple[Key, Child, float]]",
    at_once: int,
    patience: float,
) -> "Iterator[tuple[Key, Child, Fact | None]]":
    while True:
        while len(running) < at_once:
            following = next(waiting, None)
            if following is None:
                break
            key, child = following[0], following[1]()
            running[child.fileno()] = key, child, time.monotonic() + patience
        if not running:
            return
        until = min(one[2] for one in running.values())
        ready = select.select(list(running), [], [], max(0.0, until - time.monotonic()))[0]
        for fd in ready:
            key, child, until = running[fd]
            facts = child.read(until)
            if facts is None:
                del running[fd]
                yield key, child, None
                continue
            running[fd] = key, child, time.monotonic() + patience
            for fact in facts:
                yield key, child, fact
        for fd, (key, child, until) in [] if ready else list(running.items()):
            if time.monotonic() >= until:
                del running[fd]
                child.give_up()
                yield key, child, None


def stuck_places(run_dir: str, filesystem: str) -> "list[int]":
    """Return descriptors by which a child that hangs on `filesystem` can be counted. Raise Stuck where none is free.

    A place is a file whose flock a stuck child holds by having inherited it, and which so frees itself. An empty list,
    and no bound, where `run_dir` cannot be had.
    """
    places: list[int] = []
    try:
        os.makedirs(run_dir, 0o700, exist_ok=True)
        for at in range(_MOST_STUCK):
            path = f"{run_dir}/stuck-{filesystem}.{at}"
            places.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError:
        return places
    for place in places:
        if _lock(place, fcntl.LOCK_SH):  # shared, so that those who look at the same time do not see each other
            _lock(place, fcntl.LOCK_UN)
            return places
    for place in places:
        os.close(place)
    raise Stuck(f"{_MOST_STUCK} processes hang on filesystem {filesystem} of this node already")


def _lock(fd: int, how: int) -> bool:
    """Whether nobody stands in the way. Where the filesystem knows no locks nobody is counted, and so nobody does."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _parse(lines: "list[bytes]") -> "list[Fact] | None":
    """Return the facts on whole lines, None where one of them is no fact."""
    try:
        facts = [json.loads(line) for line in lines]
    except ValueError:
        return None
    return facts if all(isinstance(fact, dict) for fact in facts) else None


def _close_all_but(kept: "set[int]") -> None:
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - kept:
        try:
            os.close(fd)
        except OSError:
            pass  # the one by which the directory was listed
    for fd in range(3):  # whoever prints by mistake prints nowhere
        if fd not in kept:
            os.open(os.devnull, os.O_RDWR)
