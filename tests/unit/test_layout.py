"""The names on disk: what is written is read back as it was, and nothing else is read as a name of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.cache import cache_names, path_template
from jobcache.cache.path_template import BadName, Template, TemplateError

DEFAULT = "/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}"
JOB_IDS = st.integers(1, 2**32 - 1)
RUNS = st.one_of(st.just(0), st.integers(0, 2**32 - 1))
UIDS = st.integers(0, 2**32 - 2)
NODES = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,12}", fullmatch=True)
USERS = st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="/"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
LITERALS = st.text("ab1-_.r ", max_size=4)
NAMES = st.builds(
    lambda before, node, after: f"{before}{node[0]}{{job_id}}{node[1]}{after}",
    LITERALS.map("hf".__add__),
    st.sampled_from([("", ""), ("{node}-", ""), ("", "-{node}"), ("{cluster}.", ".{user}")]),
    LITERALS,
)


@given(JOB_IDS, RUNS)
def test_a_jobs_name_reads_back(job_id: int, run: int) -> None:
    """format_job and parse_job are inverse."""
    assert cache_names.parse_job(cache_names.format_job(job_id, run)) == (job_id, run)


@given(st.text("0123456789-r+ \n", max_size=14))
def test_a_jobs_name_has_one_spelling(text: str) -> None:
    """Whatever parses as a job is what format_job writes for it."""
    parsed = cache_names.parse_job(text)
    assert parsed is None or cache_names.format_job(*parsed) == text


NO_JOB = [
    "", "0", "-1", "+1", "01", "1-r0", "1-r", "1-r-1", "1-r01", "1-r1-r2", "1-R1", "-r1", "r1", "1r1", "1-1", "0-r1",
    "1 ", " 1", "1\n", "1-r1\n", "\n1", "1\x00", "1.0", "1e3", "0x1", "1_0", "4294967296", "12345678901",
    "1-r4294967296", "1" * 5000, "٤٢", "１", "¹", "1²", "१", "1-r٢", "abc", "2024-corpus", "12abc", "..", "/",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_JOB, ids=lambda text: ascii(text)[:20])
def test_no_job(text: str) -> None:
    """Signs, leading zeros, digits of other scripts, numbers that no uint32 holds: none of it names a job."""
    assert cache_names.parse_job(text) is None
    assert Template(DEFAULT).bind(user="a", uid=1, cluster="c", node="n").parse(f"hf-datasets-{text}") is None


@given(st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True), JOB_IDS, RUNS, UIDS)
def test_an_id_reads_back(cluster: str, job_id: int, run: int, uid: int) -> None:
    """format_id and parse_id are inverse, and the line needs its newline: one that was cut short is none."""
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
def test_no_id(line: str) -> None:
    """An id of more, fewer or other words than we write is no id."""
    assert cache_names.parse_id(line) is None


@given(JOB_IDS, st.from_regex(r"[0-9a-z]{1,20}", fullmatch=True))
def test_debris_reads_back(job_id: int, nonce: str) -> None:
    """What is renamed away and what is being made are told apart, and belong to their job."""
    assert cache_names.parse_debris(cache_names.trash_name(job_id, nonce)) == (cache_names.TRASH, job_id)
    assert cache_names.parse_debris(cache_names.new_name(job_id, nonce)) == (cache_names.NEW, job_id)


@pytest.mark.parametrize("prefix", [cache_names.TRASH, cache_names.NEW])
@pytest.mark.parametrize(
    "rest", ["", "1", "1-", "-a", "0-a", "01-a", "1-a-b", "1-a.b", "1-a b", "1-a\n", "1-é", "1-r1-a", "4294967296-a", "x-a"]
)
def test_no_debris(prefix: str, rest: str) -> None:
    """A name that begins like ours and goes on otherwise is not ours."""
    assert cache_names.parse_debris(prefix + rest) is None
    assert cache_names.parse_debris("x" + prefix + "1-a") is None


@given(NAMES, USERS, UIDS, NODES, JOB_IDS, RUNS)
def test_a_template_reads_back(name: str, user: str, uid: int, node: str, job_id: int, run: int) -> None:
    """The name that a template gives to a cache is parsed as that job's, whatever the user, cluster and node are called."""
    place = Template(f"/s/{{user}}/{name}").bind(user=user, uid=uid, cluster="c1", node=node)
    assert place.parse(place.cache_name(job_id, run)) == (job_id, run)
    assert place.cache(job_id, run) == f"{place.parent}/{place.cache_name(job_id, run)}"
    assert place.parent == f"/s/{user}"


@given(NAMES, st.text("hf12-r.{} ab\n", max_size=20))
def test_what_parses_is_what_is_formatted(name: str, text: str) -> None:
    """No other name than the one it would write is parsed as a job's cache."""
    place = Template(f"/s/{{uid}}/{name}").bind(user="u", uid=1, cluster="c", node="n")
    for candidate in (text, place.prefix + text, place.prefix + text + place.suffix):
        parsed = place.parse(candidate)
        assert parsed is None or place.cache_name(*parsed) == candidate


@pytest.mark.parametrize(
    "name", ["", "hf-datasets-", "hf-datasets", "hf-datasets-1/", "HF-datasets-1", "xhf-datasets-1", "hf-datasets-1x", ".", "1"]
)
def test_not_this_templates(name: str) -> None:
    """A neighbour's name is nobody's cache."""
    assert Template(DEFAULT).bind(user="a", uid=1, cluster="c", node="n").parse(name) is None


def test_bound_names() -> None:
    """A place names a user's caches, each run its own."""
    place = Template("/s/{cluster}/{user}/{uid}/{node}.{job_id}.x").bind(user="al ice", uid=7, cluster="c1", node="n1")
    assert place.cache(42, 0) == "/s/c1/al ice/7/n1.42.x"
    assert place.cache(42, 3) == "/s/c1/al ice/7/n1.42-r3.x"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a\nb", "a\x7f", "a\0", "x" * 256])
def test_names_that_no_path_can_hold(bad: str) -> None:
    """A user, cluster or node whose name is no component is refused where the template uses it, and only there."""
    for key in ("user", "cluster", "node"):
        names = {"user": "u", "cluster": "c", "node": "n", key: bad}
        with pytest.raises(BadName):
            Template("/s/{user}/{cluster}/{node}-{job_id}").bind(uid=1, **names)
        Template("/s/{uid}/{job_id}").bind(uid=1, **names)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "absolute"),
        ("scratch/{user}/{job_id}", "absolute"),
        ("{user}/{job_id}", "absolute"),
        ("/s/{user}/a\nb-{job_id}", "control"),
        ("/s/{user}/\x7f{job_id}", "control"),
        ("/s//{user}/{job_id}", "empty component"),
        ("//s/{user}/{job_id}", "empty component"),
        ("/s/{user}/{job_id}/", "empty component"),
        ("/s/./{user}/{job_id}", "empty component"),
        ("/s/../{user}/{job_id}", "empty component"),
        ("/s/{user}", "job_id"),
        ("/s/{user}/hf", "job_id"),
        ("/s/{user}/{job_id}/x", "job_id"),
        ("/s/{user}/{job_id}/{job_id}", "job_id"),
        ("/s/{user}/{job_id}-{job_id}", "job_id"),
        ("/s/{job_id}", "neither"),
        ("/s/{user}-{job_id}", "neither"),
        ("/s/{node}/{job_id}", "neither"),
        ("/{job_id}", "neither"),
        ("/s/{user}/{jobid}", "unknown"),
        ("/s/{user}/{}{job_id}", "unknown"),
        ("/s/{user}/{node}{job_id}", "side by side"),
        ("/s/{user}/x{job_id}{node}", "side by side"),
        ("/s/{user}/{ job_id }", "unknown"),
        ("/s/{user}/{job_id!r}", "unknown"),
        ("/s/{user}/{job_id", "without its }"),
        ("/s/{user}/job_id}", "without its {"),
        ("/s/{user}/{{job_id}}", "unknown"),
        ("/s/{user}/}{job_id}", "without its {"),
        ("/s/{user}/.jobcache-{job_id}", ".jobcache"),
        ("/s/{user}/.jobcache-trash-{job_id}", ".jobcache"),
    ],
)
def test_templates_that_cannot_serve(text: str, what: str) -> None:
    """Each is refused, with what is wrong and a mend."""
    with pytest.raises(TemplateError) as caught:
        Template(text)
    assert what in caught.value.what
    assert caught.value.remedy


@given(st.text("/{}abjo_diuser.-\n", max_size=40))
def test_any_text_is_a_template_or_is_refused(text: str) -> None:
    """Nothing but TemplateError comes of any text, and what is accepted gives absolute paths of at least two levels."""
    try:
        template = Template(text)
    except TemplateError:
        return
    path = template.bind(user="u", uid=1, cluster="c", node="n").cache(1, 0)
    assert path.startswith("/") and path.count("/") >= 2
    assert not {"", ".", ".."} & set(path[1:].split("/"))


def test_templates_are_values() -> None:
    """Two of the same text are the same."""
    assert Template(DEFAULT) == Template(DEFAULT) != Template(DEFAULT + "x")
    assert len({Template(DEFAULT), Template(DEFAULT)}) == 1
    assert repr(Template(DEFAULT)) == f"Template({DEFAULT!r})"


@given(JOB_IDS, st.from_regex(f"[a-z]{{{cache_names.RUN_NONCE}}}", fullmatch=True), LITERALS, LITERALS, st.booleans())
def test_what_no_job_has_is_never_taken_for_a_jobs(pid: int, nonce: str, before: str, after: str, node: bool) -> None:
    """A cache that `jobcache run` makes outside of jobs: read back, by whatever template, and never as a job's."""
    template = Template(f"/s/{{user}}/x{before}{'{node}-' if node else ''}{{job_id}}{after}")
    place = template.bind(user="u", uid=1, cluster="c", node="n")
    name = place.run_cache(pid, nonce).rpartition("/")[2]
    known = path_template.matcher(template.name, {})(name)
    assert known is not None and cache_names.parse_run(known["job_id"]) == pid and cache_names.parse_job(known["job_id"]) is None
    assert place.parse(name) is None and cache_names.parse_debris(name) is None


@pytest.mark.parametrize(
    "text", ["", "run", "run-", "run-1", "run-1-", "run-1-abcdefg", "run-1-abcdefgH", "run-01-abcdefgh", "run-0-abcdefgh",
             "Run-1-abcdefgh", "run-1-abcdefg1", "run-1-abcdefgé", "run-1-abcdefgh-x", "1", "1-r2"],
)  # fmt: skip
def test_what_is_no_runs_name(text: str) -> None:
    """Only what format_run writes."""
    assert cache_names.parse_run(text) is None


@given(NODES, st.from_regex("[0-9a-f]{16}", fullmatch=True))
def test_leases_tell_their_node(node: str, nonce: str) -> None:
    """A hook's by its name, a process's by what is before the +."""
    assert cache_names.lease_node(node) == cache_names.lease_node(cache_names.format_lease(node, nonce)) == node
