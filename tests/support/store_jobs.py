"""Fixtures and steps of the tests of stores: jobs that publish, `jobcache store`, a stub of Slurm, and work as Alice."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import jobcache
from jobcache.cache import linking
from jobcache.store import inventory, publishing
from jobcache.store.publication import Destination, Published
from support.site_dir import ALICE, BOB, Site
from support.stores import Jobs, Template

LABEL = "exp-1"
UID, GID = pwd.getpwnam(ALICE).pw_uid, pwd.getpwnam(ALICE).pw_gid
DAY = 86400


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    """One real build of `datasets`."""
    made = Template()
    yield made
    made.close()


@pytest.fixture
def jobs(site: Site) -> Jobs:
    """Jobs of a site with stores, and a squeue and scontrol that answer from a file; `queue` writes it."""
    programs = site.dir / "slurm"
    programs.mkdir()
    (programs / "squeue").write_text(
        f"#!/bin/sh\n[ -e {programs}/down ] && exit 1\n"
        f'case "$*" in *%S*) cat {programs}/queue ;; *) cut -d"|" -f1-4 {programs}/queue ;; esac\n'
    )
    (programs / "scontrol").write_text(
        '#!/bin/sh\ncase "$*" in *config) echo "ClusterName = test" ;; *) echo "No jobs in the system" ;; esac\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    site.configure(slurm={"squeue": f"{programs}/squeue", "scontrol": f"{programs}/scontrol", "timeout": "5s"})
    made = Jobs(site)
    queue(made)
    return made


def queue(jobs: Jobs, *lines: str) -> None:
    """Make these lines, by `running`, the live jobs."""
    (jobs.site.dir / "slurm/queue").write_text("".join(f"{line}\n" for line in lines))


def running(since: float, job: int = 7, user: str = ALICE) -> str:
    """Return squeue's line of a running job. since: its start, in seconds since the epoch."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    return f"{job}|{job}|RUNNING|{pwd.getpwnam(user).pw_uid}|{stamp}"


def used(build: Path, days: float) -> None:
    """Date the last use of a build `days` days back."""
    os.utime(build, (time.time() - days * DAY, time.time() - days * DAY))


# --------------------------------------------------------------------------------------------------------- publishing


def published(jobs: Jobs, template: Template, label: str = LABEL) -> Path:
    """Run a job that publishes the template's build; return the build in the store."""
    template.put(jobs.begin(label))
    (event,) = jobs.end()
    assert event["outcome"] == "published", event
    return jobs.stored(label)[-1]


def publish(jobs: Jobs, cache: Path, until: float | None = None, *, replace: bool = False) -> Published:
    """Publish a cache into Alice's store; call this as Alice. until: the deadline, by default in a minute."""
    to = Destination(str(jobs.path), LABEL, maps=True, replace=replace)
    return publishing.publish(open_cache(cache), to, time.monotonic() + 60 if until is None else until)


def store_command(jobs: Jobs, *words: str, user: str = ALICE, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `jobcache store` as a user; the words after `--` are COMMAND."""
    who = pwd.getpwnam(user)
    at = words.index("--") if "--" in words else len(words)
    argv = [sys.executable, "-m", "jobcache.cli", "store", *words[:at], "--hooks", str(jobs.site.hooks), *words[at:]]
    package = str(Path(jobcache.__file__).parents[1])
    return subprocess.run(
        argv, env={"PATH": "/usr/bin:/bin", "HOME": str(jobs.home), "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1", **env},
        user=who.pw_uid, group=who.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def copying(template: Template) -> list[str]:
    """Return a command that leaves the template's build in its cache like load_dataset, and keeps a build that exists."""
    text = f'mkdir -p "$HF_DATASETS_CACHE/{os.path.dirname(template.key)}" && cd "$HF_DATASETS_CACHE" && '
    text += f"[ -e {template.key} ] || cp -a {template.cache}/{template.key} {template.key}; "
    text += f"touch _x_{template.key.replace('/', '_')}.lock"
    return ["sh", "-c", text]


def filled(jobs: Jobs, template: Template, label: str = LABEL) -> Path:
    """Publish the template's build with `store build`; return the build in the store."""
    done = store_command(jobs, "build", *(["--label", label] if label else []), "--", *copying(template))
    assert done.returncode == 0, done.stderr
    return jobs.stored(label)[-1]


def site_store(jobs: Jobs, template: Template, owner: str = BOB) -> Path:
    """Create a site's store, owned by an account of its own; return the template's build in it."""
    stored = published(jobs, template)
    place = jobs.site.dir / "site-store"
    shutil.copytree(jobs.path, place, copy_function=shutil.copy2)
    (place / "v1" / f"label-{LABEL}").rename(place / "v1/default")
    for path in [place, *place.rglob("*")]:
        shutil.chown(path, owner)
        path.chmod(0o755 if path.is_dir() else 0o444)
    shutil.rmtree(jobs.path)
    jobs.site.configure(store={"user": str(jobs.path).replace(ALICE, "{user}"), "site": str(place)})
    return place / "v1/default" / stored.name


@contextmanager
def store_elsewhere(jobs: Jobs) -> Iterator[None]:
    """Put the store on another filesystem than the caches."""
    place = jobs.path.parent / "other"
    place.mkdir(parents=True)
    for path in (place.parent.parent, place.parent):
        shutil.chown(path, ALICE)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,uid={UID}", "tmpfs", place], check=True)
    try:
        jobs.path = place / "store"
        jobs.site.configure(store={"user": f"{jobs.site.scratch}/{{user}}/.cache/other/store"})
        yield
    finally:
        subprocess.run(["umount", place], check=True)


# ----------------------------------------------------------------------------------------------------------- as Alice


def as_alice(work: Callable[[], object]) -> int:
    """Start a process that does `work` as Alice; return its pid. It ends with status 0, or 1 if `work` raises."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(GID)
            os.setuid(UID)
            os.umask(0o077)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def succeeded(pid: int) -> bool:
    """Wait for a child and return whether its status is 0."""
    return os.waitpid(pid, 0)[1] == 0


def open_cache(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def link_cache(jobs: Jobs, cache: Path) -> int:
    """Create a cache as prepare.py does, and return the number of builds linked into it. Call this as Alice."""
    (cache / ".jobcache").mkdir(parents=True)
    fd = open_cache(cache)
    try:
        return linking.seed(linking.Place(fd, "", ".jobcache/seeds"), [linking.Source(str(jobs.path), [LABEL], UID)]).builds
    finally:
        os.close(fd)


def count_whole_builds(jobs: Jobs) -> int:
    """Assert that every build in the store is whole and that no link leads nowhere; return the number of builds."""
    found = [entry for entry in inventory.entries(str(jobs.path), UID, deep=True) if entry.kind == "build"]
    assert [entry.problem for entry in found] == [""] * len(found)
    cache = jobs.home / f"look-{time.monotonic_ns()}"
    assert succeeded(as_alice(lambda: link_cache(jobs, cache)))
    for link in cache.rglob("*"):
        assert link.exists(), f"{link} leads nowhere"
    return len(found)


def prune_entries(jobs: Jobs, now: float, oldest_job: float | None = None, *, retire: bool = False) -> None:
    """Delete what a pruning would delete at `now`, without asking Slurm; call this as Alice. retire: retire as well."""
    from jobcache.store import removal, retention

    found: list[Any] = list(inventory.entries(str(jobs.path), UID))
    decisions = retention.to_retire(found, time.time(), 1 << 40, 1e9, None) if retire else []
    decisions += retention.to_delete(found, now, oldest_job)
    list(removal.carry_out(str(jobs.path), UID, decisions, time.monotonic() + 60))
