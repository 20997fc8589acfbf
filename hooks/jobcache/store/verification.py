"""Whether a build in a store is whole, and whether its name and manifest match its files."""

import os
import time
from typing import Any

from jobcache.cache import reasons, store_names, store_reading
from jobcache.store import builds, sections

_BUDGET = 3600.0  # seconds for one build


def check_stored(build_fd: int, name: str, contents: store_names.Contents, owner: int) -> None:
    """Check that a build has the name of its key, and that its files are those in `contents`, each with its end.

    Raise reasons.Refused for a damaged build, OSError.
    """
    if name.partition(".")[0] != sections.digest(contents.key, contents.base):
        raise reasons.Refused("damaged", "the build's name does not match its key")
    files_fd = store_reading.open_below(build_fd, store_names.FILES, owner)
    try:
        store_reading.check_files(files_fd, contents)
    finally:
        os.close(files_fd)


def check_deep(build_fd: int, contents: store_names.Contents, manifest: dict[str, Any], owner: int) -> None:
    """Check the framing and the rows of every file of a build, and its manifest.

    Raise reasons.Refused or builds.DamagedBuild for a damaged build, OSError.
    """
    files_fd = store_reading.open_below(build_fd, store_names.FILES, owner)
    try:
        until = time.monotonic() + _BUDGET
        is_build = contents.base is None
        build = builds.check(files_fd, until, with_maps=True) if is_build else builds.check_result_set(files_fd, until)
    finally:
        os.close(files_fd)
    if set(build.files) != set(contents.files):
        raise reasons.Refused("damaged", "a file of the build is damaged, or belongs to no split")
    stated = {key: manifest.get(key) for key in ("key", "rows", "files")}
    if stated != {"key": contents.key, "rows": build.rows, "files": len(contents.files)}:
        raise reasons.Refused("damaged", "the manifest does not match the build")
