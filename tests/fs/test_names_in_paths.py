"""Names in the path of a cache that differ between the TaskProlog, the Epilog and passwd: users and accounts."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest

from jobcache.cache import passwd
from jobcache.system import epilog_places, user_names
from support import task_prolog
from support.home import fingerprint, plant, uid_of
from support.site_dir import ALICE, BOB, SHELLS, Site

UNKNOWN = 54321  # no account has this uid
pytestmark = pytest.mark.root


def reasons(site: Site) -> list[tuple[object, ...]]:
    """Return (event, outcome, reason) of each event of the log."""
    return [(event["event"], event["outcome"], event.get("reason")) for event in site.events()]


def made(site: Site, **env: str) -> Path:
    """Run the TaskProlog of Alice's job; return its cache, with a file in it."""
    cache = site.task_prolog(**env).cache
    assert cache is not None and os.path.isdir(cache)
    site.fill(Path(cache), "json/a.arrow")
    return Path(cache)


# --------------------------------------------------------------------------------------------------------------- users

NAMES = [
    (ALICE, f"{ALICE}@corp.example"),
    (ALICE, f"CORP\\{ALICE}"),
    (ALICE, "nobody"),
    (ALICE, str(uid_of(ALICE))),
    (ALICE, "somebody-else"),
    (ALICE, ""),
    (ALICE, "a/b"),
    (str(uid_of(ALICE)), ALICE),
    (f"{ALICE}@corp.example", f"{ALICE}@corp.example"),
    ("nobody", "nobody"),
]


@pytest.mark.parametrize(("prolog", "epilog"), NAMES)
def test_epilog_finds_cache_by_any_known_name(site: Site, prolog: str, epilog: str) -> None:
    """Slurm's answer, passwd's, their short forms, and the uid."""
    cache = made(site, SLURM_JOB_USER=prolog)
    assert cache.parts[-3] == prolog
    site.epilog(SLURM_JOB_USER=epilog)
    assert not cache.exists()
    assert reasons(site) == [("cache.reaped", "reaped", None)]


def test_cache_by_an_unknown_name_is_left_to_the_sweep(site: Site) -> None:
    """Both Slurm and passwd know another name. The Epilog reports nothing, as for each job without a cache."""
    cache = made(site, SLURM_JOB_USER=f"{ALICE}@corp.example")
    site.epilog()
    assert cache.exists() and reasons(site) == []


@pytest.mark.parametrize("owner", [ALICE, BOB])
def test_guessed_name_never_leads_to_another_directory(site: Site, owner: str) -> None:
    """The directories of `nobody` are another user's, or hold no cache with the identity of the job."""
    other = site.cache(user="nobody")
    plant(other)
    (other / ".jobcache/nodes").mkdir(parents=True)
    (other / ".jobcache/id").write_text(f"test 4242 0 {uid_of(BOB)}\n")
    for path in (other.parents[1], other.parent, *other.rglob("*"), other):
        os.lchown(path, uid_of(owner), -1)
    before = fingerprint(other)
    site.epilog(SLURM_JOB_USER="nobody")
    assert fingerprint(other) == before and reasons(site) == []


def test_job_without_a_cache_is_silent(site: Site) -> None:
    """Whatever its name: a user without a directory on scratch, a job that set JOBCACHE=off."""
    for name in (ALICE, "nobody", str(uid_of(ALICE)), f"{ALICE}@corp.example"):
        site.epilog(SLURM_JOB_USER=name)
    assert site.events() == []


def unknown_epilog(site: Site, name: str) -> None:
    site.epilog(SLURM_JOB_UID=str(UNKNOWN), SLURM_JOB_GID="100", SLURM_JOB_USER=name)


@pytest.mark.parametrize("name", ["nobody", str(UNKNOWN), ""])
def test_user_without_a_known_name_is_reported_once(site: Site, name: str) -> None:
    """No directory on scratch has one of the names that were tried, so a cache can exist under the real one."""
    site.configure(rules=[{"match": {"qos": ["x"]}, "path": f"{site.scratch}/{{user}}/hf-{{job_id}}"}])
    unknown_epilog(site, name)
    (event,) = site.events()
    assert (event["event"], event["level"], event["reason"]) == ("cache.kept", "warning", "unknown_user")
    assert str(UNKNOWN) in event["error"] and event["path"] == f"{site.scratch}/{name or UNKNOWN}"


def test_user_without_a_known_name_but_with_a_directory_is_silent(site: Site) -> None:
    """The directory has the uid as its name, so that is how the TaskProlog named the user."""
    (site.scratch / str(UNKNOWN)).mkdir()
    os.chown(site.scratch / str(UNKNOWN), UNKNOWN, 100)
    unknown_epilog(site, "nobody")
    assert site.events() == []


@pytest.mark.parametrize("path", ["{uid}/hf-{job_id}", "{uid}/{user}/hf-{job_id}"])
def test_path_by_uid_needs_no_name(site: Site, path: str) -> None:
    """`{uid}` is the remedy that the docs name. With both, the directory of the uid exists or no cache does."""
    site.configure(path=f"{site.scratch}/{path}")
    unknown_epilog(site, "nobody")
    assert site.events() == []


def test_name_that_slurm_knows_is_enough(site: Site) -> None:
    """The account is missing on this node only; slurmd has the name from the controller. The user has no cache."""
    unknown_epilog(site, "carol")
    assert site.events() == []


def test_account_is_looked_up_only_without_a_cache_by_slurms_name() -> None:
    """And only once: the look-up can hang."""
    asked: list[int] = []

    def look_up(uid: int) -> str:
        asked.append(uid)
        return "carol@corp"

    names = iter(user_names.UserNames(7, "alice@corp", look_up))
    assert [next(names), next(names)] == ["alice@corp", "alice"] and asked == []
    assert list(names) == ["carol@corp", "carol", "7"] and asked == [7]
    for given in ("nobody", "7", None):
        assert next(iter(user_names.UserNames(7, given, look_up))) == "carol@corp"
    again = user_names.UserNames(7, "nobody", look_up)
    asked.clear()
    assert list(again) == list(again) and not again.are_uncertain() and asked == [7]


@pytest.mark.parametrize("answer", [None, "", "a/b", ".."])
def test_account_without_a_usable_name_is_unknown(answer: str | None) -> None:
    """passwd can hold anything."""
    assert list(user_names.UserNames(7, "nobody", lambda _: answer)) == ["nobody", "7"]
    assert user_names.UserNames(7, "nobody", lambda _: answer).are_uncertain()
    assert not user_names.UserNames(7, "alice", lambda _: answer).are_uncertain()


def test_lookup_that_hangs_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory service does not answer."""
    monkeypatch.setattr(pwd, "getpwuid", lambda _: time.sleep(3600))
    monkeypatch.setattr(passwd, "PATIENCE", 0.1)
    assert user_names.account_name(0) is None


# ------------------------------------------------------------------------------------------------------------ accounts


@pytest.fixture
def by_account(site: Site) -> Site:
    """A site with a directory for each account."""
    site.configure(path=f"{site.scratch}/projects/p-{{account}}/{{user}}/hf-{{job_id}}")
    for account in ("astro", "bio", "closed"):
        (site.scratch / "projects" / f"p-{account}" / ALICE).mkdir(parents=True)
        os.chown(site.scratch / "projects" / f"p-{account}" / ALICE, uid_of(ALICE), -1)
    (site.scratch / "projects/p-closed").chmod(0o700)
    return site


@pytest.mark.parametrize("known", ["astro", ""])
@pytest.mark.parametrize("python", ["", "/nonexistent"])
def test_cache_lies_in_the_directory_of_the_account(by_account: Site, known: str, python: str) -> None:
    """Slurm names the account to an Epilog only if slurmd holds a credential. The TaskProlog works without Python too."""
    site = by_account
    if python:
        site.policy(python=python)
    cache = made(site, SLURM_JOB_ACCOUNT="astro")
    assert str(cache) == f"{site.scratch}/projects/p-astro/{ALICE}/hf-4242"
    site.configure()
    site.epilog(SLURM_JOB_ACCOUNT=known)
    assert not cache.exists() and reasons(site) == [("cache.reaped", "reaped", None)]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("account", ["", "a/b", "..", ".hidden", "a\nb"])
def test_job_without_a_usable_account_gets_no_cache(by_account: Site, shell: str, account: str) -> None:
    """An account that is missing, or that cannot be part of a path, is refused with a reason."""
    site = by_account
    before = sorted(site.scratch.rglob("*"))
    assert site.task_prolog(shell=shell, SLURM_JOB_ACCOUNT=account).exports == {}
    (event,) = site.syslog.events()
    assert (event["event"], event["reason"]) == ("cache.skipped", "bad_name")
    assert sorted(site.scratch.rglob("*")) == before


def test_rule_decides_whether_the_account_is_needed(by_account: Site) -> None:
    """A job whose rule has another path needs no account; a rule without caches keeps its own reason."""
    site = by_account
    site.configure(
        rules=[
            {"match": {"qos": ["plain"]}, "path": f"{site.scratch}/{{user}}/hf-{{job_id}}"},
            {"match": {"qos": ["none"]}, "cache": "off"},
        ]
    )
    assert site.task_prolog(SLURM_JOB_QOS="plain").cache == f"{site.scratch}/{ALICE}/hf-4242"
    assert site.task_prolog(SLURM_JOB_QOS="none").cache is None
    assert [event["reason"] for event in site.syslog.events("cache.skipped")] == ["rule"]


def test_epilog_without_the_account_touches_only_caches_of_the_job(by_account: Site) -> None:
    """Other accounts have directories of that name: another user's, another cluster's, and one without a record."""
    site = by_account
    site.task_prolog(SLURM_JOB_ACCOUNT="bio")
    other = site.scratch / f"projects/p-bio/{ALICE}/hf-4242"
    (other / ".jobcache/id").write_text(f"other 4242 0 {uid_of(ALICE)}\n")
    plain = site.scratch / f"projects/p-astro/{ALICE}/hf-4242"
    plain.mkdir()
    os.chown(plain, uid_of(ALICE), -1)
    site.epilog(SLURM_JOB_ACCOUNT="")
    assert other.exists() and plain.exists() and reasons(site) == []


def test_number_of_accounts_is_bounded(by_account: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it, the Epilog leaves the cache to the sweep, with an event."""
    site = by_account
    for number in range(epilog_places.ACCOUNTS_LIMIT + 5):
        (site.scratch / f"projects/p-x{number}").mkdir()
    site.epilog(SLURM_JOB_ACCOUNT="")
    assert reasons(site) == [("cache.kept", "kept", "budget")]
    site.epilog(SLURM_JOB_ACCOUNT="astro")
    assert len(site.events()) == 1


@pytest.mark.parametrize("name", ["p-a\x01b", "p-", "p-.x", "p-" + "x" * 253, "p-\udcff", "x"])
def test_entry_that_is_no_account_hides_none(by_account: Site, name: str) -> None:
    """Another user can create any directory where all users can write. Accounts before and after it are searched."""
    site = by_account
    caches = []
    for job, account in ((1, "first"), (2, ""), (3, "last")):
        (site.scratch / "projects" / (f"p-{account}" if account else name)).mkdir()
        if account:
            (site.scratch / f"projects/p-{account}").chmod(0o1777)
            caches.append(made(site, SLURM_JOB_ACCOUNT=account, SLURM_JOB_ID=str(job)))
    for job in (1, 3):
        site.epilog(job, SLURM_JOB_ACCOUNT="")
    assert not [cache for cache in caches if cache.exists()]
    assert reasons(site) == [("cache.reaped", "reaped", None)] * 2


@pytest.mark.parametrize("python", ["", "/nonexistent"])
@pytest.mark.parametrize("shared", ["{account}", "{node}", "{cluster}", "x/{node}"])
def test_directory_that_users_share_is_never_made(site: Site, shared: str, python: str) -> None:
    """The first user's one would be closed to all others. A job runs without a cache until the site has made it."""
    top = site.scratch / "projects"
    top.mkdir()
    top.chmod(0o1777)
    site.configure(path=f"{top}/{shared}/{{user}}/hf-{{job_id}}")
    if python:
        site.policy(python=python)
    assert site.task_prolog(SLURM_JOB_ACCOUNT="astro").exports == {} and os.listdir(top) == []
    if not python:
        (event,) = site.syslog.events()
        missing = str(top / shared.partition("/")[0].format(account="astro", node="n1", cluster="test"))
        assert event["reason"] == "no_access" and f"{missing} does not exist" in event["error"]
    directory = top / shared.format(account="astro", node="n1", cluster="test")
    directory.mkdir(parents=True)
    directory.chmod(0o1777)
    for job, user in ((1, ALICE), (2, BOB)):
        assert site.task_prolog(job, user=user, SLURM_JOB_ACCOUNT="astro").cache == f"{directory}/{user}/hf-{job}"


def test_task_recognizes_values_of_another_account(by_account: Site) -> None:
    """A job that another job submitted, with another account, inherits variables that name the other job's cache."""
    site = by_account
    given: dict[str, Any] = dict.fromkeys(("HF_DATASETS_CACHE", "JOBCACHE_DIR"), f"{site.scratch}/projects/p-bio/{ALICE}/hf-7")
    done = site.task_prolog(SLURM_JOB_ACCOUNT="astro", **given)
    assert done.cache == f"{site.scratch}/projects/p-astro/{ALICE}/hf-4242"
    variables = {**task_prolog.environment(ALICE), **given, "SLURM_JOB_ACCOUNT": ""}
    assert sorted(task_prolog.run(site.hooks, ALICE, variables).unsets) == ["HF_DATASETS_CACHE", "JOBCACHE_DIR"]
