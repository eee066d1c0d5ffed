"""Weights of the scorers that are summed over the whole catalogue, and of their sum in the guided search.

Reads scores block by block and the targets of validation rows; produces a :class:`Fusion`. Of every row only a shortlist is
kept: the best items of each scorer and the targets. The weights are those of a choice among the ten items that the sum so
far puts first (:mod:`recsys.ranker.logit`), fitted again on what the new sum puts first, a few times over. A choice among
the whole catalogue is dominated by targets far down the list, which no weight brings to the top: on Beauty it gives an
NDCG@10 of .060 where the top ten gives .063.

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

_PASSES: Final = 6
_RIDGE: Final = 1e-3
"""On weights of scores of standard deviation 1; from 0 to .1 it changes NDCG@10 by less than .001 (Beauty)."""


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


def choose_fusion(names: Sequence[str], blocks: ScoreBlocks, targets: Targets, rows: npt.NDArray[np.int64]) -> Fusion:
    """Choose the weights of scorers, the first one's being 1.

    Args:
        names: S names, in the order of the blocks; the dense head's log-softmax first.
        blocks: Gives the scores of rows; called once, and nothing larger than a block is held.
        targets: Of the validation rows.
        rows: Those of :func:`fit_rows`.

    Raises:
        DataError: The blocks have other shapes, or hold numbers that are not finite.
    """
    table = _shortlists(names, blocks, targets.take(rows), rows)
    weights = np.zeros(len(names))
    weights[0] = 1.0
    best, measured = weights, {f"{names[0]} alone": _ndcg(table, weights)}
    for step in range(1, _PASSES + 1 if len(names) > 1 else 1):
        found = _refined(table, weights)
        if found is None:
            break
        weights = found
        measured[f"pass {step}"] = _ndcg(table, weights)
        if measured[f"pass {step}"] >= max(measured.values()):
            best = weights
    return Fusion(tuple(names), tuple(float(round(w, 6)) for w in best), 0.0, {"weights": measured})


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


def _shortlists(
    names: Sequence[str], blocks: ScoreBlocks, targets: Targets, rows: npt.NDArray[np.int64]
) -> CandidateTable:
    """The shortlist of every row as a table whose features are the scorers."""
    parts, begin = [], 0
    for scores in blocks(rows):
        count = scores.shape[1] if scores.ndim == 3 else -1
        if scores.ndim != 3 or len(scores) != len(names) or begin + count > len(rows):
            raise DataError(
                f"a block of scores has shape {scores.shape}, expected [{len(names)} scorers, at most {len(rows) - begin} "
                "rows, items]; give the rows that were asked for"
            )
        parts.append(_shortlist(names, scores, targets.take(np.arange(begin, begin + count))))
        begin += count
    if begin != len(rows):
        raise DataError(f"the blocks of scores hold {begin} rows, {len(rows)} were asked for")
    width = max(items.shape[1] for items, _ in parts)
    items = np.concatenate([_widened(items, width, -1) for items, _ in parts])
    values = np.concatenate([_widened(values, width, 0.0) for _, values in parts])
    return CandidateTable(items, values, tuple(names), targets, np.full(len(rows), VALID, np.int8))


def _shortlist(names: Sequence[str], scores: FloatArray, targets: Targets) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Items ``[n, C]`` and scores ``[n, C, S]`` of one block."""
    num_rows, num_items = scores.shape[1:]
    allowed = ~np.isneginf(scores[0])
    kept = np.zeros((num_rows, num_items), bool)
    top, every = min(SHORTLIST, num_items), np.arange(num_rows)[:, None]
    for score in scores:
        kept[every, np.argpartition(-np.where(allowed, score, -np.inf), top - 1, axis=1)[:, :top]] = True
    kept[np.repeat(np.arange(num_rows), np.diff(targets.item_offsets)), targets.items] = True
    kept &= allowed
    counts = kept.sum(axis=1)
    width = max(1, int(counts.max(initial=0)))
    row, item = np.nonzero(kept)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    items = np.full((num_rows, width), -1, np.int32)
    values = np.zeros((num_rows, width, len(names)), np.float32)
    items[row, place] = item
    values[row, place] = scores[:, row, item].T
    if not np.isfinite(values).all():
        bad = names[int(np.argwhere(~np.isfinite(values))[0, 2])]
        raise DataError(f"scorer '{bad}' gives a score that is not finite to an item that is allowed")
    return items, values


def _refined(table: CandidateTable, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Weights of the choice among the ten items that ``weights`` put first, divided by the first; none negative.

    ``None`` where no target is among them, or where the first weight is 0.
    """
    scores = np.where(table.present, _sum(table, weights), -np.inf)
    top = min(TOP, scores.shape[1])
    lowest = -np.partition(-scores, top - 1, axis=1)[:, top - 1]
    among = table.present & (scores >= lowest[:, None])
    chosen = table.relevant & among
    used = np.flatnonzero(chosen.any(axis=1))
    if not len(used):
        return None
    counts = among[used].sum(axis=1)
    flat = table.features[used][among[used]]
    spread = np.maximum(flat.std(axis=0, dtype=np.float64), 1e-6)
    share = (chosen[used] / chosen[used].sum(axis=1, keepdims=True))[among[used]]
    choices = Choices((flat / spread).astype(np.float32), np.cumsum(counts) - counts, share.astype(np.float32))
    found = fit_softmax(choices, _RIDGE, weights * spread, lowest=np.zeros(len(weights))) / spread
    return found / found[0] if found[0] > 0 else None


def _sum(table: CandidateTable, weights: npt.NDArray[np.float64]) -> FloatArray:
    return np.asarray(table.features @ weights.astype(np.float32), np.float32)


def _ndcg(table: CandidateTable, weights: npt.NDArray[np.float64]) -> float:
    return float(quality(table, _sum(table, weights))[f"ndcg@{TOP}"].mean())


def _widened(array: npt.NDArray[Any], width: int, fill: float) -> npt.NDArray[Any]:
    missing = [(0, 0), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, missing, constant_values=fill)
