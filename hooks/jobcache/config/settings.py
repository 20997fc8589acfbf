"""What `jobcache apply` compiled, as the Epilog and the sweep read it: settings.json, and no YAML at run time."""

import json
import os
import stat

from jobcache.cache.path_template import Template

TYPE_CHECKING = False  # `typing` is too dear for an Epilog
if TYPE_CHECKING:
    from typing import Any

    from jobcache.system.slurm import Slurm

SCHEMA = 1
CONFIG = "/etc/jobcache/jobcache.yaml"  # where an admin writes it
LIB = "/var/lib/jobcache"  # where an installed package keeps the compiled pair
FILE = "settings.json"
POLICY = "policy.sh"
OFF = "off"  # a file of this name beside the pair stops everything
_LONGEST = 1 << 20  # bytes


class SettingsError(Exception):
    """The compiled settings cannot be used; the words for a person."""


class Settings:
    """The site's settings, compiled. Durations are seconds, sizes bytes, paths absolute; None is off.

    tree: the validated configuration, nested as in jobcache.yaml, every key present. compiled: what `apply` adds:
    config (the file), cluster, python, package (a directory), hash, former (templates once in use).
    """

    def __init__(self, tree: "dict[str, Any]", compiled: "dict[str, Any]") -> None:
        self.tree = tree
        self.compiled = compiled
        self.config = str(compiled["config"])
        self.cluster = str(compiled["cluster"])
        self.python = str(compiled["python"])
        self.package = str(compiled["package"])
        self.hash = str(compiled["hash"])
        self.former: list[str] = list(compiled["former"])
        self.base: dict[str, Any] = {key: tree[key] for key in ("mode", "path", "scope", "exports", "offline")}
        self.rules: list[dict[str, Any]] = list(tree["rules"])
        self.min_uid: int = tree["min_uid"]
        self.keep_failed: float = tree["keep_failed"]
        self.keep_max: float = tree["keep_max"]
        self.task_prolog_deadline: float = tree["task_prolog"]["deadline"]
        self.task_prolog_chain: "str | None" = tree["task_prolog"]["chain"]
        self.epilog_deadline: float = tree["epilog"]["deadline"]
        self.epilog_budget: float = tree["epilog"]["budget"]
        self.store_user: "str | None" = tree["store"]["user"]
        self.store_site: "str | None" = tree["store"]["site"]
        self.store_max_size: int = tree["store"]["max_size"]
        self.store_max_age: float = tree["store"]["max_age"]
        self.log_file: "str | None" = tree["log"]["file"]
        self.log_level: str = tree["log"]["level"]
        syslog = tree["log"]["syslog"]
        self.log_socket: "str | None" = "/dev/log" if syslog is True else syslog or None
        self.run_dir: str = tree["run_dir"]
        self.slurm_conf: "str | None" = tree["slurm"]["conf"]
        self.scontrol: str = tree["slurm"]["scontrol"]
        self.slurm_timeout: float = tree["slurm"]["timeout"]

    @property
    def current(self) -> "list[str]":
        """The templates in use: the general one, then those of rules, each once."""
        texts = [str(self.base["path"]), *(str(rule["path"]) for rule in self.rules if "path" in rule)]
        return list(dict.fromkeys(texts))

    @property
    def templates(self) -> "list[Template]":
        """All templates by which there may be caches, in use first."""
        return [Template(text) for text in dict.fromkeys([*self.current, *self.former])]

    def is_node_local(self, template: "Template") -> bool:
        """Return whether the template's filesystem is each node's own, as `node_local` says."""
        return any(template.text.startswith(below.rstrip("/") + "/") for below in self.tree["node_local"])

    def dump(self) -> str:
        """Return the text of settings.json."""
        return json.dumps({"schema": SCHEMA, "compiled": self.compiled, "settings": self.tree}, indent=1, sort_keys=True) + "\n"


def slurm_client(tree: "dict[str, Any]") -> "Slurm":
    """Return the client by which Slurm is asked, as the `slurm` keys of a validated configuration say."""
    from jobcache.system.slurm import Slurm

    ask = tree["slurm"]
    return Slurm(ask["conf"], ask["squeue"], ask["scontrol"], ask["timeout"])


def load(path: str, trusted: bool = True) -> Settings:
    """Return the settings compiled into `path`. Raise SettingsError where they are missing, torn, newer than this code,
    or, with `trusted`, could have been written by anybody but us or root."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if trusted and (found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
                raise SettingsError(f"{path}: others than root may write it; `jobcache apply` puts it right")
            text = os.read(fd, _LONGEST)
        finally:
            os.close(fd)
        whole = json.loads(text)
        if whole["schema"] > SCHEMA:
            raise SettingsError(f"{path}: compiled by a newer jobcache; run this one's `jobcache apply`")
        return Settings(whole["settings"], whole["compiled"])
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}; `jobcache apply` makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: not whole ({error!r}); run `jobcache apply`") from None
