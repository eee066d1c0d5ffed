"""Fit each scorer from counted events and item vectors, or say why it is left out.

Reads a prepared data set, up to the end of one split; produces :class:`~recsys.scorers.item_scorer.ItemScorer` objects.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.scorers.config import VECTOR_SCORERS, ScorersConfig, SimilarityConfig, TransitionsConfig, Until
from recsys.scorers.ease import ease_weights
from recsys.scorers.events import CountedEvents, FloatArray
from recsys.scorers.item_pairs import ItemPairScorer
from recsys.scorers.item_scorer import ItemScorer, Scale
from recsys.scorers.neighbours import cosine_similarity, keep_largest
from recsys.scorers.popularity import PopularityScorer, popularity_shares
from recsys.scorers.similarity import SimilarityScorer, item_vectors
from recsys.scorers.transitions import count_transitions, normalise_rows

logger = logging.getLogger(__name__)


class ScorerFitter:
    """Fits scorers on one data set; what several of them count is counted once.

    Args:
        vectors: Item vectors ``[I, D]`` by name, ``fused`` and ``text``; may lack either.
    """

    def __init__(
        self, prepared: Dataset, config: ScorersConfig, vectors: Mapping[str, FloatArray], until: Until
    ) -> None:
        self.num_users, self.num_items = prepared.spec.num_users, prepared.spec.num_items
        self.config, self.vectors = config, vectors
        self.events = CountedEvents.from_dataset(prepared, until)
        self._counted: tuple[TransitionsConfig, sparse.csr_array] | None = None

    def fit(self, name: str) -> ItemScorer | str:
        """Return the scorer, or the reason why it is left out.

        Raises:
            DataError: Vectors do not fit the catalogue.
        """
        if name in VECTOR_SCORERS:
            return self._similarity(name, getattr(self.config, name))
        if name == "item_knn":
            return self._item_knn()
        if name == "ease":
            return self._ease()
        if name == "popularity":
            counting, floor = self.config.popularity.counting, self.config.popularity.floor
            return PopularityScorer(name, Scale("log", floor), popularity_shares(self.events, self.num_items, counting))
        return self._transitions(name, getattr(self.config, name))

    def _transitions(self, name: str, config: TransitionsConfig) -> ItemScorer:
        counts = self._counts(config)
        if name == "preceding":
            counts = sparse.csr_array(counts.T)
        matrix = self._cut(normalise_rows(counts, config.row_power))
        return ItemPairScorer(name, Scale("log", config.floor), matrix, config.history_decay)

    def _counts(self, config: TransitionsConfig) -> sparse.csr_array:
        wanted = config.model_copy(update={"history_decay": 1.0, "row_power": 0.0, "floor": 1.0})
        if self._counted is None or self._counted[0] != wanted:
            counts = count_transitions(self.events, self.num_items, config.gap_decay, config.max_gap)
            self._counted = (wanted, counts)
        return self._counted[1]

    @cached_property
    def _users_by_items(self) -> sparse.csr_array:
        return self.events.user_item_matrix(self.num_users, self.num_items)

    def _item_knn(self) -> ItemScorer:
        config = self.config.item_knn
        matrix = self._cut(cosine_similarity(self._users_by_items, config.shrinkage))
        return ItemPairScorer("item_knn", Scale("log", config.floor), matrix, config.history_decay)

    def _ease(self) -> ItemScorer | str:
        config = self.config.ease
        if self.num_items > config.max_items:
            return (
                f"the catalogue has {self.num_items} items, scorers.ease.max_items allows {config.max_items} "
                f"(the inverse needs {4 * self.num_items**2 / 1e9:.1f} GB)"
            )
        try:
            weights = ease_weights(self._users_by_items, config.regularisation)
        except DataError as error:
            return str(error)
        matrix = _largest_of_dense(weights, self.config.num_neighbours or self.num_items)
        return ItemPairScorer("ease", Scale("linear", config.scale), matrix, config.history_decay)

    def _similarity(self, name: str, config: SimilarityConfig) -> ItemScorer | str:
        key = VECTOR_SCORERS[name]
        given = self.vectors.get(key)
        if given is None or not given.shape[1]:
            return f"there are no {key} vectors of the items"
        if len(given) != self.num_items or not np.isfinite(given).all():
            raise DataError(
                f"scorers: the {key} vectors have shape {given.shape} and must be finite, expected one row for each of "
                f"the {self.num_items} items; run `embed` again on this prepared data set"
            )
        return SimilarityScorer(
            name, Scale("linear", config.scale), item_vectors(given, config.width), config.history_decay
        )

    def _cut(self, matrix: sparse.csr_array) -> sparse.csr_array:
        count = self.config.num_neighbours
        return matrix if count is None else keep_largest(matrix, count)


def _largest_of_dense(weights: FloatArray, count: int, block: int = 512) -> sparse.csr_array:
    """Keep the ``count`` entries of largest magnitude in every row of a dense matrix, columns ascending."""
    count = min(count, weights.shape[1])
    columns = np.empty((len(weights), count), np.int32)
    for begin in range(0, len(weights), block):
        magnitude = np.abs(weights[begin : begin + block])
        columns[begin : begin + block] = np.argpartition(-magnitude, count - 1, axis=1)[:, :count]
    columns.sort(axis=1)
    data = np.take_along_axis(weights, columns.astype(np.int64), axis=1)
    starts = np.arange(len(weights) + 1, dtype=np.int64) * count
    matrix = sparse.csr_array((data.ravel(), columns.ravel(), starts), shape=weights.shape)
    matrix.eliminate_zeros()
    return matrix
