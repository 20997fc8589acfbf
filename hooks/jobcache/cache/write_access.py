"""Which users can change a file or directory, by its owner and mode. An access control list shows in the group's bits."""

import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Container

FOREIGN = "foreign"  # another user owns it
WRITABLE = "writable"  # its group or all users can write it


def is_open(mode: int) -> bool:
    """Return whether `mode` lets the group or all users write."""
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def weakness(found: "os.stat_result", owners: "Container[int]", sticky: bool = False) -> str:
    """Return why users other than `owners` can change a file or directory: FOREIGN, WRITABLE, or "" if they cannot.

    owners: the trusted uids.
    sticky: accept an open directory with the sticky bit, for a caller that also checks the entry that it uses: users can
    add entries to such a directory, but cannot replace those of another owner.
    """
    if found.st_uid not in owners:
        return FOREIGN
    if is_open(found.st_mode) and not (sticky and found.st_mode & stat.S_ISVTX):
        return WRITABLE
    return ""


def weakness_of_step(found: "os.stat_result", above: "os.stat_result", in_own_part: bool, is_trusted: bool) -> str:
    """Return as `weakness` does for a directory above a cache or a store, given it and the directory above it.

    in_own_part: the directory is a user's own, or below one, so its owner has to be trusted. Any account may own one above
    these, and any group may write it: the site has named it in its configuration. There, only what all users can write is
    weak, and an entry of it that no trusted user owns: any user can have created that.
    is_trusted: root or the user owns the directory.
    """
    if in_own_part:
        return weakness(found, (found.st_uid,) if is_trusted else (), sticky=True)
    if above.st_mode & stat.S_IWOTH and not is_trusted:
        return FOREIGN
    return WRITABLE if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX else ""
