"""Fit the second stage of item lists: scorers on train events, weights, guidance and ranker on validation rows.

Reads a prepared data set, a policy with its semantic IDs and item vectors; produces a
:class:`~recsys.decoding.second_stage.stage.SecondStage` and a summary. Nothing is fitted on test rows, and of the validation
rows a part (whole users) chooses and guards and fits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.columns import VALID
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.answers import within_quotas
from recsys.decoding.batches import PreparedBatch
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules
from recsys.decoding.second_stage.candidate_search import CandidateSearch, ranked_items
from recsys.decoding.second_stage.recommender import candidate_search
from recsys.decoding.second_stage.stage import DENSE, FUSED, SecondStage, policy_digest
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.ranker.config import RankConfig
from recsys.ranker.features import ItemFacts, feature_names
from recsys.ranker.fitted import fit_ranker
from recsys.ranker.fusion import Fusion, choose_fusion, choose_guidance, fit_rows
from recsys.ranker.table import TOP, CandidateTable, FloatArray, check_validation, sample_rows
from recsys.runtime import Progress
from recsys.scorers.config import ScorersConfig
from recsys.scorers.scorer_set import ScorerSet
from recsys.semantic_ids.versions import SemanticIds

GUIDANCE_ROWS: Final = 2000
"""Rows on which the guidance is chosen: each strength is a search of its own, and the best ones differ by little."""


def fit_second_stage(
    prepared: Dataset,
    policy: GenerativeRecommender,
    semantic_ids: SemanticIds,
    decode: DecodeConfig,
    config: RankConfig,
    vectors: Mapping[str, FloatArray],
    seed: int,
    progress: Progress,
) -> tuple[SecondStage, dict[str, Any]]:
    """Fit everything that :class:`~recsys.decoding.second_stage.stage.SecondStage` holds.

    Args:
        policy: Answers in the end; its weights are read before anything changes their precision.
        decode: How it searches.
        vectors: Item vectors by name, ``fused`` and where there is one ``text``.
        seed: Of samples, held-out users and trees; the same inputs and seed give the same files.

    Raises:
        ConfigError: The configuration names a scorer that does not exist.
        DataError: There is no validation row, or none that may be fitted on.
    """
    digest = policy_digest(policy)
    recommender = Recommender(policy, semantic_ids, decode)
    targets = prepared.targets(VALID)
    check_validation(np.full(len(targets), VALID), "the second stage")
    targets = targets.take(sample_rows(targets.user_index, config.max_rows, seed))
    split = np.full(len(targets), VALID)
    clock = _Clock()
    scorers = ScorerSet.fit(prepared, _scorers(config), vectors, "train", catalogue=semantic_ids.digest)
    names = (DENSE, *scorers.names)
    facts = ItemFacts.from_dataset(prepared)
    clock.lap("the scorers")
    only_dense = Fusion(names, (1.0, *[0.0] * len(scorers.names)))
    rows = _Rows(
        candidate_search(recommender, scorers, only_dense, facts, config.candidates),
        recommender,
        recommender.compile(ItemRules(), len(targets)),
        Histories.from_targets(prepared.history, targets),
        progress,
    )
    chosen = fit_rows(targets, split, config.held_out_share, config.max_rows, seed)
    fusion = choose_fusion(names, rows.scores, targets, chosen)
    clock.lap("their weights")
    rows = replace(rows, search=replace(rows.search, fusion=fusion))
    fusion = _with_guidance(rows, fusion, config, targets, chosen, seed)
    clock.lap("the guidance")
    rows = replace(rows, search=replace(rows.search, fusion=fusion))
    table = rows.table(targets, split)
    clock.lap("the candidates")
    ranker = fit_ranker(table, config, seed)
    clock.lap("the ranker")
    stage = SecondStage(scorers, fusion, facts, ranker, config.candidates, semantic_ids.digest, digest)
    return stage, _summary(stage, table, clock)


@dataclass
class _Clock:
    """Seconds of the parts of a fit, in order."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def lap(self, part: str) -> None:
        """What was done since the last lap is ``part``."""
        now = time.monotonic()
        self.seconds[part], self.started = round(now - self.started, 1), now


def _scorers(config: RankConfig) -> ScorersConfig:
    if config.scorers == "auto":
        return ScorersConfig()
    return ScorersConfig.model_validate({"names": list(config.scorers)})


def _with_guidance(
    rows: _Rows, fusion: Fusion, config: RankConfig, targets: Targets, chosen: npt.NDArray[np.int64], seed: int
) -> Fusion:
    if config.guidance != "auto":
        return replace(fusion, guidance=float(config.guidance))
    used = chosen[sample_rows(targets.user_index[chosen], GUIDANCE_ROWS, seed)]
    lists = rows.guided_lists(used, config.guidance_grid)
    return choose_guidance(fusion, config.guidance_grid, lists.__getitem__, targets.take(used))


@dataclass(frozen=True)
class _Rows:
    """Validation rows, and what is gathered of them batch by batch."""

    search: CandidateSearch
    recommender: Recommender
    rules: CompiledRules
    histories: Histories
    progress: Progress

    def scores(self, rows: npt.NDArray[np.int64]) -> Iterator[FloatArray]:
        """Scores of all items by the dense head and every scorer, ``[S, n, I]``; ``-inf`` where an item was seen."""
        for block in self._blocks(rows, "rank: weights of the scorers"):
            histories = self.histories.take(block)
            batch = self.search.score(self._prepared(block))
            counted = self.search.scorers.scores(histories)
            yield np.concatenate([batch.open(batch.dense_BI).cpu().numpy()[None], counted])

    def guided_lists(self, rows: npt.NDArray[np.int64], grid: tuple[float, ...]) -> dict[float, RankedItems]:
        """What the search finds under each guidance, in its own order."""
        parts: dict[float, list[RankedItems]] = {strength: [] for strength in grid}
        for block in self._blocks(rows, "rank: guidance of the search"):
            batch = self.search.score(self._prepared(block))
            for strength, found in parts.items():
                beams = self.search.search(batch, self._width, strength)
                found.append(ranked_items(*within_quotas(beams.item_BW, beams.score_BW, None, TOP), TOP))
        return {strength: _stacked(found) for strength, found in parts.items()}

    def table(self, targets: Targets, split: npt.NDArray[np.integer]) -> CandidateTable:
        """Candidates of all rows with their features."""
        rows = np.arange(len(targets))
        items, features = [], []
        for block in self._blocks(rows, "rank: candidates"):
            batch = self.search.score(self._prepared(block))
            beams = self.search.search(batch, self._width, self.search.fusion.guidance)
            union = self.search.unite(batch, beams, TOP)
            items.append(union.item_BC.cpu().numpy().astype(np.int32))
            features.append(self.search.features(batch, beams, union))
        width = max(part.shape[1] for part in items)
        names = feature_names([*self.search.fusion.names, FUSED], self.search.sources)
        found = np.full((len(targets), width), -1, np.int32)
        values = np.zeros((len(targets), width, len(names)), np.float32)
        begin = 0
        while items:
            part, value = items.pop(0), features.pop(0)  # what is copied is let go
            found[begin : begin + len(part), : part.shape[1]] = part
            values[begin : begin + len(part), : part.shape[1]] = value
            begin += len(part)
        return CandidateTable(found, values, names, targets, split)

    @property
    def _width(self) -> int:
        return max(self.search.config.beam_width, TOP)

    def _prepared(self, block: npt.NDArray[np.int64]) -> PreparedBatch:
        return self.recommender.prepare(self.histories.take(block), self.rules, TOP)

    def _blocks(self, rows: npt.NDArray[np.int64], label: str) -> Iterator[npt.NDArray[np.int64]]:
        size = self.search.users_per_batch(self._width)
        blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
        return self.progress.track(blocks, label, len(blocks))


def _stacked(parts: list[RankedItems]) -> RankedItems:
    return RankedItems(np.concatenate([p.items for p in parts]), np.concatenate([p.scores for p in parts]))


def _summary(stage: SecondStage, table: CandidateTable, clock: _Clock) -> dict[str, Any]:
    decision = stage.ranker.decision
    has_target = table.relevant.any(axis=1)
    by_source = {
        source: round(float((table.relevant & (table.column(f"found_by_{source}") > 0)).any(axis=1).mean()), 6)
        for source in stage.sources
    }
    return {
        "serves": stage.ranker.served,
        "verdict": decision.sentence,
        "guidance": stage.fusion.guidance,
        "weights": dict(zip(stage.fusion.names, stage.fusion.weights, strict=True)),
        "learned": decision.learned,
        "features": [[name, round(float(value), 6)] for name, value in stage.ranker.explain()],
        "left_out": list(stage.scorers.notes),
        "rows": len(table),
        "candidates_per_row": round(float(table.present.sum(axis=1).mean()), 1),
        "rows_with_target": round(float(has_target.mean()), 6),
        "rows_with_target_by_source": by_source,
        "held_out": {entry.name: {"ndcg@10": entry.ndcg, "hr@10": entry.hr} for entry in decision.tried},
        "seconds": clock.seconds,
    }
