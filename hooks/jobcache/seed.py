"""Linking a store's builds into a cache that is being made: the half of the store that the TaskProlog needs.

Reads the store and writes nothing into it. A build is linked whole or not at all: real directories, one symlink a file,
so that whatever the job does stays in its own cache. Works in a child with a deadline: a store that hangs, or is
damaged, costs the job its seeds and nothing else.

On the hot path: standard library only, and nothing heavy of it.
"""

import binascii
import errno
import os
import select
import stat
import time

from jobcache import cachedir, layout

BUDGET = 1.0  # seconds
INFO = "dataset_info.json"
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)
_LONGEST = 1 << 24  # bytes of a build's contents
_SIGKILL = 9  # `signal` imports `enum`
_GRACE = 0.05  # seconds that the child has to end by itself

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Report = Callable[[int, int], None]


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
        seeded.refused.append((cachedir.reason_of(error), str(error)))
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
        into_fd = os.open(below or ".", _DIRECTORY, dir_fd=cache_fd)
        os.mkdir(place, 0o700, dir_fd=cache_fd)
        place_fd = os.open(place, _DIRECTORY, dir_fd=cache_fd)
        for source in sources:
            for label in source.labels:
                try:
                    _section(source, label, into_fd, place_fd, until, say)
                except cachedir.Refused as refusal:
                    say(f"refused {refusal.reason} {source.path}: {refusal}")
                except FileNotFoundError:
                    continue
                except OSError as error:
                    say(f"refused {cachedir.reason_of(error)} {source.path}: {error}")
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
    store_fd, owner = open_store(source.path, source.owner)
    try:
        section_fd = open_below(store_fd, f"{layout.VERSION}/{layout.section(label)}", owner)
    finally:
        os.close(store_fd)
    try:
        base = f"{source.path}/{layout.VERSION}/{layout.section(label)}"
        begun = time.monotonic()
        for name in by_last_use(section_fd, begun + (until - begun) / 2):
            if time.monotonic() >= until:
                return
            try:
                linked = _link(section_fd, f"{base}/{name}/{layout.FILES}", name, owner, into_fd, place_fd)
            except (OSError, cachedir.Refused):
                continue  # gone meanwhile, or damaged: it will be built anew
            if linked:
                say(f"seeded {linked[0]} {linked[1]}")
    finally:
        os.close(section_fd)


def by_last_use(section_fd: int, until: float) -> "list[str]":
    """Return the builds of a section, the most recently used first; those that were seen by `until`. Raise OSError.

    Of several generations only the newest: those before it hold what was replaced, whether retired yet or not.
    """
    found: "dict[str, tuple[int, int, str]]" = {}
    with os.scandir(section_fd) as entries:
        for entry in entries:
            parsed = layout.parse_build(entry.name)
            if parsed:
                of, generation = parsed
                try:
                    used = entry.stat(follow_symlinks=False).st_mtime_ns
                except FileNotFoundError:
                    continue
                if of not in found or found[of][1] < generation:
                    found[of] = used, generation, entry.name
                if time.monotonic() >= until:
                    break
    return [name for _, _, name in sorted(found.values(), reverse=True)]


def _link(section_fd: int, target: str, name: str, owner: int, into_fd: int, place_fd: int) -> "tuple[int, int] | None":
    """Link one build, made aside and renamed to its place; return its (files, bytes), None where there is one already.

    Raise OSError, cachedir.Refused where it is damaged.
    """
    build_fd = open_below(section_fd, name, owner)
    try:
        if _exists(build_fd, layout.RETIRED):
            return None
        contents = read_contents(build_fd)
        key, files = contents.key, contents.files
        if _exists(into_fd, key):
            return None
        files_fd = open_below(build_fd, layout.FILES, owner)
        try:
            check_files(files_fd, contents)
            mtime = os.fstat(files_fd).st_mtime_ns
        finally:
            os.close(files_fd)
    finally:
        os.close(build_fd)
    os.mkdir(name, 0o700, dir_fd=place_fd)
    made_fd = os.open(name, _DIRECTORY, dir_fd=place_fd)
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


# ------------------------------------------------------------------------------------------------- looking at a store


def open_store(path: str, owner: "int | None") -> "tuple[int, int]":
    """Return a store's directory, opened, and the uid it belongs to. Raise cachedir.Refused, OSError."""
    try:
        fd = cachedir.open_directory(path)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            raise cachedir.Refused("not_directory", "a symlink that is not root's, or a file, is in the path") from None
        raise
    try:
        if owner is None:
            _check_ways(path)
            owner = os.fstat(fd).st_uid
        _check_owner(fd, owner)
    except (OSError, cachedir.Refused):
        os.close(fd)
        raise
    return fd, owner


def open_below(dir_fd: int, path: str, owner: int) -> int:
    """Open a directory of a store below another, each step without following a symlink. Raise cachedir.Refused, OSError."""
    fd = os.dup(dir_fd)
    try:
        for part in path.split("/"):
            try:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno in _NO_DIRECTORY:
                    raise cachedir.Refused("not_directory", f"{part} is a symlink or a file") from None
                raise
            os.close(fd)
            fd = below
            _check_owner(fd, owner)
    except (OSError, cachedir.Refused):
        os.close(fd)
        raise
    return fd


def _check_owner(fd: int, owner: int) -> None:
    found = os.fstat(fd)
    if found.st_uid != owner:
        raise cachedir.Refused("foreign", f"it belongs to uid {found.st_uid}, not to {owner}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise cachedir.Refused("writable", "others may write it; `chmod go-w` it")


def _check_ways(path: str) -> None:
    """Raise cachedir.Refused where the site's store may be one that a user has put in its place.

    Where a directory above is open to others, such as a /scratch with a sticky bit, what lies in it has to be root's.
    """
    above = "/"
    for at in _prefixes(path):
        open_to_all = os.stat(above).st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if open_to_all and os.lstat(at).st_uid != 0:
            raise cachedir.Refused("writable", f"others may write {above}, where root would have to own {at}")
        above = at


def _prefixes(path: str) -> "Iterator[str]":
    at = ""
    for part in path.strip("/").split("/"):
        at += "/" + part
        yield at


def read_contents(build_fd: int) -> layout.Contents:
    """Return what is in a build. Raise cachedir.Refused where its contents are not whole, OSError."""
    parsed = layout.parse_contents(os.fsdecode(_read(build_fd, layout.CONTENTS)))
    if parsed is None:
        raise cachedir.Refused("damaged", "its contents are not whole")
    return parsed


def checksum(files_fd: int) -> int:
    """Return that of a build's dataset_info.json, which says what is in all of it. Raise cachedir.Refused, OSError."""
    return binascii.crc32(_read(files_fd, INFO))


def _read(dir_fd: int, name: str) -> bytes:
    fd = os.open(name, _FILE, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise cachedir.Refused("damaged", f"{name} is no file")
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)


def check_files(files_fd: int, contents: layout.Contents, until: float = float("inf")) -> None:
    """Raise cachedir.Refused where a build's files are not the very ones that were published, OSError.

    Each has the size and the mtime that it had, and each Arrow stream has its end. What is in it was checked then.
    Raise TimeoutError after `until`.
    """
    files = contents.files
    seen = 0
    with os.scandir(files_fd) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or files.get(entry.name) != (found.st_size, found.st_mtime_ns):
                raise cachedir.Refused("damaged", f"{entry.name} is not as it was published")
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if entry.name.endswith(".arrow"):
                _check_end(files_fd, entry.name, found.st_size)
            seen += 1
    if seen != len(files) or INFO not in files:
        raise cachedir.Refused("damaged", "a file of it is gone")
    if checksum(files_fd) != contents.checksum:
        raise cachedir.Refused("damaged", f"{INFO} is not as it was published")


def _check_end(files_fd: int, name: str, size: int) -> None:
    fd = os.open(name, _FILE, dir_fd=files_fd)
    try:
        if os.pread(fd, len(END), max(0, size - len(END))) != END:
            raise cachedir.Refused("damaged", f"{name} has no end")
    finally:
        os.close(fd)


def _exists(dir_fd: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
