"""Which cache a path lies in."""

from __future__ import annotations

import pytest

from jobcache.cache.path_template import Template
from jobcache.diagnostics import path_meaning

TEMPLATES = [
    Template("/scratch/{user}/.cache/hf-datasets-{job_id}"),
    Template("/local/{cluster}/{uid}/{node}-{job_id}.d"),
]
TOP = "/scratch/alice/.cache/hf-datasets-4242"
FOUND = {
    f"{TOP}/json/default-0/0.0.0/json-train.arrow": ("cache", TOP, 4242, "alice", "the cache of job 4242"),
    f"{TOP}-r2": ("cache", f"{TOP}-r2", 4242, "alice", "the cache of job 4242"),
    "//scratch/./alice/.cache/hf-datasets-4242//x": ("cache", TOP, 4242, "alice", "the cache of job 4242"),
    f"{TOP}/node-n1/json": ("cache", TOP, 4242, "alice", "the directory of node n1 in the cache of job 4242"),
    f"{TOP}/step-0-task-3": ("cache", TOP, 4242, "alice", "the directory of one task in the cache of job 4242"),
    f"{TOP}/batch/json": ("cache", TOP, 4242, "alice", "the directory of the batch script in the cache of job 4242"),
    "/scratch/alice/.cache/.jobcache-trash-7-0a/x": (
        ".jobcache-trash-", "/scratch/alice/.cache/.jobcache-trash-7-0a", 7, "alice", "the trash of job 7"),
    "/scratch/alice/.cache/.jobcache-new-7-0a": (
        ".jobcache-new-", "/scratch/alice/.cache/.jobcache-new-7-0a", 7, "alice", "the half-made cache of job 7"),
    "/local/tiger/5/n1-4242.d/x": ("cache", "/local/tiger/5/n1-4242.d", 4242, "5", "the cache of job 4242"),
    "/scratch/alice/.cache/hf-datasets-run-9-abcdefgh/x": (
        "run", "/scratch/alice/.cache/hf-datasets-run-9-abcdefgh", 9, "alice", "the cache of a `jobcache run` outside of jobs"),
}  # fmt: skip
NOT_FOUND = [
    "/", "/scratch/alice/.cache", "/scratch/alice/.cache/hf-datasets-04242", "/scratch/alice/.cache/hf-datasets-4242x",
    "/scratch/alice/x/.cache/hf-datasets-4242", "/local/lion/5/n1-4242.d", "/scratch/alice/.cache/../../hf-datasets-4242",
    "/scratch/alice/.cache/.jobcache-history", "/scratch/alice/.cache/.jobcache-history.1",
]  # fmt: skip


@pytest.mark.parametrize("path", FOUND)
def test_path_in_a_cache_has_its_job(path: str) -> None:
    entry = path_meaning.entry_of(path, TEMPLATES, "tiger")
    assert entry and (entry.kind, entry.path, entry.number, entry.user, entry.describe()) == FOUND[path]


def test_home_can_be_any_directory() -> None:
    """By a template that begins with {home}, the path does not name the user."""
    templates = [Template("{home}/.cache/hf-datasets-{job_id}")]
    for home in ("/home/alice", "/nfs/a/.cache/b", "/a"):
        entry = path_meaning.entry_of(f"{home}/.cache/hf-datasets-7/json", templates, "tiger")
        assert entry and (entry.path, entry.number, entry.user, entry.below) == (f"{home}/.cache/hf-datasets-7", 7, "", "json")
    for path in ("/.cache/hf-datasets-7", "/home/alice/hf-datasets-7", "/home/alice/.cache/x", "/home/../.cache/hf-datasets-7"):
        assert path_meaning.entry_of(path, templates, "tiger") is None


@pytest.mark.parametrize("path", NOT_FOUND)
def test_other_path_has_no_job(path: str) -> None:
    assert path_meaning.entry_of(path, TEMPLATES, "tiger") is None


def test_history_is_no_cache_by_any_template() -> None:
    """Without this rule, its older generation would be the cache of job 1 of a user named .jobcache-history."""
    template = Template("/s/{user}/{user}.{job_id}")
    assert path_meaning.entry_of("/s/.jobcache-history/.jobcache-history.1", [template], "") is None


def test_unknown_cluster_fits_any() -> None:
    assert path_meaning.entry_of("/local/lion/5/n1-4242.d", TEMPLATES, "@")


def test_template_is_guessed_from_a_path() -> None:
    """On a host without the configuration. Only a directory with the user's name or uid makes a template."""
    guess = path_meaning.guessed_template
    assert guess("/s/alice/.c/hf-4242", 4242, ("alice", "5")) == Template("/s/{user}/.c/hf-{job_id}")
    assert guess("/s/5/hf-4242-r1.d", 4242, ("alice", "5")) == Template("/s/{uid}/hf-{job_id}.d")
    assert guess("/s/4242/alice/1-4242", 4242, ("alice", "5")) == Template("/s/4242/{user}/1-{job_id}")
    for path in ("/s/bob/hf-4242", "/s/alice/hf-42421", "/s/alice/x"):
        assert guess(path, 4242, ("alice", "5")) is None


def test_path_in_a_store_is_recognized() -> None:
    assert path_meaning.is_in_store("/p/alice/store/v1/default/x", "/p/{user}/store", "")
    assert not path_meaning.is_in_store("/p/alice/stores/v1", "/p/{user}/store", "")


def test_ancestors_begin_with_the_deepest() -> None:
    assert path_meaning.ancestors("/a/b") == [("/a", "b"), ("/", "a")]
