"""All caches with their state and size: the content of `jobcache list`."""

from dataclasses import dataclass, replace
from typing import Optional

from jobcache.config.settings import Settings, slurm_client
from jobcache.sweep import one_sweep, scanning
from jobcache.sweep.host import THIS_HOST, Host
from jobcache.sweep.plan import ASIDE, NEW, REAP, REPORT, TRASH, Decision, depends_on_jobs, plan
from jobcache.system.live_jobs import Listing, Unknown
from jobcache.system.stuck_processes import Register

_STATES = {NEW: "half-made", TRASH: "trash", ASIDE: "aside"}  # by kind


@dataclass
class Caches:
    """rows: each directory with the decision that a sweep would make, and its (bytes, files). trouble: messages."""

    rows: list[tuple[Decision, Optional[tuple[int, int]]]]
    trouble: list[str]


def list_caches(
    site: Settings,
    options: scanning.Options,
    progress: scanning.Progress = scanning.no_progress,
    host: Host = THIS_HOST,
) -> Caches:
    """Return all directories on scratch. Slurm is asked once, and nothing is changed."""
    trouble: list[str] = []
    rules = replace(one_sweep.rules_of(site), confirm=0.0)
    sizes: dict[str, tuple[int, int]] = {}
    found = scanning.scan(site, options, trouble, progress, host)
    found = list(scanning.inspect_all(found, Register(site.run_dir), trouble, progress, host, sizes))
    listings: list[Listing] = []
    slurm = slurm_client(site.tree)
    try:
        candidates = [one for one in found if depends_on_jobs(one, rules)]
        dead = one_sweep.without_live_job(site, options, slurm, candidates, listings)
        rules = replace(rules, own_nodes=one_sweep.own_nodes(dead, options, slurm, host, trouble))
    except Unknown as unknown:
        trouble.append(f"the list of live jobs is unknown: {unknown}")
    decisions = plan(found, listings * 2, rules)
    return Caches([(decision, sizes.get(decision.directory.path)) for decision in decisions], trouble)


def state_of(decision: Decision) -> str:
    """Return the state of a directory: live, orphan, kept, trash, half-made, aside, unrecorded or unknown."""
    if decision.reason == "alive":
        return "live"
    if decision.reason in ("user_keep", "job_failed"):
        return "kept"
    if decision.directory.kind in _STATES:
        return _STATES[decision.directory.kind]
    if decision.directory.error:
        return "unknown"
    if decision.directory.identity is None:
        return "unrecorded"
    return "orphan" if decision.action in (REAP, REPORT) or decision.reason in ("young", "in_use") else "unknown"
