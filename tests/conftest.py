"""Fixtures of all tests."""

from collections.abc import Iterator

import hypothesis
import pytest

from support.site_dir import Site  # noqa: E402
from support.store_jobs import jobs, template  # noqa: E402, F401 - fixtures of the tests of stores

# The same examples every time: a change is judged by what it changes. To look for more: --hypothesis-profile=default.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture
def site() -> Iterator[Site]:
    """A site of its own, whose every event is held against the schema when the test is over."""
    made = Site()
    try:
        yield made
    finally:
        made.close()
