"""Compile a configuration file into the settings that hooks and sweeps read."""

import hashlib
import json
import os
import sys
from typing import Any

import jobcache
from jobcache.config import configuration, former_templates, path_access, settings
from jobcache.config.errors import ApplyError
from jobcache.system import live_jobs


def compile_settings(config_file: str, lib: str, again: bool = False, forget: bool = True) -> settings.Settings:
    """Return the settings of `config_file`, with the former templates of the settings in `lib`.

    again: if the file leaves the cluster or slurm.conf open, use those of the settings in `lib`. Do not ask Slurm, and ignore
    SLURM_CONF, which is set in every job but in no cron job.
    forget: drop former templates by which no cache exists. With False the result shows whether `lib` is current: settings
    with more templates than necessary are not stale.
    Raise ConfigError for an invalid file, ApplyError with all problems on this host.
    """
    loaded = configuration.load(config_file)
    before = _load(lib)
    commands = loaded.tree["slurm"]
    commands["conf"] = commands["conf"] or (before.slurm_conf if again and before else os.environ.get("SLURM_CONF") or None)
    cluster, problems = _cluster(loaded, before if again else None)
    package = os.path.dirname(os.path.abspath(jobcache.__file__))
    problems += [problem for path in (sys.executable, package) for problem in path_access.unreachable(path)]
    for key, path in (("run_dir", loaded.tree["run_dir"]), ("log.file", os.path.dirname(loaded.tree["log"]["file"] or "/"))):
        problems += [f"{_place(loaded, key)}: {problem}" for problem in path_access.insecure(path)]
    if problems:
        raise ApplyError(problems)
    compiled = {
        "config": os.path.abspath(config_file),
        "cluster": cluster,
        "python": sys.executable,
        "package": package,
        "version": jobcache.__version__,
        "former": _former(loaded.tree, before, cluster, forget) if before else [],
    }
    text = json.dumps([loaded.tree, compiled], sort_keys=True)
    return settings.Settings(loaded.tree, {**compiled, "hash": hashlib.sha256(text.encode()).hexdigest()[:12]})


def _cluster(loaded: configuration.Config, before: "settings.Settings | None") -> "tuple[str, list[str]]":
    """Return (the cluster's name, problems): from the file, else from the settings `before`, else from Slurm."""
    name = loaded.tree["cluster"] or (before.cluster if before else None)
    if name is not None:
        return str(name), []
    try:
        return settings.slurm_client(loaded.tree).cluster_name(), []
    except live_jobs.Unknown as error:
        return "", [
            f"{_place(loaded, 'cluster')}: cannot get the cluster's name from Slurm: {error}; "
            "set `cluster:` to ClusterName of slurm.conf"
        ]


def _place(loaded: configuration.Config, key: str) -> str:
    """Return the place of a key for a message: FILE:LINE: KEY, or FILE: KEY for a default."""
    origin = loaded.origins[key]
    return f"{loaded.file if origin == 'default' else origin}: {key}"


def _load(lib: str) -> "settings.Settings | None":
    """Return the settings in `lib`, None if they are missing or cannot be used."""
    try:
        return settings.load(f"{lib}/{settings.FILE}")
    except settings.SettingsError:
        return None


def _former(tree: "dict[str, Any]", before: settings.Settings, cluster: str, forget: bool) -> "list[str]":
    """Return the former templates: those of the settings `before` that are not in use any more.

    With `forget`, drop those by which no cache exists. Templates that were in use until now stay: a task that still runs by
    the old policy can create a cache at any moment.
    """
    current = [tree["path"], *(rule["path"] for rule in tree["rules"] if "path" in rule)]
    former = [text for text in dict.fromkeys([*before.current, *before.former]) if text not in current]
    if not forget:
        return former
    needed = former_templates.still_needed([text for text in former if text not in before.current], cluster)
    return [text for text in former if text in before.current or text in needed]
