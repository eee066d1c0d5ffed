"""Fit the second stage on validation rows, guard it on held-out ones, keep it on disk.

Files of a fitted ranker:
    ranker.json             what is served, the features by name, the guard's decision, sizes and hashes of the files below
    linear.safetensors      weights, means, scales and what stands for a missing feature, of the linear order
    trees.txt               LightGBM's own text of the trees that correct the linear order, where they are served
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import digest_of, read_json, sha256_of_file, write_json
from recsys.ranker.config import RankConfig
from recsys.ranker.features import FUSED, imputed_values
from recsys.ranker.guard import RankDecision, RowCounts, decide
from recsys.ranker.linear import LINEAR_FILE, LinearRanker, fit_linear
from recsys.ranker.table import (
    DENSE,
    CandidateTable,
    FloatArray,
    check_validation,
    held_out_parts,
    quality,
    sample_rows,
)
from recsys.ranker.trees import TREES_FILE, TreeRanker, fit_trees

Learned = LinearRanker | TreeRanker
Rows = npt.NDArray[np.int64]
Served = Literal["dense", "fused", "linear", "lightgbm"]

HEAD_FILE: Final = "ranker.json"
_FORMAT: Final = 1
_SIMPLE: Final = {"dense": DENSE, "fused": FUSED}
_LARGEST_HEAD: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class FittedRanker:
    """The order that is served.

    Attributes:
        served: ``dense`` and ``fused`` are columns of the features; the others are learned.
        feature_names: F names, in the order that :meth:`score` expects.
        learned: The better learned order, kept for the report where the guard serves a simpler one; ``None``: none was
            fitted.
        decision: What the guard decided, and from what.
    """

    served: Served
    feature_names: tuple[str, ...]
    learned: Learned | None
    decision: RankDecision

    def score(self, features: FloatArray) -> FloatArray:
        """Score candidates, higher is better.

        Args:
            features: float32 ``[N, C, F]`` in the order of ``feature_names``; NaN where one is not known.

        Returns:
            float32 ``[N, C]``; ``-inf`` where ``dense_score`` is NaN, which stands for no candidate, or the column that is
            served.

        Raises:
            DataError: Another number of features.
        """
        self._check(features)
        if self.served in _SIMPLE:
            column = features[..., self.feature_names.index(_SIMPLE[self.served])]
            return np.where(np.isnan(column), -np.inf, column).astype(np.float32)
        assert self.learned is not None
        return self.learned.score(features)

    def terms(self, features: FloatArray) -> FloatArray:
        """What each feature adds to the served score, float32 ``[N, C, F]``.

        Linear terms, Shapley values of trees, or the one column that is served. Sums differ from :meth:`score` by a number
        that is the same for all candidates.
        """
        self._check(features)
        if self.served in _SIMPLE:
            place = self.feature_names.index(_SIMPLE[self.served])
            terms = np.zeros_like(features)
            terms[..., place] = features[..., place]
            return terms
        assert self.learned is not None
        return self.learned.terms(features)

    def explain(self) -> list[tuple[str, float]]:
        """Weight (linear) or gain (LightGBM) of every feature of the learned order, the heaviest first."""
        return self.learned.explain() if self.learned is not None else []

    @cached_property
    def digest(self) -> str:
        """Sha256 of everything that changes an order."""
        return digest_of({"served": self.served, "features": self.feature_names, "model": _content(self.learned)})

    def save(self, folder: Path) -> None:
        """Write the files; the head last, so that a folder with one is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        head: dict[str, Any] = {
            "format": _FORMAT,
            "served": self.served,
            "feature_names": list(self.feature_names),
            "learned": None,
            "decision": self.decision.model_dump(mode="json"),
            "digest": self.digest,
        }
        if self.learned is not None:
            settings = self.learned.save(folder)
            paths = [folder / name for name in _FILES[self.learned.kind]]
            head["learned"] = {
                "kind": self.learned.kind,
                "settings": settings,
                "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)} for path in paths},
            }
        write_json(folder / HEAD_FILE, head)

    @classmethod
    def load(cls, folder: Path) -> FittedRanker:
        """Read what :meth:`save` wrote, and verify it.

        Raises:
            ArtifactError: A file is missing, damaged or larger than it was written, or its content is another.
        """
        path = folder / HEAD_FILE
        try:
            if path.stat().st_size > _LARGEST_HEAD:
                raise ValueError(f"it has {path.stat().st_size} bytes, at most {_LARGEST_HEAD} are expected")
            head = read_json(path)
            if head["format"] != _FORMAT:
                raise ValueError(f"it has format {head['format']!r}, expected {_FORMAT}")
            names = tuple(str(name) for name in head["feature_names"])
            served, kept = str(head["served"]), head["learned"]
            decision = RankDecision.model_validate(head["decision"])
            if served not in (*_SIMPLE, *_FILES):
                raise ValueError(f"it serves {served!r}, expected one of {', '.join((*_SIMPLE, *_FILES))}")
            if served in _FILES and (kept is None or kept["kind"] != served):
                raise ValueError(f"it serves {served!r} and holds no such model")
            if served in _SIMPLE and _SIMPLE[served] not in names:
                raise ValueError(f"it serves {served!r} and has no feature '{_SIMPLE[served]}'")
            learned = None if kept is None else _load_learned(folder, names, kept)
        except (OSError, KeyError, TypeError, ValueError, ValidationError) as error:
            raise ArtifactError(f"ranker '{path}' cannot be read: {error}; run `rank` again") from error
        found = cls(cast(Served, served), names, learned, decision)
        if found.digest != head.get("digest"):
            raise ArtifactError(
                f"ranker '{folder}' is damaged: its digest is {found.digest[:16]}, {HEAD_FILE} says "
                f"{str(head.get('digest'))[:16]}; run `rank` again"
            )
        return found

    def _check(self, features: FloatArray) -> None:
        if features.shape[-1] != len(self.feature_names):
            raise DataError(
                f"ranker was fitted on {len(self.feature_names)} features ({', '.join(self.feature_names)}), got "
                f"{features.shape[-1]}; gather them as at the fit, or run `rank` again"
            )


_FILES: Final = {LinearRanker.kind: (LINEAR_FILE,), TreeRanker.kind: (TREES_FILE, LINEAR_FILE)}


def fit_ranker(table: CandidateTable, config: RankConfig, seed: int) -> FittedRanker:
    """Fit on validation rows, choose and guard by rows of users that the fit has not seen.

    1. The held-out users' rows are ranked by a fit on all other rows. Ridge and number of trees are found there.
    2. The other users are held out in turn, in parts as large, so that every row has an order that has not seen its user:
       what the learned orders gain is small beside the spread of a part.
    3. :func:`~recsys.ranker.guard.decide` compares; what it chose is fitted on all rows.

    Args:
        table: Candidates of validation rows; of more than ``config.max_rows`` a seeded sample is taken.
        config: Method, shares and grids.
        seed: Same table, configuration and seed give the same ranker.

    Raises:
        DataError: A row is of another split than validation, there are none, or the features lack ``dense_score``.
    """
    check_validation(table.split, "the ranker")
    table.column(DENSE)
    table = table.take(sample_rows(table.targets.user_index, config.max_rows, seed))
    part = held_out_parts(table.targets.user_index, config.held_out_share, seed)
    hits = table.relevant.any(axis=1)
    learnable = all(bool((hits & (part != number)).any()) for number in range(int(part.max()) + 1))
    fitted = _fit_all(table.take(np.flatnonzero(part != 0)), config, seed) if learnable else {}
    orders = {name: table.column(column) for name, column in _SIMPLE.items() if column in table.feature_names}
    orders |= _unseen_scores(fitted, table, part, config, seed)
    held = part == 0
    decision = decide(
        {name: quality(table, scores) for name, scores in orders.items()},
        table.targets.user_index,
        held,
        RowCounts(
            used=len(table),
            fit=int((~held).sum()),
            held_out=int(held.sum()),
            fit_without_target=int((~hits & ~held).sum()),
            held_out_without_target=int((~hits & held).sum()),
        ),
        confidence=config.confidence,
        resamples=config.resamples,
        seed=seed,
    )
    learned = fitted[decision.learned] if decision.learned is not None else None
    if learned is not None and config.refit:
        learned = _refit(learned, table, config, seed)
    return FittedRanker(cast(Served, decision.served), table.feature_names, learned, decision)


def _fit_all(table: CandidateTable, config: RankConfig, seed: int) -> dict[str, Learned]:
    """Every learned order that the method asks for; trees start from the linear one."""
    if config.method == "none":
        return {}
    linear = fit_linear(table, imputed_values(table.feature_names), config.l2_grid, seed)
    fitted: dict[str, Learned] = {} if config.method == "lightgbm" else {linear.kind: linear}
    trees = fit_trees(table, linear, config.lightgbm, seed) if config.method != "linear" else None
    if trees is not None:  # None: every target stands behind the candidates that trees would re-order
        fitted[trees.kind] = trees
    return fitted


def _unseen_scores(
    fitted: dict[str, Learned], table: CandidateTable, part: Rows, config: RankConfig, seed: int
) -> dict[str, FloatArray]:
    """Scores of all rows by each method, each part's by a fit on the others; ``fitted`` has not seen part 0."""
    found = {name: np.full(table.items.shape, -np.inf, np.float32) for name in fitted}
    for number in range(int(part.max()) + 1 if fitted else 0):
        rows = np.flatnonzero(part == number)
        models = dict(fitted)
        if number:
            others = table.take(np.flatnonzero(part != number))
            widest = _refit(list(fitted.values())[-1], others, config, seed)
            models = {name: getattr(widest, "base", widest) if name == LinearRanker.kind else widest for name in fitted}
        for name, model in models.items():
            found[name][rows] = model.score(table.features[rows])
    return found


def _refit(learned: Learned, table: CandidateTable, config: RankConfig, seed: int) -> Learned:
    """The same method with what it chose, ridge and number of trees, on other rows."""
    before = learned.base if isinstance(learned, TreeRanker) else learned
    linear = fit_linear(table, before.imputed, (before.l2,), seed)
    if not isinstance(learned, TreeRanker):
        return linear
    trees = fit_trees(table, linear, config.lightgbm, seed, learned.rounds)
    return trees if trees is not None else replace(learned, base=linear)


def _load_learned(folder: Path, names: Sequence[str], kept: dict[str, Any]) -> Learned:
    kind = str(kept["kind"])
    for name in _FILES[kind]:
        path, expected = folder / name, kept["files"][name]
        if path.stat().st_size != expected["bytes"] or sha256_of_file(path) != expected["sha256"]:
            raise ArtifactError(
                f"ranker '{path}' is damaged: it has {path.stat().st_size} bytes, {HEAD_FILE} says {expected['bytes']} and "
                "another hash; run `rank` again"
            )
    loader = LinearRanker if kind == LinearRanker.kind else TreeRanker
    return loader.load(folder, names, kept["settings"])


def _content(learned: Learned | None) -> Any:
    if learned is None:
        return None
    if isinstance(learned, TreeRanker):
        return [hashlib.sha256(learned.text.encode()).hexdigest(), _content(learned.base)]
    arrays = (learned.weight, learned.mean, learned.scale, learned.imputed)
    return hashlib.sha256(b"".join(np.ascontiguousarray(a, "<f4").tobytes() for a in arrays)).hexdigest()
