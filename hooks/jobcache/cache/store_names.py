"""The names in a store: sections, builds, their contents."""

from jobcache.cache import path_template
from jobcache.cache.fields import component, natural, number

TYPE_CHECKING = False

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


def store_path(text: str, *, user: str, uid: int, cluster: str) -> str:
    """Return where the store template `text` puts a store. Raise BadName for a name that no path can hold."""
    parts = path_template.cut(text)
    values = {"user": user, "uid": str(uid), "cluster": cluster}
    for name, value in values.items():
        if (True, name) in parts and not component(value):
            raise path_template.BadName(f"{name} {value!r} cannot be part of a path")
    return path_template.fill(parts, values)


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
