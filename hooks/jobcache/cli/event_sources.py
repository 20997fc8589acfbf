"""The files from which `explain` and `report` read events, and messages about files that could not be read."""

import functools
import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Callable, Optional

import click

from jobcache.cli.common import plain
from jobcache.config.settings import Settings
from jobcache.system import event_log, log_files
from jobcache.system.log_files import Source

_SYSTEM_LOGS = ("/var/log/syslog", "/var/log/messages")
_JOURNALS = ("/var/log/journal/*/*.journal", "/run/log/journal/*/*.journal")


@contextmanager
def open_sources(site: Optional[Settings], files: tuple[str, ...], since: float = 0.0) -> Iterator[list[Source]]:
    """Yield the sources, oldest first: the named files; without any, the site's log and the system log of this host.

    since: seconds since the epoch. Files that were last changed before are left out.
    """
    if files:
        names = list(dict.fromkeys(path for name in files for path in ([name] if name == "-" else _files_of(name))))
        yield log_files.changed_since(names, since)
        return
    paths = log_files.rotations(site.log_file) if site and site.log_file else []
    paths += [path for log in _SYSTEM_LOGS for path in log_files.rotations(log) if os.access(path, os.R_OK)]
    found = log_files.changed_since(paths, since)
    program = shutil.which("journalctl", path="/usr/bin:/bin")
    if program is None or not any(glob.glob(pattern) for pattern in _JOURNALS):
        yield found
        return
    argv = [program, "--output=json", "--quiet", "--no-pager", "--identifier=jobcache"]
    argv += [f"--since=@{int(since)}"] if since > 0 else []
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as journal:
        assert journal.stdout is not None
        yield [*found, journal.stdout]
        journal.kill()


def _files_of(name: str) -> list[str]:
    """Return a file, the files of a directory, or those that match a pattern: no pipes, which never end, unless named."""
    if not os.path.exists(name):
        found = sorted(path for path in glob.glob(name) if os.path.isfile(path))
        if not found:
            raise click.BadParameter(f"{name} does not exist", param_hint="FILE")
        return found
    if not os.path.isdir(name):
        return [name]
    return sorted(path for path in glob.glob(f"{glob.escape(name)}/*") if os.path.isfile(path))


@contextmanager
def progress(sources: Sequence[Source]) -> Iterator[Callable[[int], None]]:
    """Show how much of the sources is read if stderr is a terminal. The block gets the function that counts bytes."""
    if not sys.stderr.isatty():
        yield event_log.no_progress
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn("events"), bars.BarColumn(), bars.DownloadColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=log_files.total_size(sources) or None)
        yield functools.partial(bar.advance, task)


def unreadable_log(site: Optional[Settings]) -> str:
    """Return the path of the site's log if this user cannot read it, else ""."""
    log = site.log_file if site else None
    if not log:
        return ""
    above = os.path.dirname(log)
    is_closed = os.path.isdir(above) and not os.access(above, os.R_OK | os.X_OK)
    return log if is_closed or (os.path.exists(log) and not os.access(log, os.R_OK)) else ""


def print_damage(tally: event_log.Tally) -> None:
    """Print to stderr which files ended early, and how many lines were skipped."""
    for broken in tally.broken:
        click.echo(f"cannot read to the end: {plain(broken)}", err=True)
    if tally.torn:
        click.echo(f"skipped damaged or forged lines: {tally.torn}", err=True)
