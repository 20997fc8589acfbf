"""The lines by which the TaskProlog lets Apptainer and SingularityCE mount scratch, in each shell that /bin/sh can be."""

from __future__ import annotations

import os
import re

import pytest

from jobcache.config import settings
from support.site_dir import SHELLS, Site
from support.task_prolog import Prologue

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
NAMES = [f"{program}_{kind}" for kind in ("MOUNT", "BINDPATH", "BIND") for program in ("APPTAINER", "SINGULARITY")]


class Place:
    """A site whose scratch Apptainer has to mount. The scratch of other tests is below /tmp, which Apptainer mounts."""

    def __init__(self, site: Site, shell: str) -> None:
        self.site = site
        self.shell = shell
        self.dir = str(site.scratch)
        self.configure()

    def configure(self, **keys: object) -> None:
        self.site.configure(**keys)
        file = self.site.hooks / settings.POLICY
        text, count = re.subn("^ +jc_bind_dir=''$", f"jc_bind_dir='{self.dir}'", file.read_text(), flags=re.MULTILINE)
        assert count
        file.write_text(text)

    def mount(self, directory: str = "") -> str:
        directory = directory or self.dir
        return f"type=bind,dst={directory},src={directory}"

    def task(self, *, job: int = 4242, step: str = "", **env: str) -> Prologue:
        return self.site.task_prolog(job, step=step, shell=self.shell, **env)

    def binds(self, done: Prologue) -> dict[str, str]:
        return {name: done.exports[name] for name in NAMES if name in done.exports}

    def fill(self, binds: str, job: int = 4242) -> str:
        """Return binds of a user with the paths of this place."""
        cache = self.site.cache(job)
        return binds.format(dir=self.dir, above=self.dir.rpartition("/")[0], way=cache.parent.parent, cache=cache)

    def both(self, kind: str, value: str) -> dict[str, str]:
        return {f"APPTAINER_{kind}": value, f"SINGULARITY_{kind}": value}


@pytest.fixture(params=SHELLS, ids=lambda shell: shell.split()[0].rpartition("/")[2])
def place(site: Site, request: pytest.FixtureRequest) -> Place:
    return Place(site, request.param)


def test_task_with_a_cache_gets_a_mount(place: Place) -> None:
    """Both variables, with one value: Apptainer reports a difference."""
    done = place.task()
    assert place.binds(done) == place.both("MOUNT", place.mount()) and done.cache and done.unsets == []


def test_steps_inherit_the_mount_unchanged(place: Place) -> None:
    """Each step inherits the variables of the batch script. The step of a step has the same lines."""
    env = place.task().exports
    for step in ("0", "1"):
        done = place.task(step=step, **env)
        assert place.binds(done) == place.both("MOUNT", place.mount()) and done.unsets == []
        env = {**env, **done.exports}


@pytest.mark.parametrize("kind", ["BIND", "BINDPATH"])
@pytest.mark.parametrize("program", ["APPTAINER", "SINGULARITY"])
def test_binds_of_the_user_stay(place: Place, program: str, kind: str) -> None:
    done = place.task(**{f"{program}_{kind}": "/data,/home/x:/y:ro"})
    assert place.binds(done) == place.both("MOUNT", place.mount()) and done.unsets == []


def test_mounts_of_the_user_stay(place: Place) -> None:
    """A variable of the user is never extended or replaced: the mount goes into the first free pair."""
    own = {"SINGULARITY_MOUNT": "type=bind,src=/data,dst=/data"}
    bind = f"{place.dir}:{place.dir}:rw"
    first = place.task(**own)
    assert place.binds(first) == place.both("BINDPATH", bind) and first.unsets == []
    again = place.task(step="0", **own, **first.exports)
    assert place.binds(again) == place.both("BINDPATH", bind) and again.unsets == []
    own["APPTAINER_BINDPATH"] = "/data"
    assert place.binds(place.task(job=2, **own)) == place.both("BIND", bind)
    own["APPTAINER_BIND"] = "/data"
    assert not place.task(job=3, **own).exports


# Binds by which containers would not see the cache, or could not write to it. {way}: a directory between scratch and the cache.
HIDING = (
    "/x:{dir}", "/x:{dir}:ro,/y", "{dir}:{dir}:ro", "/x:{above}", "/y,/x:{above}/:ro", "/x:/tmp", "/x:{way}", "/x:{way}/.cache",
    "/x:{cache}", "{way}:{way}:ro", "/x:/y/../tmp", "/x:/tmp//", "/x:/y/./z", "/x:{dir}/new",
)  # fmt: skip
SHOWING = ("{dir}", "/x,{dir}/", "{dir}:{dir}", "{dir}/:{dir}:rw", "{dir},/x:{dir}/new")
HARMLESS = (
    "{above}", "{above}:{above}", "{above}:{above}:ro", "/x:{way}/y", "/x:{cache}/y", "/x:{cache}-2", "{way}", "{way}:{way}",
    "{dir}/new", "{dir}/new:{dir}/new/:ro", "{dir}-2", "/x:{dir}-2", "/x:/data{dir}", "{dir}x:/y", "/x:/tm", "*:[a-z]", ",", ":",
    "/x:", "{dir}:/y", "/x:/", "/x:/ro:ro",
)  # fmt: skip


@pytest.mark.parametrize("bind", HIDING)
def test_no_cache_where_a_bind_of_the_user_hides_it(place: Place, bind: str) -> None:
    """The user mounts another directory there or above, or scratch read-only, or a name that Apptainer would have to create in
    scratch, which fails. Without us `datasets` worked in such a container: so the job has no cache."""
    for job, name in enumerate(("APPTAINER_BIND", "SINGULARITY_BINDPATH"), 1):
        done = place.task(job=job, **{name: place.fill(bind, job)})
        assert not done.exports and not done.cache and done.unsets == []
    assert [event["reason"] for event in place.site.syslog.events("cache.skipped")] == ["container_bind"] * 2


@pytest.mark.parametrize("bind", SHOWING)
def test_bind_of_the_user_serves_as_the_mount(place: Place, bind: str) -> None:
    done = place.task(APPTAINER_BIND=place.fill(bind))
    assert place.binds(done) == {} and done.cache and done.unsets == []


@pytest.mark.parametrize("bind", HARMLESS)
def test_mount_beside_other_binds_of_the_user(place: Place, bind: str) -> None:
    assert place.binds(place.task(SINGULARITY_BIND=place.fill(bind))) == place.both("MOUNT", place.mount())


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        ("type=bind,source=/x,destination={above}", None),
        ("dst={above},type=bind,src=/x", None),
        ("type=bind,src={dir},dst={dir},ro", None),
        ("type=bind,src=/y,dst=/y\ntype=bind,src=/x,target={way}", None),
        ("type=bind,source={dir},destination={dir}", {}),
        ("type=bind,src=/y,dst=/y\ntype=bind,src={dir},dst={dir}/", {}),
        ("type=bind,src={above},dst=/y\ntype=bind,src=/y,dst={way}/y", "BINDPATH"),
    ],
)
def test_mounts_of_the_user_count_as_binds_do(place: Place, mount: str, expected: dict[str, str] | str | None) -> None:
    done = place.task(APPTAINER_MOUNT=place.fill(mount))
    if isinstance(expected, str):
        expected = place.both(expected, f"{place.dir}:{place.dir}:rw")
    assert bool(done.cache) is (expected is not None)
    assert place.binds(done) == (expected or {}) and done.unsets == []


@pytest.mark.parametrize("item", [",", "type=bind,src=", "/x:/y,"])
def test_long_values_cost_no_time(place: Place, item: str) -> None:
    """As long as Linux allows. They could hide the cache; they are not read."""
    value = item * (120000 // len(item))
    done = place.task(APPTAINER_BIND=value, SINGULARITY_MOUNT=value)
    assert not done.exports and done.unsets == []


FULL = {"APPTAINER_MOUNT": "type=bind,src=/y,dst=/y", "APPTAINER_BIND": "/data", "SINGULARITY_BINDPATH": "/data"}


def test_no_cache_without_a_free_variable_unless_a_bind_shows_it(place: Place) -> None:
    cases = {"/data": False, "/x:{above}": False, "{above}:{above}:ro": False, "{above}": True, "{dir}": True}
    for job, (bind, has_cache) in enumerate(cases.items(), 1):
        done = place.task(job=job, **{**FULL, "APPTAINER_BIND": place.fill(bind)})
        assert bool(done.cache) is has_cache and place.binds(done) == {}, bind


def test_hiding_bind_counts_where_the_site_shows_scratch_to_containers(place: Place) -> None:
    """With `containers: {apptainer: off}` jobcache mounts nothing, and needs no variable."""
    place.configure(containers={"apptainer": "off"})
    cases = {"/data": True, "/x:{above}": False, "{above}:{above}:ro": False, "/x:{dir}/new": True, "{dir}:{dir}:rw": True}
    for job, (bind, has_cache) in enumerate(cases.items(), 1):
        done = place.task(job=job, **{**FULL, "APPTAINER_BIND": place.fill(bind)})
        assert bool(done.cache) is has_cache and place.binds(done) == {}, bind


@pytest.mark.parametrize(
    ("env", "reason"),
    [({"JOBCACHE": "off"}, "user_off"), ({"SLURM_CLUSTER_NAME": "other"}, "other_cluster"), ({}, "container_bind")],
)
def test_reason_names_the_bind_only_where_it_decides(place: Place, env: dict[str, str], reason: str) -> None:
    assert not place.task(APPTAINER_BIND=f"/x:{place.dir}", **env).exports
    assert [event["reason"] for event in place.site.syslog.events("cache.skipped")] == [reason]


def test_steps_of_a_job_without_a_cache_have_none(place: Place) -> None:
    env = {"APPTAINER_BIND": f"/x:{place.dir}"}
    assert not place.task(**env).exports
    for step in ("0", "1"):
        done = place.task(step=step, **env)
        assert not done.exports and done.unsets == []
    assert not place.site.cache().exists()


def test_apptainer_prefers_its_own_variable(place: Place) -> None:
    """The other one of a pair counts only for SingularityCE if Apptainer's is not empty."""
    done = place.task(APPTAINER_BIND="/data", SINGULARITY_BIND=place.dir)
    assert place.binds(done) == place.both("MOUNT", place.mount())


def test_step_whose_script_mounts_something_above_loses_the_mount(place: Place) -> None:
    env = place.task().exports
    done = place.task(step="0", **env, APPTAINER_BIND="/x:/tmp")
    assert place.binds(done) == {} and done.unsets == ["APPTAINER_MOUNT", "SINGULARITY_MOUNT"] and done.cache


@pytest.mark.parametrize("variables", [{"JOBCACHE": "off"}, {"SLURM_CLUSTER_NAME": "other"}, {"SLURM_JOB_PARTITION": "off"}])
def test_inherited_mount_goes_where_the_job_gets_no_cache(place: Place, variables: dict[str, str]) -> None:
    """A job that another job submits inherits its variables, perhaps on a node without that scratch: Apptainer would fail."""
    inherited = place.task(job=1).exports
    place.configure(rules=[{"match": {"partition": "off"}, "cache": "off"}])
    for env in ({}, {"APPTAINER_BIND": "/data"}):
        done = place.task(job=2, **inherited, **variables, **env)
        assert not done.exports and {"APPTAINER_MOUNT", "SINGULARITY_MOUNT"} < set(done.unsets)
        assert "APPTAINER_BIND" not in done.unsets


def test_refused_job_has_no_mount(place: Place) -> None:
    """The cache cannot be created."""
    inherited = place.task(job=1).exports
    place.site.scratch.chmod(0o755)
    parent = place.site.cache().parent.parent
    parent.rename(parent.with_name("aside"))
    done = place.task(job=2, **inherited)
    assert not done.exports and {"APPTAINER_MOUNT", "SINGULARITY_MOUNT"} < set(done.unsets)


def test_same_mount_of_the_user_is_not_removed(place: Place) -> None:
    """Outside of jobs nothing has set JOBCACHE_DIR, so the value is the user's."""
    own = place.both("MOUNT", place.mount())
    done = place.task(JOBCACHE="off", **own)
    assert not done.exports and not done.unsets
    done = place.task(job=2, **own)
    assert place.binds(done) == {} and done.cache and not done.unsets


def test_mount_of_another_policy_is_replaced(place: Place) -> None:
    """The submitting job had its cache elsewhere."""
    inherited = {"JOBCACHE_DIR": "/old/games/hf-datasets-7", **place.both("MOUNT", place.mount("/old"))}
    done = place.task(**inherited)
    assert place.binds(done) == place.both("MOUNT", place.mount())
    inherited = {"JOBCACHE_DIR": "/old/games/hf-datasets-7", **place.both("BIND", "/old:/old:rw")}
    done = place.task(job=2, **inherited)
    assert place.binds(done) == place.both("MOUNT", place.mount())
    assert {"APPTAINER_BIND", "SINGULARITY_BIND"} <= set(done.unsets)


def test_task_with_a_cache_of_its_own_has_no_mount(place: Place) -> None:
    """The variables of the user lead elsewhere: there is nothing to mount for them."""
    assert not place.task(HF_DATASETS_CACHE="/my/own").exports


def test_home_on_scratch_needs_no_mount(place: Place) -> None:
    """Apptainer mounts the home. A user who excludes it excludes all of it."""
    done = place.task(HOME=f"{place.dir}/games")
    assert place.binds(done) == {} and done.cache


def test_containers_off_for_all_or_by_a_rule(place: Place) -> None:
    place.configure(containers={"apptainer": "off"})
    assert place.binds(place.task()) == {}
    rules = [{"match": {"partition": "gpu"}, "containers": {"apptainer": "off"}}]
    place.configure(containers={"apptainer": "bind"}, rules=rules)
    assert place.binds(place.task(job=2)) == place.both("MOUNT", place.mount())
    assert place.binds(place.task(job=3, SLURM_JOB_PARTITION="gpu")) == {}
    inherited = place.task(job=4).exports
    done = place.task(job=4, step="0", **inherited, SLURM_JOB_PARTITION="gpu")
    assert place.binds(done) == {} and done.cache and done.unsets == ["APPTAINER_MOUNT", "SINGULARITY_MOUNT"]


def test_observe_mode_prints_no_mount(place: Place) -> None:
    place.configure(mode="observe")
    assert not place.task().exports
