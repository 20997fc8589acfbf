# shellcheck shell=sh
# Makes a job's cache, or joins it, where Python is missing or broken: the work of prepare.py in POSIX sh, without a store.
#
# The child jc_make_in_shell of task-prolog reads this file, so that it has the names of task-prolog and policy.sh. It runs as
# the user, within the deadline, and exits with jc_ready, jc_declined, jc_uninherited or jc_other_home. It needs mkdir, chmod, rmdir,
# mv -T, ln, rm, ls and date, and in a user namespace cat.
# The last line starts it: a file that is cut short does nothing.

jc_make_cache() {
    umask 077
    jc_source='' jc_home_name=''
    jc_read_user_namespace
    jc_sees_scratch || exit "$jc_declined"
    jc_may_begin_empty || exit "$jc_uninherited"
    if [ -n "${jc_home_dir-}" ]; then # only prepare.py can compare HOME with the account
        jc_join && jc_exit_joined
        exit "$jc_declined"
    fi
    jc_parent=${jc_job_dir%/*}
    jc_make_parent || exit "$jc_declined"
    read -r jc_nonce </proc/sys/kernel/random/uuid || exit "$jc_declined"
    jc_nonce=${jc_nonce%%-*}${jc_nonce##*-} jc_new_dir=$jc_parent/.jobcache-new-$jc_job_id-$jc_nonce
    if [ "$jc_first_task" = yes ]; then jc_discard_stale_cache; fi
    jc_join && jc_exit_joined
    if [ -e "$jc_job_dir" ] && ! jc_is_replaceable; then exit "$jc_declined"; fi
    jc_make_directory "$jc_new_dir" || exit "$jc_declined"
    jc_fill_new_dir && jc_move_into_place && exit "$jc_ready"
    jc_remove_new_dir
    jc_join && jc_exit_joined # another task was faster
    exit "$jc_declined"
}

# After jc_join, which enters .jobcache: exit. The own directory of a node or task may be missing, by jc_may_begin_empty.
jc_exit_joined() {
    jc_check_beginning
    case $? in "$jc_other_home") exit "$jc_other_home" ;; *) exit "$jc_ready" ;; esac
}

# This script cannot link the builds of the user's own cache, and a job may need them. Succeed if that cache, which `datasets`
# would use without jobcache, has no directory but downloads/, or if the directory of this task exists. `datasets` obeys empty
# variables, which lead to a relative path.
jc_may_begin_empty() {
    [ "$jc_inherit" = on ] || return 0
    [ "$jc_first_task" = yes ] || [ ! -e "$jc_export_dir" ] || return 0
    case $jc_newline$jc_exports in *"${jc_newline}export HF_DATASETS_CACHE="*) ;; *) return 0 ;; esac
    jc_tilde='~'
    jc_source=${HF_HOME-${XDG_CACHE_HOME-$jc_tilde/.cache}/huggingface}
    case $jc_source in "$jc_tilde" | "$jc_tilde"/*) jc_source=${HOME-.}${jc_source#?} ;; esac
    case $jc_source in /*) ;; *) return 1 ;; esac
    set +f
    for jc_found in "$jc_source/datasets"/*/; do
        case $jc_found in */datasets/downloads/ | */datasets/'*'/) ;; *) [ ! -d "$jc_found" ] || return 1 ;; esac
    done
}

# Set what file_owners.py knows: jc_euid, jc_in_container, jc_roots_uid, jc_hidden_uid (the uid that files of unmapped users have)
# and jc_hidden_root (the same if root is one of these). An uid that no file has is "-".
jc_read_user_namespace() {
    jc_euid=$jc_uid jc_in_container=no jc_roots_uid=0 jc_hidden_uid=- jc_hidden_root=-
    while read -r jc_key _ jc_id _; do
        case $jc_key in Uid:) jc_euid=$jc_id; break ;; esac
    done </proc/self/status
    if [ "$jc_euid" = 0 ] && [ "$jc_uid" != 0 ]; then jc_in_container=yes jc_roots_uid=-; fi
    [ -r /proc/self/uid_map ] || return 0
    jc_first_ids=''
    while read -r jc_key _ jc_id; do jc_first_ids="$jc_first_ids $jc_key-$jc_id "; done </proc/self/uid_map
    case $jc_first_ids in *" 0-4294967295 "*) return 0 ;; esac
    jc_hidden_uid=$(/bin/cat /proc/sys/kernel/overflowuid) # `read` reads single bytes, and gets the first one alone
    jc_hidden_uid=${jc_hidden_uid:--}
    case $jc_first_ids in *" 0-"*) ;; *) jc_in_container=yes jc_hidden_root=$jc_hidden_uid ;; esac
}

# Succeed unless this is a container in which a cache would not lie on the scratch of the node: see visible_scratch.py.
jc_sees_scratch() {
    [ "$jc_in_container" = yes ] || return 0
    jc_scratch=${jc_above_user:-/} jc_existing=$jc_job_dir
    [ -d "$jc_scratch" ] || return 1
    [ -O "$jc_scratch/." ] || return 0
    until [ -d "${jc_existing:-/}" ]; do jc_existing=${jc_existing%/*}; done
    jc_read_mount_id "${jc_existing:-/}"
    jc_existing_mount=$jc_mount_id
    jc_read_mount_id "$jc_scratch"
    [ "${jc_mount_id:-?}" != "$jc_existing_mount" ]
}

# DIRECTORY: set jc_mount_id, '' if it is unknown.
jc_read_mount_id() {
    jc_mount_id=''
    {
        while read -r jc_key jc_id; do
            case $jc_key in mnt_id:) jc_mount_id=$jc_id ;; esac
        done </proc/self/fdinfo/4
    } 4<"$1"
}

# Create the directories above the cache that are missing. Fail if another user than root could exchange one of them: see
# safe_path.py. Each check holds for good, because the directory above has been checked before.
jc_make_parent() {
    jc_look /
    jc_note_openness
    jc_prefix='' jc_remaining=${jc_parent#/}/ jc_any_owner=yes
    while [ -n "$jc_remaining" ]; do
        jc_prefix=$jc_prefix/${jc_remaining%%/*} jc_remaining=${jc_remaining#*/}
        if [ ! -e "$jc_prefix" ] && [ ! -h "$jc_prefix" ]; then
            case $jc_job_directory/ in "$jc_prefix"/*) return 1 ;; esac # the site makes it
            case $jc_above_user/ in "$jc_prefix"/*) return 1 ;; esac # it would be closed to all other users
            jc_make_directory "$jc_prefix" || [ -d "$jc_prefix" ] || return 1
        fi
        jc_is_safe "$jc_prefix" || return 1
    done
}

# PATH of a directory above the cache, after those above it: fail if another user than root could exchange it, or an entry of
# it. Above the user's own directories, any account may own one, and any group may write it; but not below a directory that
# all users can write. A symlink is root's: the Epilog follows no other, so it could not reap a cache beyond one.
jc_is_safe() {
    jc_look "$1"
    case $jc_mode_text in
    l*)
        jc_is_roots || return 1
        jc_look "$1/.." # the directory above the target
        jc_note_openness
        jc_look "$1/." ;;
    esac
    case $jc_mode_text in d*) ;; *) return 1 ;; esac
    jc_is_own_part=yes
    case $jc_above_user/ in "$1"/*) jc_is_own_part=no ;; esac
    if [ "$jc_is_own_part$jc_any_owner" != noyes ]; then jc_is_roots || [ -O "$1/." ] || return 1; fi
    case $jc_mode_text in
    d????????[tT]*) ;;
    d???????w*) return 1 ;;
    # A group that has the user's name is the user's own; + is an access list, which can name other users.
    d????w????+*) [ "$jc_is_own_part" = no ] || return 1 ;;
    d????w*) [ "$jc_is_own_part" = no ] || [ "$jc_group" = "$jc_user" ] || return 1 ;;
    esac
    jc_any_owner=yes
    case $jc_mode_text in d???????w*) jc_any_owner=no ;; esac
    jc_note_openness
}

# Set jc_is_open: whether others than its owner can create entries of the directory that jc_look saw.
jc_note_openness() {
    jc_is_open=no
    case $jc_mode_text in d????w* | d???????w*) jc_is_open=yes ;; esac
}

# Succeed if the owner that jc_look saw is root, by jc_is_open of the directory above: see file_owners.py.
jc_is_roots() {
    [ "$jc_owner" = "$jc_roots_uid" ] || { [ "$jc_is_open" = no ] && [ "$jc_owner" = "$jc_hidden_root" ]; }
}

# PATH: set jc_mode_text, jc_owner (a number) and jc_group (a name).
jc_look() {
    set -f
    # shellcheck disable=SC2046 # words: mode, links, owner, group
    set -- "$1" $(/bin/ls -ldn "$1")
    jc_mode_text=${2-} jc_owner=${4-} jc_group=''
    case $jc_mode_text in
    d????w*)
        # shellcheck disable=SC2046
        set -- $(/bin/ls -ld "$1")
        jc_group=${4-} ;;
    esac
}

# PATH: create a directory that only this user can access. -m: where the directory above has a default access list, the umask
# has no effect. Some mounts show all files as one user's: nobody could work in such a directory, or delete it as its owner.
# A mkdir that sets the mode afterwards, as busybox does, leaves others the time to put something into it.
jc_make_directory() {
    /bin/mkdir -m 700 "$1" || return 1
    if [ -O "$1" ] && jc_look "$1" && [ -z "$(/bin/ls -A "$1")" ]; then
        case $jc_mode_text in d????-??-*) return 0 ;; esac
    fi
    /bin/rmdir "$1"
    return 1
}

# Succeed if a directory of the user's is at the job's path, which no other user can exchange then, and nothing else.
jc_is_own_directory() {
    jc_look "$jc_job_dir"
    case $jc_mode_text in d*) [ -O "$jc_job_dir" ] ;; *) return 1 ;; esac
}

# Succeed if the job's directory is the user's, a directory itself, and without a record.
jc_is_replaceable() {
    jc_is_own_directory && [ ! -e "$jc_job_dir/.jobcache/id" ]
}

# The batch task can find a cache that an earlier job with its id left, and also one of its own run, which a step made that was
# attached before. It moves a cache to trash whose id names another run, or which no step of this run uses by
# jc_has_dead_leases. The task that renames nodes/ owns the cache; it judges the leases again when nobody can take one any more.
jc_discard_stale_cache() {
    jc_is_own_directory || return 1
    jc_id_line='' jc_nodes=$jc_job_dir/.jobcache/nodes jc_taken=$jc_job_dir/.jobcache/nodes-$jc_nonce
    read -r jc_id_line <"$jc_job_dir/.jobcache/id"
    case $jc_id_line in
    "$jc_cluster $jc_job_id $jc_run $jc_uid") jc_judge=jc_has_dead_leases ;;
    "$jc_cluster $jc_job_id "*" $jc_uid") jc_judge=: ;;
    *) return 1 ;;
    esac
    "$jc_judge" "$jc_nodes" && /bin/mv -T "$jc_nodes" "$jc_taken" || return 1
    if "$jc_judge" "$jc_taken"; then /bin/mv -T "$jc_job_dir" "$jc_parent/.jobcache-trash-$jc_job_id-$jc_nonce"
    else /bin/mv -T "$jc_taken" "$jc_nodes"
    fi
}

# NODES: succeed if it is proven that no step of this run holds a lease in this directory, as earlier_lives.py does.
jc_has_dead_leases() {
    jc_read_start
    jc_find_other_step
    read -r jc_boot </proc/sys/kernel/random/boot_id
    jc_limit=$((${jc_start:-$(($(/bin/date +%s) - 3600))} - 300))
    set +f
    for jc_found in "$1"/*; do
        # Without a lease, this is the pattern itself, and the time of the directory counts.
        if [ ! -e "$jc_found" ] && [ ! -h "$jc_found" ]; then jc_found=$1; fi
        jc_lease_node=${jc_found##*/} jc_lease_boot=''
        if [ "${jc_lease_node%%+*}" = "$jc_node" ]; then
            # The command of a `jobcache run` needs no step: an ssh session in the job. It touches its lease.
            case $jc_other_step$jc_lease_node in yes*) return 1 ;; "no$jc_node") continue ;; esac
            [ ! -f "$jc_found" ] || read -r jc_lease_boot _ <"$jc_found"
            case $jc_lease_boot in '' | "$jc_boot") ;; *) continue ;; esac
        fi
        jc_time=$(/bin/date -r "$jc_found" +%s) && [ "$jc_time" -lt "$jc_limit" ] || return 1
    done
}

# Set jc_other_step: yes or no, whether another step of this job runs on this node; '' if its steps cannot be seen. The batch
# step has two processes with its title; Slurm runs no TaskProlog for the extern step. Any user can give a process any title.
jc_find_other_step() {
    jc_other_step=''
    jc_read_title "/proc/$jc_stepd"
    case $jc_title in "slurmstepd: [$jc_job_id.batch]"*) ;; *) return 0 ;; esac
    jc_other_step=no
    for jc_process in $(set +f; echo /proc/[0-9]*); do
        jc_read_title "$jc_process"
        case $jc_title in
        "slurmstepd: [$jc_job_id.batch]"* | "slurmstepd: [$jc_job_id.extern]"*) ;;
        "slurmstepd: [$jc_job_id."*)
            jc_look "$jc_process"
            case $jc_owner in 0 | "$jc_euid" | "$jc_hidden_uid") jc_other_step=yes ;; esac ;;
        esac
    done
}

# DIRECTORY of a process: set jc_title.
jc_read_title() {
    jc_title=''
    read -r jc_title <"$1/cmdline"
}

# Write the record: id, job.json, and nodes/ with the lease of this node.
jc_fill_new_dir() {
    read -r jc_boot </proc/sys/kernel/random/boot_id
    read -r jc_uptime _ </proc/uptime
    jc_created_at=$(/bin/date -u +%Y-%m-%dT%H:%M:%SZ)
    # JSON: a name that would need an escape is left out.
    case $jc_user in *[\"\\]*) jc_json_names='' ;; *) jc_json_names=", \"user\": \"$jc_user\"" ;; esac
    case $jc_node in *[\"\\]*) ;; *) jc_json_names="$jc_json_names, \"node\": \"$jc_node\"" ;; esac
    /bin/mkdir -m 700 "$jc_new_dir/.jobcache" "$jc_new_dir/.jobcache/nodes" &&
        printf '%s\n' "$jc_cluster $jc_job_id $jc_run $jc_uid" >"$jc_new_dir/.jobcache/id" &&
        printf '{"schema": 1, "cluster": "%s", "job_id": %s, "run": %s, "uid": %s, "created_at": "%s"%s, "policy": "%s"}\n' \
            "$jc_cluster" "$jc_job_id" "$jc_run" "$jc_uid" "$jc_created_at" "$jc_json_names" "$jc_policy_hash" \
            >"$jc_new_dir/.jobcache/job.json" &&
        printf '%s %s\n' "$jc_boot" "$jc_uptime" >"$jc_new_dir/.jobcache/nodes/$jc_node" || return 1
    if [ "$jc_keep" = yes ]; then printf '' >"$jc_new_dir/.jobcache/keep" || return 1; fi
    # jc_may_begin_empty has set jc_source if the user's own cache was looked at.
    if [ -n "$jc_source" ]; then
        jc_name_home
        /bin/mkdir -m 700 "$jc_new_dir/.jobcache/sources" &&
            /bin/ln -s "$jc_source/datasets" "$jc_new_dir/.jobcache/sources/$jc_home_name" || return 1
    fi
    # A default access list gives those whom it names access to new files. No directory of the cache lets them in.
    set -- "$jc_new_dir/.jobcache/id" "$jc_new_dir/.jobcache/job.json" "$jc_new_dir/.jobcache/nodes/$jc_node"
    [ "$jc_keep" = no ] || set -- "$@" "$jc_new_dir/.jobcache/keep"
    /bin/chmod 600 "$@" || :
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
    for jc_file in "nodes/$jc_node" id job.json keep "sources/$jc_home_name"; do /bin/rm -f "$jc_new_dir/.jobcache/$jc_file"; done
    /bin/rmdir "$jc_new_dir/.jobcache/sources" "$jc_new_dir/.jobcache/nodes" "$jc_new_dir/.jobcache" "$jc_new_dir"
}

jc_make_cache
