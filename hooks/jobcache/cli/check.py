"""The command `check`: its table and its JSON."""

import json
import os
import pwd
import socket
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Optional

import click

from jobcache.cli.common import plain
from jobcache.diagnostics import check, probe

_MARKS = {check.OK: "ok", check.WARNING: "warning", check.PROBLEM: "PROBLEM"}
_COUNTED = {check.PROBLEM: "problem", check.WARNING: "warning"}
_STYLES = {check.OK: "green", check.WARNING: "yellow", check.PROBLEM: "bold red"}


def check_command(config_file: str, lib: str, user: Optional[str], node: Optional[str], as_json: bool) -> int:
    """Print all findings; return the exit status."""
    try:
        if user is not None:
            _may_be(pwd.getpwnam(user).pw_uid)
        facts = probe.gather(config_file, lib, user, node or socket.gethostname().partition(".")[0])
    except KeyError:
        raise click.BadParameter(f"there is no user {user}", param_hint="--user") from None
    found = list(check.findings(facts))
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        _print(found)
    return 1 if any(one.level == check.PROBLEM for one in found) else 0


def _may_be(uid: int) -> None:
    """Refuse whom nobody can, or may, try scratch as."""
    if uid == 0:
        raise click.BadParameter("scratch is never tried as root; name an ordinary user", param_hint="--user")
    if os.geteuid() not in (0, uid):
        raise click.BadParameter("only root can try scratch as another user", param_hint="--user")


def _print(found: Iterable[check.Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000, markup=False, highlight=False, soft_wrap=True)
    counts = dict.fromkeys(_MARKS, 0)
    for one in found:
        counts[one.level] += 1
        mark = Text(f"{_MARKS[one.level]:<8}", style=_STYLES[one.level])
        console.print(mark + Text(f" {one.area}: {one.name}: {plain(one.fact)}", style=""))
        if one.mend:
            console.print(Text(f"           {plain(one.mend)}", style="bold"))
    words = (f"{counts[level]} {name}{'' if counts[level] == 1 else 's'}" for level, name in _COUNTED.items())
    console.print(f"{', '.join(words)}, {counts[check.OK]} fine")
