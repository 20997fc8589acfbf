"""Where the caches of a job can be: the places that a template gives for what the Epilog knows about the job."""

import os

from jobcache.cache import dirfd, path_template, reasons
from jobcache.cache.fields import component

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobcache.cache.path_template import Place, Template
    from jobcache.system.epilog_job import Job

ACCOUNTS_LIMIT = 1024  # accounts to search for the cache of a job whose account is unknown
_USER, _ACCOUNT = (True, "user"), (True, "account")


class Whereabouts:
    """A job, the cluster, and one name of the job's user."""

    def __init__(self, job: "Job", cluster: str, user: str) -> None:
        self.job = job
        self._names = {"user": user, "cluster": cluster, "node": job.node, "home": job.home or ""}
        self._values = {**self._names, "uid": str(job.uid), "job_id": str(job.job_id), "home": (job.home or "").strip("/")}
        self._values["account"] = job.account or path_template.ANY

    def lack_account(self, template: "Template") -> bool:
        """Return whether the template needs the account, and Slurm did not name it."""
        return self.job.account is None and _ACCOUNT in template.parent

    def place(self, template: "Template", account: str) -> "Place":
        """Return the place of a template, given the account of the job. Raise BadName."""
        return template.bind(uid=self.job.uid, job_id=self.job.job_id, account=account, **self._names)

    def places(self, template: "Template") -> "Iterator[Place]":
        """Yield the places of a template; without the account, one for each account that has a directory there.

        Raise BadName, OSError, and Refused at the end if there are too many accounts.
        """
        accounts = list(self._accounts(template)) if self.lack_account(template) else [self.job.account or ""]
        for account in accounts[:ACCOUNTS_LIMIT]:
            yield self.place(template, account)
        if len(accounts) > ACCOUNTS_LIMIT:
            raise reasons.Refused("budget", f"more than {ACCOUNTS_LIMIT} accounts have a directory there, and Slurm named none")

    def _accounts(self, template: "Template") -> "Iterator[str]":
        """Yield the accounts that have a directory, one more than ACCOUNTS_LIMIT at most. Raise BadName, OSError.

        Any user may be able to create entries there, so one that is no account's ends nothing.
        """
        *above, level = path_template.down_to(template, _ACCOUNT)
        for parts in above:
            path_template.checked(parts, self._values)
        before, _, after = path_template.fill(level, self._values).partition(path_template.ANY)
        directory = dirfd.open_directory(self.account_directory(template))
        try:
            with dirfd.Opened(directory, ".") as fd, os.scandir(fd) as entries:
                count = 0
                for entry in entries:
                    account = entry.name[len(before) : len(entry.name) - len(after)]
                    is_account = entry.name == f"{before}{account}{after}" and component(account) and account[0] != "."
                    if is_account:
                        count += 1
                        yield account
                    if count > ACCOUNTS_LIMIT:
                        return
        finally:
            os.close(directory)

    def account_directory(self, template: "Template") -> str:
        """Return the path of the directory that has one directory for each account."""
        return self._path(path_template.down_to(template, _ACCOUNT)[:-1]) or "/"

    def missing_directory(self, template: "Template") -> str:
        """Return the path of the user's directory if it is missing where it could exist, or another user's; else ""."""
        if self.lack_account(template):
            return ""
        *above, level = path_template.down_to(template, _USER)
        directory = self._path(above)
        path = f"{directory}/{path_template.fill(level, self._values)}"
        try:
            is_missing = os.stat(path).st_uid not in (0, self.job.uid)
        except OSError:
            is_missing = os.path.isdir(directory)
        return path if is_missing else ""

    def _path(self, levels: "list[path_template.Parts]") -> str:
        return "".join("/" + path_template.fill(parts, self._values) for parts in levels)
