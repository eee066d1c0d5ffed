"""First-order Markov chain, counted: what usually comes after the user's last items.

Reads the counted events; produces a sparse transition matrix. Two decays make it strong: a pair of events ``g`` steps
apart counts ``gap_decay ** (g - 1)``, and at ranking time the user's event ``a`` places before the last one weighs
``history_decay ** a``. It costs seconds and beats many published neural models (see Source), so it is always printed.

Source: Rendle et al. 2010, "Factorizing Personalized Markov Chains", for the counted chain; the decays are ours, in the
options of skip-grams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import DenseRanker, fitted
from recsys.evaluation.baselines.config import MarkovConfig, Scale
from recsys.scorers.config import Until
from recsys.scorers.events import CountedEvents, FloatArray, history_weights
from recsys.scorers.popularity import popularity_shares
from recsys.scorers.transitions import count_transitions, normalise_rows


@dataclass(frozen=True)
class _Fitted:
    transitions: sparse.csr_array
    backoff: FloatArray


class Markov(DenseRanker):
    """Rank by decayed counts of what followed the history's items, then by popularity."""

    name: ClassVar[str] = "markov"
    scale: ClassVar[Scale] = "counts"

    def __init__(self, config: MarkovConfig | None = None) -> None:
        self.config = config or MarkovConfig()
        self._fitted: _Fitted | None = None

    @classmethod
    def fit_each(cls, prepared: Dataset, configs: Sequence[MarkovConfig], until: Until) -> Iterator[Markov]:
        """Fit several settings; neighbours in the sequence that count alike share the counts."""
        num_items = prepared.spec.num_items
        events = CountedEvents.from_dataset(prepared, until)
        counts: tuple[object, sparse.csr_array] = (None, None)
        rows: tuple[object, sparse.csr_array] = (None, None)
        for config in configs:
            if counts[0] != (key := (config.gap_decay, config.max_gap)):
                counts = key, count_transitions(events, num_items, *key)
            if rows[0] != (row_key := (key, config.row_power)):
                rows = row_key, normalise_rows(counts[1], config.row_power)
            shares = popularity_shares(events, num_items, config.popularity)
            ranker = cls(config)
            ranker._fitted = _Fitted(rows[1], (config.backoff * shares).astype(np.float32))
            yield ranker

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count; nothing is drawn, so the seed has no influence."""
        self._fitted = next(self.fit_each(prepared, [self.config], until))._fitted

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(fitted(self._fitted, self.name).backoff)

    def scores(self, histories: Histories) -> FloatArray:
        """Score by the weighted sum of the history's transition rows."""
        state = fitted(self._fitted, self.name)
        weights = history_weights(histories, len(state.backoff), self.config.history_decay)
        return np.asarray((weights @ state.transitions).toarray() + state.backoff, dtype=np.float32)
