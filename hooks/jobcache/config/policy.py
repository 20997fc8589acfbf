"""Render policy.sh: a site's whole policy as shell variables and functions, which task-prolog and epilog read.

Each value stands in single quotes, so that no text of a configuration file becomes shell code. The reference in task-prolog
lists each variable and function with its meaning.
"""

from jobcache.cache import cache_names
from jobcache.cache.path_template import Template, components, cut
from jobcache.config import apptainer
from jobcache.config.settings import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Parts = list[tuple[bool, str]]  # of a path template: (is_placeholder, text)

_HEAD = """\
# Compiled from {config} by `jobcache apply`: edit that file. REFERENCE in task-prolog explains the names.
# shellcheck shell=sh disable=SC1003,SC2016,SC2026,SC2034,SC2154,SC2221,SC2222
"""


def render(settings: Settings) -> str:
    """Given compiled settings, return the text of policy.sh."""
    lines = [_HEAD.format(config=quote(settings.config).replace("\n", " "))]
    lines += _variables(settings)
    lines += _apply_rules(settings)
    for number, rule in enumerate(settings.rules, 1):
        lines += _rule_matches(number, rule["match"])
    lines += apptainer.FUNCTIONS
    lines += _CHECK_BEGINNING
    lines += _for_each_export(settings)
    lines += _is_in_cache(settings)
    # Nearly no task needs these, and a shell reads a text in quotes faster than code.
    lines.append(f"jc_for_user_binds={quote(apptainer.FUNCTIONS_FOR_USER_BINDS)}")
    lines.append('jc_has_user_binds && eval "$jc_for_user_binds"')
    lines.append(f"jc_policy_end={quote(settings.hash)}")
    return "\n".join(lines) + "\n"


def quote(text: str) -> str:
    """Given any text, return it as one shell word in single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"


def pattern(text: str) -> str:
    """Given a shell-style pattern (`*`, `?`, `[a-z]`, `[!a-z]`), return a `case` pattern in which all else is literal.

    Raise ValueError for brackets that hold anything but a leading `!`, letters, digits, `_`, `.` and ascending ranges of these,
    because shells disagree about other brackets.
    """
    pieces, literal, rest = [], "", text
    while rest:
        character, rest = rest[0], rest[1:]
        if character not in "*?[":
            literal += character
            continue
        pieces.append(quote(literal) if literal else "")
        literal = ""
        if character == "[":
            inside, closing, rest = rest.partition("]")
            if not closing or not _is_set(inside[1:] if inside.startswith("!") else inside):
                raise ValueError(f"{text!r}: brackets hold a leading !, letters, digits, _ . and ranges such as a-z")
            character = f"[{inside}]"
        pieces.append(character)
    pieces.append(quote(literal) if literal else "")
    return "".join(pieces) or "''"


def _is_set(inside: str) -> bool:
    """Return whether every shell reads `inside`, the text between brackets, as the same set of characters."""
    at = 0
    while at < len(inside):
        first, dash, last = inside[at], inside[at + 1 : at + 2], inside[at + 2 : at + 3]
        if not (first.isascii() and (first.isalnum() or first in "_.")):
            return False
        if dash == "-":
            same_kind = any(kind(first) and kind(last) for kind in (str.isdigit, str.islower, str.isupper))
            if not same_kind or not first <= last <= "z":
                return False
            at += 2
        at += 1
    return at > 0


def _variables(settings: Settings) -> "list[str]":
    return [
        f"jc_policy_hash={quote(settings.hash)}",
        f"jc_cluster={quote(settings.cluster)}",
        f"jc_python={quote(settings.python)}",
        f"jc_package={quote(settings.package)}",
        f"jc_min_uid={settings.min_uid}",
        f"jc_history={quote('on' if settings.history else '')}",
        f"jc_inherit_max_builds={settings.inherit_max_builds}",
        f"jc_deadline={_seconds(settings.task_prolog_deadline)}",
        f"jc_chain={quote(settings.task_prolog_chain or '')}",
        f"jc_epilog_deadline={_seconds(settings.epilog_deadline)}",
        f"jc_log_file={quote(settings.log_file or '')}",
        f"jc_syslog_socket={quote(settings.log_socket or '')}",
    ]


def _seconds(value: float) -> str:
    """Given a duration in seconds, return it rounded down to whole seconds, at least one: POSIX sleep knows no fractions."""
    return str(max(1, int(value)))


# ---------------------------------------------------------------------------------------------------------------- rules


def _apply_rules(settings: Settings) -> "list[str]":
    """Return jc_apply_rules: set what holds for the job that jc_user, jc_partition, jc_account and jc_qos describe."""
    has_account = any((True, "account") in Template(text).parts for text in settings.current)
    has_home = any(template.in_home for template in settings.templates)
    reads = [*(_READ_ACCOUNT if has_account else []), *(_READ_HOME if has_home else [])]
    lines = ["jc_apply_rules() {", "    jc_refusal=''", *reads, *_assignments(settings.base, 0)]
    for name, template in (("user", settings.store_user), ("site", settings.store_site)):
        lines.append(f"    jc_{name}_store={_word(cut(template)) if template else quote('')}")
    for number, rule in enumerate(settings.rules, 1):
        lines.append(f"    {'if' if number == 1 else 'elif'} jc_rule_{number}_matches; then")
        if rule.get("cache") == "off":
            lines.append("        jc_refusal=rule")
        lines += ["    " + line for line in _assignments(rule, number)]
    if settings.rules:
        lines.append("    fi")
    checks = [*(_CHECK_ACCOUNT if has_account else []), *(_CHECK_HOME if has_home else [])]
    return [*lines, *checks, *_CHOOSE_BEGINNING, "}"]


# Two slashes are in no other path, so they show that the path needs an account that is missing, or cannot be in a path.
_READ_ACCOUNT = """\
    jc_account_part=$jc_account
    jc_is_name "$jc_account" || jc_account_part=//""".splitlines()
_CHECK_ACCOUNT = ["    case $jc_refusal$jc_job_dir in /*//*) jc_refusal=bad_name ;; esac"]

# The user sets HOME: prepare.py compares it with the account before it makes a cache. Of no use are a relative path and one that
# another spelling of the same directory has.
_READ_HOME = """\
    jc_home_part=${HOME-}
    while :; do
        case $jc_home_part in ?*/) jc_home_part=${jc_home_part%/} ;; *) break ;; esac
    done
    case $jc_home_part/ in
    / | [!/]* | *//* | */./* | */../* | *[[:cntrl:]]*) jc_home_part=// ;;
    *) jc_home_part=${jc_home_part#/} ;;
    esac""".splitlines()
_CHECK_HOME = ["""    case $jc_refusal$jc_home_dir in ///*) jc_refusal=home_differs jc_history='' ;; esac"""]

# An offline job needs the builds of its user, and a step in a container can have another home than this hook sees. An offline
# step of a job with a cache stays in the directory that the job's script may have filled.
_CHOOSE_BEGINNING = """\
    [ "${JOBCACHE_INHERIT-}" != off ] || jc_inherit=off
    if [ "$jc_offline" = inherit ]; then
        case $jc_inherit/${SLURM_CONTAINER-} in on/) ;; *) jc_offline=skip ;; esac
        [ "${JOBCACHE_DIR-}" != "$jc_job_dir" ] || jc_offline=skip
    fi
    jc_begins_with=$jc_user_store$jc_site_store
    [ "$jc_inherit" = off ] || jc_begins_with=inherited
    jc_choose_binds""".splitlines()


# task-prolog calls jc_check_beginning before each task, and has no room for it within the block that a shell reads first. A
# cache without sources/ began without the user's own builds, or an earlier version made it. default_cache.py has the same name
# of a home.
_CHECK_BEGINNING = """\
jc_check_beginning() {
    if [ "$jc_inherit$jc_any_home" = onno ]; then
        jc_name_home
        [ -h "sources/$jc_home_name" ] || [ ! -e sources ] || return "$jc_other_home"
    fi
    # The own directory of a node, a task or a home begins with links.
    [ "$jc_export_dir" = "$jc_job_dir" ] || [ -z "$jc_begins_with" ] || [ -e "$jc_export_dir" ] || return "$jc_unseeded"
}
jc_name_home() {
    jc_tilde='~' jc_home_name=home
    jc_home=${HF_HOME-${XDG_CACHE_HOME-${HOME-$jc_tilde}/.cache}/huggingface}
    case $jc_home in "$jc_tilde" | "$jc_tilde"/*) jc_home=${HOME-$jc_tilde}${jc_home#?} ;; esac
    while :; do
        jc_part=${jc_home%%[/+%]*}
        jc_home_name=$jc_home_name$jc_part jc_home=${jc_home#"$jc_part"}
        case $jc_home in /*) jc_part=+ ;; +*) jc_part=%2B ;; %*) jc_part=%25 ;; *) return ;; esac
        jc_home_name=$jc_home_name$jc_part jc_home=${jc_home#?}
    done
}""".splitlines()


def _assignments(keys: "dict[str, Any]", rule: int) -> "list[str]":
    """Return the assignments for those keys of a rule, or of the base settings as rule 0, that a rule may set."""
    lines = [f"    jc_{key}={quote(str(keys[key]))}" for key in ("mode", "scope", "inherit", "offline") if key in keys]
    if apptainer.setting(keys):
        lines.append(f"    jc_apptainer={quote(apptainer.setting(keys))}")
    if "path" in keys:
        template = Template(str(keys["path"]))
        directory = _with_raw_job_id(template.parent)
        path = [*directory, (False, "/"), *template.name]
        above, given = _word(template.above), _word(_with_raw_job_id(template.job_directory))
        lines.append(f"    jc_job_dir={_word(path)} jc_above_user={above} jc_job_directory={given}")
        lines.append(f"    jc_home_dir={above if template.in_home else quote('')}")
        lines.append(f"    jc_bind_dir={_word(apptainer.bind_dir(template))}")
    if "exports" in keys:
        lines.append(f"    jc_exports_rule={rule}")
    return lines


def _rule_matches(number: int, match: "dict[str, list[str]]") -> "list[str]":
    """Return jc_rule_<number>_matches: succeed if every key of the rule's `match` has a pattern that matches the job."""
    lines = [f"jc_rule_{number}_matches() {{"]
    for key, patterns in match.items():
        lines.append(f"    case $jc_{key} in {' | '.join(map(pattern, patterns))}) ;; *) return 1 ;; esac")
    return [*lines, "}"]


def _for_each_export(settings: Settings) -> "list[str]":
    """Return jc_for_each_export FUNCTION: call FUNCTION NAME VALUE WANTED for each variable to export, and add mounts."""
    lines = ["jc_for_each_export() {", "    case $jc_exports_rule in"]
    for number, keys in enumerate([settings.base, *settings.rules]):
        if "exports" in keys:
            lines.append(f"    {number})")
            for name, value in keys["exports"].items():
                below = value[len("{cache}") :]
                lines.append(f'        "$1" {name} "${{{name}-}}" "$jc_export_dir"{quote(below)}')
            lines.append("        ;;")
    return [*lines, "    esac", *_ADD_BINDS, "}"]


# Mounts accompany variables: a job without any has none.
_ADD_BINDS = """\
    jc_unsets=$jc_unsets$jc_unbinds
    [ -z "$jc_exports" ] || jc_exports=$jc_exports$jc_binds
    [ -z "$jc_held_exports" ] || jc_held_exports=$jc_held_exports$jc_binds""".splitlines()


# ----------------------------------------------------------------------------------------------------- inherited values


def _is_in_cache(settings: Settings) -> "list[str]":
    """Return jc_is_in_cache VALUE: succeed if VALUE lies in a cache of this user, and set jc_cache_job to that cache's job."""
    lines = []
    for number, template in enumerate(settings.templates):
        lines += _fits_template(number, template)
    tests = " || ".join(f'jc_fits_template_{number} "$1"' for number in range(len(settings.templates)))
    return [*lines, *_IS_BELOW_JOBCACHE_DIR, "jc_is_in_cache() {", f'    {tests} || jc_is_below_jobcache_dir "$1"', "}"]


# The policy of another node can be newer, with templates that this one does not know. JOBCACHE_DIR names the cache as well, so
# it distinguishes an inherited value from the user's own. jc_cache_job is this job's id or, for any other job, 0.
_IS_BELOW_JOBCACHE_DIR = """\
# JOBCACHE_DIR can name a cache by a template that only the policy of another node has.
jc_is_below_jobcache_dir() {
    case ${JOBCACHE_DIR-} in /*) jc_cache_job=${JOBCACHE_DIR##*/} ;; *) return 1 ;; esac
    case $1/ in "$JOBCACHE_DIR"/*) ;; *) return 1 ;; esac
    case $jc_cache_job in
    *[0-9]"$jc_job_id"* | *"$jc_job_id"[0-9]*) jc_cache_job=0 ;;
    *"$jc_job_id"*) jc_cache_job=$jc_job_id ;;
    *[0-9]*) jc_cache_job=0 ;;
    *) return 1 ;;
    esac
}""".splitlines()


def _fits_template(number: int, template: Template) -> "list[str]":
    """Return jc_fits_template_<number> VALUE: jc_is_in_cache for one template. {node} and {account} stand for any name."""
    lines = [f"jc_fits_template_{number}() {{", "    jc_remaining=$1/"]
    for piece, is_component in _directories(template.parent):
        if _JOB in piece:
            lines += _reads_job_directory(piece)
        elif is_component:
            lines.append(f"    case ${{jc_remaining%%/*}} in {_glob(piece)}) {_NEXT_COMPONENT} ;; *) return 1 ;; esac")
        else:
            glob = _glob(piece)
            lines.append(f"    case $jc_remaining in {glob}*) jc_remaining=${{jc_remaining#{glob}}} ;; *) return 1 ;; esac")
    job = template.name.index(_JOB)
    before, after = _glob(template.name[:job]), _glob(template.name[job + 1 :])
    lines.append("    jc_cache_job=${jc_remaining%%/*}")
    if not template.job_directory:
        letters = "[a-z]" * cache_names.RUN_NONCE
        # A cache of `jobcache run` belongs to no job: jc_cache_job is then not a number.
        lines.append(f"    case $jc_cache_job in {before}'run-'[1-9]*-{letters}{after}) return 0 ;; esac")
    cut_after = f"jc_cache_job=${{jc_cache_job%%{after}}}"
    lines.append(f"    case $jc_cache_job in {before}[1-9]*{after}) {cut_after} ;; *) return 1 ;; esac")
    cut_before = f"    jc_cache_job=${{jc_cache_job##{before}}}"
    cut_run = (
        "    case $jc_cache_job in *-r0) ;; "
        '*-r*) if jc_is_number "${jc_cache_job##*-r}"; then jc_cache_job=${jc_cache_job%-r*}; fi ;; esac'
    )
    # A {node} before the job id is cut off with all up to the last match of the text that follows it: first cut off the run.
    lines += [cut_run, cut_before] if (True, "node") in template.name[:job] else [cut_before, cut_run]
    same_job = ' && [ "$jc_cache_job" = "$jc_directory_job" ]' if template.job_directory else ""
    return [*lines, f'    jc_is_number "$jc_cache_job" && [ "$jc_cache_job" != 0 ]{same_job}', "}"]


_JOB = (True, "job_id")
_NEXT_COMPONENT = "jc_remaining=${jc_remaining#*/}"


def _reads_job_directory(component: "Parts") -> "list[str]":
    """Return the lines that set jc_directory_job to the text of {job_id} in a directory, and fail if it does not match."""
    at = component.index(_JOB)
    before, after = _glob(component[:at]), _glob(component[at + 1 :])
    return [
        f"    jc_directory_job=${{jc_remaining%%/*}} {_NEXT_COMPONENT}",
        f"    case $jc_directory_job in {before}[1-9]*{after}) ;; *) return 1 ;; esac",
        f"    jc_directory_job=${{jc_directory_job#{before}}} jc_directory_job=${{jc_directory_job%{after}}}",
    ]


def _directories(parent: "Parts") -> "list[tuple[Parts, bool]]":
    """Given the directory of a template, return what to match piece by piece: (parts, is_component).

    A component with a placeholder whose value is unknown is a piece by itself, so that it cannot stand for several components.
    """
    unknown = {(True, "node"), (True, "account"), _JOB}
    pieces: list[tuple[Parts, bool]] = [([(False, "/")], False)]
    for component in components(parent):
        if unknown.intersection(component):
            pieces.append((component, True))
        elif pieces[-1][1]:
            pieces.append(([*component, (False, "/")], False))
        else:
            pieces[-1] = ([*pieces[-1][0], *component, (False, "/")], False)
    return pieces


# ---------------------------------------------------------------------------------------------------------------- words


def _glob(parts: "Parts") -> str:
    """Given parts of a template, return a pattern in which {node} and {account} match any name; "" for no parts."""
    return _word(parts, any_name=True) if parts else ""


def _with_raw_job_id(directory: "Parts") -> "Parts":
    """Return the parts of a directory with the job's id in place of {job_id}, which has the run in a cache's name."""
    return [(True, "raw_job_id") if part == _JOB else part for part in directory]


def _word(parts: "Parts", any_name: bool = False) -> str:
    """Given parts of a template, return one shell word of literals and of variables that task-prolog has checked.

    any_name: return a pattern in which {node} and {account} match any name.
    """
    merged: Parts = []
    for is_placeholder, text in parts:
        if merged and not is_placeholder and not merged[-1][0]:
            merged[-1] = (False, merged[-1][1] + text)
        elif text:
            merged.append((is_placeholder, text))
    words = {**_VARIABLES, "node": "*", "account": "*"} if any_name else _VARIABLES
    return "".join(words[text] if is_placeholder else quote(text) for is_placeholder, text in merged) or "''"


_VARIABLES = {
    "user": '"$jc_user"', "uid": '"$jc_uid"', "cluster": '"$jc_cluster"', "node": '"$jc_node"', "account": '"$jc_account_part"',
    "home": '"$jc_home_part"',
    "job_id": '"$jc_run_name"', "raw_job_id": '"$jc_job_id"',
}  # fmt: skip
