"""The mount by which a job's cache is visible in the containers of Apptainer and SingularityCE.

These programs read APPTAINER_MOUNT and SINGULARITY_MOUNT after all other binds, so that a user's own bind of the same
directory wins, and a script that sets APPTAINER_BIND or SINGULARITY_BIND changes neither variable.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from jobcache.cache.path_template import Template

    Parts = list[tuple[bool, str]]  # of a path template: (is_placeholder, text)

# A mount of one of these would hide files of the image.
_OF_IMAGES = frozenset(
    "/ /bin /boot /etc /home /lib /lib32 /lib64 /libx32 /opt /root /run /sbin /srv /usr /usr/local /var /var/lib".split()
)
# Apptainer mounts these by default. `--contain` replaces them by private ones, and a mount would undo that.
_MOUNTED = ("/dev", "/proc", "/sys", "/tmp", "/var/tmp")  # noqa: S108
_SPECIAL = frozenset(',:"\\')  # characters with a meaning in the variables


def bind_dir(template: "Template") -> "Parts":
    """Return the parts of the directory to mount: the part of a cache's path above its user. [] for no mount.

    Apptainer mounts homes by default.
    """
    if template.in_home:
        return []
    text = "".join(f"{{{text}}}" if is_placeholder else text for is_placeholder, text in template.above)
    return [] if is_mounted(text) or not can_mount(text) else template.above


def is_mounted(path: str) -> bool:
    """Return whether Apptainer mounts the path by default."""
    return any(f"{path}/".startswith(f"{above}/") for above in _MOUNTED)


def can_mount(path: str) -> bool:
    """Return whether the variables can name the path, and its mount hides no file of an image."""
    return bool(path) and path not in _OF_IMAGES and _SPECIAL.isdisjoint(path) and path == path.strip()


def setting(keys: "dict[str, Any]") -> str:
    """Return `bind` or `off`, given the keys of a rule or of the whole configuration; "" if they do not have it."""
    return str(keys.get("containers", {}).get("apptainer", ""))


def variables(template: "Template", directory: str, env: "Mapping[str, str]") -> "dict[str, str]":
    """Return the variables by which containers of one command mount `directory`, the part of a cache's path above its user.

    {} for no mount, and where the user has one of these variables or a home there.
    """
    names = ("APPTAINER_MOUNT", "SINGULARITY_MOUNT")
    if not bind_dir(template) or any(map(env.get, names)) or f"{env.get('HOME', '')}/".startswith(f"{directory}/"):
        return {}
    return dict.fromkeys(names, f"type=bind,dst={directory},src={directory}")


# For a task without a value of the user's in one of the variables. jc_choose_binds sets jc_binds and jc_unbinds: the lines that
# let containers mount jc_bind_dir, and those that undo an inherited mount.
FUNCTIONS = """\
jc_choose_binds() {
    jc_unbinds=''
    [ -z "${APPTAINER_MOUNT-}" ] || jc_unbinds="unset APPTAINER_MOUNT${jc_newline}unset SINGULARITY_MOUNT$jc_newline"
    jc_binds=$jc_unbinds
    [ "$jc_apptainer" = bind ] && [ -n "$jc_bind_dir" ] || return 0
    case ${HOME-}/ in "$jc_bind_dir"/*) return 0 ;; esac # Apptainer mounts the home by itself
    jc_bind=type=bind,dst=$jc_bind_dir,src=$jc_bind_dir
    jc_binds="export APPTAINER_MOUNT=$jc_bind${jc_newline}export SINGULARITY_MOUNT=$jc_bind$jc_newline"
}
jc_has_user_binds() {
    [ -z "${APPTAINER_BINDPATH-}${SINGULARITY_BINDPATH-}${APPTAINER_BIND-}${SINGULARITY_BIND-}" ] || return 0
    [ "${APPTAINER_MOUNT-}" = "${SINGULARITY_MOUNT-}" ] || return 0
    [ -n "${APPTAINER_MOUNT-}" ] && ! jc_is_own_bind "$APPTAINER_MOUNT"
}

# VALUE: succeed if a job with the inherited JOBCACHE_DIR got this value from jobcache.
jc_is_own_bind() {
    [ "${#1}" -le 4096 ] || return 1 # the time to take it apart grows with its square
    jc_mounted=${1##*,src=}
    if [ "$1" != "type=bind,dst=$jc_mounted,src=$jc_mounted" ]; then
        jc_mounted=${1%%:*}
        [ "$1" = "$jc_mounted:$jc_mounted:rw" ] || return 1
    fi
    case ${JOBCACHE_DIR-} in "$jc_mounted"/*) ;; *) return 1 ;; esac
}""".splitlines()

# For a task with one: see jc_has_user_binds.
# Apptainer reads SINGULARITY_MOUNT only if APPTAINER_MOUNT is empty; SingularityCE reads no other one. _BIND and _BINDPATH are
# such pairs as well, and are read before _MOUNT. A value of the user is never extended.
FUNCTIONS_FOR_USER_BINDS = """\
# Set jc_refusal as well, where the binds of the user leave containers without the cache: `datasets` would fail in them.
jc_choose_binds() {
    jc_unbinds='' jc_stale='' jc_kind='' jc_user_binds=''
    jc_sort_binds MOUNT "${APPTAINER_MOUNT-}" "${SINGULARITY_MOUNT-}"
    jc_sort_binds BINDPATH "${APPTAINER_BINDPATH-}" "${SINGULARITY_BINDPATH-}"
    jc_sort_binds BIND "${APPTAINER_BIND-}" "${SINGULARITY_BIND-}"
    jc_binds=$jc_unbinds
    [ "$jc_apptainer" = bind ] || jc_bind_dir=''
    jc_judge_user_binds
    [ -z "$jc_hidden" ] || { jc_refuse_binds; return; }
    [ -n "$jc_bind_dir" ] && [ "$jc_shown" != exactly ] || return 0
    case ${HOME-}/ in "$jc_bind_dir"/*) return 0 ;; esac # Apptainer mounts the home by itself
    if [ -n "$jc_blocked" ] || [ -z "$jc_kind" ]; then
        [ -n "$jc_shown" ] || jc_refuse_binds
        return
    fi
    jc_bind=$jc_bind_dir:$jc_bind_dir:rw
    [ "$jc_kind" != MOUNT ] || jc_bind=type=bind,dst=$jc_bind_dir,src=$jc_bind_dir
    jc_binds="${jc_stale}export APPTAINER_$jc_kind=$jc_bind${jc_newline}export SINGULARITY_$jc_kind=$jc_bind$jc_newline"
}

jc_refuse_binds() {
    [ "${JOBCACHE-}" = off ] || jc_refusal=${jc_refusal:-container_bind}
}

# KIND APPTAINER SINGULARITY: the values of a pair of variables. Set jc_kind to the first pair without a value of the user.
jc_sort_binds() {
    jc_own='' jc_apptainers=$2 jc_singularitys=$3
    if jc_is_own_bind "$2"; then jc_apptainers='' jc_own="unset APPTAINER_$1$jc_newline"; fi
    if jc_is_own_bind "$3"; then jc_singularitys='' jc_own="${jc_own}unset SINGULARITY_$1$jc_newline"; fi
    jc_unbinds=$jc_unbinds$jc_own
    if [ -z "$jc_kind$jc_apptainers$jc_singularitys" ]; then
        jc_kind=$1
    else
        jc_stale=$jc_stale$jc_own
        jc_user_binds=$jc_user_binds${jc_apptainers:-$jc_singularitys}$jc_newline
    fi
}

# Set jc_hidden if a bind of the user hides the cache in containers, or makes it read-only; jc_shown if one mounts a directory
# above the cache onto itself, to `exactly` if that is jc_bind_dir; jc_blocked if Apptainer would have to create a directory in
# jc_bind_dir for one: that fails where the user may not write.
jc_judge_user_binds() {
    jc_hidden='' jc_shown='' jc_blocked=''
    [ "${#jc_user_binds}" -le 4096 ] || jc_hidden=yes jc_user_binds='' # perhaps
    jc_users_part=${jc_job_dir#"$jc_bind_dir"/}
    jc_users_part=$jc_bind_dir/${jc_users_part%%/*}
    jc_from='' jc_to='' jc_option=''
    while [ -n "$jc_user_binds" ]; do
        jc_field=${jc_user_binds%%[",$jc_newline"]*} jc_user_binds=${jc_user_binds#"$jc_field"}
        case $jc_field in
        src=* | source=*) jc_from=${jc_field#*=} ;;
        dst=* | destination=* | target=*) jc_to=${jc_field#*=} ;;
        ro | ro=* | readonly*) jc_option=ro ;;
        *:*)
            jc_rest=${jc_field#*:}
            jc_path=${jc_rest%%:*}
            jc_judge_bind "${jc_field%%:*}" "$jc_path" "${jc_rest#"$jc_path"}" ;;
        *) jc_judge_bind "$jc_field" "$jc_field" '' ;;
        esac
        case $jc_user_binds in
        ,*) ;;
        *) # the end of a line, which is one value of _MOUNT
            jc_judge_bind "$jc_from" "$jc_to" "$jc_option"
            jc_from='' jc_to='' jc_option='' ;;
        esac
        jc_user_binds=${jc_user_binds#?}
    done
}

# SOURCE DESTINATION OPTION
jc_judge_bind() {
    jc_target=${2%/}
    [ -n "$jc_target" ] || return 0
    if [ "${1%/}" != "$jc_target" ]; then
        case $jc_target/ in *//* | */./* | */../*) jc_hidden=yes ;; esac # perhaps
        case $jc_job_dir/ in "$jc_target"/*) jc_hidden=yes ;; esac
        case $jc_target/ in "$jc_users_part"/*) ;; "$jc_bind_dir"/*) jc_blocked=yes ;; esac
        return
    fi
    case $jc_job_dir/ in "$jc_target"/*) ;; *) return 0 ;; esac
    case $3 in
    ro | :ro*) case $jc_bind_dir in "$jc_target"/*) ;; *) jc_hidden=yes ;; esac ;; # else jc_bind_dir is mounted in it
    *) if [ "$jc_target" = "$jc_bind_dir" ]; then jc_shown=exactly; else jc_shown=${jc_shown:-above}; fi ;;
    esac
}"""
