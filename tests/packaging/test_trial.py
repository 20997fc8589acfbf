"""The trial of the deb in a clean Debian: installation, jobs, a sweep, an upgrade under load, removal."""

from __future__ import annotations

import faulthandler
import os
import subprocess
from pathlib import Path

import pytest

TRIAL = Path(__file__).parents[2] / "packaging/test-debian"


@pytest.mark.slow
def test_the_deb_lives_its_life_in_a_clean_debian(tmp_path: Path) -> None:
    """packaging/test-debian passes. It takes minutes; packaging/test-matrix.sh runs it for all systems and forms."""
    faulthandler.cancel_dump_traceback_later()  # pytest would report a test of this length as hung
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([TRIAL], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
