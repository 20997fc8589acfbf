"""Gather facts about scratch, as an ordinary user: whether that user can write there, free space, locks, root squash.

Scratch is touched only in children with a deadline. The directories that they create have the names of half-made caches:
if a child is killed, the sweep deletes what it left.
"""

import errno
import os
import pwd
import stat
import time
from dataclasses import replace
from typing import Any, Callable, Optional

from jobcache.cache import cache_names, dirfd, path_template, reasons, safe_path
from jobcache.cache.fields import number
from jobcache.config.settings import Settings
from jobcache.diagnostics import probing_child
from jobcache.diagnostics.check_facts import Scratch
from jobcache.diagnostics.probe_flock import ACROSS_NODES, Rendezvous, TemporaryDirectory, flock_excludes, try_across_nodes
from jobcache.system import mounts
from jobcache.system.stuck_processes import Register

PATIENCE = 10.0  # seconds for all operations on one place


def scratch(site: Settings, text: str, tester: pwd.struct_passwd, node: str) -> Scratch:
    """Try the place of one template as an ordinary user; return the facts."""
    template = path_template.Template(text)
    local = site.is_node_local(template)
    facts = Scratch(text, tester.pw_name, local=local, has_node=(True, "node") in template.parts)
    account, job_id = os.environ.get("SLURM_JOB_ACCOUNT", ""), number(os.environ.get("SLURM_JOB_ID", ""))
    if template.job_directory and job_id is None:
        return replace(facts, untested="the site makes a directory for each job")
    if (True, "account") in template.parts and not account:
        return replace(facts, untested="no account is known outside of a job")
    names = {"user": tester.pw_name, "cluster": site.cluster, "node": node, "account": account}
    names["home"] = tester.pw_dir
    try:
        place = template.bind(uid=tester.pw_uid, job_id=job_id or 0, **names)
    except path_template.BadName as error:
        return replace(facts, error=str(error))
    facts = replace(facts, parent=place.parent)
    if tester.pw_uid == 0:
        return replace(facts, error="root never tries scratch; name a user with --user")
    rendezvous = None if local or facts.has_node else Rendezvous.from_environment(os.environ)
    patience = PATIENCE + (ACROSS_NODES if rendezvous else 0.0)
    register = Register(site.run_dir)
    where = register.place(tester.pw_uid, place.parent)
    found = probing_child.run(_Trial(place, rendezvous), tester, patience, where)
    is_private = found.pop("is_private", False)
    facts = replace(facts, **found)
    if facts.existing:
        fstype, options = _mount_of(facts.existing)
        facts = replace(facts, fstype=fstype, options=options)
    facts = replace(facts, **_autofs(template, site, register))
    if os.geteuid() == 0 and is_private:
        facts = replace(facts, squashed=_is_root_squashed(facts.existing, register))
    return facts


def _autofs(template: path_template.Template, site: Settings, register: Register) -> dict[str, Any]:
    """Return the fields of `Scratch` about autofs, where it mounts the first directories with a placeholder in their names."""
    path = template.text.partition("{")[0].rpartition("/")[0] or "/"
    mount = mounts.containing(path, mounts.read())
    if mount is None or mount.fstype != "autofs":
        return {}

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        report({"step": f"listing {path}"})
        with dirfd.Opened(0, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as fd:
            report({"browse": mounts.lists_unmounted(fd, os.listdir(fd))})

    found = probing_child.run(work, None, PATIENCE, register.place(0, path, "autofs"))
    timeout = next((option[len("timeout=") :] for option in mount.options if option.startswith("timeout=")), "")
    expires_early = timeout.isdigit() and 0 < int(timeout) <= site.tree["sweep"]["confirm"]
    return {"on_demand": "" if found.get("browse") else path, "expires_early": expires_early}


class _Trial:
    """The work of a child that acts as a user. It reports fields of `Scratch`, and `is_private`: others have no access."""

    def __init__(self, place: path_template.Place, rendezvous: Optional[Rendezvous]) -> None:
        self.parent = place.parent
        self.above = place.above
        self.rendezvous = rendezvous

    def __call__(self, report: Callable[[dict[str, Any]], None]) -> None:
        report({"step": f"opening {self.parent}"})
        try:
            existing, fd = _open_existing_part(self.parent, self.above)
        except reasons.Refused as refusal:
            report({"error": str(refusal), "refused": True})
            return
        except OSError as error:
            report({"error": str(error), "user_symlink": error.errno in (errno.ELOOP, errno.ENOTDIR)})
            return
        report({"existing": existing, "step": f"reading the size of {existing}"})
        room = os.fstatvfs(fd)
        report({
            "total": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize,
            "inodes": room.f_files, "inodes_free": room.f_favail,
            "is_private": stat.S_IMODE(os.fstat(fd).st_mode) & 0o077 == 0,
        })  # fmt: skip
        try:
            report({"step": f"writing in {existing}"})
            with TemporaryDirectory(fd, cache_names.new_name(os.getpid(), "check" + dirfd.nonce())) as directory:
                report({"step": f"locking in {existing}"})
                report({"flock": flock_excludes(directory)})
            if self.rendezvous:
                report({"step": f"waiting for the other nodes in {existing}"})
                report({"flock_across": try_across_nodes(fd, self.rendezvous, time.monotonic() + ACROSS_NODES)})
        except reasons.Refused as refusal:
            report({"error": str(refusal), "refused": True})
        except OSError as error:
            report({"error": error.strerror or str(error)})  # without its path, which begins at a descriptor


def _open_existing_part(path: str, above: str) -> tuple[str, int]:
    """Return the longest part of a path that exists, and its descriptor. Raise OSError, Refused. above: as of open_safe."""
    while True:
        try:
            return path or "/", safe_path.open_safe(path or "/", os.geteuid(), above)
        except FileNotFoundError:
            path = path.rpartition("/")[0]


def _is_root_squashed(path: str, register: Register) -> Optional[bool]:
    """Return whether root cannot list a directory of which root squash is the likely reason; None if it hangs."""

    def work(report: Callable[[dict[str, Any]], None]) -> None:
        report({"step": f"listing {path} as root"})
        try:
            os.listdir(path)
        except PermissionError:
            report({"squashed": True})
        else:
            report({"squashed": False})

    return probing_child.run(work, None, PATIENCE, register.place(0, path, "check")).get("squashed")


def _mount_of(path: str) -> tuple[str, tuple[str, ...]]:
    """Return the filesystem's type and options, from the mount table alone: the filesystem can hang."""
    mount = mounts.containing(path, mounts.read())
    return (mount.fstype, mount.options) if mount else ("", ())
