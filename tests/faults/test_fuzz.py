"""Arbitrary environments, names, ids, leases and records: hooks and sweep do not fail, and reap exactly the dead caches of
jobcache.

The configuration is fuzzed in unit/test_config.py and unit/test_policy.py, Slurm's answers in unit/test_slurm.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jobcache
from jobcache.cache import cache_names, event_line, job_record, node_leases
from jobcache.config import settings as compiled_settings
from jobcache.system import epilog_work, event_fields
from jobcache.system.epilog_job import Job
from support.faulty import FULL, GID, UID, left, run, swept
from support.home import acting_as
from support.site_dir import ALICE, SHELLS, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run hooks as users")
MANY = 20 if FULL else 1
fuzzed = settings(max_examples=12 * MANY, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
quick = settings(fuzzed, max_examples=100 * MANY)
ALIVE, ENDED = 7, 4242
NUMBER = "(?:[1-9][0-9]{0,8}|[1-3][0-9]{9}|4[01][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5})"  # below 2^32

# ------------------------------------------------------------------------------------------------ entries of scratch

jobs = st.sampled_from(["7", "4242", "4243", "1", "4294900000"])
odd_numbers = st.sampled_from(["", "0", "07", "+7", "-7", "4294967296", "7.0", "٧", "7 ", "7\n", "99999999999999999999"])
suffixes = st.one_of(
    st.just(""),
    st.just(""),
    st.builds("-r{}".format, st.one_of(jobs, odd_numbers)),
    st.sampled_from([".", "-r", "~"]),
)
ends = st.sampled_from(["a1", "", "-", "ü", "a b"])
alike = ["hf-datasets", "HF-DATASETS-7", "hf-datasets-7 ", " hf-datasets-7", ".jobcache", "json", "hf-datasets--7"]
names = st.one_of(
    st.builds("hf-datasets-{}{}".format, st.one_of(jobs, jobs, odd_numbers), suffixes),
    st.builds("{}{}-{}".format, st.sampled_from([cache_names.TRASH, cache_names.NEW]), st.one_of(jobs, odd_numbers), ends),
    st.sampled_from(alike),
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=40),
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 250)
runs, uids = st.sampled_from(["0", "1", "x"]), st.sampled_from([str(UID), "0", "33"])
ids = st.one_of(
    st.none(),
    *[st.just("right")] * 3,
    st.just(""),
    st.builds("{} {} {} {}\n".format, st.sampled_from(["test", "della", ""]), jobs, runs, uids),
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=30),
)
leases = st.one_of(
    st.none(), st.just("another-boot 1.00\n"), st.just(""), st.just("x nan\n"), st.just("x -inf\n"), st.just("x 1e999\n"),
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=30),
)  # fmt: skip
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=12), inner, max_size=3)),
    max_leaves=8,
)
keys = st.sampled_from(["created_at", "policy", "keep_until", "schema", "user", "x"])
objects = st.dictionaries(keys, json_values, max_size=4)
records = st.one_of(st.binary(max_size=200), objects.map(lambda one: json.dumps(one).encode()))
directories = st.fixed_dictionaries({"id": ids, "lease": leases, "record": records, "bare": st.booleans()})


def right_id(name: str) -> str | None:
    """Return the id that makes a directory of this name a cache of jobcache, None if no id does."""
    cache = re.fullmatch(f"hf-datasets-({NUMBER})(?:-r({NUMBER}))?", name)
    if cache:
        return f"test {cache[1]} {cache[2] or 0} {UID}\n"
    debris = re.fullmatch(rf"\.jobcache-(?:trash|new)-({NUMBER})-[A-Za-z0-9]+", name)
    return f"test {debris[1]} 0 {UID}\n" if debris else None


def plant(parent: Path, name: str, one: dict[str, Any]) -> str | None:
    """Make a directory, as ALICE; return the id in it, None without one."""
    top = parent / name
    (top / ".jobcache/nodes").mkdir(parents=True)
    text = (right_id(name) or f"test 7 0 {UID}\n") if one["id"] == "right" else one["id"]
    if text is not None:
        (top / ".jobcache/id").write_text(text, newline="")
    if one["lease"] is not None:
        (top / ".jobcache/nodes/n1").write_text(one["lease"])
    (top / ".jobcache/job.json").write_bytes(one["record"])
    if not one["bare"]:
        (top / "data").write_text("x")
    return str(text) if text is not None else None


def is_ours(name: str, text: str | None, one: dict[str, Any]) -> bool:
    """Return whether a directory may be deleted when its job is dead. The rules are written independently of the code."""
    wanted = right_id(name)
    if wanted is None:
        return False
    if name.startswith(".jobcache-"):
        run = re.fullmatch(rf"test ([0-9]+) (0|[1-9][0-9]*) {UID}\n", text or "")
        return (not text and one["bare"]) or bool(run and run[1] == wanted.split()[1])
    return text == wanted


def job_of(name: str) -> int:
    return int(re.findall("[0-9]+", name)[0])


@fuzzed
@given(st.dictionaries(names, directories, min_size=1, max_size=8))
def test_only_dead_caches_of_jobcache_are_reaped(site: Site, planted: dict[str, dict[str, Any]]) -> None:
    """An Epilog reaps its own job's caches. A sweep reaps every dead one, nothing alive and nothing else."""
    parent = site.cache().parent
    shutil.rmtree(site.scratch / ALICE, ignore_errors=True)
    with acting_as(ALICE):
        parent.mkdir(parents=True)
        texts = {name: plant(parent, name, one) for name, one in planted.items()}
    compiled = compiled_settings.load(str(site.hooks / compiled_settings.FILE))
    job = Job(ENDED, UID, "n1")
    job.user, job.gid, job.nodes = ALICE, GID, 2
    facts: list[dict[str, Any]] = []
    with acting_as(ALICE):
        epilog_work.Work(job, compiled, compiled.templates, node_leases.now()[1])(facts.append)
    assert all(json.dumps(fact) for fact in facts)
    gone = set(planted) - set(left(site))
    assert all(is_ours(name, texts[name], planted[name]) and job_of(name) == ENDED for name in gone)
    swept(site, ALIVE)
    gone = set(planted) - set(left(site))
    dead = {name for name, one in planted.items() if is_ours(name, texts[name], one) and job_of(name) != ALIVE}
    kept = {name for name in dead - gone if b"keep_until" in planted[name]["record"]}
    assert gone | kept == dead


# ------------------------------------------------------------------------------------------------------------- bytes


@quick
@given(st.binary(max_size=200))
def test_parsers_accept_any_bytes(site: Site, data: bytes) -> None:
    """Any content of a lease, an id or a record parses to a value or to None, without an exception."""
    top = site.dir / "odd"
    (top / ".jobcache").mkdir(parents=True, exist_ok=True)
    for name in ("id", "job.json"):
        (top / ".jobcache" / name).write_bytes(data)
    fd = os.open(top, os.O_RDONLY)
    try:
        found = job_record.identity(fd)
        assert found is not None and (found[0] == "" or cache_names.format_id(*found).encode() + b"\n" == data)
        assert isinstance(job_record.read_record(fd), dict)
    finally:
        os.close(fd)
    if data.isascii():
        dated = node_leases.parse_lease(data.decode())
        assert dated is None or isinstance(dated[1], float)


SCHEMA = json.loads((Path(jobcache.__file__).parent / "config/schema/event.json").read_text())["properties"]


@quick
@given(st.dictionaries(keys, json_values))
def test_event_repeats_only_valid_fields_of_a_record(record: dict[str, Any]) -> None:
    """The schema accepts the event, and it is one line of ASCII."""
    fields = event_fields.of_record(json.loads(json.dumps(record)))
    assert set(fields) <= {"created_at", "policy"}
    for name, value in fields.items():
        jsonschema.Draft7Validator(SCHEMA[name]).validate(event_line.clean(value))
        assert value.isascii() and value.isprintable() and '"' not in value


# ------------------------------------------------------------------------------------------------- the environment

variables = st.sampled_from(
    "SLURM_JOB_ID SLURM_JOB_UID SLURM_JOB_GID SLURM_JOB_USER SLURMD_NODENAME SLURM_STEP_ID SLURM_PROCID SLURM_LOCALID "
    "SLURM_RESTART_COUNT SLURM_HET_JOB_ID SLURM_JOB_NUM_NODES SLURM_JOB_EXIT_CODE SLURM_JOB_START_TIME SLURM_JOB_PARTITION "
    "SLURM_JOB_ACCOUNT SLURM_JOB_QOS JOBCACHE JOBCACHE_DIR JOBCACHE_SCOPE HF_DATASETS_CACHE HF_HUB_OFFLINE PATH IFS HOME "
    "SLURM_CLUSTER_NAME PS4 ENV".split()
)
values = st.one_of(
    st.sampled_from(
        ["", "0", "-1", "4242", "5", "../..", "a/b", "1\n2", "9" * 20, "$(touch x)", "*", "-", "keep", "on", "task", "%s"]
    ),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40),
)


@fuzzed
@given(st.dictionaries(variables, values, max_size=12), st.sampled_from(SHELLS))
def test_hooks_accept_any_environment(site: Site, env: dict[str, str], shell: str) -> None:
    """Both hooks exit 0 in time, print whole exports below scratch or nothing, and create nothing elsewhere."""
    least = {"SLURM_JOB_ID": "4242", "SLURM_JOB_UID": str(UID), "SLURM_JOB_USER": ALICE, "SLURMD_NODENAME": "n1"}
    before = {path for path in site.dir.rglob("*") if site.scratch not in path.parents} | {site.log, site.dir / "run"}
    command = [*shell.split(), f"{site.hooks}/task-prolog"]
    done = run(command, {**least, **env}, 5, user=UID, group=GID)
    assert done.returncode == 0 and done.stdout[-1:] in (b"", b"\n")
    for line in done.stdout.decode().splitlines():
        export = re.fullmatch(rf"export (HF_DATASETS_CACHE|JOBCACHE_DIR)=({re.escape(str(site.scratch))}/.*)", line)
        assert line.startswith("unset ") or (export and os.path.normpath(export[2]) == export[2]), line
    done = run([*shell.split(), f"{site.hooks}/epilog"], {**least, **env}, 30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    after = {path for path in site.dir.rglob("*") if site.scratch not in path.parents}
    assert {path for path in after - before if site.dir / "run" not in path.parents} == set()
