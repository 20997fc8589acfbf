"""The finished builds of a cache that others use at the same time, found without changing anything in it.

A build is `<dataset>/<config>/<version>/<hash>/`, or, of `Dataset.from_generator` and similar functions, the files in
`<dataset>/<config>/<version>/`. It is finished if dataset_info.json and each shard that it names exist and end as Arrow
streams. A dataset counts as a whole: with one of its revisions missing, `datasets` would silently load another one offline.

The cache belongs to the user who runs this, or to somebody whom that user trusts with it. So its symlinks are followed.
"""

import os
import stat
import time

from jobcache.cache import build_info, cache_names, dirfd, reasons, store_names, workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DOWNLOADS = "downloads"  # beside the datasets; finished builds do not need it
_ATTEMPTS = 3  # at a dataset that changes meanwhile
_PAUSE = 0.02  # seconds between them; `datasets` replaces a build in a few milliseconds
_RECENT = 60  # seconds since the last change of a damaged build that may be in the middle of one
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class OutOfTime(Exception):
    """The deadline has passed."""


class _Changed(Exception):
    """Somebody changes a build."""


class TooMany(Exception):
    """The cache has more builds than allowed."""


class Build:
    """A finished build. path: of its directory in the cache. files: names. bytes: their size. mtime: of the directory, in ns.

    info: the text of dataset_info.json. parts: (name, bytes, mtime in ns) of each shard. `bases.state` takes both.
    """

    __slots__ = ("path", "files", "bytes", "mtime", "info", "parts")

    def __init__(self, path: str, mtime: int, info: bytes) -> None:
        self.path = path
        self.files = [build_info.INFO]
        self.bytes = len(info)
        self.mtime = mtime
        self.info = info
        self.parts: "list[tuple[str, int, int]]" = []


class _Dataset:
    """A dataset that is being scanned. candidates: (path, names of its files if known) of each possible build.

    versions: mtime by path of each directory of builds. refusal: why the dataset is left out. changed: what has changed
    since the scan began, "" for nothing.
    """

    __slots__ = ("name", "candidates", "versions", "builds", "refusal", "changed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.candidates: "list[tuple[str, list[str] | None]]" = []
        self.versions: "dict[str, int]" = {}
        self.builds: "list[Build]" = []
        self.refusal: "reasons.Refused | None" = None
        self.changed = ""


class Scan:
    """A scan of the cache at `root`, until `until` (time.monotonic), for `most` builds at most.

    of_job: the cache is a job's, and only builds that the job made count, not those that are links.
    builds: of all complete datasets. left_out: why, by name of dataset. candidates: the number of possible builds.
    """

    def __init__(self, root: str, until: float, most: float, of_job: bool = False) -> None:
        self.root = root
        self.until = until
        self.most = most
        self.of_job = of_job
        self.builds: "list[Build]" = []
        self.left_out: "dict[str, reasons.Refused]" = {}
        self.candidates = 0

    def run(self, found: "Callable[[], None]" = lambda: None) -> None:
        """Scan. Raise OutOfTime, TooMany, and OSError if the cache itself cannot be read.

        found: called when `candidates` is known, before the builds are checked.
        """
        directories, _ = self._list("")
        names = [name for name in directories if name != _DOWNLOADS and not (self.of_job and cache_names.is_scope(name))]
        for _ in range(_ATTEMPTS):
            datasets = [_Dataset(name) for name in names]
            self._scan(datasets, found)
            for dataset in datasets:
                if dataset.refusal or dataset.changed:
                    self.left_out[dataset.name] = dataset.refusal or reasons.Refused("changed", dataset.changed)
                else:
                    self.left_out.pop(dataset.name, None)
                    self.builds += dataset.builds
            names = [dataset.name for dataset in datasets if dataset.changed and not dataset.refusal]
            if not names:
                return
            time.sleep(_PAUSE)

    def _scan(self, datasets: "list[_Dataset]", found: "Callable[[], None]") -> None:
        configs: "list[tuple[_Dataset, str]]" = []

        def list_dataset(dataset: _Dataset) -> None:
            configs.extend((dataset, f"{dataset.name}/{name}") for name in self._list(dataset.name)[0])

        def list_config(dataset: _Dataset, path: str) -> None:
            for name in self._list(path)[0]:
                self._list_version(dataset, f"{path}/{name}")

        def check_version(dataset: _Dataset, path: str, mtime: int) -> None:
            if self._mtime(path) != mtime:
                raise _Changed(f"{path} has changed")

        workers.each(lambda dataset: self._guarded(dataset, list_dataset), datasets)
        workers.each(lambda at: self._guarded(at[0], list_config, at[1]), configs)
        self.candidates = len(self.builds) + sum(len(dataset.candidates) for dataset in datasets)
        found()
        if self.candidates > self.most:
            raise TooMany
        builds = [(dataset, *candidate) for dataset in datasets if not dataset.refusal for candidate in dataset.candidates]
        workers.each(lambda at: self._guarded(at[0], self._check_build, *at[1:]), builds)
        versions = [(dataset, *at) for dataset in datasets if not dataset.refusal for at in dataset.versions.items()]
        workers.each(lambda at: self._guarded(at[0], check_version, *at[1:]), versions)

    def _guarded(self, dataset: _Dataset, work: "Callable[..., None]", *args: object) -> None:
        """Call work(dataset, *args). Let an error of the filesystem, or a damaged build, concern this dataset alone."""
        if dataset.refusal or dataset.changed:
            return
        try:
            work(dataset, *args)
        except (_Changed, FileNotFoundError) as change:
            dataset.changed = str(change)
        except reasons.Refused as refusal:
            dataset.refusal = refusal
        except OSError as error:
            dataset.refusal = reasons.Refused(reasons.reason_of(error), str(error))

    def _list_version(self, dataset: _Dataset, path: str) -> None:
        """Add the possible builds in a directory `<dataset>/<config>/<version>`."""
        dataset.versions[path] = self._mtime(path)
        directories, files = self._list(path)
        found: "list[tuple[str, list[str] | None]]" = [(f"{path}/{name}", None) for name in directories]
        if any(name.endswith(".arrow") or name == build_info.INFO for name in files):
            found.append((path, files))
        dataset.candidates += found

    def _check_build(self, dataset: _Dataset, path: str, names: "list[str] | None") -> None:
        """Add a finished build. Raise Refused for a damaged one, _Changed if that may be temporary, OSError, OutOfTime."""
        if self.of_job and os.path.islink(f"{self.root}/{path}/{build_info.INFO}"):
            return
        mtime = self._mtime(path)
        present = set(self._list(path)[1] if names is None else names)
        if not present:
            return  # `datasets` ignores an empty directory
        try:
            build = self._read_build(path, present, mtime)
        except reasons.Refused as refusal:
            details = f"{path}: {refusal}"
            if abs(time.time() - mtime / 1e9) < _RECENT:
                raise _Changed(details) from None
            raise reasons.Refused(refusal.reason, details) from None
        dataset.builds.append(build)

    def _read_build(self, path: str, present: "set[str]", mtime: int) -> Build:
        """Return a finished build. present: the names of its files. Raise Refused, OSError, OutOfTime."""
        if build_info.INFO not in present:
            raise reasons.Refused("damaged", f"it has no {build_info.INFO}")
        build = Build(path, mtime, self._read_info(path))
        shards = [file for split in build_info.shards(build_info.parse(build.info)).values() for file, _ in split]
        for file in shards:
            length, date = self._whole(f"{path}/{file}") if file in present else (0, 0)
            if not length:
                raise reasons.Refused("damaged", f"{file} is {'cut short' if file in present else 'missing'}")
            build.files.append(file)
            build.parts.append((file, length, date))
            build.bytes += length
        for file in sorted(filter(build_info.is_map, present.difference(shards))):
            length, _ = self._whole(f"{path}/{file}")
            if length:
                build.files.append(file)
                build.bytes += length
        return build

    def _list(self, path: str) -> "tuple[list[str], list[str]]":
        """Return the names of directories and of files. Leave out hidden and temporary ones, and locks. Raise OSError."""
        self._check_time()
        directories: "list[str]" = []
        files: "list[str]" = []
        with os.scandir(f"{self.root}/{path}") as entries:
            for entry in entries:
                if store_names.is_build_file(entry.name):
                    (directories if entry.is_dir() else files).append(entry.name)
                elif entry.name == cache_names.META and not self.of_job:
                    return [], []  # a private cache
        return directories, files

    def _mtime(self, path: str) -> int:
        return os.stat(f"{self.root}/{path}").st_mtime_ns

    def _read_info(self, path: str) -> bytes:
        fd = dirfd.open_unmarked(f"{self.root}/{path}/{build_info.INFO}", _FILE)
        try:
            found = os.fstat(fd)
            return os.read(fd, min(found.st_size, build_info.READ_LIMIT)) if stat.S_ISREG(found.st_mode) else b""
        finally:
            os.close(fd)

    def _whole(self, path: str) -> "tuple[int, int]":
        """Return (bytes, mtime in ns) of an Arrow file that ends as a stream, (0, 0) for any other or missing file.

        Raise OSError, OutOfTime.
        """
        self._check_time()
        try:
            fd = dirfd.open_unmarked(f"{self.root}/{path}", _FILE)
        except FileNotFoundError:
            return 0, 0
        try:
            found = os.fstat(fd)
            at = found.st_size - len(build_info.END)
            whole = stat.S_ISREG(found.st_mode) and at >= 0 and os.pread(fd, len(build_info.END), at) == build_info.END
            return (found.st_size, found.st_mtime_ns) if whole else (0, 0)
        finally:
            os.close(fd)

    def _check_time(self) -> None:
        if time.monotonic() >= self.until:
            raise OutOfTime
