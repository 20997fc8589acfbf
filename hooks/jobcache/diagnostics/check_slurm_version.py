"""Judge what the version of Slurm lacks: relative paths of the hooks, and facts that the Epilog needs."""

from collections.abc import Iterator

from jobcache.diagnostics.check_facts import Facts, Wiring
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from jobcache.diagnostics.slurm_conf import Version, parse_version, values

# The first version that takes a relative path from the directory of slurm.conf (slurmd.c), and what older ones do.
_RELATIVE: dict[str, tuple[Version, str]] = {
    "TaskProlog": ((25, 11), "Slurm cancels every task"),
    "Epilog": ((23, 11), "Slurm drains the node"),
}
_CANCELS: Version = (22, 5)  # cancels a task whose TaskProlog cannot run
_FULL_EPILOG: Version = (22, 5)  # its Epilog has the exit status, the uid on a released node, the leader of a het job


def slurm_version(facts: Facts, slurm: Wiring) -> Iterator[Finding]:
    """Yield findings on the version of Slurm; nothing where it is unknown."""
    version = parse_version(slurm.running.get("SLURM_VERSION", ""))
    if version is None:
        return
    name = f"Slurm {version[0]}.{version[1]:02}"
    for key, (first, harm) in _RELATIVE.items():
        for value in values(slurm.running, key):
            if not value.startswith("/") and version < first:
                if key == "TaskProlog" and version < _CANCELS:
                    harm = "no job gets a cache"
                text = f"{key}={value} is a relative path, which {name} cannot run: {harm}"
                remedy = f"{key}={facts.hooks}/{'task-prolog' if key == 'TaskProlog' else 'epilog'}    # in {slurm.conf}"
                yield Finding("slurm", key, PROBLEM, text, remedy)
    if version >= _FULL_EPILOG:
        yield Finding("slurm", "version", OK, name)
        return
    text = f"{name}: the sweep, not the Epilog, reaps the cache of a job that released nodes, or of a het job"
    yield Finding("slurm", "version", OK, text)
    if facts.keep_failed:
        text = f"keep_failed has no effect: the Epilog of {name} does not know the exit status"
        remedy = f"keep_failed: 0s    # in {facts.compiled.config}; users can set JOBCACHE=keep"
        yield Finding("slurm", "keep_failed", WARNING, text, remedy)
