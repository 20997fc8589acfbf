"""The command `check`: gather facts, print findings."""

import json
import os
import pwd
from collections.abc import Iterable
from typing import Optional

import click

from jobcache.cli import common
from jobcache.cli.common import plain
from jobcache.diagnostics import check, probe
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from jobcache.system import node_names

_MARKS = {OK: "ok", WARNING: "warning", PROBLEM: "PROBLEM"}
_STYLES = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}


def check_command(config_file: str, lib: str, user: Optional[str], node: Optional[str], as_json: bool) -> int:
    """Print all findings; return the exit status: 1 if one of them is a problem."""
    try:
        if user is not None:
            _require_permission(pwd.getpwnam(user).pw_uid)
        facts = probe.gather(config_file, lib, user, node or node_names.host_name())
    except KeyError:
        raise click.BadParameter(f"user {user} does not exist", param_hint="--user") from None
    found = list(check.findings(facts))
    if as_json:
        click.echo(json.dumps([_row(one) for one in found], indent=1))
    else:
        _print(found)
    return 1 if any(one.level == PROBLEM for one in found) else 0


def _row(one: Finding) -> dict[str, str]:
    """Return a finding for the JSON output. The key `mend` has the remedy; programs of sites read this key."""
    return {"area": one.area, "name": one.name, "level": one.level, "fact": one.fact, "mend": one.remedy}


def _require_permission(uid: int) -> None:
    """Raise BadParameter if this process cannot, or must not, try scratch as a user."""
    if uid == 0:
        raise click.BadParameter("root never tries scratch; name an ordinary user", param_hint="--user")
    if os.geteuid() not in (0, uid):
        raise click.BadParameter("only root can try scratch as another user", param_hint="--user")


def _print(found: Iterable[Finding]) -> None:
    from rich.text import Text

    console = common.console(piped=1000, soft_wrap=True)
    counts = dict.fromkeys(_MARKS, 0)
    for one in found:
        counts[one.level] += 1
        mark = Text(f"{_MARKS[one.level]:<8}", style=_STYLES[one.level])
        console.print(mark + Text(f" {one.area}: {one.name}: {plain(one.fact)}", style=""))
        if one.remedy:
            console.print(Text(f"           {plain(one.remedy)}", style="bold"))
    problems, warnings = (f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in (PROBLEM, WARNING))
    console.print(f"{problems}, {warnings}, {counts[OK]} ok")
