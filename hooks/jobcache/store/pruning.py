"""The stores of a site as a whole: which there are, what is in them, and one pruning of them.

Every store is looked at and pruned by its owner: root becomes that one in a child, anybody else has only their own.
Retired first, then Slurm is asked, then deleted: a job that began after that has no link to what was retired.
"""

import os
import pwd
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from jobcache.cache import cache_names, dirfd, linking, path_template, reasons, store_names
from jobcache.config.settings import Settings, slurm_client
from jobcache.store import store
from jobcache.sweep import user_directories
from jobcache.system import as_user, children, gathering, reaper
from jobcache.system.live_jobs import Unknown

_AT_ONCE = 4  # stores
_PATIENCE = 120.0  # seconds without a word, and a store is taken to hang
_LONGEST = 600.0  # seconds for one owner's stores in one pruning, so that nobody keeps it from the others
_MOST_LATE = 4  # stores in a row that do not answer, before the others are left for another time
_REPORT = 1 << 26  # bytes


@dataclass(frozen=True)
class Place:
    """A store. owner: whose it is. sites: it is the site's, and not a user's."""

    path: str
    owner: int
    gid: int
    sites: bool = False


@dataclass
class Result:
    """What came of a pruning.

    verdicts: with the place, and bytes and files that went. unknown: why the live jobs are not known, so that nothing
    was done. trouble: what could not be looked at or pruned, in words.
    """

    verdicts: list[tuple[Place, store.Verdict, int, int]] = field(default_factory=list)
    unknown: Optional[Unknown] = None
    trouble: list[str] = field(default_factory=list)


def places(site: Settings, only: Optional[int], trouble: list[str]) -> Iterator[Place]:
    """Yield the users' stores that there are; only: that user's."""
    if not site.store_user:
        return
    template = path_template.Template(f"{site.store_user}/{{job_id}}")
    homes = user_directories.list_user_directories(site, [template], trouble) if os.geteuid() == 0 else [own_home(site)]
    for home in homes:
        if only is None or home.uid == only:
            path = "/".join([home.path, *home.rest]) if os.geteuid() == 0 else home.path
            yield Place(path, home.uid, home.gid)


def own_home(site: Settings) -> user_directories.UserDirectory:
    """Return where the store is of whoever we are."""
    who = pwd.getpwuid(os.geteuid())
    path = store_names.store_path(str(site.store_user), user=who.pw_name, uid=who.pw_uid, cluster=site.cluster)
    return user_directories.UserDirectory(str(site.store_user), path, (), who.pw_name, who.pw_uid, who.pw_gid)


def sites_place(site: Settings) -> Place:
    """Return where the site's store is. Raise OSError where there is none."""
    who = pwd.getpwuid(os.geteuid())
    path = store_names.store_path(str(site.store_site), user=who.pw_name, uid=who.pw_uid, cluster=site.cluster)
    found = os.stat(path)
    return Place(path, found.st_uid, found.st_gid, sites=True)


class Turns:
    """Who has had how much of a pruning's time: an owner whose is up, and a store that hangs, is left for another time."""

    def __init__(self, hung: gathering.Hung) -> None:
        self._hung = hung
        self._spent: dict[int, float] = {}  # seconds by owner
        self._lost: set[str] = set()
        self._late = 0

    def left(self, place: Place) -> float:
        """Return the seconds that are left for this store."""
        if place.path in self._lost:
            return 0.0
        if self._late >= _MOST_LATE or self._hung.holds(place.path):
            self._lost.add(place.path)
        return 0.0 if place.path in self._lost else max(0.0, _LONGEST - self._spent.get(place.owner, 0.0))

    def took(self, place: Place, seconds: float, child: children.Child) -> None:
        """Note how long a child was at this store, and whether it got done."""
        self._spent[place.owner] = self._spent.get(place.owner, 0.0) + seconds
        self._late = self._late + 1 if child.status == "late" else 0
        if child.status != "done":
            self._lost.add(place.path)
        if child.stuck:
            self._hung.note(place.path, child.pid)


def seen(
    place: Place, deep: bool, trouble: list[str], told: bool = True, turns: Optional[Turns] = None, tidy: bool = False
) -> list[store.Stored]:
    """Return what is in a store, as its owner sees it, or whoever we are where that is not root. told: as store.look.

    tidy: and remove empty sections then.
    """

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        try:
            owner = None if place.sites else place.owner
            for one in store.look(place.path, owner, deep, lambda: report({"going": 1}), told):
                report(vars(one))
            if tidy:
                store.tidy(place.path, owner, time.time())
        except FileNotFoundError:
            pass  # there is nothing yet
        except (OSError, reasons.Refused) as error:
            report({"trouble": f"{place.path}: {error}"})

    return [store.Stored(**fact) for fact in _facts(place, work, trouble, turns)]


def _facts(place: Place, work: "as_user.Work", trouble: list[str], turns: Optional[Turns]) -> Iterator[dict[str, Any]]:
    uid = place.owner if os.geteuid() == 0 else os.geteuid()
    began = time.monotonic()
    left = turns.left(place) if turns else float("inf")
    if not left:
        trouble.append(f"{place.path}: left for another time, since it or others do not answer")
        return
    child = as_user.start(work, uid=uid, gid=place.gid, user=None, places=[], most=_REPORT)
    for _, _, fact in children.each([("", lambda: child)], 1, min(left, _PATIENCE)):
        if fact is not None and "trouble" in fact:
            trouble.append(fact["trouble"])
        elif fact is not None and "going" not in fact:
            yield fact
        if fact is not None and time.monotonic() - began >= left:
            child.kill()
    if turns:
        turns.took(place, time.monotonic() - began, child)
    if child.status != "done":
        trouble.append(f"{place.path}: {child.error or 'it does not answer'}")


def run(site: Settings, stores: Iterable[Place], dry: bool) -> Result:
    """Prune `stores` once."""
    result = Result()
    stores = list(stores)
    turns = Turns(user_directories.hung_places(site))
    slurm = slurm_client(site.tree)
    own = all(place.owner == os.geteuid() and not place.sites for place in stores)
    try:
        starts = slurm.starts(site.cluster, only_own=own) if stores else {}
        for place in stores:
            found = seen(place, False, result.trouble, told=False, turns=turns)
            verdicts = store.to_retire(
                found, time.time(), site.store_max_size, site.store_max_age, _oldest(starts, place), _waiting(found)
            )
            _carry_out(place, verdicts, dry, result, turns)
        starts = slurm.starts(site.cluster, only_own=own) if stores else {}
    except Unknown as unknown:
        result.unknown = unknown
        return result
    for place in stores:
        found = seen(place, False, result.trouble, told=False, turns=turns, tidy=not dry)
        _carry_out(place, store.to_delete(found, time.time(), _oldest(starts, place)), dry, result, turns)
    return result


def _oldest(starts: dict[int, float], place: Place) -> Optional[float]:
    """When the oldest job began that may have links into a store."""
    return min(starts.values(), default=None) if place.sites else starts.get(place.owner)


def _waiting(found: Iterable[store.Stored]) -> int:
    """Bytes of the rest of a store that count towards its size: what is half made or waits to be deleted does not."""
    return sum(one.bytes for one in found if one.kind == "staging")


def _carry_out(place: Place, verdicts: list[store.Verdict], dry: bool, result: Result, turns: Turns) -> None:
    by_name = {(one.stored.label, one.stored.name): one for one in verdicts}
    todo = [one for one in verdicts if one.action != "keep"]
    if dry or not todo:
        result.verdicts += [(place, one, 0, 0) for one in verdicts]
        return
    result.verdicts += [(place, one, 0, 0) for one in verdicts if one.action == "keep"]

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        until = time.monotonic() + _LONGEST
        for one in todo:
            try:
                for verdict, freed, files in store.act(place.path, place.owner, [one], until):
                    report({"label": verdict.stored.label, "name": verdict.stored.name, "bytes": freed, "files": files})
            except (OSError, reasons.Refused, reaper.Kept) as error:
                report({"trouble": f"{place.path}/{one.stored.path}: {error}"})

    for fact in _facts(place, work, result.trouble, turns):
        result.verdicts.append((place, by_name[fact["label"], fact["name"]], fact["bytes"], fact["files"]))


class Building:
    """A cache in which a command builds for a store: `with Building(to) as cache: …`; what is not published goes again.

    to: the store. sources: what it begins with. Raise cachedir.Refused, OSError.
    """

    def __init__(self, to: store.Publisher, sources: "list[linking.Source]") -> None:
        self.to = to
        self.sources = sources

    def __enter__(self) -> "Building":
        self.section_fd = store.open_section(self.to)
        self.name = store_names.STAGING + dirfd.nonce()
        os.mkdir(self.name, 0o700, dir_fd=self.section_fd)
        self.fd = self._open()
        self.path = f"{self.to.path}/{store_names.VERSION}/{store_names.section(self.to.label)}/{self.name}"
        os.mkdir(cache_names.META, 0o700, dir_fd=self.fd)
        if self.sources:
            linking.seed(self.fd, "", f"{cache_names.META}/{cache_names.SEEDS}", self.sources, budget=10 * linking.BUDGET)
        return self

    def _open(self) -> int:
        return os.open(self.name, dirfd.DIRECTORY, dir_fd=self.section_fd)

    def publish(self) -> store.Published:
        """Publish what is whole, safe from a crash, and date what was used of the store. Raise as store.publish does."""
        try:
            fd = self._open()
        except FileNotFoundError:
            return store.Published()  # the command has removed it
        os.close(self.fd)
        self.fd = fd  # as it is now: the command may have removed and remade it
        forever = time.monotonic() + 1e9
        used = store.mark_used(self.fd, self.to.path, forever)
        done = store.publish(self.fd, self.to, forever, sync=True)
        done.used = used
        return done

    def __exit__(self, *exc: object) -> None:
        try:
            store.drop(self.section_fd, self.name, time.monotonic() + _LONGEST)
        except FileNotFoundError:
            pass
        os.close(self.fd)
        os.close(self.section_fd)
