"""Run programs that use the real `datasets`, as a user. A server imports numpy and Arrow once and forks for each program.

Each program imports `datasets` itself, which reads its environment variables on import. JOBCACHE_DATASETS_PYTHONS names
further Pythons with other versions of `datasets`, separated by `:`. Tests that hold for every version run with these too.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.site_dir import ALICE

# Earlier versions, which tests/run.sh installs.
EARLIER = {version: f"{sys.prefix}/datasets-{version}/bin/python" for version in ("3.6.0", "2.21.0")}
PYTHONS = [sys.executable, *filter(None, os.environ.get("JOBCACHE_DATASETS_PYTHONS", "").split(":"))]

_SERVER = r"""
import contextlib, json, os, signal, sys, traceback
if sys.argv[1:] == ["warm"]:
    import dill, fsspec, multiprocess, numpy, pandas, pyarrow, pyarrow.dataset, pyarrow.parquet
    for name in "aiohttp", "httpx2", "requests":
        with contextlib.suppress(ImportError):
            __import__(name)

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    ask = json.loads(line)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = {"error": "the program printed nothing"}
        try:
            os.setgroups([]); os.setgid(ask["gid"]); os.setuid(ask["uid"])
            os.umask(0o077)
            signal.alarm(60)
            os.environ.update({name: value for name, value in ask["env"].items() if value is not None})
            os.dup2(os.open(os.devnull, os.O_RDWR), 2)
            names = {"__name__": "__main__"}
            exec(ask["first"], names)
            exec(compile("import datasets\nfrom datasets import *\n" + ask["code"], "<job>", "exec"), names)
            answer = {"result": names.get("result")}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        finally:
            with os.fdopen(write, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    print(text or '{"error": "the program died"}', file=answers, flush=True)
"""


class JobFailed(Exception):
    """The program raised an exception; the message is its traceback."""


class Python:
    """A Python with `datasets`. warm: import large libraries once, not in each program; by default for this process's own."""

    def __init__(self, executable: str, *, warm: bool | None = None) -> None:
        assert os.path.exists(executable), f"{executable} is missing: run tests/run.sh, which installs it"
        warm = executable == sys.executable if warm is None else warm
        env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONWARNINGS": "ignore", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        self._server = subprocess.Popen(
            # Libraries of other versions may start threads, which do not survive a fork: import them in each program.
            [executable, "-c", _SERVER, *(["warm"] if warm else [])],
            env=env, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, code: str, home: Path, *, user: str = ALICE, first: str = "", **env: str | None) -> Any:
        """Run `code` after `from datasets import *`, and return its variable `result`. Raise JobFailed.

        home: HOME, a directory of the user. env: the job's variables, such as HF_DATASETS_CACHE; None unsets one. HF_HOME
        lies below `home` by default. first: code to run before the import.
        """
        who = pwd.getpwnam(user)
        variables = {"HOME": str(home), "HF_HOME": f"{home}/hf", **env}
        ask = {"code": code, "first": first, "uid": who.pw_uid, "gid": who.pw_gid, "env": variables}
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(ask) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        if "error" in answer:
            raise JobFailed(answer["error"])
        return answer["result"]

    def close(self) -> None:
        self._server.communicate(timeout=30)
