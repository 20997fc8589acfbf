"""Linking a store's builds into a cache that is being made: the half of the store that the TaskProlog needs.

Reads the store and writes nothing into it. A build is linked whole or not at all: real directories, one symlink a file,
so that whatever the job does stays in its own cache. Works in a child with a deadline: a store that hangs, or is
damaged, costs the job its seeds and nothing else.

On the hot path: standard library only, and nothing heavy of it.
"""

import os
import select
import time

from jobcache.cache import dirfd, reasons, store_names, store_reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[[int, int], None]

BUDGET = 1.0  # seconds
_SIGKILL = 9  # `signal` imports `enum`
_GRACE = 0.05  # seconds that the child has to end by itself


class Source:
    """A store to link from: its path, and the labels of the sections to link, "" for the default one.

    owner: the uid it has to belong to. None: it is the site's, and has to be one that only root can have put there.
    """

    __slots__ = ("path", "labels", "owner")

    def __init__(self, path: str, labels: "list[str]", owner: "int | None") -> None:
        self.path = path
        self.labels = labels
        self.owner = owner


class Seeded:
    """What was linked. bytes: the size of the files. refused: (reason, words) of stores that cannot be used."""

    __slots__ = ("builds", "files", "bytes", "cut", "refused")

    def __init__(self) -> None:
        self.builds = 0
        self.files = 0
        self.bytes = 0
        self.cut = False  # time was up
        self.refused: "list[tuple[str, str]]" = []


def seed(cache_fd: int, below: str, place: str, sources: "list[Source]", budget: float = BUDGET) -> Seeded:
    """Link the most recently used builds of `sources` into the cache held open, within `budget` seconds. Raise nothing.

    below: the directory in it that will be HF_DATASETS_CACHE, "" for the cache itself; nobody may use that yet. place: the
    name of a new directory in the cache, in which a build is linked before it gets its name.
    """
    seeded = Seeded()
    until = time.monotonic() + budget
    try:
        read, write = os.pipe()
        pid = os.fork()
    except OSError as error:
        seeded.refused.append((reasons.reason_of(error), str(error)))
        return seeded
    if pid == 0:
        _child(cache_fd, below, place, sources, until, write)
    os.close(write)
    said = _read_until(read, until + _GRACE)
    seeded.cut = not _end(pid)
    for line in said.split(b"\n")[:-1]:
        words = os.fsdecode(line).split(" ", 2)
        if words[0] == "cut":
            seeded.cut = True
        elif words[0] == "refused":
            seeded.refused.append((words[1], words[2]))
        else:
            seeded.builds += 1
            seeded.files += int(words[1])
            seeded.bytes += int(words[2])
    return seeded


def _child(cache_fd: int, below: str, place: str, sources: "list[Source]", until: float, pipe: int) -> None:
    """Never returns."""

    def say(what: str) -> None:
        os.write(pipe, os.fsencode(what.replace("\n", " ")[:500]) + b"\n")

    try:
        into_fd = os.open(below or ".", dirfd.DIRECTORY, dir_fd=cache_fd)
        os.mkdir(place, 0o700, dir_fd=cache_fd)
        place_fd = os.open(place, dirfd.DIRECTORY, dir_fd=cache_fd)
        for source in sources:
            for label in source.labels:
                try:
                    _section(source, label, into_fd, place_fd, until, say)
                except reasons.Refused as refusal:
                    say(f"refused {refusal.reason} {source.path}: {refusal}")
                except FileNotFoundError:
                    continue
                except OSError as error:
                    say(f"refused {reasons.reason_of(error)} {source.path}: {error}")
        if time.monotonic() >= until:
            say("cut")
    finally:
        os._exit(0)


def _read_until(pipe: int, until: float) -> bytes:
    """Return what a child says until its end, or until then."""
    said = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    try:
        while poll.poll(max(0.0, until - time.monotonic()) * 1000):
            chunk = os.read(pipe, 65536)
            if not chunk:
                break
            said += chunk
    finally:
        os.close(pipe)
    return said


def _end(pid: int) -> bool:
    """End the child; return whether it had ended by itself. One that is stuck in the kernel is left behind."""
    for pause in (0.0, 0.002, 0.01, 0.02):
        time.sleep(pause)
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
    os.kill(pid, _SIGKILL)
    for pause in (0.002, 0.02):
        time.sleep(pause)
        if os.waitpid(pid, os.WNOHANG)[0]:
            break
    return False


def _section(source: Source, label: str, into_fd: int, place_fd: int, until: float, say: "Callable[[str], None]") -> None:
    """Link the builds of one section. Raise cachedir.Refused, OSError."""
    store_fd, owner = store_reading.open_store(source.path, source.owner)
    try:
        section_fd = store_reading.open_below(store_fd, f"{store_names.VERSION}/{store_names.section(label)}", owner)
    finally:
        os.close(store_fd)
    try:
        base = f"{source.path}/{store_names.VERSION}/{store_names.section(label)}"
        begun = time.monotonic()
        for name in store_reading.by_last_use(section_fd, begun + (until - begun) / 2):
            if time.monotonic() >= until:
                return
            try:
                linked = _link(section_fd, f"{base}/{name}/{store_names.FILES}", name, owner, into_fd, place_fd)
            except (OSError, reasons.Refused):
                continue  # gone meanwhile, or damaged: it will be built anew
            if linked:
                say(f"seeded {linked[0]} {linked[1]}")
    finally:
        os.close(section_fd)


def _link(section_fd: int, target: str, name: str, owner: int, into_fd: int, place_fd: int) -> "tuple[int, int] | None":
    """Link one build, made aside and renamed to its place; return its (files, bytes), None where there is one already.

    Raise OSError, cachedir.Refused where it is damaged.
    """
    build_fd = store_reading.open_below(section_fd, name, owner)
    try:
        if store_reading.exists(build_fd, store_names.RETIRED):
            return None
        contents = store_reading.read_contents(build_fd)
        key, files = contents.key, contents.files
        if store_reading.exists(into_fd, key):
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
    made_fd = os.open(name, dirfd.DIRECTORY, dir_fd=place_fd)
    try:
        for file in files:
            os.symlink(f"{target}/{file}", file, dir_fd=made_fd)
        above = ""
        for part in key.split("/")[:-1]:
            above += part
            try:
                os.mkdir(above, 0o700, dir_fd=into_fd)
            except FileExistsError:
                pass
            above += "/"
        os.utime(made_fd, ns=(mtime, mtime))  # offline, `datasets` takes the newest directory
        os.rename(name, key, src_dir_fd=place_fd, dst_dir_fd=into_fd)
    finally:
        os.close(made_fd)
    return len(files), sum(size for size, _ in files.values())
