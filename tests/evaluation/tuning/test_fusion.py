"""Two baselines summed: forms, weights, and the order of the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from recsys.contracts.dataset import Targets
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import DenseRanker, FloatArray
from recsys.evaluation.baselines.config import Scale
from recsys.evaluation.tuning.fusion import (
    FORMS,
    Fusion,
    choose_fusion,
    log_of_counts,
    log_of_weights,
    log_softmax,
    tenfold,
)
from recsys.evaluation.tuning.validation_rows import ValidationRows
from tests.toy.histories import histories_of


@dataclass
class Known(DenseRanker):
    """Scores that are given: row ``user_index`` of a table."""

    name: str  # type: ignore[misc]
    scale: Scale  # type: ignore[misc]
    table: FloatArray

    @property
    def num_items(self) -> int:
        return self.table.shape[1]

    def scores(self, histories: Histories) -> FloatArray:
        return self.table[histories.user_index].copy()

    def fit(self, prepared: Any, seed: int, until: Any) -> None:
        raise AssertionError("fitted already")


def rows_of(wanted: list[int], seen: list[list[int]]) -> ValidationRows:
    rows = len(wanted)
    histories = histories_of(seen)
    histories = Histories(**{**vars(histories), "user_index": np.arange(rows, dtype=np.int32)})
    targets = Targets(
        np.arange(rows, dtype=np.int32),
        histories.start,
        histories.end,
        np.array(wanted, np.int32),
        np.arange(rows + 1, dtype=np.int64),
    )
    return ValidationRows(histories, targets, exclude_seen=True)


def test_scores_by_hand() -> None:
    """Counts e^2 and 1 are logs 2 and 0; logits 0 and ln 3 are log-probabilities ln 1/4 and ln 3/4; weight 2."""
    counts = Known("markov", "counts", np.array([[np.e**2, 1.0]], np.float32))
    logits = Known("sasrec", "logits", np.array([[0.0, np.log(3.0)]], np.float32))
    fusion = Fusion(counts, logits, (log_of_counts, log_softmax), 2.0)
    expected = [[2 + 2 * np.log(0.25), 0 + 2 * np.log(0.75)]]
    valid = rows_of([0], [[]])
    np.testing.assert_allclose(fusion.scores(valid.histories), expected, atol=1e-5)
    assert fusion.name == "fusion (markov + sasrec)"
    assert fusion.rank(valid.histories, 2, exclude_seen=False).items.tolist() == [[1, 0]]


def test_forms_of_a_linear_model() -> None:
    """Negative weights are real: tenfold keeps them apart, the logarithm takes them as 0."""
    weights = np.array([[-0.5, 0.0, 0.2]], np.float32)
    np.testing.assert_allclose(tenfold(weights), [[-5, 0, 2]])
    np.testing.assert_allclose(log_of_weights(weights), [[np.log(1e-3), np.log(1e-3), np.log(0.201)]], rtol=1e-5)


@pytest.mark.parametrize("scale", FORMS)
def test_every_form_keeps_the_order_of_what_is_above_zero(scale: Scale) -> None:
    scores = np.random.default_rng(0).random((4, 30), dtype=np.float32)
    for form in FORMS[scale]:
        made = form(scores)
        assert np.isfinite(made).all()
        np.testing.assert_array_equal(
            np.argsort(-made, axis=1, kind="stable"), np.argsort(-scores, axis=1, kind="stable")
        )


def test_the_weight_that_validation_rows_prefer_is_found() -> None:
    """The first ranker puts the wanted item second, by a distance of 1 in the log; the second puts it first, by 2. Any
    weight above 1/2 is right everywhere, and 1 is the first such of the list; the smaller one leaves it second."""
    first = Known("markov", "counts", np.exp(np.array([[0, 1, -9], [1, 0, -9]], np.float32)))
    second = Known("item_knn", "counts", np.exp(np.array([[2, 0, -9], [0, 2, -9]], np.float32)))
    fusion, record = choose_fusion(first, second, [0.25, 1.0, 4.0], rows_of([0, 1], [[], []]))
    assert fusion.weight == 1.0
    assert record["chosen"] == {"forms": ["log_of_counts", "log_of_counts"], "weight": 1.0}
    values = [trial["ndcg@10"] for trial in record["trials"]]
    assert values == [pytest.approx(1 / np.log2(3)), 1.0, 1.0]
    assert record["value"] == 1.0


def test_choosing_ranks_as_the_fusion_does() -> None:
    """What the search says of a weight is what ranking with it gives: seen items left out, both forms of a linear model."""
    rng = np.random.default_rng(3)
    tables = [rng.normal(0.1, 0.3, (50, 40)).astype(np.float32) for _ in range(2)]
    first, second = Known("ease", "linear", tables[0]), Known("sasrec", "logits", tables[1])
    valid = rows_of(rng.integers(20, 40, 50).tolist(), [rng.integers(0, 20, 5).tolist() for _ in range(50)])
    fusion, record = choose_fusion(first, second, [0.3, 1.0], valid)
    assert len(record["trials"]) == 4
    assert record["value"] == max(trial["ndcg@10"] for trial in record["trials"]) == valid.value(fusion)
    for trial in record["trials"]:
        forms = tuple({f.__name__: f for some in FORMS.values() for f in some}[name] for name in trial["forms"])
        same = Fusion(first, second, forms, trial["weight"])  # type: ignore[arg-type]
        assert valid.value(same) == trial["ndcg@10"]
    best = fusion.scores(valid.histories)
    for row, seen in enumerate(valid.histories.seen_items()):
        best[row, seen] = -np.inf
    expected = np.argsort(-best, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(fusion.rank(valid.histories, 10, exclude_seen=True).items, expected)
