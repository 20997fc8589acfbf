"""Path templates: from `/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}` to the paths of caches, and back."""

from jobcache.cache import cache_names
from jobcache.cache.fields import component

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Parts = list[tuple[bool, str]]  # (is it a placeholder?, the placeholder's name or the literal text)
    Matcher = Callable[[str], "dict[str, str] | None"]

PLACEHOLDERS = ("user", "uid", "cluster", "node", "account", "job_id", "home")
_JOB, _NODE, _ACCOUNT, _HOME = (True, "job_id"), (True, "node"), (True, "account"), (True, "home")
_OWNERS = (True, "user"), (True, "uid"), _HOME
ANY = "\0"  # in the result of `joined`: any text that a placeholder without a value may have


class TemplateError(ValueError):
    """An invalid path template. what: the problem. remedy: the next step."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what
        self.remedy = remedy


class BadName(ValueError):
    """A user, node, cluster or account has a name that cannot be part of a path."""


class Template:
    """A path template: its `text`, and that text as `parts`. Raise TemplateError for an invalid one.

    parent, name: the parts of the directory and of the last component.
    above: the parts of the path above the first component that names the user or the job; those of a home, if it begins with one.
    in_home: it begins with {home}. In the parts, a `/` precedes it: the value is the path of the home without its first `/`.
    job_directory: the parts of the path down to a directory that names the job, which the site makes and deletes; [] for none.
    """

    __slots__ = ("text", "parts", "parent", "above", "job_directory", "name", "in_home")

    def __init__(self, text: str) -> None:
        self.text = text
        self.in_home = text.startswith("{home}/")
        path = f"/{text}" if self.in_home else text
        self.parts = cut(path)
        if self.parts.count(_HOME) != self.in_home:
            raise TemplateError("{home} elsewhere than at the beginning", "begin the path with {home}/")
        above, _, last = path.rpartition("/")
        self.parent = cut(above)
        self.name = cut(last)
        _check(path, self.parent, self.name)
        if self.in_home:
            self.above = [(False, "/"), _HOME]
        else:
            self.above = cut(above[: _first(above, "{user}", "{uid}", "{job_id}")].rpartition("/")[0])
        levels = above.split("/")
        at = next((at for at, level in enumerate(levels) if "{job_id}" in level), -1)
        self.job_directory = cut("/".join(levels[: at + 1]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def bind(
        self, *, user: str, uid: int, cluster: str, node: str, account: str = "", job_id: int = 0, home: str = ""
    ) -> "Place":
        """Return the place of a user's caches on a node. Raise BadName.

        account, job_id, home: only a template that has them in a directory needs them. home: the absolute path.
        """
        values = {"user": user, "uid": str(uid), "cluster": cluster, "node": node, "account": account}
        checked(self.parts, values)
        if self.job_directory:
            checked(self.parent, {"job_id": str(job_id or "")})
        at = self.name.index(_JOB)
        values["job_id"] = str(job_id)
        if self.in_home:
            values["home"] = home_value(home)
        parent, above = fill(self.parent, values), fill(self.above, values)
        if self.in_home:
            above = above.rpartition("/")[0]  # the home itself is the user's
        place = Place(parent, above, fill(self.name[:at], values), fill(self.name[at + 1 :], values))
        place.job_directory = fill(self.job_directory, values)
        return place

    def names_user(self) -> bool:
        """Return whether a directory above the last component has the user's name or uid."""
        return any(part in self.parent for part in _OWNERS)

    def has_job(self, parent: str, job_id: int) -> bool:
        """Return whether `parent`, a directory of this template, can hold a cache of this job.

        It cannot if it is the directory of another job.
        """
        if not self.job_directory:
            return True
        levels = components(self.job_directory)
        return matcher(levels[-1], {"job_id": str(job_id)})(parent.split("/")[len(levels)]) is not None

    def has_directory(self, path: str) -> bool:
        """Return whether `path` can be a directory of this template, by its names."""
        names, levels = path.split("/")[1:], components(self.parent)
        return len(names) == len(levels) and all(matcher(level, {})(name) is not None for level, name in zip(levels, names))


class Place:
    """Where one user's caches are on one node: in the directory `parent`, with names `prefix`<job>`suffix`.

    above: the part of `parent` above the first component that names the user or the job.
    job_directory: the part of `parent` that the site makes for each job, and deletes; "" for none.
    """

    __slots__ = ("parent", "above", "job_directory", "prefix", "suffix")

    def __init__(self, parent: str, above: str, prefix: str, suffix: str) -> None:
        self.parent = parent
        self.above = above
        self.job_directory = ""
        self.prefix = prefix
        self.suffix = suffix

    def cache_name(self, job_id: int, run: int) -> str:
        """Return the last component of the path of a job's cache."""
        return f"{self.prefix}{cache_names.format_job(job_id, run)}{self.suffix}"

    def cache(self, job_id: int, run: int) -> str:
        """Return the absolute path of a job's cache."""
        return f"{self.parent}/{self.cache_name(job_id, run)}"

    def run_cache(self, pid: int, nonce: str) -> str:
        """Return the absolute path of the cache of a `jobcache run` outside of jobs."""
        return f"{self.parent}/{self.prefix}{cache_names.format_run(pid, nonce)}{self.suffix}"

    def parse(self, name: str) -> "tuple[int, int] | None":
        """Return (job_id, run) if `name`, a last component, is the name of a job's cache here, else None."""
        if not name.startswith(self.prefix) or not name.endswith(self.suffix):
            return None
        return cache_names.parse_job(name[len(self.prefix) : len(name) - len(self.suffix)])


def cut(text: str) -> "list[tuple[bool, str]]":
    """Return a template's text as (is_placeholder, text) pairs. Raise TemplateError."""
    parts: list[tuple[bool, str]] = []
    rest = text
    while rest:
        literal, brace, rest = rest.partition("{")
        if "}" in literal:
            raise TemplateError("a } without its {", "placeholders are written {user}")
        if literal:
            parts.append((False, literal))
        if brace:
            name, closing, rest = rest.partition("}")
            if not closing:
                raise TemplateError("a { without its }", "placeholders are written {user}")
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{placeholder}}}" for placeholder in PLACEHOLDERS)
                raise TemplateError(f"unknown placeholder {{{name}}}", f"known are {known}")
            parts.append((True, name))
    return parts


def _first(text: str, *placeholders: str) -> int:
    """Return where the first of these placeholders stands in `text`. One of them does."""
    return min(at for at in map(text.find, placeholders) if at >= 0)


def _check(text: str, parent: "Parts", name: "Parts") -> None:
    """Raise TemplateError for a template whose names could not be parsed, or could belong to two users or jobs."""
    if not text.startswith("/"):
        raise TemplateError("not an absolute path", "begin it with /")
    if any(ch < " " or ch == "\x7f" for ch in text):
        raise TemplateError("a control character in it", "remove it")
    if any(part in ("", ".", "..") for part in text[1:].split("/")):
        raise TemplateError("an empty component, `.` or `..` in it", "write the path out, without a slash at its end")
    if name.count(_JOB) != 1:
        raise TemplateError("{job_id} has to stand once, in the last component", "end it like /hf-datasets-{job_id}")
    if _HOME in parent and _JOB in parent:
        raise TemplateError("{job_id} in a directory below {home}", "remove it: no site makes a directory for each job there")
    if parent.count(_JOB) > 1:
        raise TemplateError("{job_id} in more than one directory", "name the directory that the site makes for each job once")
    if _JOB not in parent and not any(part in parent for part in _OWNERS):
        problem = "neither {user} nor {uid} in a directory above the last component"
        raise TemplateError(problem, "give each user a directory of their own")
    if any({one, other} == {_NODE, _JOB} for one, other in zip(name, name[1:])):
        raise TemplateError("{node} and {job_id} side by side", "put a `-` between them: n1 and 42 would be n14 and 2")
    if _ACCOUNT in name:
        raise TemplateError("{account} in the last component", "write it in a directory: an Epilog may not know the account")
    for level in components(parent):
        _check_directory(level)
    _check_job_directory(parent)
    if not name[0][0] and name[0][1].startswith(cache_names.META):
        problem = f"a last component that begins with {cache_names.META}"
        raise TemplateError(problem, "begin it differently: jobcache's own files have such names")


def _check_directory(level: "Parts") -> None:
    """Raise TemplateError for a directory whose name could stand for two accounts or jobs."""
    placeholders = [part for part in level if part[0] and part[1] != "cluster"]
    if _ACCOUNT in placeholders and set(placeholders) != {_ACCOUNT}:
        raise TemplateError("{account} and another placeholder in one directory", "put a `/` between them")
    if _JOB in placeholders and set(placeholders) != {_JOB}:
        raise TemplateError("{job_id} and another placeholder in one directory", "put a `/` between them")


def _check_job_directory(parent: "Parts") -> None:
    """Raise TemplateError if the sweep could not know the owner of what is below the directory of a job."""
    below = parent[parent.index(_JOB) + 1 :] if _JOB in parent else []
    if not any(part in parent for part in _OWNERS) and (_NODE in below or _ACCOUNT in below):
        raise TemplateError("{node} or {account} below the directory of a job", "name the user above it: {user} or {uid}")


def checked(parts: "Parts", values: "dict[str, str]") -> "dict[str, str]":
    """Return `values`, text by placeholder. Raise BadName if a part needs one that cannot be part of a path."""
    for name, value in values.items():
        if (True, name) in parts and not component(value):
            raise BadName(f"{name} {value!r} cannot be part of a path")
    return values


def home_value(path: str) -> str:
    """Return the value of {home}: the absolute path of a home without slashes at its ends. Raise BadName."""
    value = path.rstrip("/")[1:]
    if not path.startswith("/") or not all(map(component, value.split("/"))):
        raise BadName(f"the home {path!r} is not an absolute path without empty components, `.` and `..`")
    return value


def fill(parts: "Parts", values: "dict[str, str]") -> str:
    """Return the text of the parts. Raise KeyError for a placeholder without a value."""
    return "".join(values[text] if variable else text for variable, text in parts)


# ---- for sweeps, which read the names of all users and nodes


def components(parts: "Parts") -> "list[Parts]":
    """Return the parts of each component of an absolute directory."""
    cut: list[Parts] = [[]]
    for variable, text in parts:
        first, *others = [text] if variable else text.split("/")
        cut[-1].append((variable, first))
        cut += [[(False, other)] for other in others]
    return [[part for part in component if part[1]] for component in cut[1:]]


def down_to(template: Template, placeholder: "tuple[bool, str]") -> "list[Parts]":
    """Return the parts of each directory down to the first one with a placeholder; of all directories if none has it."""
    levels = components(template.parent)
    at = next((at for at, level in enumerate(levels) if placeholder in level), len(levels) - 1)
    return levels[: at + 1]


def joined(parts: "Parts", values: "dict[str, str]") -> str:
    """Return the text of the parts, with ANY for a placeholder without a value."""
    return "".join(values.get(text, ANY) if variable else text for variable, text in parts)


def matcher(parts: "Parts", values: "dict[str, str]") -> "Matcher":
    """Return a function that, given a name, returns the text of each placeholder in it, or None if it does not match.

    values: the only text that matches, by placeholder.
    """
    import re  # too slow for the hot path, which never comes here

    job, run = "[1-9][0-9]*(?:-r[1-9][0-9]*)?", f"run-[1-9][0-9]*-[a-z]{{{cache_names.RUN_NONCE}}}"
    shapes = {"job_id": f"{job}|{run}", "uid": "0|[1-9][0-9]*"}
    pattern = ""
    for at, (variable, text) in enumerate(parts):
        if not variable or text in values:
            pattern += re.escape(values[text] if variable else text)
        else:
            pattern += f"(?P<{text}_{at}>{shapes.get(text, '.+')})"
    compiled = re.compile(pattern, re.DOTALL)

    def match(name: str) -> "dict[str, str] | None":
        found = compiled.fullmatch(name)
        if found is None:
            return None
        known: dict[str, str] = {}
        for key, value in found.groupdict().items():
            if known.setdefault(key.rpartition("_")[0], value) != value:
                return None
        return known

    return match
