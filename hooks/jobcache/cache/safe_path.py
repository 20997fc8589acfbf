"""The way to a cache or to a user's store: opened from the top, checked, and what is missing on it created.

A user who can rename one of these directories, or the cache in it, can put a directory of their own at the same path,
serve wrong data to the job and read what the job writes. Each check holds for good, because the directory above has been
checked before: only root and this user can exchange an entry of it.
"""

import errno
import os
import stat

from jobcache.cache import dirfd, file_owners, reasons, write_access

_ACCESS_LIST = "system.posix_acl_access"
_NO_ACCESS_LIST = (errno.ENODATA, errno.EOPNOTSUPP)


def open_safe(path: str, uid: int, above: "str | None" = None, make: bool = False, given: str = "") -> int:
    """Open a directory in which only root and the user `uid` can exchange an entry; return its descriptor.

    above: the part of `path` above its first component that names the user; None: all above the last component.
    make: create the directories that are missing, accessible to this user alone, but never one of `given`.
    given: the part of `path` that only the site makes: users share it, or it is a directory of the job.
    Raise Refused if another user could exchange a directory on the way, OSError.
    """
    steps = _Steps(path, uid, above, given)
    try:
        return dirfd.open_directory(path, steps.check, steps.make if make else None, uid)
    except OSError as error:
        if not str(error.filename or "").startswith("/"):  # it names the symlink that is not followed
            error.filename = path
        raise


class _Steps:
    """The checks of the directories on one path."""

    def __init__(self, path: str, uid: int, above: "str | None", given: str) -> None:
        self._uid = uid
        self._given = given.count("/")  # the number of components that the site makes
        self._reached = -1  # index of the last component that exists
        self._parts = [part for part in path.split("/") if part]
        self._own = len(self._parts) - 1 if above is None else above.count("/")  # index of the user's first component

    def check(self, above_fd: int, fd: int, level: int) -> None:
        """Raise Refused if another user could exchange the directory open at `fd`, or an entry of it. As dirfd.Visit."""
        self._reached = max(self._reached, level)
        above, found = os.fstat(above_fd), os.fstat(fd)
        in_own_part = level >= self._own
        is_trusted = found.st_uid == file_owners.own(self._uid) or file_owners.is_roots(found, above, self._uid)
        weak = write_access.weakness_of_step(found, above, in_own_part, is_trusted)
        if weak == write_access.WRITABLE and in_own_part and _is_private_group(fd, found, self._uid):
            weak = ""
        if weak == write_access.FOREIGN:
            raise reasons.Refused("foreign", f"uid {found.st_uid} owns {self._name(level)} and can exchange what is in it")
        if weak:
            remedy = "chmod go-w" if in_own_part else "chmod +t"
            raise reasons.Refused("writable", f"other users can write to {self._name(level)}: `{remedy}` it")

    def make(self, dir_fd: int, name: str) -> int:
        """Create the next component; return its descriptor. As dirfd.Make. Raise Refused, OSError."""
        if self._reached + 1 < self._given:
            missing = self._name(self._reached + 1)
            if self._given > self._own:
                raise reasons.Refused("no_job_directory", f"{missing} does not exist: the site's Prolog has to make it")
            # This user's directory would be closed to all others.
            raise reasons.Refused("no_access", f"{missing} does not exist, and the site has to make it")
        return make_directory(dir_fd, name)

    def _name(self, level: int) -> str:
        path = "/" + "/".join(self._parts[: level + 1])
        return path if level >= 0 else f"a directory behind a symlink in /{'/'.join(self._parts)}"


def _is_private_group(fd: int, found: "os.stat_result", uid: int) -> bool:
    """Return whether the user `uid` alone is in the group that can write the directory open at `fd`. Raise OSError.

    Many systems give each user such a group, with the user's name, and the umask 002.
    """
    if found.st_mode & stat.S_IWOTH:
        return False
    import grp  # most directories are not writable for a group, and looking up names can take time
    import pwd

    try:
        name, group = pwd.getpwuid(uid).pw_name, grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    if group.gr_name != name or not {name}.issuperset(group.gr_mem):
        return False
    try:
        os.getxattr(f"/proc/self/fd/{fd}", _ACCESS_LIST)
    except OSError as error:
        if error.errno in _NO_ACCESS_LIST:
            return True
        raise
    return False


def make_directory(dir_fd: int, name: str) -> int:
    """Create a directory that only this user can access; return its descriptor. Raise OSError.

    Raise Refused, after removing it, if it belongs to another user or others can write it: some mounts show all files as one
    user's. Nobody but this user would then be able to work in it, or to delete it as its owner.
    """
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        return os.open(name, dirfd.SEARCH, dir_fd=dir_fd)  # another task was faster
    fd = os.open(name, dirfd.SEARCH, dir_fd=dir_fd)
    found = os.fstat(fd)
    weak = write_access.weakness(found, (os.geteuid(),))
    if not weak:
        return fd
    os.close(fd)
    dirfd.rmdir_if_exists(dir_fd, name)
    if weak == write_access.FOREIGN:
        raise reasons.Refused("foreign", f"the filesystem gives new directories to uid {found.st_uid}")
    raise reasons.Refused("writable", "the filesystem lets other users write to new directories")
