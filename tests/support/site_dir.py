"""A site in a directory: configuration, compiled hooks, a scratch, a log and a system log, and hooks run as Slurm runs them.

Everything lies below one temporary directory that ordinary users can enter; a configuration that names any other path
is refused, so that no test can have anything else deleted.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import yaml

import jobcache
from jobcache.cache import cache_names
from jobcache.config import apply, compilation, settings
from support import task_prolog

ALICE, BOB = "games", "www-data"  # accounts that every Debian has: tests create no account
SHELLS = ("/bin/dash", "/bin/bash", "/bin/busybox sh")
_SCHEMA = Path(jobcache.__file__).parent / "config" / "schema" / "event.json"


class Site:
    """dir: the temporary directory. hooks: compiled there by `configure`. cluster: "test"."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="jobcache-"))
        self.dir.chmod(0o755)
        self.hooks = self.dir / "hooks"
        self.scratch = self.dir / "scratch"
        self.log = self.dir / "events.jsonl"
        self.scratch.mkdir()
        self.scratch.chmod(0o1777)
        self.syslog = SystemLog(self.dir / "devlog")
        self.keys: dict[str, Any] = {}
        self.configure()

    def close(self) -> None:
        """Check every written event against the schema, and remove the directory."""
        try:
            self.events()
            self.syslog.events()
        finally:
            self.syslog.close()
            shutil.rmtree(self.dir, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------- configuration

    def configure(self, **keys: Any) -> settings.Settings:
        """Set top-level keys of the configuration, beside those set before, and compile it."""
        self.keys = {
            "cluster": "test",
            "path": f"{self.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}",
            "min_uid": 1,
            "run_dir": f"{self.dir}/run",
            "log": {"file": str(self.log), "syslog": str(self.syslog.path)},
            **self.keys,
            **keys,
        }
        paths = [self.keys["path"], *(rule.get("path", self.keys["path"]) for rule in self.keys.get("rules", []))]
        assert all(path.startswith((f"{self.dir}/", "{home}/")) for path in paths), "tests touch nothing but their own directory"
        file = self.dir / "jobcache.yaml"
        file.write_text(yaml.safe_dump(self.keys, sort_keys=False))
        compiled = compilation.compile_settings(str(file), str(self.hooks))
        apply.put(apply.wanted(compiled, str(self.hooks), with_hooks=True), str(self.hooks))
        return compiled

    def policy(self, **values: str) -> None:
        """Overwrite variables of the compiled policy, as a broken machine would: `python="/nonexistent"`."""
        text = (self.hooks / settings.POLICY).read_text()
        for name, value in values.items():
            text = text.replace("jc_policy_end=", f"jc_{name}='{value}'\njc_policy_end=")
        (self.hooks / settings.POLICY).write_text(text)

    # --------------------------------------------------------------------------------------------------------- hooks

    def task_prolog(
        self, job: int = 4242, *, user: str = ALICE, node: str = "n1", step: str = "", shell: str = "/bin/sh", **env: str
    ) -> task_prolog.Prologue:
        """Run the TaskProlog of one task as its user. step: "" for the batch step. env: further variables."""
        variables = {**task_prolog.environment(user, job, node=node, step=step), "PATH": "/nonexistent", **env}
        done = task_prolog.run(self.hooks, user, variables, shell=shell)
        assert done.stderr == b""
        return done

    def epilog(
        self, job: int = 4242, *, user: str = ALICE, node: str = "n1", nodes: int = 1, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the Epilog of a job on one node. Assert that it exits 0 and prints nothing."""
        who = pwd.getpwnam(user)
        variables = {
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_UID": str(who.pw_uid),
            "SLURM_JOB_GID": str(who.pw_gid),
            "SLURM_JOB_USER": user,
            "SLURMD_NODENAME": node,
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_EXIT_CODE": "0",
            **env,
        }
        variables = {name: value for name, value in variables.items() if value != ""}
        time.sleep(0.02)  # leases have dates in hundredths of a second, and an Epilog keeps a lease of its own age
        done = subprocess.run(
            [str(self.hooks / "epilog")],
            env=variables,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        return done

    # ------------------------------------------------------------------------------------------------- scratch and events

    def cache(self, job: int = 4242, run: int = 0, user: str = ALICE) -> Path:
        """Return the path of a cache by the default template."""
        return self.scratch / user / ".cache" / f"hf-datasets-{job}{f'-r{run}' if run else ''}"

    def fill(self, cache: Path, *files: str, size: int = 4096) -> None:
        """Write files into a cache; the owner of the cache owns them."""
        owner = cache.stat()
        for name in files:
            path = cache / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * size)
            for part in (path, *path.relative_to(cache).parents):
                os.lchown(cache / part if part != path else path, owner.st_uid, owner.st_gid)

    def debris(self, user: str = ALICE) -> list[str]:
        """Return the names of half-made caches and of trash."""
        return [name for name in self.names(user) if name.startswith(".jobcache-")]

    def names(self, user: str = ALICE) -> list[str]:
        """Return all names in the directory of a user's caches, without the history."""
        return entries(self.scratch / user / ".cache")

    def history(self, user: str = ALICE, event: str = "") -> list[dict[str, Any]]:
        """Return the lines of a user's history, each checked against the schema; with `event`, only events of this name."""
        names = (cache_names.HISTORY_OLDER, cache_names.HISTORY)
        files = [path for name in names if (path := self.scratch / user / ".cache" / name).exists()]
        lines = [line for path in files for line in path.read_text().splitlines() if line]
        return [found for found in map(validated, lines) if event in ("", found["event"])]

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """Return the events of the log file, each checked against the schema; with `event`, only events of this name."""
        lines = self.log.read_bytes().decode().splitlines() if self.log.exists() else []
        return [found for found in map(validated, lines) if event in ("", found["event"])]


def entries(directory: Path | str) -> list[str]:
    """Return all names in a directory without those of a history, [] if the directory does not exist."""
    found = os.listdir(directory) if os.path.exists(directory) else []
    return sorted(name for name in found if not cache_names.is_history(name))


class SystemLog:
    """A socket like /dev/log that collects all messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while True:
            message = self._socket.recv(65536)
            if message == b"close":
                return
            self.messages.append(message.decode())

    def events(self, event: str = "") -> list[dict[str, Any]]:
        """Return the events that were sent so far, like Site.events."""
        self._socket_roundtrip()
        found = [validated(message[message.index("{") :]) for message in self.messages]
        return [one for one in found if event in ("", one["event"])]

    def _socket_roundtrip(self) -> None:
        """Wait until the log has received all earlier messages."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.sendto(b"close", str(self.path))
        self._thread.join()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.sendto(b"close", str(self.path))
        self._thread.join()
        self._socket.close()


def validated(line: str) -> dict[str, Any]:
    """Return the event on `line`; an event that the schema does not know fails the test."""
    event = json.loads(line)
    jsonschema.Draft7Validator(json.loads(_SCHEMA.read_text())).validate(event)
    return event
