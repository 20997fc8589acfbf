#!/bin/sh
# What the hooks cost, as ratios to what they stand beside or replace, measured side by side.
#
#   tests/bench/run.sh [--quick] [--json FILE] [--markdown FILE] [SECTION…]
#
# SECTION is one of task-prolog, epilog, at-once, tree, slow, large, cluster; all of them, in six minutes, unless some are
# named. --quick takes fewer and smaller samples. Needs root, for users and mounts, and what tests/run.sh installs;
# JOBCACHE_PYTHON names a Python that has it, which the hooks run with as well.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for python in "${JOBCACHE_PYTHON:-}" "$here/../../.venv/bin/python" /var/tmp/jobcache-tests/bin/python; do
    [ -x "$python" ] && exec "$python" "$here/hook_costs.py" "$@"
done
echo "no Python to run with: tests/run.sh makes one, or set JOBCACHE_PYTHON" >&2
exit 1
