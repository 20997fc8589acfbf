"""The cache that `datasets` uses by a program's variables, spelled as `datasets` spells it."""

import os

from jobcache.cache import cache_names, reasons

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


_NAMES = ("HF_HOME", "XDG_CACHE_HOME")
# Apptainer and SingularityCE set NAME in a container to the value that this variable has outside.
OF_CONTAINERS = tuple(f"{program}ENV_{name}" for program in ("APPTAINER", "SINGULARITY") for name in _NAMES)


def path(env: "Mapping[str, str]") -> str:
    """Return the absolute path. Raise Refused for a relative one, which depends on the directory of the user's program.

    Without HOME, `~` is looked up in the user database. An empty variable counts: `datasets` has a default for an unset one.
    """
    home = env.get("HF_HOME", os.path.join(env.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    found = _expanded(env.get("HF_DATASETS_CACHE", os.path.join(_expanded(home, env), "datasets")), env)
    if not found.startswith("/"):
        raise reasons.Refused("inherit_relative", f"the datasets cache of this job would be {found}, which is a relative path")
    return found


def require_one_for_containers(env: "Mapping[str, str]") -> None:
    """Raise Refused if variables for containers give these another path: HF_DATASETS_CACHE of the job would hide it."""
    for program in ("APPTAINER", "SINGULARITY"):
        inside = {name: env[f"{program}ENV_{name}"] for name in _NAMES if f"{program}ENV_{name}" in env}
        if inside and path({**env, **inside}) != path(env):
            words = " ".join(f"{program}ENV_{name}={value}" for name, value in inside.items())
            raise reasons.Refused("inherit_container", f"containers of this job would have another datasets cache: {words}")


def _expanded(path: str, env: "Mapping[str, str]") -> str:
    """Return what os.path.expanduser does with HOME of `env`."""
    if "HOME" in env and (path == "~" or path.startswith("~/")):
        return env["HOME"].rstrip("/") + path[1:] or "/"
    return os.path.expanduser(path)


def home_name(env: "Mapping[str, str]") -> str:
    """Return a name for the home of `path(env)`, as jc_name_home in policy.sh does. One home can have several names."""
    home = env.get("HF_HOME", env.get("XDG_CACHE_HOME", env.get("HOME", "~") + "/.cache") + "/huggingface")
    if home == "~" or home.startswith("~/"):
        home = env.get("HOME", "~") + home[1:]
    return cache_names.HOME + home.replace("%", "%25").replace("+", "%2B").replace("/", "+")


def resolve(found: str) -> "str | None":
    """Return the path without symlinks of an existing directory, None if nothing exists there. Raise OSError."""
    try:
        fd = os.open(found, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # no job of this user can have used it
    try:
        resolved = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return resolved if resolved.startswith("/") else os.path.realpath(found)


def is_private(resolved: str) -> bool:
    """Return whether a path lies in a private cache of any job, template or cluster."""
    at = resolved
    while at not in ("", "/"):
        if os.path.lexists(f"{at}/{cache_names.META}/{cache_names.ID}"):
            return True
        at = os.path.dirname(at)
    return False
