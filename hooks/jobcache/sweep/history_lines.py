"""The lines that a sweep appends to a user's history: what it has reaped of this user."""

import os
from collections.abc import Sequence
from typing import Any

from jobcache.cache import dirfd, history
from jobcache.cache.path_template import Template
from jobcache.sweep.plan import Decision, job_of
from jobcache.system import events

_MOST = 1000  # lines for one directory in one sweep


class HistoryLines:
    """Collects the lines in the child of an owner. `write` can hang, so it comes last.

    decisions: by path, those whose directories are to be reaped. cluster, templates: of the site.
    """

    def __init__(self, decisions: dict[str, Decision], cluster: str, templates: Sequence[Template]) -> None:
        self._decisions = decisions
        self._cluster = cluster
        self._of_jobs = [template for template in templates if template.job_directory]
        self._lines: dict[str, list[str]] = {}  # by directory

    def add(self, fact: dict[str, Any]) -> None:
        """Add a line for a directory that was reaped. fact: as the child reports it."""
        decision = self._decisions[fact["path"]]
        one = decision.directory
        parent = os.path.dirname(one.path)
        if any(template.has_directory(parent) for template in self._of_jobs):
            return  # the site deletes it with its job
        outcome = "reaped" if fact["done"] else "trashed"
        fields = {"cluster": self._cluster, **job_of(one), "uid": one.uid, "path": one.path, "outcome": outcome}
        fields.update(reason=decision.reason, bytes=fact["bytes"], files=fact["files"])
        lines = self._lines.setdefault(parent, [])
        if len(lines) < _MOST:
            lines.append(events.encode("cache.orphan_reaped", "info", fields))

    def write(self) -> None:
        """Append the lines to the histories."""
        for parent, lines in self._lines.items():
            try:
                parent_fd = dirfd.open_directory(parent)
            except OSError:
                continue
            try:
                history.append(parent_fd, "\n".join(lines))
            finally:
                os.close(parent_fd)

    def __bool__(self) -> bool:
        return bool(self._lines)
