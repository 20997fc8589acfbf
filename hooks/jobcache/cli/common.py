"""What the commands share: settings, users, progress, tables."""

import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import click

from jobcache.cache import path_template
from jobcache.config import compilation, errors, settings
from jobcache.runner import run
from jobcache.sweep import scanning


def load(config_file: str, hooks: Optional[str], path: Optional[str] = None) -> tuple[settings.Settings, str]:
    """Return the compiled settings, of `hooks` or of the installed package, and the directory they are in.

    Where nothing is compiled yet, or another file is named than the one that was, the configuration file itself will do;
    where there is none either, as for `path`, a user has what `jobcache run` goes by.
    """
    lib = os.path.abspath(hooks) if hooks else settings.LIB
    try:
        if path:
            return run.own_settings(None if config_file == settings.CONFIG else config_file, path), lib
        if hooks or os.path.exists(f"{lib}/{settings.FILE}"):
            compiled = settings.load(f"{lib}/{settings.FILE}")
            if hooks or config_file == settings.CONFIG or os.path.abspath(config_file) == compiled.config:
                return compiled, lib
        if os.geteuid() != 0 and config_file == settings.CONFIG and not os.path.exists(config_file):
            return run.own_settings(None, None), lib
        return compilation.compile_settings(config_file, lib), lib
    except settings.SettingsError as error:
        raise click.ClickException(str(error)) from None
    except path_template.TemplateError as error:
        raise click.BadParameter(str(error), param_hint="--path") from None
    except (errors.ConfigError, errors.ApplyError) as error:
        raise click.ClickException("\n".join(map(str, error.problems))) from None


def wanted_user(name: Optional[str]) -> Optional[int]:
    """Return the uid to look at, None for all; without root, always one's own."""
    if name is None:
        return None if os.geteuid() == 0 else os.geteuid()
    try:
        uid = int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise click.BadParameter(f"there is no user {name}", param_hint="--user") from None
    if os.geteuid() not in (0, uid):
        raise click.BadParameter("only root can look at another user's", param_hint="--user")
    return uid


@contextmanager
def progress(quiet: bool) -> Iterator[scanning.Say]:
    """A progress bar on a terminal; silence elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield scanning.silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=None)

        def say(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of or None)

        yield say


def plain(text: str) -> str:
    """A path as one line of a terminal, whatever its user put into it."""
    return (
        os.fsencode(text).decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")
        if not text.isprintable()
        else text
    )
