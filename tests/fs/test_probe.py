"""`jobcache check` on scratches, logs and configurations that are broken for real; Slurm's part is in tests/cluster."""

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
from jobcache.diagnostics import probe
from jobcache.system import as_user, gathering
from support.hungfs import hung
from support.mounts import mount
from support.site_dir import ALICE, Site

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, and becomes other users")
Row = dict[str, str]


def findings(site: Site, *options: str) -> tuple[int, dict[str, list[Row]]]:
    """Exit status and what was found, by name."""
    argv = ["check", "--config", str(site.dir / "jobcache.yaml"), "--hooks", str(site.hooks), "--json", *options]
    result = CliRunner().invoke(main, argv, catch_exceptions=False)
    by_name: dict[str, list[Row]] = {}
    for row in json.loads(result.stdout):
        by_name.setdefault(row["name"], []).append(row)
    return result.exit_code, by_name


def level(site: Site, name: str, *options: str) -> str:
    """The worst that is said under a name."""
    rows = findings(site, *options)[1].get(name, [])
    return max((row["level"] for row in rows), key=["", "ok", "warning", "problem"].index, default="")


@pytest.fixture
def home(site: Site) -> Path:
    """Alice's directory on scratch, with a cache in it."""
    site.task_prolog()
    return site.cache().parent


@needs_root
def test_scratch_as_its_user(site: Site, home: Path) -> None:
    """Without being told, it tries as a user who has a directory there, and leaves nothing behind."""
    _, found = findings(site)
    for name in ("writable", "flock", "space"):
        (row,) = found[name]
        assert row["level"] == "ok", row
    assert f" as {ALICE}" in found["writable"][0]["fact"]
    assert sorted(path.name for path in home.iterdir()) == ["hf-datasets-4242"]


@needs_root
def test_nobody_has_a_directory_yet(site: Site) -> None:
    """Then it says that nobody tried, and tries as whom it is told to: the directory can be made."""
    (row,) = findings(site)[1]["writable"]
    assert row["level"] == "problem" and "nobody tried it" in row["fact"] and "jobcache check --user NAME" in row["mend"]
    (row,) = findings(site, "--user", ALICE)[1]["writable"]
    assert row["level"] == "ok" and "is not there yet" in row["fact"]
    assert list(site.scratch.iterdir()) == []


@needs_root
def test_scratch_is_closed(site: Site) -> None:
    """A scratch in which users may make nothing."""
    site.scratch.chmod(0o755)
    status, found = findings(site, "--user", ALICE)
    assert status == 1 and "Permission denied" in found["writable"][0]["fact"]
    assert "/proc/" not in found["writable"][0]["fact"] and f"install -d -m 700 -o {ALICE} " in found["writable"][0]["mend"]


@needs_root
def test_as_whom_nobody_can_try(site: Site) -> None:
    """As root, which is wrong use, and no fault of scratch; as nobody whom there is."""
    argv = ["check", "--config", str(site.dir / "jobcache.yaml"), "--hooks", str(site.hooks), "--user"]
    for user, words in (("root", "never tried as root"), ("no-such-user", "there is no user")):
        result = CliRunner().invoke(main, [*argv, user])
        assert result.exit_code == 2 and words in result.output


@needs_root
def test_a_users_symlink_is_in_the_path(site: Site) -> None:
    """It would not be followed by the hooks, which check says."""
    os.symlink(site.dir, site.scratch / ALICE)
    os.lchown(site.scratch / ALICE, pwd.getpwnam(ALICE).pw_uid, -1)
    assert level(site, "link", "--user", ALICE) == "problem"


@needs_root
def test_scratch_hangs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found within the deadline, and check ends."""
    monkeypatch.setattr(probe, "_PATIENCE", 1.0)
    (site.scratch / ALICE).mkdir()
    with hung(site.scratch / ALICE, killable=True):
        status, found = findings(site, "--user", ALICE)
    (row,) = [row for row in found["answers"] if row["area"] == "scratch"]
    assert status == 1 and "looking for" in row["fact"]


@needs_root
def test_all_of_scratch_hangs(site: Site, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is not known who has a directory there, and that is not said to be nobody."""
    monkeypatch.setattr(gathering, "PATIENCE", 1.0)
    with hung(site.scratch, killable=True):
        status, found = findings(site)
    (row,) = [row for rows in found.values() for row in rows if row["area"] == "scratch"]
    assert status == 1 and row["name"] == "answers" and "does not answer" in row["fact"] and "stat -f" in row["mend"]


@needs_root
def test_scratch_is_full(site: Site, home: Path) -> None:
    """A filesystem without a free block, and one without a free inode, though neither is an error yet."""
    for options, fill, name in (("size=400k", 395, "space"), ("size=1m,nr_inodes=220", 0, "inodes")):
        with mount("tmpfs", home, "tmpfs", f"{options},mode=1777"):
            (home / "a").write_bytes(b"x" * fill * 1024)
            if not fill:
                for number in range(214):
                    (home / str(number)).touch()
            assert level(site, name, "--user", ALICE) in ("warning", "problem")
            assert level(site, "filesystem", "--user", ALICE) == "warning"  # a tmpfs, and not in node_local


@needs_root
def test_flock_that_does_not_exclude(site: Site, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flock as some mounts have it: it says yes to everybody; or it is not there at all."""
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    assert level(site, "flock") == "warning"

    def missing(fd: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    (row,) = findings(site)[1]["flock"]
    assert row["level"] == "warning" and "not implemented" in row["fact"]


@needs_root
@pytest.mark.parametrize("lock, result", [(True, probe.EXCLUDED), (False, probe.OBTAINED)])
def test_two_nodes_meet(site: Site, home: Path, monkeypatch: pytest.MonkeyPatch, lock: bool, result: str) -> None:
    """Two processes that stand for two nodes agree on what they saw, whoever comes first, and clear up."""
    if not lock:
        monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    children = {}
    for at in (1, 0):
        meeting = probe.Meeting(".jobcache-new-7-check0", at, 2, f"n{at + 1}")

        def work(report: Any, meeting: probe.Meeting = meeting) -> None:
            fd = os.open(home, os.O_RDONLY)
            report({"across": probe.meet(fd, meeting, time.monotonic() + 20)})

        children[at] = as_user.start(work, uid=home.stat().st_uid, gid=None, user=None, places=[])
    for child in children.values():
        assert list(child.facts(time.monotonic() + 30)) == [{"across": {"n2": result}}]
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
def test_who_meets(change: dict[str, str], expected: str | None) -> None:
    """The first task of each node of a step on several nodes."""
    environ = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "3", "SLURM_NODEID": "1", "SLURM_LOCALID": "0", **change}
    meeting = probe.Meeting.of(environ)
    assert (meeting.name if meeting else None) == expected


def test_a_configuration_that_is_wrong(site: Site) -> None:
    """All its problems are said, and the rest is looked at all the same."""
    with (site.dir / "jobcache.yaml").open("a") as file:
        file.write("moed: on\n")
    status, found = findings(site)
    assert status == 1 and "moed" in found["valid"][0]["fact"] and "TaskProlog" not in found


def test_a_configuration_that_is_not_compiled(site: Site) -> None:
    """Edited, and not applied: said for each file. Nothing compiled at all: said."""
    text = (site.dir / "jobcache.yaml").read_text()
    (site.dir / "jobcache.yaml").write_text(text + "keep_failed: 1h\n")
    assert level(site, "current") == "problem"
    (site.hooks / "settings.json").unlink()
    assert level(site, "compiled") == "problem"


def test_neither_compiled_nor_valid(site: Site) -> None:
    """Then there is nothing to go by, which it says, and says nothing of what it cannot know."""
    (site.hooks / "settings.json").unlink()
    (site.dir / "jobcache.yaml").write_text("moed: on\n")
    status, found = findings(site)
    assert status == 1 and set(found) == {"valid", "compiled", "settings"}


@pytest.mark.parametrize(
    "text, idle", [("#JOBCACHE_SWEEP=\n", True), ("JOBCACHE_SWEEP=\n", False), (" export JOBCACHE_SWEEP=--node-local\n", False)]
)
def test_what_cron_goes_by(monkeypatch: pytest.MonkeyPatch, text: str, idle: bool) -> None:
    """A line that is commented out sets nothing."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    monkeypatch.setattr(os.path, "exists", lambda path: "cron" in str(path) or real(path))
    monkeypatch.setattr(probe, "_read", lambda path: text)
    schedule = probe._schedule()
    assert ("sets no JOBCACHE_SWEEP" in schedule.cron_idle, bool(schedule.cron_mend)) == (idle, idle)


def test_a_hook_in_the_others_place(site: Site) -> None:
    """A hook of ours that is wired in as the other one is not taken for it."""
    hooks = str(site.hooks)
    assert probe.script(f"{hooks}/epilog", "task-prolog", hooks).kind == "swapped"
    assert probe.script(f"{hooks}/task-prolog", "epilog", hooks).kind == "swapped"
    assert probe.script(f"{hooks}/task-prolog", "task-prolog", hooks).kind == "ours"


def test_a_policy_that_others_may_write(site: Site) -> None:
    """Root would obey whoever did."""
    (site.hooks / "policy.sh").chmod(0o666)
    assert level(site, "private") == "problem"


def test_a_configuration_that_others_may_write(site: Site) -> None:
    """The next apply would compile what they wrote."""
    (site.dir / "jobcache.yaml").chmod(0o666)
    assert level(site, "private") == "problem"


@needs_root
def test_nothing_that_others_have_named_is_run(site: Site, home: Path) -> None:
    """Settings that others may write name programs, which check, as root, leaves alone."""
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
    assert (site.dir / "ran").exists()  # it would have been


def test_switched_off(site: Site) -> None:
    """By the file, and by the mode."""
    (site.hooks / "off").touch()
    assert level(site, "off") == "warning"
    (site.hooks / "off").unlink()
    site.configure(mode="observe")
    assert level(site, "mode") == "warning"


@needs_root
def test_a_python_that_needs_ld_library_path(site: Site, home: Path) -> None:
    """It works in an admin's shell; in the hooks, which have no such variable, it does not."""
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
def test_a_python_that_users_cannot_reach(site: Site, home: Path) -> None:
    """Root's is fine, and the TaskProlog's is not."""
    inner = site.dir / "closed"
    inner.mkdir(0o700)
    (inner / "python").symlink_to(sys.executable)
    settings = site.hooks / "settings.json"
    settings.write_text(settings.read_text().replace(json.dumps(sys.executable), json.dumps(str(inner / "python"))))
    rows = {row["fact"].partition(", for ")[2].partition(":")[0]: row["level"] for row in findings(site)[1]["python"]}
    assert rows["task-prolog"] == "problem"


@needs_root
def test_the_log(site: Site, home: Path) -> None:
    """Written by others, not to be written, no file; a system log that is gone; hooks that failed; a sweep long ago."""
    site.epilog(SLURM_JOB_ID="x")  # Slurm's variables make no sense
    assert level(site, "hook failures") == "warning"
    site.log.chmod(0o666)
    assert level(site, "file") == "problem"
    site.log.unlink()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 200000))
    site.log.write_text(json.dumps({"ts": stamp, "event": "sweep.finished", "level": "info", "outcome": "finished"}) + "\n")
    assert level(site, "last") == "warning"
    site.log.write_text("[" * 100_000 + '"event"\n')  # as anybody can write who may
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


def test_slurm_conf_is_read_as_slurm_reads_it(tmp_path: Path) -> None:
    """Includes, comments, continued lines, several Epilogs, keys of any case."""
    (tmp_path / "more.conf").write_text("PrivateData=jobs # who\n")
    (tmp_path / "slurm.conf").write_text(
        "# TaskProlog=/no\nTaskProlog=/a\nepilog=/b\nEpilog=/c\nInclude more.conf\nPrologFlags=Alloc,\\\nContain\n"
    )
    found = probe.read_conf(str(tmp_path / "slurm.conf"))
    assert {**found, "PrologFlags": found["PrologFlags"].replace(" ", "")} == {
        "TaskProlog": "/a", "Epilog": "/b", "Epilog[1]": "/c", "PrivateData": "jobs", "PrologFlags": "Alloc,Contain",
    }  # fmt: skip
    assert probe.read_conf(str(tmp_path / "none.conf")) == {}


@needs_root
def test_a_log_that_was_rotated_just_now(site: Site, home: Path) -> None:
    """What stood in it an hour ago is not forgotten."""
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


def test_a_configless_node(site: Site, tmp_path: Path) -> None:
    """The controller's slurm.conf is not on this node; what came from it with the configuration is."""
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
    wiring = probe._wiring(site.configure(slurm={"scontrol": str(scontrol)}), str(site.hooks))
    assert "spank_pyxis" in wiring.pyxis and wiring.tmpfs_dirs == ("/scratch",)
