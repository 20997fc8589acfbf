#!/usr/bin/env python3
"""A package's life in a clean Debian, in which this runs as root: installed, wired, used, swept, upgraded, removed.

life_of_a_package.py deb|rpm|opt|ansible OLD NEW
life_of_a_package.py tree OLD.tar.gz NEW.tar.gz

Started by packaging/test-debian in a tree of its own. Standard library only; minicluster.py, guide.py and admin-guide.md
beside it. It changes /etc, /scratch and /var as an admin and a cluster's users would: nothing for a machine that is in use.
The admin types what the guide says, word for word, and each trial ends by asking whether it was all of it.
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
typed: set[str] = set()


def check(what: str, truth: object, why: object = "") -> None:
    """Say that `what` was seen, or end with `why` it was not."""
    global checks
    if not truth:
        sys.exit(f"FAILED: {what}\n{why}")
    checks += 1
    print(f"ok: {what}", flush=True)


def admin(line: str, *meant: tuple[str, str], status: int = 0) -> str:
    """Type a line of the guide, and return what is said. meant: regular expressions, and what is typed for what they match."""
    if line not in GUIDE:
        sys.exit(f"FAILED: {line!r} is not in the guide, which has:\n{chr(10).join(GUIDE)}")
    typed.add(line)
    for word, instead in meant:
        line = re.sub(word, instead, line)
    said = run("sh", "-c", f"cd {HERE} && {line}", status=status)
    check(f"$ {line}", "Traceback" not in said, said)
    return said


def all_typed(form: str) -> None:
    left = [line for line, trial in GUIDE.items() if trial == form and line not in typed]
    check(f"every command that the guide has for {form} was typed", not left, left)


def run(*argv: str, status: int = 0, **env: str) -> str:
    """Return what a command says, stdout and stderr; end where it exits with another status. To a question it is told yes."""
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
    """Whatever there is of caches: whole, half-made or half-deleted."""
    return sorted(str(path) for path in SCRATCH.glob("*/.cache/*"))


def edit(old: str, new: str) -> None:
    """Change the configuration as an admin's editor would."""
    text = CONFIG.read_text()
    check(f"the configuration that comes along has {old.strip()!r}", text.count(old) == 1, text)
    CONFIG.write_text(text.replace(old, new))


def seen(job: int, cluster: Cluster) -> set[str]:
    """What its tasks have said so far, one line each."""
    with suppress(FileNotFoundError):
        return {line for line in cluster.output(job).splitlines() if not line.startswith("srun: ")}  # "step is delayed"
    return set()


def wanted(job: int) -> set[str]:
    return {f"{node} {cache(job)}" for node in ("n1", "n2")}


def use(cluster: Cluster, sweep: Sequence[str], off: Path, *, unwritable: bool = False) -> int:
    """Jobs get caches, which go with them; a sweep reaps what an Epilog did not. off: what stops all while it is there.
    Return a job whose Epilog reaped its cache.

    unwritable: there is no place for that file, and no orphan to be made by it.
    """
    job = cluster.sbatch(STEPS, "-N2", user=ALICE)
    check("a two-node job ends well", cluster.wait(job) == "COMPLETED", cluster.output(job))
    check("both its tasks had the job's own cache", seen(job, cluster) == wanted(job), cluster.output(job))
    for node in cluster.nodes:
        cluster.wait_node(node)
    check("nothing is left of it", not leftovers(), leftovers())
    (event,) = [event for event in events("cache.reaped") if event["job_id"] == job]
    check("one event says so", (event["outcome"], event["user"]) == ("reaped", ALICE), event)

    if unwritable:
        run(*sweep)
        return job
    lost = cluster.sbatch(f"{STEPS}sleep 1000", "-N2", user=ALICE)
    until(lambda: len(seen(lost, cluster)) == 2)
    admin("touch /var/lib/jobcache/off", ("/var/lib/jobcache", str(off.parent)))
    cluster.run("scancel", str(lost))
    cluster.wait(lost)
    for node in cluster.nodes:
        cluster.wait_node(node)
    check("while a file `off` is there, an Epilog does nothing", cache(lost).is_dir(), leftovers())
    off.unlink()
    until(lambda: "orphan" in run(*sweep, "--dry-run"))
    run(*sweep)
    check("a sweep reaps what that left", not leftovers(), leftovers())
    check("and says so", [event["job_id"] for event in events("cache.orphan_reaped")] == [lost], events())
    return job


def until(truth: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not truth():
        if time.monotonic() > end:
            sys.exit("FAILED: waited for a minute in vain")
        time.sleep(0.1)


def under_load(cluster: Cluster, what: Callable[[], None]) -> None:
    """Do `what` while jobs run, start and end; none of them, and no node, may notice."""
    go = SCRATCH / "go"
    long = cluster.sbatch(f"until [ -e {go} ]; do {STEPS}sleep 0.5; done", "-N2", user=ALICE)
    until(lambda: len(seen(long, cluster)) == 2)
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
        until(lambda: len(events("cache.reaped")) > before)  # jobs end already
        what()
        settled = len(short)
        until(lambda: len(short) >= settled + 2)
    finally:
        stop.set()
        thread.join()
        go.touch()
    states = {job: cluster.wait(job, timeout=300) for job in [long, *short]}
    check(f"{len(states)} jobs end well", set(states.values()) == {"COMPLETED"}, states)
    wrong = {job: cluster.output(job) for job in states if seen(job, cluster) != wanted(job)}
    check("every task of theirs had its job's own cache", not wrong, wrong)
    for node in cluster.nodes:
        cluster.wait_node(node)
    check("no node has a reason to be out of work", all("Reason" not in cluster.node(node) for node in cluster.nodes))
    check("no hook failed", not events("hook.failed"), events("hook.failed"))
    check("every cache is gone", not leftovers(), leftovers())
    go.unlink()


def files() -> set[str]:
    """All there is that no package but ours can have brought: as paths, without what every installation changes."""
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
    return {
        path for path in found if not path.startswith(noise) and "__pycache__" not in path.replace("jobcache/__pycache__", "")
    }


def of_packages() -> set[str]:
    """What the packages own that are installed."""
    owned: set[str] = set()
    for listing in Path("/var/lib/dpkg/info").glob("*.list"):
        owned.update(listing.read_text().splitlines())
    return owned


def mentions(text: str, *words: str) -> bool:
    return all(word in text for word in words)


def two_lines(directory: str) -> list[str]:
    return [f"TaskProlog={directory}/task-prolog", f"Epilog={directory}/epilog"]


def enabled() -> list[str]:
    return [str(path) for path in Path("/etc/systemd").rglob("*jobcache*")]


def prepare() -> None:
    """The user, and a scratch as open as /tmp."""
    run("useradd", "-m", ALICE)
    SCRATCH.mkdir(parents=True)
    SCRATCH.chmod(0o1777)


class Deb:
    """What is asked of apt-get and dpkg."""

    form = "deb"
    libexec = "/usr/libexec/jobcache"
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
        return run("dpkg-deb", "--field", package, "Version").strip()


class Rpm(Deb):
    """What is asked of dnf, which takes what dpkg has installed to be in a package of its own: see packaging/test-debian."""

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

    def _rest(self, said: str) -> str:
        """What rpm leaves of a configuration that was edited."""
        CONFIG.with_suffix(".yaml.rpmsave").unlink(missing_ok=True)
        with suppress(OSError):
            CONFIG.parent.rmdir()
        return said

    def whole(self) -> bool:
        # The configuration was edited; Python's bytecode and the log's directory are nobody's.
        return {line.split()[-1] for line in run("sh", "-c", f"rpm --verify --nodeps {self.name} || :").splitlines()} <= {
            str(CONFIG)
        }

    def version(self, package: str) -> str:
        return run("rpm", "--query", "--queryformat", "%{VERSION}", "--package", package)


class Opt(Rpm):
    """The variant in /opt/jobcache, by zypper."""

    form = "opt"
    name = "slurm-jobcache-opt"
    libexec = "/opt/jobcache/lib"
    first = "zypper install --allow-unsigned-rpm ./slurm-jobcache-opt-0.1.0-1.x86_64.rpm"
    later = "zypper install --allow-unsigned-rpm ./slurm-jobcache-opt-0.2.0-1.x86_64.rpm"
    last = "zypper remove slurm-jobcache-opt"
    no = 8
    answers = (("^zypper", "zypper --non-interactive"),)  # it reads them from a terminal

    def downgrade(self) -> str:
        return run("zypper", "--non-interactive", "install", "--oldpackage", "--allow-unsigned-rpm", self.old)


def package(by: Deb) -> None:
    before = files()
    said = by.install(by.old)
    check("an installation without a cluster says what is missing", mentions(said, "cluster", "jobcache apply"), said)
    check("it ends with the two lines and the doctor", mentions(said, *two_lines(by.libexec), "jobcache check"), said)
    check("nothing is enabled that would sweep", not enabled(), enabled())
    check("the version is the package's", run("jobcache", "--version").split()[-1] == by.version(by.old))
    admin(
        "editor /etc/jobcache/jobcache.yaml",
        ("editor", "sed -i -e 's/  #grace: 1h/  grace: 1s/' -e 's/  #confirm: 2m/  confirm: 1s/'"),
    )
    mine = CONFIG.read_text()
    check("the configuration that comes along has all its keys", mentions(mine, "\n  grace: 1s", "\n  confirm: 1s"), mine)
    admin("jobcache apply", status=1)
    admin("install -d -m 700 -o alice /scratch/gpfs/alice")
    check("hooks without a policy do nothing", not run(f"{by.libexec}/task-prolog") and not run(f"{by.libexec}/epilog"))

    with Cluster(name="life", root="/tmp", conf=CONF) as cluster:
        conf = found_by_default(cluster)
        said = admin("jobcache apply")
        check("apply asks Slurm for the cluster's name", "cluster life" in said, said)
        check("apply names the two lines", mentions(said, *two_lines(by.libexec)), said)
        cluster.reconfigure(two_lines(by.libexec))
        admin("scontrol reconfigure")
        admin("systemctl enable --now jobcache-sweep.timer", ("--now ", ""))  # there is no systemd that could start it
        check("the timer is the admin's to enable", len(enabled()) == 1, enabled())
        job = use(cluster, ["jobcache", "sweep"], Path("/var/lib/jobcache/off"))

        def upgrade() -> None:
            text = cluster.conf_file.read_text()
            said = by.upgrade()
            check("an upgrade compiles the policy", "policy" in said and "cluster life" in said, said)
            check("it leaves slurm.conf alone", cluster.conf_file.read_text() == text)

        under_load(cluster, upgrade)
        check("the admin's configuration has survived", CONFIG.read_text() == mine)
        check("the version is the new one", run("jobcache", "--version").split()[-1] == by.version(by.new))
        compiled = json.loads(Path("/var/lib/jobcache/settings.json").read_text())["compiled"]["version"]
        check("what the hooks obey is the new one's", compiled == by.version(by.new), compiled)
        check("the timer is as the admin left it", len(enabled()) == 1, enabled())
        day_two(job)
        under_load(cluster, lambda: print(by.downgrade().splitlines()[-1]))
        by.upgrade()

        if by.form == "deb":
            mounts()
        removals(by, cluster)
        conf.unlink()

    left = {path for path in files() - before - of_packages() if "jobcache" in path}
    allowed = {"/var/log/jobcache", str(LOG)}
    check("nothing is left but the log", left == allowed, left ^ allowed)
    check("and what else it brought is others'", not (more := files() - before - of_packages() - left - EXPECTED), more)
    all_typed(by.form)


def day_two(job: int) -> None:
    """What the guide has for every day, typed when `job` is over."""
    said = admin("jobcache explain JOBID", ("JOBID", str(job)))
    check("it tells who reaped it", "reaped by the Epilog" in said, said)
    check("the worked example's form is that", admin("jobcache explain 8451", ("8451", str(job))) == said)
    admin("jobcache list")
    admin("jobcache list --sort bytes")
    admin("find /scratch/gpfs/alice/.cache | sort")
    said = admin("jobcache report --since 30d")
    check("it tells whose caches those were", ALICE in said, said)
    run("jobcache", "report", "--html", "/tmp/report.html")
    page = Path("/tmp/report.html").read_text()
    check("and writes a page of it", page.startswith("<!DOCTYPE html>") and ALICE in page, page[:200])
    admin("jobcache sweep --dry-run")
    admin("jobcache sweep --shard 3/8")
    admin("jobcache sweep")
    admin("jobcache apply --check")
    said = admin("jobcache show-config")
    check("it tells where a value comes from", f"{CONFIG}:" in said, said)
    said = admin("scontrol show config")
    check("Slurm runs the hooks", mentions(said, "/task-prolog", "/epilog"), said)
    said = admin("jobcache check")
    check(
        "the doctor has warnings, no problem",
        mentions(said, "0 problems", "no sweep is scheduled on this host", "MinJobAge"),
        said,
    )
    said = admin("srun -N2 jobcache check")
    check("nor have both nodes", said.count("0 problems") == 2, said)


def mounts() -> None:
    """What containers are given is there, to its last line."""
    directory = Path("/etc/enroot/mounts.d")
    directory.mkdir(parents=True)
    admin("cp /usr/share/slurm-jobcache/enroot/50-jobcache.fstab /etc/enroot/mounts.d/")
    (table,) = directory.iterdir()
    lines = [line.split() for line in table.read_text().splitlines() if not line.startswith("#")]
    check("all that is mounted into containers is there", lines and all(Path(line[0]).is_dir() for line in lines), lines)
    table.unlink()


# An installation of dependencies, and a cluster, leave these.
EXPECTED = {"/etc/slurm", "/etc/enroot", "/etc/enroot/mounts.d"}


def removals(by: Deb, cluster: Cluster) -> None:
    """The package does not go while Slurm runs its hooks; then it goes, and leaves a live cache alone."""
    refused = by.refused()
    check(
        "it is not removed while Slurm names its hooks",
        mentions(refused, f"{by.libexec}/epilog", "scontrol reconfigure"),
        refused,
    )
    check("and is whole after that", by.whole())

    text = cluster.conf_file.read_text()
    cluster.conf_file.write_text("".join(line for line in text.splitlines(True) if "jobcache" not in line))
    refused = by.refused()
    check("nor before Slurm has been told", mentions(refused, "scontrol show config: ", "slurm.conf is clean"), refused)

    site = Path("/etc/slurm/epilog.d")
    site.mkdir()
    admin("ln -s /usr/libexec/jobcache/epilog /etc/slurm/epilog.d/50-jobcache", ("/usr/libexec/jobcache", by.libexec))
    cluster.reconfigure([f"Epilog={site}/*"])
    refused = by.refused()
    check("nor while a pattern leads to them", f"{site}/50-jobcache" in refused, refused)
    (site / "50-jobcache").unlink()
    (site / "task-prolog").write_text(f"#!/bin/sh\n{by.libexec}/task-prolog\n")
    cluster.reconfigure([f"TaskProlog={site}/task-prolog"])
    refused = by.refused()
    check("nor while a site's own script calls them", f"{site}/task-prolog" in refused, refused)
    (site / "task-prolog").unlink()
    site.rmdir()

    cluster.reconfigure(two_lines(by.libexec))
    job = cluster.sbatch(f"{STEPS}sleep 1000", "-N2", user=ALICE)
    until(lambda: len(seen(job, cluster)) == 2)
    cluster.reconfigure([])
    run("jobcache", "sweep")
    check("the last sweep leaves a running job its cache", cache(job).is_dir(), leftovers())
    said = by.purge()
    check("unwired, it goes, and says what stays", "caches of jobs that still run stay" in said, said)
    check("nothing is enabled any more", not enabled(), enabled())
    check("a live cache is no package's to purge", sorted(p.name for p in cache(job).glob("json/*")) == ["n1", "n2"])
    cluster.run("scancel", str(job))
    cluster.wait(job)
    for node in cluster.nodes:
        cluster.wait_node(node)

    def purge_by_file() -> str:
        admin("touch /run/jobcache/force-remove")
        return by.purge()

    for purge in (purge_by_file, by.purge_by_environment):
        by.install(by.new)
        check("a first installation that finds a cluster compiles the policy", Path("/var/lib/jobcache/policy.sh").exists())
        cluster.reconfigure(two_lines(by.libexec))
        by.refused()
        said = purge()
        check("by force it goes all the same", "by force" in said and not Path(by.libexec).exists(), said)
        check("and nothing is enabled", not enabled(), enabled())


def found_by_default(cluster: Cluster) -> Path:
    """Put the cluster's slurm.conf where commands without SLURM_CONF look; return that."""
    conf = Path("/etc/slurm/slurm.conf")
    conf.parent.mkdir(exist_ok=True)
    conf.symlink_to(cluster.conf_file)
    return conf


def tree(old: str, new: str) -> None:
    """The relocatable tree: unpacked, moved, given the Python that is here, its hooks in a directory that upgrades keep."""
    old_tree, new_tree = map(unpacked, (old, new))
    (moved := Path("/opt/elsewhere")).mkdir()
    Path(old_tree).rename(moved / "tree")
    old_tree = f"{moved}/tree"
    trees = ("/opt/jobcache-0.1.0", old_tree), ("/opt/jobcache-0.2.0", new_tree)
    said = run(f"{old_tree}/bin/jobcache", "--version", status=1)
    check("before its setup it says what to run", f"{old_tree}/setup" in said, said)
    for named, one in trees:
        said = admin(f"{named}/setup", *trees)
        check("setup finds a Python, and says what comes next", mentions(said, "by /usr/bin/python3", "apply --config"), said)
        check("in there, a user can run it", run("su", "-s", "/bin/sh", "-c", f"{one}/bin/jobcache --version", ALICE))
    admin("install -d /etc/jobcache && install -d -m 750 /var/log/jobcache")
    admin("/opt/jobcache-0.1.0/bin/jobcache show-config --example >/etc/jobcache/jobcache.yaml", *trees)
    edit("  #grace: 1h", "  grace: 1s")
    edit("  #confirm: 2m", "  confirm: 1s")
    with Cluster(name="life", root="/tmp", conf=CONF) as cluster:
        conf = found_by_default(cluster)
        said = run(f"{old_tree}/bin/jobcache", "apply")
        check("the tree's own hooks are wired by two lines", mentions(said, *two_lines(f"{old_tree}/lib")), said)
        cluster.reconfigure(two_lines(f"{old_tree}/lib"))
        use(cluster, [f"{old_tree}/bin/jobcache", "sweep"], Path("/var/lib/jobcache/off"))

        hooks = "/opt/jobcache/hooks"
        said = admin("/opt/jobcache-0.1.0/bin/jobcache apply --hooks /opt/jobcache/hooks", *trees)
        check("and so is a set that stands by itself", mentions(said, *two_lines(hooks)), said)
        cluster.reconfigure(two_lines(hooks))
        LOG.unlink()
        use(cluster, [f"{old_tree}/bin/jobcache", "sweep", "--hooks", hooks], Path(f"{hooks}/off"))
        admin("/opt/jobcache-0.1.0/bin/jobcache sweep --hooks /opt/jobcache/hooks", *trees)
        upgrade = "/opt/jobcache-0.2.0/bin/jobcache apply --hooks /opt/jobcache/hooks"
        under_load(cluster, lambda: print(admin(upgrade, *trees).splitlines()[0]))
        compiled = json.loads(Path(f"{hooks}/settings.json").read_text())["compiled"]
        check("the set is the new tree's", new_tree in compiled["package"] and new_tree in compiled["python"], compiled)
        run("rm", "-r", str(moved))
        use_after = cluster.sbatch(STEPS, "-N2", user=ALICE)
        check("jobs run when the old tree is gone", cluster.wait(use_after) == "COMPLETED")
        check("with caches", seen(use_after, cluster) == wanted(use_after), seen(use_after, cluster))
        for node in cluster.nodes:
            cluster.wait_node(node)
        check("which are reaped", not leftovers(), leftovers())
        conf.unlink()
    configless(hooks, [f"{new_tree}/bin/jobcache", "sweep", "--hooks", hooks])
    all_typed("tree")


class Configless(Cluster):
    """Its slurmds have no slurm.conf: they ask the controller for it, by munge's own socket."""

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
    """Nodes without a slurm.conf, whose /opt and /usr are read-only, as those of a stateless image are."""
    LOG.unlink()
    with Configless(name="life", conf=["SlurmctldParameters=enable_configless", *two_lines(hooks)], root="/tmp") as cluster:
        for top in ("/opt", "/usr"):
            run("mount", "--bind", top, top)
            run("mount", "-o", "remount,bind,ro", top)
        check("a configless node keeps slurm.conf in its cache", "TaskProlog=" in Path("/run/slurm/conf/slurm.conf").read_text())
        use(cluster, sweep, Path(f"{hooks}/off"), unwritable=True)


def ansible(_old: str, deb: str) -> None:
    """The role, with this host as all its hosts: installs, configures, wires; does nothing the second time."""
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

        said = play(wired=False)
        check("the role installs, and leaves slurm.conf alone", cluster.conf_file.read_text() == before, said)
        said = play(wired=True)
        check("it adds the two lines to slurm.conf, and no other", wires(before, cluster.conf_file.read_text()), said)
        until(lambda: all("got reconfigure request" in cluster.log(f"slurmd-{node}") for node in cluster.nodes))
        use(cluster, ["jobcache", "sweep"], Path("/var/lib/jobcache/off"))
        said = play(wired=True)
        check("the second time it changes nothing", "changed=0 " in said, said)
        said = play(wired=True, keep_max="24h")
        check(
            "a changed configuration is compiled",
            '"keep_max": 86400' in Path("/var/lib/jobcache/settings.json").read_text(),
            said,
        )
        check("cron sweeps as it was told", Path("/etc/default/jobcache").read_text() == "JOBCACHE_SWEEP=--node-local\n")


def wires(before: str, after: str) -> bool:
    return sorted(after.splitlines()) == sorted([*before.splitlines(), *two_lines(Deb.libexec)])


def unpacked(archive: str) -> str:
    """Unpack a tree in /opt, and return its directory."""
    name = run("tar", "--list", "-f", archive).splitlines()[0].rstrip("/")
    admin("tar -xf slurm-jobcache-0.1.0-x86_64.tar.gz -C /opt", (r"\S+\.tar\.gz", archive))
    check("what root unpacks is root's", Path(f"/opt/{name}").stat().st_uid == 0)
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
