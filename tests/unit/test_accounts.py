"""Whether the name service lists all accounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobcache.sweep.accounts import Scope, why_hidden

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
    assert why_hidden(listed, recent, str(tmp_path)) == reason


def test_system_without_the_files_lists_all(tmp_path: Path) -> None:
    """musl has no name service switch."""
    assert why_hidden(LOCAL, [], str(tmp_path)) == ""


def test_each_user_is_in_one_shard() -> None:
    """And --user selects one user."""
    scopes = [Scope(None, (part, 3)) for part in (1, 2, 3)]
    assert [sum(scope.includes(uid) for scope in scopes) for uid in range(9)] == [1] * 9
    assert [uid for uid in range(9) if Scope(7).includes(uid)] == [7]
