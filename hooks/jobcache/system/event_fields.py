"""Fields that the events of the hooks and of the sweep have in common."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fact = dict[str, Any]


def fact(event: str, level: str, path: str, run: "int | None", outcome: str, reason: "str | None", **more: "Any") -> "Fact":
    """Return what a child reports about one cache. The parent adds the job and writes it as an event."""
    return {"event": event, "level": level, "path": path, "run": run, "outcome": outcome, "reason": reason, **more}


def of_record(record: "Fact") -> "Fact":
    """Return created_at and policy from a cache's record. Omit values that jobcache does not write: users can forge a record."""
    fields: Fact = {}
    created, policy = record.get("created_at"), record.get("policy")
    if isinstance(created, str) and _is_timestamp(created):
        fields["created_at"] = created
    if isinstance(policy, str) and 0 < len(policy) <= 64 and policy.isalnum() and policy.isascii():
        fields["policy"] = policy
    return fields


def _is_timestamp(text: str) -> bool:
    return len(text) == 20 and text[10] == "T" and text.isascii() and text.replace(":", "").replace("-", "").isalnum()


def of_filesystem(dir_fd: int) -> "Fact":
    """Return size, free space and usage of the directory's filesystem, {} if they are unknown.

    The same figures as psutil.disk_usage, which takes 20 ms to import.
    """
    try:
        found = os.statvfs(f"/proc/self/fd/{dir_fd}")
    except OSError:
        return {}
    used, free = found.f_blocks - found.f_bfree, found.f_bavail
    return {
        "fs_total_bytes": found.f_blocks * found.f_frsize,
        "fs_free_bytes": free * found.f_frsize,
        "fs_used_percent": round(100 * used / (used + free), 1) if used + free else 0.0,
    }
