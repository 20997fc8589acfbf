# shellcheck shell=sh
# For shells in a job that Slurm starts without a TaskProlog: the shell of salloc (without use_interactive_step), and ssh
# sessions by pam_slurm_adopt. It asks jobcache's TaskProlog for the exports of the job and sets them. Copy it to
# /etc/profile.d. salloc starts no login shell: where /etc/bash.bashrc does not read /etc/profile.d, as on Debian, source the
# copy there too. A cache that it makes on a login node is reaped by the sweep.

jobcache_task_prolog=/usr/libexec/jobcache/task-prolog

# An ssh session has no SLURM_JOB_ID; its cgroup names the job. Tasks have SLURM_PROCID: their TaskProlog has run already.
if [ -z "${SLURM_PROCID-}${JOBCACHE_DIR-}" ] && [ -x "$jobcache_task_prolog" ]; then
    jobcache_job=${SLURM_JOB_ID-}
    if [ -z "$jobcache_job" ] && [ -n "${SSH_CONNECTION-}" ]; then
        while IFS= read -r jobcache_line; do
            case $jobcache_line in
            */job_[0-9]*) jobcache_job=${jobcache_line##*/job_} jobcache_job=${jobcache_job%%/*} ;;
            esac
        done </proc/self/cgroup
    fi
    case $jobcache_job in *[!0-9]*) jobcache_job='' ;; esac
    if [ -n "$jobcache_job" ]; then
        while IFS= read -r jobcache_line; do
            jobcache_name=${jobcache_line#* } jobcache_name=${jobcache_name%%=*}
            case $jobcache_name in '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac # at such a name, some shells exit
            case $jobcache_line in
            'export '*=*) export "${jobcache_line#export }" ;;
            'unset '*) unset "$jobcache_name" ;;
            esac
        done <<END
$(SLURM_JOB_ID=$jobcache_job SLURM_JOB_UID=$(id -u) SLURM_JOB_USER=$(id -un) SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \
    SLURMD_NODENAME=${SLURMD_NODENAME:-$(uname -n | cut -d. -f1)} "$jobcache_task_prolog" 2>/dev/null)
END
    fi
    unset jobcache_job jobcache_line jobcache_name
fi
unset jobcache_task_prolog
