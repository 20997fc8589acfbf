"""TaskPrologs in containers and on nodes that see scratch in another way than the Epilog does, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.faulty import EXPORTED, GID, UID, epilog, left, skipped
from support.home import uid_of
from support.hungfs import hung
from support.in_container import MAPPINGS, TMPFS, Container
from support.site_dir import ALICE, BOB, SHELLS, Site, entries

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make containers")
MAKERS = ("python", *SHELLS)  # "python": prepare.py makes the cache; else this shell does, without Python
USABLE = ("mounted", "own_directory", "cache_alone")  # views in which a task can use a cache that lies on scratch
VIEWS = (*USABLE, "missing", "in_image", "tmpfs", "read_only", "of_another_user")


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest, site: Site) -> str:
    """Make caches with Python, or with a shell alone. Return the shell that runs the TaskProlog."""
    if request.param == "python":
        return "/bin/sh"
    site.policy(python="/nonexistent")
    return str(request.param)


def container(site: Site, view: str, mapping: str) -> Container:
    """Return a container that sees the site's scratch in a way of VIEWS."""
    place = site.scratch / ALICE
    mounts: list[tuple[Path | str, ...]] = {
        "mounted": [(site.scratch, site.scratch)],
        "own_directory": [(place, place)],
        "cache_alone": [(site.cache(), site.cache())],
        "tmpfs": [(TMPFS, site.scratch)],
        "read_only": [(site.scratch, site.scratch, "ro")],
        "of_another_user": [(site.dir / "others", site.scratch)],
    }.get(view, [])
    return Container(site, mapping=mapping, mounts=mounts, directories=[site.scratch] if view == "in_image" else [])


@pytest.fixture
def prepared(site: Site) -> Iterator[Site]:
    """A site with ALICE's directory on scratch, and another scratch on which BOB has made the directory with her name."""
    for path, uid in ((site.scratch / ALICE, UID), (site.dir / "others", 0), (site.dir / "others" / ALICE, uid_of(BOB))):
        path.mkdir()
        os.chown(path, uid, uid)
    (site.dir / "others").chmod(0o1777)
    yield site


@pytest.mark.parametrize("task", ["first", "further"])
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("view", VIEWS)
def test_task_has_a_usable_cache_or_none(prepared: Site, maker: str, view: str, mapping: str, task: str) -> None:
    """The task can write into its cache, which the Epilog finds outside; or its environment is as without jobcache.

    A further task inherits the variables of the batch step, which ran outside."""
    site = prepared
    inherited: dict[str, str] = {}
    if task == "further":
        inherited = site.task_prolog(shell=maker).exports
        assert inherited.keys() == EXPORTED
    elif view == "cache_alone":
        pytest.skip("a first task has no cache that could be mounted")
    inside = container(site, view, mapping)
    result = inside.task_prolog(step="0" if inherited else "", shell=maker, **inherited)
    seen = {name: value for name, value in {**inherited, **result.exports}.items() if name not in result.unsets}
    if view in USABLE:
        assert seen == {"HF_DATASETS_CACHE": str(site.cache()), "JOBCACHE_DIR": str(site.cache())}
        assert inside.run(["/bin/sh", "-c", ': >"$HF_DATASETS_CACHE/file"'], **seen).returncode == 0
        assert (site.cache() / "file").stat().st_uid == UID
        assert (site.cache() / ".jobcache/id").read_text() == f"test 4242 0 {UID}\n"
    else:
        assert seen == {}
    assert inside.added() == []
    if view == "of_another_user":
        assert list((site.dir / "others" / ALICE).iterdir()) == []
    site.configure()  # the Epilog has its Python
    epilog(site)
    assert left(site) == []


@pytest.mark.parametrize("mapping", ["none", "itself"])
def test_further_task_keeps_its_path_where_scratch_hangs(prepared: Site, maker: str, mapping: str) -> None:
    """All ranks of a job need the same path, and a filesystem that hangs can answer later."""
    site = prepared
    site.configure(task_prolog={"deadline": "1s"})
    inherited = site.task_prolog(shell=maker).exports
    inside = container(site, "mounted", mapping)
    with hung(site.scratch / ALICE):
        result = inside.task_prolog(step="0", shell=maker, **inherited)
    assert (result.exports, result.unsets) == (inherited, [])


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_symlink_of_the_user_is_not_followed(site: Site, maker: str, mapping: str) -> None:
    """In a container it can appear as root's. No Epilog follows it, so it would find no cache there."""
    elsewhere = site.scratch / "elsewhere"
    elsewhere.mkdir()
    os.chown(elsewhere, UID, GID)
    (site.scratch / ALICE).symlink_to(elsewhere)
    os.lchown(site.scratch / ALICE, UID, GID)
    assert container(site, "mounted", mapping).task_prolog(shell=maker).output == b""
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("entry", ["symlink", "directory"])
@pytest.mark.parametrize("mode", [0o755, 0o775, 0o1777], ids=oct)
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_entry_of_root_is_trusted_where_no_user_can_have_created_it(
    site: Site, maker: str, mapping: str, mode: int, entry: str
) -> None:
    """Where uid 0 is not mapped, files of root and of other users have one uid. As uid 0, the user trusts no symlink."""
    elsewhere, place = site.scratch / "elsewhere", site.scratch / ALICE
    own = (elsewhere if entry == "symlink" else place) / ".cache"
    own.mkdir(parents=True)
    os.chown(own, UID, GID)
    if entry == "symlink":
        place.symlink_to(elsewhere)
    os.chown(site.scratch, 0, GID if mode == 0o775 else 0)
    site.scratch.chmod(mode)
    result = container(site, "mounted", mapping).task_prolog(shell=maker)
    # In "both", uid 0 of the container is another one than the host's root, whose files then have no uid there.
    assert (result.cache is not None) == (mapping == "none" or (mapping == "itself" and mode == 0o755))
    site.configure()
    epilog(site)
    assert entries(own) == []


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_own_directory_of_a_node_is_made_in_a_container(prepared: Site, mapping: str) -> None:
    """The first task on a further node makes it with links to the store."""
    site = prepared
    store = site.dir / "store" / ALICE
    site.configure(scope="node", store={"user": f"{site.dir}/store/{{user}}", "publish": "all"})
    inherited = site.task_prolog().exports
    inside = container(site, "mounted", mapping)
    for step in ("0", "1"):
        found = inside.task_prolog(step=step, node="n2", **inherited)
        assert found.cache == str(site.cache() / "node-n2")
    assert sorted(os.listdir(site.cache() / ".jobcache/nodes")) == ["n1", "n2"] and not store.exists()
    for node in ("n1", "n2"):
        epilog(site, SLURMD_NODENAME=node)
    assert left(site) == []


@pytest.mark.parametrize("view", ["missing", "in_image", "tmpfs"])
def test_event_names_a_container_without_scratch(prepared: Site, view: str) -> None:
    """The admin learns which directory to mount."""
    container(prepared, view, "itself").task_prolog()
    assert skipped(prepared) == [("refused", "not_mounted")]
    (event,) = prepared.syslog.events("cache.skipped")
    assert str(prepared.scratch) in event["error"]


def test_users_own_value_stays_where_the_job_has_no_cache(prepared: Site, maker: str) -> None:
    """A script that uses the default path by itself has no JOBCACHE_DIR: its steps keep their value."""
    own = {"HF_DATASETS_CACHE": str(prepared.cache())}
    (prepared.scratch / ALICE).chmod(0o555)
    assert prepared.task_prolog(step="0", shell=maker, **own).output == b""
