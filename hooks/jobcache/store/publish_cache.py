"""Publish from a cache into its user's store when nobody uses the cache any more. It runs as that user."""

import time
from dataclasses import dataclass
from typing import Any, Optional

from jobcache.cache import node_leases, path_template, reasons, store_names
from jobcache.config.settings import Settings
from jobcache.store import publishing, usage
from jobcache.store.publication import Destination
from jobcache.system.epilog_job import Job
from jobcache.system.epilog_work import Cache, reason_of

Fact = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """How a cache is published. store: path of the user's store. publish: the setting. max_bytes: of a build and its results.

    manifest: further fields of each manifest.
    """

    store: str
    publish: str
    max_bytes: float
    manifest: Fact

    def label_of(self, record: Fact) -> Optional[str]:
        """Return the label of the section into which a cache with this record is published, None to publish nothing.

        A cache without a label has a section of its own, or none. The user can forge the record, as the user can the store.
        """
        label = record.get("label")
        if isinstance(label, str) and store_names.is_label(label):
            return label
        return store_names.UNLABELLED if record and self.publish == "all" else None


def publish_cache(job: Job, site: Settings, cache: Cache, record: Fact, until: float) -> Optional[Fact]:
    """Mark the store's builds that a job's cache used, and move the cache's finished builds into the store.

    until: deadline, in seconds of time.monotonic.
    Return the fact to report, None for no fact.
    """
    try:
        place = store_names.store_path(str(site.store_user), user=cache.user, uid=job.uid, cluster=site.cluster)
        usage.mark_used(cache.fd, place, until)
        if job.nodes not in (1, None) or node_leases.is_shared(cache.fd, job.node, record):
            return None
        manifest = {"cluster": site.cluster, "job_id": job.job_id}
        fields = publish_builds(cache.fd, record, Rules(place, site.store_publish, site.store_max_size, manifest), until)
    except (OSError, path_template.BadName) as error:
        fields = _refused(reason_of(error), error)
    return cache.fact("store.published", **fields) if fields else None


def publish_builds(cache_fd: int, record: Fact, rules: Rules, until: float) -> Optional[Fact]:
    """Move the finished builds of a cache into the store; return the fields of the event, None if there was nothing to do.

    until: deadline, in seconds of time.monotonic.
    """
    began = time.monotonic()
    label = rules.label_of(record)
    if label is None:
        return None
    try:
        to = Destination(rules.store, label, maps=True, max_bytes=rules.max_bytes, facts=rules.manifest)
        done = publishing.publish(cache_fd, to, until)
    except (OSError, reasons.Refused) as error:
        return _refused(error.reason if isinstance(error, reasons.Refused) else reason_of(error), error)
    if not (done.builds or done.broken or done.late):
        return None
    return {
        "level": "warning" if done.broken else "info",
        "outcome": "published" if done.builds else "skipped",
        "reason": "damaged" if done.broken else "budget" if done.late else None,
        "label": label if store_names.is_label(label) else None,
        "builds": done.builds, "files": done.files, "bytes": done.bytes, "store": rules.store,
        "error": next((f"{key}: {what}" for key, what in done.broken.items()), None),
        "duration_ms": round((time.monotonic() - began) * 1000),
    }  # fmt: skip


def _refused(reason: str, error: Exception) -> Fact:
    return {"level": "warning", "outcome": "refused", "reason": reason, "error": str(error)}
