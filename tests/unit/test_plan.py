"""The decisions of a sweep: properties of the pure function, and one test for each rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobcache.sweep.plan import ASIDE, CACHE, KEEP, NEW, REAP, REPORT, TRASH, Decision, Directory, Rules, plan
from jobcache.system.live_jobs import Listing

RULES = Rules(cluster="tiger", grace=3600, confirm=120, keep_max=86400)
NOW = 1_800_000_000.0


def orphan(**changes: Any) -> Directory:
    """Return a cache that nothing keeps, with these fields changed."""
    plain = {"kind": CACHE, "path": "/s/a/hf-7", "job_id": 7, "run": 0, "uid": 1000, "identity": ("tiger", 7, 0, 1000)}
    return Directory(**{**plain, "sign": NOW - 7200, "now": NOW, **changes})


def decide(one: Directory, *jobs: dict[int, set[int]], apart: float = 120, rules: Rules = RULES) -> Decision:
    """Return the decision with a listing for each of `jobs`, `apart` seconds from each other; by default two without jobs."""
    listings = [Listing(1000 + apart * at, listing) for at, listing in enumerate(jobs or ({}, {}))]
    return plan([one], listings, rules)[0]


ids = st.integers(1, 9)
uids = st.sampled_from([0, 5, 1000, 1001, 1002])
clusters = st.sampled_from(["tiger", "della", ""])
times = st.sampled_from([NOW - 90000, NOW - 7200, NOW - 3600, NOW - 3599, NOW, NOW + 10, NOW + 1e9])


@st.composite
def directories(draw: st.DrawFn) -> Directory:
    kind = draw(st.sampled_from([CACHE, CACHE, NEW, TRASH, ASIDE]))
    job_id, uid, run = draw(ids), draw(uids), draw(st.integers(0, 1)) if kind == CACHE else None
    honest = (draw(clusters), job_id, run or 0, uid)
    return Directory(
        kind=kind,
        path=f"/s/{draw(ids)}",
        job_id=job_id,
        run=run,
        uid=uid,
        identity=draw(st.sampled_from([None, honest, honest, (honest[0], draw(ids), 0, draw(uids))])),
        sign=draw(times),
        now=draw(st.sampled_from([NOW, NOW, NOW, None])),
        keep_until=draw(st.none() | times),
        kept=draw(st.booleans()),
        error=draw(st.sampled_from(["", "", "EIO"])),
        pids=draw(st.sampled_from([(), (), (12,)])),
        bare=draw(st.booleans()),
        joinable=draw(st.booleans()),
        local=draw(st.booleans()),
        running=draw(st.sampled_from([False, False, False, True])),
        nodes=draw(st.sampled_from([(), ("n1",), ("n1", "n2")])),
    )


jobs = st.dictionaries(ids, st.sets(uids, min_size=1), max_size=5)
rules = st.builds(
    Rules,
    cluster=st.just("tiger"),
    grace=st.sampled_from([0.0, 3600.0]),
    confirm=st.sampled_from([0.0, 120.0]),
    keep_max=st.sampled_from([0.0, 3600.0, 86400.0]),
    min_uid=st.sampled_from([1, 1000]),
    reap_unrecorded=st.booleans(),
    own_nodes=st.just(frozenset({"n1"})),
)


@given(directories(), jobs, jobs, st.sampled_from([0.0, 119.0, 120.0, 500.0]), rules)
def test_directory_is_reaped_exactly_if_nothing_keeps_it(
    one: Directory, first: dict[int, set[int]], second: dict[int, set[int]], apart: float, rules: Rules
) -> None:
    """Reasons to keep: live, young, foreign, kept, open, unreadable, system user, unconfirmed. No others exist."""
    decision = decide(one, first, second, apart=apart, rules=rules)
    live = one.uid in first.get(one.job_id, set()) or one.uid in second.get(one.job_id, set())
    young = one.now is None or one.now - one.sign < rules.grace
    recorded = one.identity is not None
    matching = not recorded or (
        one.identity is not None
        and one.identity[0] == "tiger"
        and (one.identity[1], one.identity[3]) == (one.job_id, one.uid)
        and one.run in (None, one.identity[2])
    )
    longest = one.sign + rules.keep_max
    until = min(one.keep_until, longest) if one.keep_until is not None else longest if one.kept else 0
    kept = one.now is not None and one.now < until
    elsewhere = one.local and "n2" in one.nodes
    alive = (live or one.running) and (one.kind != TRASH or one.joinable)
    protected = (
        elsewhere or alive or young or not matching or kept or bool(one.error) or bool(one.pids)
        or one.uid < max(1, rules.min_uid) or one.kind == ASIDE
    )  # fmt: skip
    unrecorded = not recorded and not (rules.reap_unrecorded if one.kind == CACHE else one.bare)
    if protected or apart < rules.confirm:
        torn = one.uid >= max(1, rules.min_uid) and recorded and one.identity is not None and not one.identity[0]
        reported = one.error or one.kind == ASIDE or torn or decision.reason == "other_node"
        assert decision.action == (REPORT if reported else KEEP) and decision.reason
    else:
        assert decision.action == (REPORT if unrecorded else REAP)


@given(directories(), jobs)
def test_nothing_is_reaped_without_a_second_listing(one: Directory, first: dict[int, set[int]]) -> None:
    """The second listing must also be `confirm` seconds younger than the first."""
    for listings in ([], [Listing(0, first)], [Listing(0, first), Listing(119.9, first)]):
        assert plan([one], listings, RULES)[0].action != REAP


def test_orphan_is_reaped() -> None:
    """Its job is missing from both listings, and its last sign of life is older than `grace`."""
    assert decide(orphan()) == Decision(orphan(), REAP, "orphan")


def test_job_in_one_of_two_listings_is_alive() -> None:
    """One listing can miss a job that is being requeued."""
    assert decide(orphan(), {7: {1000}}, {}).reason == "alive"
    assert decide(orphan(), {}, {7: {1000}}).reason == "alive"


def test_trash_of_requeued_job_is_reaped_unless_joinable() -> None:
    """Trash is no cache, although its job is live. Trash that still has nodes/ can be joined, and stays."""
    trash = orphan(kind=TRASH, run=None)
    assert decide(trash, {7: {1000}}, {7: {1000}}) == Decision(trash, REAP, "trash")
    assert decide(replace(trash, running=True)).action == REAP
    assert decide(replace(trash, joinable=True), {7: {1000}}, {7: {1000}}).reason == "alive"


def test_live_job_of_another_user_keeps_nothing() -> None:
    """Job ids start again after the largest one, so another user can have the id of an orphan."""
    assert decide(orphan(), {7: {1001}}, {7: {1001}}).action == REAP


def test_date_in_the_future_is_young() -> None:
    """A clock that was ahead makes a cache stay longer, never shorter."""
    assert decide(orphan(sign=NOW + 1e9)).reason == "young"


def test_a_forged_keep_is_bounded() -> None:
    """keep_until in a record is valid for keep_max at most."""
    assert decide(orphan(kept=True, keep_until=NOW + 10)).reason == "user_keep"
    assert decide(orphan(keep_until=NOW + 10)).reason == "job_failed"
    assert decide(orphan(kept=True, keep_until=NOW + 10, sign=NOW - 1)).reason == "user_keep"  # even while it is young
    assert decide(orphan(kept=True, keep_until=NOW + 1e9, sign=NOW - 86401)).action == REAP


def test_unrecorded_directory_is_reaped_only_on_request() -> None:
    """By default it is reported."""
    assert decide(orphan(identity=None)) == Decision(orphan(identity=None), REPORT, "unrecorded")
    reaping = Rules(cluster="tiger", grace=3600, confirm=120, keep_max=0, reap_unrecorded=True)
    assert decide(orphan(identity=None), rules=reaping).action == REAP


def test_directory_that_no_sweep_reaps_is_reported() -> None:
    """A torn id, and the lease of another node on scratch that is configured as node-local."""
    torn, elsewhere = orphan(identity=("", 0, 0, -1)), orphan(local=True, nodes=("n2",))
    assert decide(torn) == Decision(torn, REPORT, "unreadable")
    assert decide(elsewhere) == Decision(elsewhere, REPORT, "other_node")
    assert decide(orphan(identity=("della", 7, 0, 1000))).action == KEEP


def test_node_local_directory_is_reaped_if_all_leases_are_of_this_host() -> None:
    """The host can be several nodes. Upper and lower case are the same, and names with different domains are not."""
    own = replace(RULES, own_nodes=frozenset({"n1", "n2.site-a"}))
    expected = {"N1": REAP, "n2.Site-A": REAP, "n2": REPORT, "n2.site-b": REPORT, "n1.site-a": REPORT, "n11": REPORT}
    assert {node: decide(orphan(local=True, nodes=(node,)), rules=own).action for node in expected} == expected
    assert decide(orphan(local=True, nodes=("n1", "n2.site-a")), rules=own).action == REAP
    assert decide(orphan(local=True, nodes=("n1", "n3")), rules=own).action == REPORT
