"""The result of a deletion."""

from jobcache.system import mounts


class Tally:
    """What a deletion has removed and left.

    bytes: allocated to files whose last link was removed. files, directories: removed below the cache. bytes and files are
    negative if an earlier call has counted a file that is still there.
    left: entries that could not be removed. mounted: one of these is a mount point. error: the first error.
    done: nothing is left. If done is False and left is 0, the deadline has passed.
    """

    __slots__ = ("bytes", "files", "directories", "left", "mounted", "error", "done")

    def __init__(self) -> None:
        self.bytes = 0
        self.files = 0
        self.directories = 0
        self.left = 0
        self.mounted = False
        self.error = ""
        self.done = False

    def note(self, error: Exception) -> None:
        """Keep the first error. The caller counts the entries that are left."""
        self.error = self.error or str(error) or type(error).__name__
        self.mounted = self.mounted or isinstance(error, mounts.MountPoint)

    def add(self, other: "Tally") -> None:
        """Add what the other tally has removed, and its error; not what it has left."""
        self.bytes += other.bytes
        self.files += other.files
        self.directories += other.directories
        self.error = self.error or other.error
        self.mounted = self.mounted or other.mounted
