"""Where `datasets` has its cache without HF_DATASETS_CACHE."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jobcache.cache import default_cache, reasons

ENVIRONMENTS = [
    {},
    {"HF_HOME": "/data/hf"},
    {"HF_HOME": "/data/hf/"},
    {"HF_HOME": "~/hf"},
    {"HF_HOME": "~root/hf"},
    {"HF_HOME": "$HOME/hf"},
    {"HF_HOME": "hf"},
    {"HF_HOME": ""},
    {"XDG_CACHE_HOME": "/xdg"},
    {"XDG_CACHE_HOME": "~/xdg"},
    {"XDG_CACHE_HOME": ""},
    {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/data/hf"},
]


def ours(env: dict[str, str]) -> str:
    try:
        return default_cache.path(env)
    except reasons.Refused as refusal:
        assert refusal.reason == "inherit_relative"
        return ""


# The lines of `datasets` that compute it, without the import of the rest.
PROGRAM = r"""
import importlib.util, os, re
from pathlib import Path
(package,) = importlib.util.find_spec("datasets").submodule_search_locations
names = r"(?:DEFAULT_)?(?:XDG_CACHE_HOME|HF_CACHE_HOME|HF_DATASETS_CACHE) = .*"
exec("\n".join(re.findall("^" + names, Path(package, "config.py").read_text(), re.MULTILINE)))
print(HF_DATASETS_CACHE)
"""


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_path_is_that_of_datasets(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """A relative path is refused."""
    pytest.importorskip("datasets")
    env = {"HOME": "/home/alice", **env}
    monkeypatch.setenv("HOME", env["HOME"])
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.PIPE, text=True, check=True)
    theirs = done.stdout.strip()
    assert os.path.normpath(ours(env)) == (theirs if theirs.startswith("/") else ".")


@pytest.mark.parametrize(
    ("env", "refused"),
    [
        ({"APPTAINERENV_HF_HOME": "/hf"}, True),
        ({"SINGULARITYENV_XDG_CACHE_HOME": "/xdg"}, True),
        ({"APPTAINERENV_HF_HOME": "/hf", "HF_HOME": "/other"}, True),
        ({"APPTAINERENV_HF_HOME": "/hf", "HF_HOME": "/hf"}, False),
        ({"SINGULARITYENV_XDG_CACHE_HOME": "/xdg", "HF_HOME": "/hf"}, False),
        ({"APPTAINERENV_HF_TOKEN": "x"}, False),
        ({}, False),
    ],
)
def test_containers_with_another_cache_are_refused(env: dict[str, str], refused: bool) -> None:
    """Apptainer sets HF_HOME in a container to the value of APPTAINERENV_HF_HOME."""
    if refused:
        with pytest.raises(reasons.Refused, match="containers") as error:
            default_cache.require_one_for_containers({"HOME": "/home/alice", **env})
        assert error.value.reason == "inherit_container"
    else:
        default_cache.require_one_for_containers({"HOME": "/home/alice", **env})
