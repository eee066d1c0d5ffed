"""Reward models on disk: ``model.safetensors`` and ``reward_model.json``, nothing that could run code."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json, write_json
from recsys.reward.model import RewardSpec, SessionRewardModel

WEIGHTS_NAME: Final = "model.safetensors"
SPEC_NAME: Final = "reward_model.json"


def save_reward_model(folder: Path, model: SessionRewardModel) -> None:
    """Write weights and specification; the specification last, so that a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in _unique_state(model).items()}
    temporary = folder / f".{WEIGHTS_NAME}.tmp"
    save_file(tensors, temporary)
    temporary.replace(folder / WEIGHTS_NAME)
    write_json(folder / SPEC_NAME, model.spec.model_dump(mode="json"))


def load_reward_model(folder: Path, semantic_id_digest: str | None) -> SessionRewardModel:
    """Rebuild a reward model in evaluation mode, its parameters frozen.

    Args:
        semantic_id_digest: Digest of the semantic IDs it will be used with; ``None`` skips the comparison.

    Raises:
        ArtifactError: Files are missing or damaged, or the model was trained with other semantic IDs.
    """
    try:
        spec = RewardSpec.model_validate(read_json(folder / SPEC_NAME))
        tensors = load_file(folder / WEIGHTS_NAME)
    except (ValidationError, SafetensorError, OSError) as error:
        raise ArtifactError(f"reward model in '{folder}' cannot be read: {error}; run `reward` again") from error
    if semantic_id_digest is not None and spec.semantic_id_digest != semantic_id_digest:
        raise ArtifactError(
            f"reward model in '{folder}' was trained with semantic IDs {spec.semantic_id_digest[:16]}, "
            f"given are {semantic_id_digest[:16]}; its codes would mean other items: run `reward` again"
        )
    rows = spec.vocabulary.num_items + 1
    embeddings = torch.zeros(rows, spec.embedding_width) if spec.embedding_width else None
    catalogue = torch.zeros(rows, len(spec.level_sizes) + 2, dtype=torch.int64)
    model = SessionRewardModel(spec, catalogue, embeddings, torch.zeros(rows, len(spec.signals)))
    own = _unique_state(model)
    wrong = sorted(set(own) ^ set(tensors)) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise ArtifactError(
            f"weights in '{folder}' do not fit the specification: {', '.join(wrong[:5])}; run `reward` again"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    return model.eval().requires_grad_(False)


def _unique_state(model: SessionRewardModel) -> dict[str, torch.Tensor]:
    """State without the second names of shared modules."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.data
    return unique
