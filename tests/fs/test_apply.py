"""`jobcache apply`: all or nothing, whole files, and no template forgotten."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import jobcache as package
from jobcache.cli.main import main
from jobcache.config import apply, settings
from support.site_dir import ALICE, Site


def jobcache(*argv: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in argv])


def again(site: Site, *options: str) -> Result:
    """`jobcache apply` of the site's file into the site's hooks."""
    return jobcache("apply", "--config", site.dir / "jobcache.yaml", "--hooks", site.hooks, *options)


def snapshot(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """What lies in `directory`: bytes, mode, mtime."""
    return {p.name: (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime_ns) for p in directory.iterdir()}


def test_puts_a_whole_set(site: Site) -> None:
    """Hooks and the compiled pair, root's, readable by all, writable by nobody else; and it names the two lines."""
    result = again(site)
    assert result.exit_code == 0, result.output
    assert {p.name: oct(p.stat().st_mode & 0o7777) for p in site.hooks.iterdir()} == {
        "epilog": "0o755", "task-prolog": "0o755", "policy.sh": "0o644", "settings.json": "0o644",
    }  # fmt: skip
    assert {p.stat().st_uid for p in site.hooks.iterdir()} == {os.getuid()}
    assert f"TaskProlog={site.hooks}/task-prolog\n  Epilog={site.hooks}/epilog\n" in result.output


def test_refuses_and_changes_nothing(site: Site) -> None:
    """Everything that is wrong is said at once, and what the hooks obey stays as it was."""
    before = snapshot(site.hooks)
    (site.dir / "jobcache.yaml").write_text("cluster: test\nmoed: on\nscope: jbo\npath: relative\n")
    result = again(site)
    assert result.exit_code == 1
    assert [line.split(":")[1] for line in result.output.splitlines()] == ["2", "3", "4"]
    assert "did you mean mode?" in result.output
    assert snapshot(site.hooks) == before


def test_a_bad_pattern_is_refused(site: Site) -> None:
    """A pattern that a shell would read otherwise than it looks is refused."""
    with pytest.raises(apply.ApplyError, match="brackets"):
        site.configure(rules=[{"match": {"user": "svc-[$(id)]"}, "cache": "off"}])


def test_no_space_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of the files cannot be written, none is replaced, and nothing is left lying about."""
    before = snapshot(site.hooks)
    files = {**apply.wanted(settings.load(f"{site.hooks}/settings.json"), str(site.hooks), True)}
    real, calls = os.fsync, iter(range(10))

    def fails_at_the_third(fd: int) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", fails_at_the_third)
    with pytest.raises(apply.ApplyError, match="No space left"):
        apply.put(files, str(site.hooks))
    assert snapshot(site.hooks) == before


def test_check(site: Site) -> None:
    """--check is silent where what is compiled is current, and else names what is not; it changes nothing."""
    assert (again(site, "--check").exit_code, again(site, "--check").output) == (0, "")
    (site.hooks / "policy.sh").chmod(0o664)
    result = again(site, "--check")
    assert result.exit_code == 1 and "policy.sh does not match" in result.output
    assert again(site).exit_code == 0 and again(site, "--check").exit_code == 0
    with (site.dir / "jobcache.yaml").open("a") as file:
        file.write("keep_max: 1h\n")
    before = snapshot(site.hooks)
    assert again(site, "--check").exit_code == 1
    assert snapshot(site.hooks) == before


def test_former_templates_stay_known_while_they_have_caches(site: Site) -> None:
    """A changed path leaks nothing: caches by the former one are reaped, and then it is forgotten."""
    site.task_prolog()
    old = site.cache()
    compiled = site.configure(path=f"{site.scratch}/{{user}}/new-{{job_id}}")
    assert compiled.former == [f"{site.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}"]
    assert site.configure().former == compiled.former
    site.epilog()
    assert not old.exists()
    assert site.configure().former == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_not_as_a_user(site: Site) -> None:
    """Who may not is told as who may, by the directory's name."""
    argv = [
        sys.executable,
        "-m",
        "jobcache.cli",
        "apply",
        "--config",
        str(site.dir / "jobcache.yaml"),
        "--hooks",
        str(site.hooks),
    ]
    done = subprocess.run(
        argv, env={"PYTHONPATH": os.pathsep.join(sys.path)}, cwd="/", user=ALICE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{site.hooks}: Permission denied; run this as root; nothing")


def test_a_changed_path_is_current_at_once(site: Site) -> None:
    """What was just applied is what the file says, though a template without caches is still known."""
    site.configure(path=f"{site.scratch}/{{user}}/other-{{job_id}}")
    assert settings.load(f"{site.hooks}/settings.json").former != []
    assert (again(site, "--check").exit_code, again(site, "--check").output) == (0, "")


def test_a_former_template_that_cannot_be_looked_at_stays_known(site: Site) -> None:
    """Where a directory cannot be listed, caches may be hidden in it."""
    site.task_prolog()
    site.epilog()
    blind = site.scratch / ALICE
    code = (
        "import os, sys; from jobcache.config import apply; from jobcache.cache import path_template; os.setuid(33);"
        f"sys.exit(apply.may_have_caches(path_template.Template('{site.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}')))"
    )
    os.chmod(blind, 0o700)
    root = str(Path(package.__file__).parents[1])
    done = subprocess.run([os.sys.executable, "-c", code], env={"PYTHONPATH": root}, check=False)  # type: ignore[attr-defined]
    assert done.returncode == 1


@pytest.mark.parametrize("where", ["owner", "group", "parent"])
def test_insecure_places_are_refused(site: Site, where: str) -> None:
    """What root's hooks obey may not lie where others could put something else."""
    target = site.dir / "insecure" / "hooks"
    target.mkdir(parents=True)
    if where == "owner":
        os.chown(target, pwd.getpwnam(ALICE).pw_uid, 0)
    else:
        (target if where == "group" else target.parent).chmod(0o775)
    result = jobcache("apply", "--config", site.dir / "jobcache.yaml", "--hooks", target)
    assert result.exit_code == 1 and str(target if where != "parent" else target.parent) in result.output
    assert list(target.iterdir()) == []


def test_python_that_users_cannot_reach(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python that the hooks name has to be one that users can execute."""
    hidden = site.dir / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "python3").touch(0o755)
    monkeypatch.setattr("sys.executable", str(hidden / "python3"))
    with pytest.raises(apply.ApplyError, match="users cannot pass"):
        site.configure()


def test_cluster_that_slurm_does_not_name(site: Site) -> None:
    """cluster: null asks Slurm; where that fails, it says what to write instead."""
    with pytest.raises(apply.ApplyError, match="set `cluster:` to ClusterName"):
        site.configure(cluster=None, slurm={"scontrol": "/bin/false"})
    fake = site.dir / "scontrol"
    fake.write_text("#!/bin/sh\n[ -z \"$SQUEUE_PARTITION\" ] && echo 'ClusterName             = tiger'\n")
    fake.chmod(0o755)
    assert site.configure(cluster=None, slurm={"scontrol": str(fake)}).cluster == "tiger"
    fake.write_text("#!/bin/sh\nexit 1\n")  # while a package is upgraded, or the controller is down
    for options in (["--again"], ["--check"]):
        assert again(site, *options).exit_code == 0
    assert again(site).exit_code == 1


def test_unit_of_the_deadline_in_shell(site: Site) -> None:
    """A deadline below a second is one second to a shell whose sleep knows no less."""
    site.configure(task_prolog={"deadline": "300ms"})
    assert "jc_deadline=1\n" in (site.hooks / "policy.sh").read_text()


def test_settings_are_refused_when_others_may_write_them(site: Site) -> None:
    """The Epilog obeys no settings but root's."""
    file = site.hooks / "settings.json"
    assert settings.load(str(file)).cluster == "test"
    file.chmod(0o646)
    with pytest.raises(settings.SettingsError, match="others than root"):
        settings.load(str(file))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", json.dumps({"schema": 1, "settings": {}, "compiled": {}}), '{"schema": 2}']
)
def test_settings_that_are_not_whole(site: Site, text: str) -> None:
    """Torn, foreign or newer settings are an error for people, not a traceback."""
    file = site.dir / "settings.json"
    file.write_text(text)
    with pytest.raises(settings.SettingsError, match="jobcache apply"):
        settings.load(str(file))


def test_show_config(site: Site) -> None:
    """Each value with its origin, for people and as JSON."""
    file = site.dir / "small.yaml"
    file.write_text("cluster: test\nsweep:\n  grace: 2h\n")
    result = jobcache("show-config", "--config", file)
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines()}
    assert rows["sweep.grace"] == ["2h", f"{file}:3"]
    assert rows["sweep.confirm"] == ["2m", "default"]
    found = {row["key"]: row for row in json.loads(jobcache("show-config", "--config", file, "--json").output)}
    assert found["sweep.grace"]["value"] == 7200


def compiled_conf(site: Site) -> str | None:
    return settings.load(f"{site.hooks}/{settings.FILE}").slurm_conf


def test_slurm_conf_of_then(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job has SLURM_CONF, and no package manager: neither makes what is compiled stale, nor an upgrade forget it."""
    monkeypatch.setenv("SLURM_CONF", "/odd/slurm.conf")
    assert again(site).exit_code == 0
    for now in ("/run/slurm/conf/slurm.conf", ""):
        monkeypatch.setenv("SLURM_CONF", now)
        assert again(site, "--check").exit_code == 0
        assert "(unchanged)" in again(site, "--again").output
    assert compiled_conf(site) == "/odd/slurm.conf"
    assert "(unchanged)" not in again(site).output
    assert compiled_conf(site) is None
    monkeypatch.setenv("SLURM_CONF", "/odd/slurm.conf")
    assert again(site, "--check").exit_code == 0


def test_hooks_path(site: Site) -> None:
    """The hooks it names are those that were put, but for where they look for their policy."""
    path = Path(jobcache("hooks-path").output.strip())
    for name in ("task-prolog", "epilog"):
        shipped = (path / name).read_text()
        assert shipped.replace("jc_lib=/var/lib/jobcache\n", f"jc_lib={site.hooks}\n") == (site.hooks / name).read_text()


def test_hooks_path_beside_another_installation(tmp_path: Path) -> None:
    """The hooks of the package that runs, not those that pip has put beside it."""
    other = tmp_path / "pip"
    (info := other / "lib" / "slurm_jobcache-9.dist-info").mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slurm-jobcache\nVersion: 9\n")
    (info / "RECORD").write_text("jobcache/__init__.py,,\n../libexec/epilog,,\n../libexec/task-prolog,,\n")
    deb = tmp_path / "deb"
    shutil.copytree(Path(package.__file__).parent, deb / "share/jobcache", ignore=shutil.ignore_patterns("__pycache__"))
    for directory in (other / "libexec", deb / "libexec"):
        directory.mkdir()
        for name in apply.HOOKS:
            (directory / name).touch()
    (other / "lib/jobcache").mkdir()
    (other / "lib/jobcache/__init__.py").touch()
    ask = "import sys; sys.path[:0] = sys.argv[2:]; from jobcache.config import apply; apply._INSTALLED = sys.argv[1]"
    argv = [sys.executable, "-B", "-c", f"{ask}; print(apply.hooks_path())", deb / "libexec", deb / "share", other / "lib"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{deb}/libexec\n", "")


@pytest.mark.parametrize("key", ["run_dir", "log"])
def test_what_is_ours_is_nobody_elses_to_write(site: Site, key: str) -> None:
    """Root's locks and log do not lie where users may put files of their own."""
    open_to_all = site.dir / "all"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    value: Any = str(open_to_all) if key == "run_dir" else {"file": f"{open_to_all}/events.jsonl"}
    with pytest.raises(apply.ApplyError, match="others may write"):
        site.configure(**{key: value})
