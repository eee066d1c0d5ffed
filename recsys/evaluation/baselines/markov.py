"""First-order Markov chain, counted: what usually comes after the user's last items.

Reads the counted events; produces a sparse transition matrix. Two decays make it strong: a pair of events ``g`` steps
apart counts ``gap_decay ** (g - 1)``, and at ranking time the user's event ``a`` places before the last one weighs
``history_decay ** a``. It costs seconds and beats many published neural models (see Source), so it is always printed.

Source: Rendle et al. 2010, "Factorizing Personalized Markov Chains", for the counted chain; the decays are ours, in the
options of skip-grams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from scipy import sparse

from recsys.contracts.dataset import Dataset
from recsys.evaluation.baselines.base import PairRanker
from recsys.evaluation.baselines.config import MarkovConfig, Scale
from recsys.scorers.config import Until
from recsys.scorers.events import CountedEvents
from recsys.scorers.popularity import popularity_shares
from recsys.scorers.transitions import count_transitions, normalise_rows


class Markov(PairRanker[MarkovConfig]):
    """Rank by decayed counts of what followed the history's items, then by popularity."""

    name: ClassVar[str] = "markov"
    scale: ClassVar[Scale] = "counts"

    def __init__(self, config: MarkovConfig | None = None) -> None:
        super().__init__(config or MarkovConfig())

    @classmethod
    def fit_each(cls, prepared: Dataset, configs: Sequence[MarkovConfig], until: Until) -> Iterator[Self]:
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
            yield cls.from_pairs(config, rows[1], config.backoff * shares)
