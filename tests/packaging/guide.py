"""The commands of docs/admin-guide.md, and the trial that runs each of them."""

from __future__ import annotations

import re

PROGRAMS = (
    "apt-get|cp|dnf|editor|find|install|jobcache|ln|/opt/jobcache-\\S+|packaging/\\S+|scontrol|srun|systemctl|tar|touch|zypper"
)
TRIALS = {"dnf ": "rpm", "zypper ": "opt", "tar ": "tree", "install -d /etc/": "tree", "/opt/": "tree", "packaging/": "build"}


def commands(page: str) -> dict[str, str]:
    """Return each command in a shell block, after a `# ` prompt or between backticks, with its trial.

    Text after ` #`, or after two spaces in a block of output, is a comment.
    """
    lines: list[str] = []
    for language, block in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL):
        if language == "sh":
            lines += block.splitlines()
        elif not language:
            lines += [line[2:] for line in block.splitlines() if line.startswith("# ")]
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    lines += re.findall(rf"`((?:[A-Z_]+=\S+ )?(?:{PROGRAMS}) [^`\n]+)`", prose)
    found = [re.split(r" +#|   +", line)[0].strip() for line in lines]
    return {line: next((trial for start, trial in TRIALS.items() if line.startswith(start)), "deb") for line in found if line}
