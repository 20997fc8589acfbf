"""Metrics of real sweeps in a real Prometheus with a real node_exporter; alerts; queries of the dashboard.

These tests need Debian's prometheus and prometheus-node-exporter.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_sweep import FakeSlurm, slurm, sweep  # noqa: F401 - a fixture

from support.site_dir import ALICE, BOB, Site

ETC = Path(__file__).parents[2] / "etc"
needs_prometheus = pytest.mark.skipif(
    not all(map(shutil.which, ("prometheus", "promtool", "prometheus-node-exporter"))),
    reason="apt-get install prometheus prometheus-node-exporter",
)


@pytest.fixture
def textfiles(site: Site, slurm: FakeSlurm) -> Path:  # noqa: F811
    """Return the directory into which sweeps write metrics."""
    directory = site.dir / "textfiles"
    directory.mkdir()
    site.configure(metrics={"textfile": f"{directory}/jobcache.prom", "sizes": True, "by_user": True})
    return directory


def test_sweep_writes_metrics(site: Site, slurm: FakeSlurm, textfiles: Path) -> None:  # noqa: F811
    """States, sizes, reaped caches and failures. A second sweep continues the counters; a dry run writes nothing."""
    for job, user in ((7, ALICE), (8, ALICE), (9, BOB)):
        site.task_prolog(job, user=user)
        site.fill(site.cache(job, user=user), "a.arrow", size=8192)
    site.epilog(SLURM_JOB_ID="x")
    slurm.answer("8|8|RUNNING|5", "9|9|RUNNING|33")
    sweep(site, "--dry-run")
    assert list(textfiles.iterdir()) == []
    assert sweep(site).exit_code == 0
    shared, host = ((textfiles / name).read_text() for name in ("jobcache.prom", "jobcache-host.prom"))
    labels = 'scratch="shared",shard="1/1"'
    assert f'jobcache_caches{{{labels},state="live"}} 2.0' in shared
    assert f'jobcache_bytes{{{labels},state="live"}} 16384.0' in shared
    assert f'jobcache_orphans_reaped_total{{reason="orphan",{labels}}} 1.0' in shared
    assert f'jobcache_user_caches{{{labels},user="{BOB}"}} 1.0' in shared
    assert f'jobcache_filesystem_size_bytes{{path="{site.scratch}",{labels}}}' in shared
    assert 'jobcache_hook_failures_total{reason="no_job"} 1.0' in host
    slurm.answer(status="1", stderr="slurm_load_jobs error: Unable to contact slurm controller\n")
    assert sweep(site).exit_code == 1
    shared = (textfiles / "jobcache.prom").read_text()
    assert f'jobcache_sweeps_total{{outcome="unknown",{labels}}} 1.0' in shared
    assert f'jobcache_orphans_reaped_total{{reason="orphan",{labels}}} 1.0' in shared
    assert 'jobcache_hook_failures_total{reason="no_job"} 1.0' in (textfiles / "jobcache-host.prom").read_text()


def test_sweep_works_without_a_writable_textfile(site: Site, slurm: FakeSlurm) -> None:  # noqa: F811
    """It prints the error."""
    site.configure(metrics={"textfile": f"{site.dir}/nowhere/jobcache.prom"})
    result = sweep(site)
    assert result.exit_code == 0 and "cannot write metrics" in result.output


@needs_prometheus
def test_alerts_fire_by_their_own_tests() -> None:
    """etc/prometheus/alerts_test.yml has the cases."""
    for argv in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *argv], cwd=ETC / "prometheus", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(argv: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as file, subprocess.Popen(argv, stdout=file, stderr=file, env={"PATH": os.environ["PATH"]}) as process:
        try:
            yield
        finally:
            process.kill()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def query(port: int, expr: str) -> list[dict[str, Any]]:
    found = get(f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
    assert found["status"] == "success", found
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def dashboard() -> list[tuple[str, str]]:
    """Return title and query of each panel, for all hosts."""
    board = json.loads((ETC / "grafana/dashboard.json").read_text())
    return [
        (panel["title"], target["expr"].replace("$instance", ".*"))
        for panel in board["panels"]
        for target in panel["targets"]
    ]  # fmt: skip


@needs_prometheus
def test_prometheus_answers_queries_of_dashboard_and_alerts(site: Site, slurm: FakeSlurm, textfiles: Path) -> None:  # noqa: F811
    """node_exporter reads the textfiles, and Prometheus scrapes it."""
    site.task_prolog(7)
    site.task_prolog(8)
    slurm.answer("8|8|RUNNING|5")
    assert sweep(site).exit_code == 0
    exporter, port = free_port(), free_port()
    config = yaml.safe_load((ETC / "prometheus/scrape.yml").read_text())
    config["rule_files"] = [str(ETC / "prometheus/alerts.yml")]
    (job,) = config["scrape_configs"]
    job.update(scrape_interval="1s", scrape_timeout="1s", static_configs=[{"targets": [f"127.0.0.1:{exporter}"]}])
    (site.dir / "prometheus.yml").write_text(yaml.safe_dump(config))
    export = [
        "prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile",
        f"--collector.textfile.directory={textfiles}", f"--web.listen-address=127.0.0.1:{exporter}",
    ]  # fmt: skip
    scrape = [
        "prometheus", f"--config.file={site.dir}/prometheus.yml", f"--storage.tsdb.path={site.dir}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with running(export, site.dir / "exporter.log"), running(scrape, site.dir / "prometheus.log"):
        until = time.monotonic() + 60
        while not answered(port):
            assert time.monotonic() < until, (site.dir / "exporter.log").read_text() + (site.dir / "prometheus.log").read_text()
            time.sleep(0.2)
        assert query(port, "node_textfile_scrape_error")[0]["value"][1] == "0"
        (live,) = query(port, 'jobcache_caches{state="live"}')
        assert live["value"][1] == "1"
        assert [title for title, expr in dashboard() if not query(port, expr)] == []
        rules = [rule for group in get(f"http://127.0.0.1:{port}/api/v1/rules")["data"]["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        for rule in rules:
            query(port, rule["query"])
    assert {name for _, expr in dashboard() for name in re.findall(r"jobcache_\w+", expr)} <= names(textfiles)


def answered(port: int) -> bool:
    """Return whether Prometheus has scraped twice, so that increases exist."""
    try:
        found = query(port, "count_over_time(jobcache_sweep_troubles[1m])")
    except OSError:
        return False
    return bool(found) and float(found[0]["value"][1]) >= 2


def names(textfiles: Path) -> set[str]:
    """Return the names of the metrics in the textfiles."""
    return {name for path in textfiles.iterdir() for name in re.findall(r"^(jobcache_\w+)", path.read_text(), re.MULTILINE)}


@needs_prometheus
def test_alerts_use_metrics_that_exist(site: Site, slurm: FakeSlurm, textfiles: Path) -> None:  # noqa: F811
    """A renamed metric must be renamed in the alerts, too."""
    sweep(site)
    used = set(re.findall(r"jobcache_\w+", "".join(re.findall(r"expr: (.*)", (ETC / "prometheus/alerts.yml").read_text()))))
    assert used <= names(textfiles)
    for path in textfiles.iterdir():
        with path.open("rb") as file:
            done = subprocess.run(["promtool", "check", "metrics"], stdin=file, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
