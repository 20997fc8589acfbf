"""Try whether flock excludes: a second process of this node, and the other nodes of a job step."""

import errno
import fcntl
import os
import time
from collections.abc import Mapping
from typing import Callable, Optional

from jobcache.cache import cache_names, dirfd, safe_path
from jobcache.diagnostics.check_facts import EXCLUDED, OBTAINED
from jobcache.system import reaper

ACROSS_NODES = 90.0  # seconds; NFS caches for a minute that a name does not exist
_DELETION = 10.0  # seconds
_PAUSE = 0.1  # seconds between two listings
_HELD = "held"  # the file by which node 0 reports that it holds the lock


class TemporaryDirectory:
    """A directory that exists for the length of a `with` block, named and filled like a half-made cache.

    It may exist before the block. leave: do not delete it; another node does.
    """

    def __init__(self, parent_fd: int, name: str, leave: bool = False) -> None:
        self._parent_fd, self._name, self._leave = parent_fd, name, leave

    def __enter__(self) -> str:
        """Return the path in which to create files. Raise OSError, and Refused if this process does not own what it creates."""
        path = f"/proc/self/fd/{self._parent_fd}/{self._name}"
        os.close(safe_path.make_directory(self._parent_fd, self._name))
        try:
            os.mkdir(f"{path}/{cache_names.META}", 0o700)
        except FileExistsError:
            pass
        return f"{path}/{cache_names.META}"

    def __exit__(self, *exc: object) -> None:
        if self._leave:
            return
        fd = os.open(self._name, dirfd.DIRECTORY, dir_fd=self._parent_fd)
        try:
            tally = reaper.delete(self._parent_fd, self._name, fd, time.monotonic() + _DELETION)
        except reaper.Kept as kept:
            raise OSError(errno.EIO, f"cannot delete the test directory {self._name}: {kept}", self._name) from None
        finally:
            os.close(fd)
        if not tally.done:
            raise OSError(errno.EIO, f"cannot delete the test directory {self._name}: {tally.error}", self._name)


# ------------------------------------------------------------------------------------------------------------ one node


def flock_excludes(directory: str) -> str:
    """Hold a lock while another process tries it. Return EXCLUDED, OBTAINED, or an error."""
    fd = _open_lock(directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pid = os.fork()
        if pid == 0:
            os._exit(_try_in_child(directory))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {0: EXCLUDED, 1: OBTAINED}.get(status, "the other process got an error")
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(fd)


def _try_in_child(directory: str) -> int:
    """Return the exit status of a process that tries the lock: 0 refused, 1 granted, 2 an error."""
    try:
        return 1 if _can_lock(directory) else 0
    except BaseException:  # noqa: BLE001 - a forked child may leave by its exit status only
        return 2


def _open_lock(directory: str) -> int:
    return os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _can_lock(directory: str) -> bool:
    fd = _open_lock(directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


# -------------------------------------------------------------------------------------------------------- across nodes


class Rendezvous:
    """The tasks of one job step that try a lock together, one on each node. index: of this node; node 0 holds the lock."""

    def __init__(self, name: str, index: int, nodes: int, node: str) -> None:
        self.name, self.index, self.nodes, self.node = name, index, nodes, node

    @staticmethod
    def from_environment(environ: "Mapping[str, str]") -> "Optional[Rendezvous]":
        """Return the rendezvous of this step; None if it runs on one node, or this is not the first task of its node."""
        numbers = [environ.get(f"SLURM_{key}", "") for key in ("JOB_ID", "STEP_ID", "NODEID", "STEP_NUM_NODES")]
        if not all(number.isdigit() for number in numbers) or environ.get("SLURM_LOCALID") != "0":
            return None
        job_id, step, index, nodes = map(int, numbers)
        if nodes < 2:
            return None
        name = cache_names.new_name(job_id, f"check{step}")
        return Rendezvous(name, index, nodes, environ.get("SLURMD_NODENAME", f"node{index}"))


def try_across_nodes(parent_fd: int, rendezvous: Rendezvous, until: float) -> dict[str, str]:
    """Return the result of each node that tried the lock of node 0: EXCLUDED, OBTAINED, or an error.

    Node 0 returns the results of all other nodes; each of these returns its own. They exchange names of empty files.
    until: seconds of time.monotonic.
    """
    with TemporaryDirectory(parent_fd, rendezvous.name, leave=rendezvous.index != 0) as directory:
        if rendezvous.index != 0:
            if not _wait_for_names(directory, lambda name: name == _HELD, 1, until):
                return {rendezvous.node: "node 0 did not report that it holds the lock"}
            result = OBTAINED if _can_lock(directory) else EXCLUDED
            _create_file(f"{directory}/{result}.{rendezvous.node}")
            return {rendezvous.node: result}
        fd = _open_lock(directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _create_file(f"{directory}/{_HELD}")
            names = _wait_for_names(directory, lambda name: "." in name, rendezvous.nodes - 1, until)
        finally:
            os.close(fd)
    results = {name.partition(".")[2]: name.partition(".")[0] for name in names}
    silent = rendezvous.nodes - 1 - len(results)
    return {**results, **({f"{silent} of the nodes": "no answer in time"} if silent else {})}


def _create_file(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _wait_for_names(directory: str, is_wanted: Callable[[str], bool], count: int, until: float) -> list[str]:
    """Return the wanted names as soon as `count` of them exist, or at `until`."""
    while True:
        names = [name for name in os.listdir(directory) if is_wanted(name)]
        if len(names) >= count or time.monotonic() >= until:
            return names
        time.sleep(_PAUSE)
