"""Which files are root's and which are this user's, by the uids that this process sees.

In a user namespace, such as a container of enroot, uids can be mapped. If only one uid is mapped, the files of root and of
all other users appear as files of one uid, usually `nobody`; with `--container-remap-root`, the files of this user appear as
files of uid 0. The variables of Slurm, and the ids in caches, hold the uid that the job has outside.
"""

import os

from jobcache.cache import write_access

_UID_MAP = "/proc/self/uid_map"
_HIDDEN = "/proc/sys/kernel/overflowuid"
_LIMIT = 16384  # bytes; the kernel allows 340 lines
_ALL = 4294967295  # the number of uids


def own(uid: int) -> int:
    """Return the uid that files of the user `uid` have for this process."""
    return os.geteuid() if is_remapped(uid) else uid


def is_remapped(uid: int) -> bool:
    """Return whether this process is the user `uid`, who is not root, and sees itself as uid 0."""
    if not os.geteuid() == 0 != uid:
        return False
    # Root can act for a user as well, but not in a namespace in which it is that user, or has no other users.
    ranges = _uid_map()
    return sum(count for _, _, count in ranges) == 1 or any(first == 0 and outside == uid for first, outside, _ in ranges)


def is_roots(found: "os.stat_result", above: "os.stat_result", uid: "int | None" = None) -> bool:
    """Return whether an entry of a directory is root's. In doubt, return False.

    above: the directory, which no untrusted user owns.
    uid: the user as whom this process acts outside of its user namespace; None if that is os.geteuid().
    """
    if found.st_uid == 0:
        return uid is None or not is_remapped(uid)
    # Files of all unmapped users have one uid. If nobody but the directory's owner can create entries, the entry is root's.
    return not write_access.is_open(above.st_mode) and not _is_mapped(0) and found.st_uid == _hidden_uid()


def is_in_container(uid: int) -> bool:
    """Return whether no slurmd can have started a task of the user `uid` in this user namespace, so something moved it here.

    slurmd needs uid 0 and the user's uid.
    """
    return is_remapped(uid) or not _is_mapped(0)


def can_be_roots_process(owner: int) -> bool:
    """Return whether a process with this owner can be root's. Where uids are hidden, it can be another user's as well."""
    return owner == 0 or (sum(count for _, _, count in _uid_map()) < _ALL and owner == _hidden_uid())


def _is_mapped(uid: int) -> bool:
    return any(first <= uid < first + count for first, _, count in _uid_map())


def _uid_map() -> "list[tuple[int, int, int]]":
    """Return (first uid, its uid outside, count) of each range of mapped uids. Without /proc, all uids are mapped."""
    try:
        lines = _read(_UID_MAP).splitlines()
        return [(int(first), int(outside), int(count)) for first, outside, count in map(str.split, lines)] or [(0, 0, _ALL)]
    except (OSError, ValueError):
        return [(0, 0, _ALL)]


def _hidden_uid() -> int:
    """Return the uid that files of unmapped users have; -1, which no file has, if it is unknown."""
    try:
        return int(_read(_HIDDEN))
    except (OSError, ValueError):
        return -1


def _read(path: str) -> str:
    """Return the beginning of a small file. Raise OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _LIMIT).decode("ascii", "replace")
    finally:
        os.close(fd)
