"""The names on disk: a job's cache, what lies in it, what is left of it.

Names are formatted and parsed here and nowhere else in Python; what this module cannot parse, nothing may delete.
The TaskProlog does the same in shell, generated from the same `Template` by `policy`.

On the hot path: standard library only, and nothing heavy of it.
"""

from jobcache.job import component, natural, number

META = ".jobcache"  # <cache>/.jobcache/, and in it:
ID = "id"  # one line for the shell: cluster job_id run uid
RECORD = "job.json"  # the record
NODES = "nodes"  # nodes/<node>: one lease a node
KEEP = "keep"  # exists: the user said JOBCACHE=keep
SHARED = "shared"  # exists: more than one node has held a lease
SEEDS = "seeds"  # while the cache is made: what is linked into it, before it has its place

TRASH = ".jobcache-trash-"  # beside the cache: renamed away, deletion pending
ASIDE = ".jobcache-aside-"  # beside the cache: moved by mistake and without a way back; nothing deletes it
NEW = ".jobcache-new-"  # beside the cache: being made, not yet renamed into place
RUN_NONCE = 8  # letters, and no digits: no template can take the end of it for a job's id

# A store: <store>/v1/<section>/<build>/, and in a build:
VERSION = "v1"  # of all this; another version is another directory
DEFAULT = "default"  # the section of builds without a label; label-<label> is a label's
CONTENTS = "contents"  # the build's key and its files, for who links them; `format_contents`
MANIFEST = "manifest.json"  # the same and more, for people
FILES = "files"  # what `datasets` wrote
RETIRED = "retired"  # exists: not linked any more since then, and deleted when no job can hold a link to it
BUILD_NEW = ".jobcache-new-build-"  # in a section: being published
BUILD_TRASH = ".jobcache-trash-build-"  # in a section: renamed away, deletion pending
STAGING = ".jobcache-staging-"  # in a section: the cache in which a command builds

_LABEL_MAX = 64
_LABEL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_DIGEST = 32  # hexadecimal digits of a key's digest in a build's name
_KEY_LEVELS = 4  # <dataset>/<config>/<version>/<hash>
_MOST_FILES = 100_000  # of one build

PLACEHOLDERS = ("user", "uid", "cluster", "node", "job_id")
ANY = "\0"  # in a component that `joined` made: whatever a placeholder without a value may stand for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Parts = list[tuple[bool, str]]  # (is it a placeholder?, its name or the literal text)
    Matcher = Callable[[str], "dict[str, str] | None"]


class TemplateError(ValueError):
    """A path template that cannot serve: `what` is wrong, and the `mend`."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(f"{what}; {mend}")
        self.what = what
        self.mend = mend


class BadName(ValueError):
    """A user, node or cluster name that cannot be part of a path."""


def format_job(job_id: int, run: int) -> str:
    """Return what stands for `{job_id}`: `4242`, for restart n of a requeued job `4242-r<n>`."""
    return f"{job_id}-r{run}" if run else str(job_id)


def parse_job(text: str) -> "tuple[int, int] | None":
    """Return (job_id, run) of what `format_job` wrote, else None."""
    head, dash, tail = text.partition("-r")
    job_id = number(head)
    run = number(tail) if dash else 0
    return None if job_id is None or run is None else (job_id, run)


def format_run(pid: int, nonce: str) -> str:
    """Return what stands for `{job_id}` where there is no job: `run-<pid>-<letters>`, of `jobcache run`."""
    return f"run-{pid}-{nonce}"


def parse_run(text: str) -> "int | None":
    """Return the pid of what `format_run` wrote, else None. It is never what `parse_job` reads."""
    word, _, rest = text.partition("-")
    head, _, nonce = rest.partition("-")
    pid = number(head)
    is_nonce = len(nonce) == RUN_NONCE and nonce.isascii() and nonce.isalpha() and nonce.islower()
    return pid if word == "run" and is_nonce else None


def host_cluster(host: str) -> str:
    """Return what stands for the cluster in the id of a cache that no job has: `@<host>`, which no ClusterName is."""
    return f"@{host}"


def format_lease(node: str, nonce: str) -> str:
    """Return the name of one process's lease, where each process holds its own; a hook's is the node's name alone."""
    return f"{node}+{nonce}"


def lease_node(name: str) -> str:
    """Return the node of a lease's name, of either kind."""
    return name.partition("+")[0]


def format_id(cluster: str, job_id: int, run: int, uid: int) -> str:
    """Return the line of `.jobcache/id`, without its newline."""
    return f"{cluster} {job_id} {run} {uid}"


def parse_id(line: str) -> "tuple[str, int, int, int] | None":
    """Return (cluster, job_id, run, uid) of a whole, newline-ended `.jobcache/id`, else None."""
    words = line[:-1].split(" ")
    if not line.endswith("\n") or len(words) != 4 or not component(words[0]):
        return None
    job_id, run, uid = number(words[1]), natural(words[2]), natural(words[3])
    if job_id is None or run is None or uid is None:
        return None
    return words[0], job_id, run, uid


def trash_name(job_id: int, nonce: str) -> str:
    """Return the name to which a cache of `job_id` is renamed before its deletion."""
    return f"{TRASH}{job_id}-{nonce}"


def new_name(job_id: int, nonce: str) -> str:
    """Return the name under which a cache of `job_id` is built."""
    return f"{NEW}{job_id}-{nonce}"


def aside_name(trash: str) -> str:
    """Return the name for what was renamed to `trash`, a name by `trash_name`, and must not be deleted."""
    return ASIDE + trash[len(TRASH) :]


def parse_debris(name: str) -> "tuple[str, int] | None":
    """Return (`TRASH`, `NEW` or `ASIDE`, job_id) of a name that one of the functions above wrote, else None."""
    for prefix in (TRASH, NEW, ASIDE):
        if name.startswith(prefix):
            head, dash, nonce = name[len(prefix) :].partition("-")
            job_id = number(head)
            if job_id is not None and nonce and nonce.isalnum() and nonce.isascii():
                return prefix, job_id
    return None


def store_path(text: str, *, user: str, uid: int, cluster: str) -> str:
    """Return where the store template `text` puts a store. Raise BadName for a name that no path can hold."""
    parts = cut(text)
    values = {"user": user, "uid": str(uid), "cluster": cluster}
    for name, value in values.items():
        if (True, name) in parts and not component(value):
            raise BadName(f"{name} {value!r} cannot be part of a path")
    return _fill(parts, values)


def is_label(text: str) -> bool:
    """Whether `text` can name a section of a store: letters, digits, `.`, `_` and `-`, 64 at most, no dot in front."""
    return 0 < len(text) <= _LABEL_MAX and text[0] != "." and _LABEL.issuperset(text)


def section(label: str) -> str:
    """Return the name of the section of `label`; "" is the default one's."""
    return f"label-{label}" if label else DEFAULT


def parse_section(name: str) -> "str | None":
    """Return the label of a name that `section` wrote, else None."""
    if name == DEFAULT:
        return ""
    head, dash, label = name.partition("-")
    return label if head == "label" and dash and is_label(label) else None


def is_scope(name: str) -> bool:
    """Whether `name` is that of a directory in a cache that `scope: node` or `task` gives to a node or a task."""
    return name == "batch" or name.startswith("node-") or (name.startswith("step-") and "-task-" in name)


def build_name(digest: str, generation: int) -> str:
    """Return a build's name: the digest of its key, and its generation, since a key does not tell what is in a build."""
    return f"{digest[:_DIGEST]}.{generation}"


def parse_build(name: str) -> "tuple[str, int] | None":
    """Return (digest, generation) of a name that `build_name` wrote, else None."""
    digest, dot, tail = name.partition(".")
    generation = number(tail)
    if len(digest) != _DIGEST or not frozenset("0123456789abcdef").issuperset(digest) or generation is None:
        return None
    return digest, generation


def parse_store_debris(name: str) -> "str | None":
    """Return which of BUILD_NEW, BUILD_TRASH and STAGING begins a name that is one of these, else None."""
    for prefix in (BUILD_NEW, BUILD_TRASH, STAGING):
        nonce = name[len(prefix) :]
        if name.startswith(prefix) and nonce.isalnum() and nonce.isascii():
            return prefix
    return None


def is_key(key: str) -> bool:
    """Whether `key` is a build's path in a cache: <dataset>/<config>/<version>/<hash>, nothing hidden, nothing of ours."""
    parts = key.split("/")
    return len(parts) == _KEY_LEVELS and all(component(part) and part[0] != "." for part in parts)


def is_build_file(name: str) -> bool:
    """Whether a file of this name can be part of a build: locks, `tmp*` and what is incomplete never are."""
    if not component(name) or name[0] == "." or name.startswith("tmp") or name.endswith((".lock", ".incomplete")):
        return False
    return not any("\ud800" <= ch < "\udc80" or "\udcff" < ch < "\ue000" for ch in name)  # JSON can say what no name can be


class Contents:
    """What is in a build. files: (bytes, mtime in nanoseconds) by name. checksum: of its dataset_info.json."""

    __slots__ = ("key", "files", "checksum")

    def __init__(self, key: str, files: "dict[str, tuple[int, int]]", checksum: int) -> None:
        self.key = key
        self.files = files
        self.checksum = checksum


def format_contents(contents: Contents) -> str:
    """Return the text of a build's `contents`: the key, a line a file, and a last line, without which it is not whole."""
    lines = [f"{size} {mtime} {name}" for name, (size, mtime) in sorted(contents.files.items())]
    return "\n".join([contents.key, *lines, f"{len(lines)} files {contents.checksum}", ""])


def parse_contents(text: str) -> "Contents | None":
    """Return what `format_contents` wrote, else None."""
    lines = text.split("\n")
    if len(lines) < 3 or lines[-1] != "" or len(lines) > _MOST_FILES or not is_key(lines[0]):
        return None
    files = {}
    for line in lines[1:-2]:
        words = line.split(" ", 2)
        if len(words) != 3 or not is_build_file(words[2]):
            return None
        size, mtime = natural(words[0], 2**63), natural(words[1], 2**63)
        if size is None or mtime is None:
            return None
        files[words[2]] = (size, mtime)
    checksum = natural(lines[-2].rpartition(" ")[2])
    whole = lines[-2] == f"{len(files)} files {checksum}" and len(files) == len(lines) - 3
    return Contents(lines[0], files, checksum) if whole and checksum is not None else None


class Template:
    """A path template such as `/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}`.

    `parts` is its text cut into (is_placeholder, text) pairs. Raise TemplateError for one that names a relative path,
    lacks `{job_id}` in its last component, or `{user}` or `{uid}` in a directory above, or has anything unknown in it.
    """

    __slots__ = ("text", "parts", "parent", "name")

    def __init__(self, text: str) -> None:
        self.text = text
        self.parts = cut(text)
        above, _, last = text.rpartition("/")
        self.parent = cut(above)
        self.name = cut(last)
        _check(text, self.parent, self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def bind(self, *, user: str, uid: int, cluster: str, node: str) -> "Place":
        """Return where this template puts the caches of `user` on `node`. Raise BadName for a name that no path can hold."""
        values = {"user": user, "uid": str(uid), "cluster": cluster, "node": node}
        for name, value in values.items():
            if (True, name) in self.parts and not component(value):
                raise BadName(f"{name} {value!r} cannot be part of a path")
        at = self.name.index((True, "job_id"))
        return Place(_fill(self.parent, values), _fill(self.name[:at], values), _fill(self.name[at + 1 :], values))


class Place:
    """Where one user's caches lie on one node: directory `parent`, names `prefix`<job>`suffix`."""

    __slots__ = ("parent", "prefix", "suffix")

    def __init__(self, parent: str, prefix: str, suffix: str) -> None:
        self.parent = parent
        self.prefix = prefix
        self.suffix = suffix

    def cache_name(self, job_id: int, run: int) -> str:
        """Return the last component of a cache's path."""
        return f"{self.prefix}{format_job(job_id, run)}{self.suffix}"

    def cache(self, job_id: int, run: int) -> str:
        """Return a cache's absolute path."""
        return f"{self.parent}/{self.cache_name(job_id, run)}"

    def run_cache(self, pid: int, nonce: str) -> str:
        """Return the absolute path of a cache that `jobcache run` makes where there is no job."""
        return f"{self.parent}/{self.prefix}{format_run(pid, nonce)}{self.suffix}"

    def parse(self, name: str) -> "tuple[int, int] | None":
        """Return (job_id, run) where `name`, a last component, is that of a cache here, else None."""
        if not name.startswith(self.prefix) or not name.endswith(self.suffix):
            return None
        return parse_job(name[len(self.prefix) : len(name) - len(self.suffix)])


def cut(text: str) -> "list[tuple[bool, str]]":
    """Return the template's text as (is_placeholder, text) pairs. Raise TemplateError."""
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
                raise TemplateError(f"unknown placeholder {{{name}}}", "known are " + ", ".join(f"{{{p}}}" for p in PLACEHOLDERS))
            parts.append((True, name))
    return parts


def _check(text: str, parent: "list[tuple[bool, str]]", name: "list[tuple[bool, str]]") -> None:
    if not text.startswith("/"):
        raise TemplateError("not an absolute path", "begin it with /")
    if any(ch < " " or ch == "\x7f" for ch in text):
        raise TemplateError("a control character in it", "remove it")
    if any(part in ("", ".", "..") for part in text[1:].split("/")):
        raise TemplateError("an empty component, `.` or `..` in it", "write the path out, without a slash at its end")
    if sum(part == (True, "job_id") for part in name) != 1 or (True, "job_id") in parent:
        raise TemplateError("{job_id} has to stand once, in the last component", "end it like /hf-datasets-{job_id}")
    if (True, "user") not in parent and (True, "uid") not in parent:
        raise TemplateError(
            "neither {user} nor {uid} in a directory above the last component", "give each user a directory of their own"
        )
    if any({one, other} == {(True, "node"), (True, "job_id")} for one, other in zip(name, name[1:])):
        raise TemplateError("{node} and {job_id} side by side", "put a `-` between them: n1 and 42 would be n14 and 2")
    if not name[0][0] and name[0][1].startswith(META):
        raise TemplateError(f"a last component that begins with {META}", "that beginning is kept for our own files")


def _fill(parts: "list[tuple[bool, str]]", values: "dict[str, str]") -> str:
    return "".join(values[text] if variable else text for variable, text in parts)


def components(parts: "Parts") -> "list[Parts]":
    """Cut the parts of an absolute directory at its slashes."""
    cut: list[Parts] = [[]]
    for variable, text in parts:
        first, *others = [text] if variable else text.split("/")
        cut[-1].append((variable, first))
        cut += [[(False, other)] for other in others]
    return [[part for part in component if part[1]] for component in cut[1:]]


def joined(parts: "Parts", values: "dict[str, str]") -> str:
    """Return what the parts come to; a placeholder without a value becomes ANY."""
    return "".join(values.get(text, ANY) if variable else text for variable, text in parts)


def matcher(parts: "Parts", values: "dict[str, str]") -> "Matcher":
    """Return a function that tells of a name what its placeholders stand for, None where it is no such name.

    Placeholders that have a value in `values` are that. For sweeps, which meet the names of all users and nodes.
    """
    import re  # too dear for the hot path, which never comes here

    job, run = "[1-9][0-9]*(?:-r[1-9][0-9]*)?", f"run-[1-9][0-9]*-[a-z]{{{RUN_NONCE}}}"
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
