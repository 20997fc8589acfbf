"""Fixtures and markers of all tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from support.site_dir import SHELLS, Site
from support.store_jobs import jobs, template  # noqa: F401 - fixtures of the tests of stores

# The same examples every time: a change is judged by what it changes. To search for more: --hypothesis-profile=default.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")

TESTS = Path(__file__).parent
# The markers of all tests in a directory. A test that differs from its directory carries its own.
BY_DIRECTORY = {
    "cluster": ("slurm", "root"),
    "contract": ("root",),
    "faults": ("root",),
    "fs": ("root",),
    "packaging": ("packaging", "root"),
}
# Tests that hold a hook to its deadline under load, or load all CPUs themselves: a file, and a part of the test's name.
ALONE = (
    ("test_load.py", ""),
    ("test_task_prolog.py", "many_tasks_at_once"),
    ("test_store", "most_recently_used"),
)
_left_out: Counter[str] = Counter()


@pytest.fixture
def site() -> Iterator[Site]:
    """A site of its own. Check each of its events against the schema when the test is over."""
    made = Site()
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by directory and by shell, and order them: those that take longest start first."""
    for item in items:
        directory = item.path.relative_to(TESTS).parts[0]
        for marker in BY_DIRECTORY.get(directory, ()):
            item.add_marker(marker)
        if SHELLS[-1] in (getattr(item, "callspec", None) and item.callspec.params or {}).values():
            item.add_marker("busybox")
        if any(item.path.name.startswith(file) and part in item.name for file, part in ALONE):
            item.add_marker("alone")
        if directory == "cluster":  # one cluster for each file
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: (not item.get_closest_marker("slow"), not item.get_closest_marker("slurm")))


# ------------------------------------------------------------------------------------------- how many tests were left out


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count deselected tests by the first marker that explains it."""
    reasons = ("slurm", "packaging", "slow", "busybox", "root", "alone")
    for item in items:
        _left_out[next((name for name in reasons if item.get_closest_marker(name)), "-k")] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of xdist: hand the count to the process that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(_left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count of a worker: each worker deselects the same tests."""
    _left_out.update({name: count for name, count in node.workeroutput["left_out"].items() if name not in _left_out})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests `-m` left out and how to run them."""
    if _left_out and terminalreporter.config.option.markexpr:
        counts = ", ".join(f"{name} {count}" for name, count in _left_out.most_common())
        terminalreporter.write_line(f"{sum(_left_out.values())} tests left out ({counts}). To run them, as root: tests/run.sh")
