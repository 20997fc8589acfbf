"""Many jobs at once on one node: each gets a cache, each cache is reaped, and every event is logged whole."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobcache.cache import devlog
from support.faulty import FULL, left, swept
from support.site_dir import ALICE, BOB, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
JOBS = 500 if FULL else 60


def test_many_jobs_at_once(site: Site) -> None:
    """Jobs of two users start together and end together. Half of them have a long file name in their events."""
    site.configure(task_prolog={"deadline": "300s"}, epilog={"deadline": "300s", "budget": "60s"})
    jobs = list(range(1, JOBS + 1))
    users = {job: (ALICE, BOB)[job % 2] for job in jobs}
    with ThreadPoolExecutor(JOBS) as pool:
        outputs = list(pool.map(lambda job: site.task_prolog(job, user=users[job]), jobs))
        assert [output.cache for output in outputs] == [str(site.cache(job, user=users[job])) for job in jobs]
        for job in jobs:
            site.fill(site.cache(job, user=users[job]), f"json/{'x' * (job % 2 * 200)}a.arrow", "b", size=4096)
        assert list(pool.map(lambda job: site.epilog(job, user=users[job]).returncode, jobs)) == [0] * JOBS
    assert [left(site), site.debris(BOB), site.names(BOB)] == [[], [], []]
    events = site.events()
    assert sorted(event["job_id"] for event in events) == jobs
    assert {(event["event"], event["outcome"], event["files"], event["bytes"]) for event in events} == {
        ("cache.reaped", "reaped", 2, 8192)
    }
    created = sorted(event["job_id"] for event in site.syslog.events("cache.created"))
    assert len(set(created)) == len(created) and set(created) <= set(jobs)  # a TaskProlog waits only briefly for the system log
    assert FULL or created == jobs


def test_a_system_log_that_is_busy(site: Site) -> None:
    """A log whose queue is full for a moment gets the event nevertheless."""
    path = site.dir / "busy"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as busy, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        busy.bind(str(path))
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendto(b"x", str(path))
        drain = threading.Timer(0.05, lambda: [busy.recv(100) for _ in range(5)])
        drain.start()
        assert devlog.send(str(path), "info", "{}")
        drain.join()


def test_many_jobs_at_once_within_the_deadlines(site: Site) -> None:
    """With the default deadlines on a busy node, each hook exits 0, all tasks get the path, and a sweep removes the rest."""
    jobs = list(range(1, JOBS // 2))
    with ThreadPoolExecutor(JOBS) as pool:
        outputs = list(pool.map(site.task_prolog, jobs))
        assert {output.status for output in outputs} == {0}
        assert [output.cache for output in outputs] == [str(site.cache(job)) for job in jobs]
        list(pool.map(site.epilog, jobs))
    swept(site)
    assert left(site) == []
