"""What `jobcache list` shows."""

from dataclasses import dataclass, replace
from typing import Optional

from jobcache.config.settings import Settings, slurm_client
from jobcache.sweep import one_sweep, scanning
from jobcache.sweep.plan import Decision, is_candidate, plan
from jobcache.system.live_jobs import Listing, Unknown


@dataclass
class Listed:
    """What `jobcache list` shows: each directory with what a sweep would think of it, and its (bytes, files)."""

    rows: list[tuple[Decision, Optional[tuple[int, int]]]]
    trouble: list[str]


def listed(site: Settings, options: scanning.Options, say: scanning.Say = scanning.silent) -> Listed:
    """Look at all there is, once; nothing is asked twice, waited for or changed."""
    trouble: list[str] = []
    rules = replace(one_sweep.rules_of(site, options.node), confirm=0.0)
    sizes: dict[str, tuple[int, int]] = {}
    found = list(scanning.look_again(scanning.scan(site, options, trouble, say), scanning.hung_of(site), trouble, say, sizes))
    listings: list[Listing] = []
    try:
        one_sweep.without_live_job(
            site, options, slurm_client(site.tree), [one for one in found if is_candidate(one, rules)], listings
        )
    except Unknown as unknown:
        trouble.append(f"which jobs are alive is not known: {unknown}")
    decisions = plan(found, listings * 2, rules)
    return Listed([(decision, sizes.get(decision.found.path)) for decision in decisions], trouble)
