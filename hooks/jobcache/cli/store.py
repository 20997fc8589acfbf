"""The commands `store build`, `verify`, `list` and `prune`: their options, their words and their events."""

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from typing import Any, Optional

import click

from jobcache.cache import linking, reasons, store_names
from jobcache.cli.common import load, plain, wanted_user
from jobcache.config.settings import OFF, Settings
from jobcache.store import pruning, store
from jobcache.system import command_log
from jobcache.system.as_user import user_name

_ENDING = 5.0  # seconds that a command has to end when it is told to
_DAY = 86400 - 3600  # seconds; less than 24 hours, so that a sweep every hour keeps to its hour


def build_command(
    config_file: str, hooks: Optional[str], label: str, sites: bool, rebuild: bool, command: tuple[str, ...]
) -> int:
    """Run a command that builds, and publish what it built; return the exit status."""
    site, _ = load(config_file, hooks)
    to = _to(site, label, sites)
    sources = [] if rebuild else [linking.Source(to.path, [label, ""] if label else [""], os.geteuid())]
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that what is under way is cleaned up
    try:
        with pruning.Building(to, sources) as building:
            try:
                status = _run(command, {**os.environ, "HF_DATASETS_CACHE": building.path})
            except OSError as error:
                raise click.ClickException(f"{command[0]}: {error.strerror}") from None
            if status != 0:
                click.echo(f"nothing is published: {command[0]} ended with status {status}", err=True)
                return 1
            done = building.publish()
    except KeyboardInterrupt:
        click.echo("nothing is published: interrupted", err=True)
        return 1
    except (reasons.Refused, OSError) as error:
        raise click.ClickException(f"{to.path}: {error}") from None
    _tell_published(site, to, done)
    return _say_published(to, done)


def _run(command: tuple[str, ...], env: dict[str, str]) -> int:
    """Run a command that ends with us; return its status. Raise OSError, and what a signal to us raises."""
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


def _to(site: Settings, label: str, sites: bool) -> store.Publisher:
    """Return the store that is to be filled. Raise click.ClickException with the mend where that cannot be."""
    if label and not store_names.is_label(label):
        raise click.BadParameter("a label has letters, digits, . _ and -, 64 at most, and no dot in front", param_hint="--label")
    if os.geteuid() == 0:
        raise click.ClickException(
            "a store is never filled as root, since what it holds is deleted as its owner, and nothing is deleted as root: "
            "run this as the account that the store belongs to, such as `sudo -u NAME jobcache store build …`"
        )
    facts = {"cluster": site.cluster, "by": user_name(os.geteuid())}
    return store.Publisher(place_of(site, sites).path, label, replace=True, shared=sites, most=site.store_max_size, facts=facts)


def place_of(site: Settings, sites: bool, user: Optional[str] = None) -> pruning.Place:
    """Return the site's store, a user's, or one's own. Raise click.ClickException where the site has none."""
    key = "site" if sites else "user"
    if not (site.store_site if sites else site.store_user):
        raise click.ClickException(f"there is no such store: `store: {{{key}: …}}` in {site.config} is null")
    if sites:
        try:
            return pruning.sites_place(site)
        except OSError as error:
            raise click.ClickException(
                f"{site.store_site}: {error.strerror}; make it, owned by the account that is to fill it: "
                f"`install -d -m 755 -o NAME {site.store_site}`"
            ) from None
    uid = wanted_user(user)
    if uid is None:
        raise click.BadParameter("as root, say whose", param_hint="--user")
    who = pwd.getpwuid(uid)
    path = store_names.store_path(str(site.store_user), user=who.pw_name, uid=uid, cluster=site.cluster)
    return pruning.Place(path, uid, who.pw_gid)


def _tell_published(site: Settings, to: store.Publisher, done: store.Published) -> None:
    if done.builds:
        file = site.log_file if os.access(site.log_file or "", os.W_OK) else None
        log = command_log.bound(file, site.log_socket, site.log_level, cluster=site.cluster)
        log.emit(
            "store.published", uid=os.geteuid(), outcome="published", store=to.path,
            label=to.label or None, builds=done.builds, files=done.files, bytes=done.bytes,
        )  # fmt: skip


def _say_published(to: store.Publisher, done: store.Published) -> int:
    for key in done.keys:
        click.echo(f"published {plain(key)}")
    for key in done.grown:
        click.echo(f"added results of map to {plain(key)}")
    for key, why in done.broken.items():
        click.echo(f"not published: {plain(key)}: {plain(why)}", err=True)
    as_they_were = max(0, done.used - len(done.grown))
    click.echo(f"{to.path}: {len(done.keys)} new, {as_they_were} as they were, {done.bytes} bytes more")
    if not done.builds and not done.used:
        click.echo(
            "the command left no dataset in HF_DATASETS_CACHE: does it pass cache_dir= to load_dataset, or set the variable?",
            err=True,
        )
        return 1
    return 1 if done.broken else 0


# --------------------------------------------------------------------------------------------------------------- looking


def _roots(place: pruning.Place) -> str:
    """Say what is wrong with a store that is root's, with the mend."""
    return (
        f"{place.path} belongs to root, and is looked at and pruned as its owner, who is not root: "
        f"give it to an account of its own (`chown -R NAME {place.path}`)"
    )


def list_command(config_file: str, hooks: Optional[str], sites: bool, user: Optional[str], as_json: bool, deep: bool) -> int:
    """Print what is in a store; `deep` reads each build, and says which are not whole. Return the exit status."""
    site, _ = load(config_file, hooks)
    place = place_of(site, sites, user)
    if os.geteuid() == 0 and place.owner == 0:
        raise click.ClickException(_roots(place))
    trouble: list[str] = []
    rows = [_row(place, one) for one in pruning.seen(place, deep, trouble) if one.kind == "build"]
    bad = [row for row in rows if row["problem"]]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif deep:
        for row in bad:
            click.echo(f"{plain(row['path'])}: {plain(row['problem'])}", err=True)
        click.echo(f"{place.path}: {len(rows) - len(bad)} of {len(rows)} builds are whole")
    else:
        _table(sorted(rows, key=lambda row: -row["used"]))
    for words in trouble:
        click.echo(plain(words), err=True)
    return 1 if trouble or (deep and bad) else 0


def _row(place: pruning.Place, one: store.Stored) -> dict[str, Any]:
    state = "damaged" if one.problem else "live" if one.retired is None else "retired"
    return {
        "label": one.label or None,
        "key": one.key,
        "state": state,
        "rows": one.manifest.get("rows"),
        "bytes": one.bytes,
        "files": one.files,
        "used": round(one.used),
        "published_at": one.manifest.get("published_at"),
        "by": one.manifest.get("job_id") or one.manifest.get("by"),
        "problem": one.problem,
        "path": f"{place.path}/{one.path}",
    }


def _table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("label", "state", "rows", "size", "used", "build"):
        table.add_column(name, justify="right" if name in ("rows", "size", "used") else "left", overflow="fold")
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["used"]))
        counts = row["rows"].values() if isinstance(row["rows"], dict) else []
        total = sum(count for count in counts if isinstance(count, int))
        key = row["key"].rpartition("/")[0] or row["path"]
        table.add_row(row["label"] or "-", row["state"], str(total), decimal(row["bytes"]), used, plain(key))
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


# --------------------------------------------------------------------------------------------------------------- pruning


def prune_command(config_file: str, hooks: Optional[str], sites: bool, user: Optional[str], dry_run: bool, as_json: bool) -> int:
    """Prune stores; return the exit status."""
    site, _ = load(config_file, hooks)
    trouble: list[str] = []
    places = [place_of(site, True)] if sites else list(pruning.places(site, wanted_user(user), trouble))
    if os.geteuid() == 0 and not sites and not user and site.store_site and os.path.isdir(site.store_site):
        places.append(pruning.sites_place(site))
    for place in [place for place in places if place.owner == 0 or os.geteuid() not in (0, place.owner)]:
        places.remove(place)  # the others' can be pruned all the same
        trouble.append(
            _roots(place)
            if place.owner == 0
            else f"{place.path} belongs to {user_name(place.owner)}: run this as that account, or as root"
        )
    result = pruning.run(site, places, dry_run)
    if not dry_run:
        _tell_pruned(site, result)
    for place, verdict, freed, files in result.verdicts:
        fact = {"store": place.path, "path": verdict.stored.path, "key": verdict.stored.key, "action": verdict.action}
        if as_json:
            click.echo(json.dumps({**fact, "reason": verdict.reason, "bytes": freed, "files": files}))
        elif verdict.action != "keep" and (dry_run or sys.stdout.isatty()):
            would = "would " if dry_run else ""
            click.echo(f"{would}{verdict.action} {plain(verdict.stored.key or verdict.stored.path)} ({verdict.reason})")
    if result.unknown:
        click.echo(f"nothing is pruned: {result.unknown} ({result.unknown.reason})", err=True)
    for words in trouble + result.trouble:
        click.echo(plain(words), err=True)
    return 1 if result.unknown or result.trouble or trouble else 0


def prune_daily(config_file: str, hooks: Optional[str]) -> int:
    """Prune all stores where the last such pruning of this host was a day ago; return the exit status. For root's sweep."""
    site, lib = load(config_file, hooks)
    if not (site.store_user or site.store_site) or os.path.lexists(f"{lib}/{OFF}"):
        return 0
    stamp = f"{site.run_dir}/store-pruned"
    try:
        if 0 <= time.time() - os.stat(stamp).st_mtime < _DAY:  # one of tomorrow is of a clock that was wrong
            return 0
    except FileNotFoundError:
        pass
    with open(stamp, "w", encoding="ascii"):
        os.utime(stamp)
    return prune_command(config_file, hooks, sites=False, user=None, dry_run=False, as_json=False)


def _tell_pruned(site: Settings, result: pruning.Result) -> None:
    log = command_log.bound(site.log_file if os.geteuid() == 0 else None, site.log_socket, site.log_level, cluster=site.cluster)
    gone: dict[pruning.Place, list[tuple[int, int]]] = {}
    for place, verdict, freed, files in result.verdicts:
        if verdict.action == "delete":
            gone.setdefault(place, []).append((freed, files))
    for place, counts in gone.items():
        log.emit(
            "store.pruned", uid=place.owner, store=place.path, outcome="pruned", builds=len(counts),
            bytes=sum(freed for freed, _ in counts), files=sum(files for _, files in counts),
        )  # fmt: skip
