"""What is right and what is wrong with an installation: pure decisions over facts that `probe` has gathered.

Each finding has the fact in words and, where something is to be done, the mend as a line to paste.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Optional

OK, WARNING, PROBLEM = "ok", "warning", "problem"
EXCLUDED, OBTAINED = "excluded", "obtained"  # what became of somebody who tried a lock that was held

# Filesystems that each node has for itself, by the mount table's names. Of any other it is not told.
_LOCAL = frozenset("ext2 ext3 ext4 xfs btrfs zfs f2fs tmpfs ramfs overlay".split())
_NETWORK = frozenset("nfs nfs4 lustre gpfs beegfs ceph cifs wekafs panfs pvfs2 orangefs afs".split())
_SCARCE, _GONE = 5.0, 1.0  # percent of space or inodes that is left
_STALE_SWEEP = 26 * 3600.0  # seconds; the timer fires hourly, and a large sweep takes hours
_NEVER = (None, 0.0, 65534.0)  # what Slurm says for no limit


@dataclass(frozen=True)
class Finding:
    """area, name: what was looked at. level: ok, warning or problem. fact: words for a person. mend: a line to paste, or ""."""

    area: str
    name: str
    level: str
    fact: str
    mend: str = ""


@dataclass(frozen=True)
class Compiled:
    """The configuration and what it was compiled into. insecure: words. stale: paths. cluster: compiled in.

    version: of jobcache that compiled.
    """

    config: str
    lib: str
    problems: tuple[str, ...] = ()
    settings_error: str = ""
    cluster: str = ""
    stale: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    mode: str = "on"
    off: bool = False
    version: str = ""
    our_version: str = ""
    command: str = "jobcache apply"


@dataclass(frozen=True)
class Interpreter:
    """The Python that the hooks name. user: as whom it ran. error: "" where it did what that hook needs of it."""

    path: str
    hook: str
    user: str
    error: str = ""
    version: str = ""


@dataclass(frozen=True)
class Script:
    """A file that Slurm is told to run. kind: ours, swapped (our other hook), chained (a script that calls ours), other,
    missing, closed (to who is not root).

    executable: by everybody. lib: where one of ours reads its policy. shipped: it is the hook of this version.
    insecure: why others could change it. unreachable: why an ordinary user cannot run it, or read its policy.
    """

    path: str
    kind: str
    executable: bool = True
    lib: str = ""
    shipped: bool = True
    insecure: str = ""
    unreachable: str = ""


@dataclass(frozen=True)
class Wiring:
    """What Slurm says. unknown: why it does not say it. running, file: slurm.conf's keys as slurmctld and as the file has them.

    task_prologs, epilogs: what is wired. epilog_pattern: a glob that matches nothing. chain: the site's own TaskProlog.
    tmpfs_dirs: directories that job_container/tmpfs makes private. pyxis: the plugstack line that loads it.
    container_mounts: what enroot mounts into each container. conf: path of slurm.conf.
    """

    unknown: str = ""
    conf: str = ""
    running: dict[str, str] = field(default_factory=dict)
    file: dict[str, str] = field(default_factory=dict)
    task_prologs: tuple[Script, ...] = ()
    epilogs: tuple[Script, ...] = ()
    epilog_pattern: str = ""
    chain: Optional[Script] = None
    tmpfs_dirs: tuple[str, ...] = ()
    pyxis: str = ""
    container_mounts: tuple[str, ...] = ()
    enroot: str = "/etc/enroot"


@dataclass(frozen=True)
class Scratch:
    """Where a template puts one user's caches, as that user saw it; user "": nobody tried, error says why. parent: the
    directory. above: the part that exists.

    hung: what was being done when it stopped answering. error: the system's words. link: a user's symlink is in the path.
    fstype, options: from the mount table. flock: EXCLUDED, OBTAINED, or the error. across: the same by node, None: not
    tried. squashed: root cannot look into the user's directory; None: not told.
    """

    template: str
    user: str
    parent: str = ""
    above: str = ""
    local: bool = False
    has_node: bool = False
    hung: str = ""
    error: str = ""
    link: bool = False
    fstype: str = ""
    options: tuple[str, ...] = ()
    total: int = 0
    free: int = 0
    inodes: int = 0
    inodes_free: int = 0
    flock: str = ""
    across: Optional[dict[str, str]] = None
    squashed: Optional[bool] = None


@dataclass(frozen=True)
class Log:
    """error: why the log file cannot be written. insecure: why others could. syslog: the socket, None: off; syslog_error.

    failures: hook.failed of the last day, by reason. last_sweep: seconds ago, None: no sweep is in the log. sweep_error: its.
    """

    file: Optional[str]
    error: str = ""
    insecure: str = ""
    syslog: Optional[str] = None
    syslog_error: str = ""
    failures: dict[str, int] = field(default_factory=dict)
    last_sweep: Optional[float] = None
    sweep_error: str = ""


@dataclass(frozen=True)
class Schedule:
    """What starts the sweep here. systemd: it runs here. timer: enabled, disabled, missing … cron: the file is there, and why
    it would do nothing ("" where it would), with the mend."""

    systemd: bool = False
    timer: str = ""
    cron: bool = False
    cron_idle: str = ""
    cron_mend: str = ""


@dataclass(frozen=True)
class Facts:
    """All that is known. Durations are seconds."""

    compiled: Compiled
    interpreters: tuple[Interpreter, ...] = ()
    wiring: Optional[Wiring] = None  # None: not looked at, as there are no settings to go by
    scratch: tuple[Scratch, ...] = ()
    log: Optional[Log] = None
    schedule: Optional[Schedule] = None
    hooks: str = ""  # directory of the hooks that should be wired in
    epilog_deadline: float = 30.0
    task_prolog_chain: Optional[str] = None
    grace: float = 3600.0
    root: bool = True


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield what is to be said, in the order in which an admin would mend it."""
    yield from _compiled(facts.compiled)
    for one in facts.interpreters:
        yield _interpreter(one)
    if facts.wiring is None:
        words = "hooks, slurm.conf, scratch, log and sweep were not looked at: there are no settings to go by"
        again = facts.compiled.command.replace("jobcache apply", "jobcache check", 1)
        yield Finding("config", "settings", WARNING, words, f"{facts.compiled.command} && {again}")
    else:
        yield from _wiring(facts, facts.wiring)
    for place in facts.scratch:
        yield from _scratch(place)
    if facts.log is not None:
        yield from _log(facts.log)
    if facts.schedule is not None:
        yield from _schedule(facts.schedule, facts.log)


def _compiled(facts: Compiled) -> Iterator[Finding]:
    for problem in facts.problems:
        yield Finding("config", "valid", PROBLEM, problem, f"editor {facts.config} && {facts.command}")
    if not facts.problems:
        yield Finding("config", "valid", OK, facts.config)
    if facts.settings_error:
        yield Finding("config", "compiled", PROBLEM, facts.settings_error, facts.command)
    for path in () if facts.settings_error else facts.stale:
        yield Finding("config", "current", PROBLEM, f"{path} is not what {facts.config} says", facts.command)
    for words in facts.insecure:
        yield Finding(
            "config",
            "private",
            PROBLEM,
            words,
            f"chown -R root: {facts.lib} {facts.config} && chmod -R go-w {facts.lib} {facts.config}",
        )
    if not (facts.problems or facts.settings_error or facts.stale or facts.insecure):
        yield Finding("config", "current", OK, f"{facts.lib}: compiled, current, and nobody else may write it")
    if facts.version and facts.version != facts.our_version:
        words = f"compiled by jobcache {facts.version}; this is {facts.our_version}"
        yield Finding("config", "version", WARNING, words, facts.command)
    if facts.off:
        yield Finding(
            "config", "off", WARNING, f"{facts.lib}/off is there: no hook and no sweep does anything", f"rm {facts.lib}/off"
        )
    elif facts.mode != "on":
        words = f"mode is {facts.mode}: no job gets a cache, unless by a rule"
        yield Finding("config", "mode", WARNING, words, f"sed -i 's/^mode:.*/mode: on/' {facts.config} && {facts.command}")


def _interpreter(one: Interpreter) -> Finding:
    who = f"{one.path} as {one.user}, for {one.hook}"
    if not one.error:
        return Finding("hooks", "python", OK, f"{who}: Python {one.version}")
    mend = (
        f"env -i {one.path} -I -c 'import sys; print(sys.version)'    # as {one.user}; LD_LIBRARY_PATH is not set for the hooks"
    )
    return Finding("hooks", "python", PROBLEM, f"{who}: {one.error}", mend)


# ------------------------------------------------------------------------------------------------------------- wiring


def _wiring(facts: Facts, wiring: Wiring) -> Iterator[Finding]:
    if wiring.unknown:
        yield Finding("slurm", "answers", PROBLEM, f"Slurm does not say how it is configured: {wiring.unknown}", "scontrol ping")
        return
    conf = wiring.conf or "slurm.conf"
    yield from _cluster(facts.compiled, wiring)
    yield from _task_prolog(facts, wiring, conf)
    yield from _epilog(facts, wiring, conf)
    for key in ("TaskProlog", "Epilog"):
        running, written = values(wiring.running, key), values(wiring.file, key)
        if wiring.file and running != written:
            words = f"{conf} says {key}={','.join(written) or '(nothing)'}, slurmctld goes by {','.join(running) or '(nothing)'}"
            yield Finding("slurm", "reconfigured", WARNING, words, "scontrol reconfigure")
    yield from _limits(facts, wiring, conf)
    yield from _private(facts, wiring)
    yield from _containers(facts, wiring)


def _cluster(compiled: Compiled, wiring: Wiring) -> Iterator[Finding]:
    name = (values(wiring.running, "ClusterName") or [""])[0]
    if name and compiled.cluster and name != compiled.cluster:
        words = f"Slurm's ClusterName is {name}, the one compiled in {compiled.cluster}: the sweep reaps nothing"
        mend = f"cluster: {name}    # in {compiled.config}, then {compiled.command}"
        yield Finding("slurm", "ClusterName", PROBLEM, words, mend)


def values(config: dict[str, str], key: str) -> list[str]:
    """Return what a key is set to: newer Slurms number several values, `Epilog[0]`."""
    found = [value for name, value in config.items() if name.partition("[")[0].lower() == key.lower()]
    return [value for value in found if value not in ("", "(null)", "none")]


def seconds(config: dict[str, str], *keys: str) -> Optional[float]:
    """Return the first of the keys that is set, as `60`, `60 sec` or `65534`; None where none is, or it is no limit."""
    for key in keys:
        for value in values(config, key):
            word = value.split()[0]
            if word.isdigit() and float(word) not in _NEVER:
                return float(word)
    return None


def _paste(conf: str, key: str, value: str) -> str:
    """A line that sets a key in place of the one that is there."""
    return f"sed -i --follow-symlinks '/^{key}=/Id' {conf} && echo '{key}={value}' >>{conf} && scontrol reconfigure"


def _script(area: str, name: str, one: Script, lib: str, command: str) -> Iterator[Finding]:
    """What is wrong with a hook of ours that is wired in."""
    if not one.executable:
        harm = " by everybody: Slurm cancels every task" if name == "TaskProlog" else ": Slurm drains the node"
        yield Finding(area, name, PROBLEM, f"{one.path}: not executable{harm}", f"chmod 755 {one.path}")
    elif one.unreachable:
        mend = f"namei -l {one.path}    # each directory has to be open to all (chmod a+rx), and none mounted noexec"
        yield Finding(area, name, PROBLEM, f"{one.path}: {one.unreachable}", mend)
    if one.insecure:
        yield Finding(area, name, PROBLEM, f"{one.path}: {one.insecure}", f"chown root: {one.path} && chmod 755 {one.path}")
    if one.lib and one.lib != lib:
        words = f"{one.path} reads its policy from {one.lib}, and not from {lib}"
        yield Finding(area, name, WARNING, words, f"jobcache check --hooks {one.lib}")
    elif not one.shipped:
        yield Finding(area, name, WARNING, f"{one.path}: not the hook of this version of jobcache", command)


def _task_prolog(facts: Facts, wiring: Wiring, conf: str) -> Iterator[Finding]:
    ours = f"{facts.hooks}/task-prolog"
    wired = wiring.task_prologs[0] if wiring.task_prologs else None
    mend = _paste(conf, "TaskProlog", ours)
    if wired is None:
        yield Finding("slurm", "TaskProlog", PROBLEM, "TaskProlog is not set: no job gets a cache", mend)
    elif wired.kind == "missing":
        yield Finding("slurm", "TaskProlog", PROBLEM, f"{wired.path} is not there: Slurm cancels every task", mend)
    elif wired.kind == "swapped":
        yield Finding("slurm", "TaskProlog", PROBLEM, f"TaskProlog is {wired.path}, our Epilog: no job gets a cache", mend)
    elif wired.kind == "other":
        words = f"TaskProlog is {wired.path}, and does not run ours; there is one TaskProlog, and ours runs the site's after it"
        chain = f"task_prolog: {{chain: {wired.path}}}    # in {facts.compiled.config}, then {facts.compiled.command} && {mend}"
        yield Finding("slurm", "TaskProlog", PROBLEM, words, chain)
    else:
        wrong = list(_script("slurm", "TaskProlog", wired, facts.compiled.lib, facts.compiled.command))
        yield from wrong
        if not wrong:
            how = "" if wired.kind == "ours" else ", which runs ours"
            yield Finding("slurm", "TaskProlog", OK, f"{wired.path}{how}")
    chain_to = wiring.chain
    if chain_to is not None:
        if chain_to.kind == "missing" or not chain_to.executable:
            words = f"task_prolog.chain: {chain_to.path} is not there, or not executable: it is not run"
            put = f"ls -l {chain_to.path}    # put it there, or correct task_prolog.chain in {facts.compiled.config}"
            mend = put if chain_to.kind == "missing" else f"chmod 755 {chain_to.path}"
            yield Finding("slurm", "chain", PROBLEM, words, mend)
        elif chain_to.kind in ("ours", "chained"):
            words = f"task_prolog.chain: {chain_to.path} runs our TaskProlog again, without end"
            mend = f"task_prolog: {{chain: null}}    # in {facts.compiled.config}, then {facts.compiled.command}"
            yield Finding("slurm", "chain", PROBLEM, words, mend)
        else:
            yield Finding("slurm", "chain", OK, f"after ours runs {chain_to.path}")


def _epilog(facts: Facts, wiring: Wiring, conf: str) -> Iterator[Finding]:
    ours = f"{facts.hooks}/epilog"
    mend = _paste(conf, "Epilog", ours)
    if wiring.epilog_pattern:
        words = f"Epilog={wiring.epilog_pattern} matches nothing here: Slurm drains the node"
        yield Finding("slurm", "Epilog", PROBLEM, words, f"ln -s {ours} {wiring.epilog_pattern.rpartition('/')[0]}/50-jobcache")
    for script in wiring.epilogs:
        if script.kind == "swapped":
            words = f"Epilog is {script.path}, our TaskProlog: every cache is left to the sweep"
            yield Finding("slurm", "Epilog", PROBLEM, words, mend)
        if script.kind == "missing" or (script.kind == "other" and not script.executable):
            words = f"{script.path} is not there, or not executable: Slurm drains the node"
            put = f"ls -l {script.path}    # put it there, or take it out of Epilog in {conf}: the others stay"
            gone = mend if len(wiring.epilogs) == 1 else put
            yield Finding("slurm", "Epilog", PROBLEM, words, f"chmod 755 {script.path}" if script.kind == "other" else gone)
    wired = [script for script in wiring.epilogs if script.kind in ("ours", "chained")]
    if wired:
        wrong = [
            one for script in wired for one in _script("slurm", "Epilog", script, facts.compiled.lib, facts.compiled.command)
        ]
        yield from wrong
        if not wrong:
            how = "" if wired[0].kind == "ours" else ", which runs ours"
            yield Finding("slurm", "Epilog", OK, f"{wired[0].path}{how}")
        return
    closed = next((script.path for script in wiring.epilogs if script.kind == "closed"), "")
    others = [script.path for script in wiring.epilogs if script.kind == "other"]
    if closed:
        words = f"Epilog is {closed}, which is root's to read: whether ours is run is not known"
        yield Finding("slurm", "Epilog", WARNING, words, "sudo jobcache check")
    elif others:
        words = f"Epilog is {others[0]}, and does not run ours: every cache is left to the sweep"
        yield Finding("slurm", "Epilog", PROBLEM, words, _beside_others(others, ours, values(wiring.running, "Epilog"), conf))
    elif not wiring.epilogs and not wiring.epilog_pattern:
        yield Finding("slurm", "Epilog", PROBLEM, "Epilog is not set: every cache is left to the sweep", mend)


def _beside_others(others: list[str], ours: str, wired: list[str], conf: str) -> str:
    """Put ours into the directory of the site's Epilogs, or all of them into one: never a glob over other files."""
    pattern = next((value for value in wired if value.endswith("/*")), "")
    if pattern:
        return f"ln -s {ours} {pattern[:-1]}50-jobcache    # on every node"
    above = f"{conf.rpartition('/')[0]}/epilog.d"
    links = [f"ln -s {path} {above}/{at}-site" for at, path in enumerate(others, 60)] + [f"ln -s {ours} {above}/50-jobcache"]
    return f"mkdir {above} && {' && '.join(links)}    # on every node, then: {_paste(conf, 'Epilog', above + '/*')}"


def _limits(facts: Facts, wiring: Wiring, conf: str) -> Iterator[Finding]:
    running, deadline = {**wiring.file, **wiring.running}, facts.epilog_deadline
    flags = {flag.lower() for value in values(running, "PrologFlags") for flag in value.split(",")}
    limit = seconds(running, "EpilogTimeout", "PrologEpilogTimeout")
    key = "EpilogTimeout" if seconds(running, "EpilogTimeout") else "PrologEpilogTimeout"
    if "runinjob" in flags:
        words = f"PrologFlags=RunInJob: Slurm sets the Epilog no limit; ours ends by itself after {deadline:g} s"
        yield Finding("slurm", "EpilogTimeout", OK, words)
    elif limit is None:
        words = f"Slurm sets the Epilog no limit; ours ends by itself after {deadline:g} s"
        yield Finding("slurm", "EpilogTimeout", OK, words)
    elif limit <= deadline:
        words = f"{key}={limit:g} is not longer than epilog.deadline ({deadline:g} s): a slow Epilog drains the node"
        yield Finding("slurm", "EpilogTimeout", PROBLEM, words, _paste(conf, key, str(int(deadline * 2))))
    else:
        yield Finding("slurm", "EpilogTimeout", OK, f"{key}={limit:g}, epilog.deadline {deadline:g} s")
    age = seconds(running, "MinJobAge")
    if age is not None and facts.grace < age:
        words = f"sweep.grace ({facts.grace:g} s) is shorter than MinJobAge ({age:g} s), in which an ended job can be requeued"
        mend = f"sweep: {{grace: {int(age)}s}}    # in {facts.compiled.config}, then {facts.compiled.command}"
        yield Finding("slurm", "MinJobAge", WARNING, words, mend)
    else:
        yield Finding("slurm", "MinJobAge", OK, f"MinJobAge {age or 0:g} s, sweep.grace {facts.grace:g} s")


def _private(facts: Facts, wiring: Wiring) -> Iterator[Finding]:
    private = {word.lower() for value in values(wiring.running, "PrivateData") for word in value.split(",")}
    if "jobs" in private and not facts.root:
        words = "PrivateData=jobs: who is not root sweeps and lists only what is their own"
        yield Finding("slurm", "PrivateData", WARNING, words, "sudo jobcache check")
    elif "jobs" in private:
        yield Finding("slurm", "PrivateData", OK, "PrivateData=jobs: the sweep asks as root, who sees them all")


def _containers(facts: Facts, wiring: Wiring) -> Iterator[Finding]:
    hidden = [
        (place.template, above) for place in facts.scratch for above in wiring.tmpfs_dirs if is_below(place.template, above)
    ]
    for template, above in hidden:
        words = f"{template}: Slurm gives each job a {above} of its own, and the Epilog does not see into it"
        mend = f"path: /scratch/{{user}}/.cache/hf-datasets-{{job_id}}    # in {facts.compiled.config}: not below {above}"
        yield Finding("slurm", "job_container", PROBLEM, words, mend)
    if wiring.tmpfs_dirs and not hidden:
        yield Finding("slurm", "job_container", OK, f"private to each job: {', '.join(wiring.tmpfs_dirs)}; no cache is there")
    if wiring.pyxis:
        yield _pyxis(facts, wiring)


def _pyxis(facts: Facts, wiring: Wiring) -> Finding:
    """The TaskProlog runs inside the container: what is not mounted there does not exist, and Slurm cancels the task."""
    hooks = list(dict.fromkeys([facts.hooks, facts.compiled.lib]))
    scratch = [place.template.partition("{")[0].rpartition("/")[0] or "/" for place in facts.scratch]
    needed = list(dict.fromkeys([*hooks, *scratch]))
    missing = [path for path in needed if not any(is_below(path, mounted) for mounted in wiring.container_mounts)]
    if not missing:
        return Finding("slurm", "pyxis", OK, f"enroot mounts {', '.join(needed)} into every container")
    fails = facts.hooks in missing
    what = "every task in a container fails" if fails else "no task in a container gets its cache"
    words = f"pyxis is loaded ({wiring.pyxis}), and enroot mounts no {', '.join(missing)} into containers: {what}"
    lines = "".join(f"{path} {path} none x-create=dir,bind,{'ro,' if path in hooks else ''}nosuid,nodev\\n" for path in missing)
    mend = f"printf '{lines}' >>{wiring.enroot}/mounts.d/50-jobcache.fstab"
    return Finding("slurm", "pyxis", PROBLEM if fails else WARNING, words, mend)


def is_below(path: str, above: str) -> bool:
    """Whether `path` is `above` or lies in it, by their text."""
    return f"{path}/".startswith(above.rstrip("/") + "/")


# ------------------------------------------------------------------------------------------------------------ scratch


def _scratch(place: Scratch) -> Iterator[Finding]:
    if not place.user and place.error:
        words = f"{place.template}: who has a directory there is not told, so nobody tried it: {place.error}"
        literal = place.template.partition("{")[0].rpartition("/")[0] or "/"
        yield Finding("scratch", "answers", PROBLEM, words, f"timeout 5 stat -f {literal}")
        return
    if not place.user:
        words = f"{place.template}: no user has a directory there yet, so nobody tried it"
        yield Finding("scratch", "writable", PROBLEM, words, "jobcache check --user NAME    # of an ordinary user")
        return
    where = f"{place.parent or place.template} as {place.user}"
    if place.hung:
        words = f"{where}: did not answer while {place.hung}"
        yield Finding("scratch", "answers", PROBLEM, words, f"timeout 5 stat -f {place.above or place.parent or '/scratch'}")
        return
    if place.link:
        words = f"{where}: a symlink that is not root's is in the path, and is not followed: {place.error}"
        yield Finding("scratch", "link", PROBLEM, words, f"namei -l {place.parent}")
        return
    if place.error and place.above and place.above != place.parent:
        yield _cannot_be_made(place, where)
    elif place.error:
        yield Finding("scratch", "writable", PROBLEM, f"{where}: {place.error}", f"namei -l {place.above or place.parent}")
    elif place.above == place.parent:
        yield Finding("scratch", "writable", OK, f"{where}: written and deleted")
    else:
        yield Finding("scratch", "writable", OK, f"{where}: is not there yet; can be made in {place.above}")
    yield from _room(place)
    yield from _kind(place)
    if place.flock:
        yield _flock(place)
    yield from _across(place)
    if place.squashed is not None:
        words = "root is squashed, or closed out" if place.squashed else "root is not squashed"
        yield Finding("scratch", "root", OK, f"{place.above}: {words}; all is done as the user")


def _cannot_be_made(place: Scratch, where: str) -> Finding:
    """The user's own directory is the admin's to make; what stands above it is a mount, or a slip of the pen."""
    missing = f"{place.above.rstrip('/')}/{place.parent[len(place.above) :].lstrip('/').partition('/')[0]}"
    named = "/".join(place.template.split("/")[: missing.count("/") + 1])
    if "{user}" not in named and "{uid}" not in named:
        mend = f"ls -ld {missing}    # mount or make it, or correct `path` in jobcache.yaml"
    else:
        mend = f"install -d -m 700 -o {place.user} {missing}    # as each user's, or let users make it in {place.above}"
    return Finding("scratch", "writable", PROBLEM, f"{where}: {missing} is not there, and not to be made: {place.error}", mend)


def _room(place: Scratch) -> Iterator[Finding]:
    for name, total, free, unit in (
        ("space", place.total, place.free, "bytes"),
        ("inodes", place.inodes, place.inodes_free, "inodes"),
    ):
        if total <= 0:
            continue  # filesystems that make inodes as they go say 0
        percent = 100.0 * free / total
        level = PROBLEM if percent < _GONE else WARNING if percent < _SCARCE else OK
        mend = "" if level == OK else f"jobcache list --sort {'bytes' if name == 'space' else 'age'}"
        yield Finding("scratch", name, level, f"{place.above}: {percent:.1f} % of {total} {unit} free", mend)


def _kind(place: Scratch) -> Iterator[Finding]:
    if not place.fstype:
        return
    if place.fstype in _LOCAL and not place.local and not place.has_node:
        words = f"{place.above} is {place.fstype}, which each node has for itself, and is not in node_local"
        root = "/" + place.template.strip("/").partition("/")[0]
        yield Finding("scratch", "filesystem", WARNING, words, f"node_local: [{root}]    # in jobcache.yaml")
    elif place.fstype in _NETWORK and place.local:
        words = f"{place.above} is {place.fstype}, which nodes share, but is in node_local"
        yield Finding("scratch", "filesystem", WARNING, words, "node_local: []    # in jobcache.yaml")
    else:
        yield Finding("scratch", "filesystem", OK, f"{place.above} is {place.fstype}")
    blind = [option for option in place.options if option in ("localflock", "nolock", "local_lock=flock", "local_lock=all")]
    if blind:
        words = f"{place.above} is mounted with {blind[0]}: locks do not reach other nodes"
        yield Finding("scratch", "flock", WARNING, words, "scope: node    # in jobcache.yaml: a directory for each node of a job")


def _flock(place: Scratch) -> Finding:
    if place.flock == EXCLUDED:
        return Finding("scratch", "flock", OK, f"{place.above}: flock excludes between two processes of this node")
    words = (
        f"{place.above}: flock lets two processes have one lock at once" if place.flock == OBTAINED
        else f"{place.above}: flock does not work: {place.flock}"
    )  # fmt: skip
    return Finding("scratch", "flock", WARNING, words, "scope: task    # in jobcache.yaml: each task has a directory of its own")


def _across(place: Scratch) -> Iterator[Finding]:
    for node, result in sorted((place.across or {}).items()):
        if result == EXCLUDED:
            yield Finding(
                "scratch", "flock across nodes", OK, f"{place.above}: node {node} is kept out of a lock that another holds"
            )
        elif result == OBTAINED:
            words = f"{place.above}: node {node} gets a lock that another node holds"
            mend = "scope: node    # in jobcache.yaml: a directory for each node of a job"
            yield Finding("scratch", "flock across nodes", WARNING, words, mend)
        else:
            words = f"{place.above}: not found out for node {node}: {result}"
            yield Finding("scratch", "flock across nodes", WARNING, words, "srun -N2 --ntasks-per-node=1 jobcache check")


# ------------------------------------------------------------------------------------------------------- log and sweep


def _log(log: Log) -> Iterator[Finding]:
    if log.file is None:
        yield Finding("log", "file", OK if log.syslog else WARNING, "log.file is null: root's events go to syslog alone")
    elif log.error:
        above = log.file.rpartition("/")[0]
        yield Finding("log", "file", PROBLEM, f"{log.file}: {log.error}", f"install -d -m 750 {above}")
    elif log.insecure:
        yield Finding("log", "file", PROBLEM, f"{log.file}: {log.insecure}: its events can be forged", f"chmod go-w {log.file}")
    else:
        yield Finding("log", "file", OK, log.file)
    if log.syslog is None:
        words = "log.syslog is false: the TaskProlog, which runs as the user, has nowhere to say what it did"
        yield Finding("log", "syslog", WARNING, words, "log: {syslog: true}    # in jobcache.yaml")
    elif log.syslog_error:
        words = f"{log.syslog}: {log.syslog_error}: the TaskProlog's events are lost"
        yield Finding("log", "syslog", WARNING, words, "systemctl start systemd-journald.socket    # or rsyslog")
    else:
        yield Finding("log", "syslog", OK, log.syslog)
    if log.failures:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(log.failures.items()))
        mend = f"grep -a hook.failed {log.file} | tail"
        yield Finding("log", "hook failures", WARNING, f"in the last day: {counts}", mend)


def _schedule(schedule: Schedule, log: Optional[Log]) -> Iterator[Finding]:
    enable = "systemctl enable --now jobcache-sweep.timer"
    if schedule.systemd and schedule.timer in ("active", "enabled"):
        yield Finding("sweep", "schedule", OK, "jobcache-sweep.timer is active")
    elif schedule.cron and not schedule.cron_idle:
        yield Finding("sweep", "schedule", OK, "cron")
    else:
        why = f"; cron: {schedule.cron_idle}" if schedule.cron else ""
        what = f"jobcache-sweep.timer is {schedule.timer or 'not there'}" if schedule.systemd else "no systemd"
        mend = enable if schedule.systemd else schedule.cron_mend or "cp etc/cron.d/jobcache /etc/cron.d    # of slurm-jobcache"
        yield Finding("sweep", "schedule", WARNING, f"nothing starts the sweep on this host ({what}{why}); one host has to", mend)
    if log is None or log.file is None:
        return
    if log.last_sweep is None:
        words = f"no sweep is in {log.file}: it has not run on this host"
        yield Finding(
            "sweep", "last", OK if not log.error else WARNING, words, "" if not log.error else "jobcache sweep --dry-run"
        )
    elif log.last_sweep > _STALE_SWEEP:
        yield Finding("sweep", "last", WARNING, f"the last sweep ended {_hours(log.last_sweep)} ago", enable)
    elif log.sweep_error:
        words = f"the last sweep, {_hours(log.last_sweep)} ago, had trouble: {log.sweep_error}"
        yield Finding("sweep", "last", WARNING, words, "jobcache sweep --dry-run")
    else:
        yield Finding("sweep", "last", OK, f"the last sweep ended {_hours(log.last_sweep)} ago")


def _hours(ago: float) -> str:
    return f"{ago / 60:.0f} min" if ago < 7200 else f"{ago / 3600:.0f} h"
