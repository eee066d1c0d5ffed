"""Policies on disk: ``model.safetensors`` and ``policy.json``, nothing that could run code.

The specification carries the digest of the semantic IDs; whoever loads a policy says which IDs it will be used with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json, write_json
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec

WEIGHTS_NAME = "model.safetensors"
SPEC_NAME = "policy.json"


def catalogue_of(items: pl.DataFrame, codes_IL: npt.NDArray[np.integer]) -> torch.Tensor:
    """Combine the item table and the semantic IDs into the policy's catalogue, ``[items + 1, L + 2]``; row 0 is padding.

    Raises:
        ArtifactError: The two have different numbers of items.
    """
    if len(items) != len(codes_IL):
        raise ArtifactError(
            f"{len(items)} items in the prepared data, {len(codes_IL)} in the semantic IDs; tokenize this data set again"
        )
    side = items.select(Columns.AUTHOR_INDEX, Columns.CATEGORY_INDEX).to_numpy()
    rows = np.concatenate([codes_IL, side], axis=1).astype(np.int64)
    return torch.from_numpy(np.concatenate([np.zeros((1, rows.shape[1]), np.int64), rows]))


def save_policy(folder: Path, policy: GenerativeRecommender) -> None:
    """Write weights and specification; the specification last, so that a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    # tables, codes and tower are shared by several modules: one name each is kept
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _unique_state(policy).items()}
    temporary = folder / f".{WEIGHTS_NAME}.tmp"
    save_file(tensors, temporary)
    temporary.replace(folder / WEIGHTS_NAME)
    write_json(folder / SPEC_NAME, policy.spec.model_dump(mode="json"))


def load_policy(folder: Path, expected_semantic_id_digest: str | None = None) -> GenerativeRecommender:
    """Rebuild a policy in evaluation mode.

    Args:
        expected_semantic_id_digest: Digest of the semantic IDs it will be used with; ``None`` skips the comparison.

    Raises:
        ArtifactError: Files are missing or damaged, or the policy was trained with other semantic IDs.
    """
    try:
        spec = PolicySpec.model_validate(read_json(folder / SPEC_NAME))
        tensors = load_file(folder / WEIGHTS_NAME)
    except (ValidationError, SafetensorError, OSError) as error:
        raise ArtifactError(f"policy in '{folder}' cannot be read: {error}; train again") from error
    if expected_semantic_id_digest is not None and spec.semantic_id_digest != expected_semantic_id_digest:
        raise ArtifactError(
            f"policy in '{folder}' was trained with semantic IDs {spec.semantic_id_digest[:16]}, "
            f"given are {expected_semantic_id_digest[:16]}; its codes would mean other items: train again, "
            "or use the generation it was trained with"
        )
    catalogue = torch.zeros(spec.vocabulary.num_items + 1, len(spec.level_sizes) + 2, dtype=torch.int64)
    policy = GenerativeRecommender(spec, catalogue)
    load_tensors(policy, tensors, str(folder))
    return policy.eval()


def load_tensors(policy: GenerativeRecommender, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Copy saved tensors into a policy.

    Raises:
        ArtifactError: Names or shapes differ from the policy's.
    """
    own = _unique_state(policy)
    wrong = sorted(set(own) ^ set(tensors)) or [n for n in own if own[n].shape != tensors[n].shape]
    if wrong:
        raise ArtifactError(f"weights in '{where}' do not fit the specification: {', '.join(wrong[:5])}; train again")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _unique_state(policy: GenerativeRecommender) -> dict[str, torch.Tensor]:
    """State without the second and third names of shared modules."""
    state = policy.state_dict(keep_vars=True)
    seen: set[int] = set()
    unique = {}
    for name, tensor in state.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.data
    return unique
