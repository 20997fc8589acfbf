"""Where caches are: every directory that has a name of ours, by the site's templates, as its owner sees it.

The users' directories are listed as root; from there on all is looked at with the user's rights, so that neither root
squash nor a closed directory hides anything, and no rights of ours help anybody. Runs in children: scratch may hang.
"""

import calendar
import errno
import itertools
import os
import pwd
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, Union

from jobcache.cache import cache_names, dirfd, entry_names, job_record, lease_lock, path_template
from jobcache.sweep.plan import ASIDE, CACHE, NEW, RUN, TRASH, Found, Identity

_NOGROUP = 65534  # in place of root's group, which gives rights
_STRIDE = 4096  # entries between two words
_DEEPEST = 64  # levels of a tree that are measured; a built dataset has four
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_USER = {(True, "user"), (True, "uid")}
_USER_OR_NODE = _USER | {(True, "node")}
_KINDS = {
    entry_names.CACHE: CACHE,
    entry_names.RUN: RUN,
    cache_names.NEW: NEW,
    cache_names.TRASH: TRASH,
    cache_names.ASIDE: ASIDE,
}


@dataclass(frozen=True)
class Home:
    """A user's directory on scratch: the place from which on a template's path is the user's own.

    template: its text. path: of the directory. rest: the components from there to where the caches are, each a literal
    or, where {node} is in it, a pattern. user, uid, gid: whose it is.
    """

    template: str
    path: str
    rest: tuple[str, ...]
    user: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Above:
    """A directory above the users' own: the first `depth` components of `template`, 0 before anything has been listed."""

    template: str
    path: str = ""
    depth: int = 0


@dataclass(frozen=True)
class Named:
    """What may be a user's directory, by its name alone. known: what the template's placeholders stand for in it."""

    template: str
    path: str
    known: dict[str, str]


def below(above: Above, cluster: str) -> Iterator[Union[Above, Named]]:
    """Yield what the next placeholder of a template stands for below `above`. Raise OSError where that cannot be listed.

    One step, since each directory can be one that hangs, that its owner has closed, or that a user has put there.
    """
    components = path_template.components(path_template.Template(above.template).parent)
    path, at = above.path, above.depth
    while not _USER_OR_NODE.intersection(components[at]):
        path, at = f"{path}/{path_template.joined(components[at], {'cluster': cluster})}", at + 1
    matches = path_template.matcher(components[at], {"cluster": cluster})
    try:
        directory = dirfd.open_directory(path)
    except OSError as error:
        if error.errno == errno.ENOENT or (above.depth and error.errno in _NO_DIRECTORY):
            return
        raise
    try:
        names_fd = _listable(directory)
    finally:
        os.close(directory)
    try:
        for name in _names(names_fd):
            known = matches(name)
            if known is None:
                continue
            if _USER.intersection(components[at]):
                yield Named(above.template, f"{path}/{name}", known)
            else:
                yield Above(above.template, f"{path}/{name}", at + 1)
    finally:
        os.close(names_fd)


def owned(named: Named, cluster: str) -> Optional[Home]:
    """Return the user's directory that this is, None where it is none. Raise OSError where it cannot be looked at.

    The group is the account's, never the directory's, which may be one that its owner is not in.
    """
    try:
        fd = dirfd.open_directory(named.path)
        try:
            owner = os.fstat(fd).st_uid
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            return None
        if error.errno != errno.EACCES:
            raise
        owner = 0  # what is closed to root is its user's by the name: whoever looks at it as that user will see
    account = _account(owner, named.known)
    uid = account.pw_uid if account else owner
    if uid == 0:
        return None
    known = {**({"user": account.pw_name} if account else {}), **named.known, "cluster": cluster, "uid": str(uid)}
    components = path_template.components(path_template.Template(named.template).parent)[named.path.count("/") :]
    rest = tuple(path_template.joined(parts, known) for parts in components)
    return Home(named.template, named.path, rest, known.get("user", ""), uid, account.pw_gid if account else _NOGROUP)


def _account(owner: int, known: "dict[str, str]") -> "Optional[pwd.struct_passwd]":
    """Return the account of the user whose directory this is; root's own may be one in which the user has rights."""
    try:
        if owner:
            return pwd.getpwuid(owner)
        return pwd.getpwuid(int(known["uid"])) if "uid" in known else pwd.getpwnam(known["user"])
    except (KeyError, ValueError):
        return None


def caches(home: Home, cluster: str, local: bool) -> Iterator[Optional[Found]]:
    """Yield what lies in a user's directory, at a glance, as whoever we are now; None now and then, while nothing is found.

    Raise OSError in the end where some of it cannot be listed.
    """
    failed: list[OSError] = []
    for parent in _parents(home.path, home.rest, failed):
        try:
            yield from _caches_in(parent, home, cluster, local)
        except OSError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _caches_in(parent: str, home: Home, cluster: str, local: bool) -> Iterator[Optional[Found]]:
    known = {"cluster": cluster, "uid": str(home.uid), **({"user": home.user} if home.user else {})}
    matches = path_template.matcher(path_template.Template(home.template).name, known)
    try:
        parent_fd = dirfd.open_directory(parent)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            return
        raise
    try:
        for named in _named(parent_fd, matches):
            if named is None:
                yield None
                continue
            kind, name, job_id, run = named
            plain = Found(kind=kind, path=f"{parent}/{name}", job_id=job_id, run=run, uid=home.uid, gid=home.gid, local=local)
            yield glance(parent_fd, name, plain)
    finally:
        os.close(parent_fd)


def _parents(path: str, rest: tuple[str, ...], failed: list[OSError]) -> Iterator[str]:
    """Yield the directories in which caches lie; a component with a wildcard, a {node}, is listed. failed: what cannot be."""
    if not rest:
        yield path
    elif path_template.ANY not in rest[0]:
        yield from _parents(f"{path}/{rest[0]}", rest[1:], failed)
    else:
        before, _, after = rest[0].partition(path_template.ANY)
        try:
            names = [name for name in os.listdir(path) if name.startswith(before) and name.endswith(after)]
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                failed.append(error)
            return
        for name in names:
            yield from _parents(f"{path}/{name}", rest[1:], failed)


def _named(parent_fd: int, matches: "path_template.Matcher") -> Iterator[Optional[tuple[str, str, int, Optional[int]]]]:
    """Yield (kind, name, job_id, run) of the directories here that have a name of ours, None now and then."""
    list_fd = _listable(parent_fd)
    try:
        with os.scandir(list_fd) as entries:
            for at, entry in enumerate(entries, 1):
                if at % _STRIDE == 0:
                    yield None
                parsed = entry_names.parse_entry(entry.name, matches)
                if parsed and entry.is_dir(follow_symlinks=False):
                    kind, number, run = parsed
                    yield _KINDS[kind], entry.name, number, run
    finally:
        os.close(list_fd)


def glance(parent_fd: int, name: str, plain: Found) -> Found:
    """Return `plain` with what tells whose it is, and no more: most caches are alive, and are not looked at again."""
    return _opened(parent_fd, name, plain, lambda fd: {"identity": _identity(fd)})


def look(parent_fd: int, name: str, plain: Found) -> Found:
    """Return `plain` with all that can be seen of it now; what cannot be looked at has an `error`."""
    return _opened(parent_fd, name, plain, lambda fd: _seen(fd, plain.kind == RUN))


def _opened(parent_fd: int, name: str, plain: Found, see: "Callable[[int], dict[str, Any]]") -> Found:
    try:
        fd = os.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)
        try:
            itself = os.fstat(fd)
            if itself.st_uid != plain.uid:
                return replace(plain, error=f"it belongs to uid {itself.st_uid}")
            return replace(plain, device=itself.st_dev, inode=itself.st_ino, error="", **see(fd))
        finally:
            os.close(fd)
    except OSError as error:
        return replace(plain, error=str(error) or type(error).__name__)


def _seen(fd: int, without_job: bool) -> "dict[str, Any]":
    sign, nodes = job_record.signs_of_life(fd)
    until = job_record.read_record(fd).get("keep_until")
    return {
        "identity": _identity(fd),
        "sign": max(sign, os.fstat(fd).st_ctime),
        "keep_until": _seconds(until) if isinstance(until, str) else None,
        "kept": job_record.is_kept(fd),
        "joinable": os.path.lexists(f"/proc/self/fd/{fd}/{cache_names.META}/{cache_names.NODES}"),
        "nodes": tuple(sorted({cache_names.lease_node(lease) for lease in nodes})),
        "holder": lease_lock.state(fd) if without_job else "",
        "bare": all(name == cache_names.META for name in itertools.islice(_names(fd), 2)),
    }


def _listable(directory: int) -> int:
    """Return a descriptor by which a directory from `open_directory` can be listed. Raise OSError."""
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)


def _names(fd: int) -> Iterator[str]:
    with os.scandir(fd) as entries:
        for entry in entries:
            yield entry.name


def _identity(fd: int) -> "Optional[Identity]":
    """As cachedir.identity; but an id that is empty says no more than none, and is what a crash leaves of a new one.

    Its writer was killed, or its node lost power before the file's content was on the disk.
    """
    found = job_record.identity(fd)
    if found is not None and not found[0] and os.lstat(f"/proc/self/fd/{fd}/{cache_names.META}/{cache_names.ID}").st_size == 0:
        return None
    return found


def _seconds(stamp: str) -> Optional[float]:
    try:
        return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))
    except (ValueError, OverflowError):
        return None


def clock(parent_fd: int) -> float:
    """Return the time by the clock of the filesystem, which dates a directory that is touched. Raise OSError.

    To make a file would leave one behind where we are killed, and cannot be done by a user whose quota is used up.
    """
    here = f"/proc/self/fd/{parent_fd}"
    os.utime(here)
    return os.stat(here).st_ctime


def size(parent_fd: int, name: str) -> Iterator[tuple[int, int]]:
    """Yield (bytes allocated, files) of a tree, now and then and in the end.

    Links count once each; `.jobcache`, what cannot be entered, and what lies deeper than any dataset, not at all.
    """
    total = files = 0
    inodes: set[tuple[int, int]] = set()
    for path, directories, _, fd in os.fwalk(name, dir_fd=parent_fd, onerror=None):
        if path == name and cache_names.META in directories:
            directories.remove(cache_names.META)
        if path.count("/") >= _DEEPEST:
            directories.clear()
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        continue
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # its job is at work
                files += 1
                if found.st_nlink == 1 or (found.st_dev, found.st_ino) not in inodes:
                    total += found.st_blocks * 512
                if found.st_nlink > 1:
                    inodes.add((found.st_dev, found.st_ino))
                if files % _STRIDE == 0:
                    yield total, files
    yield total, files
