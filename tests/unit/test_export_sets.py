"""The variables that a site exports: sets for further programs, and those that break jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobcache.config import configuration, export_sets, policy, settings
from jobcache.config.keys import schema
from jobcache.config.settings import Settings

GUIDE = Path(__file__).parents[2] / "docs/admin-guide.md"
COMPILED = {"config": "/c", "cluster": "c", "python": "/p", "package": "/k", "hash": "h", "former": []}


def loaded(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "jobcache.yaml"
    file.write_text(text)
    return Settings(configuration.load(str(file)).tree, dict(COMPILED))


def test_schema_allows_each_set_and_no_other() -> None:
    assert schema()["definitions"]["export_set"]["enum"] == list(export_sets.SETS)


@pytest.mark.parametrize("name", export_sets.SETS)
def test_each_set_adds_its_variable_below_the_cache(tmp_path: Path, name: str) -> None:
    """Its directory begins with a dot: `datasets` takes no such directory for a dataset."""
    variable, place = export_sets.SETS[name]
    site = loaded(tmp_path, f"exports_for: [{name}]")
    assert site.base["exports"] == {"HF_DATASETS_CACHE": "{cache}", variable: place}
    assert place.startswith("{cache}/.")
    assert f'"$1" {variable} "${{{variable}-}}" "$jc_export_dir"' in policy.render(site)


def test_exports_wins_over_a_set(tmp_path: Path) -> None:
    site = loaded(tmp_path, 'exports_for: [triton]\nexports: {TRITON_CACHE_DIR: "{cache}/mine"}')
    assert site.base["exports"] == {"TRITON_CACHE_DIR": "{cache}/mine"}


RULES = """
exports_for: [numba]
rules:
  - match: {partition: [a]}
    exports_for: [triton]
  - match: {partition: [b]}
    exports: {HF_DATASETS_CACHE: "{cache}"}
  - match: {partition: [c]}
    exports_for: []
  - match: {partition: [d]}
    scope: node
"""


def test_rule_replaces_the_list_or_the_map(tmp_path: Path) -> None:
    """A rule that has neither leaves the global variables in force."""
    names: list[Any] = [rule.get("exports", {}).keys() for rule in loaded(tmp_path, RULES).rules]
    datasets = "HF_DATASETS_CACHE"
    assert names == [{datasets, "TRITON_CACHE_DIR"}, {datasets, "NUMBA_CACHE_DIR"}, {datasets}, set()]


def test_settings_of_an_older_version_have_no_sets(tmp_path: Path) -> None:
    """The Epilog of a new version runs with them until `jobcache apply`."""
    tree = loaded(tmp_path, "").tree
    del tree["exports_for"]
    assert settings.Settings(tree, dict(COMPILED)).base["exports"] == {"HF_DATASETS_CACHE": "{cache}"}


HARMFUL = {
    "HF_HOME": "login token",
    "HF_HUB_CACHE": "offline jobs fail",
    "HF_MODULES_CACHE": "have a script",
    "HUGGINGFACE_HUB_CACHE": "offline jobs fail",
    "TMPDIR": "sockets",
    "TORCH_HOME": "offline jobs fail",
    "TRANSFORMERS_CACHE": "offline jobs fail",
    "WANDB_DIR": "not uploaded",
    "XDG_CACHE_HOME": "download",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_variable_that_breaks_jobs_is_reported_with_its_harm(tmp_path: Path, name: str) -> None:
    """In `exports` of the configuration, and of a rule. The guide names it too."""
    text = f'exports: {{{name}: "{{cache}}/x", X: "{{cache}}/y"}}\n'
    text += f'rules:\n  - match: {{user: [a]}}\n    exports: {{{name}: "{{cache}}/t"}}\n'
    found = dict(export_sets.warnings(loaded(tmp_path, text).tree))
    assert set(found) == {f"exports.{name}", f"rules[0].exports.{name}"}
    assert all(HARMFUL[name] in harm for harm in found.values())
    assert name in GUIDE.read_text()


@pytest.mark.parametrize("name", export_sets.SETS)
def test_guide_has_symptom_and_price_of_each_set(name: str) -> None:
    (row,) = [line for line in GUIDE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == export_sets.SETS[name][0] and len(cells) == 4 and all(cells)


def test_sets_are_not_reported(tmp_path: Path) -> None:
    assert export_sets.warnings(loaded(tmp_path, f"exports_for: [{', '.join(export_sets.SETS)}]").tree) == []
