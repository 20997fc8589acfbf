"""Reasons why a path cannot be used: words of a closed set (`reason` in config/schema/event.json)."""

import errno

_REASONS = {
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EACCES: "no_access",
    errno.EPERM: "no_access",
    errno.ENOKEY: "no_access",  # no Kerberos ticket
    errno.EKEYEXPIRED: "no_access",
    errno.EROFS: "read_only",
    errno.ELOOP: "not_directory",
    errno.ENOTDIR: "not_directory",
}


class Refused(Exception):
    """The path belongs to somebody or something else. reason: a word of the closed set. str(): the details for a person."""

    def __init__(self, reason: str, details: str) -> None:
        super().__init__(details)
        self.reason = reason


def reason_of(error: OSError) -> str:
    """Return the reason for an error of the filesystem."""
    return _REASONS.get(error.errno or 0, "io_error")
