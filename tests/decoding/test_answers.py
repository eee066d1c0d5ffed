"""What may leave: numbers of answers, scores that are numbers, lists as long as their quotas permit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.data.histories import Histories
from recsys.decoding.answers import sort_key, within_quotas
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.rules.shortfall import explain_shortfalls
from recsys.decoding.second_stage.candidates import best_items
from recsys.model.config import ModelConfig
from recsys.training.fit import build_policy
from tests.decoding.test_beam_search import MODEL, all_item_scores, random_policy
from tests.toy.dataset import ring_prepared, toy_ids

ITEMS = 24
CODES = np.stack([np.arange(ITEMS) // 6, np.arange(ITEMS) % 6 // 2, np.arange(ITEMS) % 2], 1)
SIZES = (4, 3, 2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=12, items=ITEMS)


@pytest.fixture(scope="module")
def everyone(prepared: Dataset) -> Histories:
    return Histories.from_targets(prepared.history, prepared.all_users())


def recommender(prepared: Dataset, seed: int = 0, **config: object) -> Recommender:
    ids = toy_ids(CODES, SIZES)
    return Recommender(random_policy(prepared, ids, seed), ids, DecodeConfig(**{"beam_width": 8, **config}))


@pytest.mark.parametrize("rescore", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_damaged_policy_serves_nobody(prepared: Dataset, everyone: Histories, rescore: bool, value: float) -> None:
    broken = recommender(prepared)
    with torch.no_grad():
        broken.policy.dense_query.weight[0, 0] = value
        broken.policy.codes.weight[3] = value
    with pytest.raises(ArtifactError, match=r"gives 12 of 12 users .* first row 0 \(user_index \d+\) at rank 1: nan; "):
        broken.recommend(everyone, 3, rescore=rescore)
    with pytest.raises(ArtifactError, match="no finite number"):
        broken.both_orders(everyone, 3)


def test_the_first_user_is_named_by_the_row_of_the_caller(prepared: Dataset, everyone: Histories) -> None:
    """Users are decoded in the order of their lengths; the message speaks of the rows as they were given."""
    some = everyone.take(np.array([4, 9, 2, 7]))
    broken = recommender(prepared, rows_per_batch=8)
    start = broken.policy.start

    def start_badly(history):  # type: ignore[no-untyped-def]
        state = start(history)
        for keys, values in state.keys_values:
            for row, user in enumerate(rows_of.pop(0)):
                if user in (9, 7):
                    keys[row], values[row] = torch.nan, torch.nan
        return state

    lengths = np.minimum(some.lengths, broken.policy.spec.model.max_history)
    order = np.argsort(lengths, kind="stable")
    rows_of = [some.user_index[order[place : place + 1]].tolist() for place in range(4) for _ in range(2)]
    broken.policy.start = start_badly  # type: ignore[method-assign]
    with pytest.raises(ArtifactError, match=r"gives 2 of 4 users .* first row 1 \(user_index 9\)"):
        broken.recommend(some, 3, rescore=False)


def test_one_item_without_a_score_is_ranked_behind_all_others(prepared: Dataset, everyone: Histories) -> None:
    """Its vector is NaN, so the dense head cannot score it: it is not served while there is another item."""
    broken = recommender(prepared, beam_width=ITEMS)
    sound = broken.recommend(everyone, ITEMS, exclude_seen=False)
    with torch.inference_mode():
        broken.catalogue_vectors()[5] = torch.nan
    ranked = broken.recommend(everyone, ITEMS - 1, exclude_seen=False)
    for row in range(len(everyone)):
        assert ranked.items[row].tolist() == [item for item in sound.items[row].tolist() if item != 5]
    with pytest.raises(ArtifactError, match=f"at rank {ITEMS}: nan"):
        broken.recommend(everyone, ITEMS, exclude_seen=False)


def test_nan_ranks_behind_numbers_and_before_what_is_forbidden() -> None:
    scores = torch.tensor([[torch.nan, -5.0, -torch.inf, 3.0, torch.nan]])
    assert sort_key(scores).argsort(dim=1, descending=True, stable=True).tolist() == [[3, 1, 0, 4, 2]]
    assert best_items(scores, 5)[0].tolist() == [[3, 1, 0, 4, -1]]
    assert best_items(scores, 2)[0].tolist() == [[3, 1]]


def test_sessions_of_a_damaged_policy_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    prepared = ring_prepared(tmp_path, users=6, items=ITEMS, task="session", session_length=2)
    ids = toy_ids(CODES, SIZES)
    config = ModelConfig(**MODEL, encoder_attention="bidirectional")
    broken = Recommender(build_policy(prepared, ids, config, None).eval(), ids, DecodeConfig(beam_width=8))
    with torch.no_grad():
        broken.policy.codes.weight[0] = torch.nan
    with pytest.raises(ArtifactError, match="gives 6 of 6 users"):
        broken.recommend_sessions(Histories.from_targets(prepared.history, prepared.all_users()), 2)


@pytest.mark.parametrize("count", [0, -1, True, 2.0, np.float32(3), "5", None, 10_001, 10**12])
def test_numbers_of_answers_that_cannot_be_asked_for(prepared: Dataset, everyone: Histories, count: object) -> None:
    asked = recommender(prepared)
    for ask in (asked.recommend, asked.both_orders):
        with pytest.raises(ConfigError, match=r"k is .*, expected a whole number from 1 to 10,000"):
            ask(everyone, count)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"num_sessions is .*, expected a whole number"):
        asked.recommend_sessions(everyone, count)  # type: ignore[arg-type]


def test_numpy_counts_and_lists_longer_than_the_catalogue_are_answered(prepared: Dataset, everyone: Histories) -> None:
    ranked = recommender(prepared).recommend(everyone, np.int64(ITEMS + 3), exclude_seen=False)  # type: ignore[arg-type]
    assert ((ranked.items >= 0).sum(1) == ITEMS).all()


def greedy(scores: np.ndarray, legal: np.ndarray, group: np.ndarray, limits: np.ndarray, k: int) -> list[int]:
    """The list by definition: down the order of scores, whatever its group still admits."""
    used, chosen = np.zeros(len(limits), int), []
    for item in np.argsort(-scores, kind="stable"):
        if legal[item] and len(chosen) < k and (group[item] == 0 or used[group[item]] < limits[group[item]]):
            used[group[item]] += 1
            chosen.append(int(item))
    return chosen


@pytest.mark.parametrize("seed", range(12))
def test_quotas_never_shorten_a_list_that_exhaustive_search_fills(prepared, everyone, seed: int) -> None:  # type: ignore[no-untyped-def]
    """As many beams as places, over random tables of groups and limits: every list is as long as it can be and legal."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 5, ITEMS) if seed % 3 else CODES[:, 0] + 1  # groups that are subtrees are the hardest
    limits = rng.integers(0, 4, 5) if seed % 2 else np.array([0, 1, 1, 1, 1])
    deny = rng.random(ITEMS) < 0.2
    rules = ItemRules(deny=deny, quotas=Quotas.from_groups(group, limits))
    for k, rescore in ((4, True), (4, False), (7, True)):
        narrow = recommender(prepared, seed, beam_width=4)
        ranked = narrow.recommend(everyone, k, rules=rules, rescore=rescore)
        for row, seen in enumerate(everyone.seen_items()):
            legal = ~deny & ~np.isin(np.arange(ITEMS), seen)
            items = ranked.items[row][ranked.items[row] >= 0]
            assert legal[items].all()
            assert (np.bincount(group[items], minlength=5)[1:] <= limits[1:]).all()
            assert len(items) == len(greedy(rng.random(ITEMS), legal, group, limits, k))


@pytest.mark.parametrize("seed", range(4))
def test_at_full_width_quotas_equal_exhaustive_search(prepared, everyone, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Eleven places of a beam of 24: the pool may hold three times as much of a group, and still the list is exact."""
    rng = np.random.default_rng(seed)
    group, limits = rng.integers(0, 6, ITEMS), np.array([0, 1, 2, 1, 3, 1])
    wide = recommender(prepared, seed, beam_width=ITEMS)
    ranked = wide.recommend(
        everyone, 11, exclude_seen=False, rescore=False, rules=ItemRules(quotas=Quotas.from_groups(group, limits))
    )
    scores = all_item_scores(wide.policy, everyone)
    for row in range(len(everyone)):
        expected = greedy(scores[row], np.ones(ITEMS, bool), group, limits, 11)
        assert ranked.items[row][ranked.items[row] >= 0].tolist() == expected


def test_a_pool_keeps_the_list_that_is_cut_from_it() -> None:
    """Group 1 holds items 0 to 5, limit 1; items 6, 7, 8 have groups of their own. A list of 4 out of a pool of 5 needs 6, 7
    and 8, which are the worst: the pool keeps 0, 6, 7, 8 and one more of group 1, whose limit is doubled."""
    quotas = Quotas.from_groups(np.array([1, 1, 1, 1, 1, 1, 2, 3, 4]), 1)
    kept = quotas.of_pool(4).admitted(torch.arange(9)[None], 5)
    assert torch.arange(9)[kept[0]].tolist() == [0, 1, 6, 7, 8]
    items, _ = within_quotas(torch.tensor([[8, 1, 0, 7, 6]]), torch.arange(5.0).flip(0)[None], quotas, 4)
    assert items.tolist() == [[8, 1, 7, 6, -1]]


def test_a_beam_that_may_not_be_widened_is_named(prepared: Dataset, everyone: Histories) -> None:
    """A batch of one beam leaves no room: the reason is the beam, not the quotas, which permit four items."""
    narrow = recommender(prepared, beam_width=4, rows_per_batch=1)
    rules = ItemRules(quotas=Quotas.from_groups(CODES[:, 0] + 1, 1))
    ranked = narrow.recommend(everyone, 4, exclude_seen=False, rules=rules, rescore=False)
    short = explain_shortfalls(everyone, ranked, narrow.compile(rules, len(everyone), exclude_seen=False))
    assert short
    assert {shortfall.reason for shortfall in short} == {"beam"}


def test_sessions_within_quotas_are_counted(prepared: Dataset) -> None:
    """Groups of 6; two of three items of the first two groups, limits 1 and 2, none else. Sessions of 2: {1, 2} in 3 * 3 * 2
    orders, {2, 2} in 3 * 2: 24."""
    allow = np.isin(np.arange(ITEMS), [0, 1, 2, 6, 7, 8])
    quotas = Quotas.from_groups(CODES[:, 0] + 1, np.array([0, 1, 2, 0, 0]))
    index = recommender(prepared).index
    nothing = np.array([], np.int64)
    compiled = CompiledRules.compile(index, ItemRules(allow, quotas=quotas), exclude_seen=True)
    assert compiled.count_sessions(0, nothing, 2) == 24
    assert compiled.count_sessions(0, np.array([0, 1, 2]), 2) == 6
    free = CompiledRules.compile(index, ItemRules(allow), exclude_seen=True)
    assert free.count_sessions(0, nothing, 2) == 6 * 5


def test_more_groups_than_first_items_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    prepared = ring_prepared(tmp_path, users=6, items=6, task="session", session_length=2)
    ids = toy_ids(np.stack([np.arange(6) // 3, np.arange(6) % 3], 1), (2, 3))
    policy = build_policy(prepared, ids, ModelConfig(**MODEL, encoder_attention="bidirectional"), None).eval()
    histories = Histories.from_targets(prepared.history, prepared.all_users())
    grouped = Recommender(policy, ids, DecodeConfig(beam_width=8, diversity_groups=8))
    with pytest.raises(
        ConfigError, match="diversity_groups is 8, but a beam of 8 over this catalogue has 6 first items"
    ):
        grouped.recommend_sessions(histories, 2)


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"precision": "bfloat16"}, "cpu", "bfloat16, which needs a GPU"),
        ({"precision": "int8"}, "cuda", "int8, which needs a CPU"),
        ({"cuda_graph": True}, "cpu", "cuda_graph needs a GPU"),
    ],
)
def test_what_a_device_cannot_do_is_known_before_there_is_a_policy(settings, device, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        DecodeConfig(**settings).check_device(device)
    DecodeConfig().check_device(device)


def test_the_beam_weighs_into_the_dense_order_as_configured(prepared: Dataset, everyone: Histories) -> None:
    """Score = dense score + weight * log-probability, of every item of a beam that holds them all."""
    weight = 0.7
    dense, mixed = (recommender(prepared, beam_width=ITEMS, generative_weight=each) for each in (0.0, weight))
    by_item = np.argsort(dense.recommend(everyone, ITEMS, exclude_seen=False).items, axis=1)
    dense_scores = np.take_along_axis(dense.recommend(everyone, ITEMS, exclude_seen=False).scores, by_item, axis=1)
    expected = dense_scores + weight * all_item_scores(dense.policy, everyone)
    ranked = mixed.recommend(everyone, ITEMS, exclude_seen=False)
    np.testing.assert_allclose(ranked.scores, -np.sort(-expected, axis=1), atol=1e-4)
    assert np.abs(ranked.scores - -np.sort(-dense_scores, axis=1)).max() > 0.1


def test_equal_scores_are_ranked_by_item_whatever_the_beam_found_first(prepared: Dataset, everyone: Histories) -> None:
    tied = recommender(prepared, beam_width=ITEMS)
    with torch.inference_mode():
        tied.catalogue_vectors().zero_()
    assert (tied.recommend(everyone, 6, exclude_seen=False).items == np.arange(6)).all()
    assert (tied.recommend(everyone, 6, exclude_seen=False, rescore=False).items != np.arange(6)).any()
