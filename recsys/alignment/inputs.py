"""What alignment reads, as one thing: built by a stage, an experiment or a test, and passed on whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from recsys.alignment.config import AlignConfig
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.reward.scoring import SessionScorer
from recsys.semantic_ids.versions import SemanticIds


@dataclass(frozen=True)
class AlignmentInputs:
    """Everything that fixes the result of :func:`recsys.alignment.align.align_policy`.

    Attributes:
        policy: The trained policy. Alignment changes it in place, and it ends as the kept round's.
        reward_model: For the reward ``learned``; see :class:`~recsys.reward.scoring.ModelScorer`.
        held_out_reward_model: Of other users; nothing is trained on it.
        item_vectors: ``[items, any]`` for the reward ``semantic``.
        collaborative: Histories to logits ``[B, items]`` for the reward ``collaborative``.
        parents: Digests of what the run reads; every round's manifest carries them.
    """

    dataset: Dataset
    semantic_ids: SemanticIds
    policy: GenerativeRecommender
    config: AlignConfig
    decode: DecodeConfig
    seed: int
    reward_model: SessionScorer | None = None
    held_out_reward_model: SessionScorer | None = None
    item_vectors: torch.Tensor | None = None
    collaborative: Callable[[Histories], torch.Tensor] | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
