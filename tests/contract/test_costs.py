"""Upper limits of countable costs of the hooks: processes, programs, system calls, modules. docs/benchmarks.md has times."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import jobcache
from support.site_dir import ALICE, Site
from support.user_cache import HASH, count_calls, put

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
BLOCK = 8192  # bytes of a script that dash and bash read at once
PROCESSES = ("fork", "vfork", "clone", "clone3")
DELETE = """
import os, sys, time
sys.path.append({hooks!r})
from jobcache.system import reaper
reaper._SLOW = 60  # under strace every filesystem is slow
os.setuid({uid})
parent, fd = os.open({parent!r}, os.O_PATH), os.open({top!r}, os.O_RDONLY)
os.write(1, b"begin")
assert reaper.delete(parent, os.path.basename({top!r}), fd, time.monotonic() + 60).done
"""


class Traced:
    """Runs a site's hooks under strace. Each run returns the number of calls of each system call, by all processes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.trace = site.dir / "trace"
        self.prefix = f"/usr/bin/strace -f -qq -o {self.trace}"

    def task(self, step: str, **env: str) -> Counter[str]:
        self.trace.touch()
        self.trace.chmod(0o666)
        assert self.site.task_prolog(step=step, shell=f"{self.prefix} /bin/sh", **env).cache
        return self.calls()

    def epilog(self, job: int) -> Counter[str]:
        traced = self.site.dir / "traced"
        traced.mkdir(exist_ok=True)
        (traced / "epilog").write_text(f"#!/bin/sh\nexec {self.prefix} {self.site.hooks}/epilog\n")
        (traced / "epilog").chmod(0o755)
        hooks, self.site.hooks = self.site.hooks, traced
        try:
            self.site.epilog(job)
        finally:
            self.site.hooks = hooks
        return self.calls()

    def calls(self) -> Counter[str]:
        """Return the number of calls of each system call, and of executions as "program NAME"."""
        counts: Counter[str] = Counter()
        for line in self.trace.read_text().splitlines():
            if found := re.match(r'\d+ +(\w+)\((?:"([^"]*)")?', line):
                counts[found[1]] += 1
                if found[1] == "execve" and not re.search(r"= -1 \w+ \(.*\)$", line):
                    counts[f"program {os.path.basename(found[2])}"] += 1
        self.trace.unlink()
        return counts


def programs(calls: Counter[str]) -> list[str]:
    return sorted(name.removeprefix("program ") for name in calls if name.startswith("program "))


def processes(calls: Counter[str]) -> int:
    return sum(calls[name] for name in PROCESSES)


def test_further_task_starts_no_program(site: Site) -> None:
    """A task that finds its node's lease needs one child for the search, at most three short ones, no timer and no program.

    strace delays the children, so the best of many runs counts."""
    site.task_prolog()
    traced = Traced(site)
    inherited = {"JOBCACHE_DIR": str(site.cache()), "HF_DATASETS_CACHE": str(site.cache())}
    runs = (traced.task("0", **inherited) for _ in range(150))
    best = next((calls for calls in runs if programs(calls) == ["sh"] and processes(calls) <= 4), None)
    assert best is not None, "no run had only a shell, a child that joins and three children"
    assert sum(best[name] for name in best if " " not in name) < 320


def test_further_task_reads_one_block_of_task_prolog(site: Site) -> None:
    """The hot path ends within the block that the shell reads first, and calls no function that stands below."""
    text = (site.hooks / "task-prolog").read_bytes()
    end = b'[ -n "$jc_slow_path" ] || jc_finish\n'
    above, below = text.split(end)
    assert len(above + end) <= BLOCK
    for name in re.findall(rb"^(jc_\w+)\(\)", below, re.MULTILINE):
        assert not re.search(rb"(?<![=_\w])" + name + rb"\b", above), (
            f"{name.decode()} is called on the hot path, and stands below it"
        )


def test_first_task_starts_one_python(site: Site) -> None:
    """It starts Python, the timer and its sleep."""
    calls = Traced(site).task("")
    assert programs(calls) == sorted(["sh", "sleep", os.path.basename(sys.executable)]) and processes(calls) <= 4


def test_epilog_starts_four_programs(site: Site) -> None:
    """With or without a cache: the shim, ls for the mode of the policy, Python, and the timer's sleep."""
    site.task_prolog()
    traced = Traced(site)
    for job in (1, 4242):
        assert programs(traced.epilog(job)) == sorted(["epilog", "ls", "sleep", os.path.basename(sys.executable)])
    assert not site.cache().exists()


@pytest.mark.parametrize("cached", [False, True])
def test_epilog_imports_no_installed_module(site: Site, cached: bool) -> None:
    """Python does not search the directories of installed packages, with a cache or without one."""
    if cached:
        site.task_prolog()
    traced = Traced(site)
    program = (site.hooks / "policy.sh").read_text().partition("jc_python='")[2].partition("'")[0]
    imports = site.dir / "imports"
    wrapper = site.dir / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {program} -X importtime "$@" 2>{imports}\n')
    wrapper.chmod(0o755)
    site.policy(python=str(wrapper))
    traced.epilog(4242)
    loaded = {line.rpartition("|")[2].strip() for line in imports.read_text().splitlines()}
    assert "jobcache.system.reaper" in loaded
    assert bool(site.events("cache.reaped")) == cached
    assert not loaded & {"site", "structlog", "rich", "psutil", "yaml", "jsonschema", "click", "typing", "dataclasses", "logging"}


def test_history_costs_one_open_and_one_write(site: Site) -> None:
    """Of each hook, and of no task but the first: no lock, no second open, and a look at the file and its directory (fstat).

    strace delays the timer of the hooks, so the run with the fewest calls counts."""
    calls: dict[tuple[str, str], list[Counter[str]]] = {}
    for mode in ("off", "on"):
        site.configure(history=mode)
        site.task_prolog(7)  # the file exists
        traced = Traced(site)
        for _ in range(5):
            calls.setdefault((mode, "first"), []).append(traced.task(""))
            traced.task("0")
            calls.setdefault((mode, "epilog"), []).append(traced.epilog(4242))
            assert not site.cache().exists()
    for hook in ("first", "epilog"):
        off, on = (min(calls[mode, hook], key=lambda one: sum(one.values())) for mode in ("off", "on"))
        more = on - off
        assert more["open"] + more["openat"] <= 1 and more["rename"] + more["flock"] + more["unlink"] == 0, more
        assert more["write"] <= 2 and more["newfstatat"] + more["fstat"] <= 2, more  # one to a pipe: the report of its end
        assert processes(more) == 0 and programs(on) == programs(off)
    assert len(site.history(event="cache.created")) == 5 and len(site.history(event="cache.reaped")) == 5


def test_further_task_has_no_history(site: Site) -> None:
    """The word is passed to prepare.py alone, below the hot path."""
    text = (site.hooks / "task-prolog").read_text()
    assert "history" not in text[: text.index("# The hot path ends here")]


def test_deletion_needs_one_stat_and_one_unlink_per_file(site: Site) -> None:
    """Each directory needs an open, a look at its mount, two listings and a removal."""
    directories, files = 4, 50
    uid = pwd.getpwnam(ALICE).pw_uid
    top = site.scratch / "top"
    for at in range(directories):
        (top / str(at)).mkdir(parents=True)
        for name in range(files):
            (top / str(at) / str(name)).touch()
    for path in (top, *top.rglob("*")):
        os.lchown(path, uid, uid)
    program = DELETE.format(hooks=str(Path(jobcache.__file__).parents[1]), uid=uid, parent=str(site.scratch), top=str(top))
    trace = site.dir / "trace"
    subprocess.run(["strace", "-f", "-qq", "-o", str(trace), sys.executable, "-I", "-S", "-c", program], check=True, cwd="/")
    _, _, text = trace.read_text().partition('"begin"')
    counts = Counter(found[1] for line in text.splitlines() if (found := re.match(r"\d+ +(\w+)\(", line)))
    assert counts["unlinkat"] == directories * files + directories + 1
    assert counts["newfstatat"] + counts["fstat"] <= directories * files + 8 * directories + 20
    assert counts["getdents64"] <= 2 * directories + 10 and counts["openat"] <= 2 * directories + 10
    assert counts["clone"] + counts["clone3"] == 0


def test_link_to_a_build_needs_few_calls_on_metadata(tmp_path: Path) -> None:
    """Each further build, with four files and directories of its own, takes the same number of calls."""
    counts = []
    for builds in (1, 11):
        home = tmp_path / str(builds) / "home"
        for at in range(builds):
            put(home / "datasets", f"json/default-{at}/0.0.0/{HASH}", maps=2)
        counts.append(count_calls(home.parent, home))
    each = {kind: (counts[1][kind] - counts[0][kind]) / 10 for kind in counts[1]}
    assert each["symlink"] == 4 and each["mkdir"] == 3 and each["utime"] == 1
    assert each["open"] <= 7 and each["list"] <= 6 and each["read"] <= 4 and each["stat"] <= 10
