"""Numbers and names in untrusted text: which of them Slurm or jobcache can have written."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_UINT32_MAX = 2**32 - 1  # Slurm's job ids are uint32_t
_DIGITS_MAX = 19  # of 2**63; int() is slow on long texts
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


def array_task(env: "Mapping[str, str]") -> "dict[str, int]":
    """Return array_job_id and array_task_id from Slurm's variables, {} for a job that is no task of an array."""
    job, task = number(env.get("SLURM_ARRAY_JOB_ID", "")), natural(env.get("SLURM_ARRAY_TASK_ID", ""), _TASK_MAX)
    return {} if job is None or task is None else {"array_job_id": job, "array_task_id": task}
