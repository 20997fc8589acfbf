"""Linking the builds of stores into a cache.

A build is linked as a whole or not at all: real directories, and one symlink for each file. So whatever a job does stays
in its own cache. A child process does the work until a deadline: a store that hangs or is damaged costs a job its seeds,
and nothing else.
"""

import os
import time

from jobcache.cache import bounded, dirfd, reasons, result_sets, store_names, store_reading

BUDGET = 1.0  # seconds


class Source:
    """A store to link from. labels: the sections to link, "" for builds without a label.

    owner: the uid that must own it; None for the site's store, which only root can have put at its path. closed: names of
    datasets of which no build is linked.
    """

    __slots__ = ("path", "labels", "owner", "closed")

    def __init__(self, path: str, labels: "list[str]", owner: "int | None", closed: "frozenset[str]" = frozenset()) -> None:
        self.path = path
        self.labels = labels
        self.owner = owner
        self.closed = closed


class Seeded:
    """The result. builds, files: the numbers of linked builds and files. bytes: the size of these files.

    cut: the deadline came first. refused: (reason, details) of each store that cannot be used. offers: the result sets.
    """

    __slots__ = ("builds", "files", "bytes", "cut", "refused", "offers")

    def __init__(self) -> None:
        self.builds = 0
        self.files = 0
        self.bytes = 0
        self.cut = False
        self.refused: "list[tuple[str, str]]" = []
        self.offers: "result_sets.Offers" = {}


def seed(
    cache_fd: int,
    below: str,
    place: str,
    sources: "list[Source]",
    budget: float = BUDGET,
    offering: "list[Source] | None" = None,
) -> Seeded:
    """Link the most recently used builds of `sources` into a cache, within `budget` seconds. Raise nothing.

    below: the directory in the cache that becomes HF_DATASETS_CACHE, "" for the cache itself; nobody may use it yet.
    place: the path of a directory in the cache, where a build is linked before it gets its name.
    offering: stores whose result sets are read.
    """
    seeded = Seeded()
    until = time.monotonic() + budget
    try:
        lines, ended = bounded.run(
            lambda report: _link_all(cache_fd, below, place, sources, offering or [], until, report), until
        )
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
        elif words[0] == "seeded":
            seeded.builds += 1
            seeded.files += int(words[1])
            seeded.bytes += int(words[2])
    seeded.offers = result_sets.parse(lines)
    return seeded


def added(one: Seeded, other: Seeded) -> Seeded:
    """Return the sum of two results."""
    total = Seeded()
    total.builds, total.files, total.bytes = one.builds + other.builds, one.files + other.files, one.bytes + other.bytes
    total.cut = one.cut or other.cut
    total.refused = one.refused + other.refused
    return total


# ---- in a child, which reports lines to its parent: "seeded FILES BYTES", "refused REASON DETAILS", "cut", and those of
# result_sets


def _link_all(
    cache_fd: int,
    below: str,
    place: str,
    sources: "list[Source]",
    offering: "list[Source]",
    until: float,
    report: "bounded.Report",
) -> None:
    """Link the builds of all sources, then report the result sets of those in `offering`. Raise OSError."""
    into_fd = os.open(below or ".", dirfd.DIRECTORY, dir_fd=cache_fd)
    if not dirfd.exists(cache_fd, place):
        os.mkdir(place, 0o700, dir_fd=cache_fd)
    place_fd = os.open(place, dirfd.DIRECTORY, dir_fd=cache_fd)
    for source, offers in [*((source, False) for source in sources), *((source, True) for source in offering)]:
        for label in source.labels:
            try:
                _read_section(source, label, into_fd, place_fd, offers, until, report)
            except reasons.Refused as refusal:
                report(f"refused {refusal.reason} {source.path}: {refusal}")
            except FileNotFoundError:
                continue
            except OSError as error:
                report(f"refused {reasons.reason_of(error)} {source.path}: {error}")
    if time.monotonic() >= until:
        report("cut")


def _read_section(
    source: Source, label: str, into_fd: int, place_fd: int, offers: bool, until: float, report: "bounded.Report"
) -> None:
    """Link the builds of one section, or report its result sets if `offers`. Raise Refused, OSError.

    Spend half of the time at most on reading the section.
    """
    section = f"{store_names.VERSION}/{store_names.section(label)}"
    store_fd, owner = store_reading.open_store(source.path, source.owner)
    try:
        section_fd = store_reading.open_below(store_fd, section, owner)
    finally:
        os.close(store_fd)
    try:
        if offers:
            result_sets.report_section(source.path, section_fd, owner, section, until, report)
            return
        began = time.monotonic()
        for name in store_reading.by_last_use(section_fd, began + (until - began) / 2):
            if time.monotonic() >= until:
                return
            target = f"{source.path}/{section}/{name}/{store_names.FILES}"
            try:
                linked = _link_build(section_fd, target, name, owner, into_fd, place_fd, source.closed)
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

    def is_wanted(contents: store_names.Contents) -> bool:
        return contents.key.partition("/")[0] not in closed and not dirfd.exists(into_fd, contents.key)

    found = store_reading.read_whole(section_fd, name, owner, is_wanted)
    if found is None:
        return None
    contents, mtime = found
    os.mkdir(name, 0o700, dir_fd=place_fd)
    with dirfd.Opened(place_fd, name) as made_fd:
        for file in contents.files:
            os.symlink(f"{target}/{file}", file, dir_fd=made_fd)
        dirfd.make_directories(into_fd, contents.key.rpartition("/")[0])
        os.utime(made_fd, ns=(mtime, mtime))  # offline, `datasets` uses the newest directory
        os.rename(name, contents.key, src_dir_fd=place_fd, dst_dir_fd=into_fd)
    return len(contents.files), sum(size for size, _ in contents.files.values())
