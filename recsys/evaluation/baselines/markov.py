"""First-order Markov chain, counted: what usually comes after the user's last items.

Reads the counted events; produces a sparse transition matrix. Two decays make it strong: a pair of events ``g`` steps
apart counts ``gap_decay ** (g - 1)``, and at ranking time the user's event ``a`` places before the last one weighs
``history_decay ** a``. It costs seconds and beats many published neural models (see Source), so it is always printed.

Source: Rendle et al. 2010, "Factorizing Personalized Markov Chains", for the counted chain; the decays are ours, in the
options of skip-grams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.evaluation.baselines.base import fitted, rank_in_blocks
from recsys.evaluation.baselines.config import MarkovConfig
from recsys.scorers.config import Until
from recsys.scorers.events import CountedEvents, FloatArray, history_weights
from recsys.scorers.popularity import popularity_shares
from recsys.scorers.transitions import count_transitions, normalise_rows


@dataclass(frozen=True)
class _Fitted:
    transitions: sparse.csr_array
    backoff: FloatArray


class Markov:
    """Rank by decayed counts of what followed the history's items, then by popularity."""

    name = "markov"

    def __init__(self, config: MarkovConfig | None = None) -> None:
        self.config = config or MarkovConfig()
        self._fitted: _Fitted | None = None

    def fit(self, prepared: Dataset, seed: int, until: Until) -> None:
        """Count; nothing is drawn, so the seed has no influence."""
        config, num_items = self.config, prepared.spec.num_items
        events = CountedEvents.from_dataset(prepared, until)
        transitions = count_transitions(events, num_items, config.gap_decay, config.max_gap)
        transitions = normalise_rows(transitions, config.row_power)
        shares = popularity_shares(events, num_items, config.popularity)
        self._fitted = _Fitted(transitions, (config.backoff * shares).astype(np.float32))

    def rank(self, histories: Histories, k: int, exclude_seen: bool) -> RankedItems:
        """Rank by the weighted sum of the history's transition rows."""
        state = fitted(self._fitted, self.name)
        num_items = len(state.backoff)

        def score(rows: Histories) -> FloatArray:
            weights = history_weights(rows, num_items, self.config.history_decay)
            return np.asarray((weights @ state.transitions).toarray() + state.backoff, dtype=np.float32)

        return rank_in_blocks(score, histories, num_items, k, exclude_seen)
