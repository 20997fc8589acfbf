"""The facts that `check` decides upon, gathered where they are: files, Slurm, scratch as an ordinary user.

Scratch is touched only in children with a deadline. What is written there is a directory by the name of a cache that is
being made, which a sweep would take away if we were killed.
"""

import errno
import fcntl
import glob
import itertools
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Callable, Optional

import jobcache
from jobcache.cache import cache_names, dirfd, path_template, write_access
from jobcache.config import apply, compilation, errors, path_access
from jobcache.config.settings import FILE, LIB, OFF, POLICY, Settings, SettingsError, slurm_client
from jobcache.config.settings import load as load_settings
from jobcache.diagnostics import check
from jobcache.diagnostics.check import EXCLUDED, OBTAINED, Compiled, Facts, Interpreter, Log, Schedule, Scratch, Script, Wiring
from jobcache.sweep import user_directories
from jobcache.system import as_user, event_log, live_jobs, mounts, reaper

_PATIENCE = 10.0  # seconds that scratch has for all of it
_ACROSS = 90.0  # seconds that the nodes have to see each other's files: NFS keeps a name that is not there for a minute
_PAUSE = 0.1
_PYTHON = 20.0  # seconds for one start of it
_TAIL = 4 << 20  # bytes of the log that are looked at
_DAY = 86400.0
_MOST_BESIDE = 100  # files of a directory of hooks
_SCRIPT = 1 << 16  # bytes of a script that are looked at
_OURS = re.compile(r"^# (TaskProlog|Epilog) of slurm-jobcache", re.MULTILINE)
_CALLED = {"TaskProlog": "task-prolog", "Epilog": "epilog"}
_LIB_OF = re.compile(r"^jc_lib=(?:'([^'\n]*)'|(\S+))$", re.MULTILINE)
# What each hook needs of its Python.
_NEEDS = {
    "task-prolog": (("-I", "-S"), "from jobcache import prepare"),
    "epilog": (("-I", "-S"), "from jobcache import epilog"),
}


def gather(config_file: str, lib: str, user: Optional[str], node: str) -> Facts:
    """Return all facts. lib: where the compiled pair is. user: as whom to try scratch. Raise KeyError where there is no such."""
    compiled, site = _compiled(config_file, lib)
    if site is None:
        return Facts(compiled)
    hooks = lib if os.path.exists(f"{lib}/task-prolog") else _shipped_hooks()
    root = os.geteuid() == 0
    trouble: list[str] = []
    who = _ordinary_user(site, user, trouble)
    facts = Facts(
        compiled,
        tuple(_interpreters(site, who)) if who else (),
        _as_users(_wiring(site, hooks), who) if who else _wiring(site, hooks),
        tuple(_scratch(site, text, who, node) for text in site.current) if who else (),
        _log(site) if root else None,
        _schedule() if root else None,
        hooks=hooks,
        epilog_deadline=site.epilog_deadline,
        task_prolog_chain=site.task_prolog_chain,
        grace=site.tree["sweep"]["grace"],
        root=root,
    )
    if who is None:
        facts = replace(facts, scratch=tuple(Scratch(text, "", error="; ".join(trouble[:3])) for text in site.current))
    return facts


# ----------------------------------------------------------------------------------------------- configuration, hooks


def _compiled(config_file: str, lib: str) -> tuple[Compiled, Optional[Settings]]:
    own = lib != LIB
    facts = Compiled(config_file, lib, our_version=jobcache.__version__, off=os.path.lexists(f"{lib}/{OFF}"))
    facts = replace(facts, command=apply.command_line(config_file, lib if own else None))
    site = None
    try:
        site = load_settings(f"{lib}/{FILE}")
    except SettingsError as error:
        facts = replace(facts, settings_error=str(error))  # and nothing that they name is run
    if site is not None:
        version = str(site.compiled.get("version", ""))
        facts = replace(facts, version=version, mode=site.tree["mode"], cluster=site.cluster)
    try:
        wanted = compilation.compile_settings(config_file, lib, again=True, forget=False)
        stale = apply.stale(apply.wanted(wanted, lib, with_hooks=os.path.exists(f"{lib}/task-prolog")), lib)
        facts = replace(facts, stale=tuple(stale))
        site = site or wanted
    except (errors.ConfigError, errors.ApplyError) as error:
        facts = replace(facts, problems=tuple(map(str, error.problems)))
    files = (config_file, f"{lib}/{FILE}", f"{lib}/{POLICY}")
    insecure = [*path_access.insecure(lib), *(words for file in files if (words := _insecure(file)))]
    return replace(facts, insecure=tuple(insecure)), site


def _insecure(path: str) -> str:
    """Return why users other than root and the caller can change a file; "" if they cannot or the file is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    weak = write_access.weakness(found, (0, os.geteuid()))
    if weak == write_access.FOREIGN:
        return f"{path} belongs to uid {found.st_uid}"
    return f"{path}: others may write it" if weak else ""


def _shipped_hooks() -> str:
    try:
        return apply.hooks_path()
    except errors.ApplyError:
        return "/usr/libexec/jobcache"


def _ordinary_user(site: Settings, name: Optional[str], trouble: list[str]) -> Optional[pwd.struct_passwd]:
    """Return as whom to try: the one named, ourselves, or the first who has a directory on scratch, as far as that is told."""
    if name is not None:
        return pwd.getpwnam(name)
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    places = user_directories.list_user_directories(site, site.templates, trouble)
    for uid in sorted({place.uid for place in places if place.uid >= site.min_uid}):
        try:
            return pwd.getpwuid(uid)
        except KeyError:
            continue
    return None


def _interpreters(site: Settings, who: pwd.struct_passwd) -> Iterator[Interpreter]:
    above = os.path.dirname(site.package)
    for hook, (options, needs) in _NEEDS.items():
        as_user = hook == "task-prolog" and os.geteuid() == 0 != who.pw_uid
        code = f"import sys; sys.path.append({above!r}); {needs}; print('%d.%d.%d' % sys.version_info[:3])"
        extra: dict[str, Any] = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if as_user else {}
        name = who.pw_name if as_user else pwd.getpwuid(os.geteuid()).pw_name
        fact = Interpreter(site.python, hook, name)
        try:
            done = subprocess.run(
                [site.python, *options, "-c", code], env={}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
                text=True, errors="replace", timeout=_PYTHON, check=False, **extra,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            yield replace(fact, error=getattr(error, "strerror", None) or "it does not answer")
            continue
        if done.returncode == 0:
            yield replace(fact, version=done.stdout.strip())
        else:
            words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            yield replace(fact, error=words[-1])


# -------------------------------------------------------------------------------------------------------------- Slurm


def _wiring(site: Settings, hooks: str) -> Wiring:
    try:
        running = slurm_client(site.tree).config()
    except live_jobs.Unknown as error:
        return Wiring(unknown=str(error))
    conf = running.get("SLURM_CONF", "")
    written = read_conf(conf)
    patterns = check.values(running, "Epilog")
    epilogs = [path for pattern in patterns for path in (_matches(pattern) if _is_glob(pattern) else [pattern])]
    empty = next((pattern for pattern in patterns if _is_glob(pattern) and not _matches(pattern)), "")
    beside = _directory_here(conf, running)
    enroot = os.environ.get("ENROOT_SYSCONF_PATH", "/etc/enroot")
    chain = site.task_prolog_chain
    return Wiring(
        conf=conf,
        running=running,
        file=written,
        task_prologs=tuple(script(path, "task-prolog", hooks) for path in check.values(running, "TaskProlog")),
        epilogs=tuple(script(path, "epilog", hooks) for path in epilogs),
        epilog_pattern=empty,
        chain=script(chain, "task-prolog", hooks) if chain else None,
        tmpfs_dirs=_tmpfs_dirs(running, beside),
        pyxis=_pyxis(next(iter(check.values(running, "PlugStackConfig")), "")) or _pyxis(f"{beside}/plugstack.conf"),
        container_mounts=tuple(_mounts_of(enroot)),
        enroot=enroot,
    )


def _directory_here(conf: str, running: Mapping[str, str]) -> str:
    """Return where slurm.conf and what belongs to it are on this node: a configless one has them from the controller."""
    spool = running.get("SlurmdSpoolDir", "")
    places = [os.path.dirname(conf), "/run/slurm/conf", f"{spool}/conf-cache"]
    return next((place for place in places if os.path.exists(f"{place}/slurm.conf")), places[0])


def _matches(pattern: str) -> list[str]:
    """In the order in which Slurm runs them: from the end of the alphabet. The pattern itself, where we may not look."""
    try:
        os.listdir(os.path.dirname(pattern))
    except PermissionError:
        return [pattern]
    except OSError:
        pass
    return sorted(glob.glob(pattern), reverse=True)


def _is_glob(text: str) -> bool:
    return any(ch in text for ch in "*?[")


def read_conf(path: str, depth: int = 0) -> dict[str, str]:
    """Return the keys of slurm.conf with the files that it includes; {} where it cannot be read. The last of several counts."""
    keys: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().replace("\\\n", " ").splitlines()
    except OSError:
        return keys
    for line in lines:
        text = line.partition("#")[0].strip()
        word, _, rest = text.partition(" ")
        if word.lower() == "include" and depth < 5:
            for included in sorted(glob.glob(os.path.join(os.path.dirname(path), rest.strip()))):
                keys.update(read_conf(included, depth + 1))
        elif "=" in text:
            key, _, value = text.partition("=")
            if key.strip().lower() == "epilog" and "Epilog" in keys:
                keys[f"Epilog[{sum(name.startswith('Epilog') for name in keys)}]"] = value.strip().strip('"')
            else:
                keys["Epilog" if key.strip().lower() == "epilog" else key.strip()] = value.strip().strip('"')
    return keys


def script(path: str, name: str, hooks: str) -> Script:
    """Return what there is to tell of a file that Slurm runs as `name`."""
    real = os.path.realpath(path)
    try:
        with open(real, encoding="utf-8", errors="replace") as file:
            text = file.read(_SCRIPT)
            mode = os.fstat(file.fileno()).st_mode
    except PermissionError:  # an Epilog is root's; a TaskProlog that a user cannot read, Slurm cannot run as that user
        return Script(path, "closed" if name == "epilog" else "missing", executable=False)
    except OSError:
        return Script(path, "missing", executable=False)
    executable = mode & 0o111 == 0o111 if name == "task-prolog" else bool(mode & 0o111)
    if name == "epilog" and os.geteuid() == 0:
        executable = os.access(real, os.X_OK)  # a filesystem can be mounted noexec
    ours = _OURS.search(text)
    if ours and _CALLED[ours[1]] != name:
        return Script(path, "swapped", executable)
    if ours:
        found = _LIB_OF.search(text)
        lib = (found[1] or found[2]) if found else ""
        return Script(path, "ours", executable, lib, _is_shipped(name, lib, text), _insecure(real))
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    calls = f"{hooks}/{name}" in code or f"jobcache/{name}" in code or _runs_directory_of_ours(code, name, hooks)
    return Script(path, "chained" if calls else "other", executable)


def _as_users(wiring: Wiring, who: pwd.struct_passwd) -> Wiring:
    """Add of each TaskProlog why an ordinary user cannot run it: as root all looks open, whatever stands above it."""
    told = _ask(_Reach([one for one in wiring.task_prologs if one.kind in ("ours", "chained")]), who, _PATIENCE)
    words = {path: f"{who.pw_name} {why}" for path, why in told.get("unreachable", {}).items()}
    found = (replace(one, unreachable=words.get(one.path, "")) for one in wiring.task_prologs)
    return replace(wiring, task_prologs=tuple(found))


class _Reach:
    """The work of a child that is a user, and looks whether it may run a TaskProlog, and read what that reads."""

    def __init__(self, scripts: list[Script]) -> None:
        self.scripts = scripts

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        found = {}
        for one in self.scripts:
            if not os.access(one.path, os.R_OK | os.X_OK):
                found[one.path] = "cannot run it: Slurm cancels every task"
            elif one.lib and not os.access(f"{one.lib}/{POLICY}", os.R_OK):
                found[one.path] = f"cannot read {one.lib}/{POLICY}: no job gets a cache"
        report({"step": "looking at the hooks", "unreachable": found})


def _runs_directory_of_ours(code: str, name: str, hooks: str) -> bool:
    """Whether a script names a directory, such as for run-parts, that is root's and holds our hook among others."""
    ours = os.path.realpath(f"{hooks}/{name}")
    for above in dict.fromkeys(re.findall(r"/[\w./+-]*[\w+-]", code)):
        if not os.path.isdir(above) or _insecure(above):
            continue
        for entry in itertools.islice(os.scandir(above), _MOST_BESIDE):
            if os.path.realpath(entry.path) == ours or _is_ours(entry.path, name):
                return True
    return False


def _is_ours(path: str, name: str) -> bool:
    if not os.path.isfile(path):
        return False
    found = _OURS.search(_read(path, 1 << 10))
    return found is not None and _CALLED[found[1]] == name


def _is_shipped(name: str, lib: str, text: str) -> bool:
    try:
        return apply.hook_text(name, lib) == text
    except (errors.ApplyError, OSError):
        return False


def _tmpfs_dirs(running: Mapping[str, str], beside: str) -> tuple[str, ...]:
    """Directories that each job has for itself by job_container/tmpfs, or namespace/tmpfs from 25.11."""
    if not any(running.get(key, "").endswith("/tmpfs") for key in ("JobContainerType", "NamespaceType")):
        return ()
    for name in ("job_container.conf", "namespace.yaml"):
        try:
            with open(f"{beside}/{name}", encoding="utf-8", errors="replace") as file:
                found = re.search(r"^[^#]*?\bdirs\s*[=:]\s*[\"']?([^\s\"'#]+)", file.read(), re.IGNORECASE | re.MULTILINE)
        except OSError:
            continue
        if found:
            return tuple(found[1].split(","))
    return ("/tmp", "/dev/shm")


def _pyxis(path: str, depth: int = 0) -> str:
    """Return the line of plugstack.conf that loads pyxis, with its file; "" where none does."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        words = line.partition("#")[0].split()
        if words and words[0] == "include" and len(words) > 1 and depth < 5:
            for included in sorted(glob.glob(os.path.join(os.path.dirname(path), words[1]))):
                found = _pyxis(included, depth + 1)
                if found:
                    return found
        elif any("pyxis" in word for word in words):
            return f"{path}: {' '.join(words)}"
    return ""


def _mounts_of(enroot: str) -> Iterator[str]:
    """Yield what enroot mounts into every container at its own place, by its files in mounts.d."""
    for name in sorted(glob.glob(f"{enroot}/mounts.d/*.fstab")):
        try:
            with open(name, encoding="utf-8", errors="replace") as file:
                for line in file:
                    words = line.partition("#")[0].split()
                    if len(words) >= 2 and words[0].rstrip("/") == "/" + words[1].strip("/"):
                        yield words[0].rstrip("/") or "/"
        except OSError:
            continue


# ------------------------------------------------------------------------------------------------------------ scratch


def _scratch(site: Settings, text: str, who: pwd.struct_passwd, node: str) -> Scratch:
    """Try one template as an ordinary user, in a child with a deadline."""
    template = path_template.Template(text)
    local = site.is_node_local(template)
    facts = Scratch(text, who.pw_name, local=local, has_node=(True, "node") in template.parts)
    try:
        place = template.bind(user=who.pw_name, uid=who.pw_uid, cluster=site.cluster, node=node)
    except path_template.BadName as error:
        return replace(facts, error=str(error))
    facts = replace(facts, parent=place.parent)
    meeting = None if local or facts.has_node else Meeting.of(os.environ)
    if who.pw_uid == 0:
        return replace(facts, error="scratch is never tried as root; name a user with --user")
    told = _ask(_Trial(place.parent, meeting), who, _PATIENCE + (_ACROSS if meeting else 0.0))
    facts = replace(facts, **{key: value for key, value in told.items() if key != "squash"})
    if facts.above:
        fstype, options = _mount_of(facts.above)
        facts = replace(facts, fstype=fstype, options=options)
    if os.geteuid() == 0 and told.get("squash"):
        seen = _ask(_Squash(facts.above), None, _PATIENCE)
        facts = replace(facts, squashed=seen.get("squashed"))
    return facts


def _ask(work: "as_user.Work", who: Optional[pwd.struct_passwd], patience: float) -> dict[str, Any]:
    """Return what a child has found out; `hung`: what it was at when its time was over."""
    uid, gid, user = (who.pw_uid, who.pw_gid, who.pw_name) if who else (None, None, None)
    child = as_user.start(work, uid=uid, gid=gid, user=user, places=[])
    told: dict[str, Any] = {"step": "starting"}
    for fact in child.facts(time.monotonic() + patience):
        told.update(fact)
    step = told.pop("step")
    if child.status == "late":
        told["hung"] = step
    elif child.status != "done" and "error" not in told:
        told["error"] = child.error or "the process that tried it was killed"
    return told


class Meeting:
    """The tasks of one step that find out together whether a lock reaches from node to node: one a node, node 0 leads."""

    def __init__(self, name: str, at: int, nodes: int, node: str) -> None:
        self.name, self.at, self.nodes, self.node = name, at, nodes, node

    @staticmethod
    def of(environ: "Mapping[str, str]") -> "Optional[Meeting]":
        """Return the meeting of this step, None where it is on one node, or this is not the node's first task."""
        numbers = [environ.get(f"SLURM_{key}", "") for key in ("JOB_ID", "STEP_ID", "NODEID", "STEP_NUM_NODES")]
        if not all(number.isdigit() for number in numbers) or environ.get("SLURM_LOCALID") != "0":
            return None
        job_id, step, at, nodes = map(int, numbers)
        if nodes < 2:
            return None
        return Meeting(cache_names.new_name(job_id, f"check{step}"), at, nodes, environ.get("SLURMD_NODENAME", f"node{at}"))


class _Trial:
    """The work of a child that is a user: is there room, can it write, does flock exclude."""

    def __init__(self, parent: str, meeting: Optional[Meeting]) -> None:
        self.parent = parent
        self.meeting = meeting

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        report({"step": f"looking for {self.parent}"})
        try:
            above, fd = _nearest(self.parent)
        except OSError as error:
            report({"error": str(error), "link": error.errno in (errno.ELOOP, errno.ENOTDIR)})
            return
        report({"above": above, "step": f"asking {above} for its size"})
        room = os.fstatvfs(fd)
        report({
            "total": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize,
            "inodes": room.f_files, "inodes_free": room.f_favail, "squash": stat.S_IMODE(os.fstat(fd).st_mode) & 0o077 == 0,
        })  # fmt: skip
        try:
            report({"step": f"writing in {above}"})
            with _Directory(fd, cache_names.new_name(os.getpid(), "check" + dirfd.nonce())) as made:
                report({"step": f"locking in {above}"})
                report({"flock": _excludes(made)})
            if self.meeting:
                report({"step": f"meeting the other nodes in {above}"})
                report({"across": meet(fd, self.meeting, time.monotonic() + _ACROSS)})
        except OSError as error:
            # Its path begins at a descriptor of ours, which tells nobody anything.
            report({"error": error.strerror or str(error)})


def _nearest(path: str) -> tuple[str, int]:
    """Return the longest part of a path that exists, and a descriptor of it. Raise OSError."""
    while True:
        try:
            return path or "/", dirfd.open_directory(path or "/")
        except FileNotFoundError:
            path = path.rpartition("/")[0]


class _Directory:
    """A directory for the length of a block, named and filled like a cache that is being made: `with … as its path`."""

    def __init__(self, parent_fd: int, name: str, leave: bool = False) -> None:
        self._parent_fd, self._name, self._leave = parent_fd, name, leave

    def __enter__(self) -> str:
        path = f"/proc/self/fd/{self._parent_fd}/{self._name}"
        for name in (path, f"{path}/{cache_names.META}"):
            try:
                os.mkdir(name, 0o700)
            except FileExistsError:
                pass
        return f"{path}/{cache_names.META}"

    def __exit__(self, *exc: object) -> None:
        if self._leave:
            return
        fd = os.open(self._name, dirfd.DIRECTORY, dir_fd=self._parent_fd)
        try:
            tally = reaper.delete(self._parent_fd, self._name, fd, time.monotonic() + _PATIENCE)
        finally:
            os.close(fd)
        if not tally.done:
            raise OSError(errno.EIO, f"what was written cannot be deleted: {tally.error}", self._name)


def _open_lock(directory: str) -> int:
    return os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _excludes(directory: str) -> str:
    """Hold a lock, and let another process try it: EXCLUDED, OBTAINED, or why it cannot be told."""
    fd = _open_lock(directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pid = os.fork()
        if pid == 0:
            os._exit(_try(directory))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {0: EXCLUDED, 1: OBTAINED}.get(status, "the other process got an error")
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(fd)


def _try(directory: str) -> int:
    """Exit status of a process that tries the lock: 0 it is kept out, 1 it gets it, 2 an error."""
    try:
        return 1 if _takes(directory) else 0
    except BaseException:  # noqa: BLE001 - a forked child: nothing may leave it but its status
        return 2


def _takes(directory: str) -> bool:
    fd = _open_lock(directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def meet(parent_fd: int, meeting: Meeting, until: float) -> dict[str, str]:
    """Return what became of the nodes that tried a lock which node 0 held: EXCLUDED, OBTAINED, or words; by node.

    Node 0 tells of all the others, each of these of itself. Their names are what they say to each other.
    """
    with _Directory(parent_fd, meeting.name, leave=meeting.at != 0) as directory:
        if meeting.at != 0:
            if not _appears(directory, lambda name: name == "held", 1, until):
                return {meeting.node: "node 0 did not say that it holds the lock"}
            result = OBTAINED if _takes(directory) else EXCLUDED
            _touch(f"{directory}/{result}.{meeting.node}")
            return {meeting.node: result}
        fd = _open_lock(directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _touch(f"{directory}/held")
            said = _appears(directory, lambda name: "." in name, meeting.nodes - 1, until)
            results = {name.partition(".")[2]: name.partition(".")[0] for name in said}
        finally:
            os.close(fd)
    silent = meeting.nodes - 1 - len(results)
    return {**results, **({f"({silent} more)": "they said nothing"} if silent else {})}


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _appears(directory: str, wanted: Callable[[str], bool], count: int, until: float) -> list[str]:
    """Return the names that are wanted, when there are `count` of them or time is over."""
    while True:
        names = [name for name in os.listdir(directory) if wanted(name)]
        if len(names) >= count or time.monotonic() >= until:
            return names
        time.sleep(_PAUSE)


class _Squash:
    """The work of a child that is root, and looks whether it may look."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        report({"step": f"looking at {self.path} as root"})
        try:
            os.listdir(self.path)
        except PermissionError:
            report({"squashed": True})
        else:
            report({"squashed": False})


def _mount_of(path: str) -> tuple[str, tuple[str, ...]]:
    """Return the filesystem's type and options, from the mount table alone: scratch may hang."""
    mount = mounts.containing(path, mounts.read())
    return (mount.fstype, mount.options) if mount else ("", ())


# ------------------------------------------------------------------------------------------------------- log and sweep


def _log(site: Settings) -> Log:
    facts = Log(site.log_file, syslog=site.log_socket)
    if site.log_socket:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(site.log_socket)
        except OSError as error:
            facts = replace(facts, syslog_error=error.strerror or str(error))
    if not site.log_file:
        return facts
    above = os.path.dirname(site.log_file)
    target = site.log_file if os.path.lexists(site.log_file) else above
    if os.path.islink(site.log_file) or (os.path.lexists(site.log_file) and not os.path.isfile(site.log_file)):
        return replace(facts, error="not a plain file, so nothing is written to it")
    if not os.path.exists(target):
        return replace(facts, error=f"{above} is not there")
    if not os.access(target, os.W_OK):
        return replace(facts, error="cannot be written")
    return replace(facts, insecure=_insecure(target), **_from_events(_recent(site.log_file), time.time()))


def _recent(log_file: str) -> Iterator[event_log.Event]:
    """Yield the last events of a log, and of the file that a rotation has just put aside."""
    plain = [name for name in event_log.rotations(log_file) if not name.endswith((".gz", ".bz2", ".xz")) and os.path.isfile(name)]
    for path in plain[-2:]:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                yield from event_log.read([file], event_log.Tally())
        except OSError:
            continue


def _from_events(events: Iterator[event_log.Event], now: float) -> dict[str, Any]:
    """Return failures, last_sweep and sweep_error, as `Log` has them."""
    failures: dict[str, int] = {}
    last: Optional[float] = None
    error = ""
    for event in events:
        at = event_log.epoch_or_none(event["ts"])
        if at is None:
            continue
        ago = now - at
        if event["event"] == "hook.failed" and ago < _DAY:
            reason = event.get("reason", "no reason")
            failures[reason] = failures.get(reason, 0) + 1
        elif event["event"] == "sweep.finished":
            last, error = ago, str(event.get("error") or event.get("reason") or "")
    return {"failures": failures, "last_sweep": last, "sweep_error": error}


def _schedule() -> Schedule:
    systemd = os.path.isdir("/run/systemd/system")
    timer = ""
    if systemd and shutil.which("systemctl"):
        timer = _systemctl("jobcache-sweep.timer")
    idle = mend = ""
    if os.path.exists("/etc/cron.d/jobcache"):
        defaults = _read("/etc/default/jobcache")
        if systemd:
            idle = "it leaves the sweep to systemd"
        elif not re.search(r"^\s*(export\s+)?JOBCACHE_SWEEP=", defaults, re.MULTILINE):
            idle = "/etc/default/jobcache sets no JOBCACHE_SWEEP"
            mend = "echo JOBCACHE_SWEEP= >>/etc/default/jobcache    # --node-local behind the = for this node's own scratch"
        elif not any(os.path.exists(f"/var/run/{name}.pid") for name in ("crond", "cron")):
            idle, mend = "no cron daemon runs", "service cron start    # of the package cron; cronie and crond on EL"
    return Schedule(systemd, timer, os.path.exists("/etc/cron.d/jobcache"), idle, mend)


def _systemctl(unit: str) -> str:
    argv = ["systemctl", "show", unit, "--property=LoadState,ActiveState"]
    try:
        said = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "not told by systemctl"
    state = dict(line.partition("=")[::2] for line in said.splitlines())
    return (
        "active"
        if state.get("ActiveState") == "active"
        else state.get("ActiveState", "")
        if state.get("LoadState") == "loaded"
        else "missing"
    )


def _read(path: str, most: int = -1) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(most)
    except OSError:
        return ""
