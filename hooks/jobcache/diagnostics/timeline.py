"""The timeline of a job's cache: each event, and the record in the cache, as one line of text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from jobcache.diagnostics.explain_facts import JobDirectory, SiteFacts, TimelineEntry
from jobcache.diagnostics.reason_texts import meaning
from jobcache.system.event_log import HISTORY, SYSLOG, Event, epoch_or_none

_SAME = ("ts", "event", "node", "run", "path", "outcome", "reason")  # equal in all copies of one event
_SAME_IN_HISTORY = ("event", "run", "path", "outcome", "reason")  # a history has a time of its own


def unique(events: Iterable[Event]) -> list[Event]:
    """Return the events in the order of time. Of an event that is in the log and in a system log, return the log's.

    Of an event that a user's own history has as well, return the other one: the history adds only what is missing.
    """
    by_key: dict[tuple[object, ...], Event] = {}
    events = list(events)
    elsewhere = {tuple(event.get(name) for name in _SAME_IN_HISTORY) for event in events if event["source"] != HISTORY}
    for event in events:
        if event["source"] == HISTORY and tuple(event.get(name) for name in _SAME_IN_HISTORY) in elsewhere:
            continue
        key = tuple(event.get(name) for name in _SAME)
        if key not in by_key or by_key[key]["source"] == SYSLOG:
            by_key[key] = event
    return sorted(by_key.values(), key=lambda event: str(event["ts"]))


def timeline(events: Iterable[Event], directories: Sequence[JobDirectory], site: SiteFacts) -> list[TimelineEntry]:
    """Return the lines in the order of time."""
    entries = [
        TimelineEntry(event["ts"], event.get("node", ""), text(event, site), event.get("level", "info")) for event in events
    ]
    entries += [entry for directory in directories for entry in _from_record(directory, site)]
    return sorted(entries, key=lambda entry: entry.ts.rstrip("Z"))


def _from_record(directory: JobDirectory, site: SiteFacts) -> Iterator[TimelineEntry]:
    """Yield the creation of the cache, as its record has it. A record without a valid time yields nothing."""
    created, node = directory.record.get("created_at"), directory.record.get("node")
    if not isinstance(created, str) or epoch_or_none(created) is None:
        return
    seeded = directory.record.get("seeded")
    links = (f"; {stored(seeded)}" if isinstance(seeded, dict) else "") + inherited(directory.record)
    what = f"created{_policy(directory.record, site)}{links}: {directory.found.path} [from its record, which its user can write]"
    yield TimelineEntry(created, node if isinstance(node, str) else "", what)


def doubt(event: Event, site: SiteFacts) -> str:
    """Return who else can have written an event, "" for the log, and for a user's own history if that user asks."""
    if event["source"] == SYSLOG:
        return "a system log, which users can write"
    if event["source"] == HISTORY and site.for_root:
        return f"the own history of {event.get('user') or 'the user'}, who can write any line into it"
    return ""


def text(event: Event, site: SiteFacts) -> str:
    """Return the text of an event."""
    notes = [f"run {event['run']}"] if event.get("run") else []
    notes += [event["error"]] if "error" in event else []
    notes += [f"from {doubt(event, site)}"] if doubt(event, site) else []
    return _outcome(event, site) + (f" [{'; '.join(notes)}]" if notes else "")


def _outcome(event: Event, site: SiteFacts) -> str:
    kind, outcome, reason = event["event"], event.get("outcome", ""), event.get("reason", "")
    why = meaning(reason)
    size = f": {event['bytes']:,} bytes in {event.get('files', 0):,} files" if "bytes" in event else ""
    if kind == "cache.created":
        how = "removed and created again by the job's script, then recorded again" if outcome == "mended" else "created"
        return f"{how}: {event.get('path', 'the cache')}{_policy(event, site)}{inherited(event)}"
    if kind == "cache.skipped":
        return f"no cache: {why}{inherited(event)}"
    if kind == "cache.released":
        return "this node released its lease; other nodes still use the cache"
    if kind == "cache.reaped":
        how = "reaped" if outcome == "reaped" else "renamed to trash and partly deleted"
        by = "`jobcache run`" if event.get("by") == "run" else "the Epilog"
        return f"{how} by {by}{size}" + (f" ({why})" if reason else "") + _policy(event, site, ", created")
    if kind == "cache.orphan_reaped":
        return f"{'reaped' if outcome == 'reaped' else 'partly deleted'} by the sweep{size}: {why}"
    if kind == "cache.kept":
        return f"kept: {why}" + (f", until {event['keep_until']}" if "keep_until" in event else "")
    if kind == "store.seeded" and outcome == "seeded":
        return stored(event) + (f": {why}" if reason else "")
    if kind == "hook.failed":
        return f"the {event.get('hook', 'hook')} failed: {why}"
    return " ".join(str(part) for part in (kind, outcome, why) if part)


def stored(facts: Mapping[str, object]) -> str:
    """Return, from an event or a record, how many builds of stores were linked, and for how many there was no time."""
    builds, files, size, unlinked = (
        found if isinstance(found, int) else 0 for found in map(facts.get, ("builds", "files", "bytes", "unlinked"))
    )
    text = f"{builds:,} builds linked from stores: {files:,} files, {size:,} bytes"
    return text + (f"; no time for {unlinked:,} more" if unlinked else "")


def inherited(facts: Mapping[str, object]) -> str:
    """Return, from an event or a record, which builds of the user's own cache were linked; "" if the cache has none."""
    found = facts.get("inherited")
    if not isinstance(found, dict) or "source" not in found:
        return ""
    numbers = [found.get(key) for key in ("builds", "found", "files", "bytes", "duration_ms")]
    if not all(isinstance(number, int) for number in numbers):
        return ""
    text = "; {:,} of {:,} builds linked from {}: {:,} files, {:,} bytes, in {:,} ms"
    text = text.format(*numbers[:2], found["source"], *numbers[2:])
    results = found.get("results")
    text += f", with {results:,} results of map from the user's store" if isinstance(results, int) else ""
    listed = found.get("left_out")
    left_out = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    names = [f"{one.get('dataset')} ({one.get('reason')}: {one.get('error')})" for one in left_out]
    return text + (f"; left out: {', '.join(names)}" if names else "")


def _policy(event: Event, site: SiteFacts, created: str = "") -> str:
    """Return by which policy the cache was created, "" if that is unknown."""
    if "policy" not in event:
        return ""
    return f"{created} by policy {event['policy']} ({'in force' if event['policy'] == site.hash else 'no longer in force'})"
