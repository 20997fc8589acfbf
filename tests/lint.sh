#!/bin/sh
# Runs the linters and the type checker.
#
#   tests/lint.sh [VENV]    the virtual environment that has them (default: .venv, which tests/run.sh creates)
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
PATH=$venv/bin:$PATH

# Replace the list by "." when every file follows the vocabulary of docs/contributing.md.
CODESPELL_PATHS='.ci .editorconfig .github .pre-commit-config.yaml docs/CHANGELOG.md docs/compatibility.md docs/contributing.md
docs/architecture.md docs/decisions docs/failure-modes.md docs/glossary.md docs/man/jobcache-hooks.in docs/promises.md docs/releasing.md docs/security.md docs/store.md
docs/user-guide.md README.md etc hooks packaging pyproject.toml ruff.toml tests/cluster/conftest.py tests/conftest.py
tests/lint.sh tests/packaging tests/run.sh tests/support/init.py tests/unit/test_init.py'

report() { printf '\n== %s\n' "$*"; }

report shellcheck
# shellcheck disable=SC2038  # no name in this tree has a blank
find hooks etc packaging tests .ci -type f -exec awk 'FNR == 1 && /^#(!\/bin\/sh| shellcheck shell=sh)/ { print FILENAME } { nextfile }' {} + |
    xargs shellcheck
report ruff
ruff check --quiet --cache-dir "$venv/ruff-cache" .
ruff format --quiet --cache-dir "$venv/ruff-cache" --check .
report codespell
# shellcheck disable=SC2086  # a list of names
codespell $CODESPELL_PATHS
report mypy
if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    mypy --cache-dir "$venv/mypy-cache"
else
    echo 'not run: the stubs for Python 3.9 are out of date'
fi
