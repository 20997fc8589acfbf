"""Units, crontab, logrotate and tmpfiles configuration, each checked with the tool that reads it."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jobcache
from support.site_dir import ALICE, SHELLS, Site

ETC = Path(__file__).parents[2] / "etc"
SWEEP, BOOT, TIMER = (ETC / "systemd" / f"jobcache-sweep{end}" for end in (".service", "-boot.service", ".timer"))
HARDENING = ("CapabilityBoundingSet", "SystemCallErrorNumber")  # the first and the last line of it
UID = pwd.getpwnam(ALICE).pw_uid


def run(package: str, *argv: str | Path, **env: str) -> str:
    """Run a tool of a Debian package. Return its output. Fail if it does not exit 0."""
    path = os.environ["PATH"] + ":/usr/sbin"
    assert shutil.which(argv[0], path=path), f"{argv[0]} is missing: apt-get install {package}"
    done = subprocess.run(
        argv, env={**os.environ, "PATH": path, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def settings(service: Path) -> list[tuple[str, str]]:
    """Return the settings of a unit, in order."""
    lines = [line for line in service.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def hardening(service: Path) -> list[tuple[str, str]]:
    pairs = settings(service)
    first, last = ([key for key, _ in pairs].index(key) for key in HARDENING)
    return pairs[first : last + 1]


# ---------------------------------------------------------------------------------------------------------------- units


def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    """systemd-analyze verify reports nothing. The command must exist, so /bin/true replaces it."""
    for unit in (SWEEP, BOOT, TIMER):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/jobcache", "/bin/true"))
    assert run("systemd", "systemd-analyze", "verify", *sorted(tmp_path.iterdir())) == ""


@pytest.mark.parametrize("service", [SWEEP, BOOT], ids=lambda unit: unit.name)
def test_units_are_hardened(service: Path) -> None:
    """systemd-analyze security gives an exposure of at most 3.0 of 10."""
    run("systemd", "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", service)


def test_both_services_have_the_same_hardening() -> None:
    """jobcache-sweep.service explains it."""
    assert hardening(BOOT) == hardening(SWEEP)


def test_every_relaxation_has_a_comment() -> None:
    """Right above the setting."""
    relaxed = re.compile(r"(\w+=(no|default|all|full)|CapabilityBoundingSet=.*|RestrictAddressFamilies=.*)$")
    lines = SWEEP.read_text().splitlines()
    found = [at for at, line in enumerate(lines) if relaxed.match(line)]
    assert len(found) == 8
    for at in found:
        assert lines[at - 1].startswith("#") or relaxed.match(lines[at - 1]), lines[at]


def test_a_failed_sweep_does_not_block_the_boot() -> None:
    """slurmd waits at most five minutes for the sweep, and starts even if it fails."""
    known = dict(settings(BOOT))
    assert (known["Before"], known["TimeoutStartSec"], known["SuccessExitStatus"]) == ("slurmd.service", "5min", "1")
    assert not {"RequiredBy", "Requires", "BindsTo"} & set(known)


# The settings of the service, as far as they work without systemd: capabilities, no new privileges, /usr, /boot and /etc
# read-only, processes of other users hidden.
AS_THE_SERVICE = """
for directory in /usr /boot /etc; do
    mount --rbind $directory $directory && mount -o remount,bind,ro $directory
done
mount -t proc -o hidepid=2 proc /proc
exec setpriv --bounding-set "$1" --no-new-privs strace -f -qq -o "$2" "$3" -m jobcache.cli sweep --hooks "$4"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as other users")
def test_the_sweep_works_under_the_hardening(site: Site, tmp_path: Path) -> None:
    """With the capabilities of the service, a sweep reaps an orphan as its owner and finds the user of another cache."""
    for job in (7, 8):
        site.task_prolog(job)
        site.fill(site.cache(job), "a.arrow")
    fake_slurm(site)
    capabilities = dict(hardening(SWEEP))["CapabilityBoundingSet"].lower().replace("cap_", "+").replace(" ", ",")
    trace = tmp_path / "trace"
    with (site.cache(8) / "a.arrow").open() as file, subprocess.Popen(["sleep", "60"], stdin=file, user=UID) as holder:
        output = run(
            "util-linux", "unshare", "--mount", "--propagation", "private", "sh", "-ec", AS_THE_SERVICE, "sh",
            f"-all,{capabilities}", trace, sys.executable, site.hooks, PYTHONPATH=str(Path(jobcache.__file__).parents[1]),
        )  # fmt: skip
        holder.kill()
    assert output == ""
    assert [site.cache(7).exists(), site.cache(8).exists()] == [False, True]
    assert [event["pids"] for event in site.events("cache.kept")] == [[holder.pid]]
    lines = trace.read_text().splitlines()
    assert {line.split()[1].partition("(")[0] for line in lines if re.match(r"\d+ +\w+\(", line)} <= allowed_calls()
    assert not [line for line in lines if re.search(r" mmap\(.*PROT_WRITE\|PROT_EXEC| mprotect\(.*PROT_EXEC", line)]


def fake_slurm(site: Site) -> None:
    """Configure a Slurm that knows one job, which has no cache here."""
    programs = {"squeue": "echo '1|1|RUNNING|1'", "scontrol": "printf 'ClusterName = test\\nPrivateData = none\\n'"}
    for name, command in programs.items():
        (site.dir / name).write_text(f"#!/bin/sh\n{command}\n")
        (site.dir / name).chmod(0o755)
    site.configure(slurm={name: str(site.dir / name) for name in programs}, sweep={"grace": "0s", "confirm": "0s"})


def allowed_calls() -> set[str]:
    """Return the system calls that the filters of the service allow."""
    left: set[str] = set()
    for key, value in hardening(SWEEP):
        if key == "SystemCallFilter":
            calls = expanded(value.lstrip("~"))
            left = left - calls if value.startswith("~") else left | calls
    return left | expanded("@default")


def expanded(group: str) -> set[str]:
    words = [line.strip() for line in run("systemd", "systemd-analyze", "syscall-filter", "--no-pager", group).splitlines()[1:]]
    calls = {word for word in words if word and word[0] not in "#@"}
    return calls.union(*(expanded(word) for word in words if word.startswith("@")))


# -------------------------------------------------------------------------------------------------------------- crontab


def cron_command() -> str:
    """Return the command in the crontab."""
    lines = (ETC / "cron.d/jobcache").read_text().splitlines()
    (line,) = [line for line in lines if line and not re.match(r"#|\w+=", line)]
    found = re.fullmatch(r"0 \* \* \* \* root (.+)", line)
    assert found and "%" not in line, "cron ends a command at %"
    return found[1]


@pytest.fixture
def cron(tmp_path: Path) -> str:
    """Return the command with every path moved below tmp_path. jobcache and sleep there log their arguments."""
    command = cron_command()
    for path in ("/run/systemd/system", "/etc/default/jobcache", "/usr/bin/jobcache"):
        assert path in command
        command = command.replace(path, str(tmp_path) + path)
        (tmp_path / path[1:]).parent.mkdir(parents=True)
    for name in ("usr/bin/jobcache", "sleep"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/called\n')
        (tmp_path / name).chmod(0o755)
    return command


def called(shell: str, command: str, where: Path) -> list[str]:
    """Run a command as cron does. Return the logged calls. Fail if it prints anything."""
    log = where / "called"
    log.unlink(missing_ok=True)
    assert run("dash", *shell.split(), "-c", command, PATH=f"{where}:/usr/bin:/bin") == ""
    return log.read_text().splitlines() if log.exists() else []


def test_shellcheck_accepts_the_crontab(tmp_path: Path) -> None:
    """Except for one unquoted variable, which holds options, and one that another file sets."""
    script = tmp_path / "command"
    script.write_text(cron_command() + "\n")
    run("dash", "sh", "-n", script)
    run("shellcheck", "shellcheck", "--shell=sh", "--exclude=SC1091,SC2086,SC2154", script)


@pytest.mark.parametrize("shell", SHELLS)
def test_cron_does_nothing_under_systemd(tmp_path: Path, cron: str, shell: str) -> None:
    """Whatever /etc/default/jobcache sets."""
    (tmp_path / "etc/default/jobcache").write_text("JOBCACHE_SWEEP=--node-local\n")
    (tmp_path / "run/systemd/system").mkdir()
    assert called(shell, cron, tmp_path) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_cron_sweeps_if_the_variable_is_set(tmp_path: Path, cron: str, shell: str) -> None:
    """With the options in JOBCACHE_SWEEP, at a random moment within the hour."""
    assert called(shell, cron, tmp_path) == []
    default = tmp_path / "etc/default/jobcache"
    default.write_text("#JOBCACHE_SWEEP=\n")
    assert called(shell, cron, tmp_path) == []
    delays = set()
    for value, options in (("", ""), ("--node-local", " --node-local"), ("'--shard 1/2'", " --shard 1/2")):
        default.write_text(f"JOBCACHE_SWEEP={value}\n")
        sleep, sweep = called(shell, cron, tmp_path)
        assert sweep == f"usr/bin/jobcache sweep{options}"
        delays.add(int(shlex.split(sleep)[1]))
    assert len(delays) > 1 and max(delays) < 3600
    (tmp_path / "usr/bin/jobcache").unlink()  # the package is removed, its configuration remains
    assert called(shell, cron, tmp_path) == []


# ------------------------------------------------------------------------------------------------- logrotate, tmpfiles


def test_a_rotation_renames_the_log(tmp_path: Path) -> None:
    """It creates, copies and signals nothing."""
    log = tmp_path / "events.jsonl"
    log.write_text("{}\n")
    conf = tmp_path / "conf"
    conf.write_text((ETC / "logrotate.d/jobcache").read_text().replace("/var/log/jobcache", str(tmp_path)))
    conf.chmod(0o644)
    output = run("logrotate", "logrotate", "--state", tmp_path / "state", "--debug", conf)
    assert "Handling 1 logs" in output and "error" not in output
    run("logrotate", "logrotate", "--state", tmp_path / "state", "--force", conf)
    assert not log.exists() and (tmp_path / "events.jsonl.1").read_text() == "{}\n"


def test_tmpfiles_creates_the_directories(tmp_path: Path) -> None:
    """With their modes."""
    run("systemd", "systemd-tmpfiles", "--create", f"--root={tmp_path}", ETC / "tmpfiles.d/jobcache.conf")
    assert oct((tmp_path / "run/jobcache").stat().st_mode) == "0o40700"
    assert oct((tmp_path / "var/log/jobcache").stat().st_mode) == "0o40750"
