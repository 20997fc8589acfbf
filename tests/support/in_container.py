"""A container as pyxis and enroot make one: a process in it has its own root directory, mounts and mapping of uids.

As a library: `Container(site, mapping="root").task_prolog()`. As a program, run as root: enter the container that a JSON text
describes, and run a command in it as its user.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.site_dir import Site
    from support.task_prolog import Prologue

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

# The mappings of uids, for the user {uid}: lines of /proc/self/uid_map; "" for no user namespace.
MAPPINGS = {
    "none": "",
    "itself": "{uid} {uid} 1\n",
    "remapped": "0 {uid} 1\n",
    "both": "0 100000 1\n{uid} {uid} 1\n",
    "remapped_with_others": "0 {uid} 1\n1 100000 60000\n",
}
TMPFS = "tmpfs"  # a source of a mount: a new filesystem that the container's owner owns
# The uid that owns the container's own directories: root's, or another one of the container's root. Elsewhere it is the user's.
OWNERS = {"none": 0, "both": 100000}


class Container:
    """A container for processes of the user ALICE.

    site: its hooks and its system log are in the container. mapping: a key of MAPPINGS. mounts: (source, target), or
    (source, target, "ro"). directories: those of the image.
    """

    def __init__(
        self, site: Site, *, mapping: str = "itself",
        mounts: Sequence[Sequence[Path | str]] = (), directories: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        from support.faulty import GID, UID

        self.site = site
        self.root = Path(tempfile.mkdtemp(prefix="container-", dir=site.dir))
        host = [path for path in Path("/").iterdir() if path.name not in ("tmp", "lost+found") and not path.is_symlink()]
        bound = [path for path in (*host, Path(sys.prefix), site.hooks, site.syslog.path) if path.is_dir() or path.is_socket()]
        all_mounts = [*((path, path) for path in bound), *mounts]
        for link in Path("/").iterdir():
            if link.is_symlink():
                (self.root / link.name).symlink_to(os.readlink(link))
        for source, target, *_ in all_mounts:
            point = self._inside(target)
            point.parent.mkdir(parents=True, exist_ok=True)
            if source == TMPFS or Path(source).is_dir():
                point.mkdir(exist_ok=True)
            else:
                point.touch()
        for directory in directories:
            self._inside(directory).mkdir(parents=True)
        owner = OWNERS.get(mapping, UID)
        for path in (self.root, *self.root.rglob("*")):
            os.lchown(path, owner, owner)
        self.root.chmod(0o755)
        self._image = set(self._names())
        self._words = {
            "root": str(self.root), "owner": owner, "uid": UID, "gid": GID, "mounts": [list(map(str, one)) for one in all_mounts],
            "uid_map": MAPPINGS[mapping].format(uid=UID), "gid_map": MAPPINGS[mapping].format(uid=GID),
        }  # fmt: skip

    def _inside(self, path: Path | str) -> Path:
        return self.root / str(path).lstrip("/")

    def _names(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))

    def task_prolog(self, job: int = 4242, *, step: str = "", node: str = "n1", shell: str = "/bin/sh", **env: str) -> Prologue:
        """Run the TaskProlog of a task of ALICE's job in the container."""
        from support.site_dir import ALICE
        from support.task_prolog import Prologue, environment

        variables = {**environment(ALICE, job, step=step, node=node), **env}
        done = self.run([*shell.split(), str(self.site.hooks / "task-prolog")], **variables)
        assert (done.returncode, done.stderr) == (0, b"")
        return Prologue(done.returncode, done.stdout)

    def run(self, command: Sequence[str], **env: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the container, in exactly this environment."""
        return subprocess.run(
            [sys.executable, "-I", "-S", __file__, json.dumps(self._words), *command],
            env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    def added(self) -> list[str]:
        """Return the paths that processes have created in the container's own root directory."""
        return [name for name in self._names() if name not in self._image]


# ---- as a program, in a process of its own


def _enter(words: dict[str, Any]) -> None:
    """Mount the container and make it the root directory of this process. Raise OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    def mount(source: str, target: str, flags: int, kind: str = "none", options: str = "") -> None:
        encoded = os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()
        check(libc.mount(*encoded), f"mount {target}")

    root = words["root"]
    check(libc.unshare(_CLONE_NEWNS), "unshare")
    mount("none", "/", _MS_REC | _MS_PRIVATE)
    mount(root, root, _MS_BIND)
    for source, target, *options in words["mounts"]:
        if source == TMPFS:
            mount(TMPFS, root + target, 0, TMPFS, f"mode=755,uid={words['owner']},gid={words['owner']}")
        else:
            mount(source, root + target, _MS_BIND | _MS_REC)
        if options == ["ro"]:
            mount("none", root + target, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    os.chdir(root)
    check(libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")


def _run(words: dict[str, Any], command: list[str]) -> int:
    """Run a command in the container as its user; return its exit status."""
    _enter(words)
    asked, ask = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(words["gid"])
        os.setuid(words["uid"])
        if words["uid_map"]:
            assert ctypes.CDLL(None).unshare(_CLONE_NEWUSER) == 0, "unshare -U"
            os.write(ask, b"x")
            os.read(told, 1)
        os.closerange(3, 64)
        os.execv(command[0], command)
    if words["uid_map"]:
        os.read(asked, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "wb", buffering=0) as file:
                file.write(words[name].encode())
        os.write(tell, b"x")
    os.closerange(3, 64)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(_run(json.loads(sys.argv[1]), sys.argv[2:]))
