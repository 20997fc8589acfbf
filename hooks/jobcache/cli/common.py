"""The parts that all commands share: settings, users, progress, tables, and text without terminal escapes."""

import os
import pwd
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional

import click

from jobcache.cache import path_template
from jobcache.cache.fields import natural
from jobcache.config import compilation, errors, settings
from jobcache.config.notation import parse_duration
from jobcache.runner import own_config
from jobcache.sweep import scanning
from jobcache.system import event_log

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def load(config_file: str, hooks: Optional[str], path: Optional[str] = None) -> tuple[settings.Settings, str]:
    """Return the compiled settings, of `hooks` or of the installed package, and their directory.

    The configuration file itself is used before anything is compiled, and if --config names another file than the
    compiled one. Without any configuration, and with `path`, a user gets the settings of `jobcache run`.
    Raise click.ClickException for settings that cannot be used.
    """
    lib = os.path.abspath(hooks) if hooks else settings.LIB
    try:
        if path:
            return own_config.own_settings(None if config_file == settings.CONFIG else config_file, path), lib
        if hooks or os.path.exists(f"{lib}/{settings.FILE}"):
            compiled = settings.load(f"{lib}/{settings.FILE}")
            if hooks or config_file == settings.CONFIG or os.path.abspath(config_file) == compiled.config:
                return compiled, lib
        if os.geteuid() != 0 and config_file == settings.CONFIG and not os.path.exists(config_file):
            return own_config.own_settings(None, None), lib
        return compilation.compile_settings(config_file, lib), lib
    except settings.SettingsError as error:
        raise click.ClickException(str(error)) from None
    except path_template.TemplateError as error:
        raise click.BadParameter(str(error), param_hint="--path") from None
    except (errors.ConfigError, errors.ApplyError) as error:
        raise click.ClickException("\n".join(map(str, error.problems))) from None


def wanted_user(name: Optional[str]) -> Optional[int]:
    """Return the uid that --user selects, None for all users. An ordinary user always gets their own uid.

    Raise click.BadParameter for an unknown user, and for another user if the caller is not root.
    """
    if name is None:
        return None if os.geteuid() == 0 else os.geteuid()
    try:
        uid = natural(name)
        uid = pwd.getpwnam(name).pw_uid if uid is None else uid
    except KeyError:
        raise click.BadParameter(f"user {name} does not exist", param_hint="--user") from None
    if os.geteuid() not in (0, uid):
        raise click.BadParameter("only root can select another user", param_hint="--user")
    return uid


def parse_time(text: str, now: float, option: str) -> float:
    """Return `7d` (before now), `2026-11-01` or `2026-11-01T12:00:00Z` as seconds since the epoch. Raise BadParameter."""
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


@contextmanager
def progress(quiet: bool) -> Iterator[scanning.Progress]:
    """Show a progress bar if stderr is a terminal. The block gets the function that moves it."""
    if quiet or not sys.stderr.isatty():
        yield scanning.no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=None)

        def move(activity: str, done: int, of: int) -> None:
            bar.update(task, description=activity, completed=done, total=of or None)

        yield move


def console(piped: int, narrowest: int = 0, soft_wrap: bool = False) -> "Console":
    """Return a console on stdout that prints text as it is, without markup.

    piped: width in columns if stdout is no terminal.
    narrowest: least width; on a narrower terminal lines wrap, and no number is cut short.
    soft_wrap: the terminal wraps long lines, so that they can be copied.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else piped
    made = Console(width=width, markup=False, highlight=False, emoji=False, soft_wrap=soft_wrap)
    made.width = max(made.width, narrowest)
    return made


def table() -> "Table":
    """Return an empty table in the style of all commands."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def plain(text: str) -> str:
    """Return text that a user could choose, such as a path, as one line without control characters."""
    if text.isprintable():
        return text
    return os.fsencode(text).decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")
