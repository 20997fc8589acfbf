"""The protocol by which the nodes of a job share one cache: make, join, release.

No lock, no count, no Slurm command. A cache comes into being complete, by one rename; each node that runs tasks of the
job holds a lease in it, `.jobcache/nodes/<node>`; the node that releases the last lease finds `nodes/` empty, removes
it, and by that alone knows that it is the last one out. `nodes/` is never made again, so nobody can join after that.

Everything here runs as the job's user. On the hot path: standard library only, and nothing heavy of it.
"""

import errno
import os
import stat
import time

from jobcache import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST = 65536  # bytes read of a file that the user may have forged
_MOST_NAMED = 64  # nodes; a user can forge any number of leases
_NOBODYS = ("", 0, 0, -1)
_MOST_LINKS = 40  # as the kernel has it
_SEEDED_LEVELS = 6  # of directories in a seeded cache
_PAUSE = 0.02  # seconds between two looks at a cache that is being reaped
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SEARCH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # a directory need not be readable to be passed through
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Refused(Exception):
    """What stands at the path is not ours to use: a closed-set `reason`, and the words for a person."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Claim:
    """What a task asks for: the cache at `path` for one run of one job on one node.

    first: this task is the first of its run. again: the job has had this path from us already. keep: until the user
    says otherwise. record: what job.json says beside the identity, JSON text by key. below: the directory in the cache
    that will be HF_DATASETS_CACHE, "" for the cache itself. seed: is called with the cache held open while nobody else
    knows of it, and links symlinks into directories of its own there, and nothing else; may add to the record.
    """

    __slots__ = ("path", "cluster", "job_id", "run", "uid", "node", "first", "again", "keep", "record", "below", "seed")

    def __init__(self, path: str, cluster: str, job_id: int, run: int, uid: int, node: str) -> None:
        self.path = path
        self.cluster = cluster
        self.job_id = job_id
        self.run = run
        self.uid = uid
        self.node = node
        self.first = False
        self.again = False
        self.keep = False
        self.record: "dict[str, str]" = {}
        self.below = ""
        self.seed: "Callable[[int], None] | None" = None

    @property
    def identity(self) -> "tuple[str, int, int, int]":
        return self.cluster, self.job_id, self.run, self.uid


# ---------------------------------------------------------------------------------------------------- making, joining


def enter(claim: Claim, until: float) -> str:
    """Make the cache of `claim`, or join it; return "made", "joined" or "mended".

    Wait for a cache that is being reaped until `until` (seconds of time.monotonic). Raise Refused where the path is
    somebody else's or stays taken, OSError where the filesystem says no.
    """
    parent, _, name = claim.path.rpartition("/")
    os.makedirs(parent, 0o700, exist_ok=True)
    parent_fd = open_directory(parent)
    try:
        if os.fstat(parent_fd).st_uid not in (0, claim.uid):
            raise Refused("foreign", "the directory that caches are to be made in belongs to another user")
        while True:
            outcome = _enter_once(parent_fd, name, claim)
            if outcome:
                return outcome
            if time.monotonic() >= until:
                raise Refused("busy", "an earlier cache at this path is still being reaped")
            time.sleep(_PAUSE)
    finally:
        os.close(parent_fd)


def _enter_once(parent_fd: int, name: str, claim: Claim) -> "str | None":
    """Return what `enter` returns, or None where it is worth another look."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    except FileNotFoundError:
        return _make(parent_fd, name, claim)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Refused("foreign", "what stands at the path is not a directory") from None
        raise
    try:
        if os.fstat(fd).st_uid != claim.uid:
            raise Refused("foreign", "the directory at the path belongs to another user")
        found = identity(fd)
        if found == claim.identity and not claim.first:
            return _join(fd, claim)
        if found is None:
            return _unrecorded(parent_fd, name, fd, claim)
        if claim.first and found[:2] == claim.identity[:2] and found[3] == claim.uid:
            return _make(parent_fd, name, claim) if _discard_earlier_life(parent_fd, name, fd, claim) else None
        raise Refused("foreign", "the cache at the path is another job's or another cluster's")
    finally:
        os.close(fd)


def _unrecorded(parent_fd: int, name: str, fd: int, claim: Claim) -> "str | None":
    if _has_entries(f"/proc/self/fd/{fd}/{layout.META}") or not _is_at(parent_fd, name, fd):
        return None  # half reaped since we opened it: its name will be free soon, or is
    if claim.again and not claim.first:
        return _mend(parent_fd, name, fd, claim)
    if _has_entries(f"/proc/self/fd/{fd}"):
        raise Refused("unrecorded", "a directory without our record is at the path, and not empty")
    return _make(parent_fd, name, claim)


def _has_entries(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(True for _ in entries)
    except FileNotFoundError:
        return False


def _make(parent_fd: int, name: str, claim: Claim) -> "str | None":
    """Build a cache beside `name` and rename it there. rename(2) takes the place of an empty directory, and only of that."""
    new = _build(parent_fd, claim, claim.seed)
    try:
        os.rename(new, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except OSError as error:
        _unbuild(parent_fd, new, claim)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return None  # another node was first
        raise
    return "made"


def _is_at(parent_fd: int, name: str, fd: int) -> bool:
    try:
        there = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _mend(parent_fd: int, name: str, fd: int, claim: Claim) -> "str | None":
    """Put a record into a directory that the job's own script has made in place of its cache."""
    new = _build(parent_fd, claim)
    try:
        os.rename(f"{new}/{layout.META}", layout.META, src_dir_fd=parent_fd, dst_dir_fd=fd)
    except OSError as error:
        _unbuild(parent_fd, new, claim)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT):
            return None  # another task was first, or the directory is gone
        raise
    os.rmdir(new, dir_fd=parent_fd)
    return "mended" if _is_at(parent_fd, name, fd) else None  # else another node has mended, ended and reaped it meanwhile


def _join(fd: int, claim: Claim) -> "str | None":
    """Take this node's lease. Where nodes/ is gone, the cache is being reaped: nobody can join it any more."""
    boot, uptime = now()
    try:
        meta_fd = os.open(layout.META, _DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        return None
    try:
        lease_fd = _create_lease(meta_fd, claim.node)
        if lease_fd is not None:
            try:
                os.write(lease_fd, _lease(boot, uptime))
            except OSError:
                pass  # a full disk: a lease that cannot be dated holds the cache all the same
            finally:
                os.close(lease_fd)
        if claim.keep:
            _write(meta_fd, layout.KEEP, b"")
    except FileNotFoundError:
        return None
    finally:
        os.close(meta_fd)
    return "joined"


def _create_lease(meta_fd: int, node: str) -> "int | None":
    try:
        return _create(meta_fd, f"{layout.NODES}/{node}")
    except PermissionError:
        os.close(_open_nodes(meta_fd))
        return _create(meta_fd, f"{layout.NODES}/{node}")


def _discard_earlier_life(parent_fd: int, name: str, fd: int, claim: Claim) -> bool:
    """Move an earlier life's cache, open at `fd`, out of the way: the first task of a run never joins what it finds.

    A job id comes again after a wrap or a lost controller state, and a lost node's run leaves its cache behind. Return
    False where somebody else is about to reap it: its name will be free soon.
    """
    if not seize(fd):
        return False
    try:
        os.rename(name, layout.trash_name(claim.job_id, nonce()), src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except FileNotFoundError:
        pass  # its user removed it meanwhile
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise Refused("busy", "an earlier cache at this path cannot be renamed away") from None
        raise
    return True


def _build(parent_fd: int, claim: Claim, seed: "Callable[[int], None] | None" = None) -> str:
    """Build a complete cache under a temporary name; return the name. On failure, leave nothing."""
    new = layout.new_name(claim.job_id, nonce())
    os.mkdir(new, 0o700, dir_fd=parent_fd)
    try:
        new_fd = os.open(new, _DIRECTORY, dir_fd=parent_fd)
        try:
            os.mkdir(layout.META, 0o700, dir_fd=new_fd)
            meta_fd = os.open(layout.META, _DIRECTORY, dir_fd=new_fd)
            try:
                _write(meta_fd, layout.ID, layout.format_id(*claim.identity).encode("ascii") + b"\n")
                if seed:
                    if claim.below:
                        os.mkdir(claim.below, 0o700, dir_fd=new_fd)
                    seed(new_fd)
                _write(meta_fd, layout.RECORD, record_text(claim).encode("ascii"))
                if claim.keep:
                    _write(meta_fd, layout.KEEP, b"")
                os.mkdir(layout.NODES, 0o700, dir_fd=meta_fd)
                _write(meta_fd, f"{layout.NODES}/{claim.node}", _lease(*now()))
            finally:
                os.close(meta_fd)
        finally:
            os.close(new_fd)
    except OSError:
        _unbuild(parent_fd, new, claim)
        raise
    return new


def _unbuild(parent_fd: int, new: str, claim: Claim) -> None:
    """Remove what `_build` made, file by file: by name, and nothing that it did not make."""
    meta = f"{new}/{layout.META}"
    try:
        if claim.seed:
            _unseed(parent_fd, new, 0)
        for file in (f"{layout.NODES}/{claim.node}", layout.ID, layout.RECORD, layout.KEEP):
            _unlink_if_there(parent_fd, f"{meta}/{file}")
        for directory in (f"{meta}/{layout.NODES}", meta, new):
            _rmdir_if_there(parent_fd, directory)
    except OSError:
        pass  # what stays is debris, with a name that the sweep knows


def _unseed(dir_fd: int, path: str, level: int) -> None:
    """Remove the links and directories that seeding made below `path`: symlinks and what is empty then, and nothing else."""
    with os.scandir(f"/proc/self/fd/{dir_fd}/{path}") as entries:
        found = [(entry.name, entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_link, is_directory in found:
        if is_link:
            _unlink_if_there(dir_fd, f"{path}/{name}")
        elif is_directory and level < _SEEDED_LEVELS and (level or name != layout.META):
            _unseed(dir_fd, f"{path}/{name}", level + 1)
            os.rmdir(f"{path}/{name}", dir_fd=dir_fd)
    if level == 0:
        seeds = f"{path}/{layout.META}/{layout.SEEDS}"
        if os.path.lexists(f"/proc/self/fd/{dir_fd}/{seeds}"):
            _unseed(dir_fd, seeds, 1)
            os.rmdir(seeds, dir_fd=dir_fd)


def _rmdir_if_there(dir_fd: int, path: str) -> None:
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


def _unlink_if_there(dir_fd: int, path: str) -> None:
    try:
        os.unlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        pass


# ------------------------------------------------------------------------------------------------------------ leases


def now() -> "tuple[str, float]":
    """Return this boot's id and the seconds since it: what leases are dated by, since file times are another host's."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    with open("/proc/uptime", encoding="ascii") as file:
        return boot, float(file.read().split()[0])


def _lease(boot: str, uptime: float) -> bytes:
    return f"{boot} {uptime:.2f}\n".encode("ascii")


def release(cache_fd: int, node: str, boot: str, uptime: float) -> str:
    """Give up `node`'s lease in the cache held open at `cache_fd`, for an Epilog that began `uptime` seconds into `boot`.

    Return "last" where it was the last lease: the caller reaps. "others": other nodes hold leases. "none": this node
    held none. "live": the lease is younger than the Epilog, which is a late one of an earlier run. "unreadable": the
    lease cannot be dated (a full disk, a torn write). Only who returns "last" may touch the cache. Raise OSError.
    """
    meta_fd = _open_meta(cache_fd)
    if meta_fd is None:
        return "none"
    try:
        _let_write(meta_fd)
        outcome = _drop_lease(meta_fd, node, boot, uptime)
        if outcome != "dropped":
            return outcome
        os.rmdir(layout.NODES, dir_fd=meta_fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return "others"
        raise
    finally:
        os.close(meta_fd)
    return "last"


def seize(cache_fd: int) -> bool:
    """Take the cache, leases and all, from whoever might hold it; return whether it is ours to move away now.

    As with `release`, the one who takes nodes/ from its place is the one who may, and nobody can join after that. Two
    who both judge a cache to be dead would else move it one after the other, and the second a new one. Raise OSError.
    """
    meta_fd = _open_meta(cache_fd)
    if meta_fd is None:
        return False
    try:
        _let_write(meta_fd)
        os.rename(layout.NODES, f"{layout.NODES}-{nonce()}", src_dir_fd=meta_fd, dst_dir_fd=meta_fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _drop_leases(meta_fd)
    finally:
        os.close(meta_fd)
    return True


def _drop_leases(meta_fd: int) -> bool:
    """The same where a quota is used up, and a filesystem lets go but takes no new name: who removes nodes/ has the cache."""
    try:
        nodes_fd = _open_nodes(meta_fd)
        try:
            for lease in os.listdir(nodes_fd):
                _unlink_if_there(nodes_fd, lease)
        finally:
            os.close(nodes_fd)
        os.rmdir(layout.NODES, dir_fd=meta_fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return False  # somebody has joined, or was faster
        raise
    return True


def _drop_lease(meta_fd: int, node: str, boot: str, uptime: float) -> str:
    """Unlink the lease where it is older than the Epilog; return "dropped", or what `release` returns instead."""
    try:
        nodes_fd = _open_nodes(meta_fd)
    except FileNotFoundError:
        return "none"
    try:
        lease = _read(nodes_fd, node)
        if lease is None:
            return "none"
        dated = parse_lease(lease)
        if dated is None:
            return "unreadable"
        if dated[0] == boot and not dated[1] < uptime:
            return "live"
        if len(os.listdir(nodes_fd)) > 1:
            _mark_shared(meta_fd)
        os.unlink(node, dir_fd=nodes_fd)
    except FileNotFoundError:
        return "none"  # a second Epilog of this job was faster
    finally:
        os.close(nodes_fd)
    return "dropped"


def _open_nodes(meta_fd: int) -> int:
    """Return the directory of leases, open, and such that its owner can write in it. Raise OSError."""
    nodes_fd = os.open(layout.NODES, _DIRECTORY, dir_fd=meta_fd)
    try:
        _let_write(nodes_fd)
    except OSError:
        os.close(nodes_fd)
        raise
    return nodes_fd


def _let_write(fd: int) -> None:
    """Who makes all of a cache read-only, to guard what is in it, does not mean our leases. Raise OSError."""
    if os.fstat(fd).st_mode & stat.S_IWUSR == 0:
        os.fchmod(fd, 0o700)


def _mark_shared(meta_fd: int) -> None:
    try:
        _write(meta_fd, layout.SHARED, b"")
    except OSError:
        pass  # a full disk: Slurm tells the number of nodes as well


def parse_lease(text: str) -> "tuple[str, float] | None":
    """Return (boot_id, seconds since that boot) of a whole lease, else None."""
    words = text.split()
    if not text.endswith("\n") or len(words) != 2:
        return None
    try:
        return words[0], float(words[1])
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------------------ id and record


def identity(cache_fd: int) -> "tuple[str, int, int, int] | None":
    """Return (cluster, job_id, run, uid) as `.jobcache/id` says, None where there is no id at all.

    An id that is there and cannot be read as one comes out as one that equals no job's; so does one that somebody else
    has put there, who may write in this directory.
    """
    owner = os.fstat(cache_fd).st_uid
    try:
        meta_fd = _open_meta(cache_fd)
        if meta_fd is None:
            return None
        try:
            text = _read(meta_fd, layout.ID, owner) if os.fstat(meta_fd).st_uid == owner else ""
        finally:
            os.close(meta_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            return _NOBODYS
        raise
    return None if text is None else layout.parse_id(text) or _NOBODYS


def record_text(claim: Claim) -> str:
    """Return job.json's text: schema 1, the identity, the moment (RFC 3339, UTC), and what `claim.record` adds."""
    fields = {
        "schema": "1",
        "cluster": quote(claim.cluster),
        "job_id": str(claim.job_id),
        "run": str(claim.run),
        "uid": str(claim.uid),
        "node": quote(claim.node),
        "created_at": quote(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())),
        **claim.record,
    }
    return "{" + ", ".join(f"{quote(key)}: {value}" for key, value in fields.items()) + "}\n"


def sign(cache_fd: int, cluster: str, job_id: int, run: int, uid: int) -> None:
    """Give what has no record an id, so that what is left of it can be told. Raise OSError, also where there is a record."""
    os.mkdir(layout.META, 0o700, dir_fd=cache_fd)
    meta_fd = os.open(layout.META, _DIRECTORY, dir_fd=cache_fd)
    try:
        _write(meta_fd, layout.ID, layout.format_id(cluster, job_id, run, uid).encode("ascii") + b"\n")
    finally:
        os.close(meta_fd)


def read_record(cache_fd: int) -> "dict[str, object]":
    """Return what job.json holds, {} where it cannot be read as a JSON object. Believe of it what harms nobody."""
    import json

    try:
        meta_fd = _open_meta(cache_fd)
        if meta_fd is None:
            return {}
        try:
            found = json.loads(_read(meta_fd, layout.RECORD) or "")
        finally:
            os.close(meta_fd)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(cache_fd: int, record: "dict[str, object]") -> None:
    """Put `record` in job.json's place, whole. Raise OSError."""
    import json

    meta_fd = os.open(layout.META, _DIRECTORY, dir_fd=cache_fd)
    try:
        new = f"{layout.RECORD}.{nonce()}"
        try:
            text = json.dumps(record)
        except RecursionError:  # a forged one, nested deeper than we can write
            text = json.dumps({key: value for key, value in record.items() if isinstance(value, (str, int))})
        try:
            _write(meta_fd, new, text.encode("ascii") + b"\n")
            os.rename(new, layout.RECORD, src_dir_fd=meta_fd, dst_dir_fd=meta_fd)
        except OSError:
            _unlink_if_there(meta_fd, new)
            raise
    finally:
        os.close(meta_fd)


def signs_of_life(cache_fd: int) -> "tuple[float, list[str]]":
    """Return when its id, its record or a lease last changed, and nodes that hold leases, 64 at most. Raise OSError.

    Seconds since the epoch by the filesystem's clock: the change time, which its user cannot set. 0.0 where there is none.
    That a lease came or went, the directory of leases tells.
    """
    meta_fd = _open_meta(cache_fd)
    if meta_fd is None:
        return 0.0, []
    newest, nodes = os.fstat(meta_fd).st_ctime, []
    try:
        for name in (layout.ID, layout.RECORD, layout.NODES):
            try:
                newest = max(newest, os.stat(name, dir_fd=meta_fd, follow_symlinks=False).st_ctime)
            except FileNotFoundError:
                continue
        nodes_fd = os.open(layout.NODES, _DIRECTORY, dir_fd=meta_fd)
        try:
            with os.scandir(nodes_fd) as leases:
                for lease, _ in zip(leases, range(_MOST_NAMED)):
                    nodes.append(lease.name)
                    newest = max(newest, lease.stat(follow_symlinks=False).st_ctime)
        finally:
            os.close(nodes_fd)
    except FileNotFoundError:
        pass  # being reaped, or a lease that has just gone
    finally:
        os.close(meta_fd)
    return newest, sorted(nodes)


def is_kept(cache_fd: int) -> bool:
    """Whether the user said JOBCACHE=keep in any task of the job."""
    try:
        os.lstat(f"/proc/self/fd/{cache_fd}/{layout.META}/{layout.KEEP}")
    except OSError:
        return False
    return True


def is_shared(cache_fd: int, node: str, record: "dict[str, object]") -> bool:
    """Whether another node than `node`, which has released the last lease, has used the cache. Doubt means that it has.

    Where `node` made the cache, its lease was there all the time, and every other node has seen it when it went.
    """
    if record.get("node") != node:
        return True
    try:
        os.lstat(f"/proc/self/fd/{cache_fd}/{layout.META}/{layout.SHARED}")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def reason_of(error: OSError) -> str:
    """Return the closed-set reason that stands for an error of the filesystem."""
    return {
        errno.ENOSPC: "no_space",
        errno.EDQUOT: "no_space",
        errno.EACCES: "no_access",
        errno.EPERM: "no_access",
        errno.EROFS: "read_only",
        errno.ELOOP: "not_directory",
        errno.ENOTDIR: "not_directory",
    }.get(error.errno or 0, "io_error")


def quote(text: str) -> str:
    """Return `text` as a JSON string of ASCII alone. Bytes that are not UTF-8 come out as \\xNN in the text."""
    clean = os.fsencode(text).decode("utf-8", "backslashreplace")
    out = []
    for ch in clean:
        if ch in '"\\':
            out.append("\\" + ch)
        elif " " <= ch <= "~":
            out.append(ch)
        else:
            units = ch.encode("utf-16-be")
            out.extend(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    return '"' + "".join(out) + '"'


def nonce() -> str:
    """Return a name part that nobody else has."""
    return os.urandom(8).hex()


def open_directory(path: str) -> int:
    """Open an absolute directory path without following a symlink that is not root's own; return the descriptor.

    Sites put root's symlinks into paths (/scratch, a user's directory on another filesystem); those a user makes could
    lead the deletion elsewhere. Raise OSError, ELOOP for such a one.
    """
    fd = os.open("/", _SEARCH)
    todo = path.split("/")[::-1]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            try:
                below = os.open(part, _SEARCH, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR) or links >= _MOST_LINKS:
                    raise
                target = _roots_link(fd, part, error)  # walked like the rest: a link of root's may lead to one that is not
                todo += target.split("/")[::-1]
                links += 1
                below = os.open("/" if target.startswith("/") else ".", _SEARCH, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


def _roots_link(dir_fd: int, name: str, error: OSError) -> str:
    """Return where root's symlink `name` leads. Raise `error` for what is none."""
    found = os.lstat(name, dir_fd=dir_fd)
    if found.st_uid != 0 or not stat.S_ISLNK(found.st_mode):
        raise error
    return os.readlink(name, dir_fd=dir_fd)


def _open_meta(cache_fd: int) -> "int | None":
    try:
        return os.open(layout.META, _DIRECTORY, dir_fd=cache_fd)
    except FileNotFoundError:
        return None


def _create(dir_fd: int, name: str) -> "int | None":
    """Create a file and return it open for writing, None where there is one already. Raise OSError."""
    try:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except FileExistsError:
        return None


def _write(dir_fd: int, name: str, data: bytes) -> None:
    """Create the file with `data` in it, or leave the one that is there as it is. Raise OSError."""
    fd = _create(dir_fd, name)
    if fd is None:
        return
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    finally:
        os.close(fd)


def _read(dir_fd: int, name: str, owner: "int | None" = None) -> "str | None":
    """Return the text of a plain file of at most 64 KiB, None where there is none. Raise OSError.

    The file is the user's to forge: no symlink is followed, a fifo does not hold us; what is not ASCII, or not `owner`'s
    where one is given, reads as "".
    """
    try:
        fd = os.open(name, _FILE, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or (owner is not None and found.st_uid != owner):
            return ""
        data = os.read(fd, _LONGEST + 1)
    finally:
        os.close(fd)
    if len(data) > _LONGEST or not data.isascii():
        return ""
    return data.decode("ascii")
