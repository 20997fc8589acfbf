"""Strategies and examples for names on disk."""

from __future__ import annotations

from hypothesis import strategies as st

JOB_IDS = st.integers(1, 2**32 - 1)
RUNS = st.one_of(st.just(0), st.integers(0, 2**32 - 1))
UIDS = st.integers(0, 2**32 - 2)
NODES = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,12}", fullmatch=True)
LITERALS = st.text("ab1-_.r ", max_size=4)  # in a path template, between placeholders

NO_JOB = [
    "", "0", "-1", "+1", "01", "1-r0", "1-r", "1-r-1", "1-r01", "1-r1-r2", "1-R1", "-r1", "r1", "1r1", "1-1", "0-r1",
    "1 ", " 1", "1\n", "1-r1\n", "\n1", "1\x00", "1.0", "1e3", "0x1", "1_0", "4294967296", "12345678901",
    "1-r4294967296", "1" * 5000, "٤٢", "１", "¹", "1²", "१", "1-r٢", "abc", "2024-corpus", "12abc", "..", "/",
]  # fmt: skip
