#!/bin/sh
# Runs the linters and the type checker.
#
#   tests/lint.sh [VENV]    the virtual environment that has them (default: .venv, which tests/run.sh creates)
set -eu
cd "$(dirname "$0")/.."
venv=${1:-.venv}
PATH=$venv/bin:$PATH

report() { printf '\n== %s\n' "$*"; }

report shellcheck
# shellcheck disable=SC2038  # no name in this tree has a blank
find hooks packaging tests .ci -type f -exec awk 'FNR == 1 && /^#!\/bin\/sh/ { print FILENAME } { nextfile }' {} + |
    xargs shellcheck
report ruff
ruff check --quiet --cache-dir "$venv/ruff-cache" .
ruff format --quiet --cache-dir "$venv/ruff-cache" --check .
report vocabulary
tests/vocabulary.sh
report mypy
mypy --cache-dir "$venv/mypy-cache"
