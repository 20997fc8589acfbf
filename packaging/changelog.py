#!/usr/bin/env python3
"""Print the changelog of a package, generated from docs/CHANGELOG.md.

packaging/changelog.py deb|rpm VERSION SECONDS

VERSION is the version of the build. If CHANGELOG.md has no section for it, the section "Unreleased" is used, with the date
SECONDS (since 1970).
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
NAME = "slurm-jobcache"


class Release(NamedTuple):
    """version: "0.1.0". date: UTC. changes: one sentence or more each, without markup."""

    version: str
    date: datetime
    changes: list[str]


def releases(text: str, version: str, seconds: int) -> list[Release]:
    """Given Keep a Changelog's text, return the releases up to `version`, the newest first. Raise ValueError."""
    found = []
    sections = re.split(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, flags=re.MULTILINE)[1:]
    named = sections[0::3]
    for name, day, body in zip(named, sections[1::3], sections[2::3]):
        changes = [plain(item) for item in re.findall(r"^- (.+?)(?=\n- |\n\n|\n?\Z)", body, flags=re.MULTILINE | re.DOTALL)]
        if name == "Unreleased":
            if version not in named and changes:
                found.append(Release(version, datetime.fromtimestamp(seconds, timezone.utc), changes))
        elif day:
            found.append(Release(name, datetime.fromisoformat(f"{day}T00:00:00+00:00"), changes))
        else:
            raise ValueError(f"CHANGELOG.md: [{name}] has no date")
    if version not in [release.version for release in found]:
        raise ValueError(f"CHANGELOG.md: no section [{version}], and [Unreleased] is empty")
    return found[[release.version for release in found].index(version) :]


def plain(item: str) -> str:
    """Return the text of a bullet on one line, without markup. A link becomes its words."""
    return " ".join(re.sub(r"\[(.+?)\]\(.+?\)", r"\1", item).replace("`", "").replace("**", "").split())


def deb(found: Iterable[Release], maintainer: str) -> str:
    """Return the text of debian/changelog."""
    parts = []
    for release in found:
        lines = [f"{NAME} ({release.version}) unstable; urgency=medium", ""]
        lines += [bullet(change, "  * ") for change in release.changes]
        parts.append("\n".join([*lines, "", f" -- {maintainer}  {format_datetime(release.date)}", ""]))
    return "\n".join(parts)


def rpm(found: Iterable[Release], maintainer: str) -> str:
    """Return the text below %changelog of a spec file."""
    parts = []
    for release in found:
        lines = [f"* {release.date:%a %b %d %Y} {maintainer} - {release.version}-1"]
        parts.append("\n".join([*lines, *(bullet(change.replace("%", "%%"), "- ") for change in release.changes), ""]))
    return "\n".join(parts)


def bullet(text: str, mark: str) -> str:
    return textwrap.fill(text, 76, initial_indent=mark, subsequent_indent=" " * len(mark), break_long_words=False)


def main(form: str, version: str, seconds: str) -> None:
    control = (ROOT / "packaging/debian/control").read_text()
    maintainer = re.findall(r"^Maintainer: (.+)$", control, flags=re.MULTILINE)[0]
    text = (ROOT / "docs/CHANGELOG.md").read_text()
    # Debian and rpm write 1.0~rc1 for Python's 1.0rc1.
    found = releases(text, re.sub(r"~(dev|a|b|rc)", lambda pre: ("." if pre[1] == "dev" else "") + pre[1], version), int(seconds))
    found = [release._replace(version=version) if at == 0 else release for at, release in enumerate(found)]
    sys.stdout.write({"deb": deb, "rpm": rpm}[form](found, maintainer))


if __name__ == "__main__":
    main(*sys.argv[1:])
