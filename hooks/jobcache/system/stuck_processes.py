"""The register of processes of this host that hang in the kernel, so that neither a user nor a filesystem collects many.

SIGKILL does not end such a process. The register is a directory with an empty file for each one; the name of the file has
the user, the filesystem and the process. A process that has ended counts no more. Limits are per user, so that a user whose
own filesystem hangs uses up nothing of others.
"""

import fcntl
import os
import time

from jobcache.system import files, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    Entry = tuple[int, str, str, int, str]  # uid, device, part, pid, start time of the process

OF_USER_AT_PLACE = 4  # stuck processes, at which the Epilog starts no further one
OF_USER = 8  # on all filesystems; a user can mount any number of them
ON_FILESYSTEM = 16  # of all users, each with at most OF_USER_AT_PLACE
ON_NODE = 64  # of all users, each with at most OF_USER
_LATE_OF_USER = 2  # places of one user that did not answer, after which the user's other places are skipped
_VALID = 1.0  # seconds for which the register is not read again
_PROCESS_MRELEASE = 448  # number of the system call


class Stuck(OSError):
    """No process may be started, because others already hang there."""


class Place:
    """A place on which a process can hang.

    uid: the user who is charged. device: of the filesystem, as in the mount table. part: of it, "" for all of it.
    is_users: the user mounted the filesystem.
    """

    __slots__ = ("register", "uid", "device", "part", "is_users", "_claim")

    def __init__(self, register: "Register", uid: int, device: str, part: str, is_users: bool) -> None:
        self.register = register
        self.uid = uid
        self.device = device
        self.part = part
        self.is_users = is_users
        self._claim = ""

    def check(self, most: int = 1) -> None:
        """Raise Stuck if `most` processes hang here already, or too many of this user, on this filesystem, or on this node."""
        self.register.check(self, most)

    def claim(self, most: int) -> None:
        """Check. If the user mounted the filesystem, also count this process until `leave`. Raise Stuck.

        Otherwise many jobs of one user that end at the same time could all pass the check.
        """
        if not self.is_users:
            self.check(most)
            return
        with self.register.locked():
            self.check(most)
            self._claim = self.register.note(self, os.getpid())

    def leave(self) -> None:
        """End the claim."""
        if self._claim:
            self.register.forget(self._claim)
            self._claim = ""

    def occupy(self, pid: int) -> None:
        """Count process `pid`, which hangs here, and free its memory."""
        self.register.note(self, pid)
        _release_memory(pid)

    def skip(self) -> None:
        """Remember for the lifetime of this register that the place does not answer."""
        self.register.skip(self)


class Register:
    """The register of this host, with a view of the mount table.

    run_dir: holds the register. If it cannot be written, this process counts only what it starts itself.
    """

    def __init__(self, run_dir: str) -> None:
        self._directory = f"{run_dir}/stuck"
        self._own: set[Entry] = set()
        self._late: dict[int, set[tuple[str, str]]] = {}  # by uid
        self._mounts: list[mounts.Mount] | None = None
        self._entries: list[Entry] = []
        self._read_at = float("-inf")

    def place(self, uid: int, path: str, part: str = "") -> Place:
        """Return the place of the absolute `path`, judged by the mount table alone: the filesystem can hang.

        uid: who accesses it. If a user mounted the filesystem, that user is charged instead.
        part: what one user accesses there, where that matters; for root, a directory of a user.
        """
        if self._mounts is None:
            try:
                self._mounts = mounts.read()
            except OSError:
                self._mounts = []
        mount = mounts.containing(path, self._mounts)
        mounter = mount.mounted_by() if mount else 0
        return Place(self, mounter or uid, mount.device if mount else "0:0", part, mounter != 0)

    def processes(self, uid: int) -> Place:
        """Return the place of what /proc has about the processes of a user, one of which can hang its readers."""
        return Place(self, uid, "proc", "", False)

    def check(self, place: Place, most: int) -> None:
        """Raise Stuck as `Place.check`."""
        late = self._late.get(place.uid, ())
        if (place.device, place.part) in late or (place.uid and len(late) >= _LATE_OF_USER):
            raise Stuck("skipped, because it did not answer before")
        there: dict[int, int] = {}  # on the filesystem, by uid
        anywhere: dict[int, int] = {}
        here = 0
        for uid, device, part, _, _ in self._current():
            anywhere[uid] = anywhere.get(uid, 0) + 1
            if device == place.device:
                there[uid] = there.get(uid, 0) + 1
            here += (uid, device, part) == (place.uid, place.device, place.part)
        own = anywhere.get(place.uid, 0)
        if here >= most:
            raise _stuck(here, f"of uid {place.uid} on this filesystem ({place.device})")
        if place.uid and own >= OF_USER:
            raise _stuck(own, f"of uid {place.uid}")
        if sum(min(count, OF_USER_AT_PLACE) for count in there.values()) >= ON_FILESYSTEM:
            raise _stuck(sum(there.values()), f"on this filesystem ({place.device})")
        if sum(min(count, OF_USER) for count in anywhere.values()) >= ON_NODE:
            raise _stuck(sum(anywhere.values()), "on this node")

    def skip(self, place: Place) -> None:
        """Remember as `Place.skip`."""
        self._late.setdefault(place.uid, set()).add((place.device, place.part))

    def note(self, place: Place, pid: int) -> str:
        """Count process `pid` at a place until it ends; return the name of its entry, "" if it has ended."""
        start = _start_of(pid)
        if not start:
            return ""
        entry = place.uid, place.device, place.part, pid, start
        self._own.add(entry)
        self._read_at = float("-inf")
        name = "-".join(map(str, entry))
        try:
            _make(self._directory)
            os.close(files.open_regular(f"{self._directory}/{name}", os.O_RDWR | os.O_CREAT))
        except OSError:
            pass
        return name

    def forget(self, name: str) -> None:
        """Remove an entry."""
        self._own.discard(_parse(name) or (0, "", "", 0, ""))
        self._read_at = float("-inf")
        try:
            os.unlink(f"{self._directory}/{name}")
        except OSError:
            pass

    def locked(self) -> "_Lock":
        """Return a context in which no other process claims a place."""
        return _Lock(self._directory)

    def _current(self) -> "list[Entry]":
        """Return the entries of processes that have not ended."""
        now = time.monotonic()
        if now - self._read_at > _VALID:
            self._entries = self._read()
            self._read_at = now
        return self._entries

    def _read(self) -> "list[Entry]":
        try:
            names = os.listdir(self._directory)
        except OSError:
            names = []
        found = set()
        for name in names:
            entry = _parse(name)
            if entry is None:
                continue
            if _start_of(entry[3]) == entry[4]:
                found.add(entry)
            else:
                self.forget(name)
        return [*found, *(entry for entry in self._own - found if _start_of(entry[3]) == entry[4])]


class _Lock:
    """A lock on the directory of a register. Without a directory or locks, the block runs unlocked."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1

    def __enter__(self) -> None:
        try:
            _make(self._directory)
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # held for the time of a listing
        except OSError:
            pass

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _make(directory: str) -> None:
    """Create the directory and the run_dir above it, for root alone. Raise OSError."""
    for path in (os.path.dirname(directory), directory):
        os.makedirs(path, 0o700, exist_ok=True)


def _stuck(count: int, where: str) -> Stuck:
    return Stuck(f"{count} processes {where} hang already; see `ps -eo pid,stat,wchan,args`")


def _parse(name: str) -> "Entry | None":
    fields = name.split("-")
    if len(fields) != 5 or not (fields[0].isdigit() and fields[3].isdigit()):
        return None
    return int(fields[0]), fields[1], fields[2], int(fields[3]), fields[4]


def _start_of(pid: int) -> str:
    """Return the start time of a process, by which it differs from others with its id; "" if it has ended.

    If the first thread of a process has ended, others can still hang.
    """
    try:
        with open(f"/proc/{pid}/stat", mode="rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        ended = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
        return "" if ended else fields[19].decode()
    except (OSError, ValueError, IndexError):
        return ""


def _release_memory(pid: int) -> None:
    """Free the memory of a process that SIGKILL has not ended yet. Linux before 5.15 cannot."""
    pidfd_open = getattr(os, "pidfd_open", None)  # depends on how Python was built
    if pidfd_open is None:
        return
    import ctypes  # few processes hang

    try:
        fd = pidfd_open(pid)
    except OSError:
        return
    ctypes.CDLL(None).syscall(_PROCESS_MRELEASE, fd, 0)
    os.close(fd)
