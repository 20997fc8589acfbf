"""The names that Slurm has for this host: which of them count."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from jobcache.system import node_names
from jobcache.system.live_jobs import Unknown
from jobcache.system.slurm import Slurm
from support.site_dir import ALICE


@pytest.mark.parametrize(
    "command, node",
    [
        ("-D -N n1", "n1"),
        ("-DNn1", "n1"),
        ("-Dvv -Nn1 -f /etc/slurm.conf", "n1"),
        ("-N n1 -N n2", "n2"),
        ("-f -N", ""),
        ("-f /x -L /var/log/N -d /sbin/N", ""),
        ("-FN", ""),
        ("-n -5 -N n1", "n1"),
        ("--conf-server c1 -Z -N n1", "n1"),
        ("--conf=-N", ""),
        ("-D -N", ""),
        ("", ""),
    ],
)
def test_name_of_slurmd_is_read_as_getopt_does(command: str, node: str) -> None:
    """The last -N counts, and the argument of another option is none."""
    assert node_names.node_option(command.split()) == node


@pytest.mark.parametrize(
    "running, configured, names",
    [
        (set(), {"n1", "n2"}, {"n1", "n2"}),
        ({"n2"}, {"n1", "n2"}, {"n1", "n2"}),  # the slurmd of n1 is down
        ({"b1"}, set(), {"b1"}),
        ({""}, {"n1"}, {"n1"}),
        ({""}, set(), set()),
        ({"", "x7"}, {"n1"}, {"n1"}),  # another cluster has a slurmd here
        ({"n1", "x7"}, {"n1"}, {"n1"}),
        ({"b1"}, {"n1"}, {"b1"}),  # slurm.conf has another host of this name
        (set(), set(), set()),
    ],
)
def test_slurmd_that_runs_outweighs_slurm_conf(running: set[str], configured: set[str], names: set[str]) -> None:
    """A slurmd with another name shows that slurm.conf does not mean this host."""
    assert node_names.confirmed(running, configured) == names


class Conf(Slurm):
    """A Slurm with these nodes: the NodeHostname by NodeName. dynamic: nodes that slurm.conf does not have."""

    def __init__(self, nodes: dict[str, str], dynamic: dict[str, str] | None = None) -> None:
        super().__init__(None, "squeue", "scontrol", 1.0)
        self.nodes = nodes
        self.dynamic = dynamic or {}
        self.asked: list[str] = []

    def nodes_of_host(self, host: str) -> list[str]:
        self.asked.append(host)
        return [node for node, own in self.nodes.items() if own == host]

    def host_of_node(self, node: str) -> str:
        self.asked.append(f"node {node}")
        return {**self.nodes, **self.dynamic}.get(node, "")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The host c7.site-a, which the resolver knows as node7.site-a as well."""
    monkeypatch.setattr(socket, "gethostname", lambda: "c7.site-a")
    monkeypatch.setattr(socket, "gethostbyname_ex", lambda _: ("node7.site-a", ["localhost", "c7"], ["10.0.0.7"]))
    return monkeypatch


def own(conf: Slurm, *leases: str) -> set[str]:
    return set(node_names.own_nodes(set(leases), [], conf))


def test_nodes_of_this_host_by_slurm_conf(host: pytest.MonkeyPatch) -> None:
    """By the short host name, the full one, or a name of the resolver: the first one that slurm.conf has, as in slurmd."""
    assert own(Conf({"N1": "c7", "n2": "c7", "n3": "c8"}), "n1") == {"n1", "n2"}
    assert own(Conf({"n1": "c7.site-a", "n2": "c7.site-b"}), "n1") == {"n1"}
    assert own(Conf({"n1": "node7.site-a"}), "n1") == {"n1"}
    assert own(Conf({"x": "localhost"}), "x") == set()
    host.setattr(node_names, "_resolved", lambda _: (pytest.fail("asked") for _ in "x"))
    assert own(Conf({"n1": "c7"}), "n1") == {"n1"}


def test_name_with_a_domain_is_not_matched_by_its_beginning(host: pytest.MonkeyPatch) -> None:
    """c7.site-b is another host, and slurm.conf does not have c7."""
    nodes = {"c7.site-a": "c7.site-a", "c7.site-b": "c7.site-b"}
    assert own(Conf(nodes), "c7.site-a", "c7.site-b") == {"c7.site-a"}


def test_host_name_counts_unless_it_is_the_node_of_another_host(host: pytest.MonkeyPatch) -> None:
    """Shells with the script for /etc/profile.d, and dynamic nodes, have it. Slurm is asked about it only if a lease has it."""
    assert own(Conf({"n1": "c7"}), "n1", "C7") == {"n1", "c7"}
    assert own(Conf({"n1": "c7.site-a", "c7": "other"}), "n1", "c7") == {"n1"}
    assert own(Conf({}, dynamic={"c7": "c7"}), "c7") == {"c7"}
    assert own(Conf({}, dynamic={"c7": "other"}), "c7") == set()
    plain = Conf({"n1": "c7"})
    assert own(plain, "n1", "n9") == {"n1"} and plain.asked == ["c7"]


def test_resolver_that_does_not_answer_costs_a_limited_time(host: pytest.MonkeyPatch) -> None:
    """Then its names are unknown."""
    host.setattr(node_names, "_PATIENCE", 0.2)
    host.setattr(socket, "gethostbyname_ex", lambda _: time.sleep(60))
    assert own(Conf({"n1": "node7.site-a"}), "n1") == set()


def slurmd(program: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start a shell with the arguments of slurmd -N n7; return when the kernel has started it."""
    arguments = ["slurmd", "-c", "echo; read line", "-N", "n7"]
    process = subprocess.Popen(arguments, executable=program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    return process


@pytest.mark.parametrize("name", ["slurmd", "slurmd-wlm"])
def test_running_slurmd_has_the_name_of_its_option(tmp_path: Path, name: str) -> None:
    """slurmd belongs to the user of this process, as it belongs to root on a node."""
    shutil.copy("/bin/sh", tmp_path / name)
    with slurmd(tmp_path / name) as process:
        assert node_names.running_nodes([process.pid]) == {"n7"}
        process.kill()


def test_other_program_cannot_pose_as_slurmd() -> None:
    """Its arguments alone do not count."""
    with slurmd("/bin/sh") as process:
        assert node_names.running_nodes([process.pid]) == set()
        process.kill()


@pytest.mark.root
def test_user_cannot_pose_as_slurmd(tmp_path: Path) -> None:
    """Neither does a user's program of this name."""
    tmp_path.chmod(0o755)
    for above in [path for path in tmp_path.parents if path.stat().st_mode & 0o777 == 0o700]:
        above.chmod(0o755)
    shutil.copy("/bin/sh", tmp_path / "slurmd")
    with slurmd(tmp_path / "slurmd", user=ALICE) as process:
        assert node_names.running_nodes([process.pid]) == set()
        process.kill()


def test_slurm_that_does_not_answer_is_unknown(host: pytest.MonkeyPatch) -> None:
    """No name is guessed."""
    with pytest.raises(Unknown):
        node_names.own_nodes({"c7"}, [], Slurm(None, "/nonexistent/squeue", "/nonexistent/scontrol", 1.0))
