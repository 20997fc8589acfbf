"""Names in a store: `<store>/v1/<section>/<build>/`, and the format of a build's `contents`."""

from jobcache.cache import path_template
from jobcache.cache.fields import component, natural, number

VERSION = "v1"  # of the format of all below it; another version is another directory

# ---- the store


def store_path(text: str, *, user: str, uid: int, cluster: str) -> str:
    """Given a store template, return the path of a user's store. Raise BadName."""
    parts = path_template.cut(text)
    return path_template.fill(parts, path_template.checked(parts, {"user": user, "uid": str(uid), "cluster": cluster}))


# ---- its sections, one for each label

DEFAULT = "default"  # the section for builds without a label
JOBS = "jobs"  # the section for what jobs without a label publish
UNLABELLED = "*"  # stands for JOBS in place of a label; no label is like this
_LABEL_LENGTH = 64
_LABEL_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def is_label(text: str) -> bool:
    """Return whether `text` is a label: 1 to 64 letters, digits, `.`, `_` and `-`, and not a dot first."""
    return 0 < len(text) <= _LABEL_LENGTH and text[0] != "." and _LABEL_CHARACTERS.issuperset(text)


def section(label: str) -> str:
    """Return the name of the section for `label`, "" for builds without a label, UNLABELLED for those of jobs without one."""
    return JOBS if label == UNLABELLED else f"label-{label}" if label else DEFAULT


def parse_section(name: str) -> "str | None":
    """Return the label of a name that `section` wrote, else None."""
    if name in (DEFAULT, JOBS):
        return "" if name == DEFAULT else UNLABELLED
    head, dash, label = name.partition("-")
    return label if head == "label" and dash and is_label(label) else None


# ---- in a section: builds, and their remains

BUILD_NEW = ".jobcache-new-build-"  # a build that is being published
BUILD_TRASH = ".jobcache-trash-build-"  # a build that waits for its deletion
STAGING = ".jobcache-staging-"  # the cache in which a command builds
RESULTS = "results-"  # before the digest of a result set
DIGITS = 32  # hexadecimal, of the digest of a build's key, or of a result set


def build_name(digest: str, generation: int) -> str:
    """Return a build's name: the digest of its key, and its generation, because builds of one key can differ in content."""
    return f"{digest}.{generation}"


def parse_build(name: str) -> "tuple[str, int] | None":
    """Return (digest, generation) of a name that `build_name` wrote, else None."""
    digest, dot, tail = name.partition(".")
    generation = number(tail)
    digits = digest[len(RESULTS) :] if is_result_set(name) else digest
    if len(digits) != DIGITS or not frozenset("0123456789abcdef").issuperset(digits) or generation is None:
        return None
    return digest, generation


def is_result_set(name: str) -> bool:
    """Return whether the build of this name is a result set: results of `map` on top of a build that is not in the store."""
    return name.startswith(RESULTS)


def parse_store_debris(name: str) -> "str | None":
    """Return BUILD_NEW, BUILD_TRASH or STAGING, if `name` is one of them and a nonce, else None."""
    for prefix in (BUILD_NEW, BUILD_TRASH, STAGING):
        nonce = name[len(prefix) :]
        if name.startswith(prefix) and nonce.isalnum() and nonce.isascii():
            return prefix
    return None


# ---- in a build

FILES = "files"  # the directory of files that `datasets` wrote
CONTENTS = "contents"  # the build's key and its files, for programs that link them; see `format_contents`
MANIFEST = "manifest.json"  # CONTENTS and more, for people
RETIRED = "retired"  # empty file: the build is linked no more, and deleted once no job can hold a link to it
_KEY_LEVELS = (3, 4)  # <dataset>/<config>/<version>, of `Dataset.from_generator` and the like, or with /<hash>
_LINES_LIMIT = 100_000  # of one `contents`


def is_key(key: str) -> bool:
    """Return whether `key` is the path of a build in a cache: <dataset>/<config>/<version>[/<hash>], none of them hidden.

    `<key>.incomplete` is the directory in which `datasets` builds.
    """
    parts = key.split("/")
    if len(parts) not in _KEY_LEVELS or key.endswith(".incomplete"):
        return False
    return all(component(part) and part[0] != "." for part in parts)


def is_build_file(name: str) -> bool:
    """Return whether a file of this name can be part of a build: no lock, no `tmp*`, nothing incomplete or hidden."""
    if not component(name) or name[0] == "." or name.startswith("tmp") or name.endswith((".lock", ".incomplete")):
        return False
    # JSON has these surrogates, file names do not.
    return name.isascii() or not any("\ud800" <= ch < "\udc80" or "\udcff" < ch < "\ue000" for ch in name)


class Contents:
    """A build's files. key: its path in a cache. files: (bytes, mtime in ns) by name. checksum: of dataset_info.json.

    base: of a result set, the state of the build that it belongs to (bases.state); its checksum is the same number. None for
    a build.
    """

    __slots__ = ("key", "files", "checksum", "base")

    def __init__(self, key: str, files: "dict[str, tuple[int, int]]", checksum: int, base: "int | None" = None) -> None:
        self.key = key
        self.files = files
        self.checksum = checksum if base is None else base
        self.base = base


def format_contents(contents: Contents) -> str:
    """Return the text of `contents`: the key, one line for each file, and a last line that shows that it is complete."""
    lines = [f"{size} {mtime} {name}" for name, (size, mtime) in sorted(contents.files.items())]
    return "\n".join([contents.key, *lines, f"{len(lines)} {_kind(contents.base)} {contents.checksum}", ""])


def _kind(base: "int | None") -> str:
    return "files" if base is None else "results"


def parse_contents(text: str) -> "Contents | None":
    """Return the contents that `format_contents` wrote, None for any other or incomplete text."""
    lines = text.split("\n")
    if len(lines) < 3 or lines[-1] != "" or len(lines) > _LINES_LIMIT or not is_key(lines[0]):
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
    if checksum is None or len(files) != len(lines) - 3:
        return None
    for base in (None, checksum):
        if lines[-2] == f"{len(files)} {_kind(base)} {checksum}":
            return Contents(lines[0], files, checksum, base)
    return None
