"""What is served: the learned order only where it beats the simple ones on held-out rows beyond its interval.

Reads orders of the same held-out rows; produces a :class:`RankDecision`, which is data: every order that was tried, every
comparison with its paired interval, the decision, and a sentence for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from recsys.metrics.bootstrap import Estimate, estimate_means

Values = npt.NDArray[np.float64]

MIN_HELD_OUT_USERS: Final = 50
"""With fewer held-out users an interval of the bootstrap is too narrow, and nothing learned is served."""

_NAMES: Final = {
    "dense": "the order of the dense head",
    "fused": "the order of the fused score",
    "linear": "the linear ranker",
    "lightgbm": "the LightGBM ranker",
}


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RowCounts(_Data):
    """Validation rows: used, fitted on and held out; and how many of these have no target among their candidates."""

    used: int
    fit: int
    held_out: int
    fit_without_target: int
    held_out_without_target: int


class Tried(_Data):
    """One order on all rows, the learned ones by fits that have not seen a row's user."""

    name: str
    ndcg: float
    hr: float


class Comparison(_Data):
    """Paired difference of NDCG@10, ``name`` minus ``against``, and its interval over users."""

    name: str
    against: str
    difference: float
    low: float
    high: float


class RankDecision(_Data):
    """What the guard decided, and from what.

    Attributes:
        served: ``dense``, ``fused``, ``linear`` or ``lightgbm``: the order that is served.
        learned: The better learned order; ``None`` where none was fitted.
        confidence: Of the intervals.
    """

    served: str
    learned: str | None
    confidence: float
    rows: RowCounts
    tried: tuple[Tried, ...]
    comparisons: tuple[Comparison, ...]
    sentence: str


def decide(
    values: Mapping[str, Mapping[str, Values]],
    users: npt.NDArray[np.integer],
    held: npt.NDArray[np.bool_],
    rows: RowCounts,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> RankDecision:
    """Go from the simplest order to the most learned one, and on only where the next is better beyond its interval.

    Args:
        values: Per order ``ndcg@10`` and ``hr@10``, ``[N]``; ``dense`` is one of them, ``fused``, ``linear`` and
            ``lightgbm`` may be, the last two by fits that have not seen a row's user. The one of higher mean is the learned
            order.
        users: ``[N]``, whose row it is.
        held: ``[N]`` rows that the weights of the fused score were not fitted on: it is compared with the dense order
            there. Learned orders are compared on all rows, which can only favour the fused score.
        rows: Numbers for the report.
    """
    tried = tuple(
        Tried(name=name, ndcg=float(value["ndcg@10"].mean()), hr=float(value["hr@10"].mean()))
        for name, value in values.items()
        if len(users)
    )
    means = {entry.name: entry.ndcg for entry in tried}
    learned = max((name for name in ("linear", "lightgbm") if name in means), key=means.__getitem__, default=None)
    num_held = len(np.unique(users[held]))
    if num_held < MIN_HELD_OUT_USERS:
        sentence = (
            f"{_NAMES['dense']} is served: {num_held} users are held out, and a comparison needs {MIN_HELD_OUT_USERS}"
        )
        return RankDecision(
            served="dense",
            learned=learned,
            confidence=confidence,
            rows=rows,
            tried=tried,
            comparisons=(),
            sentence=sentence,
        )

    def compare(name: str, against: str) -> Comparison:
        used = held if (name, against) == ("fused", "dense") else np.ones(len(users), bool)
        gap = (values[name]["ndcg@10"] - values[against]["ndcg@10"])[used]
        found = paired(gap, users[used], confidence=confidence, resamples=resamples, seed=seed)
        return Comparison(name=name, against=against, difference=found.mean, low=found.low, high=found.high)

    comparisons, served = [], "dense"
    for name in [name for name in ("fused", learned) if name in means]:
        comparisons.append(compare(str(name), served))
        if comparisons[-1].low > 0:
            served = str(name)
    if learned is not None and served == learned and comparisons[-1].against != "dense":
        comparisons.append(compare(learned, "dense"))
        served = learned if comparisons[-1].low > 0 else comparisons[-2].against
    if {"linear", "lightgbm"} <= set(means):
        comparisons.append(compare("lightgbm", "linear"))
    return RankDecision(
        served=served,
        learned=learned,
        confidence=confidence,
        rows=rows,
        tried=tried,
        comparisons=tuple(comparisons),
        sentence=_sentence(served, learned, comparisons, rows, confidence),
    )


def paired(gap: Values, users: npt.NDArray[np.integer], *, confidence: float, resamples: int, seed: int) -> Estimate:
    """Mean of a paired difference per row and its interval over users."""
    return estimate_means(gap, users, resamples=resamples, seed=seed, confidence=confidence)[0]


def _sentence(
    served: str, learned: str | None, comparisons: list[Comparison], rows: RowCounts, confidence: float
) -> str:
    steps = [
        f"{_NAMES[step.name]} against {_NAMES[step.against]} {step.difference:+.4f} [{step.low:+.4f}, {step.high:+.4f}]"
        for step in comparisons
    ]
    why = "; ".join(steps) if steps else "nothing else was tried"
    kept = ""
    if learned is not None and served != learned:
        kept = f", because {_NAMES[learned]} is not better beyond its interval"
    return (
        f"{_NAMES[served]} is served{kept}: NDCG@10 on {rows.used} validation rows of users that the fit had not "
        f"seen, {why} ({confidence:.0%} paired intervals)"
    )
