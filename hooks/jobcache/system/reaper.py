"""The reaper: the only code that deletes directory trees.

It deletes one directory that the caller holds open and has identified, as the directory's owner and never as root. The
directory is first renamed to trash, so that nobody can use it as a cache any more, and then emptied through descriptors.
The reaper follows no symlink, crosses no mount and changes nothing outside. It stops at its deadline, and the next call
continues.
"""

import errno
import os
import stat
import time
from time import perf_counter

from jobcache.cache import cache_names, store_names
from jobcache.system import mounts
from jobcache.system.tally import Tally
from jobcache.system.unlinked import Unlinked

_DEPTH_LIMIT = 32  # directories held open at once; deeper ones are moved up first
_MOVED_UP = ".jobcache-deep-"  # prefix of their names at the top
_SLOW = 0.0005  # seconds for each entry, from which on it pays to empty several directories at once
_HELPERS = 3  # threads beside the first: they hide most of the latency without flooding a metadata server
_NO_RENAME = (errno.EXDEV,)  # a lower overlay layer
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # for a new name
_NOT_OWNER = "the reaper deletes only as the owner, and never as root"


class Kept(Exception):
    """The directory must not be deleted. reason: of config/schema/event.json."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def retire(parent_fd: int, name: str, fd: int, uid: int, job_id: int) -> str:
    """Rename the directory `name`, held open at `fd`, to trash beside it; return its new name.

    Return `name` itself if the filesystem cannot rename the directory: a lower overlay layer, or a full quota, under which
    a new name is refused but deletion works.
    uid: the owner that the directory must have.
    Raise Kept for another user's directory, for a mount point, and if another directory has this name by now. Raise OSError.
    """
    trash = cache_names.trash_name(job_id, os.urandom(8).hex())
    return _rename_to_trash(parent_fd, name, fd, uid, trash, _NO_RENAME + _NO_ROOM)


def retire_stored(section_fd: int, name: str, fd: int) -> str:
    """Rename a build of a store, or debris of one, to trash beside it; return its new name. Raise Kept, OSError."""
    if store_names.parse_build(name) is None and store_names.parse_store_debris(name) is None:
        raise Kept("bad_name", "it has no name of a build")
    return _rename_to_trash(section_fd, name, fd, os.geteuid(), store_names.BUILD_TRASH + os.urandom(8).hex(), _NO_RENAME)


def drop_section(version_fd: int, name: str) -> None:
    """Remove a section of a store if it is empty. Raise Kept if this process does not own the store, OSError."""
    if store_names.parse_section(name) is None:
        raise Kept("bad_name", "it has no name of a section")
    if not _is_own(version_fd):
        raise Kept("foreign", _NOT_OWNER)
    try:
        os.rmdir(name, dir_fd=version_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _rename_to_trash(parent_fd: int, name: str, fd: int, uid: int, trash: str, tolerated: "tuple[int, ...]") -> str:
    """Rename, and check that the right directory was renamed. tolerated: errors of the rename for which to keep the name."""
    if cache_names.is_history(name):
        raise Kept("bad_name", "it has the name of a history")
    held = os.fstat(fd)
    if held.st_uid != uid:
        raise Kept("foreign", f"it belongs to uid {held.st_uid}, not to uid {uid}")
    if not _is_own(fd):
        raise Kept("foreign", _NOT_OWNER)
    if mounts.mount_id(fd) != mounts.mount_id(parent_fd):
        raise Kept("mount", "it is a mount point")
    try:
        os.rename(name, trash, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in tolerated:
            raise
        trash = name
    found = os.lstat(trash, dir_fd=parent_fd)
    if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
        if trash != name:
            _rename_back(parent_fd, trash, name, stat.S_ISDIR(found.st_mode))
        raise Kept("changed", "another directory has its name by now")
    return trash


def _rename_back(parent_fd: int, trash: str, name: str, is_directory: bool) -> None:
    """Undo the rename of the wrong entry; if its name is taken by now, choose a name that nothing deletes.

    NFS has no RENAME_NOREPLACE. To claim the name, create an empty directory, which rename(2) then replaces, or, for
    anything but a directory, a hard link.
    """
    try:
        if is_directory:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
            os.rename(trash, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        else:
            os.link(trash, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
            os.unlink(trash, dir_fd=parent_fd)
    except OSError as error:
        aside = cache_names.aside_name(trash)
        os.rename(trash, aside, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        raise Kept("changed", f"another directory had its name, and is now {aside}: {error.strerror}") from None


def delete(
    parent_fd: int, name: str, fd: int, until: float, rate: "float | None" = None, unlinked: "Unlinked | None" = None
) -> Tally:
    """Delete the directory `name`, held open at `fd`; return the result. Raise nothing.

    The caller has it from `retire`, or it is trash from `mounts.open_beside`.
    until: deadline, in seconds of time.monotonic.
    rate: limit in entries for each second, to spare a busy metadata server.
    unlinked: shared by the calls that delete one directory piece by piece.

    `.jobcache` is deleted last, uncounted, and the id in it at the very end: as long as anything is left, the id shows
    whose it is.
    """
    tally = Tally()
    unlinked = unlinked or Unlinked()
    try:
        if not _is_own(fd):
            raise PermissionError(errno.EPERM, _NOT_OWNER, name)
        emptying = _Emptying(fd, tally, until, unlinked, rate)
        if emptying.run(skip=cache_names.META) and _delete_meta(fd, tally, until, unlinked):
            _rmdir(parent_fd, name)
            tally.done = True
    except OSError as error:
        tally.left += 1
        tally.note(error)
    return tally


def _delete_meta(fd: int, tally: Tally, until: float, unlinked: Unlinked) -> bool:
    """Delete .jobcache, whatever kind of file it is; return whether it is gone. Raise OSError."""
    try:
        meta_fd = mounts.open_within(fd, cache_names.META, mounts.mount_id(fd))
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        _unlink(fd, cache_names.META)
        return True
    uncounted = Tally()
    try:
        skips = (cache_names.ID, "")
        gone = all(_Emptying(meta_fd, uncounted, until, unlinked).run(skip) for skip in skips)
    finally:
        os.close(meta_fd)
    tally.left += uncounted.left
    tally.mounted = tally.mounted or uncounted.mounted
    tally.error = tally.error or uncounted.error
    if gone:
        _rmdir(fd, cache_names.META)
    return gone


class _Frame:
    """A directory that is being emptied: its name in the one above, and what the current pass has removed and left."""

    __slots__ = ("fd", "name", "entries", "removed", "left", "helpers")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.entries = os.scandir(fd)
        self.removed = 0
        self.left = 0
        self.helpers: list[_Helper] = []

    def rewind(self) -> None:
        """Begin another pass. Raise OSError."""
        self.entries.close()
        self.removed = 0
        self.left = 0
        self.entries = os.scandir(self.fd)

    def close(self, with_fd: bool) -> None:
        self.entries.close()
        if with_fd:
            os.close(self.fd)


class _Helper:
    """A thread that empties one directory of a frame. Raise RuntimeError if no thread can be started.

    gone: the directory is empty. If gone is False and tally.left is 0, the deadline has passed.
    """

    def __init__(self, fd: int, name: str, until: float, unlinked: Unlinked) -> None:
        import threading  # few deletions need it

        self.fd = fd
        self.name = name
        self.tally = Tally()
        self.gone = False
        self.thread = threading.Thread(target=self._run, args=(until, unlinked))
        self.thread.start()

    def _run(self, until: float, unlinked: Unlinked) -> None:
        try:
            self.gone = _Emptying(self.fd, self.tally, until, unlinked, helped=False).run()
        except Exception as error:  # noqa: BLE001 - a thread that dies without a count would pass for a late one
            self.tally.left += 1
            self.tally.note(error)


class _Emptying:
    """Empties one directory, depth first and without recursion. On a slow filesystem, helpers empty subdirectories."""

    def __init__(
        self, top_fd: int, tally: Tally, until: float, unlinked: Unlinked, rate: "float | None" = None, helped: bool = True
    ) -> None:
        self.pause = 1 / rate if rate else 0.0
        self.helped = helped and not rate
        self.top_fd = top_fd
        self.tally = tally
        self.until = until
        self.unlinked = unlinked
        self.mount = mounts.mount_id(top_fd)
        self.stack: list[_Frame] = []
        self.began = perf_counter()
        self.opened = 0

    def run(self, skip: str = "") -> bool:
        """Return whether nothing is left but `skip`, an entry of the top directory. Raise OSError if that is unreadable."""
        mounts.allow_owner(self.top_fd)
        self.stack = [_Frame(self.top_fd, "")]
        try:
            while time.monotonic() < self.until:
                frame = self.stack[-1]
                directory = self._remove_files(frame, "" if frame.name else skip)
                if directory is not None:
                    self._try_to_enter(frame, directory)
                elif time.monotonic() < self.until and self._end_pass(frame):
                    return not frame.left
            return False
        finally:
            for frame in reversed(self.stack):
                self._wait_for_helpers(frame)
                frame.close(with_fd=frame.fd != self.top_fd)
            self.tally.left += self.stack[0].left

    def _remove_files(self, frame: _Frame, skip: str) -> "str | None":
        """Remove entries up to the next directory; return its name, None at the end of the directory or the deadline.

        Check the deadline after each file.
        """
        entries, fd, tally, unlinked = frame.entries, frame.fd, self.tally, self.unlinked
        monotonic, until = time.monotonic, self.until
        while True:
            try:
                entry = next(entries, None)
            except OSError as error:
                self._count_left(frame, error)
                return None
            if entry is None:
                return None
            name = entry.name
            if name == skip:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    return name
                found = entry.stat(follow_symlinks=False)
                unlinked.check(name, found, tally)
                _unlink(fd, name)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._count_left(frame, error)
            else:
                unlinked.add(found)
                frame.removed += 1
                tally.files += 1
                if found.st_nlink == 1:
                    tally.bytes += found.st_blocks * 512
            if self.pause:
                time.sleep(self.pause)
            if monotonic() >= until:
                return None

    def _try_to_enter(self, frame: _Frame, name: str) -> None:
        try:
            self._enter(frame, name)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._count_left(frame, error)

    def _enter(self, frame: _Frame, name: str) -> None:
        """Continue with a subdirectory, or give it to a helper, or move it up. Raise OSError."""
        try:
            fd = mounts.open_within(frame.fd, name, self.mount)
        except PermissionError:
            os.rmdir(name, dir_fd=frame.fd)  # another user's directory without access for us: removable if it is empty
            frame.removed += 1
            return
        self.opened += 1
        try:
            if len(self.stack) > _DEPTH_LIMIT and self._move_up(frame, name):
                os.close(fd)
            elif not self._hand_over(frame, fd, name):
                self.stack.append(_Frame(fd, name))
        except OSError:
            os.close(fd)
            raise

    def _move_up(self, frame: _Frame, name: str) -> bool:
        """Move a subdirectory to the top; return whether that succeeded. If it cannot be renamed, it costs a descriptor."""
        try:
            os.rename(name, _MOVED_UP + os.urandom(8).hex(), src_dir_fd=frame.fd, dst_dir_fd=self.top_fd)
        except OSError:
            return False
        frame.removed += 1
        self.stack[0].removed += 1
        return True

    def _hand_over(self, frame: _Frame, fd: int, name: str) -> bool:
        """Start a helper for a subdirectory if the filesystem is slow; return whether one has started."""
        if not self.helped or perf_counter() - self.began < _SLOW * (self.tally.files + self.opened):
            return False
        if sum(helper.thread.is_alive() for each in self.stack for helper in each.helpers) >= _HELPERS:
            return False
        try:
            frame.helpers.append(_Helper(fd, name, self.until, self.unlinked))
        except RuntimeError:
            return False
        return True

    def _wait_for_helpers(self, frame: _Frame) -> None:
        while frame.helpers:
            helper = frame.helpers.pop()
            helper.thread.join()
            os.close(helper.fd)
            self.tally.add(helper.tally)
            if helper.gone or helper.tally.left:
                self._remove_emptied(frame, helper)

    def _remove_emptied(self, frame: _Frame, helper: _Helper) -> None:
        """Remove a directory that a helper has emptied; count what is in the way."""
        try:
            os.rmdir(helper.name, dir_fd=frame.fd)
            frame.removed += 1
            self.tally.directories += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            frame.left += helper.tally.left
            self._count_left(frame, error)

    def _end_pass(self, frame: _Frame) -> bool:
        """At the end of a pass: begin another one, or leave the directory. Return True at the end of the top directory."""
        self._wait_for_helpers(frame)
        if len(self.stack) > 1:
            self._leave(frame)
        elif frame.removed:
            self._rewind(frame)
        else:
            return True
        return False

    def _rewind(self, frame: _Frame) -> None:
        """Begin another pass: readdir may skip entries while others are removed. The last pass removes nothing."""
        try:
            frame.rewind()
        except OSError as error:
            self._count_left(frame, error)

    def _leave(self, frame: _Frame) -> None:
        """Remove the directory of the frame; if it is not empty, begin another pass or count what is in the way."""
        above = self.stack[-2]
        try:
            os.rmdir(frame.name, dir_fd=above.fd)
            above.removed += 1
            self.tally.directories += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            if frame.removed:
                self._rewind(frame)
                return
            above.left += frame.left
            self._count_left(above, error)
        self.stack.pop()
        frame.close(with_fd=True)

    def _count_left(self, frame: _Frame, error: OSError) -> None:
        frame.left += 1
        self.tally.note(error)


def _is_own(fd: int) -> bool:
    return os.fstat(fd).st_uid == os.geteuid() != 0


def _unlink(dir_fd: int, name: str) -> None:
    """Remove a file. Raise MountPoint if something is mounted on it, OSError."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.EBUSY and mounts.is_mount_point(dir_fd, name):
            raise mounts.MountPoint(name) from None
        raise


def _rmdir(dir_fd: int, name: str) -> None:
    """Remove an empty directory, unless it is gone already. Raise OSError."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
