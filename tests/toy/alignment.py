"""A ring of items, a small policy for it, and a reward model whose taste one can see: it likes items with an even number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recsys.alignment.config import GuardConfig
from recsys.alignment.rollouts.sampler import Requests
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import Progress, SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_ids, ring_prepared

MODEL = {
    "width": 16,
    "num_heads": 2,
    "ffn_width": 32,
    "expert_width": 16,
    "max_history": 6,
    "init_std": 0.3,
    "dropout": 0.1,  # alignment must switch it off
}


class EvenTaste:
    """One tower: the share of a session's items whose item_index is even, times ``sign``."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    @property
    def towers(self) -> tuple[str, ...]:
        return ("even",)

    @property
    def weights(self) -> torch.Tensor:
        return torch.ones(1)

    def values(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        exists = items_BGM >= 0
        even = ((items_BGM % 2 == 0) & exists).sum(-1) / exists.sum(-1)  # NaN for an empty candidate
        return self.sign * even[..., None].float()

    def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
        return self.values(histories, items_BGM)[..., 0]


class KillAfter(Progress):
    """Stops the process, so to speak, before the n-th item of any loop: what a kill at that moment leaves is on disk."""

    def __init__(self, items: int) -> None:
        self.left = items

    def track(self, items: Iterable, label: str, total: int | None = None) -> Iterator:
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt(label)
            self.left -= 1
            yield item


QUIET = SilentProgress()

NO_FALL_STOPS = {
    "recall_falls": "record",
    "hr1_falls": "record",
    "coverage_falls": "record",
    "held_out_falls": "record",
    "max_kl": None,
}
"""Settings of a guard that stops for a fall of the reward alone."""

RING_GUARD = GuardConfig(ks=(1, 5, 10), recall_at=10, num_generations=4, users=40, resamples=100, **NO_FALL_STOPS)
"""Quick to measure on a ring, with these settings."""

RECORDING_GUARD = RING_GUARD.model_copy(update={"on_violation": "record"})
"""A guard that stops for nothing."""


def next_item_ring(folder: Path) -> Dataset:
    return ring_prepared(folder, users=60, items=12)


def session_ring(folder: Path) -> Dataset:
    return ring_prepared(folder, users=24, items=12, task="session", session_length=3)


def ring_policy(prepared: Dataset, seed: int = 3, ids: SemanticIds | None = None) -> GenerativeRecommender:
    torch.manual_seed(seed)
    attention = "bidirectional" if prepared.spec.task == "session" else "causal"
    return build_policy(prepared, ids or ring_ids(), ModelConfig(**MODEL, encoder_attention=attention), None).eval()


def have_seen_everything(requests: Requests, items: int) -> Requests:
    """The same requests of users whose histories hold the whole catalogue: without seen items nothing is left."""
    users = len(requests)
    nothing = np.zeros(users * items, np.uint8)
    histories = replace(
        requests.histories,
        item=np.tile(np.arange(items, dtype=np.int32), users),
        start=np.arange(users) * items,
        end=(np.arange(users) + 1) * items,
        **dict.fromkeys(("behaviour", "gap", "watch"), nothing),
    )
    return replace(requests, histories=histories)


def weights_of(policy: GenerativeRecommender) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}
