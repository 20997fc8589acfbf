"""Write the metrics of each sweep, and of this host's events, for node_exporter's textfile collector."""

import os
import sys
import time
from typing import Any, Callable

from jobcache.cache import timestamps
from jobcache.cache.path_template import Template
from jobcache.config.settings import Settings
from jobcache.diagnostics import metric_families, metrics_textfile
from jobcache.diagnostics.metric_families import SweepFacts
from jobcache.sweep import listing, one_sweep, scanning
from jobcache.sweep.host import Host
from jobcache.sweep.plan import Decision
from jobcache.system import as_user, event_log, log_files
from jobcache.system.stuck_processes import Register, Stuck

_PATIENCE = 10.0  # seconds for the size of a filesystem


def record(site: Settings, options: scanning.Options, result: one_sweep.Result, seconds: float, host: Host) -> None:
    """Write the metrics of a sweep that took `seconds`, where the site wants them. Print an error to stderr."""
    textfile = site.tree["metrics"]["textfile"]
    if textfile is None or options.user is not None:
        return
    try:
        labels = {"scratch": "local" if options.local else "shared", "shard": f"{options.shard[0]}/{options.shard[1]}"}
        path = name_for(textfile, options)
        facts = _facts(site, options, result, seconds, host)
        metrics_textfile.write(path, metric_families.of_sweep(facts, metrics_textfile.read(path), labels))
        if site.log_file is not None:
            path = _with_suffix(textfile, "host")
            before = metrics_textfile.read(path)
            since = timestamps.millisecond(before.get((metric_families.READ, ()), 0.0))
            events = event_log.read(log_files.rotations(site.log_file), event_log.Tally(), since=since)
            metrics_textfile.write(path, metric_families.of_host(events, before))
    except OSError as error:
        text = f"{textfile}: cannot write metrics: {error.strerror or error}; create its directory with `install -d`"
        print(text, file=sys.stderr)


def name_for(textfile: str, options: scanning.Options) -> str:
    """Return the path of the textfile for this kind of sweep. Each kind has its own."""
    words = ["local"] if options.local else []
    words += ["{}-of-{}".format(*options.shard)] if options.shard != (1, 1) else []
    return _with_suffix(textfile, *words)


def _with_suffix(textfile: str, *words: str) -> str:
    stem = textfile[: -len(".prom")] if textfile.endswith(".prom") else textfile
    return "-".join([stem, *words]) + ".prom"


def _facts(site: Settings, options: scanning.Options, result: one_sweep.Result, seconds: float, host: Host) -> SweepFacts:
    facts = SweepFacts(time.time(), "unknown" if result.unknown else "finished", len(result.trouble), seconds)
    done = {one.decision.directory.path for one in result.reaped if one.done}
    left = [decision for decision in result.decisions if decision.directory.path not in done]
    sizes: dict[str, tuple[int, int]] = {}
    if site.tree["metrics"].get("sizes"):
        rows = listing.list_caches(site, options, host=host).rows
        left = [decision for decision, _ in rows]
        sizes = {decision.directory.path: size for decision, size in rows if size}
        facts.sizes = {}
        for decision, held in rows:
            before = facts.sizes.get(listing.state_of(decision), (0, 0))
            facts.sizes[listing.state_of(decision)] = before if held is None else (before[0] + held[0], before[1] + held[1])
    for decision in left:
        state = listing.state_of(decision)
        facts.states[state] = facts.states.get(state, 0) + 1
    for reaped in result.reaped:
        count, size, files = facts.reaped.get(reaped.decision.reason, (0, 0, 0))
        facts.reaped[reaped.decision.reason] = count + reaped.done, size + reaped.bytes, files + reaped.files
    if site.tree["metrics"].get("by_user"):
        facts.users = _by_user(left, sizes)
    for template in site.templates:
        if site.is_node_local(template) == options.local and not template.in_home:  # homes can be on any number of filesystems
            facts.filesystems.update(_filesystem(template, site.run_dir))
    return facts


def _by_user(decisions: "list[Decision]", sizes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return (caches, bytes) by the name of the user."""
    users: dict[str, tuple[int, int]] = {}
    for decision in decisions:
        name = as_user.user_name(decision.directory.uid)
        caches, total = users.get(name, (0, 0))
        users[name] = caches + 1, total + sizes.get(decision.directory.path, (0, 0))[0]
    return users


def _filesystem(template: Template, run_dir: str) -> dict[str, tuple[int, int, int, int]]:
    """Return (size, free, inodes, free inodes) of the filesystem where a template begins, by path; {} if it hangs."""
    path = template.text.partition("{")[0].rpartition("/")[0] or "/"

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        room = os.statvfs(path)
        size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
        report({"room": (size, free, room.f_files, room.f_favail)})

    place = Register(run_dir).place(0, path, "size")
    try:
        place.check()
    except Stuck:
        return {}
    child = as_user.start(work, uid=None, gid=None, user=None, place=place)
    rooms = [fact["room"] for fact in child.facts(time.monotonic() + _PATIENCE)]
    return {path: rooms[0]} if rooms else {}
