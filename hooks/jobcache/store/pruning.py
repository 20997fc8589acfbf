"""One pruning of the stores of a site.

Retire first, then ask Slurm, then delete: a job that starts later has no link to a retired build.
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Optional

from jobcache.cache import reasons
from jobcache.config.settings import Settings, slurm_client
from jobcache.store import as_owner, inventory, removal, retention
from jobcache.store.places import Place
from jobcache.system import reaper
from jobcache.system.live_jobs import Unknown
from jobcache.system.stuck_processes import Register

_MAX_DELETING = 600.0  # seconds of deletion in one store


@dataclass
class Pruned:
    """The result of a pruning.

    decisions: each with its store, and the bytes and files that were deleted. unknown: why the live jobs are unknown, in
    which case nothing was deleted. problems: stores that could not be read or pruned, in words.
    """

    decisions: list[tuple[Place, retention.Decision, int, int]] = field(default_factory=list)
    unknown: Optional[Unknown] = None
    problems: list[str] = field(default_factory=list)


def prune(site: Settings, places: Iterable[Place], dry_run: bool) -> Pruned:
    """Prune these stores once and return the result. dry_run: decide, and change nothing."""
    places = list(places)
    result = Pruned()
    turns, register = as_owner.Turns(), Register(site.run_dir)
    slurm = slurm_client(site.tree)
    only_own = all(place.owner == os.geteuid() and not place.is_site for place in places)
    try:
        starts = slurm.starts(site.cluster, only_own=only_own) if places else {}
        for place in places:
            entries = as_owner.entries(place, result.problems, register, with_manifests=False, turns=turns)
            decisions = retention.to_retire(
                entries, time.time(), site.store_max_size, site.store_max_age, _oldest_job(starts, place), _staged_bytes(entries)
            )
            _carry_out(place, decisions, dry_run, result, register, turns)
        starts = slurm.starts(site.cluster, only_own=only_own) if places else {}
    except Unknown as unknown:
        result.unknown = unknown
        return result
    for place in places:
        entries = as_owner.entries(
            place, result.problems, register, with_manifests=False, remove_empty_sections=not dry_run, turns=turns
        )
        _carry_out(place, retention.to_delete(entries, time.time(), _oldest_job(starts, place)), dry_run, result, register, turns)
    return result


def _oldest_job(starts: dict[int, float], place: Place) -> Optional[float]:
    """Return when the oldest live job that may have links into a store started, None if no such job is alive."""
    return min(starts.values(), default=None) if place.is_site else starts.get(place.owner)


def _staged_bytes(entries: Iterable[inventory.Entry]) -> int:
    """Return the bytes in caches of running `store build` commands. Unfinished and retired entries count for nothing."""
    return sum(entry.bytes for entry in entries if entry.kind == "staging")


def _carry_out(
    place: Place,
    decisions: list[retention.Decision],
    dry_run: bool,
    result: Pruned,
    register: Register,
    turns: as_owner.Turns,
) -> None:
    """Carry out the decisions about one store as its owner, and add them to the result."""
    pending = [decision for decision in decisions if decision.action != "keep"]
    if dry_run or not pending:
        result.decisions += [(place, decision, 0, 0) for decision in decisions]
        return
    result.decisions += [(place, decision, 0, 0) for decision in decisions if decision.action == "keep"]
    by_name = {(decision.entry.label, decision.entry.name): decision for decision in pending}

    def work(report: as_owner.Report) -> None:
        until = time.monotonic() + _MAX_DELETING
        for decision in pending:
            try:
                for done, freed, files in removal.carry_out(place.path, place.owner, [decision], until):
                    report({"label": done.entry.label, "name": done.entry.name, "bytes": freed, "files": files})
            except (OSError, reasons.Refused, reaper.Kept) as error:
                report({"error": f"{place.path}/{decision.entry.path}: {error}"})

    for fact in as_owner.facts(place, work, result.problems, register, turns):
        result.decisions.append((place, by_name[fact["label"], fact["name"]], fact["bytes"], fact["files"]))
