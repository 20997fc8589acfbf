"""Names in a store: each formatted name can be parsed, and no other name can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.cache import store_names
from jobcache.cache.path_template import BadName

DIGESTS = st.from_regex("(results-)?[0-9a-f]{32}", fullmatch=True)
FILES = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(store_names.is_build_file),
    st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)),
    max_size=4,
)


@given(st.from_regex(r"([A-Za-z0-9_-][A-Za-z0-9._-]{0,63})?", fullmatch=True))
def test_section_can_be_parsed(label: str) -> None:
    """Also the section for builds without a label."""
    assert store_names.parse_section(store_names.section(label)) == label


@pytest.mark.parametrize("text", ["", ".a", "a/b", "a b", "a\n", "é", "x" * 65])
def test_other_text_is_no_label(text: str) -> None:
    """No section has such a name."""
    assert not store_names.is_label(text)
    assert store_names.parse_section(f"label-{text}") is None


@given(DIGESTS, st.integers(1, 2**32 - 1))
def test_build_name_can_be_parsed(digest: str, generation: int) -> None:
    """That of a result set tells it apart from a build."""
    name = store_names.build_name(digest, generation)
    assert store_names.parse_build(name) == (digest, generation)
    assert store_names.is_result_set(name) == digest.startswith("results-")


@pytest.mark.parametrize("prefix", [store_names.BUILD_NEW, store_names.BUILD_TRASH, store_names.STAGING])
def test_store_debris_needs_a_nonce(prefix: str) -> None:
    """A prefix alone, or with anything but letters and digits after it, is no debris."""
    assert store_names.parse_store_debris(prefix + "0a") == prefix
    assert [store_names.parse_store_debris(prefix + rest) for rest in ("", "a-b", "é", "a/b")] == [None] * 4


@given(FILES, st.integers(0, 2**32 - 1), st.booleans())
def test_contents_can_be_parsed_if_they_are_complete(files: dict[str, tuple[int, int]], checksum: int, is_set: bool) -> None:
    """A text that was cut short is rejected. A result set has the state of its base in place of a checksum."""
    files = {name: sizes for name, sizes in files.items() if "\n" not in name}
    text = store_names.format_contents(
        store_names.Contents("json/default-1/0.0.0/abc", files, checksum, checksum if is_set else None)
    )
    parsed = store_names.parse_contents(text)
    assert parsed and parsed.base == (checksum if is_set else None)
    assert (parsed.key, parsed.files, parsed.checksum) == ("json/default-1/0.0.0/abc", files, checksum)
    for cut in range(len(text)):
        assert store_names.parse_contents(text[:cut]) is None


def test_store_path_refuses_a_name_that_no_path_can_hold() -> None:
    """Only if the template uses it."""
    assert store_names.store_path("/s/{uid}/store", user="a/b", uid=7, cluster="c") == "/s/7/store"
    with pytest.raises(BadName):
        store_names.store_path("/s/{user}/store", user="a/b", uid=7, cluster="c")
