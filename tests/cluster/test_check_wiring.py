"""`jobcache check` on a real cluster: right as it is wired, and each wrong wiring is found."""

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
    """A cluster of its own, whose slurm.conf the tests break."""

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
        """Exit status, and what was found by name."""
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
    """What is not fine, but for what no test cluster can have: a shared filesystem, a timer."""
    return {name for name, rows in found.items() for row in rows if row["level"] != "ok"} - {"filesystem", "schedule"}


def test_as_it_should_be(place: Place) -> None:
    """A cluster that runs jobs has nothing to mend."""
    job = place.cluster.sbatch("true", user=ALICE)
    place.cluster.wait(job)
    status, found = place.check()
    assert (status, wrong(found)) == (0, set())
    assert {"TaskProlog", "Epilog", "EpilogTimeout", "MinJobAge", "flock", "python"} <= set(found)
    assert place.site.debris() == []


def test_locks_across_nodes(place: Place) -> None:
    """In a step on two nodes, both say that the one is kept out by the other."""
    env = {"PYTHONPATH": str(Path(jobcache.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = place.cluster.srun("-N2", "--ntasks-per-node=1", "-l", *place.command(), env=env, user=ALICE)
    for task in "01":
        text = "\n".join(line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith(f"{task}:"))
        (row,) = [row for row in json.loads(text) if row["name"] == "flock across nodes"]
        assert row["level"] == "ok" and "node n2 is kept out" in row["fact"]
    assert place.site.debris() == []


OTHER = "site/other.sh"
WRONG: dict[str, tuple[Callable[[Place], dict[str, str]], str, str]] = {
    "no TaskProlog": (lambda place: {"TaskProlog": ""}, "TaskProlog", "not set"),
    "TaskProlog is gone": (lambda place: {"TaskProlog": f"{place.site.dir}/gone"}, "TaskProlog", "cancels every task"),
    "TaskProlog is the site's": (lambda place: {"TaskProlog": place.script(OTHER, "true")}, "TaskProlog", "does not run ours"),
    "no Epilog": (lambda place: {"Epilog": ""}, "Epilog", "not set"),
    "Epilog is gone": (lambda place: {"Epilog": f"{place.site.dir}/gone"}, "Epilog", "drains the node"),
    "Epilog is the site's": (lambda place: {"Epilog": place.script(OTHER, "true")}, "Epilog", "does not run ours"),
    "Epilog is a glob of nothing": (lambda place: {"Epilog": f"{place.site.dir}/none.d/*"}, "Epilog", "matches nothing"),
    "too short a limit": (lambda place: {"PrologEpilogTimeout": "10"}, "EpilogTimeout", "drains the node"),
    "a long MinJobAge": (lambda place: {"MinJobAge": "7200"}, "MinJobAge", "7200"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_slurm_conf(place: Place, fault: str) -> None:
    """Each is found, under the name of what is wrong, with a mend."""
    change, name, words = WRONG[fault]
    conf = {**place.wired, **change(place)}
    place.cluster.reconfigure({key: value for key, value in conf.items() if value})
    status, found = place.check("--user", ALICE)
    assert wrong(found) == {name}
    (row,) = [row for row in found[name] if row["level"] != "ok"]
    assert words in row["fact"] and row["mend"]
    assert status == (1 if row["level"] == "problem" else 0)


def test_chained(place: Place) -> None:
    """A site's scripts that run ours, and a glob in which ours is one of several, are fine."""
    epilogs = place.site.dir / "epilog.d"
    place.script("epilog.d/10-site", "true")
    if not (epilogs / "50-jobcache").exists():
        (epilogs / "50-jobcache").symlink_to(place.hooks / "epilog")
    prolog = place.script("site/calls.sh", f"exec {place.hooks}/task-prolog")
    place.cluster.reconfigure({**place.wired, "TaskProlog": prolog, "Epilog": f"{epilogs}/*"})
    status, found = place.check("--user", ALICE)
    assert (status, wrong(found)) == (0, set())
    assert "50-jobcache" in found["Epilog"][0]["fact"] and "which runs ours" in found["TaskProlog"][0]["fact"]


def test_scripts_that_run_a_directory(place: Place) -> None:
    """As sites have them: the one script runs whatever a directory holds. Ours in it is ours run; a user's copy is not."""
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
def test_an_epilog_that_is_roots_to_read(place: Place, pattern: bool) -> None:
    """As is usual. Root knows that it is fine; who is not root cannot know, and does not say that it is wrong."""
    place.script("closed.d/50-ours", f"exec {place.hooks}/epilog", 0o700)
    (place.site.dir / "closed.d").chmod(0o700 if pattern else 0o755)
    try:
        place.cluster.reconfigure({**place.wired, "Epilog": f"{place.site.dir}/closed.d/{'*' if pattern else '50-ours'}"})
        assert wrong(place.check("--user", ALICE)[1]) == set()
        status, found = place.check(user=ALICE)
        assert status == 0 and "not known" in found["Epilog"][0]["fact"]
    finally:
        (place.site.dir / "closed.d").chmod(0o755)


@pytest.mark.parametrize("fault", ["closed above", "closed policy", "noexec"])
def test_hooks_out_of_reach(place: Place, fault: str) -> None:
    """Which root alone does not see: apply ran under umask 077, or the hooks are on a filesystem that runs nothing."""
    hooks, other = str(place.hooks), place.site.dir / "opt"
    other.mkdir(exist_ok=True)
    shutil.copy(place.hooks / "task-prolog", other / "task-prolog")
    shutil.copy(place.hooks / "epilog", other / "epilog")
    place.cluster.reconfigure({**place.wired, "TaskProlog": f"{other}/task-prolog", "Epilog": f"{other}/epilog"})
    assert wrong(place.check("--user", ALICE)[1]) == set()
    if fault == "closed above":
        other.chmod(0o700)
        expected, words = {"TaskProlog"}, "cannot run it"
    elif fault == "closed policy":
        (place.hooks / "policy.sh").chmod(0o640)
        expected, words = {"current", "TaskProlog"}, "cannot read"
    else:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,mode=755", "none", str(other)], check=True)
        for name in ("task-prolog", "epilog"):
            shutil.copy(f"{hooks}/{name}", other / name)
        expected, words = {"TaskProlog", "Epilog"}, "cannot run it"
    try:
        status, found = place.check("--user", ALICE)
    finally:
        other.chmod(0o755)
        (place.hooks / "policy.sh").chmod(0o644)
        if fault == "noexec":
            subprocess.run(["umount", str(other)], check=True)
    assert (status, wrong(found)) == (1, expected)
    assert words in found["TaskProlog"][0]["fact"]


def test_slurm_conf_is_newer_than_slurmctld(place: Place) -> None:
    """The file was edited, and nobody ran scontrol reconfigure."""
    conf = place.cluster.conf_file
    before = conf.read_text()
    conf.write_text(before.replace("TaskProlog=", "TaskProlog=/new"))
    try:
        _, found = place.check("--user", ALICE)
    finally:
        conf.write_text(before)
    assert wrong(found) == {"reconfigured"}


def test_private_data(place: Place) -> None:
    """Who is not root sees its own jobs alone."""
    place.cluster.reconfigure({**place.wired, "PrivateData": "jobs"})
    assert "PrivateData" in wrong(place.check(user=ALICE)[1])
    assert "PrivateData" not in wrong(place.check("--user", ALICE)[1])


def test_pyxis_without_our_mount(place: Place) -> None:
    """Every task in a container would fail; with what the mend says, none does."""
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


def test_a_private_tmp(place: Place) -> None:
    """Slurm gives jobs a /tmp of their own, and the caches are in it."""
    beside = place.cluster.conf_file.with_name("job_container.conf")
    beside.write_text("AutoBasePath=true\nBasePath=/var/nvme/storage\nDirs=/tmp,/dev/shm\n")
    answers = place.cluster.run("scontrol", "show", "config").stdout
    key = "NamespaceType" if "NamespaceType" in answers else "JobContainerType"
    lines = [line for line in answers.splitlines() if not line.startswith(key)]
    fake = place.site.dir / "scontrol"  # slurmd would take the namespaces of this very machine
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


def test_no_controller(place: Place) -> None:
    """Slurm does not answer: said, and the rest is looked at all the same."""
    place.cluster.stop_controller()
    try:
        status, found = place.check("--user", ALICE)
    finally:
        place.cluster.start_controller()
    assert status == 1 and wrong(found) == {"answers"}
    assert found["writable"][0]["level"] == "ok"
