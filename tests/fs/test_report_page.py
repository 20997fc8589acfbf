"""The page of `jobcache report --html` in a real browser: dark and light, wide and narrow, with hostile names."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobcache.cache.timestamps import millisecond
from jobcache.cli.main import main
from support.browser import Page, browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium")
NOW = 1795305600.0  # 2026-11-22
HOSTILE = '</script><img src=x onerror=alert(1)>&amp;"\\'


def events(count: int = 1500, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Yield the events of a week: different users, orphans after a crash, jobs without a cache, failures of hooks."""
    dice = random.Random(seed)
    users = ["alice", "bob", "carol", "dave_with_a_very_long_name_indeed", HOSTILE, "frank", "grace", "heidi", "ivan"]
    for job in range(1, count + 1):
        at = dice.randrange(len(users))
        ended = NOW - dice.random() ** 1.5 * 7 * 86400
        life = dice.expovariate(1 / (600 * (at + 1) ** 2))
        known = {"job_id": job, "run": 0, "uid": 1000 + at, "user": users[at], "node": f"n{job % 40}", "cluster": "tiger"}
        known.update(partition=("gpu", "cpu", "viz")[job % 3], account=("astro", "bio", "ml")[at % 3])
        size = 1_600_000_000 if at == 0 else int(dice.paretovariate(0.9) * 40_000_000)
        orphan = abs(ended - (NOW - 3 * 86400)) < 20000 and dice.random() < 0.6
        yield {
            **known, "ts": millisecond(ended), "event": "cache.orphan_reaped" if orphan else "cache.reaped", "level": "info",
            "outcome": "reaped", "bytes": size, "files": dice.randrange(3, 40),
            "created_at": millisecond(ended - life)[:19] + "Z",
            **({"reason": "orphan"} if orphan else {}),
        }  # fmt: skip
        if job % 50 == 0:
            reason, outcome = (("offline", "skipped"), ("rule", "skipped"), ("inherit_too_many", "refused"))[job // 50 % 3]
            yield {**known, "ts": millisecond(ended), "event": "cache.skipped", "outcome": outcome, "reason": reason}
        if job % 2 == 0:
            links = {"builds": 3, "files": 9, "bytes": 10**9, "duration_ms": 4, "found": 4, "source": "/home/x/.cache"}
            more = {"inherited": links} if job % 4 == 0 else {}
            yield {**known, "ts": millisecond(ended - life), "event": "cache.created", "outcome": "made", **more}
        if job % 400 == 0:
            yield {
                **known,
                "ts": millisecond(ended),
                "event": "hook.failed",
                "outcome": "failed",
                "reason": "deadline",
            }


def write_page(directory: Path, *options: str, lines: Iterator[dict[str, Any]] | None = None) -> Path:
    log, page = directory / "events.jsonl", directory / "report.html"
    log.write_text("".join(json.dumps(event) + "\n" for event in (events() if lines is None else lines)))
    until = "2026-11-22T00:00:00Z"
    argv = ["report", str(log), "--html", str(page), "--since", "2026-11-15", "--until", until, *options]
    result = CliRunner().invoke(main, argv, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return page


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    assert CHROMIUM
    with browser(CHROMIUM) as one:
        yield one


def assert_clean(page: Page) -> None:
    """Check that the console is empty, that the page requested nothing from a network, and that it fits the screen."""
    assert page.console == []
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_shows_the_data_in_each_scheme_and_width(page: Page, tmp_path: Path, width: int, dark: bool) -> None:
    """No text of a plot crosses its edge."""
    page.open(write_page(tmp_path), width=width, height=900, dark=dark)
    assert_clean(page)
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert page.run("document.querySelectorAll('#plots svg').length") == 6
    assert page.run("document.querySelectorAll('#usage tbody tr').length") == 9
    assert "1,500" in page.run("document.getElementById('tiles').textContent")
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark
    overflow = (
        "[...document.querySelectorAll('#plots svg')].filter(svg => [...svg.querySelectorAll('text')].some(text => {"
        "const a = text.getBoundingClientRect(), b = svg.closest('section').getBoundingClientRect();"
        "return a.left < b.left - 1 || a.right > b.right + 1})).length"
    )
    assert page.run(overflow) == 0


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_names_users_without_a_cache_and_what_is_built_again(page: Page, tmp_path: Path, width: int, dark: bool) -> None:
    """With the reasons, and with how many caches began with links. No table is wider than its panel can scroll."""
    page.open(write_page(tmp_path), width=width, height=900, dark=dark)
    assert_clean(page)
    rows = page.run("[...document.querySelectorAll('#without tbody tr')].map(tr => [...tr.cells].map(td => td.textContent))")
    assert sum(int(row[1]) for row in rows) == 30 and {row[0] for row in rows} <= {event["user"] for event in events()}
    assert all(int(row[1]) == sum(map(int, row[2:5])) for row in rows) and any("inherit_too_many" in row[5] for row in rows)
    assert "alice" in page.run("document.querySelector('#rebuilt tbody').textContent")
    hits = page.run("[...document.querySelectorAll('#hits tbody tr')].map(tr => [...tr.cells].map(td => td.textContent))")
    created = int(page.run("data.hits.created"))
    assert hits[0][1] == "0" and hits[1][1:] == hits[2][1:] == [
        str(page.run("data.hits.any")),
        f"{round(100 * int(hits[1][1]) / created)} %",
    ]
    assert 0 < int(hits[1][1]) < created
    page.screenshot(tmp_path / "page.png")


@needs_chromium
def test_hostile_user_name_is_shown_as_text(page: Page, tmp_path: Path) -> None:
    """It runs no script."""
    page.open(write_page(tmp_path), width=1280, height=900, dark=False)
    assert_clean(page)
    assert page.run("document.images.length") == 0
    assert HOSTILE in page.run("document.getElementById('usage').textContent")


@needs_chromium
def test_tabs_and_tooltips_work(page: Page, tmp_path: Path) -> None:
    """A tab changes the table; a bar with the focus shows its numbers."""
    page.open(write_page(tmp_path), width=1280, height=900, dark=False)
    page.run("[...document.querySelectorAll('#tabs button')].find(tab => tab.textContent === 'account').click()")
    assert (
        page.run("[...document.querySelectorAll('#usage tbody td.name')].map(td => td.textContent).sort().join()")
        == "astro,bio,ml"
    )
    page.run("document.querySelector('#plots .hit').focus()")
    assert "caches" in page.run("document.getElementById('tip').textContent")
    assert_clean(page)


@needs_chromium
@pytest.mark.parametrize("count", [0, 1])
def test_page_of_no_event_or_one_is_complete(page: Page, tmp_path: Path, count: int) -> None:
    """No plot divides by zero."""
    page.open(write_page(tmp_path, lines=events(count)), width=390, height=800, dark=True)
    assert_clean(page)
    assert page.run("document.querySelectorAll('#plots svg').length") == 6
    assert "NaN" not in page.run("document.body.innerHTML") and "Infinity" not in page.run("document.body.innerHTML")


def test_page_is_self_contained(tmp_path: Path) -> None:
    """Its only address is the namespace of SVG."""
    text = write_page(tmp_path).read_text()
    assert text.count("://") == text.count("http://www.w3.org/2000/svg") == 1
    assert "</script><img" not in text


def test_unwritable_page_is_reported(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "log"), "--html", f"{tmp_path}/no/where.html"])
    assert result.exit_code == 1 and "no/where.html" in result.output


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As root, `--html /dev/null` must not replace the device by a file."""
    (tmp_path / "log").write_text("")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    try:
        argv = ["report", str(tmp_path / "log"), "--html", str(tmp_path / "pipe")]
        assert CliRunner().invoke(main, argv, catch_exceptions=False).exit_code == 0
        assert (tmp_path / "pipe").is_fifo() and os.read(reader, 15) == b"<!DOCTYPE html>"
    finally:
        os.close(reader)
