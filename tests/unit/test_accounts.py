"""Whether the name service lists all accounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobcache.sweep.accounts import Account, Scope, why_hidden
from jobcache.sweep.user_directories import OnDemand, _by_name

LOCAL = {"root", "alice"}


@pytest.mark.parametrize(
    "services, listed, recent, reason",
    [
        ("passwd: files", LOCAL, ["alice"], ""),
        ("passwd: files systemd", LOCAL, [""], ""),
        ("passwd: files sss", {*LOCAL, "bob"}, ["bob"], ""),
        ("passwd: files sss", LOCAL, [], "sss lists none"),
        ("group: files\npasswd:\tfiles [!NOTFOUND=return] ldap # x", LOCAL, [], "ldap lists none"),
        ("passwd: files", LOCAL, ["alice", "bob"], "such as bob"),
        ("", LOCAL, [], ""),
    ],
)
def test_accounts_that_the_name_service_does_not_list(
    tmp_path: Path, services: str, listed: set[str], recent: list[str], reason: str
) -> None:
    """An account that exists and is not listed shows it; so does a directory service that adds nothing to /etc/passwd."""
    (tmp_path / "nsswitch.conf").write_text(services)
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\nalice:x:1:1::/:/bin/sh\nlocal:x:2:2::/:/bin/sh\n")
    (tmp_path / "sssd").mkdir()
    (tmp_path / "sssd/sssd.conf").touch()
    assert why_hidden(listed, recent, str(tmp_path)) == reason


def test_system_without_the_files_lists_all(tmp_path: Path) -> None:
    """musl has no name service switch. Red Hat names sss also where sssd has no configuration."""
    assert why_hidden(LOCAL, [], str(tmp_path)) == ""
    (tmp_path / "nsswitch.conf").write_text("passwd: sss files systemd\n")
    (tmp_path / "passwd").write_text("root:x:0:0::/:/bin/sh\nalice:x:1:1::/:/bin/sh\n")
    assert why_hidden(LOCAL, [], str(tmp_path)) == ""


def test_each_user_is_in_one_shard() -> None:
    """And --user selects one user."""
    scopes = [Scope(None, (part, 3)) for part in (1, 2, 3)]
    assert [sum(scope.includes(uid) for scope in scopes) for uid in range(9)] == [1] * 9
    assert [uid for uid in range(9) if Scope(7).includes(uid)] == [7]


@pytest.mark.parametrize(
    "template, paths",
    [
        ("/auto/{user}/hf-{job_id}", ["/auto/alice"]),
        ("/auto/{uid}/hf-{job_id}", ["/auto/7", "/auto/8"]),
        ("/auto/{cluster}-{user}.x/hf-{job_id}", ["/auto/tiger-alice.x"]),
        ("/auto/{node}/{user}/hf-{job_id}", []),
        ("/auto/{user}-{node}/hf-{job_id}", []),
    ],
)
def test_names_that_users_have_in_a_directory(template: str, paths: list[str]) -> None:
    """A user without an account has a uid. Names of nodes are unknown, which is a trouble unless autofs lists names."""
    users = [Account("alice", 7), Account("", 8), Account("../x", 9)]
    users = users[:2] if "{uid}" in template else users
    for browse in (False, True):
        trouble: list[str] = []
        found = list(_by_name([OnDemand(template, "/auto", 1, browse)], users, "tiger", trouble))
        assert [one.path for one in found] == paths
        assert len(trouble) == (not paths and not browse)
