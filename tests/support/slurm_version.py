"""The version of Slurm that the tests run on."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess

import pytest

from support.minicluster import SYSTEM_PATH


@functools.cache
def slurm_version() -> tuple[int, int]:
    """Return the version of slurmd, such as (22, 5); (0, 0) where none is installed."""
    slurmd = shutil.which("slurmd") or shutil.which("slurmd", path=SYSTEM_PATH)
    if slurmd is None:
        return 0, 0
    printed = subprocess.run([slurmd, "-V"], stdout=subprocess.PIPE, text=True, check=True).stdout
    year, month = re.findall(r"\d+", printed)[:2]
    return int(year), int(month)


def needs_slurm(first: str, what: str) -> pytest.MarkDecorator:
    """Return a marker that skips a test on Slurm before version `first`, such as "24.05". what: that Slurm lacks."""
    year, month = slurm_version()
    needed = tuple(int(part) for part in first.split("."))
    return pytest.mark.skipif((year, month) < needed, reason=f"Slurm {year}.{month:02} has no {what}: {first} has")
