"""The command `list`: its options, its table and its JSON."""

import json
from typing import Any, Optional

import click

from jobcache.cli import common
from jobcache.sweep import listing, scanning
from jobcache.sweep.host import THIS_HOST, Host
from jobcache.sweep.plan import Decision, has_no_job
from jobcache.system import as_user

_NARROWEST = 80  # columns
_KEYS = {"job": "job_id", "age": "age_s"}  # of rows, for those values of --sort that are no keys


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
    host: Optional[Host] = None,
) -> int:
    """Print the caches on scratch and return the exit status. host: None for this host."""
    site, _ = common.load(config_file, hooks, path)
    options = scanning.Options(user=common.wanted_user(user), local=node_local, node=node or "", dry=True)
    with common.progress(as_json) as progress:
        caches = listing.list_caches(site, options, progress, host or THIS_HOST)
    rows = [_row(decision, size) for decision, size in caches.rows]
    rows = [row for row in rows if state in (None, row["state"])]
    key = _KEYS.get(sort, sort)
    rows.sort(key=lambda row: (row[key] is None, row[key]))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_table(rows)
    for message in caches.trouble:
        click.echo(common.plain(message), err=True)
    return 1 if caches.trouble else 0


def _row(decision: Decision, size: Optional[tuple[int, int]]) -> dict[str, Any]:
    one = decision.directory
    of_job = not has_no_job(one)
    return {
        "job_id": one.job_id if of_job else None,
        "run": one.run if of_job else None,
        "user": as_user.user_name(one.uid),
        "uid": one.uid,
        "state": listing.state_of(decision),
        "reason": decision.reason,
        "nodes": list(one.nodes),
        "age_s": round(one.now - one.sign) if one.now is not None and one.sign > 0 else None,
        "bytes": size[0] if size else None,
        "files": size[1] if size else None,
        "path": one.path,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows with the keys of the command's JSON as a table. Paths and lists of nodes wrap, numbers do not."""
    from rich.filesize import decimal

    table = common.table()
    for name, justify in (("job", "right"), ("user", "left"), ("state", "left"), ("nodes", "left"), ("age", "right")):
        table.add_column(name, justify=justify, no_wrap=name != "nodes", overflow="fold")  # type: ignore[arg-type]
    for name in ("size", "files"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("path", overflow="fold")
    for row in rows:
        cells = (
            f"{row['job_id']}-r{row['run']}" if row["run"] else str(row["job_id"] or "–"),
            row["user"],
            row["state"],
            ",".join(row["nodes"]),
            "unknown" if row["age_s"] is None else _age(row["age_s"]),
            "" if row["bytes"] is None else decimal(row["bytes"]),
            "" if row["files"] is None else str(row["files"]),
            row["path"],
        )
        table.add_row(*map(common.plain, cells))
    common.console(piped=200, narrowest=_NARROWEST).print(table)


def _age(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
