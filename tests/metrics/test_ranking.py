"""Ranking metrics: by hand, against ir-measures, and what they refuse."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest

from recsys.contracts.dataset import Targets
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems
from recsys.metrics.ranking import ROW_METRICS, coverage, gini, row_metrics


def targets_of(lists: list[list[int]]) -> Targets:
    rows = len(lists)
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
    return Targets(
        user_index=np.arange(rows, dtype=np.int32),
        history_start=np.zeros(rows, np.int64),
        history_end=np.zeros(rows, np.int64),
        items=np.array([item for items in lists for item in items], np.int32),
        item_offsets=offsets,
    )


def ranking_of(lists: list[list[int]]) -> RankedItems:
    items = np.array(lists, np.int32)
    scores = np.where(items >= 0, -np.arange(items.shape[1], dtype=np.float32), -np.inf)
    return RankedItems(items, scores.astype(np.float32))


def test_one_row_by_hand() -> None:
    """Targets {4, 9}, ranking 1 9 5 4.

    At 2: one hit, at rank 2. hr 1, recall 1/2, mrr 1/2, ndcg = (1/log2 3) / (1 + 1/log2 3) = .6309 / 1.6309 = .3869.
    At 4: hits at 2 and 4. recall 1, ndcg = (.6309 + 1/log2 5) / 1.6309 = (.6309 + .4307) / 1.6309 = .6509.
    At 1: nothing.
    """
    values = row_metrics(ranking_of([[1, 9, 5, 4]]), targets_of([[4, 9]]), [1, 2, 4])
    found = {name: round(float(value[0]), 4) for name, value in values.items()}
    assert {name: found[name] for name in ("hr@1", "recall@1", "ndcg@1", "mrr@1")} == dict.fromkeys(
        ("hr@1", "recall@1", "ndcg@1", "mrr@1"), 0.0
    )
    assert (found["hr@2"], found["recall@2"], found["ndcg@2"], found["mrr@2"]) == (1.0, 0.5, 0.3869, 0.5)
    assert (found["hr@4"], found["recall@4"], found["ndcg@4"], found["mrr@4"]) == (1.0, 1.0, 0.6509, 0.5)


def test_ideal_is_cut_at_k() -> None:
    """Three targets, k = 1: one hit at rank 1 is all that one place can give, so ndcg is 1 while recall is 1/3."""
    values = row_metrics(ranking_of([[7, 1]]), targets_of([[7, 8, 9]]), [1])
    assert values["ndcg@1"][0] == 1.0
    assert values["recall@1"][0] == pytest.approx(1 / 3)


def test_short_rankings_and_repeated_targets() -> None:
    """Padding never hits; {3, 3} is one target, so finding it is recall 1."""
    values = row_metrics(ranking_of([[3, -1, -1], [-1, -1, -1]]), targets_of([[3, 3], [3]]), [3])
    assert values["recall@3"].tolist() == [1.0, 0.0]
    assert values["ndcg@3"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_ir_measures(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_items, width, rows, ks = 40, 20, 30, (1, 5, 10, 20)
    ranked = np.stack([generator.permutation(num_items)[:width] for _ in range(rows)]).astype(np.int32)
    for row in range(0, rows, 4):
        ranked[row, generator.integers(1, width) :] = -1
    wanted = [generator.permutation(num_items)[: generator.integers(1, 7)].tolist() for _ in range(rows)]
    ours = row_metrics(ranking_of(ranked.tolist()), targets_of(wanted), ks)
    qrels = [ir_measures.Qrel(str(r), str(item), 1) for r, items in enumerate(wanted) for item in items]
    run = [
        ir_measures.ScoredDoc(str(r), str(item), -float(place))
        for r in range(rows)
        for place, item in enumerate(ranked[r])
        if item >= 0
    ]
    names = {"hr": "Success@{}", "recall": "R@{}", "ndcg": "nDCG@{}", "mrr": "RR@{}"}
    for name, template in names.items():
        for k in ks:
            measure = ir_measures.parse_measure(template.format(k))
            theirs = {int(m.query_id): m.value for m in ir_measures.iter_calc([measure], qrels, run)}
            expected = [theirs[row] for row in range(rows)]
            np.testing.assert_allclose(ours[f"{name}@{k}"], expected, atol=1e-9, err_msg=f"{name}@{k}")


def test_all_rows_at_once_equal_one_row_at_a_time() -> None:
    generator = np.random.default_rng(5)
    ranked = np.stack([generator.permutation(15)[:10] for _ in range(12)])
    wanted = [generator.permutation(15)[: 1 + row % 4].tolist() for row in range(12)]
    together = row_metrics(ranking_of(ranked.tolist()), targets_of(wanted), [3, 10])
    for row in range(12):
        alone = row_metrics(ranking_of([ranked[row].tolist()]), targets_of([wanted[row]]), [3, 10])
        assert all(alone[name][0] == together[name][row] for name in together)


def test_one_target_makes_hit_rate_and_recall_equal() -> None:
    generator = np.random.default_rng(6)
    ranked = np.stack([generator.permutation(9)[:5] for _ in range(20)])
    values = row_metrics(
        ranking_of(ranked.tolist()), targets_of([[int(i)] for i in generator.integers(9, size=20)]), [5]
    )
    assert 0 < values["hr@5"].mean() < 1
    np.testing.assert_array_equal(values["hr@5"], values["recall@5"])


def test_coverage_and_gini_by_hand() -> None:
    """Exposures of 4 items at k = 2 over 3 rows: 3, 2, 1, 0. Coverage 3/4.

    Gini: sorted 0 1 2 3 with weights -3 -1 1 3: (0 - 1 + 2 + 9) / (4 * 6) = 10/24.
    """
    ranked = ranking_of([[0, 1], [0, 1], [0, 2]])
    assert coverage(ranked, 2, 4) == 0.75
    assert gini(ranked, 2, 4) == pytest.approx(10 / 24)
    everything_once = ranking_of([[0, 1], [2, 3]])
    assert gini(everything_once, 2, 4) == 0.0
    assert math.isclose(gini(ranking_of([[0], [0]]), 1, 4), 0.75)


def test_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="has 1 rows, the targets 2"):
        row_metrics(ranking_of([[1]]), targets_of([[1], [2]]), [1])
    with pytest.raises(DataError, match="has 2 places, 5 are evaluated"):
        row_metrics(ranking_of([[1, 2]]), targets_of([[1]]), [1, 5])
    with pytest.raises(DataError, match="target row 1 asks for no item"):
        row_metrics(ranking_of([[1], [1]]), targets_of([[1], []]), [1])
    with pytest.raises(DataError, match="ranking row 1 holds item_index 4 twice"):
        row_metrics(ranking_of([[1, 2, 3], [4, 2, 4]]), targets_of([[1], [2]]), [3])


def test_a_score_that_is_not_a_number_hits_nothing() -> None:
    """Items in index order under NaN hold every target, as a model full of NaN would answer; it knows nothing of them.

    Row 1 has numbers for its first place alone, which is not asked for.
    """
    nan = float("nan")
    items = np.array([[0, 1, 2], [2, 0, 1]], np.int32)
    ranked = RankedItems(items, np.array([[nan] * 3, [1.0, nan, nan]], np.float32))
    targets = Targets(np.arange(2), np.zeros(2, np.int64), np.ones(2, np.int64), np.array([0, 0]), np.arange(3))
    found = row_metrics(ranked, targets, [3])
    assert {name: values.tolist() for name, values in found.items()} == {f"{name}@3": [0, 0] for name in ROW_METRICS}
