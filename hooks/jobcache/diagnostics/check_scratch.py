"""Judge the filesystems of the caches."""

from collections.abc import Iterator
from typing import Optional

from jobcache.diagnostics.check_facts import EXCLUDED, OBTAINED, Scratch
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from jobcache.sweep import accounts

# Filesystem types of the mount table. Of types in neither set, it is unknown whether nodes share them.
_LOCAL = frozenset("ext2 ext3 ext4 xfs btrfs zfs f2fs tmpfs ramfs overlay".split())
_NETWORK = frozenset("nfs nfs4 lustre gpfs beegfs ceph cifs wekafs panfs pvfs2 orangefs afs".split())
_BLIND_LOCKS = ("localflock", "nolock", "local_lock=flock", "local_lock=all")  # mount options
_SCARCE, _GONE = 5.0, 1.0  # percent of free space or inodes: below these, a warning, a problem
_SCOPE_NODE = "scope: node    # in jobcache.yaml: one directory for each node of a job"


def scratch(place: Scratch) -> Iterator[Finding]:
    """Yield findings on the place of one template."""
    if place.untested:
        text = f"{place.template} was not tested: {place.untested}"
        yield Finding("scratch", "writable", WARNING, text, "srun jobcache check    # as an ordinary user")
        return
    fatal = _unusable(place)
    if fatal is not None:
        yield fatal
        return
    yield _writable(place)
    yield from _room(place)
    yield from _filesystem(place)
    yield from _autofs(place)
    if place.flock:
        yield _flock(place)
    yield from _flock_across(place)
    if place.squashed is not None:
        access = "root has no access (root squash, or the mode)" if place.squashed else "root has access"
        yield Finding("scratch", "root", OK, f"{place.existing}: {access}; jobcache acts as the user")


def names(misnamed: tuple[tuple[str, str], ...]) -> Iterator[Finding]:
    """Yield the finding on users' directories that have another name than their owners in passwd, if there are any."""
    if misnamed:
        path, name = misnamed[0]
        text = f"{path} belongs to {name}, by passwd of this host; {{user}} in `path` is the name that Slurm gives to tasks"
        if len(misnamed) > 1:
            text += f" ({len(misnamed)} such directories)"
        yield Finding("scratch", "names", WARNING, text, "use {uid} in `path` where Slurm and passwd have different names")


def _unusable(place: Scratch) -> Optional[Finding]:
    """Return the finding that makes all others impossible, None where no such fault exists."""
    literal = place.template.partition("{")[0].rpartition("/")[0] or "/"
    tried = _tried(place)
    if not place.user and place.error:
        text = f"{place.template} was not tested, because users' directories could not be listed: {place.error}"
        return Finding("scratch", "answers", PROBLEM, text, f"timeout 5 stat -f {literal}")
    if not place.user:
        text = f"{place.template} was not tested, because no user has a directory there yet"
        return Finding("scratch", "writable", PROBLEM, text, "jobcache check --user NAME    # of an ordinary user")
    if place.hung:
        remedy = f"timeout 5 stat -f {place.existing or place.parent or '/scratch'}"
        return Finding("scratch", "answers", PROBLEM, f"{tried}: no answer in time while {place.hung}", remedy)
    if place.user_symlink:
        text = f"{tried}: a user's symlink is in the path, and jobcache does not follow it: {place.error}"
        return Finding("scratch", "link", PROBLEM, text, f"namei -l {place.parent}")
    return None


def _tried(place: Scratch) -> str:
    return f"{place.parent or place.template} as {place.user}"


def _writable(place: Scratch) -> Finding:
    tried = _tried(place)
    if place.error and not place.refused and place.existing and place.existing != place.parent:
        return _cannot_create(place)
    if place.error:
        return Finding("scratch", "writable", PROBLEM, f"{tried}: {place.error}", f"namei -l {place.existing or place.parent}")
    if place.existing == place.parent:
        return Finding("scratch", "writable", OK, f"{tried}: wrote and deleted a directory")
    return Finding("scratch", "writable", OK, f"{tried}: does not exist yet; the user can create it in {place.existing}")


def _cannot_create(place: Scratch) -> Finding:
    """Return the finding on a missing directory. The admin creates a user's directory; one above it is a mount, or a typo."""
    missing = f"{place.existing.rstrip('/')}/{place.parent[len(place.existing) :].lstrip('/').partition('/')[0]}"
    in_template = "/".join(place.template.split("/")[: missing.count("/") + 1])
    if "{user}" not in in_template and "{uid}" not in in_template:
        remedy = f"ls -ld {missing}    # mount it, create it, or correct `path` in jobcache.yaml"
    else:
        remedy = f"install -d -m 700 -o {place.user} {missing}    # for each user, or let users create it in {place.existing}"
    text = f"{_tried(place)}: {missing} does not exist, and the user cannot create it: {place.error}"
    return Finding("scratch", "writable", PROBLEM, text, remedy)


def _room(place: Scratch) -> Iterator[Finding]:
    for name, total, free, unit in (
        ("space", place.total, place.free, "bytes"),
        ("inodes", place.inodes, place.inodes_free, "inodes"),
    ):
        if total <= 0:
            continue  # filesystems that create inodes on demand report 0
        percent = 100.0 * free / total
        level = PROBLEM if percent < _GONE else WARNING if percent < _SCARCE else OK
        remedy = "" if level == OK else f"jobcache list --sort {'bytes' if name == 'space' else 'age'}"
        yield Finding("scratch", name, level, f"{place.existing}: {percent:.1f} % of {total} {unit} free", remedy)


def _filesystem(place: Scratch) -> Iterator[Finding]:
    if not place.fstype:
        return
    if place.fstype in _LOCAL and not place.local and not place.has_node:
        text = f"{place.existing} is {place.fstype}, which nodes do not share, but is not in node_local"
        root = place.template.strip("/").partition("/")[0]
        if root == "{home}":
            remedy = "path: /scratch/{user}/hf-datasets-{job_id}    # in jobcache.yaml: nodes of a job need one home"
        else:
            remedy = f"node_local: [/{root}]    # in jobcache.yaml"
        yield Finding("scratch", "filesystem", WARNING, text, remedy)
    elif place.fstype in _NETWORK and place.local:
        text = f"{place.existing} is {place.fstype}, which nodes share, but is in node_local"
        yield Finding("scratch", "filesystem", WARNING, text, "node_local: []    # in jobcache.yaml")
    else:
        yield Finding("scratch", "filesystem", OK, f"{place.existing} is {place.fstype}")
    blind = [option for option in place.options if option in _BLIND_LOCKS]
    if blind:
        text = f"{place.existing} is mounted with {blind[0]}: file locks do not reach other nodes"
        yield Finding("scratch", "flock", WARNING, text, _SCOPE_NODE)


def _autofs(place: Scratch) -> Iterator[Finding]:
    if place.on_demand:
        text = (
            f"{place.on_demand} is autofs and does not list users' directories. A sweep accesses those of at most "
            f"{accounts.MOST} accounts: of users with jobs, of users in this host's log, and of others that this host lists"
        )
        remedy = "browse    # option of the map in auto.master; or split the sweep with --shard"
        yield Finding("scratch", "autofs", WARNING, text, remedy)
    if place.expires_early:
        text = (
            f"{place.template}: autofs can unmount users' directories while a sweep waits for `sweep.confirm`. If the "
            "filesystem then has another device number, the sweep keeps the caches as young"
        )
        yield Finding("scratch", "autofs", WARNING, text, "--timeout=600    # option of the map in auto.master")


def _flock(place: Scratch) -> Finding:
    if place.flock == EXCLUDED:
        return Finding("scratch", "flock", OK, f"{place.existing}: flock excludes a second process of this node")
    if place.flock == OBTAINED:
        text = f"{place.existing}: flock gives one lock to two processes at once"
    else:
        text = f"{place.existing}: flock does not work: {place.flock}"
    return Finding("scratch", "flock", WARNING, text, "scope: task    # in jobcache.yaml: one directory for each task")


def _flock_across(place: Scratch) -> Iterator[Finding]:
    for node, result in sorted((place.flock_across or {}).items()):
        if result == EXCLUDED:
            level, text, remedy = OK, f"{node} cannot take a lock that another node holds", ""
        elif result == OBTAINED:
            level, text, remedy = WARNING, f"{node} takes a lock that another node holds", _SCOPE_NODE
        else:
            level, text, remedy = WARNING, f"no result from {node}: {result}", "srun -N2 --ntasks-per-node=1 jobcache check"
        yield Finding("scratch", "flock across nodes", level, f"{place.existing}: {text}", remedy)
