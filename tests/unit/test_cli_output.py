"""A command prints what its output can take, and ends without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jobcache
from jobcache.cli import common, list_caches

EVENT = {
    "ts": "2026-11-22T10:00:00.000Z", "event": "cache.reaped", "level": "info", "node": "n1", "job_id": 42, "run": 0, "uid": 5,
    "user": "zo\u00eb", "outcome": "reaped", "bytes": 10, "files": 1,
}  # fmt: skip


def report(tmp_path: Path, redirection: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run `jobcache report` on one event in a shell that redirects the output."""
    (tmp_path / "events.jsonl").write_text(json.dumps(EVENT) + "\n")
    code = "from jobcache.cli.main import main; main()"
    words = [sys.executable, "-c", code, "report", "--since", "2026-11-01", str(tmp_path / "events.jsonl")]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(jobcache.__file__).parents[1]), **variables}
    return subprocess.run(["/bin/sh", "-c", f'"$@" {redirection}', "sh", *words], env=env, capture_output=True, check=False)


def test_full_disk_is_an_error_without_traceback(tmp_path: Path) -> None:
    done = report(tmp_path, ">/dev/full")
    assert done.returncode == 1 and done.stderr.splitlines() == [b"jobcache: cannot write the output: No space left on device"]


def test_closed_output_is_no_error(tmp_path: Path) -> None:
    done = report(tmp_path, ">&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding, name", [("ascii", b"zo\\xeb"), ("latin-1", b"zo\xeb"), ("utf-8", b"zo\xc3\xab")])
def test_missing_letter_of_terminal_is_escaped(tmp_path: Path, encoding: str, name: bytes) -> None:
    done = report(tmp_path, "", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"") and name in done.stdout


def test_list_wraps_on_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths and nodes wrap. Job ids and numbers stay whole."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    row = {
        "job_id": 12345678, "run": 2, "user": "alexandra", "state": "unrecorded", "nodes": [f"n{at}" for at in range(64)],
        "age_s": 100_000, "bytes": 123_456_789_012, "files": 1_234_567, "path": "/scratch/gpfs/alexandra/.cache/hf-12345678-r2",
    }  # fmt: skip
    list_caches.print_table([row])
    output = capsys.readouterr().out
    assert "…" not in output
    for whole in ("12345678-r2", "alexandra", "unrecorded", "1d", "123.5 GB", "1234567"):
        assert whole in output


def test_console_prints_user_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Markup and emoji codes in a name are text, and control characters are escaped."""
    common.console(piped=100).print(common.plain(":skull: [red]x[/red] \x1b[2J"))
    assert capsys.readouterr().out == ":skull: [red]x[/red] \\x1b[2J\n"
