"""The meaning and the remedy of each reason that an event about one job can have."""

_REPAIR = "repair the filesystem"
_INSPECT = "look at it"

# Reason: (meaning, remedy or "").
REASONS = {
    "rule": ("a rule of the site gives such jobs no cache", ""),
    "user_off": ("the user set JOBCACHE=off", ""),
    "user_value": ("the user set every variable that the site exports, and jobcache does not change these", ""),
    "other_cluster": (
        "the hooks are compiled for another cluster than the one of this job",
        "compile a set of hooks for each cluster: `jobcache apply --hooks DIR`",
    ),
    "offline": (
        "the job set HF_HUB_OFFLINE or HF_DATASETS_OFFLINE, and uses its usual cache",
        "`offline: inherit` gives such jobs a private cache with links to their usual one",
    ),
    "inherit_budget": (
        "the builds of the user's own cache could not be linked in time, and the job may need them",
        "a longer `task_prolog.deadline`; is the user's home slow?",
    ),
    "inherit_too_many": (
        "the user's own cache has more builds than `inherit_max_builds`",
        "the user deletes old builds, or the site raises `inherit_max_builds`",
    ),
    "inherit_relative": (
        "HF_HOME or XDG_CACHE_HOME is a relative path, so that the user's own cache cannot be found",
        "the user sets an absolute path, or JOBCACHE_INHERIT=off",
    ),
    "inherit_script": (
        "the batch script sets HF_HOME, XDG_CACHE_HOME or HOME to a value that the TaskProlog, which runs before it, cannot know",
        "the user sets it to a plain path before any program, or with `sbatch --export`, or sets JOBCACHE_INHERIT=off",
    ),
    "inherit_container": (
        "APPTAINERENV_HF_HOME or a similar variable gives containers another datasets cache, and a private cache would hide it",
        "the user sets HF_HOME to the same path, or APPTAINERENV_HF_DATASETS_CACHE",
    ),
    "container_bind": (
        "APPTAINER_BIND or a similar variable of the user hides the cache in containers, or makes it read-only there",
        "the user binds another path in the container",
    ),
    "inherit_failed": ("the builds of the user's own cache could not be linked because of an error", _REPAIR),
    "observe": ("mode is observe: the path is the one that a cache would have", "`mode: on` in jobcache.yaml"),
    "min_uid": ("the user's uid is below min_uid", "`min_uid` in jobcache.yaml"),
    "unknown_job": ("slurmctld no longer knew the job when its Epilog ran", "the sweep reaps the cache"),
    "foreign": (
        "the directory at the path belongs to another user or another cluster, or one above it to another user",
        "`namei -l PATH`; `path` needs {cluster} where clusters share a filesystem",
    ),
    "unrecorded": ("the directory has a cache's name and no record: a user or a script created it", _INSPECT),
    "older_than_job": ("the directory has no record, and was last changed before the job began", _INSPECT),
    "busy": ("an earlier cache at the path was still being reaped", ""),
    "not_directory": ("a file or a user's symlink is in the path", "namei -l PATH"),
    "no_space": ("the disk or the user's quota was full", "free space: `jobcache list --sort bytes`, or the quota"),
    "no_access": ("permission denied", "check that this user can write there: `jobcache check --user NAME`"),
    "not_mounted": (
        "the task ran in a container that does not see scratch, and a cache in the container would stay there",
        "mount scratch in the container: for pyxis, `srun --container-mounts`, or a file in /etc/enroot/mounts.d",
    ),
    "read_only": ("the filesystem was read-only", _REPAIR),
    "io_error": ("the filesystem returned an error", _REPAIR),
    "bad_name": (
        "the name of the user or account is missing or cannot be part of a path, or JOBCACHE_STORE is not a label",
        "{uid} in `path` in place of {user}, or no {account}",
    ),
    "unknown_user": (
        "neither Slurm nor passwd knew the user's name on this node, so the Epilog could not search for a cache",
        "`id UID` on the node; {uid} in `path` in place of {user}. The sweep reaps the cache",
    ),
    "home_differs": (
        "`path` begins with {home}, and HOME was not the home that the user's account has on the node",
        "`getent passwd UID` on the node. A script that sets HOME, or a container, runs without a private cache",
    ),
    "no_job_directory": (
        "the directory that the site makes for each job did not exist: `path` has {job_id} in a directory",
        "the site's Prolog has to make it before the job begins",
    ),
    "lease_live": ("this Epilog of a lost run was late: the cache belongs to the next run", ""),
    "lease_unreadable": ("the lease of this node is damaged, for example by a full disk", "the sweep reaps the cache"),
    "user_keep": ("the user set JOBCACHE=keep", ""),
    "job_failed": ("the job ended non-zero, and `keep_failed` keeps such caches for a while", ""),
    "budget": ("the Epilog, or the sweep for this user, had no more time; the next sweep does the rest", ""),
    "too_many_leases": ("it has more leases than jobcache makes, so it is unknown whether its command lives", "ask its user"),
    "left": ("some entries could not be deleted", "look at the trash"),
    "mount": ("a filesystem is mounted in the cache, and jobcache did not touch it", "unmount it"),
    "changed": ("the directory was exchanged while jobcache worked on it", "ask its user"),
    "orphan": ("its job was dead in two listings of Slurm, and it had shown no sign of life for `sweep.grace`", ""),
    "half_made": ("creation of the cache was interrupted", ""),
    "trash": ("an Epilog had no time to delete it", ""),
    "in_use": (
        "its job is dead, or its command has ended, and processes of this host use it",
        "end stray processes: `sweep.stray_processes`",
    ),
    "unreadable": ("its owner closed it, or its id is damaged", _INSPECT),
    "aside": ("its owner exchanged directories, and it was renamed by mistake; nothing deletes it", "its owner can delete it"),
    "other_node": (
        "it is on node-local scratch, and has a lease of a node that Slurm does not run on this host",
        "if NAME is this node's name, `jobcache sweep --node-local --node NAME`; if nodes share it, correct `node_local`",
    ),
    "writable": (
        "other users can write to the store or to a directory above the cache, and exchange what is in it",
        "`namei -l PATH`, and `chmod go-w` or `chmod +t` that directory",
    ),
    "other_filesystem": (
        "the store is on another filesystem than the cache",
        "put `store.user` on the filesystem of `path`",
    ),
    "damaged": ("a build is incomplete", "jobcache store verify"),
    "superseded": ("the store has a newer build of the same dataset", ""),
    "age": ("it was unused for `store.max_age`", ""),
    "size": ("the store was larger than `store.max_size`, and other builds were used later", ""),
    "retired": ("no new cache links it any more, and every job that could link it has ended", ""),
    "stuck": ("processes of this user already hang on that filesystem, or too many on the node", f"{_REPAIR}, or unmount it"),
    "deadline": ("scratch or Python did not answer within `epilog.deadline`", _REPAIR),
    "child_died": ("the process that acts as the user was killed", "read the node's system log: was it out of memory?"),
    "internal": ("bug in jobcache", "report it"),
    "no_job": ("Slurm's variables are missing or invalid", ""),
    "no_python": ("the hook's Python does not exist", "jobcache apply"),
    "python": ("the hook's Python failed", "jobcache check"),
    "settings": ("the compiled settings cannot be used", "jobcache apply"),
}  # fmt: skip


def meaning(reason: str) -> str:
    """Return the meaning of a reason; an unknown reason, from another version, as it is."""
    return REASONS.get(reason, (reason, ""))[0]


def remedy(reason: str) -> str:
    """Return the remedy of a reason, or ""."""
    return REASONS.get(reason, (reason, ""))[1]
