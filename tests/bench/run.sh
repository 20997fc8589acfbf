#!/bin/sh
# Measure the costs of the hooks, as ratios to baselines: programs beside which they run, or which they replace.
#
#   tests/bench/run.sh [--quick] [--json FILE] [--markdown FILE] [SECTION…]
#
# SECTION is one of task-prolog, epilog, at-once, tree, slow, large, cluster. By default all sections run, in six minutes.
# --quick takes fewer and smaller samples. Needs root, for users and mounts, and the packages that tests/run.sh installs.
# JOBCACHE_PYTHON names a Python with these packages; the hooks use this Python as well.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for python in "${JOBCACHE_PYTHON:-}" "$here/../../.venv/bin/python" /var/tmp/jobcache-tests/bin/python; do
    [ -x "$python" ] && exec "$python" "$here/hook_costs.py" "$@"
done
echo "no Python found: run tests/run.sh, which installs one, or set JOBCACHE_PYTHON" >&2
exit 1
