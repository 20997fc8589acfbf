#!/bin/sh
# Checks this source tree.
#
#   tests/run.sh fast [PYTEST ARGUMENT…]    as any user, in a minute: linters, types, unit tests
#   tests/run.sh [PYTEST ARGUMENT…]         as root: linters, types, every test on real Slurm, the deb in a clean Debian
#
# Both create a virtual environment and install into it what setup.cfg names. With a PYTEST ARGUMENT, only the tests that it
# selects run, in one process.
#
# The full run installs missing Debian packages, and earlier versions of `datasets` beside the one that pip chooses. Its tests
# delete directories as root, so they run in mount and process namespaces of their own, in which everything except a fresh
# /tmp is read-only.
#
# JOBCACHE_PYTHON     the Python to test with (default: /usr/bin/python3, then python3 of PATH)
# JOBCACHE_WORKERS    the number of test processes (default: one for each CPU)
set -eu
cd "$(dirname "$0")/.."
root=$PWD
workers=${JOBCACHE_WORKERS:-$(nproc)}

PACKAGES='slurmctld slurmd slurm-client munge busybox strace python3-venv systemd logrotate mandoc zsh fish
mmdebstrap debhelper acl dh-python lintian rpm prometheus prometheus-node-exporter rsyslog zstd'
# The tests that the fast run leaves out, by marker (setup.cfg lists all markers).
FULL_ONLY='root or slurm or slow or packaging or busybox'
TMPFS_SIZE=4g

report() { printf '\n== %s\n' "$*"; }

# ------------------------------------------------------------------------------------------------------- what is needed

install_packages() {
    missing=''
    for package in $PACKAGES; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    report "Debian packages:$missing"
    # Debian's way to prevent that an installation starts daemons. The tests start their own.
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; trap 'rm -f "$policy"' EXIT; }
    apt-get -qq update
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null
}

choose_python() {
    if [ -n "${JOBCACHE_PYTHON-}" ]; then python=$JOBCACHE_PYTHON; return; fi
    for python in /usr/bin/python3 python3; do
        ! "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || return 0
    done
    echo 'tests/run.sh: needs Python 3.9 or later with venv (on Debian: apt-get install python3-venv), or JOBCACHE_PYTHON' >&2
    exit 1
}

choose_venv() {
    venv=$root/.venv
    [ "$(id -u)" = 0 ] || return 0
    # Tests run the hooks as ordinary users, who must be able to reach the Python of the virtual environment.
    ! setpriv --reuid 65534 --clear-groups test -x "$root/tests" || return 0
    venv=/var/tmp/jobcache-tests
    [ -e "$venv" ] || mkdir -m 755 "$venv"
    [ "$(stat -c %u "$venv")" = 0 ] || { echo "tests/run.sh: $venv does not belong to root: remove it" >&2; exit 1; }
}

pip() { # VENV ARGUMENT…
    log=$1/pip.log
    command=$1/bin/python
    shift
    "$command" -m pip -q --disable-pip-version-check "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
}

# Build the wheel, from a copy because setuptools writes into the source. Set $wheel.
build_wheel() {
    rm -rf "$venv/wheel"
    mkdir -p "$venv/wheel/source"
    cp -R README.md LICENSE setup.cfg pyproject.toml hooks "$venv/wheel/source"
    pip "$venv" wheel --no-deps --wheel-dir "$venv/wheel" "$venv/wheel/source"
    rm -rf "$venv/wheel/source"
    wheel=$(find "$venv/wheel" -name '*.whl')
}

# Install what setup.cfg names, if it has changed since.
install_requirements() {
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    PATH=$venv/bin:$PATH
    ! cmp -s setup.cfg "$venv/setup.cfg" || return 0
    report "requirements, into $venv"
    build_wheel
    pip "$venv" install "${wheel}[test,lint]"
    cp setup.cfg "$venv/setup.cfg"
}

# Install an earlier version of `datasets`, with libraries of its time, beside the others.
install_datasets() { # VERSION REQUIREMENT…
    own=$venv/datasets-$1
    [ "$(cat "$own/requirements" 2>/dev/null)" != "$*" ] || return 0
    report "datasets $1"
    "$python" -m venv "$own"
    words=$*
    shift
    pip "$own" install "datasets==${own##*-}" "$@"
    echo "$words" >"$own/requirements"
}

# -------------------------------------------------------------------------------------------------------------- the runs

# Run a command in namespaces of its own: a fresh /tmp in memory, everything else read-only, and a first process that
# reaps orphans, so that no test depends on other processes of this host.
isolated() {
    fresh=$(mktemp -d /tmp/jobcache-run.XXXXXX)
    status=0
    # shellcheck disable=SC2016  # the inner shell expands
    unshare --mount --propagation private --pid --fork --kill-child --mount-proc sh -c '
        fresh=$1 size=$2; shift 2
        mount -t tmpfs -o mode=1777,noatime,size="$size" tmpfs "$fresh" || exit 1
        case $PWD in /tmp/*) # a source tree in the /tmp that is hidden from now on
            mkdir -p "$fresh${PWD#/tmp}"
            mount --bind "$PWD" "$fresh${PWD#/tmp}" && mount -o remount,bind,ro "$fresh${PWD#/tmp}" ;;
        esac
        mount --rbind "$fresh" /tmp && mount -o remount,bind,ro / || { echo "cannot make / read-only in a namespace" >&2; exit 1; }
        cd "$PWD"
        export HOME=/tmp/home HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis PYTHONDONTWRITEBYTECODE=1
        mkdir "$HOME"
        exec "$@"' sh "$fresh" "$TMPFS_SIZE" "$venv/bin/python" "$root/tests/support/init.py" "$@" || status=$?
    rmdir "$fresh"
    return "$status"
}

fast_run() {
    report "unit tests"
    [ "$#" != 0 ] || set -- -n "$workers" tests/unit
    # The source tree, not the installed package. Bytecode is kept, but outside of the source tree.
    PYTHONPATH=$root/hooks PYTHONPYCACHEPREFIX=$venv/bytecode "$venv/bin/pytest" -p no:cacheprovider -q -m "not ($FULL_ONLY)" "$@"
}

full_run() {
    if [ "$#" != 0 ]; then isolated "$venv/bin/pytest" -p no:cacheprovider "$@"; return; fi
    # Each test process has a process and a mount namespace: tests in one cannot signal or mount in the other.
    own="unshare --mount --propagation private --pid --fork --kill-child --mount-proc"
    worker="popen//python=$own $venv/bin/python $root/tests/support/init.py $venv/bin/python"
    report "tests, in $workers processes"
    failed=0
    isolated "$venv/bin/pytest" -p no:cacheprovider -q --dist loadgroup --no-loadscope-reorder --tx "$workers*$worker" \
        -m 'not alone' || failed=$?
    report "tests that measure time: one process"
    isolated "$venv/bin/pytest" -p no:cacheprovider -q -m alone || failed=$?
    return "$failed"
}

if [ "${1-}" = fast ]; then
    shift
    choose_python
    choose_venv
    install_requirements
    tests/lint.sh "$venv"
    fast_run "$@"
elif [ "$(id -u)" != 0 ]; then
    echo 'tests/run.sh: the full run needs root, because its tests act as several users. Without root: tests/run.sh fast' >&2
    exit 1
else
    install_packages
    choose_python
    choose_venv
    install_requirements
    install_datasets 3.6.0 'huggingface_hub<1' 'pandas<3'
    install_datasets 2.21.0 'huggingface_hub<0.25' 'pandas<3' "pyarrow<18; python_version<'3.13'" "numpy<2; python_version<'3.13'"
    report "jobcache, for $("$python" -V)"
    build_wheel
    pip "$venv" install --force-reinstall --no-deps "$wheel"
    "$venv/bin/jobcache" --version
    export JOBCACHE_WHEEL="$wheel"
    tests/lint.sh "$venv"
    full_run "$@"
fi
