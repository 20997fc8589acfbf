"""The command `explain`: where it looks for events, and how the story is printed."""

import glob
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Optional, Union

import click

from jobcache.cli.common import load, plain
from jobcache.config.settings import OFF, Settings
from jobcache.diagnostics import evidence, explain
from jobcache.system import event_log

_MOST = 10_000  # lines of a system log about one job: a node says a few, of a job that has thousands of nodes
_SYSTEM_LOGS = ("/var/log/syslog", "/var/log/messages")


def explain_command(
    config_file: str, hooks: Optional[str], job_id: int, files: tuple[str, ...], node: Optional[str], as_json: bool
) -> int:
    """Print the story of a job; return the exit status, 1 where nothing at all is known of it."""
    site, lib = load(config_file, hooks)
    node = node or socket.gethostname().partition(".")[0]
    tally = event_log.Tally()
    with sources(site, files) as found:
        events = list(_bounded(_of_cluster(event_log.read(found, tally, job_id), site.cluster)))
    slurm = evidence.ask_slurm(site, job_id)
    trouble: list[str] = []
    there = evidence.still_there(site, job_id, _whose(events, slurm), node, trouble)
    names = tuple(source for source in found if isinstance(source, str))
    off = f"{lib}/{OFF}" if os.path.lexists(f"{lib}/{OFF}") else ""
    known = explain.Site(site.hash, site.tree["mode"], _first(names), names, off, "" if files else closed(site))
    told = explain.tell(job_id, events, there, slurm, known, "; ".join(trouble))
    if as_json:
        click.echo(json.dumps(asdict(told), indent=1))
    else:
        _print(told)
    for broken in tally.broken:
        click.echo(f"not read to its end: {plain(broken)}", err=True)
    if tally.torn:
        click.echo(f"{tally.torn} lines were cut short, or forged, and passed over", err=True)
    return 0 if told.known else 1


@contextmanager
def sources(site: Optional[Settings], files: tuple[str, ...]) -> "Iterator[list[Union[str, IO[bytes]]]]":
    """The files to read, oldest first: those named, else the site's log and this host's system log, with what was rotated."""
    if files:
        yield list(dict.fromkeys(path for name in files for path in ([name] if name == "-" else _named(name))))
        return
    found: list[Union[str, IO[bytes]]] = [*(event_log.rotations(site.log_file) if site and site.log_file else [])]
    found += [path for log in _SYSTEM_LOGS for path in event_log.rotations(log) if os.access(path, os.R_OK)]
    program = shutil.which("journalctl", path="/usr/bin:/bin")
    if program is None or not glob.glob("/var/log/journal/*/*.journal") + glob.glob("/run/log/journal/*/*.journal"):
        yield found
        return
    argv = [program, "--output=json", "--quiet", "--no-pager", "--identifier=jobcache"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as journal:
        assert journal.stdout is not None
        yield [*found, journal.stdout]
        journal.kill()


def closed(site: Optional[Settings]) -> str:
    """Return the site's log where this user may not read it, else ""."""
    log = site.log_file if site else None
    if not log:
        return ""
    above = os.path.dirname(log)
    barred = os.path.isdir(above) and not os.access(above, os.R_OK | os.X_OK)
    return log if barred or (os.path.exists(log) and not os.access(log, os.R_OK)) else ""


def _named(name: str) -> list[str]:
    if not os.path.exists(name):
        raise click.BadParameter(f"{name}: there is no such file", param_hint="FILE")
    if not os.path.isdir(name):
        return [name]
    return sorted(path for path in glob.glob(f"{glob.escape(name)}/*") if os.path.isfile(path))  # and no pipe, which never ends


def _of_cluster(events: Iterable[event_log.Event], cluster: str) -> Iterator[event_log.Event]:
    """Yield the events of this site's cluster: several may log to one place, and each has a job of this id."""
    others: dict[str, int] = {}
    for event in events:
        name = event.get("cluster", "")
        if name in ("", cluster) or not cluster:
            yield event
        elif len(others) < _MOST:
            others[name] = others.get(name, 0) + 1
    for name, count in sorted(others.items())[:3]:
        click.echo(
            f"{count} events are of cluster {plain(name)}'s job of this id, not of {cluster}'s, and are left out", err=True
        )


def _bounded(events: Iterable[event_log.Event]) -> Iterator[event_log.Event]:
    """Yield events, of those that any user can write at will so many that they can be read, and say so."""
    doubtful = 0
    for event in events:
        doubtful += event["source"] == event_log.SYSLOG
        if event["source"] != event_log.SYSLOG or doubtful <= _MOST:
            yield event
    if doubtful > _MOST:
        click.echo(f"{doubtful - _MOST} more lines of a system log speak of this job, and are left out", err=True)


def _whose(events: list[event_log.Event], slurm: explain.Slurms) -> Optional[int]:
    """The uid of the job's user, as root's events or Slurm say; without root, only one's own is looked at."""
    if os.geteuid() != 0:
        return os.geteuid()
    try:
        return pwd.getpwnam(slurm.user).pw_uid
    except KeyError:
        uids = {event["uid"] for event in events if event["source"] == event_log.LOG and event.get("uid")}
    return uids.pop() if len(uids) == 1 else None


def _first(names: tuple[str, ...]) -> str:
    """The moment of the oldest event there is."""
    return next((event["ts"] for event in event_log.read(names, event_log.Tally())), "")


def _print(told: explain.Story) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000, markup=False, highlight=False, soft_wrap=True)
    slurm = told.slurm
    state = f"{slurm.state}, by {slurm.by}" if slurm.state else f"Slurm says nothing of it: {plain(slurm.unknown)}"
    facts = [f"of {plain(told.user)}" if told.user else "", f"on {slurm.nodes}" if slurm.nodes else "", f"({state})"]
    console.print(Text(f"Job {told.job_id} {' '.join(fact for fact in facts if fact)}", style="bold"))
    styles = {"warning": "yellow", "error": "red", "debug": "dim"}
    for line in told.lines:
        at = line.ts[:19].replace("T", " ")
        console.print(Text(f"  {plain(at)}  {plain(line.node):<8} {plain(line.what)}", style=styles.get(line.level, "")))
    console.print()
    for part in told.answer.split("\n"):
        console.print(plain(part))
    if told.advice:
        console.print(f"→ {told.advice}")
