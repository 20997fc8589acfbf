"""The names that Slurm has for this host. A NodeName can differ from the host name, and a host can be several nodes."""

import itertools
import os
import socket
import time
from collections.abc import Iterable, Iterator, Set
from typing import Any, Callable

from jobcache.system import as_user
from jobcache.system.slurm import Slurm

_PATIENCE = 5.0  # seconds for the resolver
_MOST_BYTES = 65536  # of a command line
_WITH_ARGUMENT = "dfLnN"  # short options of slurmd that take an argument, from Slurm 20.11 to 26.05; to F it is attached
_ATTACHED = "F"


def host_name() -> str:
    """Return the host name up to its first dot."""
    return socket.gethostname().partition(".")[0]


def own_nodes(leases: Set[str], pids: Iterable[int], slurm: Slurm) -> frozenset[str]:
    """Return the names of the nodes that this host is, in lower case. Raise live_jobs.Unknown if Slurm does not answer.

    leases: the names in question. pids: processes of this host.
    The names are those that slurmd would take: of its option -N, else of the nodes that slurm.conf has for the host name, the
    full host name, or a name that the resolver has for it. The host name itself counts unless it is the node of another host.
    """
    running = {name.lower() for name in running_nodes(pids)}
    hosts = dict.fromkeys((host_name(), socket.gethostname()))
    names = confirmed(running, _configured(hosts, slurm))
    for host in hosts:
        if host.lower() not in names and host.lower() in {lease.lower() for lease in leases}:
            other = slurm.host_of_node(host)
            names |= {host.lower()} if other.lower() in ("", *(own.lower() for own in hosts)) else set()
    return frozenset(names)


def confirmed(running: Set[str], configured: Set[str]) -> set[str]:
    """Return the names of this host out of those of the slurmds that run here, and of those that slurm.conf has for its name.

    If slurmd runs under a name that slurm.conf does not have for this host, then slurm.conf means another host of this name.
    Otherwise the names in slurm.conf count alone: slurmd of another cluster can run here as well.
    running: has "" for a slurmd that takes its name from slurm.conf.
    """
    by_conf = not running or "" in running or running & configured
    return set(configured if configured and by_conf else running) - {""}


def _configured(hosts: Iterable[str], slurm: Slurm) -> set[str]:
    """Return the nodes that slurm.conf has for this host, in lower case, by the first of its names that has one."""
    for host in itertools.chain(hosts, _resolved(socket.gethostname())):
        names = slurm.nodes_of_host(host) if host.partition(".")[0] != "localhost" else []
        if names:
            return {name.lower() for name in names}
    return set()


def _resolved(host: str) -> Iterator[str]:
    """Yield the names that the resolver has for this host, the canonical one first; none if it does not answer in time."""

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        try:
            name, aliases, _ = socket.gethostbyname_ex(host)
            report({"names": [name, *aliases]})
        except OSError:
            pass  # the resolver does not know this host

    child = as_user.start(work, uid=None, gid=None, user=None, place=None)
    for fact in list(child.facts(time.monotonic() + _PATIENCE)):
        yield from fact["names"]


# ------------------------------------------------------------------------------------------------------------- slurmd


def running_nodes(pids: Iterable[int]) -> set[str]:
    """Return the names that the slurmds among `pids` have by their option -N, "" for one without it.

    A user can give a process any arguments, but neither the program nor the ids of root to one with these arguments.
    """
    return {name for pid in pids for name in _node_of(pid)}


def _node_of(pid: int) -> Iterator[str]:
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).partition(" ")[0]  # "slurmd (deleted)" after an upgrade
        if program.partition("-")[0] != "slurmd":  # Debian's is slurmd-wlm
            return
        with open(f"/proc/{pid}/status", "rb") as status:
            uids = {int(uid) for line in status if line.startswith(b"Uid:") for uid in line.split()[1:]}
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = [os.fsdecode(word) for word in file.read(_MOST_BYTES).split(b"\0")]
    except OSError:
        return  # the process has ended, or is another user's
    if uids in ({0}, {os.geteuid()}):
        yield node_option(argv[1:])


def node_option(arguments: Iterable[str]) -> str:
    """Given the arguments of slurmd, return that of -N, "" without it. As getopt reads them: `-DN n1`, `-Nn1`."""
    node = ""
    words = iter(arguments)
    for word in words:
        if word.startswith("--") or not word.startswith("-"):
            continue
        for at, letter in enumerate(word[1:], 2):
            if letter in _ATTACHED:
                break
            if letter in _WITH_ARGUMENT:
                value = word[at:] or next(words, "")
                node = value if letter == "N" else node
                break
    return node
