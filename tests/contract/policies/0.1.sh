# Compiled from '/etc/jobcache/jobcache.yaml' by `jobcache apply`, and replaced by the next one: change it there.
# shellcheck shell=sh disable=SC1003,SC2016,SC2026,SC2034,SC2154,SC2221,SC2222

jc_hash='0123456789ab'
jc_cluster='test'
jc_python='@PYTHON@'
jc_package='@PACKAGE@'
jc_min_uid=1
jc_deadline=5
jc_chain='@CHAIN@'
jc_epilog_deadline=30
jc_log='@LOG@'
jc_syslog='@SYSLOG@'
jc_decide() {
    jc_cache=on jc_rule=''
    jc_mode='on'
    jc_scope='job'
    jc_offline='skip'
    jc_dir='/@SCRATCH@/'"$jc_user"'/.cache/hf-datasets-'"$jc_job"
    jc_exports_of=0
    jc_store='/@SCRATCH@/'"$jc_user"'/store'
    jc_site=''
    if jc_match_0; then
        jc_rule=1 jc_cache='off'
    elif jc_match_1; then
        jc_rule=2 jc_cache='on'
        jc_scope='node'
        jc_dir='/@SCRATCH@/astro/'"$jc_user"'/'"$jc_node"'-'"$jc_job"
    fi
}
jc_match_0() {
    case $jc_partition in 'debug' | 'viz-'*) ;; *) return 1 ;; esac
    case $jc_user in 'svc-'[a-c]?) ;; *) return 1 ;; esac
}
jc_match_1() {
    case $jc_account in 'astro') ;; *) return 1 ;; esac
}
jc_each_export() {
    case $jc_exports_of in
    0)
        "$1" HF_DATASETS_CACHE "${HF_DATASETS_CACHE-}" "$jc_cachedir"''
        "$1" HF_MODULES_CACHE "${HF_MODULES_CACHE-}" "$jc_cachedir"'/modules'
        ;;
    esac
}
jc_in_0() {
    jc_rest=$1/
    case $jc_rest in '/@SCRATCH@/'"$jc_user"'/.cache/'*) jc_rest=${jc_rest#'/@SCRATCH@/'"$jc_user"'/.cache/'} ;; *) return 1 ;; esac
    jc_found=${jc_rest%%/*}
    case $jc_found in 'hf-datasets-''run-'[1-9]*-[a-z][a-z][a-z][a-z][a-z][a-z][a-z][a-z]) return 0 ;; esac
    case $jc_found in 'hf-datasets-'[1-9]*) jc_found=${jc_found%%} ;; *) return 1 ;; esac
    jc_found=${jc_found##'hf-datasets-'}
    case $jc_found in *-r0) ;; *-r*) if jc_is_number "${jc_found##*-r}"; then jc_found=${jc_found%-r*}; fi ;; esac
    jc_is_number "$jc_found" && [ "$jc_found" != 0 ]
}
jc_in_1() {
    jc_rest=$1/
    case $jc_rest in '/@SCRATCH@/astro/'"$jc_user"'/'*) jc_rest=${jc_rest#'/@SCRATCH@/astro/'"$jc_user"'/'} ;; *) return 1 ;; esac
    jc_found=${jc_rest%%/*}
    case $jc_found in *'-''run-'[1-9]*-[a-z][a-z][a-z][a-z][a-z][a-z][a-z][a-z]) return 0 ;; esac
    case $jc_found in *'-'[1-9]*) jc_found=${jc_found%%} ;; *) return 1 ;; esac
    case $jc_found in *-r0) ;; *-r*) if jc_is_number "${jc_found##*-r}"; then jc_found=${jc_found%-r*}; fi ;; esac
    jc_found=${jc_found##*'-'}
    jc_is_number "$jc_found" && [ "$jc_found" != 0 ]
}
jc_in_2() {
    jc_rest=$1/
    case $jc_rest in '/@SCRATCH@/old/'"$jc_uid"'/'*) jc_rest=${jc_rest#'/@SCRATCH@/old/'"$jc_uid"'/'} ;; *) return 1 ;; esac
    jc_found=${jc_rest%%/*}
    case $jc_found in *'-''run-'[1-9]*-[a-z][a-z][a-z][a-z][a-z][a-z][a-z][a-z]) return 0 ;; esac
    case $jc_found in *'-'[1-9]*) jc_found=${jc_found%%} ;; *) return 1 ;; esac
    case $jc_found in *-r0) ;; *-r*) if jc_is_number "${jc_found##*-r}"; then jc_found=${jc_found%-r*}; fi ;; esac
    jc_found=${jc_found##*'-'}
    jc_is_number "$jc_found" && [ "$jc_found" != 0 ]
}
jc_handed_on() {
    case ${JOBCACHE_DIR-} in /*) jc_found=${JOBCACHE_DIR##*/} ;; *) return 1 ;; esac
    case $1/ in "$JOBCACHE_DIR"/*) ;; *) return 1 ;; esac
    case $jc_found in
    *[0-9]"$jc_id"* | *"$jc_id"[0-9]*) jc_found=0 ;;
    *"$jc_id"*) jc_found=$jc_id ;;
    *[0-9]*) jc_found=0 ;;
    *) return 1 ;;
    esac
}
jc_in_cache() {
    jc_in_0 "$1" || jc_in_1 "$1" || jc_in_2 "$1" || jc_handed_on "$1"
}
jc_whole='0123456789ab'
