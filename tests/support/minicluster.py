#!/usr/bin/env python3
"""A temporary Slurm cluster on one machine, in one directory.

As a library: `with Cluster() as cluster: cluster.run("srun", "-N2", "hostname")`.
As a program: `minicluster.py -- srun -N2 hostname`, or without a command for a shell that uses the cluster.

No process outlives the cluster. Each daemon runs below a keeper. The keeper is a child subreaper: it inherits all processes
that the daemon starts, such as slurmstepds, jobs and their runaway children. It kills all of them on an order, or when its
owner ends. So the cluster knows its processes by descent, and signals no other process of the machine.

The cluster needs no cgroups, no systemd and no name service. Without root, all jobs run as the caller. It needs a Slurm that
was built with --enable-multiple-slurmd, like Debian's Slurm.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import functools
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

# The Debian package of each program, for the error message. The directories of the programs make up PATH, in this order:
# a Slurm outside of the system's directories precedes the system's Slurm, which is in the directory of munged.
PACKAGES = {
    **dict.fromkeys(("sinfo", "squeue", "scontrol", "scancel", "sbatch", "srun", "salloc"), "slurm-client"),
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "munged": "munge",
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

END_STATES = frozenset(
    {
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "PREEMPTED",
        "BOOT_FAIL",
        "DEADLINE",
        "OUT_OF_MEMORY",
        "REVOKED",
    }
)
PARTITIONS = {"debug": "Default=YES", "other": ""}

# The path of a unix socket has at most 107 bytes. slurmstepd's socket, below the cluster's directory, takes up to 50 of them.
LONGEST_DIR = 57

START_TIMEOUT = 30.0  # seconds; a start takes a fraction of a second
END_TIMEOUT = 15.0
POLL = 0.01

PORT_ATTEMPTS = 3
PORT_TAKEN = "Address already in use"  # a message in the log of the daemon
ONE_SLURMD_ONLY = "Duplicated NodeHostName"

KEEPER = "--keep-daemon"  # the argument that makes this program a keeper
END = b"\0"  # an order to a keeper; every other byte is the number of a signal
PR_SET_CHILD_SUBREAPER = 36
TCP_LISTEN = "0A"


class ClusterError(Exception):
    """The cluster, or a command on it, failed; the message ends with the last lines of the daemons' logs."""


class PortTakenError(ClusterError):
    """A daemon ended because another process took its port after the port was chosen."""


class Cluster:
    """A controller and `nodes` compute nodes (n1, n2 …) of `cpus` CPUs each. All nodes are this machine.

    name        ClusterName; by default a unique name, so that two clusters never share one.
    conf        lines for slurm.conf ("Epilog=/x"), or a mapping; they replace the defaults below.
    partitions  name → options; every partition has all nodes.
    root        parent of the cluster's directory; must be short, because sockets lie below.
    keep        keep the directory with the logs; can also be set later, before stop().
    path        PATH to search for Slurm's programs; by default the caller's PATH, then the system's.

    The constructor creates the directory, so that hooks can be put there before start(). stop() removes it.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        nodes: int = 2,
        cpus: int = 8,
        conf: Mapping[str, str] | Iterable[str] = (),
        partitions: Mapping[str, str] = PARTITIONS,
        root: Path | str = "/tmp",
        keep: bool = False,
        path: str | None = None,
    ) -> None:
        self._programs = find_programs(path or f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
        self.nodes = tuple(f"n{number}" for number in range(1, nodes + 1))
        self.cpus = cpus
        self.partitions = dict(partitions)
        self.keep = keep
        self.dir = _make_dirs(Path(root), self.nodes)
        self.scratch = self.dir / "scratch"  # shared by the nodes, open to all users
        self.conf_file = self.dir / "etc" / "slurm.conf"
        self.env = _clean_env(self._programs, self.conf_file)
        self.name = name or self.dir.name.replace("-", "")
        self._conf = _lines(conf)
        self._ports: dict[str, int] = {}  # by daemon
        self._kept: dict[str, list[_Kept]] = {}  # by daemon, its latest start last; jobs can still run below an earlier start
        self._stopped = False

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # ---- the cluster's life

    def start(self) -> None:
        """Return when the controller answers and all nodes are idle. If the start fails, leave nothing behind."""
        try:
            self._start_munged()
            for attempts_left in reversed(range(PORT_ATTEMPTS)):
                try:
                    self._start_slurm()
                    return
                except PortTakenError:
                    if not attempts_left:
                        raise
                    self._clear_for_another_start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill all that the cluster started, jobs included (their Epilogs do not run), and remove its directory."""
        if self._stopped:
            return
        self._end(*self._kept)
        self._stopped = True
        if not self.keep:
            _remove(self.dir)

    def kill_slurmd(self, node: str) -> None:
        """Lose the node: slurmd dies by SIGKILL; the jobs on the node continue."""
        self._signal(_slurmd(node), signal.SIGKILL)

    def crash_node(self, node: str) -> None:
        """Lose the node, as after a power failure: slurmd, slurmstepds and every process of a job there die by SIGKILL."""
        self._end(_slurmd(node))

    def mark_down(self, node: str) -> None:
        """Report the node as lost, so that the controller requeues its jobs at once and not after fifteen seconds."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def start_slurmd(self, node: str, prefix: Sequence[str] = ()) -> None:
        """Return when the node's new slurmd listens; the controller may learn of it later (see wait_node).

        prefix: a command that executes slurmd as its arguments, for example in another mount namespace.
        """
        daemon = _slurmd(node)
        self._launch(daemon, "-D", "-N", node, prefix=prefix)
        self._wait_ready(daemon, lambda: _listening(self._ports[daemon]))

    def stop_controller(self) -> None:
        """Let slurmctld save its state and end."""
        self._signal("slurmctld", signal.SIGTERM)

    def start_controller(self, *, clean: bool = False) -> None:
        """Return when slurmctld answers. With `clean` its state is lost: no jobs, ids from 1."""
        if clean:
            shutil.rmtree(self.dir / "state")  # slurmctld's own option, -c, keeps the last job's id
            (self.dir / "state").mkdir(mode=0o700)
        self._launch("slurmctld", "-D", "-i")
        # No scontrol before slurmctld listens: a refused client tries again only after a second.
        self._wait_ready("slurmctld", lambda: _listening(self._ports["slurmctld"]))
        self._wait_ready("slurmctld", lambda: self.run("scontrol", "ping", check=False).returncode == 0)

    def reconfigure(self, conf: Mapping[str, str] | Iterable[str]) -> None:
        """Replace the lines of `conf`; return when the controller and all live slurmds use the new lines."""
        self._conf = _lines(conf)
        self._write_conf()
        before = {node: self._times_configured(node) for node in self.nodes if self._lives(_slurmd(node))}
        self.run("scontrol", "reconfigure")
        # scontrol does not wait for the slurmds, and a job that starts too early gets the old hooks.
        for node, times in before.items():
            self._wait_configured(node, times)

    # ---- commands and jobs

    def run(
        self,
        *argv: str | Path,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as `user`, in the cluster's directory and its environment plus `env`, without a terminal.

        Raise ClusterError if it takes longer than `timeout` seconds or, with `check`, exits non-zero.
        """
        command = [str(arg) for arg in argv]
        account = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
        switch = account.pw_uid != os.geteuid()
        with subprocess.Popen(
            command,
            env={**self.env, **_account_env(account), **(env or {})},
            cwd=self.dir,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            umask=0o022,
            start_new_session=True,
            user=account.pw_uid if switch else None,
            group=account.pw_gid if switch else None,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if switch else None,
        ) as process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)  # and all processes that a shell or an salloc has started
                if isinstance(error, subprocess.TimeoutExpired):
                    raise self._failure(f"{command} took longer than {timeout} s") from None
                raise
        if check and process.returncode != 0:
            raise self._failure(f"{command} exited {process.returncode}: {err}{out}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    srun = functools.partialmethod(run, "srun")
    salloc = functools.partialmethod(run, "salloc")

    def sbatch(self, script: str, *options: str, user: str | None = None, env: Mapping[str, str] | None = None) -> int:
        """Submit the script and return the job's id. A script for sh needs no #! line."""
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}"
        # On stdin, because the user may be unable to read a file.
        command = ("sbatch", "--parsable", f"--output={self.dir}/out/%j.out", *options)
        return int(self.run(*command, user=user, env=env, input=text).stdout.split(";")[0])

    def output(self, job_id: int) -> str:
        """Return the output of the batch script, stdout and stderr. Each task of an array has its own job id."""
        return (self.dir / "out" / f"{job_id}.out").read_text(errors="replace")

    def jobs(self, job_id: int) -> list[dict[str, str]]:
        """Return the records of `scontrol show job`: one, or one for each task of an array or component of a het job."""
        return [_record(line) for line in self.run("scontrol", "show", "job", "-o", str(job_id)).stdout.splitlines()]

    def job(self, job_id: int) -> dict[str, str]:
        """Return the record of the job with exactly this id, with the names of `scontrol show job`."""
        records = self.jobs(job_id)
        return next((record for record in records if record["JobId"] == str(job_id)), records[0])

    def wait(self, job_id: int, *states: str, timeout: float = 30) -> str:
        """Wait until the job, with all its tasks or components, is in one of the states; return its own state.

        The default is any end state. A job is COMPLETING as long as an Epilog runs on any node. So in an end state, its
        Epilogs have ended too, except on lost nodes.
        """
        wanted = frozenset(states) or END_STATES
        seen = self._poll(
            f"job {job_id}",
            lambda: {record["JobId"]: record["JobState"] for record in self.jobs(job_id)},
            lambda seen: wanted.issuperset(seen.values()),
            timeout,
        )
        return seen.get(str(job_id)) or next(iter(seen.values()))

    def node(self, node: str) -> dict[str, str]:
        """Return the record of the node, with the names of `scontrol show node`."""
        return _record(self.run("scontrol", "show", "node", "-o", node).stdout)

    def node_state(self, node: str) -> str:
        """Return the state that scontrol shows: "IDLE", "MIXED+DRAIN", "DOWN+NOT_RESPONDING" …"""
        return self.node(node)["State"]

    def wait_node(self, node: str, wanted: str | Callable[[str], bool] = "IDLE", timeout: float = 30) -> str:
        """Wait until the node's state with its flags is `wanted`, or until `wanted(state)` is true; return the state."""
        accepts = wanted if callable(wanted) else lambda state: state == wanted
        return self._poll(node, lambda: self.node_state(node), accepts, timeout)

    def log(self, daemon: str) -> str:
        """Return the log of munged, slurmctld or slurmd-n1. If the daemon created no log, return its stderr."""
        for name in (f"{daemon}.log", f"{daemon}.err"):
            with suppress(FileNotFoundError):
                return (self.dir / "log" / name).read_text(errors="replace")
        return ""

    # ---- internals

    def _start_munged(self) -> None:
        key = self.dir / "etc" / "munge.key"
        with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
            file.write(os.urandom(128))
        self._launch(
            "munged",
            "--foreground",
            "--force",  # warn, but do not refuse, if other users can write to a directory above the cluster's
            f"--key-file={key}",
            f"--socket={_munge_socket(self.dir)}",
            f"--pid-file={self.dir}/run/munged.pid",
            f"--seed-file={self.dir}/run/munged.seed",
            f"--log-file={self.dir}/log/munged.log",
        )
        self._wait_ready("munged", _munge_socket(self.dir).exists)

    def _start_slurm(self) -> None:
        daemons = ["slurmctld", *map(_slurmd, self.nodes)]
        self._ports = dict(zip(daemons, _free_ports(len(daemons))))
        self._write_conf()
        (self.dir / "etc" / "cgroup.conf").write_text(_cgroup_conf(self.run("slurmd", "-V").stdout))
        # The controller first: a slurmd without a controller tries again only after a second.
        self.start_controller(clean=True)
        if ONE_SLURMD_ONLY in self.log("slurmctld"):
            raise self._failure("this Slurm was built without --enable-multiple-slurmd: use nodes=1")
        for node in self.nodes:
            self._launch(_slurmd(node), "-D", "-N", node)
        for node in self.nodes:
            self._wait_idle(node)

    def _clear_for_another_start(self) -> None:
        daemons = [daemon for daemon in self._kept if daemon != "munged"]
        self._end(*daemons)
        for daemon in daemons:
            (self.dir / "log" / f"{daemon}.log").unlink(missing_ok=True)

    def _write_conf(self) -> None:
        new = self.conf_file.with_suffix(".new")
        new.write_text("\n".join(self._conf_lines()) + "\n")
        new.replace(self.conf_file)  # clients may be reading it

    def _conf_lines(self) -> list[str]:
        host = socket.gethostname().partition(".")[0]
        me = pwd.getpwuid(os.geteuid()).pw_name
        settings = {
            "ClusterName": self.name,
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(self._ports["slurmctld"]),
            "SlurmUser": me,
            "SlurmdUser": me,
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            # A requeued job waits until its first run's credential has expired: two minutes by default.
            "AuthInfo": f"socket={_munge_socket(self.dir)},cred_expire=5",
            "SlurmctldPidFile": f"{self.dir}/run/slurmctld.pid",
            "SlurmdPidFile": f"{self.dir}/run/slurmd-%n.pid",
            "SlurmctldLogFile": f"{self.dir}/log/slurmctld.log",
            "SlurmdLogFile": f"{self.dir}/log/slurmd-%n.log",
            "SlurmdDebug": "verbose",  # logs each reconfiguration: see _times_configured
            "StateSaveLocation": f"{self.dir}/state",
            "SlurmdSpoolDir": f"{self.dir}/spool/%n",
            "SlurmdParameters": "config_overrides",  # more CPUs than this machine has
            "ProctrackType": "proctrack/linuxproc",  # no cgroups; pgid ends most jobs only after one to three seconds
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",  # with memory as a resource, each job would take whole nodes
            "SchedulerType": "sched/backfill",  # only this scheduler starts het jobs
            "SchedulerParameters": "bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0",
            "ReturnToService": "2",
            "SlurmdTimeout": "5",  # a lost node is DOWN after fifteen seconds; with a lower value, live nodes become DOWN too
            "MessageTimeout": "5",
            "KillWait": "2",
            "MinJobAge": "60",
            "MailProg": "/bin/true",
        }
        given = {line.partition("=")[0].strip().lower() for line in self._conf}
        return [
            *(f"{key}={value}" for key, value in settings.items() if key.lower() not in given),
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self._ports[_slurmd(node)]} CPUs={self.cpus}"
                for node in self.nodes
            ),
            *(f"PartitionName={name} Nodes=ALL {options}" for name, options in self.partitions.items()),
            *self._conf,
        ]

    def _launch(self, daemon: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        program = self._programs[daemon.partition("-")[0]]
        kept = _Kept([*prefix, program, *arguments], self.dir, self.dir / "log" / f"{daemon}.err", self.env, keep=self.keep)
        self._kept.setdefault(daemon, []).append(kept)

    def _lives(self, daemon: str) -> bool:
        kept = self._kept.get(daemon, [])
        return bool(kept) and kept[-1].ended() is None

    def _signal(self, daemon: str, number: signal.Signals) -> None:
        """Send a signal to the daemon; return when the daemon has ended."""
        kept = self._kept[daemon][-1]
        kept.tell(bytes([number]))
        if kept.ended(END_TIMEOUT) is None:
            raise self._failure(f"{daemon} does not end on {number.name}")

    def _end(self, *daemons: str) -> None:
        """End the daemons; return when they and all their descendants have ended."""
        ending = {daemon: self._kept[daemon] for daemon in daemons if daemon in self._kept}
        for kept in ending.values():
            for one in kept:
                one.tell(END)
        for daemon, kept in ending.items():
            if not all(one.joined(END_TIMEOUT) for one in kept):
                raise self._failure(f"cannot kill all processes of {daemon}")
            del self._kept[daemon]

    def _wait_ready(self, daemon: str, ready: Callable[[], bool]) -> None:
        """Wait until `ready` returns true. Raise ClusterError at once if the daemon ends."""

        def observe() -> bool:
            how = self._kept[daemon][-1].ended()
            if how is None:
                return ready()
            error = PortTakenError if PORT_TAKEN in self.log(daemon) else ClusterError
            raise self._failure(f"{daemon} ended: {how}", error)

        self._poll(f"readiness of {daemon}", observe, bool, START_TIMEOUT)

    def _wait_idle(self, node: str) -> None:
        self._wait_ready(_slurmd(node), lambda: self.node_state(node) == "IDLE")

    def _wait_configured(self, node: str, times: int) -> None:
        self._wait_ready(_slurmd(node), lambda: self._times_configured(node) > times)

    def _poll(self, what: str, observe: Callable[[], T], accepts: Callable[[T], bool], timeout: float) -> T:
        """Call `observe` until `accepts` accepts the value; return the value."""
        deadline = time.monotonic() + timeout
        while not accepts(value := observe()):
            if time.monotonic() >= deadline:
                raise self._failure(f"{what} is {value} after {timeout} s")
            time.sleep(POLL)
        return value

    def _times_configured(self, node: str) -> int:
        # Until 23.11 slurmd logs that it reads its configuration again; since 24.05 it executes itself again.
        return len(re.findall(r"got reconfigure request|slurmd version \S+ started", self.log(_slurmd(node))))

    def _failure(self, what: str, error: type[ClusterError] = ClusterError) -> ClusterError:
        logs = {daemon: self.log(daemon).splitlines()[-15:] for daemon in ("munged", *self._ports)}
        return error("\n".join([what, *(f"{daemon}: {line}" for daemon, lines in logs.items() for line in lines)]))


# ---- programs, files and ports of the cluster


def find_programs(path: str) -> dict[str, str]:
    """Return the path of each program. Raise ClusterError, with the packages to install, if one is missing from `path`."""
    found = {program: where for program in PACKAGES if (where := shutil.which(program, path=path))}
    missing = [program for program in PACKAGES if program not in found]
    if missing:
        packages = sorted({PACKAGES[program] for program in missing})
        raise ClusterError(f"no {', '.join(missing)} on {path}: on Debian, apt-get install {' '.join(packages)}")
    return found


def _make_dirs(root: Path, nodes: Sequence[str]) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="jc-", dir=root.resolve()))
    if len(os.fsencode(directory)) > LONGEST_DIR:
        directory.rmdir()
        raise ClusterError(f"the path {directory} is too long for the sockets below it: choose a shorter root")
    modes = {"etc": 0o755, "log": 0o755, "out": 0o1777, "run": 0o755, "scratch": 0o1777, "spool": 0o755, "state": 0o700}
    modes.update((f"spool/{node}", 0o755) for node in nodes)
    for name, mode in modes.items():
        (directory / name).mkdir()
        (directory / name).chmod(mode)  # for any umask
    directory.chmod(0o755)
    return directory


def _clean_env(programs: Mapping[str, str], conf_file: Path) -> dict[str, str]:
    places = dict.fromkeys([*map(os.path.dirname, programs.values()), *SYSTEM_PATH.split(":")])
    return {"PATH": ":".join(places), "LANG": "C.UTF-8", "SLURM_CONF": str(conf_file)}


def _account_env(account: pwd.struct_passwd) -> dict[str, str]:
    return {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name, "SHELL": "/bin/sh"}


def _cgroup_conf(slurm_version: str) -> str:
    """Given the answer of `slurmd -V`, return a cgroup.conf with which slurmd needs neither cgroups nor systemd."""
    major, minor = map(int, re.findall(r"\d+", slurm_version)[:2])
    if (major, minor) < (21, 8):  # such a slurmd does not know the key, and needs no setting
        return ""
    return f"CgroupPlugin={'disabled' if (major, minor) >= (24, 5) else 'cgroup/v1'}\n"


def _lines(conf: Mapping[str, str] | Iterable[str]) -> list[str]:
    return [f"{key}={value}" for key, value in conf.items()] if isinstance(conf, Mapping) else list(conf)


def _slurmd(node: str) -> str:
    return f"slurmd-{node}"


def _munge_socket(directory: Path) -> Path:
    return directory / "run" / "munge.socket"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:  # open at the same time, so that the ports differ
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _listening(port: int) -> bool:
    """Return whether the port is open, from the kernel's tables: a connection would leave an error in the daemon's log."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if local.endswith(f":{port:04X}") and state == TCP_LISTEN:
                    return True
    return False


def _record(line: str) -> dict[str, str]:
    """Given a line of `scontrol show … -o`, return name → value; values can contain blanks."""
    return dict(re.findall(r"(?<!\S)([A-Z][\w/:.]*)=(.*?)(?=\s+[A-Z][\w/:.]*=|\s*$)", line))


def _remove(directory: Path) -> None:
    """Remove the directory. If it still contains a mount, remove nothing and raise ClusterError."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
        if directory in Path(mount).parents:
            raise ClusterError(f"cannot remove {directory}: {mount} is still mounted")
    shutil.rmtree(directory)


# ---- the keeper


class _Kept:
    """A daemon and its descendants, as the owner controls them: by two pipes to their keeper."""

    def __init__(self, argv: Sequence[str], directory: Path, log: Path, env: Mapping[str, str], *, keep: bool) -> None:
        keeper = [sys.executable, "-I", "-S", os.path.abspath(__file__), KEEPER, str(directory), "keep" if keep else ""]
        with open(log, "ab") as stderr:
            self._keeper = subprocess.Popen(
                [*keeper, *argv],
                env=env,
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # a Ctrl-C on a terminal must not reach it
                bufsize=0,
            )
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._orders: IO[bytes] = self._keeper.stdin
        self._report: IO[bytes] = self._keeper.stdout
        self._how: str | None = None

    def tell(self, order: bytes) -> None:
        """Send an order of one byte: the number of a signal for the daemon, or END, which kills all processes."""
        with suppress(BrokenPipeError):  # all processes and the keeper have ended
            self._orders.write(order)

    def ended(self, timeout: float = 0) -> str | None:
        """Return how the daemon ended, or None if it still runs after `timeout` seconds."""
        if self._how is None and select.select([self._report], [], [], timeout)[0]:
            self._how = self._report.readline().decode().strip() or "killed"
        return self._how

    def joined(self, timeout: float) -> bool:
        """Return whether all processes end within `timeout` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(timeout)
            self._orders.close()
            self._report.close()
            return True
        return False


def _keep(directory: Path, keep: bool, argv: Sequence[str]) -> None:
    """Run a daemon. Kill all its descendants when the owner of the pipe at stdin ends.

    Obey the orders on stdin (see _Kept.tell). Report on stdout, in one line, how the daemon ended. Return when all of
    its descendants have ended. If the owner ended without the order END, the last keeper removes the directory.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # such a signal ends the owner, and then the keeper ends
    claim = os.open(directory, os.O_RDONLY)
    fcntl.flock(claim, fcntl.LOCK_SH)

    order = _supervise(argv)
    _kill_children()
    if order != END and not keep:
        with suppress(BlockingIOError):  # another keeper still runs
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(directory)


def _supervise(argv: Sequence[str]) -> bytes:
    """Run the daemon and obey orders. Return END on that order, b"" if the owner has ended."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the default action does not write to the wakeup descriptor
    daemon = _spawn(argv)
    while True:
        with suppress(ChildProcessError):
            for pid, status in _reap():
                if pid == daemon:
                    daemon = 0
                    _report_end(status)
        readable, _, _ = select.select([0, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
        if 0 in readable:
            order = os.read(0, 1)
            if order in (END, b""):
                return order
            if daemon:
                os.kill(daemon, order[0])


def _spawn(argv: Sequence[str]) -> int:
    os.umask(0o022)
    return os.posix_spawn(
        argv[0],
        list(argv),
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ],  # ignored here
    )


def _reap() -> Iterator[tuple[int, int]]:
    """Yield pid and status of each child that has ended. Raise ChildProcessError if no child exists."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        yield pid, status


def _report_end(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    with suppress(BrokenPipeError):  # the owner has ended
        os.write(1, f"signal {-code}\n".encode() if code < 0 else f"exit status {code}\n".encode())


def _kill_children() -> None:
    """Kill all descendants, generation by generation: the children of a killed child become children of this process.

    Only children get a signal: until this process waits for a child, no other process can have its pid.
    """
    with suppress(ChildProcessError):
        while True:
            for child in _children():
                with suppress(PermissionError):  # a set-uid program, if this process is not root
                    os.kill(child, signal.SIGKILL)
            for _ in _reap():
                pass
            time.sleep(POLL / 10)


def _children() -> Iterator[int]:
    me = os.getpid()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The format is: pid (name) state parent …. A name can contain blanks and brackets.
            stat = Path("/proc", entry, "stat").read_bytes()
            if int(stat.rpartition(b")")[2].split()[1]) == me:
                yield int(entry)


# ---- the program


def main(arguments: Sequence[str]) -> int:
    """Return the exit status of the command that ran on the cluster."""
    own, command = _split_at_dashes(arguments)
    options = _parser().parse_args(own)
    conf = list(options.conf)
    if options.hooks:
        hooks = options.hooks.resolve()
        conf = [f"TaskProlog={hooks}/task-prolog", f"Epilog={hooks}/epilog", *conf]
    # With a handler, so that `with` stops the cluster. A Ctrl-C is for the command.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with Cluster(
            name=options.name, nodes=options.nodes, cpus=options.cpus, conf=conf, root=options.dir, keep=options.keep
        ) as cluster:
            return _use(cluster, command)
    except (ClusterError, OSError) as error:
        print(f"minicluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _split_at_dashes(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    if "--" not in arguments:
        return arguments, []
    at = list(arguments).index("--")
    return arguments[:at], arguments[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [option …] [-- command …]",
        description="Run a command, by default a shell, on a temporary Slurm cluster on this machine.",
    )
    parser.add_argument("--hooks", type=Path, metavar="DIR", help="use DIR/task-prolog and DIR/epilog")
    parser.add_argument("--conf", action="append", default=[], metavar="LINE", help="a line for slurm.conf; repeatable")
    parser.add_argument("--name", help="the ClusterName")
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="compute nodes (default: 2)")
    parser.add_argument("--cpus", type=int, default=8, metavar="N", help="CPUs of each node (default: 8)")
    parser.add_argument("--dir", type=Path, default=Path("/tmp"), help="parent of the cluster's directory (default: /tmp)")
    parser.add_argument("--keep", action="store_true", help="keep the directory with the logs")
    return parser


def _use(cluster: Cluster, command: Sequence[str]) -> int:
    hello = f"cluster {cluster.name}: nodes {' '.join(cluster.nodes)}, scratch {cluster.scratch}"
    if command:
        return _run_in_foreground(cluster, command)
    if sys.stdin.isatty():
        print(f"{hello}; exit the shell to stop the cluster", file=sys.stderr)
        return _run_in_foreground(cluster, [os.environ.get("SHELL", "/bin/sh")])
    print(f"{hello}\nexport SLURM_CONF={cluster.conf_file}\nCtrl-C stops the cluster", flush=True)
    while True:
        signal.pause()


def _run_in_foreground(cluster: Cluster, command: Sequence[str]) -> int:
    """Run the command in the caller's environment, without variables of another cluster."""
    stray = ("SLURM", "SBATCH", "SRUN", "SALLOC", "SQUEUE", "SINFO", "SCONTROL", "SCANCEL")
    env = {name: value for name, value in os.environ.items() if not name.startswith(stray)}
    env.update(
        PATH=f"{env.get('PATH', '')}:{cluster.env['PATH']}",
        SLURM_CONF=str(cluster.conf_file),
        MINICLUSTER_DIR=str(cluster.dir),
    )
    signal.signal(signal.SIGINT, lambda *_: None)  # unlike SIG_IGN, not inherited
    status = subprocess.call(command, env=env)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    if sys.argv[1:2] == [KEEPER]:
        _keep(Path(sys.argv[2]), bool(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main(sys.argv[1:]))
