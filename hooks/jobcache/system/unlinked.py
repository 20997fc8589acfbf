"""The files that a deletion has unlinked, to recognize one that the filesystem only renamed.

NFS and FUSE rename an open file that is unlinked, to `.nfs…` or `.fuse_hidden…` in the same directory. To unlink that name
renames the file again, and the deletion would never end.
"""

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

    from jobcache.system.tally import Tally

_MOST = 4096  # files that are remembered at least, and half of those remembered at most


class StillOpen(OSError):
    """A file that was unlinked has another name by now."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EBUSY, "a process has it open, and the filesystem keeps it", name)


class Unlinked:
    """Remembers the last files that one deletion has unlinked, and for good those that came back.

    Threads may share it.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}  # by file, how many other links it had
        self._earlier: dict[int, int] = {}
        self._back: set[int] = set()

    def check(self, name: str, found: "os.stat_result", tally: "Tally") -> None:
        """Raise StillOpen if all links of the file that is now `name` have been unlinked already; take it from the tally.

        Only a name with a dot can be such a file: some filesystems reuse the number of a deleted file at once, or have one
        number for all files.
        """
        if name[0] != ".":
            return
        key = _key(found)
        if key in self._back:
            raise StillOpen(name)
        if self._recent.get(key, self._earlier.get(key)) != 0:
            return
        tally.files -= 1
        tally.bytes -= found.st_blocks * 512 if found.st_nlink == 1 else 0
        if len(self._back) < _MOST:
            self._back.add(key)
        raise StillOpen(name)

    def add(self, found: "os.stat_result") -> None:
        """Remember a file that was unlinked. found: its state before."""
        key = _key(found)
        links = self._recent.get(key, self._earlier.get(key))
        if len(self._recent) >= _MOST:
            self._earlier, self._recent = self._recent, {}
        self._recent[key] = max(0, found.st_nlink - 1 if links is None else links - 1)


def _key(found: "os.stat_result") -> int:
    return found.st_dev << 64 | found.st_ino
