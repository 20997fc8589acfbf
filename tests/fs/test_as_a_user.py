"""Commands that read: as an ordinary user, and with a configuration file that is not compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from jobcache.cli import common
from jobcache.config import settings
from support.site_dir import ALICE, Site

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


def as_alice(site: Site, *argv: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "jobcache.cli", *argv[:1], "--hooks", str(site.hooks), *argv[1:]]
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(whole, env=env, cwd="/", user=ALICE, capture_output=True, text=True, check=False)


@needs_root
@pytest.mark.parametrize("closed", ["file", "directory"])
def test_report_and_explain_name_unreadable_log(site: Site, closed: str) -> None:
    """A log that the user may not read is no empty log."""
    above = site.dir / "private"
    above.mkdir()
    log = above / "events.jsonl"
    log.touch()
    site.configure(log={"file": str(log), "syslog": False})
    {"file": log, "directory": above}[closed].chmod(0o700 if closed == "directory" else 0o600)
    report, explain = as_alice(site, "report"), as_alice(site, "explain", "4242")
    assert report.returncode == 1 and f"cannot read the event log, {log}" in report.stderr
    assert f"cannot read the event log, {log}" in explain.stdout and "jobcache explain 4242" in explain.stdout
    above.chmod(0o755)
    log.chmod(0o644)
    report, explain = as_alice(site, "report"), as_alice(site, "explain", "4242")
    assert (report.returncode, report.stderr) == (0, "") and "cannot read" not in explain.stdout


def test_config_option_selects_uncompiled_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled settings are used for the file that they were compiled from, and for no other."""
    monkeypatch.setattr(settings, "LIB", str(site.hooks))
    compiled = settings.load(f"{site.hooks}/settings.json")
    assert common.load(compiled.config, None)[0].hash == compiled.hash
    assert common.load(settings.CONFIG, None)[0].hash == compiled.hash
    other = site.dir / "other.yaml"
    other.write_text("cluster: another\n")
    assert common.load(str(other), None)[0].cluster == "another"
    with pytest.raises(click.ClickException, match="does not exist"):
        common.load(str(Path(site.dir) / "none.yaml"), None)
