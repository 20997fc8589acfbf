"""Gather facts about the timers that start the sweep on this host: systemd's, and cron's."""

import os
import re
import shutil
import subprocess

from jobcache.diagnostics.check_facts import Schedule
from jobcache.system import files

_TIMER = "jobcache-sweep.timer"
_CRONTAB, _DEFAULTS = "/etc/cron.d/jobcache", "/etc/default/jobcache"
_PATIENCE = 10.0  # seconds for systemctl


def schedule() -> Schedule:
    """Return the facts."""
    systemd = os.path.isdir("/run/systemd/system")
    timer = _timer_state(_TIMER) if systemd and shutil.which("systemctl") else ""
    cron = os.path.exists(_CRONTAB)
    idle, remedy = _cron_idle(systemd) if cron else ("", "")
    return Schedule(systemd, timer, cron, idle, remedy)


def _cron_idle(systemd: bool) -> tuple[str, str]:
    """Return why the crontab starts no sweep, and a remedy; "" and "" where it starts one."""
    if systemd:
        return "it leaves the sweep to systemd", ""
    if not re.search(r"^\s*(export\s+)?JOBCACHE_SWEEP=", _read_defaults(), re.MULTILINE):
        remedy = f"echo JOBCACHE_SWEEP= >>{_DEFAULTS}    # add --node-local after the = to sweep this node's own scratch"
        return f"{_DEFAULTS} does not set JOBCACHE_SWEEP", remedy
    if not any(os.path.exists(f"/var/run/{name}.pid") for name in ("crond", "cron")):
        return "no cron daemon runs", "service cron start    # package cron; on EL: package cronie, service crond"
    return "", ""


def _timer_state(unit: str) -> str:
    """Return the state of a unit: "active", another ActiveState, or "missing"."""
    argv = ["systemctl", "show", unit, "--property=LoadState,ActiveState"]
    try:
        answer = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown, because systemctl did not answer"
    state = dict(line.partition("=")[::2] for line in answer.splitlines())
    if state.get("ActiveState") == "active" or state.get("LoadState") == "loaded":
        return state.get("ActiveState", "")
    return "missing"


def _read_defaults() -> str:
    try:
        return files.read_text(_DEFAULTS, 1 << 16)
    except OSError:
        return ""
