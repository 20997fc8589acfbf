"""Variables that lead programs to a cache: ready sets for `exports_for`, and those that break jobs."""

TYPE_CHECKING = False  # importing `typing` would slow the Epilog
if TYPE_CHECKING:
    from typing import Any

# By name in `exports_for`: (variable, directory in the job's cache). `datasets` looks at no name that begins with a dot.
SETS = {
    "triton": ("TRITON_CACHE_DIR", "{cache}/.triton"),
    "torchinductor": ("TORCHINDUCTOR_CACHE_DIR", "{cache}/.torchinductor"),
    "torch_extensions": ("TORCH_EXTENSIONS_DIR", "{cache}/.torch_extensions"),
    "numba": ("NUMBA_CACHE_DIR", "{cache}/.numba"),
    "vllm": ("VLLM_CACHE_ROOT", "{cache}/.vllm"),
    "evaluate": ("HF_METRICS_CACHE", "{cache}/.metrics"),
}

_HARM = {
    "HF_HOME": "jobs lose the login token, and download models and datasets again",
    "HF_HUB_CACHE": "each job downloads models and datasets again, and offline jobs fail",
    "HUGGINGFACE_HUB_CACHE": "each job downloads models and datasets again, and offline jobs fail",
    "HF_MODULES_CACHE": "offline jobs fail to load datasets that have a script",
    "TMPDIR": "programs put sockets and locks on shared scratch, and temporary files outlive their node",
    "TORCH_HOME": "each job downloads models again, and offline jobs fail",
    "TRANSFORMERS_CACHE": "each job downloads models again, and offline jobs fail",
    "WANDB_DIR": "runs that are not uploaded yet are deleted with the job's cache",
    "XDG_CACHE_HOME": "each program of a job loses its cache, and jobs download models and datasets again",
}


def merged(keys: "dict[str, Any]", base: "dict[str, Any]") -> "dict[str, str]":
    """Return all variables to export: those of `exports_for`, then `exports`, which wins.

    keys, base: the keys of a rule and of the whole configuration; a value in the rule replaces the global one.
    """
    names = keys.get("exports_for", base.get("exports_for", []))  # compiled by version 0.1: the key is missing
    return {**dict(SETS[name] for name in names), **keys.get("exports", base["exports"])}


def warnings(tree: "dict[str, Any]") -> "list[tuple[str, str]]":
    """Given a valid configuration, return (dotted key, harm) of each variable whose export breaks jobs."""
    maps = [("exports", tree["exports"])]
    maps += [(f"rules[{at}].exports", rule.get("exports", {})) for at, rule in enumerate(tree["rules"])]
    return [(f"{key}.{name}", _HARM[name]) for key, exports in maps for name in exports if name in _HARM]
