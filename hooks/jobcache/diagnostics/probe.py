"""Gather the facts for `jobcache check`. The probe_* modules gather those of one area each."""

import os
import pwd
from collections.abc import Iterator
from typing import Optional

from jobcache.config.settings import Settings
from jobcache.diagnostics import probe_config, probe_log, probe_schedule, probe_scratch, probe_wiring
from jobcache.diagnostics.check_facts import Facts, Scratch
from jobcache.sweep import user_directories
from jobcache.sweep.user_directories import UserDirectory

_MOST_NAMES = 100  # directories whose owners are looked up


def gather(config_file: str, lib: str, user: Optional[str], node: str) -> Facts:
    """Return all facts.

    lib: directory of the compiled files. user: name of the user who tries scratch; None: any user with a directory there.
    Raise KeyError if that user does not exist.
    """
    compiled, site = probe_config.compiled(config_file, lib)
    if site is None:
        return Facts(compiled)
    hooks = lib if os.path.exists(f"{lib}/task-prolog") else probe_config.shipped_hooks()
    root = os.geteuid() == 0
    errors: list[str] = []
    places = user_directories.list_user_directories(site, site.templates, errors) if root and user is None else []
    tester = _ordinary_user(site, user, places)
    wiring = probe_wiring.wiring(site, hooks)
    if tester is None:
        scratch = tuple(Scratch(template, "", error="; ".join(errors[:3])) for template in site.current)
    else:
        wiring = probe_wiring.with_reach_of(wiring, tester, site)
        scratch = tuple(probe_scratch.scratch(site, template, tester, node) for template in site.current)
    return Facts(
        compiled,
        tuple(probe_config.interpreters(site, tester)) if tester else (),
        wiring,
        scratch,
        probe_log.log(site) if root else None,
        probe_schedule.schedule() if root else None,
        hooks=hooks,
        epilog_deadline=site.epilog_deadline,
        grace=site.tree["sweep"]["grace"],
        keep_failed=site.keep_failed,
        misnamed=tuple(_misnamed(places)),
        root=root,
    )


def _misnamed(places: list[UserDirectory]) -> Iterator[tuple[str, str]]:
    """Yield (path, name of the owner in passwd) of directories that have another name. They are in random order."""
    for place in places[:_MOST_NAMES]:
        try:
            name = pwd.getpwuid(place.uid).pw_name
        except KeyError:
            continue
        if place.user not in ("", name):
            yield place.path, name


def _ordinary_user(site: Settings, name: Optional[str], places: list[UserDirectory]) -> Optional[pwd.struct_passwd]:
    """Return the user who tries scratch: the named one, without root this one, else the first with a directory there.

    places: the users' directories. Raise KeyError if the named user does not exist.
    """
    if name is not None:
        return pwd.getpwnam(name)
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for uid in sorted({place.uid for place in places if place.uid >= site.min_uid}):
        try:
            return pwd.getpwuid(uid)
        except KeyError:
            continue
    return None
