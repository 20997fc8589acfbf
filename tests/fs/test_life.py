"""The life of a cache, hook by hook, on a real filesystem."""

from __future__ import annotations

import json

import pytest

from support.site_dir import SHELLS, Site


@pytest.mark.parametrize("shell", SHELLS)
def test_made_filled_and_reaped(site: Site, shell: str) -> None:
    told = site.task_prolog(shell=shell)
    cache = site.cache()
    assert told.status == 0
    assert told.exports == {"HF_DATASETS_CACHE": str(cache), "JOBCACHE_DIR": str(cache)}
    assert (cache / ".jobcache/id").read_text() == "test 4242 0 5\n"
    assert json.loads((cache / ".jobcache/job.json").read_text())["user"] == "games"
    assert cache.stat().st_mode & 0o777 == 0o700
    site.fill(cache, "json/default/a.arrow", "json/default/b.arrow", size=8192)
    site.epilog()
    assert not cache.exists() and site.debris() == []
    (reaped,) = site.events()
    assert (reaped["event"], reaped["outcome"], reaped["files"], reaped["bytes"]) == ("cache.reaped", "reaped", 2, 16384)
    assert [event["event"] for event in site.syslog.events()] == ["cache.created", "cache.reaped"]
