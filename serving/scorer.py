"""Answers: opens a bundle and ranks items for histories. The registered model and the batch job both go through here."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.config import validate
from recsys.contracts.columns import Columns
from recsys.contracts.manifest import read_json
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.constraints import Quotas
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import ItemRules, Recommender
from recsys.decoding.shortfall import Shortfall
from recsys.model.checkpoint import load_policy
from recsys.runtime import PlainProgress
from recsys.semantic_ids.generation import SemanticIds
from serving.bundle import BundleInfo, Catalogue, read_catalogue, read_info
from serving.history_frame import index_of, map_frame

logger = logging.getLogger("recsys.serving")

NUM_UNKNOWN_ITEMS: Final = "num_unknown_items"
_SILENT: Final = PlainProgress(every_s=float("inf"))
"""A caller that scores in shards shows its own progress."""

BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """Business rules of one call.

    Attributes:
        exclude_seen: Leave out items of the history.
        allow: ``[I]``, the only items that may come, or ``[S, I]`` for S segments of users; ``None`` allows all.
        deny: Items that must not come, same shapes; ``None`` denies none.
        rescore: Order by the dense head; ``None`` as the bundle's decode configuration says.
        segments: ``[N]`` segment of each history; needed where a mask has segments.
        quotas: At most so many items of one group per user.
    """

    exclude_seen: bool = True
    allow: BoolMask | None = None
    deny: BoolMask | None = None
    rescore: bool | None = None
    segments: npt.NDArray[np.int64] | None = None
    quotas: Quotas | None = None

    @property
    def of_items(self) -> ItemRules:
        """The part that names items."""
        return ItemRules(self.allow, self.deny, self.segments, self.quotas)


class Scorer:
    """A bundle, opened.

    Attributes:
        info: What the bundle says about itself.
        catalogue: Outside ids of the model's indices.
        recommender: Policy, prefix index and beam search.
    """

    def __init__(self, info: BundleInfo, catalogue: Catalogue, recommender: Recommender) -> None:
        self.info = info
        self.catalogue = catalogue
        self.recommender = recommender

    @classmethod
    def open(cls, folder: Path) -> Scorer:
        """Open a bundle folder.

        Raises:
            ArtifactError: The folder is no bundle, is damaged, or mixes a model with other semantic IDs.
        """
        info = read_info(folder)
        semantic_ids = SemanticIds.load(folder)
        policy = load_policy(folder / "model", semantic_ids.digest)
        decode = validate(
            DecodeConfig, json.loads(json.dumps(read_json(folder / "decode.json"))), str(folder / "decode.json")
        )
        index = PrefixIndex.open(folder / "prefix_index")
        return cls(info, read_catalogue(folder, info), Recommender(policy, semantic_ids, decode, index))

    def score_histories(self, histories: Histories, k: int, rules: Rules | None = None) -> RankedItems:
        """Rank items for histories that are in the model's indices already."""
        rules = rules or Rules()
        return self.recommender.recommend(
            histories,
            k,
            exclude_seen=rules.exclude_seen,
            rules=rules.of_items,
            rescore=rules.rescore,
            progress=_SILENT,
        )

    def shortfalls(self, histories: Histories, ranked: RankedItems, rules: Rules) -> list[Shortfall]:
        """Say for every row of an answer with fewer items than asked what stood in the way."""
        if not (ranked.items[:, -1] < 0).any():
            return []
        return self.recommender.shortfalls(histories, ranked, exclude_seen=rules.exclude_seen, rules=rules.of_items)

    def score_frame(self, frame: pl.DataFrame, k: int, rules: Rules | None = None) -> pl.DataFrame:
        """Rank items for a frame of histories (columns: :mod:`serving.history_frame`).

        Returns:
            Rows ``user_id, item_id, rank, score, num_unknown_items``, users in the order given, at most ``k`` each.

        Raises:
            DataError: The frame does not keep the form.
        """
        mapped = map_frame(frame, self.catalogue)
        unknown = int(mapped.num_unknown.sum())
        if unknown:
            logger.warning(
                "%d events of %d users have items that the model does not know; they were left out",
                unknown,
                int((mapped.num_unknown > 0).sum()),
            )
        ranked = self.score_histories(mapped.histories, k, rules)
        return self.to_frame(mapped.user_ids, ranked, mapped.num_unknown)

    def to_frame(self, user_ids: pl.Series, ranked: RankedItems, num_unknown: npt.NDArray[np.int32]) -> pl.DataFrame:
        """Turn a ranking into rows with outside ids; ranks count from 1."""
        row, place = np.nonzero(ranked.items >= 0)
        return pl.DataFrame(
            {
                Columns.USER_ID: user_ids.gather(row),
                Columns.ITEM_ID: self.catalogue.item_ids.gather(ranked.items[row, place]),
                Columns.RANK: (place + 1).astype(np.int32),
                Columns.SCORE: ranked.scores[row, place].astype(np.float32),
                NUM_UNKNOWN_ITEMS: num_unknown[row],
            }
        )

    @property
    def category_index(self) -> npt.NDArray[np.int64]:
        """``[I]`` category of each item as the model was trained with it; 0 is "not known"."""
        category_I: npt.NDArray[np.int64] = self.recommender.policy.item_tower.side_I[1:, 1].cpu().numpy()
        return category_I

    def mask(self, item_ids: pl.Series, what: str = "the item list") -> BoolMask:
        """Return ``[I]``: which items of the catalogue are listed; ids the model does not know are counted in the log."""
        index = self.index_of_items(item_ids, what)
        mask = np.zeros(len(self.catalogue.item_ids), bool)
        mask[index[index >= 0]] = True
        return mask

    def index_of_items(self, item_ids: pl.Series, what: str) -> npt.NDArray[np.int32]:
        """Return item_index of each id, -1 (and a count in the log) for ids that the model does not know."""
        index = index_of(item_ids, self.catalogue.item_ids, what)
        if (index < 0).any():
            logger.warning(
                "%s: %d of %d listed items are not in the model's catalogue", what, int((index < 0).sum()), len(index)
            )
        return index
