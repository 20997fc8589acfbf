"""Read users' own histories: each as its user, in children, since scratch can hang. All of their content is untrusted."""

import os
import pwd
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from jobcache.cache import cache_names, dirfd, history, job_record, path_template, timestamps
from jobcache.config.settings import Settings
from jobcache.diagnostics.path_meaning import ancestors
from jobcache.sweep import directories
from jobcache.sweep.user_directories import UserDirectory, and_more, list_user_directories, place_of
from jobcache.system import as_user, event_log
from jobcache.system.event_log import Event
from jobcache.system.gathering import survey, with_rights_of
from jobcache.system.stuck_processes import Register

MOST_EVENTS = 1000  # about one job, from one history
_MOST_OF_EACH = 100  # the same, if the histories of all users are read
_PATIENCE = 10.0  # seconds for the entries on one path
_TIME = 60.0  # seconds for all histories
_OF_ONE = 10.0  # seconds for those of one user, if the histories of all users are read
_CLOCKS = 86400.0  # seconds by which the clocks of nodes may differ
_BEGINNINGS = ("cache.created", "cache.skipped")  # events of a job that has just begun; others can be about an old job
_LINE_LIMIT = 1 << 14  # bytes
_GENERATIONS = (cache_names.HISTORY_OLDER, cache_names.HISTORY)


@dataclass(frozen=True)
class Wanted:
    """Which lines to read: those about a job, about a task of an array, or (without both) the newest one about any job.

    array: (array job id, task id).
    """

    job_id: Optional[int] = None
    array: Optional[tuple[int, int]] = None

    def pattern(self) -> "re.Pattern[bytes]":
        """Return a pattern that is in each wanted line."""
        if self.array:
            return re.compile(rb'"array_job_id"\s*:\s*%d\b' % self.array[0])
        return event_log.about(self.job_id) if self.job_id else re.compile(rb'"job_id"\s*:\s*[1-9]')

    def select(self, lines: list[bytes], most: int) -> list[bytes]:
        """Return the wanted ones of these lines, without a check of all they have; at most the last `most`."""
        found = list(filter(self.pattern().search, lines))
        if self.job_id or self.array:
            return found[-most:]
        events = ((line, event_log.of_history(line)) for line in reversed(found))
        return next(([line] for line, event in events if event and novelty(event)[:2] == (True, True)), found[-1:])

    def fits(self, event: Event) -> bool:
        """Return whether an event is wanted."""
        if self.array:
            return (event.get("array_job_id"), event.get("array_task_id")) == self.array
        return "job_id" in event and (self.job_id is None or event_log.is_about(event, self.job_id))


def novelty(event: Event) -> tuple[bool, bool, str]:
    """Return what is largest for an event of the newest job. A node whose clock is in the future must not have it for ever."""
    is_past = event["ts"] <= timestamps.millisecond(time.time() + _CLOCKS)
    return is_past, event["event"] in _BEGINNINGS, event["ts"]


@dataclass
class Found:
    """events: in the order of the histories, each with `source: history`, and the uid and the user whose history it is.

    first: the time of the oldest line of any history that was read, or "".
    """

    events: list[Event] = field(default_factory=list)
    first: str = ""


def read(site: Settings, uid: Optional[int], wanted: Wanted, trouble: list[str]) -> Found:
    """Return the wanted events of all histories. uid: of one user; None for all users.

    trouble: takes a message for each history that hangs or cannot be read.
    """
    register = Register(site.run_dir)
    places = list(_places(site, uid, trouble))
    until = time.monotonic() + _TIME
    found = Found()
    most, patience = (MOST_EVENTS, _TIME) if uid is not None else (_MOST_OF_EACH, _OF_ONE)
    spent: dict[int, float] = {}  # seconds by uid; each child counts for itself
    names: dict[int, str] = {}
    counts: dict[int, int] = {}  # events by uid
    left = 0

    def lost(lost_places: Sequence[UserDirectory], why: str) -> None:
        trouble.append(f"{and_more([place.path for place in lost_places])}: {why}")

    def facts(place: UserDirectory) -> Iterator[dict[str, Any]]:
        began = time.monotonic()
        end = min(until, began + patience - spent.get(place.uid, 0.0))
        try:
            where = place_of(register, place)
            yield from with_rights_of(place.uid, place.gid, place.path, where, lambda: _facts(place, wanted, most, end))
        except FileNotFoundError:
            return
        except OSError as error:
            yield {"trouble": f"{place.path}: {error.strerror or error}"}
        spent[place.uid] = spent.get(place.uid, 0.0) + time.monotonic() - began

    for fact in survey(places, facts, lost, lambda place: place_of(register, place)):
        left += fact.get("left", 0)
        if "trouble" in fact:
            trouble.append(fact["trouble"])
        if "first" in fact:
            found.first = min(found.first or fact["first"], fact["first"])
        event = event_log.of_history(fact["line"].encode("ascii")) if "line" in fact else None
        if event is not None and wanted.fits(event):
            if fact["uid"] not in names:
                names[fact["uid"]] = as_user.user_name(fact["uid"])
            counts[fact["uid"]] = counts.get(fact["uid"], 0) + 1
            if counts[fact["uid"]] > most:
                continue
            event.update(uid=fact["uid"], user=names[fact["uid"]])
            found.events.append(event)
    if left:
        trouble.append(f"the histories of {left} directories were not read within {patience:.0f} s; name the user: --user")
    return found


@dataclass
class Beside:
    """What stands beside a path: events about the entry `path` on its way, and the id of a cache there, if one exists."""

    path: str = ""
    events: list[Event] = field(default_factory=list)
    identity: Optional[tuple[str, int, int, int]] = None


def beside(path: str) -> Beside:
    """Return what the history of this user, beside an entry on the way to `path`, has about that entry; or its id.

    For a host without the site's configuration. The path is read in a child, since it can hang.
    """

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        for above, name in ancestors(path):
            for fact in _facts_beside(above, name):
                report(fact)

    found = Beside()
    child = as_user.start(work, uid=os.geteuid(), gid=os.getegid(), user=None, place=None)
    for fact in child.facts(time.monotonic() + _PATIENCE):
        if found.path in ("", fact["path"]):  # the deepest one counts
            found.path = fact["path"]
            found.identity = tuple(fact["identity"]) if fact.get("identity") else found.identity
            event = event_log.of_history(fact["line"].encode("ascii")) if "line" in fact else None
            found.events += [event] if event else []
    return found


def _facts_beside(above: str, name: str) -> Iterator[dict[str, Any]]:
    try:
        above_fd = dirfd.open_directory(above)
    except OSError:
        return
    try:
        for generation in _GENERATIONS:
            for line in _lines(above_fd, generation, os.geteuid()):
                event = event_log.of_history(line)
                if event and name in (os.path.basename(event.get(key, "")) for key in ("path", "trash")):
                    yield {"path": f"{above}/{name}", "line": line.decode("ascii")}
        with dirfd.Opened(above_fd, name) as fd:
            identity = job_record.identity(fd)
            if identity and identity[0]:
                yield {"path": f"{above}/{name}", "identity": identity}
    except OSError:
        return
    finally:
        os.close(above_fd)


def _places(site: Settings, uid: Optional[int], trouble: list[str]) -> Iterator[UserDirectory]:
    """Yield the directories that can hold histories. Those of one user are computed, where the template allows it."""
    to_list = []
    account = _account(uid)
    for template in site.templates:
        if template.job_directory:
            continue  # it ends with its job, and has no history
        if account is None or (True, "node") in template.parent or (True, "account") in template.parent:
            to_list.append(template)
            continue
        try:
            place = template.bind(user=account.pw_name, uid=account.pw_uid, cluster=site.cluster, node="", home=account.pw_dir)
        except path_template.BadName:
            continue
        yield UserDirectory(template.text, place.parent, (), account.pw_name, account.pw_uid, account.pw_gid)
    if to_list:
        yield from (place for place in list_user_directories(site, to_list, trouble) if uid in (None, place.uid))


def _account(uid: Optional[int]) -> Optional[pwd.struct_passwd]:
    try:
        return None if uid is None else pwd.getpwuid(uid)
    except KeyError:
        return None


def _facts(place: UserDirectory, wanted: Wanted, most: int, until: float) -> Iterator[dict[str, Any]]:
    """Yield the wanted lines of the histories in a user's directory, and the time of the first line.

    until: no history is begun later, in seconds of time.monotonic.
    """
    failures: list[OSError] = []
    for parent in directories.parents(place.path, place.rest, failures):
        yield {}
        if time.monotonic() > until:
            yield {"left": 1}
            return
        try:
            yield from _lines_in(parent, place.uid, wanted, most)
        except OSError as error:
            failures.append(error)
    if failures and not isinstance(failures[0], (FileNotFoundError, NotADirectoryError)):
        raise failures[0]


def _lines_in(parent: str, uid: int, wanted: Wanted, most: int) -> Iterator[dict[str, Any]]:
    parent_fd = dirfd.open_directory(parent)
    try:
        lines = [line for name in _GENERATIONS for line in _lines(parent_fd, name, uid)]
    finally:
        os.close(parent_fd)
    first = next((event["ts"] for event in map(event_log.of_history, lines) if event), None)
    if first:
        yield {"first": first}
    for line in wanted.select(lines, most):
        yield {"uid": uid, "line": line.decode("ascii")}


def _lines(parent_fd: int, name: str, uid: int) -> Iterator[bytes]:
    """Yield the lines of one generation, if it is a file of the user. Raise OSError."""
    try:
        with dirfd.Unmarked(parent_fd, name, dirfd.FILE) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != uid:
                return
            data = os.pread(fd, history.LIMIT, max(0, found.st_size - history.LIMIT))
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            there = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            if stat.S_ISREG(there.st_mode) and there.st_uid == uid:
                raise
        return  # a symlink, a socket, a file of another user: no history
    yield from (line for line in data.split(b"\n") if line.isascii() and 0 < len(line) <= _LINE_LIMIT)
