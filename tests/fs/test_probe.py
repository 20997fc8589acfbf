"""`jobcache check` on scratch, logs and configurations with real faults. tests/cluster has the faults of slurm.conf."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobcache.cli.main import main
from jobcache.diagnostics import hook_scripts, probe_containers, probe_flock, probe_schedule, probe_scratch, probe_wiring
from jobcache.diagnostics.check_facts import EXCLUDED, OBTAINED, Apptainer
from jobcache.diagnostics.slurm_conf import read_conf, values
from jobcache.system import as_user, gathering
from support.hungfs import hung
from support.mounts import mount
from support.site_dir import ALICE, Site, entries

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, and becomes other users")
Row = dict[str, str]


def findings(site: Site, *options: str) -> tuple[int, dict[str, list[Row]]]:
    """Return the exit status and the findings by name."""
    argv = ["check", "--config", str(site.dir / "jobcache.yaml"), "--hooks", str(site.hooks), "--json", *options]
    result = CliRunner().invoke(main, argv, catch_exceptions=False)
    by_name: dict[str, list[Row]] = {}
    for row in json.loads(result.stdout):
        by_name.setdefault(row["name"], []).append(row)
    return result.exit_code, by_name


def level(site: Site, name: str, *options: str) -> str:
    """Return the worst level of the findings with a name, "" if none exists."""
    rows = findings(site, *options)[1].get(name, [])
    return max((row["level"] for row in rows), key=["", "ok", "warning", "problem"].index, default="")


@pytest.fixture
def home(site: Site) -> Path:
    """Return Alice's directory on scratch, with a cache in it."""
    site.task_prolog()
    return site.cache().parent


@needs_root
def test_scratch_is_tried_as_a_user_who_has_a_directory(site: Site, home: Path) -> None:
    """Without --user. Nothing is left behind."""
    _, found = findings(site)
    for name in ("writable", "flock", "space"):
        (row,) = found[name]
        assert row["level"] == "ok", row
    assert f" as {ALICE}" in found["writable"][0]["fact"]
    assert entries(home) == ["hf-datasets-4242"]


@needs_root
def test_scratch_without_directories_needs_a_user(site: Site) -> None:
    """With --user, the check reports that the user can create the directory."""
    (row,) = findings(site)[1]["writable"]
    assert row["level"] == "problem" and "was not tested" in row["fact"] and "jobcache check --user NAME" in row["mend"]
    (row,) = findings(site, "--user", ALICE)[1]["writable"]
    assert row["level"] == "ok" and "does not exist yet" in row["fact"]
    assert list(site.scratch.iterdir()) == []


@needs_root
@pytest.mark.parametrize(
    ("path", "variable", "value"),
    [("{job_id}/hf-{job_id}", "SLURM_JOB_ID", "4242"), ("{account}/{user}/hf-{job_id}", "SLURM_JOB_ACCOUNT", "astro")],
)
def test_path_of_a_job_is_tried_in_a_job(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, variable: str, value: str
) -> None:
    """Outside of a job, its directory does not exist, and its account is unknown."""
    site.configure(path=f"{site.scratch}/local/{path}")
    directory = site.scratch / "local" / value
    directory.mkdir(parents=True)
    os.chown(directory, pwd.getpwnam(ALICE).pw_uid, -1)
    monkeypatch.delenv(variable, raising=False)
    (row,) = findings(site, "--user", ALICE)[1]["writable"]
    assert row["level"] == "warning" and "was not tested" in row["fact"] and "srun jobcache check" in row["mend"]
    monkeypatch.setenv(variable, value)
    (row,) = findings(site, "--user", ALICE)[1]["writable"]
    assert row["level"] == "ok", row


@needs_root
def test_directory_with_another_name_than_its_owner_is_a_warning(site: Site, home: Path) -> None:
    """passwd of this host and the name by which the directory was made differ: `alice@corp`."""
    assert "names" not in findings(site)[1]
    home.parent.rename(site.scratch / f"{ALICE}@corp")
    (row,) = findings(site)[1]["names"]
    assert row["level"] == "warning" and f"{ALICE}@corp belongs to {ALICE}" in row["fact"] and "{uid}" in row["mend"]


@needs_root
def test_scratch_without_permission_has_a_remedy(site: Site) -> None:
    """Users cannot create their directories. The message has no path of a descriptor."""
    site.scratch.chmod(0o755)
    status, found = findings(site, "--user", ALICE)
    assert status == 1 and "Permission denied" in found["writable"][0]["fact"]
    assert "/proc/" not in found["writable"][0]["fact"] and f"install -d -m 700 -o {ALICE} " in found["writable"][0]["mend"]


@needs_root
def test_root_and_unknown_users_are_wrong_usage(site: Site) -> None:
    """They are no faults of scratch."""
    argv = ["check", "--config", str(site.dir / "jobcache.yaml"), "--hooks", str(site.hooks), "--user"]
    for user, text in (("root", "root never tries scratch"), ("no-such-user", "user no-such-user does not exist")):
        result = CliRunner().invoke(main, [*argv, user])
        assert result.exit_code == 2 and text in result.output


@needs_root
def test_users_symlink_in_the_path_is_a_problem(site: Site) -> None:
    """The hooks do not follow it."""
    os.symlink(site.dir, site.scratch / ALICE)
    os.lchown(site.scratch / ALICE, pwd.getpwnam(ALICE).pw_uid, -1)
    assert level(site, "link", "--user", ALICE) == "problem"


@needs_root
def test_check_ends_while_a_home_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding names the operation that did not end."""
    monkeypatch.setattr(probe_scratch, "PATIENCE", 1.0)
    (site.scratch / ALICE).mkdir()
    with hung(site.scratch / ALICE, killable=True):
        status, found = findings(site, "--user", ALICE)
    (row,) = [row for row in found["answers"] if row["area"] == "scratch"]
    assert status == 1 and "while opening" in row["fact"]


@needs_root
def test_check_ends_while_scratch_hangs(site: Site, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users' directories cannot be listed. The check does not report that no user has one."""
    monkeypatch.setattr(gathering, "PATIENCE", 1.0)
    with hung(site.scratch, killable=True):
        status, found = findings(site)
    (row,) = [row for rows in found.values() for row in rows if row["area"] == "scratch"]
    assert status == 1 and row["name"] == "answers" and "does not answer" in row["fact"] and "stat -f" in row["mend"]


@needs_root
def test_full_scratch_is_found_before_an_error(site: Site, home: Path) -> None:
    """Free blocks, or free inodes, are nearly used up."""
    for options, fill, name in (("size=400k", 395, "space"), ("size=1m,nr_inodes=220", 0, "inodes")):
        with mount("tmpfs", home, "tmpfs", f"{options},mode=1777"):
            (home / "a").write_bytes(b"x" * fill * 1024)
            if not fill:
                for number in range(214):
                    (home / str(number)).touch()
            assert level(site, name, "--user", ALICE) in ("warning", "problem")
            assert level(site, "filesystem", "--user", ALICE) == "warning"  # a tmpfs that is not in node_local


@needs_root
def test_flock_that_does_not_exclude_is_found(site: Site, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some mounts: flock succeeds for every process, or is not implemented."""
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    assert level(site, "flock") == "warning"

    def missing(fd: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    (row,) = findings(site)[1]["flock"]
    assert row["level"] == "warning" and "not implemented" in row["fact"]


@needs_root
@pytest.mark.parametrize("lock, result", [(True, EXCLUDED), (False, OBTAINED)])
def test_two_nodes_agree_on_the_result_of_a_lock(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch, lock: bool, result: str
) -> None:
    """Two processes stand for two nodes. The order does not matter, and they leave nothing behind."""
    if not lock:
        monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    children = {}
    for index in (1, 0):
        rendezvous = probe_flock.Rendezvous(".jobcache-new-7-check0", index, 2, f"n{index + 1}")

        def work(report: Any, rendezvous: probe_flock.Rendezvous = rendezvous) -> None:
            fd = os.open(home, os.O_RDONLY)
            report({"flock_across": probe_flock.try_across_nodes(fd, rendezvous, time.monotonic() + 20)})

        children[index] = as_user.start(work, uid=home.stat().st_uid, gid=None, user=None, place=None)
    for child in children.values():
        assert list(child.facts(time.monotonic() + 30)) == [{"flock_across": {"n2": result}}]
    assert site.debris() == []


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, None),
        ({"SLURM_STEP_NUM_NODES": "1"}, None),
        ({"SLURM_LOCALID": "1"}, None),
        ({"SLURM_STEP_NUM_NODES": "2"}, ".jobcache-new-7-check3"),
    ],
)  # fmt: skip
def test_first_task_of_each_node_takes_part(change: dict[str, str], expected: str | None) -> None:
    """The step must run on several nodes."""
    environ = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3", "SLURM_NODEID": "1", "SLURM_LOCALID": "0", **change}
    rendezvous = probe_flock.Rendezvous.from_environment(environ)
    assert (rendezvous.name if rendezvous else None) == expected


def test_invalid_configuration_does_not_stop_other_checks(site: Site) -> None:
    """The compiled settings are still in force."""
    with (site.dir / "jobcache.yaml").open("a") as file:
        file.write("moed: on\n")
    status, found = findings(site)
    assert status == 1 and "moed" in found["valid"][0]["fact"] and "TaskProlog" not in found


def test_configuration_that_is_not_compiled_is_a_problem(site: Site) -> None:
    """It was edited and not applied, or never compiled."""
    text = (site.dir / "jobcache.yaml").read_text()
    (site.dir / "jobcache.yaml").write_text(text + "keep_failed: 1h\n")
    assert level(site, "current") == "problem"
    (site.hooks / "settings.json").unlink()
    assert level(site, "compiled") == "problem"


def test_without_any_settings_other_checks_do_not_run(site: Site) -> None:
    """The configuration is invalid, and nothing is compiled. The check reports which checks did not run."""
    (site.hooks / "settings.json").unlink()
    (site.dir / "jobcache.yaml").write_text("moed: on\n")
    status, found = findings(site)
    assert status == 1 and set(found) == {"valid", "compiled", "settings"}


@pytest.mark.parametrize(
    "text, idle", [("#JOBCACHE_SWEEP=\n", True), ("JOBCACHE_SWEEP=\n", False), (" export JOBCACHE_SWEEP=--node-local\n", False)]
)
def test_cron_sweeps_only_if_its_variable_is_set(monkeypatch: pytest.MonkeyPatch, text: str, idle: bool) -> None:
    """A commented line does not set it."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    monkeypatch.setattr(os.path, "exists", lambda path: "cron" in str(path) or real(path))
    monkeypatch.setattr(probe_schedule, "_read_defaults", lambda: text)
    schedule = probe_schedule.schedule()
    assert ("does not set JOBCACHE_SWEEP" in schedule.cron_idle, bool(schedule.cron_remedy)) == (idle, idle)


def test_swapped_hooks_are_found(site: Site) -> None:
    """slurm.conf has the Epilog as TaskProlog, or the other way round."""
    hooks = str(site.hooks)
    assert hook_scripts.read_script(f"{hooks}/epilog", "task-prolog", hooks).kind == "swapped"
    assert hook_scripts.read_script(f"{hooks}/task-prolog", "epilog", hooks).kind == "swapped"
    assert hook_scripts.read_script(f"{hooks}/task-prolog", "task-prolog", hooks).kind == "hook"


def test_policy_that_other_users_can_write_is_a_problem(site: Site) -> None:
    """The Epilog obeys it as root."""
    (site.hooks / "policy.sh").chmod(0o666)
    assert level(site, "private") == "problem"


def test_configuration_that_other_users_can_write_is_a_problem(site: Site) -> None:
    """The next apply compiles it."""
    (site.dir / "jobcache.yaml").chmod(0o666)
    assert level(site, "private") == "problem"


@needs_root
def test_check_runs_no_program_that_other_users_can_name(site: Site, home: Path) -> None:
    """Settings name programs. The check, as root, does not load settings that other users can write."""
    program = site.dir / "evil"
    program.write_text(f"#!/bin/sh\ntouch {site.dir}/ran\n")
    program.chmod(0o755)
    settings = site.hooks / "settings.json"
    text = settings.read_text().replace(json.dumps(sys.executable), json.dumps(str(program)))
    settings.write_text(text.replace('"scontrol": "scontrol"', f'"scontrol": "{program}"'))
    settings.chmod(0o666)
    status, found = findings(site)
    assert status == 1 and found["compiled"][0]["level"] == "problem"
    assert not (site.dir / "ran").exists()
    settings.chmod(0o644)
    findings(site)
    assert (site.dir / "ran").exists()  # with safe settings, the program runs


def test_hooks_that_are_off_are_a_warning(site: Site) -> None:
    """The file `off` exists, or the mode is not `on`."""
    (site.hooks / "off").touch()
    assert level(site, "off") == "warning"
    (site.hooks / "off").unlink()
    site.configure(mode="observe")
    assert level(site, "mode") == "warning"


@needs_root
def test_python_that_needs_ld_library_path_is_a_problem(site: Site, home: Path) -> None:
    """It works in an admin's shell. The hooks do not have this variable."""
    program = site.dir / "python"
    program.write_text(
        '#!/bin/sh\n[ -n "$LD_LIBRARY_PATH" ] || { echo "libpython.so.1.0: cannot open" >&2; exit 127; }\n'
        f'exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    settings = site.hooks / "settings.json"
    settings.write_text(settings.read_text().replace(json.dumps(sys.executable), json.dumps(str(program))))
    rows = findings(site)[1]["python"]
    assert [row["level"] for row in rows] == ["problem", "problem"]
    assert all("libpython.so.1.0" in row["fact"] for row in rows)


@needs_root
def test_python_that_users_cannot_reach_is_a_problem(site: Site, home: Path) -> None:
    """Root can start it for the Epilog; a user cannot start it for the TaskProlog."""
    inner = site.dir / "closed"
    inner.mkdir(0o700)
    (inner / "python").symlink_to(sys.executable)
    settings = site.hooks / "settings.json"
    settings.write_text(settings.read_text().replace(json.dumps(sys.executable), json.dumps(str(inner / "python"))))
    rows = {row["fact"].partition(", for ")[2].partition(":")[0]: row["level"] for row in findings(site)[1]["python"]}
    assert rows["task-prolog"] == "problem"


@needs_root
def test_faults_of_the_log_are_found(site: Site, home: Path) -> None:
    """Failures of hooks, an old sweep, a file that other users can write, no file, no directory, no socket of syslog."""
    site.epilog(SLURM_JOB_ID="x")  # an invalid variable of Slurm
    assert level(site, "hook failures") == "warning"
    site.log.chmod(0o666)
    assert level(site, "file") == "problem"
    site.log.unlink()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 200000))
    site.log.write_text(json.dumps({"ts": stamp, "event": "sweep.finished", "level": "info", "outcome": "finished"}) + "\n")
    assert level(site, "last") == "warning"
    site.log.write_text("[" * 100_000 + '"event"\n')  # a forged line
    assert level(site, "last") == "ok"
    site.log.unlink()
    site.log.symlink_to("/dev/null")
    assert level(site, "file") == "problem"
    site.log.unlink()
    site.configure(log={"file": f"{site.dir}/nowhere/events.jsonl", "syslog": f"{site.dir}/nobody"})
    assert level(site, "file") == "problem"
    assert level(site, "syslog") == "warning"
    site.configure(log={"file": None, "syslog": False})
    assert level(site, "syslog") == "warning"


@pytest.mark.parametrize("version", [(23, 11), (24, 5), None])
def test_slurm_conf_is_read_like_slurm_reads_it(tmp_path: Path, version: tuple[int, int] | None) -> None:
    """Includes, comments, continued lines, keys of any case. From Slurm 24.05, each Epilog and each Prolog counts."""
    (tmp_path / "more.conf").write_text("PrivateData=jobs # who\nEPILOG=/d\ntaskprolog=/a\n")
    (tmp_path / "slurm.conf").write_text(
        "# TaskProlog=/no\nTaskProlog=/b\nEpilogTimeout=9\nepilog=/b\nEpilog=/c\nInclude more.conf\nProlog=/p/*\nprolog=/q\n"
        "PrologFlags=Alloc,\\\nContain\n"
    )
    found = read_conf(str(tmp_path / "slurm.conf"), version)
    several = version != (23, 11)
    assert values(found, "Epilog") == (["/b", "/c", "/d"] if several else ["/d"])
    assert values(found, "Prolog") == (["/p/*", "/q"] if several else ["/q"])
    assert values(found, "PrologFlags")[0].replace(" ", "") == "Alloc,Contain"
    assert {key: found[key] for key in ("TaskProlog", "PrivateData", "EpilogTimeout")} == {
        "TaskProlog": "/a", "PrivateData": "jobs", "EpilogTimeout": "9",
    }  # fmt: skip
    assert read_conf(str(tmp_path / "none.conf")) == {}


JOB_CONTAINER = """\
# Dirs=/no
AutoBasePath=true BasePath=/raid
NodeName=n[1-2] BasePath=/raid Dirs=/tmp,/local
NodeName=n3 BasePath=/raid dirs="/dev/shm"
"""
NAMESPACE = """\
defaults:
  base_path: /raid
  clone_ns_script: /path/to/script   # dirs: /no
  dirs: "/tmp,/local"
node_confs:
  - nodes: [n3]
    options:
      dir_confs:
        - path: "/scratch"
          tmpfs: true
        - {base_path: /raid, path: /var/tmp}
"""


@pytest.mark.parametrize(
    ("key", "plugin", "written", "expected"),
    [
        ("JobContainerType", "job_container/none", JOB_CONTAINER, ()),
        ("JobContainerType", "job_container/tmpfs", JOB_CONTAINER, ("/tmp", "/local", "/dev/shm")),
        ("JobContainerType", "job_container/tmpfs", "BasePath=/raid\n", ("/tmp", "/dev/shm")),
        ("NamespaceType", "namespace/tmpfs", JOB_CONTAINER, ("/tmp", "/local", "/dev/shm")),
        ("NamespaceType", "namespace/linux", NAMESPACE, ("/tmp", "/local", "/scratch", "/var/tmp")),
        ("NamespaceType", "namespace/linux", "defaults: {base_path: /raid}\n", ("/tmp", "/dev/shm")),
        ("NamespaceType", "(null)", NAMESPACE, ()),
    ],
)
def test_private_directories_are_found(tmp_path: Path, key: str, plugin: str, written: str, expected: tuple[str, ...]) -> None:
    """Each plugin reads its own file. The file of another plugin is left from an earlier configuration."""
    files = {"job_container.conf": "Dirs=/other\n", "namespace.yaml": "defaults: {dirs: /other}\n"}
    files["namespace.yaml" if plugin.endswith("linux") else "job_container.conf"] = written
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert probe_containers.tmpfs_dirs({key: plugin}, str(tmp_path)) == expected


@needs_root
@pytest.mark.parametrize("jobs", [4, 5])
def test_users_who_build_the_same_again_are_named(site: Site, home: Path, jobs: int) -> None:
    """By the end of the log. The Epilog and the sweep can each delete a part of one cache."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    end = {"ts": stamp, "level": "info", "outcome": "reaped", "user": ALICE, "cluster": "test"}
    with site.log.open("a") as file:
        for job in range(jobs):
            for kind in ("cache.reaped", "cache.orphan_reaped"):
                file.write(json.dumps({**end, "event": kind, "job_id": job + 1, "run": 0, "bytes": 10**9}) + "\n")
    found = findings(site)[1].get("same data again", [])
    assert [(row["level"], f"{ALICE} (5 caches of 2.0 GB)" in row["fact"]) for row in found] == [("warning", True)] * (jobs == 5)


@needs_root
def test_events_before_a_rotation_count(site: Site, home: Path) -> None:
    """The log was rotated just now; its last hour is in another file."""
    site.epilog(SLURM_JOB_ID="x")
    sweep = {"ts": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": "sweep.finished", "level": "info"}
    with site.log.open("a") as file:
        file.write(json.dumps({**sweep, "outcome": "finished"}) + "\n")
    rotated = Path(f"{site.log}.1")
    site.log.rename(rotated)
    try:
        _, found = findings(site)
        assert found["hook failures"][0]["level"] == "warning" and "ended 0 min ago" in found["last"][0]["fact"]
    finally:
        rotated.rename(site.log)


def test_configless_node_reads_files_of_the_controller(site: Site, tmp_path: Path) -> None:
    """slurm.conf and its companions are in the cache of slurmd."""
    cache = tmp_path / "spool/conf-cache"
    cache.mkdir(parents=True)
    (cache / "slurm.conf").write_text("")
    (cache / "plugstack.conf").write_text("required /usr/lib/slurm/spank_pyxis.so\n")
    (cache / "job_container.conf").write_text("BasePath=/raid\nDirs=/scratch\n")
    answer = {
        "SLURM_CONF": f"{tmp_path}/controller/slurm.conf", "SlurmdSpoolDir": f"{tmp_path}/spool",
        "PlugStackConfig": f"{tmp_path}/controller/plugstack.conf", "JobContainerType": "job_container/tmpfs",
    }  # fmt: skip
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\ncat <<E\n" + "".join(f"{key} = {value}\n" for key, value in answer.items()) + "E\n")
    scontrol.chmod(0o755)
    wiring = probe_wiring.wiring(site.configure(slurm={"scontrol": str(scontrol)}), str(site.hooks))
    assert "spank_pyxis" in wiring.pyxis and wiring.tmpfs_dirs == ("/scratch",)


def test_configuration_of_apptainer_is_read(tmp_path: Path) -> None:
    """As Apptainer reads it: the first line of a switch counts, and each bind. A bind to another path is none of scratch."""
    apptainer, singularity = tmp_path / "apptainer.conf", tmp_path / "singularity.conf"
    apptainer.write_text(
        "# bind path = /comment\nbind path = /etc/hosts\n bind path=/scratch/gpfs/\nbind path = /a:/b\n"
        "bind path = /c:/c\nbind path = /d:/d:ro\n"
        "user bind control = no\nuser bind control = yes\nmount home = no\nbind path = \n"
    )
    singularity.write_text("mount home = yes\nuser bind control = yes\n")
    found = list(probe_containers.apptainers([str(apptainer), str(tmp_path / "missing.conf"), str(singularity)]))
    assert found == [
        Apptainer(str(apptainer), ("/etc/hosts", "/scratch/gpfs", "/c"), user_binds=False, home=False),
        Apptainer(str(singularity), (), user_binds=True, home=True),
    ]


@needs_root
def test_python_of_both_hooks_is_ok(site: Site, home: Path) -> None:
    """Each Python can import the modules of its hook."""
    rows = findings(site)[1]["python"]
    assert [row["level"] for row in rows] == ["ok", "ok"], rows
