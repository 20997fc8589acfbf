"""With Slurm's accounting: AdminComments of jobs, and explaining a job that slurmctld has forgotten.

The cluster has its own slurmdbd and database. These tests need Debian's slurmdbd and mariadb-server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import asked
from jobcache.cli.main import main
from jobcache.diagnostics import admin_comments
from support import minicluster
from support.minicluster import Cluster
from support.site_dir import ALICE, Site

PROGRAMS = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacctmgr")
needs_slurmdbd = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(name, path=minicluster.SYSTEM_PATH) for name in PROGRAMS),
    reason="as root: apt-get install slurmdbd mariadb-server",
)


class Accounted(Cluster):
    """A cluster with slurmdbd."""

    def __init__(self, conf: dict[str, str]) -> None:
        (self._dbd_port,) = minicluster._free_ports(1)
        super().__init__(conf=conf)
        socket = str(minicluster._munge_socket(self.dir))
        self._conf += [
            "AccountingStorageType=accounting_storage/slurmdbd", "AccountingStorageHost=localhost",
            f"AccountingStoragePort={self._dbd_port}", f"AccountingStoragePass={socket}", "JobAcctGatherType=jobacct_gather/none",
        ]  # fmt: skip
        self._others = ExitStack()

    def _start_munged(self) -> None:
        super()._start_munged()
        database = self.dir / "db"
        database.mkdir()
        shutil.chown(database, "mysql", "mysql")
        common = ["--no-defaults", "--user=mysql", f"--datadir={database}/data"]
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(install, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        self._spawn("mariadbd", *common, f"--socket={database}/s", "--skip-networking", f"--pid-file={database}/pid")
        wait(lambda: (database / "s").exists())
        conf = self.dir / "etc" / "slurmdbd.conf"
        lines = {
            "AuthType": "auth/munge", "AuthInfo": f"socket={minicluster._munge_socket(self.dir)}", "DbdHost": "localhost",
            "DbdPort": self._dbd_port, "SlurmUser": "root", "StorageType": "accounting_storage/mysql", "StorageHost": "localhost",
            "StorageUser": "root", "StorageLoc": "acct", "LogFile": f"{self.dir}/log/slurmdbd.log",
            "PidFile": f"{self.dir}/run/slurmdbd.pid",
        }  # fmt: skip
        conf.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        conf.chmod(0o600)
        self._ports = dict.fromkeys(("slurmctld", *map(minicluster._slurmd, self.nodes)), 1)
        self._write_conf()
        self._spawn("slurmdbd", "-D", MYSQL_UNIX_PORT=f"{database}/s")
        add = ("sacctmgr", "-i", "add", "cluster", self.name)
        wait(lambda: self.run(*add, check=False).returncode == 0)

    def _spawn(self, *argv: str, **env: str) -> None:
        log = self._others.enter_context((self.dir / "log" / f"{argv[0]}.out").open("wb"))
        process = subprocess.Popen(argv, env={**self.env, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._others.callback(process.wait)
        self._others.callback(process.kill)

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            self._others.close()
            shutil.rmtree(self.dir, ignore_errors=True)


def wait(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.1)


@contextmanager
def accounted() -> Iterator[tuple[Site, Accounted]]:
    site = Site()
    cluster = Accounted({"TaskProlog": f"{site.hooks}/task-prolog", "Epilog": f"{site.hooks}/epilog", "MinJobAge": "2"})
    site.configure(cluster=cluster.name, slurm=asked(cluster), sweep={"comment": "admin"})
    try:
        with cluster:
            yield site, cluster
    finally:
        site.close()


def comment(cluster: Cluster, job: int) -> str:
    argv = ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=AdminComment")
    return cluster.run(*argv).stdout.strip()


def of_the_week(cluster: Cluster) -> str:
    """Return the output of the command of the admin guide that shows a user's caches of the week."""
    (line,) = re.findall(
        r"^sacct .*AdminComment.*", (Path(__file__).parents[2] / "docs/admin-guide.md").read_text(), re.MULTILINE
    )
    return cluster.run(*line.replace("alice", ALICE).split()).stdout


@needs_slurmdbd
def test_sweep_comments_jobs_and_explain_asks_sacct() -> None:
    """An existing comment is not changed. slurmctld has forgotten the job that is explained."""
    with accounted() as (site, cluster):
        fill = 'head -c 8192 /dev/zero >"$HF_DATASETS_CACHE/a.arrow"'
        jobs = [cluster.sbatch(fill, user=ALICE) for _ in range(2)]
        for job in jobs:
            cluster.wait(job)

        def ended(job: int) -> bool:
            argv = ("sacct", "-n", "-P", "-X", f"-j{job}", "--format=State")
            return cluster.run(*argv).stdout.strip() == "COMPLETED"

        wait(lambda: all(map(ended, jobs)))
        cluster.run("sacctmgr", "-i", "modify", "job", "where", f"jobid={jobs[1]}", "set", "AdminComment=mine")
        result = CliRunner().invoke(main, ["sweep", "--hooks", str(site.hooks)], catch_exceptions=False)
        assert (result.exit_code, result.output) == (0, "")
        assert comment(cluster, jobs[0]) == "jobcache: 8.2 kb in 1 files"
        assert comment(cluster, jobs[1]) == "mine"
        wait(lambda: cluster.run("scontrol", "show", "job", str(jobs[0]), check=False).returncode != 0)
        row = re.compile(rf"^{jobs[0]} .* jobcache: 8.2 kb in 1 files", re.MULTILINE)
        wait(lambda: row.search(of_the_week(cluster)) is not None)  # slurmdbd gets the user and the times later
        argv = ["explain", "--hooks", str(site.hooks), "--json", str(jobs[0]), str(site.log)]
        explanation = json.loads(CliRunner().invoke(main, argv, catch_exceptions=False).stdout)
        assert (explanation["slurm"]["by"], explanation["slurm"]["state"], explanation["slurm"]["user"]) == (
            "sacct",
            "COMPLETED",
            ALICE,
        )
        assert "8,192 bytes" in explanation["answer"]


def test_comment_sums_up_all_runs_of_a_job() -> None:
    """Events from a system log do not count: users can write to it."""
    known = {"event": "cache.reaped", "job_id": 7, "bytes": 1_500_000, "files": 3, "source": "log"}
    orphan = {**known, "event": "cache.orphan_reaped", "reason": "orphan", "run": 1}
    assert admin_comments.of_jobs(
        [known, orphan, {**known, "source": "syslog"}, {"event": "sweep.finished", "source": "log"}]
    ) == {7: "jobcache: 3.0 mb in 6 files, left over"}


def test_sweep_works_without_accounting(site: Site, tmp_path: Path) -> None:
    """It prints that it cannot comment jobs."""
    site.task_prolog()
    site.epilog()
    site.configure(slurm={"scontrol": f"{tmp_path}/scontrol"}, sweep={"comment": "admin"})
    result = CliRunner().invoke(main, ["sweep", "--hooks", str(site.hooks)], catch_exceptions=False)
    assert result.exit_code == 0 and "cannot comment jobs" in result.output
