"""JSON that is written without `json`."""

from __future__ import annotations

import json
import os

import pytest

from jobcache.cache import event_line


@pytest.mark.parametrize("text", ['a"b\\c', "tab\tnl\n", "é€😀", "\udcff\udcfe", "\x7f\x00", "", "</script>"])
def test_any_text_is_quoted_as_one_line_of_ascii_json(text: str) -> None:
    """Bytes that are not UTF-8 appear as their hexadecimal value."""
    quoted = event_line.quote(text)
    assert quoted.isascii() and "\n" not in quoted
    assert json.loads(quoted) == os.fsencode(text).decode("utf-8", "backslashreplace")
