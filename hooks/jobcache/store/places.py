"""The stores of a site: the site's own store, and one for each user."""

import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from jobcache.cache import path_template, store_names
from jobcache.config.settings import Settings
from jobcache.sweep import user_directories
from jobcache.sweep.accounts import Scope


@dataclass(frozen=True)
class Place:
    """A store. owner, gid: of the directory. is_site: it is the site's store, not a user's."""

    path: str
    owner: int
    gid: int
    is_site: bool = False


def user_places(site: Settings, only: Optional[int], problems: list[str]) -> Iterator[Place]:
    """Yield the stores that users have; without root, the own one.

    only: yield the store of this uid alone. problems: append what could not be listed.
    """
    if not site.store_user:
        return
    if os.geteuid() != 0:
        if only is None or only == os.geteuid():
            yield user_place(site, pwd.getpwuid(os.geteuid()))
        return
    template = path_template.Template(f"{site.store_user}/{{job_id}}")
    for home in user_directories.list_user_directories(site, [template], problems, Scope(only)):
        yield Place("/".join([home.path, *home.rest]), home.uid, home.gid)


def user_place(site: Settings, user: pwd.struct_passwd) -> Place:
    """Return the store of a user, whether it exists or not. Raise path_template.BadName."""
    path = store_names.store_path(str(site.store_user), user=user.pw_name, uid=user.pw_uid, cluster=site.cluster)
    return Place(path, user.pw_uid, user.pw_gid)


def site_place(site: Settings) -> Place:
    """Return the site's store. Raise OSError if it does not exist."""
    user = pwd.getpwuid(os.geteuid())
    path = store_names.store_path(str(site.store_site), user=user.pw_name, uid=user.pw_uid, cluster=site.cluster)
    found = os.stat(path)
    return Place(path, found.st_uid, found.st_gid, is_site=True)
