"""Judge what jobs in containers, and jobs with a private /tmp, can reach."""

from collections.abc import Iterator

from jobcache.config import apptainer
from jobcache.diagnostics.check_facts import Apptainer, Facts, Wiring
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding


def containers(facts: Facts, slurm: Wiring) -> Iterator[Finding]:
    """Yield findings on job_container/tmpfs and on pyxis, where Slurm uses them, and on Apptainer, where it is installed."""
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
    for site in slurm.apptainer:
        yield _apptainer(facts, site)


def _pyxis(facts: Facts, slurm: Wiring) -> Finding:
    """Return the finding on pyxis, which runs the TaskProlog inside of the container.

    A path that is not mounted there does not exist for it. If that path is the TaskProlog, Slurm cancels the task.
    """
    hooks = list(dict.fromkeys([facts.hooks, facts.compiled.lib]))
    needed = list(dict.fromkeys([*hooks, *_scratch(facts)]))
    missing = [path for path in needed if not any(is_below(path, mounted) for mounted in slurm.container_mounts)]
    if not missing:
        return Finding("slurm", "pyxis", OK, f"enroot mounts {', '.join(needed)} into every container")
    fails = facts.hooks in missing
    harm = "every task in a container fails" if fails else "no task in a container gets its cache"
    text = f"pyxis is loaded ({slurm.pyxis}), and enroot does not mount {', '.join(missing)} into containers: {harm}"
    lines = "".join(f"{path} {path} none x-create=dir,bind,{'ro,' if path in hooks else ''}nosuid,nodev\\n" for path in missing)
    remedy = f"printf '{lines}' >>{slurm.enroot}/mounts.d/50-jobcache.fstab"
    return Finding("slurm", "pyxis", PROBLEM if fails else WARNING, text, remedy)


def _apptainer(facts: Facts, site: Apptainer) -> Finding:
    """Return the finding on Apptainer or SingularityCE, by one configuration file of it."""
    store = [facts.compiled.site_store.partition("{")[0].rstrip("/")] if facts.compiled.site_store else []
    needed = [path for path in dict.fromkeys([*_scratch(facts), *store]) if not apptainer.is_mounted(path)]
    unmounted = [path for path in needed if not any(is_below(path, mounted) for mounted in site.binds)]
    by_variable: list[str] = []
    if facts.compiled.apptainer == "bind":
        by_variable = [path for path in unmounted if path in _scratch(facts) and apptainer.can_mount(path)]
    missing = [path for path in unmounted if not any(is_below(path, mounted) for mounted in by_variable)]
    if by_variable and not site.user_binds:
        text = f"{site.conf}: by `user bind control = no`, containers ignore the mount of {', '.join(by_variable)} with a warning"
        remedy = f"{_bind_paths(unmounted, site)}    # and containers: {{apptainer: off}} in {facts.compiled.config}"
        return Finding("slurm", "apptainer", WARNING, text, remedy)
    if missing:
        text = f"{site.conf}: containers do not mount {', '.join(missing)}, where caches lie or lead to: there, `datasets` fails"
        return Finding("slurm", "apptainer", WARNING, text, _bind_paths(missing, site))
    text = f"{site.conf}: containers mount {', '.join(needed) or 'the directories of caches'}"
    text += "; they have no home, so links to the builds of users lead nowhere" if not site.home else ""
    return Finding("slurm", "apptainer", OK, text)


def _bind_paths(paths: list[str], site: Apptainer) -> str:
    lines = "".join(f"bind path = {path}\\n" for path in paths)
    return f"printf '{lines}' >>{site.conf}"


def _scratch(facts: Facts) -> list[str]:
    """Return the fixed parts of the paths of caches. A home has none: Apptainer mounts it by default."""
    templates = [place.template for place in facts.scratch if not place.template.startswith("{home}/")]
    return [template.partition("{")[0].rpartition("/")[0] or "/" for template in templates]


def is_below(path: str, above: str) -> bool:
    """Return whether `path` is `above` or lies in it, by the text alone."""
    return f"{path}/".startswith(above.rstrip("/") + "/")
