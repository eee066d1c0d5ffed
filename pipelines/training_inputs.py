"""What the policy is trained on: the artefacts of the stages before, opened, and a language model to begin from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.engine.stage import Inputs
from recsys.contracts.manifest import sha256_of_file
from recsys.device import resolve_device

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from recsys.training.inputs import TrainingInputs

_READ: Final = (".safetensors", ".gguf", ".json", ".model")
"""Suffixes of what is read of a language model's folder: weights, configuration, tokenizer."""


def base_fingerprints(config: RunConfig) -> dict[str, str]:
    """Content hashes of a language model that lies in a folder or a GGUF file; a package's stay as its version is."""
    settings = config.model.language_model
    place = None if settings is None or settings.source is None else Path(settings.source)
    if place is None or not place.exists():
        return {}
    files = [place] if place.is_file() else sorted(file for file in place.iterdir() if file.suffix in _READ)
    return {f"model.language_model.source {file.name}": sha256_of_file(file) for file in files if file.is_file()}


def training_inputs(config: RunConfig, inputs: Inputs) -> TrainingInputs:
    """Open the results of `prepare`, `embed` and `tokenize`."""
    import numpy as np

    from recsys.contracts.dataset import Dataset
    from recsys.semantic_ids.versions import SemanticIds
    from recsys.training.inputs import TrainingInputs

    return TrainingInputs(
        dataset=Dataset.open(inputs["prepare"].path),
        semantic_ids=SemanticIds.load(inputs["tokenize"].path),
        model=config.model,
        train=config.train,
        decode=config.decode,
        seed=config.seed,
        item_embeddings=np.load(inputs["embed"].path / "fused.npy", mmap_mode="r"),
        device=resolve_device(config.device),
    )
