"""Names of caches on disk: each formatted name can be parsed, and no other name can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.cache import cache_names
from support.names import JOB_IDS, NO_JOB, NODES, RUNS, UIDS


@given(JOB_IDS, RUNS)
def test_job_can_be_parsed(job_id: int, run: int) -> None:
    """format_job and parse_job are inverse."""
    assert cache_names.parse_job(cache_names.format_job(job_id, run)) == (job_id, run)


@given(st.text("0123456789-r+ \n", max_size=14))
def test_job_has_one_spelling(text: str) -> None:
    """A text that parse_job accepts is the one that format_job writes."""
    parsed = cache_names.parse_job(text)
    assert parsed is None or cache_names.format_job(*parsed) == text


@pytest.mark.parametrize("text", NO_JOB, ids=lambda text: ascii(text)[:20])
def test_other_text_is_no_job(text: str) -> None:
    """Signs, leading zeros, digits of other scripts, numbers beyond a uint32."""
    assert cache_names.parse_job(text) is None


@given(st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True), JOB_IDS, RUNS, UIDS)
def test_id_can_be_parsed_if_it_is_complete(cluster: str, job_id: int, run: int, uid: int) -> None:
    """format_id and parse_id are inverse. A line without its newline was cut short, and is no id."""
    line = cache_names.format_id(cluster, job_id, run, uid)
    assert cache_names.parse_id(f"{line}\n") == (cluster, job_id, run, uid)
    for cut in range(len(line) + 1):
        assert cache_names.parse_id(line[:cut]) is None


@pytest.mark.parametrize(
    "line",
    [
        "", "\n", " 1 0 5\n", "c 1 0\n", "c 1 0 5 6\n", "c  1 0 5\n", "c 1 0 5 \n", "c 0 0 5\n", "c 01 0 5\n", "c 1 00 5\n",
        "c 1 -0 5\n", "c 1 0 -5\n", "c +1 0 5\n", "c 1 0 05\n", "c\t1 0 5\n", "c/d 1 0 5\n", ".. 1 0 5\n", "c 1 0 5\n\n",
        "c 1 0 5\nx", "c ١ 0 5\n", "c 1 0 5\r\n",
    ],
)  # fmt: skip
def test_other_line_is_no_id(line: str) -> None:
    """More, fewer or other words than format_id writes."""
    assert cache_names.parse_id(line) is None


@given(JOB_IDS, st.from_regex(r"[0-9a-z]{1,20}", fullmatch=True))
def test_debris_can_be_parsed(job_id: int, nonce: str) -> None:
    """The name distinguishes trash from a cache that is being built, and has the job's id."""
    assert cache_names.parse_debris(cache_names.trash_name(job_id, nonce)) == (cache_names.TRASH, job_id)
    assert cache_names.parse_debris(cache_names.new_name(job_id, nonce)) == (cache_names.NEW, job_id)


@pytest.mark.parametrize("prefix", [cache_names.TRASH, cache_names.NEW])
@pytest.mark.parametrize(
    "rest", ["", "1", "1-", "-a", "0-a", "01-a", "1-a-b", "1-a.b", "1-a b", "1-a\n", "1-é", "1-r1-a", "4294967296-a", "x-a"]
)
def test_other_name_is_no_debris(prefix: str, rest: str) -> None:
    """A name that begins like debris and goes on in another way."""
    assert cache_names.parse_debris(prefix + rest) is None
    assert cache_names.parse_debris("x" + prefix + "1-a") is None


@pytest.mark.parametrize(
    "text", ["", "run", "run-", "run-1", "run-1-", "run-1-abcdefg", "run-1-abcdefgH", "run-01-abcdefgh", "run-0-abcdefgh",
             "Run-1-abcdefgh", "run-1-abcdefg1", "run-1-abcdefgé", "run-1-abcdefgh-x", "1", "1-r2"],
)  # fmt: skip
def test_other_text_is_no_run(text: str) -> None:
    """parse_run accepts only texts that format_run writes."""
    assert cache_names.parse_run(text) is None


@given(NODES, st.from_regex("[0-9a-f]{16}", fullmatch=True))
def test_lease_has_its_node(node: str, nonce: str) -> None:
    """Both a hook's lease, which is the node's name, and a process's lease."""
    assert cache_names.lease_node(node) == cache_names.lease_node(cache_names.format_lease(node, nonce)) == node
