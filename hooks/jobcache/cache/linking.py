"""Linking the builds of stores into a cache.

A build is linked as a whole or not at all: real directories, and one symlink for each file. So whatever a job does stays
in its own cache. A child process does the work until a deadline: a store that hangs or is damaged costs a job its seeds,
and nothing else. A build with very many files waits for the others, once it has taken half of the time that was left.
"""

import os
import time

from jobcache.cache import bases, bounded, build_info, build_links, dirfd, reasons, result_sets, store_names, store_reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    cut: the deadline came first. unlinked: the number of builds for which there was no time, as far as known. refused: (reason,
    details) of each store that cannot be used. offers: the result sets.
    """

    __slots__ = ("builds", "files", "bytes", "cut", "unlinked", "refused", "offers")

    def __init__(self) -> None:
        self.builds = 0
        self.files = 0
        self.bytes = 0
        self.cut = False
        self.unlinked = 0
        self.refused: "list[tuple[str, str]]" = []
        self.offers: "result_sets.Offers" = {}


class Place:
    """The place of links. cache_fd: a cache. below: the directory in it that becomes HF_DATASETS_CACHE, "" for the cache itself;
    nobody may use it yet. aside: the path of a directory in the cache, where a build is linked before it gets its name.
    """

    __slots__ = ("cache_fd", "below", "aside")

    def __init__(self, cache_fd: int, below: str, aside: str) -> None:
        self.cache_fd = cache_fd
        self.below = below
        self.aside = aside


def seed(
    place: Place,
    sources: "list[Source]",
    budget: float = BUDGET,
    offering: "list[Source] | None" = None,
    offers: "result_sets.Offers | None" = None,
) -> Seeded:
    """Link the most recently used builds of `sources` into a cache, within `budget` seconds. Raise nothing.

    offering: stores whose result sets are read. offers: result sets that were read before. With either, their results are linked
    on top of the builds, whose states are recorded for the results that the job computes.
    """
    seeded = Seeded()
    until = time.monotonic() + budget

    def work(report: "bounded.Report") -> None:
        _Linking(place, until, report, offers, offering is not None or offers is not None).link(sources, offering or [])

    try:
        lines, ended = bounded.run(work, until)
    except OSError as error:
        seeded.refused.append((reasons.reason_of(error), str(error)))
        return seeded
    seeded.cut = not ended
    for line in lines:
        words = line.split(" ", 2)
        if words[0] == "cut":
            seeded.cut = True
            seeded.unlinked = int(words[1])
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
    total.cut, total.unlinked = one.cut or other.cut, one.unlinked + other.unlinked
    total.refused = one.refused + other.refused
    return total


# ---- in a child, which reports lines to its parent: "seeded FILES BYTES", "refused REASON DETAILS", "cut UNLINKED", and those of
# result_sets


class _Linking:
    """Links from stores into one place. offers: as of `seed`. records: the states of the builds are recorded."""

    def __init__(
        self, place: Place, until: float, report: "bounded.Report", offers: "result_sets.Offers | None", records: bool
    ) -> None:
        self.into_fd = os.open(place.below or ".", dirfd.DIRECTORY, dir_fd=place.cache_fd)
        if not dirfd.exists(place.cache_fd, place.aside):
            os.mkdir(place.aside, 0o700, dir_fd=place.cache_fd)
        self.aside_fd = os.open(place.aside, dirfd.DIRECTORY, dir_fd=place.cache_fd)
        self.until = until
        self.report = report
        self.offers = dict(offers or {})
        self.records = records
        self.linked: "dict[str, bases.Base]" = {}
        self._begun: "set[str]" = set()  # keys
        self._made: "set[str]" = set()  # paths of directories
        self._waiting: "list[Iterator[None]]" = []
        self._unlinked = 0

    def link(self, sources: "list[Source]", offering: "list[Source]") -> None:
        """Report the result sets of `offering`, then link the builds of `sources`. Raise OSError."""
        for source in offering:
            self._each_section(source, self._read_offers)
        try:
            for source in sources:
                self._each_section(source, self._link_section)
            for steps in self._waiting:
                self._unlinked += not self._advance(steps, self.until)
        finally:
            if self.records:
                bases.add_stored(self.into_fd, self.linked)
        if time.monotonic() >= self.until:
            self.report(f"cut {self._unlinked}")

    def _each_section(self, source: Source, work: "Callable[[Source, int, int, str], None]") -> None:
        """Call work(source, section_fd, owner, path in the store) for each section, and report errors."""
        for label in source.labels:
            section = f"{store_names.VERSION}/{store_names.section(label)}"
            try:
                store_fd, owner = store_reading.open_store(source.path, source.owner)
                try:
                    section_fd = store_reading.open_below(store_fd, section, owner)
                finally:
                    os.close(store_fd)
                try:
                    work(source, section_fd, owner, section)
                finally:
                    os.close(section_fd)
            except reasons.Refused as refusal:
                self.report(f"refused {refusal.reason} {source.path}: {refusal}")
            except FileNotFoundError:
                continue
            except OSError as error:
                self.report(f"refused {reasons.reason_of(error)} {source.path}: {error}")

    def _half(self) -> float:
        """Return when half of the time that is left will have passed."""
        now = time.monotonic()
        return now + (self.until - now) / 2

    def _read_offers(self, source: Source, section_fd: int, owner: int, section: str) -> None:
        lines: "list[str]" = []
        result_sets.report_section(source.path, section_fd, owner, section, self._half(), lines.append)
        for line in lines:
            self.report(line)
        self.offers.update(result_sets.parse(lines))

    def _link_section(self, source: Source, section_fd: int, owner: int, section: str) -> None:
        """Link the builds of one section. Spend half of the time at most on reading it, and on one build. Raise OSError."""
        names = store_reading.by_last_use(section_fd, self._half())
        for at, name in enumerate(names):
            if time.monotonic() >= self.until:
                self._unlinked += len(names) - at
                return
            steps = self._steps(source.closed, section_fd, owner, f"{source.path}/{section}/{name}")
            if not self._advance(steps, self._half()):
                self._waiting.append(steps)

    @staticmethod
    def _advance(steps: "Iterator[None]", until: float) -> bool:
        """Take steps until the deadline. Return whether there are no more."""
        return all(time.monotonic() < until for _ in steps)

    def _steps(self, closed: "frozenset[str]", section_fd: int, owner: int, path: str) -> "Iterator[None]":
        """Link the build at `path`, unless a dataset of `closed` or a key that exists; yield after each file. Raise nothing.

        `section_fd` is needed up to the first step only.
        """
        name = os.path.basename(path)
        key = ""

        def is_wanted(contents: store_names.Contents) -> bool:
            nonlocal key
            is_closed = contents.key.partition("/")[0] in closed
            if is_closed or contents.key in self._begun or dirfd.exists(self.into_fd, contents.key):
                return False
            key = contents.key
            self._begun.add(key)
            return True

        try:
            found = yield from store_reading.reading(section_fd, name, owner, is_wanted)
            if found:
                yield from self._link_build(name, f"{path}/{store_names.FILES}", *found)
        except (OSError, reasons.Refused):
            self._begun.discard(key)  # deleted meanwhile, or damaged: the job builds it anew

    def _link_build(self, name: str, target: str, contents: store_names.Contents, mtime: int) -> "Iterator[None]":
        """Link one build, and the results that are offered for its state; yield after each file. Raise OSError.

        target: the path of its files.
        """
        files = contents.files
        parts = [(file, *files[file]) for file in files if file != build_info.INFO and not build_info.is_map(file)]
        base = bases.Base(target, bases.stored_state(contents.checksum, parts))
        links = [(file, f"{target}/{file}") for file in files]
        links += result_sets.links(self.offers, contents.key, base.state, files)
        os.mkdir(name, 0o700, dir_fd=self.aside_fd)
        yield from build_links.create(self.aside_fd, name, links, mtime)
        dirfd.make_directories(self.into_fd, os.path.dirname(contents.key), self._made)
        os.rename(name, contents.key, src_dir_fd=self.aside_fd, dst_dir_fd=self.into_fd)
        self.linked[contents.key] = base
        self.report(f"seeded {len(files)} {sum(size for size, _ in files.values())}")
        build_links.mark_unopened(self.into_fd, contents.key)
