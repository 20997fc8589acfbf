"""The configuration of a user's own commands: a file, the site's configuration, or the defaults."""

import os
import sys
from typing import Any, Optional

from jobcache.cache import cache_names
from jobcache.config import configuration, settings
from jobcache.runner import own_links
from jobcache.system import live_jobs


def own_tree(config_file: Optional[str], path: Optional[str]) -> "dict[str, Any]":
    """Return the configuration for a user's own command: of the file, of the site, or the defaults.

    config_file: None for the site's configuration, if it exists; "" for the defaults alone.
    path: replaces the template in the configuration; symlinks of this user in it are resolved. Without a path and without a
    configuration, caches lie below XDG_CACHE_HOME, by default ~/.cache. Raise errors.ConfigError.
    """
    file = settings.CONFIG if config_file is None and os.path.exists(settings.CONFIG) else config_file
    tree = configuration.load(file).tree if file else configuration.defaults()
    if path or not file:
        tree = {**tree, "rules": [{k: v for k, v in rule.items() if k != "path"} for rule in tree["rules"]]}
        tree["path"] = own_links.resolved(path) if path else default_path()
    if not file:
        tree["log"] = {**tree["log"], "file": None, "syslog": False}
        tree["min_uid"] = 1
    return tree


def default_path() -> str:
    """Return the template of a user's own caches. It is the same in jobs and elsewhere, so that a later sweep finds them."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # the XDG specification ignores relative paths
        base = os.path.expanduser("~/.cache")
    if base.startswith("/"):
        base = "".join(f"/{part}" for part in base.split("/") if part not in ("", "."))
    return own_links.resolved(f"{base}/jobcache/{{uid}}/hf-datasets-{{job_id}}")


def own_settings(config_file: Optional[str], path: Optional[str]) -> settings.Settings:
    """Return the configuration of `own_tree` as compiled settings, for `sweep` and `list`. Raise errors.ConfigError.

    If Slurm does not answer, the cluster gets a name that no cluster has, so that a sweep judges no cache of a job.
    """
    tree = own_tree(config_file, path)
    ask = tree["slurm"]
    ask["conf"] = ask["conf"] or os.environ.get("SLURM_CONF")  # of a user without a compiled configuration
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
