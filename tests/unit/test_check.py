"""The findings of `jobcache check`: each fault has one finding with a remedy, and sound installations have none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobcache.diagnostics import check
from jobcache.diagnostics.check_facts import (
    EXCLUDED,
    OBTAINED,
    Apptainer,
    Compiled,
    Facts,
    Interpreter,
    Log,
    Schedule,
    Scratch,
    Script,
    Wiring,
)
from jobcache.diagnostics.finding import OK, Finding
from jobcache.diagnostics.rebuilding import Rebuilt

LIB = "/var/lib/jobcache"
HOOKS = "/usr/libexec/jobcache"
SCRATCH = Scratch(
    "/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}", "alice", parent="/scratch/gpfs/alice/.cache",
    existing="/scratch/gpfs/alice/.cache", fstype="gpfs", total=1000, free=500, inodes=1000, inodes_free=500,
    flock=EXCLUDED, flock_across={"n2": EXCLUDED}, squashed=True,
)  # fmt: skip
WIRING = Wiring(
    conf="/etc/slurm/slurm.conf",
    running={
        "TaskProlog": f"{HOOKS}/task-prolog",
        "Epilog[0]": f"{HOOKS}/epilog",
        "PrologEpilogTimeout": "60",
        "MinJobAge": "300 sec",
    },
    file={"TaskProlog": f"{HOOKS}/task-prolog", "Epilog": f"{HOOKS}/epilog"},
    task_prologs=(Script(f"{HOOKS}/task-prolog", "hook", lib=LIB),),
    epilogs=(Script(f"{HOOKS}/epilog", "hook", lib=LIB),),
)
GOOD = Facts(
    Compiled("/etc/jobcache/jobcache.yaml", LIB, version="1", installed_version="1"),
    (Interpreter("/usr/bin/python3", "task-prolog", "alice", version="3.11.2"),),
    WIRING,
    (SCRATCH,),
    Log("/var/log/jobcache/events.jsonl", syslog="/dev/log", last_sweep=1800.0),
    Schedule(systemd=True, timer="active"),
    hooks=HOOKS,
)  # fmt: skip


def faults(facts: Facts) -> list[Finding]:
    """Return the findings that are not OK."""
    return [one for one in check.findings(facts) if one.level != OK]


@pytest.mark.parametrize(("version", "epilog", "task_prolog"), [("23.11.0", "epilog.d/*", "/t"), ("25.11.1", "epilog", "t")])
def test_relative_paths_have_no_fault_where_slurm_resolves_them(version: str, epilog: str, task_prolog: str) -> None:
    """The Epilog from 23.11, the TaskProlog from 25.11."""
    assert faults(replace(GOOD, wiring=relative(version, TaskProlog=task_prolog, Epilog=epilog))) == []


def test_version_before_22_05_is_no_fault_by_itself() -> None:
    """The finding names the jobs whose caches wait for the sweep."""
    facts = wiring(running={**WIRING.running, "SLURM_VERSION": "20.11.9"})
    assert faults(facts) == []
    (row,) = [one for one in check.findings(facts) if one.name == "version" and one.area == "slurm"]
    assert "het job" in row.fact


def test_sound_installation_has_no_fault() -> None:
    """Each area has findings, and all of them are OK."""
    assert faults(GOOD) == []
    assert {one.area for one in check.findings(GOOD)} == {"config", "hooks", "slurm", "scratch", "log", "sweep"}


def compiled(**changes: Any) -> Facts:
    return replace(GOOD, compiled=replace(GOOD.compiled, **changes))


def wiring(**changes: Any) -> Facts:
    return replace(GOOD, wiring=replace(WIRING, **changes))


def running(**changes: str) -> Facts:
    return wiring(running={**WIRING.running, **changes})


def relative(version: str, **keys: str) -> Wiring:
    """Return the facts of a Slurm that runs the hooks by relative paths."""
    file = {**WIRING.file, **keys}
    others = {key: value for key, value in WIRING.running.items() if not key.startswith("Epilog")}
    return replace(WIRING, running={**others, **file, "SLURM_VERSION": version}, file=file)


def scratch(**changes: Any) -> Facts:
    return replace(GOOD, scratch=(replace(SCRATCH, **changes),))


def apptainer(*binds: str, user_binds: bool = True, home: bool = True, **changes: str) -> Facts:
    """Return the facts of a site with Apptainer. changes: of the configuration."""
    return replace(
        wiring(apptainer=(Apptainer("/etc/apptainer/apptainer.conf", binds, user_binds, home),)),
        compiled=replace(GOOD.compiled, **changes),
    )


def log(**changes: Any) -> Facts:
    assert GOOD.log
    return replace(GOOD, log=replace(GOOD.log, **changes))


MISSING = Script("/x", "missing", executable=False)
SITE_PROLOG = Script("/etc/slurm/taskprolog.sh", "other")
FAULTS: dict[str, tuple[Facts, str, str, str]] = {
    "configuration is invalid": (compiled(problems=("jobcache.yaml:3: moed: unknown key",)), "config valid", "problem", "moed"),
    "nothing is compiled": (compiled(settings_error="no such file"), "config compiled", "problem", "no such file"),
    "compiled files are stale": (compiled(stale=(f"{LIB}/policy.sh",)), "config current", "problem", "policy.sh"),
    "compiled files are writable": (
        compiled(insecure=(f"{LIB} is writable by other users",)), "config private", "problem", "other users",
    ),
    "settings are of another version": (compiled(version="0"), "config version", "warning", "jobcache 0"),
    "hooks are off": (compiled(off=True), "config off", "warning", f"{LIB}/off"),
    "mode is observe": (compiled(mode="observe"), "config mode", "warning", "observe"),
    "Python fails": (
        replace(GOOD, interpreters=(Interpreter("/opt/py", "epilog", "root", error="libpython3.11.so.1.0: cannot open"),)),
        "hooks python", "problem", "libpython",
    ),
    "Slurm is down": (wiring(error="Unable to contact"), "slurm answers", "problem", "Unable"),
    "TaskProlog is not set": (wiring(task_prologs=()), "slurm TaskProlog", "problem", "not set"),
    "TaskProlog is missing": (wiring(task_prologs=(MISSING,)), "slurm TaskProlog", "problem", "cancels"),
    "TaskProlog is the site's": (wiring(task_prologs=(SITE_PROLOG,)), "slurm TaskProlog", "problem", "taskprolog.sh"),
    "TaskProlog is not executable": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], executable=False),)), "slurm TaskProlog", "problem", "executable",
    ),
    "TaskProlog is unreachable": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], unreachable="alice cannot run it"),)),
        "slurm TaskProlog", "problem", "cannot run it",
    ),
    "TaskProlog is writable": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], insecure="is writable by other users"),)),
        "slurm TaskProlog", "problem", "writable",
    ),
    "TaskProlog reads another policy": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], lib="/opt/old"),)), "slurm TaskProlog", "warning", "/opt/old",
    ),
    "TaskProlog is of another version": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], shipped=False),)), "slurm TaskProlog", "warning", "version",
    ),
    "chain is missing": (
        wiring(chain=Script("/s", "missing", executable=False)), "slurm chain", "problem", "does not run",
    ),
    "chain runs the hook again": (wiring(chain=Script("/s", "hook", lib=LIB)), "slurm chain", "problem", "endless loop"),
    "Epilog is not set": (wiring(epilogs=()), "slurm Epilog", "problem", "not set"),
    "Epilog is missing": (
        wiring(epilogs=(MISSING, *WIRING.epilogs)), "slurm Epilog", "problem", "drains",
    ),
    "Epilog is the site's": (wiring(epilogs=(Script("/etc/slurm/epilog.sh", "other"),)), "slurm Epilog", "problem", "epilog.sh"),
    "Epilog is readable by root only": (
        wiring(epilogs=(Script("/etc/slurm/epilog.sh", "unreadable", executable=False),)), "slurm Epilog", "warning", "unknown",
    ),
    "Epilog is a glob of no file": (
        wiring(epilogs=(), epilog_pattern="/etc/slurm/epilog.d/*"), "slurm Epilog", "problem", "drains",
    ),
    "slurmctld has an older slurm.conf": (
        wiring(file={**WIRING.file, "Epilog": "/new"}), "slurm reconfigured", "warning", "/new",
    ),
    "PrologEpilogTimeout is short": (running(PrologEpilogTimeout="30"), "slurm EpilogTimeout", "problem", "30"),
    "EpilogTimeout is short": (running(EpilogTimeout="10 sec"), "slurm EpilogTimeout", "problem", "EpilogTimeout=10"),
    "MinJobAge is long": (running(MinJobAge="7200 sec"), "slurm MinJobAge", "warning", "7200"),
    "PrivateData hides jobs": (
        replace(running(PrivateData="jobs,users"), root=False), "slurm PrivateData", "warning", "their own",
    ),
    "settings are for another cluster": (
        replace(running(ClusterName="tiger"), compiled=replace(GOOD.compiled, cluster="lion")),
        "slurm ClusterName", "problem", "compiled for lion",
    ),
    "TaskProlog is compiled for another cluster": (
        replace(
            running(ClusterName="tiger"),
            wiring=replace(
                WIRING, running={**WIRING.running, "ClusterName": "tiger"},
                task_prologs=(replace(WIRING.task_prologs[0], cluster="lion"),),
            ),
        ),
        "slurm TaskProlog", "problem", "cluster lion",
    ),
    "TaskProlog is relative": (
        replace(GOOD, wiring=relative("25.05.3", TaskProlog="task-prolog")),
        "slurm TaskProlog", "problem", "cancels",
    ),
    "Epilog is relative": (
        replace(GOOD, wiring=relative("23.02.7", Epilog="epilog.d/*")), "slurm Epilog", "problem", "drains",
    ),
    "Epilog does not run as root": (running(SlurmdUser="slurm(64030)"), "slurm SlurmdUser", "problem", "not run as root"),
    "Epilog runs as a user whose name begins like root's": (
        running(SlurmdUser="rootless(1001)"), "slurm SlurmdUser", "problem", "not run as root",
    ),
    "TaskProlog is a pattern": (
        wiring(task_prologs=(Script("/etc/slurm/taskprolog.d/*", "missing", executable=False),)),
        "slurm TaskProlog", "problem", "is a pattern",
    ),
    "Prolog runs a hook": (
        wiring(hooks_in_prolog=((f"{HOOKS}/task-prolog", "TaskProlog"),)), "slurm Prolog", "problem", "jobcache's TaskProlog",
    ),
    "keep_failed has no effect": (
        replace(running(SLURM_VERSION="21.08.8-2"), keep_failed=60.0), "slurm keep_failed", "warning", "exit status",
    ),
    "TaskProlog is the Epilog": (
        wiring(task_prologs=(Script(f"{HOOKS}/epilog", "swapped"),)), "slurm TaskProlog", "problem", "jobcache's Epilog",
    ),
    "Epilog is the TaskProlog": (
        wiring(epilogs=(Script(f"{HOOKS}/task-prolog", "swapped"),)), "slurm Epilog", "problem", "jobcache's TaskProlog",
    ),
    "Epilog is not executable": (
        wiring(epilogs=(replace(WIRING.epilogs[0], executable=False),)), "slurm Epilog", "problem", "drains",
    ),
    "cache is in a private /tmp": (
        replace(scratch(template="/tmp/{user}/c-{job_id}"), wiring=replace(WIRING, tmpfs_dirs=("/tmp", "/dev/shm"))),
        "slurm job_container", "problem", "private /tmp",
    ),
    "enroot does not mount the hooks": (wiring(pyxis="required spank_pyxis.so"), "slurm pyxis", "problem", HOOKS),
    "enroot does not mount scratch": (
        wiring(pyxis="required spank_pyxis.so", container_mounts=("/usr/libexec", "/var/lib")),
        "slurm pyxis", "warning", "/scratch/gpfs",
    ),
    "Apptainer ignores the mount": (apptainer(user_binds=False), "slurm apptainer", "warning", "user bind control"),
    "Apptainer does not mount scratch": (apptainer("/scratch/x", apptainer="off"), "slurm apptainer", "warning", "/scratch/gpfs"),
    "Apptainer does not mount the store": (
        apptainer(site_store="/data/hf-store"), "slurm apptainer", "warning", "/data/hf-store",
    ),
    "scratch hangs": (scratch(hung="writing in /scratch"), "scratch answers", "problem", "writing"),
    "scratch is closed": (scratch(error="[Errno 13] Permission denied"), "scratch writable", "problem", "denied"),
    "user has no directory": (
        scratch(existing="/scratch/gpfs", error="Permission denied"),
        "scratch writable", "problem", "/scratch/gpfs/alice does not exist",
    ),
    "symlink is in the path": (scratch(user_symlink=True, error="[Errno 40]"), "scratch link", "problem", "symlink"),
    "scratch is full": (scratch(free=5), "scratch space", "problem", "0.5 %"),
    "scratch is nearly full": (scratch(free=40), "scratch space", "warning", "4.0 %"),
    "inodes are used up": (scratch(inodes_free=1), "scratch inodes", "problem", "inodes"),
    "local disk is not in node_local": (scratch(fstype="xfs"), "scratch filesystem", "warning", "xfs"),
    "shared filesystem is in node_local": (scratch(local=True), "scratch filesystem", "warning", "node_local"),
    "mount has localflock": (scratch(fstype="lustre", options=("rw", "localflock")), "scratch flock", "warning", "localflock"),
    "autofs hides users": (scratch(on_demand="/scratch"), "scratch autofs", "warning", "at most 256 accounts"),
    "autofs unmounts early": (scratch(expires_early=True), "scratch autofs", "warning", "`sweep.confirm`"),
    "flock excludes nobody": (scratch(flock=OBTAINED), "scratch flock", "warning", "at once"),
    "flock fails": (scratch(flock="Function not implemented"), "scratch flock", "warning", "not implemented"),
    "flock excludes on one node only": (
        scratch(flock_across={"n2": OBTAINED}), "scratch flock across nodes", "warning", "n2",
    ),
    "node does not answer": (
        scratch(flock_across={"1 of the nodes": "no answer in time"}), "scratch flock across nodes", "warning", "no answer",
    ),
    "log has no directory": (log(error="/var/log/jobcache does not exist"), "log file", "problem", "does not exist"),
    "log is writable": (log(insecure="/l is writable by other users"), "log file", "problem", "forge"),
    "syslog is off": (log(syslog=None), "log syslog", "warning", "lost"),
    "syslog does not answer": (log(syslog_error="Connection refused"), "log syslog", "warning", "refused"),
    "hooks fail": (log(failures={"deadline": 3}), "log hook failures", "warning", "3 deadline"),
    "jobs build the same again": (
        log(rebuilt=(Rebuilt("bob", 5, 6, 2 * 10**9, 8 * 10**9), Rebuilt("alice", 9, 9, 3 * 10**9, 24 * 10**9))),
        "log same data again", "warning", "alice (9 caches of 3.0 GB), bob (5 caches of 2.0 GB)",
    ),
    "timer is missing": (replace(GOOD, schedule=Schedule(systemd=True, timer="missing")), "sweep schedule", "warning", "missing"),
    "cron is idle": (
        replace(GOOD, schedule=Schedule(cron=True, cron_idle="no cron daemon runs")), "sweep schedule", "warning", "daemon",
    ),
    "last sweep is old": (log(last_sweep=200000.0), "sweep last", "warning", "56 h"),
    "last sweep had an error": (log(sweep_error="slurm_down"), "sweep last", "warning", "slurm_down"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_one_finding_with_a_remedy(fault: str) -> None:
    """The fault is the only finding, with its level and a line to paste."""
    facts, name, level, text = FAULTS[fault]
    (one,) = faults(facts)
    assert (f"{one.area} {one.name}", one.level) == (name, level)
    assert text in one.fact and one.remedy


@pytest.mark.parametrize(
    "facts",
    [
        wiring(task_prologs=(Script("/etc/slurm/all.sh", "chained"),), epilogs=(Script("/etc/slurm/e.sh", "chained"),)),
        wiring(epilogs=(*WIRING.epilogs, Script("/etc/slurm/epilog.d/10-site", "other"))),
        wiring(epilogs=(*WIRING.epilogs, Script("/etc/slurm/epilog.d/10-site", "unreadable", executable=False))),
        wiring(chain=SITE_PROLOG),
        wiring(tmpfs_dirs=("/tmp",)),
        wiring(pyxis="x", container_mounts=("/usr/libexec/jobcache", LIB, "/scratch")),
        apptainer(),
        apptainer(home=False),
        apptainer("/scratch", user_binds=False),
        apptainer("/scratch/gpfs", apptainer="off"),
        apptainer(site_store="/scratch/gpfs/hf-store"),
        apptainer("/data", site_store="/data/{cluster}/hf-store"),
        replace(apptainer(apptainer="off", user_binds=False), scratch=(replace(SCRATCH, template="/tmp/{user}/c-{job_id}"),)),
        running(PrologEpilogTimeout="65534"),
        running(PrologEpilogTimeout="10", PrologFlags="Alloc,RunInJob"),
        running(PrivateData="jobs"),
        replace(running(ClusterName="tiger"), compiled=replace(GOOD.compiled, cluster="tiger")),
        scratch(fstype="xfs", local=True),
        scratch(fstype="ext4", has_node=True),
        scratch(inodes=0, inodes_free=0),
        scratch(parent="/scratch/gpfs/alice/.cache", existing="/scratch/gpfs/alice", flock_across=None, squashed=None),
        log(last_sweep=None),
        replace(GOOD, schedule=Schedule(cron=True)),
        replace(GOOD, log=None, schedule=None, root=False),
    ],
)  # fmt: skip
def test_sites_differ_without_fault(facts: Facts) -> None:
    """None of these variants has a fault."""
    assert faults(facts) == []


def test_one_fault_hides_no_other() -> None:
    """Three faults in three areas give three findings."""
    facts = replace(
        FAULTS["TaskProlog is not set"][0],
        compiled=FAULTS["compiled files are stale"][0].compiled,
        scratch=FAULTS["flock fails"][0].scratch,
    )
    assert [one.name for one in faults(facts)] == ["current", "TaskProlog", "flock"]


def test_without_settings_slurm_is_not_checked() -> None:
    """Unchecked items are neither OK nor faults, and no remedy names an unknown hook."""
    found = faults(Facts(replace(GOOD.compiled, problems=("cluster: Slurm does not answer",), settings_error="missing")))
    assert [(one.area, one.name) for one in found] == [("config", "valid"), ("config", "compiled"), ("config", "settings")]
    assert not any("TaskProlog" in one.remedy or "scontrol" in one.remedy for one in found)


def test_missing_settings_are_one_finding() -> None:
    """Compiled files that do not exist are not reported as stale, too."""
    facts = compiled(settings_error=f"{LIB}/settings.json: No such file", stale=(f"{LIB}/settings.json", f"{LIB}/policy.sh"))
    assert [one.name for one in faults(facts)] == ["compiled"]


@pytest.mark.parametrize(
    "template, parent, existing, remedy",
    [
        ("/scratch/{user}/hf-{job_id}", "/scratch/alice", "/", "ls -ld /scratch "),
        ("/scratch/{cluster}/{user}/hf-{job_id}", "/scratch/tiger/alice", "/scratch", "ls -ld /scratch/tiger "),
        ("/scratch/{user}/hf-{job_id}", "/scratch/alice", "/scratch", "install -d -m 700 -o alice /scratch/alice "),
        ("/s/{uid}/c/hf-{job_id}", "/s/5/c", "/s", "install -d -m 700 -o alice /s/5 "),
    ],
)
def test_remedy_creates_only_directories_of_the_user(template: str, parent: str, existing: str, remedy: str) -> None:
    """A directory above the user's is not created, and not given to the user."""
    (one,) = faults(scratch(template=template, parent=parent, existing=existing, error="Permission denied"))
    assert one.remedy.startswith(remedy)


def test_remedy_of_missing_chain_is_not_chmod() -> None:
    """A missing file must be created; only an existing one is made executable."""
    (one,) = faults(wiring(chain=Script("/s", "missing", executable=False)))
    assert "chmod" not in one.remedy and "task_prolog.chain" in one.remedy
    (one,) = faults(wiring(chain=Script("/s", "other", executable=False)))
    assert one.remedy == "chmod 755 /s"


def remedies(facts: Facts) -> str:
    return "\n".join(one.remedy for one in faults(facts))


def test_remedy_keeps_what_the_site_configured() -> None:
    """If one of several Epilogs is missing, the others stay. A slurm.conf that is a symlink stays one."""
    several = remedies(wiring(epilogs=(MISSING, Script("/etc/slurm/site.sh", "other"), *WIRING.epilogs)))
    assert "sed" not in several and "/x" in several
    assert "sed -i --follow-symlinks" in remedies(wiring(epilogs=(MISSING,)))


def test_remedy_of_swapped_hook_keeps_other_epilogs() -> None:
    """Slurm has several lines with an Epilog, and one of them is the site's."""
    epilogs = (Script("/etc/slurm/epilog.sh", "other"), Script(f"{HOOKS}/task-prolog", "swapped"))
    (swapped,) = [one for one in faults(wiring(epilogs=epilogs)) if "jobcache's TaskProlog" in one.fact]
    assert "sed" not in swapped.remedy and f"{HOOKS}/epilog" in swapped.remedy


def test_remedy_is_no_glob_over_other_files() -> None:
    """With Epilog=/etc/slurm/*, Slurm runs slurm.conf and drains every node."""
    single = wiring(epilogs=(Script("/etc/slurm/epilog.sh", "other"),), running={"Epilog[0]": "/etc/slurm/epilog.sh"})
    assert "Epilog=/etc/slurm/*" not in remedies(single) and "Epilog=/etc/slurm/epilog.d/*" in remedies(single)
    assert "ln -s /etc/slurm/epilog.sh /etc/slurm/epilog.d/60-site" in remedies(single)
    among = wiring(epilogs=(Script("/opt/e.d/10-a", "other"),), running={"Epilog[0]": "/opt/e.d/*"})
    assert f"ln -s {HOOKS}/epilog /opt/e.d/50-jobcache" in remedies(among)
