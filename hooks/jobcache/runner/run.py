"""A private cache for one command: `jobcache run`, for clusters without the hooks, and for machines without Slurm.

Made, leased, released and reaped by the same protocol as a job's, as the user who types it. In a job it is the job's
cache, which all of the job's commands share; each process holds a lease of its own there. Where there is no job, each
command has one to itself, under a name that no job's has, and a flock that it inherits shows that it is alive.
"""

import fnmatch
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from jobcache.cache import (
    cache_names,
    dirfd,
    event_line,
    job_record,
    lease_lock,
    node_leases,
    path_template,
    protocol,
    reasons,
    seeding,
    store_names,
    timestamps,
)
from jobcache.cache.fields import component, natural, number
from jobcache.config import configuration, errors, settings
from jobcache.runner import relay
from jobcache.store import store
from jobcache.system import as_user, live_jobs, reaper
from jobcache.system.tally import Tally

_PATIENCE = 5.0  # seconds for an earlier cache at our path to be gone
_MARKING = 1.0  # seconds to date the builds of the store that were used
_STRIDE = 0.2  # seconds of deletion between two looks for a signal
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Job:
    """The job that this process is a task of. run: how often it had been requeued."""

    cluster: str
    job_id: int
    run: int
    node: str


@dataclass(frozen=True)
class Wish:
    """What the configuration comes to here. why_not: why there is to be no cache, in words; "" where there is.

    exports: value by name, with `{cache}` in it. keep_max, keep_failed: seconds. syslog: a socket. cluster: as
    configured. store, site: templates of the stores to begin with. "" is none.
    """

    template: path_template.Template
    scope: str = "job"
    exports: "dict[str, str]" = field(default_factory=dict)
    keep_max: float = 0.0
    keep_failed: float = 0.0
    syslog: str = ""
    cluster: str = ""
    store: str = ""
    site: str = ""
    why_not: str = ""


def run(command: Sequence[str], config_file: Optional[str], path: Optional[str]) -> int:
    """Run the command with a private cache; return its exit status, 128+n where signal n killed it.

    Without a cache, where there is to be none or none can be made, we become the command. config_file None: the
    site's, if there is one. Raise config.ConfigError or layout.TemplateError for what the user gave and cannot serve.
    """
    env = dict(os.environ)
    try:
        tree = own_tree(config_file, path)
    except errors.ConfigError as error:
        if config_file:
            raise
        return _without(command, env, str(error.problems[0]))  # the site's: no fault of this user's
    job = job_of(env, tree["cluster"])
    ours = has_cache(env, job)
    if not ours:
        forget_another(env, tree["exports"])
    if env.get("JOBCACHE") == "off" or ours:
        return relay.replace(command, env)
    try:
        wish = wish_of(env, tree)
    except path_template.TemplateError as error:
        if path or config_file:
            raise
        return _without(command, env, f"no path can be made of HOME and XDG_CACHE_HOME: {error}")
    why_not = wish.why_not or ("nothing is ever deleted as root, so nothing is made" if os.geteuid() == 0 else "")
    if os.path.lexists(f"{settings.LIB}/{settings.OFF}"):
        why_not = f"{settings.LIB}/{settings.OFF} is there"
    if why_not:
        return _without(command, env, why_not)
    began = time.monotonic()
    held: "list[set[int]]" = []  # the signals that were blocked before we held them back
    try:
        claim = _claim(env, wish, job)
        cache = _scoped(claim.path, wish.scope, env, job)
        claim.below = cache[len(claim.path) + 1 :]
        stores = _store_words(env, wish, job)
        seeds = seeding.Seeds(stores, claim)
        if claim.seed:
            claim.seed = _held_back(claim.seed, held)
        made = protocol.enter(claim, began + _PATIENCE)
        parent_fd, name, fd = _opened(claim.path)
        lock = lease_lock.hold(fd, claim.node)
    except (reasons.Refused, path_template.BadName, OSError) as error:
        if held:
            relay.let_through(held[0])
        return _without(command, env, _words(error))
    if made != "joined":
        _say(wish, job, claim, "cache.created", made, "", began)
    elif claim.below:
        seeds.seed_directory(claim.path)
    seeds.report(wish.syslog, _facts(job, claim))
    exports = {name: value.replace("{cache}", cache) for name, value in wish.exports.items()}
    number = relay.came() if held else 0
    if number:
        os.close(lock)
        _end(parent_fd, name, fd, claim, wish, job, "", 0)
        return 128 + number
    env_with = {**env, **exports, "JOBCACHE_DIR": claim.path}
    try:
        status = relay.run(command, env_with, lambda: lease_lock.beat(lock), lease_lock.BEAT, held[0] if held else None)
    except relay.NoProcess as error:
        os.close(lock)
        _end(parent_fd, name, fd, claim, wish, job, "", 0)
        return _without(command, env, str(error))
    os.close(lock)
    _end(parent_fd, name, fd, claim, wish, job, stores["store"], status)
    return status


def _words(error: Exception) -> str:
    """Return what the system says, and of which file, as a person reads it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _held_back(seed: "Callable[[int], None]", held: "list[set[int]]") -> "Callable[[int], None]":
    """Return what seeds once signals are held back: it takes a second, and what it has begun would stay."""

    def seed_to_the_end(cache_fd: int) -> None:
        held.append(relay.hold_back())
        seed(cache_fd)

    return seed_to_the_end


def _without(command: Sequence[str], env: "dict[str, str]", why: str) -> int:
    print(f"jobcache run: no private cache: {why}", file=sys.stderr, flush=True)
    return relay.replace(command, env)


# --------------------------------------------------------------------------------------------- what is asked for, where


def own_tree(config_file: Optional[str], path: Optional[str]) -> "dict[str, Any]":
    """Return the configuration that holds for a user's own command: of a file, the site's, or the defaults.

    path: replaces the file's. Without either, caches lie below XDG_CACHE_HOME, ~/.cache by default. Raise
    config.ConfigError.
    """
    file = config_file or (settings.CONFIG if os.path.exists(settings.CONFIG) else None)
    tree = configuration.load(file).tree if file else configuration.defaults()
    if path or not file:
        tree = {**tree, "rules": [{k: v for k, v in rule.items() if k != "path"} for rule in tree["rules"]]}
        tree["path"] = path or default_path()
    if not file:
        tree["log"] = {**tree["log"], "file": None, "syslog": False}
        tree["min_uid"] = 1
    return tree


def default_path() -> str:
    """Return the template of a user's own caches, in a job as elsewhere: so that a later sweep finds them."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # as the XDG specification has it
        base = os.path.expanduser("~/.cache")
    if base.startswith("/"):
        base = "".join(f"/{part}" for part in base.split("/") if part not in ("", "."))
    return f"{base}/jobcache/{{uid}}/hf-datasets-{{job_id}}"


def own_settings(config_file: Optional[str], path: Optional[str]) -> settings.Settings:
    """Return the same as compiled settings, for `sweep` and `list` of one's own caches. Raise config.ConfigError.

    Without Slurm there is no cluster of that name, and no job's cache is judged.
    """
    tree = own_tree(config_file, path)
    ask = tree["slurm"]
    ask["conf"] = ask["conf"] or os.environ.get("SLURM_CONF")  # of whoever has no configuration that was compiled
    try:
        cluster = tree["cluster"] or settings.slurm_client(tree).cluster_name()
    except live_jobs.Unknown:
        cluster = cache_names.host_cluster("")
    compiled: dict[str, Any] = {
        "config": config_file or "",
        "cluster": cluster,
        "python": sys.executable,
        "package": "",
        "hash": "",
        "former": [],
    }
    return settings.Settings(tree, compiled)


def job_of(env: "dict[str, str]", cluster: Optional[str]) -> Optional[Job]:
    """Return the job that this process is a task of, None where it is none's.

    A shell that salloc starts on a login node has a job's id, but is no task: it can outlive the job.
    """
    cluster = cluster or env.get("SLURM_CLUSTER_NAME", "")
    job_id, node = number(env.get("SLURM_JOB_ID", "")), env.get("SLURMD_NODENAME", "")
    if job_id is None or not component(node) or node.startswith(".") or not component(cluster) or cluster.startswith("@"):
        return None
    if " " in cluster or env.get("SLURM_JOB_UID", str(os.getuid())) != str(os.getuid()):
        return None
    return Job(cluster, job_id, natural(env.get("SLURM_RESTART_COUNT", "0")) or 0, node)


def has_cache(env: "dict[str, str]", job: Optional[Job]) -> bool:
    """Whether we have a private cache already: from the hooks, or from a `jobcache run` that started us."""
    path = env.get("JOBCACHE_DIR", "")
    try:
        fd = dirfd.open_directory(path) if path.startswith("/") else -1
    except OSError:
        return False
    if fd < 0:
        return False
    try:
        identity = job_record.identity(fd)
        if identity is None or identity[3] != os.getuid():
            return False
        if identity[0].startswith("@"):
            return lease_lock.state(fd) == lease_lock.ALIVE
        return job is not None and identity[:3] == (job.cluster, job.job_id, job.run)
    except OSError:
        return False
    finally:
        os.close(fd)


def forget_another(env: "dict[str, str]", names: Iterable[str]) -> None:
    """Take out of `env` what `sbatch` or a shell handed on from another's private cache, which goes with that."""
    another = env.pop("JOBCACHE_DIR", None)
    for name in names:
        if another and (env.get(name, "") + "/").startswith(another + "/"):
            del env[name]


def wish_of(env: "dict[str, str]", tree: "dict[str, Any]") -> Wish:
    """Return what the configuration, its first rule that matches, and the user's variables come to. A pure function."""
    facts = {key: env.get(f"SLURM_JOB_{key.upper()}", "") for key in ("partition", "account", "qos", "user")}
    rule: dict[str, Any] = next((rule for rule in tree["rules"] if _matches(rule["match"], facts)), {})
    chosen = {key: rule.get(key, tree[key]) for key in ("path", "scope", "exports", "offline")}
    asked = env.get("JOBCACHE_SCOPE", "")
    why_not = "a rule of the site's" if rule.get("cache") == "off" else ""
    offline = any(env.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    if offline and chosen["offline"] == "skip":
        why_not = (
            "offline, the datasets that are in the shared one already are needed (`offline: isolate` makes one all the same)"
        )
    syslog = tree["log"]["syslog"]
    return Wish(
        template=path_template.Template(str(chosen["path"])),
        scope=asked if asked in ("job", "node", "task") else str(chosen["scope"]),
        exports=dict(chosen["exports"]),
        keep_max=tree["keep_max"],
        keep_failed=tree["keep_failed"],
        cluster=tree["cluster"] or "",
        syslog="/dev/log" if syslog is True else syslog or "",
        store=tree["store"]["user"] or "",
        site=tree["store"]["site"] or "",
        why_not=why_not,
    )


def _matches(match: "dict[str, list[str]]", facts: "dict[str, str]") -> bool:
    return all(any(fnmatch.fnmatchcase(facts[key], one) for one in patterns) for key, patterns in match.items())


def _opened(path: str) -> "tuple[int, str, int]":
    """Return a directory open at its parent, its name there, and itself open. Raise OSError."""
    parent, _, name = path.rpartition("/")
    parent_fd = dirfd.open_directory(parent)
    return parent_fd, name, os.open(name, dirfd.DIRECTORY, dir_fd=parent_fd)


def _claim(env: "dict[str, str]", wish: Wish, job: Optional[Job]) -> protocol.Claim:
    """Return what we ask for. Its node is a lease of this process's own: several of a node share a job's cache.

    Raise layout.BadName, as where {cluster} is in the path, and there is neither a job nor `cluster` in the configuration.
    """
    uid, pid = os.getuid(), os.getpid()
    node = job.node if job else lease_lock.host()
    place = wish.template.bind(user=as_user.user_name(uid), uid=uid, cluster=job.cluster if job else wish.cluster, node=node)
    lease = cache_names.format_lease(node, dirfd.nonce())
    if job:
        claim = protocol.Claim(place.cache(job.job_id, job.run), job.cluster, job.job_id, job.run, uid, lease)
    else:
        letters = "".join(chr(ord("a") + byte % 26) for byte in os.urandom(cache_names.RUN_NONCE))
        claim = protocol.Claim(place.run_cache(pid, letters), cache_names.host_cluster(node), pid, 0, uid, lease)
    claim.keep = env.get("JOBCACHE") == "keep"
    claim.record = {"user": event_line.quote(as_user.user_name(uid)), "node": event_line.quote(node)}
    claim.record.update(pid=str(pid), started=str(lease_lock.started(pid) or 0))
    return claim


def _store_words(env: "dict[str, str]", wish: Wish, job: Optional[Job]) -> "dict[str, str]":
    """Return what the TaskProlog would tell prepare.py of the stores. Raise layout.BadName."""
    uid = os.getuid()
    who: dict[str, Any] = {"user": as_user.user_name(uid), "uid": uid, "cluster": job.cluster if job else wish.cluster}
    texts = {"store": wish.store, "site": wish.site}
    paths = {name: store_names.store_path(text, **who) if text else "" for name, text in texts.items()}
    return {**paths, "label": env.get("JOBCACHE_STORE", ""), "deadline": str(_PATIENCE)}


def _scoped(cache: str, scope: str, env: "dict[str, str]", job: Optional[Job]) -> str:
    """Return the directory for this process, inside the cache; the same as the TaskProlog's. Without a job there is one."""
    if job is None or scope == "job":
        return cache
    if scope == "node":
        return f"{cache}/node-{job.node}"
    step, rank = natural(env.get("SLURM_STEP_ID", "")), natural(env.get("SLURM_PROCID", ""))
    return f"{cache}/batch" if step is None or rank is None or step > 2**32 - 10 else f"{cache}/step-{step}-task-{rank}"


# ------------------------------------------------------------------------------------------------------------- its end


def _end(
    parent_fd: int, name: str, fd: int, claim: protocol.Claim, wish: Wish, job: Optional[Job], store_path: str, status: int
) -> None:
    """Give up our lease, and reap the cache where it was the last one. What is left of it, a sweep finds.

    store_path: of the user's own store, "" for none.
    """
    began = time.monotonic()
    try:
        outcome = node_leases.release(fd, claim.node, node_leases.now()[0], float("inf"))
        if outcome != "last":
            return
        if store_path:
            store.mark_used(fd, store_path, began + _MARKING)
        keep = ("user_keep", wish.keep_max) if job_record.is_kept(fd) else ("job_failed", wish.keep_failed if status else 0.0)
        if keep[1]:
            until = timestamps.second(time.time() + keep[1])
            job_record.write_record(fd, {**job_record.read_record(fd), "keep_until": until})
            _say(wish, job, claim, "cache.kept", "kept", keep[0], began, keep_until=event_line.quote(until))
            return
        tally = _reap(parent_fd, name, fd, claim)
        facts = {"bytes": str(tally.bytes), "files": str(tally.files)}
        _say(
            wish, job, claim, "cache.reaped", "reaped" if tally.done else "trashed", "left" if tally.left else "", began, **facts
        )
        if tally.error:
            print(f"jobcache run: not all of {claim.path} could be deleted: {tally.error}", file=sys.stderr)
    except (OSError, reaper.Kept) as error:
        print(f"jobcache run: {claim.path} is left to `jobcache sweep`: {error}", file=sys.stderr)


def _reap(parent_fd: int, name: str, fd: int, claim: protocol.Claim) -> Tally:
    """Delete to the end; whoever has no time for that sends one more signal."""
    trash = reaper.retire(parent_fd, name, fd, claim.uid, claim.job_id)
    total = Tally()
    while True:
        tally = reaper.delete(parent_fd, trash, fd, time.monotonic() + _STRIDE)
        total.bytes, total.files = total.bytes + tally.bytes, total.files + tally.files
        total.left, total.error, total.done = tally.left, tally.error, tally.done
        if tally.done or tally.left or relay.told(*relay.PASSED):
            return total


def _say(
    wish: Wish, job: Optional[Job], claim: protocol.Claim, event: str, outcome: str, reason: str, began: float, **more: str
) -> None:
    """Send one event to the system's log, where the site wants that. more: JSON text by key."""
    event_line.Log(wish.syslog, _facts(job, claim), began).emit(event, "info", outcome, reason, **more)


def _facts(job: Optional[Job], claim: protocol.Claim) -> "dict[str, str]":
    """Whose cache this is, as an event has it: JSON text by key."""
    facts = {
        "uid": str(claim.uid),
        "path": event_line.quote(claim.path),
        "node": event_line.quote(cache_names.lease_node(claim.node)),
    }
    if job:
        facts.update(cluster=event_line.quote(job.cluster), job_id=str(job.job_id), run=str(job.run))
    return facts
