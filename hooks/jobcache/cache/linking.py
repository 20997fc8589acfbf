"""Linking the builds of stores into a cache.

A build is linked as a whole or not at all: real directories, and one symlink for each file. So whatever a job does stays
in its own cache. A child process does the work until a deadline: a store that hangs or is damaged costs a job its seeds,
and nothing else.
"""

import os
import time

from jobcache.cache import bounded, dirfd, reasons, store_names, store_reading

BUDGET = 1.0  # seconds


class Source:
    """A store to link from. labels: the sections to link, "" for builds without a label.

    owner: the uid that must own it; None for the site's store, which only root can have put at its path.
    """

    __slots__ = ("path", "labels", "owner")

    def __init__(self, path: str, labels: "list[str]", owner: "int | None") -> None:
        self.path = path
        self.labels = labels
        self.owner = owner


class Seeded:
    """The result. builds, files: the numbers of linked builds and files. bytes: the size of these files.

    cut: the deadline came first. refused: (reason, details) of each store that cannot be used.
    """

    __slots__ = ("builds", "files", "bytes", "cut", "refused")

    def __init__(self) -> None:
        self.builds = 0
        self.files = 0
        self.bytes = 0
        self.cut = False
        self.refused: "list[tuple[str, str]]" = []


def seed(
    cache_fd: int, below: str, place: str, sources: "list[Source]", budget: float = BUDGET, closed: "frozenset[str]" = frozenset()
) -> Seeded:
    """Link the most recently used builds of `sources` into a cache, within `budget` seconds. Raise nothing.

    below: the directory in the cache that becomes HF_DATASETS_CACHE, "" for the cache itself; nobody may use it yet.
    place: the path of a directory in the cache, where a build is linked before it gets its name.
    closed: names of datasets of which no build is linked.
    """
    seeded = Seeded()
    until = time.monotonic() + budget
    try:
        lines, ended = bounded.run(lambda report: _link_all(cache_fd, below, place, sources, until, closed, report), until)
    except OSError as error:
        seeded.refused.append((reasons.reason_of(error), str(error)))
        return seeded
    seeded.cut = not ended
    for line in lines:
        words = line.split(" ", 2)
        if words[0] == "cut":
            seeded.cut = True
        elif words[0] == "refused":
            seeded.refused.append((words[1], words[2]))
        else:
            seeded.builds += 1
            seeded.files += int(words[1])
            seeded.bytes += int(words[2])
    return seeded


# ---- in a child, which reports lines to its parent: "seeded FILES BYTES", "refused REASON DETAILS", "cut"


def added(one: Seeded, other: Seeded) -> Seeded:
    """Return the sum of two results."""
    total = Seeded()
    total.builds, total.files, total.bytes = one.builds + other.builds, one.files + other.files, one.bytes + other.bytes
    total.cut = one.cut or other.cut
    total.refused = one.refused + other.refused
    return total


def _link_all(
    cache_fd: int,
    below: str,
    place: str,
    sources: "list[Source]",
    until: float,
    closed: "frozenset[str]",
    report: "bounded.Report",
) -> None:
    """Link the builds of all sources. Raise OSError."""
    into_fd = os.open(below or ".", dirfd.DIRECTORY, dir_fd=cache_fd)
    if not dirfd.exists(cache_fd, place):
        os.mkdir(place, 0o700, dir_fd=cache_fd)
    place_fd = os.open(place, dirfd.DIRECTORY, dir_fd=cache_fd)
    for source in sources:
        for label in source.labels:
            try:
                _link_section(source, label, into_fd, place_fd, until, closed, report)
            except reasons.Refused as refusal:
                report(f"refused {refusal.reason} {source.path}: {refusal}")
            except FileNotFoundError:
                continue
            except OSError as error:
                report(f"refused {reasons.reason_of(error)} {source.path}: {error}")
    if time.monotonic() >= until:
        report("cut")


def _link_section(
    source: Source, label: str, into_fd: int, place_fd: int, until: float, closed: "frozenset[str]", report: "bounded.Report"
) -> None:
    """Link the builds of one section; spend half of the time at most on reading the section. Raise Refused, OSError."""
    section = f"{store_names.VERSION}/{store_names.section(label)}"
    store_fd, owner = store_reading.open_store(source.path, source.owner)
    try:
        section_fd = store_reading.open_below(store_fd, section, owner)
    finally:
        os.close(store_fd)
    try:
        began = time.monotonic()
        for name in store_reading.by_last_use(section_fd, began + (until - began) / 2):
            if time.monotonic() >= until:
                return
            target = f"{source.path}/{section}/{name}/{store_names.FILES}"
            try:
                linked = _link_build(section_fd, target, name, owner, into_fd, place_fd, closed)
            except (OSError, reasons.Refused):
                continue  # deleted meanwhile, or damaged: the job builds it anew
            if linked:
                report(f"seeded {linked[0]} {linked[1]}")
    finally:
        os.close(section_fd)


def _link_build(
    section_fd: int, target: str, name: str, owner: int, into_fd: int, place_fd: int, closed: "frozenset[str]"
) -> "tuple[int, int] | None":
    """Link one build; return its (files, bytes), or None if it is retired, closed, or already exists in the cache.

    target: the path of the build's files. Raise OSError, and Refused for a damaged build.
    """
    build_fd = store_reading.open_below(section_fd, name, owner)
    try:
        if dirfd.exists(build_fd, store_names.RETIRED):
            return None
        contents = store_reading.read_contents(build_fd)
        if contents.key.partition("/")[0] in closed or dirfd.exists(into_fd, contents.key):
            return None
        files_fd = store_reading.open_below(build_fd, store_names.FILES, owner)
        try:
            store_reading.check_files(files_fd, contents)
            mtime = os.fstat(files_fd).st_mtime_ns
        finally:
            os.close(files_fd)
    finally:
        os.close(build_fd)
    os.mkdir(name, 0o700, dir_fd=place_fd)
    with dirfd.Opened(place_fd, name) as made_fd:
        for file in contents.files:
            os.symlink(f"{target}/{file}", file, dir_fd=made_fd)
        dirfd.make_directories(into_fd, contents.key.rpartition("/")[0])
        os.utime(made_fd, ns=(mtime, mtime))  # offline, `datasets` uses the newest directory
        os.rename(name, contents.key, src_dir_fd=place_fd, dst_dir_fd=into_fd)
    return len(contents.files), sum(size for size, _ in contents.files.values())
