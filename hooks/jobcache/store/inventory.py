"""The entries of a store, as a listing, a verification and a pruning need them."""

import errno
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

from jobcache.cache import dirfd, reasons, store_names, store_reading
from jobcache.store import builds, sections, verification
from jobcache.sweep import tree_size

_MAX_MANIFEST = 1 << 24  # bytes
_MAX_NAMES = 100_000  # entries of one section of a store
_MAX_SHOWN = 255  # characters of a value of a manifest
_MAX_SPLITS = 1000  # of a build, in a listing
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)  # a part of the build is missing or replaced
_KINDS = {store_names.BUILD_NEW: "new", store_names.BUILD_TRASH: "trash", store_names.STAGING: "staging"}


@dataclass
class Entry:
    """An entry of a section: a build, or a directory that a publication, a pruning or `store build` left.

    kind: "build", "new", "trash" or "staging". used, retired: seconds since the epoch by the filesystem's clock; retired is
    None for a build that is not retired. bytes: allocated; files that several generations share count for the newest.
    manifest: the fields that are shown. problem: why the build is damaged, "" if no damage was found. unread: the filesystem
    returned an error, so the build may be whole.
    """

    kind: str
    label: str
    name: str
    key: str = ""
    used: float = 0.0
    retired: Optional[float] = None
    bytes: int = 0
    files: int = 0
    manifest: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    unread: bool = False

    @property
    def path(self) -> str:
        """The path below the store."""
        return f"{store_names.VERSION}/{store_names.section(self.label)}/{self.name}"


def entries(
    path: str,
    owner: Optional[int],
    *,
    deep: bool = False,
    with_manifests: bool = True,
    heartbeat: Callable[[], None] = lambda: None,
) -> Iterator[Entry]:
    """Yield the entries of the store at `path`; nothing if the store does not exist.

    owner: as of linking.Source. deep: verify every file of every build, not only its end. with_manifests: read the manifests.
    heartbeat: called before each entry. Raise reasons.Refused, OSError.
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
            labels = map(store_names.parse_section, _names(version_fd))
            for label in sorted(label for label in labels if label is not None):
                section_fd = store_reading.open_below(version_fd, store_names.section(label), owner)
                try:
                    for entry, counted in _in_section(section_fd, label):
                        heartbeat()
                        _inspect(section_fd, entry, owner, deep, with_manifests, counted)
                        yield entry
                finally:
                    os.close(section_fd)
        finally:
            os.close(version_fd)
    finally:
        os.close(store_fd)


def _in_section(section_fd: int, label: str) -> "Iterator[tuple[Entry, set[tuple[int, int]]]]":
    """Yield each entry of a section, not inspected yet, and the inodes counted so far of the build's generations."""
    digest, counted = "", set[tuple[int, int]]()
    for name in sorted(_names(section_fd), key=_newest_first):
        debris = store_names.parse_store_debris(name)
        if not debris and not store_names.parse_build(name):
            continue
        if name.partition(".")[0] != digest:
            digest, counted = name.partition(".")[0], set()
        yield Entry(_KINDS[debris] if debris else "build", label, name), counted


def _names(fd: int) -> list[str]:
    """Return the names in a directory of a store. Raise OSError, also for more names than any store has."""
    with os.scandir(fd) as entries:
        names = [entry.name for entry in itertools.islice(entries, _MAX_NAMES + 1)]
    if len(names) > _MAX_NAMES:
        raise OSError(errno.E2BIG, f"a directory of the store has more than {_MAX_NAMES} entries; remove some")
    return names


def _newest_first(name: str) -> tuple[str, int]:
    """Return a sort key that puts the generations of a build one after the other, the newest first."""
    digest, generation = store_names.parse_build(name) or (name, 0)
    return digest, -generation


def _inspect(
    section_fd: int, entry: Entry, owner: int, deep: bool, with_manifests: bool, counted: "set[tuple[int, int]]"
) -> None:
    """Fill in an entry. counted: (device, inode) of files with several names that are counted already; add to it."""
    try:
        fd = store_reading.open_below(section_fd, entry.name, owner)
        try:
            entry.used = os.fstat(fd).st_mtime
            if entry.kind != "build":
                entry.used, entry.bytes, entry.files = _measure(fd, counted)
                return
            entry.retired = sections.retired_at(fd)
            _, entry.bytes, entry.files = _measure(fd, counted)
            contents = store_reading.read_contents(fd)
            entry.key = contents.key
            manifest = _read_manifest(fd) if with_manifests or deep else {}
            entry.manifest = _shown(manifest)
            verification.check_stored(fd, entry.name, contents, owner)
            if deep:
                verification.check_deep(fd, contents, manifest, owner)
        finally:
            os.close(fd)
    except (OSError, reasons.Refused, builds.DamagedBuild) as error:
        entry.problem = str(error)[:1000]
        entry.unread = isinstance(error, OSError) and error.errno not in _CHANGED


def _read_manifest(build_fd: int) -> dict[str, Any]:
    """Return the manifest of a build, {} if it cannot be read."""
    try:
        fd = dirfd.open_unmarked(store_names.MANIFEST, dirfd.FILE, build_fd)
        try:
            manifest = json.loads(os.read(fd, _MAX_MANIFEST))
        finally:
            os.close(fd)
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _shown(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a manifest that are shown. The user can forge a manifest: drop nested and long values."""
    shown = {key: manifest.get(key) for key in ("published_at", "job_id", "by")}
    shown = {key: value for key, value in shown.items() if isinstance(value, (str, int)) and len(str(value)) <= _MAX_SHOWN}
    rows = manifest.get("rows")
    if isinstance(rows, dict) and len(rows) <= _MAX_SPLITS and all(len(split) <= _MAX_SHOWN for split in rows):
        shown["rows"] = {split: count for split, count in rows.items() if isinstance(count, int) and count < 1 << 63}
    return shown


def _measure(fd: int, counted: "set[tuple[int, int]]") -> tuple[float, int, int]:
    """Return (newest change, bytes allocated, files) of a tree. The bytes leave out files whose inode is in `counted`."""
    newest, total, files = os.fstat(fd).st_mtime, 0, 0
    for is_directory, found in tree_size.walk(fd, "."):
        newest = max(newest, found.st_mtime if is_directory else min(found.st_ctime, time.time()))
        if is_directory:
            continue
        files += 1
        if found.st_nlink > 1:
            inode = found.st_dev, found.st_ino
            if inode in counted:
                continue
            counted.add(inode)
        total += found.st_blocks * 512
    return newest, total, files
