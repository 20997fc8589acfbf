"""`jobcache check` on a real cluster: no fault as it is wired, and one finding for each fault of slurm.conf."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jobcache
from conftest import asked
from support.minicluster import Cluster
from support.site_dir import ALICE, Site

Rows = list[dict[str, str]]


class Place:
    """A cluster with a slurm.conf that tests can change."""

    def __init__(self) -> None:
        self.site = Site()
        self.hooks = self.site.hooks
        self.wired = {"TaskProlog": f"{self.hooks}/task-prolog", "Epilog": f"{self.hooks}/epilog", "PrologEpilogTimeout": "60"}
        self.cluster = Cluster(conf=self.wired)
        self.slurm = {**asked(self.cluster), "timeout": "10s"}
        self.site.configure(cluster=self.cluster.name, slurm=self.slurm)

    def command(self, *options: str) -> list[str]:
        config = str(self.site.dir / "jobcache.yaml")
        return [sys.executable, "-m", "jobcache.cli", "check", "--config", config, "--hooks", str(self.hooks), "--json", *options]

    def check(self, *options: str, user: str | None = None, **env: str) -> tuple[int, dict[str, Rows]]:
        """Return the exit status and the findings by name."""
        env = {"PYTHONPATH": str(Path(jobcache.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1", **env}
        done = self.cluster.run(*self.command(*options), env=env, user=user, check=False)
        found: dict[str, Rows] = {}
        for row in json.loads(done.stdout):
            found.setdefault(row["name"], []).append(row)
        return done.returncode, found

    def script(self, name: str, text: str, mode: int = 0o755) -> str:
        path = self.site.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return str(path)


@pytest.fixture(scope="module")
def _place() -> Iterator[Place]:
    made = Place()
    with made.cluster:
        yield made
    made.site.close()


@pytest.fixture
def place(_place: Place) -> Iterator[Place]:
    yield _place
    _place.cluster.reconfigure(_place.wired)


def wrong(found: dict[str, Rows]) -> set[str]:
    """Return the names of findings that are not OK, except for a shared filesystem and a timer: test clusters have none."""
    return {name for name, rows in found.items() for row in rows if row["level"] != "ok"} - {"filesystem", "schedule"}


def test_cluster_that_runs_jobs_has_no_fault(place: Place) -> None:
    job = place.cluster.sbatch("true", user=ALICE)
    place.cluster.wait(job)
    status, found = place.check()
    assert (status, wrong(found)) == (0, set())
    assert {"TaskProlog", "Epilog", "EpilogTimeout", "MinJobAge", "flock", "python"} <= set(found)
    assert place.site.debris() == []


def test_step_on_two_nodes_tries_locks_across_them(place: Place) -> None:
    """Both nodes report that node 1 cannot take the lock of node 0."""
    env = {"PYTHONPATH": str(Path(jobcache.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = place.cluster.srun("-N2", "--ntasks-per-node=1", "-l", *place.command(), env=env, user=ALICE)
    for task in "01":
        text = "\n".join(line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith(f"{task}:"))
        (row,) = [row for row in json.loads(text) if row["name"] == "flock across nodes"]
        assert row["level"] == "ok" and "n2 cannot take a lock" in row["fact"]
    assert place.site.debris() == []


OTHER = "site/other.sh"
WRONG: dict[str, tuple[Callable[[Place], dict[str, str]], str, str]] = {
    "TaskProlog is not set": (lambda place: {"TaskProlog": ""}, "TaskProlog", "not set"),
    "TaskProlog is missing": (lambda place: {"TaskProlog": f"{place.site.dir}/gone"}, "TaskProlog", "cancels every task"),
    "TaskProlog is the site's": (
        lambda place: {"TaskProlog": place.script(OTHER, "true")}, "TaskProlog", "does not run jobcache",
    ),
    "Epilog is not set": (lambda place: {"Epilog": ""}, "Epilog", "not set"),
    "Epilog is missing": (lambda place: {"Epilog": f"{place.site.dir}/gone"}, "Epilog", "drains the node"),
    "Epilog is the site's": (lambda place: {"Epilog": place.script(OTHER, "true")}, "Epilog", "does not run jobcache"),
    "Epilog is a glob of no file": (lambda place: {"Epilog": f"{place.site.dir}/none.d/*"}, "Epilog", "matches no file"),
    "PrologEpilogTimeout is short": (lambda place: {"PrologEpilogTimeout": "10"}, "EpilogTimeout", "drains the node"),
    "MinJobAge is long": (lambda place: {"MinJobAge": "7200"}, "MinJobAge", "7200"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_each_fault_of_slurm_conf_is_found(place: Place, fault: str) -> None:
    """It is the only finding, with its name and a remedy."""
    change, name, text = WRONG[fault]
    conf = {**place.wired, **change(place)}
    place.cluster.reconfigure({key: value for key, value in conf.items() if value})
    status, found = place.check("--user", ALICE)
    assert wrong(found) == {name}
    (row,) = [row for row in found[name] if row["level"] != "ok"]
    assert text in row["fact"] and row["mend"]
    assert status == (1 if row["level"] == "problem" else 0)


def test_scripts_that_run_the_hooks_are_no_fault(place: Place) -> None:
    """The site's TaskProlog runs the hook; a glob has the Epilog among others."""
    epilogs = place.site.dir / "epilog.d"
    place.script("epilog.d/10-site", "true")
    if not (epilogs / "50-jobcache").exists():
        (epilogs / "50-jobcache").symlink_to(place.hooks / "epilog")
    prolog = place.script("site/calls.sh", f"exec {place.hooks}/task-prolog")
    place.cluster.reconfigure({**place.wired, "TaskProlog": prolog, "Epilog": f"{epilogs}/*"})
    status, found = place.check("--user", ALICE)
    assert (status, wrong(found)) == (0, set())
    assert "50-jobcache" in found["Epilog"][0]["fact"] and "which runs jobcache's TaskProlog" in found["TaskProlog"][0]["fact"]


@pytest.fixture
def relative(place: Place) -> Iterator[dict[str, str]]:
    """Keys of slurm.conf with relative paths, which lead to the hooks in the directory of slurm.conf."""
    conf_dir = place.cluster.conf_file.parent
    (conf_dir / "epilog.d").mkdir()
    links = {conf_dir / "taskprolog": "task-prolog", conf_dir / "epilog.d/50-jobcache": "epilog"}
    for link, hook in links.items():
        link.symlink_to(place.hooks / hook)
    yield {**place.wired, "TaskProlog": "taskprolog", "Epilog": "epilog.d/*"}
    place.cluster.reconfigure(place.wired)
    for node in place.cluster.nodes:  # Slurm drains a node whose Epilog it cannot run
        place.cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    for link in links:
        link.unlink()
    (conf_dir / "epilog.d").rmdir()


def test_relative_paths_are_judged_as_slurm_resolves_them(place: Place, relative: dict[str, str]) -> None:
    """Each has a fault exactly if this Slurm does not run it."""
    place.cluster.reconfigure(relative)
    status, found = place.check("--user", ALICE)
    job = place.cluster.sbatch('echo "<$HF_DATASETS_CACHE>"', user=ALICE)
    not_run = set()
    if place.cluster.wait(job) != "COMPLETED" or "</" not in place.cluster.output(job):
        not_run.add("TaskProlog")
    if any("DRAIN" in place.cluster.node_state(node) for node in place.cluster.nodes):
        not_run.add("Epilog")
    assert wrong(found) == not_run, found
    assert status == (1 if not_run else 0)
    if "TaskProlog" in not_run:
        (row,) = [row for row in found["TaskProlog"] if row["level"] != "ok"]
        assert row["fact"].startswith("TaskProlog=taskprolog is a relative path")


def test_hooks_of_another_cluster_are_a_problem(place: Place) -> None:
    """One shared directory of hooks serves one cluster. The settings that `check` reads are right."""
    other = Site()
    try:
        other.configure(cluster="lion", slurm=place.slurm)
        place.cluster.reconfigure({**place.wired, "TaskProlog": f"{other.hooks}/task-prolog", "Epilog": f"{other.hooks}/epilog"})
        status, found = place.check("--user", ALICE)
        assert status == 1 and wrong(found) == {"TaskProlog", "Epilog"}
        for name in ("TaskProlog", "Epilog"):
            assert any("for cluster lion" in row["fact"] and row["level"] == "problem" for row in found[name])
    finally:
        other.close()


def test_script_that_runs_a_directory_with_the_hooks_is_no_fault(place: Place) -> None:
    """The directory must belong to root, and no other user may write to it."""
    other = place.script("site/hooks.d/10-site", "true")
    (place.site.dir / "site/hooks.d/20-task").symlink_to(place.hooks / "task-prolog")
    (place.site.dir / "site/hooks.d/20-epilog").symlink_to(place.hooks / "epilog")
    wrapper = place.script("site/all.sh", f'for one in "{place.site.dir}/site/hooks.d"/*; do "$one"; done')
    place.cluster.reconfigure({**place.wired, "TaskProlog": wrapper, "Epilog": wrapper})
    status, found = place.check("--user", ALICE)
    assert (status, wrong(found)) == (0, set()), found
    (place.site.dir / "site/hooks.d").chmod(0o777)
    assert wrong(place.check("--user", ALICE)[1]) == {"TaskProlog", "Epilog"}
    place.script("site/all.sh", f"exec {other}")
    assert wrong(place.check("--user", ALICE)[1]) == {"TaskProlog", "Epilog"}


@pytest.mark.parametrize("pattern", [False, True])
def test_epilog_that_only_root_can_read_is_unknown_to_users(place: Place, pattern: bool) -> None:
    """This is usual. For root it has no fault; for a user it is a warning, not a problem."""
    place.script("closed.d/50-jobcache", f"exec {place.hooks}/epilog", 0o700)
    (place.site.dir / "closed.d").chmod(0o700 if pattern else 0o755)
    try:
        place.cluster.reconfigure({**place.wired, "Epilog": f"{place.site.dir}/closed.d/{'*' if pattern else '50-jobcache'}"})
        assert wrong(place.check("--user", ALICE)[1]) == set()
        status, found = place.check(user=ALICE)
        assert status == 0 and "is unknown" in found["Epilog"][0]["fact"]
    finally:
        (place.site.dir / "closed.d").chmod(0o755)


@pytest.mark.parametrize("fault", ["closed directory", "closed policy", "noexec"])
def test_hooks_that_users_cannot_run_are_a_problem(place: Place, fault: str) -> None:
    """Root can run them: apply ran under umask 077, or the filesystem is mounted noexec."""
    hooks, other = str(place.hooks), place.site.dir / "opt"
    other.mkdir(exist_ok=True)
    shutil.copy(place.hooks / "task-prolog", other / "task-prolog")
    shutil.copy(place.hooks / "epilog", other / "epilog")
    place.cluster.reconfigure({**place.wired, "TaskProlog": f"{other}/task-prolog", "Epilog": f"{other}/epilog"})
    assert wrong(place.check("--user", ALICE)[1]) == set()
    if fault == "closed directory":
        other.chmod(0o700)
        expected, text = {"TaskProlog"}, "cannot run it"
    elif fault == "closed policy":
        (place.hooks / "policy.sh").chmod(0o640)
        expected, text = {"current", "TaskProlog"}, "cannot read"
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,mode=755", "none", str(other)], check=True)
        for name in ("task-prolog", "epilog"):
            shutil.copy(f"{hooks}/{name}", other / name)
        expected, text = {"TaskProlog", "Epilog"}, "cannot run it"
    try:
        status, found = place.check("--user", ALICE)
    finally:
        other.chmod(0o755)
        (place.hooks / "policy.sh").chmod(0o644)
        if fault == "noexec":
            subprocess.run(["umount", str(other)], check=True)
    assert (status, wrong(found)) == (1, expected)
    assert text in found["TaskProlog"][0]["fact"]


def test_slurm_conf_newer_than_slurmctld_is_a_warning(place: Place) -> None:
    """The file was changed without `scontrol reconfigure`."""
    conf = place.cluster.conf_file
    before = conf.read_text()
    conf.write_text(before.replace("TaskProlog=", "TaskProlog=/new"))
    try:
        _, found = place.check("--user", ALICE)
    finally:
        conf.write_text(before)
    assert wrong(found) == {"reconfigured"}


def test_private_data_is_a_warning_for_users(place: Place) -> None:
    """Root sees all jobs."""
    place.cluster.reconfigure({**place.wired, "PrivateData": "jobs"})
    assert "PrivateData" in wrong(place.check(user=ALICE)[1])
    assert "PrivateData" not in wrong(place.check("--user", ALICE)[1])


def test_pyxis_without_mounts_is_fixed_by_the_remedy(place: Place) -> None:
    """Without the mounts, every task in a container fails."""
    plugstack = place.cluster.conf_file.with_name("plugstack.conf")
    enroot = place.site.dir / "enroot"
    (enroot / "mounts.d").mkdir(parents=True)
    plugstack.write_text("include plugstack.d/*.conf\n")
    plugstack.with_name("plugstack.d").mkdir()
    plugstack.with_name("plugstack.d").joinpath("pyxis.conf").write_text("optional spank_pyxis.so\n")
    try:
        status, found = place.check("--user", ALICE, ENROOT_SYSCONF_PATH=str(enroot))
        assert status == 1 and wrong(found) == {"pyxis"}
        place.cluster.run("sh", "-c", found["pyxis"][0]["mend"])
        status, found = place.check("--user", ALICE, ENROOT_SYSCONF_PATH=str(enroot))
        assert status == 0 and wrong(found) == set()
    finally:
        plugstack.unlink()


def test_cache_in_a_private_tmp_is_a_problem(place: Place) -> None:
    """The Epilog cannot see a job's private /tmp."""
    beside = place.cluster.conf_file.with_name("job_container.conf")
    beside.write_text("AutoBasePath=true\nBasePath=/var/nvme/storage\nDirs=/tmp,/dev/shm\n")
    answers = place.cluster.run("scontrol", "show", "config").stdout
    key = "NamespaceType" if "NamespaceType" in answers else "JobContainerType"
    lines = [line for line in answers.splitlines() if not line.startswith(key)]
    fake = place.site.dir / "scontrol"  # a real setting makes slurmd use the namespaces of this machine
    fake.write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join([*lines, f"{key} = job_container/tmpfs"]) + "\nE\n")
    fake.chmod(0o755)
    before = dict(place.site.keys)
    place.site.configure(slurm={**place.slurm, "scontrol": str(fake)})
    try:
        _, found = place.check("--user", ALICE)
    finally:
        beside.unlink()
        place.site.keys = before
        place.site.configure()
    assert wrong(found) == {"job_container"}


def test_check_continues_without_a_controller(place: Place) -> None:
    """Slurm does not answer. The check still tries scratch."""
    place.cluster.stop_controller()
    try:
        status, found = place.check("--user", ALICE)
    finally:
        place.cluster.start_controller()
    assert status == 1 and wrong(found) == {"answers"}
    assert found["writable"][0]["level"] == "ok"
