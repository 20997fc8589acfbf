"""Results of `map` that a job has made on top of a build that was linked into its cache: which of them may be handed on.

They lie as plain files among the links. They belong to the very build that the links lead to: one that has been built
anew since is another, and one that has only been given more of them is the same, with the same files under a later
generation's name. What is read of the cache is the user's: it may be anything.
"""

import os
import stat
import time

from jobcache.cache import reasons, store_names, store_reading
from jobcache.store import arrow, builds

MOST = 512  # files of one build that are results of `map`; of more, the oldest are left out

_FILE_OF_STORE = 3  # <build>/files/<file>


class File:
    """A file: bytes, mtime in nanoseconds, bytes allocated."""

    __slots__ = ("size", "mtime", "allocated")

    def __init__(self, found: os.stat_result) -> None:
        self.size = found.st_size
        self.mtime = found.st_mtime_ns
        self.allocated = found.st_blocks * 512


class Growth:
    """A build as it is to be, with what a job has made. new: the names of that. bytes: allocated to these."""

    __slots__ = ("build", "new", "bytes")

    def __init__(self, build: builds.Build, new: "dict[str, File]") -> None:
        self.build = build
        self.new = sorted(new)
        self.bytes = sum(file.allocated for file in new.values())


def made_here(build_fd: int, until: float) -> "list[str]":
    """Return the plain files in a linked build that can be results of `map`, as far as they were seen by `until`."""
    names = []
    with os.scandir(build_fd) as entries:
        for entry in entries:
            if builds.is_map(entry.name) and entry.is_file(follow_symlinks=False):
                names.append(entry.name)
            if time.monotonic() >= until:
                break
    return names


def origin(build_fd: int, section: str, digest: str) -> "str | None":
    """Return the name of the build in `section`, a path, that the info of the one held open is linked from.

    None where that is linked from elsewhere, or from a build of another key. A link is the user's to forge.
    """
    link = builds.link_of(build_fd) or ""
    parts = link[len(section) + 1 :].split("/")
    parsed = store_names.parse_build(parts[0]) if len(parts) == _FILE_OF_STORE else None
    if parsed is None or parsed[0] != digest or link != _target(section, parts[0], store_reading.INFO):
        return None
    return parts[0]


def _target(section: str, name: str, file: str) -> str:
    return f"{section}/{name}/{store_names.FILES}/{file}"


def grown(
    section_fd: int, section: str, build_fd: int, key: str, linked: str, newest: str, most: float, until: float
) -> "Growth | None":
    """Return what the build `newest` of a section is with what a job has made in the one held open, which it has linked
    from `linked`. None where that is another build by now, or there is nothing to add.

    section: its path. most: bytes that it may have at most.
    Raise builds.NotWhole where the one in the store is damaged, arrow.Late, OSError.
    """
    uid = os.geteuid()
    try:
        files_fd = store_reading.open_below(section_fd, f"{newest}/{store_names.FILES}", uid)
        try:
            build_in_store_fd = store_reading.open_below(section_fd, newest, uid)
            try:
                contents = store_reading.read_contents(build_in_store_fd)
            finally:
                os.close(build_in_store_fd)
            if contents.key != key:
                raise reasons.Refused("damaged", "its name is not that of its key")
            store_reading.check_files(files_fd, contents, until)
            parts, rows = builds.parts(files_fd)
            if not set(parts) <= set(contents.files):
                raise reasons.Refused("damaged", "a file of it is gone")
            if not _is_linked(section_fd, section, build_fd, linked, newest, parts, until):
                return None
            there = {name: File(_stat(name, files_fd, until)) for name in contents.files}
            mtime = os.fstat(files_fd).st_mtime_ns
        finally:
            os.close(files_fd)
    except reasons.Refused as refusal:
        raise builds.NotWhole(f"in the store: {refusal}") from None
    except TimeoutError:
        raise arrow.Late from None
    made = _whole(build_fd, set(there), until)
    base = {name: there.pop(name) for name in parts}
    room = most - sum(file.allocated for file in base.values())
    kept = chosen({**there, **made}, MOST, room)
    new = {name: file for name, file in made.items() if name in kept}
    if not new:
        return None
    build = builds.Build()
    build.files = {name: (file.size, file.mtime) for name, file in {**base, **kept}.items()}
    build.rows, build.maps, build.mtime = rows, len(kept), mtime
    build.bytes = sum(file.allocated for file in [*base.values(), *kept.values()])
    return Growth(build, new)


def _is_linked(section_fd: int, section: str, build_fd: int, linked: str, newest: str, parts: "list[str]", until: float) -> bool:
    """Whether all parts of the build held open are links into `linked`, and those are the very files of `newest`."""
    fds = []
    try:
        for name in (linked, newest):
            fds.append(store_reading.open_below(section_fd, f"{name}/{store_names.FILES}", os.geteuid()))
        for part in parts:
            if os.readlink(part, dir_fd=build_fd) != _target(section, linked, part):
                return False
            one, other = (_stat(part, fd, until) for fd in fds)
            if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
                return False
    except TimeoutError:
        raise
    except OSError:
        return False  # no link, or what it leads to is gone: the job has built anew, or the store has been pruned
    finally:
        for fd in fds:
            os.close(fd)
    return True


def _stat(name: str, dir_fd: int, until: float) -> os.stat_result:
    if time.monotonic() >= until:
        raise TimeoutError
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _whole(build_fd: int, besides: "set[str]", until: float) -> "dict[str, File]":
    """Return what a job has made in the build held open, whole and its own, but for names in `besides`. Raise arrow.Late."""
    made = {}
    for name in made_here(build_fd, until):
        if name in besides:
            continue
        try:
            arrow.rows_of(name, build_fd, until)
            found = os.stat(name, dir_fd=build_fd, follow_symlinks=False)
        except (arrow.Broken, OSError):
            continue  # the others are whole without it
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
        if is_own and found.st_mtime_ns >= 0:
            made[name] = File(found)
    if time.monotonic() >= until:
        raise arrow.Late
    return made


def chosen(files: "dict[str, File]", most: int, room: float) -> "dict[str, File]":
    """Return those of `files` that are kept: at most `most`, of `room` bytes altogether, the newest first."""
    kept: "dict[str, File]" = {}
    for name, file in sorted(files.items(), key=lambda item: (-item[1].mtime, item[0])):
        if len(kept) < most and file.allocated <= room:
            kept[name] = file
            room -= file.allocated
    return kept
