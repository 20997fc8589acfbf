#!/usr/bin/env python3
"""Measure the costs of the hooks, each beside a baseline in the same run. See run.sh, and docs/benchmarks.md for the method."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "hooks"), str(ROOT / "tests")]

from support.minicluster import Cluster  # noqa: E402
from support.mounts import mount  # noqa: E402
from support.site_dir import ALICE, Site  # noqa: E402
from support.slowfs import slow  # noqa: E402

WHO = pwd.getpwnam(ALICE)
PYTHON = sys.executable
PLAIN = [PYTHON, "-I", "-c", "pass"]
Row = dict[str, Any]

# Runs commands as a user. The parent has the title of a slurmstepd, because task-prolog reads it. Each round runs each
# command once. A command ends when its pipe is closed: slurmstepd waits for that.
SPAWNER = """
import json, os, sys, time
os.setgroups([]); os.setgid(plan["gid"]); os.setuid(plan["uid"])
def once(argv, env):
    read, write = os.pipe()
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, env, file_actions=[
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_DUP2, write, 2)])
    os.close(write)
    while os.read(read, 65536):
        pass
    os.waitpid(pid, 0)
    took = time.perf_counter() - began
    os.close(read)
    return took
times = {name: [] for name in plan["cases"]}
cases = list(plan["cases"].items())
for at in range(plan["rounds"]):
    cases.append(cases.pop(0))  # rotate, so that no command always follows the same one
    for name, (argv, env) in cases:
        times[name].append(once(argv, {key: value.replace("JOB", str(10_000 + at)) for key, value in env.items()}))
print(json.dumps(times))
"""

# Deletes a directory like the child of the Epilog does. Prints the seconds, the number of files and the peak memory.
DELETE = """
import os, sys, time
sys.path.append({hooks!r})
from jobcache.system import reaper
os.setgroups([]); os.setgid({gid}); os.setuid({uid})
parent, fd = os.open(os.path.dirname({top!r}), os.O_PATH), os.open({top!r}, os.O_RDONLY)
began = time.perf_counter()
tally = reaper.delete(parent, os.path.basename({top!r}), fd, time.monotonic() + 600)
took = time.perf_counter() - began
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(took, tally.files, peak)
assert tally.done
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", metavar="FILE", help="write the table for docs/benchmarks.md there")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root, to act as users and to mount")
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}; the sections are {', '.join(SECTIONS)}")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # with a handler, so that mounts and clusters are removed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    rows = []
    print(f"{'what':<64}{'jobcache':>12}{'against':>12}{'ratio':>9}{'target':>9}  held against")
    for section in options.sections or SECTIONS:
        for row in SECTIONS[section](options.quick):
            rows.append({"section": section, **row})
            print(line(row), flush=True)
    if options.markdown:
        head = ["| what | held against | ratio | target |", "|---|---|---|---|"]
        Path(options.markdown).write_text("\n".join([*head, *map(markdown, rows)]) + "\n")
    if options.json:
        machine = {
            "cores": os.cpu_count(),
            "python": sys.version.split()[0],
            "kernel": os.uname().release,
            "quick": options.quick,
        }
        Path(options.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return 0


def line(row: Row) -> str:
    """Return one line of the table."""
    cost = f"{row['ours']:.4g} {row['unit']}"
    against = f"{row['other']:.4g} {row['unit']}" if row["other"] is not None else ""
    ratio = f"{row['ratio']:.2f}" + ("" if row["of"] != "difference" else " s") if row["ratio"] is not None else ""
    target = f"{row['target']:g}" if row["target"] is not None else ""
    return f"{row['what']:<64}{cost:>12}{against:>12}{ratio:>9}{target:>9}  {row['against']}"


def markdown(row: Row) -> str:
    """Return one line of the table in docs/benchmarks.md."""
    found = f"{row['ratio']:.2f}" if row["ratio"] is not None else f"{row['ours']:.0f} {row['unit']}"
    more = " s more" if row["of"] == "difference" else ""
    target = "" if row["target"] is None else f"{row['target']:g}"
    return f"| {row['what'].strip()} | {row['against']} | {found}{more} | {target} |"


def ratio(what: str, hooks: list[float], against: str, other: list[float], target: float | None) -> Row:
    """Return a row: the medians, in ms, and their ratio."""
    mine, theirs = statistics.median(hooks), statistics.median(other)
    return {
        "what": what, "ours": mine * 1e3, "other": theirs * 1e3, "unit": "ms", "of": "ratio", "ratio": mine / theirs,
        "target": target, "against": against, "repeats": len(hooks), "fastest": min(hooks) / min(other),
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- TaskProlog


@contextmanager
def new_site(**keys: Any) -> Iterator[Site]:
    site = Site()
    try:
        if keys:
            site.configure(**keys)
        yield site
    finally:
        site.close()


def task_prolog(quick: bool) -> Iterator[Row]:
    """Measure the TaskProlog of one task, in the environment of a real task."""
    rounds = 60 if quick else 300
    _, *lines = (ROOT / "tests/contract/environments/22.05/step.env").read_text().splitlines()
    step = dict(line.split("=", 1) for line in lines)
    with new_site() as site:
        hook = str(site.hooks / "task-prolog")
        (site.hooks / "with-bash").write_text("#!/bin/bash\n" + (site.hooks / "task-prolog").read_text())
        (site.hooks / "with-bash").chmod(0o755)
        site.task_prolog(1, HOME=step["HOME"])  # with another home, a step gets a directory of its own
        cache = str(site.cache(1))
        step.update(SLURM_JOB_ID="1", SLURMD_NODENAME="n1", SLURM_CLUSTER_NAME="test")
        inherited = {**step, "JOBCACHE_DIR": cache, "HF_DATASETS_CACHE": cache}
        theirs = (
            f"export HF_DATASETS_CACHE={cache}-x; mkdir -p $HF_DATASETS_CACHE; echo export HF_DATASETS_CACHE=$HF_DATASETS_CACHE"
        )
        times = spawned(
            "slurmstepd: [1.0]", rounds,
            {
                "line": (["/bin/bash", "-c", theirs], step), "sh": (["/bin/sh", "-c", ":"], step),
                "inherited": ([hook], inherited), "bare": ([hook], step), "bash": ([str(site.hooks / "with-bash")], inherited),
            },
        )  # fmt: skip
        users = "the line users write (bash, mkdir -p)"
        yield ratio("task-prolog, a further task of a batch job", times["inherited"], users, times["line"], 0.35)
        yield ratio("  of a job without a batch script", times["bare"], users, times["line"], 0.35)
        yield ratio("  where /bin/sh is bash", times["bash"], users, times["line"], None)
        yield ratio("  the floor: /bin/sh -c :", times["sh"], users, times["line"], None)
        batch = {**step, "SLURM_JOB_ID": "JOB", "ENVIRONMENT": "BATCH"}
        del batch["SLURM_STEP_ID"]
        times = spawned("slurmstepd: [1.batch]", rounds // 3, {"python": (PLAIN, step), "first": ([hook], batch)})
        made = len(list(site.cache().parent.glob("*/.jobcache/nodes/n1")))
        assert made == rounds // 3 + 1 == len(site.syslog.events("cache.created")), made
        yield ratio("task-prolog, the first task of a job", times["first"], "python3 -I -c pass", times["python"], 2.0)


def spawned(title: str, rounds: int, cases: dict[str, tuple[list[str], dict[str, str]]]) -> dict[str, list[float]]:
    """Return the seconds of each case in each round."""
    plan = {"uid": WHO.pw_uid, "gid": WHO.pw_gid, "rounds": rounds, "cases": cases}
    program = f"import json\nplan = json.loads({json.dumps(plan)!r})\n{SPAWNER}"
    done = subprocess.run([title], executable="/usr/bin/python3", input=program.encode(), stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


# --------------------------------------------------------------------------------------------------------------- Epilog


def epilog(quick: bool) -> Iterator[Row]:
    """Measure the Epilog of one job, alone on its node."""
    rounds = 9 if quick else 31
    with new_site() as site:
        times: dict[str, list[float]] = {"pass": [], "import": [], "none": [], "cache": []}
        for _ in range(rounds):
            fill(site, 4242, files=50, size=2 << 20)
            times["pass"].append(timed(PLAIN))
            times["import"].append(timed([PYTHON, "-I", "-c", "import structlog, psutil"]))
            times["none"].append(timed([str(site.hooks / "epilog")], job_env(1)))
            times["cache"].append(timed([str(site.hooks / "epilog")], job_env(4242)))
            assert not site.cache().exists()
        assert len(site.events("cache.reaped")) == len(site.events()) == rounds
        imports = "python3 -I -c 'import structlog, psutil'"
        yield ratio("Epilog, a cache of 50 files, 100 MB", times["cache"], imports, times["import"], 1.3)
        yield ratio("Epilog, a job that has no cache", times["none"], "python3 -I -c pass", times["pass"], 2.5)
    with new_site(epilog={"budget": "0s"}) as site:
        sizes = {"few": 50, "many": 10_000 if quick else 100_000}
        held: dict[str, list[float]] = {"few": [], "many": []}
        for job, name in ((1, "few"), (2, "many")):
            fill(site, job, files=sizes[name], size=0)
        for _ in range(rounds // 2):
            for job, name in ((1, "few"), (2, "many")):
                held[name].append(timed([str(site.hooks / "epilog")], job_env(job)))
                assert not site.cache(job).exists()
                revive(site, job)
        yield ratio(f"Epilog, {sizes['many']:,} files, deletion budget 0", held["many"], "itself with 50 files", held["few"], 1.3)


def at_once(quick: bool) -> Iterator[Row]:
    """Measure many Epilogs at the same time, as at the end of an array."""
    many, cores = 64, os.cpu_count() or 1
    alone: list[float] = []
    together: list[float] = []
    with new_site(epilog={"budget": "20s"}) as site:  # so that all of them do the same work
        for _ in range(1 if quick else 3):
            for job in range(1, many + 9):
                fill(site, job, files=50, size=4096)
            alone += [timed([str(site.hooks / "epilog")], job_env(job)) for job in range(many + 1, many + 9)]
            began = time.perf_counter()
            with ThreadPoolExecutor(many) as pool:
                list(pool.map(lambda job: timed([str(site.hooks / "epilog")], job_env(job)), range(1, many + 1)))
            together.append(time.perf_counter() - began)
            assert not list(site.scratch.glob("*/.cache/*"))
    shared = [one * many / cores for one in alone]
    yield ratio("Epilogs of 64 jobs at once", together, f"64 x one, over {cores} cores", shared, 1.3)


def fill(site: Site, job: int, *, files: int, size: int) -> None:
    """Make a cache like a job leaves it: files of `size` bytes, at most 100 in a directory."""
    site.task_prolog(job)
    data = b"x" * size
    for at in range(files):
        directory = site.cache(job) / f"json/default-{at // 100}/0.0.0"
        if at % 100 == 0:
            directory.mkdir(parents=True)
        (directory / f"{at}.arrow").write_bytes(data)
    subprocess.run(["chown", "-R", f"{WHO.pw_uid}:{WHO.pw_gid}", str(site.cache(job))], check=True)
    time.sleep(0.02)  # leases have dates in hundredths of a second, and an Epilog keeps a lease of its own age


def revive(site: Site, job: int) -> None:
    """Rename trash back to the cache, and restore its lease."""
    (trash,) = [path for path in site.cache().parent.iterdir() if path.name.startswith(f".jobcache-trash-{job}-")]
    trash.rename(site.cache(job))
    nodes = site.cache(job) / ".jobcache/nodes"
    nodes.mkdir()
    (nodes / "n1").write_text(f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} 0.00\n")
    for path in (nodes, nodes / "n1"):
        os.chown(path, WHO.pw_uid, WHO.pw_gid)


def job_env(job: int) -> dict[str, str]:
    """Return the environment that slurmd gives to an Epilog."""
    return {
        "SLURM_JOB_ID": str(job), "SLURM_JOB_UID": str(WHO.pw_uid), "SLURM_JOB_GID": str(WHO.pw_gid), "SLURM_JOB_USER": ALICE,
        "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_EXIT_CODE": "0", "SLURM_CLUSTER_NAME": "test",
    }  # fmt: skip


def timed(argv: list[str], env: dict[str, str] | None = None) -> float:
    """Return the seconds that a command takes."""
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, env or {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)])
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"{argv}: {status}"
    return time.perf_counter() - began


# -------------------------------------------------------------------------------------------------------------- deletion


def tree(quick: bool) -> Iterator[Row]:
    """Measure the deletion of many files, on a filesystem in memory and on one with a journal."""
    directories = 100 if quick else 1000
    memory: list[float] = []
    for kind, target in (("ext4", 1.3), ("tmpfs", 1.7)):
        hooks: list[float] = []
        theirs: list[float] = []
        with filesystem(kind) as place:
            for _ in range(3 if quick else 7):
                as_alice(partial(plant, place / "hooks", directories, 100))
                as_alice(partial(plant, place / "theirs", directories, 100))
                os.sync()
                deleted(place / "hooks", directories * 100, hooks, memory)
                theirs.append(timed(["/usr/bin/rm", "-rf", str(place / "theirs")]))
            what = f"deleting {directories * 100:,} files in {directories:,} directories, {kind}"
            yield ratio(what, hooks, "rm -rf of an equal tree", theirs, target)
    yield {
        "what": "  its greatest memory", "ours": max(memory), "other": None, "unit": "MiB", "of": "value", "ratio": None,
        "target": 40.0, "against": "", "repeats": len(memory),
    }  # fmt: skip


def deleted(top: Path, files: int, times: list[float], memory: list[float]) -> None:
    """Delete a tree in a process of its own; append the seconds to `times` and the peak memory in MiB to `memory`."""
    program = DELETE.format(hooks=str(ROOT / "hooks"), top=str(top), uid=WHO.pw_uid, gid=WHO.pw_gid)
    done = subprocess.run([PYTHON, "-I", "-S", "-c", program], stdout=subprocess.PIPE, check=True, cwd="/")
    seconds, count, kib = done.stdout.split()
    assert int(count) == files
    times.append(float(seconds))
    memory.append(int(kib) / 1024)


def plant(top: Path, directories: int, each: int) -> None:
    (top / ".jobcache").mkdir(parents=True)
    for at in range(directories):
        (top / str(at)).mkdir()
        fd = os.open(top / str(at), os.O_RDONLY)
        for name in range(each):
            os.close(os.open(str(name), os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)


def as_alice(work: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(WHO.pw_gid)
            os.setuid(WHO.pw_uid)
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


@contextmanager
def filesystem(kind: str) -> Iterator[Path]:
    """Yield the mount point of a new filesystem in which every user can write."""
    with tempfile.TemporaryDirectory(prefix="jobcache-") as base:
        os.chmod(base, 0o755)
        place = Path(base) / "place"
        place.mkdir()
        if kind == "tmpfs":
            with mount("none", place, options="mode=1777"):
                yield place
            return
        image = Path(base) / "image"
        with image.open("wb") as file:
            file.truncate(2 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "400000", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        try:
            place.chmod(0o1777)
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)


def slow_filesystem(quick: bool) -> Iterator[Row]:
    """Measure the deletion on a filesystem that answers each request after a millisecond."""
    each = 100 if quick else 1000
    files = [*(f"top/{at}/{name}" for at in range(10) for name in range(each)), "top/.jobcache/id"]
    hooks, theirs, asked = [], [], []
    with tempfile.TemporaryDirectory(prefix="jobcache-") as base:
        os.chmod(base, 0o755)
        place = Path(base)
        for _ in range(3 if quick else 1):  # 20,000 answers are enough samples
            for name in ("hooks", "theirs"):
                with slow(place, files, uid=WHO.pw_uid) as server:
                    if name == "hooks":
                        deleted(place / "top", 10 * each, hooks, [])
                    else:
                        began = time.perf_counter()
                        as_alice(lambda: os.execv("/usr/bin/rm", ["rm", "-rf", str(place / "top")]))
                        theirs.append(time.perf_counter() - began)
                    assert server.left() == 0
                    asked.append((name, sum(server.asked.values()), server.most))
    yield ratio(f"deleting {10 * each:,} files in 10 directories, 1 ms an answer", hooks, "rm -rf of an equal tree", theirs, 1.0)
    questions = {name: statistics.median(count for who, count, _ in asked if who == name) for name in ("hooks", "theirs")}
    yield {
        "what": f"  requests (jobcache: at most {max(most for who, _, most in asked if who == 'hooks')} at once)",
        "ours": questions["hooks"], "other": questions["theirs"], "unit": "", "of": "ratio",
        "ratio": questions["hooks"] / questions["theirs"], "target": None, "against": "rm -rf", "repeats": len(hooks),
    }  # fmt: skip


def large(quick: bool) -> Iterator[Row]:
    """Measure the Epilog on a cache with few large files, as of a language model's dataset."""
    size = (300 << 20) // 12 if quick else (3 << 30) // 12
    hooks, theirs = [], []
    with new_site(epilog={"budget": "20s"}) as site:
        seed = site.dir / "seed-epilog"
        seed.write_text(f"#!/bin/sh\nrm -rf {site.cache().parent}/hf-datasets-$SLURM_JOB_ID\n")
        seed.chmod(0o755)
        for _ in range(3):
            for job, hook, times in ((1, seed, theirs), (2, site.hooks / "epilog", hooks)):
                fill(site, job, files=12, size=size)
                os.sync()
                times.append(timed([str(hook)], {**job_env(job), "PATH": "/usr/bin"}))
                assert not site.cache(job).exists() and not site.debris()
    row = ratio(f"Epilog, a cache of 12 files, {size * 12 / 1e9:.1f} GB", hooks, "rm -rf as an Epilog", theirs, 0.25)
    yield {**row, "of": "difference", "ratio": (row["ours"] - row["other"]) / 1e3}


# --------------------------------------------------------------------------------------------------------------- cluster

# In an allocation of both nodes: the first step, which finds no cache, and further steps. Prints microseconds, one line a step.
STEPS = r"""
for step in $(seq $1); do
    began=${EPOCHREALTIME/./}
    srun -n64 /bin/true || exit 1
    echo $((${EPOCHREALTIME/./} - began))
done
"""
SHORT = r"""
began=${EPOCHREALTIME/./}
for step in $(seq $1); do srun -N1 -n1 /bin/true || exit 1; done
echo $((${EPOCHREALTIME/./} - began))
"""


def cluster(quick: bool) -> Iterator[Row]:
    """Measure real jobs on two nodes of one machine, beside equal jobs with a TaskProlog that does nothing."""
    rounds, further, short = (2, 2, 30) if quick else (7, 4, 200)
    site = Site()
    noop = site.dir / "noop"
    noop.write_text("#!/bin/sh\nexit 0\n")
    noop.chmod(0o755)
    with (
        Cluster(conf=[f"TaskProlog={noop}"], cpus=32) as without,
        Cluster(conf=[f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog"], cpus=32) as wired,
    ):
        site.configure(cluster=wired.name, task_prolog={"deadline": "20s"})
        first: dict[Cluster, list[float]] = {wired: [], without: []}
        others: dict[Cluster, list[float]] = {wired: [], without: []}
        many: dict[Cluster, list[float]] = {wired: [], without: []}
        try:
            for _ in range(rounds):
                for one in (wired, without):
                    took = in_allocation(one, ["-N2", "-n64"], STEPS, further + 1)
                    first[one].append(took[0])
                    others[one] += took[1:]
            for _ in range(1 if quick else 2):
                for one in (wired, without):
                    many[one] += in_allocation(one, ["-N1", "-n1"], SHORT, short)
            jobs = rounds + (1 if quick else 2)
            until = time.monotonic() + 30
            while len(site.events("cache.reaped")) < jobs:
                assert time.monotonic() < until, "not every job's cache was reaped"
                time.sleep(0.1)
        finally:
            wired.stop()
            without.stop()
            site.close()
    noop_hook = "the same with a no-op /bin/sh TaskProlog"
    yield ratio("srun -n64 on two nodes, the cache exists", others[wired], noop_hook, others[without], 1.10)
    yield ratio("srun -n64 on two nodes, the first step of the job", first[wired], noop_hook, first[without], 1.6)
    yield ratio(f"{short} short steps in one job", many[wired], noop_hook, many[without], 1.05)


def in_allocation(where: Cluster, options: list[str], script: str, count: int) -> list[float]:
    """Return the seconds that a bash script prints, in microseconds, when run inside an allocation."""
    done = where.salloc("-Q", *options, "bash", "-c", script, "bash", str(count), user=ALICE, timeout=300)
    return [int(word) / 1e6 for word in done.stdout.split()]


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "task-prolog": task_prolog,
    "epilog": epilog,
    "at-once": at_once,
    "tree": tree,
    "slow": slow_filesystem,
    "large": large,
    "cluster": cluster,
}

if __name__ == "__main__":
    sys.exit(main())
