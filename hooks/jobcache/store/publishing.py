"""Publish the builds of a cache into a store.

    <store>/v1/<section>/<digest of the key>.<generation>/    mtime: the last use
        contents, manifest.json, files/…                      and `retired` once the build is retired

A build enters a store whole, by one rename. The first writer wins, and nobody changes the build afterwards. Results of
`map` that a job computes on top of a build in the section become a new generation of it (`growing`); those on top of a build
from elsewhere become a result set. A build leaves in two steps: once retired, it is linked into no new cache; when all jobs that
lived then have ended, no cache links to it, and a pruning deletes it. All of this runs as the store's owner.
"""

import os
import time

from jobcache.cache import bases, dirfd, store_names
from jobcache.store import arrow, builds, growing, map_results, sections, staging
from jobcache.store.publication import Publication

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobcache.store.publication import Destination, Published

_ATTEMPTS = 16  # to become the next generation while others publish the same build


def publish(cache_fd: int, to: "Destination", until: float, sync: bool = False) -> "Published":
    """Move the whole builds of a cache that nobody uses any more into a store, and return the result.

    until, sync: as of Publication. Raise reasons.Refused if the store cannot be used, OSError.
    """
    run = Publication(cache_fd, to, until, sync)
    with_map_results: "list[tuple[str, str]]" = []
    known: "dict[str, dict[str, bases.Base]]" = {}

    def publish_build(build_fd: int, below: str, key: str) -> None:
        link = builds.link_of(build_fd)
        if link is None:
            _publish_build(run, build_fd, key)
        elif to.maps and not to.shared and map_results.made_here(build_fd, until):
            with_map_results.append((below, key))

    def add_map_results(build_fd: int, below: str, key: str) -> None:
        if (builds.link_of(build_fd) or "").startswith(run.section.path + "/"):
            growing.add_map_results(run, build_fd, key)
            return
        if below not in known:
            known[below] = bases.read(run.cache_fd, below)
        if key in known[below]:
            growing.add_to_result_set(run, build_fd, key, known[below][key])

    try:
        _for_each(run, builds.find(cache_fd, until), publish_build)
        _for_each(run, with_map_results, add_map_results)
    finally:
        run.section.close()
    run.result.late = run.result.late or time.monotonic() >= until
    return run.result


def _for_each(run: Publication, found: "Iterable[tuple[str, str]]", work: "Callable[[int, str, str], None]") -> None:
    """Call `work(build_fd, below, key)` for each build (below, key) of a cache, up to the deadline.

    Raise reasons.Refused, OSError.
    """
    for below, key in found:
        if time.monotonic() >= run.until:
            run.result.late = True
            break
        build_fd = builds.open_build(run.cache_fd, below, key)
        if build_fd is None:
            continue
        try:
            work(build_fd, below, key)
        except builds.DamagedBuild as reason:
            run.result.broken[key] = str(reason)
        except arrow.OutOfTime:
            run.result.late = True
            break
        finally:
            os.close(build_fd)


def _publish_build(run: Publication, build_fd: int, key: str) -> None:
    """Publish one build unless the store has its key. Raise builds.DamagedBuild, arrow.OutOfTime, OSError."""
    section_fd = run.section.fd()
    digest = sections.digest(key)
    before = sections.generations(section_fd, digest)
    current = [name for name in before if not sections.is_retired(section_fd, name)]
    if current and not run.to.replace:
        run.result.already_stored += 1
        return
    build = builds.check(build_fd, run.until, with_maps=run.to.maps)
    staged = staging.stage(section_fd, lambda staged_fd: staging.fill(run, staged_fd, build_fd, key, build))
    for _ in range(_ATTEMPTS):
        if sections.take_name(section_fd, staged, store_names.build_name(digest, sections.newest_number(before) + 1)):
            break
        before = sections.generations(section_fd, digest)
        newest = sections.newest_name(digest, before)
        if not any(sections.are_one_build(section_fd, old, newest) for old in current):
            # Another publication was first. This build moves back into the cache, and is deleted with the cache.
            os.rename(staged, f"lost-{dirfd.nonce()}", src_dir_fd=section_fd, dst_dir_fd=run.cache_fd)
            run.result.already_stored += 1
            return
        current.append(newest)  # a job has extended the build that is to be replaced
    else:
        staging.discard(section_fd, staged)
        raise builds.DamagedBuild("jobs keep extending the stored build; publish it again later")
    sections.retire_replaced(section_fd, current)
    run.result.builds += 1
    run.result.files += len(build.files)
    run.result.bytes += build.bytes
    run.result.added.append(key)
