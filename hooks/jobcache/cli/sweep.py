"""The commands `sweep` and `list`: their options, their progress, their tables and their events."""

import json
import os
import socket
import sys
import time
from dataclasses import asdict
from typing import Any, Optional

import click

from jobcache.cli import common
from jobcache.config import settings
from jobcache.diagnostics import admin_comments, metrics
from jobcache.sweep import listing, lock, one_sweep, reaping, scanning
from jobcache.sweep.plan import KEEP, REAP, REPORT, Decision, Found, has_no_job
from jobcache.system import as_user, events

_NARROWEST = 80  # columns: on a narrower terminal lines are broken, and no number is cut short


def sweep_command(
    config_file: str,
    hooks: Optional[str],
    path: Optional[str],
    dry_run: bool,
    user: Optional[str],
    node_local: bool,
    node: Optional[str],
    shard: str,
    as_json: bool,
) -> int:
    """Sweep once, and say what came of it; return the exit status."""
    site, lib = common.load(config_file, hooks, path)
    if os.path.lexists(f"{lib}/{settings.OFF}"):
        click.echo(f"nothing is done: {lib}/{settings.OFF} is there", err=True)
        return 0
    options = scanning.Options(
        user=common.wanted_user(user),
        shard=parse_shard(shard),
        local=node_local,
        node=node or socket.gethostname().partition(".")[0],
        dry=dry_run,
    )
    log = events.Log(site.log_file, site.log_socket, site.log_level, cluster=site.cluster, node=options.node)
    began = time.monotonic()
    try:
        with lock.Lock(_lock_path(site, options)), common.progress(as_json) as say:
            result = one_sweep.run(site, options, say, lambda reaped: _tell_reaped(log, reaped))
    except lock.Busy as busy:
        click.echo(common.plain(str(busy)), err=True)
        return 1
    if not dry_run:
        _tell_finished(log, result, began)
        metrics.record(site, options, result, time.monotonic() - began, state_of)
        admin_comments.record(site, options)
    _print(result, dry_run, as_json)
    return 1 if result.unknown or result.trouble else 0


def parse_shard(text: str) -> tuple[int, int]:
    """Return (I, N) of `I/N`."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N", param_hint="--shard")
    return int(part), int(parts)


def _lock_path(site: settings.Settings, options: scanning.Options) -> str:
    which = f"{'local' if options.local else 'shared'}-{options.shard[0]}-of-{options.shard[1]}"
    if os.geteuid() == 0:
        return f"{site.run_dir}/sweep-{which}.lock"
    own = os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache")
    return f"{own}/jobcache-sweep-{which}.lock"


def _tell_reaped(log: events.Log, reaped: reaping.Reaped) -> None:
    one = reaped.decision.found
    log.emit(
        "cache.orphan_reaped",
        **_job(one), uid=one.uid, path=one.path, outcome="reaped" if reaped.done else "trashed",
        reason=reaped.decision.reason, bytes=reaped.bytes, files=reaped.files, **dict[str, Any](reaped.usage),
    )  # fmt: skip


def _job(one: Found) -> dict[str, Any]:
    """Which job and run it is of: none, where `jobcache run` was not in one."""
    return {"job_id": None, "run": None} if has_no_job(one) else {"job_id": one.job_id, "run": one.run}


def _tell_finished(log: events.Log, result: one_sweep.Result, began: float) -> None:
    reasons: dict[str, int] = {}
    for decision in result.decisions:
        reasons[decision.reason] = reasons.get(decision.reason, 0) + 1
        if decision.reason == "in_use" or decision.action == REPORT:
            _tell_kept(log, decision, result.terminated.get(decision.found.path, ()))
    by_action = {action: sum(decision.action == action for decision in result.decisions) for action in (KEEP, REPORT)}
    log.emit(
        "sweep.finished",
        "warning" if result.unknown or result.trouble else "info",
        outcome="unknown" if result.unknown else "finished",
        reason=result.unknown.reason if result.unknown else None,
        error=str(result.unknown) if result.unknown else next(iter(result.trouble), None),
        found=len(result.decisions), reaped=len(result.reaped), kept=by_action[KEEP], reported=by_action[REPORT],
        troubles=len(result.trouble), reasons=reasons,
        bytes=sum(one.bytes for one in result.reaped), files=sum(one.files for one in result.reaped),
        duration_ms=round((time.monotonic() - began) * 1000),
    )  # fmt: skip


def _tell_kept(log: events.Log, decision: Decision, terminated: tuple[int, ...]) -> None:
    """What is in use, always; what is reported only, and found again by every sweep, where the site logs such things."""
    one = decision.found
    log.emit(
        "cache.kept", "debug" if decision.action == REPORT else "info",
        **_job(one), uid=one.uid, path=one.path, outcome="kept", reason=decision.reason,
        pids=list(one.pids) or None, terminated=list(terminated) or None, error=one.error or None,
    )  # fmt: skip


def _print(result: one_sweep.Result, dry_run: bool, as_json: bool) -> None:
    """What was decided, for people who asked: in cron, a sweep that has no trouble says nothing."""
    if as_json:
        for decision in result.decisions:
            click.echo(json.dumps({"action": decision.action, "reason": decision.reason, **asdict(decision.found)}))
    elif dry_run or sys.stdout.isatty():
        for decision in result.decisions:
            if decision.action != KEEP:
                click.echo(
                    f"{'would ' if dry_run else ''}{decision.action} {common.plain(decision.found.path)} ({decision.reason})"
                )
        for path, pids in result.terminated.items():
            if pids:
                click.echo(f"{'would ' if dry_run else ''}terminate {', '.join(map(str, pids))} in {common.plain(path)}")
        click.echo(_summary(result, dry_run))
    if result.unknown:
        click.echo(common.plain(f"nothing is reaped: {result.unknown} ({result.unknown.reason})"), err=True)
    for words in result.trouble:
        click.echo(common.plain(words), err=True)


def _summary(result: one_sweep.Result, dry_run: bool) -> str:
    counts: dict[str, int] = {}
    for decision in result.decisions:
        key = f"{decision.action}: {decision.reason}"
        counts[key] = counts.get(key, 0) + 1
    words = ", ".join(f"{count} {key}" for key, count in sorted(counts.items())) or "nothing found"
    freed = sum(one.bytes for one in result.reaped)
    return words if dry_run else f"{words}; freed {freed} bytes"


# --------------------------------------------------------------------------------------------------------------- list


def list_command(
    config_file: str,
    hooks: Optional[str],
    path: Optional[str],
    user: Optional[str],
    state: Optional[str],
    sort: str,
    node_local: bool,
    node: Optional[str],
    as_json: bool,
) -> int:
    """Print the caches there are; return the exit status."""
    site, _ = common.load(config_file, hooks, path)
    options = scanning.Options(
        user=common.wanted_user(user), local=node_local, node=node or socket.gethostname().partition(".")[0], dry=True
    )
    with common.progress(as_json) as say:
        listed = listing.listed(site, options, say)
    rows = [_row(decision, sizes) for decision, sizes in listed.rows]
    rows = [row for row in rows if state in (None, row["state"])]
    rows.sort(
        key=lambda row: (
            row[{"job": "job_id", "age": "age_s"}.get(sort, sort)] is None,
            row[{"job": "job_id", "age": "age_s"}.get(sort, sort)],
        )
    )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        _table(rows)
    for words in listed.trouble:
        click.echo(common.plain(words), err=True)
    return 1 if listed.trouble else 0


def _row(decision: Decision, sizes: Optional[tuple[int, int]]) -> dict[str, Any]:
    one = decision.found
    return {
        **_job(one),
        "user": as_user.user_name(one.uid),
        "uid": one.uid,
        "state": state_of(decision),
        "reason": decision.reason,
        "nodes": list(one.nodes),
        "age_s": round(one.now - one.sign) if one.now is not None else None,
        "bytes": sizes[0] if sizes else None,
        "files": sizes[1] if sizes else None,
        "path": one.path,
    }


def state_of(decision: Decision) -> str:
    """Return one word for people: live, orphan, kept, trash, half-made, aside, unrecorded, unknown."""
    if decision.reason == "alive":
        return "live"
    if decision.reason in ("user_keep", "job_failed"):
        return "kept"
    kinds = {"new": "half-made", "trash": "trash", "aside": "aside"}
    if decision.found.kind in kinds:
        return kinds[decision.found.kind]
    if decision.found.error:
        return "unknown"
    if decision.found.identity is None:
        return "unrecorded"
    return "orphan" if decision.action in (REAP, REPORT) or decision.reason in ("young", "in_use") else "unknown"


def _table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("job", "right"), ("user", "left"), ("state", "left"), ("nodes", "left"), ("age", "right")):
        table.add_column(name, justify=justify, no_wrap=name != "nodes", overflow="fold")  # type: ignore[arg-type]
    for name in ("size", "files"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("path", overflow="fold")
    for row in rows:
        job = f"{row['job_id']}-r{row['run']}" if row["run"] else str(row["job_id"] or "–")
        age = "" if row["age_s"] is None else _age(row["age_s"])
        size = "" if row["bytes"] is None else decimal(row["bytes"])
        cells = (
            job,
            row["user"],
            row["state"],
            ",".join(row["nodes"]),
            age,
            size,
            "" if row["files"] is None else str(row["files"]),
        )
        table.add_row(*map(common.plain, cells), common.plain(row["path"]))
    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False, emoji=False)
    console.width = max(console.width, _NARROWEST)
    console.print(table)


def _age(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
