"""A store of built datasets: publish, verify, retire, prune. The half that links them into caches is `seed`.

    <store>/v1/<section>/<digest of the key>.<generation>/    its mtime: the last use
        contents, manifest.json, files/…                      and `retired`, once it is

A build comes into a store whole, by one rename, and the first one wins; from then on it is never changed. What jobs `map`
on top of it comes as a new generation: the same files under a second name, hard links, and the new ones. A build leaves in
two steps: retired, it is linked into no new cache; when every job that lived then has ended, nobody can hold a link to
it, and it is deleted. All of this is done by the store's owner.
"""

import errno
import hashlib
import json
import os
import stat
import time

from jobcache.cache import dirfd, reasons, store_names, store_reading, timestamps
from jobcache.store import arrow, builds, map_results
from jobcache.system import reaper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

_SCHEMA = 1
_LONGEST = 1 << 24  # bytes of a manifest
_LONGEST_WORD = 255  # characters of a manifest's that are shown
_MOST_SPLITS = 1000
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)  # something of a build is not what it was
_DEBRIS_AGE = 86400.0  # seconds without a change, and whoever made it is gone
_CLEARING = 0.2  # seconds for what could not be published
_STRIDE = 5.0  # seconds of deletion at a time
_TRIES = 16  # to be the next generation, where others are at the same time
_MOST_GENERATIONS = 32  # of one build, those included that wait to be deleted, before no job adds another
_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP)


class Publisher:
    """Where builds go and what their manifests say. path: the store's. label: "" for the default section.

    replace: a build of the same key takes the place of the one that is there. facts: further fields of the manifest.
    shared: readable by others, as the site's store is. most: bytes of a build up to which results of `map` are added to it.
    """

    def __init__(
        self,
        path: str,
        label: str,
        *,
        replace: bool = False,
        shared: bool = False,
        most: float = float("inf"),
        facts: "dict[str, Any] | None" = None,
    ) -> None:
        self.path = path
        self.label = label
        self.replace = replace
        self.shared = shared
        self.most = most
        self.facts = facts or {}


class Published:
    """What came of publishing. bytes: allocated to the files that are in the store now, and gone from the cache.

    builds: those that came into the store, and those to which results of `map` were added. keys: of the former; grown: of
    the latter. there: builds that the store has already. used: of those it had, how many were used. late: there was no time,
    or no turn, for the rest. broken: why others were not published, by key.
    """

    def __init__(self) -> None:
        self.builds = 0
        self.files = 0
        self.bytes = 0
        self.there = 0
        self.used = 0
        self.late = False
        self.broken: "dict[str, str]" = {}
        self.keys: "list[str]" = []
        self.grown: "list[str]" = []


# --------------------------------------------------------------------------------------------------------- publishing


def publish(cache_fd: int, to: Publisher, until: float, sync: bool = False) -> Published:
    """Move the whole builds of a cache that nobody uses any more into a store, by renames.

    sync: see to it that what is published survives a crash of the host, which takes as long as it takes.
    Raise cachedir.Refused where the store cannot be used, OSError.
    """
    done = Published()
    section = _Section(to)
    linked: "list[tuple[str, str]]" = []

    def one(build_fd: int, below: str, key: str) -> None:
        link = builds.link_of(build_fd)
        if link is None:
            _publish_one(cache_fd, section.fd(), build_fd, key, to, until, done, sync)
        elif to.label and not to.shared and link.startswith(section.path + "/") and map_results.made_here(build_fd, until):
            linked.append((below, key))

    def other(build_fd: int, below: str, key: str) -> None:
        _add_maps(section, build_fd, key, to, until, done, sync)

    try:
        _each(cache_fd, builds.find(cache_fd, until), until, done, one)
        _each(cache_fd, linked, until, done, other)
    finally:
        section.close()
    done.late = done.late or time.monotonic() >= until
    return done


def _each(
    cache_fd: int,
    found: "Iterable[tuple[str, str]]",
    until: float,
    done: Published,
    work: "Callable[[int, str, str], None]",
) -> None:
    """Do `work` on each build (below, key) of a cache, until `until`. Raise cachedir.Refused, OSError."""
    for below, key in found:
        if time.monotonic() >= until:
            done.late = True
            break
        build_fd = builds.open_build(cache_fd, below, key)
        if build_fd is None:
            continue
        try:
            work(build_fd, below, key)
        except builds.NotWhole as reason:
            done.broken[key] = str(reason)
        except arrow.Late:
            done.late = True
            break
        finally:
            os.close(build_fd)


class _Section:
    """A section of a store that is opened, and made, when it is needed."""

    def __init__(self, to: Publisher) -> None:
        self.path = f"{to.path}/{store_names.VERSION}/{store_names.section(to.label)}"
        self._to = to
        self._fd = -1

    def fd(self) -> int:
        """Raise as open_section does."""
        if self._fd < 0:
            self._fd = open_section(self._to)
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def digest(key: str) -> str:
    """Return what stands for a build's key in its name."""
    return hashlib.sha256(os.fsencode(key)).hexdigest()[:32]


def open_section(to: Publisher) -> int:
    """Open the section, made where it is not there. Raise cachedir.Refused, OSError."""
    mode = 0o755 if to.shared else 0o700
    os.makedirs(os.path.dirname(to.path), mode, exist_ok=True)
    _mkdir(to.path, mode)
    fd, _ = store_reading.open_store(to.path, os.geteuid())
    try:
        for path in (store_names.VERSION, f"{store_names.VERSION}/{store_names.section(to.label)}"):
            _mkdir(path, mode, dir_fd=fd)
        return store_reading.open_below(fd, path, os.geteuid())
    finally:
        os.close(fd)


def _mkdir(path: str, mode: int, dir_fd: "int | None" = None) -> None:
    try:
        os.mkdir(path, mode, dir_fd=dir_fd)
    except FileExistsError:
        return
    if mode & 0o077:
        os.chmod(path, mode, dir_fd=dir_fd)  # whatever the umask


def _publish_one(
    cache_fd: int, section_fd: int, build_fd: int, key: str, to: Publisher, until: float, done: Published, sync: bool
) -> None:
    """Publish one build, where the store has none of its key. Raise builds.NotWhole, arrow.Late, OSError."""
    of = digest(key)
    before = _generations(section_fd, of)
    current = [name for name in before if not _is_retired(section_fd, name)]
    if current and not to.replace:
        done.there += 1
        return
    build = builds.check(build_fd, until, with_maps=bool(to.label))
    staged = _staged(section_fd, lambda fd: _fill(fd, build_fd, key, build, to, sync))
    for _ in range(_TRIES):
        if _rename_new(section_fd, staged, store_names.build_name(of, _newest(before) + 1)):
            break
        before = _generations(section_fd, of)
        newest = store_names.build_name(of, _newest(before))
        if not any(_is_same(section_fd, old, newest) for old in current):
            # Another was first. Ours goes back into the cache, and with it.
            os.rename(staged, f"lost-{dirfd.nonce()}", src_dir_fd=section_fd, dst_dir_fd=cache_fd)
            done.there += 1
            return
        current.append(newest)  # what is to be replaced was added to meanwhile
    else:
        drop(section_fd, staged, time.monotonic() + _CLEARING)
        raise builds.NotWhole("others change it all the time")
    _retire_replaced(section_fd, current)
    done.builds += 1
    done.files += len(build.files)
    done.bytes += build.bytes
    done.keys.append(key)


def _add_maps(section: _Section, build_fd: int, key: str, to: Publisher, until: float, done: Published, sync: bool) -> None:
    """Publish what a job has made with `map` in a build that is linked into its cache: a new generation of that build.

    Raise builds.NotWhole, arrow.Late, cachedir.Refused, OSError.
    """
    of = digest(key)
    linked = map_results.origin(build_fd, section.path, of)
    if linked is None:
        return
    section_fd = section.fd()
    for _ in range(_TRIES):
        before = _generations(section_fd, of)
        newest = store_names.build_name(of, _newest(before))
        if newest not in before:
            return  # pruned meanwhile
        if _is_retired(section_fd, newest):
            if _newest(_generations(section_fd, of)) == _newest(before):
                return
            continue  # others have just added to it
        if len(before) >= _MOST_GENERATIONS:
            done.late = True
            return
        try:
            growth = map_results.grown(section_fd, section.path, build_fd, key, linked, newest, to.most, until)
            if growth is None:
                return
            staged = _staged_grown(section_fd, build_fd, key, growth, newest, to, until, sync)
        except FileNotFoundError:
            continue  # pruned meanwhile, perhaps for a newer one
        if _rename_new(section_fd, staged, store_names.build_name(of, _newest(before) + 1)):
            break
        _give_back(section_fd, staged, build_fd, growth.new)
    else:
        done.late = True
        return
    _retire_replaced(section_fd, before)
    done.builds += 1
    done.files += len(growth.new)
    done.bytes += growth.bytes
    done.grown.append(key)


def _staged(section_fd: int, fill: "Callable[[int], None]") -> str:
    """Make a new directory in a section, have it filled, and return its name; nothing of it is left where that fails.

    Raise what `fill` raises; cachedir.Refused where it is on another filesystem.
    """
    staged = store_names.BUILD_NEW + dirfd.nonce()
    os.mkdir(staged, 0o700, dir_fd=section_fd)
    staged_fd = os.open(staged, dirfd.DIRECTORY, dir_fd=section_fd)
    try:
        fill(staged_fd)
    except (OSError, builds.NotWhole, reasons.Refused, arrow.Late) as error:
        drop(section_fd, staged, time.monotonic() + _CLEARING)
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            raise reasons.Refused("other_filesystem", "it is on another filesystem than the cache") from None
        if isinstance(error, PermissionError):
            raise builds.NotWhole(str(error)) from None
        raise
    finally:
        os.close(staged_fd)
    return staged


def _rename_new(section_fd: int, staged: str, name: str) -> bool:
    """Give what is staged its name; return False where that is taken. Raise OSError."""
    try:
        os.rename(staged, name, src_dir_fd=section_fd, dst_dir_fd=section_fd)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        return False
    return True


def _give_back(section_fd: int, staged: str, build_fd: int, names: "list[str]") -> None:
    """Move the files of a job's from what was staged back into its cache, and drop the rest. Raise OSError."""
    staged_fd = os.open(f"{staged}/{store_names.FILES}", dirfd.DIRECTORY, dir_fd=section_fd)
    try:
        os.fchmod(staged_fd, 0o700)
        for name in names:
            os.rename(name, name, src_dir_fd=staged_fd, dst_dir_fd=build_fd)
    finally:
        os.close(staged_fd)
    drop(section_fd, staged, time.monotonic() + _CLEARING)


def _retire_replaced(section_fd: int, names: "Iterable[str]") -> None:
    for name in names:
        try:
            retire(section_fd, name)
        except FileNotFoundError:
            continue  # pruned meanwhile


def _newest(names: "Iterable[str]") -> int:
    """Return the last of these generations, 0 where there is none."""
    return max((parsed[1] for parsed in map(store_names.parse_build, names) if parsed), default=0)


def _is_same(section_fd: int, one: str, other: str) -> bool:
    """Whether two generations are of one and the same build, which results of `map` were added to: its info is one file."""
    try:
        found = [
            os.stat(f"{name}/{store_names.FILES}/{store_reading.INFO}", dir_fd=section_fd, follow_symlinks=False)
            for name in (one, other)
        ]
    except OSError:
        return False
    return (found[0].st_dev, found[0].st_ino) == (found[1].st_dev, found[1].st_ino)


def _generations(section_fd: int, of: str) -> "list[str]":
    with os.scandir(section_fd) as entries:
        return [entry.name for entry in entries if entry.name.startswith(of + ".") and store_names.parse_build(entry.name)]


def _fill(staged_fd: int, build_fd: int, key: str, build: builds.Build, to: Publisher, sync: bool) -> None:
    """Move the files of a build into a new directory of the store, read-only. Raise builds.NotWhole, OSError."""
    files_fd = _make_files(staged_fd)
    try:
        _move(files_fd, build_fd, build.files, sync)
        _seal(staged_fd, files_fd, key, build, to, sync)
    finally:
        os.close(files_fd)


def _staged_grown(
    section_fd: int, build_fd: int, key: str, growth: map_results.Growth, newest: str, to: Publisher, until: float, sync: bool
) -> str:
    """As `_staged`, with what a job has made moved into it, beside hard links to the files of the generation `newest`."""
    old_fd = os.open(f"{newest}/{store_names.FILES}", dirfd.DIRECTORY, dir_fd=section_fd)
    try:
        return _staged(section_fd, lambda fd: _fill_grown(fd, build_fd, old_fd, key, growth, to, until, sync))
    finally:
        os.close(old_fd)


def _fill_grown(
    staged_fd: int, build_fd: int, old_fd: int, key: str, growth: map_results.Growth, to: Publisher, until: float, sync: bool
) -> None:
    """Raise builds.NotWhole, arrow.Late, OSError."""
    files_fd = _make_files(staged_fd)
    try:
        _move(files_fd, build_fd, {name: growth.build.files[name] for name in growth.new}, sync)
        for name in sorted(growth.build.files.keys() - set(growth.new)):
            if time.monotonic() >= until:
                raise arrow.Late
            try:
                os.link(name, name, src_dir_fd=old_fd, dst_dir_fd=files_fd, follow_symlinks=False)
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise builds.NotWhole(f"in the store, no hard link of {name}: {error.strerror}") from None
                raise
            _check_same(files_fd, name, growth.build.files[name])
        _seal(staged_fd, files_fd, key, growth.build, to, sync)
    finally:
        os.close(files_fd)


def _make_files(staged_fd: int) -> int:
    os.mkdir(store_names.FILES, 0o700, dir_fd=staged_fd)
    return os.open(store_names.FILES, dirfd.DIRECTORY, dir_fd=staged_fd)


def _move(files_fd: int, build_fd: int, files: "dict[str, tuple[int, int]]", sync: bool) -> None:
    for name, as_checked in files.items():
        fd = os.open(name, dirfd.FILE, dir_fd=build_fd)
        try:
            os.fchmod(fd, 0o444)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(name, name, src_dir_fd=build_fd, dst_dir_fd=files_fd)
        _check_same(files_fd, name, as_checked)


def _check_same(files_fd: int, name: str, as_checked: "tuple[int, int]") -> None:
    found = os.stat(name, dir_fd=files_fd, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode) or (found.st_size, found.st_mtime_ns) != as_checked:
        raise builds.NotWhole(f"{name} was changed while it was published")


def _seal(staged_fd: int, files_fd: int, key: str, build: builds.Build, to: Publisher, sync: bool) -> None:
    os.utime(files_fd, ns=(build.mtime, build.mtime))
    os.fchmod(files_fd, 0o555 if to.shared else 0o500)
    _write(staged_fd, store_names.MANIFEST, json.dumps(_manifest(key, build, to), indent=1) + "\n", sync)
    contents = store_names.format_contents(store_names.Contents(key, build.files, store_reading.checksum(files_fd)))
    if store_names.parse_contents(contents) is None:
        raise builds.NotWhole("it has too many files, or one dated before 1970")
    _write(staged_fd, store_names.CONTENTS, contents, sync)
    if sync:
        os.fsync(files_fd)
    os.fchmod(staged_fd, 0o755 if to.shared else 0o700)


def _manifest(key: str, build: builds.Build, to: Publisher) -> "dict[str, Any]":
    return {
        "schema": _SCHEMA,
        "key": key,
        "label": to.label or None,
        "published_at": timestamps.second(time.time()),
        "rows": build.rows,
        "files": len(build.files),
        "maps": build.maps,
        "bytes": build.bytes,
        **to.facts,
    }


def _write(dir_fd: int, name: str, text: str, sync: bool = False) -> None:
    """Write a new file, readable by whoever may enter the store. Raise OSError."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        data = os.fsencode(text)
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        os.fchmod(fd, 0o444)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


# -------------------------------------------------------------------------------------------------------------- use


def mark_used(cache_fd: int, path: str, until: float) -> int:
    """Date the builds of the store at `path` that a job has used, out of those linked into its cache; return how many.

    `datasets` leaves a lock, named after the build's path, where it has opened one. Raise OSError.
    """
    locks: "dict[str, list[str]]" = {}
    marked = 0
    for below, key in builds.find(cache_fd, until):
        build_fd = builds.open_build(cache_fd, below, key)
        if build_fd is None:
            continue
        try:
            link = builds.link_of(build_fd)
        finally:
            os.close(build_fd)
        if link is None or time.monotonic() >= until:
            continue
        if below not in locks:
            locks[below] = [name for name in os.listdir(f"/proc/self/fd/{cache_fd}/{below}") if name.endswith(".lock")]
        lock = f"_{key}.lock".replace("/", "_")
        if any(name.endswith(lock) for name in locks[below]):
            marked += _touch(path, link)
    return marked


def _touch(path: str, link: str) -> bool:
    """Date the build that a link leads to, where that is one of the store at `path` and ours. A link is the user's to forge."""
    if not link.startswith(f"{path}/{store_names.VERSION}/"):
        return False
    parts = link[len(path) + 1 :].split("/")
    if len(parts) != 5 or store_names.parse_section(parts[1]) is None or store_names.parse_build(parts[2]) is None:
        return False
    try:
        store_fd, owner = store_reading.open_store(path, os.geteuid())
        try:
            section_fd = store_reading.open_below(store_fd, "/".join(parts[:2]), owner)
        finally:
            os.close(store_fd)
        try:
            fd = store_reading.open_below(section_fd, _last(section_fd, parts[2]), owner)
        finally:
            os.close(section_fd)
        try:
            os.utime(fd)
        finally:
            os.close(fd)
    except (OSError, reasons.Refused):
        return False
    return True


def _last(section_fd: int, name: str) -> str:
    """Return the generation that a build has become, where results of `map` were added to it meanwhile; else its name."""
    if not _is_retired(section_fd, name):
        return name
    of = name.partition(".")[0]
    newest = store_names.build_name(of, _newest(_generations(section_fd, of)))
    return newest if _is_same(section_fd, name, newest) else name


# ------------------------------------------------------------------------------------------------------------- looking


class Stored:
    """A build in a store, or what is left of one.

    kind: "build", "new", "trash" or "staging". used, retired: seconds since the epoch by the filesystem's clock; retired None:
    it is not. bytes: allocated; what the generations of a build share is the newest one's. problem: why it is not whole, as
    far as a look tells. unread: the filesystem did not let us look, and it may be whole.
    """

    def __init__(self, kind: str, label: str, name: str, **seen: "Any") -> None:
        self.kind = kind
        self.label = label
        self.name = name
        self.key: str = seen.get("key", "")
        self.used: float = seen.get("used", 0.0)
        self.retired: "float | None" = seen.get("retired")
        self.bytes: int = seen.get("bytes", 0)
        self.files: int = seen.get("files", 0)
        self.manifest: "dict[str, Any]" = seen.get("manifest", {})
        self.problem: str = seen.get("problem", "")
        self.unread: bool = seen.get("unread", False)

    @property
    def path(self) -> str:
        """Its path in the store."""
        return f"{store_names.VERSION}/{store_names.section(self.label)}/{self.name}"


def look(
    path: str, owner: "int | None", deep: bool = False, going: "Callable[[], None]" = lambda: None, told: bool = True
) -> "Iterator[Stored]":
    """Yield what is in the store at `path`. owner: as of seed.Source. deep: read every file's framing, not its end alone.
    going: is called before each build. told: with what the manifests tell.

    Raise cachedir.Refused, OSError; nothing where there is no store.
    """
    try:
        store_fd, owner = store_reading.open_store(path, owner)
    except FileNotFoundError:
        return
    try:
        try:
            version_fd = store_reading.open_below(store_fd, store_names.VERSION, owner)
        except FileNotFoundError:
            return
        try:
            labels = map(store_names.parse_section, os.listdir(version_fd))
            for label in sorted(label for label in labels if label is not None):
                section_fd = store_reading.open_below(version_fd, store_names.section(label), owner)
                try:
                    of, counted = "", set[tuple[int, int]]()
                    for name in sorted(os.listdir(section_fd), key=_newest_first):
                        one = _stored(section_fd, label, name)
                        if one is not None:
                            if name.partition(".")[0] != of:
                                of, counted = name.partition(".")[0], set()
                            going()
                            _see(section_fd, one, owner, deep, told, counted)
                            yield one
                finally:
                    os.close(section_fd)
        finally:
            os.close(version_fd)
    finally:
        os.close(store_fd)


def _stored(section_fd: int, label: str, name: str) -> "Stored | None":
    debris = store_names.parse_store_debris(name)
    if debris:
        kinds = {store_names.BUILD_NEW: "new", store_names.BUILD_TRASH: "trash", store_names.STAGING: "staging"}
        return Stored(kinds[debris], label, name)
    return Stored("build", label, name) if store_names.parse_build(name) else None


def _newest_first(name: str) -> "tuple[str, int]":
    """Order builds so that the generations of each come one after the other, the newest first."""
    of, generation = store_names.parse_build(name) or (name, 0)
    return of, -generation


def _see(section_fd: int, one: Stored, owner: int, deep: bool, told: bool, counted: "set[tuple[int, int]]") -> None:
    """Look at one. counted: (device, inode) of the files with several names that are counted already, which is added to."""
    try:
        fd = store_reading.open_below(section_fd, one.name, owner)
        try:
            one.used = os.fstat(fd).st_mtime
            if one.kind != "build":
                one.used, one.bytes, one.files = _measure(fd, counted)
                return
            one.retired = _retired(fd)
            _, one.bytes, one.files = _measure(fd, counted)
            contents = store_reading.read_contents(fd)
            one.key = contents.key
            manifest = _read_manifest(fd) if told or deep else {}
            one.manifest = _told(manifest)
            _verify(fd, one, contents, manifest, owner, deep)
        finally:
            os.close(fd)
    except (OSError, reasons.Refused, builds.NotWhole) as error:
        one.problem = str(error)[:1000]
        one.unread = isinstance(error, OSError) and error.errno not in _NOT_THERE


def _told(manifest: "dict[str, Any]") -> "dict[str, Any]":
    """Return what of a manifest is shown, which is the user's to forge: nothing nested, and nothing long."""
    told = {key: manifest.get(key) for key in ("published_at", "job_id", "by")}
    told = {key: value for key, value in told.items() if isinstance(value, (str, int)) and len(str(value)) <= _LONGEST_WORD}
    rows = manifest.get("rows")
    if isinstance(rows, dict) and len(rows) <= _MOST_SPLITS and all(len(split) <= _LONGEST_WORD for split in rows):
        told["rows"] = {split: count for split, count in rows.items() if isinstance(count, int) and count < 1 << 63}
    return told


def _verify(
    build_fd: int, one: Stored, contents: store_names.Contents, manifest: "dict[str, Any]", owner: int, deep: bool
) -> None:
    """Raise where a build is not whole, or its manifest says what is not so."""
    if one.name.partition(".")[0] != digest(one.key):
        raise reasons.Refused("damaged", "its name is not that of its key")
    files_fd = store_reading.open_below(build_fd, store_names.FILES, owner)
    try:
        store_reading.check_files(files_fd, contents)
        if not deep:
            return
        build = builds.check(files_fd, time.monotonic() + 3600, with_maps=True)
        if set(build.files) != set(contents.files):
            raise reasons.Refused("damaged", "a file in it is not whole, or belongs to no split")
        said = {key: manifest.get(key) for key in ("key", "rows", "files")}
        if said != {"key": one.key, "rows": build.rows, "files": len(contents.files)}:
            raise reasons.Refused("damaged", "its manifest says what is not so")
    finally:
        os.close(files_fd)


def _read_manifest(build_fd: int) -> "dict[str, Any]":
    try:
        fd = os.open(store_names.MANIFEST, dirfd.FILE, dir_fd=build_fd)
        try:
            found = json.loads(os.read(fd, _LONGEST))
        finally:
            os.close(fd)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _measure(fd: int, counted: "set[tuple[int, int]]") -> "tuple[float, int, int]":
    """Return (its newest change, bytes allocated, files) of a tree; of the bytes, those that are in `counted` are not."""
    newest, total, files = os.fstat(fd).st_mtime, 0, 0
    for _, _, names, at in os.fwalk(".", dir_fd=fd, onerror=None):
        newest = max(newest, os.fstat(at).st_mtime)
        for name in names:
            try:
                found = os.stat(name, dir_fd=at, follow_symlinks=False)
            except (FileNotFoundError, PermissionError):
                continue
            newest = max(newest, min(found.st_ctime, time.time()))
            files += 1
            if found.st_nlink > 1:
                inode = found.st_dev, found.st_ino
                if inode in counted:
                    continue
                counted.add(inode)
            total += found.st_blocks * 512
    return newest, total, files


def _retired(build_fd: int) -> "float | None":
    try:
        return os.stat(store_names.RETIRED, dir_fd=build_fd, follow_symlinks=False).st_ctime
    except FileNotFoundError:
        return None


def _is_retired(section_fd: int, name: str) -> bool:
    try:
        os.stat(f"{name}/{store_names.RETIRED}", dir_fd=section_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


# ------------------------------------------------------------------------------------------------------------- pruning


def retire(section_fd: int, name: str) -> None:
    """From now on, link a build into no cache. Raise OSError."""
    try:
        _write(section_fd, f"{name}/{store_names.RETIRED}", "")
    except FileExistsError:
        pass


class Verdict:
    """What is to become of what is in a store. action: "retire", "delete" or "keep"; reason: a word."""

    __slots__ = ("stored", "action", "reason")

    def __init__(self, stored: Stored, action: str, reason: str) -> None:
        self.stored = stored
        self.action = action
        self.reason = reason


def to_retire(
    found: "Iterable[Stored]", now: float, max_size: int, max_age: float, oldest: "float | None", others: int = 0
) -> "list[Verdict]":
    """Return a verdict for each build that is not retired: a pure function. Times are seconds since the epoch.

    Damaged ones go, those of which there is a newer generation, those unused for `max_age`, and then the longest unused
    until the rest has at most `max_size` bytes. What was used since `oldest`, the start of the oldest live job (None:
    there is none), stays, unless it is damaged or superseded: those who have linked it keep it in either case. So does what
    could not be read.
    """
    found = list(found)
    unread = [one for one in found if one.kind == "build" and one.unread]
    standing = sorted(
        (one for one in found if one.kind == "build" and one.retired is None and not one.unread), key=lambda one: one.used
    )
    newest: "dict[tuple[str, str], int]" = {}
    for one in standing:
        of, generation = store_names.parse_build(one.name) or ("", 0)
        newest[one.label, of] = max(generation, newest.get((one.label, of), 0))
    needed = [oldest is not None and one.used >= oldest - timestamps.CLOCK_SKEW for one in standing]
    reasons = []
    for one, is_needed in zip(standing, needed):
        of, generation = store_names.parse_build(one.name) or ("", 0)
        aged = now - one.used > max_age and not is_needed
        superseded = generation < newest[one.label, of]
        reasons.append("damaged" if one.problem else "superseded" if superseded else "age" if aged else "")
    total = others + sum(one.bytes for one, reason in zip(standing, reasons) if not reason)
    verdicts = [Verdict(one, "keep", "unread") for one in unread]
    for one, reason, is_needed in zip(standing, reasons, needed):
        if not reason and not is_needed and total > max_size:
            reason = "size"
            total -= one.bytes
        verdicts.append(Verdict(one, "retire" if reason else "keep", reason or ("used" if is_needed else "")))
    return verdicts


def to_delete(found: "Iterable[Stored]", now: float, oldest: "float | None") -> "list[Verdict]":
    """Return a verdict for each retired build, and for what was left half done: a pure function."""
    verdicts = []
    for one in found:
        if one.kind == "trash":
            verdicts.append(Verdict(one, "delete", "trash"))
        elif one.kind in ("new", "staging"):
            old = now - one.used > _DEBRIS_AGE and not one.unread
            verdicts.append(Verdict(one, "delete" if old else "keep", "half_made" if old else "young"))
        elif one.retired is not None and not one.unread:
            free = oldest is None or one.retired < oldest - timestamps.CLOCK_SKEW
            verdicts.append(Verdict(one, "delete" if free else "keep", "retired" if free else "linked"))
    return verdicts


def act(path: str, owner: "int | None", verdicts: "Iterable[Verdict]", until: float) -> "Iterator[tuple[Verdict, int, int]]":
    """Carry out verdicts, as the store's owner; yield (verdict, bytes, files) of what was deleted, or retired with 0, 0.

    Raise cachedir.Refused, OSError.
    """
    todo = [verdict for verdict in verdicts if verdict.action != "keep"]
    if not todo:
        return
    store_fd, owner = store_reading.open_store(path, owner)
    try:
        for verdict in todo:
            one = verdict.stored
            if time.monotonic() >= until:
                return
            section_fd = store_reading.open_below(store_fd, f"{store_names.VERSION}/{store_names.section(one.label)}", owner)
            try:
                if verdict.action == "retire":
                    retire(section_fd, one.name)
                    yield verdict, 0, 0
                else:
                    yield (verdict, *drop(section_fd, one.name, until, one.retired if one.kind == "build" else None))
            except FileNotFoundError:
                continue  # another pruning was faster; what has the name by now is not what was judged
            finally:
                os.close(section_fd)
    finally:
        os.close(store_fd)


def tidy(path: str, owner: "int | None", now: float) -> None:
    """Remove the sections in which nothing is, nor was for a day, as the store's owner. Raise cachedir.Refused, OSError."""
    store_fd, owner = store_reading.open_store(path, owner)
    try:
        version_fd = store_reading.open_below(store_fd, store_names.VERSION, owner)
    finally:
        os.close(store_fd)
    try:
        for name in os.listdir(version_fd):
            if store_names.parse_section(name) is not None:
                found = os.stat(name, dir_fd=version_fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode) and now - found.st_mtime > _DEBRIS_AGE:
                    reaper.drop_section(version_fd, name)
    finally:
        os.close(version_fd)


def drop(section_fd: int, name: str, until: float, retired: "float | None" = None) -> "tuple[int, int]":
    """Delete what no job links to; return (bytes, files). Raise OSError, reaper.Kept.

    retired: when it was, as judged. Raise FileNotFoundError where a build of that name was not retired then.
    """
    fd = os.open(name, dirfd.DIRECTORY, dir_fd=section_fd)
    try:
        if retired is not None and _retired(fd) != retired:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        trash = reaper.retire_stored(section_fd, name, fd)
        freed = files = 0
        while True:
            tally = reaper.delete(section_fd, trash, fd, min(until, time.monotonic() + _STRIDE))
            freed, files = freed + tally.bytes, files + tally.files
            if tally.done or not tally.files or time.monotonic() >= until:
                return freed, files
    finally:
        os.close(fd)
