"""Reward models on disk: ``model.safetensors`` and ``reward_model.json``, nothing that could run code."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import torch

from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.weights import check_semantic_ids, load_weights, read_module, save_module
from recsys.reward.model import RewardSpec, SessionRewardModel

SPEC_NAME: Final = "reward_model.json"
_WHAT: Final = "reward model"
_REMEDY: Final = "run `reward` again"


def save_reward_model(folder: Path, model: SessionRewardModel) -> None:
    """Write weights and specification; the specification last, so that a folder with one is complete."""
    save_module(folder, model, model.spec, SPEC_NAME)


def load_reward_model(
    folder: Path,
    semantic_id_digest: str | None,
    device: torch.device | str = "cpu",
    *,
    allow_grown: Collection[str] = (),
) -> SessionRewardModel:
    """Rebuild a reward model in evaluation mode, its parameters frozen.

    Args:
        semantic_id_digest: Digest of the semantic IDs it will be used with; ``None`` skips the comparison.
        device: Where it goes, once.
        allow_grown: As in :func:`~recsys.model.checkpoint.load_policy`.

    Raises:
        ArtifactError: Files are missing or damaged, or the model was trained with other semantic IDs.
    """
    spec, tensors = read_module(folder, RewardSpec, SPEC_NAME, what=_WHAT, remedy=_REMEDY)
    check_semantic_ids(spec, semantic_id_digest, folder, what=_WHAT, remedy=_REMEDY, allow_grown=allow_grown)
    rows = spec.dataset.num_items + 1
    embeddings = torch.zeros(rows, spec.embedding_width) if spec.embedding_width else None
    catalogue = ItemCatalogue.blank(spec.dataset.num_items, len(spec.level_sizes))
    model = SessionRewardModel(spec, catalogue, embeddings, torch.zeros(rows, len(spec.signals)))
    load_weights(model, tensors, folder, remedy=_REMEDY)
    return model.eval().requires_grad_(False).to(device)
