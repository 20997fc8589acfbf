"""The names that jobcache creates in a template's directory: caches of jobs and of `jobcache run`, and their debris."""

from jobcache.cache import cache_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcache.cache.path_template import Matcher

CACHE = "cache"  # of a job
RUN = "run"  # of `jobcache run` without a job


def parse_entry(name: str, matches: "Matcher") -> "tuple[str, int, int | None] | None":
    """Return (kind, number, run) of a name that jobcache creates, else None.

    matches: the matcher of the template's last component.
    kind: CACHE, RUN, or cache_names' TRASH, NEW or ASIDE.
    number: the job id; of RUN, the process id.
    run: how often the job was requeued; None for debris.
    """
    if cache_names.is_history(name):
        return None
    debris = cache_names.parse_debris(name)
    if debris:
        return debris[0], debris[1], None
    known = matches(name)
    if known is None:
        return None
    job = cache_names.parse_job(known["job_id"])
    if job:
        return CACHE, job[0], job[1]
    pid = cache_names.parse_run(known["job_id"])
    return (RUN, pid, 0) if pid else None
