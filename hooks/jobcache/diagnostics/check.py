"""Judge an installation: facts in, findings out. The check_* modules judge one area each."""

from collections.abc import Iterator

from jobcache.diagnostics import check_config, check_containers, check_log, check_scratch, check_slurm_version, check_wiring
from jobcache.diagnostics.check_facts import Facts
from jobcache.diagnostics.finding import Finding


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield the findings in the order in which an admin fixes them."""
    yield from check_config.compiled(facts.compiled)
    for interpreter in facts.interpreters:
        yield check_config.interpreter(interpreter)
    if facts.wiring is None:
        yield check_config.unchecked(facts.compiled)
    else:
        yield from check_wiring.wiring(facts, facts.wiring)
        if not facts.wiring.error:
            yield from check_slurm_version.slurm_version(facts, facts.wiring)
            yield from check_containers.containers(facts, facts.wiring)
    for place in facts.scratch:
        yield from check_scratch.scratch(place)
    yield from check_scratch.names(facts.misnamed)
    if facts.log is not None:
        yield from check_log.log(facts.log)
    if facts.schedule is not None:
        yield from check_log.schedule(facts.schedule, facts.log)
