"""The cache that a command requests: pure functions of the configuration and of the command's environment."""

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from jobcache.cache import path_template
from jobcache.cache.fields import component, natural, number
from jobcache.config import apptainer, export_sets

_TRUE = ("1", "true", "yes", "on")
_MAX_STEP = 2**32 - 10  # Slurm uses higher ids for the batch script and for interactive, external and pending steps


@dataclass(frozen=True)
class Job:
    """The job of which this process is a task. run: the number of requeues before this run."""

    cluster: str
    job_id: int
    run: int
    node: str


@dataclass(frozen=True)
class Request:
    """The cache that a command gets.

    refusal: why it gets none, in words; "" if it gets one. exports: value by name, with `{cache}` in it. keep_max,
    keep_failed: seconds. syslog: path of a socket. cluster: as configured. user_store, site_store: templates of the stores
    whose builds the cache begins with. An empty string means that the site has none. inherit: the most builds of the
    command's usual cache with which the new one begins; 0: none. binds: containers of Apptainer mount the cache.
    history: write the user's own history. publish: the setting `store.publish`. store_max_size: bytes. publish_seconds: the time
    for publishing at the end.
    """

    template: path_template.Template
    scope: str = "job"
    exports: "dict[str, str]" = field(default_factory=dict)
    keep_max: float = 0.0
    keep_failed: float = 0.0
    syslog: str = ""
    cluster: str = ""
    user_store: str = ""
    site_store: str = ""
    inherit: int = 0
    binds: bool = False
    refusal: str = ""
    history: bool = False
    publish: str = "label"
    store_max_size: float = float("inf")
    publish_seconds: float = 0.0


def job_of(env: "dict[str, str]", cluster: Optional[str]) -> Optional[Job]:
    """Return the job of which this process is a task, None if it is not a task.

    A shell that salloc starts on a login node has a job's id but is not a task: it can outlive the job.
    """
    cluster = cluster or env.get("SLURM_CLUSTER_NAME", "")
    job_id, node = number(env.get("SLURM_JOB_ID", "")), env.get("SLURMD_NODENAME", "")
    if job_id is None or not component(node) or node.startswith(".") or not component(cluster) or cluster.startswith("@"):
        return None
    if " " in cluster or env.get("SLURM_JOB_UID", str(os.getuid())) != str(os.getuid()):
        return None
    return Job(cluster, job_id, natural(env.get("SLURM_RESTART_COUNT", "0")) or 0, node)


def without_stale_variables(env: "dict[str, str]", exports: Iterable[str]) -> "dict[str, str]":
    """Return `env` without the variables of another private cache, which `sbatch` or a shell has passed on.

    exports: the names that jobcache sets. That cache will be deleted with its own job.
    """
    cleaned = dict(env)
    stale = cleaned.pop("JOBCACHE_DIR", None)
    for name in exports:
        if stale and (cleaned.get(name, "") + "/").startswith(stale + "/"):
            del cleaned[name]
    return cleaned


def request_of(env: "dict[str, str]", tree: "dict[str, Any]") -> Request:
    """Return the request that follows from the configuration, its first matching rule and the user's variables.

    Raise path_template.TemplateError.
    """
    facts = {key: env.get(f"SLURM_JOB_{key.upper()}", "") for key in ("partition", "account", "qos", "user")}
    rule: dict[str, Any] = next((rule for rule in tree["rules"] if _matches(rule["match"], facts)), {})
    chosen = {key: rule.get(key, tree[key]) for key in ("path", "scope", "offline", "inherit")}
    chosen["exports"] = export_sets.merged(rule, tree)
    inherits = chosen["inherit"] == "on" and env.get("JOBCACHE_INHERIT") != "off"
    scope = env.get("JOBCACHE_SCOPE", "")
    syslog = tree["log"]["syslog"]
    template = path_template.Template(str(chosen["path"]))
    return Request(
        template=template,
        scope=scope if scope in ("job", "node", "task") else str(chosen["scope"]),
        exports=dict(chosen["exports"]),
        keep_max=tree["keep_max"],
        keep_failed=tree["keep_failed"],
        cluster=tree["cluster"] or "",
        history=tree["history"] == "on" and not template.job_directory,  # the site deletes it with the job
        syslog="/dev/log" if syslog is True else syslog or "",
        user_store=tree["store"]["user"] or "",
        site_store=tree["store"]["site"] or "",
        publish=tree["store"]["publish"],
        store_max_size=tree["store"]["max_size"],
        publish_seconds=tree["epilog"]["budget"] / 2,
        inherit=tree["inherit_max_builds"] if inherits and "HF_DATASETS_CACHE" in chosen["exports"] else 0,
        binds=(apptainer.setting(rule) or apptainer.setting(tree)) == "bind",
        refusal=_refusal(env, rule, "skip" if chosen["offline"] == "inherit" and not inherits else chosen["offline"]),
    )


def _matches(match: "dict[str, list[str]]", facts: "dict[str, str]") -> bool:
    return all(any(fnmatch.fnmatchcase(facts[key], pattern) for pattern in patterns) for key, patterns in match.items())


def _refusal(env: "dict[str, str]", rule: "dict[str, Any]", offline: str) -> str:
    """Return why the command gets no cache, "" if it gets one. offline: the configured treatment of offline commands."""
    is_offline = any(env.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    if is_offline and offline == "skip":
        return (
            "the command is offline and needs the datasets in the shared cache (the setting `offline: isolate` creates a "
            "private cache for it)"
        )
    return "a rule of the configuration has `cache: off`" if rule.get("cache") == "off" else ""


def scope_directory(scope: str, env: "dict[str, str]", job: Optional[Job]) -> str:
    """Return the directory in the cache for this process, "" for the cache itself. The TaskProlog uses the same names."""
    if job is None or scope == "job":
        return ""
    if scope == "node":
        return f"node-{job.node}"
    step, rank = natural(env.get("SLURM_STEP_ID", "")), natural(env.get("SLURM_PROCID", ""))
    return f"step-{step}-task-{rank}" if is_numbered_step(step) and rank is not None else "batch"


def is_numbered_step(step: Optional[int]) -> bool:
    """Return whether a step was started by srun. The batch script and interactive steps have ids that Slurm reserves."""
    return step is not None and step <= _MAX_STEP
