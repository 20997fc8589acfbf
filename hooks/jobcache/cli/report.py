"""The command `report`: its span of time, its tables, its page."""

import json
import os
import time
from dataclasses import asdict
from typing import Any, Optional

import click

from jobcache.cache import timestamps
from jobcache.cli import common
from jobcache.cli.common import load, plain
from jobcache.cli.explain import closed, sources
from jobcache.config.notation import parse_duration
from jobcache.diagnostics import report
from jobcache.diagnostics.explain import duration
from jobcache.system import as_user, event_log, files

_NARROWEST = 110  # columns: on a narrower terminal lines are broken, and no number is cut short
_PAGE = os.path.join(os.path.dirname(os.path.abspath(report.__file__)), "report.html")


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
    """Print the report, or write its page; return the exit status."""
    site = None if files else load(config_file, hooks)[0]
    now = time.time()
    begin, end = moment(since, now, "--since"), moment(until, now, "--until") if until else now
    if begin >= end:
        raise click.BadParameter("nothing lies between it and --until", param_hint="--since")
    tally = event_log.Tally()
    own_log = site is not None and site.log_file is not None and os.access(site.log_file, os.R_OK)
    collector = report.Collector(begin, end, as_user.user_name, own_log)
    with sources(site, files) as found:
        for event in event_log.read(found, tally, since=timestamps.millisecond(begin), until=timestamps.millisecond(end)):
            collector.take(event)
    told = collector.finish()
    if html is not None:
        _write(html, page(told))
    if as_json:
        click.echo(json.dumps(asdict(told), indent=1))
    elif html is None:
        _print(told, by, top)
    else:
        click.echo(f"{html}: {told.total.caches} caches of {len(told.groups['user'])} users")
    barred = closed(site)
    if barred:
        click.echo(f"not read: {barred} is not yours to read; ask who runs the cluster, or name files that you have", err=True)
    for broken in tally.broken:
        click.echo(f"not read to its end: {plain(broken)}", err=True)
    if tally.torn:
        click.echo(f"{tally.torn} lines were cut short, or forged, and passed over", err=True)
    return 1 if barred else 0


def moment(text: str, now: float, option: str) -> float:
    """Return the moment that `7d` (before now), `2026-11-01` or `2026-11-01T12:00:00Z` says, in seconds since the epoch."""
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"):
        try:
            return event_log.epoch(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.strptime(text, form)))
        except ValueError:
            continue
    raise click.BadParameter(f"{text!r} is neither a duration such as 7d nor a day such as 2026-11-01 (UTC)", param_hint=option)


def page(told: report.Report) -> str:
    """Return the page, with its data in it. A name can hold anything, and ends no script."""
    with open(_PAGE, encoding="utf-8") as file:
        template = file.read()
    data = json.dumps(asdict(told)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return template.replace("@DATA@", data)


def _write(path: str, text: str) -> None:
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe is written to, and not replaced
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            return
        umask = os.umask(0)
        os.umask(umask)
        files.replace_file(path, text.encode("utf-8"), 0o666 & ~umask)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}; name a file in a directory that you may write") from None


def _print(told: report.Report, by: str, top: int) -> None:
    console = common.console(piped=160, narrowest=_NARROWEST)
    console.print(f"{told.since[:16]} to {told.until[:16]} UTC, {told.events} events")
    table = common.table()
    table.add_column(by)
    for name in ("caches", "bytes", "largest", "at once", "files", "life", "orphans", "seeded", "saved"):
        table.add_column(name, justify="right")
    rows = told.groups[by]
    for row in [*rows[:top], told.total]:
        life = "" if row.life is None else duration(row.life)
        numbers: list[Any] = [
            row.caches,
            report.size(row.bytes),
            report.size(row.largest),
            report.size(row.peak),
            row.files,
            life,
        ]
        numbers += [row.orphans, row.seeded, report.size(row.saved)]
        table.add_row(plain(row.name), *map(str, numbers), end_section=row is rows[:top][-1] if rows else False)
    console.print(table)
    if len(rows) > top:
        console.print(f"and {len(rows) - top} more: --top {len(rows)}")
    for title, counts in (
        ("reaped by sweeps", told.orphans),
        ("kept", told.kept),
        ("jobs without a cache", told.skipped),
        ("hooks that failed", told.failures),
        ("sweeps", told.sweeps),
    ):
        if counts:
            console.print(f"{title}: {', '.join(f'{count} {plain(name)}' for name, count in sorted(counts.items()))}")
    for advice in told.advice:
        console.print(f"{plain(advice.user)}: {advice.text} {advice.why}.")
