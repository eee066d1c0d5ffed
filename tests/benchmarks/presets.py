"""Print parameter and FLOP counts of every preset, for a catalogue of 12,101 items.

Run: ``python -m tests.benchmarks.presets`` (paper_v1 takes 4 GB of memory).
"""

from __future__ import annotations

import torch

from recsys.contracts.prepared import Vocabulary
from recsys.model.config import PRESETS, ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.model.summary import summarise

NUM_ITEMS = 12_101
CODEBOOK_SIZE = {"tiny": 256, "small": 256, "paper_v1": 8192}
SESSION_LENGTH = {"tiny": 1, "small": 1, "paper_v1": 5}


def main() -> None:
    """Build each preset and print its summary."""
    for preset in PRESETS:
        length = SESSION_LENGTH[preset]
        vocabulary = Vocabulary(
            num_users=22_363,
            num_items=NUM_ITEMS,
            num_authors=445,
            num_categories=195,
            num_behaviours=2,
            num_gap_buckets=32,
            num_watch_buckets=12,
            task="session" if length > 1 else "next_item",
            session_length=length,
            signals=(),
            has_timestamps=False,
        )
        spec = PolicySpec(
            model=ModelConfig.model_validate({"preset": preset}),
            vocabulary=vocabulary,
            level_sizes=(CODEBOOK_SIZE[preset],) * 3,
            semantic_id_digest="0" * 64,
        )
        policy = GenerativeRecommender(spec, torch.zeros(NUM_ITEMS + 1, 5, dtype=torch.int64))
        print(f"{preset}: {summarise(policy)}")


if __name__ == "__main__":
    main()
