#!/bin/sh
# Demonstrates slurm-jobcache: a temporary Slurm cluster, one two-node job, its cache, its events, an empty scratch.
#
#   packaging/try.sh
#
# As root on Debian it installs the packages that it needs. As another user it reports which are missing. Everything else
# happens below one temporary directory, which it removes at the end.
set -eu
cd "$(dirname "$0")/.."

PACKAGES='slurmctld slurmd slurm-client munge python3-venv'

report() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# The hooks run as ordinary users, who cannot reach a Python below /root.
python=/usr/bin/python3
[ -x "$python" ] || python=python3

missing=''
for program in slurmctld slurmd srun munged; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing="$missing $program"
done
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing:$missing. On Debian: apt-get install $PACKAGES" >&2
        exit 1
    fi
    report "Installing the Debian packages $PACKAGES (without starting their daemons)"
    policy=/usr/sbin/policy-rc.d
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod +x "$policy"; trap 'rm -f "$policy"' EXIT; }
    apt-get -qq update
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $PACKAGES >/dev/null
    [ "$(head -n 2 "$policy" | tail -n 1)" != 'exit 101' ] || rm -f "$policy"
fi

dir=$(mktemp -d /tmp/jobcache-try.XXXXXX)
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
chmod 755 "$dir"

report "Installing slurm-jobcache into $dir/venv, with its dependencies from PyPI"
"$python" -m venv "$dir/venv"
mkdir "$dir/source"
cp -R README.md LICENSE setup.cfg pyproject.toml hooks "$dir/source"
"$dir/venv/bin/pip" install -q --disable-pip-version-check "$dir/source" 2>"$dir/pip.err" || { cat "$dir/pip.err" >&2; exit 1; }
"$dir/venv/bin/jobcache" --version

mkdir "$dir/scratch" "$dir/hooks"
chmod 1777 "$dir/scratch"
cat >"$dir/jobcache.yaml" <<YAML
path: $dir/scratch/{user}/.cache/hf-datasets-{job_id}
min_uid: 1
run_dir: $dir/run
log: {file: $dir/events.jsonl, syslog: false}
YAML
cat >"$dir/job.sh" <<'JOB'
#!/bin/sh
srun sh -c 'echo "$SLURMD_NODENAME: HF_DATASETS_CACHE=$HF_DATASETS_CACHE"
            mkdir -p "$HF_DATASETS_CACHE/json" && head -c 1000000 /dev/zero >"$HF_DATASETS_CACHE/json/$SLURMD_NODENAME.arrow"'
find "$HF_DATASETS_CACHE" | sort
JOB

# This script runs while the cluster is up. Its slurm.conf has the two lines: TaskProlog= and Epilog=.
cat >"$dir/show.sh" <<'SHOW'
set -eu
dir=$1
report() { printf '\n\033[1m%s\033[0m\n' "$*"; }
report 'A cluster of two nodes is up:'
sinfo
report "jobcache apply --config jobcache.yaml --hooks hooks"
"$dir/venv/bin/jobcache" apply --config "$dir/jobcache.yaml" --hooks "$dir/hooks"
report "sbatch -N2 job.sh"
as=''
[ "$(id -u)" != 0 ] || as='--uid=nobody --gid=nogroup'
# shellcheck disable=SC2086  # two options, or no option
job=$(sbatch --parsable --wait $as -N2 -D / -o "$dir/scratch/job.out" "$dir/job.sh") || { cat "$dir/scratch/job.out"; exit 1; }
cat "$dir/scratch/job.out"
rm -f "$dir/scratch/job.out"
until [ "$(sinfo -h -o %T)" = idle ]; do sleep 0.1; done
report "Job $job is over. Its event:"
"$dir/venv/bin/python" -m json.tool --json-lines --no-ensure-ascii "$dir/events.jsonl"
report 'Left on scratch, besides the directories of the user:'
find "$dir/scratch" -mindepth 1 ! -name nobody ! -name .cache ! -name "$(id -un)" | grep . || echo "(nothing)"
SHOW
PATH=$PATH:/usr/sbin:/sbin "$python" tests/support/minicluster.py --name try --hooks "$dir/hooks" -- sh "$dir/show.sh" "$dir"
report "Done. README.md describes the installation on a cluster."
