"""The entry point of the TaskProlog: imported by today's hook, run as a file by hooks that an older version copied."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

import jobcache
from jobcache import prepare
from support.claims import root_only
from support.site_dir import ALICE, Site

PACKAGE = Path(jobcache.__file__).parent
AS_FILE = [str(PACKAGE / "prepare.py")]
IMPORTED = [
    "-B",
    "-c",
    "import sys; sys.path.append(sys.argv[1]); from jobcache import prepare; sys.exit(prepare.main(sys.argv[2:]))",
    str(PACKAGE.parent),
]


def run(site: Site, program: list[str], **words: str) -> int:
    """Run a program as Alice with the words of a task on n1, those in `words` replaced; return its exit status."""
    account = pwd.getpwnam(ALICE)
    given = {
        "do": "make", "reason": "", "path": str(site.cache()), "cluster": "test", "job_id": "4242", "run": "0",
        "uid": str(account.pw_uid), "user": ALICE, "node": "n1", "first": "no", "again": "no", "keep": "no", "policy": "p1",
        "deadline": "5", "syslog": str(site.syslog.path), "below": "", "store": "", "site": "", "label": "", **words,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-S", *program, *(f"{key}={value}" for key, value in given.items())],
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"", b"")
    return done.returncode


@root_only
@pytest.mark.parametrize("program", [AS_FILE, IMPORTED], ids=["as a file", "imported"])
def test_prepare_makes_joins_and_refuses_a_cache(site: Site, program: list[str]) -> None:
    """Both ways have the same exit status, files and events."""
    assert run(site, program, first="yes", keep="yes") == prepare.EXPORT
    meta = site.cache() / ".jobcache"
    assert sorted(os.listdir(meta)) == ["id", "job.json", "keep", "nodes"]
    assert json.loads((meta / "job.json").read_text())["policy"] == "p1"
    assert run(site, program, node="n2") == prepare.EXPORT
    assert sorted(os.listdir(meta / "nodes")) == ["n1", "n2"]
    assert run(site, program, run="1") == prepare.DECLINE
    events = [(event["event"], event["outcome"], event.get("reason")) for event in site.syslog.events()]
    assert events == [("cache.created", "made", None), ("cache.skipped", "refused", "foreign")]


@root_only
@pytest.mark.parametrize("program", [AS_FILE, IMPORTED], ids=["as a file", "imported"])
def test_prepare_logs_why_a_job_gets_no_cache(site: Site, program: list[str]) -> None:
    """The program makes no cache, and its event has the reason."""
    assert run(site, program, do="skip", reason="offline") == prepare.EXPORT
    assert not site.cache().exists()
    (event,) = site.syslog.events()
    assert (event["event"], event["outcome"], event["reason"]) == ("cache.skipped", "skipped", "offline")


@root_only
@pytest.mark.parametrize("program", [AS_FILE, IMPORTED], ids=["as a file", "imported"])
def test_prepare_reports_a_store_that_cannot_be_used(site: Site, program: list[str]) -> None:
    """The job still has a cache, without links to the store."""
    (site.dir / "store").write_text("not a directory")
    assert run(site, program, store=str(site.dir / "store"), label="/") == prepare.EXPORT
    created, *refused = site.syslog.events()
    assert created["event"] == "cache.created"
    assert sorted(event["reason"] for event in refused) == ["bad_name", "not_directory"]
