"""The names that the user of a job can have in the path of its cache.

Slurm's answer in the TaskProlog, Slurm's answer in the Epilog and this node's passwd can differ: `alice`, `alice@corp`,
`CORP\\alice`, `nobody` (Slurm up to 23.02) or the uid (from 23.11), if slurmd could not look up the name.
"""

from jobcache.cache.fields import component

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    LookUp = Callable[[int], "str | None"]


def account_name(uid: int) -> "str | None":
    """Return the name of an account of this node; None if the account does not exist, or for no answer in time."""
    from jobcache.cache import passwd  # an Epilog that finds the cache looks up no name

    found = passwd.look_up(uid)
    return found[0] if found else None


class UserNames:
    """The names of one user, each once; the most likely one is first.

    given: Slurm's answer in the Epilog, None for no valid one. look_up: returns the name of an account.
    """

    def __init__(self, uid: int, given: "str | None", look_up: "LookUp" = account_name) -> None:
        self._uid = uid
        self._given = given
        self._look_up = look_up
        self._account: "list[str | None]" = []  # the result of the only look-up

    def __iter__(self) -> "Iterator[str]":
        """Yield the names. The account is looked up only if a caller asks for more than Slurm's answer and its short form."""
        yielded: "set[str]" = set()
        for names in self._sources():
            for name in names():
                if name not in yielded:
                    yielded.add(name)
                    yield name

    def are_uncertain(self) -> bool:
        """Return whether neither Slurm nor this node knows a name, so that a cache can exist under another name."""
        return not self._is_answer() and self._account_name() is None

    def _sources(self) -> "tuple[Callable[[], list[str]], ...]":
        given, account = self._of_slurm, self._of_account
        return (given, account, self._placeholder) if self._is_answer() else (account, given, self._placeholder)

    def _is_answer(self) -> bool:
        return self._given not in (None, "nobody", str(self._uid))

    def _of_slurm(self) -> "list[str]":
        return with_short_form(self._given) if self._given else []

    def _of_account(self) -> "list[str]":
        name = self._account_name()
        return with_short_form(name) if name else []

    def _placeholder(self) -> "list[str]":
        return [str(self._uid)]

    def _account_name(self) -> "str | None":
        if not self._account:
            name = self._look_up(self._uid)
            self._account.append(name if name and component(name) else None)
        return self._account[0]


def with_short_form(name: str) -> "list[str]":
    """Return a name, and its part without the domain: `alice` of `alice@corp` and of `CORP\\alice`."""
    short = name.rpartition("\\")[2].partition("@")[0]
    return [name, short] if short != name and component(short) else [name]
