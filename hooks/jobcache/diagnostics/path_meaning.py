"""Which cache a path lies in, such as the one that an error message names: pure functions of the path and the templates."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from jobcache.cache import cache_names, entry_names, path_template
from jobcache.cache.path_template import Template

if TYPE_CHECKING:
    from jobcache.cache.path_template import Parts

_KINDS = {
    entry_names.CACHE: "cache",
    entry_names.RUN: "cache of a `jobcache run` outside of jobs",
    cache_names.NEW: "half-made cache",
    cache_names.TRASH: "trash",
    cache_names.ASIDE: "directory that was renamed by mistake",
}


@dataclass(frozen=True)
class Entry:
    """An entry of jobcache on scratch. kind: as of entry_names.parse_entry. path: of it. number: the job id; of RUN, the pid.

    user: name or uid in the path, "" for an unknown one. below: the rest of the path, "" for the entry itself.
    """

    kind: str
    path: str
    number: int
    user: str
    below: str = ""

    def describe(self) -> str:
        """Return what the entry is, and the part of it that the path names."""
        what = _KINDS[self.kind]
        if self.kind != entry_names.RUN:
            what += f" of job {self.number}"
        first = self.below.partition("/")[0]
        if cache_names.is_scope(first):
            words = {"n": f"node {first[len('node-') :]}", "b": "the batch script"}
            return f"the directory of {words.get(first[0], 'one task')} in the {what}"
        return f"the {what}"


def entry_of(path: str, templates: Iterable[Template], cluster: str) -> Optional[Entry]:
    """Return the entry that an absolute path lies in, by the first template that fits; None if none does.

    cluster: "" or `@…` if it is unknown.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    values = {} if not cluster or cluster.startswith("@") else {"cluster": cluster}
    for template in templates:
        parts = path_template.components(template.parts)
        depths = range(1, len(names)) if template.in_home else [0]  # of the home, which can be any directory
        for depth in depths:
            found = _entry_below(names, depth, parts[1:] if depth else parts, dict(values))
            if found:
                return found
    return None


def _entry_below(names: list[str], depth: int, levels: "list[Parts]", known: dict[str, str]) -> Optional[Entry]:
    """Return the entry if the components of a path after the first `depth` ones fit the components of a template."""
    *above, last = levels
    at = depth + len(above)
    if len(names) <= at or ".." in names or not all(_fits(parts, name, known) for parts, name in zip(above, names[depth:])):
        return None
    parsed = entry_names.parse_entry(names[at], path_template.matcher(last, known))
    if not parsed:
        return None
    user = known.get("user", known.get("uid", ""))
    return Entry(parsed[0], "/" + "/".join(names[: at + 1]), parsed[1], user, "/".join(names[at + 1 :]))


def is_in_store(path: str, text: str, cluster: str) -> bool:
    """Return whether a path lies in the store with the template `text` of any user."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    parts = path_template.components(path_template.cut(text))
    known = {} if not cluster or cluster.startswith("@") else {"cluster": cluster}
    return len(names) >= len(parts) and all(_fits(part, name, known) for part, name in zip(parts, names))


def _fits(parts: "Parts", name: str, known: dict[str, str]) -> bool:
    """Return whether a component of a path fits. Add the values of its placeholders to `known`."""
    found = path_template.matcher(parts, known)(name)
    known.update(found or {})
    return found is not None


def guessed_template(path: str, job_id: int, users: Iterable[str]) -> Optional[Template]:
    """Given the path of a job's cache, return a template that it fits, None if there is no user's name or uid above it.

    users: the user's name, and the uid. For a host without the site's configuration.
    """
    parent, _, name = path.rpartition("/")
    end = re.escape(str(job_id)) + "(-r[1-9][0-9]*)?(?![0-9])"
    last, count = re.subn(f"(?<![0-9]){end}", "{job_id}", name, count=1)
    parts = parent.split("/")
    for placeholder, user in zip(("{user}", "{uid}"), users):
        if count and user in parts:
            parts[parts.index(user)] = placeholder
            try:
                return Template("/".join(parts) + "/" + last)
            except path_template.TemplateError:
                return None
    return None


def ancestors(path: str) -> list[tuple[str, str]]:
    """Return (directory, name in it) of each entry on an absolute path, the deepest first."""
    found = []
    while path not in ("", "/"):
        above, name = os.path.split(path)
        if name:
            found.append((above, name))
        path = above
    return found
