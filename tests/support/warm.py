"""Alice's warm cache of `datasets` in her home, and her jobs on a node that has no internet.

Each program runs in a job with a private cache, or as if jobcache were not installed. Both have the same variables.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

from support import hf
from support.home import fingerprint
from support.hub import Hub
from support.site_dir import ALICE, Site
from support.stores import write_rows

# A program that waits between attempts to reach the Hub (24 s with datasets 5.2.0, 46 s with 3.6.0) does not wait here.
NO_WAITING = "import time\ntime.sleep = lambda seconds: None\n"
HUB = "ds = load_dataset('acme/rows')['train']\nmapped = ds.map(lambda row: {'half': row['id'] / 2})\n"
HUB += "result = [len(ds), len(mapped), len(load_dataset('acme/lines')['test']), len(load_dataset('acme/tables')['train'])]\n"
HUB_RESULT = [200, 200, 10, 120]  # the newest revision has 200 rows, the one before it 100

# Work of jobs with local data. Each result has the rows, and a sum of a column.
LOCAL = """
def numbers():
    for number in range(60):
        yield {'id': number}

def half(row):
    return {'half': row['id'] / 2}

array = load_dataset('json', data_files='DATA/array.json')['train']
lines = load_dataset('json', data_files={'train': 'DATA/lines.jsonl', 'test': 'DATA/more.jsonl'})
table = load_dataset('csv', data_files='DATA/table.csv')['train']
frame = load_dataset('parquet', data_files='DATA/frame.parquet')['train']
made = Dataset.from_generator(numbers)
chain = lines['train'].map(half).filter(lambda row: row['half'] < 100).sort('half', reverse=True)
chain = chain.map(lambda rows: {'tens': [number // 10 for number in rows['id']]}, batched=True).shuffle(seed=3)
both = concatenate_datasets([array.select_columns('id'), frame.select_columns('id')]).map(half)
mixed = interleave_datasets([array.select_columns('id'), made])
named = {
    'array': array, 'lines': lines['train'], 'test': lines['test'], 'csv': table, 'parquet': frame, 'from_generator': made,
    'array map': array.map(half), 'chain': chain, 'concatenate': both, 'interleave': mixed,
}
result = {name: [len(ds), sum(ds['id'])] for name, ds in named.items()}
stream = load_dataset('json', data_files='DATA/lines.jsonl', streaming=True, split='train')
result['stream'] = [len(list(stream)), sum(row['id'] for row in stream)]
"""


class Warm:
    """A user's cache that holds two revisions of a dataset of the Hub, two more, and all that LOCAL computes.

    home: of Alice. cache: its huggingface/datasets. hub: the stub of the Hub, which runs only while the cache is made.
    """

    def __init__(self, executable: str) -> None:
        self.executable = executable
        self.site = Site()
        self.site.configure(task_prolog={"deadline": "40s"})  # a busy machine is slow, not another case
        self.hub = Hub()
        self.python = hf.Python(executable, warm=True)
        self.number = 100
        self.home = self.site.dir / "home"
        self.data = self.site.dir / "data"
        for directory in (self.home, self.data):
            directory.mkdir()
            shutil.chown(directory, ALICE)
        self.huggingface = self.home / ".cache/huggingface"
        self.cache = self.huggingface / "datasets"
        self.local = LOCAL.replace("DATA", str(self.data))
        self._write_data()
        older = self.hub.push("acme/rows", {"data/train-00000-of-00001.parquet": parquet(range(100))})
        self.hub.push("acme/rows", {"data/train-00000-of-00001.parquet": parquet(range(200))})
        lines = {"train.jsonl": _lines(range(150)), "test.jsonl": _lines(range(10))}
        self.hub.push("acme/lines", lines)
        self.hub.push("acme/tables", {"train.csv": b"id\n" + b"".join(b"%d\n" % number for number in range(120))})
        self.run(f"result = len(load_dataset('acme/rows', revision={older!r})['train'])\nassert result == 100\n")
        assert self.run(HUB) == HUB_RESULT
        self.local_result = self.run(self.local)
        self.hub.stop()

    def close(self) -> None:
        """End the programs, and remove the directory."""
        self.hub.stop()
        self.python.close()
        self.site.close()

    def _write_data(self) -> None:
        write_rows(self.data / "lines.jsonl", range(400))
        write_rows(self.data / "more.jsonl", range(50))
        (self.data / "array.json").write_text("[" + ",\n".join(f'{{"id": {number}}}' for number in range(300)) + "]\n")
        (self.data / "table.csv").write_text("id\n" + "".join(f"{number}\n" for number in range(80)))
        (self.data / "frame.parquet").write_bytes(parquet(range(70)))

    # ------------------------------------------------------------------------------------------------------- programs

    def run(self, code: str, first: str = "", **env: str | None) -> Any:
        """Run a program without jobcache; return its result. env: further variables."""
        # The dataset viewer has a host name of its own, which nothing here can answer.
        code = "datasets.config.USE_PARQUET_EXPORT = False\n" + code
        return self.python.run(code, self.home, first=first, **{**self.variables(), **env})

    def variables(self) -> dict[str, str | None]:
        """Return the variables of all programs."""
        return {"HF_HOME": None, **self.hub.environment}

    def begin(self, **env: str) -> dict[str, str]:
        """Begin a job; return the variables of its tasks, HF_DATASETS_CACHE among them."""
        self.number += 1
        given = {name: value for name, value in self.variables().items() if value is not None}
        task = self.site.task_prolog(self.number, **{"HOME": str(self.home), **given, **env})
        assert task.cache, f"no private cache: {task.output!r} {self.events()}"
        assert Path(task.cache).is_relative_to(self.site.scratch)
        return {**env, **task.exports}

    def end(self) -> None:
        """End the job."""
        self.site.epilog(self.number)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the present job's TaskProlog."""
        return [event for event in self.site.syslog.events() if event["job_id"] == self.number]

    def job(self, code: str, first: str = "", **env: str) -> Any:
        """Run a program in a job; return its result, and the paths in the job's cache that are not links but Arrow files."""
        given = self.begin(**env)
        try:
            result = self.run(code, first, **given)
            return result, computed(Path(given["HF_DATASETS_CACHE"]))
        finally:
            self.end()

    def print(self) -> dict[str, tuple[object, ...]]:
        """Return the fingerprint of the user's cache."""
        return fingerprint(self.cache)

    def copy(self, to: Path) -> None:
        """Copy HF_HOME with all dates, as its owner."""
        to.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(self.huggingface), str(to)], check=True)


def computed(cache: Path) -> list[str]:
    """Return the Arrow files in a cache that are not links: what a job had to build or to compute."""
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*.arrow") if not path.is_symlink())


def parquet(ids: range) -> bytes:
    """Return a Parquet file with one row for each id."""
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": list(ids), "text": [f"row {id}" for id in ids]}), file)
    return file.getvalue()


def _lines(ids: range) -> bytes:
    return b"".join(b'{"id": %d}\n' % id for id in ids)
