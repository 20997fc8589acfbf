"""Why a path cannot be used: the closed set of reasons."""

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class Refused(Exception):
    """What stands at the path is not ours to use: a closed-set `reason`, and the words for a person."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


def reason_of(error: OSError) -> str:
    """Return the closed-set reason that stands for an error of the filesystem."""
    return {
        errno.ENOSPC: "no_space",
        errno.EDQUOT: "no_space",
        errno.EACCES: "no_access",
        errno.EPERM: "no_access",
        errno.EROFS: "read_only",
        errno.ELOOP: "not_directory",
        errno.ENOTDIR: "not_directory",
    }.get(error.errno or 0, "io_error")
