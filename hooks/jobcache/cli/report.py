"""The command `report`: its period, its tables, its page."""

import errno
import json
import os
import sqlite3
import stat
import time
from dataclasses import asdict
from typing import Any, Optional

import click

from jobcache.cache import timestamps
from jobcache.cli import common
from jobcache.cli.common import load, parse_time, plain
from jobcache.cli.event_sources import open_sources, print_damage, progress, unreadable_log
from jobcache.diagnostics import report
from jobcache.diagnostics.report_model import Report
from jobcache.diagnostics.units import duration, size
from jobcache.system import as_user, event_log, files

_NARROWEST = 110  # columns; a narrower terminal breaks lines, so that no number is cut
_PAGE = os.path.join(os.path.dirname(os.path.abspath(report.__file__)), "report.html")
_COUNTS = (
    ("reaped by sweeps", "orphans"),
    ("kept", "kept"),
    ("jobs without a cache", "skipped"),
    ("failures of hooks", "failures"),
    ("sweeps", "sweeps"),
    ("linked from users' own caches", "inherited"),
)


def report_command(
    config_file: str,
    hooks: Optional[str],
    files: tuple[str, ...],
    since: str,
    until: Optional[str],
    by: str,
    top: int,
    html: Optional[str],
    as_json: bool,
) -> int:
    """Print the report, or write its page; return the exit status: 1 if the log could not be read."""
    site = None if files else load(config_file, hooks)[0]
    now = time.time()
    begin, end = parse_time(since, now, "--since"), parse_time(until, now, "--until") if until else now
    if begin >= end:
        raise click.BadParameter("it must be before --until", param_hint="--since")
    tally = event_log.Tally()
    own_log = site is not None and site.log_file is not None and os.access(site.log_file, os.R_OK)
    collector = report.Collector(begin, end, as_user.user_name, own_log)
    try:
        with open_sources(site, files, begin) as sources, progress(sources) as moved:
            first, last = timestamps.millisecond(begin), timestamps.millisecond(end)
            for event in event_log.read(sources, tally, None, first, last, moved):
                collector.take(event)
        found = collector.finish()
    except sqlite3.Error as error:
        text = f"cannot sum up the events: {error}; SQLITE_TMPDIR=DIR uses another directory for a temporary file"
        raise click.ClickException(text) from None
    finally:
        collector.close()
    if html is not None:
        _write(html, page(found))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
    elif html is None:
        _print(found, by, top)
    else:
        click.echo(f"{html}: {found.total.caches} caches of {len(found.groups['user'])} users")
    unreadable = unreadable_log(site)
    if unreadable:
        text = f"this user cannot read the event log, {unreadable}; ask the cluster's admins, or name files that you can read"
        click.echo(text, err=True)
    print_damage(tally)
    return 1 if unreadable else 0


def page(found: Report) -> str:
    """Return the page with the data in it. The data is escaped: a user's name can hold anything, and must not end the script."""
    with open(_PAGE, encoding="utf-8") as file:
        template = file.read()
    data = json.dumps(asdict(found)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return template.replace("@DATA@", data)


def _write(path: str, text: str) -> None:
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            _write_to_stream(path, text)
            return
        umask = os.umask(0)
        os.umask(umask)
        files.replace_file(path, text.encode("utf-8"), 0o666 & ~umask)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; name a file in a directory that you can write to"
        raise click.ClickException(text) from None


def _write_to_stream(path: str, text: str) -> None:
    """Write to a pipe or a terminal, such as /dev/stdout, which a file must not replace. Raise OSError.

    A fifo without a reader is refused, and so are a disk and another user's symlink.
    """
    link = os.lstat(path)
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
        raise OSError(errno.EACCES, "another user's symlink")
    if not (stat.S_ISFIFO(os.stat(path).st_mode) or stat.S_ISCHR(os.stat(path).st_mode)):
        raise OSError(errno.EINVAL, "neither a file nor a pipe")
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    os.set_blocking(fd, True)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)


def _print(found: Report, by: str, top: int) -> None:
    console = common.console(piped=160, narrowest=_NARROWEST)
    console.print(f"{found.since[:16]} to {found.until[:16]} UTC, {found.events} events")
    table = common.table()
    table.add_column(by)
    for name in ("caches", "bytes", "largest", "at once", "files", "life", "orphans", "seeded", "saved"):
        table.add_column(name, justify="right")
    rows = found.groups[by]
    for row in [*rows[:top], found.total]:
        life = "" if row.life is None else duration(row.life)
        cells: list[Any] = [row.caches, size(row.bytes), size(row.largest), size(row.peak), row.files, life]
        cells += [row.orphans, row.seeded, size(row.saved)]
        table.add_row(plain(row.name), *map(str, cells), end_section=row is rows[:top][-1] if rows else False)
    console.print(table)
    if len(rows) > top:
        console.print(f"and {len(rows) - top} more: --top {len(rows)}")
    for title, field in _COUNTS:
        counts: dict[str, int] = getattr(found, field)
        if counts:
            console.print(f"{title}: {', '.join(f'{count} {plain(name)}' for name, count in sorted(counts.items()))}")
    for advice in found.advice:
        console.print(f"{plain(advice.user)}: {advice.text} {advice.why}.")
