"""The effect of a batch script on the variables that name the cache of its user, where its text leaves no doubt.

The TaskProlog of the batch task runs before the script. If the script names another cache, its job lives from the builds
there, and a private cache has to begin with these.
"""

from jobcache.cache import default_cache, reasons, shell_commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES = ("HF_HOME", "XDG_CACHE_HOME", "HOME")  # `datasets` obeys the first one that is set
_HOME = "HOME"
_MENTIONS = "mentions HF_HOME, XDG_CACHE_HOME or HOME"
_OWN = "HF_DATASETS_CACHE"
_PARTS = ("USER", "LOGNAME")  # further variables whose values a path may contain
_BEFORE_NAME = ("read", "-r", "for", "-v", "local", "declare", "typeset", "-x", "getopts")
_NO_PROGRAM = ("srun()", "srun ()", "alias srun")  # in a script for which srun is not Slurm's
_SHELLS = ("sh", "bash", "dash", "ksh", "zsh", "ash")
_SHELL_OPTIONS = frozenset("leux")
_SHOWN = 80  # characters of a script in a message: other ones can be secret

# Commands that load no dataset: a program that runs after one still sees what the script sets then.
_HARMLESS = frozenset(
    ". : [ [[ alias basename break cat cd chmod conda continue cp cut date declare df dirname du echo eval exit export false"
    " free getconf git grep head hostname id let ln local ls lscpu mamba mkdir ml mktemp module mv nproc nvidia-smi pip pip3 popd"
    " printenv printf pushd pwd read readlink realpath return rm rmdir rsync scontrol sed seq set shift shopt shuf sleep sort"
    " source squeue stat tail tar test touch tr trap true type typeset ulimit umask uname uniq unset wc whereis"
    " which whoami".split()
)
_READS = ("}", "-", "+", "?", "#", "%", "/", "^", ",", "@", ":-", ":+", ":?")  # in ${NAME…}; `=` and `:=` write
_LITERAL = "_/.,+-@%=:"  # characters without a meaning for the shell, beside letters and digits


def after_script(text: str, env: "Mapping[str, str]") -> "Mapping[str, str]":
    """Return the variables that name the user's own cache for all programs of the batch script `text`, and the rest of `env`.

    The steps that it starts do not count: the TaskProlog of each one sees its variables. env: the variables at its begin.
    Raise Refused if it sets one, and it is not certain that all programs see one known value.
    """
    for name in default_cache.OF_CONTAINERS:
        if _places(text, name):
            what = f"the batch script mentions {name}, which gives containers another datasets cache"
            raise reasons.Refused("inherit_container", what)
    places = [place + len(name) for name in _NAMES[:2] for place in _places(text, name)]
    places += [place + len(_HOME) for place in _places(text, _HOME) if _can_set_home(text, place)]
    if not places:
        return env
    _require_shell(text)
    try:
        commands = shell_commands.read(text, max(places + _places(text, _OWN)))
    except shell_commands.Odd as odd:
        line = text.count("\n", 0, odd.at) + 1
        shown = text[odd.at :].partition("\n")[0][:_SHOWN]
        raise _refused(f"{_MENTIONS}, and line {line} is more than jobcache can read: {shown}") from None
    script = _Script(env, has_srun=not any(mark in text for mark in _NO_PROGRAM))
    for command in commands:
        if script.sets_own_value(command):
            return env
        script.follow(command)
    return script.result()


class _Script:
    """The variables while the commands are followed one by one."""

    def __init__(self, env: "Mapping[str, str]", has_srun: bool) -> None:
        self.env = dict(env)
        self.has_srun = has_srun
        self.sets_home = False
        self.exported = set(env)
        self.known: "dict[str, str | None]" = {name: env.get(name) for name in (*_NAMES, *_PARTS)}  # None: unset
        self.program = ""  # the first one that may load a dataset
        self.doubts: "dict[str, reasons.Refused]" = {}

    def sets_own_value(self, command: shell_commands.Command) -> bool:
        """Return whether no program of the script uses the private cache: HF_DATASETS_CACHE is set or unset before them all."""
        words = command.words
        if self.program or not command.plain:
            return False
        if words[0] in ("export", "unset"):
            return any(word.startswith(f"{_OWN}=") or (word == _OWN and words[0] == "unset") for word in words[1:])
        return words[0].startswith(f"{_OWN}=") and all(map(_is_assignment, words))

    def follow(self, command: shell_commands.Command) -> None:
        words = [word for word in command.words if not _is_redirection(word)]
        first = next((word for word in words if not _is_assignment(word)), "")
        sets = command.plain and (not first or (first == "export" == words[0])) and not any(word[0] == "-" for word in words)
        prints = command.plain and first in ("echo", "printf") and "-v" not in words and len(words) == len(command.words)
        is_step = self.has_srun and first == "srun"
        for word in [*command.words, command.document]:
            name, equals, value = word.partition("=")
            if sets and name in _NAMES:
                if equals:
                    self._assign(name, value)
                if first == "export":
                    self._export(name)
                continue
            for name in (*_NAMES, *_PARTS):
                for place in _writes(word, name):
                    if prints and first == words[0] and _is_text(word, place):
                        continue
                    if is_step and _is_of_step(word, place):
                        continue
                    if name == _HOME and word != _HOME and not _is_set(word, place):
                        continue
                    self._doubt(name, f"sets {name} in a way that jobcache cannot follow: {word[place : place + _SHOWN]}")
        if first == "set" and any(word == "allexport" or (word[0] in "-+" and "a" in word) for word in words[1:]):
            for name in _NAMES[:2]:
                self._doubt(name, "uses `set -a`")
        if first and not is_step and not _is_harmless(first, words):
            self.program = self.program or first

    def _assign(self, name: str, written: str) -> None:
        value = _value(written, self.known)
        if value is None or (value.startswith("~") and (name == _HOME or _HOME not in self.known)):
            self._doubt(name, f"sets {name} to a value that jobcache cannot know: {written[:_SHOWN]}")
        else:
            self.sets_home = self.sets_home or name == _HOME
            self.known[name] = value
            if name in self.exported:
                self._export(name)

    def _export(self, name: str) -> None:
        """Let programs see the variable from here on."""
        self.exported.add(name)
        value = self.known.get(name)
        if value is None or value == self.env.get(name):
            return
        if self.program:
            self._doubt(name, f"runs {self.program[:_SHOWN]} before it sets {name}")
        self.env[name] = value

    def _doubt(self, name: str, why: str) -> None:
        self.known.pop(name, None)
        self.doubts.setdefault(name, _refused(why))

    def result(self) -> "Mapping[str, str]":
        """Raise Refused."""
        for name in _NAMES:
            if name in self.doubts:
                raise self.doubts[name]
            if self.env.get(name, "").startswith("~"):
                if _HOME in self.doubts:
                    raise self.doubts[_HOME]
                if self.sets_home:
                    raise _refused(f"sets HOME, and {name} to a path below ~")
            if name in self.env:
                break
        return self.env


def _refused(why: str) -> reasons.Refused:
    return reasons.Refused("inherit_script", f"the batch script {why}")


def _require_shell(text: str) -> None:
    """Raise Refused for a script in another language than that of a shell."""
    line = text.partition("\n")[0]
    words = line[2:].split() if line.startswith("#!") else []
    if words and words[0].rpartition("/")[2] == "env":
        del words[0]
    options = words[1:]
    if (
        not words
        or words[0].rpartition("/")[2] not in _SHELLS
        or not all(option == "--login" or (option[0] == "-" and _SHELL_OPTIONS.issuperset(option[1:])) for option in options)
    ):
        raise _refused(f"{_MENTIONS}, and jobcache cannot read its language: {line[:_SHOWN]}")


# ---- words


def _places(text: str, name: str) -> "list[int]":
    """Return where the whole word `name` stands in the text."""
    found = []
    at = text.find(name)
    while at >= 0:
        if not _is_name_character(text[at - 1 : at]) and not _is_name_character(text[at + len(name) : at + len(name) + 1]):
            found.append(at)
        at = text.find(name, at + 1)
    return found


def _is_name_character(text: str) -> bool:
    return text == "_" or text.isalnum()


def _writes(word: str, name: str) -> "list[int]":
    """Return where `name` stands in a word, and not as $NAME or ${NAME…}, which only read it."""
    return [at for at in _places(word, name) if not _reads(word, at, at + len(name))]


def _reads(word: str, begin: int, end: int) -> bool:
    return word[:begin].endswith("$") or (word[:begin].endswith("${") and word[end:].startswith(_READS))


def _can_set_home(text: str, at: int) -> bool:
    """Return whether HOME at this place of a script can be set there: scripts read it often."""
    if _reads(text, at, at + len(_HOME)) or text[text.rfind("\n", 0, at) + 1 : at].lstrip().startswith("#"):
        return False
    return _is_set(text, at) or text[:at].rpartition("\n")[2].split()[-1:] in [[word] for word in _BEFORE_NAME]


def _is_set(text: str, at: int) -> bool:
    """Return whether a `=` follows HOME at this place, as in `HOME=` and `environ["HOME"] =`."""
    return "=" in text[at + len(_HOME) : at + len(_HOME) + 5]


def _is_of_step(word: str, place: int) -> bool:
    """Return whether a name at `place` in a word of an `srun` command is set for the step alone, and not in ${…} or $((…))."""
    if place == 0:
        return _is_assignment(word)
    return word.startswith("--export=") and word[place - 1] in "=,"


def _is_text(word: str, place: int) -> bool:
    """Return whether a name at `place` in an argument of `echo` is only printed, and not in a ${…} or $((…)) that sets it."""
    return word[place - 1 : place] != "{" and not any(sign in word for sign in ("$(", "$[", "`"))


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("_", "a").isalnum() and not name[0].isdigit()


def _is_redirection(word: str) -> bool:
    return word.lstrip("0123456789")[:1] in ("<", ">")


def _is_harmless(first: str, words: "list[str]") -> bool:
    if first == "eval":
        return all("$(" in word or "`" in word for word in words[1:])  # which are commands of their own here
    return first in _HARMLESS and not (first in ("conda", "mamba") and "run" in words)


# ---- values


def _value(written: str, known: "Mapping[str, str | None]") -> "str | None":
    """Return the value of a variable that a script assigns as `written`; None if it cannot be known.

    known: variables that can be in it. A leading ~ stays: `datasets` expands it as the shell does.
    """
    out, at, in_quotes = "", 0, False
    while at < len(written):
        ch = written[at]
        if ch == '"':
            in_quotes = not in_quotes
        elif ch == "$":
            text, length = _parameter(written[at + 1 :], known)
            if text is None:
                return None
            out += text
            at += length
        elif ch == "'" and not in_quotes:
            end = written.find("'", at + 1)
            out += written[at + 1 : end]
            at = end
        elif ch in "\\`\n" or not (in_quotes or ch.isalnum() or ch in _LITERAL or (ch == "~" and at == 0)):
            return None
        else:
            out += ch
        at += 1
    return None if "\n" in out or in_quotes else out


def _parameter(written: str, known: "Mapping[str, str | None]") -> "tuple[str | None, int]":
    """Given the text after a $, return the value of the variable, None if it cannot be known, and the length of its spelling."""
    default = None
    if written.startswith("{"):
        inside, closing, _ = written[1:].partition("}")
        length = len(inside) + 2
        name, dash, text = inside.partition(":-")
        if dash and all(ch.isalnum() or ch in _LITERAL for ch in text):
            default = text
        if not closing or (dash and default is None):
            return None, 0
    else:
        length = 0
        while _is_name_character(written[length : length + 1]):
            length += 1
        name = written[:length]
    if name not in known:
        return None, 0
    value = known[name] or default
    if not value or not all(ch.isalnum() or ch in _LITERAL for ch in value):
        return None, 0  # the shell could split it
    return value, length
