"""The commands `store build`, `verify`, `list` and `prune`: their options, their output and their events."""

import json
import os
import pwd
import subprocess
import sys
import time
from typing import Any, Optional

import click

from jobcache.cache import linking, reasons, store_names
from jobcache.cli import common, signals
from jobcache.cli.common import load, plain, wanted_user
from jobcache.config.settings import OFF, Settings
from jobcache.store import as_owner, inventory, places, pruning
from jobcache.store.building import BuildCache
from jobcache.store.publication import Destination, Published
from jobcache.system import command_log
from jobcache.system.as_user import user_name
from jobcache.system.files import open_regular
from jobcache.system.stuck_processes import Register

_ENDING = 5.0  # seconds between SIGTERM and SIGKILL to a command
_DAY = 86400 - 3600  # seconds; less than 24 hours, so that an hourly sweep prunes in the same hour of each day

# -------------------------------------------------------------------------------------------------------------- build


def build_command(
    config_file: str, hooks: Optional[str], label: str, sites: bool, rebuild: bool, command: tuple[str, ...]
) -> int:
    """Run a command that builds datasets, publish what it built, and return the exit status."""
    site, _ = load(config_file, hooks)
    to = _destination(site, label, sites)
    sources = [] if rebuild else [linking.Source(to.path, [label, ""] if label else [""], os.geteuid())]
    signals.exit_on_termination()
    try:
        with BuildCache(to, sources) as cache:
            try:
                status = _run(command, {**os.environ, "HF_DATASETS_CACHE": cache.path})
            except OSError as error:
                raise click.ClickException(f"cannot run {command[0]}: {error.strerror}") from None
            if status != 0:
                click.echo(f"nothing was published: {command[0]} ended with status {status}", err=True)
                return 1
            published = cache.publish()
    except KeyboardInterrupt:
        click.echo("nothing was published: interrupted", err=True)
        return 1
    except (reasons.Refused, OSError) as error:
        raise click.ClickException(f"cannot publish into {to.path}: {error}") from None
    _log_published(site, to, published)
    return _print_published(to, published)


def _run(command: tuple[str, ...], env: dict[str, str]) -> int:
    """Run a command and return its status; end it if a signal ends this process. Raise OSError."""
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _destination(site: Settings, label: str, sites: bool) -> Destination:
    """Return the destination of the builds. Raise click.ClickException, with the remedy, if this user cannot fill it."""
    if label and not store_names.is_label(label):
        raise click.BadParameter(
            "a label has 1 to 64 of the characters A-Z a-z 0-9 . _ - and does not begin with a dot", param_hint="--label"
        )
    if os.geteuid() == 0:
        raise click.ClickException(
            "root cannot fill a store: builds are deleted as the store's owner, and jobcache deletes nothing as root. "
            "Run this as the account that owns the store, such as `sudo -u NAME jobcache store build …`"
        )
    return Destination(
        place_of(site, sites).path,
        label,
        maps=bool(label),
        replace=True,
        shared=sites,
        max_bytes=site.store_max_size,
        facts={"cluster": site.cluster, "by": user_name(os.geteuid())},
    )


def place_of(site: Settings, sites: bool, user: Optional[str] = None) -> places.Place:
    """Return the site's store, or the store of a user, by default of this user.

    Raise click.ClickException if the site has no such store.
    """
    key = "site" if sites else "user"
    if not (site.store_site if sites else site.store_user):
        raise click.ClickException(f"no such store is configured: `store: {{{key}: …}}` in {site.config} is null")
    if sites:
        try:
            return places.site_place(site)
        except OSError as error:
            raise click.ClickException(
                f"cannot use the site's store {site.store_site}: {error.strerror}. Create it for the account that fills it: "
                f"`install -d -m 755 -o NAME {site.store_site}`"
            ) from None
    uid = wanted_user(user)
    if uid is None:
        raise click.BadParameter("required for root", param_hint="--user")
    return places.user_place(site, pwd.getpwuid(uid))


def _log_published(site: Settings, to: Destination, published: Published) -> None:
    """Log the event `store.published` if a build was published."""
    if published.builds:
        file = site.log_file if os.access(site.log_file or "", os.W_OK) else None
        log = command_log.bound(file, site.log_socket, site.log_level, cluster=site.cluster)
        log.emit(
            "store.published", uid=os.geteuid(), outcome="published", store=to.path,
            label=to.label or None, builds=published.builds, files=published.files, bytes=published.bytes,
        )  # fmt: skip


def _print_published(to: Destination, published: Published) -> int:
    """Print the result of a publication and return the exit status."""
    for key in published.added:
        click.echo(f"published {plain(key)}")
    for key in published.extended:
        click.echo(f"added results of map to {plain(key)}")
    for key, reason in published.broken.items():
        click.echo(f"not published: {plain(key)}: {plain(reason)}", err=True)
    unchanged = max(0, published.used - len(published.extended))
    click.echo(f"{to.path}: {len(published.added)} new, {unchanged} unchanged, {published.bytes} bytes added")
    if not published.builds and not published.used:
        click.echo(
            "the command left no dataset in HF_DATASETS_CACHE: does it pass cache_dir= to load_dataset, or set the variable?",
            err=True,
        )
        return 1
    return 1 if published.broken else 0


# ------------------------------------------------------------------------------------------------------ list and verify


def _owned_by_root(place: places.Place) -> str:
    """Return the message about a store that root owns, with the remedy."""
    return (
        f"{place.path} belongs to root. A store is read and pruned as its owner, which cannot be root: "
        f"give it an account of its own (`chown -R NAME {place.path}`)"
    )


def list_command(config_file: str, hooks: Optional[str], sites: bool, user: Optional[str], as_json: bool, deep: bool) -> int:
    """Print the builds in a store and return the exit status. deep: read each build, and print which are damaged."""
    site, _ = load(config_file, hooks)
    place = place_of(site, sites, user)
    if os.geteuid() == 0 and place.owner == 0:
        raise click.ClickException(_owned_by_root(place))
    problems: list[str] = []
    entries = as_owner.entries(place, problems, Register(site.run_dir), deep=deep)
    rows = [_row(place, entry) for entry in entries if entry.kind == "build"]
    damaged = [row for row in rows if row["problem"]]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif deep:
        for row in damaged:
            click.echo(f"{plain(row['path'])}: {plain(row['problem'])}", err=True)
        click.echo(f"{place.path}: {len(rows) - len(damaged)} of {len(rows)} builds are whole")
    else:
        _print_table(sorted(rows, key=lambda row: -row["used"]))
    for problem in problems:
        click.echo(plain(problem), err=True)
    return 1 if problems or (deep and damaged) else 0


def _row(place: places.Place, entry: inventory.Entry) -> dict[str, Any]:
    return {
        "label": entry.label or None,
        "key": entry.key,
        "is_result_set": store_names.is_result_set(entry.name),
        "state": "damaged" if entry.problem else "live" if entry.retired is None else "retired",
        "rows": entry.manifest.get("rows"),
        "bytes": entry.bytes,
        "files": entry.files,
        "used": round(entry.used),
        "published_at": entry.manifest.get("published_at"),
        "by": entry.manifest.get("job_id") or entry.manifest.get("by"),
        "problem": entry.problem,
        "path": f"{place.path}/{entry.path}",
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.filesize import decimal

    table = common.table()
    for name in ("label", "state", "rows", "size", "used", "build"):
        table.add_column(name, justify="right" if name in ("rows", "size", "used") else "left", overflow="fold")
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["used"]))
        counts = row["rows"].values() if isinstance(row["rows"], dict) else []
        total = sum(count for count in counts if isinstance(count, int))
        key = row["key"].rpartition("/")[0] or row["path"]
        key += " (results of map)" if row["is_result_set"] else ""
        table.add_row(row["label"] or "-", row["state"], str(total), decimal(row["bytes"]), used, plain(key))
    common.console(piped=200).print(table)


# -------------------------------------------------------------------------------------------------------------- prune


def prune_command(config_file: str, hooks: Optional[str], sites: bool, user: Optional[str], dry_run: bool, as_json: bool) -> int:
    """Prune stores and return the exit status."""
    site, _ = load(config_file, hooks)
    problems: list[str] = []
    stores = _prunable(site, sites, user, problems)
    result = pruning.prune(site, stores, dry_run)
    if not dry_run:
        _log_pruned(site, result)
    for place, decision, freed, files in result.decisions:
        entry = decision.entry
        if as_json:
            fact = {"store": place.path, "path": entry.path, "key": entry.key, "action": decision.action}
            click.echo(json.dumps({**fact, "reason": decision.reason, "bytes": freed, "files": files}))
        elif decision.action != "keep" and (dry_run or sys.stdout.isatty()):
            would = "would " if dry_run else ""
            click.echo(f"{would}{decision.action} {plain(entry.key or entry.path)} ({decision.reason})")
    if result.unknown:
        click.echo(f"nothing was deleted: {result.unknown} ({result.unknown.reason})", err=True)
    problems += result.problems
    for problem in problems:
        click.echo(plain(problem), err=True)
    return 1 if result.unknown or problems else 0


def _prunable(site: Settings, sites: bool, user: Optional[str], problems: list[str]) -> list[places.Place]:
    """Return the stores to prune. Add to `problems` which of them this user cannot prune, with the remedy."""
    stores = [place_of(site, True)] if sites else list(places.user_places(site, wanted_user(user), problems))
    if os.geteuid() == 0 and not sites and not user and site.store_site and os.path.isdir(site.store_site):
        stores.append(places.site_place(site))
    prunable = []
    for place in stores:
        if place.owner == 0:
            problems.append(_owned_by_root(place))
        elif os.geteuid() not in (0, place.owner):
            problems.append(f"{place.path} belongs to {user_name(place.owner)}: run this as that account, or as root")
        else:
            prunable.append(place)
    return prunable


def prune_daily(config_file: str, hooks: Optional[str]) -> int:
    """Prune all stores if this host did so a day ago or earlier, as part of root's sweep. Return the exit status."""
    site, lib = load(config_file, hooks)
    if not (site.store_user or site.store_site) or os.path.lexists(f"{lib}/{OFF}"):
        return 0
    stamp = f"{site.run_dir}/store-pruned"
    try:
        if not _is_due(stamp):
            return 0
    except OSError as error:
        raise click.ClickException(f"cannot use {stamp}: {error.strerror}; fix run_dir, or set another one") from None
    return prune_command(config_file, hooks, sites=False, user=None, dry_run=False, as_json=False)


def _is_due(stamp: str) -> bool:
    """Return whether the file `stamp` was dated a day ago or earlier; then date it. Raise OSError."""
    try:
        if 0 <= time.time() - os.stat(stamp).st_mtime < _DAY:  # a date in the future comes from a wrong clock
            return False
    except FileNotFoundError:
        pass
    os.close(open_regular(stamp, os.O_RDWR | os.O_CREAT))
    os.utime(stamp)
    return True


def _log_pruned(site: Settings, result: pruning.Pruned) -> None:
    """Log the event `store.pruned` for each store from which builds were deleted."""
    log = command_log.bound(site.log_file if os.geteuid() == 0 else None, site.log_socket, site.log_level, cluster=site.cluster)
    deleted: dict[places.Place, list[tuple[int, int]]] = {}
    for place, decision, freed, files in result.decisions:
        if decision.action == "delete":
            deleted.setdefault(place, []).append((freed, files))
    for place, counts in deleted.items():
        log.emit(
            "store.pruned", uid=place.owner, store=place.path, outcome="pruned", builds=len(counts),
            bytes=sum(freed for freed, _ in counts), files=sum(files for _, files in counts),
        )  # fmt: skip
