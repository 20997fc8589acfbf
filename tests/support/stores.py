"""Jobs on a site with a store: each gets its cache from the TaskProlog, uses it, and ends with its Epilog."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from jobcache.cache import store_names
from support import hf
from support.home import fingerprint
from support.site_dir import ALICE, Site

KEY = "json/default-*/0.0.0/*"


class Template:
    """A real build by `datasets`: two splits, one of them in two shards, and the result of a map.

    cache: the cache that holds it. data: its source files. key: its path in the cache. rows: their number, by split.
    """

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="jobcache-template-"))
        self.dir.chmod(0o755)
        shutil.chown(self.dir, ALICE)
        parts = [write_rows(self.dir / f"{name}.jsonl", range(rows)) for name, rows in (("one", 200), ("two", 100))]
        self.data = [str(part) for part in parts]
        self.cache = self.dir / "cache"
        python = hf.Python(hf.PYTHONS[0])
        python.run(
            f"ds = load_dataset('json', data_files={{'train': {self.data!r}, 'test': {self.data[:1]!r}}}, num_proc=2)\n"
            "ds['test'].map(lambda row: {'half': row['id'] / 2})\n",
            self.dir, HF_DATASETS_CACHE=str(self.cache),
        )  # fmt: skip
        python.close()
        subprocess.run(["chmod", "-R", "a+rX", str(self.cache)], check=True)
        (build,) = (path.parent for path in self.cache.glob(f"{KEY}/dataset_info.json"))
        self.key = str(build.relative_to(self.cache))
        self.rows = {name: split["num_examples"] for name, split in info(build)["splits"].items()}

    def put(self, cache: Path, key: str = "") -> Path:
        """Copy the build into a cache, under another key if given, with the cache's owner; return its directory."""
        to = cache / (key or self.key)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.cache / self.key, to)
        own(cache, cache / (key or self.key))
        return to

    def close(self) -> None:
        """Remove the build."""
        shutil.rmtree(self.dir)


def own(cache: Path, to: Path) -> None:
    """Give `to`, everything below it, and the directories between `cache` and it to the cache's owner."""
    owner = cache.stat()
    for path in [to, *to.relative_to(cache).parents, *to.rglob("*")]:
        os.lchown(cache / path, owner.st_uid, owner.st_gid)


def write_rows(path: Path, ids: Any) -> Path:
    """Write a JSON Lines file with one row for each id; return its path."""
    path.write_text("".join(json.dumps({"id": id, "text": f"row {id} " * 4, "tags": ["a"] * (id % 3)}) + "\n" for id in ids))
    path.chmod(0o644)
    return path


def info(build: Path) -> dict[str, Any]:
    """Return the dataset_info.json of a build."""
    found: dict[str, Any] = json.loads((build / "dataset_info.json").read_text())
    return found


class Jobs:
    """Alice's jobs on a site whose users have stores. path: of her store. home: of her jobs' data. number: the present job."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.number = 100
        self.path = site.scratch / ALICE / ".cache" / "hf-store"
        site.configure(store={"user": f"{site.scratch}/{{user}}/.cache/hf-store"})
        self.home = site.dir / "home"
        self.home.mkdir(exist_ok=True)
        shutil.chown(self.home, ALICE)

    def begin(self, label: str = "", **env: str) -> Path:
        """Begin a job with this label; return its cache."""
        self.number += 1
        task = self.site.task_prolog(self.number, **({"JOBCACHE_STORE": label} if label else {}), **env)
        assert task.cache, task.output
        return Path(task.cache)

    def end(self, **env: Any) -> list[dict[str, Any]]:
        """End the job; return the events of its Epilog about the store."""
        self.site.epilog(self.number, **env)
        return [event for event in self.site.events("store.published") if event["job_id"] == self.number]

    def job(self, python: hf.Python, code: str, label: str = "", **env: str) -> Any:
        """Run `code` in a job of its own; return its result."""
        cache = self.begin(label)
        try:
            return python.run(code, self.home, HF_DATASETS_CACHE=str(cache), **env)
        finally:
            self.end()

    def seeded(self) -> list[dict[str, Any]]:
        """Return the events of the present job's TaskProlog about the store."""
        return [event for event in self.site.syslog.events("store.seeded") if event["job_id"] == self.number]

    def stored(self, label: str = "") -> list[Path]:
        """Return the builds in a section of the store, in any state. label: as of store_names.section."""
        section = self.path / "v1" / store_names.section(label)
        return sorted(path for path in section.iterdir() if path.name[0] != ".") if section.exists() else []

    def left(self) -> list[Path]:
        """Return the debris in the store."""
        return sorted(self.path.glob("v1/*/.*"))

    def print(self) -> dict[str, tuple[object, ...]]:
        """Return the fingerprint of the store."""
        return fingerprint(self.path)


def links(build: Path) -> tuple[int, int]:
    """Return how many of a build's files are symlinks, and how many are regular files."""
    found = [path.is_symlink() for path in build.iterdir()]
    return sum(found), len(found) - sum(found)
