"""From a configuration file to what the hooks obey: validated, compiled, put in place atomically or not at all."""

import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import signal
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

import jobcache
from jobcache.cache.path_template import Template
from jobcache.config import policy, reader, settings
from jobcache.system import files as system_files
from jobcache.system import slurm

HOOKS = ("epilog", "task-prolog")
MAKE_CACHE = "make-cache.sh"  # task-prolog reads it where Python is missing or broken
_DIST = "slurm-jobcache"
_INSTALLED = "/usr/libexec/jobcache"
_PATIENCE = 5.0  # seconds that a filesystem has to tell whether a former template has caches
_LIB_LINE = f"jc_lib={settings.LIB}\n"  # of the hooks as shipped


class ApplyError(Exception):
    """Nothing was changed; `problems` are the words for a person, each with its mend."""

    def __init__(self, problems: "list[str]") -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def compile_settings(config_file: str, lib: str, again: bool = False, forget: bool = True) -> settings.Settings:
    """Return the settings that `config_file` comes to, knowing the templates of those compiled into `lib` before.

    again: where the file leaves it open, Slurm is not asked, nor SLURM_CONF, which is set in every job and in no cron's: the
    cluster and the slurm.conf of those hold.
    forget: drop former templates that have no caches any more. To ask whether `lib` is current, keep them: settings that
    know more templates than they need are not stale.
    Raise config.ConfigError, and ApplyError where what the hooks need on this host is not there.
    """
    loaded = reader.load(config_file)
    problems = []
    ask = loaded.tree["slurm"]
    before = _before(lib)
    ask["conf"] = ask["conf"] or (before.slurm_conf if again and before else os.environ.get("SLURM_CONF") or None)
    cluster = loaded.tree["cluster"] or (before.cluster if again and before else None)
    if cluster is None:
        try:
            cluster = settings.slurm_client(loaded.tree).cluster_name()
        except slurm.Unknown as error:
            problems.append(
                f"{config_file}: cluster: Slurm does not tell its name ({error}); set `cluster:` to ClusterName of slurm.conf"
            )
    package = os.path.dirname(os.path.abspath(jobcache.__file__))
    for rule in loaded.tree["rules"]:
        for patterns in rule["match"].values():
            problems += [f"{config_file}: rules: {error}" for error in map(_pattern_problem, patterns) if error]
    problems += [problem for path in (sys.executable, package) for problem in _unreachable(path)]
    ours = [loaded.tree["run_dir"], os.path.dirname(loaded.tree["log"]["file"] or "/")]
    problems += [problem for path in ours for problem in insecure(path)]
    if problems:
        raise ApplyError(problems)
    compiled = {
        "config": os.path.abspath(config_file),
        "cluster": cluster,
        "python": sys.executable,
        "package": package,
        "version": jobcache.__version__,
        "former": _former(loaded.tree, before, forget) if before else [],
    }
    text = json.dumps([loaded.tree, compiled], sort_keys=True)
    return settings.Settings(loaded.tree, {**compiled, "hash": hashlib.sha256(text.encode()).hexdigest()[:12]})


def command_line(config_file: str, hooks: "str | None") -> str:
    """Return what is to be typed to compile that again. hooks: the directory of a set that stands by itself."""
    return f"jobcache apply --config {config_file}{f' --hooks {hooks}' if hooks else ''}"


def wanted(compiled: settings.Settings, lib: str, with_hooks: bool) -> "dict[str, tuple[str, int]]":
    """Return (text, mode) of each file that belongs into `lib`, in the order in which they are put there.

    The settings come first: they know more templates than the old policy uses, never fewer.
    """
    files = {settings.FILE: (compiled.dump(), 0o644), MAKE_CACHE: (_shipped_text(MAKE_CACHE), 0o644)}
    files[settings.POLICY] = (policy.render(compiled), 0o644)
    if with_hooks:
        files.update((name, (hook_text(name, lib), 0o755)) for name in HOOKS)
    return files


def put(files: "dict[str, tuple[str, int]]", lib: str) -> None:
    """Write the files into `lib`, each whole and by rename, all of them or none. Raise ApplyError."""
    problems = insecure(lib)
    if problems:
        raise ApplyError(problems)
    written = []
    try:
        if not os.path.isdir(lib):
            os.makedirs(lib)
            os.chmod(lib, 0o755)  # whatever the umask
        problems = _unreachable(lib)
        if problems:
            raise ApplyError(problems)
        for name, (text, mode) in files.items():
            temporary = f"{lib}/.{name}.{os.getpid()}"
            written.append((temporary, f"{lib}/{name}"))
            system_files.write_new(temporary, text.encode("utf-8"), mode)
        for temporary, final in written:
            os.rename(temporary, final)
    except OSError as error:
        mend = "; run this as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        raise ApplyError([f"{lib}: {error.strerror}{mend}; nothing that the hooks obey was changed"]) from None
    finally:
        for temporary, _ in written:
            if os.path.lexists(temporary):
                os.unlink(temporary)


def stale(files: "dict[str, tuple[str, int]]", lib: str) -> "list[str]":
    """Return the paths of those files that are not what they should be."""
    return [f"{lib}/{name}" for name, (text, mode) in files.items() if not _is(f"{lib}/{name}", text, mode)]


def hooks_path() -> str:
    """Return the directory of the hooks that belong to this package. Raise ApplyError where they are not to be found."""
    package = os.path.dirname(os.path.abspath(jobcache.__file__))
    candidates = [os.path.dirname(package)]
    for dist in importlib.metadata.distributions(name=_DIST):
        files = [os.path.abspath(str(file.locate())) for file in dist.files or []]
        if f"{package}/__init__.py" in files:  # and not another installation's, beside the one that runs
            candidates += [os.path.dirname(file) for file in files if os.path.basename(file) == "task-prolog"]
    candidates.append(_INSTALLED)
    for directory in candidates:
        if all(os.path.isfile(f"{directory}/{name}") for name in (*HOOKS, MAKE_CACHE)):
            return directory
    raise ApplyError([f"the hooks are in none of {', '.join(candidates)}; install {_DIST} again"])


def hook_text(name: str, lib: str) -> str:
    """Return the text of a hook that reads its policy from `lib`. Raise ApplyError if it is not the hook as shipped."""
    text = _shipped_text(name)
    if _LIB_LINE not in text:
        raise ApplyError([f"{hooks_path()}/{name}: not a hook as shipped: it has no line {_LIB_LINE.strip()!r}"])
    return text.replace(_LIB_LINE, f"jc_lib={shlex.quote(lib)}\n")


def _shipped_text(name: str) -> str:
    """Return the text of a file beside the hooks that belong to this package. Raise ApplyError if they are missing."""
    with open(f"{hooks_path()}/{name}", encoding="utf-8") as file:
        return file.read()


def _before(lib: str) -> "settings.Settings | None":
    """The settings compiled before, where there are any that can be used."""
    try:
        return settings.load(f"{lib}/{settings.FILE}")
    except settings.SettingsError:
        return None


def _former(tree: "dict[str, Any]", before: settings.Settings, forget: bool) -> "list[str]":
    """The templates once in use whose caches may still be there, of the settings compiled before."""
    current = [tree["path"], *(rule["path"] for rule in tree["rules"] if "path" in rule)]
    known = dict.fromkeys([*before.current, *before.former])
    # A task may be about to make a cache by the policy that is being replaced: what it knows stays known once more.
    kept = [text for text in known if text not in current]
    return [text for text in kept if not forget or text in before.current or may_have_caches(Template(text))]


def may_have_caches(template: Template) -> bool:
    """Whether a cache of `template` exists, or may: a filesystem that hangs or a closed directory can hide one."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(int(any(_matches("", _levels(template)))))
        except BaseException:  # noqa: BLE001 - cannot tell
            os._exit(1)
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return True


def _levels(template: Template) -> "list[re.Pattern[str]]":
    """Return what each component of a cache's path looks like."""
    shapes = [
        "[1-9][0-9]*(-r[1-9][0-9]*)?" if text == "job_id" else ".+" if var else re.escape(text) for var, text in template.parts
    ]
    return [re.compile(level, re.DOTALL) for level in "".join(shapes)[1:].split("/")]


def _matches(path: str, levels: "list[re.Pattern[str]]") -> "Iterator[str]":
    """Yield the caches below `path`. Raise OSError where a directory cannot be listed."""
    if not levels:
        yield path
        return
    if not os.path.isdir(path or "/"):
        return
    with os.scandir(path or "/") as entries:
        names = [entry.name for entry in entries if levels[0].fullmatch(entry.name)]
    for name in names:
        yield from _matches(f"{path}/{name}", levels[1:])


def _pattern_problem(pattern: str) -> "str | None":
    try:
        policy.pattern(pattern)
    except ValueError as error:
        return str(error)
    return None


def _unreachable(path: str) -> "list[str]":
    """Say where ordinary users could not get at `path`, which tasks run as them need."""
    if os.geteuid() != 0:
        return []
    for part in _chain(os.path.realpath(path)):
        if not os.stat(part).st_mode & stat.S_IXOTH:
            return [f"{path}: users cannot pass {part}; install jobcache where they can, or `chmod o+x` that"]
    return []


def insecure(lib: str) -> "list[str]":
    """Say where others than root, or whoever installs, could put what is theirs in our place."""
    for part in _chain(os.path.realpath(lib)):
        try:
            found = os.stat(part)
        except FileNotFoundError:
            break
        if found.st_uid not in (0, os.geteuid()):
            return [f"{lib}: {part} belongs to uid {found.st_uid}; choose a directory that is root's all the way"]
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
            return [f"{lib}: others may write {part}; `chmod go-w` it, or choose another directory"]
    return []


def _chain(path: str) -> "list[str]":
    parts = path.rstrip("/").split("/")
    return ["/".join(parts[: at + 1]) or "/" for at in range(len(parts))]


def _is(path: str, text: str, mode: int) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            return file.read() == text and stat.S_IMODE(found.st_mode) == mode and found.st_uid in (0, os.geteuid())
    except (OSError, ValueError):
        return False
