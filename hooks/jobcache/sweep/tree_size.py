"""The size of a directory tree, in bounded memory: a user can make any number of entries, directories and hard links."""

import os
from collections.abc import Iterator

from jobcache.cache import cache_names, dirfd

_STRIDE = 4096  # entries between two heartbeats
_DEEPEST = 64  # levels of a tree that are measured; a built dataset has four
_MOST_LINKED = 100_000  # files with several links that are remembered; each name of any further one counts


def measure(parent_fd: int, name: str) -> Iterator[tuple[int, int]]:
    """Yield (bytes allocated, files) of a tree: periodically the sums so far, at the end the totals. Raise OSError.

    A file with several links counts once. `.jobcache`, closed directories and levels below _DEEPEST do not count.
    """
    total = files = 0
    linked: set[tuple[int, int]] = set()
    for count, (is_directory, status) in enumerate(walk(parent_fd, name), 1):
        if not is_directory:
            files += 1
            inode = status.st_dev, status.st_ino
            if status.st_nlink == 1 or inode not in linked:
                total += status.st_blocks * 512
            if status.st_nlink > 1 and len(linked) < _MOST_LINKED:
                linked.add(inode)
        if count % _STRIDE == 0:
            yield total, files
    yield total, files


def walk(parent_fd: int, name: str) -> Iterator[tuple[bool, os.stat_result]]:
    """Yield (is a directory, status) of each entry of a tree, without the files of `.jobcache` at its top. Raise OSError."""
    stack = [_Level(dirfd.open_unmarked(name, dirfd.DIRECTORY, parent_fd))]
    try:
        while stack:
            level = stack[-1]
            entry = level.next()
            if entry is None:
                stack.pop().close()
                continue
            try:
                is_directory = entry.is_dir(follow_symlinks=False)
                yield is_directory, entry.stat(follow_symlinks=False)
                if is_directory and len(stack) <= _DEEPEST and (len(stack) > 1 or entry.name != cache_names.META):
                    stack.append(_Level(dirfd.open_unmarked(entry.name, dirfd.DIRECTORY, level.fd)))
            except OSError:
                continue  # deleted by the job, or closed
    finally:
        for level in stack:
            level.close()


class _Level:
    """A directory that is being read. fd: its descriptor, which this object closes. Raise OSError."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        try:
            self._entries = os.scandir(fd)
        except OSError:
            os.close(fd)
            raise

    def next(self) -> "os.DirEntry[str] | None":
        """Return the next entry, None at the end."""
        return next(self._entries, None)

    def close(self) -> None:
        self._entries.close()
        os.close(self.fd)
