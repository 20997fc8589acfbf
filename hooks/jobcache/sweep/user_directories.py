"""The users' directories on scratch, from the site's templates: each level of a path is listed in a child, since it can hang."""

import errno
import functools
import hashlib
import os
import pwd
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from jobcache.cache import dirfd, path_template
from jobcache.cache.entry_names import parse_entry
from jobcache.cache.fields import component
from jobcache.config.settings import Settings
from jobcache.sweep import accounts
from jobcache.sweep.accounts import Account, Scope
from jobcache.system import mounts
from jobcache.system.gathering import survey
from jobcache.system.stuck_processes import Place, Register

ALL = Scope()

MOST_SIDE_BY_SIDE = 8  # directories of one user in one place; an account that was renamed has some
MOST_JOBS = 10_000  # directories of one user in one place that the site makes for each job
MOST_UNATTRIBUTED = 10_000  # directories in one place before their owners are looked up as they are listed

_STRIDE = 4096  # entries between two heartbeats

_NOGROUP = 65534  # for owners without an account; the group of root would give rights
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_USER = {(True, "user"), (True, "uid")}
_UNKNOWN = _USER | {(True, "node"), (True, "account"), (True, "job_id")}  # placeholders with any value


@dataclass(frozen=True)
class UserDirectory:
    """A user's directory on scratch: from here on, a path of the template lies in the user's hands.

    template: text of the template.
    path: of the directory.
    rest: components from there to the parent of caches; a component with {node}, {account} or {job_id} is a pattern.
    user: name of the user, "" if unknown.
    uid, gid: of the user.
    """

    template: str
    path: str
    rest: tuple[str, ...]
    user: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Prefix:
    """A directory above the users' directories: the first `depth` components of `template`, 0 at the start."""

    template: str
    path: str = ""
    depth: int = 0


@dataclass(frozen=True)
class Candidate:
    """A directory that has the name of a user's directory; its owner is not known yet.

    values: of the placeholders in its name.
    """

    template: str
    path: str
    values: dict[str, str]


@dataclass(frozen=True)
class OnDemand:
    """A directory that mounts users' directories when they are accessed, and can have others than those that it lists.

    depth: number of components of `template` down to `path`. browse: it lists directories that are not mounted.
    """

    template: str
    path: str
    depth: int
    browse: bool


@functools.lru_cache(maxsize=64)
def template_of(text: str) -> path_template.Template:
    """Return the template with this text. A sweep asks once for each user, and a site has few templates."""
    return path_template.Template(text)


def place_of(register: Register, one: UserDirectory) -> Place:
    """Return the place that a search of the user's directory accesses."""
    below = "/".join(one.rest).partition(path_template.ANY)[0]
    return register.place(one.uid, f"{one.path}/{below}".rstrip("/"))


def list_user_directories(
    site: Settings, templates: Sequence[path_template.Template], trouble: list[str], scope: Scope = ALL
) -> list[UserDirectory]:
    """Return the users' directories of these templates, in random order.

    trouble: takes a message for each directory that cannot be read.
    """
    register = Register(site.run_dir)
    in_homes = [template for template in templates if template.in_home]
    prefixes = [Prefix(template.text) for template in templates if not template.in_home]
    candidates: list[Candidate] = []
    on_demand: list[OnDemand] = []

    def below(prefix: Prefix) -> Iterator[dict[str, Any]]:
        try:
            for found in list_below(prefix, site.cluster):
                yield {"on_demand": vars(found)} if isinstance(found, OnDemand) else vars(found) if found else {}
        except OSError as error:
            yield {"trouble": f"{prefix.path or prefix.template}: {error.strerror or error}"}

    def lost(prefixes: Sequence[Prefix], why: str) -> None:
        trouble.extend(f"{prefix.path or prefix.template}: {why}" for prefix in prefixes)

    while prefixes:
        facts = survey(prefixes, below, lost, lambda prefix: _place_of_root(register, prefix))
        prefixes = []
        for fact in facts:
            if "trouble" in fact:
                trouble.append(fact["trouble"])
            elif "on_demand" in fact:
                on_demand.append(OnDemand(**fact["on_demand"]))
            elif "values" in fact:
                candidates.append(Candidate(**fact))
            else:
                prefixes.append(Prefix(**fact))
    if on_demand or in_homes:
        known = {(one.template, one.path) for one in candidates}
        problems: list[str] = []
        users = accounts.likely(site, scope, problems)
        named = _by_name(on_demand, users, site.cluster, problems)
        candidates += [one for one in named if (one.template, one.path) not in known]
        candidates += _homes(in_homes, users)
        trouble += [] if all(one.browse for one in on_demand) and not in_homes else problems
    random.shuffle(candidates)  # directories that hang can be neighbors, and must not look like a filesystem that hangs
    return [one for one in _owned(site, candidates, trouble, register) if scope.includes(one.uid)]


def _by_name(places: list[OnDemand], users: list[Account], cluster: str, trouble: list[str]) -> Iterator[Candidate]:
    """Yield the directories that these users can have in `places`. trouble: takes a message for a place without any."""
    for place in places:
        parts = path_template.components(template_of(place.template).parent)[place.depth]
        matches = path_template.matcher(parts, {"cluster": cluster})
        count = 0
        for user in users:
            name = path_template.joined(parts, {"cluster": cluster, "user": user.name or path_template.ANY, "uid": str(user.uid)})
            values = matches(name) if component(name) else None  # ANY is in the name of a place that users do not name
            if values is not None:
                count += 1
                yield Candidate(place.template, f"{place.path}/{name}", values)
        if not count and not place.browse:
            text = "autofs mounts the directories in it when they are accessed, and this sweep knows no name to access"
            trouble.append(f"{place.path}: {text}; list them: `browse` in auto.master")


def _homes(templates: Sequence[path_template.Template], users: list[Account]) -> Iterator[Candidate]:
    """Yield the homes of these users, for each template that begins with {home}."""
    for template in templates:
        for user in users:
            try:
                yield Candidate(template.text, f"/{path_template.home_value(user.home)}", {"uid": str(user.uid)})
            except path_template.BadName:
                continue  # the TaskProlog makes no cache for such a home


def _place_of_root(register: Register, one: Union[Prefix, Candidate]) -> Place:
    """Return the place of what root accesses. One user's directory can hang while those beside it answer."""
    path = getattr(one, "path", "") or one.template.partition("{")[0]
    return register.place(0, path, hashlib.sha256(os.fsencode(path)).hexdigest()[:16])


def _owned(site: Settings, candidates: list[Candidate], trouble: list[str], register: Register) -> Iterator[UserDirectory]:
    """Yield the candidates that belong to a user, of each user a bounded number: in a sticky directory a user can make many."""
    counts: dict[tuple[int, str], int] = {}

    def where(directory: UserDirectory) -> tuple[int, str]:
        return directory.uid, f"{os.path.dirname(directory.path)} {directory.template}"

    def facts(candidate: Candidate) -> Iterator[dict[str, Any]]:
        place = _place_of_root(register, candidate)
        try:
            directory = read_owner(candidate, site.cluster, place.uid if place.is_users else None)
        except OSError as error:
            yield {"trouble": f"{candidate.path}: {error.strerror or error}"}
            return
        if directory:
            yield vars(directory)

    def lost(candidates: Sequence[Candidate], why: str) -> None:
        trouble.append(f"{and_more([candidate.path for candidate in candidates])}: {why}")

    for fact in survey(candidates, facts, lost, lambda candidate: _place_of_root(register, candidate)):
        if "trouble" in fact:
            trouble.append(fact["trouble"])
            continue
        directory = UserDirectory(**{**fact, "rest": tuple(fact["rest"])})
        count = counts[where(directory)] = counts.get(where(directory), 0) + 1
        most = _most_side_by_side(template_of(directory.template))
        if count <= most:
            yield directory
        elif count == most + 1:
            message = f"uid {directory.uid} has more than {most} directories here; the rest is skipped"
            trouble.append(f"{directory.path}: {message}")


def _most_side_by_side(template: path_template.Template) -> int:
    """Return how many directories of one user to take in one place. If they are named by jobs alone, a user has many."""
    return MOST_SIDE_BY_SIDE if template.names_user() else MOST_JOBS


def list_below(prefix: Prefix, cluster: str) -> Iterator[Optional[Union[Prefix, Candidate, OnDemand]]]:
    """Yield the directories for the next placeholder of the template below `prefix`. Raise OSError if they cannot be listed.

    At the end, yield an OnDemand if there can be more.

    One level, because each directory can hang, can be closed by its owner, and can be planted by a user. Yield None
    periodically as a heartbeat.
    """
    template = template_of(prefix.template)
    components = path_template.components(template.parent)
    path, depth = prefix.path, prefix.depth
    while not _UNKNOWN.intersection(components[depth]):
        path, depth = f"{path}/{path_template.joined(components[depth], {'cluster': cluster})}", depth + 1
    matches = path_template.matcher(components[depth], {"cluster": cluster})
    try:
        directory = dirfd.open_directory(path)
    except OSError as error:
        if error.errno == errno.ENOENT and not prefix.depth and mounts.is_on_demand(path):
            raise OSError(error.errno, "autofs has not mounted it: is it in the map, and does its server answer?") from None
        if error.errno == errno.ENOENT or (prefix.depth and error.errno in _NO_DIRECTORY):
            return
        raise
    try:
        crowd = _Crowd(directory, path, _most_side_by_side(template))
        for count, name in enumerate(list_names(directory), 1):
            if count % _STRIDE == 0:
                yield None
            values = matches(name)
            if values is None or crowd.is_full(name):
                continue
            if (True, "job_id") in components[depth] and not template.names_user():
                below = (path_template.joined(parts, {"cluster": cluster}) for parts in components[depth + 1 :])
                yield Candidate(prefix.template, "/".join([f"{path}/{name}", *below]), values)
            elif _USER.intersection(components[depth]):
                yield Candidate(prefix.template, f"{path}/{name}", values)
            else:
                yield Prefix(prefix.template, f"{path}/{name}", depth + 1)
        if mounts.is_on_demand(os.readlink(f"/proc/self/fd/{directory}")):
            yield OnDemand(prefix.template, path, depth, mounts.lists_unmounted(directory, list_names(directory)))
    finally:
        os.close(directory)


class _Crowd:
    """The directories in one place, of which one user can make any number where all users can write.

    Beyond MOST_UNATTRIBUTED of them, each user's are counted as they are listed. A mount point, which can hang, is not
    looked at; a user cannot make many.
    """

    def __init__(self, directory_fd: int, path: str, most: int) -> None:
        self._fd = directory_fd
        self._path = path
        self._most = most  # directories of one user that are taken
        self._total = 0
        self._counts: dict[int, int] = {}  # by uid
        self._mounts: set[str] = set()

    def is_full(self, name: str) -> bool:
        """Count the directory `name`; return whether its owner has more than is taken."""
        self._total += 1
        if self._total <= MOST_UNATTRIBUTED:
            return False
        if self._total == MOST_UNATTRIBUTED + 1:
            self._mounts = {mount.point for mount in mounts.read()}
        if f"{self._path}/{name}" in self._mounts:
            return False
        try:
            owner = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_uid
        except OSError:
            return False
        self._counts[owner] = self._counts.get(owner, 0) + 1
        return owner != 0 and self._counts[owner] > self._most + 1  # the last one shows that there are more


def list_names(directory_fd: int) -> Iterator[str]:
    """Yield the names in a directory that was opened for search alone. Raise OSError."""
    fd = dirfd.open_unmarked(".", dirfd.DIRECTORY, directory_fd)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name
    finally:
        os.close(fd)


def read_owner(candidate: Candidate, cluster: str, mounter: Optional[int] = None) -> Optional[UserDirectory]:
    """Return the candidate as a user's directory, None if it belongs to no user. Raise OSError if it cannot be read.

    mounter: the user who mounted the filesystem on which it lies, and which root does not enter.
    The group is that of the account. The group of the directory can be one that its owner is not in.
    """
    try:
        owner = _owner(candidate.path) if mounter is None else mounter
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            return None
        if error.errno != errno.EACCES:
            raise
        owner = 0  # closed to root: the name decides, and the child that becomes this user will find out
    template = template_of(candidate.template)
    if owner == 0 and not template.names_user():
        owner = _owner_of_cache(candidate.path, template, cluster)
    account = _account(0 if template.in_home else owner, candidate.values)
    if template.in_home and not (account and owner in (0, account.pw_uid) and account.pw_dir.rstrip("/") == candidate.path):
        return None
    uid = account.pw_uid if account else owner
    if uid == 0:
        return None
    values = {**({"user": account.pw_name} if account else {}), **candidate.values, "cluster": cluster, "uid": str(uid)}
    components = path_template.components(template.parent)[1 if template.in_home else candidate.path.count("/") :]
    rest = tuple(path_template.joined(parts, values) for parts in components)
    gid = account.pw_gid if account else _NOGROUP
    return UserDirectory(candidate.template, candidate.path, rest, values.get("user", ""), uid, gid)


def _owner(path: str) -> int:
    """Return the uid of the owner of a directory. Raise OSError."""
    fd = dirfd.open_directory(path)
    try:
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)


def _owner_of_cache(path: str, template: path_template.Template, cluster: str) -> int:
    """Return the owner of the first cache in the directory of a job, which root owns; 0 if it has none, or is closed."""
    matches = path_template.matcher(template.name, {"cluster": cluster})
    try:
        fd = dirfd.open_directory(path)
    except OSError:
        return 0
    try:
        owners = (os.stat(name, dir_fd=fd, follow_symlinks=False).st_uid for name in list_names(fd) if parse_entry(name, matches))
        return next((owner for owner in owners if owner), 0)
    except OSError:
        return 0  # deleted in this moment
    finally:
        os.close(fd)


def _account(owner: int, values: dict[str, str]) -> Optional[pwd.struct_passwd]:
    """Return the account of a directory's owner. A directory that root owns can give rights to the user in its name."""
    try:
        if owner:
            return pwd.getpwuid(owner)
        return pwd.getpwuid(int(values["uid"])) if "uid" in values else pwd.getpwnam(values["user"])
    except (KeyError, ValueError):
        return None


def and_more(paths: Sequence[str]) -> str:
    """Return the first of these paths, and how many more follow."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
