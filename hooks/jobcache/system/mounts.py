"""Mounts: the mount table, which mount a descriptor is on, and how to open a directory without crossing one."""

import errno
import os
import stat

from jobcache.cache import dirfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_TABLE = "/proc/self/mountinfo"  # to read it accesses no other filesystem, so nothing can hang
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))  # the backslash last
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = dirfd.DIRECTORY & ~os.O_NOFOLLOW  # a descriptor by its path in /proc, which is a symlink


class Mount:
    """One mount.

    point: its directory. device: major:minor. fstype: type of the filesystem. options: of the mount and of the filesystem.
    """

    __slots__ = ("point", "device", "fstype", "options")

    def __init__(self, point: str, device: str, fstype: str, options: "tuple[str, ...]") -> None:
        self.point = point
        self.device = device
        self.fstype = fstype
        self.options = options

    def mounted_by(self) -> int:
        """Return the uid of the user who mounted this and whose process serves it, 0 for the mount of an administrator."""
        if not self.fstype.startswith("fuse"):
            return 0
        uids = [option[len("user_id=") :] for option in self.options if option.startswith("user_id=")]
        return int(uids[-1]) if uids and uids[-1].isdigit() else 0


class MountPoint(OSError):
    """A directory entry is a mount point."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EBUSY, "a mount point, left alone", name)


# ------------------------------------------------------------------------------------------------------ the mount table


def read() -> "list[Mount]":
    """Return all mounts in the order of the table. Raise OSError."""
    with open(_TABLE, encoding="utf-8", errors="surrogateescape", newline="\n") as table:  # a directory's name can hold \r
        return parse(table)


def parse(lines: "Iterable[str]") -> "list[Mount]":
    """Given lines of mountinfo (proc(5)), return the mounts."""
    mounts = []
    for line in lines:
        left, _, right = line.rstrip("\n").partition(" - ")
        fields, about = left.split(" "), right.split(" ")
        point = fields[4]
        for escape, character in _ESCAPES:
            point = point.replace(escape, character)
        mounts.append(Mount(point, fields[2], about[0], (*fields[5].split(","), *about[2].split(","))))
    return mounts


def containing(path: str, mounts: "list[Mount]") -> "Mount | None":
    """Return the mount of the absolute `path`, judged by its text alone; None if no mount contains it.

    Of several mounts on one directory, the last one is visible.
    """
    above = [mount for mount in reversed(mounts) if (path + "/").startswith(mount.point.rstrip("/") + "/")]
    return max(above, key=lambda mount: len(mount.point), default=None)


def is_on_demand(path: str) -> bool:
    """Return whether the absolute `path` is on autofs, which mounts a directory when it is accessed. Raise OSError."""
    mount = containing(path, read())
    return mount is not None and mount.fstype == "autofs"


def lists_unmounted(directory_fd: int, names: "Iterable[str]") -> bool:
    """Return whether an open directory on autofs lists names that are not mounted. `names` are those that it lists.

    It does so with `browse`, and then lists all names of its map, but not those that a wildcard in the map stands for.
    """
    path = os.readlink(f"/proc/self/fd/{directory_fd}")
    points = {mount.point for mount in read()}
    return any(f"{path}/{name}" not in points for name in names)


# ------------------------------------------------------------------------------------------------ mounts of descriptors


def mount_id(fd: int) -> str:
    """Return a text that differs for any two mounts, also for bind mounts of one filesystem. Raise OSError."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", mode="rb", buffering=0) as info:
            return info.read(512).partition(b"mnt_id:")[2].split()[0].decode()
    except PermissionError:  # before Linux 5.14, for a process that has become another user
        return _mount_id_by_handle(fd)


def _mount_id_by_handle(fd: int) -> str:
    """Return the mount ID from name_to_handle_at(2), which sets it even if the buffer for the handle is too small.

    For a filesystem without handles, return the device, which differs for mounts of different filesystems.
    """
    import ctypes

    empty_path = 0x1000
    handle, mount = (ctypes.c_uint * 2)(), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.name_to_handle_at(fd, b"", handle, ctypes.byref(mount), empty_path)
    if ctypes.get_errno() == errno.EOVERFLOW:
        return str(mount.value)
    return f"device {os.fstat(fd).st_dev}"


def is_mount_point(dir_fd: int, name: str) -> bool:
    """Return whether something is mounted on the entry `name` of the directory. Raise OSError."""
    fd = os.open(name, _PATH, dir_fd=dir_fd)
    try:
        return mount_id(fd) != mount_id(dir_fd)
    finally:
        os.close(fd)


def open_within(dir_fd: int, name: str, mount: str) -> int:
    """Open a directory on the mount `mount` (from `mount_id`) so that it can be emptied; return the descriptor.

    Give its owner all rights if needed, but change nothing on another mount. Raise MountPoint for one; OSError.
    A mount point is not opened for reading, because its filesystem may hang.
    """
    path_fd = os.open(name, _PATH | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        if mount_id(path_fd) != mount:
            raise MountPoint(name)
        path = f"/proc/self/fd/{path_fd}"  # not the name, which could be a symlink by now
        try:
            fd = os.open(path, _REOPEN)
        except PermissionError:
            os.chmod(path, stat.S_IRWXU)  # its mode denies the owner access
            fd = os.open(path, _REOPEN)
    finally:
        os.close(path_fd)
    try:
        allow_owner(fd)
    except PermissionError:
        pass  # another user's directory: what it holds cannot be removed, and the caller reports that
    except OSError:
        os.close(fd)
        raise
    return fd


def open_beside(dir_fd: int, name: str) -> int:
    """Open a directory for reading, and do not enter another mount. Raise MountPoint for one; OSError."""
    path_fd = os.open(name, _PATH | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        if mount_id(path_fd) != mount_id(dir_fd):
            raise MountPoint(name)
        return os.open(f"/proc/self/fd/{path_fd}", _REOPEN)
    finally:
        os.close(path_fd)


def allow_owner(fd: int) -> None:
    """Give the owner of a directory all rights. Raise OSError."""
    if stat.S_IMODE(os.fstat(fd).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(fd, stat.S_IRWXU)
