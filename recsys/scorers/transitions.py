"""Counted transitions: what came after an item in the users' histories, and how soon.

Source: Rendle et al. 2010, "Factorizing Personalized Markov Chains", for the counted chain; the decays are ours, in the
options of skip-grams.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from recsys.scorers.events import CountedEvents


def count_transitions(events: CountedEvents, num_items: int, gap_decay: float, max_gap: int) -> sparse.csr_array:
    """Count ordered pairs of one user's events, ``[I, I]`` float32, row = earlier item.

    A pair of events ``g`` steps apart counts ``gap_decay ** (g - 1)``. A pair of the same item is left out: "the same
    again" is no transition.
    """
    total = sparse.csr_array((num_items, num_items), dtype=np.float32)
    for gap in range(1, min(max_gap, len(events.item) - 1) + 1):
        earlier, later = events.item[:-gap], events.item[gap:]
        keep = (events.user[:-gap] == events.user[gap:]) & (earlier != later)
        weight = np.full(int(keep.sum()), gap_decay ** (gap - 1), np.float32)
        total = total + sparse.csr_array((weight, (earlier[keep], later[keep])), shape=total.shape)
    return total


def normalise_rows(counts: sparse.csr_array, power: float) -> sparse.csr_array:
    """Divide each row by its sum ** ``power``: 0 keeps counts, 1 makes probabilities.

    Example:
        >>> normalise_rows(sparse.csr_array(np.array([[3.0, 1.0]], np.float32)), 0.5).toarray().tolist()
        [[1.5, 0.5]]
    """
    if power <= 0:
        return counts
    sums = np.maximum(counts.sum(axis=1), 1e-12) ** -power
    return sparse.csr_array(sparse.diags_array(sums.astype(np.float32)) @ counts)
