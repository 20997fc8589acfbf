"""policy.sh: the whole of the site's policy, as the shell functions and variables that task-prolog and epilog source.

Every value stands in single quotes: nothing that a configuration file holds can become shell code. A pure function of
the settings; `apply` writes it down.
"""

from jobcache.cache import cache_names
from jobcache.cache.path_template import Template, cut
from jobcache.config.settings import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEAD = """\
# Compiled from {config} by `jobcache apply`, and replaced by the next one: change it there.
# shellcheck shell=sh disable=SC1003,SC2016,SC2026,SC2034,SC2154,SC2221,SC2222
"""


def render(settings: Settings) -> str:
    """Return the text of policy.sh."""
    lines = [_HEAD.format(config=quote(settings.config).replace("\n", " "))]
    lines += _constants(settings)
    lines += _decide(settings)
    for at, rule in enumerate(settings.rules):
        lines += _match(at, rule["match"])
    lines += _each_export(settings)
    lines += _in_cache(settings)
    lines.append(f"jc_whole={quote(settings.hash)}")
    return "\n".join(lines) + "\n"


def quote(text: str) -> str:
    """Return `text` as one shell word that stands for the same bytes."""
    return "'" + text.replace("'", "'\\''") + "'"


def pattern(text: str) -> str:
    """Return a shell-style pattern (`*`, `?`, `[a-z]`, `[!a-z]`) as a `case` pattern in which all else is literal.

    Raise ValueError for brackets that hold anything but a leading `!`, letters, digits, `_`, `.` and ranges of these:
    there shells differ.
    """
    out, literal, rest = [], "", text
    while rest:
        ch, rest = rest[0], rest[1:]
        if ch not in "*?[":
            literal += ch
            continue
        out.append(quote(literal) if literal else "")
        literal = ""
        if ch == "[":
            inside, closing, rest = rest.partition("]")
            if not closing or not _is_set(inside[1:] if inside.startswith("!") else inside):
                raise ValueError(f"{text!r}: brackets hold a leading !, letters, digits, _ . and ranges such as a-z")
            ch = f"[{inside}]"
        out.append(ch)
    out.append(quote(literal) if literal else "")
    return "".join(out) or "''"


def _is_set(inside: str) -> bool:
    """Whether every shell takes `inside` for the same characters: each as it is, or a range that ascends."""
    at = 0
    while at < len(inside):
        first, dash, last = inside[at], inside[at + 1 : at + 2], inside[at + 2 : at + 3]
        if not (first.isascii() and (first.isalnum() or first in "_.")):
            return False
        if dash == "-":
            if (
                not any(kind(first) and kind(last) for kind in (str.isdigit, str.islower, str.isupper))
                or not first <= last <= "z"
            ):
                return False
            at += 2
        at += 1
    return at > 0


def _constants(settings: Settings) -> "list[str]":
    return [
        f"jc_hash={quote(settings.hash)}",
        f"jc_cluster={quote(settings.cluster)}",
        f"jc_python={quote(settings.python)}",
        f"jc_package={quote(settings.package)}",
        f"jc_min_uid={settings.min_uid}",
        f"jc_deadline={_seconds(settings.task_prolog_deadline)}",
        f"jc_chain={quote(settings.task_prolog_chain or '')}",
        f"jc_epilog_deadline={_seconds(settings.epilog_deadline)}",
        f"jc_log={quote(settings.log_file or '')}",
        f"jc_syslog={quote(settings.log_socket or '')}",
    ]


def _seconds(value: float) -> str:
    """POSIX sleep takes whole seconds: a deadline is rounded down, to one at the least."""
    return str(max(1, int(value)))


def _decide(settings: Settings) -> "list[str]":
    """jc_decide: what holds for the job that jc_user, jc_partition, jc_account and jc_qos describe."""
    lines = ["jc_decide() {", "    jc_cache=on jc_rule=''", *_assign(settings.base, 0)]
    for name, template in (("store", settings.store_user), ("site", settings.store_site)):
        lines.append(f"    jc_{name}={_word(cut(template)) if template else quote('')}")
    word = "if"
    for at, rule in enumerate(settings.rules):
        lines += [f"    {word} jc_match_{at}; then", f"        jc_rule={at + 1} jc_cache={quote(rule.get('cache', 'on'))}"]
        lines += ["    " + line for line in _assign(rule, at + 1)]
        word = "elif"
    if settings.rules:
        lines.append("    fi")
    return [*lines, "}"]


def _assign(keys: "dict[str, Any]", at: int) -> "list[str]":
    lines = [f"    jc_{key}={quote(str(keys[key]))}" for key in ("mode", "scope", "offline") if key in keys]
    if "path" in keys:
        lines.append(f"    jc_dir={_word(Template(str(keys['path'])).parts)}")
    if "exports" in keys:
        lines.append(f"    jc_exports_of={at}")
    return lines


def _match(at: int, match: "dict[str, list[str]]") -> "list[str]":
    lines = [f"jc_match_{at}() {{"]
    for key, patterns in match.items():
        lines.append(f"    case $jc_{key} in {' | '.join(map(pattern, patterns))}) ;; *) return 1 ;; esac")
    return [*lines, "}"]


def _each_export(settings: Settings) -> "list[str]":
    """jc_each_export FUNCTION: call FUNCTION NAME CURRENT WANTED for each variable."""
    lines = ["jc_each_export() {", "    case $jc_exports_of in"]
    for at, keys in enumerate([settings.base, *settings.rules]):
        if "exports" in keys:
            lines.append(f"    {at})")
            for name, value in keys["exports"].items():
                below = value[len("{cache}") :]
                lines.append(f'        "$1" {name} "${{{name}-}}" "$jc_cachedir"{quote(below)}')
            lines.append("        ;;")
    return [*lines, "    esac", "}"]


def _in_cache(settings: Settings) -> "list[str]":
    """jc_in_cache VALUE: whether VALUE lies in a cache of this user's, of whatever job; sets jc_found to that job."""
    lines = []
    for at, template in enumerate(settings.templates):
        lines += _in_one(at, template)
    tests = " || ".join(f'jc_in_{at} "$1"' for at in range(len(settings.templates)))
    return [*lines, *_HANDED_ON, "jc_in_cache() {", f'    {tests} || jc_handed_on "$1"', "}"]


# The same for a path that is not known here: another node's policy is newer. jc_found is 0 for a job that is not this one.
_HANDED_ON = """\
jc_handed_on() {
    case ${JOBCACHE_DIR-} in /*) jc_found=${JOBCACHE_DIR##*/} ;; *) return 1 ;; esac
    case $1/ in "$JOBCACHE_DIR"/*) ;; *) return 1 ;; esac
    case $jc_found in
    *[0-9]"$jc_id"* | *"$jc_id"[0-9]*) jc_found=0 ;;
    *"$jc_id"*) jc_found=$jc_id ;;
    *[0-9]*) jc_found=0 ;;
    *) return 1 ;;
    esac
}""".splitlines()


def _in_one(at: int, template: Template) -> "list[str]":
    """jc_in_<at> VALUE: the same for one template. A {node} may be another node's: it stands for any part of a component."""
    lines = [f"jc_in_{at}() {{", "    jc_rest=$1/"]
    for glob, whole in _directories(template.parent):
        if whole:
            lines.append(f"    case ${{jc_rest%%/*}} in {glob}) jc_rest=${{jc_rest#*/}} ;; *) return 1 ;; esac")
        else:
            lines.append(f"    case $jc_rest in {glob}*) jc_rest=${{jc_rest#{glob}}} ;; *) return 1 ;; esac")
    job = template.name.index((True, "job_id"))
    before, after = _glob(template.name[:job]), _glob(template.name[job + 1 :])
    lines.append("    jc_found=${jc_rest%%/*}")
    letters = "[a-z]" * cache_names.RUN_NONCE
    lines.append(f"    case $jc_found in {before}'run-'[1-9]*-{letters}{after}) return 0 ;; esac")  # of `jobcache run`: no job's
    lines.append(f"    case $jc_found in {before}[1-9]*{after}) jc_found=${{jc_found%%{after}}} ;; *) return 1 ;; esac")
    cut = f"    jc_found=${{jc_found##{before}}}"
    run = '    case $jc_found in *-r0) ;; *-r*) if jc_is_number "${jc_found##*-r}"; then jc_found=${jc_found%-r*}; fi ;; esac'
    # A {node} ahead of the job is cut off up to the last of what follows it, so the run has to be gone by then.
    lines += [run, cut] if (True, "node") in template.name[:job] else [cut, run]
    return [*lines, '    jc_is_number "$jc_found" && [ "$jc_found" != 0 ]', "}"]


def _directories(parent: "list[tuple[bool, str]]") -> "list[tuple[str, bool]]":
    """Cut a directory into what is matched in one go: (a pattern, whether it is one component, because a {node} is in it)."""
    components: list[list[tuple[bool, str]]] = [[]]
    for variable, text in parent:
        first, *others = [text] if variable else text.split("/")
        components[-1].append((variable, first))
        components += [[(False, other)] for other in others]
    pieces: list[tuple[list[tuple[bool, str]], bool]] = []
    for component in components:
        if (True, "node") in component:
            pieces.append((component, True))
        elif pieces and not pieces[-1][1]:
            pieces[-1] = ([*pieces[-1][0], *component, (False, "/")], False)
        else:
            pieces.append(([*component, (False, "/")], False))
    return [(_glob(piece), whole) for piece, whole in pieces]


def _glob(parts: "list[tuple[bool, str]]") -> str:
    return _word(parts, node="*") if parts else ""


def _word(parts: "list[tuple[bool, str]]", node: str = '"$jc_node"') -> str:
    """Return the parts as one word of literals and of the variables that task-prolog has checked."""
    merged: list[tuple[bool, str]] = []
    for variable, text in parts:
        if merged and not variable and not merged[-1][0]:
            merged[-1] = (False, merged[-1][1] + text)
        elif text:
            merged.append((variable, text))
    names = {"user": '"$jc_user"', "uid": '"$jc_uid"', "cluster": '"$jc_cluster"', "node": node, "job_id": '"$jc_job"'}
    return "".join(names[text] if variable else quote(text) for variable, text in merged) or "''"
