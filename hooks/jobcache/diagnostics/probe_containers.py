"""Read the configuration of containers and private directories: job_container, namespace, pyxis, enroot, Apptainer."""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from jobcache.diagnostics.check_facts import Apptainer
from jobcache.system import files

_MOST_BYTES = 1 << 24  # of one file
_MOST_DEEP = 5  # files that include each other
# By the last part of the plugin's name: its file, and how that names the directories (`dirs`; or `path`, one of `dir_confs`).
_PRIVATE = {
    "tmpfs": ("job_container.conf", re.compile(r"\bdirs\s*=\s*[\"']?([^\s\"']+)", re.IGNORECASE)),
    "linux": ("namespace.yaml", re.compile(r"(?:^|[\s{,-])[\"']?(?:dirs|path)[\"']?\s*:\s*[\"']?([^\s\"'}]+)")),
}
_DEFAULT_DIRS = ("/tmp", "/dev/shm")
_APPTAINER_CONFS = (
    "/etc/apptainer/apptainer.conf",
    "/usr/local/etc/apptainer/apptainer.conf",
    "/etc/singularity/singularity.conf",
    "/usr/local/etc/singularity/singularity.conf",
)
_DIRECTIVE = re.compile(r"^\s*([a-zA-Z _-]+?)[ \t]*=[ \t]*(.*?)\s*$")


def tmpfs_dirs(running: Mapping[str, str], conf_dir: str) -> tuple[str, ...]:
    """Return the directories that are private to each job, on any node: by job_container/tmpfs, or by namespace/tmpfs or
    namespace/linux from Slurm 25.11."""
    plugin = running.get("NamespaceType") or running.get("JobContainerType") or ""
    name, listed = _PRIVATE.get(plugin.rpartition("/")[2], ("", None))
    if listed is None:
        return ()
    text = "".join(line.partition("#")[0].rstrip("\n") + "\n" for line in _lines(f"{conf_dir}/{name}"))
    found = [path for match in listed.finditer(text) for path in match[1].split(",") if path]
    return tuple(dict.fromkeys(found)) or _DEFAULT_DIRS


def pyxis_line(path: str, depth: int = 0) -> str:
    """Return the file and the line of plugstack.conf, or of a file that it includes, that loads pyxis; "" if none does."""
    for line in _lines(path):
        words = line.partition("#")[0].split()
        if words and words[0] == "include" and len(words) > 1 and depth < _MOST_DEEP:
            for included in sorted(glob.glob(os.path.join(os.path.dirname(path), words[1]))):
                found = pyxis_line(included, depth + 1)
                if found:
                    return found
        elif any("pyxis" in word for word in words):
            return f"{path}: {' '.join(words)}"
    return ""


def enroot_mounts(enroot: str) -> Iterator[str]:
    """Yield the paths that enroot mounts into every container at the same path, by its files in mounts.d."""
    for name in sorted(glob.glob(f"{enroot}/mounts.d/*.fstab")):
        for line in _lines(name):
            words = line.partition("#")[0].split()
            if len(words) >= 2 and words[0].rstrip("/") == "/" + words[1].strip("/"):
                yield words[0].rstrip("/") or "/"


def apptainers(confs: Sequence[str] = _APPTAINER_CONFS) -> Iterator[Apptainer]:
    """Yield the configurations of Apptainer and SingularityCE that exist. confs: paths of their files."""
    for conf in confs:
        if os.path.exists(conf):
            yield _apptainer(conf)


def _apptainer(conf: str) -> Apptainer:
    """Return the configuration in a file. The first of several lines with one switch counts."""
    binds: list[str] = []
    switches: dict[str, str] = {}
    for name, value in (found.groups() for line in _lines(conf) if (found := _DIRECTIVE.match(line))):
        outside, inside, options = [*value.split(":"), "", ""][:3]
        if name != "bind path":
            switches.setdefault(name, value)
        elif outside and inside in ("", outside) and options != "ro":
            binds.append(outside.rstrip("/") or "/")
    user_binds, home = (switches.get(name) != "no" for name in ("user bind control", "mount home"))
    return Apptainer(conf, tuple(binds), user_binds, home)


def _lines(path: str) -> list[str]:
    """Return the lines of a file, none if it cannot be read."""
    try:
        return files.read_text(path, _MOST_BYTES).splitlines(keepends=True)
    except OSError:
        return []
