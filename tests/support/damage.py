"""Ways in which a build is damaged, by a crash or by its user. Each function changes the build in a directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from support.site_dir import ALICE
from support.stores import info


def shards(build: Path) -> list[Path]:
    return sorted(build.glob("json-*.arrow"))


def rewrite(path: Path, data: bytes) -> None:
    """Change the content of a file and keep its times and those of its directory, as a crash does."""
    before, above = path.stat(), path.parent.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    os.utime(path.parent, ns=(above.st_mtime_ns, above.st_mtime_ns))


def zero_second_half(build: Path) -> None:
    data = shards(build)[0].read_bytes()
    rewrite(shards(build)[0], data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def zero_end(build: Path) -> None:
    data = shards(build)[0].read_bytes()
    rewrite(shards(build)[0], data[:-8] + bytes(8))


def cut_in_a_batch(build: Path) -> None:
    data = shards(build)[0].read_bytes()
    rewrite(shards(build)[0], data[: len(data) * 2 // 3])


def cut_between_batches(build: Path) -> None:
    rewrite(shards(build)[0], shards(build)[0].read_bytes()[:-8])


def empty_a_shard(build: Path) -> None:
    rewrite(shards(build)[0], b"")


def delete_a_shard(build: Path) -> None:
    shards(build)[-1].unlink()


def empty_info(build: Path) -> None:
    rewrite(build / "dataset_info.json", b"")


def cut_info(build: Path) -> None:
    rewrite(build / "dataset_info.json", (build / "dataset_info.json").read_bytes()[:100])


def delete_info(build: Path) -> None:
    (build / "dataset_info.json").unlink()


def miscount_rows(build: Path) -> None:
    content = info(build)
    content["splits"]["train"]["num_examples"] += 1
    rewrite(build / "dataset_info.json", json.dumps(content).encode())


def swap_two_shards(build: Path) -> None:
    one, other = shards(build)[0], shards(build)[-1]
    rewrite(one, other.read_bytes())


def info_without_splits(build: Path) -> None:
    rewrite(build / "dataset_info.json", json.dumps({**info(build), "splits": {}}).encode())


def info_that_leads_outside(build: Path) -> None:
    content = info(build)
    for split in content["splits"].values():
        split["dataset_name"] = "../../../../../etc/x"
    rewrite(build / "dataset_info.json", json.dumps({**content, "dataset_name": "../x"}).encode())


def info_with_impossible_file_name(build: Path) -> None:
    content = info(build)
    splits = {**content["splits"], "\ud800": content["splits"]["test"]}
    rewrite(build / "dataset_info.json", json.dumps({**content, "splits": splits}).encode())


def date_before_the_epoch(build: Path) -> None:
    os.utime(shards(build)[0], (-5, -5))


def symlink_in_place_of_shard(build: Path) -> None:
    path = shards(build)[0]
    data = path.read_bytes()
    aside = build.parent / "aside.arrow"
    aside.write_bytes(data)
    shutil.chown(aside, ALICE)
    path.unlink()
    path.symlink_to(aside)
    os.lchown(path, *build.stat()[4:6])


DAMAGE = [
    zero_second_half, zero_end, cut_in_a_batch, cut_between_batches, empty_a_shard, delete_a_shard, empty_info, cut_info,
    delete_info, miscount_rows, swap_two_shards, info_without_splits, info_that_leads_outside, symlink_in_place_of_shard,
    info_with_impossible_file_name, date_before_the_epoch,
]  # fmt: skip
