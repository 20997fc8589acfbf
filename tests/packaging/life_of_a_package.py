#!/usr/bin/env python3
"""Tests a package in a clean Debian, as root: installation, wiring, jobs, a sweep, an upgrade, removal.

life_of_a_package.py deb|rpm|opt|ansible OLD NEW
life_of_a_package.py tree OLD.tar.gz NEW.tar.gz

packaging/test-debian starts this in a tree of its own, with minicluster.py, guide.py and admin-guide.md beside it. It changes
/etc, /scratch and /var, so never run it on a machine in use. Standard library only.
Commands are those of the admin guide, word for word. Each trial checks at its end that it ran all of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import guide
from minicluster import Cluster

CONFIG = Path("/etc/jobcache/jobcache.yaml")
LOG = Path("/var/log/jobcache/events.jsonl")
SCRATCH = Path("/scratch/gpfs")
ALICE = "alice"
CONF = ["MinJobAge=3600"]  # Slurm 20.11 can wait for minutes before it tries again to launch a step that was delayed
STEPS = """\
srun sh -c 'echo $SLURMD_NODENAME $HF_DATASETS_CACHE
    mkdir -p $HF_DATASETS_CACHE/json; echo x >$HF_DATASETS_CACHE/json/$SLURMD_NODENAME'
"""

HERE = Path(__file__).parent
GUIDE = guide.commands((HERE / "admin-guide.md").read_text())

checks = 0
ran: set[str] = set()


def check(what: str, truth: object, why: object = "") -> None:
    """Print that `what` holds. If `truth` is false, exit and print `why`."""
    global checks
    if not truth:
        sys.exit(f"FAILED: {what}\n{why}")
    checks += 1
    print(f"ok: {what}", flush=True)


def admin(line: str, *meant: tuple[str, str], status: int = 0) -> str:
    """Run a command of the guide and return its output. meant: regular expressions and their replacements in the command."""
    if line not in GUIDE:
        sys.exit(f"FAILED: {line!r} is not in the guide, which has:\n{chr(10).join(GUIDE)}")
    ran.add(line)
    for word, instead in meant:
        line = re.sub(word, instead, line)
    output = run("sh", "-c", f"cd {HERE} && {line}", status=status)
    check(f"$ {line}", "Traceback" not in output, output)
    return output


def check_all_ran(form: str) -> None:
    left = [line for line, trial in GUIDE.items() if trial == form and line not in ran]
    check(f"the trial ran every command of the guide for {form}", not left, left)


def run(*argv: str, status: int = 0, **env: str) -> str:
    """Return the stdout and stderr of a command that reads `y` from stdin. Exit if its exit status is not `status`."""
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        argv,
        env={**clean, **env},
        input="y\n" * 9,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != status:
        sys.exit(f"FAILED: {' '.join(argv)} exited {done.returncode}, not {status}:\n{done.stdout}")
    return done.stdout


def events(name: str = "") -> list[dict]:
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    return [event for event in map(json.loads, lines) if name in ("", event["event"])]


def cache(job: int) -> Path:
    return SCRATCH / ALICE / ".cache" / f"hf-datasets-{job}"


def leftovers() -> list[str]:
    """Return every cache on scratch: complete, half-created or half-deleted."""
    return sorted(str(path) for path in SCRATCH.glob("*/.cache/*") if not path.name.startswith(".jobcache-history"))


def edit(old: str, new: str) -> None:
    """Replace `old`, which the configuration contains once."""
    text = CONFIG.read_text()
    check(f"the packaged configuration has {old.strip()!r}", text.count(old) == 1, text)
    CONFIG.write_text(text.replace(old, new))


def printed(job: int, cluster: Cluster) -> set[str]:
    """Return the lines that tasks of the job have printed so far."""
    with suppress(FileNotFoundError):
        return {line for line in cluster.output(job).splitlines() if not line.startswith("srun: ")}  # "step is delayed"
    return set()


def expected(job: int) -> set[str]:
    return {f"{node} {cache(job)}" for node in ("n1", "n2")}


def use(cluster: Cluster, sweep: Sequence[str], off: Path, *, unwritable: bool = False) -> int:
    """Run jobs: the Epilog reaps the cache of one, a sweep the cache of the other. Return the id of the first.

    off: the file that disables the hooks.
    unwritable: that file cannot be created, so skip the second job.
    """
    job = cluster.sbatch(STEPS, "-N2", user=ALICE)
    check("a two-node job completes", cluster.wait(job) == "COMPLETED", cluster.output(job))
    check("both tasks have the private cache of the job", printed(job, cluster) == expected(job), cluster.output(job))
    for node in cluster.nodes:
        cluster.wait_node(node)
    check("the cache is gone", not leftovers(), leftovers())
    (event,) = [event for event in events("cache.reaped") if event["job_id"] == job]
    check("one event records it", (event["outcome"], event["user"]) == ("reaped", ALICE), event)

    if unwritable:
        run(*sweep)
        return job
    lost = cluster.sbatch(f"{STEPS}sleep 1000", "-N2", user=ALICE)
    until(lambda: len(printed(lost, cluster)) == 2)
    admin("touch /var/lib/jobcache/off", ("/var/lib/jobcache", str(off.parent)))
    cluster.run("scancel", str(lost))
    cluster.wait(lost)
    for node in cluster.nodes:
        cluster.wait_node(node)
    check("while the file `off` exists, the Epilog does nothing", cache(lost).is_dir(), leftovers())
    off.unlink()
    until(lambda: "orphan" in run(*sweep, "--dry-run"))
    run(*sweep)
    check("a sweep reaps the orphan", not leftovers(), leftovers())
    check("and logs an event", [event["job_id"] for event in events("cache.orphan_reaped")] == [lost], events())
    return job


def until(truth: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not truth():
        if time.monotonic() > end:
            sys.exit("FAILED: no success within a minute")
        time.sleep(0.1)


def under_load(cluster: Cluster, what: Callable[[], None]) -> None:
    """Call `what` while jobs start, run and end. No job and no node may fail."""
    go = SCRATCH / "go"
    long = cluster.sbatch(f"until [ -e {go} ]; do {STEPS}sleep 0.5; done", "-N2", user=ALICE)
    until(lambda: len(printed(long, cluster)) == 2)
    short: list[int] = []
    stop = threading.Event()

    def submit() -> None:
        while not stop.is_set():
            short.append(cluster.sbatch(STEPS, "-N2", user=ALICE))
            time.sleep(0.3)

    thread = threading.Thread(target=submit)
    thread.start()
    before = len(events())
    try:
        until(lambda: len(events("cache.reaped")) > before)  # jobs have begun to end
        what()
        settled = len(short)
        until(lambda: len(short) >= settled + 2)
    finally:
        stop.set()
        thread.join()
        go.touch()
    states = {job: cluster.wait(job, timeout=300) for job in [long, *short]}
    check(f"{len(states)} jobs complete", set(states.values()) == {"COMPLETED"}, states)
    wrong = {job: cluster.output(job) for job in states if printed(job, cluster) != expected(job)}
    check("every task has the private cache of its job", not wrong, wrong)
    for node in cluster.nodes:
        cluster.wait_node(node)
    check("no node is drained or down", all("Reason" not in cluster.node(node) for node in cluster.nodes))
    check("no hook failed", not events("hook.failed"), events("hook.failed"))
    check("every cache is gone", not leftovers(), leftovers())
    go.unlink()


def files() -> set[str]:
    """Return the paths of all files, except those that every installation of a package changes."""
    found = set()
    for top in ("/etc", "/usr", "/var", "/run", "/opt"):
        for directory, names, plain in os.walk(top):
            found.update(os.path.join(directory, name) for name in [*names, *plain])
    noise = (
        "/var/cache/",
        "/var/lib/apt/",
        "/var/lib/dpkg/",
        "/var/log/apt/",
        "/usr/lib/python3/dist-packages/",
        "/var/log/dpkg",
        "/var/lib/dnf",
        "/var/log/dnf",
        "/var/log/hawkey",
        "/var/lib/rpm",
        "/var/lib/zypp",
        "/var/log/zypp",
        "/run/zypp",
    )
    return {path for path in found if not path.startswith(noise) and ("__pycache__" not in path or "/jobcache/" in path)}


def of_packages() -> set[str]:
    """Return the paths that installed packages own."""
    owned: set[str] = set()
    for listing in Path("/var/lib/dpkg/info").glob("*.list"):
        owned.update(listing.read_text().splitlines())
    return owned


def mentions(text: str, *words: str) -> bool:
    return all(word in text for word in words)


def two_lines(directory: str) -> list[str]:
    return [f"TaskProlog={directory}/task-prolog", f"Epilog={directory}/epilog"]


def without_bytecode(library: str) -> list[str]:
    """Return the modules below `library` that have no bytecode. Users run them, and cannot write it."""
    modules = list(Path(library).rglob("*.py"))
    check("modules are installed", modules)
    return [str(path) for path in modules if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))]


def as_python(version: str) -> str:
    """Return the version of a package as Python spells it: 1.0.dev1 for 1.0~dev1, 1.0rc1 for 1.0~rc1."""
    return version.replace("~dev", ".dev").replace("~", "")


def enabled() -> list[str]:
    return [str(path) for path in Path("/etc/systemd").rglob("*jobcache*")]


def prepare() -> None:
    """Create the user, and a scratch with the mode of /tmp."""
    run("useradd", "-m", ALICE)
    SCRATCH.mkdir(parents=True)
    SCRATCH.chmod(0o1777)


class Deb:
    """The commands of apt-get and dpkg."""

    form = "deb"
    libexec = "/usr/libexec/jobcache"
    library = "/usr/share/slurm-jobcache/jobcache"
    first = "apt-get install ./slurm-jobcache_0.1.0_all.deb"
    later = "apt-get install ./slurm-jobcache_0.2.0_all.deb"
    answers: tuple[tuple[str, str], ...] = ()

    def __init__(self, old: str, new: str) -> None:
        self.old = old
        self.new = new

    def install(self, package: str) -> str:
        return admin(self.first, (r"\./\S+", package), *self.answers)

    def upgrade(self) -> str:
        return admin(self.later, (r"\./\S+", self.new), *self.answers)

    def downgrade(self) -> str:
        return run("apt-get", "--allow-downgrades", "install", self.old)

    def refused(self) -> str:
        return run("dpkg", "--remove", "slurm-jobcache", status=1)

    def purge(self) -> str:
        return admin("apt-get purge slurm-jobcache")

    def purge_by_environment(self) -> str:
        return admin("JOBCACHE_FORCE_REMOVE=yes apt-get purge slurm-jobcache")

    def whole(self) -> bool:
        return run("dpkg-query", "-W", "-f", "${db:Status-Status}", "slurm-jobcache") == "installed"

    def version(self, package: str) -> str:
        return as_python(run("dpkg-deb", "--field", package, "Version").strip())


class Rpm(Deb):
    """The commands of dnf. One empty rpm provides the names of the packages that dpkg has installed (packaging/test-debian)."""

    form = "rpm"
    name = "slurm-jobcache"
    first = "dnf install ./slurm-jobcache-0.1.0-1.noarch.rpm"
    later = "dnf upgrade ./slurm-jobcache-0.2.0-1.noarch.rpm"
    last = "dnf remove slurm-jobcache"
    no = 1  # exit status of a removal that is refused

    def downgrade(self) -> str:
        return run("dnf", "downgrade", self.old)

    def refused(self) -> str:
        return admin(self.last, *self.answers, status=self.no)

    def purge(self) -> str:
        return self._rest(admin(self.last, *self.answers))

    def purge_by_environment(self) -> str:
        return self._rest(run("sh", "-c", f"JOBCACHE_FORCE_REMOVE=yes rpm --erase {self.name}"))

    def _rest(self, output: str) -> str:
        """Remove the edited configuration, which rpm keeps."""
        CONFIG.with_suffix(".yaml.rpmsave").unlink(missing_ok=True)
        with suppress(OSError):
            CONFIG.parent.rmdir()
        return output

    def whole(self) -> bool:
        # Only the configuration was edited.
        return {line.split()[-1] for line in run("sh", "-c", f"rpm --verify --nodeps {self.name} || :").splitlines()} <= {
            str(CONFIG)
        }

    def version(self, package: str) -> str:
        return as_python(run("rpm", "--query", "--queryformat", "%{VERSION}", "--package", package))


class Opt(Rpm):
    """The variant in /opt/jobcache, by zypper."""

    form = "opt"
    name = "slurm-jobcache-opt"
    libexec = "/opt/jobcache/lib"
    library = "/opt/jobcache/lib/jobcache"
    first = "zypper install --allow-unsigned-rpm ./slurm-jobcache-opt-0.1.0-1.x86_64.rpm"
    later = "zypper install --allow-unsigned-rpm ./slurm-jobcache-opt-0.2.0-1.x86_64.rpm"
    last = "zypper remove slurm-jobcache-opt"
    no = 8
    answers = (("^zypper", "zypper --non-interactive"),)  # zypper reads answers from a terminal

    def downgrade(self) -> str:
        return run("zypper", "--non-interactive", "install", "--oldpackage", "--allow-unsigned-rpm", self.old)


def package(by: Deb) -> None:
    before = files()
    output = by.install(by.old)
    check("an installation without a cluster reports what is missing", mentions(output, "cluster", "jobcache apply"), output)
    check(
        "it prints the two lines and `jobcache check`",
        mentions(output, *two_lines(by.libexec), "jobcache check"),
        output,
    )
    check("no sweep is enabled", not enabled(), enabled())
    check("jobcache reports the version of the package", run("jobcache", "--version").split()[-1] == by.version(by.old))
    admin(
        "editor /etc/jobcache/jobcache.yaml",
        ("editor", "sed -i -e 's/  #grace: 1h/  grace: 1s/' -e 's/  #confirm: 2m/  confirm: 1s/'"),
    )
    check("every module has bytecode", not (bare := without_bytecode(by.library)), bare)
    edited = CONFIG.read_text()
    check("the packaged configuration has these keys", mentions(edited, "\n  grace: 1s", "\n  confirm: 1s"), edited)
    admin("jobcache apply", status=1)
    admin("install -d -m 700 -o alice /scratch/gpfs/alice")
    check("hooks without a policy do nothing", not run(f"{by.libexec}/task-prolog") and not run(f"{by.libexec}/epilog"))

    with Cluster(name="life", root="/tmp", conf=CONF) as cluster:
        conf = found_by_default(cluster)
        output = admin("jobcache apply")
        check("apply reads the cluster's name from Slurm", "cluster life" in output, output)
        check("apply names the two lines", mentions(output, *two_lines(by.libexec)), output)
        cluster.reconfigure(two_lines(by.libexec))
        admin("scontrol reconfigure")
        admin("systemctl enable --now jobcache-sweep.timer", ("--now ", ""))  # systemd does not run here
        check("the admin enables the timer", len(enabled()) == 1, enabled())
        job = use(cluster, ["jobcache", "sweep"], Path("/var/lib/jobcache/off"))

        def upgrade() -> None:
            text = cluster.conf_file.read_text()
            output = by.upgrade()
            check("an upgrade compiles the policy again", "policy" in output and "cluster life" in output, output)
            check("it does not change slurm.conf", cluster.conf_file.read_text() == text)

        under_load(cluster, upgrade)
        check("the upgrade keeps the configuration", CONFIG.read_text() == edited)
        check("every module has bytecode after the upgrade", not (bare := without_bytecode(by.library)), bare)
        check("jobcache reports the new version", run("jobcache", "--version").split()[-1] == by.version(by.new))
        compiled = json.loads(Path("/var/lib/jobcache/settings.json").read_text())["compiled"]["version"]
        check("the compiled settings are those of the new version", compiled == by.version(by.new), compiled)
        check("the upgrade keeps the timer enabled", len(enabled()) == 1, enabled())
        day_two(job)
        under_load(cluster, lambda: print(by.downgrade().splitlines()[-1]))
        by.upgrade()

        if by.form == "deb":
            mounts()
        removals(by, cluster)
        conf.unlink()

    left = {path for path in files() - before - of_packages() if "jobcache" in path}
    allowed = {"/var/log/jobcache", str(LOG)}
    check("only the log is left", left == allowed, left ^ allowed)
    check("no other file is left", not (more := files() - before - of_packages() - left - EXPECTED), more)
    check_all_ran(by.form)


def day_two(job: int) -> None:
    """Run the commands that the guide has for daily operation. job: the id of a job that has ended."""
    output = admin("jobcache explain JOBID", ("JOBID", str(job)))
    check("explain reports that the Epilog reaped it", "reaped by the Epilog" in output, output)
    check("the worked example of the guide is the same command", admin("jobcache explain 8451", ("8451", str(job))) == output)
    admin("jobcache list")
    admin("jobcache list --sort bytes")
    admin("find /scratch/gpfs/alice/.cache | sort")
    output = admin("jobcache report --since 30d")
    check("report names the user", ALICE in output, output)
    run("jobcache", "report", "--html", "/tmp/report.html")
    page = Path("/tmp/report.html").read_text()
    check("report writes a page", page.startswith("<!DOCTYPE html>") and ALICE in page, page[:200])
    admin("jobcache sweep --dry-run")
    admin("jobcache sweep --shard 3/8")
    admin("jobcache sweep")
    admin("jobcache apply --check")
    output = admin("jobcache show-config")
    check("show-config prints the origin of a value", f"{CONFIG}:" in output, output)
    output = admin("scontrol show config")
    check("Slurm runs the hooks", mentions(output, "/task-prolog", "/epilog"), output)
    output = admin("jobcache check")
    check(
        "check reports warnings but no problem",
        mentions(output, "0 problems", "no sweep is scheduled on this host", "MinJobAge"),
        output,
    )
    output = admin("srun -N2 jobcache check")
    check("check reports no problem on both nodes", output.count("0 problems") == 2, output)


def mounts() -> None:
    """Check that every directory that is mounted into containers exists."""
    directory = Path("/etc/enroot/mounts.d")
    directory.mkdir(parents=True)
    admin("cp /usr/share/slurm-jobcache/enroot/50-jobcache.fstab /etc/enroot/mounts.d/")
    admin("cp /usr/share/slurm-jobcache/profile.d/jobcache.sh /etc/profile.d/")
    Path("/etc/profile.d/jobcache.sh").unlink()
    (table,) = directory.iterdir()
    lines = [line.split() for line in table.read_text().splitlines() if not line.startswith("#")]
    check("every directory for containers exists", lines and all(Path(line[0]).is_dir() for line in lines), lines)
    table.unlink()


# Dependencies and the cluster leave these.
EXPECTED = {"/etc/slurm", "/etc/enroot", "/etc/enroot/mounts.d"}


def removals(by: Deb, cluster: Cluster) -> None:
    """Removal fails while Slurm runs the hooks. Then it succeeds, and keeps a live cache."""
    refused = by.refused()
    check(
        "removal fails while slurm.conf names the hooks",
        mentions(refused, f"{by.libexec}/epilog", "scontrol reconfigure"),
        refused,
    )
    check("the package is intact afterwards", by.whole())

    text = cluster.conf_file.read_text()
    cluster.conf_file.write_text("".join(line for line in text.splitlines(True) if "jobcache" not in line))
    refused = by.refused()
    check(
        "removal fails until scontrol reconfigure",
        mentions(refused, "scontrol show config: ", "slurm.conf no longer names the hooks"),
        refused,
    )

    site = Path("/etc/slurm/epilog.d")
    site.mkdir()
    admin("ln -s /usr/libexec/jobcache/epilog /etc/slurm/epilog.d/50-jobcache", ("/usr/libexec/jobcache", by.libexec))
    cluster.reconfigure([f"Epilog={site}/*"])
    refused = by.refused()
    check("removal fails while a pattern matches a link to a hook", f"{site}/50-jobcache" in refused, refused)
    (site / "50-jobcache").unlink()
    (site / "task-prolog").write_text(f"#!/bin/sh\n{by.libexec}/task-prolog\n")
    cluster.reconfigure([f"TaskProlog={site}/task-prolog"])
    refused = by.refused()
    check("removal fails while a script of the site calls a hook", f"{site}/task-prolog" in refused, refused)
    (site / "task-prolog").unlink()
    site.rmdir()

    cluster.reconfigure(two_lines(by.libexec))
    job = cluster.sbatch(f"{STEPS}sleep 1000", "-N2", user=ALICE)
    until(lambda: len(printed(job, cluster)) == 2)
    cluster.reconfigure([])
    run("jobcache", "sweep")
    check("the last sweep keeps the cache of a running job", cache(job).is_dir(), leftovers())
    output = by.purge()
    check(
        "without the two lines, removal succeeds with a warning",
        "caches of jobs that still run stay" in output,
        output,
    )
    check("no unit is enabled", not enabled(), enabled())
    check("a purge keeps a live cache", sorted(p.name for p in cache(job).glob("json/*")) == ["n1", "n2"])
    cluster.run("scancel", str(job))
    cluster.wait(job)
    for node in cluster.nodes:
        cluster.wait_node(node)

    def purge_by_file() -> str:
        admin("touch /run/jobcache/force-remove")
        return by.purge()

    for purge in (purge_by_file, by.purge_by_environment):
        by.install(by.new)
        check("the first installation on a running cluster compiles the policy", Path("/var/lib/jobcache/policy.sh").exists())
        cluster.reconfigure(two_lines(by.libexec))
        by.refused()
        output = purge()
        check("forced removal succeeds", "by force" in output and not Path(by.libexec).exists(), output)
        check("no unit is enabled afterwards", not enabled(), enabled())


def found_by_default(cluster: Cluster) -> Path:
    """Link the cluster's slurm.conf to the default path, for commands without SLURM_CONF. Return that path."""
    conf = Path("/etc/slurm/slurm.conf")
    conf.parent.mkdir(exist_ok=True)
    conf.symlink_to(cluster.conf_file)
    return conf


def tree(old: str, new: str) -> None:
    """Test the relocatable tree: unpack, move, set up with a Python of this host, and keep hooks outside of it for upgrades."""
    old_tree, new_tree = map(unpacked, (old, new))
    (moved := Path("/opt/elsewhere")).mkdir()
    Path(old_tree).rename(moved / "tree")
    old_tree = f"{moved}/tree"
    trees = ("/opt/jobcache-0.1.0", old_tree), ("/opt/jobcache-0.2.0", new_tree)
    output = run(f"{old_tree}/bin/jobcache", "--version", status=1)
    check("before its setup the command prints how to run it", f"{old_tree}/setup" in output, output)
    for named, one in trees:
        output = admin(f"{named}/setup", *trees)
        check("setup finds a Python, and prints the next step", mentions(output, "by /usr/bin/python3", "apply --config"), output)
        check("an ordinary user can run it", run("su", "-s", "/bin/sh", "-c", f"{one}/bin/jobcache --version", ALICE))
    admin("install -d /etc/jobcache && install -d -m 750 /var/log/jobcache")
    admin("/opt/jobcache-0.1.0/bin/jobcache show-config --example >/etc/jobcache/jobcache.yaml", *trees)
    edit("  #grace: 1h", "  grace: 1s")
    edit("  #confirm: 2m", "  confirm: 1s")
    with Cluster(name="life", root="/tmp", conf=CONF) as cluster:
        conf = found_by_default(cluster)
        output = run(f"{old_tree}/bin/jobcache", "apply")
        check("apply prints the two lines for the hooks in the tree", mentions(output, *two_lines(f"{old_tree}/lib")), output)
        cluster.reconfigure(two_lines(f"{old_tree}/lib"))
        use(cluster, [f"{old_tree}/bin/jobcache", "sweep"], Path("/var/lib/jobcache/off"))

        hooks = "/opt/jobcache/hooks"
        output = admin("/opt/jobcache-0.1.0/bin/jobcache apply --hooks /opt/jobcache/hooks", *trees)
        check("apply prints the two lines for hooks outside of the tree", mentions(output, *two_lines(hooks)), output)
        cluster.reconfigure(two_lines(hooks))
        LOG.unlink()
        use(cluster, [f"{old_tree}/bin/jobcache", "sweep", "--hooks", hooks], Path(f"{hooks}/off"))
        admin("/opt/jobcache-0.1.0/bin/jobcache sweep --hooks /opt/jobcache/hooks", *trees)
        upgrade = "/opt/jobcache-0.2.0/bin/jobcache apply --hooks /opt/jobcache/hooks"
        under_load(cluster, lambda: print(admin(upgrade, *trees).splitlines()[0]))
        compiled = json.loads(Path(f"{hooks}/settings.json").read_text())["compiled"]
        check("the hooks use the new tree", new_tree in compiled["package"] and new_tree in compiled["python"], compiled)
        run("rm", "-r", str(moved))
        use_after = cluster.sbatch(STEPS, "-N2", user=ALICE)
        check("jobs run after the old tree is removed", cluster.wait(use_after) == "COMPLETED")
        check("tasks have caches", printed(use_after, cluster) == expected(use_after), printed(use_after, cluster))
        for node in cluster.nodes:
            cluster.wait_node(node)
        check("the caches are reaped", not leftovers(), leftovers())
        conf.unlink()
    configless(hooks, [f"{new_tree}/bin/jobcache", "sweep", "--hooks", hooks])
    check_all_ran("tree")


class Configless(Cluster):
    """Its slurmds have no slurm.conf. They fetch it from the controller, through the default socket of munge."""

    def _launch(self, daemon: str, *arguments: str) -> None:
        if not daemon.startswith("slurmd-"):
            super()._launch(daemon, *arguments)
            return
        munge = Path("/run/munge/munge.socket.2")
        if not munge.is_symlink():
            munge.parent.mkdir()
            munge.symlink_to(self.dir / "run/munge.socket")
        env = self.env
        self.env = {name: value for name, value in env.items() if name != "SLURM_CONF"}
        super()._launch(daemon, *arguments, "--conf-server", f"127.0.0.1:{self._ports['slurmctld']}")
        self.env = env


def configless(hooks: str, sweep: Sequence[str]) -> None:
    """Test nodes without a slurm.conf and with a read-only /opt and /usr, as in a stateless image."""
    LOG.unlink()
    with Configless(name="life", conf=["SlurmctldParameters=enable_configless", *two_lines(hooks)], root="/tmp") as cluster:
        for top in ("/opt", "/usr"):
            run("mount", "--bind", top, top)
            run("mount", "-o", "remount,bind,ro", top)
        check("a configless node keeps slurm.conf in its cache", "TaskProlog=" in Path("/run/slurm/conf/slurm.conf").read_text())
        use(cluster, sweep, Path(f"{hooks}/off"), unwritable=True)


def ansible(_old: str, deb: str) -> None:
    """Test the role with this host as every host: it installs, configures, wires, and changes nothing when run again."""
    with Cluster(name="life", root="/tmp", conf=CONF) as cluster:
        found_by_default(cluster)
        before = cluster.conf_file.read_text()
        book = Path("/test/play.yaml")

        def play(wired: bool, **keys: object) -> str:
            config = {
                "path": "/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}",
                "sweep": {"grace": "1s", "confirm": "1s"},
                **keys,
            }
            values = {"jobcache_package": deb, "jobcache_config": config, "jobcache_sweep": "--node-local"}
            values["jobcache_slurm_conf"] = str(cluster.conf_file) if wired else ""
            plays = [{"hosts": "localhost", "connection": "local", "roles": [{"role": "jobcache", "vars": values}]}]
            book.write_text(json.dumps(plays))
            return run("ansible-playbook", str(book), ANSIBLE_ROLES_PATH="/test/roles", ANSIBLE_NOCOLOR="1")

        output = play(wired=False)
        check("the role does not change slurm.conf by default", cluster.conf_file.read_text() == before, output)
        output = play(wired=True)
        check("the role adds only the two lines to slurm.conf", wires(before, cluster.conf_file.read_text()), output)
        until(lambda: all("got reconfigure request" in cluster.log(f"slurmd-{node}") for node in cluster.nodes))
        use(cluster, ["jobcache", "sweep"], Path("/var/lib/jobcache/off"))
        output = play(wired=True)
        check("the second run changes nothing", "changed=0 " in output, output)
        output = play(wired=True, keep_max="24h")
        check(
            "the role compiles a changed configuration",
            '"keep_max": 86400' in Path("/var/lib/jobcache/settings.json").read_text(),
            output,
        )
        check("the options of the sweep are set", Path("/etc/default/jobcache").read_text() == "JOBCACHE_SWEEP=--node-local\n")


def wires(before: str, after: str) -> bool:
    return sorted(after.splitlines()) == sorted([*before.splitlines(), *two_lines(Deb.libexec)])


def unpacked(archive: str) -> str:
    """Unpack a tree in /opt. Return its directory."""
    name = run("tar", "--list", "-f", archive).splitlines()[0].rstrip("/")
    admin("tar -xf slurm-jobcache-0.1.0-x86_64.tar.gz -C /opt", (r"\S+\.tar\.gz", archive))
    check("root owns the tree that it unpacks", Path(f"/opt/{name}").stat().st_uid == 0)
    return f"/opt/{name}"


def main(form: str, *arguments: str) -> None:
    prepare()
    if form in ("tree", "ansible"):
        {"tree": tree, "ansible": ansible}[form](*arguments)
    else:
        package({"deb": Deb, "rpm": Rpm, "opt": Opt}[form](*arguments))
    print(f"{checks} passed, 0 failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
