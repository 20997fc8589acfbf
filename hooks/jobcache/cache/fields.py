"""Numbers and names in untrusted text: which of them Slurm or jobcache can have written."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_UINT32_MAX = 2**32 - 1  # Slurm's job ids are uint32_t
_DIGITS_MAX = 19  # of 2**63; int() is slow on long texts
_PARTS_MAX = 128  # of a het job, in Slurm
_TASK_MAX = 4_000_000  # of MaxArraySize; Slurm's values for "no task" are larger
_NAME_MAX = 255  # bytes of a path component, on Linux


def number(text: str, most: int = _UINT32_MAX) -> "int | None":
    """Return the number from 1 to `most` that `text` holds in canonical form (no sign, no leading zero), else None."""
    if not text or len(text) > _DIGITS_MAX or not text.isascii() or not text.isdigit() or text[0] == "0":
        return None
    value = int(text)
    return value if value <= most else None


def natural(text: str, most: int = _UINT32_MAX) -> "int | None":
    """Return the number from 0 to `most` that `text` holds in canonical form, else None."""
    return 0 if text == "0" else number(text, most)


def component(text: str) -> bool:
    """Return whether `text` can be part of one path component: no slash, no control character, not empty, `.` or `..`."""
    if not text or text in (".", "..") or len(text) > _NAME_MAX or "/" in text:
        return False
    if text.isascii():
        return text.isprintable()
    return not any(ch < " " or ch == "\x7f" for ch in text)


def further_ids(env: "Mapping[str, str]") -> "dict[str, object]":
    """Return the fields of an event with the job's other ids, from Slurm's variables; {} for a job that has one id.

    array_job_id, array_task_id: of a task of an array. het_job_ids: of a het job, as `_het_parts`.
    """
    job, task = number(env.get("SLURM_ARRAY_JOB_ID", "")), natural(env.get("SLURM_ARRAY_TASK_ID", ""), _TASK_MAX)
    if job is not None and task is not None:
        return {"array_job_id": job, "array_task_id": task}
    parts = _het_parts(env)
    return {"het_job_ids": parts} if parts else {}


def _het_parts(env: "Mapping[str, str]") -> "list[int]":
    """Return raw ids of parts of the het job: for a task all of them, for an Epilog its own part's, [] if that is the leader.

    A job that a task of a het job has submitted inherits the task's variables, but has another SLURM_JOB_ID.
    """
    own = env.get("SLURM_JOB_ID", "")
    if env.get("SLURM_HET_JOB_ID", own) not in ("", "0", own):
        names = ["SLURM_JOB_ID"]
    elif own and env.get("SLURM_JOB_ID_HET_GROUP_0") == own:
        names = [f"SLURM_JOB_ID_HET_GROUP_{at}" for at in range(_PARTS_MAX)]
    else:
        return []
    found = (number(env.get(name, "")) for name in names)
    return [part for part in found if part is not None]
