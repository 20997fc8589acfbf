"""Many jobs at once on one node: each has its cache, each cache goes, and every event is there, whole."""

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
    """All start in one moment and end in one moment, of two users, half of them with a long name in what they say."""
    site.configure(task_prolog={"deadline": "300s"}, epilog={"deadline": "300s", "budget": "60s"})
    jobs = list(range(1, JOBS + 1))
    users = {job: (ALICE, BOB)[job % 2] for job in jobs}
    with ThreadPoolExecutor(JOBS) as pool:
        told = list(pool.map(lambda job: site.task_prolog(job, user=users[job]), jobs))
        assert [one.cache for one in told] == [str(site.cache(job, user=users[job])) for job in jobs]
        for job in jobs:
            site.fill(site.cache(job, user=users[job]), f"json/{'x' * (job % 2 * 200)}a.arrow", "b", size=4096)
        assert list(pool.map(lambda job: site.epilog(job, user=users[job]).returncode, jobs)) == [0] * JOBS
    assert [left(site), site.debris(BOB), os.listdir(site.scratch / BOB / ".cache")] == [[], [], []]
    events = site.events()
    assert sorted(event["job_id"] for event in events) == jobs
    assert {(event["event"], event["outcome"], event["files"], event["bytes"]) for event in events} == {
        ("cache.reaped", "reaped", 2, 8192)
    }
    created = sorted(event["job_id"] for event in site.syslog.events("cache.created"))
    assert len(set(created)) == len(created) and set(created) <= set(jobs)  # nobody waits long for a system log
    assert FULL or created == jobs


def test_a_system_log_that_is_busy(site: Site) -> None:
    """One whose queue is full for a moment has the event all the same."""
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
    """With the deadlines as shipped, whatever a busy node has no time for: exit 0, one path for all tasks, and a sweep's rest."""
    jobs = list(range(1, JOBS // 2))
    with ThreadPoolExecutor(JOBS) as pool:
        told = list(pool.map(site.task_prolog, jobs))
        assert {one.status for one in told} == {0}
        assert [one.cache for one in told] == [str(site.cache(job)) for job in jobs]
        list(pool.map(site.epilog, jobs))
    swept(site)
    assert left(site) == []
