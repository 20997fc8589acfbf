"""What `jobcache check` makes of the facts: each fault is found, says its mend, and nothing else is said to be wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobcache.diagnostics import check
from jobcache.diagnostics.check import Compiled, Facts, Finding, Interpreter, Log, Schedule, Scratch, Script, Wiring

LIB = "/var/lib/jobcache"
HOOKS = "/usr/libexec/jobcache"
SCRATCH = Scratch(
    "/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}", "alice", parent="/scratch/gpfs/alice/.cache",
    above="/scratch/gpfs/alice/.cache", fstype="gpfs", total=1000, free=500, inodes=1000, inodes_free=500,
    flock=check.EXCLUDED, across={"n2": check.EXCLUDED}, squashed=True,
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
    task_prologs=(Script(f"{HOOKS}/task-prolog", "ours", lib=LIB),),
    epilogs=(Script(f"{HOOKS}/epilog", "ours", lib=LIB),),
)
GOOD = Facts(
    Compiled("/etc/jobcache/jobcache.yaml", LIB, version="1", our_version="1"),
    (Interpreter("/usr/bin/python3", "task-prolog", "alice", version="3.11.2"),),
    WIRING,
    (SCRATCH,),
    Log("/var/log/jobcache/events.jsonl", syslog="/dev/log", last_sweep=1800.0),
    Schedule(systemd=True, timer="active"),
    hooks=HOOKS,
)  # fmt: skip


def bad(facts: Facts) -> list[Finding]:
    return [one for one in check.findings(facts) if one.level != check.OK]


def test_nothing_is_wrong() -> None:
    """With all as it should be, each area has something to say, and nothing of it is bad."""
    assert bad(GOOD) == []
    assert {one.area for one in check.findings(GOOD)} == {"config", "hooks", "slurm", "scratch", "log", "sweep"}


def compiled(**changes: Any) -> Facts:
    return replace(GOOD, compiled=replace(GOOD.compiled, **changes))


def wiring(**changes: Any) -> Facts:
    return replace(GOOD, wiring=replace(WIRING, **changes))


def running(**changes: str) -> Facts:
    return wiring(running={**WIRING.running, **changes})


def scratch(**changes: Any) -> Facts:
    return replace(GOOD, scratch=(replace(SCRATCH, **changes),))


def log(**changes: Any) -> Facts:
    assert GOOD.log
    return replace(GOOD, log=replace(GOOD.log, **changes))


GONE = Script("/x", "missing", executable=False)
SITE_PROLOG = Script("/etc/slurm/taskprolog.sh", "other")
FAULTS: dict[str, tuple[Facts, str, str, str]] = {
    "invalid": (compiled(problems=("jobcache.yaml:3: moed: unknown key",)), "config valid", "problem", "moed"),
    "not compiled": (compiled(settings_error="no such file"), "config compiled", "problem", "no such file"),
    "stale": (compiled(stale=(f"{LIB}/policy.sh",)), "config current", "problem", "policy.sh"),
    "others may write": (compiled(insecure=(f"{LIB}: others may write",)), "config private", "problem", "others"),
    "another version compiled it": (compiled(version="0"), "config version", "warning", "jobcache 0"),
    "off": (compiled(off=True), "config off", "warning", f"{LIB}/off"),
    "observe": (compiled(mode="observe"), "config mode", "warning", "observe"),
    "python": (
        replace(GOOD, interpreters=(Interpreter("/opt/py", "epilog", "root", error="libpython3.11.so.1.0: cannot open"),)),
        "hooks python", "problem", "libpython",
    ),
    "slurm is down": (wiring(unknown="Unable to contact"), "slurm answers", "problem", "Unable"),
    "no TaskProlog": (wiring(task_prologs=()), "slurm TaskProlog", "problem", "not set"),
    "TaskProlog gone": (wiring(task_prologs=(GONE,)), "slurm TaskProlog", "problem", "cancels"),
    "the site's TaskProlog": (wiring(task_prologs=(SITE_PROLOG,)), "slurm TaskProlog", "problem", "taskprolog.sh"),
    "TaskProlog not executable": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], executable=False),)), "slurm TaskProlog", "problem", "executable",
    ),
    "TaskProlog out of reach": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], unreachable="alice cannot run it"),)),
        "slurm TaskProlog", "problem", "cannot run it",
    ),
    "TaskProlog insecure": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], insecure="others may write it"),)),
        "slurm TaskProlog", "problem", "write",
    ),
    "TaskProlog of another lib": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], lib="/opt/old"),)), "slurm TaskProlog", "warning", "/opt/old",
    ),
    "TaskProlog of another version": (
        wiring(task_prologs=(replace(WIRING.task_prologs[0], shipped=False),)), "slurm TaskProlog", "warning", "version",
    ),
    "chain gone": (wiring(chain=Script("/s", "missing", executable=False)), "slurm chain", "problem", "not run"),
    "chain to ourselves": (wiring(chain=Script("/s", "ours", lib=LIB)), "slurm chain", "problem", "without end"),
    "no Epilog": (wiring(epilogs=()), "slurm Epilog", "problem", "not set"),
    "Epilog gone": (
        wiring(epilogs=(GONE, *WIRING.epilogs)), "slurm Epilog", "problem", "drains",
    ),
    "the site's Epilog": (wiring(epilogs=(Script("/etc/slurm/epilog.sh", "other"),)), "slurm Epilog", "problem", "epilog.sh"),
    "an Epilog that is root's to read": (
        wiring(epilogs=(Script("/etc/slurm/epilog.sh", "closed", executable=False),)), "slurm Epilog", "warning", "not known",
    ),
    "an empty glob": (wiring(epilogs=(), epilog_pattern="/etc/slurm/epilog.d/*"), "slurm Epilog", "problem", "drains"),
    "not reconfigured": (
        wiring(file={**WIRING.file, "Epilog": "/new"}), "slurm reconfigured", "warning", "/new",
    ),
    "too short a limit": (running(PrologEpilogTimeout="30"), "slurm EpilogTimeout", "problem", "30"),
    "too short a limit of the Epilog's": (running(EpilogTimeout="10 sec"), "slurm EpilogTimeout", "problem", "EpilogTimeout=10"),
    "MinJobAge": (running(MinJobAge="7200 sec"), "slurm MinJobAge", "warning", "7200"),
    "PrivateData": (
        replace(running(PrivateData="jobs,users"), root=False), "slurm PrivateData", "warning", "their own",
    ),
    "another cluster": (
        replace(running(ClusterName="tiger"), compiled=replace(GOOD.compiled, cluster="lion")),
        "slurm ClusterName", "problem", "compiled in lion",
    ),
    "Epilog for TaskProlog": (
        wiring(task_prologs=(Script(f"{HOOKS}/epilog", "swapped"),)), "slurm TaskProlog", "problem", "our Epilog",
    ),
    "TaskProlog for Epilog": (
        wiring(epilogs=(Script(f"{HOOKS}/task-prolog", "swapped"),)), "slurm Epilog", "problem", "our TaskProlog",
    ),
    "Epilog not executable": (
        wiring(epilogs=(replace(WIRING.epilogs[0], executable=False),)), "slurm Epilog", "problem", "drains",
    ),
    "private tmp": (
        replace(scratch(template="/tmp/{user}/c-{job_id}"), wiring=replace(WIRING, tmpfs_dirs=("/tmp", "/dev/shm"))),
        "slurm job_container", "problem", "/tmp of its own",
    ),
    "pyxis without mount": (wiring(pyxis="required spank_pyxis.so"), "slurm pyxis", "problem", HOOKS),
    "pyxis without scratch": (
        wiring(pyxis="required spank_pyxis.so", container_mounts=("/usr/libexec", "/var/lib")),
        "slurm pyxis", "warning", "/scratch/gpfs",
    ),
    "scratch hangs": (scratch(hung="writing in /scratch"), "scratch answers", "problem", "writing"),
    "scratch is closed": (scratch(error="[Errno 13] Permission denied"), "scratch writable", "problem", "denied"),
    "a user without a directory": (
        scratch(above="/scratch/gpfs", error="Permission denied"), "scratch writable", "problem", "/scratch/gpfs/alice is not",
    ),
    "a link in the path": (scratch(link=True, error="[Errno 40]"), "scratch link", "problem", "symlink"),
    "scratch is full": (scratch(free=5), "scratch space", "problem", "0.5 %"),
    "scratch gets full": (scratch(free=40), "scratch space", "warning", "4.0 %"),
    "no inodes": (scratch(inodes_free=1), "scratch inodes", "problem", "inodes"),
    "a local disk": (scratch(fstype="xfs"), "scratch filesystem", "warning", "xfs"),
    "a shared node_local": (scratch(local=True), "scratch filesystem", "warning", "node_local"),
    "localflock": (scratch(fstype="lustre", options=("rw", "localflock")), "scratch flock", "warning", "localflock"),
    "flock says yes to all": (scratch(flock=check.OBTAINED), "scratch flock", "warning", "at once"),
    "no flock": (scratch(flock="Function not implemented"), "scratch flock", "warning", "not implemented"),
    "flock ends at the node": (scratch(across={"n2": check.OBTAINED}), "scratch flock across nodes", "warning", "n2"),
    "a node that is silent": (
        scratch(across={"(1 more)": "they said nothing"}), "scratch flock across nodes", "warning", "nothing",
    ),
    "no log": (log(error="/var/log/jobcache is not there"), "log file", "problem", "not there"),
    "a log that all can write": (log(insecure="others may write it"), "log file", "problem", "forged"),
    "no syslog": (log(syslog=None), "log syslog", "warning", "nowhere"),
    "syslog is dead": (log(syslog_error="Connection refused"), "log syslog", "warning", "refused"),
    "hooks fail": (log(failures={"deadline": 3}), "log hook failures", "warning", "3 deadline"),
    "no timer": (replace(GOOD, schedule=Schedule(systemd=True, timer="missing")), "sweep schedule", "warning", "missing"),
    "cron is idle": (
        replace(GOOD, schedule=Schedule(cron=True, cron_idle="no cron daemon runs")), "sweep schedule", "warning", "daemon",
    ),
    "a sweep long ago": (log(last_sweep=200000.0), "sweep last", "warning", "56 h"),
    "a sweep with trouble": (log(sweep_error="slurm_down"), "sweep last", "warning", "slurm_down"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    """It is the one thing that is wrong, is as bad as it should be, and says how it is mended."""
    facts, what, level, words = FAULTS[fault]
    (one,) = bad(facts)
    assert (f"{one.area} {one.name}", one.level) == (what, level)
    assert words in one.fact and one.mend


@pytest.mark.parametrize(
    "facts",
    [
        wiring(task_prologs=(Script("/etc/slurm/all.sh", "chained"),), epilogs=(Script("/etc/slurm/e.sh", "chained"),)),
        wiring(epilogs=(*WIRING.epilogs, Script("/etc/slurm/epilog.d/10-site", "other"))),
        wiring(epilogs=(*WIRING.epilogs, Script("/etc/slurm/epilog.d/10-site", "closed", executable=False))),
        wiring(chain=SITE_PROLOG),
        wiring(tmpfs_dirs=("/tmp",)),
        wiring(pyxis="x", container_mounts=("/usr/libexec/jobcache", LIB, "/scratch")),
        running(PrologEpilogTimeout="65534"),
        running(PrologEpilogTimeout="10", PrologFlags="Alloc,RunInJob"),
        running(PrivateData="jobs"),
        replace(running(ClusterName="tiger"), compiled=replace(GOOD.compiled, cluster="tiger")),
        scratch(fstype="xfs", local=True),
        scratch(fstype="ext4", has_node=True),
        scratch(inodes=0, inodes_free=0),
        scratch(parent="/scratch/gpfs/alice/.cache", above="/scratch/gpfs/alice", across=None, squashed=None),
        log(last_sweep=None),
        replace(GOOD, schedule=Schedule(cron=True)),
        replace(GOOD, log=None, schedule=None, root=False),
    ],
)  # fmt: skip
def test_what_is_fine(facts: Facts) -> None:
    """Sites differ, and none of these is wrong."""
    assert bad(facts) == []


def test_several_faults_are_all_found() -> None:
    """One fault hides no other."""
    facts = replace(FAULTS["no TaskProlog"][0], compiled=FAULTS["stale"][0].compiled, scratch=FAULTS["no flock"][0].scratch)
    assert [one.name for one in bad(facts)] == ["current", "TaskProlog", "flock"]


def test_without_settings_nothing_is_said_of_slurm() -> None:
    """What was not looked at is neither fine nor wrong, and no line is given to paste that names no hook."""
    found = bad(Facts(replace(GOOD.compiled, problems=("cluster: Slurm does not tell its name",), settings_error="none")))
    assert [(one.area, one.name) for one in found] == [("config", "valid"), ("config", "compiled"), ("config", "settings")]
    assert not any("TaskProlog" in one.mend or "scontrol" in one.mend for one in found)


def test_nothing_compiled_is_said_once() -> None:
    """Files that are not there are not called stale as well."""
    facts = compiled(settings_error=f"{LIB}/settings.json: No such file", stale=(f"{LIB}/settings.json", f"{LIB}/policy.sh"))
    assert [one.name for one in bad(facts)] == ["compiled"]


@pytest.mark.parametrize(
    "template, parent, above, mend",
    [
        ("/scratch/{user}/hf-{job_id}", "/scratch/alice", "/", "ls -ld /scratch "),
        ("/scratch/{cluster}/{user}/hf-{job_id}", "/scratch/tiger/alice", "/scratch", "ls -ld /scratch/tiger "),
        ("/scratch/{user}/hf-{job_id}", "/scratch/alice", "/scratch", "install -d -m 700 -o alice /scratch/alice "),
        ("/s/{uid}/c/hf-{job_id}", "/s/5/c", "/s", "install -d -m 700 -o alice /s/5 "),
    ],
)
def test_what_is_to_be_made_and_whose_it_is(template: str, parent: str, above: str, mend: str) -> None:
    """A user's directory is made for the user; what stands above it is never given to one."""
    (one,) = bad(scratch(template=template, parent=parent, above=above, error="Permission denied"))
    assert one.mend.startswith(mend)


def test_what_is_not_there_is_not_made_executable() -> None:
    (one,) = bad(wiring(chain=Script("/s", "missing", executable=False)))
    assert "chmod" not in one.mend and "task_prolog.chain" in one.mend
    (one,) = bad(wiring(chain=Script("/s", "other", executable=False)))
    assert one.mend == "chmod 755 /s"


def mends(facts: Facts) -> str:
    return "\n".join(one.mend for one in bad(facts))


def test_a_mend_takes_nothing_away_that_is_the_sites() -> None:
    """One of several Epilogs is gone: the others stay. A slurm.conf that is a link stays one."""
    several = mends(wiring(epilogs=(GONE, Script("/etc/slurm/site.sh", "other"), *WIRING.epilogs)))
    assert "sed" not in several and "/x" in several
    assert "sed -i --follow-symlinks" in mends(wiring(epilogs=(GONE,)))


def test_a_mend_makes_no_glob_of_other_files() -> None:
    """Epilog=/etc/slurm/* would have Slurm run slurm.conf, and drain every node."""
    single = wiring(epilogs=(Script("/etc/slurm/epilog.sh", "other"),), running={"Epilog[0]": "/etc/slurm/epilog.sh"})
    assert "Epilog=/etc/slurm/*" not in mends(single) and "Epilog=/etc/slurm/epilog.d/*" in mends(single)
    assert "ln -s /etc/slurm/epilog.sh /etc/slurm/epilog.d/60-site" in mends(single)
    among = wiring(epilogs=(Script("/opt/e.d/10-a", "other"),), running={"Epilog[0]": "/opt/e.d/*"})
    assert f"ln -s {HOOKS}/epilog /opt/e.d/50-jobcache" in mends(among)
