"""The compiled settings, which the Epilog and the sweep read: settings.json, without YAML at run time."""

import json
import os

from jobcache.cache import write_access
from jobcache.cache.path_template import Template
from jobcache.config import export_sets

TYPE_CHECKING = False  # importing `typing` would slow the Epilog
if TYPE_CHECKING:
    from typing import Any

    from jobcache.system.slurm import Slurm

SCHEMA = 1
CONFIG = "/etc/jobcache/jobcache.yaml"  # the default configuration file
LIB = "/var/lib/jobcache"  # the compiled settings and policy of an installed package
FILE = "settings.json"
POLICY = "policy.sh"
OFF = "off"  # a file of this name beside the settings turns everything off
_SIZE_LIMIT = 1 << 20  # bytes


class SettingsError(Exception):
    """The compiled settings cannot be used. The message has the reason and the next step."""


class Settings:
    """The site's compiled settings. Durations are seconds, sizes bytes, paths absolute; None means off.

    tree: the validated configuration, nested as in jobcache.yaml, with every key.
    base, rules: the keys that a rule may replace, and the rules; `exports` includes the variables of `exports_for`.
    compiled: added by `jobcache apply`: config (the file), cluster, python, package (a directory), hash, former (templates
    of earlier configurations).
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
        self.base: dict[str, Any] = {key: tree[key] for key in ("mode", "path", "scope", "offline")}
        self.base["inherit"] = tree.get("inherit", "off")  # compiled by version 0.1: the key is missing
        self.base["containers"] = tree.get("containers", {"apptainer": "off"})  # the same
        self.base["exports"] = export_sets.merged(tree, tree)
        self.rules: list[dict[str, Any]] = [
            {**rule, "exports": export_sets.merged(rule, tree)} if rule.keys() & {"exports", "exports_for"} else rule
            for rule in tree["rules"]
        ]
        self.inherit_max_builds: int = tree.get("inherit_max_builds", 0)
        self.history: bool = tree.get("history", "off") == "on"  # compiled by version 0.1: the key is missing
        self.min_uid: int = tree["min_uid"]
        self.keep_failed: float = tree["keep_failed"]
        self.keep_max: float = tree["keep_max"]
        self.task_prolog_deadline: float = tree["task_prolog"]["deadline"]
        self.task_prolog_chain: "str | None" = tree["task_prolog"]["chain"]
        self.epilog_deadline: float = tree["epilog"]["deadline"]
        self.epilog_budget: float = tree["epilog"]["budget"]
        self.store_user: "str | None" = tree["store"]["user"]
        self.store_site: "str | None" = tree["store"]["site"]
        self.store_publish: str = tree["store"].get("publish", "label")  # compiled by version 0.1: the key is missing
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
        """The templates in use, each once: the global one, then those of rules."""
        texts = [str(self.base["path"]), *(str(rule["path"]) for rule in self.rules if "path" in rule)]
        return list(dict.fromkeys(texts))

    @property
    def templates(self) -> "list[Template]":
        """All templates by which caches can exist: first those in use, then the former ones."""
        return [Template(text) for text in dict.fromkeys([*self.current, *self.former])]

    def is_node_local(self, template: "Template") -> bool:
        """Return whether, by `node_local`, each node has its own filesystem at the template's path."""
        return any(template.text.startswith(below.rstrip("/") + "/") for below in self.tree["node_local"])

    def dump(self) -> str:
        """Return the text of settings.json."""
        return json.dumps({"schema": SCHEMA, "compiled": self.compiled, "settings": self.tree}, indent=1, sort_keys=True) + "\n"


def slurm_client(tree: "dict[str, Any]") -> "Slurm":
    """Return the client of Slurm's commands, by the `slurm` keys of a validated configuration."""
    from jobcache.system.slurm import Slurm

    commands = tree["slurm"]
    return Slurm(commands["conf"], commands["squeue"], commands["scontrol"], commands["timeout"])


def load(path: str, trusted: bool = True) -> Settings:
    """Return the settings in the file at `path`.

    trusted: refuse a file that users other than root and the caller can write.
    Raise SettingsError if the file is missing, damaged, refused, or compiled by a newer jobcache.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if trusted and write_access.weakness(os.fstat(fd), (0, os.geteuid())):
                raise SettingsError(f"{path}: users other than root can write this file; run `jobcache apply`")
            text = os.read(fd, _SIZE_LIMIT)
        finally:
            os.close(fd)
        whole = json.loads(text)
        if whole["schema"] > SCHEMA:
            raise SettingsError(f"{path}: compiled by a newer jobcache; run `jobcache apply` of the installed version")
        return Settings(whole["settings"], whole["compiled"])
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the settings: {error.strerror}; run `jobcache apply`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path}: the settings are damaged ({error!r}); run `jobcache apply`") from None
