"""The facts about an installation that `jobcache check` judges. The probe_* modules gather them, check_* judge them."""

from dataclasses import dataclass, field
from typing import Optional

from jobcache.diagnostics.rebuilding import Rebuilt

# Results of a process that tried to take a lock while another process held it.
EXCLUDED, OBTAINED = "excluded", "obtained"


@dataclass(frozen=True)
class Compiled:
    """The configuration and the compiled settings.

    config, lib: paths of the configuration and of the directory of the compiled files. problems: errors in the configuration.
    settings_error: why the compiled settings cannot be loaded, or "". stale: paths of compiled files that do not match.
    harmful_exports: (dotted key, harm) of variables whose export breaks jobs.
    insecure: texts, one for each file that another user can change. off: the file that stops all hooks exists.
    version, cluster: as compiled. command: the command line that compiles again. apptainer: `bind` or `off`. site_store: its
    template, or "".
    """

    config: str
    lib: str
    problems: tuple[str, ...] = ()
    settings_error: str = ""
    cluster: str = ""
    stale: tuple[str, ...] = ()
    insecure: tuple[str, ...] = ()
    mode: str = "on"
    off: bool = False
    version: str = ""
    installed_version: str = ""
    command: str = "jobcache apply"
    harmful_exports: tuple[tuple[str, str], ...] = ()
    apptainer: str = "bind"
    site_store: str = ""


@dataclass(frozen=True)
class Apptainer:
    """The configuration of Apptainer or SingularityCE.

    conf: path of its file. binds: paths that it mounts into every container at the same path. user_binds: users can mount
    further ones. home: it mounts the user's home.
    """

    conf: str
    binds: tuple[str, ...] = ()
    user_binds: bool = True
    home: bool = True


@dataclass(frozen=True)
class Interpreter:
    """The Python that a hook starts, tried as `user`. error: why it cannot do the work of the hook, or ""."""

    path: str
    hook: str
    user: str
    error: str = ""
    version: str = ""


@dataclass(frozen=True)
class Script:
    """A file that Slurm runs as TaskProlog or Epilog.

    kind: "hook", the hook itself; "swapped", the other hook of jobcache; "chained", a script that runs the hook; "other",
    a script that does not; "missing"; "unreadable", only root can read it.
    executable: a TaskProlog, by every user. lib: the directory of the policy that the hook reads. shipped: its text is that
    of this version. insecure: why another user can change it, or "". unreachable: why a user cannot run it, or "".
    cluster: for which its policy is compiled, or "".
    """

    path: str
    kind: str
    executable: bool = True
    lib: str = ""
    shipped: bool = True
    insecure: str = ""
    unreachable: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Wiring:
    """The configuration of Slurm. error: why Slurm did not report it, or "".

    conf: path of slurm.conf. running, file: its keys, as slurmctld has them and as the file has them.
    task_prologs, epilogs: the scripts that Slurm runs. epilog_pattern: a glob in Epilog that matches no file, or "".
    hooks_in_prolog: (path, "TaskProlog" or "Epilog") of each hook of jobcache that Slurm runs as a Prolog.
    chain: the site's TaskProlog, which runs after jobcache's. tmpfs_dirs: directories that are private to each job.
    pyxis: the line of plugstack.conf that loads pyxis, or "". container_mounts: paths that enroot mounts into containers.
    apptainer: the configurations of Apptainer and SingularityCE on this host.
    """

    error: str = ""
    conf: str = ""
    running: dict[str, str] = field(default_factory=dict)
    file: dict[str, str] = field(default_factory=dict)
    task_prologs: tuple[Script, ...] = ()
    epilogs: tuple[Script, ...] = ()
    epilog_pattern: str = ""
    hooks_in_prolog: tuple[tuple[str, str], ...] = ()
    chain: Optional[Script] = None
    tmpfs_dirs: tuple[str, ...] = ()
    pyxis: str = ""
    container_mounts: tuple[str, ...] = ()
    enroot: str = "/etc/enroot"
    apptainer: tuple[Apptainer, ...] = ()


@dataclass(frozen=True)
class Scratch:
    """The place of one user's caches by one template, tried as that user. user "": nobody tried it, for the reason in `error`.

    parent: the directory that holds the caches. existing: the longest part of its path that exists.
    hung: the operation that did not end in time, or "". error: the system's error. user_symlink: one is in the path.
    refused: jobcache creates no cache there, for the reason in `error`. untested: why only a job can try it, or "".
    fstype, options: from the mount table. total, free: bytes. flock: EXCLUDED, OBTAINED or an error.
    flock_across: the result of each other node; None: not tried. squashed: root cannot list the directory; None: unknown.
    on_demand: the directory of autofs that does not list the users' directories, or "". expires_early: it can unmount them
    while a sweep waits.
    """

    template: str
    user: str
    parent: str = ""
    existing: str = ""
    local: bool = False
    has_node: bool = False
    hung: str = ""
    error: str = ""
    user_symlink: bool = False
    refused: bool = False
    untested: str = ""
    fstype: str = ""
    options: tuple[str, ...] = ()
    total: int = 0
    free: int = 0
    inodes: int = 0
    inodes_free: int = 0
    flock: str = ""
    flock_across: Optional[dict[str, str]] = None
    squashed: Optional[bool] = None
    on_demand: str = ""
    expires_early: bool = False


@dataclass(frozen=True)
class Log:
    """The event log. error: why it cannot be written, or "". insecure: why another user can change it, or "".

    syslog: path of the socket; None: off. failures: number of hook.failed events of the last day, by reason.
    last_sweep: seconds since its end; None: the log has no sweep. sweep_error: the error that it reported, or "".
    rebuilt: by user, data that jobs seem to build again and again, as far as the end of the log shows it.
    """

    file: Optional[str]
    error: str = ""
    insecure: str = ""
    syslog: Optional[str] = None
    syslog_error: str = ""
    failures: dict[str, int] = field(default_factory=dict)
    last_sweep: Optional[float] = None
    sweep_error: str = ""
    rebuilt: tuple[Rebuilt, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """The timers that start the sweep on this host. systemd: it runs here. timer: the state of the unit, or "missing".

    cron: the crontab exists. cron_idle: why it starts no sweep, or "". cron_remedy: a line to paste, or "".
    """

    systemd: bool = False
    timer: str = ""
    cron: bool = False
    cron_idle: str = ""
    cron_remedy: str = ""


@dataclass(frozen=True)
class Facts:
    """All facts. wiring, log, schedule: None where they were not gathered. hooks: the directory of the hooks to wire in.

    misnamed: (path, the owner's name in passwd) of users' directories with another name.
    epilog_deadline, grace, keep_failed: seconds.
    """

    compiled: Compiled
    interpreters: tuple[Interpreter, ...] = ()
    wiring: Optional[Wiring] = None
    scratch: tuple[Scratch, ...] = ()
    log: Optional[Log] = None
    schedule: Optional[Schedule] = None
    misnamed: tuple[tuple[str, str], ...] = ()
    hooks: str = ""
    epilog_deadline: float = 30.0
    grace: float = 3600.0
    keep_failed: float = 0.0
    root: bool = True
