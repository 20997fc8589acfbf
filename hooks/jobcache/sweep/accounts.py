"""The accounts whose directories can exist on scratch that does not list them: a bounded number, likely ones first."""

import os
import pwd
import random
import time
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any, Callable, Optional

from jobcache.config.settings import Settings, slurm_client
from jobcache.system import as_user, event_log, files
from jobcache.system.gathering import REPORT
from jobcache.system.live_jobs import Unknown

MOST = 256  # accounts in one sweep: each look-up of a name can mount a filesystem, and a failed one is slow
PATIENCE = 30.0  # seconds for the name service
_LOG = 10.0  # seconds for the event log
_MOST_BYTES = 1 << 24  # of a local file
_LOCAL = {"files", "compat", "db", "altfiles", "systemd", "cache"}  # services that list local accounts alone


@dataclass(frozen=True)
class Scope:
    """The users that are wanted. user: uid, None for all users. shard: (I, N), the users with uid % N == I - 1."""

    user: Optional[int] = None
    shard: tuple[int, int] = (1, 1)

    def includes(self, uid: int) -> bool:
        """Return whether the user is wanted."""
        return self.user in (None, uid) and uid % self.shard[1] == self.shard[0] - 1


@dataclass(frozen=True)
class Account:
    """name, home: "" for a uid without an account."""

    name: str
    uid: int
    home: str = ""


def likely(site: Settings, scope: Scope, trouble: list[str]) -> list[Account]:
    """Return at most MOST accounts: of users with live jobs, of users in the event log, then others in random order.

    trouble: takes the reasons why other accounts can exist.
    """
    search = _Search(site, scope, _with_live_jobs(site, scope, trouble))
    child = as_user.start(search, uid=None, gid=None, user=None, place=None, most=REPORT)
    found: dict[int, Account] = {}  # by uid
    hidden = ""
    for fact in child.facts(time.monotonic() + PATIENCE):
        if "hidden" in fact:
            hidden = fact["hidden"]
        else:
            found.setdefault(fact["uid"], Account(**fact))
    if child.status != "done":
        trouble.append(f"cannot list the accounts of this host: {child.error or f'no answer for {PATIENCE:.0f} s'}")
    if hidden:
        trouble.append(
            f"the name service of this host does not list all accounts ({hidden}): caches of users who have no job and no event "
            "in the log of this host are not found there; `jobcache sweep --user NAME` finds those of one user"
        )
    if len(found) > MOST:
        how = "split the sweep with --shard"
        trouble.append(f"{len(found)} accounts can have a directory there, and one sweep looks up {MOST} of them; {how}")
    return list(found.values())[:MOST]


def _with_live_jobs(site: Settings, scope: Scope, trouble: list[str]) -> list[int]:
    """Return the uids of users with live jobs."""
    if scope.user is not None:
        return []
    try:
        return sorted(set().union(*slurm_client(site.tree).listing(site.cluster).jobs.values()))
    except Unknown as unknown:
        trouble.append(f"cannot list the users with jobs: {unknown}")
        return []


class _Search:
    """The work of a child: report the accounts, likely ones first, and why the name service has more than it lists."""

    def __init__(self, site: Settings, scope: Scope, active: list[int]) -> None:
        self.site = site
        self.scope = scope
        self.active = active

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        if self.scope.user is not None:
            report(vars(_account(self.scope.user)))
            return
        recent = [uid for uid in dict.fromkeys([*self.active, *self._in_log()]) if self._is_wanted(uid)][:MOST]
        named = [_account(uid) for uid in recent]
        for account in named:
            report(vars(account))
        homes: dict[int, str] = {}  # by uid; that of the first name counts, as in a look-up by uid
        listed = {
            one.pw_name: Account(one.pw_name, one.pw_uid, homes.setdefault(one.pw_uid, one.pw_dir)) for one in pwd.getpwall()
        }
        for account in random.sample(list(listed.values()), len(listed)):
            if self._is_wanted(account.uid):
                report(vars(account))
        reason = why_hidden(set(listed), [account.name for account in named])
        if reason:
            report({"hidden": reason})

    def _is_wanted(self, uid: int) -> bool:
        return uid >= max(1, self.site.min_uid) and self.scope.includes(uid)

    def _in_log(self) -> Iterator[int]:
        """Yield the uids in the event log."""
        until = time.monotonic() + _LOG
        for event in event_log.read([self.site.log_file], event_log.Tally()) if self.site.log_file else ():
            if time.monotonic() >= until:
                return
            if isinstance(event.get("uid"), int):
                yield event["uid"]


def _account(uid: int) -> Account:
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return Account("", uid, "")
    return Account(found.pw_name, uid, found.pw_dir)


# ------------------------------------------------------------------------------------------- accounts that are not listed


def why_hidden(listed: Set[str], recent: Iterable[str], directory: str = "/etc") -> str:
    """Return why the name service has accounts that it does not list, "" if it seems to list all.

    Many sites switch the listing of a directory service off. Then it returns an account for its name alone.
    listed: the names that it lists. recent: names of accounts that exist. directory: of nsswitch.conf and passwd.
    """
    example = next((name for name in recent if name and name not in listed), "")
    if example:
        return f"such as {example}"
    services = _services(_lines(f"{directory}/nsswitch.conf")) - _LOCAL
    if not os.path.exists(f"{directory}/sssd/sssd.conf"):
        services -= {"sss"}  # Red Hat names it everywhere
    remote = sorted(services)
    local = {line.partition(":")[0] for line in _lines(f"{directory}/passwd")}
    return f"{remote[0]} lists none" if remote and listed <= local else ""


def _services(lines: Iterable[str]) -> set[str]:
    """Given the lines of nsswitch.conf, return the services for accounts."""
    found = (line.partition("#")[0].partition(":") for line in lines)
    words = next((services for database, _, services in found if database.strip() == "passwd"), "")
    return {word for word in words.split() if not word.startswith("[") and not word.endswith("]")}


def _lines(path: str) -> list[str]:
    try:
        return files.read_text(path, _MOST_BYTES).splitlines()
    except OSError:
        return []
