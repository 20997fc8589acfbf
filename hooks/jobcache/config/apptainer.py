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
    """Return the parts of the directory to mount: the part of a cache's path above its user. [] for no mount."""
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


# Apptainer reads SINGULARITY_MOUNT only if APPTAINER_MOUNT is empty; SingularityCE reads no other one. _BIND and _BINDPATH are
# such pairs as well, and are read before _MOUNT. A value of the user is never extended.
FUNCTIONS = """\
# Set jc_binds and jc_unbinds: the lines that let containers mount jc_bind_dir, and those that undo an inherited mount.
jc_choose_binds() {
    jc_unbinds='' jc_stale='' jc_kind='' jc_user_binds=''
    jc_sort_binds MOUNT "${APPTAINER_MOUNT-}" "${SINGULARITY_MOUNT-}"
    jc_sort_binds BINDPATH "${APPTAINER_BINDPATH-}" "${SINGULARITY_BINDPATH-}"
    jc_sort_binds BIND "${APPTAINER_BIND-}" "${SINGULARITY_BIND-}"
    jc_binds=$jc_unbinds
    [ "$jc_apptainer" = bind ] && [ -n "$jc_bind_dir" ] && [ -n "$jc_kind" ] || return 0
    case ${HOME-}/ in "$jc_bind_dir"/*) return 0 ;; esac # Apptainer mounts the home by itself
    jc_user_binds_conflict && return 0
    jc_bind=$jc_bind_dir:$jc_bind_dir:rw
    [ "$jc_kind" != MOUNT ] || jc_bind=type=bind,dst=$jc_bind_dir,src=$jc_bind_dir
    jc_binds="${jc_stale}export APPTAINER_$jc_kind=$jc_bind${jc_newline}export SINGULARITY_$jc_kind=$jc_bind$jc_newline"
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

# VALUE: succeed if a job with the inherited JOBCACHE_DIR got this value from jobcache.
jc_is_own_bind() {
    [ "${#1}" -le 4096 ] || return 1 # the time to take it apart grows with its square
    jc_mounted=${1##*,src=}
    if [ "$1" != "type=bind,dst=$jc_mounted,src=$jc_mounted" ]; then
        jc_mounted=${1%%:*}
        [ "$1" = "$jc_mounted:$jc_mounted:rw" ] || return 1
    fi
    case ${JOBCACHE_DIR-} in "$jc_mounted"/*) ;; *) return 1 ;; esac
}

# Succeed if a bind of the user mounts jc_bind_dir, or hides it, or would have Apptainer create a directory in it: that fails
# where the user may not write.
jc_user_binds_conflict() {
    [ "${#jc_user_binds}" -le 4096 ] || return 0
    jc_users_part=${jc_job_dir#"$jc_bind_dir"/}
    jc_users_part=$jc_bind_dir/${jc_users_part%%/*}
    while [ -n "$jc_user_binds" ]; do
        jc_from=${jc_user_binds%%[",$jc_newline"]*} jc_user_binds=${jc_user_binds#*[",$jc_newline"]}
        case $jc_from in
        *:*) jc_to=${jc_from#*:} jc_to=${jc_to%%:*} jc_from=${jc_from%%:*} ;;
        dst=* | destination=* | target=*) jc_to=${jc_from#*=} jc_from='' ;;
        *) jc_to=$jc_from ;;
        esac
        jc_to=${jc_to%/}
        [ "$jc_to" = "$jc_bind_dir" ] && return 0
        case $jc_to in '' | "${jc_from%/}") continue ;; esac
        case $jc_bind_dir/ in "$jc_to"/*) return 0 ;; esac
        case $jc_to/ in "$jc_users_part"/*) ;; "$jc_bind_dir"/*) return 0 ;; esac
    done
    return 1
}""".splitlines()
