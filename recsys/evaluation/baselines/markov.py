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
from recsys.evaluation.baselines.base import CountedEvents, FloatArray, fitted, history_weights, rank_in_blocks
from recsys.evaluation.baselines.config import MarkovConfig, Until
from recsys.evaluation.baselines.popularity import popularity_shares


def count_transitions(events: CountedEvents, num_items: int, gap_decay: float, max_gap: int) -> sparse.csr_array:
    """Count ordered pairs of one user's events, ``[I, I]`` float32, row = earlier item.

    A pair of the same item is left out: a chain that answers "the same again" is :mod:`repeat_last`.
    """
    total = sparse.csr_array((num_items, num_items), dtype=np.float32)
    for gap in range(1, min(max_gap, len(events.item) - 1) + 1):
        earlier, later = events.item[:-gap], events.item[gap:]
        keep = (events.user[:-gap] == events.user[gap:]) & (earlier != later)
        weight = np.full(int(keep.sum()), gap_decay ** (gap - 1), np.float32)
        total = total + sparse.csr_array((weight, (earlier[keep], later[keep])), shape=total.shape)
    return total


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
        if config.row_power > 0:
            sums = np.maximum(transitions.sum(axis=1), 1e-12) ** -config.row_power
            transitions = sparse.csr_array(sparse.diags_array(sums.astype(np.float32)) @ transitions)
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
