"""Item-based nearest neighbours as a baseline: :mod:`recsys.scorers.neighbours` counts, here they rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.evaluation.baselines.base import PairRanker
from recsys.evaluation.baselines.config import ItemKNNConfig, Scale
from recsys.scorers.config import Until
from recsys.scorers.events import CountedEvents
from recsys.scorers.neighbours import cosine_similarity, keep_largest
from recsys.scorers.popularity import popularity_shares


class ItemKNN(PairRanker[ItemKNNConfig]):
    """Rank by the summed similarity to the history's items."""

    name: ClassVar[str] = "item_knn"
    scale: ClassVar[Scale] = "counts"

    def __init__(self, config: ItemKNNConfig | None = None) -> None:
        super().__init__(config or ItemKNNConfig())

    @classmethod
    def fit_each(cls, prepared: Dataset, configs: Sequence[ItemKNNConfig], until: Until) -> Iterator[Self]:
        """Fit several settings; neighbours in the sequence that count alike share the similarities."""
        spec = prepared.spec
        events = CountedEvents.from_dataset(prepared, until)
        matrix = events.user_item_matrix(spec.num_users, spec.num_items)
        every: tuple[object, sparse.csr_array] = (None, None)
        kept: tuple[object, sparse.csr_array] = (None, None)
        for config in configs:
            if every[0] != config.shrinkage:
                every = config.shrinkage, cosine_similarity(matrix, config.shrinkage)
            if kept[0] != (key := (config.shrinkage, config.num_neighbours)):
                # row = candidate, so that every candidate listens to its own nearest neighbours only
                largest = every[1] if config.num_neighbours is None else keep_largest(every[1], config.num_neighbours)
                kept = key, sparse.csr_array(largest.T)
            shares = popularity_shares(events, spec.num_items, config.popularity)
            yield cls.from_pairs(config, kept[1], 1e-6 * shares)
