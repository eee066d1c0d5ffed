"""One user's answer, taken apart: history, codes, rules, scores of every stage, neighbours.

Reads an opened bundle and one row of histories; produces plain values, which are JSON as they are
(:func:`explain_user`). Nothing here is computed in a second way: the list is the one that is served, the searches are those
behind it, and the probabilities of the codes are the policy's own, whose logarithms sum to the search's path.

Legend: N served items, W beams, L levels, I items, F features of the ranker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from pipelines.explain.rules import RuleMasks
from recsys.contracts.columns import Columns
from recsys.contracts.ranking import RankedItems
from recsys.data.batch import collate_targets
from recsys.data.histories import Histories
from recsys.decoding.batches import PreparedBatch
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.decoding.second_stage.stage import DENSE, FUSED
from serving.answers.scorer import Scorer
from serving.answers.sessions import RankedSessions
from serving.inputs.history_frame import MappedHistories
from serving.inputs.request import Request

HISTORY_SHOWN: Final = 20
NEIGHBOURS_SHOWN: Final = 3
TERMS_SHOWN: Final = 5
OWN_LIST: Final = "own list"
"""What a user alone must not be shown: from `personal_deny`, from dislikes, or from the row's `deny_item_ids`."""
Ids = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Asked:
    """What one user is asked with.

    Attributes:
        row: The user's history in the model's indices, one row.
        rules: Of this user alone, and what each file of them forbids.
        request: How the job asks.
        masks: The rules one by one.
    """

    row: MappedHistories
    rules: CompiledRules
    request: Request
    masks: RuleMasks


def explain_user(scorer: Scorer, bundle: Path, asked: Asked, version: str) -> dict[str, Any]:
    """Take one answer apart.

    Args:
        bundle: Folder of the scorer, whose item titles are shown.
        version: How the model is called.
    """
    names = Names.read(scorer, bundle)
    ranked = scorer.answer_asked(asked.row, asked.rules, asked.request).ranked
    assert isinstance(ranked, RankedItems), "sessions are explained in pipelines.explain.sessions"
    served = ranked.items[0][ranked.items[0] >= 0].astype(np.int64)
    codes_IL = scorer.recommender.policy.item_tower.codes_IL[1:].cpu().numpy()
    log_probs_NL = code_log_probs(scorer, asked.row.histories, served[:, None])[:, 0]
    stages = _Stages.of(scorer, asked)
    items = []
    for place, item in enumerate(served.tolist()):
        items.append(
            {
                "rank": place + 1,
                **names.of(item),
                "score": float(ranked.scores[0, place]),
                **path_of(codes_IL[item], log_probs_NL[place]),
                "stages": stages.at(item),
                "neighbours": neighbours(codes_IL, item, names),
            }
        )
    return {
        "model": {"name": scorer.info.name, "version": version, "order": order_of(scorer, asked.request)},
        "history": history_of(asked.row, names, scorer.recommender.policy.spec.model.max_history),
        "rules": removed(scorer, asked, served, names),
        "items": items,
    }


def path_of(codes_L: npt.NDArray[np.integer], log_prob_L: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The codes of an item, each with its probability after those before it, and the logarithm of their product."""
    codes = [
        {"level": level + 1, "code": code, "probability": float(np.exp(log_prob))}
        for level, (code, log_prob) in enumerate(zip(codes_L.tolist(), log_prob_L, strict=True))
    ]
    return {"codes": codes, "path_log_prob": float(log_prob_L.sum())}


@dataclass(frozen=True)
class Names:
    """What people call the items, by item_index."""

    item_ids: list[Any]
    titles: list[str | None]

    @classmethod
    def read(cls, scorer: Scorer, bundle: Path) -> Names:
        """From a bundle, which the scorer has opened."""
        titles = pl.read_parquet(bundle / "items.parquet", columns=[Columns.TITLE])[Columns.TITLE].to_list()
        return cls(scorer.catalogue.item_ids.to_list(), titles)

    def of(self, item: int) -> dict[str, Any]:
        """Id and title."""
        return {"item_id": self.item_ids[item], "title": self.titles[item] or None}


def history_of(row: MappedHistories, names: Names, window: int) -> dict[str, Any]:
    """The history, newest first, and how much of it the model reads."""
    items = row.histories.seen_items()[0].tolist()
    return {
        "events": len(items),
        "unknown_to_the_model": int(row.num_unknown[0]),
        "read_by_the_model": min(len(items), window),
        "newest": [names.of(item) for item in items[::-1][:HISTORY_SHOWN]],
    }


def order_of(scorer: Scorer, request: Request) -> str:
    """Who decides the order, in words."""
    if request.options.second_stage == "reward":
        return "reward model"
    if request.options.reward_guidance:
        return f"path probability and {request.options.reward_guidance:g} times the reward of each item"
    if request.options.answer == "sessions":
        return "path probability of the whole session"
    if isinstance(scorer.recommender, RankedRecommender) and request.rescore is None:
        return f"ranker ({scorer.recommender.second_stage.ranker.served})"
    rescore = scorer.recommender.config.rescore == "dense" if request.rescore is None else request.rescore
    return "dense head" if rescore else "path probability"


@torch.inference_mode()
def code_log_probs(scorer: Scorer, histories: Histories, items_NM: Ids) -> npt.NDArray[np.float32]:
    """Log-probability of every code of N sessions of M items after one history and all codes before it, ``[N, M, L]``."""
    policy = scorer.recommender.policy
    num, length = items_NM.shape
    if not num:
        return np.zeros((0, length, policy.num_levels), np.float32)
    repeated = histories.take(np.zeros(num, np.int64))
    offsets = np.arange(num + 1) * length
    max_history = policy.spec.model.max_history
    flat = items_NM.astype(np.int32).reshape(-1)
    batch = collate_targets(repeated, flat, offsets, length, max_history).to(scorer.recommender.device)
    hidden, _ = policy(batch)
    found = policy.code_log_probs(hidden, batch.target_BPM)[:, 0]
    return np.asarray(found.float().cpu().numpy())


def best_places(ranked: RankedItems | RankedSessions) -> dict[int, int]:
    """Places of the items of the first row, from 1: in the list, or of the first session that shows the item."""
    places: dict[int, int] = {}
    for place, items in enumerate(ranked.items[0].reshape(ranked.items.shape[1], -1).tolist(), 1):
        for item in items:
            if item >= 0:
                places.setdefault(item, place)
    return places


def neighbours(codes_IL: npt.NDArray[np.integer], item: int, names: Names) -> dict[str, Any]:
    """Items that share the longest prefix of codes with one, the first few by item_index."""
    for shared in range(codes_IL.shape[1] - 1, 0, -1):
        same = np.flatnonzero((codes_IL[:, :shared] == codes_IL[item, :shared]).all(1))
        others = same[same != item]
        if len(others):
            return {
                "shared_codes": shared,
                "count": len(others),
                "items": [names.of(int(other)) for other in others[:NEIGHBOURS_SHOWN]],
            }
    return {"shared_codes": 0, "count": 0, "items": []}


def removed(scorer: Scorer, asked: Asked, served: Ids, names: Names) -> dict[str, Any]:
    """What the rules take from the catalogue, and which of the best items without any rule they took."""
    seen = np.unique(asked.row.histories.seen_items()[0]).astype(np.int64)
    taken = {name: int((~mask).sum()) for name, mask in asked.masks.allowed.items()}
    if asked.rules.exclude_seen:
        taken["seen"] = len(seen)
    denied = np.unique(asked.rules.denied_of(0))
    if asked.rules.denied_U is not None:
        taken[OWN_LIST] = len(denied)
    request, recommender = asked.request, scorer.recommender
    free = recommender.compile(ItemRules(exclude_seen=False), 1)
    best = scorer.answer_asked(asked.row, free, request).ranked
    lost = []
    for item, place in best_places(best).items():
        if item in served:
            continue
        by = [name for name, mask in asked.masks.allowed.items() if not mask[item]]
        by += ["seen"] if asked.rules.exclude_seen and item in seen else []
        by += [OWN_LIST] if item in denied else []
        if not by:
            by = ["quota"] if asked.rules.quotas is not None else ["search"]
        lost.append({"rank_without_rules": place, **names.of(item), "by": by})
    return {
        "catalogue": len(names.item_ids),
        "left": asked.rules.count_left(asked.rules.segment_of(0), seen, denied),
        "removed": taken,
        "segment": asked.masks.segment,
        "best_items_lost": lost,
    }


@dataclass(frozen=True)
class _Stages:
    """Values of every stage by item_index: ``{stage: {item: value}}``, and how the ranker came to its score."""

    values: Mapping[str, Mapping[int, float]]
    places: Mapping[str, Mapping[int, int]]
    sources: Mapping[int, list[str]]
    terms: Mapping[int, list[dict[str, Any]]]

    @classmethod
    def of(cls, scorer: Scorer, asked: Asked) -> _Stages:
        recommender, k = scorer.recommender, asked.request.k
        prepared = recommender.prepare(asked.row.histories, asked.rules, k)
        width = max(recommender.config.beam_width, k)
        if isinstance(recommender, RankedRecommender) and asked.request.rescore is None:
            return cls._of_ranker(recommender, prepared, width, k)
        guided_by = scorer.guided_by(asked.request.options)
        beams = recommender.search(prepared, width, guided_by)
        items = beams.items[0, :, 0]
        with torch.inference_mode():
            dense = recommender.dense_scores(beams.dense_query, beams.items[..., 0])[0]
        name = "guided" if recommender.config.guidance or guided_by is not None else "beam"
        values = {name: _by_item(items, beams.scores[0]), "dense": _by_item(items, dense)}
        return cls(values, {name: _places(items)}, {}, {})

    @classmethod
    def _of_ranker(cls, recommender: RankedRecommender, prepared: PreparedBatch, width: int, k: int) -> _Stages:
        search, stage = recommender.candidates, recommender.second_stage
        batch = search.score(prepared)
        plain, guided = (search.search(batch, width, strength) for strength in (0.0, stage.fusion.guidance))
        union = search.unite(batch, guided, k)
        found = union.item_BC[0].tolist()
        features = search.features(batch, guided, union)
        names = stage.ranker.feature_names
        values: dict[str, Mapping[int, float]] = {
            "beam": _by_item(plain.item_BW[0], plain.score_BW[0]),
            "guided": _by_item(guided.item_BW[0], guided.score_BW[0]),
            DENSE: {item: float(batch.dense_BI[0, item]) for item in found if item >= 0},
            FUSED: {item: float(batch.fused_BI[0, item]) for item in found if item >= 0},
        }
        terms: dict[int, list[dict[str, Any]]] = {}
        if stage.ranker.learned is not None and stage.ranker.served not in (DENSE, FUSED):
            values["ranker"] = _by_item(union.item_BC[0], torch.from_numpy(stage.ranker.score(features))[0])
            for item, row in zip(found, stage.ranker.terms(features)[0].tolist(), strict=True):
                heaviest = sorted(zip(names, row, strict=True), key=lambda pair: -abs(pair[1]))[:TERMS_SHOWN]
                terms[item] = [{"feature": name, "adds": float(value)} for name, value in heaviest]
        sources = {
            item: [name for name in union.sources if bool(union.found_by(name)[0, place])]
            for place, item in enumerate(found)
        }
        places = {"beam": _places(plain.item_BW[0]), "guided": _places(guided.item_BW[0])}
        return cls(values, places, sources, terms)

    def at(self, item: int) -> dict[str, Any]:
        """What every stage says of an item; ``None`` where it did not find it."""
        found: dict[str, Any] = {name: values.get(item) for name, values in self.values.items()}
        found |= {f"{name}_place": places.get(item) for name, places in self.places.items()}
        if self.sources:
            found["sources"] = self.sources.get(item, [])
        if self.terms:
            found["ranker_terms"] = self.terms.get(item, [])
        return found


def _by_item(items_W: torch.Tensor, values_W: torch.Tensor) -> dict[int, float]:
    pairs = zip(items_W.tolist(), values_W.float().tolist(), strict=True)
    return {item: value for item, value in pairs if item >= 0}


def _places(items_W: torch.Tensor) -> dict[int, int]:
    return {item: place + 1 for place, item in enumerate(items_W.tolist()) if item >= 0}


def side_by_side(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Two lists of one user by item: the rank and score in each, ``None`` where a list does not hold it.

    Example:
        >>> a, b = [{"item_id": 7, "title": "x", "rank": 1, "score": 0.5}], []
        >>> side_by_side(a, b)
        [{'item_id': 7, 'title': 'x', 'rank': 1, 'score': 0.5, 'rank_against': None, 'score_against': None}]
    """
    here, there = ({str(item["item_id"]): item for item in items} for items in (ours, theirs))
    rows = []
    for name in dict.fromkeys([*here, *there]):
        left, right = here.get(name), there.get(name)
        shown = left or right
        assert shown is not None
        rows.append(
            {
                "item_id": shown["item_id"],
                "title": shown["title"],
                "rank": left["rank"] if left else None,
                "score": left["score"] if left else None,
                "rank_against": right["rank"] if right else None,
                "score_against": right["score"] if right else None,
            }
        )
    return rows
