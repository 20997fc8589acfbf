"""A path that begins with {home}: the TaskProlog, the Epilog, the sweep and the commands agree on the home of each user."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jobcache
from jobcache.cache import account_home, file_owners, passwd, reasons
from jobcache.cache.path_template import Template
from jobcache.config import former_templates, settings
from jobcache.sweep import accounts as sweep_accounts
from jobcache.sweep import scanning
from support import homes
from support.autofs import on_demand
from support.site_dir import ALICE, BOB, SHELLS, Site, entries

PATH = "{home}/.cache/hf-datasets-{job_id}"
SLURM = {
    "squeue": 'echo "99|99|RUNNING|5"',
    "scontrol": 'printf "ClusterName = test\\nPrivateData = none\\n"',
}
NOBODYS_JOB = 4_000_000_007  # no cluster runs it, so no host has a step of it
pytestmark = pytest.mark.root


class Homes:
    """A site whose caches lie in homes. alice, bob: these homes. passwd: the file, which the test may change."""

    def __init__(self, site: Site, passwd: Path, alice: Path, bob: Path) -> None:
        self.site = site
        self.passwd = passwd
        self.alice = alice
        self.bob = bob

    def made(self, job: int = 4242, user: str = ALICE, **env: str) -> Path:
        """Run the TaskProlog of a job; return its cache, with a file in it."""
        home = self.alice if user == ALICE else self.bob
        cache = self.site.task_prolog(job, user=user, **{"HOME": str(home), **env}).cache
        assert cache == f"{home}/.cache/hf-datasets-{job}"
        self.site.fill(Path(cache), "json/a.arrow")
        return Path(cache)

    def move(self, **homes_of: object) -> None:
        """Give accounts other homes."""
        self.passwd.write_text(homes.passwd_with(homes_of))

    def jobcache(self, *words: str, user: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command, as root or as a user."""
        root = str(Path(jobcache.__file__).parents[1])
        variables = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", **env}
        who: dict[str, Any] = {"user": pwd.getpwnam(user).pw_uid, "extra_groups": []} if user else {}
        command = [sys.executable, "-m", "jobcache.cli", *words]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60, **who)


@pytest.fixture
def home(site: Site) -> Iterator[Homes]:
    """Alice and Bob have homes in the directory of the site; Bob's is behind a symlink of root."""
    top = site.dir / "home"
    top.mkdir()
    for name, user in (("alice", ALICE), ("volume", BOB)):
        (top / name).mkdir()
        os.chown(top / name, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    (top / "bob").symlink_to(top / "volume")
    for name, text in SLURM.items():
        (site.dir / name).write_text(f"#!/bin/sh\n{text}\n")
        (site.dir / name).chmod(0o755)
    site.configure(
        path=PATH, inherit="off", sweep={"grace": "0s", "confirm": "0s"},
        slurm={**{name: str(site.dir / name) for name in SLURM}, "timeout": "5s"},
    )  # fmt: skip
    with homes.accounts(site.dir, {ALICE: top / "alice", BOB: top / "bob"}) as passwd:
        yield Homes(site, passwd, top / "alice", top / "bob")


def outcomes(site: Site) -> list[tuple[object, ...]]:
    return [(event["event"], event["outcome"], event.get("reason")) for event in site.events()]


# ------------------------------------------------------------------------------------------------------------ TaskProlog


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("user", [ALICE, BOB])
def test_cache_lives_in_the_home_until_the_epilog(home: Homes, user: str, shell: str) -> None:
    """Also behind a symlink of root; a step joins without Python, and the Epilog, which has no HOME, finds the cache."""
    cache = home.made(user=user)
    assert cache.stat().st_uid == pwd.getpwnam(user).pw_uid
    home.site.policy(python="/nonexistent")
    where = home.alice if user == ALICE else home.bob
    for given in (str(where), f"{where}/", f"{where}//"):
        step = home.site.task_prolog(user=user, step="0", node="n2", shell=shell, HOME=given)
        assert step.cache == str(cache)
    home.site.configure()
    home.site.epilog(user=user, nodes=2)
    assert cache.exists()
    home.site.epilog(user=user, nodes=2, node="n2")
    assert entries(cache.parent) == []
    assert outcomes(home.site)[-1] == ("cache.reaped", "reaped", None)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("value", ["", "relative", "/", "//x", "/a/../b", "/a/./b", "/.", "/..", "/a//b", "/a\nb"])
def test_home_that_is_no_path_gives_no_cache(home: Homes, value: str, shell: str) -> None:
    """The hook starts no program on scratch, and does not write outside of the home."""
    done = home.site.task_prolog(shell=shell, HOME=value)
    assert done.exports == {}
    (event,) = home.site.syslog.events("cache.skipped")
    assert (event["outcome"], event["reason"]) == ("skipped", "home_differs")


def test_other_home_than_the_account_has_gives_no_cache(home: Homes) -> None:
    """Nothing is created there. The event names both. An inherited path of this job's cache is unset."""
    other = home.site.dir / "other"
    other.mkdir()
    os.chown(other, pwd.getpwnam(ALICE).pw_uid, -1)
    cache = home.made()
    inherited = {"JOBCACHE_DIR": str(cache), "HF_DATASETS_CACHE": str(cache)}
    done = home.site.task_prolog(step="0", HOME=str(other), **inherited)
    assert done.exports == {} and set(done.unsets) == {"JOBCACHE_DIR", "HF_DATASETS_CACHE"}
    assert os.listdir(other) == []
    (event,) = home.site.syslog.events("cache.skipped")
    assert event["reason"] == "home_differs" and str(other) in event["error"] and str(home.alice) in event["error"]


def test_account_that_the_node_does_not_know_gives_no_cache(home: Homes) -> None:
    """As in a container, or with a directory service that does not answer."""
    uid = str(pwd.getpwnam(ALICE).pw_uid)
    before = home.passwd.read_text()
    home.passwd.write_text("".join(line for line in before.splitlines(True) if not line.startswith(f"{ALICE}:")))
    with pytest.raises(reasons.Refused, match="knows no home") as caught:
        account_home.require(str(home.alice), int(uid))
    assert caught.value.reason == "home_differs"
    home.passwd.write_text(before)
    account_home.require(f"{home.alice}/", int(uid))


def test_container_makes_no_cache(home: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its accounts are those of an image."""
    monkeypatch.setattr(file_owners, "is_in_container", lambda _: True)
    with pytest.raises(reasons.Refused, match="container"):
        account_home.require(str(home.alice), pwd.getpwnam(ALICE).pw_uid)


@pytest.mark.parametrize("shell", SHELLS)
def test_late_task_exports_only_a_path_that_a_task_has_checked(home: Homes, shell: str) -> None:
    """Where Python does not end in time, HOME is not compared. A job that has the path already keeps it."""
    python = home.site.dir / "python"
    python.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    python.chmod(0o755)
    home.site.configure(task_prolog={"deadline": "1s"})
    home.site.policy(python=str(python))
    cache = f"{home.alice}/.cache/hf-datasets-4242"
    assert home.site.task_prolog(step="0", shell=shell, HOME=str(home.alice)).exports == {}
    known = home.site.task_prolog(step="0", shell=shell, HOME=str(home.alice), JOBCACHE_DIR=cache)
    assert known.cache == cache
    other = home.site.task_prolog(step="0", shell=shell, HOME="/x", JOBCACHE_DIR=cache, HF_DATASETS_CACHE=cache)
    assert other.exports == {} and set(other.unsets) == {"JOBCACHE_DIR", "HF_DATASETS_CACHE"}


def test_name_service_that_hangs_costs_a_second(home: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that looks up the account is killed."""
    monkeypatch.setattr(passwd, "PATIENCE", 0.2)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: os.read(os.pipe()[0], 1))
    assert account_home.look_up(5) is None


@pytest.mark.parametrize("shell", SHELLS)
def test_without_python_no_cache_is_made_and_one_that_exists_is_joined(home: Homes, shell: str) -> None:
    """Only Python compares HOME with the account. make-cache.sh joins for a node whose directory in the cache is missing."""
    home.site.configure(scope="node", inherit="on")
    home.site.policy(python="/nonexistent")
    assert home.site.task_prolog(shell=shell, HOME=str(home.alice)).exports == {}
    assert os.listdir(home.alice) == []
    home.site.configure()
    assert home.site.task_prolog(HOME=str(home.alice)).cache == f"{home.alice}/.cache/hf-datasets-4242/node-n1"
    home.site.policy(python="/nonexistent")
    joined = home.site.task_prolog(step="0", node="n2", shell=shell, HOME=str(home.alice))
    assert joined.cache == f"{home.alice}/.cache/hf-datasets-4242/node-n2"


def test_missing_home_is_never_made(home: Homes) -> None:
    """Where all users can create directories, as below /tmp."""
    missing = home.site.scratch / "alice"
    home.move(**{ALICE: missing, BOB: home.bob})
    assert home.site.task_prolog(HOME=str(missing)).exports == {} and not missing.exists()
    (event,) = home.site.syslog.events("cache.skipped")
    assert event["reason"] == "no_access" and str(missing) in event["error"]


def test_home_that_others_can_write_gives_no_cache(home: Homes) -> None:
    """The rule of each directory of a user: the home is the first one."""
    home.alice.chmod(0o777)
    assert home.site.task_prolog(HOME=str(home.alice)).exports == {}
    (event,) = home.site.syslog.events("cache.skipped")
    assert event["reason"] == "writable"


@pytest.mark.parametrize("shell", SHELLS)
def test_path_of_another_job_in_this_home_is_unset(home: Homes, shell: str) -> None:
    """And one in another user's home is the user's own value. Former templates count as well."""
    for path in (PATH, f"{home.site.scratch}/{{user}}/{{job_id}}"):
        home.site.configure(path=path, mode="observe")
        own = home.site.task_prolog(shell=shell, HOME=str(home.alice), HF_DATASETS_CACHE=f"{home.alice}/.cache/hf-datasets-7/x")
        assert own.unsets == ["HF_DATASETS_CACHE"]
        for value in (f"{home.bob}/.cache/hf-datasets-7", f"{home.alice}/.cache/hf-datasets", f"{home.alice}/hf-datasets-7"):
            assert home.site.task_prolog(shell=shell, HOME=str(home.alice), HF_DATASETS_CACHE=value).unsets == []


# --------------------------------------------------------------------------------------------------------------- Epilog


def test_epilog_without_the_home_leaves_the_cache_and_reports_it(home: Homes) -> None:
    """The account is unknown on the node, or nothing answers: the sweep reaps the cache."""
    cache = home.made()
    home.passwd.write_text("root:x:0:0::/root:/bin/sh\n")
    uid = cache.stat().st_uid
    variables = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(uid), "SLURM_JOB_GID": str(uid), "SLURM_JOB_USER": ALICE,
                 "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1"}  # fmt: skip
    subprocess.run([str(home.site.hooks / "epilog")], env=variables, check=True, timeout=60)
    assert cache.exists()
    (event,) = home.site.events("cache.kept")
    assert (event["level"], event["reason"], event["job_id"]) == ("warning", "unknown_user", 4242)


def test_epilog_never_reaps_below_a_home_of_another_user(home: Homes) -> None:
    """The account has Bob's home by now: nothing there is Alice's."""
    mine, other = home.made(), home.made(user=BOB)
    home.move(**{ALICE: home.bob, BOB: home.bob})
    home.site.epilog()
    assert mine.exists() and other.exists()


# ---------------------------------------------------------------------------------------------------------------- sweep


def swept(home: Homes, **options: Any) -> tuple[dict[str, int], list[str]]:
    """Return the uids by path that a sweep finds, and its troubles."""
    site = settings.load(f"{home.site.hooks}/settings.json")
    trouble: list[str] = []
    found = scanning.list_all(site, scanning.Options(**options), trouble)
    return {one.path: one.uid for one in found}, trouble


def test_sweep_finds_the_caches_in_all_homes(home: Homes) -> None:
    """Of accounts that the name service lists; a home that is missing, root's, or another user's is no trouble."""
    caches = [home.made(), home.made(user=BOB)]
    found, trouble = swept(home)
    assert found == {str(cache): cache.stat().st_uid for cache in caches} and trouble == []
    found, _ = swept(home, user=caches[0].stat().st_uid)
    assert list(found) == [str(caches[0])]


def test_sweep_finds_a_home_that_autofs_mounts(home: Homes) -> None:
    """A map that lists nothing: the sweep accesses each home by its path."""
    for name in ("auto", "server/alice"):
        (home.site.dir / name).mkdir(parents=True)
    os.chown(home.site.dir / "server/alice", pwd.getpwnam(ALICE).pw_uid, -1)
    with on_demand(home.site.dir / "auto", home.site.dir / "server", home.site.dir / "requests"):
        home.alice = home.site.dir / "auto/alice"
        home.move(**{ALICE: home.alice, BOB: home.bob})
        cache = home.made()
        assert swept(home) == ({str(cache): cache.stat().st_uid}, [])


def test_sweep_believes_only_the_home_of_the_owner(home: Homes) -> None:
    """Another account has the same home, or the account moved: nothing there is taken for a cache of that account."""
    cache = home.made()
    home.move(**{ALICE: home.alice, BOB: home.alice})
    assert swept(home) == ({str(cache): cache.stat().st_uid}, [])
    home.move(**{ALICE: home.bob, BOB: home.alice})
    assert swept(home) == ({}, [])


def test_sweep_reports_accounts_beyond_its_limit(home: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for directories that autofs does not list: users in the log of this host come first."""
    monkeypatch.setattr(sweep_accounts, "MOST", 1)
    cache = home.made()
    home.site.log.write_text(f'{{"ts": "2026-01-01T00:00:00Z", "event": "cache.kept", "uid": {cache.stat().st_uid}}}\n')
    try:
        found, trouble = swept(home)
    finally:
        home.site.log.unlink()
    assert list(found) == [str(cache)] and any("one sweep looks up 1 of them" in text for text in trouble)
    assert swept(home, user=cache.stat().st_uid)[1] == []


def test_user_lists_the_own_home_alone(home: Homes) -> None:
    own, _ = home.made(), home.made(user=BOB)
    done = home.jobcache("list", "--json", "--hooks", str(home.site.hooks), user=ALICE, HOME=str(home.alice))
    assert f'"path": "{own}"' in done.stdout and done.stdout.count('"path"') == 1


def test_sweep_reaps_orphans_in_homes(home: Homes) -> None:
    """As their owners, and nothing but them."""
    caches = [home.made(NOBODYS_JOB), home.made(NOBODYS_JOB, BOB)]
    lives = home.made(99)
    for cache in caches:
        (cache.parent / "notes").write_text("x")
    done = home.jobcache("sweep", "--hooks", str(home.site.hooks))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [entries(cache.parent) for cache in caches] == [[lives.name, "notes"], ["notes"]]
    assert [event["path"] for event in home.site.events("cache.orphan_reaped")] != []


# ------------------------------------------------------------------------------------------------------------- commands


def test_run_uses_the_home_of_the_account(home: Homes) -> None:
    """With another HOME, the command runs without a private cache."""
    show = ("run", "--path", PATH, "--", "sh", "-c", 'echo "${HF_DATASETS_CACHE-none}"')
    done = home.jobcache(*show, user=ALICE, HOME=str(home.alice))
    assert done.stdout.startswith(f"{home.alice}/.cache/hf-datasets-run-")
    assert entries(home.alice / ".cache") == []
    other = home.jobcache(*show, user=ALICE, HOME=str(home.site.dir))
    assert other.stdout == "none\n" and "HOME is" in other.stderr and other.returncode == 0


def test_check_tries_the_home_of_a_user(home: Homes) -> None:
    done = home.jobcache("check", "--json", "--hooks", str(home.site.hooks), "--user", ALICE)
    assert f"{home.alice}/.cache as {ALICE}: does not exist yet; the user can create it in {home.alice}" in done.stdout


def test_former_template_in_homes_is_never_dropped(home: Homes) -> None:
    """No search finds all homes."""
    assert former_templates.still_needed([PATH, f"{home.site.dir}/x/{{user}}/{{job_id}}"], "test") == [PATH]
    assert former_templates.may_have_caches(Template(PATH), "test")
