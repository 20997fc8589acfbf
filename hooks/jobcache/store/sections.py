"""A section of a store: opening it, the generations of a build in it, their names and their retirement.

<store>/v1/<section>/<digest of the key>.<generation>/. All functions run as the store's owner.
"""

import errno
import hashlib
import os

from jobcache.cache import build_info, dirfd, store_names, store_reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


class Section:
    """A section of a store, created and opened on first use.

    path: of the section. store, label, shared: as of `open_section`.
    """

    def __init__(self, store: str, label: str, shared: bool) -> None:
        self.path = f"{store}/{store_names.VERSION}/{store_names.section(label)}"
        self._arguments = store, label, shared
        self._fd = -1

    def fd(self) -> int:
        """Return the descriptor of the section. Raise as open_section does."""
        if self._fd < 0:
            self._fd = open_section(*self._arguments)
        return self._fd

    def close(self) -> None:
        """Close the descriptor if the section was opened."""
        if self._fd >= 0:
            os.close(self._fd)


def open_section(store: str, label: str, shared: bool) -> int:
    """Open the section of `label` in the store at the path `store`, and create what is missing. Return the descriptor.

    label: "" for the default section. shared: other users may read the store, as they read the site's.
    Raise reasons.Refused if the store cannot be used, OSError.
    """
    mode = 0o755 if shared else 0o700
    if shared:
        os.makedirs(os.path.dirname(store), mode, exist_ok=True)
        _mkdir(store, mode)
    else:
        os.close(store_reading.open_user_path(store, os.geteuid(), make=True))
    fd, _ = store_reading.open_store(store, os.geteuid(), is_users=not shared)
    try:
        for path in (store_names.VERSION, f"{store_names.VERSION}/{store_names.section(label)}"):
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
        os.chmod(path, mode, dir_fd=dir_fd)  # the umask must not hide the site's store from its readers


def digest(key: str, base: "int | None" = None) -> str:
    """Return the digest of a build's key, as it stands in the names of its generations.

    base: for a result set, the state of the build to which it belongs.
    """
    head, text = ("", key) if base is None else (store_names.RESULTS, f"{key}\n{base}")
    return head + hashlib.sha256(os.fsencode(text)).hexdigest()[: store_names.DIGITS]


def generations(section_fd: int, key_digest: str) -> "list[str]":
    """Return the names of all generations of a build in a section, retired ones included. Raise OSError."""
    prefix = key_digest + "."
    with os.scandir(section_fd) as entries:
        return [entry.name for entry in entries if entry.name.startswith(prefix) and store_names.parse_build(entry.name)]


def newest_number(names: "Iterable[str]") -> int:
    """Return the highest generation number among these names, 0 if no name has one."""
    return max((parsed[1] for parsed in map(store_names.parse_build, names) if parsed), default=0)


def newest_name(key_digest: str, names: "Iterable[str]") -> str:
    """Return the name of the newest of these generations of a build."""
    return store_names.build_name(key_digest, newest_number(names))


def are_one_build(section_fd: int, one: str, other: str) -> bool:
    """Return whether two generations are one build to which results of `map` were added: they share one dataset_info.json.

    Result sets of one digest are always one.
    """
    if store_names.is_result_set(one):
        return one.partition(".")[0] == other.partition(".")[0]
    try:
        info = [
            os.stat(f"{name}/{store_names.FILES}/{build_info.INFO}", dir_fd=section_fd, follow_symlinks=False)
            for name in (one, other)
        ]
    except OSError:
        return False
    return (info[0].st_dev, info[0].st_ino) == (info[1].st_dev, info[1].st_ino)


def take_name(section_fd: int, staged: str, name: str) -> bool:
    """Rename the staged directory to `name`. Return False if that name is taken. Raise OSError."""
    try:
        os.rename(staged, name, src_dir_fd=section_fd, dst_dir_fd=section_fd)
    except OSError as error:
        if error.errno not in _NAME_TAKEN:
            raise
        return False
    return True


# --------------------------------------------------------------------------------------------------------- retirement


def retire(section_fd: int, name: str) -> None:
    """Retire a build: from now on it is linked into no new cache. Raise OSError, FileNotFoundError if the build is gone."""
    try:
        write_read_only(section_fd, f"{name}/{store_names.RETIRED}", "")
    except FileExistsError:
        pass


def retire_replaced(section_fd: int, names: "Iterable[str]") -> None:
    """Retire the generations that a new one replaces. Raise OSError."""
    for name in names:
        try:
            retire(section_fd, name)
        except FileNotFoundError:
            continue  # a pruning has deleted it meanwhile


def is_retired(section_fd: int, name: str) -> bool:
    """Return whether the build of this name is retired."""
    return dirfd.exists(section_fd, f"{name}/{store_names.RETIRED}")


def retired_at(build_fd: int) -> "float | None":
    """Return when a build was retired, in seconds since the epoch by the filesystem's clock; None if it is not retired."""
    try:
        return os.stat(store_names.RETIRED, dir_fd=build_fd, follow_symlinks=False).st_ctime
    except FileNotFoundError:
        return None


def write_read_only(dir_fd: int, name: str, text: str, sync: bool = False) -> None:
    """Create a file with `text` in it, readable by everybody who may enter the store.

    sync: flush it to disk. Raise FileExistsError, OSError.
    """
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
