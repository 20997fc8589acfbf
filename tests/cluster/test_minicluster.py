"""The temporary cluster: it runs jobs as Slurm does, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import minicluster
from support.minicluster import Cluster, ClusterError
from support.slurm_version import slurm_version

PROGRAM = Path(minicluster.__file__).resolve()
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has jobs of other users")

# A job with a child outside of its process group and session, and with another parent.
RUNAWAY = "(env -i setsid sh -c 'echo $$ > {}; exec sleep 300' &)\nsleep 300"


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def own() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes_naming(directory: Path) -> list[str]:
    """Return the command lines of all processes whose command line or environment names the directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environ = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if os.fsencode(directory) in command + environ:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def start_runaway(cluster: Cluster, node: str = "n1") -> int:
    """Submit a job with a runaway child, to the node; return the child's pid."""
    note = cluster.scratch / "runaway"
    cluster.sbatch(RUNAWAY.format(note), "-w", node)
    assert within(10, lambda: note.exists() and note.read_text().endswith("\n"))
    return int(note.read_text())


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run_program(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)


# ---- jobs


def test_all_nodes_are_idle_after_the_start(shared: Cluster) -> None:
    assert [shared.node_state(node) for node in ("n1", "n2")] == ["IDLE", "IDLE"]
    assert shared.node("n1")["CPUTot"] == "8"


@AS_ROOT
def test_user_job_runs_on_two_nodes(shared: Cluster) -> None:
    job = shared.sbatch("id -un; srun sh -c 'echo $SLURMD_NODENAME' | sort", "-N2", user="games")
    assert shared.wait(job) == "COMPLETED"
    assert shared.output(job).split() == ["games", "n1", "n2"]


@AS_ROOT
def test_srun_and_salloc_run_as_the_user(shared: Cluster) -> None:
    assert shared.srun("id", "-un", user="www-data").stdout == "www-data\n"
    assert shared.salloc("srun", "id", "-un", user="games").stdout == "games\n"


def test_caller_environment_does_not_reach_a_job(shared: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRAY", "1")
    assert "STRAY" not in shared.srun("env").stdout
    assert "WANTED=a b" in shared.srun("env", env={"WANTED": "a b"}).stdout


def test_jobs_share_a_node(shared: Cluster) -> None:
    jobs = [shared.sbatch("exec sleep 60", "-w", "n1") for _ in range(2)]
    for job in jobs:
        shared.wait(job, "RUNNING")
    shared.run("scancel", *map(str, jobs))
    assert {shared.wait(job) for job in jobs} == {"CANCELLED"}


def test_wait_covers_all_array_tasks_and_het_components(shared: Cluster) -> None:
    array = shared.sbatch("echo $SLURM_ARRAY_TASK_ID", "--array=0-2")
    het = shared.sbatch("srun --het-group=0,1 true", "-N1", ":", "-N1")
    assert shared.wait(array) == shared.wait(het) == "COMPLETED"
    assert sorted(shared.output(int(task["JobId"])) for task in shared.jobs(array)) == ["0\n", "1\n", "2\n"]
    assert len(shared.jobs(het)) == 2


def test_wait_reports_the_state_it_found_instead(shared: Cluster) -> None:
    job = shared.sbatch("true", "--hold")
    with pytest.raises(ClusterError, match=f"'{job}': 'PENDING'"):
        shared.wait(job, timeout=0.1)
    shared.run("scancel", str(job))


def test_failed_or_hung_command_raises_with_the_logs(shared: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"(?s)exited 3: oh no.*slurmctld: "):
        shared.run("sh", "-c", "echo oh no >&2; exit 3")
    note = shared.scratch / "hung"
    with pytest.raises(ClusterError, match=r"took longer than 0.5 s"):
        shared.run("sh", "-c", f"echo $$ > {note}; sleep 300", timeout=0.5)
    assert within(5, lambda: not alive(int(note.read_text())))


def test_wait_returns_after_the_epilogs(own: Cluster) -> None:
    epilog = script(own.dir / "epilog", f"sleep 0.5; touch {own.dir}/ended-$SLURM_JOB_ID-$SLURMD_NODENAME")
    own.reconfigure({"Epilog": str(epilog)})
    job = own.sbatch("true", "-N2")
    own.wait(job)
    assert {path.name for path in own.dir.glob("ended-*")} == {f"ended-{job}-n1", f"ended-{job}-n2"}


def test_next_job_uses_the_new_configuration(own: Cluster) -> None:
    for turn in range(5):
        prolog = script(own.dir / f"prolog-{turn}", f"echo export TURN={turn}")
        own.reconfigure([f"TaskProlog={prolog}"])
        assert own.srun("-N2", "sh", "-c", "echo $TURN").stdout == f"{turn}\n" * 2


def test_controller_restarts_with_its_jobs_or_clean(own: Cluster) -> None:
    job = own.sbatch("exec sleep 300")
    own.wait(job, "RUNNING")
    own.stop_controller()
    own.start_controller()
    assert own.job(job)["JobState"] == "RUNNING"
    own.stop_controller()
    own.start_controller(clean=True)
    assert own.sbatch("true") == (1 if slurm_version() >= (22, 5) else 2)


# ---- lost nodes


def test_lost_node_returns(own: Cluster) -> None:
    note = own.scratch / "alive"
    own.sbatch(f"echo $$ > {note}; exec sleep 300", "-w", "n1")
    assert within(5, lambda: note.exists() and note.read_text() != "")
    own.kill_slurmd("n1")
    assert alive(int(note.read_text()))
    own.wait_node("n1", lambda state: state.startswith("DOWN"))
    own.wait_node("n2", timeout=5)
    own.start_slurmd("n1")
    own.wait_node("n1")
    assert own.srun("-w", "n1", "sh", "-c", "echo $SLURMD_NODENAME").stdout == "n1\n"


def test_lost_node_marked_down_returns(own: Cluster) -> None:
    own.kill_slurmd("n1")
    own.mark_down("n1")
    own.wait_node("n1", lambda state: state.startswith("DOWN"), timeout=2)
    own.start_slurmd("n1")
    own.wait_node("n1")


def test_crashed_node_ends_all_its_processes(own: Cluster) -> None:
    runaway = start_runaway(own, node="n1")
    own.crash_node("n1")
    assert not alive(runaway)
    assert own.srun("-w", "n2", "true").returncode == 0
    own.start_slurmd("n1")
    own.wait_node("n1", lambda state: state in ("IDLE", "MIXED"))


# ---- leftovers


def test_stop_leaves_no_process_and_no_file() -> None:
    with Cluster() as cluster:
        runaway = start_runaway(cluster)
        assert len(processes_naming(cluster.dir)) >= 8  # the daemons and their keepers
    assert not alive(runaway)
    assert processes_naming(cluster.dir) == []
    assert not cluster.dir.exists()
    cluster.stop()


def test_directory_can_be_kept() -> None:
    with Cluster(keep=True) as cluster:
        pass
    assert processes_naming(cluster.dir) == []
    assert "slurmctld version" in cluster.log("slurmctld")
    subprocess.run(["rm", "-r", str(cluster.dir)], check=True)


def test_killed_owner_leaves_nothing() -> None:
    owner = f"""if True:
        import signal, sys
        sys.path.insert(0, {str(PROGRAM.parent)!r})
        from minicluster import Cluster
        cluster = Cluster()
        cluster.start()
        cluster.wait(cluster.sbatch({RUNAWAY!r}.format(cluster.scratch / "runaway")), "RUNNING")
        print(cluster.dir, flush=True)
        signal.pause()
    """
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert len(processes_naming(directory)) >= 8
        assert within(5, (directory / "scratch" / "runaway").exists)
        runaway = int((directory / "scratch" / "runaway").read_text())
        process.send_signal(signal.SIGKILL)
    assert within(10, lambda: not directory.exists() and not processes_naming(directory))
    assert not alive(runaway)


def test_mount_below_the_directory_is_never_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    cluster = Cluster()
    cluster.start()
    mount = cluster.scratch / "a mount"
    mount.mkdir()
    if subprocess.run(["mount", "--bind", str(tmp_path), str(mount)], check=False, capture_output=True).returncode:
        cluster.stop()
        pytest.skip("can't mount here")
    with pytest.raises(ClusterError, match="a mount is still mounted"):
        cluster.stop()
    subprocess.run(["umount", str(mount)], check=True)
    assert precious.read_text() == "data"
    assert processes_naming(cluster.dir) == []
    subprocess.run(["rm", "-r", str(cluster.dir)], check=True)


# ---- its environment


def test_two_clusters_at_once_are_independent(shared: Cluster, own: Cluster) -> None:
    assert shared.name != own.name
    before = shared.run("squeue", "--noheader", "--states=all").stdout
    job = own.sbatch("echo $SLURM_CLUSTER_NAME")
    assert own.wait(job) == "COMPLETED"
    assert own.output(job) == f"{own.name}\n"
    assert shared.run("squeue", "--noheader", "--states=all").stdout == before


def test_port_taken_by_another_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports = minicluster._free_ports
    with socket.socket() as foreign:
        foreign.bind(("", 0))
        foreign.listen()
        taken = iter([foreign.getsockname()[1]])
        monkeypatch.setattr(
            minicluster, "_free_ports", lambda count: [*free_ports(count - 1), next(taken, 0) or free_ports(1)[0]]
        )
        with Cluster() as cluster:
            assert cluster.srun("-N2", "true").returncode == 0


def test_failed_start_reports_why_and_leaves_nothing() -> None:
    cluster = Cluster(conf=["NoSuchOption=1"])
    with pytest.raises(ClusterError, match=r"(?s)slurmctld ended: exit status 1.*NoSuchOption"):
        cluster.start()
    assert processes_naming(cluster.dir) == []
    assert not cluster.dir.exists()


def test_missing_programs_are_reported_with_their_packages(tmp_path: Path) -> None:
    for program, where in minicluster.find_programs(f"{os.environ['PATH']}:{minicluster.SYSTEM_PATH}").items():
        if program not in ("slurmctld", "munged"):
            (tmp_path / program).symlink_to(where)
    with pytest.raises(ClusterError, match=r"no slurmctld, munged on .*apt-get install munge slurmctld$"):
        Cluster(path=str(tmp_path))


def test_directory_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    with pytest.raises(ClusterError, match="shorter"):
        Cluster(root=deep)
    assert list(deep.iterdir()) == []


# ---- the program


def test_program_runs_a_command_on_a_cluster_and_stops() -> None:
    done = run_program("--nodes", "3", "--", "sh", "-c", "echo $MINICLUSTER_DIR; srun -N3 true && exit 7", SLURM_CONF="/x")
    assert done.returncode == 7, done.stderr
    directory = Path(done.stdout.strip())
    assert re.fullmatch(r"/tmp/jc-\w+", str(directory))
    assert not directory.exists()


def test_program_wires_hooks(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    script(tmp_path / "task-prolog", "echo export HOOKED=yes")
    script(tmp_path / "epilog", f"touch {tmp_path}/epilog-ran")
    done = run_program(
        "--hooks",
        str(tmp_path),
        "--conf",
        "MinJobAge=77",
        "--",
        "sh",
        "-c",
        "srun sh -c 'echo $HOOKED'; scontrol show config | grep MinJobAge",
    )
    assert done.stdout.split() == ["yes", "MinJobAge", "=", "77", "sec"], done.stderr


@AS_ROOT
def test_ordinary_user_can_start_a_cluster() -> None:
    if subprocess.run(["sh", "-c", 'exec "$0" -c ""', sys.executable], user="games", check=False).returncode:
        pytest.skip(f"games can't execute {sys.executable}")
    with tempfile.TemporaryDirectory() as place:  # the user games can read it, but not every checkout
        Path(place).chmod(0o755)
        copy = shutil.copy(PROGRAM, place)
        Path(copy).chmod(0o644)
        command = [sys.executable, copy, "--", "srun", "-N2", "id", "-un"]
        done = subprocess.run(
            command, user="games", group="games", extra_groups=[], cwd="/", capture_output=True, text=True, check=False
        )
    assert done.stdout.split() == ["games", "games"], done.stderr
