"""A directory that the site makes for each job: `{job_id}` in a directory of the path."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.home import uid_of
from support.site_dir import ALICE, SHELLS, Site

pytestmark = pytest.mark.root
PATH = "/local/{job_id}/hf-datasets-{job_id}"


class Local:
    """A site whose Prolog makes /local/<job id>, and whose Epilog removes it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.top = site.scratch / "local"
        self.top.mkdir()
        self.configure(PATH)

    def configure(self, path: str) -> None:
        self.site.configure(path=f"{self.site.scratch}{path}", node_local=[str(self.top)])

    def prolog(self, job: int = 4242, owner: str = ALICE, mode: int = 0o700) -> Path:
        directory = self.top / str(job)
        directory.mkdir()
        os.chown(directory, uid_of(owner), -1)
        directory.chmod(mode)
        return directory

    def epilog(self, job: int = 4242) -> None:
        shutil.rmtree(self.top / str(job))

    def cache(self, job: int = 4242, **env: str) -> Path:
        """Run the TaskProlog; return the job's cache, with files in it."""
        cache = self.site.task_prolog(job, **env).cache
        assert cache is not None and os.path.isdir(cache)
        self.site.fill(Path(cache), *(f"json/{number}.arrow" for number in range(20)))
        return Path(cache)

    def reasons(self) -> list[tuple[object, object]]:
        return [(event["event"], event.get("reason")) for event in self.site.events()]


@pytest.fixture
def local(site: Site) -> Local:
    return Local(site)


@pytest.mark.parametrize("python", ["", "/nonexistent"])
@pytest.mark.parametrize("run", [0, 2])
def test_cache_in_the_directory_of_the_job_is_reaped(local: Local, run: int, python: str) -> None:
    """A requeue changes the name of the cache alone. The directory stays: it is the site's."""
    directory = local.prolog()
    if python:
        local.site.policy(python=python)
    cache = local.cache(SLURM_RESTART_COUNT=str(run))
    assert cache == directory / f"hf-datasets-4242{f'-r{run}' if run else ''}"
    local.site.configure()
    local.site.epilog()
    assert os.listdir(directory) == [] and local.reasons() == [("cache.reaped", None)]


def test_epilog_of_the_site_first(local: Local) -> None:
    """The cache is gone with the directory: no event, and nothing is created."""
    local.prolog()
    local.cache()
    local.epilog()
    local.site.epilog()
    assert local.reasons() == [] and os.listdir(local.top) == []


def test_epilogs_at_once_report_no_error(local: Local) -> None:
    """Slurm runs one after the other. Wherever the removal meets the other Epilog, no error is reported."""
    for job in range(1, 16):
        directory = local.prolog(job)
        local.cache(job)
        with subprocess.Popen(["rm", "-rf", str(directory)], stderr=subprocess.DEVNULL):
            local.site.epilog(job)
        shutil.rmtree(directory, ignore_errors=True)
    assert os.listdir(local.top) == []
    assert {event["level"] for event in local.site.events()} <= {"info"}, local.site.events()


def test_directory_of_the_job_without_a_record_is_left_to_the_site(local: Local) -> None:
    """The site's Epilog can be deleting it at this moment: nothing is written into it."""
    directory = local.prolog()
    (directory / "hf-datasets-4242/data").mkdir(parents=True)
    os.chown(directory / "hf-datasets-4242", uid_of(ALICE), -1)
    local.site.epilog()
    assert os.listdir(directory / "hf-datasets-4242") == ["data"] and local.reasons() == []


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("python", ["", "/nonexistent"])
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_directory_of_the_job_is_never_made(local: Local, mode: int, python: str, shell: str) -> None:
    """Nor anything below it, even where the user could create it. The job runs without a private cache."""
    local.top.chmod(mode)
    local.configure("/local/{job_id}/x/hf-datasets-{job_id}")
    if python:
        local.site.policy(python=python)
    assert local.site.task_prolog(shell=shell).exports == {}
    assert os.listdir(local.top) == []
    if not python:
        (event,) = local.site.syslog.events()
        assert (event["event"], event["reason"]) == ("cache.skipped", "no_job_directory")
        assert f"{local.top}/4242" in event["error"]


@pytest.mark.parametrize("python", ["", "/nonexistent"])
@pytest.mark.parametrize(
    ("path", "prepare"),
    [
        ("/local/{job_id}/tmp/hf-{job_id}", lambda directory: (directory / "tmp").mkdir()),
        ("/local/{job_id}/{user}/hf-{job_id}", lambda directory: (directory / ALICE).mkdir()),
        ("/local/{job_id}/hf-{job_id}", lambda directory: directory.chmod(0o1777)),
    ],
)
def test_directory_of_the_job_can_be_roots(local: Local, path: str, prepare: Callable[[Path], None], python: str) -> None:
    """With a directory of the user's in it, or with the sticky bit."""
    local.configure(path)
    directory = local.prolog(owner="root", mode=0o755)
    prepare(directory)
    for below in directory.iterdir():
        os.chown(below, uid_of(ALICE), -1)
    if python:
        local.site.policy(python=python)
    cache = local.cache()
    local.site.configure()
    local.site.epilog()
    assert cache.parent.exists() and not cache.exists()


@pytest.mark.parametrize("python", ["", "/nonexistent"])
def test_directory_of_another_user_is_refused(local: Local, python: str) -> None:
    """Another user made a directory with the number of the job, in a place that all can write."""
    local.top.chmod(0o1777)
    local.prolog(owner="www-data", mode=0o777)
    if python:
        local.site.policy(python=python)
    assert local.site.task_prolog().exports == {}
    assert os.listdir(local.top / "4242") == []


def test_directory_made_by_root_but_closed_is_refused(local: Local) -> None:
    """As of job_container/tmpfs, outside of the job's own mount namespace."""
    local.prolog(owner="root", mode=0o700)
    assert local.site.task_prolog().exports == {}
    assert [event["reason"] for event in local.site.syslog.events()] == ["no_access"]


def test_values_of_another_job_are_replaced(local: Local) -> None:
    """A job that a job submitted inherits the path of the first one's cache. A path with two ids is the user's own."""
    local.prolog()
    other = dict.fromkeys(("HF_DATASETS_CACHE", "JOBCACHE_DIR"), f"{local.top}/7/hf-datasets-7")
    assert local.site.task_prolog(**other).cache == f"{local.top}/4242/hf-datasets-4242"
    local.epilog()
    assert sorted(local.site.task_prolog(**other).unsets) == ["HF_DATASETS_CACHE", "JOBCACHE_DIR"]
    assert local.site.task_prolog(HF_DATASETS_CACHE=f"{local.top}/7/hf-datasets-8").unsets == []
