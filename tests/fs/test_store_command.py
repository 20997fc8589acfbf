"""`jobcache store`: built once by a command, verified, listed, and pruned when nobody can hold a link any more."""

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
from test_store import DAMAGE, LABEL, template  # noqa: F401 - a fixture

import jobcache
from jobcache.cli.main import main
from jobcache.config import settings
from jobcache.store import pruning, store
from support.home import acting_as
from support.hungfs import hung
from support.site_dir import ALICE, BOB, Site
from support.stores import Jobs, Template, jobs_of, links

UID = pwd.getpwnam(ALICE).pw_uid
DAY = 86400


@pytest.fixture
def jobs(site: Site) -> Iterator[Jobs]:
    bin = site.dir / "slurm"
    bin.mkdir()
    (bin / "squeue").write_text(
        f'#!/bin/sh\n[ -e {bin}/down ] && exit 1\ncase "$*" in *%S*) cat {bin}/queue ;; *) cut -d"|" -f1-4 {bin}/queue ;; esac\n'
    )
    (bin / "scontrol").write_text(
        '#!/bin/sh\ncase "$*" in *config) echo "ClusterName = test" ;; *) echo "No jobs in the system" ;; esac\n'
    )
    for program in bin.iterdir():
        program.chmod(0o755)
    site.configure(slurm={"squeue": f"{bin}/squeue", "scontrol": f"{bin}/scontrol", "timeout": "5s"})
    for one in jobs_of(site):
        queue(one)
        yield one


def queue(jobs: Jobs, *lines: str) -> None:
    (jobs.site.dir / "slurm/queue").write_text("".join(f"{line}\n" for line in lines))


def running(since: float, job: int = 7, user: str = ALICE) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    return f"{job}|{job}|RUNNING|{pwd.getpwnam(user).pw_uid}|{stamp}"


def command(jobs: Jobs, *words: str, user: str = ALICE, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `jobcache store` as a user; words behind `--` are COMMAND."""
    who = pwd.getpwnam(user)
    at = words.index("--") if "--" in words else len(words)
    argv = [sys.executable, "-m", "jobcache.cli", "store", *words[:at], "--hooks", str(jobs.site.hooks), *words[at:]]
    package = str(Path(jobcache.__file__).parents[1])
    return subprocess.run(
        argv, env={"PATH": "/usr/bin:/bin", "HOME": str(jobs.home), "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1", **env},
        user=who.pw_uid, group=who.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def copying(template: Template) -> list[str]:  # noqa: F811
    """A command that leaves the template's build in its cache, as load_dataset would: nothing where there is one already."""
    text = f'mkdir -p "$HF_DATASETS_CACHE/{os.path.dirname(template.key)}" && cd "$HF_DATASETS_CACHE" && '
    text += f"[ -e {template.key} ] || cp -a {template.cache}/{template.key} {template.key}; "
    text += f"touch _x_{template.key.replace('/', '_')}.lock"
    return ["sh", "-c", text]


def filled(jobs: Jobs, template: Template, label: str = LABEL) -> Path:  # noqa: F811
    done = command(jobs, "build", *(["--label", label] if label else []), "--", *copying(template))
    assert done.returncode == 0, done.stderr
    return jobs.stored(label)[-1]


# ------------------------------------------------------------------------------------------------------- build, verify


def test_built_once_by_a_real_program(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """A program that calls load_dataset fills the store; every job is then given what it built."""
    program = jobs.home / "prepare.py"
    program.write_text(
        "import datasets\n"
        f"ds = datasets.load_dataset('json', data_files={{'train': {template.data!r}, 'test': {template.data[:1]!r}}})\n"
        "ds['test'].map(lambda row: {'half': row['id'] / 2})\n"
    )
    done = command(jobs, "build", "--", sys.executable, str(program))
    assert done.returncode == 0, done.stderr
    (stored,) = jobs.stored()
    key = json.loads((stored / "manifest.json").read_text())["key"]
    size = sum(path.stat().st_blocks for path in (stored / "files").iterdir()) * 512
    assert done.stdout.splitlines() == [f"published {key}", f"{jobs.path}: 1 new, 0 as they were, {size} bytes more"]
    assert not list((stored / "files").glob("cache-*")), "results of map have no place in a store without a label"
    assert links(jobs.begin() / key) == (3, 0)
    assert jobs.left() == []
    mtime = stored.stat().st_mtime_ns
    again = command(jobs, "build", "--", sys.executable, str(program))
    assert again.returncode == 0 and again.stdout.splitlines()[-1] == f"{jobs.path}: 0 new, 1 as they were, 0 bytes more"
    assert jobs.stored() == [stored] and stored.stat().st_mtime_ns > mtime and jobs.left() == []


def test_what_fails_publishes_nothing(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """A command that fails, is not there, or leaves nothing; a label that is none; root."""
    fails = [*copying(template)[:2], copying(template)[2] + "; exit 3"]
    for words, said in (
        (["build", "--", *fails], "status 3"),
        (["build", "--", "/nonexistent"], "No such file"),
        (["build", "--", "true"], "cache_dir="),
        (["build", "--label", "../x", "--", *copying(template)], "label"),
        (["build", "--site", "--", *copying(template)], "store: {site"),
    ):
        done = command(jobs, *words)
        assert done.returncode != 0 and said in done.stderr, done.stderr
        assert jobs.stored() == [] and jobs.left() == [] and not (jobs.path.parent / "x").exists()
    done = command(jobs, "build", "--", *copying(template), user="root")
    assert done.returncode == 1 and "never filled as root" in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_who_is_ended_leaves_nothing(jobs: Jobs, name: str) -> None:
    """A closed terminal, scancel, Ctrl-C: the command ends with us, and what it had built goes."""
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


def test_a_command_that_clears_its_cache_first(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """What it builds then is published; where it leaves no cache at all, that is said."""
    *shell, script = copying(template)
    done = command(jobs, "build", "--", *shell, f'rm -rf "$HF_DATASETS_CACHE"; {script}')
    assert done.returncode == 0 and len(jobs.stored()) == 1, done.stderr
    done = command(jobs, "build", "--", *shell, f'{script}; rm -rf "$HF_DATASETS_CACHE"')
    assert done.returncode == 1 and "left no dataset" in done.stderr and jobs.left() == []


@pytest.mark.parametrize("damage", DAMAGE[:10:3])
def test_only_what_is_whole_is_published(jobs: Jobs, template: Template, damage: Callable[[Path], None]) -> None:  # noqa: F811
    """The command ended well, and what it left is damaged: said, with status 1."""
    mine = jobs.home / "mine"
    template.put(jobs.home, "mine")
    damage(mine)
    shutil.chown(mine, ALICE)
    text = f'mkdir -p "$HF_DATASETS_CACHE/json/a/b" && cp -a {mine} "$HF_DATASETS_CACHE/json/a/b/c"'
    done = command(jobs, "build", "--", "sh", "-c", text)
    assert (done.returncode, "not published: json/a/b/c: " in done.stderr) == (1, True), done.stderr
    assert jobs.stored() == [] and jobs.left() == []


def test_replaced_when_the_data_changes(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """A new build of the same key takes the place of the old one, which live jobs keep until they have ended."""
    old = filled(jobs, template)
    live = jobs.begin(LABEL)
    queue(jobs, running(time.time(), jobs.number))
    done = command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template))
    assert done.returncode == 0, done.stderr
    new = next(path for path in jobs.stored(LABEL) if path != old)
    assert os.readlink(live / template.key / "dataset_info.json") == str(old / "files/dataset_info.json")
    assert command(jobs, "prune").returncode == 0
    assert (live / template.key / "dataset_info.json").exists(), "the live job's links lead somewhere"
    jobs.end()
    assert os.readlink(jobs.begin(LABEL) / template.key / "dataset_info.json") == str(new / "files/dataset_info.json")
    queue(jobs, running(time.time() + 600, jobs.number))
    assert command(jobs, "prune").returncode == 0
    assert jobs.stored(LABEL) == [new]


def test_what_was_replaced_is_not_linked_again(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Not even where whoever replaced it was killed before it was retired, and a job that had it has dated it since."""
    old = filled(jobs, template)
    assert command(jobs, "build", "--label", LABEL, "--rebuild", "--", *copying(template)).returncode == 0
    (old / "retired").unlink()
    new = jobs.stored(LABEL)[1]
    used(new, 1)
    assert os.readlink(jobs.begin(LABEL) / template.key / "dataset_info.json") == str(new / "files/dataset_info.json")


def test_verify_and_list(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Whole, then damaged: verify says which, and why, with status 1; list shows it."""
    stored = filled(jobs, template)
    done = command(jobs, "verify")
    assert (done.returncode, done.stdout) == (0, f"{jobs.path}: 1 of 1 builds are whole\n"), done.stderr
    (row,) = json.loads(command(jobs, "list", "--json").stdout)
    assert (row["key"], row["label"], row["rows"], row["state"]) == (template.key, LABEL, template.rows, "live")
    shown = command(jobs, "list").stdout
    assert LABEL in shown and "live" in shown and str(sum(template.rows.values())) in shown
    manifest = stored / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "rows": {"train": 7}}))
    done = command(jobs, "verify")
    assert done.returncode == 1 and "its manifest says what is not so" in done.stderr
    DAMAGE[0](stored / "files")
    done = command(jobs, "verify")
    assert done.returncode == 1 and str(stored) in done.stderr
    assert json.loads(command(jobs, "list", "--json").stdout)[0]["state"] == "damaged"


# ------------------------------------------------------------------------------------------------------------- pruning


def used(build: Path, days: float) -> None:
    os.utime(build, (time.time() - days * DAY, time.time() - days * DAY))


def test_pruned_by_age_when_nobody_can_hold_a_link(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Without live jobs at once; with one that is older than the decision, only when that has ended."""
    stored = filled(jobs, template)
    assert command(jobs, "prune").returncode == 0 and stored.exists()
    used(stored, 31)
    queue(jobs, running(time.time() - 40 * DAY))
    assert command(jobs, "prune").returncode == 0
    assert stored.exists() and not (stored / "retired").exists(), "used since the oldest live job began"
    queue(jobs, running(time.time() - 3600))
    dry = command(jobs, "prune", "--dry-run")
    assert dry.stdout == f"would retire {template.key} (age)\n" and not (stored / "retired").exists()
    assert command(jobs, "prune").returncode == 0
    assert (stored / "retired").exists() and (stored / "files/dataset_info.json").exists()
    assert not (jobs.begin(LABEL) / template.key).exists(), "no new cache has it"
    queue(jobs, running(time.time() + 3600, user=ALICE), running(time.time() - DAY, 8, BOB))
    size = sum(path.stat().st_blocks * 512 for path in stored.rglob("*") if path.is_file())
    assert command(jobs, "prune", user="root").returncode == 0
    assert jobs.stored(LABEL) == [] and jobs.left() == []
    (event,) = jobs.site.events("store.pruned")
    assert (event["builds"], event["bytes"], event["uid"], event["store"]) == (1, size, UID, str(jobs.path))


def test_two_prunings_and_a_publisher(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """While one looks, another deletes the build, and a job publishes it anew, under the same name: that one stays."""
    old = filled(jobs, template)
    used(old, 31)
    with acting_as(ALICE):
        store.retire(os.open(old.parent, os.O_RDONLY), old.name)
        judged = store.to_delete(list(store.look(str(jobs.path), UID)), time.time(), None)
    assert [one.action for one in judged] == ["delete"]
    assert command(jobs, "prune").returncode == 0 and not old.exists()
    new = filled(jobs, template)
    assert new == old and links(jobs.begin(LABEL) / template.key)[0] > 0
    with acting_as(ALICE):
        assert list(store.act(str(jobs.path), UID, judged, time.monotonic() + 60)) == []
    assert (new / "files/dataset_info.json").exists()


@pytest.mark.parametrize("operation", ["read", "open", "getattr", "lookup"])
def test_what_cannot_be_read_is_not_taken_for_damaged(jobs: Jobs, template: Template, operation: str) -> None:  # noqa: F811
    """A filesystem that errs for a while costs no store a build."""
    from support.faultfs import Faults, faulty

    stored = filled(jobs, template)
    section, under = stored.parent, jobs.site.dir / "under"
    section.rename(under)
    section.mkdir()
    shutil.chown(section, ALICE)
    for at in range(3, 40, 6):
        with faulty(under, section, Faults(errors={operation: errno.EIO}, after=at)) as fs:
            fs.arm()
            command(jobs, "prune")
        assert sorted(path.name for path in (under / stored.name).iterdir()) == ["contents", "files", "manifest.json"], at
    section.rmdir()
    under.rename(section)
    assert command(jobs, "verify").returncode == 0 and command(jobs, "prune").returncode == 0


def test_pruned_by_size_the_longest_unused_first(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Until the rest fits."""
    for at in range(3):
        template.put(jobs.begin(LABEL), f"json/many-{at}/0.0.0/x")
        jobs.end()
    by_key = {json.loads((path / "manifest.json").read_text())["key"]: path for path in jobs.stored(LABEL)}
    for at in range(3):
        used(by_key[f"json/many-{at}/0.0.0/x"], 1 + at)
    one = sum(path.stat().st_blocks * 512 for path in jobs.stored(LABEL)[0].rglob("*") if path.is_file())
    jobs.site.configure(store={**jobs.site.keys["store"], "max_size": f"{2 * one + 100}B"})
    assert command(jobs, "prune").returncode == 0
    left = {json.loads((path / "manifest.json").read_text())["key"] for path in jobs.stored(LABEL)}
    assert left == {"json/many-0/0.0.0/x", "json/many-1/0.0.0/x"}


def test_roots_sweep_prunes_once_a_day(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """The first of a day does, a second one does not; nor does one of a user, of a node, or a dry one."""
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


def test_what_keeps_no_pruning_from_the_users_stores(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """A site's store that is root's, and a clock that was wrong for once."""
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
    assert done.exit_code == 1 and "is not root" in done.output and not stored.exists()


def sweep(jobs: Jobs, *options: str) -> int:
    return CliRunner().invoke(main, ["sweep", "--hooks", str(jobs.site.hooks), *options], catch_exceptions=False).exit_code


def of_bob(jobs: Jobs, stored: Path) -> Path:
    """The same store once more, which is Bob's."""
    place = jobs.site.scratch / BOB / ".cache" / "hf-store"
    shutil.copytree(jobs.path, place, copy_function=shutil.copy2)
    for path in [place.parents[1], place.parents[0], place, *place.rglob("*")]:
        shutil.chown(path, BOB)
    return place / stored.relative_to(jobs.path)


def test_a_store_that_hangs(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """It costs the others nothing, and one process, which no other follows while it is stuck."""
    stored = filled(jobs, template)
    used(stored, 31)
    bobs = of_bob(jobs, stored)
    monkeypatch.setattr(pruning, "_PATIENCE", 0.5)
    with hung(jobs.path / "v1") as server:
        assert sweep(jobs) == 1 and not bobs.exists()
        assert server.waiting == 1
        (jobs.site.dir / "run/store-pruned").unlink()
        assert sweep(jobs) == 1 and server.waiting == 1
    assert stored.exists()


def test_a_store_without_end(jobs: Jobs, template: Template, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """As many builds as a user cares to make keep no pruning from the others' for longer than that user's time."""
    stored = filled(jobs, template)
    used(stored, 31)
    bobs = of_bob(jobs, stored)
    real = store.look

    def look(path: str, owner: int, deep: bool, going: Callable[[], None], told: bool = True) -> Iterator[store.Stored]:
        while path == str(jobs.path):
            going()
            time.sleep(0.01)
        yield from real(path, owner, deep, going, told)

    monkeypatch.setattr(store, "look", look)
    monkeypatch.setattr(pruning, "_LONGEST", 3.0)
    assert sweep(jobs) == 1 and not bobs.exists()


def test_where_slurm_is_silent_nothing_is_pruned(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Status 1, with the reason."""
    stored = filled(jobs, template)
    used(stored, 100)
    (jobs.site.dir / "slurm/down").touch()
    done = command(jobs, "prune")
    assert done.returncode == 1 and "nothing is pruned" in done.stderr
    assert not (stored / "retired").exists()


def test_pruning_stays_in_the_store(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """What has no name of ours stays, as do links, other users' things, and what a link leads to; debris goes when it is old."""
    stored = filled(jobs, template)
    section = stored.parent
    outside = jobs.site.dir / "outside"
    shutil.copytree(stored, outside)
    (section / f"{'a' * 32}.1").symlink_to(outside)
    (section / "notes").mkdir()
    (section / f"{'b' * 32}.1").mkdir()  # root's
    for name, age in ((".jobcache-new-build-aa", 3), (".jobcache-staging-bb", 0), (".jobcache-trash-build-cc", 0)):
        (section / name).mkdir()
        (section / name / "x").write_text("x")
        for path in (section / name / "x", section / name):
            shutil.chown(path, ALICE)
            used(path, age)
    before = sorted(str(path) for path in outside.rglob("*"))
    used(stored, 100)
    command(jobs, "prune", user="root")
    assert sorted(path.name for path in section.iterdir()) == sorted(
        [f"{'a' * 32}.1", f"{'b' * 32}.1", "notes", ".jobcache-staging-bb", ".jobcache-new-build-aa"]
    ), "what is half made is dated by its newest change, which nobody can set"
    assert sorted(str(path) for path in outside.rglob("*")) == before


def test_manifests_that_are_a_bomb(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Of a user's manifests, root's pruning reads nothing, and `list` no more than it shows."""
    stored = filled(jobs, template)
    manifest = stored / "manifest.json"
    manifest.unlink()
    manifest.write_text('{"rows": [' + "[]," * 5_000_000 + '0], "by": "' + "x" * 1_000_000 + '"}')
    used(stored, 31)
    queue(jobs, running(time.time() - 3600))
    limited = ["prlimit", f"--as={1 << 28}", sys.executable, "-m", "jobcache.cli", "store", "prune", "--hooks", jobs.site.hooks]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert (done.returncode, done.stderr) == (0, "") and (stored / "retired").exists()
    (row,) = json.loads(command(jobs, "list", "--json", "--user", ALICE, user="root").stdout)
    assert (row["rows"], row["by"]) == (None, None)


def test_labels_of_which_nothing_is_left(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Their sections go a day later; one in which anything is stays, as does what has no name of ours."""
    section = filled(jobs, template).parent
    used(jobs.stored(LABEL)[0], 31)
    (section.parent / "label-notes").mkdir()
    (section.parent / "label-notes/x").touch()
    (section.parent / "mine").mkdir()
    shutil.chown(section.parent / "label-notes", ALICE)
    used(section.parent / "label-notes", 3)
    assert command(jobs, "prune", user="root").returncode == 0
    assert section.exists() and jobs.stored(LABEL) == []
    used(section, 3)
    assert command(jobs, "prune", "--dry-run").returncode == 0 and section.exists()
    assert command(jobs, "prune", user="root").returncode == 0
    assert sorted(path.name for path in section.parent.iterdir()) == ["label-notes", "mine"]
    assert filled(jobs, template).exists()


def test_the_sites_store_has_an_owner_who_is_not_root(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """Filled by its owner, read by everybody, pruned by its owner or by root in their place; never by a user."""
    place = jobs.site.dir / "site-store"
    place.mkdir()
    shutil.chown(place, BOB)
    jobs.site.configure(store={**jobs.site.keys["store"], "site": str(place)})
    build = ["build", "--site", "--", *copying(template)]
    assert "belongs to uid" in command(jobs, *build).stderr
    assert command(jobs, *build, user="root").returncode == 1
    done = command(jobs, *build, user=BOB)
    assert done.returncode == 0, done.stderr
    (stored,) = (place / "v1/default").iterdir()
    assert {path.stat().st_mode & 0o7777 for path in place.rglob("*")} == {0o755, 0o555, 0o444}
    cache = jobs.begin()
    assert os.readlink(cache / template.key / "dataset_info.json") == str(stored / "files/dataset_info.json")
    with acting_as(ALICE), pytest.raises(PermissionError):
        (stored / "files/x").write_text("x")
    assert command(jobs, "verify", "--site").returncode == 0
    used(stored, 100)
    said = command(jobs, "prune", "--site").stderr
    assert f"belongs to {BOB}: run this as that account" in said and "chown" not in said and stored.exists()
    queue(jobs, running(time.time() + 3600))
    assert command(jobs, "prune", "--site", user="root").returncode == 0
    assert not stored.exists()
    shutil.chown(place, "root")
    for name in ("prune", "list", "verify"):
        done = command(jobs, name, "--site", user="root")
        assert done.returncode == 1 and "is not root" in done.stderr and "chown -R NAME" in done.stderr


# ------------------------------------------------------------------------------------------------------------ decisions


def stored_one(name: str, used: float, **more: Any) -> store.Stored:
    return store.Stored("build", "", name, used=used, bytes=100, **more)


def test_what_is_retired() -> None:
    """Each reason, and what keeps a build."""
    now, digests = 100 * DAY, [f"{at:032x}" for at in range(6)]
    found = [
        stored_one(f"{digests[0]}.1", now - 40 * DAY),
        stored_one(f"{digests[1]}.1", now, problem="its end is gone"),
        stored_one(f"{digests[2]}.1", now),
        stored_one(f"{digests[2]}.2", now - 1),
        stored_one(f"{digests[3]}.1", now - 2 * DAY),
        stored_one(f"{digests[4]}.1", now - 1 * DAY),
        stored_one(f"{digests[5]}.1", now - 50 * DAY, retired=now - DAY),
    ]

    def reasons(oldest: float | None, size: int = 1000) -> dict[str, str]:
        verdicts = store.to_retire(found, now, size, 30 * DAY, oldest)
        return {f"{int(v.stored.name[:32], 16)}.{v.stored.name[33:]}": v.reason for v in verdicts if v.action == "retire"}

    assert reasons(None) == {"0.1": "age", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(None, 250) == {"0.1": "age", "3.1": "size", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(None, 150) == {"0.1": "age", "3.1": "size", "4.1": "size", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(now - 1.5 * DAY, 150) == {"0.1": "age", "3.1": "size", "1.1": "damaged", "2.1": "superseded"}
    assert reasons(now - 60 * DAY, 0) == {"1.1": "damaged", "2.1": "superseded"}
    assert [v.action for v in store.to_delete(found, now, now - 2 * DAY)] == ["keep"]
    assert [v.action for v in store.to_delete(found, now, now - DAY + 200)] == ["keep"], "two clocks"
    assert [v.action for v in store.to_delete(found, now, now - DAY + 400)] == ["delete"]
    assert [v.action for v in store.to_delete(found, now, None)] == ["delete"]


def test_where_stores_are(jobs: Jobs, template: Template) -> None:  # noqa: F811
    """As root, every user's that there is."""
    filled(jobs, template)
    (jobs.site.scratch / BOB).mkdir()
    shutil.chown(jobs.site.scratch / BOB, BOB)
    compiled = settings.load(f"{jobs.site.hooks}/settings.json")
    trouble: list[str] = []
    found = {place.path: place.owner for place in pruning.places(compiled, None, trouble)}
    assert found[str(jobs.path)] == UID and trouble == []
