"""The commands of the group `store`: their options and help texts."""

import sys
from typing import Any

import click

from jobcache.cli import options


def _common(command: Any) -> Any:
    """Add the options of every command of the group."""
    site = click.option("--site", "sites", is_flag=True, help="Use the site's store, not your own.")
    return options.config(options.hooks(site(command)))


@click.group("store")
def store_group() -> None:
    """Manage built datasets that new caches begin with."""


@store_group.command("build")
@_common
@click.option("--label", metavar="LABEL", default="", help="Build for jobs with JOBCACHE_STORE=LABEL. Default: for every job.")
@click.option("--rebuild", is_flag=True, help="Link nothing from the store, and replace its builds of the same datasets.")
@click.argument("command", nargs=-1, required=True)
def store_build(**options: Any) -> None:
    """Run COMMAND and publish the datasets that it loads.

    If COMMAND fails, nothing is published. Builds that are not complete are not published.

    \b
    Example:
      jobcache store build --label exp-1 -- python prepare.py
    """
    from jobcache.cli import store

    sys.exit(store.build_command(**options))


@store_group.command("list")
@_common
@options.user
@options.as_json
def store_list(**options: Any) -> None:
    """List the builds in the store.

    \b
    Example:
      jobcache store list
    """
    from jobcache.cli import store

    sys.exit(store.list_command(**options, deep=False))


@store_group.command("verify")
@_common
@options.user
@options.as_json
def store_verify(**options: Any) -> None:
    """Read every build in the store and report damaged ones.

    A damaged build is not linked into new caches.

    \b
    Example:
      jobcache store verify --site
    """
    from jobcache.cli import store

    sys.exit(store.list_command(**options, deep=True))


@store_group.command("prune")
@_common
@options.user
@options.dry_run
@options.as_json_lines
def store_prune(**options: Any) -> None:
    """Delete builds that are old, or too many.

    A build is old when no job has used it for `store.max_age`. When the store is larger than `store.max_size`, the builds
    that were unused for longest are deleted. A build that is to be deleted is first hidden from new caches, and deleted
    when every job that could have linked it has ended.

    \b
    Example:
      jobcache store prune --dry-run
    """
    from jobcache.cli import store

    sys.exit(store.prune_command(**options))
