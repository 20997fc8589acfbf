"""`jobcache apply`: it installs all files or none, refuses insecure paths, and keeps former templates as long as necessary."""

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
from jobcache.cache import cache_names
from jobcache.cli.main import main
from jobcache.config import apply, errors, settings
from support.site_dir import ALICE, Site


def jobcache(*argv: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in argv])


def apply_site(site: Site, *options: str) -> Result:
    """Run `jobcache apply` with the site's configuration and hooks."""
    return jobcache("apply", "--config", site.dir / "jobcache.yaml", "--hooks", site.hooks, *options)


def snapshot(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return (bytes, mode, mtime) of each file in a directory."""
    return {p.name: (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime_ns) for p in directory.iterdir()}


def test_apply_installs_a_complete_set(site: Site) -> None:
    """Hooks, settings and policy belong to root, everybody can read them, and the two lines of slurm.conf are printed."""
    result = apply_site(site)
    assert result.exit_code == 0, result.output
    assert {p.name: oct(p.stat().st_mode & 0o7777) for p in site.hooks.iterdir()} == {
        "epilog": "0o755", "task-prolog": "0o755", "make-cache.sh": "0o644", "policy.sh": "0o644", "settings.json": "0o644",
    }  # fmt: skip
    assert {p.stat().st_uid for p in site.hooks.iterdir()} == {os.getuid()}
    assert f"TaskProlog={site.hooks}/task-prolog\n  Epilog={site.hooks}/epilog\n" in result.output


def test_apply_warns_of_variables_that_break_jobs(site: Site) -> None:
    """The configuration is applied all the same: version 0.1 accepted it. `check` warns as well."""
    with open(site.dir / "jobcache.yaml", "a") as file:
        file.write('exports: {HF_DATASETS_CACHE: "{cache}", HF_MODULES_CACHE: "{cache}/modules"}\n')
    result = apply_site(site)
    assert result.exit_code == 0
    assert "exports.HF_MODULES_CACHE: offline jobs fail" in result.output
    checked = jobcache("check", "--config", site.dir / "jobcache.yaml", "--hooks", site.hooks, "--json").output
    (row,) = [row for row in json.loads(checked) if row["name"] == "exports"]
    assert row["level"] == "warning" and "HF_MODULES_CACHE" in row["fact"]


def test_invalid_file_is_refused_and_changes_nothing(site: Site) -> None:
    """All problems are reported at once, and the installed files stay unchanged."""
    before = snapshot(site.hooks)
    (site.dir / "jobcache.yaml").write_text("cluster: test\nmoed: on\nscope: jbo\npath: relative\n")
    result = apply_site(site)
    assert result.exit_code == 1
    assert [line.split(":")[1] for line in result.output.splitlines()] == ["2", "3", "4"]
    assert "did you mean mode?" in result.output
    assert snapshot(site.hooks) == before


def test_pattern_that_shells_read_differently_is_refused(site: Site) -> None:
    """Only brackets that all shells read alike are accepted."""
    with pytest.raises(errors.ConfigError, match="brackets"):
        site.configure(rules=[{"match": {"user": "svc-[$(id)]"}, "cache": "off"}])


def test_full_disk_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one file cannot be written, none is replaced, and no temporary file is left."""
    before = snapshot(site.hooks)
    files = {**apply.wanted(settings.load(f"{site.hooks}/settings.json"), str(site.hooks), True)}
    real, calls = os.fsync, iter(range(10))

    def fail_at_third_call(fd: int) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", fail_at_third_call)
    with pytest.raises(errors.ApplyError, match="No space left"):
        apply.put(files, str(site.hooks))
    assert snapshot(site.hooks) == before


def test_check_reports_stale_files_and_changes_nothing(site: Site) -> None:
    """--check prints nothing for a current set, else the path of each stale file."""
    assert (apply_site(site, "--check").exit_code, apply_site(site, "--check").output) == (0, "")
    (site.hooks / "policy.sh").chmod(0o664)
    result = apply_site(site, "--check")
    assert result.exit_code == 1 and "policy.sh does not match" in result.output
    assert apply_site(site).exit_code == 0 and apply_site(site, "--check").exit_code == 0
    with (site.dir / "jobcache.yaml").open("a") as file:
        file.write("keep_max: 1h\n")
    before = snapshot(site.hooks)
    assert apply_site(site, "--check").exit_code == 1
    assert snapshot(site.hooks) == before


def test_former_template_is_kept_until_its_caches_are_reaped(site: Site) -> None:
    """After a changed path, caches at the former path are reaped; then the template is forgotten."""
    site.task_prolog()
    old = site.cache()
    compiled = site.configure(path=f"{site.scratch}/{{user}}/new-{{job_id}}")
    assert compiled.former == [f"{site.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}"]
    assert site.configure().former == compiled.former
    site.epilog()
    assert not old.exists()
    assert site.configure().former == []


TEMPLATES = {
    "{user}/.cache/hf-datasets-{job_id}": f"{ALICE}/.cache/hf-datasets-%s",
    "{uid}/{cluster}-{job_id}-x": f"{pwd.getpwnam(ALICE).pw_uid}/test-%s-x",
    "{user}/{node}/hf-{job_id}": f"{ALICE}/n1/hf-%s",
    "u-{user}/{user}-{node}-{job_id}": f"u-{ALICE}/{ALICE}-n1-%s",
}
NAMES = {
    "cache": (None, "4242"),
    "requeued": (None, "4242-r2"),
    "run": (None, cache_names.format_run(17, "abcdefgh")),
    "trash": (cache_names.trash_name(4242, "0a1b"), ""),
    "new": (cache_names.new_name(4242, "0a1b"), ""),
    "aside": (cache_names.aside_name(cache_names.trash_name(4242, "0a1b")), ""),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_former_template_is_kept_while_any_name_of_jobcache_is_left(site: Site, template: str, kind: str) -> None:
    """Every upgrade runs `apply --again`. A template that it forgets is never swept again."""
    former = f"{site.scratch}/{template}"
    site.configure(path=former)
    name, job = NAMES[kind]
    cache = site.scratch / (TEMPLATES[template] % job)
    entry = cache.with_name(name) if name else cache
    entry.mkdir(parents=True)
    site.configure(path=f"{site.scratch}/{{user}}/elsewhere/{{job_id}}")
    for _ in range(2):
        assert apply_site(site, "--again").exit_code == 0
        assert settings.load(f"{site.hooks}/settings.json").former == [former]
    entry.rmdir()
    assert apply_site(site, "--again").exit_code == 0
    assert settings.load(f"{site.hooks}/settings.json").former == []


@pytest.mark.parametrize("name", ["hf-datasets-run-17-abc", "hf-datasets-042", ".jobcache-trash-x-1", ".jobcache-other"])
def test_former_template_is_forgotten_when_only_other_names_are_left(site: Site, name: str) -> None:
    """Directories with other names, and plain files, do not keep a former template."""
    parent = site.cache().parent
    parent.mkdir(parents=True)
    (parent / name).mkdir()
    site.cache().touch()
    site.configure(path=f"{site.scratch}/{{user}}/elsewhere/{{job_id}}")
    assert site.configure().former == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_user_without_permission_gets_a_remedy(site: Site) -> None:
    """The message names the directory, the system's error and the remedy."""
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
    assert done.stderr.startswith(f"{site.hooks}: cannot write: Permission denied; the hooks are unchanged; run this as root")


def test_set_is_current_right_after_a_changed_path(site: Site) -> None:
    """A former template without caches does not make the set stale."""
    site.configure(path=f"{site.scratch}/{{user}}/other-{{job_id}}")
    assert settings.load(f"{site.hooks}/settings.json").former != []
    assert (apply_site(site, "--check").exit_code, apply_site(site, "--check").output) == (0, "")


def test_former_template_is_kept_if_a_directory_cannot_be_listed(site: Site) -> None:
    """A closed directory can hide caches."""
    site.task_prolog()
    site.epilog()
    blind = site.scratch / ALICE
    code = (
        "import os, sys; from jobcache.config.former_templates import may_have_caches;"
        "from jobcache.cache.path_template import Template; os.setuid(33);"
        f"sys.exit(may_have_caches(Template('{site.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}'), 'test'))"
    )
    os.chmod(blind, 0o700)
    root = str(Path(package.__file__).parents[1])
    done = subprocess.run([os.sys.executable, "-c", code], env={"PYTHONPATH": root}, check=False)  # type: ignore[attr-defined]
    assert done.returncode == 1


@pytest.mark.parametrize("where", ["owner", "group", "parent"])
def test_directory_that_other_users_can_write_is_refused(site: Site, where: str) -> None:
    """Other users must not be able to replace the files that root's hooks read."""
    target = site.dir / "insecure" / "hooks"
    target.mkdir(parents=True)
    if where == "owner":
        os.chown(target, pwd.getpwnam(ALICE).pw_uid, 0)
    else:
        (target if where == "group" else target.parent).chmod(0o775)
    result = jobcache("apply", "--config", site.dir / "jobcache.yaml", "--hooks", target)
    assert result.exit_code == 1 and str(target if where != "parent" else target.parent) in result.output
    assert list(target.iterdir()) == []


def test_python_that_users_cannot_reach_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run the Python of the hooks as their users."""
    hidden = site.dir / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "python3").touch(0o755)
    monkeypatch.setattr("sys.executable", str(hidden / "python3"))
    with pytest.raises(errors.ApplyError, match="users cannot enter"):
        site.configure()


def test_unknown_cluster_needs_the_key_cluster(site: Site) -> None:
    """With `cluster: null`, apply asks Slurm. If Slurm fails, the message has the key to set; --again and --check do not ask."""
    with pytest.raises(errors.ApplyError, match="set `cluster:` to ClusterName"):
        site.configure(cluster=None, slurm={"scontrol": "/bin/false"})
    fake = site.dir / "scontrol"
    fake.write_text("#!/bin/sh\n[ -z \"$SQUEUE_PARTITION\" ] && echo 'ClusterName             = tiger'\n")
    fake.chmod(0o755)
    assert site.configure(cluster=None, slurm={"scontrol": str(fake)}).cluster == "tiger"
    fake.write_text("#!/bin/sh\nexit 1\n")  # while a package is upgraded, or the controller is down
    for options in (["--again"], ["--check"]):
        assert apply_site(site, *options).exit_code == 0
    assert apply_site(site).exit_code == 1


def test_deadline_below_a_second_is_one_second_in_the_policy(site: Site) -> None:
    """A shell's sleep may accept whole seconds only."""
    site.configure(task_prolog={"deadline": "300ms"})
    assert "jc_deadline=1\n" in (site.hooks / "policy.sh").read_text()


def test_settings_that_other_users_can_write_are_refused(site: Site) -> None:
    """The Epilog trusts only settings that root alone can write."""
    file = site.hooks / "settings.json"
    assert settings.load(str(file)).cluster == "test"
    file.chmod(0o646)
    with pytest.raises(settings.SettingsError, match="users other than root"):
        settings.load(str(file))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", json.dumps({"schema": 1, "settings": {}, "compiled": {}}), '{"schema": 2}']
)
def test_damaged_settings_are_refused(site: Site, text: str) -> None:
    """Torn, foreign or newer settings give a message with the remedy, not a traceback."""
    file = site.dir / "settings.json"
    file.write_text(text)
    with pytest.raises(settings.SettingsError, match="jobcache apply"):
        settings.load(str(file))


def test_show_config_prints_each_value_with_its_origin(site: Site) -> None:
    """Each value has its origin, as text and as JSON."""
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


def test_again_and_check_use_the_compiled_slurm_conf(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job has SLURM_CONF, a package manager has none: the set does not become stale, and an upgrade keeps slurm.conf."""
    monkeypatch.setenv("SLURM_CONF", "/odd/slurm.conf")
    assert apply_site(site).exit_code == 0
    for now in ("/run/slurm/conf/slurm.conf", ""):
        monkeypatch.setenv("SLURM_CONF", now)
        assert apply_site(site, "--check").exit_code == 0
        assert "(unchanged)" in apply_site(site, "--again").output
    assert compiled_conf(site) == "/odd/slurm.conf"
    assert "(unchanged)" not in apply_site(site).output
    assert compiled_conf(site) is None
    monkeypatch.setenv("SLURM_CONF", "/odd/slurm.conf")
    assert apply_site(site, "--check").exit_code == 0


def test_hooks_path_has_the_hooks_that_apply_installs(site: Site) -> None:
    """The installed hooks differ from the shipped ones only in the directory of the policy."""
    path = Path(jobcache("hooks-path").output.strip())
    for name in ("task-prolog", "epilog"):
        shipped = (path / name).read_text()
        assert shipped.replace("jc_lib=/var/lib/jobcache\n", f"jc_lib={site.hooks}\n") == (site.hooks / name).read_text()


def test_hooks_path_ignores_another_installation(tmp_path: Path) -> None:
    """hooks_path returns the hooks of the running package, not of another one that pip has installed."""
    other = tmp_path / "pip"
    (info := other / "lib" / "slurm_jobcache-9.dist-info").mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slurm-jobcache\nVersion: 9\n")
    (info / "RECORD").write_text("jobcache/__init__.py,,\n../libexec/epilog,,\n../libexec/task-prolog,,\n")
    deb = tmp_path / "deb"
    shutil.copytree(Path(package.__file__).parent, deb / "share/jobcache", ignore=shutil.ignore_patterns("__pycache__"))
    for directory in (other / "libexec", deb / "libexec"):
        directory.mkdir()
        for name in (*apply.HOOKS, apply.MAKE_CACHE):
            (directory / name).touch()
    (other / "lib/jobcache").mkdir()
    (other / "lib/jobcache/__init__.py").touch()
    ask = "import sys; sys.path[:0] = sys.argv[2:]; from jobcache.config import apply; apply._INSTALLED = sys.argv[1]"
    argv = [sys.executable, "-B", "-c", f"{ask}; print(apply.hooks_path())", deb / "libexec", deb / "share", other / "lib"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{deb}/libexec\n", "")


@pytest.mark.parametrize("key", ["run_dir", "log"])
def test_run_dir_and_log_that_other_users_can_write_are_refused(site: Site, key: str) -> None:
    """Users must not be able to replace root's locks and log."""
    open_to_all = site.dir / "all"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    value: Any = str(open_to_all) if key == "run_dir" else {"file": f"{open_to_all}/events.jsonl"}
    with pytest.raises(errors.ApplyError, match=f"jobcache.yaml:[0-9]+: {key}.*other users can write"):
        site.configure(**{key: value})
