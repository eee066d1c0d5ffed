"""The second stage by LightGBM: trees that correct the linear order, fitted by LambdaRank for NDCG@10.

Reads a :class:`~recsys.ranker.table.CandidateTable` and the linear ranker of the same rows; produces a
:class:`TreeRanker`. The trees start from the linear scores instead of from nothing, so that few and small ones are enough.
On disk it is LightGBM's own text, which is data and runs nothing.

Source: Ke et al. 2017, "LightGBM"; Burges 2010, "From RankNet to LambdaRank to LambdaMART".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.errors import ArtifactError
from recsys.ranker.config import LightGBMConfig
from recsys.ranker.linear import LinearRanker
from recsys.ranker.table import TOP, CandidateTable, FloatArray, Mask, held_out_users

Rows = npt.NDArray[np.int64]

TREES_FILE: Final = "trees.txt"
LARGEST_TREES: Final = 64 << 20
"""Bytes of the text of trees that is read; 5000 trees of 31 leaves take 20 MB."""


@dataclass(frozen=True, eq=False)
class TreeRanker:
    """Trees on top of a linear order.

    Attributes:
        feature_names: F names.
        base: The linear ranker whose scores the trees correct.
        text: The trees in LightGBM's own form.
        rounds: Their number.
        depth: Candidates of a row that they re-order, the first ones by the linear order; the others stay behind these.
        num_threads: Of LightGBM when it scores.
    """

    kind: ClassVar[str] = "lightgbm"

    feature_names: tuple[str, ...]
    base: LinearRanker
    text: str
    rounds: int
    depth: int
    num_threads: int = 1

    @cached_property
    def _booster(self) -> Any:
        import lightgbm

        return lightgbm.Booster(model_str=self.text)

    def score(self, features: FloatArray) -> FloatArray:
        """Score candidates ``[N, C, F]``; returns float32 ``[N, C]``, ``-inf`` where there is no candidate."""
        base, first = self._first(features)
        corrected = np.take_along_axis(base, first, axis=1) + self._predict(_picked(features, first))
        behind = base.copy()
        np.put_along_axis(behind, first, np.float32(-np.inf), axis=1)
        lowest = np.min(corrected, axis=1, keepdims=True, where=np.isfinite(corrected), initial=np.inf)
        best = behind.max(axis=1, keepdims=True, initial=-np.inf)
        found = behind + np.where(np.isfinite(best) & np.isfinite(lowest), np.minimum(lowest - best, 0.0), 0.0)
        # what is moved down to the lowest would tie with it, and a tie goes to the lower item_index
        found = np.minimum(found, np.nextafter(lowest, np.float32(-np.inf)))
        np.put_along_axis(found, first, corrected, axis=1)
        return found.astype(np.float32)

    def terms(self, features: FloatArray) -> FloatArray:
        """What each feature adds to the score, float32 ``[N, C, F]``: linear terms and the trees' Shapley values.

        The terms of a re-ordered candidate sum to its score less a number that is the same for all; of the candidates
        behind them they are the linear terms.
        """
        _, first = self._first(features)
        found = self.base.terms(features)
        parts = self._predict(_picked(features, first), pred_contrib=True)[..., :-1]
        together = np.take_along_axis(found, first[..., None], axis=1) + parts
        np.put_along_axis(found, first[..., None], together, axis=1)
        return found

    def _first(self, features: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Linear scores ``[N, C]``, and the places ``[N, depth]`` of the highest ones, best first.

        Of equals those in front are taken: a partition would take any, and others in a batch of other width.
        """
        base = self.base.score(features)
        return base, np.argsort(-base, axis=1, kind="stable")[:, : self.depth]

    def explain(self) -> list[tuple[str, float]]:
        """Gain of every feature, the sum over all splits, the largest first."""
        gains = self._booster.feature_importance(importance_type="gain").tolist()
        return sorted(zip(self.feature_names, gains, strict=True), key=lambda pair: (-pair[1], pair[0]))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write ``trees.txt`` and the linear ranker; returns what belongs into the JSON file beside them."""
        (folder / TREES_FILE).write_text(self.text, encoding="utf-8")
        return {
            "rounds": self.rounds,
            "depth": self.depth,
            "num_threads": self.num_threads,
            "base": self.base.save(folder),
        }

    @classmethod
    def load(cls, folder: Path, feature_names: Sequence[str], head: dict[str, Any]) -> TreeRanker:
        """Read what :meth:`save` wrote; whoever calls has compared size and hash.

        Raises:
            ArtifactError: The file is damaged, too large, or of another number of features.
        """
        import lightgbm

        path = folder / TREES_FILE
        try:
            if path.stat().st_size > LARGEST_TREES:
                raise ValueError(f"it has {path.stat().st_size} bytes, at most {LARGEST_TREES} are read")
            text = path.read_text(encoding="utf-8")
            if not text.startswith("tree\n"):
                raise ValueError("it does not begin with 'tree'")
            base = LinearRanker.load(folder, feature_names, head["base"])
            numbers = [max(1, int(head[name])) for name in ("rounds", "depth", "num_threads")]
            found = cls(tuple(feature_names), base, text, *numbers)
            if found._booster.num_feature() != len(feature_names):
                raise ValueError(
                    f"its trees have {found._booster.num_feature()} features, expected {len(feature_names)}"
                )
        except (OSError, ValueError, KeyError, TypeError, lightgbm.basic.LightGBMError) as error:
            raise ArtifactError(f"ranker '{path}' cannot be read: {error}; run `rank` again") from error
        return found

    def _predict(self, features: FloatArray, *, pred_contrib: bool = False) -> FloatArray:
        flat = np.ascontiguousarray(features.reshape(-1, features.shape[-1]), np.float32)
        shape = features.shape if not pred_contrib else (*features.shape[:-1], features.shape[-1] + 1)
        if not len(flat):
            return np.zeros(shape if pred_contrib else shape[:-1], np.float32)
        found = self._booster.predict(flat, raw_score=True, pred_contrib=pred_contrib, num_threads=self.num_threads)
        return np.asarray(found, np.float32).reshape(shape if pred_contrib else shape[:-1])


def fit_trees(
    table: CandidateTable, base: LinearRanker, config: LightGBMConfig, seed: int, rounds: int | None = None
) -> TreeRanker | None:
    """Fit on the rows of ``table`` that hold a target; ``None`` where none do.

    Args:
        table: The fit part of the validation rows, or all of them when the rounds are known.
        base: Fitted on the same rows.
        config: Sizes and rates.
        seed: Of the features that each tree may look at, and of the users that decide when to stop.
        rounds: Trees; ``None``: as many as a part of the users, whose rows are not fitted on, finds best.
    """
    import lightgbm

    settings = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 2 * TOP,
        "metric": "ndcg",
        "eval_at": [TOP],
        "num_leaves": config.num_leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_leaf_rows,
        "min_sum_hessian_in_leaf": 1e-12,  # at 0 LightGBM may find a leaf without any row, and ends
        "feature_fraction": config.feature_share,
        "lambda_l2": config.l2,
        "seed": seed % (1 << 31),
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": config.num_threads,
        "feature_pre_filter": False,
        "verbosity": -1,
    }
    considered = _considered(table, base, config.depth)
    hits = (table.relevant & considered).any(axis=1)
    stop = held_out_users(table.targets.user_index, config.stop_share, seed + 3)
    alone = rounds is not None or not (hits & stop).any() or not (hits & ~stop).any()
    fitted_rows = np.flatnonzero(hits if alone else hits & ~stop)
    if not len(fitted_rows):
        return None
    data = _data(table, base, considered, fitted_rows)
    data.params = settings
    if alone:
        booster = lightgbm.train(settings, data, num_boost_round=rounds or config.rounds)
        return TreeRanker(
            table.feature_names, base, booster.model_to_string(), booster.num_trees(), config.depth, config.num_threads
        )
    booster = lightgbm.train(
        settings,
        data,
        num_boost_round=config.rounds,
        valid_sets=[_data(table, base, considered, np.flatnonzero(hits & stop), data)],
        callbacks=[lightgbm.early_stopping(config.patience, verbose=False)],
    )
    best = max(1, booster.best_iteration)
    text = booster.model_to_string(num_iteration=best)
    return TreeRanker(table.feature_names, base, text, best, config.depth, config.num_threads)


def _considered(table: CandidateTable, base: LinearRanker, depth: int) -> Mask:
    """The candidates that the trees will re-order, ``[N, C]``."""
    scores = np.where(table.present, base.score(table.features), -np.inf)
    last = min(depth, scores.shape[1]) - 1
    return table.present & (scores >= -np.partition(-scores, last, axis=1)[:, [last]])


def _data(table: CandidateTable, base: LinearRanker, considered: Mask, rows: Rows, reference: Any = None) -> Any:
    """Candidates of these rows, one row after the other, with the linear scores that the trees start from."""
    import lightgbm

    used = considered[rows]
    features = table.features[rows][used]
    return lightgbm.Dataset(
        features,
        label=table.relevant[rows][used].astype(np.float32),
        group=used.sum(axis=1),
        init_score=base.score(features).astype(np.float64),
        reference=reference,
        free_raw_data=True,
    )


def _picked(features: FloatArray, places: Rows) -> FloatArray:
    return np.take_along_axis(features, places[..., None], axis=1)
