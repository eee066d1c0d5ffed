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
from recsys.ranker.table import TOP, CandidateTable, FloatArray, held_out_users

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
        num_threads: Of LightGBM when it scores.
    """

    kind: ClassVar[str] = "lightgbm"

    feature_names: tuple[str, ...]
    base: LinearRanker
    text: str
    rounds: int
    num_threads: int = 1

    @cached_property
    def _booster(self) -> Any:
        import lightgbm

        return lightgbm.Booster(model_str=self.text)

    def score(self, features: FloatArray) -> FloatArray:
        """Score candidates ``[..., F]``; returns float32 ``[...]``."""
        return self.base.score(features) + self._predict(features)

    def terms(self, features: FloatArray) -> FloatArray:
        """What each feature adds to the score, float32 ``[..., F]``: linear terms and the trees' Shapley values.

        The terms of a candidate sum to its score less a number that is the same for all candidates.
        """
        parts = self._predict(features, pred_contrib=True)
        return self.base.terms(features) + parts[..., :-1]

    def explain(self) -> list[tuple[str, float]]:
        """Gain of every feature, the sum over all splits, the largest first."""
        gains = self._booster.feature_importance(importance_type="gain").tolist()
        return sorted(zip(self.feature_names, gains, strict=True), key=lambda pair: (-pair[1], pair[0]))

    def save(self, folder: Path) -> dict[str, Any]:
        """Write ``trees.txt`` and the linear ranker; returns what belongs into the JSON file beside them."""
        (folder / TREES_FILE).write_text(self.text, encoding="utf-8")
        return {"rounds": self.rounds, "num_threads": self.num_threads, "base": self.base.save(folder)}

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
            found = cls(tuple(feature_names), base, text, int(head["rounds"]), max(1, int(head["num_threads"])))
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
        "min_sum_hessian_in_leaf": 0.0,
        "feature_fraction": config.feature_share,
        "lambda_l2": config.l2,
        "seed": seed % (1 << 31),
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": config.num_threads,
        "feature_pre_filter": False,
        "verbosity": -1,
    }
    hits = table.relevant.any(axis=1)
    stop = held_out_users(table.targets.user_index, config.stop_share, seed + 3)
    alone = rounds is not None or not (hits & stop).any() or not (hits & ~stop).any()
    fitted_rows = np.flatnonzero(hits if alone else hits & ~stop)
    if not len(fitted_rows):
        return None
    data = _data(table, base, fitted_rows)
    data.params = settings
    if alone:
        booster = lightgbm.train(settings, data, num_boost_round=rounds or config.rounds)
        return TreeRanker(table.feature_names, base, booster.model_to_string(), booster.num_trees(), config.num_threads)
    booster = lightgbm.train(
        settings,
        data,
        num_boost_round=config.rounds,
        valid_sets=[_data(table, base, np.flatnonzero(hits & stop), data)],
        callbacks=[lightgbm.early_stopping(config.patience, verbose=False)],
    )
    best = max(1, booster.best_iteration)
    text = booster.model_to_string(num_iteration=best)
    return TreeRanker(table.feature_names, base, text, best, config.num_threads)


def _data(table: CandidateTable, base: LinearRanker, rows: npt.NDArray[np.int64], reference: Any = None) -> Any:
    """Candidates of these rows, one row after the other, with the linear scores that the trees start from."""
    import lightgbm

    present = table.present[rows]
    features = table.features[rows][present]
    return lightgbm.Dataset(
        features,
        label=table.relevant[rows][present].astype(np.float32),
        group=present.sum(axis=1),
        init_score=base.score(features).astype(np.float64),
        reference=reference,
        free_raw_data=True,
    )
