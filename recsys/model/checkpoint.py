"""Policies on disk: ``model.safetensors`` and ``policy.json``, nothing that could run code.

The specification carries the digest of the semantic IDs; whoever loads a policy says which IDs it will be used with.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.model.weights import check_semantic_ids, load_weights, read_module, save_module

SPEC_NAME = "policy.json"


def save_policy(folder: Path, policy: GenerativeRecommender, *, name_base: bool = False) -> None:
    """Write weights and specification; the specification last, so that a folder with one is complete.

    Args:
        name_base: Name a language model beside its adapters by ``source`` and digest, as ``keep_base: reference`` does,
            whatever the policy's own ``keep_base`` is. Other policies are written whole.
    """
    spec, elsewhere = policy.spec, None
    settings = spec.model.language_model
    if name_base and settings is not None and settings.tune == "lora" and settings.source is not None:
        settings = settings.model_copy(update={"keep_base": "reference"})
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"language_model": settings})})
        elsewhere = frozenset(getattr(policy, "base_weights", ()))
    save_module(folder, policy, spec, SPEC_NAME, elsewhere)


def blank_policy(spec: PolicySpec, catalogue: ItemCatalogue) -> GenerativeRecommender:
    """A policy of the specification's kind and shapes, whose weights are about to be loaded."""
    if spec.model.backbone == "llm":
        from recsys.language_model.build import restored

        return restored(spec, catalogue)
    return GenerativeRecommender(spec, catalogue)


def load_policy(
    folder: Path,
    expected_semantic_id_digest: str | None = None,
    device: torch.device | str = "cpu",
    *,
    allow_grown: Collection[str] = (),
) -> GenerativeRecommender:
    """Rebuild a policy in evaluation mode.

    Args:
        expected_semantic_id_digest: Digest of the semantic IDs it will be used with; ``None`` skips the comparison.
        device: Where it goes, once; what is made of it, and of requests, follows it there.
        allow_grown: Digests of earlier versions that are accepted as well, such as ``SemanticIds.earlier_digests``. Codes of
            such a policy mean what they mean in the grown table; its item rows, catalogue and digest are those it was
            trained with, so that nothing answers with it before these are mapped by item id.

    Raises:
        ArtifactError: Files are missing or damaged, or the policy was trained with other semantic IDs.
    """
    spec, tensors = read_module(folder, PolicySpec, SPEC_NAME, what="policy", remedy="train again")
    remedy = "train again, or use the semantic IDs it was trained with"
    check_semantic_ids(spec, expected_semantic_id_digest, folder, what="policy", remedy=remedy, allow_grown=allow_grown)
    policy = blank_policy(spec, ItemCatalogue.blank(spec.dataset.num_items, len(spec.level_sizes)))
    load_weights(policy, tensors, folder, remedy="train again")
    return policy.eval().to(device)
