"""Gather facts about the configuration, the compiled settings and the Python of the hooks."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Optional

import jobcache
from jobcache.config import apply, apptainer, compilation, errors, export_sets, path_access
from jobcache.config.settings import FILE, LIB, OFF, POLICY, Settings, SettingsError
from jobcache.config.settings import load as load_settings
from jobcache.diagnostics.check_facts import Compiled, Interpreter
from jobcache.diagnostics.file_safety import change_by_others

_PYTHON_START = 20.0  # seconds for one start of Python
# Options of each hook's Python, and a statement that imports the modules of the hook.
_IMPORTS = {
    "task-prolog": (("-I", "-S"), "from jobcache import prepare"),
    "epilog": (("-I", "-S"), "from jobcache import epilog"),
}


def compiled(config_file: str, lib: str) -> tuple[Compiled, Optional[Settings]]:
    """Return the facts, and the settings in force. Without compiled settings, those of the configuration; None if it is invalid.

    Settings that another user can change are not loaded, so no program that they name runs.
    """
    facts = Compiled(
        config_file,
        lib,
        installed_version=jobcache.__version__,
        off=os.path.lexists(f"{lib}/{OFF}"),
        command=apply.command_line(config_file, lib if lib != LIB else None),
    )
    site = None
    try:
        site = load_settings(f"{lib}/{FILE}")
    except SettingsError as error:
        facts = replace(facts, settings_error=str(error))
    if site is not None:
        version = str(site.compiled.get("version", ""))
        harmful = tuple(export_sets.warnings(site.tree))
        facts = replace(facts, version=version, mode=site.tree["mode"], cluster=site.cluster, harmful_exports=harmful)
        facts = replace(facts, apptainer=apptainer.setting(site.base), site_store=site.store_site or "")
    try:
        wanted = compilation.compile_settings(config_file, lib, again=True, forget=False)
        stale = apply.stale(apply.wanted(wanted, lib, with_hooks=os.path.exists(f"{lib}/task-prolog")), lib)
        facts = replace(facts, stale=tuple(stale))
        site = site or wanted
    except (errors.ConfigError, errors.ApplyError) as error:
        facts = replace(facts, problems=tuple(map(str, error.problems)))
    files = (config_file, f"{lib}/{FILE}", f"{lib}/{POLICY}")
    insecure = [*path_access.insecure(lib), *(f"{file} {why}" for file in files if (why := change_by_others(file)))]
    return replace(facts, insecure=tuple(insecure)), site


def shipped_hooks() -> str:
    """Return the directory of the installed package's hooks."""
    try:
        return apply.hooks_path()
    except errors.ApplyError:
        return "/usr/libexec/jobcache"


def interpreters(site: Settings, tester: pwd.struct_passwd) -> Iterator[Interpreter]:
    """Start the Python of each hook with an empty environment, the TaskProlog's as `tester`. Yield the results."""
    above = os.path.dirname(site.package)
    for hook, (options, imports) in _IMPORTS.items():
        as_user = hook == "task-prolog" and os.geteuid() == 0 != tester.pw_uid
        code = f"import sys; sys.path.append({above!r}); {imports}; print('%d.%d.%d' % sys.version_info[:3])"
        extra: dict[str, Any] = {"user": tester.pw_uid, "group": tester.pw_gid, "extra_groups": []} if as_user else {}
        name = tester.pw_name if as_user else pwd.getpwuid(os.geteuid()).pw_name
        fact = Interpreter(site.python, hook, name)
        try:
            done = subprocess.run(
                [site.python, *options, "-c", code], env={}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
                text=True, errors="replace", timeout=_PYTHON_START, check=False, **extra,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            yield replace(fact, error=f"it did not answer within {_PYTHON_START:g} s")
            continue
        except OSError as error:
            yield replace(fact, error=error.strerror or str(error))
            continue
        if done.returncode == 0:
            yield replace(fact, version=done.stdout.strip())
        else:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            yield replace(fact, error=lines[-1])
