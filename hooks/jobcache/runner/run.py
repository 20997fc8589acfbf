"""`jobcache run`: one command with a private cache, on clusters without the hooks and on machines without Slurm.

Without a cache the command runs all the same: this process becomes the command.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, Optional

from jobcache.cache import lease_lock, path_template, reasons
from jobcache.config import configuration, errors, export_sets, settings
from jobcache.runner import inherited_cache, own_config, relay, request
from jobcache.runner.private_cache import PrivateCache


def run(command: Sequence[str], config_file: Optional[str], path: Optional[str]) -> int:
    """Run the command, with a private cache if possible. Return its exit status, 128+n if signal n killed it.

    config_file: None for the site's configuration, if it exists. path: the template of the cache, None for the configured
    one. Raise errors.ConfigError or path_template.TemplateError for an argument that cannot be used.
    """
    env = dict(os.environ)
    problem = ""
    try:
        tree = own_config.own_tree(config_file, path)
    except errors.ConfigError as error:
        if config_file:
            raise
        tree, problem = configuration.defaults(), str(error.problems[0])  # the site's mistake, not this user's
    job = request.job_of(env, tree["cluster"])
    inherited = inherited_cache.find(env, job)
    if inherited:
        status = _run_with_inherited_cache(command, env, tree, job, inherited)
        if status is not None:
            return status
    if problem:
        return _run_without_cache(command, env, problem)
    env = request.without_stale_variables(env, export_sets.merged(tree, tree))
    if env.get("JOBCACHE") == "off":
        return relay.replace(command, env)
    try:
        wanted = request.request_of(env, tree)
    except path_template.TemplateError as error:
        if path or config_file:
            raise
        return _run_without_cache(command, env, f"HOME and XDG_CACHE_HOME give no usable path: {error}")
    refusal = _refusal(wanted)
    if refusal:
        return _run_without_cache(command, env, refusal)
    deferred = relay.DeferredSignals()
    try:
        cache = PrivateCache(env, wanted, job, before_seeding=deferred.block)
        cache.enter()
    except (reasons.Refused, path_template.BadName, OSError) as error:
        deferred.restore()
        return _run_without_cache(command, env, _describe(error))
    return _run_in(cache, command, env, deferred)


def _refusal(wanted: request.Request) -> str:
    """Return why the command gets no cache, "" if it gets one."""
    switch = f"{settings.LIB}/{settings.OFF}"
    if os.path.lexists(switch):
        return f"{switch} exists"
    is_root = os.geteuid() == 0
    return wanted.refusal or ("jobcache deletes nothing as root, so root gets no cache" if is_root else "")


def _run_with_inherited_cache(
    command: Sequence[str],
    env: "dict[str, str]",
    tree: "dict[str, Any]",
    job: Optional[request.Job],
    inherited: inherited_cache.InheritedCache,
) -> Optional[int]:
    """Run the command with a lease of its own in the cache that it has, and return its exit status.

    Return None if that cache cannot be joined: it is being deleted, for example. The variables of the command do not change.
    """
    if inherited.of_hooks:
        return relay.replace(command, env)
    deferred = relay.DeferredSignals()
    try:
        cache = PrivateCache(env, request.request_of(env, tree), job, deferred.block, inherited)
        cache.enter()
    except (reasons.Refused, path_template.TemplateError, path_template.BadName, OSError):
        return None
    return _run_in(cache, command, env, deferred)


def _run_in(cache: PrivateCache, command: Sequence[str], env: "dict[str, str]", deferred: relay.DeferredSignals) -> int:
    """Run the command with a cache that was entered, leave the cache, and return the exit status."""
    cache.announce()
    number = relay.take_pending() if deferred.is_blocking else 0
    if number:
        cache.leave(0, ran=False)
        return 128 + number
    try:
        status = relay.run(command, {**env, **cache.exports}, cache.beat, lease_lock.BEAT, deferred.before)
    except relay.NoProcess as error:
        if cache.is_inherited:
            return relay.replace(command, env)  # with the lease and its lock: the command works in the cache all the same
        cache.leave(0, ran=False)
        return _run_without_cache(command, env, str(error))
    cache.leave(status)
    return status


def _run_without_cache(command: Sequence[str], env: "dict[str, str]", reason: str) -> int:
    """Print the reason and become the command."""
    print(f"jobcache run: no private cache: {reason}", file=sys.stderr, flush=True)
    return relay.replace(command, env)


def _describe(error: Exception) -> str:
    """Return an error as a message: the file's name and the system's words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
