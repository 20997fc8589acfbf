"""The only code that deletes.

It deletes one directory that the caller holds open, has identified, and may delete as the user it is: renamed to a
trash name first, so that from one moment to the next it is nobody's cache, then emptied relative to descriptors. It
follows no symlink, crosses no mount, changes nothing outside, and gives up at its deadline, leaving trash that the next
one finishes.
"""

import errno
import os
import stat
import time
from time import perf_counter

from jobcache.cache import cache_names, dirfd, store_names

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 32  # directories held open at once; what lies deeper is moved up first
_SLOW = 0.0005  # seconds an entry, from which on it helps to empty several directories at once
_HELPERS = 3  # threads beside the first one: enough to hide the waiting, and no storm for a metadata server
_MOVED = ".jobcache-deep-"  # its name there
_NO_RENAME = (errno.EXDEV,)  # a lower overlay layer
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # for a new name


class Kept(Exception):
    """The directory is not to be deleted: a closed-set `reason`, and the words for a person."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class _MountPoint(OSError):
    """Something is mounted there."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EBUSY, "a mount point, left alone", name)


class Tally:
    """What a deletion did. bytes: allocated to the files whose last link went. directories: below the cache, that went.

    left: entries that could not go. mounted: one of these is a mount point. done: nothing is left at all. error: what went
    wrong first, for a person. Neither done nor left: it was late.
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

    def fail(self, error: OSError) -> None:
        """Note why an entry could not go; to count it is the caller's."""
        self.error = self.error or str(error)
        self.mounted = self.mounted or isinstance(error, _MountPoint)

    def add(self, other: "Tally") -> None:
        """Count in what another one has counted, but for what it left."""
        self.bytes += other.bytes
        self.files += other.files
        self.directories += other.directories
        self.error = self.error or other.error
        self.mounted = self.mounted or other.mounted


def retire(parent_fd: int, name: str, fd: int, uid: int, job_id: int) -> str:
    """Rename the directory `name`, held open at `fd`, to trash beside it; return the name it has now.

    That is `name` itself where the filesystem cannot rename it: a lower overlay layer, and some at the end of a quota, which
    still let go. Raise Kept for one that is another user's, a mount point, or no longer what is held open; OSError where
    the rename fails.
    """
    return _to_trash(parent_fd, name, fd, uid, cache_names.trash_name(job_id, os.urandom(8).hex()), _NO_RENAME + _NO_ROOM)


def retire_stored(section_fd: int, name: str, fd: int) -> str:
    """The same for what lies in a section of a store: a build, or what is left of one. Raise Kept also for another name."""
    if store_names.parse_build(name) is None and store_names.parse_store_debris(name) is None:
        raise Kept("bad_name", "it has no name of ours")
    return _to_trash(section_fd, name, fd, os.geteuid(), store_names.BUILD_TRASH + os.urandom(8).hex())


def drop_section(version_fd: int, name: str) -> None:
    """Remove a section of a store that is empty; leave any other. Raise Kept where it is not ours, OSError."""
    if store_names.parse_section(name) is None:
        raise Kept("bad_name", "it has no name of ours")
    if not _is_ours(version_fd):
        raise Kept("foreign", "nothing is deleted as root, nor as another than its owner")
    try:
        os.rmdir(name, dir_fd=version_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _to_trash(parent_fd: int, name: str, fd: int, uid: int, trash: str, in_place: "tuple[int, ...]" = _NO_RENAME) -> str:
    held = os.fstat(fd)
    if held.st_uid != uid:
        raise Kept("foreign", f"it belongs to uid {held.st_uid}, not {uid}")
    if not _is_ours(fd):
        raise Kept("foreign", "nothing is deleted as root, nor as another than its owner")
    refuse_mount(parent_fd, fd)
    try:
        os.rename(name, trash, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in in_place:
            raise
        trash = name
    found = os.lstat(trash, dir_fd=parent_fd)
    if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
        if trash != name:
            _rename_back(parent_fd, trash, name, stat.S_ISDIR(found.st_mode))
        raise Kept("changed", "another directory stood at its name")
    return trash


def refuse_mount(parent_fd: int, fd: int) -> None:
    """Raise Kept where the directory held open at `fd`, that lies in `parent_fd`, is a mount point."""
    if _mount(fd) != _mount(parent_fd):
        raise Kept("mount", "it is a mount point")


def _rename_back(parent_fd: int, trash: str, name: str, is_directory: bool) -> None:
    """Give what was renamed by mistake its name back; where that is taken by now, one that nothing deletes.

    RENAME_NOREPLACE is not to be had on NFS. A new, empty directory claims the name as well, and rename(2) takes the
    place of such a one, and of nothing else; what is no directory gets its name by link(2).
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
        raise Kept("changed", f"another directory stood at its name, and is now at {aside}: {error.strerror}") from None


def delete(parent_fd: int, name: str, fd: int, until: float, rate: "float | None" = None) -> Tally:
    """Delete what `retire` returned, or trash that `refuse_mount` lets pass; return what that did. Raise nothing.

    until: seconds of time.monotonic.
    rate: entries a second at the most, to spare a busy metadata server.

    The cache's own `.jobcache` goes last, uncounted, and in it the id: as long as anything is there, so is what says
    whose it is.
    """
    tally = Tally()
    try:
        if not _is_ours(fd):
            raise PermissionError(errno.EPERM, "nothing is deleted as root, nor as another than its owner", name)
        if _Emptying(fd, tally, until, rate).run(skip=cache_names.META) and _drop_meta(fd, tally, until):
            _rmdir(parent_fd, name)
            tally.done = True
    except OSError as error:
        tally.left += 1
        tally.fail(error)
    return tally


def _drop_meta(fd: int, tally: Tally, until: float) -> bool:
    """Delete .jobcache, whatever the user made of it; return whether it is gone. Raise OSError."""
    try:
        meta_fd = _open(fd, cache_names.META, _mount(fd))
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        _unlink(fd, cache_names.META)
        return True
    ours = Tally()
    try:
        gone = _Emptying(meta_fd, ours, until).run(skip=cache_names.ID) and _Emptying(meta_fd, ours, until).run()
    finally:
        os.close(meta_fd)
    tally.left += ours.left
    tally.mounted = tally.mounted or ours.mounted
    tally.error = tally.error or ours.error
    if gone:
        _rmdir(fd, cache_names.META)
    return gone


class _Frame:
    """A directory being emptied, its name in the one above, and what the present pass over it has removed and left."""

    __slots__ = ("fd", "name", "entries", "removed", "left", "helpers")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.entries = os.scandir(fd)
        self.removed = 0
        self.left = 0
        self.helpers: list[_Helper] = []

    def again(self) -> None:
        self.entries.close()
        self.removed = 0
        self.left = 0
        self.entries = os.scandir(self.fd)

    def close(self, with_fd: bool) -> None:
        self.entries.close()
        if with_fd:
            os.close(self.fd)


class _Helper:
    """A thread that empties one directory of a frame: `gone` says whether nothing is left in it.

    Neither gone nor anything left: it was late. Raise RuntimeError where there is no thread to be had.
    """

    def __init__(self, fd: int, name: str, until: float) -> None:
        import threading  # few deletions need it

        self.fd = fd
        self.name = name
        self.tally = Tally()
        self.gone = False
        self.thread = threading.Thread(target=self._run, args=(until,))
        self.thread.start()

    def _run(self, until: float) -> None:
        try:
            self.gone = _Emptying(self.fd, self.tally, until, helped=False).run()
        except OSError as error:
            self.tally.left += 1
            self.tally.fail(error)


class _Emptying:
    """Empties one directory, depth first and without recursion; on a slow filesystem with helpers, where it may be helped."""

    def __init__(self, top_fd: int, tally: Tally, until: float, rate: "float | None" = None, helped: bool = True) -> None:
        self.pause = 1 / rate if rate else 0.0
        self.helped = helped and not rate
        self.top_fd = top_fd
        self.tally = tally
        self.until = until
        self.mount = _mount(top_fd)
        self.stack: list[_Frame] = []
        self.began = perf_counter()
        self.opened = 0

    def run(self, skip: str = "") -> bool:
        """Return whether all is gone but `skip`, an entry of the top directory. Raise OSError where that cannot be read."""
        if _mode(self.top_fd) & 0o700 != 0o700:
            os.fchmod(self.top_fd, 0o700)
        self.stack = [_Frame(self.top_fd, "")]
        try:
            while time.monotonic() < self.until:
                frame = self.stack[-1]
                directory = self._files(frame, "" if frame.name else skip)
                if directory is not None:
                    self._try_to_enter(frame, directory)
                elif time.monotonic() < self.until and self._end(frame):
                    return not frame.left
            return False
        finally:
            for frame in reversed(self.stack):
                self._wait_for_helpers(frame)
                frame.close(with_fd=frame.fd != self.top_fd)
            self.tally.left += self.stack[0].left

    def _files(self, frame: _Frame, skip: str) -> "str | None":
        """Remove entries up to the next directory; return its name, None at the end, or when it is late. One turn is one file."""
        entries, fd, tally, monotonic, until = frame.entries, frame.fd, self.tally, time.monotonic, self.until
        while True:
            try:
                entry = next(entries, None)
            except OSError as error:
                self._fail(frame, error)
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
                _unlink(fd, name)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._fail(frame, error)
            else:
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
            self._fail(frame, error)

    def _end(self, frame: _Frame) -> bool:
        """All entries of the directory have been seen once more: go on with it, or leave it; True at the end of all."""
        self._wait_for_helpers(frame)
        if len(self.stack) > 1:
            self._leave(frame)
        elif frame.removed:
            self._again(frame)
        else:
            return True
        return False

    def _again(self, frame: _Frame) -> None:
        """Look once more: readdir may pass over entries while others go. The last pass finds nothing to remove."""
        try:
            frame.again()
        except OSError as error:
            self._fail(frame, error)

    def _enter(self, frame: _Frame, name: str) -> None:
        try:
            fd = _open(frame.fd, name, self.mount)
        except PermissionError:
            os.rmdir(name, dir_fd=frame.fd)  # another's, and closed to us: it can go if it is empty
            frame.removed += 1
            return
        self.opened += 1
        try:
            if len(self.stack) > _DEEPEST and self._move_up(frame, name):
                os.close(fd)
            elif not self._hand_over(frame, fd, name):
                self.stack.append(_Frame(fd, name))
        except OSError:
            os.close(fd)
            raise

    def _hand_over(self, frame: _Frame, fd: int, name: str) -> bool:
        """Return whether a helper has this directory now."""
        if not self.helped or perf_counter() - self.began < _SLOW * (self.tally.files + self.opened):
            return False
        if sum(helper.thread.is_alive() for each in self.stack for helper in each.helpers) >= _HELPERS:
            return False
        try:
            frame.helpers.append(_Helper(fd, name, self.until))
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
                self._remove_directory(frame, helper)

    def _remove_directory(self, frame: _Frame, helper: _Helper) -> None:
        try:
            os.rmdir(helper.name, dir_fd=frame.fd)
            frame.removed += 1
            self.tally.directories += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            frame.left += helper.tally.left
            self._fail(frame, error)

    def _move_up(self, frame: _Frame, name: str) -> bool:
        """Return whether the directory now lies at the top. Where a rename is impossible, descriptors have to suffice."""
        try:
            os.rename(name, _MOVED + os.urandom(8).hex(), src_dir_fd=frame.fd, dst_dir_fd=self.top_fd)
        except OSError:
            return False
        frame.removed += 1
        self.stack[0].removed += 1
        return True

    def _leave(self, frame: _Frame) -> None:
        """Remove the directory; where it is not empty, look once more, or say what is in the way."""
        above = self.stack[-2]
        try:
            os.rmdir(frame.name, dir_fd=above.fd)
            above.removed += 1
            self.tally.directories += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            if frame.removed:
                self._again(frame)
                return
            above.left += frame.left
            self._fail(above, error)
        self.stack.pop()
        frame.close(with_fd=True)

    def _fail(self, frame: _Frame, error: OSError) -> None:
        frame.left += 1
        self.tally.fail(error)


def _open(dir_fd: int, name: str, mount: str) -> int:
    """Open a directory below `dir_fd` so that it can be emptied, whatever its mode.

    Raise _MountPoint where it is not on `mount`, before anything about it is changed; OSError.
    """
    try:
        fd = os.open(name, dirfd.DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        fd = _open_closed(dir_fd, name, mount)
    try:
        if _mount(fd) != mount:
            raise _MountPoint(name)
        if _mode(fd) & 0o700 != 0o700:
            _try_fchmod(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def _open_closed(dir_fd: int, name: str, mount: str) -> int:
    path_fd = os.open(name, _PATH | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        if _mount(path_fd) != mount:
            raise _MountPoint(name)
        here = f"/proc/self/fd/{path_fd}"  # a name could have become a symlink
        os.chmod(here, 0o700)
        return os.open(here, dirfd.DIRECTORY & ~os.O_NOFOLLOW)
    finally:
        os.close(path_fd)


def _try_fchmod(fd: int) -> None:
    try:
        os.fchmod(fd, 0o700)
    except PermissionError:
        pass  # another's: what it holds will be said to be left


def _unlink(dir_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.EBUSY and _is_mount_point(dir_fd, name):
            raise _MountPoint(name) from None
        raise


def _is_mount_point(dir_fd: int, name: str) -> bool:
    fd = os.open(name, _PATH, dir_fd=dir_fd)
    try:
        return _mount(fd) != _mount(dir_fd)
    finally:
        os.close(fd)


def _rmdir(dir_fd: int, name: str) -> None:
    """Remove an empty directory, where nobody was faster."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def _is_ours(fd: int) -> bool:
    return os.fstat(fd).st_uid == os.geteuid() != 0


def _mode(fd: int) -> int:
    return stat.S_IMODE(os.fstat(fd).st_mode)


def _mount(fd: int) -> str:
    """Return what tells one mount from another, bind mounts of one filesystem included.

    Before Linux 5.14, a process that has become another user may not read its own fdinfo.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", mode="rb", buffering=0) as info:
            return info.read(512).partition(b"mnt_id:")[2].split()[0].decode()
    except PermissionError:
        return _mount_by_handle(fd)


def _mount_by_handle(fd: int) -> str:
    """The same by name_to_handle_at(2), which tells the mount even where we have no room for the handle."""
    import ctypes

    empty_path = 0x1000
    handle, mount = (ctypes.c_uint * 2)(), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.name_to_handle_at(fd, b"", handle, ctypes.byref(mount), empty_path)
    if ctypes.get_errno() == errno.EOVERFLOW:
        return str(mount.value)
    return f"device {os.fstat(fd).st_dev}"  # a filesystem without handles: mounts of other ones are told all the same
