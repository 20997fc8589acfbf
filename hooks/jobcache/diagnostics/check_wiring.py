"""Judge how slurm.conf runs the hooks, and the limits that it sets them."""

from collections.abc import Iterator

from jobcache.diagnostics.check_facts import Compiled, Facts, Script, Wiring
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from jobcache.diagnostics.slurm_conf import is_pattern, seconds, values


def wiring(facts: Facts, slurm: Wiring) -> Iterator[Finding]:
    """Yield findings on slurm.conf."""
    if slurm.error:
        yield Finding("slurm", "answers", PROBLEM, f"cannot read Slurm's configuration: {slurm.error}", "scontrol ping")
        return
    conf = slurm.conf or "slurm.conf"
    yield from _cluster(facts.compiled, slurm)
    yield from _task_prolog(facts, slurm, conf)
    yield from _chain(facts.compiled, slurm)
    yield from _epilog(facts, slurm, conf)
    for path, hook in slurm.hooks_in_prolog:
        text = f"Prolog runs {path}, which is jobcache's {hook}: there it does nothing useful"
        yield Finding(
            "slurm", "Prolog", PROBLEM, text, f"scontrol show config | grep Prolog    # take {path} out of Prolog in {conf}"
        )
    for key in ("TaskProlog", "Epilog"):
        running, written = values(slurm.running, key), values(slurm.file, key)
        if slurm.file and running != written:
            text = f"{conf} has {key}={','.join(written) or '(nothing)'}; slurmctld uses {','.join(running) or '(nothing)'}"
            yield Finding("slurm", "reconfigured", WARNING, text, "scontrol reconfigure")
    yield from _slurmd_user(slurm, conf)
    yield _epilog_timeout(facts, slurm, conf)
    yield _min_job_age(facts, slurm)
    yield from _private_data(facts, slurm)


def _cluster(compiled: Compiled, slurm: Wiring) -> Iterator[Finding]:
    name = _cluster_name(slurm)
    if name and compiled.cluster and name != compiled.cluster:
        text = (
            f"Slurm's ClusterName is {name}; the settings are compiled for {compiled.cluster}. No job gets a cache, "
            "and nothing is reaped"
        )
        yield Finding(
            "slurm", "ClusterName", PROBLEM, text, f"cluster: {name}    # in {compiled.config}, then {compiled.command}"
        )


def _cluster_name(slurm: Wiring) -> str:
    return next(iter(values(slurm.running, "ClusterName")), "")


def _set_key(conf: str, key: str, value: str) -> str:
    """Return a shell command that replaces a key of slurm.conf."""
    return f"sed -i --follow-symlinks '/^{key}=/Id' {conf} && echo '{key}={value}' >>{conf} && scontrol reconfigure"


# ---------------------------------------------------------------------------------------------------------- the hooks


def _hook(name: str, script: Script, compiled: Compiled, cluster: str) -> Iterator[Finding]:
    """Yield the faults of a hook, or of a script that runs it. cluster: Slurm's ClusterName, or ""."""
    if not script.executable:
        harm = " for every user: Slurm cancels every task" if name == "TaskProlog" else ": Slurm drains the node"
        yield Finding("slurm", name, PROBLEM, f"{script.path} is not executable{harm}", f"chmod 755 {script.path}")
    elif script.unreachable:
        remedy = f"namei -l {script.path}    # every directory needs mode a+rx, and no mount may have noexec"
        yield Finding("slurm", name, PROBLEM, f"{script.path}: {script.unreachable}", remedy)
    if script.insecure:
        remedy = f"chown root: {script.path} && chmod 755 {script.path}"
        yield Finding("slurm", name, PROBLEM, f"{script.path} {script.insecure}", remedy)
    if cluster and script.cluster not in ("", cluster, compiled.cluster):
        harm = "no job gets a cache" if name == "TaskProlog" else "it reaps no cache"
        text = f"{script.path} has a policy for cluster {script.cluster}, in {script.lib}; this cluster is {cluster}: {harm}"
        yield Finding("slurm", name, PROBLEM, text, f"{compiled.command} --hooks DIRECTORY    # one directory for each cluster")
    if script.lib and script.lib != compiled.lib:
        text = f"{script.path} reads its policy from {script.lib}, not from {compiled.lib}"
        yield Finding("slurm", name, WARNING, text, f"jobcache check --hooks {script.lib}")
    elif not script.shipped:
        text = f"{script.path} is not the hook of this version of jobcache"
        yield Finding("slurm", name, WARNING, text, compiled.command)


def _wired(name: str, scripts: list[Script], compiled: Compiled, cluster: str) -> Iterator[Finding]:
    """Yield the faults of the scripts that run a hook; where they have no fault, one OK."""
    faults = [fault for script in scripts for fault in _hook(name, script, compiled, cluster)]
    yield from faults
    if not faults:
        how = "" if scripts[0].kind == "hook" else f", which runs jobcache's {name}"
        yield Finding("slurm", name, OK, f"{scripts[0].path}{how}")


def _task_prolog(facts: Facts, slurm: Wiring, conf: str) -> Iterator[Finding]:
    script = slurm.task_prologs[0] if slurm.task_prologs else None
    remedy = _set_key(conf, "TaskProlog", f"{facts.hooks}/task-prolog")
    if script is None:
        yield Finding("slurm", "TaskProlog", PROBLEM, "TaskProlog is not set: no job gets a cache", remedy)
    elif script.kind == "missing" and is_pattern(script.path):
        text = f"TaskProlog={script.path} is a pattern. Slurm takes the path of one file there, and cancels every task"
        yield Finding("slurm", "TaskProlog", PROBLEM, text, remedy)
    elif script.kind == "missing":
        text = f"{script.path} does not exist, or is not readable: Slurm cancels every task"
        yield Finding("slurm", "TaskProlog", PROBLEM, text, remedy)
    elif script.kind == "swapped":
        text = f"TaskProlog is {script.path}, which is jobcache's Epilog: no job gets a cache"
        yield Finding("slurm", "TaskProlog", PROBLEM, text, remedy)
    elif script.kind == "other":
        text = (
            f"TaskProlog is {script.path}, which does not run jobcache's TaskProlog. Slurm runs one TaskProlog only; "
            "jobcache's can run the site's after it"
        )
        chain = (
            f"task_prolog: {{chain: {script.path}}}    # in {facts.compiled.config}, then {facts.compiled.command} && {remedy}"
        )
        yield Finding("slurm", "TaskProlog", PROBLEM, text, chain)
    else:
        yield from _wired("TaskProlog", [script], facts.compiled, _cluster_name(slurm))


def _chain(compiled: Compiled, slurm: Wiring) -> Iterator[Finding]:
    """Yield the finding on the site's TaskProlog, where jobcache's runs one."""
    chain = slurm.chain
    if chain is None:
        return
    if chain.kind == "missing":
        text = f"task_prolog.chain: {chain.path} does not exist, or is not readable: it does not run"
        remedy = f"ls -l {chain.path}    # create it, or correct task_prolog.chain in {compiled.config}"
        yield Finding("slurm", "chain", PROBLEM, text, remedy)
    elif not chain.executable:
        text = f"task_prolog.chain: {chain.path} is not executable for every user: it does not run"
        yield Finding("slurm", "chain", PROBLEM, text, f"chmod 755 {chain.path}")
    elif chain.kind in ("hook", "chained"):
        text = f"task_prolog.chain: {chain.path} runs jobcache's TaskProlog again, in an endless loop"
        remedy = f"task_prolog: {{chain: null}}    # in {compiled.config}, then {compiled.command}"
        yield Finding("slurm", "chain", PROBLEM, text, remedy)
    else:
        yield Finding("slurm", "chain", OK, f"jobcache's TaskProlog runs {chain.path}")


def _epilog(facts: Facts, slurm: Wiring, conf: str) -> Iterator[Finding]:
    hook = f"{facts.hooks}/epilog"
    yield from _epilog_scripts(facts, slurm, conf)
    wired = [script for script in slurm.epilogs if script.kind in ("hook", "chained")]
    unreadable = next((script.path for script in slurm.epilogs if script.kind == "unreadable"), "")
    others = [script.path for script in slurm.epilogs if script.kind == "other"]
    if wired:
        yield from _wired("Epilog", wired, facts.compiled, _cluster_name(slurm))
    elif unreadable:
        text = f"Epilog is {unreadable}, which only root can read: whether it runs jobcache's Epilog is unknown"
        yield Finding("slurm", "Epilog", WARNING, text, "sudo jobcache check")
    elif others:
        text = f"Epilog is {others[0]}, which does not run jobcache's Epilog: only the sweep reaps caches"
        yield Finding("slurm", "Epilog", PROBLEM, text, _add_epilog(others, hook, values(slurm.running, "Epilog"), conf))
    elif not slurm.epilogs and not slurm.epilog_pattern:
        text = "Epilog is not set: only the sweep reaps caches"
        yield Finding("slurm", "Epilog", PROBLEM, text, _set_key(conf, "Epilog", hook))


def _epilog_scripts(facts: Facts, slurm: Wiring, conf: str) -> Iterator[Finding]:
    """Yield the faults of Epilogs that do not run jobcache's."""
    hook = f"{facts.hooks}/epilog"
    alone = len(slurm.epilogs) == 1
    replace = _set_key(conf, "Epilog", hook)
    if slurm.epilog_pattern:
        text = f"Epilog={slurm.epilog_pattern} matches no file on this node: Slurm drains the node"
        yield Finding("slurm", "Epilog", PROBLEM, text, f"ln -s {hook} {slurm.epilog_pattern.rpartition('/')[0]}/50-jobcache")
    for script in slurm.epilogs:
        if script.kind == "swapped":
            text = f"Epilog is {script.path}, which is jobcache's TaskProlog: only the sweep reaps caches"
            keep_others = f"{hook}    # instead of {script.path}, in {conf} or in the directory that Epilog names"
            yield Finding("slurm", "Epilog", PROBLEM, text, replace if alone else keep_others)
        elif script.kind == "missing":
            keep_others = f"ls -l {script.path}    # create it, or remove it from Epilog in {conf} and keep the others"
            text = f"{script.path} does not exist: Slurm drains the node"
            yield Finding("slurm", "Epilog", PROBLEM, text, replace if alone else keep_others)
        elif script.kind == "other" and not script.executable:
            text = f"{script.path} is not executable: Slurm drains the node"
            yield Finding("slurm", "Epilog", PROBLEM, text, f"chmod 755 {script.path}")


def _add_epilog(others: list[str], hook: str, epilogs: list[str], conf: str) -> str:
    """Return a shell command that adds the hook to the site's Epilogs.

    It links the hook into the directory of a glob, or all Epilogs into a new directory. A glob over a directory that holds
    other files would make Slurm run these.
    """
    pattern = next((value for value in epilogs if value.endswith("/*")), "")
    if pattern:
        return f"ln -s {hook} {pattern[:-1]}50-jobcache    # on every node"
    above = f"{conf.rpartition('/')[0]}/epilog.d"
    links = [f"ln -s {path} {above}/{at}-site" for at, path in enumerate(others, 60)] + [f"ln -s {hook} {above}/50-jobcache"]
    return f"mkdir {above} && {' && '.join(links)}    # on every node, then: {_set_key(conf, 'Epilog', above + '/*')}"


def _slurmd_user(slurm: Wiring, conf: str) -> Iterator[Finding]:
    """Yield the finding on the user that runs the Epilog, such as `root(0)`, if it is not root."""
    user = next(iter(values(slurm.running, "SlurmdUser")), "root(0)")
    if not user.endswith("(0)"):
        text = f"SlurmdUser={user}: the Epilog does not run as root, and reaps no cache of another user"
        yield Finding("slurm", "SlurmdUser", PROBLEM, text, f"SlurmdUser=root    # in {conf}; restart slurmd on each node")


# ------------------------------------------------------------------------------------------------------------- limits


def _epilog_timeout(facts: Facts, slurm: Wiring, conf: str) -> Finding:
    """Return the finding on the time that Slurm gives the Epilog, against the time that jobcache's Epilog takes."""
    running, deadline = {**slurm.file, **slurm.running}, facts.epilog_deadline
    flags = {flag.lower() for value in values(running, "PrologFlags") for flag in value.split(",")}
    limit = seconds(running, "EpilogTimeout", "PrologEpilogTimeout")
    key = "EpilogTimeout" if seconds(running, "EpilogTimeout") else "PrologEpilogTimeout"
    if limit is None or "runinjob" in flags:
        why = "PrologFlags=RunInJob: " if "runinjob" in flags else ""
        text = f"{why}Slurm sets the Epilog no time limit; jobcache's Epilog ends after {deadline:g} s"
        return Finding("slurm", "EpilogTimeout", OK, text)
    if limit <= deadline:
        text = f"{key}={limit:g} is not longer than epilog.deadline ({deadline:g} s): a slow Epilog drains the node"
        return Finding("slurm", "EpilogTimeout", PROBLEM, text, _set_key(conf, key, str(int(deadline * 2))))
    return Finding("slurm", "EpilogTimeout", OK, f"{key}={limit:g}, epilog.deadline {deadline:g} s")


def _min_job_age(facts: Facts, slurm: Wiring) -> Finding:
    age = seconds({**slurm.file, **slurm.running}, "MinJobAge")
    if age is None or facts.grace >= age:
        return Finding("slurm", "MinJobAge", OK, f"MinJobAge {age or 0:g} s, sweep.grace {facts.grace:g} s")
    text = f"sweep.grace ({facts.grace:g} s) is shorter than MinJobAge ({age:g} s), for which Slurm can requeue an ended job"
    remedy = f"sweep: {{grace: {int(age)}s}}    # in {facts.compiled.config}, then {facts.compiled.command}"
    return Finding("slurm", "MinJobAge", WARNING, text, remedy)


def _private_data(facts: Facts, slurm: Wiring) -> Iterator[Finding]:
    private = {word.lower() for value in values(slurm.running, "PrivateData") for word in value.split(",")}
    if "jobs" in private and not facts.root:
        text = "PrivateData=jobs: users can sweep and list only their own caches"
        yield Finding("slurm", "PrivateData", WARNING, text, "sudo jobcache check")
    elif "jobs" in private:
        yield Finding("slurm", "PrivateData", OK, "PrivateData=jobs: the sweep runs as root, and root sees all jobs")
