"""Which results of `map` in a linked build may enter the store.

A job leaves them as regular files among the links. They belong to the very build that the links lead to. A rebuilt build is
another build. A build that was only extended by other results is the same: its later generations share its files. The
content of the cache is untrusted: the user may have written anything.
"""

import os
import stat
import time

from jobcache.cache import build_info, reasons, store_names, store_reading
from jobcache.store import arrow, builds

MAX_RESULTS = 512  # results of `map` in one build; the oldest of more are left out

_LEVELS_BELOW_SECTION = 3  # <build>/files/<file>


class File:
    """A file. size: bytes. mtime: in nanoseconds. allocated: bytes."""

    __slots__ = ("size", "mtime", "allocated")

    def __init__(self, found: os.stat_result) -> None:
        self.size = found.st_size
        self.mtime = found.st_mtime_ns
        self.allocated = found.st_blocks * 512


class LinkedBuild:
    """A build in a cache whose files are links into a section. section: its path. origin: the build that is linked."""

    __slots__ = ("build_fd", "key", "section_fd", "section", "origin")

    def __init__(self, build_fd: int, key: str, section_fd: int, section: str, origin: str) -> None:
        self.build_fd = build_fd
        self.key = key
        self.section_fd = section_fd
        self.section = section
        self.origin = origin


class Growth:
    """The next generation of a build. new: names of the job's files in it. bytes: allocated to these."""

    __slots__ = ("build", "new", "bytes")

    def __init__(self, build: builds.Build, new: "dict[str, File]") -> None:
        self.build = build
        self.new = sorted(new)
        self.bytes = sum(file.allocated for file in new.values())


class _Stored:
    """A generation in the store. parts: names of the files that dataset_info.json states. files: all, by name."""

    __slots__ = ("parts", "rows", "files", "mtime")

    def __init__(self, parts: "list[str]", rows: "dict[str, int]", files: "dict[str, File]", mtime: int) -> None:
        self.parts = parts
        self.rows = rows
        self.files = files
        self.mtime = mtime


def made_here(build_fd: int, until: float) -> "list[str]":
    """Return the regular files in a linked build that can be results of `map`, as far as listed by the deadline."""
    names = []
    with os.scandir(build_fd) as entries:
        for entry in entries:
            if build_info.is_map(entry.name) and entry.is_file(follow_symlinks=False):
                names.append(entry.name)
            if time.monotonic() >= until:
                break
    return names


def origin(build_fd: int, section: str, digest: str) -> "str | None":
    """Return the name of the stored build to which a cache's dataset_info.json is linked.

    section: the path of the section. digest: of the build's key. Return None if the link leads elsewhere, or to a build of
    another key: the user can forge a link.
    """
    link = builds.link_of(build_fd) or ""
    levels = link[len(section) + 1 :].split("/")
    parsed = store_names.parse_build(levels[0]) if len(levels) == _LEVELS_BELOW_SECTION else None
    if parsed is None or parsed[0] != digest or link != _target(section, levels[0], build_info.INFO):
        return None
    return levels[0]


def _target(section: str, name: str, file: str) -> str:
    return f"{section}/{name}/{store_names.FILES}/{file}"


def grown(linked: LinkedBuild, newest: str, max_bytes: float, until: float) -> "Growth | None":
    """Return the stored build `newest`, extended by the results of `map` that a job left in a linked build.

    max_bytes: of the extended build. Return None if `newest` is another build by now, or if there is nothing to add.
    Raise builds.DamagedBuild if the stored build is damaged, arrow.OutOfTime, OSError.
    """
    try:
        stored = _read_stored(linked, newest, until)
    except reasons.Refused as refusal:
        raise builds.DamagedBuild(f"in the store: {refusal}") from None
    except TimeoutError:
        raise arrow.OutOfTime from None
    if stored is None:
        return None
    made = whole_results(linked.build_fd, set(stored.files), until)
    base = {name: stored.files[name] for name in stored.parts}
    results = {name: file for name, file in stored.files.items() if name not in base}
    room = max_bytes - sum(file.allocated for file in base.values())
    kept = select({**results, **made}, MAX_RESULTS, room)
    new = {name: file for name, file in made.items() if name in kept}
    if not new:
        return None
    build = builds.Build()
    build.files = {name: (file.size, file.mtime) for name, file in {**base, **kept}.items()}
    build.rows, build.maps, build.mtime = stored.rows, len(kept), stored.mtime
    build.bytes = sum(file.allocated for file in [*base.values(), *kept.values()])
    return Growth(build, new)


def _read_stored(linked: LinkedBuild, newest: str, until: float) -> "_Stored | None":
    """Return the stored build `newest`, None if the cache is not linked to it.

    Raise reasons.Refused or builds.DamagedBuild for a damaged build, TimeoutError, OSError.
    """
    uid = os.geteuid()
    files_fd = store_reading.open_below(linked.section_fd, f"{newest}/{store_names.FILES}", uid)
    try:
        stored_fd = store_reading.open_below(linked.section_fd, newest, uid)
        try:
            contents = store_reading.read_contents(stored_fd)
        finally:
            os.close(stored_fd)
        if contents.key != linked.key:
            raise reasons.Refused("damaged", "the build's name does not match its key")
        store_reading.check_files(files_fd, contents, until)
        parts, rows = builds.parts(files_fd)
        if not set(parts) <= set(contents.files):
            raise reasons.Refused("damaged", "a file of the build is missing")
        if not _is_linked(linked, newest, parts, until):
            return None
        files = {name: File(_stat(name, files_fd, until)) for name in contents.files}
        return _Stored(parts, rows, files, os.fstat(files_fd).st_mtime_ns)
    finally:
        os.close(files_fd)


def _is_linked(linked: LinkedBuild, newest: str, parts: "list[str]", until: float) -> bool:
    """Return whether all parts of a linked build are links into its origin, and `newest` has the very same files.

    Raise TimeoutError.
    """
    fds = []
    try:
        for name in (linked.origin, newest):
            fds.append(store_reading.open_below(linked.section_fd, f"{name}/{store_names.FILES}", os.geteuid()))
        for part in parts:
            if os.readlink(part, dir_fd=linked.build_fd) != _target(linked.section, linked.origin, part):
                return False
            one, other = (_stat(part, fd, until) for fd in fds)
            if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
                return False
    except TimeoutError:
        raise
    except OSError:
        return False  # not a link, or a dangling one: the job has rebuilt the build, or a pruning has deleted it
    finally:
        for fd in fds:
            os.close(fd)
    return True


def _stat(name: str, dir_fd: int, until: float) -> os.stat_result:
    if time.monotonic() >= until:
        raise TimeoutError
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def whole_results(build_fd: int, stored: "set[str]", until: float) -> "dict[str, File]":
    """Return the whole results of `map` in a linked build that are the user's own, without the names in `stored`.

    Raise arrow.OutOfTime.
    """
    made = {}
    for name in made_here(build_fd, until):
        if name in stored:
            continue
        try:
            arrow.rows_of(name, build_fd, until)
            found = os.stat(name, dir_fd=build_fd, follow_symlinks=False)
        except (arrow.BrokenStream, OSError):
            continue  # the other results are whole without it
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
        if is_own and found.st_mtime_ns >= 0:
            made[name] = File(found)
    if time.monotonic() >= until:
        raise arrow.OutOfTime
    return made


def select(files: "dict[str, File]", max_files: int, max_bytes: float) -> "dict[str, File]":
    """Return the newest of `files`, at most `max_files` of them and at most `max_bytes` altogether."""
    kept: "dict[str, File]" = {}
    for name, file in sorted(files.items(), key=lambda item: (-item[1].mtime, item[0])):
        if len(kept) < max_files and file.allocated <= max_bytes:
            kept[name] = file
            max_bytes -= file.allocated
    return kept
