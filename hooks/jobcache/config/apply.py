"""Install the compiled settings, the policy and the hooks in one directory: every file whole, all of them or none."""

import importlib.metadata
import os
import shlex
import stat

import jobcache
from jobcache.config import path_access, policy, settings
from jobcache.config.errors import ApplyError
from jobcache.system import files as system_files

HOOKS = ("epilog", "task-prolog")
MAKE_CACHE = "make-cache.sh"  # task-prolog reads it where Python is missing or broken
_DIST = "slurm-jobcache"
_INSTALLED = "/usr/libexec/jobcache"
_LIB_LINE = f"jc_lib={settings.LIB}\n"  # of the hooks as shipped


def command_line(config_file: str, hooks: "str | None") -> str:
    """Return the command that applies a configuration. hooks: the directory of a self-contained set of hooks."""
    return f"jobcache apply --config {config_file}{f' --hooks {hooks}' if hooks else ''}"


def wanted(compiled: settings.Settings, lib: str, with_hooks: bool) -> "dict[str, tuple[str, int]]":
    """Return (text, mode) of each file that belongs into `lib`, in the order of installation.

    The settings come first: the templates of the old policy are among theirs.
    """
    files = {settings.FILE: (compiled.dump(), 0o644), MAKE_CACHE: (_shipped_text(MAKE_CACHE), 0o644)}
    files[settings.POLICY] = (policy.render(compiled), 0o644)
    if with_hooks:
        files.update((name, (hook_text(name, lib), 0o755)) for name in HOOKS)
    return files


def put(files: "dict[str, tuple[str, int]]", lib: str) -> None:
    """Write the files into `lib`, each by rename. Raise ApplyError if one cannot be written: then none is replaced."""
    problems = path_access.insecure(lib)
    if problems:
        raise ApplyError(problems)
    written = []
    try:
        if not os.path.isdir(lib):
            os.makedirs(lib)
            os.chmod(lib, 0o755)  # whatever the umask
        problems = path_access.unreachable(lib)
        if problems:
            raise ApplyError(problems)
        for name, (text, mode) in files.items():
            temporary = f"{lib}/.{name}.{os.getpid()}"
            written.append((temporary, f"{lib}/{name}"))
            system_files.write_new(temporary, text.encode("utf-8"), mode)
        for temporary, final in written:
            os.rename(temporary, final)
    except OSError as error:
        needs_root = isinstance(error, PermissionError) and os.geteuid() != 0
        remedy = "run this as root" if needs_root else "correct this, and run `jobcache apply` again"
        raise ApplyError([f"{lib}: cannot write: {error.strerror}; the hooks are unchanged; {remedy}"]) from None
    finally:
        for temporary, _ in written:
            if os.path.lexists(temporary):
                os.unlink(temporary)


def stale(files: "dict[str, tuple[str, int]]", lib: str) -> "list[str]":
    """Return the paths of those files that are missing or differ in text, mode or owner."""
    return [f"{lib}/{name}" for name, (text, mode) in files.items() if not _is_current(f"{lib}/{name}", text, mode)]


def hooks_path() -> str:
    """Return the directory of the hooks that belong to this package. Raise ApplyError if they are missing."""
    package = os.path.dirname(os.path.abspath(jobcache.__file__))
    candidates = [os.path.dirname(package)]
    for dist in importlib.metadata.distributions(name=_DIST):
        files = [os.path.abspath(str(file.locate())) for file in dist.files or []]
        if f"{package}/__init__.py" in files:  # not of another installation beside the one that runs
            candidates += [os.path.dirname(file) for file in files if os.path.basename(file) == "task-prolog"]
    candidates.append(_INSTALLED)
    for directory in candidates:
        if all(os.path.isfile(f"{directory}/{name}") for name in (*HOOKS, MAKE_CACHE)):
            return directory
    raise ApplyError([f"the hooks are missing; searched {', '.join(candidates)}; install {_DIST} again"])


def hook_text(name: str, lib: str) -> str:
    """Return the text of a hook that reads its policy from `lib`. Raise ApplyError if it is not the shipped hook."""
    text = _shipped_text(name)
    if _LIB_LINE not in text:
        path = f"{hooks_path()}/{name}"
        raise ApplyError([f"{path}: the line {_LIB_LINE.strip()!r} of the shipped hook is missing; install {_DIST} again"])
    return text.replace(_LIB_LINE, f"jc_lib={shlex.quote(lib)}\n")


def _shipped_text(name: str) -> str:
    """Return the text of a file that this package ships beside its hooks. Raise ApplyError if they are missing."""
    with open(f"{hooks_path()}/{name}", encoding="utf-8") as file:
        return file.read()


def _is_current(path: str, text: str, mode: int) -> bool:
    try:
        with open(system_files.open_regular(path), encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            return file.read() == text and stat.S_IMODE(found.st_mode) == mode and found.st_uid in (0, os.geteuid())
    except (OSError, ValueError):
        return False
