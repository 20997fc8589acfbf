#!/bin/sh
# Tests the packages on every supported system, one after the other, each with the Slurm and the Python of that system.
#
#   packaging/test-matrix.sh
set -u
cd "$(dirname "$0")/.." || exit

failed=0 passed=0
trial() {
    printf '\n=== %s\n' "$*"
    if "$@"; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        printf '=== FAILED: %s\n' "$*"
    fi
}

trial packaging/test-debian bookworm deb  # Slurm 22.05, Python 3.11
trial packaging/test-debian trixie deb    # Slurm 24.11, Python 3.13
trial packaging/test-debian bullseye tree # Slurm 20.11, Python 3.9
trial packaging/test-debian trixie tree
trial packaging/test-debian bookworm rpm  # by dnf
trial packaging/test-debian bookworm opt  # by zypper
trial packaging/test-debian bookworm ansible

printf '\n%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
