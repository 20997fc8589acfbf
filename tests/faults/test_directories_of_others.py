"""Directories above a cache that another user owns, writes or exchanges, and filesystems that give new files to another user."""

from __future__ import annotations

import grp
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobcache.cache import cache_names, reasons, store_reading
from jobcache.cli.main import main
from jobcache.store import sections
from support.faultfs import Faults, faulty
from support.faulty import FULL, GID, UID
from support.home import acting_as, uid_of
from support.racing import racing
from support.site_dir import ALICE, BOB, SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
ROUNDS = 300 if FULL else 25
BOBS = uid_of(BOB)
PROJECT = grp.getgrnam("users").gr_gid
LATER = "0"  # the id of a step whose task is not the first one of its run
ID = f"test 4242 0 {UID}\n"
MAKERS = ("python", *SHELLS)  # "python": prepare.py makes the cache; else this shell does, without Python


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest, site: Site) -> str:
    """Make caches with Python, or with a shell alone. Return the shell that runs the TaskProlog."""
    if request.param == "python":
        return "/bin/sh"
    site.policy(python="/nonexistent")
    return str(request.param)


def directory(path: Path, uid: int, mode: int, gid: int = -1) -> Path:
    """Create a directory with these facts; return its path."""
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def names(top: Path) -> list[str]:
    """Return the path of everything below `top` but of Alice's history in a directory of her own."""
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not is_own_history(path))


def is_own_history(path: Path) -> bool:
    return cache_names.is_history(path.name) and {path.lstat().st_uid, path.parent.stat().st_uid} == {UID}


def assert_refused(site: Site, shell: str, *reason: str) -> None:
    """Assert that no task gets a cache, that nothing is created, and that Python logs the reason."""
    before = names(site.scratch)
    for step in ("", LATER):
        done = site.task_prolog(step=step, shell=shell)
        assert done.cache is None and done.output == b""
    assert names(site.scratch) == before
    found = {event["reason"] for event in site.syslog.events("cache.skipped")}
    assert found == (set() if "/nonexistent" in (site.hooks / "policy.sh").read_text() else set(reason))


# ------------------------------------------------------------------------------------------- directories made beforehand


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o755])
def test_no_cache_below_a_directory_that_another_user_made(site: Site, maker: str, mode: int) -> None:
    """Bob makes the directory with Alice's name first, and Alice's programs make .cache in it."""
    home = directory(site.scratch / ALICE, BOBS, mode)
    if mode != 0o755:
        assert_refused(site, maker, "foreign")
    directory(home / ".cache", UID, 0o700)
    assert_refused(site, maker, "foreign")


def test_no_cache_below_an_intermediate_directory_of_another_user(site: Site, maker: str) -> None:
    """Alice's directory is open and sticky, so that Bob can make .cache first."""
    directory(site.scratch / ALICE, UID, 0o1777)
    directory(site.scratch / ALICE / ".cache", BOBS, 0o777)
    assert_refused(site, maker, "foreign")


@pytest.mark.parametrize("place", ["home", ".cache"])
@pytest.mark.parametrize(("mode", "gid"), [(0o777, -1), (0o770, PROJECT), (0o2775, PROJECT)])
def test_no_cache_below_a_directory_that_others_can_write(site: Site, maker: str, place: str, mode: int, gid: int) -> None:
    """All users, or a project's group, could rename the directories in it."""
    home = directory(site.scratch / ALICE, UID, 0o755)
    inner = directory(home / ".cache", UID, 0o755)
    weak = home if place == "home" else inner
    os.chown(weak, -1, gid)
    weak.chmod(mode)
    assert_refused(site, maker, "writable")


def test_no_cache_below_a_directory_of_root_that_a_project_can_write(site: Site, maker: str) -> None:
    """The site has made the user's directory for a project."""
    directory(site.scratch / ALICE, 0, 0o2775, PROJECT)
    directory(site.scratch / ALICE / ".cache", UID, 0o755)
    assert_refused(site, maker, "writable")


def test_no_cache_in_a_scratch_that_all_users_can_write_without_sticky_bit(site: Site, maker: str) -> None:
    """Any user could rename Alice's directory."""
    directory(site.scratch / ALICE, UID, 0o700)
    site.scratch.chmod(0o777)
    assert_refused(site, maker, "writable")


def test_no_cache_below_a_directory_of_the_path_that_another_user_made(site: Site, maker: str) -> None:
    """A fixed component of the path stands in a scratch that all users can write, and Bob makes it first."""
    without_python = "/nonexistent" in (site.hooks / "policy.sh").read_text()
    site.configure(path=f"{site.scratch}/caches/{{user}}/hf-datasets-{{job_id}}")
    if without_python:
        site.policy(python="/nonexistent")
    directory(site.scratch / "caches", BOBS, 0o1777)
    assert_refused(site, maker, "foreign")


@pytest.mark.parametrize(
    ("scratch", "home", "inner"),
    [
        ((0, 0o1777, 0), None, None),
        ((0, 0o755, 0), (UID, 0o700, GID), None),
        ((0, 0o755, 0), (UID, 0o755, GID), None),
        ((0, 0o755, 0), (UID, 0o2750, PROJECT), None),
        ((0, 0o755, 0), (UID, 0o775, GID), (UID, 0o2775, GID)),  # the user's own group
        ((0, 0o755, 0), (UID, 0o1777, GID), None),
        ((0, 0o755, 0), (0, 0o1777, 0), None),
        ((0, 0o755, 0), (0, 0o755, 0), (UID, 0o755, GID)),
        ((0, 0o755, 0), (0, 0o770, GID), None),
        ((0, 0o775, PROJECT), (UID, 0o755, GID), None),  # the site's path, which a group of the site can write
        ((BOBS, 0o755, BOBS), (UID, 0o755, GID), None),  # the site's path, which a service account owns
        ((BOBS, 0o1777, BOBS), None, None),
    ],
)
def test_usual_layouts_give_a_cache(
    site: Site, maker: str, scratch: tuple[int, int, int], home: tuple[int, int, int] | None, inner: tuple[int, int, int] | None
) -> None:
    """Each is the owner, the mode and the group of scratch, of the user's directory and of .cache."""
    for path, facts in ((site.scratch, scratch), (site.scratch / ALICE, home), (site.scratch / ALICE / ".cache", inner)):
        if facts:
            path.mkdir(exist_ok=True)
            os.chown(path, facts[0], facts[2])
            path.chmod(facts[1])
    assert site.task_prolog(shell=maker).cache == str(site.cache())
    assert site.task_prolog(step=LATER, shell=maker).cache == str(site.cache())
    assert stat.S_IMODE(site.cache().stat().st_mode) & 0o777 == 0o700
    site.configure()  # with Python
    site.epilog()
    assert not site.cache().exists()


def test_symlink_of_root_leads_to_a_cache(site: Site, maker: str) -> None:
    """The user's directory is on another filesystem, in a directory of a service account."""
    place = directory(site.dir / "other", BOBS, 0o755)
    directory(place / ALICE, UID, 0o755)
    (site.scratch / ALICE).symlink_to(place / ALICE)
    assert site.task_prolog(shell=maker).cache == str(site.cache())


def test_symlink_of_root_to_a_directory_of_another_user_gives_no_cache(site: Site, maker: str) -> None:
    """The end of the symlink is the user's directory."""
    directory(site.dir / "other", BOBS, 0o777)
    (site.scratch / ALICE).symlink_to(site.dir / "other")
    assert_refused(site, maker, "foreign")


# ------------------------------------------------------------------------------------------- records that others present


@pytest.fixture
def forged(site: Site) -> Path:
    """A directory of Bob's in the place of Alice's cache, with everything that a task looks at. Return its .jobcache."""
    meta = site.cache() / ".jobcache"
    (meta / "nodes").mkdir(parents=True)
    (meta / "id").write_text(ID)
    for path in (site.scratch / ALICE, *(site.scratch / ALICE).rglob("*")):
        os.chown(path, BOBS, BOBS)
        path.chmod(0o777 if path.is_dir() else 0o666)
    return meta


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("kind", ["link", "fifo", "forgery"])
def test_no_task_joins_a_record_below_a_directory_of_another_user(site: Site, forged: Path, shell: str, kind: str) -> None:
    """A link leads to a file of Alice's with the same text. A fifo makes the task wait until its deadline, with the exports."""
    if kind != "forgery":
        (forged / "id").unlink()
    if kind == "link":
        own = directory(site.scratch / "alices", UID, 0o755) / "notes"
        own.write_text(ID)
        os.chown(own, UID, GID)
        (forged / "id").symlink_to(own)
    elif kind == "fifo":
        os.mkfifo(forged / "id")
        (forged / "id").chmod(0o666)
    assert site.task_prolog(step=LATER, shell=shell).output == b""
    assert os.listdir(forged / "nodes") == []


@pytest.mark.parametrize("kind", ["fifo", "forgery"])
@pytest.mark.parametrize("is_link", [False, True])
def test_no_task_uses_what_another_user_puts_at_the_path(site: Site, maker: str, kind: str, is_link: bool) -> None:
    """Alice's directories are open and sticky: Bob can put things of his own in them, and exchange nothing of hers."""
    directory(site.scratch / ALICE, UID, 0o1777)
    directory(site.cache().parent, UID, 0o1777)
    planted = directory(site.scratch / "planted" if is_link else site.cache(), BOBS, 0o777)
    directory(planted / ".jobcache", BOBS, 0o777)
    directory(planted / ".jobcache/nodes", BOBS, 0o777)
    if kind == "fifo":
        os.mkfifo(planted / ".jobcache/id")
    else:
        (planted / ".jobcache/id").write_text(ID)
    os.chown(planted / ".jobcache/id", BOBS, BOBS)
    if is_link:
        site.cache().symlink_to(planted)
        os.lchown(site.cache(), BOBS, BOBS)
    assert_refused(site, maker, "foreign")


@pytest.mark.parametrize("shell", SHELLS)
def test_no_task_joins_a_record_that_another_user_exchanges(site: Site, forged: Path, shell: str) -> None:
    """Bob exchanges his record and a link to a real one of Alice's, as fast as he can."""
    own = directory(site.scratch / "alices", UID, 0o755)
    directory(own / "nodes", UID, 0o755)
    (own / "id").write_text("test 4242 9 1\n")
    os.chown(own / "id", UID, GID)
    with acting_as(BOB):
        (forged.parent / "aside").symlink_to(own)
        (forged / "aside").symlink_to(own / "id")
    with racing((forged, forged.parent / "aside"), (forged / "id", forged / "aside"), user=BOB):
        for _ in range(ROUNDS):
            assert site.task_prolog(step=LATER, shell=shell).output == b""


def test_no_cache_while_another_user_exchanges_the_directory(site: Site, maker: str) -> None:
    """Bob owns the directory with Alice's name, and exchanges it and a link to one that Alice owns."""
    directory(site.scratch / "alices", UID, 0o755)
    directory(site.scratch / ALICE, BOBS, 0o777)
    with acting_as(BOB):
        (site.scratch / "aside").symlink_to(site.scratch / "alices")
    with racing((site.scratch / ALICE, site.scratch / "aside"), user=BOB):
        for _ in range(ROUNDS):
            for step in ("", LATER):
                assert site.task_prolog(step=step, shell=maker).output == b""
    assert names(site.scratch / "alices") == []


# ------------------------------------------------------------------------------------------------- commands and stores


def test_command_runs_without_cache_below_a_directory_of_another_user(site: Site) -> None:
    """`jobcache run` prints the reason."""
    home = directory(site.scratch / ALICE, BOBS, 0o777)
    directory(home / ".cache", UID, 0o700)
    command = [sys.executable, "-m", "jobcache.cli", "run", "--config", str(site.dir / "jobcache.yaml")]
    env = {"HOME": str(site.dir), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "sh", "-c", "echo ${HF_DATASETS_CACHE-none}"], env=env, user=UID, group=GID, extra_groups=[], cwd="/",
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "none\n" and f"uid {BOBS} owns {home}" in done.stderr
    assert names(home) == [".cache"]


@pytest.mark.parametrize(
    ("uid", "mode", "reason"), [(BOBS, 0o777, "foreign"), (BOBS, 0o1777, "foreign"), (UID, 0o777, "writable")]
)
def test_no_store_below_a_directory_of_others(site: Site, uid: int, mode: int, reason: str) -> None:
    """It is neither created nor read."""
    home = directory(site.scratch / ALICE, uid, mode)
    store = home / ".cache/store"
    with acting_as(ALICE):
        with pytest.raises(reasons.Refused) as caught:
            sections.open_section(str(store), "", shared=False)
        assert caught.value.reason == reason and names(home) == []
        (store / "v1/default").mkdir(parents=True, mode=0o700)
        with pytest.raises(reasons.Refused) as caught:
            store_reading.open_store(str(store), UID)
        assert caught.value.reason == reason


# --------------------------------------------------------------------------------------------- default access lists


@pytest.mark.parametrize("scope", ["job", "node"])
def test_default_access_list_gives_nobody_a_cache(site: Site, maker: str, scope: str) -> None:
    """The list on scratch names Bob. It sets the permissions of new files in place of the umask."""
    subprocess.run(["setfacl", "-m", f"d:u:{BOB}:rwx,d:g::rwx,d:o::rwx", str(site.scratch)], check=True)
    assert site.task_prolog(shell=maker, JOBCACHE_SCOPE=scope, JOBCACHE="keep").cache
    assert [name for name in names(site.cache()) if name != "node-n1"] == [
        ".jobcache", ".jobcache/id", ".jobcache/job.json", ".jobcache/keep", ".jobcache/nodes", ".jobcache/nodes/n1",
        ".jobcache/sources", ".jobcache/sources/home+nonexistent+.cache+huggingface",
    ]  # fmt: skip
    for path in (site.scratch / ALICE, *(path for path in (site.scratch / ALICE).rglob("*") if not path.is_symlink())):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    with acting_as(BOB), pytest.raises(PermissionError):
        os.listdir(site.cache())


def test_default_access_list_gives_nobody_a_store(site: Site) -> None:
    """Its directories are the user's alone."""
    subprocess.run(["setfacl", "-m", f"d:u:{BOB}:rwx,d:g::rwx,d:o::rwx", str(site.scratch)], check=True)
    with acting_as(ALICE):
        os.close(sections.open_section(f"{site.scratch}/{ALICE}/.cache/store", "mine", shared=False))
    for path in (site.scratch / ALICE, *(site.scratch / ALICE).rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("shell", ["python", "/bin/dash", "/bin/bash"])  # the ls of busybox does not show an access list
def test_access_list_in_a_directory_of_the_users_own_group_counts_as_open(site: Site, shell: str) -> None:
    """It names Bob, and shows in the mode as a permission of the group."""
    home = directory(site.scratch / ALICE, UID, 0o775, GID)
    subprocess.run(["setfacl", "-m", f"u:{BOB}:rwx", str(home)], check=True)
    if shell != "python":
        site.policy(python="/nonexistent")
    assert_refused(site, shell.replace("python", "/bin/sh"), "writable")


# ------------------------------------------------------------------------------- files that are never their maker's own


@pytest.mark.parametrize("owner", [0, BOBS])
@pytest.mark.parametrize("depth", ["scratch", "home", ".cache"])
def test_no_cache_on_a_filesystem_that_gives_files_to_another_user(site: Site, maker: str, owner: int, depth: str) -> None:
    """It shows all files as root's or as another user's, like gcsfuse and bindfs. It begins at scratch, or below it."""
    point = {"scratch": site.scratch, "home": site.scratch / ALICE, ".cache": site.scratch / ALICE / ".cache"}[depth]
    for path in (site.scratch / ALICE, site.scratch / ALICE / ".cache"):
        if depth != "scratch" and len(str(path)) <= len(str(point)):
            directory(path, UID, 0o755)
    backing = directory(site.dir / "backing", 0, 0o1777 if depth == "scratch" else 0o755)
    with faulty(backing, point, Faults(owner=owner)):
        assert_refused(site, maker, "foreign")
        assert names(backing) == []


def test_check_leaves_nothing_on_a_filesystem_that_gives_files_to_another_user(site: Site) -> None:
    """It reports that no cache can be made there."""
    home = directory(site.scratch / ALICE, UID, 0o755)
    backing = directory(site.dir / "backing", 0, 0o755)
    directory(home / ".cache", UID, 0o755)
    with faulty(backing, home / ".cache", Faults(owner=0)):
        argv = ["check", "--config", str(site.dir / "jobcache.yaml"), "--hooks", str(site.hooks), "--json", "--user", ALICE]
        rows = json.loads(CliRunner().invoke(main, argv, catch_exceptions=False).stdout)
        assert names(backing) == []
    (row,) = (row for row in rows if row["name"] == "writable")
    assert row["level"] == "problem" and "gives new directories to uid 0" in row["fact"]


def test_check_reports_a_directory_that_others_can_exchange(site: Site) -> None:
    """It names the directory."""
    home = directory(site.scratch / ALICE, UID, 0o777)
    argv = ["check", "--config", str(site.dir / "jobcache.yaml"), "--hooks", str(site.hooks), "--json", "--user", ALICE]
    rows = json.loads(CliRunner().invoke(main, argv, catch_exceptions=False).stdout)
    (row,) = (row for row in rows if row["name"] == "writable")
    assert row["level"] == "problem" and f"other users can write to {home}" in row["fact"] and names(home) == []


def test_list_prints_no_age_of_a_cache_that_it_cannot_read(site: Site) -> None:
    """An earlier version made a cache on a filesystem that gives it to another user. It is not as old as 1970."""
    site.task_prolog()
    backing = directory(site.dir / "backing", 0, 0o1777)
    (site.scratch / ALICE).rename(backing / ALICE)
    argv = ["list", "--config", str(site.dir / "jobcache.yaml"), "--hooks", str(site.hooks)]
    with faulty(backing, site.scratch, Faults(owner=0)):
        table = CliRunner().invoke(main, argv, catch_exceptions=False).stdout
        rows = json.loads(CliRunner().invoke(main, [*argv, "--json"], catch_exceptions=False).stdout)
    assert [row["age_s"] for row in rows] == [None] and "unknown" in table and not re.search(r" \d+[dhms] ", table)
