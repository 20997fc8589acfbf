"""`jobcache store`: build once by a command, verify, list, and prune builds to which no cache can have a link any more."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobcache.cli.main import main
from jobcache.config import settings
from jobcache.store import as_owner, inventory, places, removal, retention, sections
from support.damage import DAMAGE
from support.home import acting_as
from support.hungfs import hung
from support.site_dir import ALICE, BOB
from support.store_jobs import DAY, LABEL, UID, copying, filled, queue, running, store_command, used
from support.stores import Jobs, Template, links

# ------------------------------------------------------------------------------------------------------- build, verify


def test_real_program_fills_store_for_all_jobs(jobs: Jobs, template: Template) -> None:
    """A program that calls load_dataset fills the store, and every later job is linked to its build."""
    program = jobs.home / "prepare.py"
    program.write_text(
        "import datasets\n"
        f"ds = datasets.load_dataset('json', data_files={{'train': {template.data!r}, 'test': {template.data[:1]!r}}})\n"
        "ds['test'].map(lambda row: {'half': row['id'] / 2})\n"
    )
    done = store_command(jobs, "build", "--", sys.executable, str(program))
    assert done.returncode == 0, done.stderr
    (stored,) = jobs.stored()
    key = json.loads((stored / "manifest.json").read_text())["key"]
    size = sum(path.stat().st_blocks for path in (stored / "files").iterdir()) * 512
    assert done.stdout.splitlines() == [f"published {key}", f"{jobs.path}: 1 new, 0 unchanged, {size} bytes added"]
    assert not list((stored / "files").glob("cache-*")), "results of map are published only under a label"
    assert links(jobs.begin() / key) == (3, 0)
    assert jobs.left() == []
    mtime = stored.stat().st_mtime_ns
    again = store_command(jobs, "build", "--", sys.executable, str(program))
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == f"{jobs.path}: 0 new, 1 unchanged, 0 bytes added"
    assert jobs.stored() == [stored] and stored.stat().st_mtime_ns > mtime and jobs.left() == []


def test_failed_command_publishes_nothing(jobs: Jobs, template: Template) -> None:
    """A command that fails, is missing or leaves no dataset; an invalid label; root."""
    fails = [*copying(template)[:2], copying(template)[2] + "; exit 3"]
    for words, message in (
        (["build", "--", *fails], "status 3"),
        (["build", "--", "/nonexistent"], "No such file"),
        (["build", "--", "true"], "cache_dir="),
        (["build", "--label", "../x", "--", *copying(template)], "label"),
        (["build", "--site", "--", *copying(template)], "store: {site"),
    ):
        done = store_command(jobs, *words)
        assert done.returncode != 0 and message in done.stderr, done.stderr
        assert jobs.stored() == [] and jobs.left() == [] and not (jobs.path.parent / "x").exists()
    done = store_command(jobs, "build", "--", *copying(template), user="root")
    assert done.returncode == 1 and "root cannot fill a store" in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ended_store_build_leaves_nothing(jobs: Jobs, name: str) -> None:
    """A closed terminal, scancel or Ctrl-C ends the command, and its cache is deleted."""
    who = pwd.getpwnam(ALICE)
    argv = [sys.executable, "-m", "jobcache.cli", "store", "build", "--hooks", str(jobs.site.hooks), "--"]
    argv += ["sh", "-c", 'trap "" INT; touch "$HF_DATASETS_CACHE/x"; echo $$; exec sleep 60']
    env = {"PATH": "/usr/bin:/bin", "HOME": str(jobs.home), "PYTHONPATH": os.pathsep.join(sys.path)}
    ids: dict[str, Any] = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **ids) as process:
        assert process.stdout and process.stderr
        pid = process.stdout.readline().strip()
        assert jobs.left()
        process.send_signal(getattr(signal, name))
        assert process.wait(30) == (1 if name == "SIGINT" else 128 + getattr(signal, name))
    assert jobs.left() == [] and not os.path.exists(f"/proc/{pid}")


def test_command_may_delete_its_cache_first(jobs: Jobs, template: Template) -> None:
    """Builds in a new directory are published. A command that leaves no cache is reported."""
    *shell, script = copying(template)
    done = store_command(jobs, "build", "--", *shell, f'rm -rf "$HF_DATASETS_CACHE"; {script}')
    assert done.returncode == 0 and len(jobs.stored()) == 1, done.stderr
    done = store_command(jobs, "build", "--", *shell, f'{script}; rm -rf "$HF_DATASETS_CACHE"')
    assert done.returncode == 1 and "left no dataset" in done.stderr and jobs.left() == []


@pytest.mark.parametrize("damage", DAMAGE[:10:3])
def test_damaged_build_of_command_is_not_published(jobs: Jobs, template: Template, damage: Callable[[Path], None]) -> None:
    """The command succeeds and leaves a damaged build: a message and status 1."""
    mine = jobs.home / "mine"
    template.put(jobs.home, "mine")
    damage(mine)
    shutil.chown(mine, ALICE)
    text = f'mkdir -p "$HF_DATASETS_CACHE/json/a/b" && cp -a {mine} "$HF_DATASETS_CACHE/json/a/b/c"'
    done = store_command(jobs, "build", "--", "sh", "-c", text)
    assert (done.returncode, "not published: json/a/b/c: " in done.stderr) == (1, True), done.stderr
    assert jobs.stored() == [] and jobs.left() == []


def test_rebuild_replaces_stored_build(jobs: Jobs, template: Template) -> None:
    """A new build of the same key replaces the old one, which live jobs keep until they end."""
    old = filled(jobs, template)
    live = jobs.begin(LABEL)
    queue(jobs, running(time.time(), jobs.number))
    done = store_command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template))
    assert done.returncode == 0, done.stderr
    new = next(path for path in jobs.stored(LABEL) if path != old)
    assert os.readlink(live / template.key / "dataset_info.json") == str(old / "files/dataset_info.json")
    assert store_command(jobs, "prune").returncode == 0
    assert (live / template.key / "dataset_info.json").exists(), "the links of the live job work"
    jobs.end()
    assert os.readlink(jobs.begin(LABEL) / template.key / "dataset_info.json") == str(new / "files/dataset_info.json")
    queue(jobs, running(time.time() + 600, jobs.number))
    assert store_command(jobs, "prune").returncode == 0
    assert jobs.stored(LABEL) == [new]


def test_replaced_build_is_not_linked_again(jobs: Jobs, template: Template) -> None:
    """Even if the replacing process was killed before it retired the old build, and a job has dated the old build since."""
    old = filled(jobs, template)
    assert store_command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template)).returncode == 0
    (old / "retired").unlink()
    new = jobs.stored(LABEL)[1]
    used(new, 1)
    assert os.readlink(jobs.begin(LABEL) / template.key / "dataset_info.json") == str(new / "files/dataset_info.json")


def test_verify_and_list_report_damage(jobs: Jobs, template: Template) -> None:
    """`verify` prints the damaged build and the reason, with status 1; `list` shows its state."""
    stored = filled(jobs, template)
    done = store_command(jobs, "verify")
    assert (done.returncode, done.stdout) == (0, f"{jobs.path}: 1 of 1 builds are whole\n"), done.stderr
    (row,) = json.loads(store_command(jobs, "list", "--json").stdout)
    assert (row["key"], row["label"], row["rows"], row["state"]) == (template.key, LABEL, template.rows, "live")
    shown = store_command(jobs, "list").stdout
    assert LABEL in shown and "live" in shown and str(sum(template.rows.values())) in shown
    manifest = stored / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "rows": {"train": 7}}))
    done = store_command(jobs, "verify")
    assert done.returncode == 1 and "the manifest does not match" in done.stderr
    DAMAGE[0](stored / "files")
    done = store_command(jobs, "verify")
    assert done.returncode == 1 and str(stored) in done.stderr
    assert json.loads(store_command(jobs, "list", "--json").stdout)[0]["state"] == "damaged"


# ------------------------------------------------------------------------------------------------------------- pruning


def test_build_is_pruned_by_age_when_no_job_can_link_to_it(jobs: Jobs, template: Template) -> None:
    """Without live jobs at once; otherwise when the jobs that are older than the retirement have ended."""
    stored = filled(jobs, template)
    assert store_command(jobs, "prune").returncode == 0 and stored.exists()
    used(stored, 31)
    queue(jobs, running(time.time() - 40 * DAY))
    assert store_command(jobs, "prune").returncode == 0
    assert stored.exists() and not (stored / "retired").exists(), "used since the oldest live job started"
    queue(jobs, running(time.time() - 3600))
    dry = store_command(jobs, "prune", "--dry-run")
    assert dry.stdout == f"would retire {template.key} (age)\n" and not (stored / "retired").exists()
    assert store_command(jobs, "prune").returncode == 0
    assert (stored / "retired").exists() and (stored / "files/dataset_info.json").exists()
    assert not (jobs.begin(LABEL) / template.key).exists(), "no new cache is linked to it"
    queue(jobs, running(time.time() + 3600, user=ALICE), running(time.time() - DAY, 8, BOB))
    size = sum(path.stat().st_blocks * 512 for path in stored.rglob("*") if path.is_file())
    assert store_command(jobs, "prune", user="root").returncode == 0
    assert jobs.stored(LABEL) == [] and jobs.left() == []
    (event,) = jobs.site.events("store.pruned")
    assert (event["builds"], event["bytes"], event["uid"], event["store"]) == (1, size, UID, str(jobs.path))


def test_pruning_does_not_delete_build_published_meanwhile(jobs: Jobs, template: Template) -> None:
    """Another pruning deletes the judged build, and a job publishes a new one with the same name: the new one stays."""
    old = filled(jobs, template)
    used(old, 31)
    with acting_as(ALICE):
        sections.retire(os.open(old.parent, os.O_RDONLY), old.name)
        judged = retention.to_delete(list(inventory.entries(str(jobs.path), UID)), time.time(), None)
    assert [decision.action for decision in judged] == ["delete"]
    assert store_command(jobs, "prune").returncode == 0 and not old.exists()
    new = filled(jobs, template)
    assert new == old and links(jobs.begin(LABEL) / template.key)[0] > 0
    with acting_as(ALICE):
        assert list(removal.carry_out(str(jobs.path), UID, judged, time.monotonic() + 60)) == []
    assert (new / "files/dataset_info.json").exists()


@pytest.mark.parametrize("operation", ["read", "open", "getattr", "lookup"])
def test_unreadable_build_is_not_pruned_as_damaged(jobs: Jobs, template: Template, operation: str) -> None:
    """Temporary errors of a filesystem cost the store no build."""
    from support.faultfs import Faults, faulty

    stored = filled(jobs, template)
    section, under = stored.parent, jobs.site.dir / "under"
    section.rename(under)
    section.mkdir()
    shutil.chown(section, ALICE)
    for at in range(3, 40, 6):
        with faulty(under, section, Faults(errors={operation: errno.EIO}, after=at)) as fs:
            fs.arm()
            store_command(jobs, "prune")
        assert sorted(path.name for path in (under / stored.name).iterdir()) == ["contents", "files", "manifest.json"], at
    section.rmdir()
    under.rename(section)
    assert store_command(jobs, "verify").returncode == 0 and store_command(jobs, "prune").returncode == 0


def test_pruned_by_size_the_longest_unused_first(jobs: Jobs, template: Template) -> None:
    """Until the others fit."""
    for at in range(3):
        template.put(jobs.begin(LABEL), f"json/many-{at}/0.0.0/x")
        jobs.end()
    by_key = {json.loads((path / "manifest.json").read_text())["key"]: path for path in jobs.stored(LABEL)}
    for at in range(3):
        used(by_key[f"json/many-{at}/0.0.0/x"], 1 + at)
    one = sum(path.stat().st_blocks * 512 for path in jobs.stored(LABEL)[0].rglob("*") if path.is_file())
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{2 * one + 100}B"})
    assert store_command(jobs, "prune").returncode == 0
    left = {json.loads((path / "manifest.json").read_text())["key"] for path in jobs.stored(LABEL)}
    assert left == {"json/many-0/0.0.0/x", "json/many-1/0.0.0/x"}


def test_root_sweep_prunes_stores_once_a_day(jobs: Jobs, template: Template) -> None:
    """A second sweep of a day does not; nor does a sweep of one user, of a node or of a shard, or a dry run."""
    stored = filled(jobs, template)
    used(stored, 31)
    for options in (["--user", ALICE], ["--node-local"], ["--dry-run"], ["--shard", "2/2"]):
        assert sweep(jobs, *options) == 0 and stored.exists()
    assert sweep(jobs) == 0 and not stored.exists()
    again = filled(jobs, template)
    used(again, 31)
    assert sweep(jobs) == 0 and again.exists()
    stamp = jobs.site.dir / "run/store-pruned"
    os.utime(stamp, (stamp.stat().st_mtime - DAY,) * 2)
    assert sweep(jobs) == 0 and not again.exists()


def test_user_stores_are_pruned_despite_site_store_of_root_and_wrong_clock(jobs: Jobs, template: Template) -> None:
    """A site's store that root owns, and a stamp with a date in the future."""
    stored = filled(jobs, template)
    used(stored, 31)
    site = jobs.site.dir / "site-store"
    site.mkdir()
    jobs.site.configure(store={**jobs.site.keys["store"], "site": str(site)})
    stamp = jobs.site.dir / "run/store-pruned"
    stamp.parent.mkdir(exist_ok=True)
    stamp.touch()
    os.utime(stamp, (time.time() + 1000 * DAY,) * 2)
    done = CliRunner().invoke(main, ["sweep", "--hooks", str(jobs.site.hooks)], catch_exceptions=False)
    assert done.exit_code == 1 and "cannot be root" in done.output and not stored.exists()


def sweep(jobs: Jobs, *options: str) -> int:
    return CliRunner().invoke(main, ["sweep", "--hooks", str(jobs.site.hooks), *options], catch_exceptions=False).exit_code


def copy_for_bob(jobs: Jobs, stored: Path) -> Path:
    """Copy the store for Bob; return his copy of `stored`."""
    place = jobs.site.scratch / BOB / ".cache" / "hf-store"
    shutil.copytree(jobs.path, place, copy_function=shutil.copy2)
    for path in [place.parents[1], place.parents[0], place, *place.rglob("*")]:
        shutil.chown(path, BOB)
    return place / stored.relative_to(jobs.path)


def test_hanging_store_does_not_stop_pruning_of_others(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs one process, and no other process touches it while that one is stuck."""
    stored = filled(jobs, template)
    used(stored, 31)
    bobs = copy_for_bob(jobs, stored)
    monkeypatch.setattr(as_owner, "_PATIENCE", 0.5)
    with hung(jobs.path / "v1") as server:
        assert sweep(jobs) == 1 and not bobs.exists()
        assert server.waiting == 1
        (jobs.site.dir / "run/store-pruned").unlink()
        assert sweep(jobs) == 1 and server.waiting == 1
    assert stored.exists()


def test_endless_store_does_not_stop_pruning_of_others(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who keeps adding builds uses up only the time for that user."""
    stored = filled(jobs, template)
    used(stored, 31)
    bobs = copy_for_bob(jobs, stored)
    real = inventory.entries

    def entries(path: str, owner: int, *, heartbeat: Callable[[], None], **options: Any) -> Iterator[inventory.Entry]:
        while path == str(jobs.path):
            heartbeat()
            time.sleep(0.01)
        yield from real(path, owner, heartbeat=heartbeat, **options)

    monkeypatch.setattr(inventory, "entries", entries)
    monkeypatch.setattr(as_owner, "_MAX_PER_OWNER", 3.0)
    assert sweep(jobs) == 1 and not bobs.exists()


def test_nothing_is_pruned_while_slurm_does_not_answer(jobs: Jobs, template: Template) -> None:
    """Status 1, with the reason."""
    stored = filled(jobs, template)
    used(stored, 100)
    (jobs.site.dir / "slurm/down").touch()
    done = store_command(jobs, "prune")
    assert done.returncode == 1 and "nothing was deleted" in done.stderr
    assert not (stored / "retired").exists()


def test_pruning_deletes_only_entries_of_the_store(jobs: Jobs, template: Template) -> None:
    """Unknown names, links, their targets and other users' entries stay; old debris is deleted."""
    stored = filled(jobs, template)
    section = stored.parent
    outside = jobs.site.dir / "outside"
    shutil.copytree(stored, outside)
    (section / f"{'a' * 32}.1").symlink_to(outside)
    (section / "notes").mkdir()
    (section / f"{'b' * 32}.1").mkdir()  # owned by root
    for name, age in ((".jobcache-new-build-aa", 3), (".jobcache-staging-bb", 0), (".jobcache-trash-build-cc", 0)):
        (section / name).mkdir()
        (section / name / "x").write_text("x")
        for path in (section / name / "x", section / name):
            shutil.chown(path, ALICE)
            used(path, age)
    before = sorted(str(path) for path in outside.rglob("*"))
    used(stored, 100)
    store_command(jobs, "prune", user="root")
    assert sorted(path.name for path in section.iterdir()) == sorted(
        [f"{'a' * 32}.1", f"{'b' * 32}.1", "notes", ".jobcache-staging-bb", ".jobcache-new-build-aa"]
    ), "the date of debris is its newest change, which the user cannot set"
    assert sorted(str(path) for path in outside.rglob("*")) == before


def test_huge_manifest_costs_no_memory(jobs: Jobs, template: Template) -> None:
    """Root's pruning reads no manifest of a user, and `list` keeps only what it shows."""
    stored = filled(jobs, template)
    manifest = stored / "manifest.json"
    manifest.unlink()
    manifest.write_text('{"rows": [' + "[]," * 5_000_000 + '0], "by": "' + "x" * 1_000_000 + '"}')
    used(stored, 31)
    queue(jobs, running(time.time() - 3600))
    limited = ["prlimit", f"--as={1 << 28}", sys.executable, "-m", "jobcache.cli", "store", "prune", "--hooks", jobs.site.hooks]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert (done.returncode, done.stderr) == (0, "") and (stored / "retired").exists()
    (row,) = json.loads(store_command(jobs, "list", "--json", "--user", ALICE, user="root").stdout)
    assert (row["rows"], row["by"]) == (None, None)


def test_empty_sections_are_removed_after_a_day(jobs: Jobs, template: Template) -> None:
    """Sections with any entry stay, as do unknown names."""
    section = filled(jobs, template).parent
    used(jobs.stored(LABEL)[0], 31)
    (section.parent / "label-notes").mkdir()
    (section.parent / "label-notes/x").touch()
    (section.parent / "mine").mkdir()
    shutil.chown(section.parent / "label-notes", ALICE)
    used(section.parent / "label-notes", 3)
    assert store_command(jobs, "prune", user="root").returncode == 0
    assert section.exists() and jobs.stored(LABEL) == []
    used(section, 3)
    assert store_command(jobs, "prune", "--dry-run").returncode == 0 and section.exists()
    assert store_command(jobs, "prune", user="root").returncode == 0
    assert sorted(path.name for path in section.parent.iterdir()) == ["label-notes", "mine"]
    assert filled(jobs, template).exists()


def test_site_store_is_filled_and_pruned_as_its_owner(jobs: Jobs, template: Template) -> None:
    """Everybody reads it; only its owner, or root as its owner, prunes it."""
    place = jobs.site.dir / "site-store"
    place.mkdir()
    shutil.chown(place, BOB)
    jobs.site.configure(store={**jobs.site.keys["store"], "site": str(place)})
    build = ["build", "--site", "--", *copying(template)]
    assert "belongs to uid" in store_command(jobs, *build).stderr
    assert store_command(jobs, *build, user="root").returncode == 1
    done = store_command(jobs, *build, user=BOB)
    assert done.returncode == 0, done.stderr
    (stored,) = (place / "v1/default").iterdir()
    assert {path.stat().st_mode & 0o7777 for path in place.rglob("*")} == {0o755, 0o555, 0o444}
    cache = jobs.begin()
    assert os.readlink(cache / template.key / "dataset_info.json") == str(stored / "files/dataset_info.json")
    with acting_as(ALICE), pytest.raises(PermissionError):
        (stored / "files/x").write_text("x")
    assert store_command(jobs, "verify", "--site").returncode == 0
    used(stored, 100)
    message = store_command(jobs, "prune", "--site").stderr
    assert f"belongs to {BOB}: run this as that account" in message and "chown" not in message and stored.exists()
    queue(jobs, running(time.time() + 3600))
    assert store_command(jobs, "prune", "--site", user="root").returncode == 0
    assert not stored.exists()
    shutil.chown(place, "root")
    for name in ("prune", "list", "verify"):
        done = store_command(jobs, name, "--site", user="root")
        assert done.returncode == 1 and "cannot be root" in done.stderr and "chown -R NAME" in done.stderr


# ------------------------------------------------------------------------------------------------------------ decisions


def entry(name: str, used: float, **fields: Any) -> inventory.Entry:
    return inventory.Entry("build", "", name, used=used, bytes=100, **fields)


def test_reasons_of_retirement_and_retention() -> None:
    """Each reason to retire a build, and each reason to keep it."""
    now, digests = 100 * DAY, [f"{at:032x}" for at in range(6)]
    found = [
        entry(f"{digests[0]}.1", now - 40 * DAY),
        entry(f"{digests[1]}.1", now, problem="damaged"),
        entry(f"{digests[2]}.1", now),
        entry(f"{digests[2]}.2", now - 1),
        entry(f"{digests[3]}.1", now - 2 * DAY),
        entry(f"{digests[4]}.1", now - 1 * DAY),
        entry(f"{digests[5]}.1", now - 50 * DAY, retired=now - DAY),
    ]

    def reasons(oldest: float | None, size: int = 1000) -> dict[str, str]:
        decisions = retention.to_retire(found, now, size, 30 * DAY, oldest)
        return {f"{int(d.entry.name[:32], 16)}.{d.entry.name[33:]}": d.reason for d in decisions if d.action == "retire"}

    assert reasons(None) == {"0.1": "age", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(None, 250) == {"0.1": "age", "3.1": "size", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(None, 150) == {"0.1": "age", "3.1": "size", "4.1": "size", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(now - 1.5 * DAY, 150) == {"0.1": "age", "3.1": "size", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(now - 60 * DAY, 0) == {"1.1": "damaged", "2.1": "superseded"}
    assert [d.action for d in retention.to_delete(found, now, now - 2 * DAY)] == ["keep"]
    assert [d.action for d in retention.to_delete(found, now, now - DAY + 200)] == ["keep"], "clocks may differ"
    assert [d.action for d in retention.to_delete(found, now, now - DAY + 400)] == ["delete"]
    assert [d.action for d in retention.to_delete(found, now, None)] == ["delete"]


def test_root_finds_every_user_store(jobs: Jobs, template: Template) -> None:
    """`user_places` as root."""
    filled(jobs, template)
    (jobs.site.scratch / BOB).mkdir()
    shutil.chown(jobs.site.scratch / BOB, BOB)
    compiled = settings.load(f"{jobs.site.hooks}/settings.json")
    problems: list[str] = []
    found = {place.path: place.owner for place in places.user_places(compiled, None, problems)}
    assert found[str(jobs.path)] == UID and problems == []
