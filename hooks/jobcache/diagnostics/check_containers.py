"""Judge what jobs in containers, and jobs with a private /tmp, can reach."""

from collections.abc import Iterator

from jobcache.diagnostics.check_facts import Facts, Wiring
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding


def containers(facts: Facts, slurm: Wiring) -> Iterator[Finding]:
    """Yield findings on job_container/tmpfs and on pyxis, where Slurm uses them."""
    hidden = [(place.template, above) for place in facts.scratch for above in slurm.tmpfs_dirs if is_below(place.template, above)]
    for template, above in hidden:
        text = f"{template}: each job has a private {above}, which the Epilog cannot see"
        remedy = f"path: /scratch/{{user}}/.cache/hf-datasets-{{job_id}}    # in {facts.compiled.config}: not below {above}"
        yield Finding("slurm", "job_container", PROBLEM, text, remedy)
    if slurm.tmpfs_dirs and not hidden:
        text = f"private to each job: {', '.join(slurm.tmpfs_dirs)}; no cache is below them"
        yield Finding("slurm", "job_container", OK, text)
    if slurm.pyxis:
        yield _pyxis(facts, slurm)


def _pyxis(facts: Facts, slurm: Wiring) -> Finding:
    """Return the finding on pyxis, which runs the TaskProlog inside of the container.

    A path that is not mounted there does not exist for it. If that path is the TaskProlog, Slurm cancels the task.
    """
    hooks = list(dict.fromkeys([facts.hooks, facts.compiled.lib]))
    scratch = [place.template.partition("{")[0].rpartition("/")[0] or "/" for place in facts.scratch]
    needed = list(dict.fromkeys([*hooks, *scratch]))
    missing = [path for path in needed if not any(is_below(path, mounted) for mounted in slurm.container_mounts)]
    if not missing:
        return Finding("slurm", "pyxis", OK, f"enroot mounts {', '.join(needed)} into every container")
    fails = facts.hooks in missing
    harm = "every task in a container fails" if fails else "no task in a container gets its cache"
    text = f"pyxis is loaded ({slurm.pyxis}), and enroot does not mount {', '.join(missing)} into containers: {harm}"
    lines = "".join(f"{path} {path} none x-create=dir,bind,{'ro,' if path in hooks else ''}nosuid,nodev\\n" for path in missing)
    remedy = f"printf '{lines}' >>{slurm.enroot}/mounts.d/50-jobcache.fstab"
    return Finding("slurm", "pyxis", PROBLEM if fails else WARNING, text, remedy)


def is_below(path: str, above: str) -> bool:
    """Return whether `path` is `above` or lies in it, by the text alone."""
    return f"{path}/".startswith(above.rstrip("/") + "/")
