"""The result sets of a store, offered to the builds of a new cache.

A result set holds results of `map` on top of a build that is elsewhere: in the user's own cache, in another section, or in the
site's store. It is of use only where that build is linked, and has the state that it had when the results were computed. A child
process reads the sets and reports lines; its parent keeps what they offer.
"""

import time

from jobcache.cache import bounded, reasons, store_names, store_reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    # by key and state of the build: the target of a link and the bytes, by name of the result
    Offers = dict[tuple[str, int], dict[str, tuple[str, int]]]


def report_section(path: str, section_fd: int, owner: int, section: str, until: float, report: "bounded.Report") -> None:
    """Report the result sets of one section of the store at `path`, up to the deadline. Raise OSError."""
    for name in store_reading.by_last_use(section_fd, until, result_sets=True):
        if time.monotonic() >= until:
            return
        try:
            found = store_reading.read_whole(section_fd, name, owner, until)
        except (OSError, reasons.Refused):
            continue  # deleted meanwhile, or damaged: the job computes the results again
        if found is None:
            continue
        contents, _ = found
        lines = [f"offer {contents.base} {contents.key}", f"in {path}/{section}/{name}/{store_names.FILES}"]
        if max(map(len, lines)) > bounded.LINE:
            continue
        for line in lines + [f"result {size} {file}" for file, (size, _) in contents.files.items()]:
            report(line)


def parse(lines: "list[str]") -> "Offers":
    """Return what the lines of `report_section` offer. Of two results of one name, the first one counts. Skip other lines."""
    offers: "Offers" = {}
    results: "dict[str, tuple[str, int]]" = {}
    directory = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "offer":
            state, _, key = rest.partition(" ")
            results = offers.setdefault((key, int(state)), {})
        elif word == "in":
            directory = rest
        elif word == "result":
            size, _, name = rest.partition(" ")
            results.setdefault(name, (f"{directory}/{name}", int(size)))
    return offers


def links(offers: "Offers", key: str, state: int, files: "Iterable[str]") -> "list[tuple[str, str]]":
    """Return (name, target) of each result that is offered for this very state of a build, unless it is among its `files`."""
    offered = offers.get((key, state))
    if not offered:
        return []
    own = set(files)
    return [(name, target) for name, (target, _) in offered.items() if name not in own]
