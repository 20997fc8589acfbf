"""The links to one build in a cache: a real directory, and one symlink for each file of the build.

`datasets` creates a lock beside the directory of each build that it opens. Its name can be shortened, and some versions of
`filelock` delete it. So the directory above a build gets a fixed mtime when the build is linked: a lock changes that mtime.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UNOPENED = 10**18  # ns since the epoch, in 2001: the mtime of a directory in which no build was opened since they were linked


def create(dir_fd: int, path: str, links: "Iterable[tuple[str, str]]", mtime: int) -> "Iterator[None]":
    """Create links in the directory of a build, and date it; yield after each, so that the caller can look at the clock.

    path: of the directory, below `dir_fd`. links: (name, target) of each. mtime: of the build, in ns: offline, `datasets` uses
    the newest directory. Raise OSError.
    """
    for name, target in links:
        os.symlink(target, f"{path}/{name}", dir_fd=dir_fd)
        yield
    os.utime(path, ns=(mtime, mtime), dir_fd=dir_fd)


def mark_unopened(into_fd: int, key: str) -> None:
    """Record in the directory above a linked build that no program has opened the build. Raise OSError."""
    os.utime(os.path.dirname(key), ns=(UNOPENED, UNOPENED), dir_fd=into_fd)


def opened(above_fd: int, names: "set[str]") -> "set[str]":
    """Return which of the builds `names`, in the directory `above_fd`, were opened since they were linked. Raise OSError.

    names: of all builds in it. If no lock shows which one it was, return all builds of a directory that has changed.
    """
    locks = [name for name in os.listdir(above_fd) if name.endswith(".lock")]
    found = {lock[:end] for lock in locks for end in range(1, len(lock))} & names
    return found or (names if os.fstat(above_fd).st_mtime_ns != UNOPENED else set())
