"""Act as another user.

Root accesses scratch only in a child that has become the user for good. The child is forked and not exec'd, so that the
user cannot ptrace it. It holds no descriptor but its report pipe, so that a child that hangs blocks no other process.
"""

import json
import os

from jobcache.cache import bounded
from jobcache.system import children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from jobcache.system.stuck_processes import Place

    Fact = dict[str, Any]
    Work = Callable[[Callable[[Fact], None]], None]


def start(
    work: "Work",
    *,
    uid: "int | None",
    gid: "int | None",
    user: "str | None",
    place: "Place | None",
    most: int = children.REPORT_MAX,
) -> children.Child:
    """Run `work(report)` in a child that is user `uid`. `report` takes a dict that JSON can represent.

    uid: None for the user of this process; such work can use `Acting`.
    gid: None for the primary group of the account.
    user: name by which to find further groups, "" for the name of the account, None for no further groups.
    place: where the child can hang, and where it is counted then. The caller has checked it. None: it accesses no filesystem.
    most: bytes that the child may report.
    Raise OSError if no process can be created.
    """
    pid, read, write = bounded.fork()
    if pid == 0:
        _run_child(work, uid, gid, user, write)
    os.close(write)
    return children.Child(pid, read, place, most)


def _run_child(work: "Work", uid: "int | None", gid: "int | None", user: "str | None", pipe: int) -> None:
    """Do the work and exit. Report an error as {"died": text}. Never return."""

    def report(fact: "Fact") -> None:
        data = json.dumps(fact).encode("ascii") + b"\n"
        while data:
            data = data[os.write(pipe, data) :]

    code = 1
    try:
        _close_all_but({pipe})
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
    """Become `uid` for good. gid, user: as for `start`. Raise PermissionError for root, or if the change did not hold."""
    if uid == 0:
        raise PermissionError("refused to act as root")
    if os.geteuid() == uid:
        return  # a cluster that runs as one user
    if gid is None:
        import pwd

        gid = pwd.getpwuid(uid).pw_gid
    groups = groups_of(uid, gid) if user == "" else [gid]
    if user:
        try:
            groups = os.getgrouplist(user, gid)
        except (KeyError, OSError, ValueError):
            pass  # the name is unknown here, or invalid: the group from Slurm suffices
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


def user_name(uid: int, default: "str | None" = None) -> str:
    """Return the name of an account; if the account does not exist, `default`, or the uid as text."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return default or str(uid)


def groups_of(uid: int, gid: int) -> "list[int]":
    """Return all groups of an account, [gid] if the account does not exist.

    Call it in a child: it may query a directory service.
    """
    import pwd

    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]


class Acting:
    """A context with the rights of a user, to read and never to delete: `with Acting(uid, gid): …`.

    Root stays the real and the saved user, so that the user can neither signal nor trace this process.
    groups: all groups of the user, from `groups_of`; by default only `gid`.
    Raise PermissionError for root, or if this process is neither root nor the user.
    """

    def __init__(self, uid: int, gid: int, groups: "Sequence[int]" = ()) -> None:
        self._uid, self._gid = uid, gid
        self._groups = list(groups) or [gid]
        self._switch = os.geteuid() == 0 != uid

    def __enter__(self) -> None:
        if self._uid == 0:
            raise PermissionError("refused to act as root")
        if self._switch:
            self._own_groups = os.getgroups()
            os.setgroups(self._groups)
            os.setegid(self._gid)
            os.seteuid(self._uid)
        elif os.geteuid() != self._uid:
            raise PermissionError(f"only root can act as uid {self._uid}")

    def __exit__(self, *exc: object) -> None:
        if self._switch:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(self._own_groups)


def _close_all_but(kept: "set[int]") -> None:
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - kept:
        try:
            os.close(fd)
        except OSError:
            pass  # the descriptor of the listing itself
    for fd in range(3):  # output by mistake goes to /dev/null
        if fd not in kept:
            os.open(os.devnull, os.O_RDWR)
