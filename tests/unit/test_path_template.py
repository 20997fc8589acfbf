"""Path templates: from a template to the path of a cache, and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.cache import cache_names, path_template
from jobcache.cache.path_template import BadName, Template, TemplateError
from support.names import JOB_IDS, LITERALS, NO_JOB, NODES, RUNS, UIDS

DEFAULT = "/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}"
USERS = st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="/"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
NAMES = st.builds(
    lambda before, node, after: f"{before}{node[0]}{{job_id}}{node[1]}{after}",
    LITERALS.map("hf".__add__),
    st.sampled_from([("", ""), ("{node}-", ""), ("", "-{node}"), ("{cluster}.", ".{user}")]),
    LITERALS,
)


@given(NAMES, USERS, UIDS, NODES, JOB_IDS, RUNS)
def test_cache_name_can_be_parsed(name: str, user: str, uid: int, node: str, job_id: int, run: int) -> None:
    """For any names of the user, the cluster and the node."""
    place = Template(f"/s/{{user}}/{name}").bind(user=user, uid=uid, cluster="c1", node=node)
    assert place.parse(place.cache_name(job_id, run)) == (job_id, run)
    assert place.cache(job_id, run) == f"{place.parent}/{place.cache_name(job_id, run)}"
    assert place.parent == f"/s/{user}"


ACCOUNTS = st.text(st.characters(blacklist_categories=["Cc", "Cs"], blacklist_characters="/"), min_size=1, max_size=8).filter(
    lambda name: not name.startswith(".")
)
DIRECTORIES = st.sampled_from([
    "/s/{user}", "/s/{uid}/x", "/p/{account}/{user}", "/p/{user}/a-{account}", "/{account}/{uid}/c", "/l/{job_id}",
    "/l/{cluster}-{job_id}.d/x", "/l/{user}/{job_id}", "/l/{job_id}/{uid}", "/n/{node}/{account}/j{job_id}/{user}",
    "{home}", "{home}/.cache", "{home}/{cluster}/{node}/{account}/{uid}",
])  # fmt: skip
HOMES = st.lists(USERS, min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
JOBS = st.fixed_dictionaries(
    {"home": HOMES, "user": USERS, "uid": UIDS, "account": ACCOUNTS, "node": NODES, "job_id": JOB_IDS, "cluster": st.just("c1")}
)


@given(DIRECTORIES, NAMES, JOBS, RUNS)
def test_path_has_the_values_that_it_was_bound_to(directory: str, name: str, job: dict[str, Any], run: int) -> None:
    """The sweep reads a path component by component, as here: with the cluster's name alone."""
    template = Template(f"{directory}/{name}")
    place = template.bind(**job)
    assert place.parse(place.cache_name(job["job_id"], run)) == (job["job_id"], run)
    read: dict[str, str] = {}
    below = place.parent[1:]
    if template.in_home:
        assert f"{place.parent}/".startswith(f"{job['home']}/") and place.above == job["home"].rpartition("/")[0]
        read["home"] = job["home"]
        below = place.parent[len(job["home"]) + 1 :]
    levels = path_template.components(template.parent)[template.in_home :]
    for parts, text in zip(levels, below.split("/")):
        known = path_template.matcher(parts, {"cluster": "c1"})(text)
        assert known is not None
        read.update(known)
    assert read == {placeholder: str(job[placeholder]) for placeholder in read}
    assert set(read) == {part for variable, part in template.parent if variable} - {"cluster"}
    assert template.has_job(place.parent, job["job_id"])
    assert template.has_job(place.parent, job["job_id"] + 1) is (not template.job_directory)


@given(DIRECTORIES, NAMES, JOBS, JOBS, RUNS, RUNS)
def test_two_jobs_never_share_a_path(
    directory: str, name: str, one: dict[str, Any], other: dict[str, Any], run: int, later: int
) -> None:
    """Neither do two runs of a job. The names are those of one user, and similar ones of another user."""
    template = Template(f"{directory}/{name}")
    paths = {template.bind(**job).cache(job["job_id"], number) for job in (one, other) for number in (run, later)}
    jobs = {tuple(job.values()) for job in (one, other)}
    assert len(paths) >= len({job["job_id"] for job in (one, other)}) * len({run, later})
    assert len(paths) <= len(jobs) * len({run, later})


@pytest.mark.parametrize("directory", ["/s/{user}", "/p/{account}/{user}", "/p/{user}/{account}", "/l/{job_id}/{user}"])
@given(st.lists(st.tuples(st.text("ab-1", min_size=1, max_size=3), st.text("ab-1", min_size=1, max_size=3)), min_size=2))
def test_two_users_never_share_a_directory(directory: str, names: list[tuple[str, str]]) -> None:
    """No account makes the directory of one user look like that of another."""
    template = Template(f"{directory}/hf-{{job_id}}")
    owners: dict[str, str] = {}
    for user, account in names:
        place = template.bind(user=user, uid=1, cluster="c", node="n", account=account, job_id=12)
        assert owners.setdefault(place.parent, user) == user


@pytest.mark.parametrize(
    ("text", "job_directory", "above"),
    [
        ("/local/{job_id}/hf-{job_id}", "/local/42", "/local"),
        ("/local/{cluster}/j-{job_id}/x/y/hf-{job_id}", "/local/c1/j-42", "/local/c1"),
        ("/local/{job_id}/{user}/hf-{job_id}", "/local/42", "/local"),
        ("/s/{user}/{job_id}/hf-{job_id}", "/s/u/42", "/s"),
        ("/p/{account}/{user}/hf-{job_id}", "", "/p/acc"),
    ],
)
def test_directory_of_a_job_has_the_raw_job_id(text: str, job_directory: str, above: str) -> None:
    """A requeue changes the name of the cache alone: the site names its directory by SLURM_JOB_ID."""
    place = Template(text).bind(user="u", uid=7, cluster="c1", node="n1", account="acc", job_id=42)
    assert (place.job_directory, place.above) == (job_directory, above)
    assert place.cache(42, 3) == f"{place.parent}/hf-42-r3"


def test_place_without_job_or_account_is_refused() -> None:
    """Only if the template needs them: a command outside of jobs has neither."""
    names: dict[str, Any] = {"user": "u", "uid": 7, "cluster": "c", "node": "n"}
    assert Template(DEFAULT).bind(**names).parent == "/scratch/gpfs/u/.cache"
    for text in ("/l/{job_id}/{job_id}", "/p/{account}/{user}/{job_id}"):
        with pytest.raises(BadName):
            Template(text).bind(**names)


@pytest.mark.parametrize(
    ("template", "above"),
    [
        (DEFAULT, "/scratch/gpfs"),
        ("/s/{cluster}/u{uid}/{user}/hf-{job_id}", "/s/c1"),
        ("/s/{node}/x/{cluster}-{user}/{uid}/hf-{job_id}", "/s/n1/x"),
        ("/{user}/hf-{job_id}", ""),
    ],
)
def test_path_above_the_user_ends_before_the_first_component_that_names_the_user(template: str, above: str) -> None:
    """Directories from there on have to be the user's own."""
    assert Template(template).bind(user="u", uid=7, cluster="c1", node="n1").above == above


@given(NAMES, st.text("hf12-r.{} ab\n", max_size=20))
def test_only_the_cache_name_of_a_job_is_parsed(name: str, text: str) -> None:
    """A name that a place parses is the one that it writes for that job."""
    place = Template(f"/s/{{uid}}/{name}").bind(user="u", uid=1, cluster="c", node="n")
    for candidate in (text, place.prefix + text, place.prefix + text + place.suffix):
        parsed = place.parse(candidate)
        assert parsed is None or place.cache_name(*parsed) == candidate


@pytest.mark.parametrize(
    "name", ["", "hf-datasets-", "hf-datasets", "hf-datasets-1/", "HF-datasets-1", "xhf-datasets-1", "hf-datasets-1x", ".", "1"]
)
def test_other_name_is_no_cache_name(name: str) -> None:
    """Names that resemble the template's."""
    assert Template(DEFAULT).bind(user="a", uid=1, cluster="c", node="n").parse(name) is None


@pytest.mark.parametrize("text", NO_JOB, ids=lambda text: ascii(text)[:20])
def test_name_without_a_valid_job_is_no_cache_name(text: str) -> None:
    """The template's prefix, and no job id after it."""
    assert Template(DEFAULT).bind(user="a", uid=1, cluster="c", node="n").parse(f"hf-datasets-{text}") is None


def test_each_run_has_its_own_path() -> None:
    """All placeholders have values, and a requeue changes the path."""
    place = Template("/s/{cluster}/{user}/{uid}/{node}.{job_id}.x").bind(user="al ice", uid=7, cluster="c1", node="n1")
    assert place.cache(42, 0) == "/s/c1/al ice/7/n1.42.x"
    assert place.cache(42, 3) == "/s/c1/al ice/7/n1.42-r3.x"


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a\nb", "a\x7f", "a\0", "x" * 256])
def test_bind_refuses_a_name_that_no_path_can_hold(bad: str) -> None:
    """A user, cluster or node with such a name is refused if the template uses it, and only then."""
    for key in ("user", "cluster", "node"):
        names = {"user": "u", "cluster": "c", "node": "n", key: bad}
        with pytest.raises(BadName):
            Template("/s/{user}/{cluster}/{node}-{job_id}").bind(uid=1, **names)
        Template("/s/{uid}/{job_id}").bind(uid=1, **names)


@pytest.mark.parametrize("bad", ["", "/", "//", "a", "a/b", "/a/../b", "/a//b", "/a/.", "/./a", "/a\nb", "/" + "x" * 256])
def test_bind_refuses_a_home_that_is_no_path(bad: str) -> None:
    """Only a template that begins with {home} needs one."""
    names: dict[str, Any] = {"user": "u", "uid": 1, "cluster": "c", "node": "n", "home": bad}
    with pytest.raises(BadName):
        Template("{home}/{job_id}").bind(**names)
    assert Template("/s/{user}/{job_id}").bind(**names).parent == "/s/u"


@pytest.mark.parametrize("home", ["/home/u", "/home/u/", "/home/u//"])
def test_home_is_the_first_directory_of_the_user(home: str) -> None:
    """The site, or root, owns those above it."""
    place = Template("{home}/.cache/hf-{job_id}").bind(user="u", uid=7, cluster="c", node="n", home=home)
    assert (place.above, place.cache(42, 1)) == ("/home", "/home/u/.cache/hf-42-r1")
    assert Template("{home}/{job_id}").bind(user="u", uid=7, cluster="c", node="n", home="/u").above == ""


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
        ("/s/{job_id}/{job_id}/{job_id}", "more than one"),
        ("/s/{job_id}{job_id}/{job_id}", "more than one"),
        ("/s/{user}{job_id}/{job_id}", "in one directory"),
        ("/s/{node}-{job_id}/{job_id}", "in one directory"),
        ("/s/{job_id}/{node}/{job_id}", "below the directory of a job"),
        ("/s/{job_id}/{account}/{job_id}", "below the directory of a job"),
        ("/s/{account}/{job_id}", "neither"),
        ("/s/{user}/{account}-{job_id}", "last component"),
        ("/s/{account}-{user}/{job_id}", "in one directory"),
        ("/s/{account}{node}/{user}/{job_id}", "in one directory"),
        ("/{home}/.cache/{job_id}", "elsewhere"),
        ("/s/{home}/{user}/{job_id}", "elsewhere"),
        ("{home}{user}/{job_id}", "elsewhere"),
        ("{home}/{home}/{job_id}", "elsewhere"),
        ("{user}{home}/{job_id}", "elsewhere"),
        ("{home}", "elsewhere"),
        ("{home}/hf", "job_id"),
        ("{home}//{job_id}", "empty component"),
        ("{home}/../{job_id}", "empty component"),
        ("{home}/{job_id}/{job_id}", "below {home}"),
        ("{home}/.jobcache-{job_id}", ".jobcache"),
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
def test_invalid_template_is_refused_with_a_remedy(text: str, what: str) -> None:
    """The error has the problem and the next step."""
    with pytest.raises(TemplateError) as caught:
        Template(text)
    assert what in caught.value.what
    assert caught.value.remedy


@given(st.one_of(st.text("/{}abjo_diuser.-\n", max_size=40), st.text("/{}abjo_diuser.-\n", max_size=30).map("{home}/".__add__)))
def test_any_text_is_a_template_or_is_refused(text: str) -> None:
    """No text raises anything but TemplateError, and a valid template gives absolute paths of at least two levels."""
    try:
        template = Template(text)
    except TemplateError:
        return
    path = template.bind(user="u", uid=1, cluster="c", node="n", account="a", job_id=1, home="/h").cache(1, 0)
    assert path.startswith("/") and path.count("/") >= 2
    assert not {"", ".", ".."} & set(path[1:].split("/"))


def test_templates_are_equal_by_text() -> None:
    """So sets and dictionaries can hold them."""
    assert Template(DEFAULT) == Template(DEFAULT) != Template(DEFAULT + "x")
    assert len({Template(DEFAULT), Template(DEFAULT)}) == 1
    assert repr(Template(DEFAULT)) == f"Template({DEFAULT!r})"


@given(JOB_IDS, st.from_regex(f"[a-z]{{{cache_names.RUN_NONCE}}}", fullmatch=True), LITERALS, LITERALS, st.booleans())
def test_cache_of_a_run_outside_of_jobs_is_no_jobs_cache(pid: int, nonce: str, before: str, after: str, node: bool) -> None:
    """A sweep parses its name by any template, and no template takes it for the cache of a job."""
    template = Template(f"/s/{{user}}/x{before}{'{node}-' if node else ''}{{job_id}}{after}")
    place = template.bind(user="u", uid=1, cluster="c", node="n")
    name = place.run_cache(pid, nonce).rpartition("/")[2]
    known = path_template.matcher(template.name, {})(name)
    assert known is not None and cache_names.parse_run(known["job_id"]) == pid and cache_names.parse_job(known["job_id"]) is None
    assert place.parse(name) is None and cache_names.parse_debris(name) is None
