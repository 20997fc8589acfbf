"""Publish from a job's cache into its user's store when the job has ended. It runs as that user."""

import time
from typing import Any, Optional

from jobcache.cache import node_leases, path_template, reasons, store_names
from jobcache.config.settings import Settings
from jobcache.store import publishing, usage
from jobcache.store.publication import Destination
from jobcache.system.epilog_job import Job
from jobcache.system.epilog_work import Cache, reason_of

Fact = dict[str, Any]


def publish_cache(job: Job, site: Settings, cache: Cache, record: Fact, until: float) -> Optional[Fact]:
    """Mark the store's builds that the cache used, and move the cache's finished builds into the store.

    By `store.publish`, a cache without a label is published into a section of its own, or not at all. The label comes from the
    record, which the user can forge, as the user can the store.
    until: deadline, in seconds of time.monotonic.
    Return the fact to report, None for no fact.
    """
    began = time.monotonic()
    try:
        place = store_names.store_path(str(site.store_user), user=cache.user, uid=job.uid, cluster=site.cluster)
        usage.mark_used(cache.fd, place, until)
        label = record.get("label")
        if not isinstance(label, str) or not store_names.is_label(label):
            if site.store_publish != "all":
                return None
            label = store_names.UNLABELLED
        if job.nodes not in (1, None) or node_leases.is_shared(cache.fd, job.node, record):
            return None
        facts = {"cluster": site.cluster, "job_id": job.job_id}
        to = Destination(place, label, maps=True, max_bytes=site.store_max_size, facts=facts)
        done = publishing.publish(cache.fd, to, until)
    except (OSError, reasons.Refused, path_template.BadName) as error:
        reason = error.reason if isinstance(error, reasons.Refused) else reason_of(error)
        return cache.fact("store.published", "warning", "refused", reason, error=str(error))
    if not (done.builds or done.broken or done.late):
        return None
    level = "warning" if done.broken else "info"
    why = "damaged" if done.broken else "budget" if done.late else None
    return cache.fact(
        "store.published", level, "published" if done.builds else "skipped", why,
        label=label if store_names.is_label(label) else None, builds=done.builds, files=done.files, bytes=done.bytes, store=place,
        error=next((f"{key}: {what}" for key, what in done.broken.items()), None),
        duration_ms=round((time.monotonic() - began) * 1000),
    )  # fmt: skip
