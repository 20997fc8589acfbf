"""The command `sweep`: its options, its output and its events."""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any, Optional

import click

from jobcache.cache.fields import number
from jobcache.cli import common
from jobcache.config import settings
from jobcache.diagnostics import admin_comments, metrics
from jobcache.sweep import lock, one_sweep, reaping, scanning
from jobcache.sweep.host import THIS_HOST, Host
from jobcache.sweep.plan import KEEP, REPORT, Decision, job_of
from jobcache.system import command_log, node_names

_LOGGED = ("in_use", "budget", "too_many_leases")  # reasons for which a directory is kept with an event
_MOST_LOGGED = 100  # directories of one user that one sweep keeps, with an event each; sweep.finished counts all


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
    host: Optional[Host] = None,
) -> int:
    """Sweep once, print and log the outcome, and return the exit status. host: None for this host."""
    host = host or THIS_HOST
    site, lib = common.load(config_file, hooks, path)
    if os.path.lexists(f"{lib}/{settings.OFF}"):
        click.echo(f"no sweep: {lib}/{settings.OFF} exists; remove it to turn jobcache on again", err=True)
        return 0
    options = scanning.Options(
        user=common.wanted_user(user),
        shard=parse_shard(shard),
        local=node_local,
        node=node or "",
        dry=dry_run,
    )
    logged_as = {"cluster": site.cluster, "node": node or node_names.host_name()}
    log = command_log.bound(site.log_file, site.log_socket, site.log_level, **logged_as)
    began = time.monotonic()
    try:
        held = contextlib.nullcontext() if dry_run else lock.Lock(_lock_path(site, options))  # a dry run writes nothing
        with held, common.progress(as_json) as progress:
            result = one_sweep.run(site, options, progress, lambda reaped: _log_reaped(log, reaped), host=host)
    except lock.Busy as busy:
        click.echo(common.plain(str(busy)), err=True)
        return 1
    if not dry_run:
        _log_finished(log, result, began)
        metrics.record(site, options, result, time.monotonic() - began, host)
        admin_comments.record(site, options)
    _print(result, dry_run, as_json)
    return 1 if result.unknown or result.trouble else 0


def parse_shard(text: str) -> tuple[int, int]:
    """Return (I, N) of `I/N`. Raise click.BadParameter."""
    part, parts = (number(digits.lstrip("0")) for digits in text.partition("/")[::2])
    if part is None or parts is None or part > parts:
        raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N", param_hint="--shard")
    return part, parts


def _lock_path(site: settings.Settings, options: scanning.Options) -> str:
    scope = f"{'local' if options.local else 'shared'}-{options.shard[0]}-of-{options.shard[1]}"
    if os.geteuid() == 0:
        return f"{site.run_dir}/sweep-{scope}.lock"
    own = os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache")
    return f"{own}/jobcache-sweep-{scope}.lock"


# -------------------------------------------------------------------------------------------------------------- events


def _log_reaped(log: command_log.CommandLog, reaped: reaping.Reaped) -> None:
    one = reaped.decision.directory
    log.emit(
        "cache.orphan_reaped",
        **job_of(one), uid=one.uid, path=one.path, outcome="reaped" if reaped.done else "trashed",
        reason=reaped.decision.reason, bytes=reaped.bytes, files=reaped.files, **dict[str, Any](reaped.usage),
    )  # fmt: skip


def _log_finished(log: command_log.CommandLog, result: one_sweep.Result, began: float) -> None:
    reasons: dict[str, int] = {}
    logged: dict[int, int] = {}  # by uid
    for decision in result.decisions:
        reasons[decision.reason] = reasons.get(decision.reason, 0) + 1
        uid = decision.directory.uid
        if (decision.reason in _LOGGED or decision.action == REPORT) and logged.get(uid, 0) < _MOST_LOGGED:
            logged[uid] = logged.get(uid, 0) + 1
            _log_kept(log, decision, result.terminated.get(decision.directory.path, ()))
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


def _log_kept(log: command_log.CommandLog, decision: Decision, terminated: tuple[int, ...]) -> None:
    """Log a directory in use, or given up. One that is reported, which each sweep finds again, is logged at the level debug."""
    one = decision.directory
    log.emit(
        "cache.kept", "debug" if decision.action == REPORT else "info",
        **job_of(one), uid=one.uid, path=one.path, outcome="kept", reason=decision.reason,
        pids=list(one.pids) or None, terminated=list(terminated) or None, error=one.error or None,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- output


def _print(result: one_sweep.Result, dry_run: bool, as_json: bool) -> None:
    """Print the decisions on request or on a terminal, and trouble always: a sweep without trouble is silent in cron."""
    if as_json:
        for decision in result.decisions:
            click.echo(json.dumps({"action": decision.action, "reason": decision.reason, **asdict(decision.directory)}))
    elif dry_run or sys.stdout.isatty():
        would = "would " if dry_run else ""
        for decision in result.decisions:
            if decision.action != KEEP:
                click.echo(f"{would}{decision.action} {common.plain(decision.directory.path)} ({decision.reason})")
        for path, pids in result.terminated.items():
            if pids:
                click.echo(f"{would}terminate {', '.join(map(str, pids))} in {common.plain(path)}")
        click.echo(_summary(result, dry_run))
    if result.unknown:
        click.echo(
            common.plain(
                f"no job's cache was reaped, because the live jobs are unknown: {result.unknown} ({result.unknown.reason}); "
                "run `squeue` on this host to see whether Slurm answers"
            ),
            err=True,
        )
    for message in result.trouble:
        click.echo(common.plain(message), err=True)


def _summary(result: one_sweep.Result, dry_run: bool) -> str:
    counts: dict[str, int] = {}
    for decision in result.decisions:
        key = f"{decision.action}: {decision.reason}"
        counts[key] = counts.get(key, 0) + 1
    text = ", ".join(f"{count} {key}" for key, count in sorted(counts.items())) or "no cache found"
    freed = sum(one.bytes for one in result.reaped)
    return text if dry_run else f"{text}; freed {freed} bytes"
