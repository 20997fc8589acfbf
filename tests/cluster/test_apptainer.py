"""Jobs whose programs run in containers of Apptainer, Charliecloud and podman, with the real `datasets`, on a real cluster.

The tests run where Apptainer is installed: Debian has it in sid alone. The image is an empty directory: each container mounts
/usr and the Python of the tests.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Wired
from jobcache.diagnostics import check_containers, probe_containers
from jobcache.diagnostics.check_facts import Compiled, Facts, Scratch, Wiring
from jobcache.diagnostics.finding import OK, WARNING, Finding
from support.minicluster import Cluster
from support.site_dir import Site

pytestmark = pytest.mark.skipif(shutil.which("apptainer") is None, reason="needs Apptainer: packaging/test-debian sid cluster")
USER = "irc"  # an account of every Debian, with a home below /run
GUIDE = Path(__file__).parents[2] / "docs/user-guide.md"
# The rows of a build of local data, and of the map on top of it.
PROGRAM = """
import sys
from datasets import load_dataset
rows = load_dataset("json", data_files=sys.argv[1], split="train")
print("rows", len(rows), sum(rows.map(lambda row: {"twice": 2 * row["id"]})["twice"]))
"""
RESULT = "rows 100 9900"


class Lab(Wired):
    """A cluster whose scratch Apptainer does not mount by itself: it lies below /run. home: of USER."""

    def __init__(self, site: Site, cluster: Cluster) -> None:
        super().__init__(site, cluster)
        self.home = Path(pwd.getpwnam(USER).pw_dir)
        self.scratch = str(site.scratch)
        self.image = site.dir / "image"
        for name in ("dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var/tmp"):
            (self.image / name).mkdir(parents=True)
        for name in ("group", "hosts", "localtime", "passwd", "resolv.conf"):
            (self.image / "etc" / name).touch()
        for name in ("bin", "lib", "lib64", "sbin"):
            (self.image / name).symlink_to(f"usr/{name}")

    def own(self, path: Path) -> Path:
        """Give `path` and all below it to the user."""
        for each in (path, *path.rglob("*")):
            account = pwd.getpwnam(USER)
            os.lchown(each, account.pw_uid, account.pw_gid)
        return path

    def container(self, command: str, *options: str, binds: str = "") -> str:
        """Return a command line that runs a shell command in a container."""
        mounts = ["-B", f"/usr,{sys.prefix}{binds}"]
        return shlex.join(["apptainer", "exec", *mounts, *options, str(self.image), "sh", "-c", command])

    def load(self, *options: str, binds: str = "") -> str:
        """Return a command line that loads the user's data in a container."""
        return self.container(f"{self.python} {self.home}/rows.jsonl", *options, binds=binds)

    @property
    def python(self) -> str:
        return f"{sys.executable} {self.home}/program.py"

    def lines(self, script: str, *options: str, **env: str) -> list[str]:
        """Run a job, and return the lines of its output."""
        job = self.batch(script, *options, user=USER, HOME=str(self.home), **env)
        self.wait(job)
        self.site_job = job
        return self.output(job)


@pytest.fixture(scope="module")
def _lab() -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/run")
        site = Site()
        cluster = Cluster(conf=[f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog"])
    site.configure(cluster=cluster.name)
    lab = Lab(site, cluster)
    assert not os.path.lexists(lab.home), f"{lab.home} exists: this is no tree for tests"
    try:
        with cluster:
            yield lab
    finally:
        site.close()


@pytest.fixture
def lab(_lab: Lab) -> Iterator[Lab]:
    """The cluster with the default configuration. The user has a home with data, and no cache."""
    before = dict(_lab.site.keys)
    _lab.home.mkdir()
    (_lab.home / "program.py").write_text(PROGRAM)
    (_lab.home / "rows.jsonl").write_text("".join(f'{{"id": {number}}}\n' for number in range(100)))
    _lab.own(_lab.home)
    try:
        yield _lab
    finally:
        _lab.site.keys = before
        _lab.site.configure()
        shutil.rmtree(_lab.home.resolve())
        if _lab.home.is_symlink():
            _lab.home.unlink()
        for node in _lab.cluster.nodes:
            _lab.cluster.wait_node(node, "IDLE")


def noise(lines: list[str]) -> list[str]:
    """Return the messages of Apptainer in an output."""
    return [line for line in lines if re.match(r"INFO|WARNING|ERROR|FATAL", line)]


# ------------------------------------------------------------------------------------------------------ the mount


def test_datasets_works_in_a_container(lab: Lab) -> None:
    """The private cache is used: the home stays without one. Apptainer prints nothing."""
    lines = lab.lines(f"{lab.load()}; find $HF_DATASETS_CACHE -name '*.arrow' | wc -l; ls -A {lab.home}/.cache")
    assert lines[-2] == "2" and RESULT in lines and noise(lines) == []
    lab.assert_reaped(lab.site_job, user=USER)


def test_datasets_fails_in_a_container_without_the_mount(lab: Lab) -> None:
    """So the default is `bind`."""
    lab.site.configure(containers={"apptainer": "off"})
    output = "\n".join(lab.lines(lab.load()))
    assert RESULT not in output and re.search(r"Read-only file system|No such file|Permission denied", output)


def test_steps_and_nested_steps(lab: Lab) -> None:
    """Batch script, srun on two nodes, and a shell in a step: each starts a container."""
    inside = lab.container('touch "$HF_DATASETS_CACHE/x" && echo written')
    lines = lab.lines(f"{inside}; srun -N2 -n2 {inside}; srun -N1 -n1 sh -c {shlex.quote(inside)}", "-N2")
    assert lines == ["written"] * 4


def test_script_that_sets_its_own_binds(lab: Lab) -> None:
    """As scripts do after the TaskProlog, with each variable and option."""
    data = lab.own(_made(lab.site.dir / "data"))
    seen = lab.container(f'touch "$HF_DATASETS_CACHE/x" && ls -d {data}')
    for setting in (f"SINGULARITY_BIND={data}", f"APPTAINER_BIND={data}", f"SINGULARITY_BINDPATH={data}"):
        assert lab.lines(f"export {setting}\n{seen}\nsrun -n1 {seen}")[-1] == str(data), setting
    assert lab.lines(lab.container(f'touch "$HF_DATASETS_CACHE/x" && ls -d {data}', "-B", str(data))) == [str(data)]


def test_own_bind_of_the_same_directory_wins(lab: Lab) -> None:
    """The user mounts something else on scratch, in the environment of the job, in the script, and by an option."""
    other = lab.own(_made(lab.site.dir / "other", "mine"))
    bind = f"{other}:{lab.scratch}"
    look = f"ls {lab.scratch}"
    in_environment = lab.lines(lab.container(look), APPTAINER_BIND=bind)
    assert in_environment == ["mine"]
    assert "mine" in lab.lines(f"export SINGULARITY_BIND={bind}\n{lab.container(look)}")
    assert "mine" in lab.lines(lab.container(look, "-B", bind))
    assert "mine" in lab.lines(lab.container(look, "--mount", f"type=bind,src={other},dst={lab.scratch}"))


def test_own_binds_above_and_below_scratch(lab: Lab) -> None:
    """A bind of the directory above, even read-only, and of another directory below keep their effect."""
    other = lab.own(_made(lab.site.dir / "other", "mine"))
    above = lab.scratch.rpartition("/")[0]
    write = 'touch "$HF_DATASETS_CACHE/x" && echo written'
    for options in (["-B", above], ["-B", f"{above}:{above}:ro"], ["-B", f"{lab.scratch}/{USER}"]):
        assert lab.lines(lab.container(write, *options)) == ["written"], options
    below = f"{lab.scratch}/{USER}/.cache"
    assert lab.lines(lab.container(f"ls {below}", "-B", f"{other}:{below}")) == ["mine"]


def test_own_bind_above_scratch_in_the_environment_of_the_job(lab: Lab) -> None:
    """Apptainer would have to create scratch in the directory of the user, and would fail: the job gets neither."""
    other = _made(lab.site.dir / "readonly", "mine")
    above = lab.scratch.rpartition("/")[0]
    assert lab.lines(lab.container(f"ls {above}"), SINGULARITY_BIND=f"{other}:{above}") in (
        ["mine"],
        ["INFO:    Environment variable SINGULARITY_BIND is set, but APPTAINER_BIND is preferred", "mine"],
    )


# Of another directory, also on a name that Apptainer has to create in scratch, and of the same directory read-only.
HIDING = (
    "{other}:{scratch}", "{other}:{above}", "{other}:{user}", "{other}:{scratch}/new", "{scratch}:{scratch}:ro",
    "{user}:{user}:ro",
)  # fmt: skip


@pytest.mark.parametrize("bind", HIDING)
def test_datasets_works_where_a_bind_of_the_job_hides_the_cache(lab: Lab, bind: str) -> None:
    """The job has no private cache, because containers could not use one; a bind that a script sets shows that."""
    above, user = lab.scratch.rpartition("/")[0], f"{lab.scratch}/{USER}"
    bind = bind.format(other=_made(lab.site.dir / "readonly"), scratch=lab.scratch, above=above, user=user)
    lines = lab.lines(f"{lab.load()}\necho none=$HF_DATASETS_CACHE", APPTAINER_BIND=bind)
    assert RESULT in lines and lines[-1] == "none=" and noise(lines) == []
    skipped = [event for event in lab.site.syslog.events("cache.skipped") if event["job_id"] == lab.site_job]
    assert [event["reason"] for event in skipped] == ["container_bind"]
    write = lab.container('touch "$HF_DATASETS_CACHE/x" && echo written')
    script = f"ls -d $HF_DATASETS_CACHE\nunset APPTAINER_MOUNT SINGULARITY_MOUNT\nexport APPTAINER_BIND={bind}\n{write}"
    lines = lab.lines(script)
    assert lines[0] == str(lab.cache(lab.site_job, user=USER)) and "written" not in lines


def test_job_without_a_cache_that_a_job_with_one_submits(lab: Lab) -> None:
    """Its containers start although the scratch of the inherited mount is gone."""
    inside = lab.container("echo started")
    gone = _made(lab.site.dir / "gone")
    inherited = {
        "JOBCACHE_DIR": f"{gone}/{USER}/hf-datasets-7",
        "APPTAINER_MOUNT": f"type=bind,dst={gone},src={gone}",
        "SINGULARITY_MOUNT": f"type=bind,dst={gone},src={gone}",
    }
    gone.rmdir()
    assert lab.lines(inside, JOBCACHE="off", **inherited) == ["started"]
    assert lab.lines(inside, **inherited) == ["started"]


# --------------------------------------------------------------------------------------------- the cache begins with links


def warm(lab: Lab) -> None:
    """Fill the user's own cache in a job without a private one."""
    assert RESULT in lab.lines(f"{lab.python} {lab.home}/rows.jsonl", JOBCACHE="off")
    assert list((lab.home / ".cache/huggingface/datasets").rglob("*.arrow"))


COUNT = "find $HF_DATASETS_CACHE -name '*.arrow' -type {kind} | wc -l"


@pytest.mark.parametrize("home", ["a directory", "a symlink"])
def test_links_lead_into_the_home_that_apptainer_mounts(lab: Lab, home: str) -> None:
    """Nothing is computed again, also where the home in the user database is a symlink: its target is not mounted."""
    if home == "a symlink":
        real = lab.home.rename(lab.site.dir / "real-home")
        lab.home.symlink_to(real)
    warm(lab)
    lines = lab.lines(f"{lab.load()}; {COUNT.format(kind='f')}; {COUNT.format(kind='l')}")
    assert RESULT in lines and lines[-2:] == ["0", "2"]


@pytest.mark.parametrize("option", ["--no-home", "--contain"])
def test_data_is_built_again_where_the_container_has_no_home(lab: Lab, option: str) -> None:
    """Links lead nowhere. The result is the same, and the user's own cache stays as it was."""
    warm(lab)
    before = {path: path.stat().st_mtime_ns for path in (lab.home / ".cache/huggingface/datasets").rglob("*")}
    data = lab.own(_made(lab.site.dir / "data"))
    for name in ("program.py", "rows.jsonl"):
        shutil.copy2(lab.home / name, data / name)
    lab.own(data)
    (lab.home / "rows.jsonl").unlink()
    command = f"{sys.executable} {data}/program.py {lab.home}/rows.jsonl"
    # The same path of the data in the container, so that the build is the one that is linked.
    (lab.home / "data").mkdir()
    shutil.copy2(data / "rows.jsonl", lab.home / "rows.jsonl")
    lab.own(lab.home)
    options = [option, "-B", f"{data},{lab.home}/rows.jsonl"]
    lines = lab.lines(f"{lab.container(command, *options)}; {COUNT.format(kind='f')}")
    assert RESULT in lines and lines[-1] == "2", lines
    assert {path: path.stat().st_mtime_ns for path in (lab.home / ".cache/huggingface/datasets").rglob("*")} == before


def test_container_with_another_hf_home_uses_the_cache_there(lab: Lab) -> None:
    """The job gets no private cache, because its HF_DATASETS_CACHE would hide HF_HOME of the container."""
    warm(lab)
    for script, env in (
        (lab.load(), {"APPTAINERENV_HF_HOME": f"{lab.home}/hf"}),
        (f"export SINGULARITYENV_HF_HOME={lab.home}/hf\n{lab.load()}", {}),
        (lab.load("--env", f"HF_HOME={lab.home}/hf"), {}),
    ):
        lines = lab.lines(f"{script}\necho none=$HF_DATASETS_CACHE; find {lab.home}/hf -name '*.arrow' | wc -l", **env)
        assert RESULT in lines and lines[-2:] == ["none=", "2"], script
        shutil.rmtree(lab.home / "hf")


# ------------------------------------------------------------------------------------------------- jobcache check, run


def test_remedy_of_check_lets_containers_see_scratch(lab: Lab) -> None:
    """The line for apptainer.conf has the effect of the variables where users may not mount."""
    conf = lab.site.dir / "apptainer.conf"
    text = Path("/etc/apptainer/apptainer.conf").read_text().replace("user bind control = yes", "user bind control = no")
    conf.write_text(
        text.replace("user bind control = yes", "user bind control = no") + f"bind path = /usr\nbind path = {sys.prefix}\n"
    )
    inside = shlex.join(["apptainer", "--config", str(conf), "exec", str(lab.image), "sh", "-c"])
    inside += " 'touch \"$HF_DATASETS_CACHE/x\" && echo written'"
    assert "written" not in (lines := lab.lines(inside)) and "Ignoring" in "".join(noise(lines))
    compiled = Compiled(f"{lab.site.dir}/jobcache.yaml", "")
    place = Scratch(lab.site.keys["path"], USER)

    def finding(**keys: str) -> Finding:
        wiring = Wiring(apptainer=tuple(probe_containers.apptainers([str(conf)])))
        (found,) = check_containers.containers(Facts(replace(compiled, **keys), scratch=(place,)), wiring)
        return found

    warning = finding()
    assert warning.level == WARNING
    subprocess.run(["sh", "-c", warning.remedy], check=True)
    lab.site.configure(containers={"apptainer": "off"})
    lines = lab.lines(inside)
    assert lines[-1] == "written" and "Ignoring" not in "".join(lines) and finding(apptainer="off").level == OK


def test_command_of_jobcache_run_in_a_container(lab: Lab) -> None:
    """Also without the hooks. Its cache is on the same scratch."""
    config = lab.site.dir / "jobcache.yaml"
    run = f"{sys.executable} -m jobcache.cli run --config {config} -- "
    inside = lab.container('touch "$HF_DATASETS_CACHE/x" && echo written')
    account = pwd.getpwnam(USER)
    done = subprocess.run(
        ["sh", "-c", run + inside],
        env={"PATH": os.environ["PATH"], "HOME": str(lab.home), "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "written\n", done.stderr


# -------------------------------------------------------------------------------------- other programs, by the user guide


def recipe(lab: Lab, program: str, image: str) -> str:
    """Return the command line of the user guide that starts with `program`; it writes a file in place of its program."""
    (found,) = re.findall(rf"^{program} .*$", GUIDE.read_text(), re.MULTILINE)
    writes = f'touch "$HF_DATASETS_CACHE/x" && ls -d {lab.home} && echo written'
    meant = {"/scratch/gpfs": lab.scratch, "IMAGE": image, "python train.py": f"sh -c {shlex.quote(writes)}"}
    for word, instead in meant.items():
        assert word in found
        found = found.replace(word, instead)
    return str(found)


def test_recipe_for_charliecloud(lab: Lab) -> None:
    line = recipe(lab, "ch-run", str(lab.image)).replace("-W", f"-W -b /usr -b {sys.prefix}")  # the image of the tests is empty
    assert lab.lines(line) == [str(lab.home), "written"]


def test_recipe_for_podman(lab: Lab) -> None:
    """As root in namespaces of its own, because podman needs one hierarchy of cgroups, and this machine can have two."""
    env = lab.site.task_prolog(7, user=USER, HOME=str(lab.home)).exports
    line = recipe(lab, "podman", f"--rootfs {lab.image}")
    # This tree has no network for containers, and no service that creates cgroups.
    line = line.replace("podman run", "podman run --network=host --cgroups=disabled -v /usr:/usr:ro")
    script = "[ ! -d /sys/fs/cgroup/unified ] || mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup; " + (
        f'exec setpriv --reuid {USER} --regid {USER} --clear-groups sh -c "$1"'
    )
    runtime = lab.own(_made(lab.site.dir / "runtime"))
    # podman writes into the directory of an image.
    lab.own(lab.image)
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", line],
        env={"PATH": os.environ["PATH"], "HOME": str(lab.home), "XDG_RUNTIME_DIR": str(runtime), **env},
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.stdout.split() == [str(lab.home), "written"], done.stderr


def _made(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).touch()
    return directory
