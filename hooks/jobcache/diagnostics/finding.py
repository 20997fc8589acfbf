"""A finding of `jobcache check`: one fact about an installation, how bad it is, and its remedy."""

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """area, name: the checked item. level: OK, WARNING or PROBLEM. fact: a text. remedy: a line to paste, or ""."""

    area: str
    name: str
    level: str
    fact: str
    remedy: str = ""
