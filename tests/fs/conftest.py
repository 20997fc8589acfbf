"""Fixtures of tests on a real filesystem."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from support.home import acting_as
from support.site_dir import ALICE


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory of Alice's own, in which her caches lie, and her identity for this process."""
    top = Path(tempfile.mkdtemp(prefix="jobcache-"))
    top.chmod(0o755)
    own = top / "alice"
    own.mkdir()
    if os.geteuid() == 0:
        shutil.chown(own, ALICE)
    try:
        with acting_as(ALICE) if os.geteuid() == 0 else nullcontext():
            yield own
    finally:
        shutil.rmtree(top)
