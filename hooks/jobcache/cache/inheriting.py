"""Inheritance: a new cache begins with links to the builds of the cache that its job would have used without jobcache.

The result is complete, or the job gets no private cache: a job may live from a build that is already there. A child
process does the work until a deadline, so a home that hangs or is large costs the job its private cache, and no more.
"""

import os
import time

from jobcache.cache import (
    bounded,
    build_info,
    build_links,
    default_cache,
    dirfd,
    finished_builds,
    job_script,
    reasons,
    script_variables,
    workers,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobcache.cache.result_sets import Offers


class Inherited:
    """The result. source: the path of the user's own cache, "" if it does not exist.

    candidates: the number of possible builds in it. builds, files: the numbers of linked builds and files. bytes: the size of
    these files. results: the number of linked files of result sets, which the others leave out. milliseconds: the duration.
    left_out: (dataset, reason, details) of each dataset that is not linked. closed: names of datasets to which no other builds
    may be added. home: its name and its datasets cache. same_home: the home of the request is that of the cache, by another
    name, and nothing was linked. refusal: why the result is incomplete, so that the job gets no private cache.
    """

    __slots__ = (
        "source", "candidates", "builds", "files", "bytes", "results", "milliseconds", "left_out", "closed", "home", "same_home",
        "refusal",
    )  # fmt: skip

    def __init__(self) -> None:
        self.source = ""
        self.candidates = 0
        self.builds = 0
        self.files = 0
        self.bytes = 0
        self.results = 0
        self.milliseconds = 0
        self.left_out: "list[tuple[str, str, str]]" = []
        self.closed: "frozenset[str]" = frozenset()
        self.home = "", ""
        self.same_home = False
        self.refusal: "reasons.Refused | None" = reasons.Refused("inherit_budget", "the user's own cache did not answer in time")


class Request:
    """The builds with which a directory in a cache is to begin: those of the cache that a task would use without jobcache.

    env: the variables of the task. most: the number of builds that are allowed. batch: (node, job id, uid) before the batch
    script runs, which can set these variables; None for any other task. base: "" if the directory is the first one in its
    cache. Else its task has another home than the cache: the path of the directory that tasks with the home of the cache have.
    homes: the datasets caches of the homes that the cache has already.
    """

    __slots__ = ("env", "most", "batch", "base", "homes")

    def __init__(self, env: "Mapping[str, str]", most: int, batch: "tuple[str, int, int] | None" = None, base: str = "") -> None:
        self.env = env
        self.most = most
        self.batch = batch
        self.base = base
        self.homes: "frozenset[str]" = frozenset()


def inherit(request: Request, cache_fd: int, below: str, budget: float, offers: "Offers | None" = None) -> Inherited:
    """Link all finished builds of the user's own cache into a new one, within `budget` seconds. Raise nothing.

    below: the directory in the new cache that becomes HF_DATASETS_CACHE, "" for the cache itself; nobody may use it yet.
    A build that is in it already stays. offers: the result sets of the user's store; None if the user has no store. With a
    store, the states of the builds are recorded in the new cache, for the results that the job computes.
    """
    result = Inherited()
    until = time.monotonic() + budget
    try:
        lines, _ = bounded.run(_Inheritance(request, cache_fd, below, until, offers).run, until)
    except OSError as error:
        result.refusal = reasons.Refused("inherit_failed", str(error))
        return result
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "source":
            result.source = rest
        elif word == "candidates":
            result.candidates = int(rest)
        elif word == "linked":
            result.builds, result.files, result.bytes, result.results = map(int, rest.split(" "))
        elif word == "left_out":
            reason, _, rest = rest.partition(" ")
            name, _, details = rest.partition("/")
            result.left_out.append((name, reason, details))
            result.closed |= {name}
        elif word == "closed":
            result.closed |= {rest}
        elif word == "home":
            name, slash, path = rest.partition("/")
            result.home = name, slash + path
        elif word == "same_home":
            result.same_home = True
        elif word == "refused":
            reason, _, details = rest.partition(" ")
            result.refusal = reasons.Refused(reason, details)
        elif word == "complete":
            result.refusal = None
    return result


# ---- in a child, which reports lines to its parent: "home NAME/PATH", "same_home", "source PATH", "candidates NUMBER",
# "left_out REASON DATASET/DETAILS", "closed DATASET", "linked BUILDS FILES BYTES RESULTS", and one of
# "refused REASON DETAILS" and "complete"

_OF_HUB = "___"  # in the name of a dataset of the Hub. Offline, `datasets` takes the newest of its builds


class _Inheritance:
    """One call of `inherit`, with its arguments."""

    def __init__(self, request: Request, cache_fd: int, below: str, until: float, offers: "Offers | None") -> None:
        self.request = request
        self.cache_fd = cache_fd
        self.below = below
        self.until = until
        self.offers = offers
        self.links: "Links | None" = None

    def run(self, report: "bounded.Report") -> None:
        try:
            self._link(report)
            report_end = "complete"
        except finished_builds.OutOfTime:
            report_end = "refused inherit_budget the deadline has passed"
        except finished_builds.TooMany:
            report_end = f"refused inherit_too_many the user's own cache has more than {self.request.most} builds"
        except reasons.Refused as refusal:
            report_end = f"refused {refusal.reason} {refusal}"
        except OSError as error:
            report_end = f"refused inherit_failed {error}"
        links = self.links
        if links:
            report(f"linked {links.builds} {links.files} {links.bytes} {links.results}")
        report(report_end)

    def _link(self, report: "bounded.Report") -> None:
        """Raise finished_builds.OutOfTime, finished_builds.TooMany, Refused, OSError."""
        env = self.request.env
        script = job_script.read(*self.request.batch, self.until) if self.request.batch else None
        if script:
            env = script_variables.after_script(script, env)
        # Links lead through the path that the job would use: a container sees the home, and not what a symlink in it stands for.
        source = default_cache.path(env)
        default_cache.require_one_for_containers(env)
        resolved = default_cache.resolve(source)
        is_private = resolved is not None and default_cache.is_private(resolved)
        report(f"home {default_cache.home_name(env)}{resolved or source}")
        if self.request.base and (is_private or (resolved or source) in self.request.homes):
            report("same_home")
            return
        left_out: "set[str]" = set()
        if resolved and not is_private:
            report(f"source {source}")
            scan = finished_builds.Scan(source, self.until, self.request.most)
            scan.run(found=lambda: report(f"candidates {scan.candidates}"))
            for name, refusal in sorted(scan.left_out.items()):
                report(f"left_out {refusal.reason} {name}/{refusal}")
            for name in sorted({build.path.partition("/")[0] for build in scan.builds}):
                if _OF_HUB in name:
                    report(f"closed {name}")
            self.links = self._links_to(source, self.offers)
            self.links.create(scan.builds)
            left_out = set(scan.left_out)
        if self.request.base and os.path.isdir(self.request.base):
            # What the job has made so far can be meant for any of its tasks.
            scan = finished_builds.Scan(self.request.base, self.until, float("inf"), of_job=True)
            scan.run()
            builds = [build for build in scan.builds if build.path.partition("/")[0] not in left_out]
            self._links_to(self.request.base).create(builds)

    def _links_to(self, source: str, offers: "Offers | None" = None) -> "Links":
        return Links(source, os.open(self.below or ".", dirfd.DIRECTORY, dir_fd=self.cache_fd), self.until, offers)


class Links:
    """Links from `into_fd` to builds of the cache at `source`: real directories, one symlink for each file.

    builds, files, bytes, results: as of Inherited, so far. until: deadline, in seconds of time.monotonic. offers: as of
    `inherit`.
    """

    def __init__(self, source: str, into_fd: int, until: float, offers: "Offers | None" = None) -> None:
        self.source = source
        self.into_fd = into_fd
        self.until = until
        self.offers = offers
        self.builds = self.files = self.bytes = self.results = 0
        self._states: "dict[str, int]" = {}
        self._results: "dict[str, int]" = {}  # numbers of them, by path of the build
        self._made: "set[str]" = set()

    def create(self, builds: "list[finished_builds.Build]") -> None:
        """Link `builds`; skip those whose directories hold a build already. Raise OutOfTime, OSError."""
        versions: "dict[str, list[finished_builds.Build]]" = {}
        for build in builds:
            versions.setdefault("/".join(build.path.split("/", 3)[:3]), []).append(build)
        for path in versions:
            dirfd.make_directories(self.into_fd, path.partition("/")[0], self._made)
        linked: "list[finished_builds.Build]" = []
        try:
            workers.each(lambda path: self._link_version(path, versions[path], linked), list(versions))
        finally:
            self.builds = len(linked)
            self.files = sum(len(build.files) for build in linked)
            self.bytes = sum(build.bytes for build in linked)
            self.results = sum(self._results.values())
        if self.offers is not None:
            from jobcache.cache import bases  # only jobs of a site with stores load it

            bases.add(self.into_fd, self.source, self._states)
        for path in self._results:
            build_links.mark_unopened(self.into_fd, path)

    def _link_version(self, path: str, builds: "list[finished_builds.Build]", linked: "list[finished_builds.Build]") -> None:
        """Link the builds in one directory `<dataset>/<config>/<version>`: that of the directory itself after those below."""
        dirfd.make_directories(self.into_fd, path, self._made)
        for build in sorted(builds, key=lambda build: build.path == path):
            if time.monotonic() >= self.until:
                raise finished_builds.OutOfTime
            if build.path == path:
                if dirfd.exists(self.into_fd, f"{path}/{build_info.INFO}"):
                    continue
            else:
                try:
                    os.mkdir(build.path, 0o700, dir_fd=self.into_fd)
                except FileExistsError:
                    continue
            links = [(file, f"{self.source}/{build.path}/{file}") for file in build.files] + self._results_of(build)
            for _ in build_links.create(self.into_fd, build.path, links, build.mtime):
                if time.monotonic() >= self.until:
                    raise finished_builds.OutOfTime
            linked.append(build)

    def _results_of(self, build: "finished_builds.Build") -> "list[tuple[str, str]]":
        """Return the links to the results that a result set offers for a build, and keep its state."""
        if self.offers is None:
            return []
        from jobcache.cache import bases, result_sets

        state = self._states[build.path] = bases.state(build.info, build.parts)
        links = result_sets.links(self.offers, build.path, state, build.files)
        if links:
            self._results[build.path] = len(links)
        return links
