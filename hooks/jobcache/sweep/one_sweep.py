"""One sweep: list the directories on scratch, ask Slurm twice for the live jobs, decide, and reap orphans as their owners.

The directories come first. A job that starts between the two steps would otherwise look like an orphan. This module
deletes nothing: the child of each owner inspects a directory again, and passes it to the reaper if nothing has changed.
"""

import os
from dataclasses import dataclass, field, replace
from typing import Callable, Optional

from jobcache.config.settings import Settings, slurm_client
from jobcache.sweep import processes, reaping, scanning
from jobcache.sweep.host import THIS_HOST, Host
from jobcache.sweep.plan import REAP, TRASH, Decision, Directory, Rules, depends_on_jobs, has_no_job, plan
from jobcache.sweep.user_directories import and_more
from jobcache.system import node_names
from jobcache.system.live_jobs import Listing, Unknown
from jobcache.system.slurm import Slurm
from jobcache.system.stuck_processes import Register


@dataclass
class Result:
    """The outcome of a sweep.

    unknown: why the live jobs are unknown; then no directory of a job was reaped.
    trouble: messages about directories that could not be read or reaped.
    terminated: the processes that dead jobs left behind in their caches, ids by path; in a dry run, those it would end.
    """

    decisions: list[Decision] = field(default_factory=list)
    reaped: list[reaping.Reaped] = field(default_factory=list)
    unknown: Optional[Unknown] = None
    trouble: list[str] = field(default_factory=list)
    terminated: dict[str, tuple[int, ...]] = field(default_factory=dict)


def run(
    site: Settings,
    options: scanning.Options,
    progress: scanning.Progress = scanning.no_progress,
    on_reaped: Callable[[reaping.Reaped], None] = lambda _: None,
    slurm: Optional[Slurm] = None,
    host: Host = THIS_HOST,
) -> Result:
    """Sweep once.

    on_reaped: called with each directory when it is reaped.
    slurm: None for the client that the settings define.
    """
    sweep = _Sweep(site, options, progress, slurm or slurm_client(site.tree), host)
    result = sweep.decide()
    if not options.dry:
        to_reap = [decision for decision in result.decisions if decision.action == REAP]
        for reaped in reaping.reap_all(site, to_reap, result.trouble, progress, host):
            result.reaped.append(reaped)
            on_reaped(reaped)
    if site.tree["sweep"]["stray_processes"] == "terminate":
        in_use = [decision.directory for decision in result.decisions if decision.reason == "in_use"]
        result.terminated = processes.terminate(in_use, sweep.register, options.dry)
    return result


class _Sweep:
    """The way from the directories on scratch to a decision about each."""

    def __init__(self, site: Settings, options: scanning.Options, progress: scanning.Progress, slurm: Slurm, host: Host) -> None:
        self.site = site
        self.options = options
        self.progress = progress
        self.slurm = slurm
        self.host = host
        self.rules = rules_of(site)
        self.register = Register(site.run_dir)
        self.result = Result()

    def decide(self) -> Result:
        """Return the result with a decision about each directory, and nothing reaped yet."""
        found = scanning.scan(self.site, self.options, self.result.trouble, self.progress, self.host)
        listings: list[Listing] = []
        try:
            current = self._without_job_twice([one for one in found if depends_on_jobs(one, self.rules)], listings)
        except Unknown as unknown:
            self.result.unknown = unknown
            listings, current = [], []
        current += self._inspected([one for one in found if has_no_job(one)], [])
        by_path = {one.path: one for one in current}
        self.result.decisions = plan((by_path.get(one.path, one) for one in found), listings, self.rules)
        self.result.trouble += of_other_nodes(self.result.decisions, self.rules)
        return self.result

    def _without_job_twice(self, candidates: list[Directory], listings: list[Listing]) -> list[Directory]:
        """Return the candidates without a live job in two listings, with current facts. Raise Unknown.

        listings: takes the listings.
        """
        dead = without_live_job(self.site, self.options, self.slurm, candidates, listings)
        if not dead:
            return []
        self._wait(self.rules.confirm)
        dead = without_live_job(self.site, self.options, self.slurm, dead, listings)
        return self._inspected(dead, listings)

    def _inspected(self, directories: list[Directory], listings: list[Listing]) -> list[Directory]:
        """Return the directories with current facts, those to reap with the processes that use them."""
        touch = not self.options.dry
        current = list(
            scanning.inspect_all(directories, self.register, self.result.trouble, self.progress, self.host, touch=touch)
        )
        own = own_nodes(current, self.options, self.slurm, self.host, self.result.trouble)
        self.rules = replace(self.rules, own_nodes=self.rules.own_nodes | own)
        return scanning.add_processes(plan(current, listings, self.rules), self.register, self.host)

    def _wait(self, seconds: float) -> None:
        until = self.host.monotonic() + seconds + 0.001
        while self.host.monotonic() < until:
            left = until - self.host.monotonic()
            self.progress("waiting to ask Slurm again", int(seconds - left), int(seconds))
            self.host.sleep(min(1.0, max(0.0, left)))


def rules_of(site: Settings) -> Rules:
    """Return the site's rules for decisions."""
    sweep = site.tree["sweep"]
    return Rules(
        cluster=site.cluster,
        grace=sweep["grace"],
        confirm=sweep["confirm"],
        keep_max=site.keep_max,
        min_uid=site.min_uid,
        reap_unrecorded=sweep["unrecorded"] == "reap",
    )


def own_nodes(
    directories: list[Directory], options: scanning.Options, slurm: Slurm, host: Host, trouble: list[str]
) -> frozenset[str]:
    """Return the names of this node in lower case, or no name if the decision about none of `directories` depends on it."""
    leases = {node for one in directories if one.local and not has_no_job(one) for node in one.nodes}
    if options.node or not leases:
        return frozenset([options.node.lower()] if options.node else ())
    try:
        return node_names.own_nodes(leases, host.pids(), slurm)
    except Unknown as unknown:
        trouble.append(f"cannot find out the name of this node in Slurm: {unknown}; set it with the option --node")
        return frozenset()


def of_other_nodes(decisions: list[Decision], rules: Rules) -> list[str]:
    """Return the message about directories that are kept because of the lease of another node, [] without one."""
    others = [decision.directory for decision in decisions if decision.reason == "other_node"]
    if not others:
        return []
    named = sorted({node for one in others for node in one.nodes if node.lower() not in rules.own_nodes})
    own = ", ".join(sorted(rules.own_nodes)) or f"no node that Slurm knows by the name {node_names.host_name()}"
    return [
        f"{and_more([one.path for one in others])}: not reaped, because of a lease of {and_more(named)}; this host is {own}. "
        "If that is a name of this node in Slurm, run `jobcache sweep --node-local --node NAME` with it; "
        "if nodes share this scratch, remove it from `node_local` in jobcache.yaml"
    ]


def without_live_job(
    site: Settings, options: scanning.Options, slurm: Slurm, candidates: list[Directory], listings: list[Listing]
) -> list[Directory]:
    """Return the candidates whose job does not live, and trash. Slurm is asked once, and not at all without candidates.

    listings: takes the answer. Raise Unknown.
    """
    if not candidates:
        return []
    listing = slurm.listing(site.cluster, only_own=options.user == os.geteuid())
    listings.append(listing)
    return [one for one in candidates if one.kind == TRASH or not listing.alive(one.job_id, one.uid)]
