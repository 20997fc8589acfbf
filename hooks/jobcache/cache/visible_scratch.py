"""Whether the task of a container sees the scratch of its node.

A user can write to the own filesystem of some containers. A cache there would be found by no Epilog: it stays with the
container, or takes memory. docs/decisions/containers.md has the reasons.
"""

import os

from jobcache.cache import file_owners, reasons

_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def require(path: str, scratch: str, uid: int) -> None:
    """Raise Refused in a container in which a cache at `path` would not lie on the scratch of the node. Raise OSError.

    scratch: the part of `path` that the site has created, "" for /. uid: of the job's user.
    """
    if not file_owners.is_in_container(uid):
        return
    try:
        scratch_fd = os.open(scratch or "/", _OPEN)
    except FileNotFoundError:
        raise reasons.Refused("not_mounted", f"{scratch} does not exist in the container of this task") from None
    try:
        # The user owns the filesystems of the container. The site's directory is another's, or something is mounted below it.
        if os.fstat(scratch_fd).st_uid == file_owners.own(uid):
            mount = _mount_id(scratch_fd)
            fd = _open_existing_part(path)
            try:
                if mount and _mount_id(fd) == mount:
                    raise reasons.Refused("not_mounted", f"{scratch or '/'} is a directory of this task's container")
            finally:
                os.close(fd)
    finally:
        os.close(scratch_fd)


def _open_existing_part(path: str) -> int:
    """Return the descriptor of the longest beginning of a path that is a directory. Raise OSError."""
    while True:
        try:
            return os.open(path or "/", _OPEN)
        except (FileNotFoundError, NotADirectoryError):
            path = path.rpartition("/")[0]


def _mount_id(fd: int) -> str:
    """Return the id of the mount on which a file or directory is open, "" if it is unknown."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file:
            for line in (file.read(4096) or b"").splitlines():
                if line.startswith(b"mnt_id:"):
                    return line[7:].decode("ascii").strip()
    except OSError:
        pass
    return ""
