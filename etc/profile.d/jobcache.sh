# shellcheck shell=sh
# For shells in a job that Slurm starts without a TaskProlog: the shell of salloc (without use_interactive_step), and ssh
# sessions by pam_slurm_adopt. It asks jobcache's TaskProlog for the exports of the job and sets them. Copy it to
# /etc/profile.d. A cache that it makes on a login node is reaped by the sweep.

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
    if [ -n "$jobcache_job" ]; then
        while IFS= read -r jobcache_line; do
            case $jobcache_line in
            'export '*) export "${jobcache_line#export }" ;;
            'unset '*) unset "${jobcache_line#unset }" ;;
            esac
        done <<END
$(SLURM_JOB_ID=$jobcache_job SLURM_JOB_UID=$(id -u) SLURM_JOB_USER=$(id -un) SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \
    SLURMD_NODENAME=${SLURMD_NODENAME:-$(uname -n | cut -d. -f1)} "$jobcache_task_prolog" 2>/dev/null)
END
    fi
    unset jobcache_job jobcache_line
fi
unset jobcache_task_prolog
