# shellcheck shell=sh
# Makes a job's cache, or joins it, where Python is missing or broken: the work of prepare.py in POSIX sh, without a store.
#
# The child jc_make_in_shell of task-prolog reads this file, so that it has the names of task-prolog and policy.sh. It runs as
# the user, within the deadline, and exits with jc_ready or jc_declined. It needs mkdir, rmdir, mv -T, rm, ls and date.
# The last line starts it: a file that is cut short does nothing.

jc_make_cache() {
    umask 077
    jc_parent=${jc_job_dir%/*}
    jc_is_reachable "$jc_parent" || exit "$jc_declined"
    /bin/mkdir -p "$jc_parent"
    [ -O "$jc_parent" ] || jc_is_owned_by_root "$jc_parent" || exit "$jc_declined"
    read -r jc_nonce </proc/sys/kernel/random/uuid || exit "$jc_declined"
    jc_nonce=${jc_nonce%%-*}${jc_nonce##*-} jc_new_dir=$jc_parent/.jobcache-new-$jc_job_id-$jc_nonce
    if [ "$jc_first_task" = yes ]; then jc_discard_stale_cache
    elif jc_join; then exit "$jc_ready"
    fi
    if [ -e "$jc_job_dir" ] && ! jc_is_replaceable; then exit "$jc_declined"; fi
    /bin/mkdir "$jc_new_dir" || exit "$jc_declined"
    jc_fill_new_dir && jc_move_into_place && exit "$jc_ready"
    jc_remove_new_dir
    jc_join && exit "$jc_ready" # another task was faster
    exit "$jc_declined"
}

# PATH: fail if it leads through a symlink that root does not own. The Epilog follows no such symlink, so it could not reap a
# cache beyond one.
jc_is_reachable() {
    jc_prefix='' jc_remaining=${1#/}/
    while [ -n "$jc_remaining" ]; do
        jc_prefix=$jc_prefix/${jc_remaining%%/*} jc_remaining=${jc_remaining#*/}
        if [ -h "$jc_prefix" ]; then jc_is_owned_by_root "$jc_prefix" || return 1; fi
    done
}

jc_is_owned_by_root() {
    set -f
    # shellcheck disable=SC2046 # its words: mode, links, owner
    set -- $(/bin/ls -ldn "$1")
    [ "$3" = 0 ]
}

# Succeed if the job's directory is the user's, a directory itself, and without a record.
jc_is_replaceable() {
    [ -O "$jc_job_dir" ] && [ ! -h "$jc_job_dir" ] && [ ! -e "$jc_job_dir/.jobcache/id" ]
}

# The first task of a run finds a cache with its own job id only if an earlier job had that id. The task that renames nodes/
# owns that cache, and moves it to trash.
jc_discard_stale_cache() {
    jc_id_line=''
    read -r jc_id_line <"$jc_job_dir/.jobcache/id"
    case $jc_id_line in "$jc_cluster $jc_job_id "*" $jc_uid") ;; *) return 1 ;; esac
    [ -O "$jc_job_dir" ] && [ ! -h "$jc_job_dir" ] &&
        /bin/mv -T "$jc_job_dir/.jobcache/nodes" "$jc_job_dir/.jobcache/nodes-$jc_nonce" &&
        /bin/mv -T "$jc_job_dir" "$jc_parent/.jobcache-trash-$jc_job_id-$jc_nonce"
}

# Write the record: id, job.json, and nodes/ with the lease of this node.
jc_fill_new_dir() {
    read -r jc_boot </proc/sys/kernel/random/boot_id
    read -r jc_uptime _ </proc/uptime
    jc_created_at=$(/bin/date -u +%Y-%m-%dT%H:%M:%SZ)
    # JSON: a name that would need an escape is left out.
    case $jc_user in *[\"\\]*) jc_json_names='' ;; *) jc_json_names=", \"user\": \"$jc_user\"" ;; esac
    case $jc_node in *[\"\\]*) ;; *) jc_json_names="$jc_json_names, \"node\": \"$jc_node\"" ;; esac
    /bin/mkdir "$jc_new_dir/.jobcache" "$jc_new_dir/.jobcache/nodes" &&
        printf '%s\n' "$jc_cluster $jc_job_id $jc_run $jc_uid" >"$jc_new_dir/.jobcache/id" &&
        printf '{"schema": 1, "cluster": "%s", "job_id": %s, "run": %s, "uid": %s, "created_at": "%s"%s, "policy": "%s"}\n' \
            "$jc_cluster" "$jc_job_id" "$jc_run" "$jc_uid" "$jc_created_at" "$jc_json_names" "$jc_policy_hash" \
            >"$jc_new_dir/.jobcache/job.json" &&
        printf '%s %s\n' "$jc_boot" "$jc_uptime" >"$jc_new_dir/.jobcache/nodes/$jc_node" || return 1
    [ "$jc_keep" = no ] || printf '' >"$jc_new_dir/.jobcache/keep"
}

# -T: never into a directory that exists. The rename replaces an empty directory, and no other. If the job's script made the
# directory again at a path that this hook exported, the record alone moves into it.
jc_move_into_place() {
    /bin/mv -T "$jc_new_dir" "$jc_job_dir" && return 0
    [ "$jc_known_path" = yes ] || return 1
    /bin/mv -T "$jc_new_dir/.jobcache" "$jc_job_dir/.jobcache" && /bin/rmdir "$jc_new_dir"
}

# Remove by name only files that jc_fill_new_dir made.
jc_remove_new_dir() {
    for jc_file in "nodes/$jc_node" id job.json keep; do /bin/rm -f "$jc_new_dir/.jobcache/$jc_file"; done
    /bin/rmdir "$jc_new_dir/.jobcache/nodes" "$jc_new_dir/.jobcache" "$jc_new_dir"
}

jc_make_cache
