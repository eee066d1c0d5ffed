"""Weights of the scorers that are summed over the whole catalogue, and of their sum in the guided search.

Reads scores block by block and the targets of validation rows; produces a :class:`Fusion`. Of every row only a shortlist is
kept: the best items of each scorer, the targets, and a seeded sample of the rest, each of which stands for many. On it the
weights are fitted twice: as a choice among items (:mod:`recsys.ranker.logit`), then, from there, one weight after the other
by NDCG@10. The first is steady, the second is the measure that counts.

Shape legend: S scorers, N rows, n rows of a block, I items, C items of a shortlist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Targets
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import read_json, write_json
from recsys.contracts.ranking import RankedItems
from recsys.metrics.ranking import row_metrics
from recsys.ranker.logit import Choices, fit_softmax
from recsys.ranker.table import TOP, CandidateTable, FloatArray, check_validation, held_out_users, quality, sample_rows

FUSION_FILE: Final = "fusion.json"

ScoreBlocks = Callable[[npt.NDArray[np.int64]], Iterable[FloatArray]]
"""Asked for row numbers of the targets, gives their scores in blocks ``[S, n, I]``, in the order of these rows; ``-inf`` in
the first scorer marks items that a row may not get."""

SHORTLIST: Final = 50
"""Best items of each scorer that a shortlist holds."""

SAMPLED: Final = 100
"""Items of the rest that a shortlist holds."""

_FACTORS: Final = (0.0, 0.25, 0.5, 0.7, 0.85, 1.2, 1.5, 2.0, 4.0)
_START: Final = 0.05
"""What a weight of 0 is tried at: the scorers come on comparable scales, the first with weight 1."""
_PASSES: Final = 3
_SMALLEST_GAIN: Final = 1e-5
_RIDGE: Final = 1e-4


@dataclass(frozen=True)
class Fusion:
    """How scorers are summed and how strongly the sum guides the search.

    Attributes:
        names: S names; the first is the dense head's log-softmax.
        weights: S weights, none negative; the first is 1.
        guidance: Weight of the sum in the search.
        tried: What was compared on the fit rows, for the report: ``{"weights": {name: NDCG@10}, "guidance": {...}}``.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    guidance: float = 0.0
    tried: dict[str, dict[str, float]] | None = None

    def sum(self, scores: FloatArray) -> FloatArray:
        """Weighted sum of scores ``[S, ...]``; float32."""
        total = np.asarray(scores[0] * np.float32(self.weights[0]), np.float32)
        for weight, score in zip(self.weights[1:], scores[1:], strict=True):
            if weight:
                total += np.float32(weight) * score
        return total

    def save(self, folder: Path) -> None:
        """Write ``fusion.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FUSION_FILE, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Names, weights, guidance and what was tried."""
        return {
            "names": list(self.names),
            "weights": list(self.weights),
            "guidance": self.guidance,
            "tried": self.tried or {},
        }

    @classmethod
    def load(cls, folder: Path) -> Fusion:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: The file is damaged.
        """
        path = folder / FUSION_FILE
        try:
            head = read_json(path)
            names = tuple(str(name) for name in head["names"])
            numbers = np.array([*head["weights"], head["guidance"]], np.float64)
            if len(numbers) != len(names) + 1 or not names or not np.isfinite(numbers).all() or (numbers < 0).any():
                raise ValueError(f"{len(names)} names have weights {head['weights']} and guidance {head['guidance']}")
            return cls(names, tuple(numbers[:-1].tolist()), float(numbers[-1]), head.get("tried") or None)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"fusion '{path}' cannot be read: {error}; run `rank` again") from error


def fit_rows(
    targets: Targets, split: npt.NDArray[np.integer], held_out_share: float, max_rows: int, seed: int
) -> npt.NDArray[np.int64]:
    """Row numbers that weights may be fitted on: validation rows of users that are not held out, ascending.

    Raises:
        DataError: A row is of another split, there are none, or all users are held out.
    """
    check_validation(split, "the fusion of scorers")
    sampled = sample_rows(targets.user_index, max_rows, seed)
    used = sampled[~held_out_users(targets.user_index[sampled], held_out_share, seed)]
    if not len(used):
        raise DataError(
            f"all {len(sampled)} validation rows are of held-out users; lower rank.held_out_share (now {held_out_share}), "
            "or set rank.method: none"
        )
    return used


def choose_fusion(
    names: Sequence[str],
    blocks: ScoreBlocks,
    targets: Targets,
    rows: npt.NDArray[np.int64],
    seed: int,
) -> Fusion:
    """Choose the weights of scorers, the first one's being 1.

    Args:
        names: S names, in the order of the blocks; the dense head's log-softmax first.
        blocks: Gives the scores of rows; called once, and nothing larger than a block is held.
        targets: Of the validation rows.
        rows: Those of :func:`fit_rows`.
        seed: Of the sample of the rest.

    Raises:
        DataError: The blocks have other shapes, or hold numbers that are not finite.
    """
    table, offset = _shortlists(names, blocks, targets.take(rows), rows, seed)
    candidates = {"dense alone": _unit(len(names)), "all alike": np.ones(len(names))}
    if table.relevant.any() and len(names) > 1:
        candidates["softmax"] = _softmax_weights(table, offset)
    measured = {name: _ndcg(table, weights) for name, weights in candidates.items()}
    best = max(measured, key=measured.__getitem__)
    weights = candidates[best]
    if len(names) > 1:
        weights = coordinate_search(lambda trial: _ndcg(table, trial), weights)
        measured["coordinate search"] = _ndcg(table, weights)
    return Fusion(tuple(names), tuple(float(round(w, 6)) for w in weights), 0.0, {"weights": measured})


def choose_guidance(
    fusion: Fusion,
    grid: Sequence[float],
    search: Callable[[float], RankedItems],
    targets: Targets,
) -> Fusion:
    """Return the fusion with the guidance of best NDCG@10 of the searched list itself.

    Args:
        grid: Weights of the fused score in the search.
        search: Searches the fit rows with such a weight and returns the list in the search's own order.
        targets: Of these rows.
    """
    measured = {
        strength: float(row_metrics(search(strength), targets, [TOP])[f"ndcg@{TOP}"].mean()) for strength in grid
    }
    best = max(measured, key=lambda strength: (measured[strength], -strength))
    tried = {**(fusion.tried or {}), "guidance": {f"{strength:g}": value for strength, value in measured.items()}}
    return Fusion(fusion.names, fusion.weights, float(best), tried)


def coordinate_search(
    value: Callable[[npt.NDArray[np.float64]], float], start: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Improve one weight after the other by factors, until a pass changes nothing; the first stays.

    Args:
        value: To be maximised.
        start: First weights, none negative.
    """
    weights, best = start.copy(), value(start)
    for _ in range(_PASSES):
        before = best
        for place in range(1, len(weights)):
            current = weights[place] or _START
            for factor in _FACTORS:
                trial = weights.copy()
                trial[place] = current * factor
                found = value(trial)
                if found > best + _SMALLEST_GAIN:
                    weights, best = trial, found
        if best <= before:
            break
    return weights


def _shortlists(
    names: Sequence[str], blocks: ScoreBlocks, targets: Targets, rows: npt.NDArray[np.int64], seed: int
) -> tuple[CandidateTable, FloatArray]:
    """The shortlist of every row as a table whose features are the scorers, and the log of what each item stands for."""
    generator = np.random.default_rng(seed)
    parts, begin = [], 0
    for scores in blocks(rows):
        count = scores.shape[1] if scores.ndim == 3 else -1
        if scores.ndim != 3 or len(scores) != len(names) or begin + count > len(rows):
            raise DataError(
                f"a block of scores has shape {scores.shape}, expected [{len(names)} scorers, at most {len(rows) - begin} "
                "rows, items]; give the rows that were asked for"
            )
        parts.append(_shortlist(names, scores, targets.take(np.arange(begin, begin + count)), generator))
        begin += count
    if begin != len(rows):
        raise DataError(f"the blocks of scores hold {begin} rows, {len(rows)} were asked for")
    width = max(part[0].shape[1] for part in parts)
    items = np.concatenate([_widened(part[0], width, -1) for part in parts])
    values = np.concatenate([_widened(part[1], width, 0.0) for part in parts])
    offset = np.concatenate([_widened(part[2], width, 0.0) for part in parts])
    split = np.full(len(rows), VALID, np.int8)
    return CandidateTable(items, values, tuple(names), targets, split), offset


def _shortlist(
    names: Sequence[str], scores: FloatArray, targets: Targets, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int32], FloatArray, FloatArray]:
    """Items ``[n, C]``, scores ``[n, C, S]`` and log of what each stands for ``[n, C]``, of one block."""
    num_rows, num_items = scores.shape[1:]
    allowed = ~np.isneginf(scores[0])
    kept = np.zeros((num_rows, num_items), bool)
    top = min(SHORTLIST, num_items)
    every = np.arange(num_rows)[:, None]
    for score in scores:
        kept[every, np.argpartition(-np.where(allowed, score, -np.inf), top - 1, axis=1)[:, :top]] = True
    kept[np.repeat(np.arange(num_rows), np.diff(targets.item_offsets)), targets.items] = True
    kept &= allowed
    rest = (allowed & ~kept).sum(axis=1)
    drawn = generator.integers(num_items, size=(num_rows, SAMPLED))
    sampled = np.zeros_like(kept)
    sampled[every, drawn] = True
    sampled &= allowed & ~kept
    stands_for = rest / np.maximum(sampled.sum(axis=1), 1)
    chosen = kept | sampled
    counts = chosen.sum(axis=1)
    width = max(1, int(counts.max(initial=0)))
    row, item = np.nonzero(chosen)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    items = np.full((num_rows, width), -1, np.int32)
    values = np.zeros((num_rows, width, len(names)), np.float32)
    offset = np.zeros((num_rows, width), np.float32)
    items[row, place] = item
    values[row, place] = scores[:, row, item].T
    offset[row, place] = np.where(sampled[row, item], np.log(np.maximum(stands_for[row], 1.0)), 0.0)
    if not np.isfinite(values).all():
        bad = names[int(np.argwhere(~np.isfinite(values))[0, 2])]
        raise DataError(f"scorer '{bad}' gives a score that is not finite to an item that is allowed")
    return items, values, offset


def _softmax_weights(table: CandidateTable, offset: FloatArray) -> npt.NDArray[np.float64]:
    """Weights of the choice among items, divided by the first; none negative."""
    hits = table.relevant.sum(axis=1)
    used = np.flatnonzero(hits > 0)
    present = table.present[used]
    counts = present.sum(axis=1)
    flat = table.features[used][present]
    spread = np.maximum(flat.std(axis=0, dtype=np.float64), 1e-6)
    choices = Choices(
        (flat / spread).astype(np.float32),
        np.cumsum(counts) - counts,
        (table.relevant[used] / hits[used, None])[present].astype(np.float32),
        offset[used][present],
    )
    lowest = np.zeros(flat.shape[1])
    weights = fit_softmax(choices, _RIDGE, lowest + 0.1, lowest=lowest) / spread
    return weights / weights[0] if weights[0] > 0 else _unit(len(weights))


def _ndcg(table: CandidateTable, weights: npt.NDArray[np.float64]) -> float:
    return float(quality(table, table.features @ weights.astype(np.float32))[f"ndcg@{TOP}"].mean())


def _unit(count: int) -> npt.NDArray[np.float64]:
    weights = np.zeros(count)
    weights[0] = 1.0
    return weights


def _widened(array: npt.NDArray[Any], width: int, fill: float) -> npt.NDArray[Any]:
    missing = [(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, missing, constant_values=fill)
