"""Policies on disk: ``model.safetensors`` and ``policy.json``, nothing that could run code.

The specification carries the digest of the semantic IDs; whoever loads a policy says which IDs it will be used with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.model.weights import check_semantic_ids, load_weights, read_module, save_module

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
    save_module(folder, policy, policy.spec, SPEC_NAME)


def load_policy(folder: Path, expected_semantic_id_digest: str | None = None) -> GenerativeRecommender:
    """Rebuild a policy in evaluation mode.

    Args:
        expected_semantic_id_digest: Digest of the semantic IDs it will be used with; ``None`` skips the comparison.

    Raises:
        ArtifactError: Files are missing or damaged, or the policy was trained with other semantic IDs.
    """
    spec, tensors = read_module(folder, PolicySpec, SPEC_NAME, what="policy", remedy="train again")
    remedy = "train again, or use the generation it was trained with"
    check_semantic_ids(spec, expected_semantic_id_digest, folder, what="policy", remedy=remedy)
    catalogue = torch.zeros(spec.dataset.num_items + 1, len(spec.level_sizes) + 2, dtype=torch.int64)
    policy = GenerativeRecommender(spec, catalogue)
    load_weights(policy, tensors, folder, remedy="train again")
    return policy.eval()
