"""One sweep: find what is on scratch, ask Slurm twice, decide, and reap orphans as their owners.

Directories first, Slurm second: the other order would call a job that starts in between an orphan. Nothing is deleted
by this module; each owner's child looks again and hands what is still the same to the reaper.
"""

import os
import time
from dataclasses import dataclass, field
from typing import Callable, Optional

from jobcache.config.settings import Settings, slurm_client
from jobcache.sweep import processes, reaping, scanning
from jobcache.sweep.plan import REAP, TRASH, Decision, Found, Rules, has_no_job, is_candidate, plan
from jobcache.system.live_jobs import Listing, Unknown
from jobcache.system.slurm import Slurm


@dataclass
class Result:
    """What came of a sweep.

    unknown: why the live jobs are not known, so that nothing was reaped. trouble: what could not be looked at or reaped,
    in words. terminated: the processes that a dead job had left behind in its cache, pids by path; of a dry run, those that
    would be ended.
    """

    decisions: list[Decision] = field(default_factory=list)
    reaped: list[reaping.Reaped] = field(default_factory=list)
    unknown: Optional[Unknown] = None
    trouble: list[str] = field(default_factory=list)
    terminated: dict[str, tuple[int, ...]] = field(default_factory=dict)


def run(
    site: Settings,
    options: scanning.Options,
    say: scanning.Say = scanning.silent,
    on_reaped: Callable[[reaping.Reaped], None] = lambda _: None,
    slurm: Optional[Slurm] = None,
) -> Result:
    """Sweep once. `on_reaped` is called for each directory as it is reaped. slurm: default, as the settings say."""
    result = Result()
    slurm = slurm or slurm_client(site.tree)
    rules = rules_of(site, options.node)
    found = scanning.scan(site, options, result.trouble, say)
    candidates = [one for one in found if is_candidate(one, rules)]
    listings: list[Listing] = []
    try:
        dead = without_live_job(site, options, slurm, candidates, listings)
        if dead:
            _wait(rules.confirm, say)
            dead = without_live_job(site, options, slurm, dead, listings)
            dead = list(scanning.look_again(dead, scanning.hung_of(site), result.trouble, say))
            dead = scanning.with_pids(plan(dead, listings, rules), scanning.hung_of(site))
    except Unknown as unknown:
        result.unknown = unknown
        listings, dead = [], []
    runs = list(scanning.look_again([one for one in found if has_no_job(one)], scanning.hung_of(site), result.trouble, say))
    fresh = {one.path: one for one in [*dead, *scanning.with_pids(plan(runs, [], rules), scanning.hung_of(site))]}
    result.decisions = plan((fresh.get(one.path, one) for one in found), listings, rules)
    if not options.dry:
        todo = [decision for decision in result.decisions if decision.action == REAP]
        for done in reaping.act(site, todo, result.trouble, say):
            result.reaped.append(done)
            on_reaped(done)
    if site.tree["sweep"]["stray_processes"] == "terminate":
        for decision in result.decisions:
            if decision.reason == "in_use":
                result.terminated[decision.found.path] = processes.terminate(decision.found, options.dry)
    return result


def rules_of(site: Settings, node: str) -> Rules:
    """Return what the site says of sweeping."""
    sweep = site.tree["sweep"]
    return Rules(
        cluster=site.cluster,
        grace=sweep["grace"],
        confirm=sweep["confirm"],
        keep_max=site.keep_max,
        min_uid=site.min_uid,
        reap_unrecorded=sweep["unrecorded"] == "reap",
        node=node,
    )


def without_live_job(
    site: Settings, options: scanning.Options, slurm: Slurm, found: list[Found], listings: list[Listing]
) -> list[Found]:
    """Ask Slurm, once for all; return those whose job is not alive, and trash. No candidates, no question. Raise Unknown."""
    if not found:
        return []
    listing = slurm.listing(site.cluster, only_own=options.user == os.geteuid())
    listings.append(listing)
    return [one for one in found if one.kind == TRASH or not listing.alive(one.job_id, one.uid)]


def _wait(seconds: float, say: scanning.Say) -> None:
    until = time.monotonic() + seconds + 0.001
    while time.monotonic() < until:
        say("waiting to ask Slurm again", int(seconds - (until - time.monotonic())), int(seconds))
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))
