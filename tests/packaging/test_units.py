"""What starts the sweep and keeps its log small: units, crontab, logrotate, tmpfiles, each held by the tool that reads it."""

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
    """Run a tool of a Debian package and return what it says; it has to exit 0."""
    path = os.environ["PATH"] + ":/usr/sbin"
    assert shutil.which(argv[0], path=path), f"{argv[0]} is missing: apt-get install {package}"
    done = subprocess.run(
        argv, env={**os.environ, "PATH": path, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def settings(service: Path) -> list[tuple[str, str]]:
    """The settings of a unit, in their order."""
    lines = [line for line in service.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


def hardening(service: Path) -> list[tuple[str, str]]:
    pairs = settings(service)
    first, last = ([key for key, _ in pairs].index(key) for key in HARDENING)
    return pairs[first : last + 1]


# ---------------------------------------------------------------------------------------------------------------- units


def test_units_are_understood(tmp_path: Path) -> None:
    """systemd finds nothing wrong with any unit. It wants the command to be there, so it gets another one."""
    for unit in (SWEEP, BOOT, TIMER):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/jobcache", "/bin/true"))
    assert run("systemd", "systemd-analyze", "verify", *sorted(tmp_path.iterdir())) == ""


@pytest.mark.parametrize("service", [SWEEP, BOOT], ids=lambda unit: unit.name)
def test_units_are_hardened(service: Path) -> None:
    """A root service with an exposure of at most 3.0 of 10, by systemd's own reckoning."""
    run("systemd", "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", service)


def test_hardening_is_said_once() -> None:
    """The boot's service has the hardening that jobcache-sweep.service has and explains."""
    assert hardening(BOOT) == hardening(SWEEP)


def test_every_relaxation_says_why() -> None:
    """What a unit does not take away has a comment right above it."""
    relaxed = re.compile(r"(\w+=(no|default|all|full)|CapabilityBoundingSet=.*|RestrictAddressFamilies=.*)$")
    lines = SWEEP.read_text().splitlines()
    found = [at for at, line in enumerate(lines) if relaxed.match(line)]
    assert len(found) == 8
    for at in found:
        assert lines[at - 1].startswith("#") or relaxed.match(lines[at - 1]), lines[at]


def test_the_boot_is_not_held_up() -> None:
    """slurmd waits for the sweep at boot, for some minutes at the most, and does not need it to succeed."""
    known = dict(settings(BOOT))
    assert (known["Before"], known["TimeoutStartSec"], known["SuccessExitStatus"]) == ("slurmd.service", "5min", "1")
    assert not {"RequiredBy", "Requires", "BindsTo"} & set(known)


# What a service's settings come to, as far as that can be had without systemd: capabilities, no new privileges, /usr,
# /boot and /etc read-only, and the processes of others hidden.
AS_THE_SERVICE = """
for directory in /usr /boot /etc; do
    mount --rbind $directory $directory && mount -o remount,bind,ro $directory
done
mount -t proc -o hidepid=2 proc /proc
exec setpriv --bounding-set "$1" --no-new-privs strace -f -qq -o "$2" "$3" -m jobcache.cli sweep --hooks "$4"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become others")
def test_the_sweep_works_with_what_is_left(site: Site, tmp_path: Path) -> None:
    """With the service's capabilities, a sweep reaps an orphan as its owner and sees who uses another."""
    for job in (7, 8):
        site.task_prolog(job)
        site.fill(site.cache(job), "a.arrow")
    fake_slurm(site)
    capabilities = dict(hardening(SWEEP))["CapabilityBoundingSet"].lower().replace("cap_", "+").replace(" ", ",")
    trace = tmp_path / "trace"
    with (site.cache(8) / "a.arrow").open() as file, subprocess.Popen(["sleep", "60"], stdin=file, user=UID) as holder:
        said = run(
            "util-linux", "unshare", "--mount", "--propagation", "private", "sh", "-ec", AS_THE_SERVICE, "sh",
            f"-all,{capabilities}", trace, sys.executable, site.hooks, PYTHONPATH=str(Path(jobcache.__file__).parents[1]),
        )  # fmt: skip
        holder.kill()
    assert said == ""
    assert [site.cache(7).exists(), site.cache(8).exists()] == [False, True]
    assert [event["pids"] for event in site.events("cache.kept")] == [[holder.pid]]
    lines = trace.read_text().splitlines()
    assert {line.split()[1].partition("(")[0] for line in lines if re.match(r"\d+ +\w+\(", line)} <= allowed_calls()
    assert not [line for line in lines if re.search(r" mmap\(.*PROT_WRITE\|PROT_EXEC| mprotect\(.*PROT_EXEC", line)]


def fake_slurm(site: Site) -> None:
    """A Slurm that has one job, which is nobody's here."""
    programs = {"squeue": "echo '1|1|RUNNING|1'", "scontrol": "printf 'ClusterName = test\\nPrivateData = none\\n'"}
    for name, command in programs.items():
        (site.dir / name).write_text(f"#!/bin/sh\n{command}\n")
        (site.dir / name).chmod(0o755)
    site.configure(slurm={name: str(site.dir / name) for name in programs}, sweep={"grace": "0s", "confirm": "0s"})


def allowed_calls() -> set[str]:
    """The system calls that the service's filters leave."""
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
    """The command of the one line of the crontab that is neither a comment nor an assignment."""
    lines = (ETC / "cron.d/jobcache").read_text().splitlines()
    (line,) = [line for line in lines if line and not re.match(r"#|\w+=", line)]
    found = re.fullmatch(r"0 \* \* \* \* root (.+)", line)
    assert found and "%" not in line, "cron takes % for the end of the command"
    return found[1]


@pytest.fixture
def cron(tmp_path: Path) -> str:
    """The command, with every path below tmp_path, where there is a jobcache that says how it was called."""
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
    """What a command, run as cron runs it, called; it has to be silent."""
    log = where / "called"
    log.unlink(missing_ok=True)
    assert run("dash", *shell.split(), "-c", command, PATH=f"{where}:/usr/bin:/bin") == ""
    return log.read_text().splitlines() if log.exists() else []


def test_the_crontab_is_good_shell(tmp_path: Path) -> None:
    """shellcheck has nothing to say but that a variable is not quoted (it is options) and one is set elsewhere."""
    script = tmp_path / "command"
    script.write_text(cron_command() + "\n")
    run("dash", "sh", "-n", script)
    run("shellcheck", "shellcheck", "--shell=sh", "--exclude=SC1091,SC2086,SC2154", script)


@pytest.mark.parametrize("shell", SHELLS)
def test_cron_leaves_it_to_systemd(tmp_path: Path, cron: str, shell: str) -> None:
    """Where systemd runs, cron does nothing, whatever is set."""
    (tmp_path / "etc/default/jobcache").write_text("JOBCACHE_SWEEP=--node-local\n")
    (tmp_path / "run/systemd/system").mkdir()
    assert called(shell, cron, tmp_path) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_cron_sweeps_where_it_is_told_to(tmp_path: Path, cron: str, shell: str) -> None:
    """Nothing without the variable; with it, a sweep with these options, some time within the hour."""
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
    (tmp_path / "usr/bin/jobcache").unlink()  # the package was removed, its configuration was not
    assert called(shell, cron, tmp_path) == []


# ------------------------------------------------------------------------------------------------- logrotate, tmpfiles


def test_logrotate(tmp_path: Path) -> None:
    """It is understood, and a rotation moves the log away without making, copying or telling anything."""
    log = tmp_path / "events.jsonl"
    log.write_text("{}\n")
    conf = tmp_path / "conf"
    conf.write_text((ETC / "logrotate.d/jobcache").read_text().replace("/var/log/jobcache", str(tmp_path)))
    conf.chmod(0o644)
    said = run("logrotate", "logrotate", "--state", tmp_path / "state", "--debug", conf)
    assert "Handling 1 logs" in said and "error" not in said
    run("logrotate", "logrotate", "--state", tmp_path / "state", "--force", conf)
    assert not log.exists() and (tmp_path / "events.jsonl.1").read_text() == "{}\n"


def test_tmpfiles(tmp_path: Path) -> None:
    """The directories come with their modes."""
    run("systemd", "systemd-tmpfiles", "--create", f"--root={tmp_path}", ETC / "tmpfiles.d/jobcache.conf")
    assert oct((tmp_path / "run/jobcache").stat().st_mode) == "0o40700"
    assert oct((tmp_path / "var/log/jobcache").stat().st_mode) == "0o40750"
