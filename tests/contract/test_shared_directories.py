"""Directories that another user made, or may write, above a user's cache: no cache is created below them.

One user creates the directory that bears another's name in a sticky scratch, with mode 0777. If the other's cache were created below
it, the first could rename it away, put one of their own at that very path, serve wrong data, and read what the job writes.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from support.site_dir import ALICE, BOB, SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")

PYTHON = (True, False)


@pytest.fixture(params=PYTHON, ids=["python", "shell"])
def by(request: pytest.FixtureRequest, site: Site) -> None:
    """Both branches of the TaskProlog: prepare.py, and the shell where Python is missing."""
    if not request.param:
        site.policy(python="/nonexistent")


def directory(path: Path, owner: str, mode: int) -> None:
    path.mkdir()
    os.chown(path, pwd.getpwnam(owner).pw_uid, pwd.getpwnam(owner).pw_gid)
    path.chmod(mode)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("owner", "mode"), [(BOB, 0o777), (BOB, 0o1777), (BOB, 0o755), (ALICE, 0o777), (ALICE, 0o775), ("root", 0o777)]
)
def test_no_cache_below_a_directory_that_others_control(site: Site, by: None, shell: str, owner: str, mode: int) -> None:
    """From the component with {user} down, each directory belongs to root or the user, and others cannot write it."""
    directory(site.scratch / ALICE, owner, mode)
    if owner != ALICE:
        (site.scratch / ALICE / ".cache").mkdir()
        os.chown(site.scratch / ALICE / ".cache", pwd.getpwnam(ALICE).pw_uid, -1)
    found = site.task_prolog(shell=shell)
    assert (found.exports, site.cache().exists()) == ({}, False)


@pytest.mark.parametrize(("owner", "mode"), [(ALICE, 0o755), (ALICE, 0o700), ("root", 0o755), (ALICE, 0o1777), ("root", 0o1777)])
def test_a_cache_below_a_directory_of_the_user_or_root(site: Site, by: None, owner: str, mode: int) -> None:
    """The user's own directory, root's, and a sticky one of either serve."""
    directory(site.scratch / ALICE, owner, mode)
    if owner == "root":
        (site.scratch / ALICE / ".cache").mkdir()
        os.chown(site.scratch / ALICE / ".cache", pwd.getpwnam(ALICE).pw_uid, -1)
    assert site.task_prolog().cache == str(site.cache())


@pytest.mark.parametrize("shell", SHELLS)
def test_no_join_below_a_directory_that_another_user_controls(site: Site, by: None, shell: str) -> None:
    """A further task does not use what another user may have exchanged since the first one created it."""
    site.task_prolog()
    os.chown(site.scratch / ALICE, pwd.getpwnam(BOB).pw_uid, -1)
    (site.scratch / ALICE).chmod(0o777)
    assert site.task_prolog(node="n2", step="0", shell=shell).exports == {}


@pytest.mark.parametrize("shell", SHELLS)
def test_default_acls_open_no_cache(site: Site, by: None, shell: str) -> None:
    """A default ACL on the user's directory gives nobody else access to the cache: it has mode 0700, and so has what lies in it."""
    directory(site.scratch / ALICE, ALICE, 0o755)
    directory(site.scratch / ALICE / ".cache", ALICE, 0o755)
    subprocess.run(["setfacl", "-d", "-m", f"u:{BOB}:rwx,o::rwx", site.scratch / ALICE / ".cache"], check=True)
    assert site.task_prolog(shell=shell).cache == str(site.cache())
    for path in (site.cache(), site.cache() / ".jobcache", site.cache() / ".jobcache/nodes"):
        assert path.stat().st_mode & 0o777 == 0o700
        inside = subprocess.run(["test", "-w", path], user=BOB, check=False).returncode
        assert inside != 0, f"{BOB} can write {path}"
