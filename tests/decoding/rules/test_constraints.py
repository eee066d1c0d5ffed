"""Segments, quotas, reasons for short answers, session shapes: by hand, against brute force, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.histories import Histories
from recsys.decoding.beam_search import _check_shape
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.batch_rules import NO_NODE
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.rules.personal_lists import PersonalLists
from recsys.decoding.rules.shortfall import explain_shortfalls
from recsys.decoding.search_index import SearchIndex
from recsys.model.config import ModelConfig
from recsys.training.fit import build_policy
from tests.decoding.test_beam_search import MODEL, all_item_scores, random_policy
from tests.toy.dataset import ring_prepared, toy_ids

CODES = np.stack([np.arange(20) // 5, np.arange(20) % 5], 1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=10, items=20)


def everyone(prepared: Dataset) -> Histories:
    return Histories.from_targets(prepared.history, prepared.all_users())


def test_quota_marks_what_exceeds_it() -> None:
    """Groups of items 0..5: 1 1 1 2 2 0; limits 2 and 1. Order 1 3 0 4 2 5: item 4 is the second of group 2, item 2 the
    third of group 1; item 5 has no group."""
    quotas = Quotas.from_groups(np.array([1, 1, 1, 2, 2, 0]), np.array([0, 2, 1]))
    assert quotas.over(torch.tensor([[1, 3, 0, 4, 2, 5]])).tolist() == [[False, False, False, True, True, False]]


def test_lists_of_single_users_join_what_they_saw(prepared: Dataset) -> None:
    """Every user denies the item before and after their first seen one: neither is answered, with and without seen items,
    on both ways to close nodes; rules of other users or unknown items are refused."""
    policy, histories = random_policy(prepared, toy_ids(CODES, (4, 5))), everyone(prepared)
    recommender = Recommender(policy, toy_ids(CODES, (4, 5)), DecodeConfig(beam_width=20))
    seen = histories.seen_items()
    first = np.array([items[0] for items in seen])
    users = np.arange(len(histories))
    pairs = np.concatenate([users, users]), np.concatenate([(first - 1) % 20, (first + 1) % 20])
    lists = PersonalLists.from_pairs(*pairs, len(histories))
    for exclude_seen in (True, False):
        ranked = recommender.recommend(histories, 20, rules=ItemRules(personal=lists), exclude_seen=exclude_seen)
        for row, items in enumerate(ranked.items):
            out = set(lists.of(row).tolist()) | (set(seen[row].tolist()) if exclude_seen else set())
            assert set(items[items >= 0].tolist()) == set(range(20)) - out
        compiled = recommender.compile(ItemRules(personal=lists), len(histories), exclude_seen)
        on_device = replace(compiled, search_index=recommender.search_index)
        for rules in (compiled.take(users[::-1]), compiled):
            rows = histories.take(users[::-1]) if rules is not compiled else histories
            there = replace(on_device, denied_U=rules.denied_U).for_batch(rows).personal
            here = rules.for_batch(rows).personal
            assert here is not None
            assert there is not None
            for mine, other in zip(here.closed, there.closed, strict=True):
                assert [set(row) - {NO_NODE} for row in mine.tolist()] == [
                    set(row) - {NO_NODE} for row in other.tolist()
                ]
    with pytest.raises(DataError, match="personal lists are of 10 users, expected 3"):
        recommender.recommend(histories.take(np.arange(3)), 2, rules=ItemRules(personal=lists))
    with pytest.raises(DataError, match=r"item_index 20 to 20, expected 0\.\.19"):
        recommender.compile(ItemRules(personal=PersonalLists.from_pairs(np.array([0]), np.array([20]), 10)), 10)
    with pytest.raises(DataError, match=r"name users 3 to 3, expected 0\.\.2"):
        PersonalLists.from_pairs(np.array([3]), np.array([1]), 3)


def test_personal_lists_by_hand() -> None:
    """Items 0:(0,0) 1:(0,1) 2:(1,0) 3:(1,1), so nodes 0 and 1 of level 0 lead to two items each, and leaf = item.

    Segment 0 allows all, segment 1 only item 2. User A (segment 0) denies 1 and 0, twice 0: node 0 loses both its items and
    closes, and so do leaves 0 and 1. User B (segment 1) denies 2 and 3: 3 was not allowed anyway, so node 1 loses one, which
    is all that segment 1 has there. User C (segment 0) denies 3: node 1 loses one of two and stays open.
    """
    index = PrefixIndex.build(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
    allow = np.array([[True] * 4, [False, False, True, False]])
    rules = CompiledRules.compile(index, ItemRules(allow, segments=np.array([0, 1, 0])), exclude_seen=True)
    lists = [np.array([1, 0, 0]), np.array([2, 3]), np.array([3])]
    personal = rules.personal(lists, rules.segment_U)
    assert [nodes.tolist() for nodes in personal.closed] == [[[0], [1], [-1]], [[0, 1], [2, -1], [3, -1]]]
    assert personal.denied is not None
    assert [level.node_BR.tolist() for level in personal.denied] == [[[0], [1], [1]], [[0, 1], [2, -1], [3, -1]]]
    below = personal.denied[0].below(torch.tensor([[0, 1]] * 3))
    assert below.tolist() == [[2, 0], [0, 1], [0, 1]]
    assert [rules.count_left(segment, seen) for segment, seen in zip([0, 1, 0], lists, strict=True)] == [2, 0, 3]
    assert rules.personal(lists, rules.segment_U, count=False).denied is None


def test_personal_counts_are_made_for_sessions_of_two_already(prepared: Dataset) -> None:
    """The second item of a session may not be the first again; a single item has no other to differ from."""
    rules = CompiledRules.compile(PrefixIndex.build(CODES, (4, 5)), ItemRules(), exclude_seen=True)
    single, two = (rules.for_batch(everyone(prepared), num_items=count).personal for count in (1, 2))
    assert single is not None
    assert two is not None
    assert single.denied is None
    assert two.denied is not None


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_rules_of_a_batch_are_those_of_each_user_alone(data) -> None:  # type: ignore[no-untyped-def]
    """Lists, counts and segments do not depend on who else is in the batch; nothing personal closes without a list."""
    index = PrefixIndex.build(CODES, (4, 5))
    allow = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=2, max_size=2)))
    allow[:, 7] = True
    items = st.lists(st.integers(0, 19), max_size=25)
    lists = [np.array(each, np.int64) for each in data.draw(st.lists(items, min_size=1, max_size=5))]
    segments = np.array([data.draw(st.integers(0, 1)) for _ in lists])
    rules = CompiledRules.compile(index, ItemRules(allow, segments=segments), exclude_seen=True)
    together = rules.personal(lists, segments)
    for row, denied in enumerate(lists):
        alone = rules.personal([denied], segments[row : row + 1])
        legal = set(np.flatnonzero(allow[segments[row]])) - set(denied.tolist())
        for level in range(2):
            closed = [node for node in together.closed[level][row].tolist() if node >= 0]
            assert closed == [node for node in alone.closed[level][0].tolist() if node >= 0]
            of_node = [set(np.flatnonzero(index.ancestors[level][index.leaf_of_item] == node)) for node in closed]
            assert not any(items & legal for items in of_node)
        assert rules.count_left(int(segments[row]), denied) == len(legal)
    nothing = rules.personal([np.array([], np.int64)] * len(lists), segments)
    assert all(nodes.shape == (len(lists), 0) for nodes in nothing.closed)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), filtered=st.booleans(), limit=st.integers(1, 3), seed=st.integers(0, 2))
def test_every_rule_together_equals_greedy_choice_over_all_items(prepared, data, filtered, limit, seed) -> None:
    """At full width the answer is: all items by score, illegal ones left out, quotas applied from the top."""
    ids = toy_ids(CODES, (4, 5))
    policy = random_policy(prepared, ids, seed)
    histories = everyone(prepared)
    bits = st.lists(st.booleans(), min_size=20, max_size=20)
    allow = np.array([data.draw(bits), data.draw(bits)])
    if not allow.any():
        allow[0, 3] = True
    segments = np.array(data.draw(st.lists(st.integers(0, 1), min_size=10, max_size=10)))
    group = np.array(data.draw(st.lists(st.integers(0, 3), min_size=20, max_size=20)))
    rules = ItemRules(allow=allow, segments=segments, quotas=Quotas.from_groups(group, limit))
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=20, rescore="none", rows_per_batch=60))
    found = recommender.recommend(histories, 20, exclude_seen=filtered, rules=rules)
    scores = all_item_scores(policy, histories)
    compiled = recommender.compile(rules, len(histories), filtered)
    shortfalls = {s.row: s for s in explain_shortfalls(histories, found, compiled)}
    for row, seen in enumerate(histories.seen_items()):
        used: dict[int, int] = {}
        expected = []
        legal = [i for i in range(20) if allow[segments[row], i] and not (filtered and i in seen)]
        for item in sorted(legal, key=lambda i: -scores[row, i]):
            used[group[item]] = used.get(group[item], 0) + 1
            if group[item] == 0 or used[group[item]] <= limit:
                expected.append(item)
        answer = [item for item in found.items[row].tolist() if item >= 0]
        np.testing.assert_allclose(scores[row, answer], scores[row, expected], atol=1e-4)
        assert shortfalls[row].found == len(expected)
        assert shortfalls[row].unseen == len(legal)


def test_reasons_for_short_answers(prepared: Dataset) -> None:
    """User 0 has seen items 0..8 (9 events). Segment 0 allows 0..9, segment 1 allows 0..2."""
    ids = toy_ids(CODES, (4, 5))
    histories = everyone(prepared).take(np.array([0, 0, 0]))
    allow = np.zeros((3, 20), bool)
    allow[0, :10], allow[1, :3], allow[2] = True, True, True
    rules = ItemRules(allow=allow, segments=np.array([0, 1, 2]))
    recommender = Recommender(random_policy(prepared, ids), ids, DecodeConfig(beam_width=8))
    found = recommender.recommend(histories, 5, rules=rules)
    seen, allowed, nothing = (len(set(histories.seen_items()[0].tolist()) & set(range(n))) for n in (10, 3, 20))
    first, second = explain_shortfalls(histories, found, recommender.compile(rules, 3))
    assert (first.row, first.reason, first.allowed, first.unseen, first.found) == (0, "seen", 10, 10 - seen, 10 - seen)
    assert (second.row, second.reason, second.allowed, second.unseen) == (1, "rules", 3, 3 - allowed)
    assert nothing < 15  # the third user gets five items
    quotas = ItemRules(quotas=Quotas.from_groups(np.ones(20, np.int64), 2))
    found = recommender.recommend(histories, 5, rules=quotas)
    assert [s.reason for s in explain_shortfalls(histories, found, recommender.compile(quotas, 3))] == ["quotas"] * 3
    assert ((found.items >= 0).sum(1) == 2).all()


def test_rules_change_between_calls_without_touching_the_index(prepared: Dataset) -> None:
    ids = toy_ids(CODES, (4, 5))
    recommender = Recommender(random_policy(prepared, ids), ids, DecodeConfig(beam_width=20))
    histories, index = everyone(prepared), recommender.index
    before = recommender.recommend(histories, 5)
    only = np.arange(20) >= 15
    restricted = recommender.recommend(histories, 5, exclude_seen=False, rules=ItemRules(only))
    assert (restricted.items >= 15).all()
    again = recommender.recommend(histories, 5)
    assert np.array_equal(again.items, before.items)
    assert recommender.index is index


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> Recommender:
    prepared = ring_prepared(tmp_path_factory.mktemp("sessions"), users=6, items=20, task="session", session_length=3)
    torch.manual_seed(1)
    config = ModelConfig(**MODEL, encoder_attention="bidirectional")
    recommender = Recommender(
        build_policy(prepared, toy_ids(CODES, (4, 5)), config, None).eval(),
        toy_ids(CODES, (4, 5)),
        DecodeConfig(beam_width=8),
    )
    recommender.histories = everyone(prepared)  # type: ignore[attr-defined]
    return recommender


def with_config(sessions: Recommender, **changes: object) -> Recommender:
    config = DecodeConfig(beam_width=8, **changes)
    return Recommender(sessions.policy, toy_ids(CODES, (4, 5)), config, sessions.index)


def test_diversity_groups_give_that_many_first_items(sessions: Recommender) -> None:
    histories = sessions.histories  # type: ignore[attr-defined]
    plain, _ = sessions.recommend_sessions(histories, 8, exclude_seen=False)
    diverse, scores = with_config(sessions, diversity_groups=4).recommend_sessions(histories, 8, exclude_seen=False)
    for row in range(len(histories)):
        assert len(set(diverse[row, :, 0].tolist())) == 4
        assert len(set(map(tuple, diverse[row].tolist()))) == 8
        best_first = list(dict.fromkeys(plain[row, :, 0].tolist()))
        assert best_first[0] in diverse[row, :, 0]
    assert (np.diff(scores, axis=1) <= 1e-6).all()


def test_narrow_later_items_keep_the_form(sessions: Recommender) -> None:
    histories = sessions.histories  # type: ignore[attr-defined]
    wide, wide_scores = sessions.recommend_sessions(histories, 1, exclude_seen=False)
    narrow, narrow_scores = with_config(sessions, later_item_width=2).recommend_sessions(
        histories, 1, exclude_seen=False
    )
    assert (narrow >= 0).all()
    assert (narrow_scores <= wide_scores + 1e-4).mean() > 0.5  # a wide beam is no guarantee, but the rule
    assert wide.shape == narrow.shape


def test_session_quotas_hold_inside_each_session(sessions: Recommender) -> None:
    histories = sessions.histories  # type: ignore[attr-defined]
    group = np.arange(20) % 2 + 1
    items, scores = sessions.recommend_sessions(histories, 8, rules=ItemRules(quotas=Quotas.from_groups(group, 2)))
    chosen = group[items[np.isfinite(scores)]]
    assert ((chosen == 1).sum(1) <= 2).all()
    assert ((chosen == 2).sum(1) <= 2).all()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_of_sessions_stay_equal_where_more_beams_are_needed(sessions: Recommender, groups: int) -> None:
    """Beams die under the quota; neither as many beams as items nor 10 can be split into three groups.

    Items of one first code are a group with a limit of one, and a beam likes to stay below the code it has.
    """
    histories = sessions.histories  # type: ignore[attr-defined]
    rules = ItemRules(quotas=Quotas.from_groups(CODES[:, 0] + 1, 1))
    config = DecodeConfig(beam_width=groups, diversity_groups=groups)
    narrow = Recommender(sessions.policy, toy_ids(CODES, (4, 5)), config, sessions.index)
    items, scores = narrow.recommend_sessions(histories, groups, exclude_seen=False, rules=rules)
    assert np.isfinite(scores).all()
    assert all(len(set(CODES[session, 0])) == 3 for session in items.reshape(-1, 3))
    more, scores = narrow.recommend_sessions(histories, 10, exclude_seen=False)
    assert np.isfinite(scores).all()
    assert all(len(set(map(tuple, row))) == 10 for row in more.tolist())


def test_refusals(prepared: Dataset, sessions: Recommender) -> None:
    ids = toy_ids(CODES, (4, 5))
    recommender = Recommender(random_policy(prepared, ids), ids, DecodeConfig(beam_width=4))
    histories, two = everyone(prepared), np.ones((2, 20), bool)
    with pytest.raises(DataError, match="2 segments, but no segment is given"):
        recommender.recommend(histories, 3, rules=ItemRules(two))
    with pytest.raises(DataError, match="segments run from 0 to 2"):
        recommender.recommend(histories, 3, rules=ItemRules(two, segments=np.arange(10) % 3))
    with pytest.raises(DataError, match="segments run from -1 to 1"):
        recommender.recommend(histories, 3, rules=ItemRules(two, segments=np.arange(10) % 3 - 1))
    with pytest.raises(DataError, match="expected \\(10,\\)"):
        recommender.recommend(histories, 3, rules=ItemRules(two, segments=np.zeros(3, np.int64)))
    with pytest.raises(DataError, match="a quota is -1"):
        Quotas.from_groups(np.array([1]), -1)
    with pytest.raises(DataError, match="name 1 groups, the items belong to 3"):
        Quotas.from_groups(np.array([2]), np.array([4]))
    with pytest.raises(ConfigError, match="diversity_groups is 3, expected a divisor"):
        _check_shape(8, 3, None, 3)
    with pytest.raises(ValidationError, match="diversity_groups is 3, and beam_width of 8 has no equal share for each"):
        DecodeConfig(beam_width=8, diversity_groups=3)
    with pytest.raises(ValidationError, match="and later_item_width of 2 has no equal share"):
        DecodeConfig(beam_width=8, diversity_groups=4, later_item_width=2)
    assert DecodeConfig(beam_width=9, diversity_groups=3, later_item_width=6).session_widths(9, 3) == [9, 6, 9]
    with pytest.raises(ValidationError, match="generative_weight"):
        DecodeConfig(generative_weight=float("inf"))


def test_sessions_of_two_segments_are_those_of_each_alone(sessions: Recommender) -> None:
    """Users of the first segment may have 4 items, those of the second 8: a session counts what is left in its own.

    With 4 items and sessions of 3 every beam lives on what is left below a prefix, so another segment's count would show.
    """
    histories = sessions.histories  # type: ignore[attr-defined]
    allowed = np.zeros((2, 20), bool)
    allowed[0, [0, 3, 7, 12]] = True
    allowed[1, 10:18] = True
    segments = np.arange(6) % 2
    mixed, scores = sessions.recommend_sessions(
        histories, 8, exclude_seen=False, rules=ItemRules(allowed, segments=segments)
    )
    for segment in (0, 1):
        rows = np.flatnonzero(segments == segment)
        alone, alone_scores = sessions.recommend_sessions(
            histories.take(rows), 8, exclude_seen=False, rules=ItemRules(allowed[segment : segment + 1])
        )
        np.testing.assert_array_equal(mixed[rows], alone)
        np.testing.assert_allclose(scores[rows], alone_scores, rtol=1e-5)
        assert allowed[segment, mixed[rows][mixed[rows] >= 0]].all()


def test_no_session_beam_dies_of_its_own_items(sessions: Recommender) -> None:
    """With seen items out, few items are left below a prefix; a beam must not be spent on one the session used up.

    Every user has at least 11 unseen items, so 8 beams of 3 different items always exist.
    """
    histories = sessions.histories  # type: ignore[attr-defined]
    for shape in ({}, {"diversity_groups": 4}):
        items, scores = with_config(sessions, **shape).recommend_sessions(histories, 8)
        assert np.isfinite(scores).all()
        for row, seen in enumerate(histories.seen_items()):
            for session in items[row].tolist():
                assert len(set(session)) == 3
                assert not set(session) & set(seen.tolist())


def test_a_quota_that_the_first_candidates_cannot_fill(prepared: Dataset) -> None:
    """The best 15 of 20 items share a group of which one may come: the second item is the 16th best, not among 4 * 2."""
    codes = np.stack([np.zeros(20, np.int64), np.arange(20)], 1)
    ids = toy_ids(codes, (1, 20))
    policy = random_policy(prepared, ids)
    one = everyone(prepared).take(np.array([3]))
    order = np.argsort(-all_item_scores(policy, one)[0])
    group = np.zeros(20, np.int64)
    group[order[:15]] = 1
    recommender = Recommender(policy, ids, DecodeConfig(beam_width=2, rescore="none"))
    found = recommender.recommend(one, 2, exclude_seen=False, rules=ItemRules(quotas=Quotas.from_groups(group, 1)))
    assert found.items[0].tolist() == [order[0], order[15]]


def test_what_is_possible_below_a_node_is_counted_in_the_users_own_segment() -> None:
    """Items (0,0) (0,1) (1,0) (1,1). Segment 0 may have all, segment 1 item 2 alone; every user has seen item 2."""
    index = PrefixIndex.build(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))
    allow = np.array([[True] * 4, [False, False, True, False]])
    one = np.zeros(2, np.int64)
    seen = Histories(np.array([0, 1], np.int32), one, one + 1, np.array([2], np.int32), *[np.zeros(1, np.uint8)] * 3)
    nodes, search = torch.tensor([[[0, 1]], [[0, 1]]]), SearchIndex.from_index(index)
    for exclude_seen, expected in ((False, [[2, 2], [0, 1]]), (True, [[2, 1], [0, 0]])):
        rules = CompiledRules.compile(
            index, ItemRules(allow, segments=np.array([0, 1])), exclude_seen=exclude_seen
        ).for_batch(seen, num_items=2)
        assert rules.possible_below(search, 0, nodes)[:, 0].tolist() == expected
