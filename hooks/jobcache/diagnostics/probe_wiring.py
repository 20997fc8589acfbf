"""Gather facts about the configuration of Slurm: the scripts that it runs, and the containers that it starts."""

import glob
import os
import pwd
from collections.abc import Mapping
from dataclasses import replace

from jobcache.config.settings import Settings, slurm_client
from jobcache.diagnostics import hook_scripts, probe_containers, probing_child
from jobcache.diagnostics.check_facts import Wiring
from jobcache.diagnostics.slurm_conf import is_pattern, parse_version, read_conf, values
from jobcache.system import live_jobs
from jobcache.system.stuck_processes import Register

_PATIENCE = 10.0  # seconds for a user's access to the TaskProlog


def wiring(site: Settings, hooks: str) -> Wiring:
    """Return the facts. hooks: the directory of jobcache's hooks."""
    try:
        running = slurm_client(site.tree).config()
    except live_jobs.Unknown as error:
        return Wiring(error=str(error))
    conf = running.get("SLURM_CONF", "")
    conf_dir = _local_conf_dir(conf, running)
    # Slurm takes relative paths from the directory of slurm.conf.
    task_prologs = [os.path.join(conf_dir, path) for path in values(running, "TaskProlog")]
    epilogs, unmatched = _scripts(values(running, "Epilog"), conf_dir)
    prologs, _ = _scripts(values(running, "Prolog"), conf_dir)
    enroot = os.environ.get("ENROOT_SYSCONF_PATH", "/etc/enroot")
    chain = site.task_prolog_chain
    plugstack = next(iter(values(running, "PlugStackConfig")), "")
    return Wiring(
        conf=conf,
        running=running,
        file=read_conf(conf, parse_version(running.get("SLURM_VERSION", ""))),
        task_prologs=tuple(hook_scripts.read_script(path, "task-prolog", hooks) for path in task_prologs),
        epilogs=tuple(hook_scripts.read_script(path, "epilog", hooks) for path in epilogs),
        epilog_pattern=unmatched,
        hooks_in_prolog=tuple((path, hook) for path in prologs if (hook := hook_scripts.hook_at(path))),
        chain=hook_scripts.read_script(chain, "task-prolog", hooks) if chain else None,
        tmpfs_dirs=probe_containers.tmpfs_dirs(running, conf_dir),
        pyxis=probe_containers.pyxis_line(plugstack) or probe_containers.pyxis_line(f"{conf_dir}/plugstack.conf"),
        container_mounts=tuple(probe_containers.enroot_mounts(enroot)),
        enroot=enroot,
        apptainer=tuple(probe_containers.apptainers()),
    )


def with_reach_of(slurm: Wiring, tester: pwd.struct_passwd, site: Settings) -> Wiring:
    """Return the facts with `unreachable` of each TaskProlog, tried as an ordinary user: root can reach everything."""
    hooks = [script for script in slurm.task_prologs if script.kind in ("hook", "chained")]
    place = Register(site.run_dir).place(tester.pw_uid, hooks[0].path if hooks else "/", "hooks")
    found = probing_child.run(hook_scripts.Access(hooks), tester, _PATIENCE, place)
    unreachable = {path: f"{tester.pw_name} {why}" for path, why in found.get("unreachable", {}).items()}
    scripts = (replace(script, unreachable=unreachable.get(script.path, "")) for script in slurm.task_prologs)
    return replace(slurm, task_prologs=tuple(scripts))


def _local_conf_dir(conf: str, running: Mapping[str, str]) -> str:
    """Return the directory of slurm.conf and its companions on this node. A configless node gets them from the controller."""
    spool = running.get("SlurmdSpoolDir", "")
    places = [os.path.dirname(conf), "/run/slurm/conf", f"{spool}/conf-cache"]
    return next((place for place in places if os.path.exists(f"{place}/slurm.conf")), places[0])


def _scripts(patterns: list[str], conf_dir: str) -> tuple[list[str], str]:
    """Return the files that Slurm runs for the values of Epilog or Prolog, and the first pattern that matches none, or ""."""
    found: list[str] = []
    unmatched = ""
    for pattern in (os.path.join(conf_dir, value) for value in patterns):
        paths = _matches(pattern) if is_pattern(pattern) else [pattern]
        found.extend(paths)
        unmatched = unmatched or ("" if paths else pattern)
    return found, unmatched


def _matches(pattern: str) -> list[str]:
    """Return the files in the order in which Slurm runs them: last name first. Return the pattern if its directory is closed."""
    try:
        os.listdir(os.path.dirname(pattern))
    except PermissionError:
        return [pattern]
    except OSError:
        pass
    return sorted(glob.glob(pattern), reverse=True)
