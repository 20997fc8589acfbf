#!/bin/sh
# Tests the packages, and this source on real clusters, on every supported system, one after the other, each with the Slurm and
# the Python of that system. It prints the time and the counts of each trial.
#
#   packaging/test-matrix.sh [PATTERN]      for example 'sid *'; default: all trials
set -u
cd "$(dirname "$0")/.." || exit
pattern=${1:-*}

log=$(mktemp) || exit
trap 'rm -f "$log"' EXIT
failed=0 passed=0 summary=''
trial() { # packaging/test-debian SUITE FORM
    # shellcheck disable=SC2254  # a pattern
    case "$2 $3" in $pattern) ;; *) return ;; esac
    printf '\n=== %s\n' "$*"
    begin=$(date +%s)
    # The status of the trial, not of tee.
    { { "$@" && echo ok >"$log.ok"; } 2>&1 || :; } | tee "$log"
    result=FAILED
    if [ -e "$log.ok" ]; then result=passed passed=$((passed + 1)); else failed=$((failed + 1)); fi
    rm -f "$log.ok"
    counts=$(grep -E '^([0-9]+ [a-z]+, )*[0-9]+ (passed|failed|skipped|errors?)' "$log" | tail -n 1)
    summary="$summary$result  $2 $3, $(($(date +%s) - begin)) s: ${counts:-no counts}
"
}

trial packaging/test-debian bookworm deb     # Slurm 22.05, Python 3.11
trial packaging/test-debian trixie deb       # Slurm 24.11, Python 3.13
trial packaging/test-debian sid deb          # Slurm 26.05, Python 3.14 as this is written
trial packaging/test-debian bullseye tree    # Slurm 20.11, Python 3.9
trial packaging/test-debian trixie tree
trial packaging/test-debian bookworm rpm     # by dnf
trial packaging/test-debian bookworm opt     # by zypper
trial packaging/test-debian bookworm ansible
trial packaging/test-debian bullseye cluster # tests/run.sh has the cluster tests on the Slurm of its host, Debian 12 or later
trial packaging/test-debian trixie cluster
trial packaging/test-debian sid cluster      # also Apptainer, Charliecloud and podman

printf '\n%s\n%s passed, %s failed\n' "$summary" "$passed" "$failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
