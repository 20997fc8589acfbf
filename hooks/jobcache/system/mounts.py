"""The mount table of this process. It is read from /proc alone: no filesystem is touched, so none can hang the reader."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_TABLE = "/proc/self/mountinfo"
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))  # the last one last


class Mount:
    """One mount: the directory `point`, `device` as major:minor, the filesystem's type, the mount's and its options."""

    __slots__ = ("point", "device", "fstype", "options")

    def __init__(self, point: str, device: str, fstype: str, options: "tuple[str, ...]") -> None:
        self.point = point
        self.device = device
        self.fstype = fstype
        self.options = options


def read() -> "list[Mount]":
    """Return all mounts in the order of the table. Raise OSError."""
    with open(_TABLE, encoding="utf-8", errors="surrogateescape") as table:
        return parse(table)


def parse(lines: "Iterable[str]") -> "list[Mount]":
    """Return the mounts that lines of mountinfo (proc(5)) describe."""
    mounts = []
    for line in lines:
        left, _, right = line.rstrip("\n").partition(" - ")
        fields, about = left.split(" "), right.split(" ")
        point = fields[4]
        for escape, character in _ESCAPES:
            point = point.replace(escape, character)
        mounts.append(Mount(point, fields[2], about[0], (*fields[5].split(","), *about[2].split(","))))
    return mounts


def containing(path: str, mounts: "list[Mount]") -> "Mount | None":
    """Return the mount on which the absolute `path` lies, as its spelling says; None where the table has none.

    Of several mounts on one directory the last one is visible.
    """
    above = [mount for mount in reversed(mounts) if (path + "/").startswith(mount.point.rstrip("/") + "/")]
    return max(above, key=lambda mount: len(mount.point), default=None)
