"""Two baselines summed: what a model has to beat before it can say that single systems are no match for it.

Reads two fitted baselines and validation rows; produces a baseline that scores ``f(first) + w g(second)`` for every item of
the catalogue, with ``f`` and ``g`` the forms that make scores comparable, and ``w`` chosen on validation rows:

    counts   log(x + 1e-6)            sums of counts or similarities: what is twice as frequent is a step, not a distance
    logits   log-softmax              the log-probability of the item
    linear   10 x, or log(x + 1e-3)   weights of a linear model lie around 0; the better form is chosen as well
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from recsys.contracts.ranking import RankedItems, concatenate, top_k
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import Ranker, blocks_of_rows, hide_seen, rank_in_blocks
from recsys.evaluation.baselines.config import Scale
from recsys.evaluation.tuning.validation_rows import METRIC, PLACES, ValidationRows
from recsys.scorers.events import FloatArray


def log_of_counts(scores: FloatArray) -> FloatArray:
    """``log(x + 1e-6)``.

    Example:
        >>> log_of_counts(np.array([[1.0, 0.0]], np.float32)).round(1).tolist()
        [[0.0, -13.800000190734863]]
    """
    return np.log(np.maximum(scores, 0.0) + np.float32(1e-6))


def log_of_weights(scores: FloatArray) -> FloatArray:
    """``log(x + 1e-3)``, everything below 0 as 0."""
    return np.log(np.maximum(scores, 0.0) + np.float32(1e-3))


def tenfold(scores: FloatArray) -> FloatArray:
    """``10 x``: a strong link of a linear model is some tenths, a strong one of a log-probability some units."""
    return np.float32(10.0) * scores


def log_softmax(scores: FloatArray) -> FloatArray:
    """Log-probabilities of the rows of ``[n, I]``.

    Example:
        >>> log_softmax(np.array([[0.0, 0.0]], np.float32)).round(3).tolist()
        [[-0.6930000185966492, -0.6930000185966492]]
    """
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


Form = Callable[[FloatArray], FloatArray]
FORMS: Final[dict[Scale, tuple[Form, ...]]] = {
    "counts": (log_of_counts,),
    "logits": (log_softmax,),
    "linear": (tenfold, log_of_weights),
}


@dataclass(frozen=True)
class Fusion:
    """The weighted sum of two baselines.

    Attributes:
        first, second: Fitted, on the same catalogue.
        forms: What is done to the scores of each before they are summed.
        weight: Of the second.
    """

    first: Ranker
    second: Ranker
    forms: tuple[Form, Form]
    weight: float

    @property
    def name(self) -> str:
        """Name in tables."""
        return fusion_name(self.first.name, self.second.name)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.first.num_items

    def scores(self, histories: Histories) -> FloatArray:
        """Score every item, ``[n, I]``."""
        first, second = (
            form(ranker.scores(histories)) for form, ranker in zip(self.forms, (self.first, self.second), strict=True)
        )
        return first + np.float32(self.weight) * second

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank the whole catalogue, exactly."""
        return rank_in_blocks(self.scores, histories, self.num_items, k, exclude_seen)


def fusion_name(first: str, second: str) -> str:
    """Name of the system.

    Example:
        >>> fusion_name("sasrec", "markov")
        'fusion (sasrec + markov)'
    """
    return f"fusion ({first} + {second})"


def choose_fusion(
    first: Ranker, second: Ranker, weights: Sequence[float], valid: ValidationRows
) -> tuple[Fusion, dict[str, Any]]:
    """Try all forms and weights on the validation rows; the first of equals is taken.

    Each ranker scores a block of rows once; only the sums are ranked anew.

    Returns:
        The sum, and the record of the search, in the form of :meth:`~recsys.evaluation.tuning.search.Tuned.record`.
    """
    started = time.monotonic()
    forms = list(product(FORMS[first.scale], FORMS[second.scale]))
    lists: dict[tuple[int, float], list[RankedItems]] = {
        (pair, weight): [] for pair in range(len(forms)) for weight in weights
    }
    for begin, end in blocks_of_rows(len(valid), first.num_items):
        rows = valid.histories.take(np.arange(begin, end))
        scores = first.scores(rows), second.scores(rows)
        for pair, (form, other) in enumerate(forms):
            one, two = form(scores[0]), other(scores[1])
            if valid.exclude_seen:
                hide_seen(one, rows)
            for weight in weights:
                lists[pair, weight].append(top_k(one + np.float32(weight) * two, PLACES))
    values = {key: valid.value_of(concatenate(parts)) for key, parts in lists.items()}
    pair, weight = max(values, key=lambda key: values[key])
    trials = [
        {"forms": [form.__name__ for form in forms[index]], "weight": tried, METRIC: value}
        for (index, tried), value in values.items()
    ]
    fusion = Fusion(first, second, forms[pair], weight)
    return fusion, {
        "baseline": fusion.name,
        "metric": METRIC,
        "rows": len(valid),
        "fits": len(trials),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "chosen": {"forms": [form.__name__ for form in forms[pair]], "weight": weight},
        "value": values[pair, weight],
        "trials": trials,
    }
