#!/bin/sh
# Runs every check there is: shellcheck, ruff, mypy, and the tests on a real Slurm cluster.
#
#   tests/run.sh [PYTEST ARGUMENT…]
#
# As root it installs the Debian packages that are missing, and runs the tests in a mount namespace of their own in
# which all but a fresh /tmp is read-only: what is tested here deletes directories as root. Before them, where no argument
# picks tests, packages are built, and one lives its life in a clean Debian of its own: packaging/test-debian.
# JOBCACHE_PYTHON names another Python than /usr/bin/python3.
set -eu
cd "$(dirname "$0")/.."

PACKAGES='slurmctld slurmd slurm-client munge busybox shellcheck strace python3-venv systemd logrotate mandoc zsh fish
mmdebstrap debhelper dh-python lintian rpm prometheus prometheus-node-exporter'
python=${JOBCACHE_PYTHON:-/usr/bin/python3}

say() { printf '\n== %s\n' "$*"; }

missing=''
for package in $PACKAGES; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "missing:$missing. Ask for: apt-get install$missing" >&2
        exit 1
    fi
    say "installing$missing"
    # Debian's own way of not starting daemons on installation: the tests start theirs.
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; trap 'rm -f "$policy"' EXIT; }
    apt-get -qq update
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null
fi

# The hooks run as ordinary users: the Python that they name has to lie where those can reach it.
venv=$PWD/.venv
if [ "$(id -u)" = 0 ] && ! setpriv --reuid 65534 --clear-groups test -x "$PWD/tests"; then venv=/var/tmp/jobcache-tests; fi
say "Python $("$python" -V) in $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
rm -rf build
"$venv/bin/pip" install -q --disable-pip-version-check --upgrade-strategy only-if-needed '.[test]' 2>&1 | grep -v '^WARNING' || true
"$venv/bin/pip" install -q --disable-pip-version-check --force-reinstall --no-deps . 2>&1 | grep -v '^WARNING' || true
rm -rf build
"$venv/bin/jobcache" --version

say shellcheck
# shellcheck disable=SC2038  # names of ours
find hooks packaging tests .ci -type f -exec awk 'FNR == 1 && /^#(!\/bin\/sh| shellcheck shell=sh)/ { print FILENAME } { nextfile }' {} + |
    xargs shellcheck
say ruff
"$venv/bin/ruff" check --no-cache .
"$venv/bin/ruff" format --no-cache --check .
say mypy
"$venv/bin/mypy" --cache-dir=/dev/null

if [ "$(id -u)" = 0 ] && [ "$#" = 0 ]; then
    say "the package in a clean Debian"
    packaging/test-debian
fi

say pytest
export PYTHONDONTWRITEBYTECODE=1
set -- "$venv/bin/pytest" -p no:cacheprovider "$@"
if [ "$(id -u)" != 0 ]; then exec "$@"; fi
fresh=$(mktemp -d /tmp/jobcache-run.XXXXXX)
chmod 1777 "$fresh"
status=0
# shellcheck disable=SC2016  # the inner shell expands
unshare --mount --propagation private sh -c '
    fresh=$1; shift
    case $PWD in /tmp/*) # a checkout in the /tmp that is hidden now
        mkdir -p "$fresh${PWD#/tmp}"
        mount --bind "$PWD" "$fresh${PWD#/tmp}" && mount -o remount,bind,ro "$fresh${PWD#/tmp}" ;;
    esac
    mount --rbind "$fresh" /tmp && mount -o remount,bind,ro / || { echo "no read-only root to be had here" >&2; exit 1; }
    cd "$PWD"
    export HOME=/tmp/home HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
    mkdir "$HOME"
    exec "$@"' sh "$fresh" "$@" || status=$?
rm -rf --one-file-system "$fresh"
exit "$status"
