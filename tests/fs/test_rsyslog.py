"""The configuration for rsyslog in etc/rsyslog.d, with a real rsyslog: two nodes send their events to one log host."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobcache.cache import devlog, timestamps
from jobcache.cli.main import main
from jobcache.system import event_log, events

ETC = Path(__file__).parents[2] / "etc/rsyslog.d"
RSYSLOGD = shutil.which("rsyslogd", path="/usr/sbin:/sbin:/usr/bin")
needs_rsyslog = pytest.mark.skipif(RSYSLOGD is None, reason="apt-get install rsyslog")
NOW = 1795305600.0  # 2026-11-22


def wait(done: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


class Daemon:
    """An rsyslogd with its own directory, without a pid file and without the socket of this host."""

    def __init__(self, directory: Path, name: str, shipped: str, replaced: dict[str, str]) -> None:
        self.dir = directory / name
        self.dir.mkdir(parents=True)
        text = (ETC / shipped).read_text()
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        (self.dir / "shipped.conf").write_text(text)
        self.socket = self.dir / "log"
        self.conf = self.dir / "rsyslog.conf"
        self.conf.write_text(
            f'global(workDirectory="{self.dir}" localHostname="{name}")\n'
            f'module(load="imuxsock" sysSock.use="off")\ninput(type="imuxsock" socket="{self.socket}")\n'
            f'include(file="{self.dir}/shipped.conf")\n'
            f'action(type="omfile" file="{self.dir}/other")\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        done = subprocess.run([RSYSLOGD, "-N1", "-f", str(self.conf)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "error" not in done.stderr, done.stderr

    def start(self) -> None:
        assert RSYSLOGD
        argv = [RSYSLOGD, "-n", "-i", "NONE", "-f", str(self.conf)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait(self.socket.exists)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            finally:
                self._process.kill()
                self._process.wait()
            self._process = None


class Cluster:
    """Two nodes n1 and n2, and a log host."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.files = directory / "nodes"
        to = {'port="10514"': f'port="{port}" address="127.0.0.1"', "/var/log/jobcache-nodes/": f"{self.files}/"}
        self.host = Daemon(directory, "loghost", "jobcache-loghost.conf", to)
        self.logs = {}
        self.nodes = {}
        for name in ("n1", "n2"):
            self.logs[name] = directory / f"{name}.jsonl"
            to = {'port="10514"': f'port="{port}"', "loghost.example": "127.0.0.1", 'resumeInterval="5"': 'resumeInterval="1"',
                  "/var/log/jobcache/events.jsonl": str(self.logs[name])}  # fmt: skip
            self.nodes[name] = Daemon(directory, name, "jobcache-node.conf", to)

    def emit(self, node: str, job: int, event: str = "cache.reaped", **fields: Any) -> None:
        """Log an event as the Epilog does, to the log file and to syslog; any other one as the TaskProlog does."""
        known = {"cluster": "tiger", "node": node, "job_id": job, "run": 0, "uid": 5, "user": "alice", **fields}
        file = str(self.logs[node]) if event == "cache.reaped" else None
        events.Writer(file, str(self.nodes[node].socket)).emit(event, outcome="reaped", **known)

    def lines(self) -> list[str]:
        return [line for path in sorted(self.files.glob("*")) for line in path.read_text().splitlines()]

    def jobs(self) -> list[int]:
        found = event_log.read(sorted(map(str, self.files.glob("*"))), event_log.Tally())
        return sorted(event["job_id"] for event in found)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    daemons = [made.host, *made.nodes.values()]
    try:
        for daemon in daemons:
            daemon.start()
        yield made
    finally:
        for daemon in reversed(daemons):
            daemon.stop()


def report(*files: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["report", "--json", "--since", "1d", *files], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@needs_rsyslog
def test_rsyslog_accepts_the_configuration(tmp_path: Path) -> None:
    made = Cluster(tmp_path)
    for daemon in (made.host, *made.nodes.values()):
        daemon.check()


@needs_rsyslog
def test_events_of_two_nodes_arrive_and_count_once(cluster: Cluster) -> None:
    """The file and syslog bring each event of an Epilog. Lines of other programs do not arrive. A long line arrives whole."""
    for job in range(1, 11):
        cluster.emit(f"n{job % 2 + 1}", job, bytes=7)
    cluster.emit("n1", 11, "cache.created", error="x" * 20_000)
    devlog.send(str(cluster.nodes["n1"].socket), "info", "no event")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.connect(str(cluster.nodes["n1"].socket))
        other.send(b"<30>Nov 22 07:44:48 sshd[1]: accepted")
    wait(lambda: len(cluster.jobs()) == 21)
    assert cluster.jobs() == sorted([*range(1, 11), *range(1, 11), 11])
    assert not any("sshd" in line for line in cluster.lines())
    (created,) = (event for event in event_log.read(map(str, cluster.files.glob("*")), event_log.Tally(), 11))
    assert created["error"] == "x" * 20_000 and created["source"] == event_log.SYSLOG
    for path in cluster.files.glob("*.log"):  # the day is over: another program has packed the file, and one copy is left
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    found = report(f"{cluster.files}/*.log*")
    assert (found["total"]["caches"], found["total"]["bytes"], found["made"], found["events"]) == (10, 70, 1, 11)


@needs_rsyslog
def test_restarts_lose_no_event(cluster: Cluster) -> None:
    """Of the log host while nodes log, and of a node whose log grows and is rotated meanwhile."""
    cluster.emit("n1", 1)
    wait(lambda: cluster.jobs() == [1, 1])
    cluster.host.stop()
    for job in range(2, 6):
        cluster.emit("n1", job)
        cluster.emit("n2", job + 100)
    cluster.host.start()
    wait(lambda: set(cluster.jobs()) == {1, 2, 3, 4, 5, 102, 103, 104, 105})
    cluster.nodes["n2"].stop()
    for job in range(6, 9):
        cluster.emit("n2", job)  # nothing receives from the socket
    cluster.nodes["n2"].start()
    wait(lambda: {6, 7, 8} <= set(cluster.jobs()))
    cluster.logs["n2"].rename(f"{cluster.logs['n2']}.1")
    cluster.emit("n2", 9)
    wait(lambda: cluster.jobs().count(9) == 2)
    time.sleep(1)
    assert max(cluster.jobs().count(job) for job in (1, 6, 7, 8, 9)) == 2
    assert report(f"{cluster.files}/*.log")["total"]["caches"] == 13


@needs_rsyslog
def test_user_of_a_node_cannot_forge_an_event_of_the_log(cluster: Cluster, tmp_path: Path) -> None:
    """It reads as one of a system log, which counts for less than the log, on the log host as on the node."""
    cluster.emit("n1", 1, bytes=7)
    forged = {"ts": timestamps.millisecond(time.time()), "event": "cache.reaped", "job_id": 2, "uid": 5, "bytes": 10**15}
    devlog.send(str(cluster.nodes["n1"].socket), "info", json.dumps(forged))
    devlog.send(str(cluster.nodes["n1"].socket), "info", "\n" + json.dumps({**forged, "job_id": 3}) + "\n")
    wait(lambda: set(cluster.jobs()) >= {1, 2})
    found = list(event_log.read(map(str, cluster.files.glob("*")), event_log.Tally()))
    assert {event["source"] for event in found} == {event_log.SYSLOG}
    assert report(f"{cluster.files}/*.log", str(cluster.logs["n1"]))["total"]["bytes"] == 7
