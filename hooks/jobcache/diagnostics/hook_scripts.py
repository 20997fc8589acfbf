"""The scripts that Slurm runs as TaskProlog and Epilog: which of them are jobcache's hooks, or run these."""

import itertools
import os
import re
from collections.abc import Iterable
from typing import Any, Callable

from jobcache.config import apply, errors
from jobcache.config.settings import POLICY
from jobcache.diagnostics.check_facts import Script
from jobcache.diagnostics.file_safety import change_by_others
from jobcache.system import files

_MOST_ENTRIES = 100  # entries of a directory of scripts
_MOST_SCRIPT = 1 << 16  # bytes
_MOST_HEAD = 1 << 10  # bytes that hold the first comment of a hook
_HOOK = re.compile(r"^# (TaskProlog|Epilog) of slurm-jobcache", re.MULTILINE)
_FILE_NAMES = {"TaskProlog": "task-prolog", "Epilog": "epilog"}
_CLUSTER_OF = re.compile(r"^jc_cluster=(?:'([^'\n]*)'|(\S+))$", re.MULTILINE)
_LIB_OF = re.compile(r"^jc_lib=(?:'([^'\n]*)'|(\S+))$", re.MULTILINE)


def read_script(path: str, name: str, hooks: str) -> Script:
    """Return the facts about a file that Slurm runs as `name`, "task-prolog" or "epilog". hooks: directory of the hooks."""
    real = os.path.realpath(path)
    try:
        with open(files.open_regular(real), "rb") as file:
            text = file.read(_MOST_SCRIPT).decode("utf-8", "replace")
            mode = os.fstat(file.fileno()).st_mode
    except PermissionError:  # Slurm runs an Epilog as root; it cannot run a TaskProlog that this user cannot read
        return Script(path, "unreadable" if name == "epilog" else "missing", executable=False)
    except OSError:
        return Script(path, "missing", executable=False)
    executable = mode & 0o111 == 0o111 if name == "task-prolog" else bool(mode & 0o111)
    if name == "epilog" and os.geteuid() == 0:
        executable = os.access(real, os.X_OK)  # a filesystem can be mounted noexec
    hook = _hook_name(text)
    if hook and hook != name:
        return Script(path, "swapped", executable)
    if hook:
        lib = _value(_LIB_OF, text)
        cluster = _value(_CLUSTER_OF, _head(f"{lib}/{POLICY}"))
        return Script(path, "hook", executable, lib, _is_shipped(name, lib, text), change_by_others(real), cluster=cluster)
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    runs = f"{hooks}/{name}" in code or f"jobcache/{name}" in code or _runs_directory_with_hook(code, name, hooks)
    return Script(path, "chained" if runs else "other", executable)


def hook_at(path: str) -> str:
    """Return "TaskProlog" or "Epilog" if the file is that hook of jobcache, else ""."""
    found = _HOOK.search(_head(os.path.realpath(path)))
    return found[1] if found else ""


def _value(pattern: re.Pattern[str], text: str) -> str:
    """Return the value that `pattern` assigns in a shell script, "" where it does not."""
    found = pattern.search(text)
    return (found[1] or found[2] or "") if found else ""


def _hook_name(text: str) -> str:
    """Return the name of the hook that a script is, "" for any other script."""
    found = _HOOK.search(text)
    return _FILE_NAMES[found[1]] if found else ""


def _runs_directory_with_hook(code: str, name: str, hooks: str) -> bool:
    """Return whether a script names a directory, such as for run-parts, that holds the hook and belongs to root."""
    hook = os.path.realpath(f"{hooks}/{name}")
    for directory in dict.fromkeys(re.findall(r"/[\w./+-]*[\w+-]", code)):
        if not os.path.isdir(directory) or change_by_others(directory):
            continue
        for entry in itertools.islice(os.scandir(directory), _MOST_ENTRIES):
            if os.path.realpath(entry.path) == hook or (os.path.isfile(entry.path) and _hook_name(_head(entry.path)) == name):
                return True
    return False


def _head(path: str) -> str:
    try:
        return files.read_text(path, _MOST_HEAD)
    except OSError:
        return ""


def _is_shipped(name: str, lib: str, text: str) -> bool:
    try:
        return apply.hook_text(name, lib) == text
    except (errors.ApplyError, OSError):
        return False


class Access:
    """The work of a child that acts as a user: try to run each TaskProlog, and to read its policy."""

    def __init__(self, scripts: Iterable[Script]) -> None:
        self.scripts = scripts

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        report({"step": "opening the hooks"})
        unreachable = {}
        for script in self.scripts:
            if not os.access(script.path, os.R_OK | os.X_OK):
                unreachable[script.path] = "cannot run it: Slurm cancels every task"
            elif script.lib and not os.access(f"{script.lib}/{POLICY}", os.R_OK):
                unreachable[script.path] = f"cannot read {script.lib}/{POLICY}: no job gets a cache"
        report({"unreachable": unreachable})
