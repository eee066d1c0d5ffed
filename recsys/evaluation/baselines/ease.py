"""EASE as a baseline: :mod:`recsys.scorers.ease` solves it, here it ranks; the history decay when ranking is ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import numpy as np

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.evaluation.baselines.base import PairRanker
from recsys.evaluation.baselines.config import EASEConfig, Scale
from recsys.scorers.config import Until
from recsys.scorers.ease import ease_weights
from recsys.scorers.events import CountedEvents, FloatArray
from recsys.scorers.popularity import popularity_shares


class EASE(PairRanker[EASEConfig]):
    """Rank by the reconstruction of the decayed history."""

    name: ClassVar[str] = "ease"
    scale: ClassVar[Scale] = "linear"

    def __init__(self, config: EASEConfig | None = None) -> None:
        super().__init__(config or EASEConfig())

    @classmethod
    def fit_each(cls, prepared: Dataset, configs: Sequence[EASEConfig], until: Until) -> Iterator[Self]:
        """Fit several settings; neighbours in the sequence with one regularisation share its inverse.

        Raises:
            ConfigError: The catalogue is larger than ``max_items``.
        """
        spec = prepared.spec
        events = CountedEvents.from_dataset(prepared, until)
        matrix = events.user_item_matrix(spec.num_users, spec.num_items)
        solved: tuple[float | None, FloatArray] = (None, np.empty((0, 0), np.float32))
        for config in configs:
            if spec.num_items > config.max_items:
                raise ConfigError(
                    f"EASE: the catalogue has {spec.num_items} items, ease.max_items allows {config.max_items} (the "
                    f"inverse needs {4 * spec.num_items**2 / 1e9:.1f} GB); raise ease.max_items or leave 'ease' out of "
                    "the baselines"
                )
            if solved[0] != config.regularisation:
                solved = config.regularisation, np.empty((0, 0), np.float32)  # the last one's memory, before the next
                solved = config.regularisation, ease_weights(matrix, config.regularisation)
            shares = popularity_shares(events, spec.num_items, config.popularity)
            yield cls.from_pairs(config, solved[1], 1e-6 * shares)
