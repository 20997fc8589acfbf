"""Results of `map` that a job computed: published as a new generation of the stored build, or of their result set.

The new generation has hard links to the files of the one before, and the job's new files.
"""

import errno
import os
import time

from jobcache.cache import dirfd, store_names
from jobcache.store import arrow, builds, map_results, result_growth, sections, staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.cache.bases import Base
    from jobcache.store.publication import Publication

_ATTEMPTS = 16  # to become the next generation while others extend the same build
_MAX_GENERATIONS = 32  # of one build, retired ones included; a job adds another only below this number
_NO_HARD_LINK = (errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP)


def add_map_results(run: "Publication", build_fd: int, key: str) -> None:
    """Publish a job's results of `map` in a build that is linked into its cache, as a new generation of that build.

    Raise builds.DamagedBuild, arrow.OutOfTime, reasons.Refused, OSError.
    """
    digest = sections.digest(key)
    origin = map_results.origin(build_fd, run.section.path, digest)
    if origin is None:
        return
    linked = map_results.LinkedBuild(build_fd, key, run.section.fd(), run.section.path, origin)

    def grow(newest: str) -> "map_results.Growth | None":
        return map_results.grown(linked, newest, run.to.max_bytes, run.until) if newest else None

    _extend(run, build_fd, key, digest, grow)


def add_to_result_set(run: "Publication", build_fd: int, key: str, base: "Base") -> None:
    """Publish a job's results of `map` in a build that is linked from elsewhere, as a new generation of their result set.

    Raise as add_map_results.
    """

    def grow(newest: str) -> "map_results.Growth | None":
        return result_growth.grown(build_fd, key, base, run.section.fd(), newest, run.to.max_bytes, run.until)

    _extend(run, build_fd, key, sections.digest(key, base.state), grow)


def _extend(run: "Publication", build_fd: int, key: str, digest: str, grow: "Callable[[str], map_results.Growth | None]") -> None:
    """Publish the next generation of a build or a result set. Raise as add_map_results.

    grow: return it, given the name of the live generation, "" without one; None if there is nothing to publish.
    """
    section_fd = run.section.fd()
    for _ in range(_ATTEMPTS):
        before = sections.generations(section_fd, digest)
        newest = sections.newest_name(digest, before)
        live = newest if newest in before else ""  # else a pruning has deleted all of them meanwhile
        if live and sections.is_retired(section_fd, live):
            if sections.newest_number(sections.generations(section_fd, digest)) != sections.newest_number(before):
                continue  # another job has just extended the build
            live = ""
        if len(before) >= _MAX_GENERATIONS:
            run.result.late = True
            return
        try:
            growth = grow(live)
            if growth is None:
                return
            staged = _stage_grown(run, build_fd, key, growth, live)
        except FileNotFoundError:
            continue  # a pruning has deleted `live` meanwhile; a newer generation may exist
        if sections.take_name(section_fd, staged, store_names.build_name(digest, sections.newest_number(before) + 1)):
            break
        _give_back(section_fd, staged, build_fd, growth.new)
    else:
        run.result.late = True
        return
    sections.retire_replaced(section_fd, before)
    run.result.builds += 1
    run.result.files += len(growth.new)
    run.result.bytes += growth.bytes
    run.result.extended.append(key)


def _stage_grown(run: "Publication", build_fd: int, key: str, growth: map_results.Growth, live: str) -> str:
    """Stage the next generation of `live`, "" for none; return the name of the staged directory. Raise as `staging.stage`."""
    section_fd = run.section.fd()
    old_fd = os.open(f"{live}/{store_names.FILES}", dirfd.DIRECTORY, dir_fd=section_fd) if live else -1
    try:
        return staging.stage(section_fd, lambda staged_fd: _fill_grown(run, staged_fd, build_fd, old_fd, key, growth))
    finally:
        if live:
            os.close(old_fd)


def _fill_grown(run: "Publication", staged_fd: int, build_fd: int, old_fd: int, key: str, growth: map_results.Growth) -> None:
    """Move the job's new files into a staged directory, link the files of the older generation in `old_fd`, and seal it.

    Raise builds.DamagedBuild, arrow.OutOfTime, OSError.
    """
    files_fd = staging.make_files(staged_fd)
    try:
        staging.move(files_fd, build_fd, {name: growth.build.files[name] for name in growth.new}, run.sync)
        for name in sorted(growth.build.files.keys() - set(growth.new)):
            if time.monotonic() >= run.until:
                raise arrow.OutOfTime
            try:
                os.link(name, name, src_dir_fd=old_fd, dst_dir_fd=files_fd, follow_symlinks=False)
            except OSError as error:
                if error.errno in _NO_HARD_LINK:
                    raise builds.DamagedBuild(f"in the store, cannot create a hard link of {name}: {error.strerror}") from None
                raise
            staging.check_unchanged(files_fd, name, growth.build.files[name])
        staging.seal(run, staged_fd, files_fd, key, growth.build)
    finally:
        os.close(files_fd)


def _give_back(section_fd: int, staged: str, build_fd: int, names: "list[str]") -> None:
    """Move a job's files from a staged directory back into its cache, and delete that directory. Raise OSError."""
    staged_fd = os.open(f"{staged}/{store_names.FILES}", dirfd.DIRECTORY, dir_fd=section_fd)
    try:
        os.fchmod(staged_fd, 0o700)
        for name in names:
            os.rename(name, name, src_dir_fd=staged_fd, dst_dir_fd=build_fd)
    finally:
        os.close(staged_fd)
    staging.discard(section_fd, staged)
