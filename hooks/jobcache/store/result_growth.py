"""Which results of `map` on top of a build from elsewhere may enter a section of the store, and the next state of their set.

Elsewhere is the user's own cache, another section of the store, or the site's store.

A job leaves them as regular files among the links. They belong to the state that the build had when it was linked
(`bases`). The build is not read here: its filesystem can hang, and it can have changed since.
"""

import os

from jobcache.cache import build_info, reasons, store_names, store_reading
from jobcache.store import arrow, builds, map_results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcache.cache.bases import Base


def is_linked(build_fd: int, base: "Base") -> bool:
    """Return whether a build in a cache still consists of links to its base, and of results of `map`. Raise OSError."""
    with os.scandir(build_fd) as entries:
        for entry in entries:
            if not store_names.is_build_file(entry.name) or build_info.is_map(entry.name):
                continue
            if not entry.is_symlink() or os.readlink(entry.name, dir_fd=build_fd) != f"{base.path}/{entry.name}":
                return False
    return builds.link_of(build_fd) == f"{base.path}/{build_info.INFO}"


def grown(
    build_fd: int, key: str, base: "Base", section_fd: int, newest: str, max_bytes: float, until: float
) -> "map_results.Growth | None":
    """Return the result set `newest`, "" for none, extended by the results of `map` that a job left in a build.

    max_bytes: of the extended set. Return None if there is nothing to add. Raise builds.DamagedBuild if the stored set is
    damaged, arrow.OutOfTime, OSError.
    """
    if not is_linked(build_fd, base):
        return None
    stored = _read_stored(section_fd, newest, key, base.state, until) if newest else {}
    made = map_results.whole_results(build_fd, set(stored), until)
    kept = map_results.select({**stored, **made}, map_results.MAX_RESULTS, max_bytes)
    new = {name: file for name, file in made.items() if name in kept}
    if not new:
        return None
    build = builds.Build()
    build.base = base.state
    build.files = {name: (file.size, file.mtime) for name, file in kept.items()}
    build.maps = len(kept)
    build.mtime = max(file.mtime for file in kept.values())
    build.bytes = sum(file.allocated for file in kept.values())
    return map_results.Growth(build, new)


def _read_stored(section_fd: int, name: str, key: str, state: int, until: float) -> "dict[str, map_results.File]":
    """Return the files of a result set. Raise builds.DamagedBuild, arrow.OutOfTime, OSError."""
    uid = os.geteuid()
    files_fd = store_reading.open_below(section_fd, f"{name}/{store_names.FILES}", uid)
    try:
        set_fd = store_reading.open_below(section_fd, name, uid)
        try:
            contents = store_reading.read_contents(set_fd)
        finally:
            os.close(set_fd)
        if (contents.key, contents.base) != (key, state):
            raise reasons.Refused("damaged", "the name of the result set does not match its key")
        store_reading.check_files(files_fd, contents, until)
        return {file: map_results.File(os.stat(file, dir_fd=files_fd, follow_symlinks=False)) for file in contents.files}
    except reasons.Refused as refusal:
        raise builds.DamagedBuild(f"in the store: {refusal}") from None
    except TimeoutError:
        raise arrow.OutOfTime from None
    finally:
        os.close(files_fd)
